"""REINFORCE with reward-to-go: its gradient against exact ones, what each step is weighted with."""

import inspect

from chapter11_policy_gradient import ppo_clip, reinforce
from chapter11_policy_gradient import reinforce_reward_to_go as script
from chapter11_policy_gradient.reinforce_reward_to_go import (
    Actions,
    Config,
    Episodes,
    build_network,
)
from common.compiled import compiled
from common.evaluation import episode_returns

import keras
import numpy as np
import policy_gradients
import pytest
from gymnasium.spaces import Box, Discrete
from policy_gradients import ALL, Watched

pytestmark = pytest.mark.no_xla

STATES = Box(-1.0, 1.0, (3,), np.float32)
KINDS = {"discrete": Discrete(4), "box": Box(-2.0, 2.0, (2,), np.float32)}


def linear_update(observation_space, action_space):
    """A linear policy and gradient ascent with step 1: the weights' change is the gradient."""
    keras.utils.set_random_seed(0)
    actions = Actions(action_space)
    network = build_network(observation_space, actions.outputs, (), gain=1.0)
    if not actions.discrete:
        actions.log_std.assign([-0.5, 0.3])
    update = compiled(script.build_update(network, actions, keras.optimizers.SGD(1.0)))
    return update, [*network.trainable_variables, *([] if actions.discrete else [actions.log_std])]


def values(variables):
    return [np.asarray(variable, np.float64) for variable in variables]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_expected_gradient_of_a_two_state_mdp(gamma):
    update, weights = linear_update(Discrete(2), Discrete(2))
    before = values(weights)
    probability = policy_gradients.probabilities(*before)
    reward_to_go = policy_gradients.discounted(ALL.reward, gamma)
    # Every episode once, weighted with its probability: the mean becomes the expectation.
    weight = ALL.alive * probability[:, None] * len(probability)
    update(Episodes(ALL.state, ALL.action, weight, reward_to_go), 1.0)
    if gamma == 1.0:  # exactly what the whole return gives, and
        expected = policy_gradients.exact_gradient(*before, gamma)
    else:  # without the factor γ^t
        expected = policy_gradients.undiscounted_states_gradient(*before, gamma)
    for old, new, gradient in zip(before, values(weights), expected, strict=True):
        np.testing.assert_allclose(new - old, gradient, atol=2e-6)
        assert np.abs(gradient).max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_one_update_follows_the_formulas(kind):
    update, weights = linear_update(STATES, KINDS[kind])
    rng, before = np.random.default_rng(5), values(weights)
    action = rng.integers(0, 4, (3, 5)) if kind == "discrete" else rng.normal(size=(3, 5, 2))
    alive = np.arange(5) < np.array([[5], [2], [3]])
    episodes = Episodes(rng.normal(size=(3, 5, 3)), action, alive, rng.normal(3.0, 5.0, (3, 5)))

    def each(moved):
        outputs = episodes.state @ moved[0] + moved[1]
        log_std = moved[2] if kind == "box" else None
        log_prob, _ = policy_gradients.log_prob_and_entropy(outputs, action, log_std)
        return (alive * log_prob * episodes.reward_to_go).sum(axis=1)

    metrics, _ = update(episodes, 0.5)
    squares = 0.0
    for old, new, gradients in zip(
        before, values(weights), policy_gradients.differences(each, before), strict=True
    ):
        np.testing.assert_allclose(new - old, 0.5 * gradients.mean(axis=0), rtol=1e-4, atol=1e-5)
        squares += ((gradients - gradients.mean(axis=0)) ** 2).sum()
    assert metrics["train/policy_loss"] == pytest.approx(-each(before).mean(), rel=1e-4)
    assert metrics["train/gradient_variance"] == pytest.approx(squares / (3 * 2), rel=1e-4)


def test_each_step_counts_what_follows_it_in_its_own_episode(tmp_path, monkeypatch):
    watched = Watched(monkeypatch, script)
    config = Config(
        env_id="policy_gradients:TwoStates-v0",
        num_envs=4,
        total_timesteps=240,
        gamma=0.9,
        run_dir=str(tmp_path),
    )
    result = script.train(config)
    assert len(watched.steps) * 4 == result.total_timesteps == 240  # idle ones are counted
    lengths = set()
    for episodes, _ in watched.updates:
        assert episodes.alive.shape == (4, 128)
        for i in range(4):
            steps = int(episodes.alive[i].sum())
            assert episodes.alive[i, :steps].all()
            pairs = episodes.state[i, :steps], episodes.action[i, :steps]
            expected = policy_gradients.discounted(policy_gradients.REWARD[pairs], 0.9)
            np.testing.assert_allclose(episodes.reward_to_go[i, :steps], expected, rtol=1e-6)
            lengths.add(steps)
    assert lengths == {1, 2, 3}
    used = sum(int(episodes.alive.sum(axis=1).max()) for episodes, _ in watched.updates)
    assert 57 <= used <= 60  # the last iteration may not have ended


def test_what_does_not_differ_is_the_same_as_in_its_neighbours():
    for module, names in [
        (ppo_clip, ("build_network", "Actions")),
        (reinforce, ("variance_of_mean", "greedy_policy", "padded", "load_policy")),
    ]:
        for name in names:  # tested there
            ours, theirs = getattr(script, name), getattr(module, name)
            assert inspect.getsource(ours) == inspect.getsource(theirs)


@pytest.mark.xla
def test_learns_cartpole(tmp_path):
    result = script.train(Config(total_timesteps=80_000, run_dir=str(tmp_path)))
    assert np.mean(episode_returns(result.policy, "CartPole-v1", 50, seed=0)) >= 100  # random: 22
