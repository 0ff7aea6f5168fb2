"""Evaluation: whole fresh episodes, as many as asked for, and a report of what they earned."""

import dataclasses
import json
from dataclasses import dataclass

from common import evaluation
from common.config import RunConfig
from common.environments import VectorEnvs, make_env, make_envs, reset_seed, vector
from common.errors import UserError
from common.evaluation import (
    MAX_ENVS,
    STREAM,
    Evaluation,
    episode_returns,
    report,
    report_measure,
    verdict,
    write_json,
)
from common.metrics import MetricsWriter
from common.run import Result

import numpy as np
import pytest

# Around the holes of the 4 x 4 map: down, down, right, down, right, right.
PATH = np.array([1, 0, 0, 0, 1, 0, 0, 0, 2, 1, 0, 0, 0, 2, 2, 0])


def along_the_path(state):
    return PATH[state]


def lean(state):
    """Keeps a pole up for a while: episodes of different lengths."""
    return (state[:, 2] > 0).astype(int)


@pytest.mark.parametrize("episodes", [1, 7, 25, 30, 60])
def test_as_many_episodes_as_asked_for(episodes):
    kwargs = {"is_slippery": False}
    returns = episode_returns(along_the_path, "FrozenLake-v1", episodes, 0, kwargs)
    assert returns == [1.0] * episodes


def test_no_episodes():
    with pytest.raises(UserError, match="--eval-episodes 0"):
        episode_returns(along_the_path, "FrozenLake-v1", 0, 0)


def first_states(env_id, seed, policy=lean):
    """The states in which evaluation begins."""
    seen = []

    def watch(state):
        seen.append(state.copy())
        return policy(state)

    episode_returns(watch, env_id, MAX_ENVS, seed)
    return seen[0]


def test_returns_are_those_of_environments_played_one_by_one():
    """Every copy plays its share whole, however short: no copy is counted more often."""
    returns = episode_returns(lean, "CartPole-v1", 60, seed=3)
    begun = first_states("CartPole-v1", seed=3)
    expected = []
    for i in range(MAX_ENVS):
        env = make_env("CartPole-v1")
        state, _ = env.reset(seed=reset_seed(3, STREAM) + i)
        np.testing.assert_array_equal(state, begun[i])
        for episode in range(3 if i < 10 else 2):  # 60 = 10 * 3 + 15 * 2
            if episode:
                state, _ = env.reset()
            done, total = False, 0.0
            while not done:
                state, reward, terminated, truncated, _ = env.step(int(lean(state[None])[0]))
                total += reward
                done = terminated or truncated
            expected.append(total)
    assert returns == expected
    assert len(set(returns)) > 10


def test_evaluation_is_repeatable_and_depends_on_the_seed():
    play = [episode_returns(lean, "CartPole-v1", 40, seed) for seed in (0, 0, 1)]
    assert play[0] == play[1] != play[2]


def test_evaluation_episodes_are_no_training_episodes():
    """Training begins episodes at steps 0, 10,000, ... of any seed; evaluation meets none."""
    evaluated = {
        state.tobytes() for seed in range(3) for state in first_states("CartPole-v1", seed)
    }
    assert len(evaluated) == 3 * MAX_ENVS
    envs = make_envs("CartPole-v1", 64)
    for seed in range(3):
        for step in [*range(0, 100_001, 10_000), *range(200_000, 3_000_001, 100_000), 10**7]:
            state, _ = envs.reset(seed=reset_seed(seed, step))
            assert not evaluated & {one.tobytes() for one in state}, (seed, step)
    envs.close()


@dataclass(frozen=True)
class Config(RunConfig):
    """The flags that `report` looks at."""

    env_id: str = "FrozenLake-v1"
    seed: int = 0


KEYS = (
    "env_id seed episodes mean_return std_return returns total_timesteps train_seconds "
    "steps_per_second target solved"
).split()


def finished_run(run_dir, policy=along_the_path, facts=None):
    """What `train` leaves behind."""
    config = {"script": "chapter09_dqn/dqn.py", "config": {"env_id": "FrozenLake-v1", "seed": 0}}
    (run_dir / "config.json").write_text(json.dumps(config))
    writer = MetricsWriter(run_dir)
    writer.write(100, 0.5, {"charts/episode_return": 0.25})
    writer.write(200, 1.0, {"charts/episode_return": 0.75})
    writer.close()
    return Result(policy, run_dir, 200, 1.6004, facts=facts or {})


def test_report_writes_evaluation_json_and_a_picture(tmp_path, capsys):
    result = finished_run(tmp_path, facts={"value_of_start": 0.5, "unknown": None})
    config = Config(eval_episodes=12, seed=5)
    kwargs = {"is_slippery": False}
    evaluation = report(result, config, {"FrozenLake-v1": 0.9}, kwargs)
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(written) == [*KEYS, "value_of_start", "unknown"]
    assert {key: written[key] for key in KEYS} == dataclasses.asdict(evaluation)
    assert written == {
        "env_id": "FrozenLake-v1",
        "seed": 5,
        "episodes": 12,
        "mean_return": 1.0,
        "std_return": 0.0,
        "returns": [1.0] * 12,
        "total_timesteps": 200,
        "train_seconds": 1.6,
        "steps_per_second": 125.0,
        "target": 0.9,
        "solved": True,
        "value_of_start": 0.5,
        "unknown": None,
    }
    assert (tmp_path / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "videos").exists()
    assert not list(tmp_path.glob("*.tmp"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "solved: mean return 1.000 +- 0.000 over 12 episodes (target 0.9)"
    assert any(str(tmp_path) in line for line in lines)


def test_the_registry_knows_targets_that_the_script_does_not(tmp_path):
    evaluation = report(finished_run(tmp_path, lean), Config("", "", 2, env_id="CartPole-v1"))
    assert evaluation.target == 475.0
    assert evaluation.solved is False


def test_without_a_target_nothing_is_solved(tmp_path):
    def walk(state):  # up, along the cliff, down
        return np.where(state == 36, 0, np.where(state == 35, 2, 1))

    config = Config(eval_episodes=3, env_id="CliffWalking-v1")
    evaluation = report(finished_run(tmp_path, walk), config)
    assert evaluation.returns == [-13.0] * 3
    assert (evaluation.target, evaluation.solved) == (None, None)


def test_a_game_that_waits_for_ever_ends(monkeypatch):
    """Breakout serves no ball until the fire button is pressed."""

    def never_fires(state):
        return np.zeros(len(state), int)

    restarted = []

    class Watched(VectorEnvs):
        def restart(self, mask):
            restarted.append(mask.tolist())
            return super().restart(mask)

    monkeypatch.setattr(vector, "VectorEnvs", Watched)
    monkeypatch.setattr(evaluation, "ATARI_PATIENCE", 60)
    monkeypatch.setattr(evaluation, "MAX_ENVS", 2)  # two games in one of them, one after the other
    assert episode_returns(never_fires, "ALE/Breakout-v5", 3, seed=0) == [0.0] * 3
    assert restarted == [[True, True]] * 2


@pytest.mark.parametrize(
    ("value", "target", "at_most", "solved", "line"),
    [
        (0.975, 0.97, False, True, "solved: error rate 0.975 (target 0.97)"),
        (0.9699, 0.97, False, False, "not solved: error rate 0.9699 (target 0.97)"),
        (0.0205, 0.02, True, False, "not solved: error rate 0.0205 (target at most 0.02)"),
        (0.02, 0.02, True, True, "solved: error rate 0.02 (target at most 0.02)"),
        (3.5, None, False, None, "finished: error rate 3.5"),
    ],
)
def test_report_of_a_measure(tmp_path, capsys, value, target, at_most, solved, line):
    result = dataclasses.replace(finished_run(tmp_path, None, {"more": 1.5}), unit="epoch")
    evaluation = report_measure(result, Config(seed=7), "error rate", value, target, at_most)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == evaluation
    assert evaluation == {
        "env_id": "FrozenLake-v1",
        "seed": 7,
        "error_rate": value,
        "total_timesteps": 200,
        "train_seconds": 1.6,
        "steps_per_second": 125.0,
        "target": target,
        "solved": solved,
        "more": 1.5,
        "unit": "epoch",
    }
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == line
    assert any(row.split() == ["epochs", "200"] for row in out)


EVALUATION = Evaluation("Any-v0", 0, 100, 498.24, 3.06, [], 1, 1.0, 1.0, 475.0, True)
VERDICTS = [
    ({}, "solved: mean return 498.2 +- 3.1 over 100 episodes (target 475)"),
    (
        {"mean_return": 474.99, "solved": False},
        "not solved: mean return 475.0 +- 3.1 over 100 episodes (target 475)",
    ),
    (
        {"mean_return": -152.0, "target": None, "solved": None},
        "finished: mean return -152.0 +- 3.1 over 100 episodes",
    ),
    (
        {"mean_return": 0.7401, "std_return": 0.4386, "target": 0.7, "episodes": 1},
        "solved: mean return 0.740 +- 0.439 over 1 episodes (target 0.7)",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), VERDICTS)
def test_the_verdict_is_one_line(changes, expected):
    assert verdict(dataclasses.replace(EVALUATION, **changes)) == expected


def test_a_mean_at_the_target_is_solved(tmp_path):
    kwargs = {"is_slippery": False}
    config = Config(eval_episodes=2)
    for target, solved in ((1.0, True), (1.0000001, False)):
        evaluation = report(finished_run(tmp_path), config, {"FrozenLake-v1": target}, kwargs)
        assert evaluation.solved is solved


@pytest.mark.parametrize(
    ("exact", "solved", "line"),
    [
        (0.95, True, "solved: my value 0.95 (target 0.9); mean return 1.000 +- 0.000 over 2"),
        (0.85, False, "not solved: my value 0.85 (target 0.9); mean return 1.000 +- 0.000 over 2"),
        (None, True, "solved: mean return 1.000 +- 0.000 over 2"),
    ],
)
def test_the_verdict_may_be_on_an_exact_value(tmp_path, capsys, exact, solved, line):
    result = finished_run(tmp_path, facts={"my_value": exact})
    kwargs, targets = {"is_slippery": False}, {"FrozenLake-v1": 0.9}
    evaluation = report(result, Config(eval_episodes=2), targets, kwargs, judged_by="my_value")
    assert evaluation.solved is solved
    assert evaluation.mean_return == 1.0
    assert capsys.readouterr().out.splitlines()[-1].startswith(line)


def test_no_target_is_known_for_a_map_of_ones_own(tmp_path):
    @dataclass(frozen=True)
    class MapConfig(Config):
        map: str = ""

    for rows, target in (("", 0.9), ("SG", None)):
        kwargs = {"is_slippery": False} | ({"desc": [rows]} if rows else {})
        config = MapConfig(eval_episodes=1, map=rows)
        policy = along_the_path if not rows else lambda state: np.full(len(state), 2)
        evaluation = report(finished_run(tmp_path, policy), config, {"FrozenLake-v1": 0.9}, kwargs)
        assert (evaluation.target, evaluation.solved) == (target, target and True)


def test_numbers_that_are_not_finite_become_null(tmp_path):
    contents = {
        "a": float("nan"),
        "b": [1.5, float("inf")],
        "c": np.float64("-inf"),
        "d": 2,
        "e": "x",
    }
    write_json(tmp_path / "x.json", contents)
    found = json.loads((tmp_path / "x.json").read_text())
    assert found == {"a": None, "b": [1.5, None], "c": None, "d": 2, "e": "x"}


def test_a_long_evaluation_shows_its_progress(monkeypatch, capsys):
    kwargs = {"is_slippery": False}
    episode_returns(along_the_path, "FrozenLake-v1", 50, 0, kwargs)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(evaluation, "PATIENCE", -1.0)
    episode_returns(along_the_path, "FrozenLake-v1", 50, 0, kwargs)
    assert capsys.readouterr().err.splitlines()[-1].split() == "50 / 50 evaluation episodes".split()


def test_a_file_that_cannot_be_written_is_told(tmp_path):
    with pytest.raises(UserError, match=r"cannot write .*evaluation\.json"):
        write_json(tmp_path / "missing" / "evaluation.json", {})


def test_walking_in_circles_ends_where_the_environment_sets_no_limit():
    # Up and up again: the agent never leaves the corner of CliffWalking, at -1 a step.
    def upwards(state):
        return np.zeros(len(state), int)

    assert episode_returns(upwards, "CliffWalking-v1", 1, seed=0) == [-10_000.0]
