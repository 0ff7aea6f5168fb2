"""Environments whose values are known in closed form; ids are `known_values:Name-v0`."""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

REWARD, LIMIT, GAMMA = 2.0, 6, 0.8
VALUE = REWARD / (1.0 - GAMMA)  # 10: what a reward of 2 for ever is worth
FIRST = -10.0  # reward of the first step in Onward
BEGINNING = FIRST + GAMMA * VALUE  # -2: value of Onward's first state


class Onward(gym.Env):
    """The reward is always 2, except for the first step; only a time limit ends episodes.

    The first state shows [1, 0], all others [0, 1]. With `constant`, the first step is like the
    others and the observation never changes.
    """

    def __init__(self, constant: bool = False, continuous: bool = False) -> None:
        self.observation_space = Box(0.0, 1.0, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (3,), np.float32) if continuous else Discrete(2)
        self.constant = constant

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.first = not self.constant
        return self.observe(), {}

    def step(self, action):
        reward = FIRST if self.first else REWARD
        self.first = False
        return self.observe(), reward, False, False, {}

    def observe(self):
        return np.array([1, 0] if self.first else [0, 1], np.float32)


class Chain(gym.Env):
    """States 0, 1, 2: action 1 goes right, and from state 2 to the end with reward 1."""

    observation_space, action_space = Discrete(3), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action):
        self.state += 1 if action == 1 else -1
        terminated = self.state == 3
        self.state = int(np.clip(self.state, 0, 2))
        return self.state, float(terminated), terminated, False, {}


class Thirteen(gym.Env):
    """One step: the closer the action is to 13, the better; bounds 10 and 20."""

    observation_space = Box(0.0, 1.0, (1,), np.float32)
    action_space = Box(10.0, 20.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), -((float(action[0]) - 13.0) ** 2), True, False, {}


# Q*(s, a) of the chain for γ = 0.9; going left at the left end stays there.
CHAIN_GAMMA = 0.9
CHAIN_Q = np.array([[0.729, 0.81], [0.729, 0.9], [0.81, 1.0]])

gym.register("Onward-v0", Onward, max_episode_steps=LIMIT)
gym.register("Constant-v0", Onward, max_episode_steps=LIMIT, kwargs={"constant": True})
gym.register("OnwardBox-v0", Onward, max_episode_steps=LIMIT, kwargs={"continuous": True})
gym.register("Chain-v0", Chain, max_episode_steps=20)
gym.register("Thirteen-v0", Thirteen)
