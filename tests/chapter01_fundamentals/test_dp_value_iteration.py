"""Value iteration against exact values, linear solves and every policy of small random MDPs."""

from itertools import product

from chapter01_fundamentals import dp_value_iteration as script
from chapter01_fundamentals.dp_value_iteration import Config, greedy, q_values, sweep
from common.environments import make_env
from common.environments.tabular import Model, exact_return, tabular_model
from common.errors import UserError
from common.evaluation import episode_returns
from common.metrics import read_metrics

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def model_of(env_id: str, **kwargs) -> Model:
    return tabular_model(make_env(env_id, **kwargs), env_id)


def iterate(model: Model, gamma: float, sweeps: int) -> np.ndarray:
    V = np.zeros(len(model.start))
    for _ in range(sweeps):
        V = sweep(V, model, gamma)
    return V


def policy_values(policy: np.ndarray, model: Model, gamma: float) -> np.ndarray:
    """V of a policy by solving (I - γ P) V = r."""
    every = np.arange(len(policy))
    matrix = np.eye(len(policy)) - gamma * model.transition[every, policy]
    return np.linalg.solve(matrix, model.reward[every, policy])


def tables(result) -> dict[str, np.ndarray]:
    with np.load(result.run_dir / "tables.npz") as stored:
        return dict(stored)


# --- Reference values, through train() --------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "gamma", "value", "tolerance"),
    [
        ("FrozenLake-v1", 0.99, 0.5420259320, 1e-8),
        ("FrozenLake-v1", 1.0, 14 / 17, 1e-8),
        ("FrozenLake8x8-v1", 1.0, 1.0, 1e-8),
        ("CliffWalking-v1", 0.9, -7.458134, 5e-7),
        ("Taxi-v4", 0.99, 6.327464, 5e-7),
    ],
)
def test_value_of_the_start_after_training(tmp_path, env_id, gamma, value, tolerance):
    result = script.train(Config(env_id=env_id, gamma=gamma, run_dir=str(tmp_path)))
    assert result.facts["value_start"] == pytest.approx(value, abs=tolerance)
    model, saved = model_of(env_id), tables(result)
    assert model.start @ saved["V"] == result.facts["value_start"]
    np.testing.assert_allclose(saved["Q"].max(axis=1), saved["V"], atol=1e-9)
    metrics = read_metrics(tmp_path)
    assert metrics["train/value_start"][-1] == pytest.approx(value, abs=max(tolerance, 1e-8))
    assert metrics["step"][-1] == result.total_timesteps  # one row per sweep
    np.testing.assert_array_equal(metrics["step"], np.arange(1, result.total_timesteps + 1))


@pytest.mark.parametrize(
    ("env_id", "gamma", "value", "tolerance"),
    [
        ("FrozenLake-v1", 0.9, 0.0688909049, 1e-8),
        ("FrozenLake8x8-v1", 0.9, 0.0064111143, 1e-8),
        ("FrozenLake8x8-v1", 0.99, 0.4146403618, 1e-8),
        ("CliffWalking-v1", 0.99, -12.247898, 5e-7),
        ("CliffWalking-v1", 1.0, -13.0, 1e-12),
        ("CliffWalkingSlippery-v1", 1.0, -64.7092, 5e-5),
        ("Taxi-v4", 1.0, 7.93, 1e-12),
    ],
)
def test_value_of_the_start_after_many_sweeps(env_id, gamma, value, tolerance):
    model = model_of(env_id)
    sweeps = 40 if env_id == "Taxi-v4" else 3000
    assert model.start @ iterate(model, gamma, sweeps) == pytest.approx(value, abs=tolerance)


def test_taxi_starts_and_rain():
    model = model_of("Taxi-v4")
    V = iterate(model, 1.0, 40)
    starts = V[model.start > 0]
    assert len(starts) == 300
    assert (starts.min(), starts.max()) == (3.0, 15.0)
    assert starts.mean() == pytest.approx(7.93, abs=1e-12)
    assert starts.std() == pytest.approx(2.59, abs=0.005)
    policy = greedy(q_values(V, model, 1.0), model)
    assert exact_return(policy, model, 200) == pytest.approx(7.93, abs=1e-12)
    steps = model._replace(reward=np.ones_like(model.reward))
    assert exact_return(policy, steps, 200) == pytest.approx(13.07, abs=0.005)
    rain = model_of("Taxi-v4", is_rainy=True)
    assert rain.start @ iterate(rain, 1.0, 400) == pytest.approx(3.954575, abs=5e-7)


# --- Policies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "gamma", "limit", "success"),
    [
        ("FrozenLake-v1", 0.9, 100, 0.729766),
        ("FrozenLake-v1", 0.99, 100, 0.740165),
        ("FrozenLake8x8-v1", 0.9, 200, 0.738576),
        ("FrozenLake8x8-v1", 0.99, 200, 0.862955),
        ("FrozenLake8x8-v1", 0.999, 200, 0.885654),
    ],
)
def test_success_rate_of_the_greedy_policy(env_id, gamma, limit, success):
    model = model_of(env_id)
    policy = greedy(q_values(iterate(model, gamma, 3000), model, gamma), model)
    assert exact_return(policy, model, limit) == pytest.approx(success, abs=5e-7)


def test_exact_return_of_other_policies_on_the_lake():
    model = model_of("FrozenLake-v1")
    known = np.array([0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0])
    assert exact_return(known, model, 100) == pytest.approx(0.740165, abs=5e-7)
    # The uniform policy is the only one of a model with the mean over the actions.
    mean = Model(
        model.transition.mean(axis=1, keepdims=True),
        model.reward.mean(axis=1, keepdims=True),
        model.start,
    )
    assert exact_return(np.zeros(16, int), mean, 100) == pytest.approx(0.0139, abs=5e-5)


@pytest.mark.parametrize(
    ("env_id", "limit", "best"),
    [("FrozenLake-v1", 100, 0.744190), ("FrozenLake8x8-v1", 200, 0.913220)],
)
def test_sweeps_at_gamma_one_give_the_best_time_dependent_policy(env_id, limit, best):
    model = model_of(env_id)
    assert model.start @ iterate(model, 1.0, limit) == pytest.approx(best, abs=5e-7)


def test_training_plays_as_well_as_it_says(tmp_path):
    result = script.train(Config(run_dir=str(tmp_path)))
    assert result.facts["exact_return"] == pytest.approx(0.740165, abs=5e-7)
    returns = episode_returns(result.policy, "FrozenLake-v1", 400, seed=0)
    assert set(returns) == {0.0, 1.0}
    assert np.mean(returns) == pytest.approx(0.740165, abs=4 * np.sqrt(0.74 * 0.26 / 400))


def test_ties_on_the_large_lake_at_gamma_one():
    model = model_of("FrozenLake8x8-v1")
    Q = q_values(iterate(model, 1.0, 3000), model, 1.0)
    assert Q[0].max() == pytest.approx(1.0, abs=1e-8)
    # V* is 1 wherever the goal can be reached safely; the first best action walks for ever.
    first = (np.round(Q, 7)).argmax(axis=1)
    assert exact_return(first, model, 200_000) == 0.0
    policy = greedy(Q, model)
    rows = np.arange(64)
    np.testing.assert_allclose(Q[rows, policy], Q.max(axis=1), atol=1e-7)
    # Certain, but slow: hardly ever within an episode, always in the end.
    assert exact_return(policy, model, 200) < 0.05
    assert exact_return(policy, model, 200_000) > 0.999


def test_greedy_prefers_progress_among_equals_only():
    # State 0: action 0 stays, action 1 ends with 1, action 2 ends with 2. State 1: 0 stays, 1 ends.
    transition = np.zeros((2, 3, 2))
    transition[0, 0, 0] = transition[1, 0, 1] = transition[1, 2, 1] = 1.0
    model = Model(transition, np.array([[0.0, 1.0, 2.0], [0.0, 0.0, 0.0]]), np.array([1.0, 0.0]))
    Q = np.array([[2.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert greedy(Q, model).tolist() == [2, 1]
    assert greedy(np.array([[2.0, 1.0, 1.0], [3.0, 0.0, 0.0]]), model).tolist() == [0, 0]


# --- Deterministic lakes and maps -------------------------------------------------------------


@pytest.mark.parametrize(("env_id", "moves"), [("FrozenLake-v1", 5), ("FrozenLake8x8-v1", 13)])
@pytest.mark.parametrize("gamma", [0.5, 0.9, 0.99])
def test_not_slippery_the_value_is_the_discounted_goal(env_id, moves, gamma):
    model = model_of(env_id, is_slippery=False)
    V = iterate(model, gamma, 100)
    assert V[0] == pytest.approx(gamma**moves, abs=1e-14)
    policy = greedy(q_values(V, model, gamma), model)
    assert exact_return(policy, model, moves) == 0.0  # the last of moves + 1 steps earns the 1
    assert exact_return(policy, model, moves + 1) == 1.0


def test_a_map_of_ones_own_and_its_flags(tmp_path):
    config = Config(map="SFFFG/HHHHF", slippery=False, gamma=0.9, run_dir=str(tmp_path))
    result = script.train(config)
    assert result.facts["value_start"] == pytest.approx(0.9**3, abs=1e-10)
    assert tables(result)["policy"][:4].tolist() == [2, 2, 2, 2]
    assert (tmp_path / "values.png").stat().st_size > 5000
    bad = ["SFX/FFG", "SF/G", "FF/FG", "SF/FF", "S", "/", "SG/"]
    for number, text in enumerate(bad):
        run_dir = tmp_path / str(number)
        with pytest.raises(UserError, match=f"--map {text}: "):
            script.train(Config(map=text, run_dir=str(run_dir)))
        assert not run_dir.exists()
    with pytest.raises(UserError, match="only FrozenLake has maps, not Taxi-v4"):
        script.train(Config(env_id="Taxi-v4", map="SF/FG", run_dir=str(tmp_path / "taxi")))
    with pytest.raises(UserError, match="--env-id CartPole-v1: no transition table"):
        script.train(Config(env_id="CartPole-v1", run_dir=str(tmp_path / "cart")))


def test_model_leaves_out_what_terminates():
    model = model_of("FrozenLake-v1")
    # Beside the goal (14), stepping right: a third each to the goal, up, and against the shore.
    assert model.transition[14, 2].sum() == pytest.approx(2 / 3)
    assert model.transition[14, 2, [10, 14]] == pytest.approx([1 / 3, 1 / 3])
    assert model.reward[14, 2] == pytest.approx(1 / 3)
    assert model.reward.sum() == pytest.approx(1.0)  # three actions may slip into the goal
    assert model.start.tolist() == [1.0] + [0.0] * 15


# --- Properties -------------------------------------------------------------------------------


@st.composite
def models(draw) -> Model:
    """Random finite MDPs, some of whose transitions terminate; rewards of size 1."""
    states, actions = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    transition = rng.dirichlet(np.full(states + 1, 0.5), (states, actions))[..., :states]
    reward = rng.normal(size=(states, actions)).round(draw(st.integers(0, 3)))
    return Model(transition, reward, rng.dirichlet(np.ones(states)))


def best_of_all_policies(model: Model, gamma: float) -> np.ndarray:
    """V* by solving for every deterministic policy."""
    states, actions = model.reward.shape
    policies = product(range(actions), repeat=states)
    return np.max([policy_values(np.array(p), model, gamma) for p in policies], axis=0)


@given(models(), st.sampled_from([0.0, 0.5, 0.9, 0.97]))
@settings(max_examples=60, deadline=None)
def test_converges_to_the_best_of_all_policies(model, gamma):
    V = iterate(model, gamma, 1200)
    np.testing.assert_allclose(V, best_of_all_policies(model, gamma), atol=1e-10)
    policy = greedy(q_values(V, model, gamma), model)
    # greedy() takes actions within 1e-7 of the best.
    np.testing.assert_allclose(policy_values(policy, model, gamma), V, atol=1e-7 / (1 - gamma))


@given(models(), st.sampled_from([0.1, 0.9]), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_sweep_shrinks_distances_by_gamma(model, gamma, seed):
    U, V = np.random.default_rng(seed).normal(size=(2, len(model.start)))
    shrunk = np.abs(sweep(U, model, gamma) - sweep(V, model, gamma)).max()
    assert shrunk <= gamma * np.abs(U - V).max() + 1e-12


class Table(gym.Env):
    """Holds a transition table; nobody steps it."""

    def __init__(self, model: Model) -> None:
        states, actions = model.reward.shape
        self.observation_space = gym.spaces.Discrete(states)
        self.action_space = gym.spaces.Discrete(actions)
        self.initial_state_distrib = model.start
        self.P = {
            s: {a: [(p, t, model.reward[s, a], False) for t, p in enumerate(model.transition[s, a])]
                + [(1.0 - model.transition[s, a].sum(), s, model.reward[s, a], True)]
                for a in range(actions)}
            for s in range(states)
        }  # fmt: skip


@pytest.mark.parametrize("theta", [1e-1, 1e-3])
@pytest.mark.parametrize("gamma", [0.5, 0.99])
def test_the_error_is_below_theta_when_it_stops(tmp_path, theta, gamma):
    rng = np.random.default_rng(int(1 / theta))
    model = Model(
        0.99999 * rng.dirichlet(np.ones(4), (4, 3)), rng.normal(size=(4, 3)), np.full(4, 0.25)
    )
    gym.register("RandomTable-v0", Table, kwargs={"model": model})
    config = Config(env_id="RandomTable-v0", gamma=gamma, theta=theta, run_dir=str(tmp_path))
    try:
        result = script.train(config)
    finally:
        del gym.registry["RandomTable-v0"]
    error = np.abs(tables(result)["V"] - best_of_all_policies(model, gamma)).max()
    assert error < theta  # (3)
    assert error > theta / 1000  # and it did not sweep on for nothing
    delta = read_metrics(tmp_path)["train/delta"]
    assert delta[-1] <= theta * (1 - gamma) / gamma < delta[-2]


def test_max_sweeps_stops_early(tmp_path):
    result = script.train(Config(max_sweeps=7, run_dir=str(tmp_path)))
    assert result.total_timesteps == 7
    model = model_of("FrozenLake-v1")
    np.testing.assert_array_equal(tables(result)["V"], iterate(model, 0.99, 7))
