"""Transition tables read from Gymnasium's environments: exact sums, exact optimal values."""

from common.environments import make_env
from common.environments.tabular import (
    exact_facts,
    grid_of,
    settled_states,
    start_distribution,
    tabular_model,
    visited_states,
)
from common.errors import UserError

import numpy as np
import pytest

# env id, arguments, γ, V*(s0) averaged over the start distribution
VALUES = [
    ("FrozenLake-v1", {}, 0.9, 0.0688909049),
    ("FrozenLake-v1", {}, 0.99, 0.5420259320),
    ("FrozenLake-v1", {"is_slippery": False}, 0.99, 0.99**5),
    ("FrozenLake8x8-v1", {}, 0.9, 0.0064111143),
    ("FrozenLake8x8-v1", {"is_slippery": False}, 0.9, 0.9**13),
    ("CliffWalking-v1", {}, 0.99, -12.247898),
    ("CliffWalking-v1", {}, 0.9, -7.458134),
    ("CliffWalking-v1", {}, 1.0, -13.0),
    ("Taxi-v4", {}, 0.99, 6.327464),
    ("Taxi-v4", {}, 1.0, 7.93),
]


@pytest.mark.parametrize(("env_id", "kwargs", "gamma", "expected"), VALUES)
def test_the_model_has_the_right_optimal_values(env_id, kwargs, gamma, expected):
    model = tabular_model(make_env(env_id, **kwargs), env_id)
    states, actions, _ = model.transition.shape
    assert model.transition.shape == (states, actions, states)
    assert model.reward.shape == (states, actions)
    assert model.start.sum() == pytest.approx(1.0)
    value, change = np.zeros(states), np.inf
    while change > 1e-12:
        better = (model.reward + gamma * model.transition @ value).max(axis=1)
        value, change = better, np.abs(better - value).max()
    assert model.start @ value == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize("env_id", ["FrozenLake-v1", "CliffWalkingSlippery-v1", "Taxi-v4"])
def test_rows_sum_to_the_probability_of_going_on(env_id):
    env = make_env(env_id)
    model = tabular_model(env, env_id)
    ended = np.zeros(model.reward.shape)
    reward = np.zeros(model.reward.shape)
    for s, by_action in env.unwrapped.P.items():
        for a, outcomes in by_action.items():
            ended[s, a] = sum(p for p, _, _, terminated in outcomes if terminated)
            reward[s, a] = sum(p * r for p, _, r, _ in outcomes)
    assert ended.max() > 0.3
    np.testing.assert_allclose(model.transition.sum(axis=2), 1.0 - ended, atol=1e-12)
    np.testing.assert_allclose(model.reward, reward, atol=1e-12)
    assert model.transition.min() >= 0.0


def test_frozen_lake_slips_as_its_documentation_says():
    model = tabular_model(make_env("FrozenLake-v1"), "FrozenLake-v1")
    expected = np.zeros(16)
    expected[[0, 1, 4]] = 1 / 3  # left of the start: stays, or slips down or up (a wall again)
    expected[1] = 0.0
    expected[0] += 1 / 3
    np.testing.assert_allclose(model.transition[0, 0], expected)
    # Right beside the goal, going right: the goal ends the episode with reward 1.
    assert model.reward[14, 2] == pytest.approx(1 / 3)
    assert model.transition[14, 2].sum() == pytest.approx(2 / 3)
    np.testing.assert_array_equal(model.start, np.eye(16)[0])


def test_taxi_starts_in_its_300_states():
    start = tabular_model(make_env("Taxi-v4"), "Taxi-v4").start
    assert np.count_nonzero(start) == 300
    np.testing.assert_allclose(start[start > 0], 1 / 300)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Blackjack-v1", "odd_environments:NoTable-v0"])
def test_an_environment_without_a_table_is_refused(env_id):
    with pytest.raises(UserError, match=f"--env-id {env_id}: no transition table.*FrozenLake-v1"):
        tabular_model(make_env(env_id), env_id)


def test_where_episodes_begin():
    env = make_env("Taxi-v4")
    expected = tabular_model(env, "Taxi-v4").start
    np.testing.assert_array_equal(start_distribution(env, "Taxi-v4", 0), expected)
    # With `sab=True` Blackjack has no table; its hands are dealt as with `sab=False`.
    counted = [start_distribution(make_env("Blackjack-v1"), "Blackjack-v1", s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(counted[0], counted[1])
    for shares in counted:
        assert shares.sum() == pytest.approx(1.0)
        dealt = shares.reshape(32, 11, 2).sum(axis=(0, 2))[1:]
        np.testing.assert_allclose(dealt, [1 / 13] * 9 + [4 / 13], atol=4 * np.sqrt(0.2 / 1_000))


def test_states_with_a_value():
    """0 -> 1 -> end; 2 -> 2 for ever; 3 -> 2 or end; 4 -> 3."""
    P = np.zeros((5, 5))
    P[0, 1], P[2, 2], P[3, 2], P[4, 3] = 1.0, 1.0, 0.1, 1.0
    begins = np.eye(5)
    assert settled_states(P, begins[0], 1.0).tolist() == [True, True, False, False, False]
    assert visited_states(P, begins[0], 1.0).tolist() == [True, True, False, False, False]
    assert settled_states(P, begins[4], 0.999).all()
    assert visited_states(P, begins[4], 0.999).tolist() == [False, False, True, True, True]
    for start in (2, 3, 4):
        with pytest.raises(UserError, match=f"--gamma 1.0: must be below 1, .* state {start} "):
            settled_states(P, (begins[0] + begins[start]) / 2, 1.0)


def test_exact_facts_by_name():
    env, policy = make_env("CliffWalking-v1"), np.full(48, 1)
    policy[36], policy[35] = 0, 2  # up, along the cliff, down
    assert exact_facts(env, "CliffWalking-v1", policy) == {"exact_return": -13.0}
    assert exact_facts(env, "CliffWalking-v1", policy, "mine") == {"mine": -13.0}
    assert exact_facts(make_env("odd_environments:NoTable-v0"), "", policy, "mine") == {}


def test_maps():
    assert grid_of(make_env("FrozenLake-v1")) == ["SFFF", "FHFH", "FFFH", "HFFG"]
    own = ["SFH", "FFF", "HHF", "FFG"]  # rows are not columns
    assert grid_of(make_env("FrozenLake-v1", desc=own)) == own
    assert grid_of(make_env("CliffWalking-v1"))[:3] == ["F" * 12] * 3
    last = grid_of(make_env("CliffWalking-v1"))[3]
    assert (last[0], last[-1], len(set(last[1:-1])), len(last)) == ("S", "G", 1, 12)


@pytest.mark.parametrize("env_id", ["Taxi-v4", "CartPole-v1", "Blackjack-v1"])
def test_no_map(env_id):
    assert grid_of(make_env(env_id)) is None
