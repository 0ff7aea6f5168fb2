"""Flickering images: partial observability for games that show everything that matters."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np


class FlickeringFrames(gym.vector.VectorWrapper):
    """Blanks each observation with some probability, independently in every copy and step.

    As in Hausknecht and Stone (2015). An episode's last observation, which comes in `info`,
    flickers like all others.
    """

    def __init__(self, env: gym.vector.VectorEnv, probability: float) -> None:
        """Wraps vector environments.

        Args:
            env: the environments; observations are single frames, not stacks of them.
            probability: of a blank frame.
        """
        super().__init__(env)
        self.probability = probability
        self._rng = np.random.default_rng()

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> Any:
        """Begins new episodes; the seed decides which frames will be blank, too."""
        if seed is not None:
            self._rng = np.random.default_rng([int(seed), 1])
        state, info = self.env.reset(seed=seed, options=options)
        return self._flicker(state), info

    def step(self, actions: Any) -> Any:
        """Steps every copy."""
        state, reward, terminated, truncated, info = self.env.step(actions)
        if "final_obs" in info:
            info["final_obs"] = self._flicker(info["final_obs"])
        return self._flicker(state), reward, terminated, truncated, info

    def _flicker(self, frames: np.ndarray) -> np.ndarray:
        blank = self._rng.random(len(frames)) < self.probability
        frames = frames.copy()
        frames[blank] = 0
        return frames
