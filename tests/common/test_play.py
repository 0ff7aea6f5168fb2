"""`python -m common.play`: plays finished runs, refuses everything else in one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

from chapter01_fundamentals import dp_value_iteration

import pytest


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("lake") / "run"
    flags = {"map": "SFF/FHF/FFG", "slippery": False, "run_dir": str(run_dir)}
    dp_value_iteration.train(dp_value_iteration.Config(**flags))
    return run_dir


def play(*arguments: str) -> subprocess.CompletedProcess:
    screenless = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    line = [sys.executable, "-m", "common.play", *arguments]
    return subprocess.run(line, capture_output=True, text=True, env=screenless, check=False)


def test_plays_a_run_on_its_own_map(lake: Path) -> None:
    done = play(str(lake), "--episodes", "3", "--video")
    assert done.returncode == 0, done.stderr
    assert "mean return 1.0 +- 0.0 over 3 episodes" in done.stdout
    assert (lake / "videos" / "FrozenLake-v1-seed0.mp4").stat().st_size > 1000


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--episodes", "0"], "--episodes 0: must be at least 1"),
        (["--seed", "-3"], "--seed -3: must be 0 or more"),
        (["--show"], "--show: this machine has no screen; use --video"),
    ],
)
def test_wrong_flags_end_in_one_sentence(lake: Path, flags: list[str], sentence: str) -> None:
    if flags == ["--show"] and sys.platform != "linux":
        pytest.skip("other systems always have a screen")
    done = play(str(lake), *flags)
    assert (done.returncode, done.stderr) == (2, f"error: {sentence}\n")


def test_runs_nothing_but_scripts_of_this_project(lake: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')")
    stored = json.loads((lake / "config.json").read_text())
    stored["script"] = str(tmp_path / "evil.py")
    (tmp_path / "config.json").write_text(json.dumps(stored))
    done = play(str(tmp_path))
    assert done.returncode == 2
    assert "no script of this project" in done.stderr
    assert not (tmp_path / "harm").exists()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    done = play(str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'nothing'}: no run there")
