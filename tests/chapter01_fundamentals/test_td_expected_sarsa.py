"""Expected SARSA: Q-learning at ε = 0, SARSA's values without SARSA's noise."""

from chapter01_fundamentals import td_expected_sarsa, td_q_learning
from chapter01_fundamentals.td_expected_sarsa import epsilon_greedy, mean_value
from common.environments import make_env
from common.environments.tabular import exact_return, tabular_model
from tests.processes import metrics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def run(script, run_dir, **flags):
    result = script.train(script.Config(run_dir=str(run_dir), **flags))
    with np.load(run_dir / "tables.npz") as stored:
        return result, dict(stored)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=6), st.floats(0.0, 1.0))
@settings(max_examples=100, deadline=None)
def test_mean_over_the_policy(values, epsilon):
    """(3), ties included: the best share 1 - ε among them."""
    q = np.array(values, float)
    best = q == q.max()
    policy = epsilon / len(q) + (1.0 - epsilon) * best / best.sum()
    assert policy.sum() == pytest.approx(1.0)
    assert mean_value(q, epsilon) == pytest.approx(policy @ q, abs=1e-12)


def test_mean_of_what_sarsa_would_draw():
    rng, q = np.random.default_rng(0), np.array([0.5, -2.0, 0.5, 0.25])
    draws = [q[epsilon_greedy(q, 0.4, rng)] for _ in range(20_000)]
    assert mean_value(q, 0.4) == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / 20_000**0.5)


def test_the_mean_is_over_the_policy_of_this_episode(tmp_path, monkeypatch):
    seen = []

    def recorded(q, epsilon):
        seen.append(round(epsilon, 12))
        return mean_value(q, epsilon)

    monkeypatch.setattr(td_expected_sarsa, "mean_value", recorded)
    flags = {"env_id": "CliffWalking-v1", "num_episodes": 5, "max_steps": 3}
    run(td_expected_sarsa, tmp_path, start_epsilon=1.0, end_epsilon=0.5, **flags)
    assert seen == [epsilon for epsilon in (1.0, 0.9, 0.8, 0.7, 0.6) for _ in range(3)]


def test_without_exploration_it_is_q_learning_step_for_step(tmp_path):
    flags = {"env_id": "Taxi-v4", "num_episodes": 80, "alpha": 0.3, "gamma": 0.95}
    tables = {}
    for script, epsilon in (
        (td_q_learning, 0.0),
        (td_expected_sarsa, 0.0),
        (td_expected_sarsa, 0.1),
    ):
        key = (script, epsilon)
        run_dir = tmp_path / f"{len(tables)}"
        _, tables[key] = run(script, run_dir, start_epsilon=epsilon, end_epsilon=epsilon, **flags)
    expected = tables[td_q_learning, 0.0]["Q"]
    assert np.count_nonzero(expected) > 500
    np.testing.assert_array_equal(tables[td_expected_sarsa, 0.0]["Q"], expected)
    assert metrics(tmp_path / "0") == metrics(tmp_path / "1")
    assert not np.array_equal(tables[td_expected_sarsa, 0.1]["Q"], expected)


def test_the_largest_step_size_solves_the_cliff_exactly(tmp_path):
    """α = 1 without noise is value iteration on the way: the values of the best ε-soft policy."""
    result, tables = run(td_expected_sarsa, tmp_path, alpha=1.0, num_episodes=600)
    model = tabular_model(make_env("CliffWalking-v1"), "CliffWalking-v1")
    V = np.zeros(48)
    for _ in range(3_000):
        Q = model.reward + model.transition @ V
        V = 0.9 * Q.max(axis=1) + 0.1 * Q.mean(axis=1)
    assert model.start @ V == pytest.approx(-20.71, abs=0.005)
    assert result.facts["exact_return"] == pytest.approx(-15.0, abs=1e-12)
    assert result.facts["exact_return_exploring"] == pytest.approx(model.start @ V, abs=0.02)
    assert tables["Q"][36].max() == pytest.approx(Q[36].max(), abs=0.25)
    assert exact_return(tables["policy"], model) == result.facts["exact_return"]
