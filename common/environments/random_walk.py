"""Three small examples from Sutton and Barto's "Reinforcement Learning: An Introduction", 2018.

Importing this module registers them, so that `--env-id` takes them by the module's name:
`common.environments.random_walk:RandomWalk5-v0` (example 6.2), `...:RandomWalk19-v0` (figure 7.2)
and `...:MaximizationBias-v0` (example 6.7). None has a time limit. Like Gymnasium's own tabular
environments they keep their transition table in `P` and the distribution of the first state in
`initial_state_distrib`.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete

LEFT, RIGHT = 0, 1
NOISE_MEAN, NOISE_STD = -0.1, 1.0  # of the rewards in state B of the example of maximization bias

Outcome = tuple[float, int, float, bool]  # probability, next state, reward, terminated


class RandomWalk(gym.Env):
    """A row of states 0, 1, ..., n + 1; one begins in the middle and ends at either end.

    Actions are 0 (left) and 1 (right): the walk is random under the uniform random policy, whose
    values are i / (n + 1) on the short walk and (i - 10) / 10 on the long one.
    """

    def __init__(self, num_states: int = 5, left_reward: float = 0.0) -> None:
        """Makes a walk over n = `num_states` states between the two ends.

        Args:
            num_states: n, odd.
            left_reward: reward for leaving on the left; on the right it is 1, elsewhere 0.
        """
        right_end = num_states + 1
        self.observation_space, self.action_space = Discrete(num_states + 2), Discrete(2)
        self.initial_state_distrib = np.eye(num_states + 2)[right_end // 2]
        self.P: dict[int, dict[int, list[Outcome]]] = {
            s: {LEFT: [(1.0, s - 1, 0.0, False)], RIGHT: [(1.0, s + 1, 0.0, False)]}
            for s in range(1, right_end)
        }
        self.P[1][LEFT] = [(1.0, 0, left_reward, True)]
        self.P[num_states][RIGHT] = [(1.0, right_end, 1.0, True)]
        for end in (0, right_end):  # as in FrozenLake: whoever steps on stays, and it is over
            self.P[end] = {action: [(1.0, end, 0.0, True)] for action in (LEFT, RIGHT)}
        self.state = right_end // 2

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Begins in the middle."""
        super().reset(seed=seed)
        self.state = int(self.initial_state_distrib.argmax())
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """One step to the left or to the right."""
        _, self.state, reward, terminated = self.P[self.state][int(action)][0]
        return self.state, reward, terminated, False, {}


class MaximizationBias(gym.Env):
    """From A (state 0) one goes right to the end, or left to B (1), whose rewards look tempting.

    Every action in B ends the episode with a reward from N(-0.1, 1), so that going left costs 0.1
    on average; but the largest of many noisy estimates is seldom below 0. An episode of two steps
    is one that went left.

    All states have the same number of actions here. In A even ones go left, odd ones right: an
    agent that acts at random goes left half of the time, as in the example. `P` holds the mean of
    the rewards.
    """

    def __init__(self, num_actions: int = 10) -> None:
        """Makes the example with `num_actions` actions to choose from in B."""
        self.observation_space, self.action_space = Discrete(3), Discrete(num_actions)
        self.initial_state_distrib = np.eye(3)[0]
        left: list[Outcome] = [(1.0, 1, 0.0, False)]
        right: list[Outcome] = [(1.0, 2, 0.0, True)]
        self.P: dict[int, dict[int, list[Outcome]]] = {
            0: {a: right if a % 2 else left for a in range(num_actions)},
            1: {a: [(1.0, 2, NOISE_MEAN, True)] for a in range(num_actions)},
            2: {a: [(1.0, 2, 0.0, True)] for a in range(num_actions)},
        }
        self.state = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Begins in A."""
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """One step; only in B is the reward random."""
        in_b = self.state == 1
        _, self.state, reward, terminated = self.P[self.state][int(action)][0]
        if in_b:
            reward = float(self.np_random.normal(NOISE_MEAN, NOISE_STD))
        return self.state, reward, terminated, False, {}


WALK, BIAS = f"{__name__}:RandomWalk", f"{__name__}:MaximizationBias"
gym.register("RandomWalk5-v0", WALK)
gym.register("RandomWalk19-v0", WALK, kwargs={"num_states": 19, "left_reward": -1.0})
gym.register("MaximizationBias-v0", BIAS)
