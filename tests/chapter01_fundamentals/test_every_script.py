"""What every script of the folder owes its user, tried on all of them with short flags.

A run leaves its files; the same seed gives the same numbers; a run that was killed, and one that
ended before its pictures were drawn, end like an uninterrupted one; wrong flags are one sentence.
`tests/test_cli.py` looks at every script's --help.
"""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys

from common import catalog
from common.run import Run
from tests import forked
from tests.processes import ROOT, SCRIPTS, checkpoints, evaluation, load, metrics

import pytest

STEMS = [path.stem for path in catalog.script_paths() if path.parent.name.startswith("chapter01")]

TABULAR = ("mdp_", "dp_", "mc_", "td_", "bandit_")

# Runs of a second or two, with at least two checkpoints before their end.
SHORT = {
    "mdp_basics": "--policy random --num-episodes 5 --checkpoint-every 20",
    "gym_tour": "--num-episodes 30 --checkpoint-every 8 --no-capture-video",
    "dp_value_iteration": "--theta 1e-2 --eval-episodes 3 --checkpoint-every 40",
    "dp_policy_iteration": "--evaluation solve --eval-episodes 3 --checkpoint-every 1",
    "mc_prediction": "--num-episodes 300 --checkpoint-every 60",
    "mc_exploring_starts": """--env-id FrozenLake-v1 --eval-episodes 3
        --num-episodes 300 --checkpoint-every 60""",
    "mc_control_epsilon_greedy": """--env-id FrozenLake-v1 --eval-episodes 3
        --num-episodes 300 --checkpoint-every 60""",
    "mc_control_off_policy": """--num-episodes 300 --checkpoint-every 60
        --num-runs 3 --run-episodes 20""",
    "td_prediction": "--num-episodes 20 --num-runs 3 --sweep-episodes 1 --checkpoint-every 5",
    "td_sarsa": "--num-episodes 40 --checkpoint-every 10 --eval-episodes 3",
    "td_q_learning": """--env-id FrozenLake-v1 --num-episodes 40
        --checkpoint-every 10 --eval-episodes 3""",
    "td_expected_sarsa": """--env-id FrozenLake-v1 --num-episodes 40
        --checkpoint-every 10 --eval-episodes 3""",
    "td_double_q_learning": """--env-id FrozenLake-v1 --num-episodes 40 --checkpoint-every 10
        --eval-episodes 3 --bias-runs 2""",
    "bandit_epsilon_greedy": "--num-runs 5 --num-steps 40 --checkpoint-every 10",
    "bandit_softmax": "--num-runs 5 --num-steps 40 --checkpoint-every 10",
    "bandit_ucb": "--num-runs 5 --num-steps 40 --checkpoint-every 10",
    "bandit_thompson_sampling": "--num-runs 5 --num-steps 40 --checkpoint-every 10",
    "bandit_ad_banner": "--num-visitors 200 --test-visitors 50 --num-logs 4 --checkpoint-every 50",
    "bandit_contextual": "--num-users 40 --num-runs 3 --checkpoint-every 10",
    "nn_from_scratch": "--num-steps 6 --checkpoint-every 2",
    "nn_recurrent": """--num-steps 10 --sequence-length 5 --hidden-units 4
        --batch-size 4 --checkpoint-every 3""",
    "nn_convolutional": "--num-epochs 3 --batch-size 128 --filters 2 2 --checkpoint-every 1",
    "nn_gan": """--num-steps 4 --steps-per-call 1 --batch-size 16
        --hidden-units 8 --checkpoint-every 1""",
    "tf_basics": "--num-steps 10 --repeats 2 --checkpoint-every 3",
    "tf_digits": "--num-epochs 3 --checkpoint-every 1 --batch-size 256",
}


def test_there_is_a_row_for_every_script():
    assert sorted(SHORT) == sorted(STEMS)


each_script = pytest.mark.parametrize("stem", [stem for stem in STEMS if stem in SHORT])


def numbers(run_dir):
    """metrics.csv and evaluation.json without what depends on the clock (`..._us`: in µs)."""
    contents = evaluation(run_dir)
    return metrics(run_dir), {k: v for k, v in contents.items() if not k.endswith("_us")}


def pictures(run_dir):
    """The files of all pictures, `timings.png` left out."""
    paths = [path for path in run_dir.glob("*.png") if path.name != "timings.png"]
    return {path.name: path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Returns a function from a script to its run, made in this process, and its calls of `log`."""
    folder, made = tmp_path_factory.mktemp("uninterrupted"), {}

    def run(stem):
        if stem not in made:
            rows, log = [], Run.log

            def counted_log(self, row, weight=1):
                rows.append(row)
                log(self, row, weight)

            arguments = [*SHORT[stem].split(), "--run-dir", str(folder / stem)]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Run, "log", counted_log)
                patch.setattr(sys, "argv", [stem, *arguments])
                load(stem).main()
            made[stem] = folder / stem, len(rows)
        return made[stem]

    return run


# --- Runs -------------------------------------------------------------------------------------


@each_script
def test_a_run_leaves_its_files(stem, uninterrupted):
    run_dir, _ = uninterrupted(stem)
    stored = json.loads((run_dir / "config.json").read_text())
    assert stored["script"] == SCRIPTS[stem]
    header, *rows = metrics(run_dir)
    assert header[0] == "step"
    assert len(header) > 1
    assert len(rows) > 1
    contents = json.loads((run_dir / "evaluation.json").read_text())
    assert {"seed", "total_timesteps", "train_seconds", "target", "solved"} <= set(contents)
    drawn = pictures(run_dir)
    assert drawn
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 5000 for picture in drawn.values())
    assert list(run_dir.glob("events.out.tfevents.*"))
    assert not list(run_dir.rglob("*.tmp"))
    assert len(checkpoints(run_dir)) == 2  # the newest ones


def run_until_killed(stem, *arguments, cwd, at):
    """Runs a script that ends by SIGKILL at call number `at` of `run.log`; 0: after all steps."""
    status, _, err = forked.run(stem, *arguments, cwd=cwd, kill_at=at)
    assert status == -signal.SIGKILL, err


@each_script
def test_the_same_seed_ends_alike_though_killed_twice(stem, uninterrupted, command_line, tmp_path):
    reference, calls = uninterrupted(stem)
    run_dir, last = tmp_path / "run", checkpoints(reference)[-1]
    arguments = [*SHORT[stem].split(), "--run-dir", run_dir]
    run_until_killed(stem, *arguments, cwd=tmp_path, at=math.ceil(0.7 * calls))
    assert checkpoints(run_dir), "killed before the first checkpoint"
    assert checkpoints(run_dir)[-1] < last
    run_until_killed(stem, "--resume", run_dir, cwd=tmp_path, at=0)
    assert checkpoints(run_dir)[-1] == last
    assert not (run_dir / "evaluation.json").exists()
    status, _, err = command_line(stem, "--resume", run_dir)
    assert status == 0, err
    assert numbers(run_dir) == numbers(reference)
    assert pictures(run_dir) == pictures(reference)


# Value iteration has nothing random in it; those with TensorFlow would take too long here.
@pytest.mark.parametrize(
    "stem", [stem for stem in STEMS if stem.startswith(TABULAR) and stem != "dp_value_iteration"]
)
def test_another_seed_gives_other_numbers(stem, uninterrupted, tmp_path):
    reference, calls = uninterrupted(stem)
    arguments = [*SHORT[stem].split(), "--seed", 1, "--run-dir", tmp_path / "run"]
    run_until_killed(stem, *arguments, cwd=tmp_path, at=math.ceil(0.5 * calls))
    other = metrics(tmp_path / "run")
    assert len(other) > 1
    assert other[0] == metrics(reference)[0][: len(other[0])]
    assert other != metrics(reference)[: len(other)]


# --- Wrong flags ------------------------------------------------------------------------------

BAD = {
    "alpha": ("0", "1.5", "-0.1"),
    "gamma": ("1.1", "-0.1"),
    "epsilon": ("1.5", "-0.1"),
    "start_epsilon": ("1.5",),
    "end_epsilon": ("1.5",),
    "learning_rate": ("0", "-1"),
    "temperature": ("0",),
    "theta": ("0",),
    "seed": ("-1",),
    "map": ("SFX/FFG",),
} | dict.fromkeys(
    """num_episodes num_steps num_runs num_epochs num_samples num_users num_visitors num_logs
    max_sweeps max_improvements n_step batch_size hidden_units sequence_length""".split(),
    ("0",),
)


def wrong_flags(stem):
    """Flags with a value out of range, for everything in the script's `Config`."""
    fields = {field.name for field in dataclasses.fields(load(stem).Config)}
    pairs = [(name, value) for name, values in BAD.items() for value in values if name in fields]
    if "env_id" in fields:
        pairs.append(("env_id", "NoSuchEnvironment-v0"))
        if stem.startswith(TABULAR):
            pairs.append(("env_id", "CartPole-v1"))  # continuous
        if stem.startswith(("mdp_", "dp_")):
            pairs.append(("env_id", "odd_environments:NoTable-v0"))  # no `P`
    return pairs


@each_script
def test_wrong_flags_are_one_sentence(stem, command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, value in wrong_flags(stem):
        flag = "--" + name.replace("_", "-")
        status, out, err = command_line(stem, flag, value)
        assert (status, out) == (2, ""), f"{flag} {value}: {err}"
        error, told, given, *remedy = err.split()
        assert (error, told) == ("error:", flag), err
        assert given.rstrip(":") == value or float(given.rstrip(":")) == float(value), err
        assert remedy, err
        assert err.count("\n") == 1, err
        assert not list(tmp_path.iterdir()), f"{flag} {value} left a run directory"


@each_script
def test_unknown_flags(stem, command_line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = command_line(stem, "--no-such-flag", "1")
    assert status == 2
    assert "--no-such-flag" in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_tabular_scripts_do_without_tensorflow():
    modules = [SCRIPTS[stem].removesuffix(".py").replace("/", ".") for stem in STEMS]
    tabular = [name for name in modules if name.rpartition(".")[2].startswith(TABULAR)]
    lines = [f"import {name}" for name in tabular] + [
        "import sys",
        "'tensorflow' in sys.modules and 1/0",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", "\n".join(lines)], env=environment, check=True)
