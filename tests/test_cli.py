"""Wrong input ends in exit status 2, one sentence that helps, and no run directory."""

import dataclasses
import importlib.metadata
import json
import os
import re
import subprocess
import sys

from tests.processes import ROOT, SCRIPTS, evaluation, load, run, run_to_end

import pytest

# Script, arguments, and what the sentence must name: flag, what was given, remedy.
BAD = {
    "unknown environment": ("dqn", "--env-id CartPoel-v1", "CartPole-v1"),
    "old version": ("ppo", "--env-id CartPole-v9", "CartPole-v1"),
    "unknown game": ("dqn", "--env-id ALE/Ponk-v5", "ALE/Pong-v5"),
    "nothing near": ("dqn", "--env-id qqqqqqqqqq", "pprint_registry"),
    "no such module": ("ppo", "--env-id no_such_module:Id-v0", "PYTHONPATH"),
    "not in that module": ("ppo", "--env-id odd_environments:Id-v0", "no such environment"),
    "old Atari id": ("dqn", "--env-id PongNoFrameskip-v4", "use ALE/Pong-v5"),
    "Atari without its namespace": ("dqn", "--env-id Pong-v5", "did you mean ALE/Pong-v5"),
    "needs a rare package": ("dqn", "--env-id phys2d/CartPole-v1", "a package is missing"),
    "constructor fails": ("ppo", "--env-id odd_environments:Failing-v0", "ValueError: no luck"),
    "broken module": ("dqn", "--env-id broken_module:Id-v0", "SyntaxError"),
    "odd module name": ("dqn", "--env-id ..:Id-v0", "cannot import module"),
    "no model": ("value_iteration", "--env-id CartPole-v1", "FrozenLake-v1"),
    "Box actions": ("dqn", "--env-id Pendulum-v1", "ppo_clip.py"),
    "Discrete actions, sac": ("sac", "--env-id CartPole-v1", "ppo_clip.py"),
    "endless bounds, td3": ("td3", "--env-id odd_environments:EndlessActions-v0", "finite"),
    "Tuple observations": ("dqn", "--env-id odd_environments:PairObservations-v0", "Box vectors"),
    "no table of states": ("value_iteration", "--env-id odd_environments:NoTable-v0", "Taxi-v4"),
    "Dict observations": ("ppo", "--env-id odd_environments:DictObservations-v0", "Box vectors"),
    "matrices": ("ppo", "--env-id odd_environments:MatrixObservations-v0", "Box vectors"),
    "tiny images": ("dqn", "--env-id odd_environments:TinyImages-v0", "at least 36 x 36"),
    "float images": ("ppo", "--env-id odd_environments:FloatImages-v0", "uint8"),
    "actions from 1, dqn": ("dqn", "--env-id odd_environments:ActionsFromOne-v0", "start at 0"),
    "actions from 1, ppo": ("ppo", "--env-id odd_environments:ActionsFromOne-v0", "start at 0"),
    "no steps": ("dqn", "--total-timesteps 0", "at least 1"),
    "negative steps": ("ppo", "--total-timesteps -5", "at least 1"),
    "no sweeps": ("value_iteration", "--max-sweeps 0", "at least 1"),
    "no environments": ("ppo", "--num-envs 0", "at least 1"),
    "no steps per batch": ("ppo", "--num-steps 0", "at least 1"),
    "negative seed": ("dqn", "--seed -1", "0 to 4294967295"),
    "huge seed": ("dqn", "--seed 5000000000", "4294967295"),
    "no evaluation": ("value_iteration", "--eval-episodes 0", "at least 1"),
    "negative interval": ("value_iteration", "--checkpoint-every -1", "0 or more"),
    "batch over buffer": ("dqn", "--batch-size 64 --buffer-size 32", "--buffer-size 32"),
    "buffer over memory": ("dqn", "--buffer-size 10000000000000", "choose at most"),
    "trains too often": ("dqn", "--train-frequency 4 --num-envs 8", "--num-envs 8"),
    "learning rate 0": ("dqn", "--learning-rate 0", "greater than 0"),
    "learning rate below 0": ("ppo", "--learning-rate -1e-3", "greater than 0"),
    "learning rate nan": ("dqn", "--learning-rate nan", "finite"),
    "learning rate inf": ("ppo", "--learning-rate inf", "finite"),
    "gamma above 1": ("dqn", "--gamma 1.01", "between 0 and 1"),
    "gamma below 0": ("value_iteration", "--gamma -0.1", "between 0 and 1"),
    "gamma nan": ("ppo", "--gamma nan", "finite"),
    "Box actions, rainbow": ("rainbow", "--env-id Pendulum-v1", "ppo_clip.py"),
    "tiny frames": ("dqn", "--frame-size 35", "must be 36"),
    "huge frames": ("double_dqn", "--frame-size 211", "to 210"),
    "frames of no game": ("rainbow", "--frame-size 42", "only for Atari games"),
    "no such priority": ("prioritized_dqn", "--prioritization ranks", "proportional, rank"),
    "alpha above 1": ("prioritized_dqn", "--prioritization-exponent 1.5", "between 0 and 1"),
    "beta below 0": ("rainbow", "--start-beta -0.1", "between 0 and 1"),
    "no steps ahead": ("rainbow", "--n-step 0", "at least 1"),
    "no atoms": ("rainbow", "--num-atoms 0", "at least "),
    "no range of returns": ("rainbow", "--v-min 100 --v-max 100", "less than --v-max 100"),
    "negative noise": ("rainbow", "--sigma -1", "0 or more"),
    "trains too often, dueling": ("dueling_dqn", "--train-frequency 4 --num-envs 8", "--num-envs"),
    "batch over buffer, double": ("double_dqn", "--batch-size 9 --buffer-size 8", "buffer larger"),
    "negative burn-in": ("drqn", "--burn-in -1", "0 or more"),
    "flickering no frames": ("drqn", "--flicker 0.5", "use 0"),
    "batch over buffer, drqn": ("drqn", "--batch-size 9 --buffer-size 8", "buffer larger"),
    "no units": ("dqn", "--hidden-sizes 64 0", "at least 1"),
    "minibatch": ("ppo", "--minibatch-size 7", "must divide"),
    "minibatch of one": ("ppo", "--minibatch-size 1", "at least 2"),
    "no minibatch": ("ppo", "--minibatch-size 0", "must be at least 1"),
    "map of another": ("value_iteration", "--map SF/FG --env-id Taxi-v4", "only FrozenLake"),
    "map": ("value_iteration", "--map SFX/FFG", "S (start), F, H and G"),
    "below a file": ("dqn", "--run-dir a_file/run", "Not a directory"),
    "not a directory": ("value_iteration", "--run-dir a_file", "choose another folder"),
    "no writing there": ("ppo", "--run-dir /proc/run", "choose another folder"),
    "holds a run": ("dqn", "--run-dir old", "--resume old"),
    "resumes no run": ("dqn", "--resume nowhere", "no run there"),
    "resumes no folder": ("dqn", "--resume a_file", "no run there"),
    "another script's run": ("ppo", "--resume old", "python chapter09_dqn/dqn.py --resume old"),
    "changed flag": ("dqn", "--resume old --learning-rate 0.5", "--learning-rate 0.25"),
    "changed folder": ("dqn", "--resume old --run-dir new", "keeps its flags"),
    "from another version": ("dqn", "--resume newer", "shiny_flag"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a file and two runs in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("")
    (tmp_path / "broken_module.py").write_text("this is no Python")
    monkeypatch.syspath_prepend(tmp_path)
    for name, config in {"old": {"learning_rate": 0.25}, "newer": {"shiny_flag": 1}}.items():
        (tmp_path / name).mkdir()
        contents = {"format": 1, "script": SCRIPTS["dqn"], "config": config}
        (tmp_path / name / "config.json").write_text(json.dumps(contents))
    return tmp_path


@pytest.mark.parametrize(("script", "args", "remedy"), BAD.values(), ids=BAD)
def test_bad_input(script, args, remedy, folder, command_line):
    before = sorted(folder.rglob("*"))
    status, out, err = command_line(script, *args.split())
    assert status == 2
    last_line = err.splitlines()[-1]
    flag, value = args.split()[:2]
    if args.startswith("--resume old --"):
        flag, value = args.split()[2:]
    assert last_line.startswith("error: ")
    assert flag in last_line
    assert value in last_line or float(value) == float(last_line.split()[2].rstrip(":"))
    assert remedy in last_line
    extra = err.splitlines()[:-1]  # the one thing that may be said before: the buffer's size
    assert all(line.startswith("replay buffer: ") for line in extra)
    assert out == ""
    after = {path for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert sorted(after) == before


def test_a_real_process(tmp_path):
    status, out, err = run("value_iteration", "--env-id", "FrozenLak-v1", cwd=tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith("error: --env-id FrozenLak-v1: no such environment; did you mean ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_unknown_flag_and_unreadable_value(tmp_path):
    for args, names in [(["--gama", "0.9"], "--gamma"), (["--gamma", "high"], "FLOAT")]:
        status, _, err = run("value_iteration", *args, cwd=tmp_path)
        assert status == 2
        assert names in err
        assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_shows_every_hyperparameter(script, command_line, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    status, out, _ = command_line(script, "--help")
    assert status == 0
    text = " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", out).split())
    module = load(script)
    assert " ".join(module.__doc__.strip().splitlines()[0].split()) in text
    for field in dataclasses.fields(module.Config):
        flag = "--" + field.name.replace("_", "-")
        default = field.default
        if isinstance(default, tuple):
            default = " ".join(map(str, default))
        # From this flag to its default: the meaning, in three words or more.
        entry = re.search(rf" {flag}[ ,](?P<meaning>.*?)\(default: (?P<default>[^)]*)\)", text)
        assert entry, f"{flag} is missing"
        shown = entry["default"].strip("'")
        same = shown == str(default) or (default != "" and float(shown) == float(default))
        assert same, f"{flag}: {shown} is not {default}"
        assert len(re.findall(r"\b[a-z]+\b", entry["meaning"])) >= 1, f"{flag} says nothing"
        assert " --" not in entry["meaning"].replace(f"--no-{flag[2:]}", "").replace(", ", "")


OWN_ENVIRONMENT = '''
import gymnasium as gym
import numpy as np

class Walk(gym.Env):
    """Walk right for five steps."""

    observation_space = gym.spaces.Box(0.0, 5.0, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = 0
        return np.array([self.place], np.float32), {}

    def step(self, action):
        self.place = max(0, self.place + 2 * int(action) - 1)
        done = self.place == 5
        return np.array([self.place], np.float32), float(done), done, False, {}

gym.register("Walk-v0", entry_point=Walk, max_episode_steps=20)
'''


def test_own_environment_from_another_folder(tmp_path):
    (tmp_path / "own_environments.py").write_text(OWN_ENVIRONMENT)
    python_path = os.pathsep.join([str(ROOT), str(tmp_path)])
    args = """--env-id own_environments:Walk-v0 --total-timesteps 400 --learning-starts 100
        --train-frequency 40 --gradient-steps 2 --batch-size 8 --buffer-size 400
        --eval-episodes 2"""
    out = run_to_end("dqn", *args.split(), cwd=tmp_path, env={"PYTHONPATH": python_path})
    [run_dir] = (tmp_path / "runs" / "dqn" / "own_environments-Walk-v0").iterdir()
    assert re.fullmatch(r"seed0-\d{8}-\d{6}", run_dir.name)
    assert evaluation(run_dir)["episodes"] == 2
    assert out.splitlines()[-1].startswith("finished: mean return ")


def test_installed_scripts_find_common_from_any_folder(tmp_path):
    try:
        importlib.metadata.distribution("deep-rl-with-python-tf2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the project is not installed")
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(ROOT / SCRIPTS["value_iteration"]), "--help"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
