"""Running normalization of observations and rewards, for tasks whose scales differ widely."""

from __future__ import annotations

from collections.abc import Mapping

from common.errors import UserError

import gymnasium as gym
import numpy as np

CLIP = 10.0  # standard deviations beyond which a normalized number is cut off
_TINY = 1e-8


class RunningMoments:
    """Mean and variance of all samples so far, in float64 (Chan, Golub and LeVeque 1979)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """Begins without a sample.

        Args:
            shape: of one sample.
        """
        self.count = np.zeros(())
        self.mean = np.zeros(shape)
        self.variance = np.ones(shape)

    def update(self, samples: np.ndarray) -> None:
        """Takes `samples`, [N, *shape]."""
        samples = np.asarray(samples, np.float64)
        both = self.count + len(samples)
        shift = samples.mean(axis=0) - self.mean
        squares = self.count * self.variance + len(samples) * samples.var(axis=0)
        squares += shift**2 * self.count * len(samples) / both
        self.mean += shift * len(samples) / both
        self.variance[...] = squares / both
        self.count[...] = both


class Normalizer:
    """Observations with mean 0 and variance 1, rewards in units of the return's deviation.

    A reward is divided by the standard deviation of the running discounted return
    ret <- γ ret + r of its environment, which begins at 0 in each episode; it is not shifted, so
    that no reward changes its sign. All results lie between -10 and 10.

    Switched off, everything passes through unchanged.
    """

    def __init__(
        self,
        space: gym.Space,
        num_envs: int,
        gamma: float,
        enabled: bool = True,
    ) -> None:
        """Begins without a sample.

        Args:
            space: of one environment's observations.
            num_envs: environments that step together.
            gamma: discount factor γ.
            enabled: whether anything is normalized.

        Raises:
            UserError: the observations are no vectors.
        """
        self.enabled = enabled
        if not enabled:
            return
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise UserError("--normalize: takes vectors of numbers, not images or categories")
        self._observations = RunningMoments(space.shape)
        self._returns = RunningMoments(())
        self._return = np.zeros(num_envs)
        self._gamma = gamma

    def observe(self, observation: np.ndarray) -> np.ndarray:
        """Learns from observations of training, [N, D], and returns them normalized."""
        if self.enabled:
            self._observations.update(observation)
        return self.normalize(observation)

    def normalize(self, observation: np.ndarray) -> np.ndarray:
        """Normalizes [..., D] by what was observed so far; float32."""
        if not self.enabled:
            return observation
        moments = self._observations
        deviation = np.sqrt(moments.variance + _TINY)
        centred = (observation - moments.mean) / deviation
        return np.clip(centred, -CLIP, CLIP).astype(np.float32)

    def scale(
        self, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> np.ndarray:
        """Learns from one step's rewards, [N], and returns them scaled; float32."""
        if not self.enabled:
            return reward
        self._return = self._gamma * self._return + reward
        self._returns.update(self._return)
        self._return[np.logical_or(terminated, truncated)] = 0.0
        scaled = reward / np.sqrt(self._returns.variance + _TINY)
        return np.clip(scaled, -CLIP, CLIP).astype(np.float32)

    def get_state(self) -> dict[str, np.ndarray]:
        """For checkpoints, before which every episode has just ended."""
        if not self.enabled:
            return {}
        pairs = {"observations": self._observations, "returns": self._returns}
        return {
            f"{name}_{part}": getattr(moments, part)
            for name, moments in pairs.items()
            for part in ("count", "mean", "variance")
        }

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `get_state` gave."""
        for key, array in self.get_state().items():
            array[...] = state[key]
