"""Kinds of observation spaces, told apart without importing TensorFlow."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete, Tuple


def shape_of(space: gym.Space) -> tuple[int, ...]:
    """A space's shape; every space that scripts take has one."""
    assert space.shape is not None
    return space.shape


def is_image(space: gym.Space) -> bool:
    """Whether observations are uint8 images that `nature_cnn` can take."""
    return (
        isinstance(space, Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and sorted(space.shape)[1] >= 36
    )


def table_shape(space: gym.Space) -> tuple[int, ...] | None:
    """Sizes of the parts of a Discrete space or a Tuple of them, (32, 11, 2); None for others."""
    parts = space.spaces if isinstance(space, Tuple) else (space,)
    if not all(isinstance(part, Discrete) and part.start == 0 for part in parts):
        return None
    return tuple(int(part.n) for part in parts)  # type: ignore[attr-defined]


class NumberedStates(gym.ObservationWrapper):
    """Numbers the states of an environment whose observations are Tuples of Discrete.

    State (i, j, k) of sizes (I, J, K) gets number (i J + j) K + k, so that a table over numbers
    reads as `V.reshape(I, J, K)[i, j, k]`.
    """

    def __init__(self, env: gym.Env) -> None:
        """Wraps `env`."""
        super().__init__(env)
        shape = table_shape(env.observation_space)
        assert shape is not None
        self.table_shape = shape
        self.observation_space = Discrete(math.prod(shape))

    def observation(self, observation: Any) -> int:
        """The number of a state."""
        number = 0
        for size, part in zip(self.table_shape, observation, strict=True):
            number = number * size + int(part)
        return number


def numbered(env: gym.Env) -> gym.Env:
    """The environment, its states numbered if they are Tuples of Discrete."""
    space = env.observation_space
    if isinstance(space, Tuple) and table_shape(space) is not None:
        return NumberedStates(env)
    return env
