"""Benchmarks: every case is work that our script accepts, and what is said of it is computed."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.__main__ import compare, row
from benchmarks.cases import CASES, SB3, SBX
from benchmarks.ours import prepare, run
from common.config import check_config
from common.metrics import read_metrics

import pytest

TRAINED = [name for name in CASES if name != "acting"]


@pytest.mark.parametrize("name", TRAINED)
def test_the_case_fits_the_script(name, tmp_path):
    case = CASES[name]
    for algorithm in {case.algorithm, "dqn"} if "dqn.py" in case.peers else {case.algorithm}:
        _, config = prepare(case, algorithm, tmp_path / algorithm, case.warmup + case.steps)
        check_config(config)
        assert config.env_id == case.env_id
        assert config.total_timesteps == case.warmup + case.steps
        if algorithm == "drqn":  # with its own defaults
            continue
        assert config.num_envs == case.num_envs
        assert config.hidden_sizes == (case.hidden_sizes or (512,))
        for field in ("batch_size", "train_frequency", "gradient_steps", "num_steps"):
            if hasattr(config, field):
                assert getattr(config, field) == getattr(case, field), field


def test_every_setting_of_a_case_arrives(tmp_path):
    odd = {
        "num_envs": 3,
        "batch_size": 17,
        "train_frequency": 21,
        "gradient_steps": 5,
        "num_steps": 11,
        "num_epochs": 7,
        "buffer_size": 4321,
        "hidden_sizes": (9, 8),
        "warmup": 400,
    }
    for name in ("dqn-cartpole-8envs", "double-cartpole", "sac-pendulum", "ppo-cartpole"):
        case = replace(CASES[name], **odd)
        _, config = prepare(case, case.algorithm, tmp_path, 1234)
        assert (config.num_envs, config.hidden_sizes, config.learning_rate) == (3, (9, 8), 1e-3)
        assert config.total_timesteps == 1234
        if case.algorithm == "ppo":
            assert (config.num_steps, config.num_epochs, config.minibatch_size) == (11, 7, 17)
            continue
        assert (config.batch_size, config.train_frequency, config.gradient_steps) == (17, 21, 5)
        assert (config.buffer_size, config.learning_starts) == (4321, 100)
        if case.algorithm != "sac":
            assert config.target_frequency == 500  # as peer.py has it


def test_goals_and_threads():
    costs = {"double_dqn": 1.15, "dueling_dqn": 1.15, "prioritized_dqn": 1.35}
    for algorithm, cost in costs.items():
        case = CASES[f"{algorithm.removesuffix('_dqn')}-cartpole"]
        assert case.goals() == {"dqn.py": round(1 / cost, 2)}
        assert case.threads == (2,)
    for name in ("sac-pendulum", "td3-pendulum"):
        assert CASES[name].goals() == {SB3: 2.2, SBX: 1.1}
    for case in CASES.values():
        assert case.warmup < case.steps


def test_a_ratio_is_our_speed_by_theirs_on_the_better_threads(monkeypatch):
    """Rates are given here, for what is computed from them."""
    rates = {("ours", 1): 30.0, ("ours", 2): 20.0, (SB3, 1): 5.0, (SB3, 2): 10.0}

    def measure(side, case, threads, *flags):
        return {"steps_per_second": rates[side, threads], "split": {"learning": 1.0}}

    monkeypatch.setattr("benchmarks.__main__.measure", measure)
    entry = compare(CASES["dqn-cartpole-8envs"], SB3, pairs=3)
    assert entry["ratio"] == {"min": 3.0, "median": 3.0, "max": 3.0}
    assert entry["threads"] == {"ours": 1, "theirs": 2}
    assert (entry["ours"], entry["theirs"], entry["goal"]) == (30.0, 10.0, 2.0)


def test_a_short_case_runs(tmp_path):
    case = replace(CASES["dqn-cartpole-8envs"], warmup=64, steps=128)
    run(case, "dqn", tmp_path / "run", case.warmup + case.steps)
    metrics = read_metrics(tmp_path / "run")
    assert metrics["step"][-1] == 192
    assert metrics["train/loss"][-1] > 0.0  # it learned while it was timed


def test_acting_prints_a_rate():
    line = [sys.executable, "-m", "benchmarks.ours", "acting", "1"]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        line, capture_output=True, text=True, cwd=root, env=os.environ, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1])["steps_per_second"] > 0.0


def test_a_row_of_the_table():
    entry = {
        "name": "dqn-pong",
        "ours": 1234.5,
        "peer": SB3,
        "theirs": 1000.0,
        "ratio": {"min": 1.1, "median": 1.25, "max": 1.5},
        "goal": 1.3,
        "threads": {"ours": 2, "theirs": 1},
        "split": {"learning": 0.75, "rest": 0.25},
    }
    assert row(entry) == (
        "| dqn-pong | 1,234 | Stable-Baselines3: 1,000 | 1.10 | **1.25** | 1.50 | 1.3 | 2 / 1 "
        "| learning 75%, rest 25% |"
    )
