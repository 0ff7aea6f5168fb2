"""Draws learning curves and anything else a script has to show, in one house style.

Only matplotlib's object-oriented interface is used: no pyplot, no global backend, no window. A
notebook or an interactive session that imports this module keeps its own backend and style.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.metrics import read_metrics

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from matplotlib.ticker import EngFormatter, MaxNLocator

# Okabe and Ito's palette (2008), distinct for every common kind of colour blindness; its yellow
# is left out because it vanishes on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#666666"

STYLE: dict[str, Any] = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelsize": 10,
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=PALETTE),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 11,
    "figure.dpi": 120,
    "figure.titlesize": 12,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "savefig.dpi": 120,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}

RETURN = "charts/episode_return"

# What the small panels beside the return show, if the run has it: metric and axis label.
SIDE_PANELS = (
    ("train/loss", "loss"),
    ("train/policy_loss", "policy loss"),
    ("train/value_loss", "value loss"),
    ("train/q_value", "mean Q(s, a)"),
    ("train/value", "mean V(s)"),
)
LABELS = {
    RETURN: "episode return (sum of rewards)",
    "charts/episode_length": "episode length [steps]",
    "charts/steps_per_second": "environment steps per second",
    "train/entropy": "policy entropy [nats]",
    "train/kl": "KL divergence [nats]",
    "train/epsilon": "exploration rate ε",
    "train/true_return": "true discounted return",
    "train/learning_rate": "learning rate",
    **dict(SIDE_PANELS),
}


@contextmanager
def figure(
    path: Path, rows: int = 1, columns: int = 1, size: tuple[float, float] | None = None
) -> Iterator[list[Axes]]:
    """House-style axes, row by row, written to `path` when the block ends.

        with figure(run_dir / "values.png", columns=2) as (left, right):
            left.plot(...)

    `size` is in inches at 120 dots each; the suffix of `path` chooses the format. The file
    appears complete or not at all. Raises UserError for a format matplotlib cannot write.
    """
    with matplotlib.rc_context(STYLE):
        canvas = FigureCanvasAgg(
            Figure(figsize=size or (6.0 * columns, 4.0 * rows), layout="tight")
        )
        yield list(canvas.figure.subplots(rows, columns, squeeze=False).flat)
        save(canvas.figure, path)


def save(drawing: Figure, path: Path) -> Path:
    """Write a figure under a temporary name and rename it; returns `path`.

    Raises UserError for a format that matplotlib cannot write and a place that cannot be written.
    """
    kind = path.suffix.removeprefix(".").lower()
    known = sorted(drawing.canvas.get_supported_filetypes())
    if kind not in known:
        raise UserError(f"{path}: a picture's name must end in one of .{', .'.join(known)}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            drawing.savefig(temporary, format=kind)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from None
    return path


# ---------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunInfo:
    """What `config.json` says about a run."""

    path: Path
    script: str  # "dqn"
    env_id: str  # "" for a script without environment
    seed: int | None
    config: dict[str, Any]  # every flag
    created: str

    @property
    def step_unit(self) -> str:
        """What a step of this run's metrics is."""
        tabular = "num_episodes" in self.config and "total_timesteps" not in self.config
        return "episodes" if tabular else "environment steps"


def run_info(run_dir: Path) -> RunInfo:
    """Read `config.json` of a run directory; UserError if there is none that can be read."""
    try:
        document = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
        config = dict(document["config"])
        script = Path(document["script"]).stem
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{run_dir} is not a run directory: config.json cannot be read ({error})"
        ) from None
    return RunInfo(
        path=run_dir,
        script=script,
        env_id=str(config.get("env_id") or ""),
        seed=config.get("seed"),
        config=config,
        created=str(document.get("created", "")),
    )


def curve(metrics: Mapping[str, np.ndarray], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps [N] and values [N] of one metric, without the rows that have no finite value."""
    if metric not in metrics:
        return np.empty(0), np.empty(0)
    steps, values = metrics["step"], metrics[metric]
    kept = np.isfinite(values)
    return steps[kept], values[kept]


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Moving average [N] -> [N] over `window` points around each point; 1 leaves them alone.

    Near the ends the window holds only the points there are.
    """
    index = np.arange(len(values))
    start = np.maximum(index - (window - 1) // 2, 0)
    stop = np.minimum(index + window // 2 + 1, len(values))
    total = np.concatenate([[0.0], np.cumsum(values)])
    return (total[stop] - total[start]) / (stop - start)


# ---------------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------------


def learning_curve(run_dir: Path, target: float | None = None) -> Path:
    """Draw `learning_curve.png` of a run into its directory and return its path.

    The return over steps, raw and averaged over a twentieth of the run, with the target score
    as a line if there is one; beside it losses and values, as far as the run has them. A run in
    which no episode ended gives an empty panel that says so. UserError if it is no run.
    """
    info, metrics = run_info(run_dir), read_metrics(run_dir)
    sides = [(name, label) for name, label in SIDE_PANELS if len(curve(metrics, name)[0])]
    path = run_dir / "learning_curve.png"

    with matplotlib.rc_context(STYLE):
        width = 9.5 if sides else 6.5
        drawing = FigureCanvasAgg(
            Figure(figsize=(width, max(4.0, 1.6 * len(sides))), layout="tight")
        ).figure
        ratios = [1.8, 1.0] if sides else [1.0]
        grid = drawing.add_gridspec(max(1, len(sides)), len(ratios), width_ratios=ratios)
        main = drawing.add_subplot(grid[:, 0])
        _draw_run(main, metrics, RETURN, PALETTE[0])
        if target is not None:
            main.axhline(
                target, color=GREY, linestyle="--", linewidth=1.2, label=f"target {target:g}"
            )
        if main.get_legend_handles_labels()[0]:
            main.legend(loc="best")
        label_steps(main, info.step_unit)
        main.set_ylabel(LABELS[RETURN])
        seed = "" if info.seed is None else f", seed {info.seed}"
        main.set_title(f"{info.script}{' on ' if info.env_id else ''}{info.env_id}{seed}")

        for row, (name, label) in enumerate(sides):
            side = drawing.add_subplot(grid[row, 1], sharex=main)
            _draw_run(side, metrics, name, PALETTE[1 + row])
            side.set_ylabel(label)
            side.yaxis.set_major_locator(MaxNLocator(4))
            if row + 1 < len(sides):
                side.tick_params(labelbottom=False)
            else:
                label_steps(side, info.step_unit)
        if len(metrics["step"]):  # the panels share it, and one of them may be empty
            main.set_xlim(0, max(1.0, metrics["step"][-1]))
        return save(drawing, path)


def _draw_run(axes: Axes, metrics: Mapping[str, np.ndarray], metric: str, color: str) -> None:
    steps, values = curve(metrics, metric)
    if not len(steps):
        axes.text(0.5, 0.53, "no episode ended", transform=axes.transAxes, ha="center", color=GREY)
        return
    window = max(1, len(values) // 20)
    axes.plot(steps, values, ".", markersize=3, alpha=0.3, color=color, label="as logged")
    label = f"mean of {window} points" if window > 1 else None
    axes.plot(steps, smooth(values, window), "-", color=color, label=label)


def label_steps(axes: Axes, unit: str) -> None:
    """Steps as 50k and 1M: long runs keep short numbers."""
    axes.set_xlabel(unit)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlim(left=0)


# ---------------------------------------------------------------------------------------------
# Several runs
# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """Mean of several curves and the interval in which it lies, all of shape [P]."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def confidence_band(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
    points: int = 200,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Band:
    """Mean over runs with its bootstrap confidence interval (percentile method, over runs).

    `curves` holds (steps [N_i], values [N_i]) of each run. Runs that logged at different steps
    are interpolated linearly to `points` steps; nothing is extrapolated, so the band ends where
    the shortest run does. With three runs the interval is a rough one: the bootstrap cannot see
    beyond the runs it has. One run gives a band of no width. ValueError if there is no step
    that all curves cover.
    """
    if not curves or not all(len(steps) for steps, _ in curves):
        raise ValueError("a confidence band needs at least one curve, and no empty one")
    first = max(steps[0] for steps, _ in curves)
    last = min(steps[-1] for steps, _ in curves)
    if first > last:
        raise ValueError(f"no step is covered by all curves: one begins at {first}, after {last}")
    same = all(np.array_equal(steps, curves[0][0]) for steps, _ in curves)
    grid = curves[0][0] if same else np.linspace(first, last, points)
    runs = np.stack([np.interp(grid, steps, values) for steps, values in curves])  # [N, P]

    # A resample of N runs is a row of counts that sums to N: all means are one product.
    count = len(runs)
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count  # [R, N]
    tail = (1 - confidence) / 2
    low, high = np.quantile(weights @ runs, [tail, 1 - tail], axis=0)  # [R, N] @ [N, P]
    return Band(grid, runs.mean(axis=0), low, high)


def compare(
    groups: Mapping[str, Sequence[Path]],
    metric: str | Sequence[str] = RETURN,
    out: Path = Path("learning_curves.png"),
    window: int = 1,
    title: str = "",
) -> Path:
    """Draw one curve per group of runs, with a 95 % band where it has several; returns `out`.

    `groups` maps a label to the run directories (one per seed) behind it; `metric` is one, or
    several, which keep their group's colour and differ in the style of the line; `window` is the
    moving average, in log points, taken of each run first. A run on its own is also drawn as
    faint raw points when it is smoothed. UserError if a run does not have a metric, or if runs of
    one group have no step in common.
    """
    metrics = [metric] if isinstance(metric, str) else list(dict.fromkeys(metric))
    with figure(out, size=(8.0, 4.8)) as (axes,):
        for number, (label, run_dirs) in enumerate(groups.items()):
            seeds = f"{len(run_dirs)} seeds" if len(run_dirs) > 1 else "1 run"
            round_of_colours, place = divmod(number, len(PALETTE))
            for i, name in enumerate(metrics):
                what = f"{label}: {_short(name)}" if len(metrics) > 1 else label
                style = STYLES[(i if len(metrics) > 1 else round_of_colours) % len(STYLES)]
                line = {"color": PALETTE[place], "linestyle": style, "label": f"{what} ({seeds})"}
                _draw_group(axes, label, run_dirs, name, window, line)
        units = {run_info(run_dir).step_unit for group in groups.values() for run_dir in group}
        label_steps(axes, " or ".join(sorted(units)))
        several = any(len(run_dirs) > 1 for run_dirs in groups.values())
        name = " and ".join(_short(name) for name in metrics)
        axes.set_ylabel(f"{name}\n(mean over seeds, 95 % interval)" if several else name)
        axes.set_title(title)
        axes.legend(loc="best")
    return out


STYLES = ("-", "--", ":", "-.")


def _short(metric: str) -> str:
    return LABELS.get(metric) or re.sub(r"^\w+/", "", metric).replace("_", " ")


def _draw_group(
    axes: Axes, label: str, run_dirs: Sequence[Path], metric: str, window: int, line: dict[str, Any]
) -> None:
    curves = []
    for run_dir in run_dirs:
        steps, values = _require(run_dir, metric)
        curves.append((steps, smooth(values, window)))
    try:
        band = confidence_band(curves)
    except ValueError as error:
        raise UserError(f'the runs of "{label}" cannot be averaged: {error}') from None
    axes.plot(band.steps, band.mean, **line)
    if len(run_dirs) > 1:
        axes.fill_between(
            band.steps, band.low, band.high, color=line["color"], alpha=0.2, linewidth=0
        )
    elif window > 1:
        steps, values = _require(run_dirs[0], metric)
        axes.plot(steps, values, ".", markersize=3, alpha=0.3, color=line["color"])


def _require(run_dir: Path, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """`curve`, or a UserError that lists the metrics the run does have."""
    metrics = read_metrics(run_dir)
    steps, values = curve(metrics, metric)
    if not len(steps):
        names = [
            name
            for name in metrics
            if name not in ("step", "time") and len(curve(metrics, name)[0])
        ]
        there = f"there are {', '.join(names)}" if names else "it has none at all"
        raise UserError(f"--metric {metric}: no values of it in {run_dir}; {there}")
    return steps, values
