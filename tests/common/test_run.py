"""A run: what it tells scripts, what it refuses, what it keeps over an interruption."""

import json
from dataclasses import dataclass

from common import checkpoint
from common.config import RunConfig
from common.errors import UserError
from common.metrics import read_metrics
from common.run import Run, read_config

import keras
import numpy as np
import pytest


@dataclass(frozen=True)
class Config(RunConfig):
    """The least a script has."""

    seed: int = 0


def seeds(config: Config, total: int, stop_after: int | None = None) -> list[int | None]:
    run = Run(config, __file__)
    run.track(nothing=np.zeros(1))
    found = []
    for episode in run.steps(total, unit="episode"):
        found.append(run.episode_seed)
        if stop_after is not None and episode + 1 == stop_after:
            break
    return found


def test_environments_begin_afresh_at_every_checkpoint_and_only_there(tmp_path):
    whole = seeds(Config(run_dir=str(tmp_path / "a"), seed=3, checkpoint_every=4), 10)
    fresh = [i for i, seed in enumerate(whole) if seed is not None]
    assert fresh == [0, 4, 8]
    assert len({whole[i] for i in fresh}) == 3
    other = seeds(Config(run_dir=str(tmp_path / "b"), seed=4, checkpoint_every=4), 10)
    assert not {whole[i] for i in fresh} & {other[i] for i in fresh}


def test_a_resumed_run_goes_on_with_the_same_seeds(tmp_path):
    config = Config(run_dir=str(tmp_path), seed=3, checkpoint_every=4)
    seeds(config, 10, stop_after=7)
    assert checkpoint.latest(tmp_path).stem == f"{4:012d}"
    again = seeds(Config(resume=str(tmp_path), seed=3, checkpoint_every=4), 10)
    whole = seeds(Config(run_dir=str(tmp_path / "b"), seed=3, checkpoint_every=4), 10)
    assert again == whole[4:]


def test_the_unit_of_steps_is_kept(tmp_path):
    run = Run(Config(run_dir=str(tmp_path)), __file__)
    for _ in run.steps(3, unit="sweep"):
        pass
    result = run.finish()
    assert (result.total_timesteps, result.unit, result.policy) == (3, "sweep", None)


def test_a_run_that_stopped_early_stays_stopped(tmp_path):
    def count(config: Config) -> int:
        run, passes = Run(config, __file__), 0
        run.track(nothing=np.zeros(1))
        for step in run.steps(10):
            passes += 1
            run.log({"train/step": step})
            if step == 3:
                run.stop()
        assert (run.finish().total_timesteps, run.stopped) == (4, True)
        return passes

    assert count(Config(run_dir=str(tmp_path))) == 4
    rows = (tmp_path / "metrics.csv").read_text()
    assert count(Config(resume=str(tmp_path))) == 0
    assert (tmp_path / "metrics.csv").read_text() == rows


def test_training_time_is_that_of_the_training_also_after_resuming(tmp_path):
    def seconds(config: Config) -> float:
        run = Run(config, __file__)
        run.track(nothing=np.zeros(1))
        for _ in run.steps(3):
            pass
        return run.finish().train_seconds

    first = seconds(Config(run_dir=str(tmp_path)))
    assert seconds(Config(resume=str(tmp_path))) == first > 0.0


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """The loss of the last update may be finite and its step may not."""
    layer = keras.layers.Dense(1)
    layer.build((None, 2))
    run = Run(Config(run_dir=str(tmp_path), checkpoint_every=2), __file__)
    run.track(layer=layer)
    with pytest.raises(UserError, match=r"layer has weights that are not finite by step 4.*0002"):
        for step in run.steps(10):
            if step == 3:
                layer.kernel.assign([[np.nan], [0.0]])
            run.log({"train/loss": 1.0})
    assert checkpoint.latest(tmp_path).stem == f"{2:012d}"


@dataclass(frozen=True)
class AlphaConfig(Config):
    """Has a step size, by another name."""

    alpha: float = 0.1


@dataclass(frozen=True)
class LearningRateConfig(Config):
    """Has a learning rate."""

    learning_rate: float = 0.1


@pytest.mark.parametrize(
    ("config_class", "remedy"),
    [
        (Config, ""),
        (AlphaConfig, ", lower --alpha"),
        (LearningRateConfig, ", lower --learning-rate"),
    ],
)
def test_a_remedy_is_a_flag_that_the_script_has(tmp_path, config_class, remedy):
    run = Run(config_class(run_dir=str(tmp_path)), __file__)
    with pytest.raises(UserError) as error:
        for _ in run.steps(3):
            run.log({"train/loss": np.inf})
    assert f"became inf by step 1: training diverged{remedy} (or" in str(error.value)


@pytest.mark.parametrize("left", ["config.json", "metrics.csv", "checkpoints/000000000007.npz"])
def test_what_is_left_of_another_run_is_not_mixed_with_a_new_one(tmp_path, left):
    seeds(Config(run_dir=str(tmp_path / "old")), 7)
    (tmp_path / "new" / left).parent.mkdir(parents=True)
    (tmp_path / "old" / left).rename(tmp_path / "new" / left)
    with pytest.raises(UserError, match="already holds a run, or what is left of one"):
        Run(Config(run_dir=str(tmp_path / "new")), __file__)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", "x"), ("seed", 0.5), ("seed", True), ("capture_video", 1), ("run_dir", None)],
)
def test_flags_of_the_wrong_kind_are_told(tmp_path, name, value):
    seeds(Config(run_dir=str(tmp_path)), 1)
    contents = json.loads((tmp_path / "config.json").read_text())
    contents["config"][name] = value
    (tmp_path / "config.json").write_text(json.dumps(contents))
    with pytest.raises(UserError, match=f"config.json has {name} = {value!r}, which is no "):
        read_config(tmp_path, Config)


def test_rows_are_means_by_weight(tmp_path):
    run = Run(Config(run_dir=str(tmp_path)), __file__)
    logged = [(1.0, 3), (5.0, 1), (float("nan"), 0), (7.0, 1), (9.0, 0), (9.0, 0)]
    for step in run.steps(6, log_every=2):
        value, weight = logged[step]
        run.log({"train/by_weight": value}, weight=weight)
        run.log({"train/plain": value if weight else 0.0})
    run.finish()
    metrics = read_metrics(tmp_path)
    np.testing.assert_array_equal(metrics["train/by_weight"], [2.0, 7.0, np.nan])
    np.testing.assert_array_equal(metrics["train/plain"], [3.0, 3.5, 0.0])


def test_weights_are_kept_over_an_interruption(tmp_path):
    def log(config, stop_after=None):
        run = Run(config, __file__)
        run.track(nothing=np.zeros(1))
        for step in run.steps(4, log_every=4):
            run.log({"train/by_weight": float(step)}, weight=10**step)
            if stop_after is not None and step + 1 == stop_after:
                return
        run.finish()

    log(Config(run_dir=str(tmp_path), checkpoint_every=2), stop_after=3)
    log(Config(resume=str(tmp_path), checkpoint_every=2))
    expected = (0 * 1 + 1 * 10 + 2 * 100 + 3 * 1000) / 1111
    assert read_metrics(tmp_path)["train/by_weight"].tolist() == [pytest.approx(expected)]
