"""PPO: objective, gradients and samples against formulas, and values that are known exactly."""

from chapter11_policy_gradient import ppo_clip
from chapter11_policy_gradient.ppo_clip import (
    Actions,
    Config,
    Samples,
    build_network,
    build_update,
    clipped_objective,
)
from common import returns
from common.checkpoint import restore_latest
from common.compiled import compiled
from common.environments import VectorEnvs, make_envs, vector
from common.errors import UserError
from common.evaluation import episode_returns
from common.metrics import read_metrics

import keras
import known_values
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete

pytestmark = pytest.mark.no_xla

STATES = Box(-1.0, 1.0, (3,), np.float32)
KINDS = {"discrete": Discrete(4), "box": Box(-2.0, 2.0, (2,), np.float32)}


# --- The objective ----------------------------------------------------------------------------


def test_gradient_is_zero_only_where_clipping_holds_back():
    ratio = tf.constant([1.5, 1.5, 0.5, 0.5])
    advantage = tf.constant([1.0, -1.0, 1.0, -1.0])
    with tf.GradientTape() as tape:
        tape.watch(ratio)
        objective = clipped_objective(ratio, advantage, 0.2)
    assert objective.numpy() == pytest.approx([1.2, -1.5, 0.5, -0.8])
    assert tape.gradient(objective, ratio).numpy().tolist() == [0.0, -1.0, 1.0, 0.0]


def test_near_one_the_objective_is_the_plain_one():
    ratio, advantage = tf.constant([0.81, 1.0, 1.19]), tf.constant([-3.0, 2.0, 5.0])
    with tf.GradientTape() as tape:
        tape.watch(ratio)
        objective = clipped_objective(ratio, advantage, 0.2)
    assert objective.numpy() == pytest.approx([-2.43, 2.0, 5.95])
    assert tape.gradient(objective, ratio).numpy() == pytest.approx([-3.0, 2.0, 5.0])


# --- Distributions and sampling ---------------------------------------------------------------


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def log_density(action: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Of a diagonal Gaussian, summed over the components."""
    each = -0.5 * ((action - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    return each.sum(axis=-1)


def test_categorical_formulas():
    logits = np.array([[1.0, 2.0, 3.0, 0.5], [0.0, 0.0, 0.0, 0.0], [30.0, -30.0, 0.0, 1.0]])
    policy = Actions(KINDS["discrete"]).distribution(tf.constant(logits, tf.float32))
    chosen = np.array([0, 3, 1])
    expected = log_softmax(logits)
    assert policy.log_prob(chosen).numpy() == pytest.approx(expected[range(3), chosen], rel=1e-6)
    entropy = -(np.exp(expected) * expected).sum(axis=1)
    assert policy.entropy().numpy() == pytest.approx(entropy, rel=1e-5, abs=1e-6)
    assert entropy[1] == pytest.approx(np.log(4))


def test_gaussian_formulas():
    actions = Actions(KINDS["box"])
    actions.log_std.assign([-1.0, 0.5])
    std = np.exp([-1.0, 0.5])
    mean = np.array([[0.1, -2.0], [3.0, 0.0], [0.0, 0.0]])
    action = np.array([[0.0, 1.0], [2.5, 0.3], [0.0, 0.0]])
    policy = actions.distribution(tf.constant(mean, tf.float32))
    log_prob = policy.log_prob(tf.constant(action, tf.float32))
    assert log_prob.shape == (3,)
    assert log_prob.numpy() == pytest.approx(log_density(action, mean, std), rel=1e-5)
    entropy = np.sum(0.5 * np.log(2 * np.pi * np.e * std**2))
    assert policy.entropy().numpy() == pytest.approx(np.full(3, entropy), rel=1e-6)


def test_discrete_samples_follow_the_softmax():
    draws, logits = 100_000, np.array([1.0, 2.0, 3.0, 0.5], np.float32)
    actions = Actions(KINDS["discrete"])
    chosen = actions.sample(np.tile(logits, (draws, 1)), np.ones(0), np.random.default_rng(0))
    assert chosen.shape == (draws,)
    expected = draws * np.exp(log_softmax(logits))
    counts = np.bincount(chosen, minlength=4)
    assert np.sum((counts - expected) ** 2 / expected) < 21.1  # 3 degrees of freedom, p = 0.0001
    np.testing.assert_array_equal(actions.to_environment(chosen), chosen)


def test_box_samples_have_the_gaussians_moments():
    draws, mean, std = 100_000, np.array([0.5, -1.0], np.float32), np.array([0.3, 2.0])
    actions = Actions(KINDS["box"])
    chosen = actions.sample(np.tile(mean, (draws, 1)), std, np.random.default_rng(0))
    assert chosen.shape == (draws, 2)
    assert chosen.dtype == np.float32
    z = (chosen - mean) / std
    assert np.abs(z.mean(axis=0)).max() < 4 / np.sqrt(draws)
    assert np.abs((z**2).mean(axis=0) - 1).max() < 4 * np.sqrt(2 / draws)
    assert np.abs((z**3).mean(axis=0)).max() < 4 * np.sqrt(15 / draws)
    assert np.abs((z**4).mean(axis=0) - 3).max() < 4 * np.sqrt(96 / draws)
    assert abs((z[:, 0] * z[:, 1]).mean()) < 4 / np.sqrt(draws)


def test_box_actions_are_clipped_and_scaled_to_the_bounds():
    actions = Actions(Box(np.float32([-2, 0]), np.float32([2, 10])))
    action = np.array([[0.0, 0.0], [1.0, -1.0], [0.5, 0.2], [7.0, -7.0]], np.float32)
    expected = [[0, 5], [2, 0], [1, 6], [2, 0]]
    np.testing.assert_allclose(actions.to_environment(action), expected, atol=1e-6)


# --- One update against the formulas ----------------------------------------------------------


def linear_update(kind: str, **changes):
    """Linear networks, gradient descent with step 1: the weights' change is the gradient."""
    keras.utils.set_random_seed(0)
    actions = Actions(KINDS[kind])
    policy_network = build_network(STATES, actions.outputs, (), gain=1.0)
    value_network = build_network(STATES, 1, (), gain=1.0)
    if kind == "box":
        actions.log_std.assign([-0.5, 0.3])
    config = Config(**{"entropy_coefficient": 0.1, "value_coefficient": 0.7, **changes})
    optimizer = keras.optimizers.SGD(1.0)
    update = compiled(build_update(policy_network, value_network, actions, optimizer, config))
    weights = [
        *policy_network.trainable_variables,
        *value_network.trainable_variables,
        *([actions.log_std] if kind == "box" else []),
    ]
    return update, weights, optimizer


def some_samples(kind: str, size: int) -> Samples:
    rng = np.random.default_rng(5)
    if kind == "discrete":
        action, log_prob = rng.integers(0, 4, size), rng.normal(-1.4, 0.4, size)
    else:
        action, log_prob = rng.normal(size=(size, 2)), rng.normal(-2.6, 0.4, size)
    return Samples(
        state=rng.normal(size=(size, 3)),
        action=action,
        log_prob=log_prob,
        advantage=rng.normal(3.0, 5.0, size),
        value_target=rng.normal(1.0, 2.0, size),
    )


def formulas(kind: str, weights: list[np.ndarray], samples: Samples, config: Config) -> dict:
    """Equations (2) to (5) in NumPy, float64."""
    outputs = samples.state @ weights[0] + weights[1]
    if kind == "discrete":
        log_probs = log_softmax(outputs)
        log_prob = log_probs[range(len(outputs)), samples.action]
        entropy = np.mean(-(np.exp(log_probs) * log_probs).sum(axis=1))
    else:
        std = np.exp(weights[4])
        log_prob = log_density(samples.action, outputs, std)
        entropy = np.sum(0.5 * np.log(2 * np.pi * np.e * std**2))
    ratio = np.exp(log_prob - samples.log_prob)
    advantage = (samples.advantage - samples.advantage.mean()) / samples.advantage.std()
    low, high = 1 - config.clip_epsilon, 1 + config.clip_epsilon
    objective = np.minimum(ratio * advantage, np.clip(ratio, low, high) * advantage)
    value = (samples.state @ weights[2] + weights[3])[:, 0]
    value_loss = np.mean((samples.value_target - value) ** 2)
    return {
        "loss": -objective.mean()
        + config.value_coefficient * value_loss
        - config.entropy_coefficient * entropy,
        "train/policy_loss": -objective.mean(),
        "train/value_loss": value_loss,
        "train/value": value.mean(),
        "train/entropy": entropy,
        "train/kl": np.mean(ratio - 1 - np.log(ratio)),
        "train/clip_fraction": np.mean(np.abs(ratio - 1) > config.clip_epsilon),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_one_update_follows_the_formulas(kind):
    size, config = 7, Config(entropy_coefficient=0.1, value_coefficient=0.7)
    update, variables, optimizer = linear_update(kind)
    samples = some_samples(kind, size)
    before = [np.asarray(variable, np.float64) for variable in variables]
    metrics = update(samples, np.arange(size).reshape(1, size), 0.5)
    expected = formulas(kind, before, samples, config)
    assert 0.2 < expected["train/clip_fraction"] < 0.9  # both sides of the clip are seen
    assert metrics.keys() == expected.keys() - {"loss"}
    for name, value in metrics.items():
        assert value == pytest.approx(expected[name], rel=2e-5, abs=1e-6), name

    # The gradient of (5), by central differences in float64.
    assert float(optimizer.learning_rate) == 0.5
    for i, variable in enumerate(variables):
        gradient = (before[i] - np.asarray(variable)) / 0.5
        numeric = np.zeros_like(before[i])
        for at in np.ndindex(numeric.shape):
            losses = []
            for shift in (1e-6, -1e-6):
                moved = [weights.copy() for weights in before]
                moved[i][at] += shift
                losses.append(formulas(kind, moved, samples, config)["loss"])
            numeric[at] = (losses[0] - losses[1]) / 2e-6
        np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=2e-5)
        assert np.abs(numeric).max() > 1e-3


def test_minibatches_are_normalized_one_by_one_and_averaged():
    config = Config(entropy_coefficient=0.1, value_coefficient=0.7)
    update, variables, _ = linear_update("box")
    samples = some_samples("box", 9)
    before = [np.asarray(variable, np.float64) for variable in variables]
    orders = np.array([[3, 0, 8], [1, 2, 7], [4, 5, 6]])
    metrics = update(samples, orders, 0.0)  # learning rate 0: the weights stay
    parts = [
        formulas("box", before, Samples(*[array[order] for array in samples]), config)
        for order in orders
    ]
    for name, value in metrics.items():
        mean = np.mean([part[name] for part in parts])
        assert value == pytest.approx(mean, rel=2e-5, abs=1e-6), name
    for variable, weights in zip(variables, before, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), weights.astype(np.float32))


# --- Whole runs where the answer is known -----------------------------------------------------

SMALL = {"num_envs": 3, "num_steps": 10, "minibatch_size": 30, "total_timesteps": 240}


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_in_the_first_epoch_every_ratio_is_one(tmp_path, env_id):
    config = Config(env_id=env_id, num_epochs=1, run_dir=str(tmp_path), **SMALL)
    ppo_clip.train(config)
    metrics = read_metrics(tmp_path)
    assert len(metrics["step"]) == 8
    np.testing.assert_allclose(metrics["train/kl"], 0.0, atol=1e-6)
    np.testing.assert_array_equal(metrics["train/clip_fraction"], 0.0)
    np.testing.assert_allclose(metrics["train/policy_loss"], 0.0, atol=1e-5)  # mean advantage
    # The learning rate falls in a line from 1e-3 at step 0 to 0 at the last step.
    expected = 1e-3 * (1.0 - np.arange(8) / 8)
    np.testing.assert_allclose(metrics["train/learning_rate"], expected, rtol=1e-6)


def test_later_epochs_move_the_policy_and_no_anneal_keeps_the_rate(tmp_path):
    config = Config(num_epochs=4, anneal=False, run_dir=str(tmp_path), **SMALL)
    ppo_clip.train(config)
    metrics = read_metrics(tmp_path)
    assert (metrics["train/kl"] > 2e-6).all()
    np.testing.assert_allclose(metrics["train/learning_rate"], 1e-3, rtol=1e-6)


@pytest.mark.parametrize("env_id", ["Constant-v0", "OnwardBox-v0"])
def test_a_time_limit_does_not_end_the_mdp(tmp_path, env_id):
    config = Config(
        env_id=f"known_values:{env_id}",
        gamma=known_values.GAMMA,
        learning_rate=2e-2,
        total_timesteps=9600,
        num_envs=4,
        num_steps=16,
        minibatch_size=32,
        num_epochs=5,
        hidden_sizes=(16,),
        run_dir=str(tmp_path),
    )
    ppo_clip.train(config)
    value_network = build_network(Box(0.0, 1.0, (2,), np.float32), 1, (16,), gain=1.0)
    restore_latest(str(tmp_path), value_network=value_network)
    beginning, later = np.asarray(value_network(np.eye(2, dtype=np.float32)))[:, 0]
    assert later == pytest.approx(known_values.VALUE, abs=0.1)  # 10 with 2 a step
    if env_id == "Constant-v0":
        assert read_metrics(tmp_path)["train/value"][-1] == pytest.approx(10.0, abs=0.1)
    else:
        # Had the next episode's beginning been taken for the successor, both would be less.
        assert beginning == pytest.approx(known_values.BEGINNING, abs=0.1)


def test_minibatches_must_divide_the_batch(tmp_path):
    for size in (0, 7, 512):
        with pytest.raises(UserError, match=f"--minibatch-size {size}: "):
            ppo_clip.train(Config(minibatch_size=size, run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_minibatch_of_one_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--minibatch-size 1: .* take at least 2"):
        ppo_clip.train(Config(minibatch_size=1, run_dir=str(tmp_path / "run")))


def test_atari_rewards_are_clipped_for_the_learner_only(tmp_path, monkeypatch):
    seen, taken = [], []

    def gae(reward, *rest):
        seen.append(reward.copy())
        return returns.gae(reward, *rest)

    class Watched(VectorEnvs):
        def step(self, actions):
            result = super().step(actions)
            taken.append(result[1].copy())
            return result

    monkeypatch.setattr(ppo_clip, "gae", gae)
    monkeypatch.setattr(vector, "VectorEnvs", Watched)
    config = Config(
        env_id="ALE/MsPacman-v5",  # ten points a pellet
        num_envs=2,
        num_steps=128,
        total_timesteps=512,
        num_epochs=1,
        minibatch_size=128,
        run_dir=str(tmp_path),
    )
    ppo_clip.train(config)
    assert max(map(np.max, taken)) >= 10.0
    np.testing.assert_array_equal(np.concatenate(seen), np.sign(taken))


# --- Learning ---------------------------------------------------------------------------------


@pytest.mark.xla
def test_learns_cartpole(tmp_path):
    result = ppo_clip.train(Config(total_timesteps=50_000, run_dir=str(tmp_path)))
    assert np.mean(episode_returns(result.policy, "CartPole-v1", 50, seed=0)) >= 200  # random: 22


@pytest.mark.xla
def test_improves_on_pendulum(tmp_path):
    config = Config(
        env_id="Pendulum-v1",
        gamma=0.9,
        gae_lambda=0.95,
        num_steps=128,
        num_epochs=10,
        minibatch_size=64,
        learning_rate=3e-3,
        total_timesteps=50_000,
        run_dir=str(tmp_path),
    )
    result = ppo_clip.train(config)
    action = result.policy(make_envs("Pendulum-v1", 40).reset(seed=0)[0])
    assert action.shape == (40, 1)
    assert np.abs(action).max() <= 2.0
    # A random policy earns -1230.
    assert np.mean(episode_returns(result.policy, "Pendulum-v1", 50, seed=0)) >= -600


def test_finds_the_best_action_between_lopsided_bounds(tmp_path):
    # Bounds 10 and 20, best action 13: only samples as they were drawn have the right probability.
    config = Config(
        env_id="known_values:Thirteen-v0",
        num_steps=32,
        learning_rate=1e-2,
        total_timesteps=10_000,
        hidden_sizes=(16,),
        run_dir=str(tmp_path),
    )
    result = ppo_clip.train(config)
    assert result.policy(np.ones((1, 1), np.float32))[0, 0] == pytest.approx(13.0, abs=0.25)
