"""Draws the learning curves of finished or running runs, one per configuration.

    python -m common.plot runs/dqn/CartPole-v1
    python -m common.plot runs/dqn runs/double_dqn --metric train/q_value train/true_return

Runs that differ only in their seed become one curve: their mean, with a 95 % bootstrap
confidence interval. A RUN may be a run directory or any directory above some.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from common.cli import command
from common.errors import UserError
from common.metrics import read_metrics
from common.plots import RETURN, RunInfo, compare, curve, run_info

# These flags do not make another configuration.
NOT_CONFIGURATION = ("seed", "run_dir", "resume")


def find_runs(places: Sequence[Path]) -> list[RunInfo]:
    """Every run in or below the given directories, once, by path.

    Raises UserError for a place that does not exist or holds no run.
    """
    found: dict[Path, RunInfo] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"RUN {place}: no such directory")
        run_dirs = [
            path.parent
            for path in sorted(place.rglob("metrics.csv"))
            if (path.parent / "config.json").is_file()
        ]
        if not run_dirs:
            raise UserError(
                f"RUN {place}: no run in it or below it (a run has config.json and metrics.csv)"
            )
        for run_dir in run_dirs:
            found.setdefault(run_dir.resolve(), run_info(run_dir))
    return list(found.values())


def group_runs(runs: Sequence[RunInfo]) -> list[list[RunInfo]]:
    """Runs that are equal but for their seed, together, in order of first appearance.

    If a seed was run twice, the newer run stands for it: the older one is no further sample.
    """
    groups: dict[str, dict[object, RunInfo]] = {}
    for run in runs:
        config = {name: run.config[name] for name in run.config if name not in NOT_CONFIGURATION}
        seeds = groups.setdefault(run.script + json.dumps(config, sort_keys=True), {})
        if run.seed not in seeds or seeds[run.seed].created <= run.created:
            seeds[run.seed] = run
    return [sorted(seeds.values(), key=lambda run: run.seed or 0) for seeds in groups.values()]


def label_groups(groups: Sequence[Sequence[RunInfo]]) -> tuple[str, list[str]]:
    """A title with what all groups share, and for each group a label with what sets it apart."""
    heads = [group[0] for group in groups]
    scripts = {head.script for head in heads}
    env_ids = {head.env_id for head in heads}
    labels = []
    for head in heads:
        parts = [head.script]
        if len(env_ids) > 1:
            parts.append(head.env_id or "no environment")
        # Flags are compared among the runs of one script: other scripts have other flags.
        rivals = [other for other in heads if other.script == head.script]
        for name in head.config:
            if name not in (*NOT_CONFIGURATION, "env_id"):
                values = {json.dumps(other.config.get(name)) for other in rivals}
                if len(values) > 1:
                    parts.append(f"{name}={head.config[name]}")
        labels.append(", ".join(parts))
    title = next(iter(scripts)) if len(scripts) == 1 else ""
    if len(env_ids) == 1 and heads[0].env_id:
        title += f"{' on ' if title else ''}{heads[0].env_id}"
    return title, labels


def has_metric(run: RunInfo, metric: str) -> bool:
    """Whether a run has at least one value of a metric."""
    return len(curve(read_metrics(run.path), metric)[0]) > 0


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m common.plot",
        description="Draw learning curves; runs that differ only in their seed become one curve.",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="run directory, or one above several"
    )
    parser.add_argument(
        "--metric",
        nargs="+",
        default=[RETURN],
        help=f"columns of metrics.csv, all in one picture (default: {RETURN})",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("learning_curves.png"),
        help="picture to write: .png, .pdf, .svg (default: %(default)s)",
    )
    parser.add_argument(
        "--smooth",
        type=int,
        default=1,
        metavar="N",
        help="moving average over N log points of each run (default: %(default)s, none)",
    )
    options = parser.parse_args()
    if options.smooth < 1:
        raise UserError(f"--smooth {options.smooth}: must be at least 1")

    runs = find_runs(options.runs)
    groups = group_runs(runs)
    title, labels = label_groups(groups)
    older = len(runs) - sum(len(group) for group in groups)
    if older:
        print(f"note: left out, for a newer run of the same seed: {older}", file=sys.stderr)

    # Scripts without episodes have no returns: a folder of all runs can still be drawn.
    kept = [
        i
        for i, group in enumerate(groups)
        if all(has_metric(run, metric) for run in group for metric in options.metric)
    ]
    if kept and len(kept) < len(groups):
        without = sorted({groups[i][0].script for i in range(len(groups)) if i not in kept})
        lacking = " or ".join(options.metric)
        print(f"note: left out, without {lacking}: {', '.join(without)}", file=sys.stderr)
        groups = [groups[i] for i in kept]
        title, labels = label_groups(groups)

    by_label = {
        label: [run.path for run in group] for label, group in zip(labels, groups, strict=True)
    }
    path = compare(by_label, options.metric, options.output, options.smooth, title)
    for label, group in by_label.items():
        print(f"{label}: {len(group)} {'run' if len(group) == 1 else 'runs'}")
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
