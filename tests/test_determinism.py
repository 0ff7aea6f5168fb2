"""The same seed gives the same metrics and the same evaluation, digit for digit."""

from common import checkpoint
from tests.processes import DQN, PPO, evaluation, finish, load, metrics, run_to_end, start

import numpy as np
import pytest


@pytest.mark.parametrize(("script", "args"), [("dqn", DQN), ("ppo", PPO)])
def test_same_seed_in_another_process(script, args, uninterrupted, tmp_path):
    # Another order of sets and of dictionaries with hashed keys must not matter.
    run_to_end(script, *args, "--run-dir", "again", cwd=tmp_path, env={"PYTHONHASHSEED": "12345"})
    assert metrics(tmp_path / "again") == metrics(uninterrupted(script))
    assert evaluation(tmp_path / "again") == evaluation(uninterrupted(script))


def test_value_iteration_in_processes_of_its_own(tmp_path):
    processes = [
        start("value_iteration", "--seed", seed, "--run-dir", name, cwd=tmp_path)
        for seed, name in [(0, "first"), (0, "again"), (1, "other")]
    ]
    for process in processes:
        status, _, err = finish(process)
        assert status == 0, err
    first, again, other = tmp_path / "first", tmp_path / "again", tmp_path / "other"
    assert metrics(first) == metrics(again)
    assert evaluation(first) == evaluation(again)
    # The seed is that of the evaluation; the algorithm itself has nothing random.
    assert metrics(first) == metrics(other)
    assert evaluation(first)["returns"] != evaluation(other)["returns"]


SMALL_DQN = {
    "total_timesteps": 400,
    "num_envs": 4,
    "learning_starts": 100,
    "train_frequency": 20,
    "gradient_steps": 2,
    "batch_size": 8,
    "buffer_size": 200,
    "hidden_sizes": (16,),
    "target_frequency": 1000,
}
SMALL_PPO = {
    "total_timesteps": 256,
    "num_envs": 2,
    "num_steps": 16,
    "num_epochs": 2,
    "minibatch_size": 16,
    "hidden_sizes": (16,),
}


# Prioritized DQN and Rainbow are compared between processes in tests/test_resume.py.
@pytest.mark.no_xla
@pytest.mark.parametrize(
    ("script", "settings"),
    [
        ("dqn", SMALL_DQN),
        pytest.param("double_dqn", SMALL_DQN, marks=pytest.mark.xla),
        ("dueling_dqn", SMALL_DQN),
        ("ppo", SMALL_PPO),
    ],
)
def test_train_called_from_python(script, settings, tmp_path):
    """One process trains several times: what one run leaves behind must not reach the next.

    Nothing in this environment is random: what differs comes from networks and exploration.
    """
    module = load(script)

    def train(name, seed):
        config = module.Config(
            env_id="CliffWalking-v1", seed=seed, run_dir=str(tmp_path / name), **settings
        )
        return module.train(config)

    first, again, other = train("first", 0), train("again", 0), train("other", 1)
    assert first.total_timesteps == settings["total_timesteps"]
    assert metrics(first.run_dir) == metrics(again.run_dir)
    assert metrics(first.run_dir) != metrics(other.run_dir)
    if script != "ppo":  # the target network stood still, so it is not the network that learned
        with np.load(checkpoint.latest(first.run_dir)) as archive:
            weights = [archive[f"{name}_network/000"] for name in ("q", "target")]
        assert not np.array_equal(*weights)
