"""Epsilon-greedy: references on the ten-armed testbed, exact means, regret in a straight line."""

from chapter01_fundamentals.bandit_epsilon_greedy import Config, argmax, epsilon_greedy, train
from common.environments.bandits import BERNOULLI, GAUSSIAN
from common.errors import UserError
from common.metrics import read_metrics

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete

ARMS = {"env_id": BERNOULLI, "means": (0.9, 0.8)}


def tables(result) -> dict[str, np.ndarray]:
    with np.load(result.run_dir / "tables.npz") as stored:
        return dict(stored)


# --- Reference values -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "share", "tolerance"),
    # Four standard errors of 2,000 runs.
    [(0.0, 0.347, 0.043), (0.01, 0.601, 0.043), (0.1, 0.806, 0.027)],
)
def test_testbed(tmp_path, epsilon, share, tolerance):
    facts = train(Config(epsilon=epsilon, run_dir=str(tmp_path))).facts
    assert facts["best_arm_share"] == pytest.approx(share, abs=tolerance)
    assert facts["best_arm_share_error"] == pytest.approx(tolerance / 4, rel=0.1)
    if epsilon == 0.1:
        assert facts["mean_reward"] == pytest.approx(1.394, abs=0.055)


@pytest.mark.parametrize(("means", "regret"), [((0.8, 0.2), 33.5), ((0.9, 0.8), 10.8)])
def test_simulated_regret(tmp_path, means, regret):
    config = Config(env_id=BERNOULLI, means=means, run_dir=str(tmp_path))
    facts = train(config).facts
    assert facts["regret_error"] < regret / 20
    assert facts["regret"] == pytest.approx(regret, abs=4 * facts["regret_error"] + 0.1)


def test_regret_never_stops_growing(tmp_path):
    result = train(Config(**ARMS, num_steps=4000, num_runs=500, run_dir=str(tmp_path)))
    regret = tables(result)["regret"][0]
    for begin, end in ((1000, 2000), (2000, 3000), (3000, 3999)):
        # Half of the random pulls are of the worse arm: ε / 2 x 0.1 each step, at the very least.
        assert regret[end] - regret[begin] > 0.95 * (end - begin) * 0.1 / 2 * 0.1


# --- The strategy -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epsilon", "expected"),
    [(0.0, [0.0, 0.5, 0.5]), (0.3, [0.1, 0.45, 0.45]), (1.0, [1 / 3, 1 / 3, 1 / 3])],
)
def test_probabilities(epsilon, expected):
    Q = np.tile([1.0, 2.0, 2.0], (60_000, 1))
    arm = epsilon_greedy(Q, epsilon, np.random.default_rng(0))
    share = np.bincount(arm, minlength=3) / len(Q)
    np.testing.assert_allclose(share, expected, atol=4 * np.sqrt(0.25 / len(Q)))


def test_argmax_of_every_row_is_its_own():
    values = np.random.default_rng(0).normal(size=(500, 7))
    np.testing.assert_array_equal(argmax(values, np.random.default_rng(1)), values.argmax(axis=1))


class Recorder(gym.Env):
    """Rewards of no particular distribution; writes down what was pulled and paid."""

    observation_space, action_space = Discrete(1), Discrete(4)
    written: tuple[list, ...] = ()

    def __init__(self):
        self.mine: list[tuple[int, float]] = []
        Recorder.written += (self.mine,)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        reward = float(np.exp(3.0 * self.np_random.normal()) * (-1) ** action)
        self.mine.append((int(action), reward))
        return 0, reward, True, False, {}


def test_the_incremental_mean_is_the_mean(tmp_path):
    gym.register("Recorder-v0", Recorder)
    try:
        config = Config(
            env_id="Recorder-v0", num_runs=3, num_steps=300, epsilon=0.5, run_dir=str(tmp_path)
        )
        result = train(config)
    finally:
        del gym.registry["Recorder-v0"]
    saved = tables(result)
    games = [game for game in Recorder.written if game]
    assert len(games) == 3
    for run, game in enumerate(games):
        for arm in range(4):
            rewards = [reward for pulled, reward in game if pulled == arm]
            assert saved["counts"][run, arm] == len(rewards) > 0
            assert saved["Q"][run, arm] == pytest.approx(np.mean(rewards), rel=1e-12)
    assert result.facts["regret"] is None
    everything = [reward for game in games for _, reward in game[-100:]]
    assert result.facts["mean_reward"] == pytest.approx(np.mean(everything))


@pytest.mark.parametrize(
    ("means", "sigma"),
    [((1e6, 2e6), 1e6), ((1e-6, 2e-6), 1e-6), ((1e6, 1e6 + 1), 1.0), ((-1e6, 1 - 1e6), 1.0)],
)
def test_rewards_of_any_scale(tmp_path, means, sigma):
    config = Config(
        env_id=GAUSSIAN, means=means, sigma=sigma, num_runs=50, num_steps=200, run_dir=str(tmp_path)
    )
    result = train(config)
    saved = tables(result)
    pulled = saved["counts"] > 0
    error = (saved["Q"] - means)[pulled] * np.sqrt(saved["counts"][pulled]) / sigma
    assert np.abs(error).max() < 6.0
    assert all(np.isfinite(table).all() for table in saved.values())


def test_larger_rewards_change_nothing(tmp_path):
    """A power of two multiplies floating-point numbers exactly."""
    counts = []
    for number, scale in enumerate((1.0, 2.0**20, 2.0**-20)):
        config = Config(
            env_id=GAUSSIAN,
            means=(0.5 * scale, 0.25 * scale, -scale),
            sigma=scale,
            num_runs=30,
            num_steps=100,
            run_dir=str(tmp_path / str(number)),
        )
        counts.append(tables(train(config))["counts"])
    np.testing.assert_array_equal(counts[0], counts[1])
    np.testing.assert_array_equal(counts[0], counts[2])
    assert counts[0].sum() == 3000


# --- What a run leaves behind -----------------------------------------------------------------


def test_metrics_and_picture(tmp_path):
    result = train(Config(num_runs=20, num_steps=400, run_dir=str(tmp_path)))
    metrics, saved = read_metrics(tmp_path), tables(result)
    np.testing.assert_array_equal(metrics["step"], np.arange(2, 401, 2))
    for name, table in (("reward", saved["reward"]), ("regret", saved["regret"][0])):
        expected = table.reshape(200, 2).mean(axis=1)
        np.testing.assert_allclose(metrics[f"train/{name}"], expected, rtol=1e-6)
    share = saved["best_arm"].reshape(200, 2).mean(axis=1)
    np.testing.assert_allclose(metrics["train/best_arm_share"], share, rtol=1e-6)
    assert (tmp_path / "learning_curve.png").stat().st_size > 10_000
    assert saved["counts"].sum(axis=1).tolist() == [400] * 20


class Stops(gym.Env):
    """Ctrl-C comes at a given step of the first copy."""

    observation_space, action_space = Discrete(1), Discrete(2)
    at: int | None = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.steps = 0
        return 0, {}

    def step(self, action):
        self.steps += 1
        if self.steps == self.at:
            raise KeyboardInterrupt
        return 0, self.np_random.normal() + action, True, False, {}


def test_an_environment_of_ones_own_is_resumed_exactly(tmp_path):
    gym.register("Stops-v0", Stops)
    settings = {"env_id": "Stops-v0", "num_runs": 4, "num_steps": 100}
    try:
        whole = train(Config(**settings, run_dir=str(tmp_path / "whole")))
        Stops.at = 57
        with pytest.raises(KeyboardInterrupt):
            train(Config(**settings, run_dir=str(tmp_path / "half")))
        Stops.at = None
        resumed = train(Config(**settings, resume=str(tmp_path / "half")))
    finally:
        Stops.at = None
        del gym.registry["Stops-v0"]
    assert resumed.facts == whole.facts
    for name, table in tables(whole).items():
        np.testing.assert_array_equal(tables(resumed)[name], table)
    np.testing.assert_array_equal(
        read_metrics(tmp_path / "half")["train/reward"],
        read_metrics(tmp_path / "whole")["train/reward"],
    )


# --- Bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epsilon 1.5", "--epsilon 1.5: must be between 0 and 1"),
        ("--num-runs 0", "--num-runs 0: must be at least 1"),
        ("--num-steps 0", "--num-steps 0: must be at least 1"),
        ("--num-steps -5", "--num-steps -5: must be at least 1"),
        ("--sigma -1", "--sigma -1.0: must be 0 or more"),
        ("--seed -1", "--seed -1: must be 0 to 4294967295"),
        ("--means 1 2", "--means 1 2: TenArmedTestbed-v0 has its own"),
        ("--env-id BernoulliBandit-v0 --means 0.8 1.2", "--means 0.8 1.2: must be probabilities"),
        ("--env-id GaussianBandit-v0 --means -3", "--means -3: must be at least two numbers"),
        ("--env-id FrozenLake-v1", "--env-id FrozenLake-v1: observations are Discrete(16)"),
    ],
)
def test_bad_input(command_line, tmp_path, flags, message):
    run_dir = tmp_path / "run"
    status, _, err = command_line("bandit_epsilon_greedy", *flags.split(), "--run-dir", run_dir)
    assert status == 2
    assert err.startswith(f"error: {message}")
    assert not run_dir.exists()


def test_a_reward_that_is_not_finite(tmp_path):
    class Infinite(Stops):
        def step(self, action):
            return 0, float("inf"), False, False, {}

    gym.register("Infinite-v0", Infinite)
    try:
        with pytest.raises(UserError, match=r"--env-id Infinite-v0: arm \d gave a reward"):
            train(Config(env_id="Infinite-v0", num_runs=2, run_dir=str(tmp_path)))
    finally:
        del gym.registry["Infinite-v0"]
