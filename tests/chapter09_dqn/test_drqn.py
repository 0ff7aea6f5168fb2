"""DRQN: its loss by hand, what it remembers and forgets, and what only memory can solve."""

import shutil
from dataclasses import replace

from chapter09_dqn import dqn, drqn
from chapter09_dqn.drqn import Config, QNetwork, build_train_step
from common.checkpoint import latest, restore_latest
from common.compiled import compiled
from common.environments import make_envs
from common.errors import UserError
from common.evaluation import episode_returns
from common.memory import note_actions
from common.metrics import read_metrics
from common.sequences import Sequences
from tests.processes import metrics

import keras
import known_values
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

pytestmark = pytest.mark.no_xla

VECTOR = Box(-1.0, 1.0, (2,), np.float32)
SMALL = Config(hidden_sizes=(3,), lstm_units=4, head_sizes=())
GAMMA, SCALE = 0.9, 0.5
RECALL = "common.environments.partial:RecallCue-v0"


def networks(space=VECTOR, actions=3, config=SMALL):
    keras.utils.set_random_seed(0)
    return [QNetwork(space, actions, config) for _ in range(2)]


def sequences(batch, steps, units=4, seed=0):
    """Two episodes in each stretch, the first of which ends in a slot without an action."""
    rng = np.random.default_rng(seed)
    begins, mask = np.zeros((batch, steps + 1)), np.ones((batch, steps))
    terminated = np.zeros((batch, steps))
    ends = rng.integers(1, steps - 1, batch)
    begins[np.arange(batch), ends + 1] = 1.0
    mask[np.arange(batch), ends] = 0.0
    terminated[: batch // 2, :][np.arange(batch // 2), ends[: batch // 2] - 1] = 1.0
    return Sequences(
        observation=rng.normal(size=(batch, steps + 1, 2)).astype(np.float32),
        action=rng.integers(0, 3, (batch, steps)).astype(np.int32),
        reward=rng.normal(size=(batch, steps)).astype(np.float32),
        terminated=terminated.astype(np.float32),
        begins=begins.astype(np.float32),
        mask=mask.astype(np.float32),
        memory=rng.uniform(-0.5, 0.5, (batch, 2 * units + 3)).astype(np.float32),
    )


# --- The loss, written down a second time in plain NumPy --------------------------------------


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def by_hand(network, observation, action, begins, memory):
    """Q of one sequence [T, A] and the memory before each step, one step after the other."""
    weights = [np.asarray(weight, np.float64) for weight in network.get_weights()]
    kernel, bias, cell_kernel, recurrent, cell_bias, head, head_bias = weights
    units = len(recurrent)
    h, c, last = np.split(memory.astype(np.float64), [units, 2 * units])
    values, before = [], []
    for t, x in enumerate(observation):
        if begins[t]:
            h, c, last = np.zeros(units), np.zeros(units), np.zeros(3)
        before.append(np.concatenate([h, c, last]))
        features = np.maximum(x @ kernel + bias, 0.0)
        gates = np.concatenate([features, last]) @ cell_kernel + h @ recurrent + cell_bias
        i, f, g, o = np.split(gates, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        values.append(np.concatenate([features, h]) @ head + head_bias)
        last = np.eye(3)[action[t]] if t < len(action) else np.zeros(3)
    return np.array(values), before


def loss_by_hand(q_network, target_network, batch, burn_in, starts=None):
    """Equations (2), (3) and (5), with all loops; `starts`: memory after the burn-in, if fixed."""
    total, steps, mean_q = 0.0, 0, 0.0
    for b in range(len(batch.mask)):
        arguments = batch.observation[b], batch.action[b], batch.begins[b], batch.memory[b]
        target_q, _ = by_hand(target_network, *arguments)
        if starts is None:
            q, _ = by_hand(q_network, *arguments)
        else:
            after, begins = batch.observation[b, burn_in:], batch.begins[b, burn_in:]
            q, _ = by_hand(q_network, after, batch.action[b, burn_in:], begins, starts[b])
            q = np.concatenate([np.zeros((burn_in, 3)), q])
        for t in range(burn_in, batch.mask.shape[1]):
            if batch.mask[b, t]:
                y = SCALE * batch.reward[b, t]
                if not batch.terminated[b, t]:
                    y += GAMMA * target_q[t + 1].max()
                total += (y - q[t, batch.action[b, t]]) ** 2
                mean_q += q[t, batch.action[b, t]]
                steps += 1
    return total / steps, mean_q / steps / SCALE


@pytest.mark.parametrize(("burn_in", "xla"), [(0, False), (2, False), (2, True)])
def test_one_step_equals_loops_in_numpy(burn_in, xla):
    q_network, target_network = networks()
    batch = sequences(4, 6)
    expected = loss_by_hand(q_network, target_network, batch, burn_in)
    before_burn_in = batch.observation, batch.action, batch.begins
    starts = [
        by_hand(q_network, *(array[b] for array in before_burn_in), batch.memory[b])[1][burn_in]
        for b in range(4)
    ]
    # The slope of the loss along each weight's direction; nothing flows into the burn-in, where
    # the memory is taken as given.
    old = [weights.copy() for weights in q_network.get_weights()]
    slopes = []
    for i, weights in enumerate(old):
        at = np.unravel_index(np.abs(weights).argmax(), weights.shape)
        sides = []
        for step in (1e-3, -1e-3):
            moved = [w.copy() for w in old]
            moved[i][at] += step
            q_network.set_weights(moved)
            sides.append(loss_by_hand(q_network, target_network, batch, burn_in, starts)[0])
        slopes.append((i, at, (sides[0] - sides[1]) / 2e-3))
    q_network.set_weights(old)

    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(q_network.trainable_variables)
    train_step = build_train_step(q_network, target_network, optimizer, GAMMA, burn_in, SCALE)
    before = target_network.get_weights()
    result = compiled(train_step, xla=xla)(batch)
    assert result["train/loss"] == pytest.approx(expected[0], rel=1e-5)
    assert result["train/q_value"] == pytest.approx(expected[1], rel=1e-5)
    for i, at, slope in slopes:
        assert old[i][at] - q_network.get_weights()[i][at] == pytest.approx(slope, abs=1e-5)
    assert max(abs(slope) for *_, slope in slopes) > 0.01
    for a, b in zip(before, target_network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_padded_length_does_not_change_the_loss():
    batch = sequences(4, 6)
    rng = np.random.default_rng(1)

    def pad(array, more, fill):
        return np.concatenate([array, np.broadcast_to(fill, (4, more, *array.shape[2:]))], axis=1)

    results = []
    for more in (0, 1, 9):
        padded = Sequences(
            observation=pad(batch.observation, more, 9.0 * rng.normal(size=(4, more, 2))),
            action=pad(batch.action, more, 2),
            reward=pad(batch.reward, more, 100.0),
            terminated=pad(batch.terminated, more, 0.0),
            begins=pad(batch.begins, more, 0.0),
            mask=pad(batch.mask, more, 0.0),
            memory=batch.memory,
        )
        padded = Sequences(
            *[array.astype(old.dtype) for array, old in zip(padded, batch, strict=True)]
        )
        q_network, target_network = networks()
        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build(q_network.trainable_variables)
        step = build_train_step(q_network, target_network, optimizer, GAMMA, 2, SCALE)
        result = compiled(step, xla=False)(padded)
        results.append([result["train/loss"], result["train/q_value"], *q_network.get_weights()])
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_batch_of_padding_teaches_nothing():
    batch = sequences(3, 5)
    batch = batch._replace(mask=np.zeros_like(batch.mask))
    q_network, target_network = networks()
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(q_network.trainable_variables)
    before = q_network.get_weights()
    step = build_train_step(q_network, target_network, optimizer, GAMMA, 1, SCALE)
    assert compiled(step, xla=False)(batch)["train/loss"] == 0.0
    for a, b in zip(before, q_network.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


# --- What is remembered, and what is forgotten ------------------------------------------------


def test_permuting_an_earlier_episode_leaves_the_values_unchanged():
    network, _ = networks()
    rng = np.random.default_rng(0)
    observation = rng.normal(size=(1, 10, 2)).astype(np.float32)
    begins = np.zeros((1, 10), np.float32)
    begins[0, 6] = 1.0
    memory = rng.normal(size=(1, 11)).astype(np.float32)
    action = rng.integers(0, 3, (1, 10)).astype(np.int32)
    permuted, permuted_action = observation.copy(), action.copy()
    for array in permuted, permuted_action:
        array[:, :6] = array[:, [4, 2, 5, 0, 1, 3]]

    values, after = network(observation, action, begins, memory)
    others, after_others = network(permuted, permuted_action, begins, -memory)
    np.testing.assert_array_equal(values[:, 6:], others[:, 6:])
    np.testing.assert_array_equal(after, after_others)
    assert np.abs(values[:, 5] - others[:, 5]).max() > 1e-3

    # Within one episode the order matters, and so does what was remembered.
    begins[:] = 0.0
    values, _ = network(observation, action, begins, memory)
    others, _ = network(permuted, action, begins, memory)
    assert np.abs(values[:, 6:] - others[:, 6:]).max() > 1e-4


def test_acting_step_by_step_gives_the_values_of_the_whole_sequence():
    network, _ = networks()
    batch = sequences(3, 7)
    action = np.pad(batch.action, ((0, 0), (0, 1)))
    values, after = network(batch.observation, action, batch.begins, batch.memory)
    act = drqn.recurrent_forward(network.encoder, network.cell, network.head)
    memory = batch.memory.copy()
    for t in range(8):
        memory[batch.begins[:, t] == 1.0] = 0.0
        q, memory = act(batch.observation[:, t], memory)
        note_actions(memory, action[:, t], 3)
        np.testing.assert_allclose(q, values[:, t], atol=1e-6)
    np.testing.assert_allclose(memory, after, atol=1e-6)


@pytest.mark.parametrize(
    "space",
    [VECTOR, Discrete(5), Box(0, 255, (1, 84, 84), np.uint8)],
    ids=["Box", "Discrete", "image"],
)
def test_one_value_per_action_and_step(space):
    network, _ = networks(space)
    observation = np.stack([[space.sample() for _ in range(3)] for _ in range(2)])
    action, begins = np.zeros((2, 3), np.int32), np.zeros((2, 3), np.float32)
    values, memory = network(observation, action, begins, np.zeros((2, 11), np.float32))
    assert tuple(values.shape) == (2, 3, 3)
    assert tuple(memory.shape) == (2, 11)


# --- Whole runs -------------------------------------------------------------------------------

QUICK = {
    "num_envs": 2,
    "total_timesteps": 3000,
    "learning_rate": 5e-3,
    "hidden_sizes": (16,),
    "lstm_units": 8,
    "head_sizes": (8,),
    "buffer_size": 1000,
    "batch_size": 8,
    "sequence_length": 4,
    "burn_in": 2,
    "learning_starts": 40,
    "train_frequency": 20,
    "gradient_steps": 20,
    "target_frequency": 20,
    "reward_scale": 0.1,
}


def learned(result, space, actions, config):
    network = QNetwork(space, actions, config)
    restore_latest(str(result.run_dir), q_network=network)
    return network


def test_a_time_limit_does_not_end_the_mdp(tmp_path):
    """Nor does it lead from an episode's end to the next one's beginning."""
    config = Config(
        env_id="known_values:Onward-v0", gamma=known_values.GAMMA, run_dir=str(tmp_path), **QUICK
    )
    network = learned(drqn.train(config), VECTOR, 2, config)
    episode = np.array([[[1, 0], *[[0, 1]] * 6]], np.float32)
    action, begins = np.zeros((1, 7), np.int32), np.eye(1, 7, dtype=np.float32)
    values, _ = network(episode, action, begins, np.zeros((1, 18), np.float32))
    values = np.asarray(values)[0] / config.reward_scale
    np.testing.assert_allclose(values[0], known_values.BEGINNING, atol=0.3)
    np.testing.assert_allclose(values[1:6], known_values.VALUE, atol=0.3)  # 10 with 2 a step
    assert read_metrics(tmp_path)["train/q_value"][-1] == pytest.approx(
        8.0, abs=0.3
    )  # 5/6 10 - 2/6


@pytest.mark.xla
def test_what_only_memory_can_solve(tmp_path):
    settings = {"env_id": RECALL, "total_timesteps": 12_000, "seed": 0}
    config = Config(run_dir=str(tmp_path / "drqn"), **settings)
    result = drqn.train(config)
    assert np.mean(episode_returns(result.policy, RECALL, 100, seed=0)) >= 0.9
    # By `python -m common.play`, from the checkpoint.
    policy = drqn.load_policy(replace(config, resume=str(tmp_path / "drqn")))
    assert np.mean(episode_returns(policy, RECALL, 100, seed=1)) >= 0.9

    result = dqn.train(dqn.Config(run_dir=str(tmp_path / "dqn"), **settings))
    # Chance: 0 with a standard deviation of 0.1.
    assert abs(np.mean(episode_returns(result.policy, RECALL, 100, seed=0))) < 0.4


def tiny(env_id, run_dir, **changes):
    settings = QUICK | {"total_timesteps": 640, "checkpoint_every": 320, "env_id": env_id}
    return Config(run_dir=str(run_dir), **settings | changes)


def test_a_resumed_run_with_frames_ends_like_the_uninterrupted_one(tmp_path):
    """That without frames is in tests/test_resume.py."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    env_id, few = "ALE/Pong-v5", {"total_timesteps": 80, "checkpoint_every": 40}
    config = tiny(env_id, whole, flicker=0.5, gradient_steps=1, **few)
    result = drqn.train(config)
    shutil.copytree(whole, cut)
    latest(cut).unlink()
    again = drqn.train(replace(config, run_dir="", resume=str(cut)))
    assert metrics(whole) == metrics(cut)
    with np.load(latest(whole)) as a, np.load(latest(cut)) as b:
        assert set(a.files) == set(b.files) >= {"memory/array", "replay/memory_1"}
        for name in a.files:
            if name != "meta":
                np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    envs = make_envs(env_id, 2, **drqn.env_kwargs(config))
    state, _ = envs.reset(seed=0)
    np.testing.assert_array_equal(result.policy(state), again.policy(state))
    envs.close()


@pytest.mark.parametrize("zero_start_state", [False, True])
def test_what_is_stored_is_the_actors_memory(tmp_path, zero_start_state):
    config = tiny(Config.env_id, tmp_path, zero_start_state=zero_start_state, learning_starts=640)
    result = drqn.train(config)
    network = learned(result, Box(-1, 1, (2,), np.float32), 2, config)  # as it was initialised
    with np.load(latest(tmp_path)) as archive:
        stored = {
            name: archive[f"replay/{name}_0"]
            for name in "observation action begins memory mask".split()
        }
    if zero_start_state:
        assert (stored["memory"] == 0.0).all()
        return
    assert stored["begins"].sum() > 5
    memory = np.zeros(18, np.float32)
    for observation, action, begins, remembered, mask in zip(*stored.values(), strict=True):
        if begins:
            memory = np.zeros(18, np.float32)
        if mask:
            np.testing.assert_allclose(remembered, memory, atol=1e-5)
        slot = (array[None, None] for array in (observation, action, begins))
        _, after = network(*slot, memory[None])
        memory = np.asarray(after)[0]


def test_flags_that_do_not_fit_together(tmp_path):
    for changes, message in [
        ({"batch_size": 65, "buffer_size": 64}, "--batch-size 65: larger than --buffer-size 64"),
        ({"buffer_size": 100}, "--buffer-size 100: too small for sequences of"),
        ({"train_frequency": 7}, "--train-frequency 7: less than --num-envs 8"),
        ({"flicker": 0.5}, "--flicker 0.5: only single frames of Atari games flicker"),
        ({"env_id": "ALE/Pong-v5", "flicker": 1.5}, "--flicker 1.5: must be between 0 and 1"),
        ({"burn_in": -1}, "--burn-in -1: must be 0 or more"),
        ({"lstm_units": 0}, "--lstm-units 0: must be at least 1"),
        ({"reward_scale": 0.0}, "--reward-scale 0.0: must be greater than 0"),
        ({"env_id": "Pendulum-v1"}, "--env-id Pendulum-v1: actions are continuous"),
    ]:
        with pytest.raises(UserError, match=message):
            drqn.train(Config(run_dir=str(tmp_path / "run"), **changes))
        assert not (tmp_path / "run").exists()
