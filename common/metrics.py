"""Metrics on disk: `metrics.csv` for people and scripts, TensorBoard events with the same names."""

from __future__ import annotations

import csv
import io
import os
import time
from pathlib import Path
from typing import Any, TextIO

from common.errors import UserError

import numpy as np

# Columns that depend on the clock; everything else is the same, digit for digit, for one seed.
TIME_COLUMNS = ("time", "charts/steps_per_second")


def _cell(value: float | None) -> str:
    """Shortest text that reads back as the same float32; empty for "nothing to report"."""
    if value is None or np.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.9g}"


class MetricsWriter:
    """Appends rows to `metrics.csv` and to a TensorBoard event file.

    The header is `step,time,...`: names in order of first appearance. A name that appears later
    rewrites the file once with the longer header, so every row always fits it.
    """

    def __init__(self, run_dir: Path, keep_rows: int = 0, keep_columns: int = 2) -> None:
        """Opens the files; a resumed run keeps the first rows and columns, as its checkpoint says.

        Args:
            run_dir: an existing run directory.
            keep_rows: rows of an existing `metrics.csv` that stay; the rest is cut off.
            keep_columns: columns that were known when the checkpoint was written.
        """
        self.path = run_dir / "metrics.csv"
        self.columns = ["step", "time"]
        self.rows: list[list[str]] = []
        if keep_rows or keep_columns > 2:
            try:
                with open(self.path, newline="") as file:
                    header, *rows = list(csv.reader(file))
            except (OSError, ValueError):  # missing, or empty
                header, rows = [], []
            self.columns = header[:keep_columns]
            self.rows = [row[:keep_columns] for row in rows[:keep_rows]]
            if len(self.rows) < keep_rows or len(self.columns) < keep_columns:
                raise UserError(
                    f"--resume {run_dir}: metrics.csv has {len(self.rows)} rows but the checkpoint "
                    f"was written after row {keep_rows}; restore the file or start a new run"
                )
        self._file: TextIO | None = None
        self._rewrite()
        for old in run_dir.glob("events.out.tfevents.*"):
            old.unlink()
        self._events = _EventFile(run_dir)
        for row in self.rows:
            values = {
                name: float(cell) for name, cell in zip(self.columns, row, strict=True) if cell
            }
            del values["time"]  # TensorBoard has its own clock
            self._events.add(int(values.pop("step")), values)

    def write(self, step: int, seconds: float, values: dict[str, float]) -> None:
        """Adds one row: `step` in environment steps, `seconds` of training so far."""
        new = [name for name in values if name not in self.columns]
        if new:
            self.columns += new
            self.rows = [row + [""] * len(new) for row in self.rows]
            self._rewrite()
        cells = {"step": float(step), "time": round(seconds, 3), **values}
        row = [_cell(cells.get(name)) for name in self.columns]
        self.rows.append(row)
        assert self._file is not None
        try:
            self._file.write(",".join(row) + "\n")
            self._file.flush()
            self._events.add(step, {k: v for k, v in values.items() if not np.isnan(v)})
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; make room or choose another --run-dir"
            ) from error

    def close(self) -> None:
        """Closes both files."""
        if self._file is not None:
            self._file.close()
        self._events.close()

    def _rewrite(self) -> None:
        if self._file is not None:
            self._file.close()
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        temporary = self.path.with_suffix(".tmp")
        try:
            temporary.write_text(text.getvalue())
            os.replace(temporary, self.path)
            self._file = open(self.path, "a", newline="")  # noqa: SIM115  (lives as long as we do)
        except OSError as error:
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; make room or choose another --run-dir"
            ) from error


class _EventFile:
    """TensorBoard's record format through its own protos: tabular scripts need no TensorFlow."""

    def __init__(self, run_dir: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        path = run_dir / f"events.out.tfevents.{int(time.time())}.{os.getpid()}"
        self._file = open(path, "wb")  # noqa: SIM115  (lives as long as we do)
        self._writer = RecordWriter(self._file)
        self._put(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, step: int, values: dict[str, float]) -> None:
        items = [self._summary.Value(tag=k, simple_value=v) for k, v in values.items()]
        summary = self._summary(value=items)
        self._put(self._event(wall_time=time.time(), step=step, summary=summary))

    def _put(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(run_dir: Path | str) -> dict[str, np.ndarray]:
    """Columns of `metrics.csv` as float arrays of equal length, NaN where a cell is empty.

    Raises:
        UserError: the folder has no readable `metrics.csv`.
    """
    path = Path(run_dir) / "metrics.csv"
    try:
        with open(path, newline="") as file:
            header, *rows = list(csv.reader(file))
        table = np.array([[float(cell) if cell else np.nan for cell in row] for row in rows])
    except (OSError, ValueError) as error:
        raise UserError(f"{run_dir}: no readable metrics.csv; give the folder of a run") from error
    table = table.reshape(len(rows), len(header))
    return {name: table[:, i] for i, name in enumerate(header)}
