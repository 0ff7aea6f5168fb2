"""Policy iteration: exact values, monotone improvement, ties, and policies that never end."""

from chapter01_fundamentals import dp_policy_iteration as script
from chapter01_fundamentals.dp_policy_iteration import (
    Config,
    evaluate,
    improve,
    may_end,
    q_values,
    random_policy,
)
from common.environments import make_env
from common.environments.tabular import Model, exact_return, tabular_model, toy_text_kwargs
from common.errors import UserError
from common.metrics import read_metrics

import gymnasium as gym
import numpy as np
import pytest

SOLVE = {"evaluation": "solve"}


def model_of(env_id: str, **kwargs) -> Model:
    return tabular_model(make_env(env_id, **kwargs), env_id)


def tables(result) -> dict[str, np.ndarray]:
    with np.load(result.run_dir / "tables.npz") as stored:
        return dict(stored)


def iterate(model: Model, config: Config) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """The last policy, its values, and the values of every policy."""
    policy, values = random_policy(model, config), [np.zeros(len(model.start))]
    for _ in range(config.max_improvements):
        values.append(evaluate(policy, values[-1], model, config)[0])
        new = improve(policy, q_values(values[-1], model, config.gamma), config.theta)
        if np.array_equal(new, policy):
            return policy, values[-1], values[1:]
        policy = new
    raise AssertionError("the policy keeps changing")


# --- Reference values, through train() --------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "gamma", "settings", "value", "tolerance"),
    [
        ("FrozenLake-v1", 0.99, {}, 0.5420259320, 1e-8),
        ("CliffWalking-v1", 0.9, {}, -7.458134, 5e-7),
        ("Taxi-v4", 0.99, SOLVE, 6.327464, 5e-7),
    ],
)
def test_value_of_the_start_after_training(tmp_path, env_id, gamma, settings, value, tolerance):
    config = Config(env_id=env_id, gamma=gamma, seed=3, run_dir=str(tmp_path), **settings)
    result = script.train(config)
    assert result.facts["value_start"] == pytest.approx(value, abs=tolerance)
    saved, model = tables(result), model_of(env_id)
    states = np.arange(len(model.start))
    np.testing.assert_allclose(saved["Q"][states, saved["policy"]], saved["V"], atol=1e-9)
    np.testing.assert_allclose(saved["Q"].max(axis=1), saved["V"], atol=1e-9)
    np.testing.assert_array_equal(result.policy(states), saved["policy"])
    metrics = read_metrics(tmp_path)
    np.testing.assert_array_equal(metrics["step"], np.arange(1, result.total_timesteps + 1))
    # No state loses by any change, and the last look at the policy changes nothing.
    assert np.isnan(metrics["train/least_gain"][0])
    assert metrics["train/least_gain"][1:].min() >= -1e-9
    assert (np.diff(metrics["train/value_start"]) >= -1e-9).all()
    assert metrics["train/changes"][-1] == 0
    assert metrics["train/changes"][:-1].min() > 0
    assert (metrics["train/sweeps"] > 0).all() == (config.evaluation == "sweeps")
    assert (tmp_path / "policies.png").exists() == (env_id != "Taxi-v4")


@pytest.mark.parametrize("evaluation", ["sweeps", "solve"])
@pytest.mark.parametrize(
    ("env_id", "gamma", "value"),
    [
        ("FrozenLake-v1", 0.9, 0.0688909049),
        ("FrozenLake-v1", 0.99, 0.5420259320),
        ("FrozenLake8x8-v1", 0.9, 0.0064111143),
        ("FrozenLake8x8-v1", 0.99, 0.4146403618),
    ],
)
def test_gamma_below_one(env_id, gamma, value, evaluation):
    model = model_of(env_id)
    for seed in range(3):
        _, V, values = iterate(model, Config(gamma=gamma, seed=seed, evaluation=evaluation))
        assert V[0] == pytest.approx(value, abs=1e-9)
        assert len(values) < 10


@pytest.mark.parametrize("evaluation", ["sweeps", "solve"])
@pytest.mark.parametrize(
    ("env_id", "value", "tolerance"),
    [
        ("FrozenLake-v1", 14 / 17, 1e-9),
        ("FrozenLake8x8-v1", 1.0, 1e-9),
        ("CliffWalking-v1", -13.0, 1e-12),
        ("Blackjack-v1", -0.0465560, 5e-8),
    ],
)
def test_gamma_one(env_id, value, tolerance, evaluation):
    model = model_of(env_id, **toy_text_kwargs(env_id))
    for seed in range(3):
        config = Config(env_id=env_id, gamma=1.0, seed=seed, evaluation=evaluation)
        policy, V, _ = iterate(model, config)
        assert model.start @ V == pytest.approx(value, abs=tolerance)
        assert exact_return(policy, model, 10_000) == pytest.approx(value, abs=1e-6)


def test_gamma_one_where_the_first_policies_take_very_long():
    # A random policy walks about for 100,000 steps and more before it gets past the cliff.
    model = model_of("CliffWalkingSlippery-v1")
    for seed in range(5):
        _, V, values = iterate(model, Config(gamma=1.0, seed=seed, evaluation="solve"))
        assert model.start @ V == pytest.approx(-64.7092, abs=5e-5)
        assert model.start @ values[0] < -1000.0


def test_taxi_at_gamma_one():
    model = model_of("Taxi-v4")
    _, V, _ = iterate(model, Config(gamma=1.0, evaluation="solve"))
    assert model.start @ V == pytest.approx(7.93, abs=1e-9)


# --- The parts --------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("theta", [1e-2, 1e-8])
def test_sweeps_stop_within_theta_of_the_solution_and_not_much_later(gamma, theta):
    model = model_of("FrozenLake-v1")
    rng = np.random.default_rng(5)
    for _ in range(5):
        policy, V = rng.integers(4, size=16), rng.normal(size=16)
        exact, none = evaluate(policy, V, model, Config(gamma=gamma, evaluation="solve"))
        config = Config(gamma=gamma, theta=theta)
        swept, sweeps = evaluate(policy, V, model, config)
        assert none == 0
        assert np.abs(swept - exact).max() < theta  # (1)
        config = Config(gamma=gamma, theta=theta, max_sweeps=max(1, sweeps - 1))
        assert sweeps <= 2 or evaluate(policy, V, model, config)[1] == sweeps - 1
        warm, again = evaluate(policy, exact, model, Config(gamma=gamma, theta=theta))
        assert again <= 2  # from the solution on there is nothing left to do
        assert np.abs(warm - exact).max() < theta


@pytest.mark.parametrize("end", [0.5, 0.1, 1e-3])
def test_at_gamma_one_the_chance_to_go_on_tells_when_to_stop(end):
    # One state, a reward of 1 per step, and one step in 1 / end is the last: V = 1 / end.
    model = Model(np.full((1, 1, 1), 1.0 - end), np.ones((1, 1)), np.ones(1))
    config = Config(gamma=1.0, theta=1e-6)
    V, sweeps = evaluate(np.zeros(1, int), np.zeros(1), model, config)
    assert 1e-7 < abs(V[0] - 1.0 / end) < 1e-6
    assert sweeps == pytest.approx(np.log(1e-6 * end) / np.log(1.0 - end), rel=0.1, abs=2)


def test_values_of_a_policy_are_its_returns():
    model = model_of("FrozenLake-v1")
    known = np.array([0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0])
    V, _ = evaluate(known, np.zeros(16), model, Config(gamma=1.0, evaluation="solve"))
    assert V[0] == pytest.approx(14 / 17, abs=1e-12)
    assert exact_return(known, model, 5000) == pytest.approx(14 / 17, abs=1e-9)


def test_improve_changes_for_the_better_only():
    Q = np.array([[1.0, 1.0, 0.0], [1.0, 1.0 + 1e-10, 0.0], [1.0, 1.1, 1.2]])
    assert improve(np.array([1, 0, 0]), Q, theta=1e-10).tolist() == [1, 0, 2]
    assert improve(np.array([2, 2, 2]), Q, theta=1e-10).tolist() == [0, 1, 2]
    assert improve(np.array([0, 0, 1]), Q, theta=1e-12).tolist() == [0, 1, 2]
    assert improve(np.array([0, 0, 1]), Q, theta=0.1).tolist() == [0, 0, 1]


def test_where_an_episode_may_end():
    # 0 -> 1 -> 2, which ends one time in ten; 3 and 4 take turns for ever.
    transition = np.zeros((5, 5))
    transition[[0, 1, 2, 3, 4], [1, 2, 0, 4, 3]] = [1.0, 1.0, 0.9, 1.0, 1.0]
    assert may_end(transition).tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("env_id", ["CliffWalking-v1", "Taxi-v4"])
def test_first_policies(env_id):
    model = model_of(env_id)
    states = np.arange(len(model.start))
    endless = 0
    for seed in range(5):
        policy = random_policy(model, Config(seed=seed))
        endless += not may_end(model.transition[states, policy]).all()
        ending = random_policy(model, Config(seed=seed, gamma=1.0))
        settled = may_end(model.transition[states, policy])
        np.testing.assert_array_equal(policy[settled], ending[settled])  # only the rest is redrawn
        assert may_end(model.transition[states, ending]).all()
    assert endless == 5  # so there was something to do
    first, other = (random_policy(model, Config(seed=seed)) for seed in (0, 1))
    assert not np.array_equal(first, other)


def test_ties_do_not_make_it_walk_for_ever():
    # On the large lake every safe detour is worth 1; value iteration has to break the ties.
    model = model_of("FrozenLake8x8-v1")
    for seed in range(4):
        policy, V, values = iterate(model, Config(gamma=1.0, seed=seed, evaluation="solve"))
        assert V[0] == pytest.approx(1.0, abs=1e-12)
        assert exact_return(policy, model, 200_000) > 0.999
        assert len(values) < 15


# --- The whole run ----------------------------------------------------------------------------


def test_seeds_begin_differently_and_end_alike(tmp_path, capsys):
    results = [
        script.train(Config(seed=seed, evaluation="solve", run_dir=str(tmp_path / str(seed))))
        for seed in (0, 1)
    ]
    first, second = (tables(result) for result in results)
    np.testing.assert_allclose(first["V"], second["V"], atol=1e-12)
    starts = [read_metrics(result.run_dir)["train/value_start"][0] for result in results]
    assert starts[0] != starts[1]
    assert "reached" not in capsys.readouterr().err
    # A played run acts as it learned to.
    policy = script.load_policy(Config(resume=str(tmp_path / "0")))
    np.testing.assert_array_equal(policy(np.arange(16)), first["policy"])


def test_limits_are_told(tmp_path, capsys):
    config = Config(max_improvements=1, max_sweeps=3, run_dir=str(tmp_path))
    result = script.train(config)
    assert result.total_timesteps == 1
    err = capsys.readouterr().err
    assert "--max-sweeps 3: reached before V converged" in err
    assert "--max-improvements 1: reached before the policy stayed the same" in err
    assert read_metrics(tmp_path)["train/sweeps"].tolist() == [3.0]


class Loop(gym.Env):
    """State 0: action 0 stays and earns `reward`, action 1 ends if it may and earns nothing."""

    def __init__(self, reward: float = 0.0, may_end: bool = True) -> None:
        self.observation_space = gym.spaces.Discrete(1)
        self.action_space = gym.spaces.Discrete(2)
        self.P = {0: {0: [(1.0, 0, reward, False)], 1: [(1.0, 0, 0.0, may_end)]}}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reward": 0.5}, "--gamma 1: rewards can be collected for ever"),
        ({"may_end": False}, "--gamma 1: from state 0 no policy ends the episode"),
    ],
)
def test_what_has_no_value_at_gamma_one_is_told(tmp_path, arguments, message):
    gym.register("Loop-v0", Loop, kwargs=arguments)
    try:
        with pytest.raises(UserError, match=message):
            script.train(Config(env_id="Loop-v0", gamma=1.0, run_dir=str(tmp_path / "one")))
        # Below 1 there is no such problem.
        model = model_of("Loop-v0")
        _, V, _ = iterate(model, Config(gamma=0.9))
        assert V[0] == pytest.approx(arguments.get("reward", 0.0) / (1 - 0.9), abs=1e-8)
    finally:
        del gym.registry["Loop-v0"]
