"""Runs the scripts as a user does, in processes of their own, and reads what they leave behind."""

import csv
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from common import catalog
from common.metrics import TIME_COLUMNS

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {path.stem: path.relative_to(ROOT).as_posix() for path in catalog.script_paths()}
SCRIPTS |= {"value_iteration": SCRIPTS["dp_value_iteration"], "ppo": SCRIPTS["ppo_clip"]}
TIMEOUT = 180  # seconds; only a hanging process takes that long

# Short runs whose checkpoints fall between two rows of metrics.csv, where half a row is pending.
# DQN's full replay buffer makes a checkpoint of 16 MB, which takes long enough to write to be
# caught at it; from a third of the run on, the buffer is written over.
DQN = """--env-id odd_environments:WideCartPole-v0 --total-timesteps 3200 --checkpoint-every 1000
    --learning-starts 160 --train-frequency 40 --gradient-steps 2 --batch-size 16 --buffer-size 1000
    --hidden-sizes 16 16 --target-frequency 160 --eval-episodes 3""".split()
PPO = """--env-id odd_environments:MortalCartPole-v0 --total-timesteps 16000 --checkpoint-every 4160
    --num-envs 4 --num-steps 16 --num-epochs 2 --minibatch-size 32 --eval-episodes 3""".split()
PENDULUM = """--env-id odd_environments:MortalPendulum-v0 --total-timesteps 4800
    --checkpoint-every 1280 --num-envs 4 --num-steps 16 --num-epochs 2 --minibatch-size 32
    --eval-episodes 2 --normalize""".split()
PONG = """--env-id ALE/Pong-v5 --num-envs 2 --total-timesteps 400 --checkpoint-every 102
    --learning-starts 20 --train-frequency 10 --gradient-steps 2 --batch-size 4 --buffer-size 200
    --target-frequency 50 --eval-episodes 1""".split()

# CartPole and Pong for what prioritized replay and noisy layers have to remember.
PRIORITIZED = """--env-id odd_environments:MortalCartPole-v0 --num-envs 4 --total-timesteps 1600
    --checkpoint-every 600 --learning-starts 160 --train-frequency 40 --gradient-steps 2
    --batch-size 16 --buffer-size 500 --hidden-sizes 16 --target-frequency 160
    --eval-episodes 2""".split()
RAINBOW = [*PRIORITIZED, "--num-atoms", "11", "--n-step", "3"]
DRQN = [*PRIORITIZED, "--lstm-units", "8", "--sequence-length", "6"]
SMALL_PONG = [*PONG, "--frame-size", "42"]
RAINBOW_PONG = [*SMALL_PONG, "--num-atoms", "11", "--v-min", "-2", "--v-max", "2", "--n-step", "3"]

# An iteration of REINFORCE lasts as long as its longest episode. The pendulum for what a Gaussian
# policy has to remember.
REINFORCE = """--env-id odd_environments:MortalCartPole-v0 --num-envs 4 --total-timesteps 3200
    --checkpoint-every 1200 --hidden-sizes 16 --eval-episodes 2""".split()
REINFORCE_PENDULUM = ["--env-id", "odd_environments:MortalPendulum-v0", *REINFORCE[2:]]
ACTOR_CRITIC = [*REINFORCE_PENDULUM, "--total-timesteps", "1600", "--checkpoint-every", "600"]
# Noise with a memory, an actor that moves at every third update, a learned temperature and V.
OFF_POLICY = """--env-id odd_environments:MortalPendulum-v0 --num-envs 2 --total-timesteps 800
    --checkpoint-every 300 --learning-starts 80 --train-frequency 20 --gradient-steps 3
    --batch-size 16 --buffer-size 200 --hidden-sizes 16 --eval-episodes 2""".split()
DDPG = [*OFF_POLICY, "--noise", "ou"]
TD3 = [*DDPG, "--policy-delay", "3", "--gradient-steps", "4"]  # some wait for a round of three
SAC = [*OFF_POLICY, "--value-network"]
A2C = ["--env-id", "odd_environments:MortalCartPole-v0", *ACTOR_CRITIC[2:], "--normalize"]


def start(script, *args, cwd, env=None, **options):
    """Starts a script by its key in SCRIPTS; the caller waits for it or kills it."""
    python_path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    variables = {**os.environ, "PYTHONPATH": python_path, **(env or {})}
    command = [sys.executable, str(ROOT / SCRIPTS[script]), *map(str, args)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def finish(process):
    """Waits for a process; returns its exit status, standard output and standard error."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()  # does nothing to a finished one
    return process.returncode, out, err


def run(script, *args, cwd, env=None, **options):
    """Runs a script to its end; returns its exit status, standard output and standard error."""
    return finish(start(script, *args, cwd=cwd, env=env, **options))


def run_to_end(script, *args, cwd, env=None):
    """Runs a script that must succeed."""
    status, out, err = run(script, *args, cwd=cwd, env=env)
    assert status == 0, err
    return out


def load(script):
    """A script as a module."""
    return importlib.import_module(SCRIPTS[script].removesuffix(".py").replace("/", "."))


def wait_for(condition, process, seconds=60.0, every=0.0005):
    """Polls until `condition()` holds; fails when the process ends before that."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()[1]}"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(every)


def metrics(run_dir):
    """Header and rows of metrics.csv as text, without the columns that depend on the clock."""
    with open(Path(run_dir) / "metrics.csv", newline="") as file:
        table = list(csv.reader(file))
    keep = [i for i, name in enumerate(table[0]) if name not in TIME_COLUMNS]
    return [[row[i] for i in keep] for row in table]


def evaluation(run_dir):
    """evaluation.json without what depends on the clock."""
    contents = json.loads((Path(run_dir) / "evaluation.json").read_text())
    del contents["train_seconds"], contents["steps_per_second"]
    return contents


def steps_logged(run_dir):
    """Column `step` of metrics.csv."""
    return [int(row[0]) for row in metrics(run_dir)[1:]]


def checkpoints(run_dir):
    """Steps of the finished checkpoints."""
    return sorted(int(path.stem) for path in (Path(run_dir) / "checkpoints").glob("*.npz"))
