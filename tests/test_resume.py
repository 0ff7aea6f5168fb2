"""`kill -9` at any moment, then `--resume`: the run ends as if nothing had happened."""

import os
import shutil
import signal

from common import checkpoint
from tests import processes
from tests.forked import run, run_to_end, start
from tests.processes import (
    A2C,
    ACTOR_CRITIC,
    DDPG,
    DQN,
    DRQN,
    PENDULUM,
    PONG,
    PPO,
    PRIORITIZED,
    RAINBOW,
    RAINBOW_PONG,
    REINFORCE,
    REINFORCE_PENDULUM,
    SAC,
    SMALL_PONG,
    TD3,
    TIMEOUT,
    checkpoints,
    evaluation,
    finish,
    metrics,
    steps_logged,
    wait_for,
)

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.no_xla


def run_until_killed(script, *args, cwd, at):
    """Runs a script whose environment sends SIGKILL at its step number `at`."""
    status, _, err = run(script, *args, cwd=cwd, env={"SIGNAL_AT": str(at)})
    assert status == -signal.SIGKILL, err


def assert_same_run(run_dir, reference):
    assert metrics(run_dir) == metrics(reference)
    assert evaluation(run_dir) == evaluation(reference)


def assert_same_arrays(run_dir, reference):
    """Weights, optimizers, stored transitions and their priorities, states of all generators."""
    with np.load(checkpoint.latest(run_dir)) as ours, np.load(checkpoint.latest(reference)) as same:
        assert set(ours.files) == set(same.files)
        for name in set(ours.files) - {"meta"}:  # which tells the time
            np.testing.assert_array_equal(ours[name], same[name], err_msg=name)
        return {name: ours[name] for name in ours.files}


def assert_same_priorities(run_dir, reference):
    arrays = assert_same_arrays(run_dir, reference)
    assert {"replay/leaves", "replay/surprise", "replay/draws"} <= set(arrays)
    assert len(np.unique(arrays["replay/leaves"])) > 50  # priorities, not one value for all


@pytest.mark.xla
def test_dqn_killed_four_times_ends_like_the_uninterrupted_run(uninterrupted, tmp_path):
    total = 3200
    uninterrupted_run = uninterrupted("dqn")
    run_dir = tmp_path / "run"
    resume = ["--resume", run_dir]

    # Before the first checkpoint.
    run_until_killed("dqn", *DQN, "--run-dir", run_dir, cwd=tmp_path, at=700)
    assert checkpoints(run_dir) == []
    assert steps_logged(run_dir)[-1] > 600

    # Between two checkpoints.
    run_until_killed("dqn", *resume, cwd=tmp_path, at=1700)
    assert checkpoints(run_dir) == [1000]
    assert steps_logged(run_dir)[-1] > 1600

    # While a checkpoint is being written: stopped first, so that it cannot end before it dies.
    process = processes.start("dqn", *resume, cwd=tmp_path)
    wait_for(lambda: list((run_dir / "checkpoints").glob("*.npz.tmp")), process)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    half_written = list((run_dir / "checkpoints").glob("*.npz.tmp"))
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert half_written, "the checkpoint was finished before the process could be stopped"
    written = checkpoints(run_dir)
    assert written[-1] < total

    # After training, at the first step of the evaluation.
    run_until_killed("dqn", *resume, cwd=tmp_path, at=total - written[-1] + 1)
    assert checkpoints(run_dir)[-1] == total
    assert not (run_dir / "evaluation.json").exists()

    run_to_end("dqn", *resume, cwd=tmp_path)
    assert_same_run(run_dir, uninterrupted_run)
    assert not list(run_dir.rglob("*.tmp"))
    assert_events_match_metrics(run_dir)


def assert_events_match_metrics(run_dir):
    """One event file, with one event for each filled cell of metrics.csv and the same value."""
    assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    (_, *names), *rows = metrics(run_dir)
    assert set(names) <= set(events.Tags()["scalars"])
    for column, name in enumerate(names, start=1):
        expected = [(int(row[0]), row[column]) for row in rows if row[column]]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        values = [float(cell) for _, cell in expected]
        assert [value for _, value in found] == pytest.approx(values, rel=1e-6)


@pytest.mark.xla
def test_ppo_killed_in_training_and_in_evaluation(uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    run_until_killed("ppo", *PPO, "--run-dir", run_dir, cwd=tmp_path, at=6001)
    assert checkpoints(run_dir) == [4160]
    run_until_killed("ppo", "--resume", run_dir, cwd=tmp_path, at=16000 - 4160 + 20)
    assert checkpoints(run_dir)[-1] == 16000
    run_to_end("ppo", "--resume", run_dir, cwd=tmp_path)
    assert_same_run(run_dir, uninterrupted("ppo"))


@pytest.mark.xla
def test_ppo_with_box_actions(uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    run_until_killed("ppo", *PENDULUM, "--run-dir", run_dir, cwd=tmp_path, at=3000)
    assert checkpoints(run_dir) == [1280, 2560]
    run_to_end("ppo", "--resume", run_dir, cwd=tmp_path)
    assert_same_run(run_dir, uninterrupted("pendulum"))


@pytest.mark.parametrize(
    ("script", "args", "at"),
    [
        ("reinforce", REINFORCE, 1700),
        pytest.param("reinforce_baseline", REINFORCE_PENDULUM, 1700, marks=pytest.mark.xla),
        ("actor_critic", ACTOR_CRITIC, 900),
        ("a2c", A2C, 900),
        ("ddpg", DDPG, 500),
        pytest.param("td3", TD3, 500, marks=pytest.mark.xla),
        ("sac", SAC, 500),
    ],
)
def test_policy_gradients_killed_in_training(script, args, at, tmp_path):
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    uninterrupted = start(script, *args, "--run-dir", whole, cwd=tmp_path)
    run_until_killed(script, *args, "--run-dir", run_dir, cwd=tmp_path, at=at)
    assert len(checkpoints(run_dir)) == 1
    run_to_end(script, "--resume", run_dir, cwd=tmp_path)
    status, _, err = finish(uninterrupted)
    assert status == 0, err
    assert_same_run(run_dir, whole)
    assert_same_arrays(run_dir, whole)


def test_an_environment_that_remembers_earlier_episodes(tmp_path):
    """BipedalWalker's physics is made once and not by `reset`."""
    args = """--env-id BipedalWalker-v3 --total-timesteps 4096 --checkpoint-every 2048 --num-envs 4
        --num-steps 64 --num-epochs 1 --minibatch-size 128 --eval-episodes 1""".split()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_to_end("ppo", *args, "--run-dir", whole, cwd=tmp_path)
    shutil.copytree(whole, cut)
    for name in ("evaluation.json", "checkpoints/000000004096.npz"):
        (cut / name).unlink()
    run_to_end("ppo", "--resume", cut, cwd=tmp_path)
    assert_same_run(cut, whole)


@pytest.mark.xla
def test_dqn_on_an_atari_game_with_its_frame_buffer(uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    process = start("dqn", *PONG, "--run-dir", run_dir, cwd=tmp_path)
    wait_for(lambda: checkpoints(run_dir)[-1:] >= [204], process)  # the buffer has wrapped around
    wait_for(lambda: steps_logged(run_dir)[-1] > 230, process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert checkpoints(run_dir)[-1] < 400
    run_to_end("dqn", "--resume", run_dir, cwd=tmp_path)
    assert_same_run(run_dir, uninterrupted("pong"))


@pytest.mark.parametrize(
    ("script", "args"),
    [
        pytest.param(
            "prioritized_dqn", [*PRIORITIZED, "--prioritization", "rank"], marks=pytest.mark.xla
        ),
        ("rainbow", RAINBOW),
    ],
)
def test_priorities_and_noise_survive_a_kill(script, args, tmp_path):
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    uninterrupted = start(script, *args, "--run-dir", whole, cwd=tmp_path)
    run_until_killed(script, *args, "--run-dir", run_dir, cwd=tmp_path, at=1000)
    assert checkpoints(run_dir) == [600]  # the buffer has wrapped around
    run_to_end(script, "--resume", run_dir, cwd=tmp_path)
    status, _, err = finish(uninterrupted)
    assert status == 0, err
    assert_same_run(run_dir, whole)
    assert_same_priorities(run_dir, whole)


def test_a_memory_survives_a_kill(tmp_path):
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    uninterrupted = start("drqn", *DRQN, "--run-dir", whole, cwd=tmp_path)
    run_until_killed("drqn", *DRQN, "--run-dir", run_dir, cwd=tmp_path, at=1000)
    assert checkpoints(run_dir) == [600]  # the buffer has wrapped around
    out = run_to_end("drqn", "--resume", run_dir, cwd=tmp_path)
    assert "mean return " in out.splitlines()[-1]
    status, _, err = finish(uninterrupted)
    assert status == 0, err
    assert_same_run(run_dir, whole)
    assert {"memory/array", "replay/memory_1"} <= set(assert_same_arrays(run_dir, whole))


def test_priorities_over_a_frame_buffer_survive_a_kill(tmp_path):
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    process = start("prioritized_dqn", *SMALL_PONG, "--run-dir", run_dir, cwd=tmp_path)
    wait_for(lambda: checkpoints(run_dir)[-1:] >= [204], process, TIMEOUT)  # it wrapped around
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert checkpoints(run_dir)[-1] < 400
    uninterrupted = start("prioritized_dqn", *SMALL_PONG, "--run-dir", whole, cwd=tmp_path)
    run_to_end("prioritized_dqn", "--resume", run_dir, cwd=tmp_path)
    status, _, err = finish(uninterrupted)
    assert status == 0, err
    assert_same_run(run_dir, whole)
    assert_same_priorities(run_dir, whole)


def test_rainbow_goes_on_from_a_checkpoint_with_frames(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run_to_end("rainbow", *RAINBOW_PONG, "--run-dir", whole, cwd=tmp_path)
    shutil.copytree(whole, cut)
    for name in ("evaluation.json", "checkpoints/000000000400.npz"):
        (cut / name).unlink()
    run_to_end("rainbow", "--resume", cut, cwd=tmp_path)
    assert_same_run(cut, whole)
    assert_same_priorities(cut, whole)


@pytest.mark.xla
def test_half_a_checkpoint_is_refused_and_deleting_it_helps(uninterrupted, tmp_path, command_line):
    run_dir = tmp_path / "run"
    shutil.copytree(uninterrupted("dqn"), run_dir)
    (run_dir / "evaluation.json").unlink()
    newest = run_dir / "checkpoints" / "000000003200.npz"
    os.truncate(newest, newest.stat().st_size // 2)

    status, _, err = command_line("dqn", "--resume", run_dir)
    assert status == 2
    assert err == (
        f"error: the checkpoint {newest} is damaged; "
        "delete it, then the previous one (000000003000.npz) will be used\n"
    )

    newest.unlink()
    run_to_end("dqn", "--resume", run_dir, cwd=tmp_path)
    assert_same_run(run_dir, uninterrupted("dqn"))
