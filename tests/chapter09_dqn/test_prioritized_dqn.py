"""DQN with prioritized replay: what the weights do to a step, and which errors go back where."""

from chapter09_dqn import prioritized_dqn
from chapter09_dqn.prioritized_dqn import Config, build_q_network, build_train_step
from common.checkpoint import latest, restore_latest
from common.compiled import compiled
from common.errors import UserError
from common.metrics import read_metrics
from common.prioritized import PrioritizedReplay
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
#   row  state    a  Q(s, a)            r   s'        max Q'(s')            y                 w
#   0    [1, 0]   1  2                  1   [1, 1]    max(4, 2, 3) = 4      1 (terminated)    0.5
#   1    [0, 1]   2  -1 + 1 = 0         2   [0, 2]    max(2, 3, 4) = 4      2 + 3.6 = 5.6     0.25
#   2    [2, -1]  0  2 + 0.5 = 2.5     -1   [-1, 0]   max(-3, 1, -1) = 1    -1 + 0.9 = -0.1   1
BATCH = Batch(
    state=np.array([[1, 0], [0, 1], [2, -1]], np.float32),
    action=np.array([1, 2, 0], np.int32),
    reward=np.array([1, 2, -1], np.float32),
    next_state=np.array([[1, 1], [0, 2], [-1, 0]], np.float32),
    terminated=np.array([1, 0, 0], np.float32),
)
WEIGHT = np.array([0.5, 0.25, 1.0], np.float32)
TD_ERROR = np.array([-1.0, 5.6, -2.6])
LOSS = (0.5 * 1.0**2 + 0.25 * 5.6**2 + 1.0 * 2.6**2) / 3


@pytest.mark.parametrize("xla", [True, False])
def test_one_weighted_step_worked_out_on_paper(xla):
    q_network, target_network = (build_q_network(VECTOR, 3, ()) for _ in range(2))
    q_network.set_weights(Q_WEIGHTS)
    target_network.set_weights(TARGET_WEIGHTS)
    optimizer = keras.optimizers.SGD(0.3)
    optimizer.build(q_network.trainable_variables)
    train_step = build_train_step(q_network, target_network, optimizer, GAMMA)
    batches = Batch(*[array[None] for array in BATCH])
    metrics, td_error = compiled(train_step, loop=True, xla=xla)(batches, WEIGHT[None])
    assert metrics["train/loss"] == pytest.approx(LOSS, rel=1e-6)
    assert metrics["train/q_value"] == pytest.approx(1.5, rel=1e-6)
    assert td_error.shape == (1, 3)
    np.testing.assert_allclose(td_error[0], TD_ERROR, rtol=1e-6)  # not weighted: a priority

    kernel, bias = (weights.copy() for weights in Q_WEIGHTS)
    for row, action in enumerate(BATCH.action):
        slope = -2 * WEIGHT[row] * TD_ERROR[row] / 3
        kernel[:, action] -= 0.3 * slope * BATCH.state[row]
        bias[action] -= 0.3 * slope
    for weights, expected in zip(q_network.get_weights(), (kernel, bias), strict=True):
        np.testing.assert_allclose(weights, expected, rtol=1e-6, atol=1e-6)
    for weights, expected in zip(target_network.get_weights(), TARGET_WEIGHTS, strict=True):
        np.testing.assert_array_equal(weights, expected)


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


class Watched(PrioritizedReplay):
    """Remembers every β that is asked for; may take the weights away."""

    betas: list
    weightless = False

    def sample(self, *shape, beta):
        self.betas.append(beta)
        batch, weight, index = super().sample(*shape, beta=beta)
        return batch, weight * (0.0 if self.weightless else 1.0), index


def test_errors_become_the_priorities_of_the_transitions_they_belong_to(tmp_path):
    """With steps too small to change anything, every error can be computed again at the end."""
    settings = QUICK | {"total_timesteps": 900, "num_envs": 3, "buffer_size": 400}
    config = Config(
        run_dir=str(tmp_path),
        **settings | {"learning_rate": 1e-12},
        env_id="CartPole-v1",
        start_beta=0.3,
        seed=5,
    )
    result = prioritized_dqn.train(config)
    q_network = build_q_network(Box(-1, 1, (4,), np.float32), 2, config.hidden_sizes)
    restore_latest(str(result.run_dir), q_network=q_network)
    with np.load(latest(tmp_path)) as archive:
        stored = {key: archive[f"replay/{key}"] for key in (*Batch._fields, "surprise", "leaves")}
    next_q = np.asarray(q_network(stored["next_state"])).max(axis=1)
    td_target = stored["reward"] + config.gamma * (1.0 - stored["terminated"]) * next_q
    q_value = np.asarray(q_network(stored["state"]))[np.arange(400), stored["action"]]
    error = np.abs(td_target - q_value) + 1e-6
    assert error.std() > 0.05  # one could not be taken for another
    right = np.isclose(stored["surprise"], error, rtol=1e-4)
    assert right.sum() >= 350
    # What was not drawn yet still has the largest error of its time.
    assert (stored["surprise"][~right] >= np.sort(error)[-5]).all()
    alpha = config.prioritization_exponent
    np.testing.assert_allclose(stored["leaves"], stored["surprise"] ** alpha, rtol=1e-12)


def test_beta_rises_to_1_over_the_run(tmp_path, monkeypatch):
    Watched.betas, Watched.weightless = [], False
    monkeypatch.setattr(prioritized_dqn, "PrioritizedReplay", Watched)
    settings = QUICK | {"total_timesteps": 1000, "num_envs": 5, "gradient_steps": 1}
    settings |= {"target_frequency": 2000}
    config = Config(run_dir=str(tmp_path), **settings, start_beta=0.25, prioritization="rank")
    prioritized_dqn.train(config)
    metrics = read_metrics(tmp_path)
    rows = ~np.isnan(metrics["train/beta"])
    began = metrics["step"][rows] - 5  # a row at each multiple of 5 steps, tells of one training
    assert began[-1] == 995
    np.testing.assert_allclose(metrics["train/beta"][rows], 0.25 + 0.75 * began / 1000, atol=1e-6)
    np.testing.assert_allclose(Watched.betas, metrics["train/beta"][rows], atol=1e-6)
    with np.load(latest(tmp_path)) as archive:  # never copied: the target network stood still
        weights = [archive[f"{name}_network/000"] for name in ("q", "target")]
    assert not np.array_equal(*weights)


def test_without_weight_nothing_is_learned(tmp_path, monkeypatch):
    Watched.betas, Watched.weightless = [], True
    monkeypatch.setattr(prioritized_dqn, "PrioritizedReplay", Watched)
    config = Config(run_dir=str(tmp_path), **QUICK | {"total_timesteps": 400}, seed=3)
    prioritized_dqn.train(config)
    keras.utils.set_random_seed(3)
    initial = build_q_network(Box(-1, 1, (4,), np.float32), 2, config.hidden_sizes)
    q_network = build_q_network(Box(-1, 1, (4,), np.float32), 2, config.hidden_sizes)
    restore_latest(str(tmp_path), q_network=q_network)
    for weights, same in zip(q_network.get_weights(), initial.get_weights(), strict=True):
        np.testing.assert_array_equal(weights, same)
    assert (~np.isnan(read_metrics(tmp_path)["train/loss"])).sum() >= 10


@pytest.mark.xla
@pytest.mark.parametrize(
    ("env_id", "prioritization"), [("Onward-v0", "proportional"), ("Chain-v0", "rank")]
)
def test_learns_values_that_are_known(tmp_path, env_id, prioritization):
    onward = env_id == "Onward-v0"  # only a time limit ends it
    config = Config(
        env_id=f"known_values:{env_id}",
        gamma=known_values.GAMMA if onward else known_values.CHAIN_GAMMA,
        run_dir=str(tmp_path),
        prioritization=prioritization,
        start_epsilon=1.0,
        end_epsilon=1.0,
        **QUICK,
    )
    prioritized_dqn.train(config)
    space, states = (VECTOR, np.eye(2, dtype=np.float32)) if onward else (Discrete(3), np.arange(3))
    q_network = build_q_network(space, 2, config.hidden_sizes)
    restore_latest(str(tmp_path), q_network=q_network)
    expected = known_values.CHAIN_Q
    if onward:
        expected = np.transpose([[known_values.BEGINNING, known_values.VALUE]] * 2)
    np.testing.assert_allclose(q_network(states), expected, atol=0.05 if onward else 0.02)


def test_flags_that_make_no_sense(tmp_path):
    for changes, message in [
        ({"prioritization": "ranks"}, "--prioritization ranks: must be one of proportional, rank"),
        ({"prioritization_exponent": 1.5}, "--prioritization-exponent 1.5: must be between 0 and"),
        ({"start_beta": -0.1}, "--start-beta -0.1: must be between 0 and 1"),
        ({"batch_size": 65, "buffer_size": 64}, "--batch-size 65: larger than --buffer-size 64"),
    ]:
        with pytest.raises(UserError, match=message):
            prioritized_dqn.train(Config(run_dir=str(tmp_path / "run"), **changes))
        assert not (tmp_path / "run").exists()
