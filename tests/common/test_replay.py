"""Replay: every transition drawn equally often, and exactly as it happened."""

import re

from common import checkpoint
from common.environments import make_envs, successor
from common.errors import UserError
from common.replay import FrameReplayBuffer, ReplayBuffer, make_replay

import numpy as np
import pytest


def play(envs, replay, steps, seed=0, on_add=None):
    """Random actions. Rewards are replaced by a number that tells the transition: t N + i.

    Returns:
        What happened, as `add` got it: one tuple of copies for each number.
    """
    envs.action_space.seed(seed)
    n = envs.num_envs
    state, _ = envs.reset(seed=seed)
    happened = []
    for t in range(steps):
        action = envs.action_space.sample()
        next_state, _, terminated, truncated, info = envs.step(action)
        final_state = successor(next_state, info)
        number = np.arange(t * n, (t + 1) * n, dtype=np.float64)
        for i in range(n):
            arrays = (state[i], action[i], number[i], final_state[i], terminated[i])
            happened.append(tuple(np.array(array) for array in arrays))
        replay.add(state, action, number, final_state, terminated, truncated)
        if on_add is not None:
            on_add(t, happened, truncated)
        state = next_state
    return happened


def assert_drawn_as_it_happened(batch, happened, dtype):
    """Checks every drawn transition; returns the numbers drawn."""
    numbers = batch.reward.astype(int)
    for k, number in enumerate(numbers):
        state, action, reward, next_state, terminated = happened[number]
        np.testing.assert_array_equal(batch.state[k], state.astype(dtype), strict=True)
        np.testing.assert_array_equal(batch.next_state[k], next_state.astype(dtype), strict=True)
        np.testing.assert_array_equal(batch.action[k], action.astype(batch.action.dtype))
        assert batch.reward[k] == reward
        assert batch.terminated[k] == float(terminated)
    return numbers


def chi_squared(numbers, expected):
    """Pearson's statistic of draws that should fall equally often on `expected` numbers."""
    values, counts = np.unique(numbers, return_counts=True)
    assert set(values) <= set(expected)
    counts = np.append(counts, np.zeros(len(expected) - len(values)))
    mean = len(numbers) / len(expected)
    return float(np.sum((counts - mean) ** 2) / mean)


def limit(cells):
    """0.999 quantile of the chi-squared distribution with `cells` - 1 degrees of freedom."""
    freedom = cells - 1  # Wilson and Hilferty's approximation
    return freedom * (1 - 2 / (9 * freedom) + 3.0902 * np.sqrt(2 / (9 * freedom))) ** 3


# env id, dtypes that observations and actions are stored in
KINDS = {
    "vector and Discrete": ("CartPole-v1", np.float32, np.int32),
    "float64 and Box": ("InvertedPendulum-v5", np.float32, np.float32),
    "Discrete and Discrete": ("CliffWalkingSlippery-v1", np.int32, np.int32),
}


@pytest.mark.parametrize("kind", KINDS)
def test_batches_hold_what_was_added(kind):
    env_id, state_dtype, action_dtype = KINDS[kind]
    envs = make_envs(env_id, 3)
    if env_id == "CliffWalkingSlippery-v1":
        envs.cut_every = 3 * 20  # it would hardly ever end
    replay = make_replay(envs, 100, seed=0)  # 3 does not divide 100: an addition is split
    assert isinstance(replay, ReplayBuffer)
    happened = play(envs, replay, 75)
    assert len(replay) == 100
    ends = [bool(terminated) for *_, terminated in happened[-100:]]
    if env_id != "CliffWalkingSlippery-v1":
        assert 3 <= sum(ends) < 50

    batch = replay.sample(2000)
    numbers = assert_drawn_as_it_happened(batch, happened, state_dtype)
    assert set(numbers) == set(range(125, 225))
    assert batch.state.dtype == state_dtype
    assert batch.action.dtype == action_dtype
    assert batch.action.shape == (2000, *envs.single_action_space.shape)
    assert batch.reward.dtype == batch.terminated.dtype == np.float32

    batches = replay.sample(4, 5)
    assert batches.state.shape == (4, 5, *envs.single_observation_space.shape)
    assert batches.action.shape == (4, 5, *envs.single_action_space.shape)
    assert batches.reward.shape == batches.terminated.shape == (4, 5)
    flat = [array.reshape(20, *array.shape[2:]) for array in batches]
    assert_drawn_as_it_happened(type(batch)(*flat), happened, state_dtype)


def test_uniform_draws_before_and_after_wrapping():
    envs = make_envs("CartPole-v1", 3)
    replay = ReplayBuffer(envs, 50, seed=1)
    statistics = {}

    def draw(t, happened, _):
        total = len(happened)
        if total in (3, 30, 51, 63, 150, 201):
            expected = range(max(0, total - 50), total)
            numbers = replay.sample(100_000).reward.astype(int)
            statistics[total] = chi_squared(numbers, expected) / limit(len(expected))

    play(envs, replay, 67, on_add=draw)
    assert len(statistics) == 6
    assert max(statistics.values()) < 1.0, statistics


def test_draws_depend_on_the_seed_alone():
    envs = make_envs("CartPole-v1", 2)
    draws = []
    for seed in (1, 1, 2):
        replay = ReplayBuffer(envs, 100, seed)
        play(envs, replay, 50)
        draws.append(replay.sample(30).reward.tolist())
    assert draws[0] == draws[1] != draws[2]


def test_a_batch_is_a_copy():
    envs = make_envs("CartPole-v1", 2)
    replay = ReplayBuffer(envs, 10, seed=0)
    play(envs, replay, 5)
    batch = replay.sample(50)
    kept = [array.copy() for array in batch]
    play(envs, replay, 5, seed=1)
    for array, copy in zip(batch, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def breakout(num_envs=2, cut_every=0, height=84, width=84):
    envs = make_envs("ALE/Breakout-v5", num_envs, img_height=height, img_width=width)
    envs.cut_every = cut_every
    assert envs.frame_stack == 4
    return envs


def test_frames_stored_once_give_the_same_stacks_as_storing_all():
    """Breakout with lost lives, ends of games, cut episodes and rings that wrap more than twice."""
    envs = breakout(num_envs=3, cut_every=3 * 190, height=40, width=36)
    replay = make_replay(envs, 3 * 200 - 1, seed=0)
    assert isinstance(replay, FrameReplayBuffer)
    seen = {"cuts": 0, "games": 0}

    def watch(t, happened, truncated):
        seen["cuts"] += int(truncated.sum())
        seen["games"] += len(envs.take_finished())
        if t in (0, 1, 3, 50, 189, 190, 199, 200, 213, 260, 350, 499):
            numbers = assert_drawn_as_it_happened(replay.sample(600), happened, np.uint8)
            assert numbers.min() >= len(happened) - 600  # nothing that was written over

    happened = play(envs, replay, 500, on_add=watch)
    envs.close()
    seen["lost lives"] = sum(int(terminated) for *_, terminated in happened) - seen["games"]
    assert seen["lost lives"] >= 10, seen
    assert seen["games"] >= 3, seen
    assert seen["cuts"] >= 3, seen
    assert replay.count.min() > 2 * replay.ring  # wrapped twice
    # Nothing is stored twice where a life is lost: a frame per step, and a stack per episode.
    stacks = seen["games"] + seen["cuts"] + 3
    assert replay.count.sum() <= 3 * 500 + 4 * stacks
    assert len(replay) == 600

    numbers = np.concatenate([replay.sample(2_000).reward.astype(int) for _ in range(50)])
    assert chi_squared(numbers, range(900, 1500)) < limit(600)


def test_frames_of_very_short_episodes():
    """Whole stacks every 12 steps need more room than there is: the oldest transitions go."""
    envs = breakout(num_envs=2, cut_every=2 * 12, height=40, width=36)
    replay = FrameReplayBuffer(envs, 2 * 100, seed=0)

    def watch(t, happened, truncated):
        for i, oldest in enumerate(replay.oldest):
            # The youngest that went had indeed lost a frame.
            if oldest > max(0, replay.added - 100):
                first_frame = replay.newest[i, (oldest - 1) % 100] - 3
                assert first_frame < replay.count[i] - replay.ring

    happened = play(envs, replay, 260, on_add=watch)
    envs.close()
    alive = len(replay)
    assert 150 <= alive < 200  # 260 / (12 + 4) stacks of 4 do not fit beside 100 frames
    batch = replay.sample(3000)
    numbers = assert_drawn_as_it_happened(batch, happened, np.uint8)
    oldest = replay.oldest
    expected = {2 * t + i for i in range(2) for t in range(oldest[i], 260)}
    assert len(expected) == alive
    assert set(numbers) == expected
    numbers = np.concatenate([replay.sample(2_000).reward.astype(int) for _ in range(50)])
    assert chi_squared(numbers, sorted(expected)) < limit(alive)


def test_frames_come_in_the_shape_that_was_asked_for():
    envs = breakout()
    replay = FrameReplayBuffer(envs, 50, seed=0)
    happened = play(envs, replay, 10)
    envs.close()
    batches = replay.sample(3, 7)
    assert batches.state.shape == batches.next_state.shape == (3, 7, 4, 84, 84)
    assert batches.action.shape == batches.reward.shape == batches.terminated.shape == (3, 7)
    assert batches.action.dtype == np.int32
    flat = [array.reshape(21, *array.shape[2:]) for array in batches]
    assert_drawn_as_it_happened(type(batches)(*flat), happened, np.uint8)


@pytest.mark.parametrize("kind", ["vectors", "frames"])
@pytest.mark.parametrize("steps", [20, 90])
def test_a_restored_buffer_draws_the_same(tmp_path, kind, steps):
    """Before and after wrapping; and both go on alike."""
    envs = breakout(height=40, width=36) if kind == "frames" else make_envs("CartPole-v1", 2)
    ours, theirs = make_replay(envs, 101, seed=1), make_replay(envs, 101, seed=2)
    if kind == "frames":
        ours.CHUNK = theirs.CHUNK = 7 * 40 * 36  # several chunks, the last one smaller
    play(envs, ours, steps)
    ours.sample(10)  # the generator is not at its beginning
    play(envs, theirs, 5, seed=9)  # nor is the other buffer empty

    path = checkpoint.save(tmp_path, 1, {"replay": ours}, {})
    checkpoint.Checkpoint(path).restore({"replay": theirs})
    assert len(theirs) == len(ours) == min(2 * steps, 102 if kind == "frames" else 101)
    for seed in (5, 6, 7):
        for array, same in zip(ours.sample(3, 40), theirs.sample(3, 40), strict=True):
            np.testing.assert_array_equal(array, same, strict=True)
        play(envs, ours, 17, seed)
        play(envs, theirs, 17, seed)
    envs.close()


def test_a_million_atari_transitions_fit():
    for num_envs in (1, 8):
        envs = breakout(num_envs)
        needed = FrameReplayBuffer.bytes_needed(envs, 1_000_000)
        assert 1_000_000 * 84 * 84 < needed <= 8.5e9
        envs.close()


@pytest.mark.parametrize("env_id", ["ALE/Breakout-v5", "CartPole-v1", "InvertedPendulum-v5"])
def test_bytes_needed_is_what_the_arrays_take(env_id):
    envs = make_envs(env_id, 3)
    replay = make_replay(envs, 1000, seed=0)
    arrays = [a for a in vars(replay).values() if isinstance(a, np.ndarray)]
    taken = sum(array.nbytes for array in arrays)
    assert replay.bytes_needed(envs, 1000) == pytest.approx(taken, abs=200)
    envs.close()


def test_a_large_buffer_says_its_size_before_it_allocates(capsys):
    envs = breakout(8)
    make_replay(envs, 200_000, seed=0)
    assert capsys.readouterr().err == "replay buffer: 200,000 transitions, 1.44 GB\n"
    make_replay(envs, 2_000, seed=0)
    assert capsys.readouterr().err == ""
    envs.close()


@pytest.mark.parametrize("env_id", ["ALE/Breakout-v5", "CartPole-v1"])
def test_too_large_a_buffer_is_refused_with_a_size_that_fits(env_id):
    envs = make_envs(env_id, 2)
    with pytest.raises(UserError, match=r"--buffer-size 1000000000000: needs .* GB") as error:
        make_replay(envs, 10**12, seed=0)
    fitting = int(re.search(r"choose at most (\d+)", str(error.value))[1])
    assert 1000 < fitting < 10**11
    make_replay(envs, fitting // 2, seed=0)
    envs.close()
