"""SAC: its density against TFP's and integrals, one update by formulas, and known answers."""

from chapter11_policy_gradient import sac
from chapter11_policy_gradient.sac import (
    Config,
    build_actor,
    build_critic,
    build_train_step,
    build_value_network,
    explore,
    sample_action,
)
from common.actions import rescale_action
from common.checkpoint import restore_latest
from common.compiled import compiled
from common.errors import UserError
from common.evaluation import episode_returns
from common.metrics import read_metrics
from common.replay import Batch

import continuous_control
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from continuous_control import HIGH, LOW, assert_weights, network, numeric_gradient, towers
from continuous_control import q_value as q_of
from gymnasium.spaces import Box

pytestmark = pytest.mark.no_xla

tfb, tfd = tfp.bijectors, tfp.distributions
STATES, B, A = Box(-1.0, 1.0, (3,), np.float32), 7, 2
SPACE = Box(LOW.astype(np.float32), HIGH.astype(np.float32))  # bounds that are not symmetric
HALF_RANGE = (HIGH - LOW) / 2


# --- The policy -------------------------------------------------------------------------------


def log_density(u, noise, log_std, half_range):
    """The log of π of the environment's action, where tanh u is not rounded to 1; [B, A] -> [B]."""
    gauss = -0.5 * noise**2 - log_std - 0.5 * np.log(2 * np.pi)
    return (gauss - np.log(1 - np.tanh(u) ** 2) - np.log(half_range)).sum(axis=1)


@pytest.mark.parametrize(("half_range", "expected"), [(1.0, -0.271251), (2.0, -0.964398)])
def test_density_of_the_reference(half_range, expected):
    # u = 0.7 under mean 0.2 and σ = 0.5, after tanh, scaled to [-1, 1] and [-2, 2].
    outputs = tf.constant([[0.2, np.log(0.5)]] * 3, tf.float32)
    noise = tf.ones([3, 1])
    action, log_prob = sample_action(outputs, noise, np.array([half_range]))
    assert action.numpy() == pytest.approx(np.full((3, 1), np.tanh(0.7)), rel=1e-6)
    assert log_prob.numpy() == pytest.approx([expected] * 3, abs=1e-5)


def test_density_is_that_of_tfp_and_of_the_environments_action():
    rng = np.random.default_rng(0)
    # TFP has to invert tanh, which rounding forbids far out.
    outputs = tf.constant(rng.uniform(-0.5, 0.5, size=(50, 2 * A)) - [0, 0, 1, 1], tf.float32)
    noise = rng.normal(size=(50, A)).astype(np.float32)
    action, log_prob = sample_action(outputs, noise, HALF_RANGE)
    assert log_prob.shape == (50,)
    shift, scale = (HIGH + LOW) / 2, (HIGH - LOW) / 2
    squash = [tfb.Shift(np.float32(shift)), tfb.Scale(np.float32(scale)), tfb.Tanh()]
    gaussian = tfd.MultivariateNormalDiag(outputs[:, :A], tf.exp(outputs[:, A:]))
    policy = tfd.TransformedDistribution(gaussian, tfb.Chain(squash))
    in_environment = rescale_action(action.numpy(), SPACE)
    assert log_prob.numpy() == pytest.approx(policy.log_prob(in_environment).numpy(), abs=2e-3)
    u = outputs[:, :A].numpy() + np.exp(outputs[:, A:]) * noise
    expected = log_density(u, noise, outputs[:, A:].numpy(), HALF_RANGE)
    assert log_prob.numpy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 0.5), (1.0, 0.8), (-0.5, 1.5)])
def test_density_integrates_to_one_between_bounds_that_are_not_symmetric(mean, std):
    low, high = 10.0, 14.0
    edges = np.linspace(low, high, 400_001)
    actions = (edges[1:] + edges[:-1]) / 2  # of the environment
    u = np.arctanh((actions - low) / (high - low) * 2 - 1)
    outputs = np.tile([mean, np.log(std)], (len(u), 1)).astype(np.float32)
    noise = ((u - mean) / std)[:, None].astype(np.float32)
    action, log_prob = sample_action(outputs, noise, np.array([(high - low) / 2]))
    in_environment = rescale_action(action.numpy(), Box(low, high, (1,), np.float32))
    np.testing.assert_allclose(in_environment[:, 0], actions, atol=1e-4)
    density = np.exp(log_prob.numpy().astype(np.float64))
    assert np.sum(density) * (edges[1] - edges[0]) == pytest.approx(1.0, abs=1e-3)
    average = np.sum(density * actions) * (edges[1] - edges[0])
    draws = np.tanh(mean + std * np.random.default_rng(0).standard_normal(400_000))
    assert average == pytest.approx(np.mean(low + (high - low) * (draws + 1) / 2), abs=0.01)


def test_density_far_out_is_exact():
    # log(1 - tanh(20)²) = -38.6137; 1 - tanh² itself is 0 in any floating-point format.
    for u, log_slope in ((20.0, -38.6137), (-20.0, -38.6137), (80.0, -158.6137)):
        _, log_prob = sample_action(tf.constant([[u, 0.0]]), tf.zeros([1, 1]), np.ones(1))
        assert float(log_prob[0]) == pytest.approx(-0.5 * np.log(2 * np.pi) - log_slope, abs=1e-3)


@pytest.mark.parametrize("jit_compile", [True, False])
def test_gradients_far_out_are_those_of_the_formula(jit_compile):
    @tf.function(jit_compile=jit_compile)
    def draw(outputs):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            _, log_prob = sample_action(outputs, tf.ones([5, 2]), HALF_RANGE)
            loss = tf.reduce_mean(log_prob)
        return log_prob, tape.gradient(loss, outputs)

    # log π = ... + 2 u - 2 log 2 for large u = m + σ, and -log σ: slopes 2 and 2σ - 1.
    log_prob, gradient = draw(tf.constant([[20.0, 20.0, 0.0, np.log(3.0)]] * 5, tf.float32))
    assert np.isfinite(log_prob).all()
    np.testing.assert_allclose(gradient, [np.array([2.0, 2.0, 1.0, 5.0]) / 5] * 5, atol=1e-5)


def test_acting_draws_what_training_evaluates():
    outputs = np.random.default_rng(0).normal(size=(6, 2 * A)).astype(np.float32)
    noise = np.random.default_rng(7).standard_normal((6, A), np.float32)
    outputs[0, A:] = 9.0, -40.0  # log σ that is cut; tanh lets see where the first of them led
    outputs[0, 0] = 0.3 - np.exp(2.0) * noise[0, 0]
    action, log_prob = sample_action(outputs, noise, HALF_RANGE)
    ours = explore(outputs, np.random.default_rng(7))
    np.testing.assert_allclose(ours, action, atol=1e-6)
    assert ours[0, 0] == pytest.approx(np.tanh(0.3), abs=1e-5)
    assert np.isfinite(log_prob).all()


# --- One update against the formulas ----------------------------------------------------------

ACTOR_RATE, CRITIC_RATE, UPDATES = 0.3, 0.2, 2


def some_batches(count):
    rng = np.random.default_rng(5)
    batches = Batch(
        state=rng.normal(size=(count, B, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, size=(count, B, A)).astype(np.float32),
        reward=rng.normal(size=(count, B)).astype(np.float32),
        next_state=rng.normal(size=(count, B, 3)).astype(np.float32),
        terminated=np.tile(np.array([1, 0, 0, 1, 0, 0, 0], np.float32), (count, 1)),
    )
    return batches, rng.standard_normal((count, 2, B, A), np.float32)


def small_agent(config, actor_rate=ACTOR_RATE, critic_rate=CRITIC_RATE):
    """Different networks, and what makes one update by plain gradient descent."""
    keras.utils.set_random_seed(1)
    actor, critic = build_actor(STATES, A, (5,)), build_critic(STATES, A, (5,))
    value_network, target = None, build_critic(STATES, A, (5,))
    if config.value_network:
        value_network, target = (build_value_network(STATES, (5,)) for _ in range(2))
    log_temperature = keras.Variable(np.float32(np.log(config.temperature)))
    parts = actor, critic, value_network, target, log_temperature
    optimizers = keras.optimizers.SGD(actor_rate), keras.optimizers.SGD(critic_rate)
    train_step = build_train_step(*parts, *optimizers, HALF_RANGE, config)
    return parts, compiled(train_step, loop=True, xla=False)


@pytest.mark.parametrize("value_network", [False, True])
@pytest.mark.parametrize("learn_temperature", [False, True])
def test_updates_follow_the_formulas(value_network, learn_temperature):
    config = Config(
        gamma=0.9,
        polyak=0.2,
        temperature=0.3,
        target_entropy=-0.7,
        value_network=value_network,
        learn_temperature=learn_temperature,
    )
    parts, train_steps = small_agent(config)
    [pi], [pi_variables] = towers(parts[0], 1)
    q, q_variables = towers(parts[1], 2)
    v, v_variables = towers(parts[2], 1) if value_network else ([[]], [[]])
    following, following_variables = towers(parts[3], 1 if value_network else 2)
    log_alpha = np.log(0.3)
    batches, noise = some_batches(UPDATES)
    rows = []
    for k in range(UPDATES):
        state, action, reward, next_state, terminated = (x[k].astype(float) for x in batches)

        def draw(state, noise):
            outputs = network(state, pi)
            mean, log_std = outputs[:, :A], outputs[:, A:]
            u = mean + np.exp(log_std) * noise
            return np.tanh(u), log_density(u, noise, log_std, HALF_RANGE)

        def soft_value(critics, state, noise):
            drawn, log_prob = draw(state, noise)
            smaller = np.min([q_of(state, drawn, w) for w in critics], axis=0)
            return smaller - np.exp(log_alpha) * log_prob, log_prob  # noqa: B023

        next_value = (
            network(next_state, following[0])[:, 0]
            if value_network
            else soft_value(following, next_state, noise[k, 0])[0]
        )
        td_target = reward + 0.9 * (1.0 - terminated) * next_value
        value_target = soft_value(q, state, noise[k, 0])[0]

        def value_loss(state=state, action=action, td_target=td_target, target=value_target):
            loss = sum(np.mean((td_target - q_of(state, action, w)) ** 2) for w in q)
            if value_network:
                loss += np.mean((target - network(state, v[0])[:, 0]) ** 2)
            return loss

        def policy_loss(state=state, noise=noise[k, 1]):
            return -np.mean(soft_value(q, state, noise)[0])

        row = {"train/value_loss": value_loss()}
        row["train/q_value"] = np.mean([q_of(state, action, w) for w in q])
        every = [weights for tower in (*q, *v) for weights in tower]
        for weights, gradient in zip(every, numeric_gradient(value_loss, every), strict=True):
            weights -= CRITIC_RATE * gradient
        row["train/policy_loss"] = policy_loss()
        entropy = -soft_value(q, state, noise[k, 1])[1].mean()
        row["train/entropy"] = entropy
        for weights, gradient in zip(pi, numeric_gradient(policy_loss, pi), strict=True):
            weights -= ACTOR_RATE * gradient
        if learn_temperature:  # dL/d(log α) = entropy - H: too random, and α falls
            log_alpha -= ACTOR_RATE * (entropy - np.sum(-0.7 + np.log(HALF_RANGE)))
        row["train/temperature"] = np.exp(log_alpha)
        for source, target in zip(v if value_network else q, following, strict=True):
            for weights, behind in zip(source, target, strict=True):
                behind += 0.2 * (weights - behind)
        rows.append(row)

    results = train_steps(batches, noise)
    for name in rows[0]:
        assert results[name] == pytest.approx(np.mean([row[name] for row in rows]), rel=2e-4), name
    assert float(parts[4]) == pytest.approx(log_alpha, abs=1e-5)
    assert_weights(pi_variables, pi, atol=1e-5)
    for variables, expected in zip(
        [*q_variables, *v_variables, *following_variables], [*q, *v, *following], strict=True
    ):
        assert_weights(variables, expected, atol=1e-5)


@pytest.mark.parametrize("still", ["actor", "critic"])
def test_each_update_leaves_the_other_network_untouched(still):
    rates = {"actor": ACTOR_RATE, "critic": CRITIC_RATE} | {still: 0.0}
    (actor, critic, *_), train_steps = small_agent(Config(), rates["actor"], rates["critic"])
    before = {"actor": actor.get_weights(), "critic": critic.get_weights()}
    train_steps(*some_batches(3))
    for name, model in (("actor", actor), ("critic", critic)):
        same = [
            np.array_equal(a, b) for a, b in zip(before[name], model.get_weights(), strict=True)
        ]
        assert all(same) if name == still else not all(same), name


# --- Whole runs where the answer is known -----------------------------------------------------

QUICK = {
    "env_id": "continuous_control:Constant-v1",
    "total_timesteps": 2400,
    "num_envs": 2,
    "gamma": continuous_control.GAMMA,
    "learning_rate": 5e-3,
    "polyak": 0.1,
    "hidden_sizes": (16,),
    "batch_size": 64,
    "buffer_size": 3000,
    "learning_starts": 100,
    "train_frequency": 20,
    "gradient_steps": 20,
}


def logged(run_dir, name):
    """A metric's rows, without those between two trainings."""
    values = read_metrics(run_dir)[f"train/{name}"]
    return values[~np.isnan(values)]


def largest_entropy():
    """Of one component of the policy with bounds -1 and 1, over its σ, by integration.

    With mean 0 the entropy of tanh(u) is that of u plus the mean of log(1 - tanh² u). Of a uniform
    distribution, which no squashed Gaussian is, it would be log 2 = 0.693.
    """
    noise = (np.arange(200_000) + 0.5) / 200_000 * 16 - 8
    weights = np.exp(-0.5 * noise**2)
    weights /= weights.sum()
    entropies = []
    for std in np.linspace(0.5, 1.5, 101):
        slope = np.sum(weights * np.log(1 - np.tanh(std * noise) ** 2))
        entropies.append(0.5 * np.log(2 * np.pi * np.e * std**2) + slope)
    return max(entropies)


@pytest.mark.parametrize("value_network", [False, True])
def test_soft_values_where_the_reward_never_changes(tmp_path, value_network):
    """A fixed temperature: the best policy is as random as it can be, in every state.

    Q = r + γ V and V = Q + α H give Q = (r + γ α H) / (1 - γ), with H the largest entropy of two
    components, each larger by the logarithm of half the range between its bounds. The time limit
    does not end the MDP, or all values would be less.
    """
    config = Config(
        learn_temperature=False,
        temperature=0.5,
        value_network=value_network,
        run_dir=str(tmp_path),
        **QUICK,
    )
    sac.train(config)
    entropy = 2 * largest_entropy() + np.log(HALF_RANGE).sum()
    expected = (2.0 + 0.8 * 0.5 * entropy) / (1.0 - 0.8)
    assert expected == pytest.approx(15.51, abs=0.01)  # 10 without entropy, 12.73 unscaled
    assert logged(tmp_path, "q_value")[-5:].mean() == pytest.approx(expected, abs=0.15)
    assert logged(tmp_path, "entropy")[-20:].mean() == pytest.approx(entropy, abs=0.05)
    np.testing.assert_allclose(logged(tmp_path, "temperature"), 0.5, rtol=1e-5)
    if value_network:
        network = build_value_network(Box(0.0, 1.0, (1,), np.float32), (16,))
        restore_latest(str(tmp_path), value_network=network)
        value = float(network(np.ones((1, 1), np.float32))[0])
        assert value == pytest.approx(expected + 0.5 * entropy, abs=0.15)


def test_a_learned_temperature_brings_the_entropy_that_was_asked_for(tmp_path):
    config = Config(temperature=0.1, target_entropy=-0.5, run_dir=str(tmp_path), **QUICK)
    sac.train(config)
    # Nothing is lost by being random here: the policy is more random than asked for, so α falls.
    temperature = logged(tmp_path, "temperature")
    assert temperature[-1] < 0.02
    assert (np.diff(temperature)[-20:] < 0.0).all()


@pytest.mark.xla
def test_finds_the_gain_of_a_linear_quadratic_regulator(tmp_path):
    settings = QUICK | {
        "env_id": "continuous_control:Regulator-v0",
        "total_timesteps": 8000,
        "gamma": continuous_control.GAIN_GAMMA,
        "hidden_sizes": (64, 64),
        "learning_rate": 1e-3,
        "polyak": 0.02,
        "batch_size": 128,
        "buffer_size": 10_000,
        "learning_starts": 500,
    }
    config = Config(learn_temperature=False, temperature=0.1, run_dir=str(tmp_path), **settings)
    result = sac.train(config)
    # Entropy that is paid for adds nothing to the best mean: Q stays quadratic.
    assert continuous_control.gain(result.policy) == pytest.approx(continuous_control.GAIN, rel=0.1)


@pytest.mark.parametrize("value_network", [False, True])
def test_resuming_is_exact(tmp_path, value_network):
    settings = QUICK | {"total_timesteps": 480, "checkpoint_every": 160, "env_id": "Pendulum-v1"}
    config = Config(value_network=value_network, **settings)
    files = continuous_control.assert_resumes_exactly(sac, config, tmp_path)
    assert {"temperature/000", "rng/state", "actor_optimizer/000", "target/000"} <= files
    assert ("value_network/000" in files) == value_network


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "CartPole-v1"}, r"actions are discrete .*; use dqn.py or ppo_clip.py"),
        ({"env_id": "continuous_control:Unbounded-v0"}, r"no finite bounds .*; use ppo_clip.py"),
        ({"temperature": 0.0}, "--temperature 0.0: must be greater than 0"),
        ({"train_frequency": 1, "num_envs": 2}, "--train-frequency 1: less than --num-envs 2"),
    ],
)
def test_bad_flags_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        sac.train(Config(run_dir=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.xla
def test_swings_a_pendulum_up(tmp_path):
    config = Config(
        total_timesteps=5_000,
        hidden_sizes=(64, 64),
        batch_size=128,
        learning_starts=500,
        run_dir=str(tmp_path),
    )
    result = sac.train(config)
    # A random policy earns -1230.
    assert np.mean(episode_returns(result.policy, "Pendulum-v1", 25, seed=0)) >= -600
