"""`metrics.csv` and the TensorBoard events beside it, as real files."""

import csv

from common.errors import UserError
from common.metrics import MetricsWriter, read_metrics

import numpy as np
import pytest

LOSS, RETURN, VALUE = "train/loss", "charts/episode_return", "train/value"


def lines(run_dir):
    return (run_dir / "metrics.csv").read_text().splitlines()


def events(run_dir):
    """{tag: [(step, value), ...]} as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert len(list(run_dir.glob("events.out.tfevents.*"))) == 1
    reader = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)]
        for tag in reader.Tags()["scalars"]
    }


def test_rows_header_and_empty_cells(tmp_path):
    writer = MetricsWriter(tmp_path)
    assert lines(tmp_path) == ["step,time"]  # readable from the first moment
    writer.write(8, 0.12345, {LOSS: 0.5, RETURN: float("nan")})
    writer.write(16, 1.0, {LOSS: 0.25, RETURN: -21.0})
    writer.write(24, 2.0, {RETURN: 3.0})
    writer.close()
    assert lines(tmp_path) == [
        f"step,time,{LOSS},{RETURN}",
        "8,0.123,0.5,",
        "16,1,0.25,-21",
        "24,2,,3",
    ]


def test_rows_are_on_disk_at_once(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, 0.0, {LOSS: 1.0})
    assert len(lines(tmp_path)) == 2  # nobody closed the file: a killed run keeps its rows
    writer.close()


def test_a_late_metric_gets_a_column_and_earlier_rows_an_empty_cell(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, 0.0, {LOSS: 1.0})
    writer.write(2, 0.0, {VALUE: 2.0, LOSS: 3.0})
    writer.write(3, 0.0, {RETURN: 4.0})
    writer.close()
    assert lines(tmp_path) == [
        f"step,time,{LOSS},{VALUE},{RETURN}",
        "1,0,1,,",
        "2,0,3,2,",
        "3,0,,,4",
    ]


def test_digits_read_back_as_the_same_float32(tmp_path):
    values = np.random.default_rng(0).normal(size=200).astype(np.float32)
    values = np.concatenate([values, values * np.float32(1e-30), values * np.float32(1e30)])
    writer = MetricsWriter(tmp_path)
    for step, value in enumerate(values):
        writer.write(step, 0.0, {LOSS: float(value)})
    writer.close()
    with open(tmp_path / "metrics.csv", newline="") as file:
        read = [np.float32(row[LOSS]) for row in csv.DictReader(file)]
    np.testing.assert_array_equal(read, values)


def test_large_steps_keep_every_digit(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1_234_567_890_123, 86_400.5, {LOSS: 0.0})
    writer.close()
    assert lines(tmp_path)[1] == "1234567890123,86400.5,0"


def test_tensorboard_shows_the_same_names_and_values(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(8, 0.5, {LOSS: 0.1, RETURN: float("nan")})
    writer.write(16, 1.5, {LOSS: 0.2, RETURN: -20.5})
    writer.close()
    read = events(tmp_path)
    assert set(read) == {LOSS, RETURN}
    assert read[LOSS] == [(8, np.float32(0.1)), (16, np.float32(0.2))]
    assert read[RETURN] == [(16, -20.5)]


def write_rows(writer, steps, tail_from=4):
    """Rows as a run would write them: a metric joins at step `tail_from`."""
    for step in steps:
        values = {LOSS: 1 / step}
        if step >= tail_from:
            values[VALUE] = float(step**2)
        writer.write(step, step / 10, values)


def test_a_resumed_run_writes_what_an_uninterrupted_one_writes(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    writer = MetricsWriter(whole)
    write_rows(writer, range(1, 9))
    writer.close()

    writer = MetricsWriter(broken)
    write_rows(writer, range(1, 4))
    rows, columns = len(writer.rows), len(writer.columns)  # the checkpoint is written here
    write_rows(writer, range(4, 7))
    writer.close()  # killed after three more rows and one more column ...
    with open(broken / "metrics.csv", "a") as file:
        file.write("7,0.7,0.1")  # ... in the middle of a row
    writer = MetricsWriter(broken, rows, columns)
    assert lines(broken) == [f"step,time,{LOSS}", "1,0.1,1", "2,0.2,0.5", "3,0.3,0.333333333"]
    write_rows(writer, range(4, 9))
    writer.close()

    assert (broken / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    assert events(broken) == events(whole)


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    writer = MetricsWriter(tmp_path)
    write_rows(writer, range(1, 5))
    writer.close()
    writer = MetricsWriter(tmp_path)
    writer.close()
    assert lines(tmp_path) == ["step,time"]
    assert events(tmp_path) == {}


@pytest.mark.parametrize("damage", ["short", "empty", "missing"])
def test_metrics_that_do_not_reach_the_checkpoint_are_refused(tmp_path, damage):
    writer = MetricsWriter(tmp_path)
    write_rows(writer, range(1, 4))
    writer.close()
    path = tmp_path / "metrics.csv"
    if damage == "short":
        path.write_text("\n".join(lines(tmp_path)[:3]) + "\n")
    elif damage == "empty":
        path.write_text("")
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"metrics\.csv") as error:
        MetricsWriter(tmp_path, 3, 3)
    assert f"--resume {tmp_path}" in str(error.value)


def test_read_metrics(tmp_path):
    writer = MetricsWriter(tmp_path)
    write_rows(writer, (2, 4))
    writer.close()
    columns = read_metrics(tmp_path)
    assert list(columns) == ["step", "time", LOSS, VALUE]
    np.testing.assert_array_equal(columns["step"], [2, 4])
    np.testing.assert_array_equal(columns["time"], [0.2, 0.4])
    np.testing.assert_array_equal(columns[LOSS], [0.5, 0.25])
    np.testing.assert_array_equal(columns[VALUE], [np.nan, 16.0])


def test_read_metrics_of_a_run_without_rows(tmp_path):
    MetricsWriter(tmp_path).close()
    assert {name: len(column) for name, column in read_metrics(tmp_path).items()} == {
        "step": 0,
        "time": 0,
    }


@pytest.mark.parametrize("contents", [None, "", "step,time\n1,2\n3\n", "step,time\nx,y\n"])
def test_read_metrics_of_something_else(tmp_path, contents):
    if contents is not None:
        (tmp_path / "metrics.csv").write_text(contents)
    with pytest.raises(UserError, match=str(tmp_path)):
        read_metrics(tmp_path)
