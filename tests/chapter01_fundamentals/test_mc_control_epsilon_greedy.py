"""Epsilon-greedy Monte Carlo control: bandits with known frequencies, soft values, Blackjack."""

from chapter01_fundamentals import mc_control_epsilon_greedy as script
from chapter01_fundamentals.mc_control_epsilon_greedy import Config, greedy
from common.environments.tabular import exact_return, make_tabular_env, tabular_model
from common.metrics import read_metrics

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete


def tables(run_dir) -> dict[str, np.ndarray]:
    with np.load(run_dir / "tables.npz") as stored:
        return dict(stored)


def optimal_q(model) -> np.ndarray:
    V = np.zeros(len(model.start))
    for _ in range(40):
        Q = model.reward + model.transition @ V
        V = Q.max(axis=1)
    return Q


class Bandit(gym.Env):
    """One state; action a earns a and ends the episode."""

    observation_space, action_space = Discrete(1), Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 0, float(action), True, False, {}


class Treadmill(Bandit):
    """One state for ever; action 0 earns 2, action 1 nothing; only time limits end episodes."""

    action_space = Discrete(2)

    def step(self, action):
        return 0, 2.0 * (action == 0), False, False, {}


class Pendant(Bandit):
    """A state that is seen three times: two steps lead back to it, the third ends the episode.

    The rewards are 1, 10, 100, whatever the action (of one).
    """

    action_space = Discrete(1)

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.steps += 1
        return 0, 10.0 ** (self.steps - 1), self.steps == 3, False, {}


@pytest.fixture(autouse=True)
def registered():
    classes = {"Bandit-v0": Bandit, "Treadmill-v0": Treadmill, "Pendant-v0": Pendant}
    for name, kind in classes.items():
        gym.register(name, kind)
    yield
    for name in classes:
        del gym.registry[name]


def test_ties_are_broken_at_random():
    rng = np.random.default_rng(0)
    picks = np.bincount([greedy(np.array([1.0, 0.0, 1.0]), rng) for _ in range(2_000)])
    assert picks[1] == 0
    assert picks[0] == pytest.approx(1_000, abs=4 * np.sqrt(500))
    assert greedy(np.array([-2.0, -1.0]), rng) == 1


@pytest.mark.parametrize(
    ("start", "end", "share"), [(0.3, 0.3, 0.3), (1.0, 0.0, 0.5), (0.0, 0.8, 0.4), (1.0, 1.0, 1.0)]
)
def test_share_of_random_actions(tmp_path, start, end, share):
    config = Config(
        env_id="Bandit-v0",
        start_epsilon=start,
        end_epsilon=end,
        num_episodes=4_000,
        run_dir=str(tmp_path),
    )
    result = script.train(config)
    saved = tables(tmp_path)
    # Action 2 is the best; a third of the random actions each goes to the others. With ε from 0,
    # the greedy action is whatever came first until chance has found the best.
    assert saved["N"].sum() == 4_000
    expected = 4_000 * share / 3
    assert saved["N"][0, 0] == pytest.approx(
        expected, abs=4 * np.sqrt(expected) + 150 * (start == 0)
    )
    assert saved["N"][0, 1] == pytest.approx(
        expected, abs=4 * np.sqrt(expected) + 150 * (start == 0)
    )
    np.testing.assert_allclose(saved["Q"][0], [0.0, 1.0, 2.0], rtol=1e-12)  # means of constants
    assert saved["policy"].tolist() == [2]
    assert result.policy(np.zeros(4, int)).tolist() == [2, 2, 2, 2]
    returns = read_metrics(tmp_path)["charts/episode_return"]
    assert returns.mean() == pytest.approx(saved["N"][0] @ [0, 1, 2] / 4_000)
    # No table to compute an exact return from; the start is the only state.
    assert result.facts == {"value_start": saved["V"][0]}


def test_constant_step_size(tmp_path):
    config = Config(env_id="Bandit-v0", step_size=0.1, num_episodes=60, run_dir=str(tmp_path))
    script.train(config)
    saved = tables(tmp_path)
    np.testing.assert_allclose(saved["Q"][0], [0, 1, 2] * (1 - 0.9 ** saved["N"][0]), rtol=1e-12)


def test_returns_of_first_visits(tmp_path):
    config = Config(env_id="Pendant-v0", gamma=0.5, num_episodes=7, run_dir=str(tmp_path))
    script.train(config)
    saved = tables(tmp_path)
    assert saved["Q"].tolist() == [[1 + 5 + 25]]  # every-visit: (31 + 60 + 100) / 3
    assert saved["N"].tolist() == [[7]]


def test_what_a_time_limit_cuts_off_is_played_on_with_exploration(tmp_path):
    config = Config(
        env_id="Treadmill-v0",
        gamma=0.8,
        start_epsilon=0.5,
        end_epsilon=0.5,
        step_size=0.02,
        max_steps=2,
        num_episodes=1_500,
        run_dir=str(tmp_path),
    )
    script.train(config)
    # Three in four actions earn 2, for ever: 7.5 on average, and 0.8 of that after one action.
    # With the best action after the cut it would be 8.9 or more, with nothing 3.2 or less.
    np.testing.assert_allclose(tables(tmp_path)["Q"][0], [8.0, 6.0], atol=0.5)
    assert set(read_metrics(tmp_path)["charts/episode_length"]) == {2.0}


def test_blackjack(tmp_path):
    result = script.train(Config(num_episodes=30_000, run_dir=str(tmp_path)))
    env, *_ = make_tabular_env("Blackjack-v1", sab=False)
    model, saved = tabular_model(env, "Blackjack-v1"), tables(tmp_path)
    best = optimal_q(model)
    assert result.facts["exact_return"] > -0.1
    assert result.facts["exact_return"] == exact_return(saved["policy"], model)
    assert result.facts["value_start"] == model.start @ saved["Q"].max(axis=1)
    metrics = read_metrics(tmp_path)
    assert np.nanmax(metrics["train/exact_return"]) < -0.0465  # nothing beats the optimum
    # Hard 12 and more, which are frequent: no error where it would cost half a stake.
    clear = np.abs(best[:, 0] - best[:, 1]).reshape(32, 11, 2)
    clear[:12], clear[:, :, 1] = 0.0, 0.0
    clear = np.flatnonzero(clear.ravel() > 0.5)
    assert len(clear) == 38
    np.testing.assert_array_equal(saved["policy"][clear], best.argmax(axis=1)[clear])
    # Exploring costs: games played while learning earn less than the greedy policy at the end.
    assert metrics["charts/episode_return"][-100:].mean() < result.facts["exact_return"]
    for picture in ("learning_curve.png", "exploration.png", "values.png"):
        assert (tmp_path / picture).stat().st_size > 20_000


def test_by_command_line(tmp_path, command_line):
    flags = """--env-id FrozenLake-v1 --no-slippery --num-episodes 1_500 --gamma 0.9
        --start-epsilon 1 --end-epsilon 0.2 --eval-episodes 3""".split()
    status, out, err = command_line("mc_control_epsilon_greedy", *flags, "--run-dir", tmp_path)
    assert status == 0, err
    assert out.splitlines()[-1].startswith("solved: exact return 1 (target 0.7); mean return 1.000")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--start-epsilon 1.5", "--start-epsilon 1.5: must be between 0 and 1"),
        ("--end-epsilon -0.1", "--end-epsilon -0.1: must be between 0 and 1"),
        ("--step-size 2", "--step-size 2.0: must be between 0 and 1"),
        ("--max-steps 0", "--max-steps 0: must be at least 1"),
        ("--num-episodes 0", "--num-episodes 0: must be at least 1"),
        ("--env-id Pendulum-v1", "--env-id Pendulum-v1: states are Box"),
    ],
)
def test_bad_input(tmp_path, command_line, flags, message):
    run_dir = tmp_path / "run"
    status, _, err = command_line("mc_control_epsilon_greedy", *flags.split(), "--run-dir", run_dir)
    assert status == 2
    assert message in err
    assert not run_dir.exists()


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_target(tmp_path, seed):
    result = script.train(Config(seed=seed, run_dir=str(tmp_path)))
    assert result.facts["exact_return"] >= script.TARGETS["Blackjack-v1"]
