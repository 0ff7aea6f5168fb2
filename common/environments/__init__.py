"""Gymnasium and Atari environments, several at a time, with every end of an episode told right."""

from common.environments.vector import (
    EVALUATION_LIMIT,
    VectorEnvs,
    make_env,
    make_envs,
    reset_seed,
    reward_threshold,
    successor,
)

__all__ = [
    "EVALUATION_LIMIT",
    "VectorEnvs",
    "make_env",
    "make_envs",
    "reset_seed",
    "reward_threshold",
    "successor",
]
