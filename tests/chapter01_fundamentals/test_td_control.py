"""What the four control scripts have in common: ends of episodes, spaces, flags, aligned lines."""

import json
from dataclasses import replace
from pathlib import Path

from chapter01_fundamentals import (
    td_double_q_learning,
    td_expected_sarsa,
    td_q_learning,
    td_sarsa,
)
from common.diff import difference, read_source
from common.environments import make_env
from common.environments.tabular import exact_return, tabular_model
from common.errors import UserError
from common.metrics import read_metrics

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete

SCRIPTS = [td_sarsa, td_q_learning, td_expected_sarsa, td_double_q_learning]
WALK5 = "common.environments.random_walk:RandomWalk5-v0"


def name(script) -> str:
    return script.__name__.rpartition(".")[2]


each_script = pytest.mark.parametrize("script", SCRIPTS, ids=name)


def train(script, run_dir, **flags):
    """Runs a script; gives its result and its tables."""
    if script is td_double_q_learning:
        flags = {"bias_runs": 0} | flags
    result = script.train(script.Config(run_dir=str(run_dir), **flags))
    with np.load(run_dir / "tables.npz") as stored:
        return result, dict(stored)


# --- Ends of episodes -------------------------------------------------------------------------


class Constant(gym.Env):
    """One state, two actions, reward 2 for ever; with `ends`, every step is the last one."""

    observation_space, action_space = Discrete(1), Discrete(2)

    def __init__(self, ends: bool = False):
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 0, 2.0, self.ends, False, {}


gym.register("TdControlLimited-v0", Constant, max_episode_steps=6)
gym.register("TdControlEndless-v0", Constant)
gym.register("TdControlOneStep-v0", Constant, kwargs={"ends": True})


@each_script
@pytest.mark.parametrize(
    ("env_id", "value"), [("Limited", 10.0), ("Endless", 10.0), ("OneStep", 2.0)]
)
def test_only_the_end_of_the_mdp_stops_the_bootstrap(tmp_path, script, env_id, value):
    """A reward of 2 for ever is worth 2 / (1 - γ), whatever the time limit; the last one is 2."""
    flags = {"num_episodes": 200, "alpha": 0.5, "gamma": 0.8, "max_steps": 6, "start_epsilon": 1.0}
    _, tables = train(script, tmp_path, env_id=f"TdControl{env_id}-v0", **flags)
    np.testing.assert_allclose(tables["Q"], value, atol=1e-6)


@each_script
def test_longer_episodes_are_cut(tmp_path, script):
    train(script, tmp_path, env_id="TdControlEndless-v0", num_episodes=3, max_steps=6)
    metrics = read_metrics(tmp_path)
    np.testing.assert_array_equal(metrics["charts/episode_length"], 6.0)
    np.testing.assert_array_equal(metrics["charts/episode_return"], 12.0)


# --- Action selection -------------------------------------------------------------------------


@each_script
def test_epsilon_greedy_takes_ties_alike(script):
    rng, q = np.random.default_rng(0), np.array([1.0, 3.0, 3.0, -1.0, 3.0])
    draws = np.array([script.epsilon_greedy(q, 0.2, rng) for _ in range(8_000)])
    share = np.bincount(draws, minlength=5) / len(draws)
    best = 0.8 / 3 + 0.04
    np.testing.assert_allclose(share, [0.04, best, best, 0.04, best], atol=0.02)
    assert {script.epsilon_greedy(q, 0.0, rng) for _ in range(100)} == {1, 2, 4}
    assert {script.epsilon_greedy(q[:2], 0.0, rng) for _ in range(100)} == {1}


@each_script
def test_epsilon_falls_on_a_line(tmp_path, script, monkeypatch):
    seen = []

    def record(q, epsilon, rng):
        seen.append(epsilon)
        return 1

    monkeypatch.setattr(script, "epsilon_greedy", record)
    flags = {"env_id": "TdControlOneStep-v0", "start_epsilon": 1.0, "end_epsilon": 0.5}
    train(script, tmp_path, num_episodes=5, **flags)
    used = sorted({round(epsilon, 12) for epsilon in seen} - {0.0})  # 0: double Q's own maximum
    assert used == [0.6, 0.7, 0.8, 0.9, 1.0]


# --- Environments -----------------------------------------------------------------------------


@each_script
def test_the_walk_to_the_right(tmp_path, script):
    """All values by hand: γ for each step that is still to go, 1 at the end."""
    flags = {"num_episodes": 400, "alpha": 0.5, "gamma": 0.9, "start_epsilon": 1.0}
    result, tables = train(script, tmp_path, env_id=WALK5, end_epsilon=0.0, **flags)
    assert tables["policy"][1:-1].tolist() == [1] * 5
    expected = {"value_start": tables["V"][3], "exact_return": 1.0, "exact_return_exploring": 1.0}
    assert result.facts == expected
    np.testing.assert_allclose(tables["V"][3:6], [0.81, 0.9, 1.0], atol=0.05)
    assert result.policy(np.array([1, 2, 3])).tolist() == [1, 1, 1]


@each_script
def test_blackjack(tmp_path, script):
    result, tables = train(
        script, tmp_path, env_id="Blackjack-v1", num_episodes=4_000, alpha=0.02, start_epsilon=0.3
    )
    assert tables["Q"].shape == (704, 2)
    policy = tables["policy"].reshape(32, 11, 2)
    assert policy[20, 1:, 0].sum() == 0  # sticks on a hard 20, whatever the dealer shows
    assert -0.30 < result.facts["exact_return"] < -0.0465  # random: -0.396, optimum: -0.04656
    assert (tmp_path / "values.png").stat().st_size > 5_000


@each_script
def test_facts_are_what_the_model_says(tmp_path, script):
    flags = {"num_episodes": 150, "start_epsilon": 0.8, "end_epsilon": 0.4}
    result, tables = train(script, tmp_path, env_id="FrozenLake-v1", **flags)
    model = tabular_model(make_env("FrozenLake-v1"), "FrozenLake-v1")
    greedy = np.eye(4)[tables["Q"].argmax(axis=1)]
    exploring = 0.6 * greedy + 0.4 * 0.25
    assert result.facts["exact_return"] == exact_return(greedy, model, 100)
    assert result.facts["exact_return_exploring"] == pytest.approx(
        exact_return(exploring, model, 100), abs=1e-12
    )
    np.testing.assert_array_equal(tables["V"], tables["Q"].max(axis=1))
    assert result.facts["value_start"] == tables["V"][0]
    assert (tmp_path / "values.png").stat().st_size > 5_000


@each_script
def test_a_saved_run_plays_on(tmp_path, script):
    _, tables = train(script, tmp_path, num_episodes=20, max_steps=50, alpha=0.5)
    config = replace(script.Config(), resume=str(tmp_path))
    states = np.arange(48)
    np.testing.assert_array_equal(script.load_policy(config)(states), tables["policy"])


@each_script
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"env_id": "CartPole-v1"}, "--env-id CartPole-v1: states are .*FrozenLake-v1"),
        ({"env_id": "Pendulum-v1"}, "--env-id Pendulum-v1: "),
        ({"alpha": 1.5}, "--alpha 1.5: must be greater than 0 and at most 1"),
        ({"start_epsilon": -0.1}, "--start-epsilon -0.1: must be between 0 and 1"),
        ({"end_epsilon": 1.1}, "--end-epsilon 1.1: must be between 0 and 1"),
        ({"gamma": 1.01}, "--gamma 1.01: must be between 0 and 1"),
        ({"num_episodes": 0}, "--num-episodes 0: must be at least 1"),
        ({"max_steps": 0}, "--max-steps 0: must be at least 1"),
        ({"map": "SF/FG"}, "--map SF/FG: only FrozenLake has maps, not CliffWalking-v1"),
    ],
)
def test_bad_input(tmp_path, script, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        train(script, tmp_path / "run", **flags)
    assert not (tmp_path / "run").exists()


def test_the_verdict_counts_the_greedy_policy(tmp_path, command_line):
    flags = ["--env-id", WALK5, "--num-episodes", 300, "--eval-episodes", 7, "--gamma", 0.9]
    status, out, _ = command_line("td_sarsa", "--run-dir", tmp_path / "run", *flags)
    assert status == 0
    assert out.splitlines()[-1] == "finished: mean return 1.000 +- 0.000 over 7 episodes"
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["exact_return"] == 1.0
    assert evaluation["unit"] == "episode"


# --- The family is read by comparison ---------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "old", "most"),
    [
        (td_q_learning, td_sarsa, 12),
        (td_expected_sarsa, td_q_learning, 14),
        (td_double_q_learning, td_q_learning, 75),  # 45 of them for the example
    ],
    ids=["q_learning", "expected_sarsa", "double_q_learning"],
)
def test_siblings_differ_in_few_lines(new, old, most):
    text = difference(*(read_source(Path(script.__file__)) for script in (new, old)))
    added, removed = text.splitlines()[-1].split()[:2]
    assert int(added) <= most
    assert -int(removed) <= 12
    assert any("+" in line and "# NEW: " in line for line in text.splitlines())
