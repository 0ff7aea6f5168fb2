"""Prioritized replay: the published probabilities and weights, and draws that follow them."""

from common import checkpoint
from common.environments import make_envs
from common.errors import UserError
from common.prioritized import KINDS, MOST_WAITING, SMALLEST, PrioritizedReplay, SumTree
from common.replay import FrameReplayBuffer, make_replay
from tests.common.test_nstep import feed
from tests.common.test_replay import breakout, limit, play

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

# --- The sum tree -----------------------------------------------------------------------------

# Powers of two, one less and one more, among them.
SIZES = st.one_of(
    st.sampled_from([1, 2, 3, 4, 5, 63, 64, 65, 4096, 4097, 270_000]), st.integers(1, 6000)
)


def whole_weights(size, seed, share):
    """Small whole numbers, so that every order of adding gives the same sums; many are 0."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 6, size) * (rng.random(size) < share)
    weights[rng.integers(size)] += 1  # not all are 0
    return weights.astype(np.float64), rng


def together_and_alone(tree, points):
    """The leaves of all points in one call, which are those of each point alone."""
    alone = [int(tree.find(np.array([point]))[0]) for point in points[:60]]
    together = tree.find(points)
    np.testing.assert_array_equal(together[:60], alone)
    return together


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.05, 0.5, 1.0]))
@example(270_000, 0, 0.0)
@example(270_000, 1, 0.5)
@example(64, 0, 1.0)
def test_find_is_a_search_in_the_running_sum(size, seed, share):
    weights, rng = whole_weights(size, seed, share)
    tree = SumTree(size)
    tree.fill(weights)
    running = np.cumsum(weights)
    assert tree.total == running[-1]
    inside = rng.integers(0, 8 * running[-1], size // 32 + 50) / 8
    borders = rng.choice(np.append(0.0, running[running < running[-1]]), 20)  # 0: the first leaf
    ends = np.array([0.0, np.nextafter(running[-1], 0.0)])
    points = np.concatenate([ends, borders, inside])
    found = together_and_alone(tree, points)
    np.testing.assert_array_equal(found, np.searchsorted(running, points, side="right"))
    assert (weights[found] > 0).all()
    # At or past the end, where rounding may put a point: the last leaf that has a weight, as far as
    # sums are exact.
    past = together_and_alone(tree, np.array([running[-1], running[-1] * 1.001]))
    assert (past == np.flatnonzero(weights)[-1]).all()
    assert tree.find(points[:6].reshape(2, 3)).shape == (2, 3)


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(0, 2**32 - 1), st.lists(st.integers(1, 150), min_size=1, max_size=6))
@example(270_000, 3, [1, 20_000, 2])
@example(4096, 3, [64, 65, 1])
def test_set_keeps_every_sum_right_and_the_last_of_equal_indices_counts(size, seed, counts):
    weights, rng = whole_weights(size, seed, 0.3)
    tree = SumTree(size)
    tree.fill(weights)
    for count in counts:  # few and many leaves at once
        if rng.random() < 0.5:
            assert_adds_up(tree)
        index = rng.integers(0, min(size, 3 * count), count)  # equal ones among them
        new = rng.integers(0, 6, count).astype(np.float64)
        tree.set(index, new)
        for leaf, weight in zip(index, new, strict=True):
            weights[leaf] = weight
        index[:] = 0  # the caller's array
    assert_adds_up(tree)
    np.testing.assert_array_equal(tree.leaves, weights)
    running = np.cumsum(weights)
    assert tree.total == running[-1]
    if running[-1] > 0:
        points = rng.integers(0, 8 * running[-1], 30) / 8
        found = together_and_alone(tree, points)
        np.testing.assert_array_equal(found, np.searchsorted(running, points, side="right"))


def assert_adds_up(tree):
    """Whoever asks finds the sums of all changes so far, once."""
    assert tree.total == tree.leaves.sum()
    for below, level in zip(tree.levels, tree.levels[1:], strict=False):
        np.testing.assert_array_equal(level, below[0::2] + below[1::2])
    assert tree._changed == []


def test_a_change_counts_in_the_next_search():
    tree = SumTree(2000)
    tree.fill(np.ones(2000))
    tree.set(np.array([3]), np.array([0.0]))
    np.testing.assert_array_equal(tree.find(np.array([2.0, 3.0])), [2, 4])


def test_few_changes_wait_and_those_beside_them_stay():
    tree = SumTree(2**14)
    for leaf in range(5000):
        tree.set(np.array([leaf]), np.array([1.0]))
        assert len(tree._changed) < MOST_WAITING
    assert_adds_up(tree)
    tree.levels[1][-1] = 7.0  # far from the next change, which does not walk there
    tree.set(np.array([0]), np.array([2.0]))
    assert tree.total == 5001.0
    assert tree.levels[1][-1] == 7.0


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(0, 2**32 - 1))
def test_weights_of_any_size_find_no_leaf_without_weight(size, seed):
    rng = np.random.default_rng(seed)
    weights = 10.0 ** rng.uniform(-8, 8, size) * (rng.random(size) < 0.3)
    weights[rng.integers(size)] = 1e-6
    tree = SumTree(size)
    tree.fill(weights)
    last = np.nextafter(tree.total, 0.0)
    points = np.concatenate([[0.0, last, tree.total], rng.random(40) * tree.total])
    rounding = 1e-12 * tree.total
    running = np.cumsum(weights)
    for found in (tree.find(points), [tree.find(np.array([point]))[0] for point in points]):
        assert (weights[found] > 0).all()
        assert (running[found] >= points - rounding).all()
        assert (running[found] - weights[found] <= points + rounding).all()


# --- Priorities and weights -------------------------------------------------------------------


class Record:
    """Plain Python beside the buffer: which transition is where, and how it surprised."""

    def __init__(self, prioritized):
        self.prioritized = prioritized
        self.number, self.surprise, self.largest = {}, {}, 1.0  # by place

    def add(self, state, action, number, *rest):
        index = self.prioritized.add(state, action, number, *rest)
        for place, transition in zip(index.tolist(), number, strict=True):
            self.number[place], self.surprise[place] = int(transition), self.largest
        return index

    def update_all(self, seed):
        """New errors for everything that is stored, all different and of both signs."""
        places = np.array(sorted(self.alive()))
        rng = np.random.default_rng(seed)
        td_error = rng.permutation(np.arange(1, len(places) + 1) / 7.0)
        self.prioritized.update(places, td_error * rng.choice([-1, 1], len(places)))
        for place, error in zip(places.tolist(), td_error, strict=True):
            self.surprise[place] = error + SMALLEST
        self.largest = max(self.largest, td_error.max() + SMALLEST)

    def alive(self):
        """Places that hold a transition; the frames of the oldest may be gone already."""
        replay = self.prioritized.replay
        if not isinstance(replay, FrameReplayBuffer):
            return set(self.number)
        step = {place: number // len(replay.oldest) for place, number in self.number.items()}
        return {place for place in step if step[place] >= replay.oldest[place // replay.per_env]}

    def probabilities(self):
        """P by transition number; each surprise is another one where ranks count."""
        places = sorted(self.alive())
        surprise = np.array([self.surprise[place] for place in places])
        if self.prioritized.by_rank:
            assert len(set(surprise)) == len(surprise)
            rank = 1 + (surprise[:, None] < surprise[None, :]).sum(axis=1)
            weight = (1.0 / rank) ** self.prioritized.alpha
        else:
            weight = surprise**self.prioritized.alpha
        numbers = [self.number[place] for place in places]
        return dict(zip(numbers, weight / weight.sum(), strict=True))


def assert_drawn_by_priority(record, draws=100_000, at_once=4_000):
    """Batches of one: draws within one batch are spread evenly over the mass, and depend."""
    expected = record.probabilities()
    counts = dict.fromkeys(expected, 0)
    for _ in range(draws // at_once):
        batch, weight, index = record.prioritized.sample(at_once, 1, beta=0.5)
        assert (weight == 1.0).all()  # the largest of a batch of one
        for number, count in zip(*np.unique(batch.reward, return_counts=True), strict=True):
            counts[int(number)] += count  # KeyError: drawn, though it is not there any more
        assert [record.number[place] for place in index[:50, 0]] == batch.reward[:50, 0].tolist()
    expected, counts = (np.array([d[k] for k in sorted(expected)]) for d in (expected, counts))
    statistic = np.sum((counts - draws * expected) ** 2 / (draws * expected))
    assert statistic < limit(len(expected)), (statistic, limit(len(expected)))


@pytest.mark.parametrize("prioritization", KINDS)
@pytest.mark.parametrize("store", ["vectors", "frames"])
def test_draws_follow_the_priorities_before_and_after_wrapping(store, prioritization):
    if store == "vectors":
        envs, capacity = make_envs("CartPole-v1", 3), 50  # 3 does not divide 50
        at_once = 100_000
    else:
        envs, capacity = breakout(num_envs=2, height=36, width=36), 60
        at_once = 4_000
    replay = make_replay(envs, capacity, seed=1, n_step=None)
    alpha = 0.6 if prioritization == "proportional" else 0.7
    record = Record(PrioritizedReplay(replay, prioritization, alpha, seed=2))
    play(envs, record, 13)
    record.update_all(seed=0)
    assert_drawn_by_priority(record, at_once=at_once)

    # It wraps around more than once. Errors of the new ones come later, or never.
    offset = max(record.number.values()) + 1
    original = record.add
    record.add = lambda s, a, number, *rest: original(s, a, number + offset, *rest)
    play(envs, record, 47, seed=1)
    if prioritization == "rank":
        record.update_all(seed=1)
    assert len(record.alive()) == capacity == len(record.prioritized)
    assert_drawn_by_priority(record, at_once=at_once)
    envs.close()


def vectors(capacity, num_envs=1, prioritization="proportional", alpha=0.6, seed=0):
    envs = make_envs("CartPole-v1", num_envs)
    replay = make_replay(envs, capacity, seed=seed)
    return PrioritizedReplay(replay, prioritization, alpha, seed=seed)


def add(prioritized, count):
    """Transitions of no interest; returns their places."""
    n = prioritized.replay.num_envs
    states, flags = np.zeros((n, 4)), np.zeros(n, bool)
    numbers = np.arange(count)
    places = [
        prioritized.add(states, np.zeros(n, int), np.full(n, k), states, flags, flags)
        for k in numbers
    ]
    return np.concatenate(places)


@pytest.mark.parametrize(
    ("prioritization", "alpha", "expected"),
    [
        ("proportional", 0.6, [0.14823, 0.22467, 0.28655, 0.34054]),
        ("rank", 0.7, [0.15416, 0.18856, 0.25044, 0.40684]),
    ],
)
def test_probabilities_of_four_errors(prioritization, alpha, expected):
    prioritized = vectors(10, prioritization=prioritization, alpha=alpha)
    places = add(prioritized, 4)
    prioritized.update(places, np.array([1.0, -2.0, 3.0, -4.0]))
    prioritized.sample(1, beta=0.0)  # sorts the ranks
    np.testing.assert_allclose(
        prioritized.tree.leaves[places] / prioritized.tree.total, expected, atol=1e-5
    )


def test_weights_of_four_errors():
    prioritized = vectors(10)
    places = add(prioritized, 4)
    prioritized.update(places, np.array([1.0, 2.0, 3.0, 4.0]))
    expected = dict(zip(places.tolist(), [1.0, 0.84675, 0.76823, 0.71698], strict=True))
    for _ in range(5):  # 50 draws, an equal share of the mass each: all four are among them
        _, weight, index = prioritized.sample(50, beta=0.4)
        assert weight.dtype == np.float32
        np.testing.assert_allclose(weight, [expected[place] for place in index], atol=1e-5)


@pytest.mark.parametrize("prioritization", KINDS)
def test_the_largest_weight_of_each_batch_is_one(prioritization):
    prioritized = vectors(1000, prioritization=prioritization, alpha=0.9)
    places = add(prioritized, 700)
    prioritized.update(places, np.random.default_rng(0).exponential(size=700))
    for beta in (0.0, 0.4, 1.0):
        batch, weight, index = prioritized.sample(20, 8, beta=beta)
        assert batch.state.shape == (20, 8, 4)
        assert weight.shape == index.shape == (20, 8)
        np.testing.assert_array_equal(weight.max(axis=1), np.ones(20))
        probability = prioritized.tree.leaves[index] / prioritized.tree.leaves.sum()
        rare = probability.min(axis=1, keepdims=True)
        np.testing.assert_allclose(weight, (rare / probability) ** beta, rtol=1e-5)


def test_with_beta_1_the_weighted_mean_is_the_mean_over_all():
    """What importance weights are for: Σ_i P_i w_i x_i is proportional to Σ_i x_i."""
    prioritized = vectors(64)
    places = add(prioritized, 50)
    prioritized.update(places, 1.0 + np.arange(50))
    rewards, weights = [], []
    for _ in range(40):
        batch, weight, _ = prioritized.sample(5000, beta=1.0)
        rewards.append(batch.reward)
        weights.append(weight)
    mean = np.sum(np.multiply(rewards, weights)) / np.sum(weights)
    assert mean == pytest.approx(24.5, abs=0.1)
    assert np.mean(rewards) > 29  # without them, those that surprise count too much


def test_each_batch_takes_one_from_each_part_of_the_mass():
    prioritized = vectors(8, alpha=0.0)
    places = add(prioritized, 8)
    prioritized.update(places, np.arange(8.0))
    _, weight, index = prioritized.sample(100, 8, beta=0.7)
    np.testing.assert_array_equal(index, np.tile(np.arange(8), (100, 1)))
    assert (weight == 1.0).all()


@pytest.mark.parametrize("prioritization", KINDS)
def test_alpha_0_draws_uniformly_with_all_weights_1(prioritization):
    prioritized = vectors(50, num_envs=3, prioritization=prioritization, alpha=0.0)
    places = add(prioritized, 30)
    prioritized.update(places, np.random.default_rng(0).exponential(size=len(places)))
    _, weight, index = prioritized.sample(100_000, 1, beta=1.0)
    _, weights, _ = prioritized.sample(1000, 7, beta=1.0)
    assert (weight == 1.0).all()
    assert (weights == 1.0).all()
    counts = np.bincount(index[:, 0], minlength=50)
    assert np.sum((counts - 2000) ** 2 / 2000) < limit(50)


def test_new_transitions_have_the_largest_priority_so_far():
    prioritized = vectors(10, num_envs=2)
    leaves = prioritized.tree.leaves
    assert add(prioritized, 2).tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(leaves[:5], [1, 1, 1, 1, 0])
    prioritized.update(np.array([0, 1, 2, 3]), np.array([0.5, -3.0, 1.0, 2.0]))
    add(prioritized, 1)
    np.testing.assert_allclose(leaves[[0, 1, 4, 5]] ** (1 / 0.6), [0.5, 3, 3, 3], atol=1e-5)
    # The place that surprised most is written over, and the largest stays what it was.
    add(prioritized, 3)
    prioritized.update(np.arange(10), np.full(10, 0.1))
    assert add(prioritized, 1).tolist() == [2, 3]
    np.testing.assert_allclose(leaves ** (1 / 0.6), [0.1] * 2 + [3] * 2 + [0.1] * 6, atol=1e-5)


@pytest.mark.parametrize("prioritization", KINDS)
def test_what_no_longer_surprises_at_all_is_drawn_again_now_and_then(prioritization):
    prioritized = vectors(8, prioritization=prioritization)
    places = add(prioritized, 8)
    prioritized.update(places, np.zeros(8))
    _, _, index = prioritized.sample(100, 8, beta=0.0)
    assert set(index.ravel()) == set(range(8))


def test_ranks_between_two_sortings():
    prioritized = vectors(200, prioritization="rank", alpha=1.0)
    places = add(prioritized, 100)
    prioritized.update(places, np.arange(1.0, 101.0))
    prioritized.sample(1, beta=0.0)
    np.testing.assert_allclose(1 / prioritized.tree.leaves[:100], np.arange(100, 0, -1))
    # A new one is first; the one of 1 becomes 90.5 and has ten above it: of the old ones.
    prioritized.update(places[:1], np.array([90.5]))
    [new] = add(prioritized, 1)
    prioritized.sample(1, beta=0.0)
    np.testing.assert_allclose(1 / prioritized.tree.leaves[[0, 1, 99, new]], [11, 99, 1, 1])
    # Once more than a quarter is out of date, all are sorted.
    prioritized.update(places[1:30], np.arange(2.0, 31.0))
    prioritized.sample(1, beta=0.0)
    ranks = 1 / prioritized.tree.leaves[:101]
    np.testing.assert_allclose(np.sort(ranks), np.arange(1, 102))
    np.testing.assert_allclose(ranks[[0, 1, 99, new]], [12, 101, 1, 2])


@pytest.mark.parametrize("prioritization", KINDS)
def test_transitions_whose_frames_are_gone_are_never_drawn(prioritization):
    """Whole stacks every 12 steps need more room than there is: the oldest transitions go."""
    envs = breakout(num_envs=2, height=36, width=36)
    replay = make_replay(envs, 2 * 100, seed=0)
    record = Record(prioritized := PrioritizedReplay(replay, prioritization, 0.0, seed=0))
    original, sizes = record.add, []

    def add_and_draw(*transition):
        original(*transition)
        sizes.append(len(replay))
        if len(sizes) % 40 in (0, 1):
            alive = {record.number[place] for place in record.alive()}
            batch, weight, _ = prioritized.sample(400, beta=1.0)
            assert set(batch.reward.astype(int)) == alive  # two draws and more for each
            assert (weight == 1.0).all()
            assert np.count_nonzero(prioritized.tree.leaves) == len(replay) == len(alive)

    record.add = add_and_draw
    feed(envs, record, 260, episode=12)
    envs.close()
    assert max(sizes) < 200
    assert sizes[-1] >= 150


@pytest.mark.parametrize("steps", [20, 90])
@pytest.mark.parametrize("prioritization", KINDS)
@pytest.mark.parametrize("store", ["vectors", "frames"])
def test_a_restored_buffer_draws_the_same(tmp_path, store, prioritization, steps):
    """Before and after wrapping; and both go on alike."""

    def continued(prioritized, seed):
        drawn = []
        for k in range(4):
            batch, weight, index = prioritized.sample(2, 4, beta=0.6)
            drawn += [*batch, weight, index]
            prioritized.update(index, np.random.default_rng(k).normal(size=index.shape))
            feed(envs, prioritized, 3, seed + k)
            drawn.append(prioritized.tree.leaves.copy())  # ranks that are not sorted yet, too
        return drawn

    envs = breakout(height=36, width=36) if store == "frames" else make_envs("CartPole-v1", 2)
    ours, theirs = (
        PrioritizedReplay(make_replay(envs, 101, seed=k), prioritization, 0.6, seed=k)
        for k in (1, 2)
    )
    feed(envs, ours, steps)
    continued(ours, 50)
    index = np.flatnonzero(ours.surprise)
    ours.update(index, np.random.default_rng(0).normal(size=len(index)))
    ours.sample(1, beta=0.6)  # sorts the ranks, which the next ones are then found among
    feed(envs, theirs, 5, seed=9)  # the other buffer is not empty
    theirs.update(np.arange(5), np.full(5, 77.0))

    path = checkpoint.save(tmp_path, 1, {"replay": ours}, {})
    checkpoint.Checkpoint(path).restore({"replay": theirs})
    assert len(theirs) == len(ours)
    np.testing.assert_array_equal(theirs.tree.leaves, ours.tree.leaves)
    assert theirs.tree.total == ours.tree.total
    for array, same in zip(continued(ours, 5), continued(theirs, 5), strict=True):
        np.testing.assert_array_equal(array, same, strict=True)
    envs.close()


def test_other_kinds_are_refused():
    with pytest.raises(
        UserError, match="--prioritization ranks: must be one of proportional, rank"
    ):
        vectors(10, prioritization="ranks")
