"""Gymnasium and Atari environments, several at a time, with every end of an episode told right."""

from common.environments.spaces import NumberedStates, is_image, shape_of
from common.environments.vector import (
    EVALUATION_LIMIT,
    VectorEnvs,
    atari_kwargs,
    make_env,
    make_envs,
    new_episodes,
    reset_seed,
    reward_threshold,
    successor,
)

__all__ = [
    "EVALUATION_LIMIT",
    "NumberedStates",
    "VectorEnvs",
    "atari_kwargs",
    "is_image",
    "make_env",
    "make_envs",
    "new_episodes",
    "reset_seed",
    "reward_threshold",
    "shape_of",
    "successor",
]
