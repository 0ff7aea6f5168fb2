"""`make bench`: our scripts against peers, alternating, at least three pairs each."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.cases import CASES, SB3, SBX, Case
from common.cli import command
from common.errors import UserError

HERE = Path(__file__).resolve().parent


def measure(side: str, case: Case, threads: int, *flags: str) -> dict[str, Any]:
    """One measurement of "ours" or of a peer, in a process of its own.

    Raises:
        UserError: the peer's environment is missing, or the measurement failed.
    """
    if side == "ours":
        line = [sys.executable, "-m", "benchmarks.ours", case.name, str(threads), *flags]
    elif side not in (SB3, SBX):
        line = [sys.executable, "-m", "benchmarks.ours", case.name, str(threads), "--peer"]
    else:
        line = [_peer_python(), str(HERE / "peer.py"), case.name, str(threads), side]
    done = subprocess.run(line, capture_output=True, text=True, cwd=HERE.parent, check=False)
    if done.returncode != 0:
        raise UserError(f"{' '.join(line)} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def _peer_python() -> str:
    path = os.environ.get("PEER_PYTHON", str(HERE.parent / ".venv-bench" / "bin" / "python"))
    if not Path(path).exists():
        raise UserError(f"PEER_PYTHON={path}: not there; `make bench` installs it")
    return str(Path(path).absolute())


def best_threads(side: str, case: Case) -> int:
    """The number of threads with which a side is fastest on this machine."""
    if len(case.threads) == 1:
        return case.threads[0]
    rates = {n: measure(side, case, n)["steps_per_second"] for n in case.threads}
    return max(rates, key=lambda n: rates[n])


def compare(case: Case, peer: str, pairs: int) -> dict[str, Any]:
    """Measures both sides in turn; returns an entry of `latest.json`."""
    threads = {side: best_threads(side, case) for side in ("ours", peer)}
    rates: dict[str, list[float]] = {"ours": [], peer: []}
    for _ in range(pairs):
        for side in ("ours", peer):
            rates[side].append(measure(side, case, threads[side])["steps_per_second"])
    ratios = sorted(a / b for a, b in zip(rates["ours"], rates[peer], strict=True))
    split = measure("ours", case, threads["ours"], "--split").get("split", {})
    return {
        "name": case.name,
        "ours": round(statistics.median(rates["ours"]), 1),
        "peer": peer,
        "theirs": round(statistics.median(rates[peer]), 1),
        "ratio": {
            "min": round(ratios[0], 2),
            "median": round(statistics.median(ratios), 2),
            "max": round(ratios[-1], 2),
        },
        "goal": case.goals()[peer],
        "threads": {"ours": threads["ours"], "theirs": threads[peer]},
        "split": {label: round(share, 3) for label, share in split.items()},
    }


def row(entry: dict[str, Any]) -> str:
    """A line of the table."""
    ratio, threads = entry["ratio"], entry["threads"]
    split = ", ".join(f"{label} {share:.0%}" for label, share in entry["split"].items())
    return (
        f"| {entry['name']} | {entry['ours']:,.0f} | {entry['peer']}: {entry['theirs']:,.0f} "
        f"| {ratio['min']:.2f} | **{ratio['median']:.2f}** | {ratio['max']:.2f} "
        f"| {entry['goal'] or '-'} | {threads['ours']} / {threads['theirs']} | {split} |"
    )


@command
def main() -> None:
    """Runs the benchmarks, prints a Markdown table, writes `latest.json`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=sorted(CASES), help="run just this one")
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side (3)")
    arguments = parser.parse_args()
    if arguments.pairs < 3:
        raise UserError(f"--pairs {arguments.pairs}: at least 3, or a median says nothing")
    if any({SB3, SBX} & {*CASES[name].peers} for name in arguments.only or CASES):
        _peer_python()
    print(f"{platform.machine()}, {os.cpu_count()} cores; steps/s are medians\n")
    print("| benchmark | ours, steps/s | peer, steps/s | ratio min | median | max | goal ", end="")
    print("| threads | where our time goes |\n|---|---|---|---|---|---|---|---|---|", flush=True)
    path = HERE / "latest.json"
    entries = {}
    if arguments.only and path.exists():  # keep what earlier runs measured of the others
        old = json.loads(path.read_text())
        entries = {(entry["name"], entry["peer"]): entry for entry in old}
    for name in arguments.only or CASES:
        for peer in CASES[name].peers:
            entries[name, peer] = compare(CASES[name], peer, arguments.pairs)
            print(row(entries[name, peer]), flush=True)
            order = [(known, peer) for known in CASES for peer in CASES[known].peers]
            ordered = [entries[key] for key in order if key in entries]
            path.write_text(json.dumps(ordered, indent=2) + "\n")


if __name__ == "__main__":
    main()
