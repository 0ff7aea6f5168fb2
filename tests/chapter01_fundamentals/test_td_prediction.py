"""TD prediction against exact values, Sutton and Barto's figures and a second implementation."""

import json

from chapter01_fundamentals import td_prediction as script
from chapter01_fundamentals.td_prediction import SWEEP_ALPHA, SWEEP_N, Config, exact_values, learn
from common.environments import make_env
from common.environments.tabular import tabular_model
from common.errors import UserError
from common.metrics import read_metrics

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from hypothesis import given, settings
from hypothesis import strategies as st

WALK5 = "common.environments.random_walk:RandomWalk5-v0"
WALK19 = "common.environments.random_walk:RandomWalk19-v0"


def tables(result) -> dict[str, np.ndarray]:
    with np.load(result.run_dir / "tables.npz") as stored:
        return dict(stored)


# --- Reference values -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "reference", "long_run", "tolerance"),
    [
        # Reference: about 100 runs; long run: 20,000 runs of another program, error 0.0002.
        (0.05, 0.038, 0.0353, 0.0045),
        (0.1, 0.056, 0.0555, 0.0065),
    ],
)
def test_error_on_the_short_walk(tmp_path, alpha, reference, long_run, tolerance):
    config = Config(alpha=alpha, num_runs=200, sweep_episodes=0, run_dir=str(tmp_path))
    result = script.train(config)
    error = result.facts["rms_error_last"]
    assert error == pytest.approx(long_run, abs=tolerance)
    assert error == pytest.approx(reference, abs=tolerance + 0.002)
    curve = read_metrics(tmp_path)["train/rms_error"]
    assert len(curve) == 100
    assert curve[-1] == pytest.approx(error, rel=1e-6)
    assert 0.2 < curve[0] < 0.2357  # the error before the first episode
    assert result.facts["rms_error_mean"] == pytest.approx(curve.mean(), rel=1e-6)
    assert result.facts["value_start"] == tables(result)["V"][3]
    # Visits of one episode depend on each other: a constant α leaves a bias of its own size.
    np.testing.assert_allclose(tables(result)["V"][1:-1], np.arange(1, 6) / 6, atol=alpha / 2)


def test_error_on_the_long_walk(tmp_path):
    flags = {"n_step": 4, "alpha": 0.4, "num_episodes": 10, "initial_value": 0.0, "num_runs": 100}
    result = script.train(Config(env_id=WALK19, run_dir=str(tmp_path), **flags))
    by_alpha = tables(result)["rms_by_n_alpha"]
    assert by_alpha.shape == (len(SWEEP_N), len(SWEEP_ALPHA))
    # Tolerances: four standard errors of a mean of 100 runs.
    for n, alpha, reference, tolerance in (
        (1, 0.8, 0.347, 0.008),
        (4, 0.4, 0.267, 0.020),
        (8, 0.2, 0.282, 0.018),
    ):
        [k] = np.flatnonzero(np.isclose(SWEEP_ALPHA, alpha))
        assert by_alpha[SWEEP_N.index(n), k] == pytest.approx(reference, abs=tolerance)
    assert result.facts["rms_error_mean"] == pytest.approx(0.267, abs=0.02)
    # The lesson of figure 7.2: neither one step nor the whole episode; the larger n, the smaller α.
    best = by_alpha.min(axis=1)
    assert SWEEP_N[best.argmin()] in (2, 4, 8)
    assert best[0] > best.min() + 0.05 < best[-1]
    assert (np.diff(by_alpha.argmin(axis=1)) <= 0).all()


def test_the_picture_of_many_step_sizes_shows_what_single_runs_do(tmp_path):
    """The same episodes, one α and one n at a time."""
    flags = {"env_id": WALK19, "num_episodes": 1, "num_runs": 3, "sweep_episodes": 2, "gamma": 0.9}
    config = Config(run_dir=str(tmp_path), **flags)
    by_alpha = tables(script.train(config))["rms_by_n_alpha"]
    env, rng = make_env(WALK19), np.random.default_rng([config.seed, 2])
    policy = np.full((21, 2), 0.5)
    exact = exact_values(policy, tabular_model(env, WALK19), 0.9)
    errors = np.zeros_like(by_alpha)
    runs = [[list(script.play(env, policy, rng, 1_000)) for _ in range(2)] for _ in range(3)]
    for walks in runs:
        for i, n in enumerate(SWEEP_N):
            for k, alpha in enumerate(SWEEP_ALPHA):
                V = np.full(21, 0.5)
                for steps in walks:
                    learn(V, steps, n, alpha, 0.9)
                    errors[i, k] += np.sqrt(np.mean((V - exact)[1:-1] ** 2)) / 6
    np.testing.assert_allclose(by_alpha, errors, rtol=1e-12)


# --- The update -------------------------------------------------------------------------------


@st.composite
def episodes(draw):
    """A random episode over five states; ends by termination or by a time limit."""
    length = draw(st.integers(1, 12))
    states = draw(st.lists(st.integers(0, 4), min_size=length + 1, max_size=length + 1))
    number = st.floats(-2.0, 2.0).map(lambda x: round(x, 3))
    rewards = draw(st.lists(number, min_size=length, max_size=length))
    terminated = draw(st.booleans())
    return [
        (states[t], rewards[t], states[t + 1], last and terminated, last and not terminated)
        for t in range(length)
        for last in [t == length - 1]
    ]


FRACTION = st.sampled_from([0.0, 0.05, 0.3, 0.9, 1.0])
START = np.array([0.5, -1.0, 2.0, 0.0, 0.25])


@given(episodes(), FRACTION, FRACTION)
@settings(max_examples=100, deadline=None)
def test_one_step_is_td_0_digit_for_digit(steps, alpha, gamma):
    V, expected = START.copy(), START.copy()
    learn(V, steps, 1, alpha, gamma)
    for state, reward, next_state, terminated, _ in steps:
        target = reward if terminated else reward + gamma * expected[next_state]
        expected[state] += alpha * (target - expected[state])
    np.testing.assert_array_equal(V, expected)


@given(episodes(), st.integers(1, 15), FRACTION, FRACTION)
@settings(max_examples=200, deadline=None)
def test_n_steps_by_the_definition(steps, n, alpha, gamma):
    """Sutton and Barto's section 7.1, with its indices: at time t, state τ = t - n + 1 moves."""
    V, expected = START.copy(), START.copy()
    learn(V, steps, n, alpha, gamma)
    S = [step[0] for step in steps] + [steps[-1][2]]
    R = [None] + [step[1] for step in steps]  # R[t + 1] follows S[t]
    T = len(steps)
    for t in range(T + n - 1):
        tau = t - n + 1
        if tau < 0:
            continue
        G = sum(gamma ** (i - tau - 1) * R[i] for i in range(tau + 1, min(tau + n, T) + 1))
        end = min(tau + n, T)
        if tau + n < T or not steps[-1][3]:  # a time limit is no end: the last state counts
            G += gamma ** (end - tau) * expected[S[end]]
        if tau < T:
            expected[S[tau]] += alpha * (G - expected[S[tau]])
    np.testing.assert_allclose(V, expected, atol=1e-12)


@given(episodes(), st.integers(1, 4))
@settings(max_examples=50, deadline=None)
def test_many_step_sizes_at_once(steps, n):
    alphas = np.array([0.1, 0.5, 1.0])
    V = np.tile(START, (3, 1))
    learn(V, steps, n, alphas, 0.9)
    for alpha, row in zip(alphas, V, strict=True):
        alone = START.copy()
        learn(alone, steps, n, float(alpha), 0.9)
        np.testing.assert_array_equal(row, alone)


def test_it_learns_while_the_steps_come_in():
    V, seen = np.zeros(3), []

    def steps():
        for t in range(4):
            seen.append(V.copy())
            yield t % 3, 1.0, (t + 1) % 3, t == 3, False

    learn(V, steps(), 2, 1.0, 1.0)
    # n = 2: the first update comes with the second step, the last two with the end.
    np.testing.assert_array_equal(seen, [[0, 0, 0], [0, 0, 0], [2, 0, 0], [2, 4, 0]])
    np.testing.assert_array_equal(V, [1, 4, 2])


# --- Ends of episodes -------------------------------------------------------------------------


class Constant(gym.Env):
    """One state, reward 2 for ever; with `ends`, every step is the last one."""

    observation_space, action_space = Discrete(1), Discrete(1)

    def __init__(self, ends: bool = False):
        self.ends = ends
        self.P = {0: {0: [(1.0, 0, 2.0, ends)]}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 0, 2.0, self.ends, False, {}


gym.register("TdPredictionLimited-v0", Constant, max_episode_steps=6)
gym.register("TdPredictionEndless-v0", Constant)
gym.register("TdPredictionOneStep-v0", Constant, kwargs={"ends": True})


@pytest.mark.parametrize("n_step", [1, 3, 20])
@pytest.mark.parametrize(
    ("env_id", "value"), [("Limited", 10.0), ("Endless", 10.0), ("OneStep", 2.0)]
)
def test_only_the_end_of_the_mdp_stops_the_bootstrap(tmp_path, env_id, value, n_step):
    flags = {"num_episodes": 60, "num_runs": 1, "alpha": 0.5, "gamma": 0.8, "sweep_episodes": 0}
    config = Config(
        env_id=f"TdPrediction{env_id}-v0",
        n_step=n_step,
        max_steps=6,
        run_dir=str(tmp_path),
        **flags,
    )
    saved = tables(script.train(config))
    assert saved["V_exact"][0] == pytest.approx(value, abs=1e-12)
    assert saved["V"][0] == pytest.approx(value, abs=1e-6)


# --- Policies and environments ----------------------------------------------------------------

LAKE_POLICY = (0, 3, 3, 3, 0, 0, 0, 0, 3, 1, 0, 0, 0, 2, 1, 0)


def test_frozen_lake_as_in_the_book(tmp_path):
    flags = {"alpha": 0.05, "gamma": 0.9, "initial_value": 0.0, "num_episodes": 1500, "num_runs": 4}
    config = Config(env_id="FrozenLake-v1", sweep_episodes=0, run_dir=str(tmp_path), **flags)
    result = script.train(config)
    V, exact = tables(result)["V"], tables(result)["V_exact"]
    holes_and_goal = [5, 7, 11, 12, 15]
    assert np.flatnonzero(np.isnan(exact)).tolist() == holes_and_goal
    assert np.abs(V[holes_and_goal]).max() == 0.0
    assert result.facts["rms_error_last"] < 0.06 < result.facts["rms_error_mean"]
    assert (tmp_path / "values.png").stat().st_size > 5_000
    random = exact_values(np.full((16, 4), 0.25), tabular_model(make_env("FrozenLake-v1"), ""), 1.0)
    assert random[0] == pytest.approx(0.0139, abs=5e-5)


def test_a_policy_of_ones_own(tmp_path):
    flags = {"gamma": 0.99, "initial_value": 0.0, "num_episodes": 60, "num_runs": 2}
    config = Config(
        env_id="FrozenLake-v1", policy=LAKE_POLICY, sweep_episodes=0, run_dir=str(tmp_path), **flags
    )
    saved = tables(script.train(config))
    assert saved["V_exact"][0] == pytest.approx(0.5420259320, abs=1e-9)
    np.testing.assert_array_equal(saved["policy"], np.eye(4)[list(LAKE_POLICY)])
    env, rng = make_env("FrozenLake-v1", is_slippery=False), np.random.default_rng(0)
    walk = list(script.play(env, np.eye(4)[[2] * 16], rng, 5))  # right, right, right, wall, wall
    assert [step[0] for step in walk] == [0, 1, 2, 3, 3]
    assert [step[4] for step in walk] == [False] * 4 + [True]


class NoTable(Constant):
    """Two states in turn, then the end; what an episode earns says its second state."""

    observation_space = Discrete(3)

    def __init__(self):
        super().__init__()
        del self.P

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s = int(self.np_random.integers(2))
        return self.s, {}

    def step(self, action):
        self.s, before = 2, self.s
        return 2, float(before), before == 2, False, {}


gym.register("TdPredictionNoTable-v0", NoTable)


def test_without_a_table_values_are_learned_and_no_errors_told(tmp_path, command_line):
    flags = ["--env-id", "TdPredictionNoTable-v0", "--num-episodes", 300, "--num-runs", 3]
    flags += ["--alpha", 0.1, "--run-dir", tmp_path]
    status, out, err = command_line("td_prediction", *flags)
    assert status == 0, err
    with np.load(tmp_path / "tables.npz") as stored:
        V = stored["V"]
        assert set(stored) == {"V", "policy"}
    np.testing.assert_allclose(V, [2.0, 3.0, 2.0], atol=0.01)
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["value_start"] == pytest.approx(2.5, abs=0.07)  # both alike: 1,000 resets
    assert not {"rms_error_last", "rms_error_mean"} & set(evaluation)
    assert out.splitlines()[-1].startswith("finished: value_start 2.")
    assert (tmp_path / "values.png").stat().st_size > 5_000


def test_actions_are_drawn_from_the_policy():
    env, rng = make_env(WALK5), np.random.default_rng(1)
    policy = np.tile([0.2, 0.8], (7, 1))
    steps = [step for _ in range(400) for step in script.play(env, policy, rng, 1_000)]
    right = np.mean([step[2] > step[0] for step in steps])
    assert right == pytest.approx(0.8, abs=4 * 0.4 / np.sqrt(len(steps)))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"policy": (0, 1)}, "--policy 0 1: must be 7 actions .0 to 1., one for each state"),
        ({"policy": (0, 1, 0, 1, 0, 1, 2)}, "--policy 0 1 0 1 0 1 2: must be 7 actions"),
        ({"env_id": "CliffWalking-v1", "policy": (0,) * 48}, "--gamma 1.0: must be below 1"),
        # Slipping, it is a singular matrix but for rounding: 36 leads to 0 to 35, and back.
        ({"env_id": "CliffWalkingSlippery-v1", "policy": (0,) * 48}, "--gamma 1.0: must be below"),
        ({"env_id": "CartPole-v1"}, "--env-id CartPole-v1: "),
        ({"n_step": 0}, "--n-step 0: must be at least 1"),
        ({"num_runs": 0}, "--num-runs 0: must be at least 1"),
        ({"alpha": 0.0}, "--alpha 0.0: must be greater than 0 and at most 1"),
        ({"sweep_episodes": -1}, "--sweep-episodes -1: must be 0 or more"),
    ],
)
def test_bad_input(tmp_path, flags, sentence):
    with pytest.raises(UserError, match=sentence):
        script.train(Config(run_dir=str(tmp_path / "run"), **flags))
    assert not (tmp_path / "run").exists()


def test_the_verdict(tmp_path, command_line):
    few = ["--num-runs", 2, "--sweep-episodes", 0, "--num-episodes"]
    status, out, _ = command_line("td_prediction", "--run-dir", tmp_path / "a", *few, 2)
    assert status == 0
    assert "not solved: rms_error_last 0.2" in out.splitlines()[-1]
    long_walk = ["--env-id", WALK19, "--initial-value", 0]
    _, out, _ = command_line("td_prediction", "--run-dir", tmp_path / "b", *few, 2, *long_walk)
    assert "not solved: rms_error_mean 0.5" in out.splitlines()[-1]
    assert "(target at most 0.275)" in out.splitlines()[-1]
