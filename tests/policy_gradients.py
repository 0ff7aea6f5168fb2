"""For the tests of policy gradients: an MDP whose episodes can be enumerated, and formulas.

Two states, two actions; an episode ends by itself or after three steps.
"""

import itertools
from typing import NamedTuple

from common.environments import VectorEnvs, vector

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete

HORIZON = 3
START = np.array([0.7, 0.3])
REWARD = np.array([[1.0, -0.5], [0.3, 2.0]])  # [s, a]
# P(s' | s, a), the last column: the episode ends.
MOVES = np.array([[[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], [[0.4, 0.4, 0.2], [0.2, 0.2, 0.6]]])
END = 2


class TwoStates(gym.Env):
    """The MDP as an environment: `policy_gradients:TwoStates-v0`."""

    observation_space, action_space = Discrete(2), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = int(self.np_random.choice(2, p=START))
        return self.state, {}

    def step(self, action):
        reward = float(REWARD[self.state, action])
        after = int(self.np_random.choice(3, p=MOVES[self.state, action]))
        self.state = after if after != END else self.state
        return self.state, reward, after == END, False, {}


gym.register("TwoStates-v0", TwoStates, max_episode_steps=HORIZON)


class Enumerated(NamedTuple):
    """All K episodes, padded with zeros to T = 3 steps."""

    state: np.ndarray  # [K, T]
    action: np.ndarray  # [K, T]
    alive: np.ndarray  # [K, T]
    reward: np.ndarray  # [K, T]
    chance: np.ndarray  # what the dynamics contribute to the episode's probability, [K]


def enumerate_episodes() -> Enumerated:
    rows = []
    for length in range(1, HORIZON + 1):
        for pairs in itertools.product(itertools.product(range(2), range(2)), repeat=length):
            chance = START[pairs[0][0]]
            for (s, a), (after, _) in itertools.pairwise(pairs):
                chance *= MOVES[s, a, after]
            if length < HORIZON:  # else the time is up, whatever would have followed
                chance *= MOVES[pairs[-1] + (END,)]
            padding = [(0, 0)] * (HORIZON - length)
            state, action = zip(*pairs, *padding, strict=True)
            alive = [1.0] * length + [0.0] * (HORIZON - length)
            rows.append((state, action, alive, REWARD[state, action] * alive, chance))
    return Enumerated(*[np.array(column) for column in zip(*rows, strict=True)])


ALL = enumerate_episodes()


def softmax(logits: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def probabilities(kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Of all episodes, [K], under softmax(one-hot(s) @ kernel + bias)."""
    policy = softmax(kernel + bias)  # [S, A]
    taken = np.where(ALL.alive > 0, policy[ALL.state, ALL.action], 1.0)
    return ALL.chance * taken.prod(axis=1)


def discounted(reward: np.ndarray, gamma: float) -> np.ndarray:
    """Reward-to-go along the last axis."""
    result = np.array(reward, np.float64)
    for t in reversed(range(reward.shape[-1] - 1)):
        result[..., t] += gamma * result[..., t + 1]
    return result


def differences(function, arrays: list[np.ndarray], step: float = 1e-6) -> list[np.ndarray]:
    """The gradient of a function of a list of arrays, by central differences in float64."""
    arrays = [np.array(array, np.float64) for array in arrays]
    gradients = []
    for i, array in enumerate(arrays):
        gradient = None
        for at in np.ndindex(array.shape):
            values = []
            for shift in (step, -step):
                moved = [one.copy() for one in arrays]
                moved[i][at] += shift
                values.append(np.asarray(function(moved), np.float64))
            if gradient is None:  # the function may return an array: its shape comes first
                gradient = np.zeros((*values[0].shape, *array.shape))
            gradient[(..., *at)] = (values[0] - values[1]) / (2 * step)
        gradients.append(gradient)
    return gradients


def exact_gradient(kernel: np.ndarray, bias: np.ndarray, gamma: float) -> list[np.ndarray]:
    """Of the expected discounted return, from its definition alone."""
    returns = discounted(ALL.reward, gamma)[:, 0]
    return differences(lambda weights: probabilities(*weights) @ returns, [kernel, bias])


def undiscounted_states_gradient(kernel, bias, gamma) -> list[np.ndarray]:
    """Σ_t E[∇ log π(a_t|s_t) Q_t(s_t, a_t)]: discounted values, but all times weigh the same."""
    held = probabilities(kernel, bias)  # the episodes' probabilities do not move, ...
    reward_to_go = discounted(ALL.reward, gamma)

    def objective(weights):  # ... only the logarithms do
        log_policy = np.log(softmax(weights[0] + weights[1]))[ALL.state, ALL.action]
        return held @ (ALL.alive * log_policy * reward_to_go).sum(axis=1)

    return differences(objective, [kernel, bias])


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def log_density(action: np.ndarray, mean: np.ndarray, log_std: np.ndarray) -> np.ndarray:
    """Of a diagonal Gaussian, summed over the components."""
    each = -0.5 * ((action - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    return each.sum(axis=-1)


def log_prob_and_entropy(outputs: np.ndarray, action: np.ndarray, log_std: np.ndarray | None):
    """Log π(a|s) and the entropy of π(.|s), over leading axes; `log_std` None: Discrete."""
    if log_std is None:
        logs = log_softmax(outputs)
        log_prob = np.take_along_axis(logs, action[..., None], axis=-1)[..., 0]
        return log_prob, -(np.exp(logs) * logs).sum(axis=-1)
    entropy = np.full(outputs.shape[:-1], np.sum(log_std + 0.5 * np.log(2 * np.pi * np.e)))
    return log_density(action, outputs, log_std), entropy


class Watched:
    """What a run did: the arguments of its updates, the steps of its environments."""

    def __init__(self, monkeypatch, module) -> None:
        self.updates, self.steps, self.resets = [], [], 0
        compiled, watched = module.compiled, self

        def compile_and_watch(function=None, **kwargs):
            inner = compiled(function, **kwargs)
            if function is None or function.__name__ != "update":
                return inner

            def call(*args):
                watched.updates.append(args)
                return inner(*args)

            return call

        class Envs(VectorEnvs):
            def reset(self, **kwargs):
                watched.resets += 1
                return super().reset(**kwargs)

            def step(self, actions):
                result = super().step(actions)
                watched.steps.append((np.array(actions), *[np.array(x) for x in result[:4]]))
                return result

        monkeypatch.setattr(module, "compiled", compile_and_watch)
        monkeypatch.setattr(vector, "VectorEnvs", Envs)
