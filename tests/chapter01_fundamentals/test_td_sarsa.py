"""SARSA: the values of the policy it follows, and the action it says it will take."""

from chapter01_fundamentals import td_q_learning, td_sarsa

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete

WALK5 = "common.environments.random_walk:RandomWalk5-v0"


def q_of(script, run_dir, **flags) -> np.ndarray:
    script.train(script.Config(run_dir=str(run_dir), **flags))
    with np.load(run_dir / "tables.npz") as stored:
        return stored["Q"]


def test_on_policy_and_off_policy_values_of_a_random_walk(tmp_path):
    """ε = 1: SARSA learns what the random walk is worth, Q-learning what walking right is worth."""
    always = {"env_id": WALK5, "start_epsilon": 1.0, "end_epsilon": 1.0, "num_episodes": 3_000}
    Q = q_of(td_sarsa, tmp_path / "s", alpha=0.02, **always)
    np.testing.assert_allclose(Q[1:-1, 0], np.arange(0, 5) / 6, atol=0.1)
    np.testing.assert_allclose(Q[1:-1, 1], np.arange(2, 7) / 6, atol=0.1)
    Q = q_of(td_q_learning, tmp_path / "q", alpha=0.5, gamma=0.9, **always)
    np.testing.assert_allclose(Q[1:-1, 1], 0.9 ** np.arange(4, -1, -1), atol=1e-9)


class Recorder(gym.Env):
    """Two states in turn, ten actions; keeps what was done. Rewards tell the actions apart."""

    observation_space, action_space = Discrete(2), Discrete(10)
    actions: list[int] = []  # noqa: RUF012  one list for all copies, on purpose

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return 0, {}

    def step(self, action):
        self.actions.append(int(action))
        self.state = 1 - self.state
        return self.state, float(action), False, False, {}


gym.register("TdSarsaRecorder-v0", Recorder, max_episode_steps=40)


@pytest.mark.parametrize("seed", range(3))
def test_the_value_asked_for_is_that_of_the_action_taken_next(tmp_path, seed):
    """Replays the recorded actions through (2); the last one needs an action nobody sees."""
    Recorder.actions.clear()
    flags = {"env_id": "TdSarsaRecorder-v0", "num_episodes": 1, "start_epsilon": 0.5, "alpha": 0.5}
    Q = q_of(td_sarsa, tmp_path, gamma=0.5, end_epsilon=0.5, seed=seed, **flags)
    actions = Recorder.actions
    assert len(actions) == 40
    expected = np.zeros((2, 10))
    for t in range(39):
        s, a, next_s, next_a = t % 2, actions[t], (t + 1) % 2, actions[t + 1]
        expected[s, a] += 0.5 * (a + 0.5 * expected[next_s, next_a] - expected[s, a])
    last, a = 39 % 2, actions[39]
    possible = expected[last, a] + 0.5 * (a + 0.5 * expected[1 - last] - expected[last, a])  # [10]
    assert np.isclose(possible, Q[last, a], atol=1e-12).any()
    expected[last, a] = Q[last, a]
    np.testing.assert_allclose(Q, expected, atol=1e-12)
