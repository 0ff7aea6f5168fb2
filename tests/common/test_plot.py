"""Pictures of runs: the numbers behind them, the files, and the command line's errors."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import plot, plots
from common.errors import UserError

import matplotlib
import numpy as np
import pytest

RETURN = "charts/episode_return"
ROOT = Path(plots.__file__).parents[1]
PNG = b"\x89PNG\r\n\x1a\n"


def make_run(
    run_dir: Path,
    metrics: dict[str, Any] | None = None,
    /,
    script: str = "chapter09_dqn/dqn.py",
    created: str = "2025-01-01T00:00:00+0000",
    **config: Any,
) -> Path:
    """A run directory; `metrics` maps names to columns in which NaN is an empty cell."""
    if metrics is None:
        steps = np.arange(1, 51) * 100
        metrics = {"step": steps, RETURN: steps / 10.0, "train/loss": 1.0 / steps}
    flags = {"env_id": "CartPole-v1", "seed": 0, "total_timesteps": 5000, "run_dir": ""} | config
    run_dir.mkdir(parents=True)
    document = {"format": 1, "script": script, "config": flags, "created": created}
    (run_dir / "config.json").write_text(json.dumps(document))
    columns = {"step": metrics["step"], "time": np.asarray(metrics["step"]) / 1000.0} | metrics
    rows = [",".join(columns)]
    for row in zip(*columns.values(), strict=True):
        rows.append(",".join("" if np.isnan(value) else f"{value:.9g}" for value in row))
    (run_dir / "metrics.csv").write_text("\n".join(rows) + "\n")
    return run_dir


def run(cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "common.plot", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def picture(path: Path) -> np.ndarray:
    """Pixels [height, width, 4] in 0..1."""
    from matplotlib.image import imread

    assert path.read_bytes().startswith(PNG)
    return imread(path)


def pixels(path: Path, color: str) -> np.ndarray:
    """Which pixels of a picture have a colour: [height, width]."""
    wanted = np.array(matplotlib.colors.to_rgb(color))
    return np.abs(picture(path)[..., :3] - wanted).max(axis=-1) < 0.02


def shows(path: Path, color: str, count: int = 50) -> bool:
    """Whether a colour covers at least so many pixels of a picture."""
    return int(pixels(path, color).sum()) >= count


def shows_target(path: Path) -> bool:
    """Whether there is a horizontal line in the target's grey (the letters have grey edges)."""
    return int(pixels(path, plots.GREY).sum(axis=1).max()) >= 200


# --- the numbers ---------------------------------------------------------------------------


def test_smoothing_is_the_mean_over_exactly_the_window() -> None:
    values = np.array([0.0, 0.0, 6.0, 0.0, 0.0])
    np.testing.assert_allclose(plots.smooth(values, 1), values)
    np.testing.assert_allclose(plots.smooth(values, 3), [0.0, 2.0, 2.0, 2.0, 0.0])
    np.testing.assert_allclose(plots.smooth(values, 2), [0.0, 3.0, 3.0, 0.0, 0.0])
    np.testing.assert_allclose(plots.smooth(values, 99), np.full(5, 1.2))
    assert plots.smooth(np.empty(0), 5).shape == (0,)


def test_empty_and_infinite_cells_are_no_points() -> None:
    metrics = {"step": np.arange(4.0), RETURN: np.array([np.nan, 1.0, np.inf, 3.0])}
    steps, values = plots.curve(metrics, RETURN)
    np.testing.assert_array_equal(steps, [1.0, 3.0])
    np.testing.assert_array_equal(values, [1.0, 3.0])
    assert len(plots.curve(metrics, "train/loss")[0]) == 0


def test_the_band_of_two_runs_is_exact() -> None:
    # Resamples of {0, 4} have means 0 (1/4), 2 (1/2), 4 (1/4): the 95 % interval is [0, 4] and
    # the 40 % interval, between the quantiles 0.3 and 0.7, is [2, 2].
    steps = np.array([10.0, 20.0])
    curves = [(steps, np.zeros(2)), (steps, np.full(2, 4.0))]
    band = plots.confidence_band(curves)
    np.testing.assert_array_equal(band.steps, steps)
    np.testing.assert_array_equal(band.mean, [2.0, 2.0])
    np.testing.assert_array_equal(band.low, [0.0, 0.0])
    np.testing.assert_array_equal(band.high, [4.0, 4.0])
    narrow = plots.confidence_band(curves, confidence=0.4)
    np.testing.assert_array_equal([narrow.low, narrow.high], np.full((2, 2), 2.0))


def test_the_band_has_the_width_of_the_standard_error() -> None:
    # For many runs the bootstrap of the mean tends to the normal interval, 1.96 σ / √N.
    values = np.random.default_rng(1).normal(size=(100, 1))
    band = plots.confidence_band([(np.zeros(1), row) for row in values], resamples=20_000)
    expected = 2 * 1.96 * values.std() / np.sqrt(100)
    assert (band.high - band.low)[0] == pytest.approx(expected, rel=0.03)


def test_the_band_is_the_same_every_time() -> None:
    rng = np.random.default_rng(0)
    curves = [(np.arange(5.0), rng.normal(size=5)) for _ in range(5)]
    first, second = plots.confidence_band(curves), plots.confidence_band(curves)
    np.testing.assert_array_equal(first.low, second.low)
    np.testing.assert_array_equal(first.high, second.high)


def test_runs_on_different_steps_meet_on_a_common_grid_without_extrapolation() -> None:
    one = (np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 20.0]))
    two = (np.array([5.0, 15.0, 40.0]), np.array([7.0, 17.0, 42.0]))
    band = plots.confidence_band([one, two], points=31)
    assert (band.steps[0], band.steps[-1], len(band.steps)) == (5.0, 20.0, 31)
    np.testing.assert_allclose(band.mean, band.steps + 1.0)
    np.testing.assert_allclose(band.low, band.steps)
    np.testing.assert_allclose(band.high, band.steps + 2.0)


def test_one_run_has_a_band_of_no_width() -> None:
    band = plots.confidence_band([(np.arange(3.0), np.arange(3.0))])
    np.testing.assert_array_equal(band.low, band.mean)
    np.testing.assert_array_equal(band.high, band.mean)


def test_a_band_needs_steps_in_common() -> None:
    with pytest.raises(ValueError, match="no step is covered"):
        plots.confidence_band([(np.array([0.0, 1.0]),) * 2, (np.array([2.0, 3.0]),) * 2])
    with pytest.raises(ValueError, match="no empty one"):
        plots.confidence_band([(np.empty(0), np.empty(0))])


# --- the learning curve of one run ---------------------------------------------------------


def test_a_learning_curve_is_drawn_into_the_run_directory(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    path = plots.learning_curve(run_dir, target=475.0)
    assert path == run_dir / "learning_curve.png"
    assert shows(path, plots.PALETTE[0])  # return
    assert shows(path, plots.PALETTE[1])  # loss
    assert shows_target(path)
    assert sorted(file.name for file in run_dir.iterdir()) == [
        "config.json",
        "learning_curve.png",
        "metrics.csv",
    ]


def test_only_what_the_run_has_is_drawn(tmp_path: Path) -> None:
    steps = np.arange(1.0, 21.0)
    run_dir = make_run(tmp_path / "run", {"step": steps, RETURN: steps})
    path = plots.learning_curve(run_dir)
    assert shows(path, plots.PALETTE[0])
    assert not shows(path, plots.PALETTE[1])
    assert not shows_target(path)
    alone = picture(path).shape[1]
    beside = picture(plots.learning_curve(make_run(tmp_path / "with_loss"))).shape[1]
    assert alone < beside


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_run_in_which_no_episode_ended_is_drawn_all_the_same(tmp_path: Path, rows: int) -> None:
    steps = np.arange(float(rows))
    run_dir = make_run(tmp_path / "run", {"step": steps, RETURN: np.full(rows, np.nan)})
    path = plots.learning_curve(run_dir)
    assert not shows(path, plots.PALETTE[0])
    # In the middle stands why: "no episode ended".
    grey = pixels(path, plots.GREY)
    height, width = grey.shape
    assert grey[int(0.4 * height) : int(0.6 * height), width // 3 : 2 * width // 3].any()


def test_a_single_point_is_a_curve(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run", {"step": np.array([7.0]), RETURN: np.array([1.0])})
    assert plots.learning_curve(run_dir).read_bytes().startswith(PNG)


def test_tabular_runs_count_episodes(tmp_path: Path) -> None:
    assert plots.run_info(make_run(tmp_path / "a")).step_unit == "environment steps"
    info = plots.RunInfo(tmp_path, "td_sarsa", "", 0, {"num_episodes": 3}, "")
    assert info.step_unit == "episodes"


def test_drawing_leaves_backend_and_style_alone(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib; matplotlib.use('svg'); before = dict(matplotlib.rcParams)\n"
        "from pathlib import Path\n"
        "from common import plots\n"
        "plots.learning_curve(Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert dict(matplotlib.rcParams) == before\n"
    )
    run_dir = make_run(tmp_path / "run")
    subprocess.run([sys.executable, "-c", code, str(run_dir)], check=True)
    assert (run_dir / "learning_curve.png").read_bytes().startswith(PNG)


def test_a_figure_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "values.png"
    with pytest.raises(ValueError, match="same first dimension"), plots.figure(path) as (axes,):
        axes.plot([1, 2], [1, 2, 3])
    assert not path.exists()
    with plots.figure(path, rows=2, columns=2) as panels:
        assert len(panels) == 4
        panels[3].plot([1, 2], [1, 2])
    assert shows(path, plots.PALETTE[0])
    assert [file.name for file in path.parent.iterdir()] == ["values.png"]


def test_pictures_that_cannot_be_written_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"must end in one of .*\.png"), plots.figure(Path("x.xyz")):
        pass
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"), plots.figure(tmp_path / "file/x.png"):
        pass


# --- several runs --------------------------------------------------------------------------


def test_runs_that_differ_in_seed_only_are_one_group(tmp_path: Path) -> None:
    for seed in (2, 0, 1):
        make_run(tmp_path / f"a{seed}", seed=seed, run_dir=f"somewhere/{seed}", learning_rate=0.001)
    make_run(tmp_path / "b", learning_rate=0.01)
    make_run(tmp_path / "c", script="chapter09_dqn/double_dqn.py", learning_rate=0.001)
    groups = plot.group_runs(plot.find_runs([tmp_path]))
    assert [[run.path.name for run in group] for group in groups] == [
        ["a0", "a1", "a2"],
        ["b"],
        ["c"],
    ]
    title, labels = plot.label_groups(groups)
    assert title == "CartPole-v1"
    assert labels == ["dqn, learning_rate=0.001", "dqn, learning_rate=0.01", "double_dqn"]


def test_labels_name_the_environment_where_it_differs(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", env_id="Acrobot-v1")
    title, labels = plot.label_groups(plot.group_runs(plot.find_runs([tmp_path])))
    assert title == "dqn"
    assert labels == ["dqn, CartPole-v1", "dqn, Acrobot-v1"]


def test_of_two_runs_of_one_seed_the_newer_counts(tmp_path: Path) -> None:
    make_run(tmp_path / "a", created="2025-01-02T00:00:00+0000")
    make_run(tmp_path / "b", created="2025-01-01T00:00:00+0000")
    make_run(tmp_path / "c", seed=1)
    (group,) = plot.group_runs(plot.find_runs([tmp_path]))
    assert [run.path.name for run in group] == ["a", "c"]
    result = run(tmp_path, tmp_path)
    assert "newer run of the same seed: 1" in result.stderr
    assert "dqn: 2 runs" in result.stdout


def test_a_run_given_twice_is_one_run(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "runs" / "a")
    assert len(plot.find_runs([run_dir, tmp_path, run_dir])) == 1


def test_plot_draws_a_curve_and_a_band_per_group(tmp_path: Path) -> None:
    steps = np.arange(1.0, 51.0) * 100
    for seed in range(3):
        noise = 1000 * np.random.default_rng(seed).normal()
        make_run(tmp_path / f"runs/{seed}", {"step": steps, RETURN: steps + noise}, seed=seed)
    result = run(tmp_path, "runs")
    assert result.returncode == 0, result.stderr
    assert "dqn: 3 runs" in result.stdout
    out = tmp_path / "learning_curves.png"
    # The band is the curve's colour, drawn over white with one fifth of its weight.
    band = tuple(0.8 + 0.2 * part for part in matplotlib.colors.to_rgb(plots.PALETTE[0]))
    assert shows(out, plots.PALETTE[0])
    assert shows(out, matplotlib.colors.to_hex(band), count=2000)

    result = run(tmp_path, "runs/0", "--output", "one.png")
    assert "dqn: 1 run\n" in result.stdout
    assert shows(tmp_path / "one.png", plots.PALETTE[0])
    assert not shows(tmp_path / "one.png", matplotlib.colors.to_hex(band), count=2000)


def test_runs_without_the_metric_are_left_out_with_a_note(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "dqn")
    sweeps = {"step": np.arange(1, 4), "train/delta": np.ones(3)}
    make_run(
        tmp_path / "runs" / "dp", sweeps, script="chapter01_fundamentals/dp_value_iteration.py"
    )
    done = run(tmp_path, "runs")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("dqn: 1 run\n")
    assert done.stderr == f"note: left out, without {RETURN}: dp_value_iteration\n"


def test_a_smoothed_single_run_keeps_its_raw_points(tmp_path: Path) -> None:
    steps = np.arange(1.0, 41.0)
    make_run(tmp_path / "run", {"step": steps, RETURN: (-1.0) ** steps})
    out = plots.compare({"dqn": [tmp_path / "run"]}, RETURN, tmp_path / "x.png", window=2)
    # Points at -1 and 1 hold the flat curve at 0 in the middle; without them it lies at the bottom.
    rgb = picture(out)[..., :3]
    colored = rgb.max(axis=-1) - rgb.min(axis=-1) > 0.1
    height = len(colored)
    assert int(colored[height // 3 : 2 * height // 3].sum(axis=1).max()) >= 400
    assert int(colored[3 * height // 4 :].sum()) >= 40


def test_plot_draws_other_metrics_smoothed_and_as_svg(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    arguments = ["run", "--metric", "train/loss", "--smooth", "5", "--output", "loss.svg"]
    result = run(tmp_path, *arguments)
    assert result.returncode == 0, result.stderr
    assert "<svg" in (tmp_path / "loss.svg").read_text()


def test_plot_draws_several_metrics_of_one_run_in_one_picture(tmp_path: Path) -> None:
    """The second one dashed; a run that lacks one of them is left out, and said to be."""
    make_run(tmp_path / "run")
    make_run(tmp_path / "without", {"step": np.arange(3.0), RETURN: np.arange(3.0)}, script="b.py")
    for metrics in ([RETURN], [RETURN, "train/loss"], [RETURN, "train/los"]):
        result = run(
            tmp_path, "run", "without", "--metric", *metrics, "--output", f"{len(metrics)}.svg"
        )
        if metrics[-1] == "train/los":
            assert result.returncode == 2
            assert "--metric train/los: no values of it" in result.stderr
        else:
            assert result.returncode == 0, result.stderr
            left_out = "note: left out, without charts/episode_return or train/loss: b"
            assert (left_out in result.stderr) == (len(metrics) == 2)
    assert "stroke-dasharray" not in (tmp_path / "1.svg").read_text()
    assert "stroke-dasharray" in (tmp_path / "2.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "RUN nowhere: no such directory"),
        (["empty"], "RUN empty: no run in it or below it"),
        (["broken"], "broken is not a run directory: config.json cannot be read"),
        (["run", "--metric", "train/los"], "--metric train/los: no values of it in run; there are"),
        (["run", "--smooth", "0"], "--smooth 0: must be at least 1"),
        (["run", "--output", "x.xyz"], "x.xyz: a picture's name must end in one of"),
        (["late", "early"], "cannot be averaged: no step is covered by all curves"),
    ],
)
def test_wrong_input_ends_in_one_sentence(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (make_run(tmp_path / "broken") / "config.json").write_text("{")
    values = {"step": np.array([1.0, 2.0]), RETURN: np.array([1.0, 2.0])}
    make_run(tmp_path / "early", values)
    make_run(tmp_path / "late", {**values, "step": np.array([3.0, 4.0])}, seed=1)
    result = run(tmp_path, *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    if "--metric" in arguments:
        assert f"{RETURN}, train/loss" in result.stderr
    assert not list(tmp_path.glob("*.png"))
