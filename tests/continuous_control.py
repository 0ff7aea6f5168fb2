"""Environments with Box actions whose answers are known; ids are `continuous_control:Name-v0`.

And what tests of the off-policy scripts share: small networks worked out in NumPy, float64.
"""

import dataclasses
import shutil

from common import checkpoint
from tests.processes import metrics

import gymnasium as gym
import keras
import numpy as np
from gymnasium.spaces import Box, Discrete

REWARD, LIMIT, GAMMA = 2.0, 6, 0.8
VALUE = REWARD / (1.0 - GAMMA)  # 10: what a reward of 2 for ever is worth
LOW, HIGH = np.array([-1.0, 10.0]), np.array([3.0, 14.0])  # bounds that are not symmetric
GAIN, GAIN_GAMMA = 0.588403, 0.9  # K of the regulator below for γ = 0.9


class Constant(gym.Env):
    """The reward is always 2, the observation always 1, and only a time limit ends episodes."""

    observation_space = Box(0.0, 1.0, (1,), np.float32)
    action_space = Box(LOW.astype(np.float32), HIGH.astype(np.float32))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return np.ones(1, np.float32), REWARD, False, False, {}


class Regulator(gym.Env):
    """x <- x + u costs x² + u²; the best action is u = -K x, with K from Riccati's equation."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float32)
    action_space = Box(-2.0, 1.5, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1.0, 1.0)
        return np.array([self.x], np.float32), {}

    def step(self, action):
        u = float(action[0])
        reward = -(self.x**2) - u**2
        self.x += u
        return np.array([self.x], np.float32), reward, False, False, {}


class Bounds(gym.Env):
    """Any actions; every episode lasts one step."""

    observation_space = Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, True, False, {}


UNBOUNDED = Box(np.float32([-1, -np.inf]), np.float32([1, np.inf]))
FLAT = Box(np.float32([-1, 2]), np.float32([1, 2]))
gym.register("Constant-v1", Constant, max_episode_steps=LIMIT)
gym.register("Regulator-v0", Regulator, max_episode_steps=5)
gym.register("Unbounded-v0", lambda: Bounds(UNBOUNDED))
gym.register("Flat-v0", lambda: Bounds(FLAT))
gym.register("Choices-v0", lambda: Bounds(Discrete(3)))


def gain(policy):
    """K of the line through a policy's actions in the regulator's states."""
    x = np.linspace(-1.0, 1.0, 41, dtype=np.float32)[:, None]
    u = policy(x)
    assert u.shape == x.shape
    return -float(np.polyfit(x[:, 0], u[:, 0], 1)[0])


# --- Networks in NumPy ------------------------------------------------------------------------


def towers(model, count):
    """Weights of `count` networks with one hidden layer each that make up a Keras model.

    Returns float64 copies, [[kernel, bias, kernel, bias], ...], and the Keras variables likewise.
    """
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    hidden, heads = dense[:count], dense[count:]
    assert len(heads) == count
    pairs = zip(hidden, heads, strict=True)
    variables = [[a.kernel, a.bias, b.kernel, b.bias] for a, b in pairs]
    return [[np.asarray(v, np.float64) for v in weights] for weights in variables], variables


def network(inputs, weights):
    """One hidden layer of rectified units, [B, D] -> [B, outputs]."""
    kernel, bias, head, head_bias = weights
    return np.maximum(inputs @ kernel + bias, 0.0) @ head + head_bias


def q_value(state, action, weights):
    """Q(s, a), [B]."""
    return network(np.concatenate([state, action], axis=1), weights)[:, 0]


def numeric_gradient(loss, weights, shift=1e-6):
    """Central differences of `loss()` for each of the arrays, which are changed in place."""
    gradients = []
    for array in weights:
        gradient = np.zeros_like(array)
        for at in np.ndindex(array.shape):
            before = array[at]
            losses = []
            for moved in (before + shift, before - shift):
                array[at] = moved
                losses.append(loss())
            array[at] = before
            gradient[at] = (losses[0] - losses[1]) / (2 * shift)
        gradients.append(gradient)
    return gradients


def assert_weights(variables, expected, **tolerance):
    for variable, weights in zip(variables, expected, strict=True):
        np.testing.assert_allclose(np.asarray(variable), weights, **{"atol": 2e-6} | tolerance)


# --- Runs -------------------------------------------------------------------------------------


def assert_resumes_exactly(module, config, tmp_path):
    """A run that goes on from its last checkpoint but one ends like the one that never stopped.

    Networks, optimizers, replay buffer, generators and noise are compared number by number.
    """
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    module.train(dataclasses.replace(config, run_dir=str(whole)))
    shutil.copytree(whole, cut)
    last, *_ = sorted((cut / "checkpoints").glob("*.npz"), reverse=True)
    last.unlink()
    # The flags are read from the run, as the command line does it.
    module.train(dataclasses.replace(config, run_dir=str(whole), resume=str(cut)))
    assert metrics(cut) == metrics(whole)
    with np.load(checkpoint.latest(cut)) as ours, np.load(checkpoint.latest(whole)) as same:
        assert set(ours.files) == set(same.files)
        for name in set(ours.files) - {"meta"}:  # which tells the time
            np.testing.assert_array_equal(ours[name], same[name], err_msg=name)
        return set(ours.files)
