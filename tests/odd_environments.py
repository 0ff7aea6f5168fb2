"""Environments for tests: some end their own process, some have what no script can handle.

`SIGNAL_AT=700` sends `SIGNAL` (default: SIGKILL) to the process at the 700th step, all copies
counted, in training or evaluation: a real kill at a moment that is the same on every machine.
"""

import os
import signal

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv
from gymnasium.spaces import Box, Dict, Discrete, Tuple

SIGNAL_AT = int(os.environ.get("SIGNAL_AT", "0"))
SIGNAL = int(os.environ.get("SIGNAL", signal.SIGKILL))
steps_taken = 0


def count_step() -> None:
    global steps_taken
    steps_taken += 1
    if steps_taken == SIGNAL_AT:
        os.kill(os.getpid(), SIGNAL)


class MortalCartPole(CartPoleEnv):
    def step(self, action):
        count_step()
        return super().step(action)


class WideCartPole(MortalCartPole):
    """Shows its four numbers 512 times: a thousand transitions make 16 MB of replay buffer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.observation_space = Box(-np.inf, np.inf, (2048,), np.float32)

    def reset(self, *, seed=None, options=None):
        state, info = super().reset(seed=seed)
        return np.tile(state, 512), info

    def step(self, action):
        state, *rest = super().step(action)
        return np.tile(state, 512), *rest


class MortalPendulum(PendulumEnv):
    def step(self, action):
        count_step()
        return super().step(action)


class NanCartPole(CartPoleEnv):
    """Its rewards become NaN after a while."""

    def step(self, action):
        global steps_taken
        steps_taken += 1
        state, reward, terminated, truncated, info = super().step(action)
        return state, float("nan") if steps_taken > 900 else reward, terminated, truncated, info


class Spaces(gym.Env):
    """Any spaces; every episode lasts one step."""

    def __init__(self, observation_space, action_space=None):
        self.observation_space = observation_space
        self.action_space = action_space or Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.observation_space.sample(), 0.0, True, False, {}


class Failing(gym.Env):
    """Cannot be made."""

    def __init__(self):
        raise ValueError("no luck")


def register(name, factory, max_episode_steps=200):
    gym.register(f"{name}-v0", entry_point=factory, max_episode_steps=max_episode_steps)


UNIT = Box(-1.0, 1.0, (3,), np.float32)
register("MortalCartPole", MortalCartPole, 500)
register("WideCartPole", WideCartPole, 500)
register("MortalPendulum", MortalPendulum)
register("NanCartPole", NanCartPole, 500)
register("DictObservations", lambda: Spaces(Dict({"a": UNIT})))
register("PairObservations", lambda: Spaces(Tuple([UNIT, Discrete(2)])))
register("Failing", Failing)
register("NoTable", lambda: Spaces(Discrete(3)))
register("MatrixObservations", lambda: Spaces(Box(-1.0, 1.0, (3, 3), np.float32)))
register("TinyImages", lambda: Spaces(Box(0, 255, (8, 8, 3), np.uint8)))
register("Images", lambda: Spaces(Box(0, 255, (40, 40, 3), np.uint8)))
register("FloatImages", lambda: Spaces(Box(0.0, 1.0, (64, 64, 3), np.float32)))
register("EndlessActions", lambda: Spaces(UNIT, Box(-np.inf, np.inf, (1,), np.float32)))
register("ActionsFromOne", lambda: Spaces(UNIT, Discrete(2, start=1)))
