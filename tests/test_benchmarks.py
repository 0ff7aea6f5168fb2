"""Benchmarks: every case is work that our script accepts, and that a peer is asked for as well."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.__main__ import row
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


@pytest.mark.parametrize("name", CASES)
def test_there_is_a_goal_for_each_peer(name):
    case = CASES[name]
    assert list(case.goals()) == list(case.peers)
    assert {*case.peers} <= {SB3, SBX, "dqn.py"}


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
