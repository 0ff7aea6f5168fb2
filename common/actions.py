"""Actions: which spaces a script can take, and from [-1, 1] to an environment's bounds."""

from __future__ import annotations

from common.errors import UserError

import gymnasium as gym
import numpy as np


def rescale_action(action: np.ndarray, space: gym.spaces.Box) -> np.ndarray:
    """Clips an action to [-1, 1] and maps it to the bounds; unbounded components pass unchanged.

    Args:
        action: [..., A], 0 means the middle of the range.
        space: the environment's action space.
    """
    bounded = space.bounded_below & space.bounded_above
    low, high = 1.0 * space.low, 1.0 * space.high  # integers would overflow
    if not bounded.all():
        low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    # Not np.clip, which takes twice as long for a few numbers.
    rescaled = low + (high - low) * (np.minimum(np.maximum(action, -1.0), 1.0) + 1.0) / 2.0
    if not bounded.all():
        rescaled = np.where(bounded, rescaled, action)
    return rescaled.astype(space.dtype)


def require_discrete(space: gym.Space, env_id: str, instead: str) -> int:
    """The number of actions of a Discrete space.

    Args:
        space: the environment's action space.
        env_id: for the error message.
        instead: scripts that take Box actions, e.g. "ppo_clip.py".

    Raises:
        UserError: the space is not Discrete, or does not start at 0.
    """
    if not isinstance(space, gym.spaces.Discrete):
        raise UserError(
            f"--env-id {env_id}: actions are continuous ({space}), this script needs discrete "
            f"ones; use {instead}"
        )
    if space.start != 0:
        raise UserError(f"--env-id {env_id}: actions start at {space.start}; they must start at 0")
    return int(space.n)


def require_bounded_box(space: gym.Space, env_id: str, instead: str) -> gym.spaces.Box:
    """The space itself, if it is a Box with finite bounds.

    Args:
        space: the environment's action space.
        env_id: for the error message.
        instead: a script that takes Box actions without bounds, e.g. "ppo_clip.py".

    Raises:
        UserError: the actions are discrete, or a component's bounds are infinite or the same.
    """
    if not isinstance(space, gym.spaces.Box):
        raise UserError(
            f"--env-id {env_id}: actions are discrete ({space}), this script needs continuous "
            f"ones; use dqn.py or ppo_clip.py"
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise UserError(
            f"--env-id {env_id}: actions have no finite bounds ({space}), this script needs them; "
            f"use {instead}"
        )
    if not (space.low < space.high).all():
        raise UserError(
            f"--env-id {env_id}: a component of the actions has no width ({space}); "
            "leave it out of the action space"
        )
    return space
