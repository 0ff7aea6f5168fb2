"""Double DQN: who chooses and who evaluates, and what that does to values that are too large."""

from chapter09_dqn import double_dqn, dqn
from chapter09_dqn.double_dqn import build_q_network, build_train_steps
from common.checkpoint import restore_latest
from common.compiled import compiled
from common.metrics import read_metrics
from common.replay import Batch

import gymnasium as gym
import keras
import known_values
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

pytestmark = pytest.mark.no_xla

VECTOR = Box(-1.0, 1.0, (2,), np.float32)
Q_WEIGHTS = [np.array([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]]), np.array([0.5, 0.0, 1.0])]
TARGET_WEIGHTS = [np.array([[3.0, 0.0, 1.0], [1.0, 1.0, 2.0]]), np.array([0.0, 1.0, 0.0])]
GAMMA = 0.9

# Linear networks, so that everything can be worked out on paper.
#   row  Q(s, a)  r   s'        Q(s')             best  Q'(s')        y               DQN's y
#   0    2        1   [1, 1]    [1.5, 3, 0]       1     [4, 2, 3]     1 (terminated)  1
#   1    0        2   [0, 2]    [0.5, 2, -1]      1     [2, 3, 4]     2 + 2.7 = 4.7   5.6
#   2    2.5     -1   [-1, 0]   [-0.5, -2, 1]     2     [-3, 1, -1]   -1 - 0.9        -0.1
BATCH = Batch(
    state=np.array([[1, 0], [0, 1], [2, -1]], np.float32),
    action=np.array([1, 2, 0], np.int32),
    reward=np.array([1, 2, -1], np.float32),
    next_state=np.array([[1, 1], [0, 2], [-1, 0]], np.float32),
    terminated=np.array([1, 0, 0], np.float32),
)
Q_VALUE = np.array([2.0, 0.0, 2.5])
TD_TARGET = np.array([1.0, 4.7, -1.9])


def network(weights):
    q_network = build_q_network(VECTOR, 3, ())
    q_network.set_weights(weights)
    return q_network


def trained(q_network, target_network, batch, gamma, xla=True):
    optimizer = keras.optimizers.SGD(0.3)
    optimizer.build(q_network.trainable_variables)
    train_steps = build_train_steps(q_network, target_network, optimizer, gamma)
    return compiled(train_steps, xla=xla)(Batch(*[array[None] for array in batch]))


def test_the_online_network_chooses_and_the_target_network_evaluates():
    """Online [1, 3, 2], target [10, 5, 7]: the target is 5, where DQN's is 10."""
    nothing = np.zeros((2, 3))
    q_network = network([nothing, np.array([1.0, 3.0, 2.0])])
    target_network = network([nothing, np.array([10.0, 5.0, 7.0])])
    zero = np.zeros(1, np.float32)
    batch = Batch(np.zeros((1, 2), np.float32), np.zeros(1, np.int32), zero, zero[:, None], zero)
    batch = batch._replace(next_state=np.zeros((1, 2), np.float32))
    metrics = trained(q_network, target_network, batch, gamma=1.0)
    assert metrics["train/q_value"] == 1.0
    assert metrics["train/loss"] == pytest.approx((5.0 - 1.0) ** 2)


@pytest.mark.parametrize("xla", [True, False])
def test_one_step_on_a_batch_worked_out_on_paper(xla):
    q_network, target_network = network(Q_WEIGHTS), network(TARGET_WEIGHTS)
    metrics = trained(q_network, target_network, BATCH, GAMMA, xla)
    assert metrics["train/loss"] == pytest.approx(np.mean((TD_TARGET - Q_VALUE) ** 2), rel=1e-6)
    assert metrics["train/q_value"] == pytest.approx(1.5, rel=1e-6)

    # dL/dQ(s, a) = 2 (Q - y) / B, and nothing through the choice of the next action.
    kernel, bias = (weights.copy() for weights in Q_WEIGHTS)
    for row, action in enumerate(BATCH.action):
        slope = 2 * (Q_VALUE[row] - TD_TARGET[row]) / 3
        kernel[:, action] -= 0.3 * slope * BATCH.state[row]
        bias[action] -= 0.3 * slope
    for weights, expected in zip(q_network.get_weights(), (kernel, bias), strict=True):
        np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-6)
    for weights, expected in zip(target_network.get_weights(), TARGET_WEIGHTS, strict=True):
        np.testing.assert_array_equal(weights, expected)


class NoisyRewards(gym.Env):
    """Two steps, ten actions, and every Q* is -0.1.

    From state 0 any action leads to state 1 with reward 0; there any action earns -0.1 plus noise
    and ends the episode.
    """

    observation_space, action_space = Discrete(2), Discrete(10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action):
        self.state += 1
        if self.state == 1:
            return 1, 0.0, False, False, {}
        return 1, MEAN + 2.0 * self.np_random.normal(), True, False, {}


MEAN = -0.1
gym.register("NoisyRewards-v0", NoisyRewards)


def test_values_are_too_large_with_dqn_and_less_so_with_double_dqn(tmp_path):
    """The largest of ten noisy estimates is above their common mean, unless another one tells."""

    def estimates(module):
        config = module.Config(
            env_id="NoisyRewards-v0",
            run_dir=str(tmp_path / module.__name__),
            gamma=1.0,
            num_envs=4,
            total_timesteps=4000,
            learning_rate=0.05,
            anneal=False,
            hidden_sizes=(),  # the observation is one-hot: a table
            buffer_size=4000,
            batch_size=8,
            learning_starts=400,
            train_frequency=20,
            gradient_steps=20,
            target_frequency=100,
            start_epsilon=1.0,
            end_epsilon=1.0,
        )
        result = module.train(config)
        q_network = module.build_q_network(Discrete(2), 10, ())
        restore_latest(str(result.run_dir), q_network=q_network)
        metrics = read_metrics(result.run_dir)
        half = metrics["step"] > 2000
        q_value, true_return = (
            np.nanmean(metrics[name][half]) for name in ("train/q_value", "train/true_return")
        )
        return q_value, true_return, float(np.max(q_network(np.array([0]))))

    q_value, true_return, start = estimates(dqn)
    double_q_value, double_true_return, double_start = estimates(double_dqn)
    # Both act at random and alike, so what the visited states were worth is the same.
    assert true_return == double_true_return == pytest.approx(MEAN, abs=0.15)
    assert q_value > true_return + 0.1
    assert start > MEAN + 0.3
    assert abs(double_q_value - true_return) < 0.5 * (q_value - true_return)
    assert abs(double_start - MEAN) < start - MEAN


@pytest.mark.xla
def test_learns_values_that_are_known(tmp_path):
    """Only a time limit ends these episodes, and the state after it is another episode's first."""
    config = double_dqn.Config(
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
    double_dqn.train(config)
    q_network = build_q_network(VECTOR, 2, config.hidden_sizes)
    restore_latest(str(tmp_path), q_network=q_network)
    expected = np.transpose([[known_values.BEGINNING, known_values.VALUE]] * 2)
    np.testing.assert_allclose(q_network(np.eye(2, dtype=np.float32)), expected, atol=0.05)
