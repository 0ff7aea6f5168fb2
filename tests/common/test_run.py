"""What a run tells scripts that count episodes."""

from dataclasses import dataclass

from common import checkpoint
from common.config import RunConfig
from common.run import Run

import numpy as np


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
