"""Running moments, normalized observations, scaled rewards."""

from common.checkpoint import get_state, set_state
from common.errors import UserError
from common.normalize import CLIP, Normalizer, RunningMoments

import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis import strategies as st

SPACE = Box(-np.inf, np.inf, (3,), np.float32)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.floats(-1e6, 1e6),
    st.floats(1e-3, 1e3),
    st.integers(0, 1000),
)
def test_moments_of_batches_are_those_of_all_samples(sizes, centre, spread, seed):
    rng = np.random.default_rng(seed)
    batches = [centre + spread * rng.normal(size=(size, 2)) for size in sizes]
    moments = RunningMoments((2,))
    for batch in batches:
        moments.update(batch)
    samples = np.concatenate(batches)
    assert moments.count == len(samples)
    np.testing.assert_allclose(moments.mean, samples.mean(axis=0), rtol=1e-9, atol=1e-6 * spread)
    np.testing.assert_allclose(
        moments.variance, samples.var(axis=0), rtol=1e-6, atol=1e-12 * (centre**2 + spread**2)
    )


def test_observations_get_mean_0_and_variance_1():
    rng = np.random.default_rng(0)
    normalizer = Normalizer(SPACE, num_envs=4, gamma=0.9)
    scales, centres = np.array([1e-3, 1.0, 1e4]), np.array([5.0, 0.0, -1e5])
    raw = centres + scales * rng.normal(size=(500, 4, 3))
    for observation in raw:
        normalizer.observe(observation)
    normal = normalizer.normalize(raw)
    assert normal.dtype == np.float32
    np.testing.assert_allclose(normal.mean(axis=(0, 1)), 0.0, atol=1e-4)
    np.testing.assert_allclose(normal.std(axis=(0, 1)), 1.0, atol=1e-2)  # 1e-3 is not far from 0


def test_an_observation_counts_for_its_own_normalization():
    normalizer = Normalizer(SPACE, num_envs=2, gamma=0.9)
    first = normalizer.observe(np.array([[0.0, 0, 0], [2, 4, 6]]))
    np.testing.assert_allclose(first, [[-1.0] * 3, [1.0] * 3], rtol=1e-4)


def test_what_is_only_normalized_teaches_nothing():
    normalizer = Normalizer(SPACE, num_envs=2, gamma=0.9)
    normalizer.observe(np.array([[0.0, 0, 0], [2, 4, 6]]))
    once = normalizer.normalize(np.ones((2, 3)))
    np.testing.assert_allclose(once, normalizer.normalize(np.ones((2, 3))))
    np.testing.assert_allclose(once[0], [0.0, -0.5, -2 / 3], rtol=1e-6)
    np.testing.assert_allclose(normalizer.normalize(np.full(3, 1e9)), CLIP)


def test_rewards_are_divided_by_the_deviation_of_the_running_return():
    normalizer = Normalizer(SPACE, num_envs=2, gamma=0.5)
    rewards = np.array([[1.0, -2.0], [3.0, 0.0], [5.0, 4.0]])
    terminated = np.array([[False, False], [True, False], [False, False]])
    truncated = np.array([[False, True], [False, False], [False, False]])
    # ret: (1, -2); env 1 is cut: (0.5 + 3, 0); env 0 ends: (5, 0 + 4)
    returns = np.array([[1.0, -2.0], [3.5, 0.0], [5.0, 4.0]])
    for t in range(3):
        scaled = normalizer.scale(rewards[t], terminated[t], truncated[t])
        deviation = np.sqrt(returns[: t + 1].var() + 1e-8)
        np.testing.assert_allclose(scaled, rewards[t] / deviation, rtol=1e-6)
        assert scaled.dtype == np.float32


def test_a_first_reward_of_no_deviation_is_cut_off():
    normalizer = Normalizer(SPACE, num_envs=2, gamma=0.5)
    no = np.zeros(2, bool)
    np.testing.assert_array_equal(normalizer.scale(np.array([3.0, 3.0]), no, no), [CLIP, CLIP])


def test_switched_off_all_passes_through():
    normalizer = Normalizer(Discrete(3), num_envs=2, gamma=0.9, enabled=False)
    array, no = np.array([1.5, 1e9]), np.zeros(2, bool)
    assert normalizer.observe(array) is array
    assert normalizer.normalize(array) is array
    assert normalizer.scale(array, no, no) is array
    assert get_state(normalizer) == {}
    set_state(normalizer, {})


def test_its_state_makes_an_equal_one():
    rng, no = np.random.default_rng(1), np.zeros(2, bool)
    one = Normalizer(SPACE, num_envs=2, gamma=0.9)
    for _ in range(5):
        one.observe(rng.normal(size=(2, 3)))
        one.scale(rng.normal(size=2), no, ~no)
    other = Normalizer(SPACE, num_envs=2, gamma=0.9)
    set_state(other, {key: array.copy() for key, array in get_state(one).items()})
    for _ in range(5):
        observation, reward = rng.normal(size=(2, 3)), rng.normal(size=2)
        np.testing.assert_array_equal(one.observe(observation), other.observe(observation))
        np.testing.assert_array_equal(one.scale(reward, no, no), other.scale(reward, no, no))


@pytest.mark.parametrize("space", [Discrete(3), Box(0, 255, (4, 84, 84), np.uint8)])
def test_images_and_categories_are_rejected(space):
    with pytest.raises(UserError, match="--normalize: takes vectors"):
        Normalizer(space, num_envs=2, gamma=0.9)
