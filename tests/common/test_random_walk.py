"""Sutton and Barto's examples as environments: checked by Gymnasium, solved, and played."""

from common.environments import make_env
from common.environments.tabular import exact_return, make_tabular_env, tabular_model

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

MODULE = "common.environments.random_walk"
WALK5, WALK19 = f"{MODULE}:RandomWalk5-v0", f"{MODULE}:RandomWalk19-v0"
BIAS = f"{MODULE}:MaximizationBias-v0"


def values(env_id: str, policy: np.ndarray) -> np.ndarray:
    """V of a policy π(a|s), [S, A], without discount."""
    model = tabular_model(make_env(env_id), env_id)
    transition = np.einsum("sa,sat->st", policy, model.transition)
    return np.linalg.solve(np.eye(len(policy)) - transition, (policy * model.reward).sum(axis=1))


@pytest.mark.parametrize("env_id", [WALK5, WALK19, BIAS])
@pytest.mark.filterwarnings("error")
def test_gymnasium_finds_nothing_wrong(env_id):
    check_env(make_env(env_id).unwrapped)


def test_values_of_the_random_policy():
    V5 = values(WALK5, np.full((7, 2), 0.5))
    np.testing.assert_allclose(V5[1:-1], np.arange(1, 6) / 6, atol=1e-12)
    assert np.sqrt(np.mean((V5[1:-1] - 0.5) ** 2)) == pytest.approx(0.2357, abs=5e-5)
    V19 = values(WALK19, np.full((21, 2), 0.5))
    np.testing.assert_allclose(V19[1:-1], (np.arange(1, 20) - 10) / 10, atol=1e-12)
    assert np.sqrt(np.mean(V19[1:-1] ** 2)) == pytest.approx(0.5477, abs=5e-5)
    assert V5[[0, -1]].tolist() == V19[[0, -1]].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("env_id", "middle", "left_reward"), [(WALK5, 3, 0.0), (WALK19, 10, -1.0)])
def test_walking_to_both_ends(env_id, middle, left_reward):
    env, states, actions = make_tabular_env(env_id)
    assert (states, actions) == (2 * middle + 1, 2)
    assert env.spec.max_episode_steps is None
    for action, direction, last_reward in ((0, -1, left_reward), (1, 1, 1.0)):
        state, _ = env.reset()
        assert state == middle
        for step in range(1, middle + 1):
            state, reward, terminated, truncated, _ = env.step(action)
            assert state == middle + direction * step
            assert (reward, terminated) == ((last_reward, True) if step == middle else (0.0, False))
            assert not truncated


def test_going_left_looks_tempting_and_costs_a_tenth():
    env, states, actions = make_tabular_env(BIAS)
    assert (states, actions) == (3, 10)
    model = tabular_model(env, BIAS)
    for first in range(10):
        for second in range(10):
            policy = np.array([first, second, 0])
            worth = 0.0 if first % 2 else -0.1
            assert exact_return(policy, model) == pytest.approx(worth, abs=1e-15)
    assert values(BIAS, np.full((3, 10), 0.1))[0] == pytest.approx(-0.05, abs=1e-15)


def test_rewards_after_going_left():
    env = make_env(BIAS)
    env.reset(seed=0)
    rewards = []
    for _ in range(4_000):
        env.reset()
        assert env.step(4)[:4] == (1, 0.0, False, False)
        state, reward, terminated, _, _ = env.step(7)
        assert (state, terminated) == (2, True)
        rewards.append(reward)
    assert np.mean(rewards) == pytest.approx(-0.1, abs=4 / np.sqrt(4_000))
    assert np.std(rewards) == pytest.approx(1.0, abs=0.05)
    env.reset()
    assert env.step(3)[:4] == (2, 0.0, True, False)


def test_the_same_seed_gives_the_same_rewards():
    first, second = make_env(BIAS), make_env(BIAS)
    for seed in (5, None, None):
        for env in (first, second):
            env.reset(seed=seed)
            env.step(0)
        assert first.step(0)[1] == second.step(0)[1]
