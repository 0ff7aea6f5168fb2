"""Evaluation on fresh environments, and the report that ends a script."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common import plots, video
from common.config import RunConfig
from common.environments import make_envs, reset_seed, reward_threshold
from common.errors import UserError
from common.memory import begin_episodes
from common.metrics import read_metrics
from common.progress import Progress
from common.run import Policy, Result

import numpy as np

MAX_ENVS = 25  # copies that are evaluated side by side
ATARI_PATIENCE = 2_500  # steps (10,000 frames) without a reward, after which a game is cut
PATIENCE = 10.0  # seconds of evaluation after which its progress is shown (Atari: at once)
STREAM = 2**62  # keeps evaluation's seeds apart from training's: no run takes so many steps


@dataclass(frozen=True)
class Evaluation:
    """The contents of `evaluation.json`."""

    env_id: str
    seed: int
    episodes: int
    mean_return: float
    std_return: float  # over episodes
    returns: list[float]
    total_timesteps: int
    train_seconds: float
    steps_per_second: float
    target: float | None
    solved: bool | None  # None where no target is known


def episode_returns(
    policy: Policy,
    env_id: str,
    episodes: int,
    seed: int,
    env_kwargs: Mapping[str, Any] | None = None,
) -> list[float]:
    """Plays whole episodes in fresh environments, with true (unclipped) rewards.

    A greedy policy may get stuck for ever in an Atari game (Breakout waits for the fire button
    after each lost life): a game without a reward for `ATARI_PATIENCE` steps ends with what it has.

    Every copy of the environment plays the same number of episodes (one more or less), so that
    short episodes are not counted more often than long ones.

    Args:
        policy: observations [N, ...] -> actions [N, ...]; see also `begin_episodes`.
        env_id: as in `make_envs`.
        episodes: how many.
        seed: the run's seed; episodes differ from all training episodes of any seed.
        env_kwargs: arguments of the environment's constructor.

    Returns:
        Undiscounted returns of the episodes, in a fixed order.
    """
    if episodes < 1:
        raise UserError(f"--eval-episodes {episodes}: must be at least 1")
    num_envs = min(episodes, MAX_ENVS)
    quota = [episodes // num_envs + (i < episodes % num_envs) for i in range(num_envs)]
    envs = make_envs(env_id, num_envs, training=False, **(env_kwargs or {}))
    state, _ = envs.reset(seed=reset_seed(seed, STREAM))
    begin_episodes(policy, np.ones(num_envs, bool))
    returns: list[list[float]] = [[] for _ in range(num_envs)]
    running, idle = np.zeros(num_envs), np.zeros(num_envs, int)
    progress = Progress(episodes, unit="evaluation game") if envs.is_atari else None
    started = time.perf_counter()
    while any(len(r) < q for r, q in zip(returns, quota, strict=True)):
        state, reward, terminated, truncated, _ = envs.step(policy(state))
        running += reward
        idle = np.where(reward != 0.0, 0, idle + 1)
        stuck = (idle >= ATARI_PATIENCE) & envs.is_atari
        for i in np.flatnonzero(terminated | truncated | stuck):
            if len(returns[i]) < quota[i]:
                returns[i].append(float(running[i]))
            running[i], idle[i] = 0.0, 0
            if progress is None and time.perf_counter() - started > PATIENCE:
                progress = Progress(episodes, unit="evaluation episode")
            if progress is not None:
                progress.update(sum(map(len, returns)))
        if stuck.any():
            state = envs.restart(stuck)
        begin_episodes(policy, terminated | truncated | stuck)
    if progress is not None:
        progress.close()
    envs.close()
    return [value for one in returns for value in one]


def report(
    result: Result,
    config: RunConfig,
    targets: Mapping[str, float] | None = None,
    env_kwargs: Mapping[str, Any] | None = None,
    judged_by: str = "",
) -> Evaluation:
    """Evaluates the trained policy, writes `evaluation.json` and pictures, prints the verdict.

    No target is known for a map of one's own (`--map`).

    Args:
        result: what `train` returned.
        config: the script's flags; `env_id`, `seed` and `eval_episodes` are used.
        targets: mean return that counts as solved, by environment; for others the registry's
            threshold is taken, if it has one.
        env_kwargs: arguments of the environment's constructor.
        judged_by: one of the result's facts that is compared with the target, where it is known, in
            place of the mean return of the episodes played.
    """
    env_id, seed = config.env_id, config.seed  # type: ignore[attr-defined]
    assert result.policy is not None
    returns = episode_returns(result.policy, env_id, config.eval_episodes, seed, env_kwargs)
    target = (targets or {}).get(env_id, reward_threshold(env_id))
    target = None if getattr(config, "map", "") else target
    mean, std = float(np.mean(returns)), float(np.std(returns))
    judged = result.facts.get(judged_by)
    evaluation = Evaluation(
        env_id=env_id,
        seed=seed,
        episodes=len(returns),
        mean_return=mean,
        std_return=std,
        returns=returns,
        total_timesteps=result.total_timesteps,
        train_seconds=round(result.train_seconds, 3),
        steps_per_second=_rate(result),
        target=target,
        solved=None if target is None else (mean if judged is None else judged) >= target,
    )
    write_json(result.run_dir / "evaluation.json", asdict(evaluation) | _facts(result))
    if plots.RETURN in read_metrics(result.run_dir):  # else the script has drawn its own curve
        plots.learning_curve(result.run_dir, target)
    rows = {"environment": env_id} | _rows(result)
    if config.capture_video:
        path = result.run_dir / "videos" / f"{env_id.replace('/', '-').replace(':', '-')}.mp4"
        film = video.record(result.policy, env_id, reset_seed(seed, STREAM), path, env_kwargs)
        rows["video"] = str(film)
    _print_table(rows)
    name = judged_by.replace("_", " ")
    print(verdict(evaluation, "" if judged is None else f"{name} {judged:.4g}"))
    return evaluation


def report_measure(
    result: Result,
    config: RunConfig,
    measure: str,
    value: float,
    target: float | None = None,
    at_most: bool = False,
) -> dict[str, Any]:
    """`report` for scripts without a policy to evaluate: one number against its target.

    Args:
        result: what `train` returned.
        config: the script's flags.
        measure: what the number is, e.g. "accuracy"; its key in `evaluation.json`, with
            underscores for spaces.
        value: the number.
        target: what counts as solved; None if nothing does.
        at_most: whether smaller is better.

    Returns:
        The contents of `evaluation.json`.
    """
    solved = None
    if target is not None:
        solved = bool(value <= target if at_most else value >= target)
    env_id = getattr(config, "env_id", None)
    evaluation: dict[str, Any] = {
        **({"env_id": env_id} if env_id else {}),
        "seed": getattr(config, "seed", None),
        measure.replace(" ", "_"): float(value),
        "total_timesteps": result.total_timesteps,
        "train_seconds": round(result.train_seconds, 3),
        "steps_per_second": _rate(result),
        "target": target,
        "solved": solved,
        **_facts(result),
    }
    write_json(result.run_dir / "evaluation.json", evaluation)
    _print_table(({"environment": env_id} if env_id else {}) | _rows(result))
    word = {True: "solved", False: "not solved", None: "finished"}[solved]
    goal = "" if target is None else f" (target {'at most ' if at_most else ''}{target:g})"
    print(f"{word}: {measure} {value:.4g}{goal}")
    return evaluation


def _facts(result: Result) -> dict[str, Any]:
    return result.facts | ({} if result.unit == "step" else {"unit": result.unit})


def _rate(result: Result) -> float:
    return round(result.total_timesteps / max(result.train_seconds, 1e-9), 1)


def _rows(result: Result) -> dict[str, str]:
    return {
        f"{result.unit}s": f"{result.total_timesteps:,}",
        "training time": f"{result.train_seconds:.1f} s",
        "speed": f"{_rate(result):,.0f} {result.unit}s/s",
        **{name: f"{value:.10g}" for name, value in result.facts.items() if value is not None},
        "run directory": str(result.run_dir),
        "pictures": ", ".join(sorted(path.name for path in result.run_dir.glob("*.png"))),
    }


def _print_table(rows: Mapping[str, str]) -> None:
    width = max(18, max(map(len, rows)) + 2)
    print()
    for name, value in rows.items():
        print(f"  {name:<{width}}{value}")


def verdict(evaluation: Evaluation, judged: str = "") -> str:
    """The one line a reader looks for.

    Args:
        evaluation: what was found.
        judged: what was compared with the target, if not the mean return.
    """
    word = {True: "solved", False: "not solved", None: "finished"}[evaluation.solved]
    digits = 1 if abs(evaluation.mean_return) >= 10 else 3
    goal = "" if evaluation.target is None else f" (target {evaluation.target:g})"
    played = (
        f"mean return {evaluation.mean_return:.{digits}f} "
        f"+- {evaluation.std_return:.{digits}f} over {evaluation.episodes} episodes"
    )
    return f"{word}: {judged}{goal}; {played}" if judged else f"{word}: {played}{goal}"


def write_json(path: Path, contents: dict) -> None:
    """Writes JSON atomically; numbers that are not finite, which JSON has not, become null.

    Raises:
        UserError: the file cannot be written.
    """
    temporary = path.with_suffix(".tmp")
    try:
        text = json.dumps({key: _finite(value) for key, value in contents.items()}, indent=2)
        temporary.write_text(text + "\n")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room and use --resume {path.parent}"
        ) from error


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
