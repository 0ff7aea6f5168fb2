"""Full targets with default flags over three seeds, by real processes: `make test-learning`.

Prints every seed's result; the docstrings and READMEs quote what it measured.
"""

import ast
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from common import catalog

import pytest

pytestmark = pytest.mark.learning

ROOT = catalog.ROOT
SEEDS = (0, 1, 2)


def documented_flags(script: str, containing: str) -> list[str]:
    """Flags of the one command under "How to run" that contains a text."""
    docstring = ast.get_docstring(ast.parse((ROOT / script).read_text()))
    text = docstring.partition("How to run\n---")[2].partition("\nExpected")[0]
    commands = [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]
    [found] = [words for words in commands if words[:1] == ["python"] and containing in words]
    assert found[1] == script
    return found[2:]


def run(script: str, flags: list[str], run_dir: Path) -> tuple[dict, float]:
    """`evaluation.json`, and seconds from the start of the process to its end."""
    command = [sys.executable, str(ROOT / script), *flags, "--run-dir", str(run_dir)]
    started = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=run_dir.parent,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    return json.loads((run_dir / "evaluation.json").read_text()), seconds


def run_seeds(script: str, flags: list[str], folder: Path, capsys) -> tuple[list[dict], float]:
    """All seeds one after the other; prints a table, returns evaluations and the longest time."""
    evaluations, times = [], []
    with capsys.disabled():
        print(f"\n{script} {' '.join(flags)}")
        for seed in SEEDS:
            result, seconds = run(script, [*flags, "--seed", str(seed)], folder / f"seed{seed}")
            evaluations.append(result)
            times.append(seconds)
            print(
                f"  seed {seed}: mean return {result['mean_return']:9.3f} "
                f"+- {result['std_return']:7.3f} over {result['episodes']} episodes, "
                f"{result['total_timesteps']:>7,} steps, training {result['train_seconds']:5.1f} s "
                f"({result['steps_per_second']:,.0f} steps/s), process {seconds:5.1f} s",
                flush=True,
            )
        middle = median(result["mean_return"] for result in evaluations)
        print(f"  median {middle:.3f}, longest process {max(times):.1f} s", flush=True)
    return evaluations, max(times)


CARTPOLE_WITHOUT_VELOCITIES = "common.environments.partial:CartPoleNoVelocity-v0"
DQN_FAMILY = ("dqn", "double_dqn", "dueling_dqn", "prioritized_dqn", "rainbow")
OFF_POLICY = ("ddpg", "td3", "sac")


@pytest.mark.parametrize(
    ("script", "containing", "target", "budget"),
    [
        ("chapter09_dqn/dqn.py", None, 475.0, 60.0),
        *[(f"chapter09_dqn/{stem}.py", None, 475.0, 120.0) for stem in DQN_FAMILY[1:-1]],
        ("chapter09_dqn/rainbow.py", None, 475.0, 180.0),
        ("chapter09_dqn/drqn.py", None, 400.0, 300.0),
        *[(f"chapter09_dqn/{stem}.py", "LunarLander-v3", 150.0, 300.0) for stem in DQN_FAMILY],
        *[(f"chapter09_dqn/{stem}.py", "Acrobot-v1", -100.0, 300.0) for stem in DQN_FAMILY],
        ("chapter11_policy_gradient/reinforce.py", None, 195.0, 120.0),
        ("chapter11_policy_gradient/reinforce_reward_to_go.py", None, 475.0, 120.0),
        ("chapter11_policy_gradient/reinforce_baseline.py", None, 475.0, 120.0),
        ("chapter11_policy_gradient/actor_critic.py", None, 475.0, 120.0),
        ("chapter11_policy_gradient/a2c.py", None, 475.0, 120.0),
        ("chapter11_policy_gradient/a2c.py", "LunarLander-v3", 100.0, 300.0),
        ("chapter11_policy_gradient/ppo_clip.py", None, 475.0, 60.0),
        ("chapter11_policy_gradient/ppo_clip.py", "Pendulum-v1", -300.0, 180.0),
        ("chapter11_policy_gradient/ppo_clip.py", "LunarLander-v3", 200.0, 180.0),
        *[(f"chapter11_policy_gradient/{stem}.py", None, -200.0, 300.0) for stem in OFF_POLICY],
        ("chapter11_policy_gradient/td3.py", "MountainCarContinuous-v0", 90.0, 300.0),
    ],
)
def test_target(tmp_path, capsys, script, containing, target, budget):
    flags = documented_flags(script, containing) if containing else []
    evaluations, longest = run_seeds(script, flags, tmp_path, capsys)
    assert all(result["episodes"] == 100 for result in evaluations)
    default = CARTPOLE_WITHOUT_VELOCITIES if "drqn" in script else "CartPole-v1"
    default = "Pendulum-v1" if Path(script).stem in OFF_POLICY else default
    assert all(result["env_id"] == (containing or default) for result in evaluations)
    assert median(result["mean_return"] for result in evaluations) >= target
    assert longest <= budget  # seconds on two CPU cores, evaluation included


def test_value_iteration(tmp_path, capsys):
    script = "chapter01_fundamentals/dp_value_iteration.py"
    evaluations, _ = run_seeds(script, [], tmp_path, capsys)
    for result in evaluations:
        assert abs(result["value_start"] - 0.5420259320) < 1e-8
        assert abs(result["exact_return"] - 0.740165) < 5e-7
        assert result["solved"]


# Stem, part of the documented command (None: no flags), budget in seconds on two CPU cores.
FUNDAMENTALS = [
    ("mdp_basics", None, 10),
    ("gym_tour", None, 30),
    ("dp_policy_iteration", None, 5),
    ("mc_prediction", None, 60),
    ("mc_exploring_starts", None, 120),
    ("mc_control_epsilon_greedy", None, 120),
    ("mc_control_off_policy", None, 120),
    ("td_prediction", None, 20),
    ("td_sarsa", None, 60),
    ("td_sarsa", "FrozenLake-v1", 60),
    ("td_sarsa", "Taxi-v4", 60),
    ("td_q_learning", None, 60),
    ("td_q_learning", "FrozenLake-v1", 60),
    ("td_q_learning", "Taxi-v4", 60),
    ("td_expected_sarsa", None, 60),
    ("td_expected_sarsa", "FrozenLake-v1", 60),
    ("td_expected_sarsa", "Taxi-v4", 60),
    ("td_double_q_learning", None, 60),
    ("td_double_q_learning", "FrozenLake-v1", 60),
    ("td_double_q_learning", "Taxi-v4", 60),
    ("bandit_epsilon_greedy", None, 60),
    ("bandit_softmax", None, 60),
    ("bandit_ucb", None, 60),
    ("bandit_thompson_sampling", None, 60),
    ("bandit_ad_banner", None, 30),
    ("bandit_contextual", None, 60),
    ("nn_from_scratch", None, 10),
    ("nn_recurrent", None, 120),
    ("nn_convolutional", None, 120),
    ("nn_gan", None, 120),
    ("tf_basics", None, 30),
    ("tf_digits", None, 60),
]


@pytest.mark.parametrize(
    ("stem", "containing", "budget"),
    FUNDAMENTALS,
    ids=[f"{stem}-{containing or 'default'}" for stem, containing, _ in FUNDAMENTALS],
)
def test_fundamentals(tmp_path, capsys, stem, containing, budget):
    script = f"chapter01_fundamentals/{stem}.py"
    flags = documented_flags(script, containing) if containing else []
    measures, times = [], []
    with capsys.disabled():
        print(f"\n{script} {' '.join(flags)}")
        for seed in SEEDS:
            result, seconds = run(script, [*flags, "--seed", str(seed)], tmp_path / f"seed{seed}")
            measures.append(result["solved"])
            times.append(seconds)
            shown = [
                f"{name} {value:.6g}"
                for name, value in result.items()
                if isinstance(value, float) and name not in ("train_seconds", "steps_per_second")
            ]
            print(f"  seed {seed}: {', '.join(shown)}; solved: {result['solved']}, {seconds:.1f} s")
    assert sum(solved is not False for solved in measures) >= 2  # the median of three
    assert max(times) <= budget  # process start to end


def test_every_script_of_the_fundamentals_has_a_target():
    stems = {
        path.stem for path in catalog.script_paths() if path.parent.name.startswith("chapter01")
    }
    assert stems == {stem for stem, _, _ in FUNDAMENTALS} | {"dp_value_iteration"}
