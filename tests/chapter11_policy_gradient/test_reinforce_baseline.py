"""REINFORCE with a baseline: its gradient against exact ones, three variances, the baseline."""

import inspect

from chapter11_policy_gradient import ppo_clip, reinforce
from chapter11_policy_gradient import reinforce_baseline as script
from chapter11_policy_gradient.reinforce_baseline import (
    Actions,
    Config,
    Episodes,
    build_network,
)
from common import plots
from common.compiled import compiled
from common.evaluation import episode_returns
from common.metrics import read_metrics

import keras
import numpy as np
import policy_gradients
import pytest
from gymnasium.spaces import Box, Discrete
from policy_gradients import ALL, Watched

pytestmark = pytest.mark.no_xla

STATES = Box(-1.0, 1.0, (3,), np.float32)
KINDS = {"discrete": Discrete(4), "box": Box(-2.0, 2.0, (2,), np.float32)}


def linear_update(observation_space, action_space, value_steps=1):
    """Linear networks and gradient descent with step 1: the weights' change is the gradient."""
    keras.utils.set_random_seed(0)
    actions = Actions(action_space)
    network = build_network(observation_space, actions.outputs, (), gain=1.0)
    if not actions.discrete:
        actions.log_std.assign([-0.5, 0.3])
    value_network = build_network(observation_space, 1, (), gain=1.0)
    value_network.trainable_variables[1].assign([1.5])
    optimizers = keras.optimizers.SGD(1.0), keras.optimizers.SGD(0.1)
    config = Config(value_steps=value_steps)
    update = script.build_update(network, value_network, actions, *optimizers, config)
    weights = [*network.trainable_variables, *([] if actions.discrete else [actions.log_std])]
    return compiled(update), weights, value_network.trainable_variables


def values(variables):
    return [np.asarray(variable, np.float64) for variable in variables]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_expected_gradient_of_a_two_state_mdp(gamma):
    update, weights, baseline = linear_update(Discrete(2), Discrete(2))
    assert np.abs(values(baseline)[0] + values(baseline)[1]).min() > 0.3  # it is not zero
    before = values(weights)
    probability = policy_gradients.probabilities(*before)
    reward_to_go = policy_gradients.discounted(ALL.reward, gamma)
    # Every episode once, weighted with its probability: the mean becomes the expectation.
    weight = ALL.alive * probability[:, None] * len(probability)
    update(Episodes(ALL.state, ALL.action, weight, reward_to_go), 1.0)
    # The baseline changes nothing in the expectation: with γ = 1 it is that of the whole return,
    if gamma == 1.0:
        expected = policy_gradients.exact_gradient(*before, gamma)
    else:  # else that without the factor γ^t.
        expected = policy_gradients.undiscounted_states_gradient(*before, gamma)
    for old, new, gradient in zip(before, values(weights), expected, strict=True):
        np.testing.assert_allclose(new - old, gradient, atol=2e-6)
        assert np.abs(gradient).max() > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_one_update_follows_the_formulas(kind):
    update, weights, baseline = linear_update(STATES, KINDS[kind], value_steps=3)
    rng, before, value_before = np.random.default_rng(5), values(weights), values(baseline)
    action = rng.integers(0, 4, (3, 5)) if kind == "discrete" else rng.normal(size=(3, 5, 2))
    alive = np.arange(5) < np.array([[5], [2], [3]])
    episodes = Episodes(rng.normal(size=(3, 5, 3)), action, alive, rng.normal(3.0, 5.0, (3, 5)))
    to_go = episodes.reward_to_go
    value = (episodes.state @ value_before[0] + value_before[1])[..., 0]

    def each(moved, factor):
        outputs = episodes.state @ moved[0] + moved[1]
        log_std = moved[2] if kind == "box" else None
        log_prob, _ = policy_gradients.log_prob_and_entropy(outputs, action, log_std)
        return (alive * log_prob * factor).sum(axis=1)

    metrics, _ = update(episodes, 0.5)
    for name, factor in [
        ("train/gradient_variance", to_go - value),
        ("train/gradient_variance_reward_to_go", to_go),
        ("train/gradient_variance_whole_return", to_go[:, :1]),
    ]:
        gradients = policy_gradients.differences(lambda w, f=factor: each(w, f), before)
        squares = sum(((one - one.mean(axis=0)) ** 2).sum() for one in gradients)
        assert metrics[name] == pytest.approx(squares / (3 * 2), rel=1e-4), name
        if name == "train/gradient_variance":
            for old, new, one in zip(before, values(weights), gradients, strict=True):
                np.testing.assert_allclose(new - old, 0.5 * one.mean(axis=0), rtol=1e-4, atol=1e-5)
    objective = each(before, to_go - value).mean()
    assert metrics["train/policy_loss"] == pytest.approx(-objective, rel=1e-4)
    mean_value = ((alive * value).sum(axis=1) / alive.sum(axis=1)).mean()
    assert metrics["train/value"] == pytest.approx(mean_value, rel=1e-5)

    # Three steps of gradient descent with step 0.1 on the mean over all steps of all episodes.
    kernel, bias = value_before
    losses = []
    for _ in range(3):
        error = (to_go - (episodes.state @ kernel + bias)[..., 0])[alive]
        losses.append(np.mean(error**2))
        kernel = kernel + 0.1 * 2 * (episodes.state[alive].T @ error)[:, None] / len(error)
        bias = bias + 0.1 * 2 * error.mean()
    np.testing.assert_allclose(values(baseline)[0], kernel, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(values(baseline)[1], bias, rtol=1e-4, atol=1e-5)
    assert metrics["train/value_loss"] == pytest.approx(np.mean(losses), rel=1e-4)


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


def test_the_baseline_is_the_expected_reward_to_go(tmp_path):
    config = Config(
        env_id="known_values:Constant-v0",  # six steps with reward 2, nothing to choose
        total_timesteps=9600,
        hidden_sizes=(),
        value_learning_rate=0.1,
        run_dir=str(tmp_path),
    )
    script.train(config)
    metrics = read_metrics(tmp_path)
    assert metrics["train/value"][-1] == pytest.approx(7.0, abs=0.05)  # of 12, 10, ... 2
    assert metrics["train/value_loss"][-1] == pytest.approx(35 / 3, abs=0.05)
    assert (tmp_path / "gradient_variance.png").stat().st_size > 10_000


@pytest.mark.xla
def test_learns_cartpole_with_less_and_less_noise(tmp_path):
    result = script.train(Config(total_timesteps=100_000, run_dir=str(tmp_path)))
    assert np.mean(episode_returns(result.policy, "CartPole-v1", 50, seed=0)) >= 100  # random: 22
    metrics = read_metrics(tmp_path)
    names = [script.WHOLE_RETURN, script.REWARD_TO_GO, script.BASELINE]
    whole, to_go, with_baseline = (np.nanmean(metrics[name][-100:]) for name in names)
    assert whole > 2.0 * to_go  # about 3 where rewards come evenly
    assert to_go > 1.5 * with_baseline


def test_the_picture_names_each_estimate_and_divides_by_the_whole_return(tmp_path, monkeypatch):
    names = ("_whole_return", "_reward_to_go", "")
    with open(tmp_path / "metrics.csv", "w") as file:
        file.write("step," + ",".join(f"train/gradient_variance{name}" for name in names) + "\n")
        for step in range(1, 11):
            file.write(f"{100 * step},8.0,4.0,1.0\n")
    drawn, save = [], plots.save
    monkeypatch.setattr(
        plots, "save", lambda drawing, path: drawn.append(drawing) or save(drawing, path)
    )
    script.draw_variances(tmp_path, Config(num_envs=5))
    assert (tmp_path / "gradient_variance.png").exists()
    [figure] = drawn
    for axes, heights in zip(figure.axes, ([8.0, 4.0, 1.0], [1.0, 0.5, 0.125]), strict=True):
        assert axes.get_xlabel() == "environment steps"
        labels = ["whole return", "reward-to-go", "with baseline"]
        for line, label, height in zip(axes.lines, labels, heights, strict=True):
            assert line.get_label().startswith(label)
            np.testing.assert_array_equal(line.get_xdata(), 100 * np.arange(1, 11))
            np.testing.assert_allclose(line.get_ydata(), height)
    assert figure.axes[0].get_title() == "mean over 5 episodes"
