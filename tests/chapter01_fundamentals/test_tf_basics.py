"""Derivatives, recorded graphs, timings, the fitted line, and what TensorBoard gets to see."""

import re

from chapter01_fundamentals import tf_basics as script
from chapter01_fundamentals.tf_basics import (
    MODES,
    Config,
    count_traces,
    cube_derivatives,
    least_squares,
    measure,
    works,
)
from common.metrics import read_metrics

import numpy as np
import pytest
import tensorflow as tf


@pytest.mark.parametrize("at", [-1.5, 0.0, 2.0])
def test_derivatives_of_the_cube(at):
    first, second = cube_derivatives(at)
    assert float(first) == pytest.approx(3.0 * at**2)
    assert float(second) == pytest.approx(6.0 * at)


def test_a_graph_is_recorded_for_each_shape_and_each_python_number():
    level = tf.get_logger().level
    assert list(count_traces().values()) == [1, 3, 3]
    assert tf.get_logger().level == level


def test_all_ways_of_running_are_timed():
    timings = measure(repeats=2)
    assert timings.keys() == works().keys()
    for row in timings.values():
        assert list(row) == list(MODES)
        for first, typical in row.values():
            assert 0.0 < typical < 1e8
            assert first > 0.0


def test_xla_is_xla():
    prepared = MODES["XLA"](lambda x: 2.0 * x + 1.0)
    assert float(prepared(tf.constant(3.0))) == 7.0
    assert "HloModule" in prepared.experimental_get_compiler_ir(tf.constant(3.0))(stage="hlo")
    with pytest.raises(ValueError, match="jit_compile"):
        MODES["tf.function"](lambda x: x).experimental_get_compiler_ir(tf.constant(3.0))()
    assert float(MODES["eager"](lambda x: -x)(2.0)) == -2.0


def test_least_squares():
    x = np.array([0.0, 1.0, 2.0, 4.0])
    np.testing.assert_allclose(least_squares(x, 3.0 - 2.0 * x), (-2.0, 3.0), atol=1e-12)
    y = np.array([1.0, -1.0, 0.5, 2.0])
    np.testing.assert_allclose(least_squares(x, y), np.polyfit(x, y, 1), atol=1e-12)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("basics") / "run"
    return script.train(Config(seed=3, repeats=1, run_dir=str(run_dir)))


def test_the_line_is_that_of_least_squares(finished):
    assert finished.facts["distance_from_least_squares"] < script.TARGET
    rng = np.random.default_rng([3, 1])
    x = rng.uniform(-1.0, 1.0, 100).astype(np.float32)
    y = (2.0 * x - 1.0 + rng.normal(0.0, 0.3, x.shape)).astype(np.float32)
    metrics = read_metrics(finished.run_dir)
    slope, intercept = np.polyfit(x, y, 1)
    assert metrics["train/w"][-1] == pytest.approx(slope, abs=1e-4)
    assert metrics["train/b"][-1] == pytest.approx(intercept, abs=1e-4)
    assert metrics["train/loss"][0] == pytest.approx(np.mean(y**2), rel=1e-5)  # w = b = 0
    assert metrics["train/loss"][-1] == pytest.approx(
        np.mean((y - slope * x - intercept) ** 2), rel=1e-4
    )


def test_timings_are_facts_and_not_metrics(finished):
    names = {name for name in finished.facts if name.endswith("_us")}
    assert len(names) == len(works()) * len(MODES)
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in names)
    assert not any(name.endswith("_us") for name in read_metrics(finished.run_dir))


def test_tensorboard_gets_scalars_histograms_and_the_graph(finished):
    [path] = (finished.run_dir / "tensorboard").glob("events.out.tfevents.*")
    kinds, graphs = set(), []
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        if event.graph_def:
            graphs.append(tf.compat.v1.GraphDef.FromString(event.graph_def))
        kinds |= {(v.tag, v.metadata.plugin_data.plugin_name) for v in event.summary.value}
    assert {("line/loss", "scalars"), ("line/error", "histograms")} <= kinds
    [graph] = graphs
    names = {node.name for node in graph.node}
    assert any(name.startswith("line/") for name in names)  # the name scopes
    assert any(name.startswith("loss/") for name in names)
    assert list(finished.run_dir.glob("events.out.tfevents.*"))  # the run's own, with metrics.csv


def test_the_pictures_are_there(finished):
    for name in ("timings.png", "learning_curve.png"):
        assert (finished.run_dir / name).stat().st_size > 10_000


@pytest.mark.parametrize("flag", ["--num-samples 1", "--repeats 0"])
def test_bad_flags(tmp_path, command_line, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    status, out, err = command_line("tf_basics", *flag.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {flag}: must be at least")
    assert list(tmp_path.iterdir()) == []
