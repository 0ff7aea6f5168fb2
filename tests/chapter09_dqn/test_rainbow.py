"""Rainbow: projection and noise against exact values, and each flag takes out what it names."""

import dataclasses

from chapter09_dqn import rainbow
from chapter09_dqn.rainbow import (
    Config,
    NoisyDense,
    atoms_of,
    build_network,
    build_train_step,
    expected_value,
    project,
)
from common import checkpoint
from common.compiled import compiled
from common.errors import UserError
from common.networks import copy_weights
from common.prioritized import PrioritizedReplay
from common.replay import NStepBatch

import keras
import known_values
import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.no_xla

VECTOR = Box(-1.0, 1.0, (2,), np.float32)

# --- The projection ---------------------------------------------------------------------------

ATOMS = np.linspace(-2.0, 2.0, 5, dtype=np.float32)
P = [0.1, 0.2, 0.4, 0.2, 0.1]


@pytest.mark.parametrize(
    ("reward", "gamma", "terminated", "expected"),
    [
        (0.0, 1.0, False, P),
        (1.0, 1.0, False, [0, 0.1, 0.2, 0.4, 0.3]),
        (0.5, 0.5, False, [0, 0.05, 0.45, 0.45, 0.05]),
        (1.0, 0.9, True, [0, 0, 0, 1, 0]),
        (0.3, 0.9, True, [0, 0, 0.7, 0.3, 0]),
    ],
)
def test_projection_of_one_distribution(reward, gamma, terminated, expected):
    discount = gamma * (1.0 - terminated)
    # Another row beside it, so that no axis can be taken for another.
    probabilities = np.array([P, [0, 0, 0, 0, 1.0]], np.float32)
    rewards, discounts = np.float32([reward, 0.0]), np.float32([discount, 1.0])
    projected = project(probabilities, rewards, discounts, tf.constant(ATOMS))
    np.testing.assert_allclose(projected, [expected, [0, 0, 0, 0, 1]], atol=1e-6)


def project_atom_by_atom(probabilities, reward, discount, atoms):
    """The paper's algorithm 1, with all mass on the atom where lower and upper are the same."""
    projected = np.zeros_like(probabilities, np.float64)
    delta_z = float(atoms[1] - atoms[0])
    for row in range(len(reward)):
        for p, z in zip(probabilities[row], atoms, strict=True):
            moved = np.clip(float(reward[row]) + float(discount[row]) * float(z), *atoms[[0, -1]])
            b = (moved - float(atoms[0])) / delta_z
            lower, upper = int(np.floor(b)), int(np.ceil(b))
            if lower == upper:
                projected[row, lower] += p
            else:
                projected[row, lower] += p * (upper - b)
                projected[row, upper] += p * (b - lower)
    return projected


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 51), st.integers(0, 2**32 - 1), st.sampled_from([0.25, 1.0]))
def test_projection_keeps_all_mass_also_where_it_hits_an_atom(num_atoms, seed, delta_z):
    rng = np.random.default_rng(seed)
    atoms = (np.arange(num_atoms) * delta_z - 3.0).astype(np.float32)
    probabilities = rng.dirichlet(np.full(num_atoms, 0.3), 6).astype(np.float32)
    # Whole steps on the atoms (l = u), anything, and rewards far outside.
    reward = np.concatenate([rng.integers(-4, 5, 2) * delta_z, rng.normal(size=2) * 3, [-99, 99]])
    discount = np.array([1.0, 0.0, rng.random(), 1.0, 0.99, 0.0])
    reward, discount = reward.astype(np.float32), discount.astype(np.float32)
    projected = np.asarray(project(probabilities, reward, discount, tf.constant(atoms)))
    np.testing.assert_allclose(projected.sum(axis=1), np.ones(6), atol=1e-5)
    assert (projected >= 0).all()
    expected = project_atom_by_atom(probabilities, reward, discount, atoms)
    np.testing.assert_allclose(projected, expected, atol=2e-5)
    moved = np.clip(reward[:, None] + discount[:, None] * atoms, atoms[0], atoms[-1])
    mean = (probabilities * moved).sum(axis=1)
    np.testing.assert_allclose(projected @ atoms, mean, atol=1e-3)


def test_values_are_means_of_distributions():
    p = np.array([[P, [0, 0, 0, 0.5, 0.5]], [[0.2] * 5, [1, 0, 0, 0, 0]]], np.float32)
    logits = np.log(np.maximum(p, 1e-30))
    np.testing.assert_allclose(
        expected_value(logits, tf.constant(ATOMS)), [[0.0, 1.5], [0.0, -2.0]], atol=1e-6
    )
    np.testing.assert_array_equal(expected_value(np.float32([[[3.0], [4.0]]]), None), [[3.0, 4.0]])
    atoms = atoms_of(Config(num_atoms=5, v_min=-2.0, v_max=2.0))
    np.testing.assert_allclose(atoms, ATOMS)


# --- One gradient step ------------------------------------------------------------------------


def linear(kernel, bias, num_atoms=1):
    """Logits [B, A, Z] that are linear in the state."""
    inputs = keras.Input((2,))
    layer = keras.layers.Dense(len(bias))
    shape = (len(bias) // num_atoms, num_atoms)
    network = keras.Model(inputs, keras.layers.Reshape(shape)(layer(inputs)))
    network.set_weights([np.asarray(kernel), np.asarray(bias)])
    return network


def run_step(q_network, target_network, batch, weight, atoms, double, rate=0.3, xla=True):
    optimizer = keras.optimizers.SGD(rate)
    optimizer.build(q_network.trainable_variables)
    train_step = build_train_step(q_network, target_network, optimizer, atoms, double)
    batches = NStepBatch(*[array[None] for array in batch])
    metrics, surprise = compiled(train_step, loop=True, xla=xla)(batches, weight[None])
    return metrics, surprise[0]


# Without a distribution; γ = 0.9, n = 3: γ^3 = 0.729, one stretch was cut after a step.
#   row  Q(s, a)  R   s'        Q(s')             best  Q'(s')       y, double         y, single
#   0    2        1   [1, 1]    [1.5, 3, 0]       1     [4, 2, 3]    1 (terminated)    1
#   1    0        2   [0, 2]    [0.5, 2, -1]      1     [2, 3, 4]    2 + 3 * 0.729     2 + 4 * 0.729
#   2    2.5     -1   [-1, 0]   [-0.5, -2, 1]     2     [-3, 1, -1]  -1 - 0.9          -1 + 0.9
Q_WEIGHTS = [np.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]]), np.array([0.5, 0.0, 1.0])]
TARGET_WEIGHTS = [np.array([[3.0, 0.0, 1.0], [1.0, 1.0, 2.0]]), np.array([0.0, 1.0, 0.0])]
BATCH = NStepBatch(
    state=np.array([[1, 0], [0, 1], [2, -1]], np.float32),
    action=np.array([1, 2, 0], np.int32),
    reward=np.array([1, 2, -1], np.float32),
    next_state=np.array([[1, 1], [0, 2], [-1, 0]], np.float32),
    terminated=np.array([1, 0, 0], np.float32),
    discount=np.array([0.81, 0.729, 0.9], np.float32),
)
Q_VALUE = np.array([2.0, 0.0, 2.5])
WEIGHT = np.array([0.5, 0.25, 1.0], np.float32)
TD_TARGET = {True: np.array([1.0, 4.187, -1.9]), False: np.array([1.0, 4.916, -0.1])}


@pytest.mark.parametrize("double", [True, False])
def test_a_step_without_distributions_worked_out_on_paper(double):
    q_network, target_network = linear(*Q_WEIGHTS), linear(*TARGET_WEIGHTS)
    metrics, surprise = run_step(q_network, target_network, BATCH, WEIGHT, None, double)
    td_error = TD_TARGET[double] - Q_VALUE
    assert metrics["train/loss"] == pytest.approx(np.mean(WEIGHT * td_error**2), rel=1e-6)
    assert metrics["train/q_value"] == pytest.approx(1.5, rel=1e-6)
    np.testing.assert_allclose(surprise, np.abs(td_error), rtol=1e-6)
    kernel, bias = (weights.copy() for weights in Q_WEIGHTS)
    for row, action in enumerate(BATCH.action):
        slope = -2 * WEIGHT[row] * td_error[row] / 3
        kernel[:, action] -= 0.3 * slope * BATCH.state[row]
        bias[action] -= 0.3 * slope
    for weights, expected in zip(q_network.get_weights(), (kernel, bias), strict=True):
        np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-6)
    for weights, expected in zip(target_network.get_weights(), TARGET_WEIGHTS, strict=True):
        np.testing.assert_array_equal(weights, np.float32(expected))


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("xla", [True, False])
def test_a_step_with_distributions_equals_a_plain_computation(double, xla):
    """A = 3 actions, Z = 5 atoms, B = 4: no axis can be taken for another."""
    rng = np.random.default_rng(3)
    weights, target_weights = ([rng.normal(size=(2, 15)), rng.normal(size=15)] for _ in range(2))
    q_network, target_network = linear(*weights, num_atoms=5), linear(*target_weights, num_atoms=5)
    batch = NStepBatch(
        state=rng.normal(size=(4, 2)).astype(np.float32),
        action=np.array([2, 0, 1, 1], np.int32),
        reward=np.float32([0.3, 1.0, -0.5, 5.0]),
        next_state=rng.normal(size=(4, 2)).astype(np.float32),
        terminated=np.float32([0, 1, 0, 0]),
        discount=np.float32([0.729, 0.729, 0.9, 0.81]),
    )
    weight = np.float32([1.0, 0.3, 0.6, 0.2])

    def logits(w, states):
        return (states @ w[0] + w[1]).reshape(4, 3, 5)

    rows = np.arange(4)
    next_p = softmax(logits(target_weights, batch.next_state))
    choosing = softmax(logits(weights, batch.next_state)) if double else next_p
    best = (choosing @ ATOMS).argmax(axis=1)
    discount = batch.discount * (1.0 - batch.terminated)
    m = project_atom_by_atom(next_p[rows, best], batch.reward, discount, ATOMS)
    p = softmax(logits(weights, batch.state))[rows, batch.action]
    divergence = np.sum(np.where(m > 0, m * np.log(np.maximum(m, 1e-300) / p), 0.0), axis=1)

    atoms = tf.constant(ATOMS)
    metrics, surprise = run_step(q_network, target_network, batch, weight, atoms, double, xla=xla)
    np.testing.assert_allclose(surprise, divergence, rtol=1e-4, atol=1e-5)
    assert metrics["train/loss"] == pytest.approx(np.mean(weight * divergence), rel=1e-4)
    assert metrics["train/q_value"] == pytest.approx(np.mean(p @ ATOMS), rel=1e-4)
    # dL/dlogits = w (p - m) / B, at the action that was taken.
    bias = weights[1].reshape(3, 5).copy()
    np.subtract.at(bias, batch.action, 0.3 * weight[:, None] * (p - m) / 4)
    np.testing.assert_allclose(q_network.get_weights()[1], bias.reshape(15), atol=1e-5)
    for now, before in zip(target_network.get_weights(), target_weights, strict=True):
        np.testing.assert_array_equal(now, np.float32(before))


def test_priorities_are_never_negative_and_0_where_nothing_surprises():
    rng = np.random.default_rng(0)
    network = linear(np.zeros((2, 10)), np.zeros(10), num_atoms=5)
    optimizer = keras.optimizers.SGD(1e-12)
    optimizer.build(network.trainable_variables)
    atoms = tf.constant(ATOMS)
    step = compiled(build_train_step(network, network, optimizer, atoms, double=True), loop=True)
    zeros = np.zeros((1, 8), np.float32)
    states = np.zeros((1, 8, 2), np.float32)
    for scale in (0.0, 0.1, 3.0):
        bias = rng.normal(size=10) * scale
        network.set_weights([np.zeros((2, 10)), bias])
        best = int((softmax(bias.reshape(2, 5)) @ ATOMS).argmax())
        action = np.full((1, 8), best, np.int32)
        same = NStepBatch(states, action, zeros, states, zeros, zeros + 1.0)  # m = p
        _, surprise = step(same, zeros + 1.0)
        np.testing.assert_allclose(surprise, zeros, atol=1e-6)
        other = same._replace(reward=rng.normal(size=(1, 8)).astype(np.float32))
        _, surprise = step(other, zeros + 1.0)
        assert surprise.min() > 1e-5


# --- Noisy layers -----------------------------------------------------------------------------


def only_noise(units, size):
    """A layer whose means are 0 and whose standard deviations are 1."""
    layer = NoisyDense(units)
    layer.build((None, size))
    layer.weight_mean.assign(np.zeros((size, units)))
    layer.bias_mean.assign(np.zeros(units))
    layer.weight_std.assign(np.ones((size, units)))
    layer.bias_std.assign(np.ones(units))
    return layer


def test_noise_is_factorised():
    """ε_w = f(ε_in) f(ε_out)ᵀ: a matrix of rank one, whose second factor is the bias's noise."""
    layer = only_noise(4, 3)
    inputs = np.vstack([np.zeros(3), np.eye(3)]).astype(np.float32)
    for _ in range(5):
        noise_out, *rows = np.asarray(layer(inputs, training=True))  # no input: the bias alone
        weights = rows - noise_out
        factor = weights[:, 0] / noise_out[0]
        np.testing.assert_allclose(weights, np.outer(factor, noise_out), rtol=1e-3, atol=1e-5)
        assert np.linalg.matrix_rank(weights, tol=1e-4) == 1
        assert len(set(np.round(np.abs(factor), 5))) == 3
        assert len(set(np.round(np.abs(noise_out), 5))) == 4


def test_noise_is_the_signed_root_of_a_normal_number():
    noise = np.asarray(only_noise(20_000, 1)(np.zeros((1, 1), np.float32), training=True))[0]
    # f² = |x|: mean √(2/π); f is as often negative; P(|f| < 1) = P(|x| < 1).
    assert np.mean(noise**2) == pytest.approx(np.sqrt(2 / np.pi), abs=0.02)
    assert np.mean(noise > 0) == pytest.approx(0.5, abs=0.015)
    assert np.mean(np.abs(noise) < 1) == pytest.approx(0.6827, abs=0.015)


def test_weights_begin_as_in_the_paper():
    layer = NoisyDense(300, "relu", sigma=0.4)
    layer.build((None, 16))
    for mean in (layer.weight_mean, layer.bias_mean):
        assert np.abs(mean).max() <= 0.25  # 1/√16
        assert np.std(mean) == pytest.approx(0.5 / np.sqrt(12), rel=0.15)
    for std in (layer.weight_std, layer.bias_std):
        np.testing.assert_allclose(std, np.full(std.shape, 0.1), rtol=1e-6)  # 0.4/√16


def noisy_network(seed=0, **changes):
    keras.utils.set_random_seed(seed)
    config = Config(hidden_sizes=(8, 6), num_atoms=5, v_min=-2.0, v_max=2.0, **changes)
    return build_network(VECTOR, 3, config)


STATES = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)


@pytest.mark.parametrize("dueling", [True, False])
def test_noise_in_training_and_exact_means_without(dueling):
    network = noisy_network(dueling=dueling)
    first, second = (np.asarray(network(STATES, training=True)) for _ in range(2))
    assert first.shape == (7, 3, 5)
    assert np.abs(first - second).min(axis=(1, 2)).max() > 0
    calm = np.asarray(network(STATES))
    np.testing.assert_array_equal(network(STATES, training=False), calm)
    # With σ = 0 nothing but the means is left.
    for layer in network.layers:
        if isinstance(layer, NoisyDense):
            layer.weight_std.assign(np.zeros(layer.weight_std.shape))
            layer.bias_std.assign(np.zeros(layer.bias_std.shape))
    np.testing.assert_allclose(network(STATES, training=True), calm, atol=1e-6)
    np.testing.assert_array_equal(network(STATES), calm)


def test_every_noisy_layer_draws_its_own_noise():
    network = noisy_network()
    layers = [layer for layer in network.layers if isinstance(layer, NoisyDense)]
    assert len(layers) == 4  # two streams of two; the others learn features
    states = [tuple(np.ravel(np.asarray(layer.noise.state.value))) for layer in layers]
    assert len(set(states)) == 4


def test_both_networks_draw_different_noise_also_after_weights_are_copied():
    network = noisy_network()
    target = keras.models.clone_model(network)
    copy_weights(network, target)
    for _ in range(2):
        np.testing.assert_array_equal(network(STATES), target(STATES))
        ours, theirs = (np.asarray(n(STATES, training=True)) for n in (network, target))
        assert np.abs(ours - theirs).max() > 0.01
        copy_weights(network, target)


@pytest.mark.parametrize("xla", [True, False])
def test_noise_is_drawn_anew_in_each_step_of_a_compiled_loop_and_in_each_call(xla):
    layer = only_noise(2, 2)
    same = np.ones((4, 1, 2), np.float32)
    noisy = compiled(lambda x: layer(x, training=True), loop=True, xla=xla)
    outputs = np.concatenate([noisy(same), noisy(same)])
    assert len(np.unique(outputs[:, 0, 0])) == 8


def test_generators_of_noise_are_part_of_a_checkpoint(tmp_path):
    ours, theirs = noisy_network(0), noisy_network(1)
    ours(STATES, training=True)
    path = checkpoint.save(tmp_path, 1, {"network": ours}, {})
    checkpoint.Checkpoint(path).restore({"network": theirs})
    for _ in range(3):
        a, b = (np.asarray(n(STATES, training=True)) for n in (ours, theirs))
        np.testing.assert_array_equal(a, b)


def noisy_linear(std, biases=(1.0, 2.0, 3.0)):
    """Q [B, 3, 1]; noise reaches only states that are not zero."""
    inputs, layer = keras.Input((2,)), NoisyDense(3)
    network = keras.Model(inputs, keras.layers.Reshape((3, 1))(layer(inputs)))
    layer.weight_mean.assign(np.zeros((2, 3)))
    layer.bias_mean.assign(biases)
    layer.weight_std.assign(np.full((2, 3), std))
    layer.bias_std.assign(np.zeros(3))
    return network


@pytest.mark.parametrize("where", ["state", "choice", "target"])
def test_every_network_call_of_a_training_step_is_noisy(where):
    """Noise in one place at a time: the loss must not be the same in each step."""
    online = noisy_linear(5.0 if where != "target" else 0.0)
    target = noisy_linear(5.0 if where == "target" else 0.0, biases=(10.0, 20.0, 30.0))
    steps, one = 24, np.ones((24, 1), np.float32)
    seen, blind = np.ones((steps, 1, 2), np.float32), np.zeros((steps, 1, 2), np.float32)
    batches = NStepBatch(
        state=seen if where == "state" else blind,
        action=np.zeros((steps, 1), np.int32),
        reward=0.0 * one,
        next_state=blind if where == "state" else seen,
        terminated=0.0 * one,
        discount=one,
    )
    optimizer = keras.optimizers.SGD(1e-12)
    optimizer.build(online.trainable_variables)
    step = build_train_step(online, target, optimizer, None, double=True)
    _, surprise = compiled(step, loop=True, xla=False)(batches, one)
    values = set(np.round(surprise[:, 0], 3))
    if where == "choice":
        assert values == {9.0, 19.0, 29.0}  # |Q'(s', a*) - 1| for whatever action noise prefers
    else:
        assert len(values) == steps


# --- Flags ------------------------------------------------------------------------------------

QUICK = {
    "num_envs": 2,
    "total_timesteps": 3000,
    "learning_rate": 5e-3,
    "hidden_sizes": (16,),
    "buffer_size": 1000,
    "batch_size": 32,
    "learning_starts": 40,
    "train_frequency": 20,
    "gradient_steps": 20,
    "target_frequency": 20,
}


@pytest.fixture
def calls(monkeypatch):
    """Arguments and results of the parts that `train` puts together, by name."""
    seen = {}

    def watch(name):
        original = getattr(rainbow, name)

        def call(*args, **kwargs):
            result = original(*args, **kwargs)
            seen.setdefault(name, []).append((args, kwargs, result))
            return result

        monkeypatch.setattr(rainbow, name, call)

    for name in ("build_network", "build_train_step", "PrioritizedReplay", "epsilon_greedy"):
        watch(name)
    return seen


FLAGS = {
    "double": {"double": False},
    "dueling": {"dueling": False},
    "n_step": {"n_step": 1},
    "prioritized": {"prioritized": False},
    "distributional": {"distributional": False},
    "noisy": {"noisy": False},
}


@pytest.mark.parametrize("flag", [None, *FLAGS])
def test_each_flag_takes_out_one_component_and_no_other(flag, calls, tmp_path):
    changes = FLAGS.get(flag, {})
    settings = QUICK | {"total_timesteps": 6, "n_step": 3} | changes
    config = Config(env_id="known_values:Constant-v0", run_dir=str(tmp_path), **settings)
    rainbow.train(config)
    network = calls["build_network"][0][2]
    (online, target, _, atoms, double), _, _ = calls["build_train_step"][0]
    prioritized = calls["PrioritizedReplay"][0][2]
    acting = [args for args, _, _ in calls["epsilon_greedy"]]
    assert online is network
    assert target is not network
    noisy = [layer for layer in network.layers if isinstance(layer, NoisyDense)]
    plain = [layer for layer in network.layers if isinstance(layer, keras.layers.Dense)]
    outputs = config.num_atoms * (2 + 1 if config.dueling else 2) if config.distributional else None
    assert network.output_shape == (None, 2, config.num_atoms if config.distributional else 1)
    assert (atoms is None) == (not config.distributional)
    if outputs:
        last = (noisy or plain)[-2:] if config.dueling else (noisy or plain)[-1:]
        assert sum(layer.units for layer in last) == outputs
    found = {
        "double": double,
        "dueling": any(type(op).__name__ == "Mean" for op in network.operations),
        "n_step": prioritized.replay.n_step > 1,
        "prioritized": prioritized.alpha > 0,
        "distributional": network.output_shape[-1] > 1,
        "noisy": len(noisy) > 0,
    }
    assert found == {name: name != flag for name in FLAGS}
    assert bool(noisy) != bool(plain)  # all of the dense layers, or none
    assert prioritized.replay.gamma == config.gamma
    assert prioritized.alpha == (config.prioritization_exponent if flag != "prioritized" else 0.0)

    # Everything that is seen here looks the same: only noise makes values differ from step to step,
    # and ε explores where there is none.
    first, second, third = (q_values for q_values, _, _ in acting)
    np.testing.assert_array_equal(first[0], first[1])  # the copies share a step's noise
    same = np.array_equal(first, second) and np.array_equal(second, third)
    assert same == (flag == "noisy")
    assert acting[0][1] == (config.start_epsilon if flag == "noisy" else 0.0)


@pytest.mark.parametrize("noisy", [True, False])
def test_the_policy_that_is_evaluated_uses_the_means(noisy, calls, tmp_path):
    settings = QUICK | {"total_timesteps": 6}
    config = Config(
        env_id="known_values:Onward-v0", run_dir=str(tmp_path), **settings, noisy=noisy, sigma=20.0
    )
    result = rainbow.train(config)
    network = calls["build_network"][0][2]
    states = np.random.default_rng(0).random((200, 2)).astype(np.float32)
    q_values = np.asarray(expected_value(network(states), atoms_of(config)))
    again = rainbow.load_policy(dataclasses.replace(config, resume=str(tmp_path)))
    for policy in (result.policy, again):
        for _ in range(2):
            np.testing.assert_array_equal(policy(states), q_values.argmax(axis=1))


def test_replay_gives_and_takes_what_it_should(tmp_path, monkeypatch):
    """β rises to 1; with steps too small to change anything, errors can be computed again."""
    betas = []

    class Watched(PrioritizedReplay):
        def sample(self, *shape, beta):
            betas.append(beta)
            return super().sample(*shape, beta=beta)

    monkeypatch.setattr(rainbow, "PrioritizedReplay", Watched)
    settings = QUICK | {"total_timesteps": 900, "buffer_size": 400, "learning_rate": 1e-12}
    flags = {"noisy": False, "dueling": False, "distributional": False, "n_step": 1}
    config = Config(
        run_dir=str(tmp_path), **settings, **flags, start_beta=0.3, env_id="CartPole-v1", seed=5
    )
    rainbow.train(config)
    began = [step for step in range(40, 900, 2) if step // 20 != (step + 2) // 20]
    np.testing.assert_allclose(betas, [0.3 + 0.7 * step / 900 for step in began])

    q_network = build_network(Box(-1, 1, (4,), np.float32), 2, config)
    checkpoint.restore_latest(str(tmp_path), q_network=q_network)
    names = ("state", "action", "reward", "next_state", "terminated", "surprise")
    with np.load(checkpoint.latest(tmp_path)) as archive:
        stored = {key: archive[f"replay/{key}"] for key in names}
    next_q = np.asarray(q_network(stored["next_state"]))[..., 0].max(axis=1)
    td_target = stored["reward"] + config.gamma * (1.0 - stored["terminated"]) * next_q
    q_value = np.asarray(q_network(stored["state"]))[np.arange(400), stored["action"], 0]
    error = np.abs(td_target - q_value) + 1e-6
    right = np.isclose(stored["surprise"], error, rtol=1e-4)
    assert error.std() > 0.05
    assert right.sum() >= 350


def test_without_weight_nothing_is_learned(calls, tmp_path, monkeypatch):
    class Weightless(PrioritizedReplay):
        def sample(self, *shape, beta):
            batch, weight, index = super().sample(*shape, beta=beta)
            return batch, 0.0 * weight, index

    monkeypatch.setattr(rainbow, "PrioritizedReplay", Weightless)
    flags = {"noisy": False, "dueling": False, "distributional": False}
    config = Config(
        run_dir=str(tmp_path), **QUICK | {"total_timesteps": 200}, **flags, env_id="CartPole-v1"
    )
    rainbow.train(config)
    online, target = calls["build_train_step"][0][0][:2]
    keras.utils.set_random_seed(config.seed)
    initial = build_network(Box(-1, 1, (4,), np.float32), 2, config)
    for network in (online, target):
        for weights, same in zip(network.weights, initial.weights, strict=True):
            np.testing.assert_array_equal(weights, same)


@pytest.mark.xla
def test_learns_values_that_are_known(tmp_path, calls):
    """All six together, over a time limit that cuts stretches of three steps short."""
    config = Config(
        env_id="known_values:Onward-v0",
        gamma=known_values.GAMMA,
        run_dir=str(tmp_path),
        num_atoms=25,
        v_min=-12.0,
        v_max=12.0,
        n_step=3,
        **QUICK,
    )
    rainbow.train(config)
    network = calls["build_network"][0][2]
    values = expected_value(network(np.eye(2, dtype=np.float32)), atoms_of(config))
    expected = np.transpose([[known_values.BEGINNING, known_values.VALUE]] * 2)
    np.testing.assert_allclose(values, expected, atol=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"v_min": 5.0, "v_max": 5.0}, "--v-min 5.0: must be less than --v-max 5.0"),
        ({"v_min": 7.0, "v_max": 5.0}, "--v-min 7.0: must be less than --v-max 5.0"),
        ({"num_atoms": 0}, "--num-atoms 0: must be at least "),
        ({"num_atoms": 1}, "--num-atoms 1: must be at least 2"),
        ({"n_step": 0}, "--n-step 0: must be at least 1"),
        ({"sigma": -0.5}, "--sigma -0.5: must be 0 or more"),
        ({"hidden_sizes": ()}, "--hidden-sizes: must name at least one layer"),
        ({"batch_size": 65, "buffer_size": 64}, "--batch-size 65: larger than --buffer-size 64"),
        ({"train_frequency": 7, "num_envs": 8}, "--train-frequency 7: less than --num-envs 8"),
        ({"env_id": "Pendulum-v1"}, "--env-id Pendulum-v1: actions are continuous"),
    ],
)
def test_flags_that_make_no_sense(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        rainbow.train(Config(run_dir=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


def test_discrete_observations_and_images_have_distributions_too():
    config = Config(hidden_sizes=(6,), num_atoms=7, v_min=0.0, v_max=1.0)
    for space in (Discrete(5), Box(0, 255, (4, 42, 42), np.uint8)):
        network = build_network(space, 3, config)
        states = np.stack([space.sample() for _ in range(2)])
        assert tuple(network(states, training=True).shape) == (2, 3, 7)
