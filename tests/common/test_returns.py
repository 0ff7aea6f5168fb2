"""Returns and advantages against numbers worked out by hand."""

from common.returns import TrueReturns, discounted_returns, gae

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

REWARD = np.array([1.0, 0.0, -1.0, 2.0])
VALUE = np.array([0.5, 1.0, 0.2, -0.3])
NEXT_VALUE = np.array([1.0, 0.2, -0.3, 0.7])
NEVER = np.zeros(4, bool)
AT_1 = np.array([False, True, False, False])
NEXT_VALUE_CUT = np.array([1.0, 0.9, -0.3, 0.7])  # V(final observation) = 0.9 at t = 1

# (next value, terminated, truncated) -> advantages, γ = 0.9, λ = 0.8
CASES = {
    "unbroken": (NEXT_VALUE, NEVER, NEVER, [1.141169, -0.359488, 0.6396, 2.93]),
    "terminated": (NEXT_VALUE, AT_1, NEVER, [0.68, -1.0, 0.6396, 2.93]),
    "truncated": (NEXT_VALUE_CUT, NEVER, AT_1, [1.2632, -0.19, 0.6396, 2.93]),
}


@pytest.mark.parametrize("case", CASES)
def test_gae_of_one_trajectory(case):
    next_value, terminated, truncated, expected = CASES[case]
    advantage = gae(REWARD, VALUE, next_value, terminated, truncated, 0.9, 0.8)
    assert advantage.dtype == np.float32
    np.testing.assert_allclose(advantage, expected, atol=1e-6)


def test_termination_wins_where_both_flags_are_set():
    both = gae(REWARD, VALUE, NEXT_VALUE_CUT, AT_1, AT_1, 0.9, 0.8)
    np.testing.assert_allclose(both, CASES["terminated"][3], atol=1e-6)


def test_gae_of_several_environments_keeps_them_apart():
    # N = 3 environments, T = 4 steps: no axis can be mistaken for the other.
    next_value, terminated, truncated = (
        np.stack([case[i] for case in CASES.values()], axis=1) for i in range(3)
    )
    expected = np.stack([case[3] for case in CASES.values()], axis=1)
    reward, value = np.stack([REWARD] * 3, axis=1), np.stack([VALUE] * 3, axis=1)
    advantage = gae(reward, value, next_value, terminated, truncated, 0.9, 0.8)
    assert advantage.shape == (4, 3)
    np.testing.assert_allclose(advantage, expected, atol=1e-6)


def test_gae_lambda_0_is_the_td_error_and_lambda_1_the_return_minus_the_value():
    td_error = gae(REWARD, VALUE, NEXT_VALUE, NEVER, NEVER, 0.9, 0.0)
    np.testing.assert_allclose(td_error, REWARD + 0.9 * NEXT_VALUE - VALUE, atol=1e-6)
    monte_carlo = gae(REWARD, VALUE, NEXT_VALUE, NEVER, NEVER, 0.9, 1.0)
    returns = discounted_returns(REWARD, 0.9, bootstrap=0.7)
    np.testing.assert_allclose(monte_carlo, returns - VALUE, atol=1e-6)


@given(st.integers(1, 20), st.integers(0, 2**32 - 1), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_gae_is_the_weighted_sum_of_td_errors_within_an_episode(length, seed, gamma, gae_lambda):
    rng = np.random.default_rng(seed)
    reward, value, next_value = rng.normal(size=(3, length))
    terminated, truncated = rng.random((2, length)) < 0.2
    td_error = reward + gamma * ~terminated * next_value - value
    expected = np.zeros(length)
    for t in range(length):
        for k in range(t, length):
            expected[t] += (gamma * gae_lambda) ** (k - t) * td_error[k]
            if terminated[k] or truncated[k]:
                break
    advantage = gae(reward, value, next_value, terminated, truncated, gamma, gae_lambda)
    np.testing.assert_allclose(advantage, expected, atol=1e-4)


def test_discounted_returns():
    # 1 + 0.9 (2 + 0.9 · 3) = 5.23; with 10 behind the end another 0.9³ · 10 = 7.29.
    np.testing.assert_allclose(discounted_returns(np.array([1, 2, 3]), 0.9), [5.23, 4.7, 3.0])
    bootstrapped = discounted_returns(np.array([1, 2, 3]), 0.9, bootstrap=10.0)
    np.testing.assert_allclose(bootstrapped, [12.52, 12.8, 12.0], rtol=1e-6)
    assert bootstrapped.dtype == np.float32


def test_discounted_returns_without_discount_and_without_future():
    np.testing.assert_array_equal(discounted_returns(np.ones(4), 1.0), [4, 3, 2, 1])
    np.testing.assert_array_equal(discounted_returns(np.array([5.0, 7.0]), 0.0), [5, 7])
    assert discounted_returns(np.array([]), 0.9).shape == (0,)


# --- What visited states were truly worth -----------------------------------------------------


def one_episode(reward, gamma, truncated=False):
    """What `TrueReturns` says at the end of one episode, and that it says nothing before."""
    true_returns, no, yes = TrueReturns(1, gamma), np.array([False]), np.array([True])
    for r in reward[:-1]:
        assert true_returns.add(np.array([r]), no, no) == (0.0, 0)
    return true_returns.add(reward[-1:], *((no, yes) if truncated else (yes, no)))


@pytest.mark.parametrize("length", [1, 5, 200])
def test_true_returns_of_an_episode_that_terminated(length):
    # A reward of 1 a step: (1 - γ^k) / (1 - γ) with k steps to go.
    mean, states = one_episode(np.ones(length), 0.9)
    to_go = np.arange(1, length + 1)
    assert states == length
    assert mean == pytest.approx(np.mean((1 - 0.9**to_go) / 0.1), rel=1e-5)


def test_true_returns_of_an_episode_that_was_cut():
    """Only states count of whose return less than a hundredth is missing: 0.9^44 = 0.0097."""
    for length in (1, 20, 43):
        assert one_episode(np.ones(length), 0.9, truncated=True) == (0.0, 0)
    for length in (60, 200):
        mean, states = one_episode(np.ones(length), 0.9, truncated=True)
        assert length - 44 <= states <= length - 43
        to_go = np.arange(length, length - states, -1)
        assert mean == pytest.approx(np.mean((1 - 0.9**to_go) / 0.1), rel=1e-5)
        assert 9.9 < mean < 10.0  # what an endless episode is worth


def test_true_returns_without_discount_and_without_future():
    reward = np.array([5.0, -2.0, 3.0])
    assert one_episode(reward, 0.0) == (2.0, 3)
    assert one_episode(reward, 0.0, truncated=True) == (2.0, 3)  # nothing that counts is missing
    assert one_episode(reward, 1.0) == (pytest.approx((6 + 1 + 3) / 3), 3)
    assert one_episode(np.ones(10_000), 1.0, truncated=True) == (0.0, 0)  # all may be missing


def test_states_count_alike_whatever_episode_they_are_from():
    """Episodes of 3 states worth 3, 2, 1 and of 1 state worth 7 that end together: 13/4."""
    true_returns = TrueReturns(2, 1.0)
    never = np.zeros(2, bool)
    ends = [np.array([False, True]), never, np.array([True, True])]
    rewards = np.array([[1.0, 100.0], [1.0, 0.0], [1.0, 7.0]])
    told = [true_returns.add(r, end, never) for r, end in zip(rewards, ends, strict=True)]
    assert told[0] == (100.0, 1)
    assert told[1] == (0.0, 0)
    assert told[2] == (pytest.approx((3 + 2 + 1 + 7 + 7) / 5), 5)  # the other's first 0 is worth 7


@settings(deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 43),  # so that no state of a cut episode counts, unless γ is 0
    st.sampled_from([0.0, 0.9, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_true_returns_of_environments_that_end_at_different_times(num_envs, steps, gamma, seed):
    rng = np.random.default_rng(seed)
    true_returns = TrueReturns(num_envs, gamma)
    running = [[] for _ in range(num_envs)]
    for _ in range(steps):
        reward = rng.normal(size=num_envs)
        terminated, truncated = rng.random((2, num_envs)) < [[0.15], [0.1]]
        worth = []
        for i in range(num_envs):
            running[i].append(reward[i])
            if terminated[i] or truncated[i]:
                if terminated[i] or gamma == 0.0:
                    worth += list(discounted_returns(np.array(running[i]), gamma))
                running[i] = []
        mean, states = true_returns.add(reward, terminated, truncated)
        assert states == len(worth)
        assert mean == pytest.approx(np.mean(worth) if worth else 0.0, abs=1e-5)
