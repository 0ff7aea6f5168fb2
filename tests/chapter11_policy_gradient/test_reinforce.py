"""REINFORCE: its gradient against exact ones, its variance, and which steps it learns from."""

import inspect

from chapter11_policy_gradient import ppo_clip, reinforce
from chapter11_policy_gradient.reinforce import Actions, Config, Episodes, build_network
from common.compiled import compiled
from common.evaluation import episode_returns
from common.metrics import read_metrics

import keras
import numpy as np
import policy_gradients
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_gradients import ALL, Watched

pytestmark = pytest.mark.no_xla

STATES = Box(-1.0, 1.0, (3,), np.float32)
KINDS = {"discrete": Discrete(4), "box": Box(-2.0, 2.0, (2,), np.float32)}


def linear_update(observation_space, action_space, num_envs):
    """A linear policy and gradient ascent with step 1: the weights' change is the gradient."""
    keras.utils.set_random_seed(0)
    actions = Actions(action_space)
    network = build_network(observation_space, actions.outputs, (), gain=1.0)
    if not actions.discrete:
        actions.log_std.assign([-0.5, 0.3])
    optimizer = keras.optimizers.SGD(1.0)
    update = compiled(reinforce.build_update(network, actions, optimizer))
    weights = [*network.trainable_variables, *([] if actions.discrete else [actions.log_std])]
    return update, weights


def values(variables):
    return [np.asarray(variable, np.float64) for variable in variables]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_expected_gradient_of_a_two_state_mdp(gamma):
    update, weights = linear_update(Discrete(2), Discrete(2), len(ALL.chance))
    before = values(weights)
    probability = policy_gradients.probabilities(*before)
    assert probability.sum() == pytest.approx(1.0)
    returns = policy_gradients.discounted(ALL.reward, gamma)[:, :1] * np.ones(ALL.reward.shape)
    # Every episode once, weighted with its probability: the mean becomes the expectation.
    weight = ALL.alive * probability[:, None] * len(probability)
    update(Episodes(ALL.state, ALL.action, weight, returns), 1.0)
    exact = policy_gradients.exact_gradient(*before, gamma)
    for old, new, gradient in zip(before, values(weights), exact, strict=True):
        np.testing.assert_allclose(new - old, gradient, atol=2e-6)
        assert np.abs(gradient).max() > 0.05


def some_episodes(kind, n=3, length=5, seed=5):
    rng = np.random.default_rng(seed)
    if kind == "discrete":
        action = rng.integers(0, 4, (n, length))
    else:
        action = rng.normal(size=(n, length, 2))
    alive = np.arange(length) < rng.integers(1, length + 1, n)[:, None]
    returns = np.repeat(rng.normal(3.0, 5.0, (n, 1)), length, axis=1)
    return Episodes(rng.normal(size=(n, length, 3)), action, alive, returns)


def objectives(weights, episodes):
    """(2) before the derivative is taken, and the mean entropy: of each episode, [N]."""
    outputs = episodes.state @ weights[0] + weights[1]
    log_std = weights[2] if len(weights) > 2 else None
    log_prob, entropy = policy_gradients.log_prob_and_entropy(outputs, episodes.action, log_std)
    steps = episodes.alive.sum(axis=1)
    weighted = episodes.alive * log_prob * episodes.returns
    return weighted.sum(axis=1), (episodes.alive * entropy).sum(axis=1) / steps


@pytest.mark.parametrize("kind", KINDS)
def test_one_update_follows_the_formulas(kind):
    update, weights = linear_update(STATES, KINDS[kind], 3)
    episodes, before = some_episodes(kind), values(weights)
    metrics, new_log_std = update(episodes, 0.5)
    each = policy_gradients.differences(lambda w: objectives(w, episodes)[0], before)
    squares = 0.0
    for old, new, gradients in zip(before, values(weights), each, strict=True):
        np.testing.assert_allclose(new - old, 0.5 * gradients.mean(axis=0), rtol=1e-4, atol=1e-5)
        squares += ((gradients - gradients.mean(axis=0)) ** 2).sum()
    objective, entropy = objectives(before, episodes)
    expected = {
        "train/policy_loss": -objective.mean(),
        "train/entropy": entropy.mean(),
        "train/gradient_variance": squares / (3 * 2),
    }
    assert metrics.keys() == expected.keys()
    for name, value in metrics.items():
        assert value == pytest.approx(expected[name], rel=1e-4), name
    np.testing.assert_array_equal(new_log_std, weights[2] if kind == "box" else [])


def test_the_variance_is_that_of_the_mean():
    """Unbiased: its expectation is the exact variance of the mean of N = 2 episodes."""
    update, weights = linear_update(Discrete(2), Discrete(2), 2)
    before = values(weights)
    probability = policy_gradients.probabilities(*before)
    returns = policy_gradients.discounted(ALL.reward, 1.0)[:, :1] * np.ones(ALL.reward.shape)

    def each_objective(moved):
        log_policy = policy_gradients.log_softmax(moved[0] + moved[1])[ALL.state, ALL.action]
        return (ALL.alive * log_policy * returns).sum(axis=1)

    gradients = policy_gradients.differences(each_objective, before)  # of all K episodes
    flat = np.concatenate([g.reshape(len(probability), -1) for g in gradients], axis=1)
    exact = probability @ (flat**2).sum(axis=1) - ((probability @ flat) ** 2).sum()
    rng, measured = np.random.default_rng(0), []
    for _ in range(2000):
        drawn = rng.choice(len(probability), 2, p=probability / probability.sum())
        arrays = [array[drawn] for array in (ALL.state, ALL.action, ALL.alive, returns)]
        measured.append(update(Episodes(*arrays), 0.0)[0]["train/gradient_variance"])
    error = np.std(measured) / np.sqrt(len(measured))
    assert error < 0.05 * exact
    assert np.mean(measured) == pytest.approx(exact / 2, abs=4 * error)


UPDATE_OF_FIVE = linear_update(STATES, KINDS["box"], 3)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_comes_after_the_end_does_not_matter(seed):
    update, weights = UPDATE_OF_FIVE
    rng, episodes = np.random.default_rng(seed), some_episodes("box", seed=seed)
    dead = ~episodes.alive
    other = Episodes(*[np.array(array) for array in episodes])
    for array in (other.state, other.action, other.returns):
        array[dead] += rng.normal(0.0, 10.0, array[dead].shape)
    before, results = values(weights), []
    for one in (episodes, other):
        metrics, _ = update(one, 1.0)
        results.append([*metrics.values(), *values(weights)])
        for variable, value in zip(weights, before, strict=True):
            variable.assign(value)
    for one, same in zip(*results, strict=True):
        np.testing.assert_allclose(same, one, rtol=1e-5, atol=1e-6)


# --- Whole runs -------------------------------------------------------------------------------


def first_episodes(steps, alive):
    """Of the steps of one iteration, which belong to each environment's first episode: [T, N]."""
    rows = []
    for _, _, _, terminated, truncated in steps:
        rows.append(alive)
        alive = alive & ~(terminated | truncated)
    return np.array(rows), alive


def test_an_iteration_is_one_episode_of_each_environment(tmp_path, monkeypatch):
    watched = Watched(monkeypatch, reinforce)
    config = Config(num_envs=3, total_timesteps=1200, gamma=0.9, run_dir=str(tmp_path))
    result = reinforce.train(config)
    assert len(watched.steps) * 3 == result.total_timesteps == 1200  # idle ones are counted
    assert len(watched.updates) > 5
    at = 0
    for episodes, _ in watched.updates:
        length = int(episodes.alive.sum(axis=1).max())
        part = watched.steps[at : at + length]
        alive, left = first_episodes(part, np.ones(3, bool))
        assert not left.any()  # all have ended, and ...
        assert alive[-1].any()  # ... not before the last step
        assert episodes.alive.shape == (3, 128)
        np.testing.assert_array_equal(episodes.alive[:, :length], alive.T)
        assert not episodes.alive[:, length:].any()
        lengths = alive.sum(axis=0)
        for i, steps in enumerate(lengths):  # a reward of 1 a step, also for the last one
            np.testing.assert_allclose(
                episodes.returns[i, :steps], (1 - 0.9**steps) / 0.1, rtol=1e-6
            )
            taken = [actions[i] for actions, *_ in part[:steps]]
            np.testing.assert_array_equal(episodes.action[i, :steps], taken)
            seen = [next_state[i] for _, next_state, *_ in part[: steps - 1]]
            np.testing.assert_array_equal(episodes.state[i, 1:steps], seen)
        # CartPole begins near 0: nobody goes on with an episode that another policy began.
        assert np.abs(episodes.state[:, 0]).max() <= 0.05
        at += length
    unequal = [len(set(episodes.alive.sum(axis=1))) > 1 for episodes, _ in watched.updates]
    assert any(unequal)
    rates = [rate for _, rate in watched.updates]
    assert rates == sorted(rates, reverse=True)
    assert 0.0 < rates[-1] < rates[0] < config.learning_rate


def test_environments_begin_anew_only_if_they_have_not_just_done_so(tmp_path, monkeypatch):
    """After a cut all have: one more reset would make a resumed run differ."""
    watched = Watched(monkeypatch, reinforce)
    config = Config(
        env_id="known_values:Constant-v0",  # every episode lasts six steps
        num_envs=2,
        total_timesteps=120,
        checkpoint_every=120,
        run_dir=str(tmp_path),
    )
    reinforce.train(config)
    assert len(watched.updates) == 10
    assert watched.resets == 2  # at the beginning and at the cut


def test_long_episodes_are_padded_to_the_next_power_of_two():
    for length, expected in [(1, 128), (128, 128), (129, 256), (500, 512), (512, 512)]:
        array = np.random.default_rng(0).normal(size=(length, 3, 2))
        result = reinforce.padded(array)
        assert result.shape == (3, expected, 2)
        np.testing.assert_array_equal(result[:, :length], array.swapaxes(0, 1))
        assert not result[:, length:].any()


def test_what_does_not_differ_is_the_same_as_in_ppo():
    for name in ("build_network", "Actions"):  # tested there
        ours, theirs = getattr(reinforce, name), getattr(ppo_clip, name)
        assert inspect.getsource(ours) == inspect.getsource(theirs)


@pytest.mark.xla
def test_learns_to_balance_for_a_while(tmp_path):
    result = reinforce.train(Config(total_timesteps=60_000, run_dir=str(tmp_path)))
    assert np.mean(episode_returns(result.policy, "CartPole-v1", 50, seed=0)) >= 60  # random: 22
    assert np.isfinite(read_metrics(tmp_path)["train/gradient_variance"]).any()
