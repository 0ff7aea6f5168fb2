"""Dueling DQN: how the streams join, what reaches them, and that they are no larger than DQN's."""

from chapter09_dqn import dqn, dueling_dqn
from chapter09_dqn.dueling_dqn import build_q_network, build_train_steps
from common.acting import NumpyTwin, forward
from common.checkpoint import restore_latest
from common.compiled import compiled
from common.errors import UserError
from common.replay import Batch

import keras
import known_values
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

pytestmark = pytest.mark.no_xla

VECTOR = Box(-1.0, 1.0, (2,), np.float32)
IMAGE = Box(0, 255, (4, 84, 84), np.uint8)


def heads(q_network, num_actions):
    """The last layers of the two streams: V(s) and A(s, a)."""
    last = [x for x in q_network.layers if isinstance(x, keras.layers.Dense)][-2:]
    assert [layer.units for layer in last] == [1, num_actions]
    return last


def test_value_and_advantages_make_q():
    """V = 2, A = [1, 2, 3]: Q = [1, 2, 3], and Q - V sums to 0."""
    q_network = build_q_network(VECTOR, 3, (4,))
    for weight in q_network.weights:
        weight.assign(np.zeros(weight.shape))
    value, advantage = heads(q_network, 3)
    value.bias.assign([2.0])
    advantage.bias.assign([1.0, 2.0, 3.0])
    states = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    q_values = np.asarray(q_network(states))
    np.testing.assert_allclose(q_values, np.tile([1.0, 2.0, 3.0], (5, 1)), rtol=1e-6)
    np.testing.assert_allclose((q_values - 2.0).sum(axis=1), np.zeros(5), atol=1e-6)
    # A constant on all advantages is taken away: it cannot move between the streams.
    advantage.bias.assign([101.0, 102.0, 103.0])
    np.testing.assert_allclose(q_network(states), q_values, atol=1e-4)


@pytest.mark.parametrize("space", [VECTOR, Discrete(5), IMAGE], ids=["Box", "Discrete", "image"])
def test_the_mean_over_actions_is_the_value_of_each_state(space):
    keras.utils.set_random_seed(0)
    q_network = build_q_network(space, 3, (7, 6))
    space.seed(0)
    states = np.stack([space.sample() for _ in range(4)])
    value, _ = heads(q_network, 3)
    values = keras.Model(q_network.inputs[0], value.output)(states)  # [B, 1]
    q_values = np.asarray(q_network(states))
    assert q_values.shape == (4, 3)
    np.testing.assert_allclose(q_values.mean(axis=1), values[:, 0], atol=1e-5)
    assert np.ptp(q_values, axis=1).max() > 0.01


@pytest.mark.parametrize("action", [0, 1, 2])
def test_every_action_teaches_the_value(action):
    """dQ(a)/dV = 1 and dQ(a)/dA(b) = [a = b] - 1/3; with the squared error of one transition."""
    keras.utils.set_random_seed(0)
    q_network, target_network = (build_q_network(VECTOR, 3, (4,)) for _ in range(2))
    optimizer = keras.optimizers.SGD(0.25)
    optimizer.build(q_network.trainable_variables)
    value, advantage = heads(q_network, 3)
    states = np.array([[[0.3, -0.7]]], np.float32)
    before = np.asarray(q_network(states[0]))[0]
    old_value, old_advantage = value.bias.numpy(), advantage.bias.numpy()
    one = np.ones((1, 1), np.float32)
    batch = Batch(states, np.array([[action]], np.int32), 5.0 * one, states, one)  # y = 5
    train_steps = build_train_steps(q_network, target_network, optimizer, 0.9)
    metrics = compiled(train_steps)(batch)
    assert metrics["train/loss"] == pytest.approx((5.0 - before[action]) ** 2, rel=1e-5)
    slope = 2.0 * (before[action] - 5.0)
    np.testing.assert_allclose(value.bias, old_value - 0.25 * slope, rtol=1e-5)
    expected = old_advantage - 0.25 * slope * (np.eye(3)[action] - 1 / 3)
    np.testing.assert_allclose(advantage.bias, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("space", "hidden_sizes", "units"),
    [(VECTOR, (120, 84), 84), (VECTOR, (64,), 64), (VECTOR, (9,), 10), (IMAGE, (), 512)],
)
def test_both_streams_together_are_as_large_as_dqns_last_layer(space, hidden_sizes, units):
    def hidden(module):
        layers = module.build_q_network(space, 4, hidden_sizes).layers
        sizes = [layer.units for layer in layers if isinstance(layer, keras.layers.Dense)]
        return sizes[: -1 if module is dqn else -2]

    *before, first, second = hidden(dueling_dqn)
    assert first == second == units // 2
    *same, last = hidden(dqn)
    assert before == same
    assert last in (units, units - 1)  # an odd number cannot be shared


def test_streams_need_a_layer_to_fork_in():
    with pytest.raises(UserError, match="--hidden-sizes: must name at least one layer"):
        build_q_network(VECTOR, 3, ())


def test_acts_through_a_numpy_twin_as_dqn_does():
    q_network = build_q_network(VECTOR, 3, (8, 8))
    twin = forward(q_network)
    assert isinstance(twin, NumpyTwin)
    states = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    np.testing.assert_allclose(twin(states), np.asarray(q_network(states)), atol=1e-6)


@pytest.mark.xla
def test_learns_values_that_are_known(tmp_path):
    """Only a time limit ends these episodes, and the state after it is another episode's first."""
    config = dueling_dqn.Config(
        env_id="known_values:Onward-v0",
        gamma=known_values.GAMMA,
        run_dir=str(tmp_path),
        num_envs=2,
        total_timesteps=3000,
        learning_rate=5e-3,
        hidden_sizes=(16,),
        buffer_size=1000,
        batch_size=32,
        learning_starts=40,
        train_frequency=20,
        gradient_steps=20,
        target_frequency=20,
        start_epsilon=1.0,
        end_epsilon=1.0,
    )
    dueling_dqn.train(config)
    q_network = build_q_network(VECTOR, 2, config.hidden_sizes)
    restore_latest(str(tmp_path), q_network=q_network)
    expected = np.transpose([[known_values.BEGINNING, known_values.VALUE]] * 2)
    np.testing.assert_allclose(q_network(np.eye(2, dtype=np.float32)), expected, atol=0.05)
