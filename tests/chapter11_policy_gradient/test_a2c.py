"""A2C: advantages, one update and ten of them against NumPy, values that are known exactly."""

import inspect

from chapter11_policy_gradient import a2c, ppo_clip
from chapter11_policy_gradient.a2c import Actions, Config, Samples, build_network
from common.checkpoint import restore_latest
from common.compiled import compiled
from common.environments import make_envs, reset_seed, successor
from common.evaluation import episode_returns
from common.metrics import read_metrics
from common.returns import discounted_returns, gae

import keras
import known_values
import numpy as np
import policy_gradients
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis import strategies as st
from policy_gradients import Watched

pytestmark = pytest.mark.no_xla

STATES = Box(-1.0, 1.0, (3,), np.float32)
KINDS = {"discrete": Discrete(4), "box": Box(-2.0, 2.0, (2,), np.float32)}
GAMMA, LAMBDA = 0.9, 0.8


def values(variables):
    return [np.asarray(variable, np.float64) for variable in variables]


# --- Advantages -------------------------------------------------------------------------------

REWARD = np.array([1.0, 0.0, -1.0, 2.0])
VALUE = np.array([0.5, 1.0, 0.2, -0.3])
NEVER, AT_1 = np.zeros(4), np.array([0.0, 1.0, 0.0, 0.0])
CASES = {  # V(s'), terminated, truncated -> advantages
    "unbroken": ([1.0, 0.2, -0.3, 0.7], NEVER, NEVER, [1.141169, -0.359488, 0.6396, 2.93]),
    "terminated": ([1.0, 0.2, -0.3, 0.7], AT_1, NEVER, [0.68, -1.0, 0.6396, 2.93]),
    "truncated": ([1.0, 0.9, -0.3, 0.7], NEVER, AT_1, [1.2632, -0.19, 0.6396, 2.93]),
}


def advantages(reward, value, next_value, terminated, truncated, gamma, gae_lambda):
    """(1) in NumPy, (2) by the script."""
    td_error = reward + gamma * (1 - terminated) * next_value - value
    arrays = [tf.constant(array, tf.float32) for array in (reward, terminated, truncated)]
    batch = Samples(None, None, None, *arrays)
    return a2c.sum_ahead(tf.constant(td_error, tf.float32), batch, gamma * gae_lambda).numpy()


def test_advantages_of_three_environments():
    # N = 3, T = 4: no axis can be mistaken for the other.
    next_value, terminated, truncated, expected = (
        np.stack([case[i] for case in CASES.values()], axis=1) for i in range(4)
    )
    reward, value = np.stack([REWARD] * 3, axis=1), np.stack([VALUE] * 3, axis=1)
    advantage = advantages(reward, value, next_value, terminated, truncated, GAMMA, LAMBDA)
    assert advantage.shape == (4, 3)
    np.testing.assert_allclose(advantage, expected, atol=1e-6)


def test_lambda_1_gives_n_step_returns_minus_values():
    case = [np.asarray(array)[:, None] for array in CASES["unbroken"]]
    advantage = advantages(REWARD[:, None], VALUE[:, None], *case[:3], GAMMA, 1.0)
    returns = discounted_returns(REWARD, GAMMA, bootstrap=0.7)
    np.testing.assert_allclose(advantage[:, 0], returns - VALUE, atol=1e-6)


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_advantages_are_those_of_gae(length, num_envs, seed):
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, length, num_envs))
    terminated, truncated = rng.random((2, length, num_envs)) < 0.3
    arguments = (reward, value, next_value, terminated, truncated, rng.random(), rng.random())
    np.testing.assert_allclose(advantages(*arguments), gae(*arguments), rtol=1e-5, atol=1e-5)


# --- One update against the formulas ----------------------------------------------------------


def linear_update(kind, length=3):
    """Linear networks, gradient descent with step 1: the weights' change is the gradient."""
    keras.utils.set_random_seed(0)
    actions = Actions(KINDS[kind])
    policy_network = build_network(STATES, actions.outputs, (), gain=1.0)
    value_network = build_network(STATES, 1, (), gain=1.0)
    if kind == "box":
        actions.log_std.assign([-0.5, 0.3])
    config = Config(gamma=GAMMA, gae_lambda=LAMBDA, entropy_coefficient=0.1, value_coefficient=0.7)
    optimizer = keras.optimizers.SGD(1.0)
    update = a2c.build_update(policy_network, value_network, actions, optimizer, config)
    weights = [
        *policy_network.trainable_variables,
        *value_network.trainable_variables,
        *([actions.log_std] if kind == "box" else []),
    ]
    return compiled(update), weights


def some_samples(kind, length=4, num_envs=3):
    rng, size = np.random.default_rng(5), length * num_envs
    action = rng.integers(0, 4, size) if kind == "discrete" else rng.normal(size=(size, 2))
    terminated = np.zeros((length, num_envs), bool)
    truncated = terminated.copy()
    terminated[1, 0] = truncated[2, 1] = True
    return Samples(
        state=rng.normal(size=(size, 3)),
        action=action,
        next_state=rng.normal(size=(size, 3)),
        reward=rng.normal(2.0, 1.0, (length, num_envs)),
        terminated=terminated,
        truncated=truncated,
    )


def parts(weights, samples, advantage=None, value_target=None):
    """Equations (1) to (5) in NumPy; what is given is held fixed."""
    log_std = weights[4] if len(weights) > 4 else None
    shape = samples.reward.shape
    value = (samples.state @ weights[2] + weights[3]).reshape(shape)
    next_value = (samples.next_state @ weights[2] + weights[3]).reshape(shape)
    if advantage is None:
        ends = samples.terminated, samples.truncated
        advantage = gae(samples.reward, value, next_value, *ends, GAMMA, LAMBDA).ravel()
        value_target = advantage + value.ravel()
    outputs = samples.state @ weights[0] + weights[1]
    log_prob, entropy = policy_gradients.log_prob_and_entropy(outputs, samples.action, log_std)
    policy_loss = -np.mean(log_prob * advantage)
    value_loss = np.mean((value_target - value.ravel()) ** 2)
    return {
        "loss": policy_loss + 0.7 * value_loss - 0.1 * entropy.mean(),
        "advantage": advantage,
        "value_target": value_target,
        "train/policy_loss": policy_loss,
        "train/value_loss": value_loss,
        "train/value": value.mean(),
        "train/entropy": entropy.mean(),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_one_update_follows_the_formulas(kind):
    update, variables = linear_update(kind)
    samples, before = some_samples(kind), values(variables)
    metrics, new_log_std = update(samples, 0.5)
    expected = parts(before, samples)
    fixed = {name: expected.pop(name) for name in ("advantage", "value_target")}
    assert metrics.keys() == expected.keys() - {"loss"}
    for name, value in metrics.items():
        assert value == pytest.approx(expected[name], rel=2e-5, abs=1e-6), name
    gradients = policy_gradients.differences(lambda w: parts(w, samples, **fixed)["loss"], before)
    for old, new, gradient in zip(before, values(variables), gradients, strict=True):
        np.testing.assert_allclose(old - new, 0.5 * gradient, rtol=1e-4, atol=2e-5)
        assert np.abs(gradient).max() > 1e-3
    np.testing.assert_array_equal(new_log_std, values(variables)[4] if kind == "box" else [])


# --- Ten updates of one environment against NumPy alone ---------------------------------------

RUN = {"num_envs": 1, "total_timesteps": 50, "hidden_sizes": (8,), "entropy_coefficient": 0.02}


def forward(x, kernel, bias, head_kernel, head_bias):
    hidden = np.tanh(x @ kernel + bias)
    return hidden, hidden @ head_kernel + head_bias


def backward(x, hidden, weights, d_outputs):
    """Gradients of a network with one hidden layer, from those of its outputs."""
    d_before = (d_outputs @ weights[2].T) * (1.0 - hidden**2)
    return [x.T @ d_before, d_before.sum(0), hidden.T @ d_outputs, d_outputs.sum(0)]


def reference_run(weights, config):
    """A2C with plain loops, in float64; weights: the policy's four, then the value's four."""
    envs = make_envs(config.env_id, 1)
    rng = np.random.default_rng([config.seed, 1])
    squares = [np.zeros_like(one) for one in weights]
    norms, ends = [], 0
    state, _ = envs.reset(seed=reset_seed(config.seed, 0))
    for k in range(10):
        learning_rate = config.learning_rate * (1.0 - 5 * k / config.total_timesteps)
        steps = []
        for _ in range(5):
            _, logits = forward(state, *weights[:4])
            action = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
            next_state, reward, terminated, truncated, info = envs.step(action)
            assert not truncated
            final = successor(next_state, info)[0]
            steps.append((state[0], action[0], reward[0], final, bool(terminated[0])))
            ends += bool(terminated[0])
            state = next_state
        x = np.array([step[0] for step in steps], np.float64)
        taken = np.array([step[1] for step in steps])
        policy_hidden, logits = forward(x, *weights[:4])
        value_hidden, value = forward(x, *weights[4:])
        # n-step returns, backwards, from the value of the last state.
        returns, running = np.zeros(5), None
        for t in reversed(range(5)):
            _, _, reward, final, terminated = steps[t]
            if running is None:
                running = forward(final.astype(np.float64), *weights[4:])[1][0]
            running = reward if terminated else reward + config.gamma * running
            returns[t] = running
        advantage = returns - value[:, 0]
        policy = policy_gradients.softmax(logits)
        logs = np.log(policy)
        one_hot = np.eye(2)[taken]
        entropy = -(policy * logs).sum(axis=1, keepdims=True)
        d_logits = -(advantage[:, None] * (one_hot - policy)) / 5
        d_logits += config.entropy_coefficient * policy * (logs + entropy) / 5
        d_value = -2.0 * config.value_coefficient * advantage[:, None] / 5
        gradients = backward(x, policy_hidden, weights[:4], d_logits)
        gradients += backward(x, value_hidden, weights[4:], d_value)
        norm = np.sqrt(sum((gradient**2).sum() for gradient in gradients))
        norms.append(norm)
        for i, gradient in enumerate(gradients):
            gradient = gradient * min(1.0, config.max_grad_norm / norm)
            squares[i] = 0.99 * squares[i] + 0.01 * gradient**2
            weights[i] = weights[i] - learning_rate * gradient / np.sqrt(squares[i] + 1e-5)
    assert ends >= 1
    assert min(norms) < config.max_grad_norm < max(norms)  # both sides of the limit are seen
    return weights


def test_ten_updates_are_those_of_a_reference_in_numpy(tmp_path):
    config = Config(run_dir=str(tmp_path), max_grad_norm=4.5, **RUN)
    space = Box(-np.inf, np.inf, (4,), np.float32)
    keras.utils.set_random_seed(config.seed)
    networks = [build_network(space, 2, (8,), gain=0.01), build_network(space, 1, (8,), gain=1.0)]
    before = [weight for network in networks for weight in values(network.trainable_variables)]
    expected = reference_run(list(before), config)
    a2c.train(config)
    restore_latest(str(tmp_path), policy_network=networks[0], value_network=networks[1])
    after = [weight for network in networks for weight in values(network.trainable_variables)]
    for old, new, reference in zip(before, after, expected, strict=True):
        np.testing.assert_allclose(new, reference, atol=1e-6, rtol=0)
        assert np.abs(new - old).max() > 1e-3


# --- Whole runs -------------------------------------------------------------------------------


def test_what_an_update_sees(tmp_path, monkeypatch):
    watched = Watched(monkeypatch, a2c)
    config = Config(num_envs=3, total_timesteps=600, checkpoint_every=300, run_dir=str(tmp_path))
    result = a2c.train(config)
    assert len(watched.steps) * 3 == result.total_timesteps == 600
    assert len(watched.updates) == 600 // 15
    cut = 0
    for k, (samples, rate) in enumerate(watched.updates):
        columns = zip(*watched.steps[5 * k : 5 * k + 5], strict=True)
        action, state, reward, terminated, truncated = map(np.array, columns)
        assert rate == pytest.approx(7e-4 * (1 - k / 40))
        for name, array in [
            ("reward", reward),
            ("terminated", terminated),
            ("truncated", truncated),
        ]:
            np.testing.assert_array_equal(getattr(samples, name), array)
        np.testing.assert_array_equal(samples.action, action.reshape(15))
        # s' is the next s, except where an episode ended.
        same = ~(terminated | truncated)
        np.testing.assert_array_equal(samples.next_state.reshape(5, 3, 4)[same], state[same])
        np.testing.assert_array_equal(samples.state.reshape(5, 3, 4)[1:], state[:-1])
        cut += truncated.sum()
    assert cut > 0


@pytest.mark.parametrize("env_id", ["Constant-v0", "OnwardBox-v0"])
def test_a_time_limit_does_not_end_the_mdp(tmp_path, env_id):
    config = Config(
        env_id=f"known_values:{env_id}",
        gamma=known_values.GAMMA,
        learning_rate=1e-2,
        max_grad_norm=100.0,
        total_timesteps=16_000,
        num_envs=4,
        hidden_sizes=(16,),
        run_dir=str(tmp_path),
    )
    a2c.train(config)
    value_network = build_network(Box(0.0, 1.0, (2,), np.float32), 1, (16,), gain=1.0)
    restore_latest(str(tmp_path), value_network=value_network)
    beginning, later = np.asarray(value_network(np.eye(2, dtype=np.float32)))[:, 0]
    assert later == pytest.approx(known_values.VALUE, abs=0.1)  # 10 with 2 a step
    if env_id == "Constant-v0":
        assert read_metrics(tmp_path)["train/value"][-1] == pytest.approx(10.0, abs=0.1)
    else:
        # Had the next episode's beginning been taken for the successor, both would be less.
        assert beginning == pytest.approx(known_values.BEGINNING, abs=0.1)


def test_what_does_not_differ_is_the_same_as_in_ppo():
    for name in ("build_network", "Actions"):  # tested there
        ours, theirs = getattr(a2c, name), getattr(ppo_clip, name)
        assert inspect.getsource(ours) == inspect.getsource(theirs)


@pytest.mark.xla
def test_learns_cartpole(tmp_path):
    result = a2c.train(Config(total_timesteps=100_000, run_dir=str(tmp_path)))
    assert np.mean(episode_returns(result.policy, "CartPole-v1", 50, seed=0)) >= 100  # random: 22


def test_finds_the_best_action_between_lopsided_bounds(tmp_path):
    config = Config(
        env_id="known_values:Thirteen-v0",
        learning_rate=1e-2,
        max_grad_norm=10.0,
        total_timesteps=24_000,
        hidden_sizes=(16,),
        run_dir=str(tmp_path),
    )
    result = a2c.train(config)
    assert result.policy(np.ones((1, 1), np.float32))[0, 0] == pytest.approx(13.0, abs=0.3)
