"""One measurement of our side: `python -m benchmarks.ours CASE THREADS [--split]`.

Calls the script's own `train`, unchanged, and takes steps per second from the `time` column of
its `metrics.csv`: everything the script does counts, logging and checkpoints included.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, Case
from common import acting, compiled, replay
from common.environments import VectorEnvs
from common.metrics import read_metrics

import numpy as np
import tensorflow as tf


def run(case: Case, run_dir: Path, total: int) -> None:
    """Trains for `total` steps with the case's hyperparameters."""
    shared: dict[str, Any] = {
        "env_id": case.env_id,
        "total_timesteps": total,
        "num_envs": case.num_envs,
        "learning_rate": 1e-3 if case.hidden_sizes else 1e-4,
        "run_dir": str(run_dir),
        "hidden_sizes": case.hidden_sizes or (512,),
    }
    if case.algorithm == "dqn":
        from chapter09_dqn import dqn

        dqn.train(
            dqn.Config(
                **shared,
                batch_size=case.batch_size,
                buffer_size=case.buffer_size,
                learning_starts=case.warmup // 4,
                train_frequency=case.train_frequency,
                gradient_steps=1,
                target_frequency=500,
            )
        )
    else:
        from chapter11_policy_gradient import ppo_clip

        ppo_clip.train(
            ppo_clip.Config(
                **shared,
                num_steps=case.num_steps,
                num_epochs=case.num_epochs,
                minibatch_size=case.batch_size,
            )
        )


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


def main() -> None:
    """Prints one line of JSON."""
    case, threads, split = CASES[sys.argv[1]], int(sys.argv[2]), "--split" in sys.argv
    compiled.use_threads(threads, threads)
    tf.constant(0.0)  # starts the runtime: the script's own choice of threads comes too late
    totals: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        if split:
            # First a run to compile everything, so that the parts hold no compiling.
            run(case, Path(folder) / "first", case.warmup)
            stopwatch(totals)
        start = time.perf_counter()
        run(case, Path(folder) / "run", case.warmup + case.steps)
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
