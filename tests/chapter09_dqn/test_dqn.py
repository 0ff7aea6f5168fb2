"""DQN: its targets by hand, its pieces one by one, and what it learns where Q* is known."""

from chapter09_dqn import dqn
from chapter09_dqn.dqn import Config, build_q_network, build_train_step, epsilon_greedy
from common.checkpoint import latest, restore_latest
from common.compiled import compiled
from common.errors import UserError
from common.evaluation import episode_returns
from common.metrics import read_metrics
from common.networks import copy_weights
from common.replay import Batch

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
#   row  state    a  Q(s, a)            r   s'        max Q'(s')               y
#   0    [1, 0]   1  2                  1   [1, 1]    max(4, 2, 3) = 4         1 (terminated)
#   1    [0, 1]   2  -1 + 1 = 0         2   [0, 2]    max(2, 3, 4) = 4         2 + 0.9 * 4 = 5.6
#   2    [2, -1]  0  2 + 0.5 = 2.5     -1   [-1, 0]   max(-3, 1, -1) = 1       -1 + 0.9 = -0.1
# Row 1 was truncated by a time limit: the replay buffer does not even know.
BATCH = Batch(
    state=np.array([[1, 0], [0, 1], [2, -1]], np.float32),
    action=np.array([1, 2, 0], np.int32),
    reward=np.array([1, 2, -1], np.float32),
    next_state=np.array([[1, 1], [0, 2], [-1, 0]], np.float32),
    terminated=np.array([1, 0, 0], np.float32),
)
Q_VALUE = np.array([2.0, 0.0, 2.5])
TD_TARGET = np.array([1.0, 5.6, -0.1])
LOSS = (1.0**2 + 5.6**2 + 2.6**2) / 3


def linear_networks():
    networks = [build_q_network(VECTOR, 3, ()) for _ in range(2)]
    for network, weights in zip(networks, (Q_WEIGHTS, TARGET_WEIGHTS), strict=True):
        network.set_weights(weights)
    return networks


def stack(*batches: Batch) -> Batch:
    return Batch(*[np.stack(arrays) for arrays in zip(*batches, strict=True)])


@pytest.mark.parametrize("xla", [True, False])
def test_one_step_on_a_batch_worked_out_on_paper(xla):
    q_network, target_network = linear_networks()
    optimizer = keras.optimizers.SGD(0.3)
    optimizer.build(q_network.trainable_variables)
    train_step = build_train_step(q_network, target_network, optimizer, GAMMA)
    metrics = compiled(train_step, loop=True, xla=xla)(stack(BATCH))
    assert metrics["train/loss"] == pytest.approx(LOSS, rel=1e-6)
    assert metrics["train/q_value"] == pytest.approx(1.5, rel=1e-6)

    # dL/dQ(s, a) = 2 (Q - y) / B; it reaches the weights of the action taken, and no others.
    kernel, bias = (weights.copy() for weights in Q_WEIGHTS)
    for row, action in enumerate(BATCH.action):
        slope = 2 * (Q_VALUE[row] - TD_TARGET[row]) / 3
        kernel[:, action] -= 0.3 * slope * BATCH.state[row]
        bias[action] -= 0.3 * slope
    for weights, expected in zip(q_network.get_weights(), (kernel, bias), strict=True):
        np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-6)
    for weights, expected in zip(target_network.get_weights(), TARGET_WEIGHTS, strict=True):
        np.testing.assert_array_equal(weights, expected)


def test_several_steps_in_one_call_equal_several_calls():
    other = BATCH._replace(reward=np.array([0, -3, 2], np.float32), state=BATCH.state[::-1])
    networks = [linear_networks() for _ in range(2)]
    results = []
    for (q_network, target_network), batches in zip(
        networks,
        ([stack(BATCH, other, BATCH)], [stack(b) for b in (BATCH, other, BATCH)]),
        strict=True,
    ):
        optimizer = keras.optimizers.Adam(0.01, global_clipnorm=10.0)
        optimizer.build(q_network.trainable_variables)
        step = build_train_step(q_network, target_network, optimizer, GAMMA)
        train_steps = compiled(step, loop=True)
        results.append(np.mean([train_steps(batch)["train/loss"] for batch in batches]))
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert results[0] != pytest.approx(LOSS, rel=1e-3)
    for a, b in zip(networks[0][0].get_weights(), networks[1][0].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize(
    "space",
    [VECTOR, Discrete(5), Box(0, 255, (4, 84, 84), np.uint8)],
    ids=["Box", "Discrete", "image"],
)
def test_one_value_per_action(space):
    q_network = build_q_network(space, 3, (7,))
    states = np.stack([space.sample() for _ in range(4)])
    assert tuple(q_network(states).shape) == (4, 3)


# --- Exploration ------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_frequencies(epsilon):
    draws, actions = 100_000, 4
    q_values = np.tile([0.1, 0.7, 0.2, -1.0], (draws, 1))
    chosen = epsilon_greedy(q_values, epsilon, np.random.default_rng(0))
    expected = np.full(actions, epsilon / actions)
    expected[1] += 1.0 - epsilon
    counts = np.bincount(chosen, minlength=actions)
    assert (counts[expected == 0.0] == 0).all()
    some = expected > 0.0
    chi_squared = np.sum((counts[some] - draws * expected[some]) ** 2 / (draws * expected[some]))
    assert chi_squared < 21.1  # 3 degrees of freedom, p = 0.0001


def test_epsilon_greedy_decides_for_each_environment():
    q_values = np.random.default_rng(0).normal(size=(1000, 3))
    np.testing.assert_array_equal(
        epsilon_greedy(q_values, 0.0, np.random.default_rng(1)), q_values.argmax(axis=1)
    )
    chosen = epsilon_greedy(q_values, 0.5, np.random.default_rng(1))
    assert np.mean(chosen != q_values.argmax(axis=1)) == pytest.approx(1 / 3, abs=0.06)


# --- Whole runs where the answer is known -----------------------------------------------------

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


def learned(result, space, num_actions, hidden_sizes, name="q_network"):
    network = build_q_network(space, num_actions, hidden_sizes)
    restore_latest(str(result.run_dir), **{name: network})
    return network


@pytest.mark.parametrize("env_id", ["Constant-v0", "Onward-v0"])
def test_a_time_limit_does_not_end_the_mdp(tmp_path, env_id):
    config = Config(
        env_id=f"known_values:{env_id}", gamma=known_values.GAMMA, run_dir=str(tmp_path), **QUICK
    )
    result = dqn.train(config)
    q_network = learned(result, VECTOR, 2, config.hidden_sizes)
    values = np.asarray(q_network(np.eye(2, dtype=np.float32)))
    np.testing.assert_allclose(values[1], known_values.VALUE, atol=0.05)  # 10 with 2 a step
    if env_id == "Onward-v0":
        # Had the next episode's beginning been taken for the successor, both would be less.
        np.testing.assert_allclose(values[0], known_values.BEGINNING, atol=0.05)
    else:
        q_value = read_metrics(tmp_path)["train/q_value"]
        assert q_value[-1] == pytest.approx(known_values.VALUE, abs=0.05)


def test_learns_the_optimal_values_of_a_chain(tmp_path):
    config = Config(
        env_id="known_values:Chain-v0",
        gamma=known_values.CHAIN_GAMMA,
        run_dir=str(tmp_path),
        **QUICK | {"start_epsilon": 1.0, "end_epsilon": 1.0},
    )
    result = dqn.train(config)
    q_network = learned(result, Discrete(3), 2, config.hidden_sizes)
    np.testing.assert_allclose(q_network(np.arange(3)), known_values.CHAIN_Q, atol=0.02)
    np.testing.assert_array_equal(result.policy(np.arange(3)), [1, 1, 1])
    assert episode_returns(result.policy, config.env_id, 3, seed=0) == [1.0, 1.0, 1.0]


def test_schedule_of_training_copies_and_exploration(tmp_path):
    def run(name, **changes):
        settings = QUICK | {"total_timesteps": 1000, "num_envs": 5, "exploration_fraction": 0.5}
        config = Config(
            env_id="CartPole-v1", run_dir=str(tmp_path / name), **settings | changes, seed=3
        )
        return dqn.train(config)

    space, sizes = Box(-1, 1, (4,), np.float32), QUICK["hidden_sizes"]
    keras.utils.set_random_seed(3)
    initial = build_q_network(space, 2, sizes).get_weights()

    result = run("never", target_frequency=2000, learning_starts=400)
    target = learned(result, space, 2, sizes, "target_network").get_weights()
    trained = learned(result, space, 2, sizes).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(initial, target, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(initial, trained, strict=True))

    metrics = read_metrics(result.run_dir)
    rows = ~np.isnan(metrics["train/loss"])
    # A row at each multiple of 5 steps, a training at each multiple of 20 from 400 on: the first
    # pass that may train begins at step 415 and ends at 420.
    np.testing.assert_array_equal(metrics["step"][rows], np.arange(420, 1001, 20))
    epsilon = metrics["train/epsilon"][rows]
    began = metrics["step"][rows] - 5
    expected = np.maximum(0.04, 1.0 - 0.96 * began / 500)
    np.testing.assert_allclose(epsilon, expected, atol=1e-6)

    result = run("every", target_frequency=100)  # the last copy follows the last training
    target = learned(result, space, 2, sizes, "target_network").get_weights()
    trained = learned(result, space, 2, sizes).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(target, trained, strict=True))

    result = run("nothing", learning_starts=1000)
    trained = learned(result, space, 2, sizes).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(initial, trained, strict=True))
    assert "train/loss" not in read_metrics(result.run_dir)


def test_copied_weights_are_copies():
    q_network, target_network = linear_networks()
    copy_weights(q_network, target_network)
    q_network.set_weights(TARGET_WEIGHTS)
    np.testing.assert_array_equal(target_network.get_weights()[0], Q_WEIGHTS[0])


def test_flags_that_do_not_fit_together(tmp_path):
    for changes, message in [
        ({"batch_size": 65, "buffer_size": 64}, "--batch-size 65: larger than --buffer-size 64"),
        ({"train_frequency": 7}, "--train-frequency 7: less than --num-envs 8"),
        ({"env_id": "Pendulum-v1"}, "--env-id Pendulum-v1: actions are continuous"),
    ]:
        with pytest.raises(UserError, match=message):
            dqn.train(Config(run_dir=str(tmp_path / "run"), **changes))
        assert not (tmp_path / "run").exists()


@pytest.mark.xla
def test_learns_cartpole(tmp_path):
    result = dqn.train(Config(run_dir=str(tmp_path)))  # all of seeds 0 to 7 end above 230
    assert np.mean(episode_returns(result.policy, "CartPole-v1", 50, seed=0)) >= 150  # random: 22


@pytest.mark.parametrize("anneal", [True, False])
def test_the_learning_rate_ends_at_zero(tmp_path, monkeypatch, anneal):
    optimizers = []

    class Adam(keras.optimizers.Adam):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            optimizers.append(self)

    monkeypatch.setattr(dqn.keras.optimizers, "Adam", Adam)
    flags = {"learning_rate": 1e-3, "train_frequency": 256, "gradient_steps": 2}
    config = Config(
        total_timesteps=3_000, learning_starts=1_000, anneal=anneal, run_dir=str(tmp_path), **flags
    )
    dqn.train(config)
    assert int(optimizers[0].iterations) == 16  # after steps 1024, 1280, ..., 2816
    end = 0.0 if anneal else 1e-3
    assert float(optimizers[0].learning_rate) == pytest.approx(end, abs=1e-9)


def test_atari_rewards_are_clipped_for_the_learner_only(tmp_path):
    config = Config(
        env_id="ALE/MsPacman-v5",  # ten points a pellet
        num_envs=2,
        total_timesteps=600,
        buffer_size=600,
        learning_starts=600,
        run_dir=str(tmp_path),
    )
    dqn.train(config)
    with np.load(latest(tmp_path)) as archive:
        rewards = archive["replay/reward"]
    assert set(np.unique(rewards)) == {0.0, 1.0}
