"""Environments that show only a part of what matters; a policy must remember the rest.

Importing this module registers them, so that `--env-id` takes them by the module's name:
`common.environments.partial:CartPoleNoVelocity-v0` and `...:RecallCue-v0`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.spaces import Box

POSITIONS = [0, 2]  # of CartPole's state: the cart's position and the pole's angle
CUES = 2


class CartPoleNoVelocity(CartPoleEnv):
    """CartPole that shows the cart's position and the pole's angle, but not how fast they change.

    Two observations in a row tell both velocities, one tells neither. Everything else, the time
    limit and the threshold included, is as in CartPole-v1.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Makes it; `kwargs` as for CartPole."""
        super().__init__(**kwargs)
        full = self.observation_space
        assert isinstance(full, Box)
        self.observation_space = Box(full.low[POSITIONS], full.high[POSITIONS], dtype=np.float32)

    def reset(self, **kwargs: Any) -> Any:
        """Begins an episode."""
        state, info = super().reset(**kwargs)
        return state[POSITIONS], info

    def step(self, action: Any) -> Any:
        """Pushes the cart."""
        state, *rest = super().step(action)
        return state[POSITIONS], *rest


class RecallCue(gym.Env):
    """A cue is shown once; some steps later the question comes which one it was.

    Observations are [cue 0, cue 1, question]: one of the cues in the first step, zeros in the
    `delay` steps that follow, then the question. The action that answers it earns 1 if it is the
    cue's number and -1 if not, and ends the episode; all earlier actions do nothing. Whoever sees
    only the present is right half of the time: on average every memoryless policy earns 0.
    """

    def __init__(self, delay: int = 8) -> None:
        """Makes it with `delay` empty steps between cue and question."""
        self.observation_space = Box(0.0, 1.0, (CUES + 1,), np.float32)
        self.action_space = gym.spaces.Discrete(CUES)
        self.delay = delay
        self.cue = self.time = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Shows a cue."""
        super().reset(seed=seed)
        self.cue, self.time = int(self.np_random.integers(CUES)), 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Time passes; the answer to the question ends the episode."""
        asked = self.time > self.delay
        reward = (1.0 if int(action) == self.cue else -1.0) if asked else 0.0
        self.time += 1
        return self._observe(), reward, asked, False, {}

    def _observe(self) -> np.ndarray:
        observation = np.zeros(CUES + 1, np.float32)
        if self.time == 0:
            observation[self.cue] = 1.0
        elif self.time == self.delay + 1:
            observation[CUES] = 1.0
        return observation


gym.register(
    "CartPoleNoVelocity-v0",
    f"{__name__}:CartPoleNoVelocity",
    max_episode_steps=500,
    reward_threshold=475.0,
)
gym.register("RecallCue-v0", f"{__name__}:RecallCue", reward_threshold=0.9)
