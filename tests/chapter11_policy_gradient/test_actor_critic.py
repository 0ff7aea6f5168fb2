"""One-step actor-critic: one update against the formulas, values that are known exactly."""

import inspect

from chapter11_policy_gradient import actor_critic, ppo_clip
from chapter11_policy_gradient.actor_critic import Actions, Config, Samples, build_network
from common.checkpoint import restore_latest
from common.compiled import compiled
from common.environments import make_envs
from common.evaluation import episode_returns
from common.metrics import read_metrics

import keras
import known_values
import numpy as np
import policy_gradients
import pytest
from gymnasium.spaces import Box, Discrete
from policy_gradients import Watched

pytestmark = pytest.mark.no_xla

STATES = Box(-1.0, 1.0, (3,), np.float32)
KINDS = {"discrete": Discrete(4), "box": Box(-2.0, 2.0, (2,), np.float32)}


def values(variables):
    return [np.asarray(variable, np.float64) for variable in variables]


def linear_update(kind, **changes):
    """Linear networks, gradient descent with step 1: the weights' change is the gradient."""
    keras.utils.set_random_seed(0)
    actions = Actions(KINDS[kind])
    policy_network = build_network(STATES, actions.outputs, (), gain=1.0)
    value_network = build_network(STATES, 1, (), gain=1.0)
    if kind == "box":
        actions.log_std.assign([-0.5, 0.3])
    optimizer, config = keras.optimizers.SGD(1.0), Config(gamma=0.9, **changes)
    update = actor_critic.build_update(policy_network, value_network, actions, optimizer, config)
    weights = [
        *policy_network.trainable_variables,
        *value_network.trainable_variables,
        *([actions.log_std] if kind == "box" else []),
    ]
    return compiled(update), weights


def some_samples(kind, size):
    rng = np.random.default_rng(5)
    action = rng.integers(0, 4, size) if kind == "discrete" else rng.normal(size=(size, 2))
    return Samples(
        state=rng.normal(size=(size, 3)),
        action=action,
        reward=rng.normal(2.0, 1.0, size),
        next_state=rng.normal(size=(size, 3)),
        terminated=np.arange(size) % 3 == 1,
    )


def parts(weights, samples, td_error=None, next_value=None):
    """Equations (1) to (4) in NumPy; what is given is held fixed."""
    log_std = weights[4] if len(weights) > 4 else None
    value = (samples.state @ weights[2] + weights[3])[:, 0]
    if next_value is None:
        next_value = (samples.next_state @ weights[2] + weights[3])[:, 0]
    delta = samples.reward + 0.9 * (1 - samples.terminated) * next_value - value
    outputs = samples.state @ weights[0] + weights[1]
    log_prob, entropy = policy_gradients.log_prob_and_entropy(outputs, samples.action, log_std)
    policy_loss = -np.mean(log_prob * (delta if td_error is None else td_error))
    return {
        "loss": policy_loss + np.mean(delta**2),
        "td_error": delta,
        "next_value": next_value,
        "train/policy_loss": policy_loss,
        "train/value_loss": np.mean(delta**2),
        "train/value": value.mean(),
        "train/entropy": entropy.mean(),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_one_update_follows_the_formulas(kind):
    update, variables = linear_update(kind)
    samples, before = some_samples(kind, 7), values(variables)
    metrics, new_log_std = update(samples, 0.5)
    expected = parts(before, samples)
    fixed = {name: expected.pop(name) for name in ("td_error", "next_value")}
    assert metrics.keys() == expected.keys() - {"loss"}
    for name, value in metrics.items():
        assert value == pytest.approx(expected[name], rel=2e-5, abs=1e-6), name
    # The actor's gradient does not reach the critic through δ, nor the target's through V(s').
    gradients = policy_gradients.differences(lambda w: parts(w, samples, **fixed)["loss"], before)
    for old, new, gradient in zip(before, values(variables), gradients, strict=True):
        np.testing.assert_allclose(old - new, 0.5 * gradient, rtol=1e-4, atol=2e-5)
        assert np.abs(gradient).max() > 1e-3
    np.testing.assert_array_equal(new_log_std, values(variables)[4] if kind == "box" else [])


def test_the_end_of_an_episode_has_no_next_value():
    update, _ = linear_update("discrete")
    samples = some_samples("discrete", 6)
    ended = samples._replace(terminated=np.ones(6, bool))
    elsewhere = ended._replace(next_state=samples.next_state + 100.0)
    assert update(ended, 0.0)[0] == update(elsewhere, 0.0)[0]
    assert update(samples, 0.0)[0] != update(ended, 0.0)[0]


# --- Whole runs -------------------------------------------------------------------------------


def test_the_order_of_steps_and_updates(tmp_path, monkeypatch):
    watched = Watched(monkeypatch, actor_critic)
    config = Config(num_envs=3, total_timesteps=600, run_dir=str(tmp_path))
    result = actor_critic.train(config)
    assert len(watched.steps) * 3 == result.total_timesteps == 600
    assert len(watched.updates) == 200  # one for each step of all environments
    seen = [samples for samples, _ in watched.updates]
    ended = 0
    for samples, (action, state, reward, terminated, _) in zip(seen, watched.steps, strict=True):
        np.testing.assert_array_equal(samples.action, action)
        np.testing.assert_array_equal(samples.reward, reward)
        np.testing.assert_array_equal(samples.terminated, terminated)
        going = ~terminated
        np.testing.assert_array_equal(samples.next_state[going], state[going])
        # What the episode really ended in: out of bounds, which no first observation is.
        outside = np.abs(samples.next_state[terminated]) > [2.4, np.inf, 0.2095, np.inf]
        assert outside.any(axis=1).all()
        ended += terminated.sum()
    assert ended > 10
    for samples, (_, state, *_) in zip(seen[1:], watched.steps, strict=False):
        np.testing.assert_array_equal(samples.state, state)
    rates = np.array([rate for _, rate in watched.updates])
    np.testing.assert_allclose(rates, config.learning_rate * (1 - np.arange(200) / 200))


@pytest.mark.parametrize("env_id", ["Constant-v0", "OnwardBox-v0"])
def test_a_time_limit_does_not_end_the_mdp(tmp_path, env_id):
    config = Config(
        env_id=f"known_values:{env_id}",
        gamma=known_values.GAMMA,
        learning_rate=2e-2,
        total_timesteps=9600,
        num_envs=4,
        hidden_sizes=(16,),
        run_dir=str(tmp_path),
    )
    actor_critic.train(config)
    value_network = build_network(Box(0.0, 1.0, (2,), np.float32), 1, (16,), gain=1.0)
    restore_latest(str(tmp_path), value_network=value_network)
    beginning, later = np.asarray(value_network(np.eye(2, dtype=np.float32)))[:, 0]
    assert later == pytest.approx(known_values.VALUE, abs=0.1)  # 10 with 2 a step
    if env_id == "Constant-v0":
        assert read_metrics(tmp_path)["train/value"][-1] == pytest.approx(10.0, abs=0.1)
    else:
        # Had the next episode's beginning been taken for the successor, both would be less.
        assert beginning == pytest.approx(known_values.BEGINNING, abs=0.1)


def test_the_gradient_is_not_cut_in_length(tmp_path, monkeypatch):
    """A limit would hide the ends of episodes from the critic."""
    made = []

    class Adam(keras.optimizers.Adam):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(actor_critic.keras.optimizers, "Adam", Adam)
    actor_critic.train(Config(total_timesteps=8, run_dir=str(tmp_path)))
    [optimizer] = made
    assert (optimizer.clipnorm, optimizer.global_clipnorm, optimizer.clipvalue) == (None,) * 3


def test_what_does_not_differ_is_the_same_as_in_ppo():
    for name in ("build_network", "Actions"):  # tested there
        ours, theirs = getattr(actor_critic, name), getattr(ppo_clip, name)
        assert inspect.getsource(ours) == inspect.getsource(theirs)


@pytest.mark.xla
def test_learns_cartpole(tmp_path):
    result = actor_critic.train(Config(total_timesteps=120_000, run_dir=str(tmp_path)))
    assert np.mean(episode_returns(result.policy, "CartPole-v1", 50, seed=0)) >= 100  # random: 22


def test_finds_the_best_action_between_lopsided_bounds(tmp_path):
    config = Config(
        env_id="known_values:Thirteen-v0",
        learning_rate=1e-2,
        total_timesteps=12_000,
        hidden_sizes=(16,),
        run_dir=str(tmp_path),
    )
    result = actor_critic.train(config)
    envs = make_envs("known_values:Thirteen-v0", 1)
    assert envs.single_action_space.contains(result.policy(np.ones((1, 1), np.float32))[0])
    assert result.policy(np.ones((1, 1), np.float32))[0, 0] == pytest.approx(13.0, abs=0.3)
