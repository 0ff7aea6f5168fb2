"""Replay of sequences: exactly what happened, in order, and every transition equally often."""

import re

from common import checkpoint
from common.environments import make_envs, new_episodes, successor
from common.errors import UserError
from common.recurrent import CompiledRecurrent, RecurrentTwin, recurrent_forward
from common.sequences import SequenceReplay, make_sequence_replay

import keras
import numpy as np
import pytest

MEMORY = 3


def play(envs, replay, steps, seed=0):
    """Random actions. Rewards are replaced by a number that tells the transition: 1 + t N + i.

    Returns:
        What happened, one dictionary by number.
    """
    envs.action_space.seed(seed)
    n = envs.num_envs
    state, _ = envs.reset(seed=seed)
    begins, happened = np.ones(n, bool), {}
    for t in range(steps):
        action = envs.action_space.sample()
        next_state, _, terminated, _, info = envs.step(action)
        final_state = successor(next_state, info)
        number = 1.0 + np.arange(t * n, (t + 1) * n)
        memory = number[:, None] + np.arange(MEMORY) / 10
        replay.add(state, action, number, final_state, terminated, begins, memory)
        for i in range(n):
            happened[int(number[i])] = {
                "state": state[i].copy(),
                "action": action[i],
                "next_state": final_state[i].copy(),
                "terminated": float(terminated[i]),
                "begins": float(begins[i]),
                "memory": memory[i],
                "next": int(number[i]) + n,
                "over": bool(new_episodes(info, n)[i]),
            }
        state, begins = next_state, new_episodes(info, n)
    return happened


def assert_as_it_happened(batch, happened):
    """Walks along each sequence; returns the numbers of all transitions met."""
    numbers = []
    for b in range(len(batch.mask)):
        previous, last = None, -1
        acted = np.flatnonzero(batch.mask[b])
        if len(acted) and acted[0] > 0:  # it begins at an episode's end
            assert acted[0] == batch.begins[b, 1] == 1
        for t in np.flatnonzero(batch.mask[b]):
            number = int(batch.reward[b, t])
            fact = happened[number]
            np.testing.assert_array_equal(batch.observation[b, t], fact["state"])
            np.testing.assert_array_equal(batch.observation[b, t + 1], fact["next_state"])
            assert batch.action[b, t] == fact["action"]
            assert batch.terminated[b, t] == fact["terminated"]
            assert batch.begins[b, t] == fact["begins"]
            if t == 0:
                np.testing.assert_allclose(batch.memory[b], fact["memory"], rtol=1e-6)
            if previous is not None:
                assert number == happened[previous]["next"]
                # An episode's last observation stands between two episodes, nowhere else.
                assert t - last == (2 if happened[previous]["over"] else 1)
            previous, last = number, t
            numbers.append(number)
    return numbers


@pytest.mark.parametrize("steps", [3, 40, 700])  # shorter than a sequence, half full, wrapped
def test_sequences_are_what_happened(steps):
    envs = make_envs("CartPole-v1", 3)
    envs.cut_every = 3 * 33  # truncation, too
    replay = SequenceReplay(envs, 3 * 120, 8, MEMORY, seed=0)
    happened = play(envs, replay, steps)
    batch = replay.sample(500)
    assert batch.observation.shape == (500, 9, 4)
    assert batch.begins.shape == (500, 9)
    assert batch.action.shape == batch.reward.shape == batch.mask.shape == (500, 8)
    assert batch.action.dtype == np.int32
    assert batch.observation.dtype == batch.reward.dtype == batch.memory.dtype == np.float32
    numbers = assert_as_it_happened(batch, happened)
    if steps == 700:
        assert min(numbers) > 3 * (700 - 120)
        assert len(set(numbers)) > 3 * 95
        assert batch.begins.sum() > 50
    else:
        assert set(numbers) == set(happened)
    envs.close()


def test_padding_is_empty_and_masked():
    envs = make_envs("CartPole-v1", 2)
    replay = SequenceReplay(envs, 2 * 50, 20, 0, seed=0)
    play(envs, replay, 5)
    batch = replay.sample(2, 50)
    assert batch.mask.shape == (2, 50, 20)
    # Five transitions need six observations; the sixth was never acted on.
    assert set(batch.mask.sum(axis=2).ravel()) == {1.0, 2.0, 3.0, 4.0, 5.0}
    for k, b in np.ndindex(2, 50):
        steps = int(batch.mask[k, b].sum())
        assert (batch.mask[k, b, :steps] == 1.0).all()
        assert (batch.observation[k, b, steps] != 0.0).any()
        assert (batch.observation[k, b, steps + 1 :] == 0.0).all()
        assert (batch.begins[k, b, 1:] == 0.0).all()
    assert batch.memory.shape == (2, 50, 0)
    envs.close()


def test_every_transition_is_drawn_equally_often():
    envs = make_envs("CartPole-v1", 3)
    length = 5
    replay = SequenceReplay(envs, 3 * 60, length, 0, seed=0)
    happened = play(envs, replay, 400)
    batch = replay.sample(60_000)
    numbers = batch.reward[:, -1][batch.mask[:, -1] == 1.0].astype(int)  # at the last place
    values, counts = np.unique(numbers, return_counts=True)
    # At the last place: all but the oldest T slots. Slots are as many in every environment.
    slots = 3 * 59
    expected = 60_000 / slots
    chi_squared = np.sum((counts - expected) ** 2 / expected)
    assert chi_squared < len(counts) + 5 * np.sqrt(2 * len(counts))
    assert len(values) > 3 * 45
    assert max(values) == max(happened)
    envs.close()


def test_images_are_stored_once_and_come_back():
    envs = make_envs("ALE/Pong-v5", 2, stack_num=1)
    replay = SequenceReplay(envs, 2 * 40, 6, MEMORY, seed=0)
    happened = play(envs, replay, 100)
    assert replay.observation.shape == (2, 40, 1, 84, 84)
    batch = replay.sample(50)
    assert batch.observation.shape == (50, 7, 1, 84, 84)
    assert batch.observation.dtype == np.uint8
    assert len(set(assert_as_it_happened(batch, happened))) > 40
    envs.close()


def test_a_lost_life_ends_no_sequence():
    """`terminated` without a new episode: the next observation follows as it always does."""
    envs = make_envs("CartPole-v1", 1)
    replay = SequenceReplay(envs, 20, 4, 0, seed=0)
    observations = np.arange(1, 7, dtype=np.float32)[:, None, None] * np.ones((6, 1, 4), np.float32)
    for t in range(5):
        lost = np.array([t == 2])
        replay.add(
            observations[t],
            np.array([0]),
            np.ones(1),
            observations[t + 1],
            lost,
            np.array([t == 0]),
        )
    batch = replay.sample(200)
    whole = np.flatnonzero(batch.mask.sum(axis=1) == 4)
    assert len(whole)
    for b in whole:
        first = batch.observation[b, 0, 0]
        np.testing.assert_array_equal(batch.observation[b, :, 0], first + np.arange(5))
        np.testing.assert_array_equal(batch.terminated[b], np.arange(first, first + 4) == 3)
        assert batch.begins[b, 1:].sum() == 0
    envs.close()


@pytest.mark.parametrize("steps", [10, 150])
def test_a_checkpoint_goes_on_where_the_buffer_was(steps, tmp_path):
    envs = make_envs("CartPole-v1", 2)
    replay, other = (SequenceReplay(envs, 2 * 60, 4, MEMORY, seed) for seed in (0, 1))
    play(envs, replay, steps)
    path = checkpoint.save(tmp_path, 1, {"replay": replay}, {})
    checkpoint.Checkpoint(path).restore({"replay": other})
    for buffer in (replay, other):
        play(envs, buffer, 20, seed=2)
    assert len(replay) == len(other)
    for a, b in zip(replay.sample(3, 9), other.sample(3, 9), strict=True):
        np.testing.assert_array_equal(a, b)
    envs.close()


def test_it_says_what_it_needs_and_refuses_what_does_not_fit(capsys):
    envs = make_envs("ALE/Pong-v5", 4, stack_num=1)
    needed = SequenceReplay.bytes_needed(envs, 1000, 1024)
    assert needed == 1000 * (84 * 84 + 4 + 4 * 4 + 4 * 1024)
    make_sequence_replay(envs, 20_000, 10, 1024, seed=0)
    assert capsys.readouterr().err == "replay buffer: 20,000 observations, 0.22 GB\n"
    with pytest.raises(UserError, match=r"^--buffer-size 1000000000: needs 11172.0 GB of memory"):
        make_sequence_replay(envs, 10**9, 10, 1024, seed=0)
    message = "--buffer-size 47: too small for sequences of 10 steps in each of 4 environments"
    with pytest.raises(UserError, match=f"^{re.escape(message)}; choose at least 48$"):
        make_sequence_replay(envs, 47, 10, 0, seed=0)
    assert make_sequence_replay(envs, 48, 10, 0, seed=0).ring == 12
    envs.close()


# --- Acting with an LSTM ----------------------------------------------------------------------


EXTRA = 2  # what the LSTM is shown beside the features


def network(sizes, units=5, actions=3):
    inputs = keras.Input((2,))
    features = inputs
    for size in sizes:
        features = keras.layers.Dense(size, "relu")(features)
    encoder = keras.Model(inputs, features)
    cell = keras.layers.LSTMCell(units, bias_initializer="random_normal")
    cell.build((None, features.shape[-1] + EXTRA))
    both = keras.Input((features.shape[-1] + units,))
    return encoder, cell, keras.Model(both, keras.layers.Dense(actions)(both))


def test_numpy_twin_equals_keras():
    keras.utils.set_random_seed(0)
    parts = network((7, 4))
    encoder, cell, head = parts
    twin = recurrent_forward(*parts)
    assert isinstance(twin, RecurrentTwin)
    rng = np.random.default_rng(0)
    for scale in (0.1, 1.0, 30.0):  # up to saturated gates
        memory, states = np.zeros((6, 10 + EXTRA), np.float32), np.zeros((6, 10), np.float32)
        for _ in range(20):
            observation = scale * rng.normal(size=(6, 2)).astype(np.float32)
            extra = scale * rng.normal(size=(6, EXTRA)).astype(np.float32)
            memory[:, 10:] = extra
            output, memory = twin(observation, memory)
            inputs = np.concatenate([encoder(observation), extra], axis=1)
            _, after = cell(inputs, [states[:, :5], states[:, 5:]])
            states = np.concatenate(after, axis=1)
            np.testing.assert_allclose(memory[:, :10], states, atol=2e-6, rtol=1e-5)
            assert (memory[:, 10:] == 0.0).all()
            both = np.concatenate([encoder(observation), after[0]], axis=1)
            np.testing.assert_allclose(output, head(both), atol=2e-6 * scale, rtol=1e-5)


def test_new_weights_reach_the_twin_and_the_compiled_call():
    keras.utils.set_random_seed(0)
    old, new = network((4,)), network((4,))
    observation, memory = np.ones((3, 2), np.float32), np.full((3, 10 + EXTRA), 0.3, np.float32)
    expected = recurrent_forward(*new)(observation, memory)
    twin, call = recurrent_forward(*old), CompiledRecurrent(*old)
    for a, b in zip(twin(observation, memory), call(observation, memory), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert call.weights == []
    for part, other in zip(old, new, strict=True):
        part.set_weights(other.get_weights())
    twin.load(np.concatenate([np.ravel(np.asarray(weight)) for weight in twin.weights]))
    for results in (twin(observation, memory), call(observation, memory)):
        for a, b in zip(results, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_without_dense_layers_the_call_is_compiled():
    assert isinstance(recurrent_forward(*network(())), CompiledRecurrent)
