"""Each script once on every kind of environment it takes.

CartPole, Pendulum and Pong by command line are trained in `tests/test_resume.py` already, DRQN on
flickering Pong in `tests/chapter09_dqn/test_drqn.py`.
"""

import dataclasses
import json

from common.metrics import read_metrics
from tests.processes import load, run_to_end

import numpy as np
import pytest


def test_value_iteration_with_all_files_and_a_video(tmp_path):
    out = run_to_end("value_iteration", "--run-dir", "run", "--capture-video", cwd=tmp_path)
    run_dir = tmp_path / "run"
    assert out.splitlines()[-1].startswith("solved: mean return 0.7")
    for name in ("config.json", "metrics.csv", "learning_curve.png", "evaluation.json"):
        assert (run_dir / name).stat().st_size > 0, name
    stored = json.loads((run_dir / "config.json").read_text())
    assert stored["script"] == "chapter01_fundamentals/dp_value_iteration.py"
    assert stored["config"]["capture_video"] is True
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert evaluation.keys() >= set(
        """env_id seed episodes mean_return std_return returns total_timesteps train_seconds
        steps_per_second target solved""".split()
    )
    assert len(evaluation["returns"]) == evaluation["episodes"] == 1000
    [film] = (run_dir / "videos").iterdir()
    assert film.read_bytes()[4:8] == b"ftyp"  # the beginning of every MP4 file


def test_value_iteration_called_from_python(tmp_path):
    module = load("value_iteration")
    config = module.Config(run_dir=str(tmp_path), env_id="CliffWalking-v1", gamma=1.0)
    result = module.train(config)
    assert result.facts["value_start"] == pytest.approx(-13.0)


DQN = """total_timesteps=400 num_envs=4 learning_starts=100 train_frequency=20 gradient_steps=2
    batch_size=8 buffer_size=200 eval_episodes=1"""
PPO = """total_timesteps=64 num_envs=2 num_steps=8 num_epochs=1 minibatch_size=8 eval_episodes=1"""
REINFORCE = "total_timesteps=800 num_envs=2 eval_episodes=1"
REINFORCE_IMAGES = "total_timesteps=6 num_envs=2 eval_episodes=1"
A2C = "total_timesteps=40 num_envs=2 num_steps=5 eval_episodes=1"


@pytest.mark.parametrize(
    ("script", "env_id", "settings"),
    [
        ("dqn", "Taxi-v4", DQN),  # Discrete observations
        ("dueling_dqn", "ALE/Pong-v5", DQN + " frame_size=42"),  # images; XLA is off
        ("reinforce", "FrozenLake-v1", REINFORCE),
        ("reinforce_reward_to_go", "Pendulum-v1", REINFORCE),
        ("reinforce_baseline", "odd_environments:Images-v0", REINFORCE_IMAGES),
        ("actor_critic", "FrozenLake-v1", "total_timesteps=40 num_envs=2 eval_episodes=1"),
        ("a2c", "ALE/Pong-v5", A2C),  # its rewards are whole numbers
        ("ppo", "FrozenLake-v1", PPO),
        ("ppo", "ALE/Pong-v5", PPO),  # images
    ],
)
def test_train_called_from_python(script, env_id, settings, tmp_path):
    module = load(script)
    numbers = {k: int(v) for k, v in (setting.split("=") for setting in settings.split())}
    config = module.Config(run_dir=str(tmp_path / "run"), env_id=env_id, **numbers)
    result = module.train(config)
    rows = read_metrics(tmp_path / "run")
    assert rows["step"][-1] == result.total_timesteps == config.total_timesteps
    loss = rows["train/loss" if "train/loss" in rows else "train/policy_loss"]
    assert np.isfinite(loss[~np.isnan(loss)]).all()
    assert (~np.isnan(loss)).sum() >= 2
    # The policy that comes back plays one or many environments.
    kwargs = module.env_kwargs(config) if hasattr(module, "env_kwargs") else {}
    envs = module.make_envs(env_id, 3, **kwargs)
    state, _ = envs.reset(seed=0)
    again = module.load_policy(
        dataclasses.replace(config, run_dir="", resume=str(tmp_path / "run"))
    )
    for n in (1, 3):
        actions = result.policy(state[:n])
        assert len(actions) == n
        assert all(envs.single_action_space.contains(action) for action in actions)
        np.testing.assert_array_equal(again(state[:n]), actions)  # as `common.play` does it
    envs.close()


def test_ppo_by_command_line_with_a_video(tmp_path, command_line):
    args = ["--" + setting.replace("_", "-") for setting in PPO.split()]
    run_dir = tmp_path / "run"
    status, out, err = command_line("ppo", *args, "--run-dir", run_dir, "--capture-video")
    assert status == 0, err
    assert "not solved: mean return " in out.splitlines()[-1]
    [film] = (run_dir / "videos").iterdir()
    assert film.stat().st_size > 1000
