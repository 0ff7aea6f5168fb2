"""A training run: its directory, its steps, its metrics, its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from common import checkpoint, interrupts
from common.config import RunConfig, check_config
from common.environments import VectorEnvs, reset_seed
from common.errors import UserError
from common.metrics import MetricsWriter
from common.progress import Progress

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
LOG_POINTS = 200  # rows of metrics.csv per run
# Steps of one environment between checkpoints, at least: a cut must be rare beside the ends of
# episodes, and Atari games are long.
MIN_STEPS_BETWEEN_CUTS, MIN_ATARI_STEPS_BETWEEN_CUTS = 1_250, 12_500

Policy = Callable[[np.ndarray], np.ndarray]
C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True)
class Result:
    """What `train` returns."""

    policy: Policy | None  # observations [N, ...] -> greedy actions [N, ...]; None: nothing acts
    run_dir: Path
    total_timesteps: int  # environment steps taken (or episodes, sweeps, ...: see `unit`)
    train_seconds: float
    unit: str = "step"  # what was counted
    facts: dict[str, float | None] = field(default_factory=dict)  # more for `evaluation.json`


class Run:
    """One training run.

    In a script:

        run = Run(config, __file__, envs)
        run.track(q_network=q_network, optimizer=optimizer, replay=replay, rng=rng)
        state, _ = envs.reset(seed=run.reset_seed)
        for step in run.steps(config.total_timesteps, envs.num_envs):
            ...
            run.log(metrics)
        return run.finish(policy)

    Checkpoints are written between two passes of the loop. At each of them the environments have
    just cut their episodes (see `VectorEnvs`), so a resumed run begins where the other went on.
    """

    def __init__(self, config: RunConfig, script: str, envs: VectorEnvs | None = None) -> None:
        """Checks the flags and makes the run directory, or opens the one to resume.

        Args:
            config: the script's flags.
            script: the script's `__file__`.
            envs: training environments, whose episodes are logged and cut at checkpoints.

        Raises:
            UserError: a flag is out of range, the directory is taken or cannot be written.
        """
        check_config(config)
        self.config, self.envs = config, envs
        self.seed: int = getattr(config, "seed", 0)
        self.step = 0  # environment steps so far
        self.log_every = self.checkpoint_every = 0
        self._increment, self._unit, self.stopped = 1, "step", False
        self._tracked: dict[str, Any] = {}
        self._logs, self._logs_at_discard = 0, -1
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._episodes: list[tuple[float, int]] = []  # (return, length) since the last row
        self._recent: deque[float] = deque(maxlen=100)  # returns, for the progress bar
        self._seconds_before = 0.0  # of training, in earlier processes
        self._saved_seconds = 0.0  # of training, up to the newest checkpoint
        self._started = time.perf_counter()
        self._checkpoint: checkpoint.Checkpoint | None = None
        if config.resume:
            self.run_dir = Path(config.resume)
            read_config(config.resume, type(config), _script_name(script))
            path = checkpoint.latest(self.run_dir)
            self._checkpoint = checkpoint.Checkpoint(path) if path else None
        else:
            self.run_dir = _make_run_dir(config, script, self.seed)
        meta = self._checkpoint.meta if self._checkpoint else {}
        if meta:
            self.step, self.stopped = meta["step"], meta["stopped"]
            self._sums, self._counts = meta["sums"], meta["counts"]
            self._episodes = [tuple(episode) for episode in meta["episodes"]]
            self._recent.extend(meta["recent"])
            self._seconds_before = self._saved_seconds = meta["seconds"]
        global _current
        _current = self
        self._metrics = MetricsWriter(self.run_dir, meta.get("rows", 0), meta.get("columns", 2))
        print(f"run directory: {self.run_dir}", file=sys.stderr, flush=True)

    @property
    def reset_seed(self) -> int:
        """The seed with which the environments begin, or go on after a checkpoint."""
        return reset_seed(self.seed, self.step)

    @property
    def episode_seed(self) -> int | None:
        """For `env.reset` in scripts that count episodes: a seed at the beginning and after every
        checkpoint, where all runs begin afresh so that resuming is exact; otherwise None.
        """
        return None if self.step % self.checkpoint_every else self.reset_seed

    @property
    def seconds(self) -> float:
        """Seconds of training so far, earlier processes of a resumed run included."""
        return self._seconds_before + time.perf_counter() - self._started

    def track(self, **things: Any) -> None:
        """Names what checkpoints hold; when resuming, puts the saved state back in place.

        Args:
            **things: Keras models and optimizers, buffers, NumPy generators and arrays.
        """
        self._tracked.update(things)
        if self._checkpoint:
            self._checkpoint.restore(things)

    def steps(
        self, total: int, increment: int = 1, unit: str = "step", log_every: int | None = None
    ) -> Iterator[int]:
        """Counts to `total` in passes of `increment` steps; logs and saves between them.

        Args:
            total: steps of the whole run, earlier processes included.
            increment: steps that one pass of the loop takes (all environments together).
            unit: what a step is, for the progress bar.
            log_every: steps between rows of `metrics.csv`; default: about 200 rows per run.

        Yields:
            Steps taken before this pass.

        Raises:
            KeyboardInterrupt: after a pass during which Ctrl-C was pressed; twice ends it at once.
                To leave the loop otherwise use `stop`: `break` would forget the interrupt.
        """
        self._increment, self._unit = increment, unit
        self.log_every = _round_up(log_every or total / LOG_POINTS, increment)
        every = self.config.checkpoint_every or max(total // 10, self._rarest_cut())
        self.checkpoint_every = _round_up(every, increment)
        if self.envs is not None:
            self.envs.cut_every, self.envs.seed = self.checkpoint_every, self.seed
            self.envs.step_count = self.step
        progress = Progress(total, self.step, unit)
        self._row_step, self._row_time = self.step, time.perf_counter()
        self._first_step, self._first_time = self._row_step, self._row_time
        passes = 0
        with contextlib.closing(progress), interrupts.deferred() as end_if_interrupted:
            while self.step < total and not self.stopped:
                yield self.step
                self.step += increment
                passes += 1
                last = self.step >= total or self.stopped
                if self.step % self.log_every == 0 or last:
                    self._write_row(progress)
                if self.step % self.checkpoint_every == 0 or last:
                    self._save()
                if passes % 16 == 0 or last:
                    progress.update(min(self.step, total))
                end_if_interrupted()

    def _rarest_cut(self) -> int:
        if self.envs is None:
            return 1
        atari = self.envs.is_atari
        return self.envs.num_envs * (
            MIN_ATARI_STEPS_BETWEEN_CUTS if atari else MIN_STEPS_BETWEEN_CUTS
        )

    def stop(self) -> None:
        """Makes this pass of the loop the last one."""
        self.stopped = True

    def every(self, interval: int) -> bool:
        """Whether this pass of the loop takes the run across a multiple of `interval` steps."""
        return self.step // interval != (self.step + self._increment) // interval

    def log(self, metrics: dict[str, float], weight: int = 1) -> None:
        """Adds to the next row of `metrics.csv`, which holds the means since the row before.

        Args:
            metrics: scalars by name, e.g. `train/loss`.
            weight: how many times they count in the mean; 0 for not at all.
        """
        sums, counts = self._sums, self._counts
        self._logs += 1
        if weight:
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + float(value) * weight
                counts[name] = counts.get(name, 0) + weight

    def discard(self) -> None:
        """To be called when a checkpoint cuts short what the script would have learned from.

        Raises:
            UserError: nothing was logged since the last call, so nothing ever will be.
        """
        if self._logs == self._logs_at_discard:
            raise UserError(
                f"--checkpoint-every {self.checkpoint_every}: too few {self._unit}s for all "
                "environments to end an episode in between; take more, or fewer --num-envs"
            )
        self._logs_at_discard = self._logs

    def finish(
        self, policy: Policy | None = None, facts: dict[str, float | None] | None = None
    ) -> Result:
        """Closes the run's files and returns what `train` returns.

        Args:
            policy: the greedy policy, observations [N, ...] -> actions [N, ...]; None where the
                script trains nothing that acts.
            facts: more entries for `evaluation.json`, e.g. values that are known exactly.
        """
        self._metrics.close()
        if self.envs is not None:
            self.envs.close()
        return Result(policy, self.run_dir, self.step, self._saved_seconds, self._unit, facts or {})

    def _collect_episodes(self) -> None:
        if self.envs is not None:
            finished = self.envs.take_finished()
            self._episodes += finished
            self._recent.extend(episode[0] for episode in finished)

    def _write_row(self, progress: Progress) -> None:
        self._collect_episodes()
        now = time.perf_counter()
        rate = (self.step - self._row_step) / max(now - self._row_time, 1e-9)
        self._row_step, self._row_time = self.step, now
        row: dict[str, float] = {}
        if self.envs is not None:
            returns, lengths = zip(*self._episodes, strict=True) if self._episodes else ((), ())
            row["charts/episode_return"] = float(np.mean(returns)) if returns else np.nan
            row["charts/episode_length"] = float(np.mean(lengths)) if lengths else np.nan
        row["charts/steps_per_second"] = rate
        row |= {name: total / self._counts[name] for name, total in self._sums.items()}
        self._check_finite()
        self._sums, self._counts, self._episodes = {}, {}, []
        self._metrics.write(self.step, self.seconds, row)
        average = (self.step - self._first_step) / max(now - self._first_time, 1e-9)
        progress.note(average, float(np.mean(self._recent)) if self._recent else None)

    def _check_finite(self) -> None:
        for name, total in self._sums.items():
            if not np.isfinite(total):
                kept = checkpoint.latest(self.run_dir)
                raise UserError(
                    f"{name} became {total} by step {self.step}: training diverged{self._remedy()} "
                    f"(or the environment shows states or rewards that are not finite); "
                    f"last good checkpoint: {kept or 'none yet'}"
                )

    def _remedy(self) -> str:
        flags = [name for name in ("learning_rate", "alpha") if hasattr(self.config, name)]
        return f", lower --{flags[0].replace('_', '-')}" if flags else ""

    def _check_weights(self) -> None:
        # The loss is computed before its gradient is applied: the last step may have done the harm.
        for name, thing in self._tracked.items():
            for variable in getattr(thing, "variables", ()):
                if not np.all(np.isfinite(np.asarray(variable, np.float64))):
                    raise UserError(
                        f"{name} has weights that are not finite by step {self.step}: training "
                        f"diverged{self._remedy()}; last good checkpoint: "
                        f"{checkpoint.latest(self.run_dir) or 'none yet'}"
                    )

    def _save(self) -> None:
        self._collect_episodes()
        self._check_finite()
        self._check_weights()
        self._saved_seconds = self.seconds
        meta = {
            "step": self.step,
            "stopped": self.stopped,
            "rows": len(self._metrics.rows),
            "columns": len(self._metrics.columns),
            "sums": self._sums,
            "counts": self._counts,
            "episodes": self._episodes,
            "recent": list(self._recent),
            "seconds": self._saved_seconds,
        }
        checkpoint.save(self.run_dir / "checkpoints", self.step, self._tracked, meta)


_current: Run | None = None


def resume_hint() -> str:
    """How to go on with this process's run after Ctrl-C; empty if there is none."""
    if _current is None:
        return ""
    path = checkpoint.latest(_current.run_dir)
    at = f"step {int(path.stem):,}" if path else "the beginning"
    return f" at step {_current.step:,}; --resume {_current.run_dir} goes on from {at}"


def read_run(run_dir: Path | str, flag: str = "--resume ") -> dict[str, Any]:
    """`config.json` of a run.

    Args:
        run_dir: the run's folder.
        flag: what stands before the folder's name in an error message.

    Raises:
        UserError: the folder holds no run.
    """
    path = Path(run_dir) / "config.json"
    try:
        stored = json.loads(path.read_text())
        if not isinstance(stored["config"], dict) or not isinstance(stored["script"], str):
            raise TypeError
        return stored
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{flag}{run_dir}: no run there (no readable config.json); "
            "give the folder that a run printed at its start"
        ) from error


def read_config(run_dir: Path | str, config_class: type[C], script: str = "") -> C:
    """The flags a run was started with.

    Args:
        run_dir: the run's folder.
        config_class: the script's `Config`.
        script: `folder/name.py` that must have made the run; default: the one `config_class` is in.

    Raises:
        UserError: the folder holds no run, or another script's.
    """
    stored = read_run(run_dir)
    script = script or _script_name(sys.modules[config_class.__module__].__file__ or "")
    if stored["script"] != script:
        raise UserError(
            f"--resume {run_dir}: that run belongs to {stored['script']}, not {script}; "
            f"use: python {stored['script']} --resume {run_dir}"
        )
    known = {field.name for field in dataclasses.fields(config_class)}
    unknown = sorted(set(stored["config"]) - known)
    if unknown:
        raise UserError(
            f"--resume {run_dir}: config.json has flags this version does not know "
            f"({', '.join(unknown)}); use the version that started the run"
        )
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in stored["config"].items()
    }
    for flag in dataclasses.fields(config_class):
        value = values.get(flag.name, flag.default)
        if not _same_kind(value, flag.default):
            raise UserError(
                f"--resume {run_dir}: config.json has {flag.name} = {value!r}, which is no "
                f"{type(flag.default).__name__}; restore the file or start a new run"
            )
    return config_class(**values)


def _same_kind(value: Any, default: Any) -> bool:
    if isinstance(default, tuple):
        like = default[0] if default else None
        return isinstance(value, tuple) and all(like is None or _same_kind(v, like) for v in value)
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def _script_name(script: str) -> str:
    path = Path(script).resolve()
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


def _make_run_dir(config: RunConfig, script: str, seed: int) -> Path:
    name = _script_name(script)
    env_id = getattr(config, "env_id", "none").replace("/", "-").replace(":", "-")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    base = Path("runs") / Path(name).stem / env_id / f"seed{seed}-{stamp}"
    run_dir = Path(config.run_dir) if config.run_dir else base
    number = 1
    while not config.run_dir and run_dir.exists():  # two runs started within one second
        number += 1
        run_dir = base.with_name(f"{base.name}-{number}")
    # Not only a whole run: what another one left (checkpoints, metrics) would mix with this one's.
    remains = [run_dir / "config.json", run_dir / "metrics.csv", *run_dir.glob("checkpoints/*.npz")]
    if any(path.exists() for path in remains):
        raise UserError(
            f"--run-dir {run_dir}: already holds a run, or what is left of one; "
            f"choose another folder or go on with --resume {run_dir}"
        )
    contents = {
        "format": 1,
        "script": name,
        "config": dataclasses.asdict(config),
        "versions": _versions(),
        "git_commit": _git_commit(),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        # Whole or not at all: half of it could neither be resumed nor be started over.
        temporary = run_dir / "config.tmp"
        temporary.write_text(json.dumps(contents, indent=2) + "\n")
        os.replace(temporary, run_dir / "config.json")
    except OSError as error:
        raise UserError(
            f"--run-dir {run_dir}: cannot be written ({error.strerror}); choose another folder"
        ) from error
    return run_dir


def _versions() -> dict[str, str]:
    names = "tensorflow keras tensorflow-probability gymnasium ale-py numpy".split()
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    return versions


def _git_commit() -> str:
    """Commit of the project, with `-dirty` if files differ from it; "unknown" outside git."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=5, env=os.environ)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def _round_up(value: float, increment: int) -> int:
    return max(1, -int(-value // increment)) * increment
