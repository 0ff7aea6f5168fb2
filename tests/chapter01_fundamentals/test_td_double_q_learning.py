"""Double Q-learning: one table per step, the other one's opinion, and the bias it avoids."""

from chapter01_fundamentals import td_double_q_learning as script
from chapter01_fundamentals.td_double_q_learning import Config, left_moves
from common.errors import UserError

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete


def train(run_dir, **flags):
    result = script.train(Config(run_dir=str(run_dir), **{"bias_runs": 0, **flags}))
    with np.load(run_dir / "tables.npz") as stored:
        return result, dict(stored)


# --- The example ------------------------------------------------------------------------------


def test_shares_of_left_moves():
    """Sutton and Barto's example 6.7. References are of some 1,000 runs, long runs of 40,000."""
    single = left_moves(1, 10_000, np.random.default_rng(0))
    double = left_moves(2, 10_000, np.random.default_rng(1))
    assert len(single) == len(double) == 300
    assert single[0] == pytest.approx(0.5, abs=0.02)  # nobody knows anything yet
    assert double[0] == pytest.approx(0.5, abs=0.02)
    assert single.max() == pytest.approx(0.95, abs=0.02)
    assert single[-10:].mean() == pytest.approx(0.120, abs=0.01)
    assert double.max() == pytest.approx(0.51, abs=0.02)
    assert double[-10:].mean() == pytest.approx(0.0695, abs=0.006)
    assert double[-10:].mean() == pytest.approx(0.060, abs=0.015)
    # Exploration alone goes left in ε / 2 of the episodes.
    assert min(single.min(), double.min()) > 0.05 - 4 * np.sqrt(0.05 * 0.95 / 10_000)
    assert (single[2:] > double[2:]).all()


def test_the_picture_and_its_numbers(tmp_path):
    result, _ = train(tmp_path, num_episodes=5, max_steps=20, bias_runs=400)
    single, double = (result.facts[f"left_moves_{m}q_learning"] for m in ("", "double_"))
    assert 0.0 < double < single < 0.3
    assert (tmp_path / "maximization_bias.png").stat().st_size > 5_000
    with pytest.raises(UserError, match="--bias-runs -1: must be 0 or more"):
        train(tmp_path / "negative", bias_runs=-1)


def test_without_the_picture(tmp_path):
    result, _ = train(tmp_path, num_episodes=5, max_steps=20)
    assert set(result.facts) == {"value_start", "exact_return", "exact_return_exploring"}
    assert not (tmp_path / "maximization_bias.png").exists()


# --- The update -------------------------------------------------------------------------------


class Row(gym.Env):
    """States 0, 1, ... in a row, one action; the step out of the last one earns 2 and ends it."""

    action_space = Discrete(1)

    def __init__(self, length: int):
        self.observation_space = Discrete(length + 1)
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return 0, {}

    def step(self, action):
        self.state += 1
        ended = self.state == self.length
        return self.state, 2.0 * ended, ended, False, {}


gym.register("TdDoubleOne-v0", Row, kwargs={"length": 1})
gym.register("TdDoubleTwo-v0", Row, kwargs={"length": 2})


@pytest.mark.parametrize("seed", range(6))
def test_exactly_one_table_learns_from_a_step(tmp_path, seed):
    """After k updates with α = 1/2 towards 2, a table holds 2 - 2 / 2^k: k can be read from it."""
    _, tables = train(tmp_path, env_id="TdDoubleOne-v0", num_episodes=9, alpha=0.5, seed=seed)
    updates = [-np.log2(1.0 - tables[name][0, 0] / 2.0) for name in ("Q1", "Q2")]
    np.testing.assert_allclose(updates, np.round(updates), atol=1e-9)
    assert sum(updates) == pytest.approx(9.0, abs=1e-9)
    np.testing.assert_array_equal(tables["Q"], (tables["Q1"] + tables["Q2"]) / 2)


def test_both_tables_get_their_half(tmp_path):
    shares = []
    for seed in range(15):
        run_dir = tmp_path / str(seed)
        _, tables = train(run_dir, env_id="TdDoubleOne-v0", num_episodes=20, alpha=0.5, seed=seed)
        shares.append(-np.log2(1.0 - tables["Q1"][0, 0] / 2.0) / 20)
    assert np.mean(shares) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(15 * 20))


def test_the_value_is_asked_of_the_other_table(tmp_path):
    """α = 1, two episodes of two steps.

    If one table learned both last steps, it alone knows that state 1 is worth 2. Then only the
    other one, who asks it, can know that state 0 is worth 2.
    """
    heard = 0
    for seed in range(40):
        _, tables = train(tmp_path / str(seed), env_id="TdDoubleTwo-v0", num_episodes=2, alpha=1.0,
                          seed=seed)  # fmt: skip
        Q1, Q2 = tables["Q1"][:2, 0], tables["Q2"][:2, 0]
        if Q1[1] != Q2[1]:
            knows, asks = (Q1, Q2) if Q1[1] == 2.0 else (Q2, Q1)
            assert knows.tolist() == [0.0, 2.0]
            assert asks[1] == 0.0
            assert asks[0] in (0.0, 2.0)
            heard += asks[0] == 2.0
    assert heard >= 4  # a quarter of the seeds, on average


class Prizes(gym.Env):
    """State 0 leads to state 1, where actions 0, 1, 2 end the episode with 1, 2, 3."""

    observation_space, action_space = Discrete(2), Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return 0, {}

    def step(self, action):
        self.state, before = 1, self.state
        return 1, before * (action + 1.0), before == 1, False, {}


gym.register("TdDoublePrizes-v0", Prizes)


def test_ties_in_the_next_state_are_broken_at_random(tmp_path):
    """α = 1, two games. A table that knows of no prize asks the other about any action.

    In the first game, one table learns one prize. If the other one moves in the second game's first
    step, its row for state 1 is all zeros: if it happens to ask about that prize, it hears of it.
    """
    heard = set()
    for seed in range(80):
        flags = {"env_id": "TdDoublePrizes-v0", "num_episodes": 2, "alpha": 1.0, "seed": seed}
        _, tables = train(tmp_path / str(seed), **flags)
        heard |= {tables["Q1"][0].max(), tables["Q2"][0].max()}
    assert heard == {0.0, 1.0, 2.0, 3.0}


def test_absurd_numbers_of_runs_are_refused_before_training(tmp_path, command_line):
    flags = ["--bias-runs", 10**14, "--run-dir", tmp_path / "run"]
    status, _, err = command_line("td_double_q_learning", *flags)
    assert status == 2
    assert "error: not enough memory" in err
    assert not (tmp_path / "run" / "checkpoints").exists()


class Choice(gym.Env):
    """State 0 leads to state 1, where actions 0, 1, 2 end the episode with 0, 1, -5."""

    observation_space, action_space = Discrete(2), Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return 0, {}

    def step(self, action):
        if self.state == 0:
            self.state = 1
            return 1, 0.0, False, False, {}
        return 1, (0.0, 1.0, -5.0)[action], True, False, {}


gym.register("TdDoubleChoice-v0", Choice)


def test_learns_the_best_action_from_what_it_tries(tmp_path):
    flags = {"env_id": "TdDoubleChoice-v0", "num_episodes": 600, "alpha": 0.2, "gamma": 0.5}
    _, tables = train(tmp_path, start_epsilon=1.0, end_epsilon=1.0, **flags)
    for name in ("Q1", "Q2", "Q"):
        np.testing.assert_allclose(tables[name][1], [0.0, 1.0, -5.0], atol=1e-3)
        np.testing.assert_allclose(tables[name][0], 0.5, atol=1e-3)
