"""Stretches of n steps: against a plain walk through what happened, over both kinds of store."""

from common import checkpoint
from common.environments import make_envs
from common.replay import FrameReplayBuffer, NStepBatch, ReplayBuffer, make_replay
from tests.common.test_replay import breakout, play

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

ENVS = {n: make_envs("CartPole-v1", n) for n in (1, 2, 3, 4)}


class Record:
    """Keeps beside the buffer what happened, environment by environment, and what is where."""

    def __init__(self, replay, reward_of=None):
        self.replay, self.reward_of = replay, reward_of
        self.history = None  # [N] lists of (state, action, reward, next state, terminated, done)
        self.place = {}  # -> (environment, number in its history)

    def add(self, state, action, number, next_state, terminated, truncated):
        reward = number if self.reward_of is None else self.reward_of(number)
        index = self.replay.add(state, action, reward, next_state, terminated, truncated)
        if self.history is None:
            self.history = [[] for _ in reward]
        columns = (state, action, reward, next_state, terminated, terminated | truncated)
        for i, place in enumerate(index):
            self.place[int(place)] = i, len(self.history[i])
            self.history[i].append(tuple(np.array(column[i]) for column in columns))
        return index

    def alive(self):
        if isinstance(self.replay, FrameReplayBuffer):
            oldest = self.replay.oldest
            return sorted(p for p, (i, t) in self.place.items() if t >= oldest[i])
        return sorted(self.place)

    def stretch(self, place, n, gamma):
        """State, action, sum of rewards, last successor, terminated, γ^k; and how it ended."""
        i, t = self.place[place]
        state, action, *_ = self.history[i][t]
        total, discount = 0.0, 1.0
        for k in range(n):
            _, _, reward, next_state, terminated, done = self.history[i][t + k]
            total += discount * float(reward)
            discount *= gamma
            if done or t + k == len(self.history[i]) - 1:
                break
        if terminated:
            ended = "terminated"
        elif done:
            ended = "truncated"
        else:
            ended = "whole" if k == n - 1 else "newest"
        return (state, action, total, next_state, float(terminated), discount), ended

    def check(self, n, gamma):
        """Compares every stretch that can be drawn; returns how many ended for which reason."""
        places = np.array(self.alive())
        batch = self.replay.gather(places)
        assert isinstance(batch, NStepBatch)
        assert all(array.dtype == np.float32 for array in (batch[2], batch[4], batch[5]))
        reasons = dict.fromkeys(("whole", "terminated", "truncated", "newest"), 0)
        for k, place in enumerate(places.tolist()):
            expected, ended = self.stretch(place, n, gamma)
            reasons[ended] += 1
            state, action, total, next_state, terminated, discount = expected
            np.testing.assert_array_equal(batch.state[k], state.astype(batch.state.dtype))
            np.testing.assert_array_equal(batch.action[k], action)
            assert batch.reward[k] == pytest.approx(total, rel=1e-5, abs=1e-5)
            np.testing.assert_array_equal(batch.next_state[k], next_state.astype(batch.state.dtype))
            assert batch.terminated[k] == terminated
            assert batch.discount[k] == pytest.approx(discount, rel=1e-5)
        return reasons


def feed(envs, replay, steps, seed=0, episode=10):
    """Random states in the environments' form, rewards t N + i, ends after `episode` steps.

    Games would do as well, but take a tenth of a second to begin anew.
    """
    rng = np.random.default_rng(seed)
    n, shape = envs.num_envs, envs.single_observation_space.shape
    draw = (lambda *size: rng.integers(0, 256, size, np.uint8)) if envs.frame_stack > 1 else None
    draw = draw or (lambda *size: rng.normal(size=size).astype(np.float32))
    for t in range(steps):
        if t % episode == 0:
            state = draw(n, *shape)
        next_state = draw(n, *shape)
        if envs.frame_stack > 1:
            next_state[:, :-1] = state[:, 1:]
        terminated = np.full(n, (t + 1) % (2 * episode) == 0)
        truncated = np.full(n, (t + 1) % (2 * episode) == episode)
        action, number = rng.integers(0, 2, n), np.arange(t * n, (t + 1) * n, dtype=np.float64)
        replay.add(state, action, number, next_state, terminated, truncated)
        state = next_state


def three_rewards(terminated=(), truncated=(), n_step=3, gamma=0.9):
    """One environment: states 0, 1, 2, rewards 1, 2, 3; then two steps with reward 1000."""
    replay = ReplayBuffer(ENVS[1], 100, seed=0, n_step=n_step, gamma=gamma)
    for t, reward in enumerate([1.0, 2.0, 3.0, 1000.0, 1000.0]):
        state, next_state = np.full((1, 4), t), np.full((1, 4), t + 1)
        if t in truncated:
            next_state = np.full((1, 4), -7.0)  # the true successor; the next episode begins at t+1
        flags = np.array([t in terminated]), np.array([t in truncated])
        replay.add(state, np.array([t % 2]), np.array([reward]), next_state, *flags)
    return replay


def target(batch, bootstrap=10.0):
    return batch.reward + batch.discount * (1.0 - batch.terminated) * bootstrap


def test_three_steps_and_a_bootstrap():
    batch = three_rewards().gather(np.array([0]))
    assert target(batch)[0] == pytest.approx(12.52)  # 1 + 1.8 + 2.43 + 0.729 * 10
    assert (batch.next_state[0] == 3.0).all()


def test_an_episode_that_terminated_after_two_steps():
    batch = three_rewards(terminated=(1,)).gather(np.array([0, 1, 2]))
    assert target(batch)[0] == pytest.approx(2.8)  # 1 + 1.8
    assert target(batch)[1] == pytest.approx(2.0)
    assert batch.terminated.tolist() == [1.0, 1.0, 0.0]
    assert batch.reward[2] == pytest.approx(3 + 900 + 810)


def test_an_episode_that_was_cut_after_two_steps_bootstraps_there():
    batch = three_rewards(truncated=(1,)).gather(np.array([0, 1]))
    np.testing.assert_allclose(target(batch), [2.8 + 0.81 * 10, 2.0 + 0.9 * 10], rtol=1e-6)
    assert batch.terminated.tolist() == [0.0, 0.0]
    assert (batch.next_state == -7.0).all()


def test_the_newest_have_shorter_stretches():
    batch = three_rewards(n_step=3, gamma=0.5).gather(np.array([2, 3, 4]))
    np.testing.assert_allclose(batch.reward, [3 + 500 + 250, 1500, 1000])
    np.testing.assert_allclose(batch.discount, [0.125, 0.25, 0.5])
    np.testing.assert_array_equal(batch.next_state[:, 0], [5, 5, 5])


@pytest.mark.parametrize("store", ["vectors", "frames"])
def test_one_step_stretches_are_transitions(store):
    envs = breakout(height=36, width=36) if store == "frames" else ENVS[2]
    plain = make_replay(envs, 60, seed=3)
    stretches = make_replay(envs, 60, seed=3, n_step=1, gamma=0.9)
    for replay in (plain, stretches):
        feed(envs, replay, 40)
    batch, same = plain.sample(5, 20), stretches.sample(5, 20)
    assert isinstance(same, NStepBatch)
    for name in batch._fields:
        np.testing.assert_array_equal(getattr(same, name), getattr(batch, name), strict=True)
    np.testing.assert_array_equal(same.discount, np.full((5, 20), 0.9, np.float32), strict=True)


@settings(deadline=None)
@given(
    num_envs=st.integers(1, 4),
    capacity=st.integers(4, 40),
    steps=st.integers(1, 60),
    n_step=st.integers(1, 8),
    gamma=st.sampled_from([0.0, 0.5, 0.99, 1.0]),
    ends=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_history_of_any_length(num_envs, capacity, steps, n_step, gamma, ends, seed):
    rng = np.random.default_rng(seed)
    record = Record(ReplayBuffer(ENVS[num_envs], capacity, seed=0, n_step=n_step, gamma=gamma))
    for _ in range(steps):
        state, next_state = rng.normal(size=(2, num_envs, 4)).astype(np.float32)
        action = rng.integers(0, 2, num_envs)
        terminated, truncated = rng.random((2, num_envs)) < ends
        record.add(state, action, rng.normal(size=num_envs), next_state, terminated, truncated)
    assert len(record.alive()) == len(record.replay) == min(num_envs * steps, capacity)
    record.check(n_step, gamma)


def test_cartpole_with_a_capacity_that_the_environments_do_not_divide():
    envs = make_envs("CartPole-v1", 3)
    envs.cut_every = 3 * 19
    replay = make_replay(envs, 100, seed=0, n_step=4, gamma=0.9)
    record = Record(replay, reward_of=lambda number: np.sin(number))
    seen = {}

    def watch(t, happened, truncated):
        if t in (0, 1, 2, 30, 33, 34, 60, 99):
            for reason, count in record.check(4, 0.9).items():
                seen[reason] = seen.get(reason, 0) + count

    play(envs, record, 100, on_add=watch)
    assert min(seen.values()) >= 20, seen


def test_frames_with_lost_lives_cut_games_and_wrapped_rings():
    envs = breakout(num_envs=3, cut_every=3 * 90, height=40, width=36)
    replay = make_replay(envs, 3 * 60 - 1, seed=0, n_step=3, gamma=0.9)
    record = Record(replay, reward_of=lambda number: np.cos(number))
    seen = {}

    def watch(t, happened, truncated):
        if t in (0, 1, 40, 59, 60, 70, 100, 141, 199):
            for reason, count in record.check(3, 0.9).items():
                seen[reason] = seen.get(reason, 0) + count

    play(envs, record, 200, on_add=watch)
    envs.close()
    assert replay.count.min() > 2 * replay.ring
    assert min(seen.values()) >= 10, seen

    shape = (2, 5, 4, 40, 36)
    batches = replay.sample(2, 5)
    assert batches.state.shape == batches.next_state.shape == shape
    assert batches.action.shape == batches.discount.shape == batches.terminated.shape == (2, 5)


def test_frames_of_very_short_episodes():
    envs = breakout(num_envs=2, height=36, width=36)
    replay = make_replay(envs, 2 * 60, seed=0, n_step=3, gamma=0.5)
    record = Record(replay, reward_of=lambda number: np.cos(number))
    feed(envs, record, 130, episode=6)
    envs.close()
    assert len(record.alive()) == len(replay) < 110  # some are gone before their place is taken
    assert record.check(3, 0.5)["truncated"] > 10


@pytest.mark.parametrize("store", ["vectors", "frames"])
def test_a_restored_buffer_knows_where_episodes_end(tmp_path, store):
    envs = breakout(height=36, width=36) if store == "frames" else ENVS[2]
    ours, theirs = (make_replay(envs, 61, seed=k, n_step=3, gamma=0.9) for k in (1, 2))
    feed(envs, ours, 70)
    path = checkpoint.save(tmp_path, 1, {"replay": ours}, {})
    checkpoint.Checkpoint(path).restore({"replay": theirs})
    for array, same in zip(ours.sample(200), theirs.sample(200), strict=True):
        np.testing.assert_array_equal(array, same, strict=True)
