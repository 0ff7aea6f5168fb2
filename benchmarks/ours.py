"""One measurement of our side: `python -m benchmarks.ours CASE THREADS [--split] [--peer]`.

Calls the script's own `train`, unchanged, and takes steps per second from the `time` column of
its `metrics.csv`: everything the script does counts, logging and checkpoints included. `--peer`
runs the plain `dqn.py` that a variant is compared with.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case
from common import acting, compiled, prioritized, replay
from common.environments import VectorEnvs, make_envs
from common.metrics import read_metrics

import numpy as np
import tensorflow as tf

OFF_POLICY = "sac", "td3"


def act(case: Case, steps: int) -> float:
    """Actions per second of a REINFORCE-sized policy, one state at a time, sampling included."""
    script = importlib.import_module("chapter11_policy_gradient.reinforce")
    envs = make_envs(case.env_id, 1)
    actions = script.Actions(envs.single_action_space)
    network = script.build_network(
        envs.single_observation_space, actions.outputs, case.hidden_sizes, gain=0.01
    )
    outputs, rng = acting.forward(network), np.random.default_rng(0)
    state, _ = envs.reset(seed=0)
    std = np.exp(np.asarray(actions.log_std))
    start = time.perf_counter()
    for _ in range(steps):
        actions.sample(outputs(state), std, rng)
    return steps / (time.perf_counter() - start)


def prepare(case: Case, algorithm: str, run_dir: Path, total: int) -> tuple[Any, Any]:
    """The algorithm's script, and its `Config` of the case's hyperparameters for `total` steps."""
    settings: dict[str, Any] = {
        "env_id": case.env_id,
        "total_timesteps": total,
        "num_envs": case.num_envs,
        "learning_rate": 1e-3 if case.hidden_sizes else 1e-4,
        "run_dir": str(run_dir),
        "hidden_sizes": case.hidden_sizes or (512,),
    }
    if algorithm == "ppo":
        script = importlib.import_module("chapter11_policy_gradient.ppo_clip")
        settings |= {
            "num_steps": case.num_steps,
            "num_epochs": case.num_epochs,
            "minibatch_size": case.batch_size,
        }
    elif algorithm == "a2c":
        script = importlib.import_module("chapter11_policy_gradient.a2c")
        settings |= {"num_steps": case.num_steps}
    elif algorithm in OFF_POLICY:
        script = importlib.import_module(f"chapter11_policy_gradient.{algorithm}")
        settings |= {
            "batch_size": case.batch_size,
            "buffer_size": case.buffer_size,
            "learning_starts": case.warmup // 4,
            "train_frequency": case.train_frequency,
            "gradient_steps": case.gradient_steps,
        }
    elif algorithm == "drqn":  # its own defaults: sequences are no transitions
        script = importlib.import_module("chapter09_dqn.drqn")
        settings = {name: settings[name] for name in ("env_id", "total_timesteps", "run_dir")}
    else:
        script = importlib.import_module(f"chapter09_dqn.{algorithm}")
        settings |= {
            "batch_size": case.batch_size,
            "buffer_size": case.buffer_size,
            "learning_starts": case.warmup // 4,
            "train_frequency": case.train_frequency,
            "gradient_steps": case.gradient_steps,
            "target_frequency": 500,
        }
    return script, script.Config(**settings)


def run(case: Case, algorithm: str, run_dir: Path, total: int) -> None:
    """Trains for `total` steps with the case's hyperparameters."""
    script, config = prepare(case, algorithm, run_dir, total)
    script.train(config)


def stopwatch(totals: dict[str, float]) -> None:
    """Times the parts of a step from outside, for the split; nested calls count once."""
    depth = [0]

    def watch(owner: Any, name: str, label: str) -> None:
        inner: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            depth[0] += 1
            start = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                depth[0] -= 1
                if depth[0] == 0:
                    totals[label] = totals.get(label, 0.0) + time.perf_counter() - start

        setattr(owner, name, timed)

    watch(VectorEnvs, "step", "environment")
    watch(acting.NumpyTwin, "__call__", "acting")
    watch(acting.CompiledForward, "__call__", "acting")
    watch(compiled._Compiled, "__call__", "learning")
    for buffer in (replay.ReplayBuffer, replay.FrameReplayBuffer):
        watch(buffer, "sample", "learning")
    for name in ("sample", "update"):
        watch(prioritized.PrioritizedReplay, name, "learning")


def main() -> None:
    """Prints one line of JSON."""
    case, threads, split = CASES[sys.argv[1]], int(sys.argv[2]), "--split" in sys.argv
    algorithm = "dqn" if "--peer" in sys.argv else case.algorithm
    # SAC and TD3 run in a plain graph, where a thread does best with an operation of its own.
    compiled.use_threads(1 if algorithm in OFF_POLICY else threads, threads)
    tf.constant(0.0)  # starts the runtime: the script's own choice of threads comes too late
    if algorithm == "acting":
        act(case, case.warmup)
        print(json.dumps({"steps_per_second": act(case, case.steps)}))
        return
    totals: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        if split:
            # First a run to compile everything, so that the parts hold no compiling.
            run(case, algorithm, Path(folder) / "first", case.warmup)
            stopwatch(totals)
        start = time.perf_counter()
        run(case, algorithm, Path(folder) / "run", case.warmup + case.steps)
        seconds = time.perf_counter() - start
        metrics = read_metrics(Path(folder) / "run")
    first = int(np.searchsorted(metrics["step"], case.warmup))
    steps = metrics["step"][-1] - metrics["step"][first]
    rate = steps / (metrics["time"][-1] - metrics["time"][first])
    result: dict[str, Any] = {"steps_per_second": float(rate)}
    if split:
        totals["rest"] = seconds - sum(totals.values())
        result["split"] = {label: value / seconds for label, value in totals.items()}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
