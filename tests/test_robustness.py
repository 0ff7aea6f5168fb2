"""Full disks, Ctrl-C, diverging losses, run directories from strangers."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

from common import checkpoint
from tests.processes import (
    DQN,
    checkpoints,
    evaluation,
    finish,
    metrics,
    run,
    run_to_end,
    start,
    wait_for,
)

import numpy as np
import pytest


def assert_whole_and_finite(run_dir):
    """Every checkpoint can be read to its last byte, and every float in it is finite."""
    for path in (run_dir / "checkpoints").glob("*.npz"):
        with np.load(path) as archive:
            for name in archive.files:
                array = archive[name]
                assert array.dtype.kind != "f" or np.isfinite(array).all(), f"{path}: {name}"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 40 MB and a function that enlarges it; None where mounting is not allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False

    if not mount("size=40m"):
        yield None
        return
    yield disk, lambda: mount("remount,size=100m")
    subprocess.run(["umount", str(disk)], check=True)


def test_full_disk(uninterrupted, small_disk, tmp_path):
    """Two checkpoints fit, and the third does not, beside them, before one may be deleted."""
    if small_disk is None:  # no disk to fill: a limit on the size of files ends the same call
        run_dir, make_room, kept = tmp_path / "run", lambda: None, []
        limits = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10**7, 10**7))}
        reason = "File too large"
    else:
        run_dir, make_room, kept = small_disk[0] / "run", small_disk[1], [1000, 2000]
        limits, reason = {}, "No space left on device"
    status, _, err = run("dqn", *DQN, "--run-dir", run_dir, cwd=tmp_path, **limits)
    assert status == 2
    assert "Traceback" not in err
    failed = run_dir / "checkpoints" / f"{(kept or [0])[-1] + 1000:012d}.npz"
    assert err.splitlines()[-1] == (
        f"error: cannot write the checkpoint {failed}: {reason}; "
        "make room, then go on from the previous one with --resume"
    )
    assert checkpoints(run_dir) == kept
    assert_whole_and_finite(run_dir)
    assert not list(run_dir.rglob("*.tmp"))

    make_room()
    run_to_end("dqn", "--resume", run_dir, cwd=tmp_path)
    assert metrics(run_dir) == metrics(uninterrupted("dqn"))
    assert evaluation(run_dir) == evaluation(uninterrupted("dqn"))


def test_control_c(tmp_path):
    run_dir = tmp_path / "run"
    args = [*DQN, "--total-timesteps", 10**7, "--checkpoint-every", 2000]
    # Processes in the background of a shell script are started to ignore Ctrl-C.
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start("dqn", *args, "--run-dir", run_dir, cwd=tmp_path, **listening)
    wait_for(lambda: checkpoints(run_dir), process)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert status == 130
    assert "Traceback" not in err
    kept = checkpoints(run_dir)[-1]
    last_line = err.splitlines()[-1]
    assert last_line.startswith("interrupted at step ")
    assert last_line.endswith(f"; --resume {run_dir} goes on from step {kept:,}")
    assert_whole_and_finite(run_dir)


def test_control_c_while_starting(tmp_path):
    """TensorFlow takes seconds to import, and nobody wants to read where it was interrupted."""
    listening = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    process = start("dqn", "--run-dir", tmp_path / "run", cwd=tmp_path, **listening)
    maps = Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: "libtensorflow" in maps.read_text(), process)
    process.send_signal(signal.SIGINT)
    status, _, err = finish(process)
    assert (status, err) == (130, "interrupted\n")


DIVERGING = {
    # A step so large that the next values overflow, ...
    "dqn": """--learning-rate 1e30 --total-timesteps 2000 --checkpoint-every 400
        --learning-starts 900 --train-frequency 40 --gradient-steps 2 --batch-size 8
        --buffer-size 1000""",
    # ... and rewards that become NaN.
    "ppo": """--env-id odd_environments:NanCartPole-v0 --total-timesteps 2048 --num-envs 4
        --num-steps 16 --num-epochs 1 --minibatch-size 64 --checkpoint-every 512""",
}


@pytest.mark.parametrize("script", DIVERGING)
def test_a_loss_that_is_no_number_ends_the_run(script, tmp_path, command_line):
    run_dir = tmp_path / "run"
    status, _, err = command_line(script, *DIVERGING[script].split(), "--run-dir", run_dir)
    assert status == 2
    kept = checkpoint.latest(run_dir)
    assert kept is not None
    last_line = err.splitlines()[-1]
    if script == "ppo":
        assert last_line.startswith("error: --env-id odd_environments:NanCartPole-v0: rewards add ")
        assert last_line.endswith("; an environment must give finite rewards")
    else:
        assert last_line.startswith("error: train/")
        assert " became " in last_line
        assert last_line.endswith(
            "training diverged, lower --learning-rate (or the environment shows states or rewards "
            f"that are not finite); last good checkpoint: {kept}"
        )
    assert_whole_and_finite(run_dir)
    assert not (run_dir / "evaluation.json").exists()


class Boom:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("poisoned", ["meta", "q_network/000", "replay/state", "rng/state"])
def test_a_pickle_in_a_checkpoint_is_not_opened(poisoned, uninterrupted, tmp_path, command_line):
    run_dir, harm = tmp_path / "run", tmp_path / "harm"
    shutil.copytree(uninterrupted("dqn"), run_dir)
    path = checkpoint.latest(run_dir)
    with np.load(path) as archive:
        arrays = dict(archive)
    bomb = np.empty(1, object)
    bomb[0] = Boom(harm)
    np.savez(path, **{**arrays, poisoned: bomb}, allow_pickle=True)
    np.load(io.BytesIO(path.read_bytes()), allow_pickle=True)[poisoned]
    harm.rmdir()  # the bomb works

    status, _, err = command_line("dqn", "--resume", run_dir)
    assert status == 2
    assert err.splitlines()[-1].startswith(f"error: the checkpoint {path} is damaged; delete it")
    assert not harm.exists()


def test_the_script_that_a_run_names_is_not_run(uninterrupted, tmp_path, command_line):
    run_dir, harm = tmp_path / "run", tmp_path / "harm"
    shutil.copytree(uninterrupted("dqn"), run_dir)
    stranger = tmp_path / "stranger.py"
    stranger.write_text(f"import os\nos.mkdir({str(harm)!r})\n")
    contents = json.loads((run_dir / "config.json").read_text())
    (run_dir / "config.json").write_text(json.dumps({**contents, "script": str(stranger)}))
    status, _, err = command_line("dqn", "--resume", run_dir)
    assert status == 2
    assert err.startswith(f"error: --resume {run_dir}: that run belongs to {stranger}, not ")
    assert not harm.exists()


def test_a_run_without_its_metrics_is_refused(uninterrupted, tmp_path, command_line):
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted("dqn"), run_dir)
    (run_dir / "metrics.csv").unlink()
    status, _, err = command_line("dqn", "--resume", run_dir)
    assert status == 2
    assert err.startswith(f"error: --resume {run_dir}: ")
    assert "metrics.csv" in err


def test_a_kill_while_the_first_file_is_written_leaves_nothing_in_the_way(tmp_path):
    """Half a config.json could be neither resumed nor replaced."""
    run_dir = tmp_path / "run"
    limits = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))}
    status, _, err = run("value_iteration", "--run-dir", run_dir, cwd=tmp_path, **limits)
    assert status == 2
    assert err == (
        f"error: --run-dir {run_dir}: cannot be written (File too large); choose another folder\n"
    )
    run_to_end("value_iteration", "--run-dir", run_dir, "--eval-episodes", 1, cwd=tmp_path)
