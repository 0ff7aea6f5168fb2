"""The grid world's chain, values and simulation against numbers worked out by hand."""

import contextlib
import io
import json
from fractions import Fraction
from itertools import pairwise
from statistics import NormalDist

from chapter01_fundamentals import mdp_basics as script
from chapter01_fundamentals.mdp_basics import Config, discounted, distribution, play, read_policy
from common.environments import make_env
from common.errors import UserError
from common.evaluation import report_measure
from common.metrics import read_metrics

import numpy as np
import pytest

LAKE = "SFFF/FHFH/FFFH/HFFG"
BEST = "0333/0000/3100/0210"  # optimal on that lake for γ = 0.99
THIRD = {"map": LAKE, "success_rate": 1 / 3, "rewards": (1.0, 0.0, 0.0)}


def run(folder, **settings):
    """The result of a short run and its tables."""
    config = Config(**{"num_episodes": 2, "run_dir": str(folder), **settings})
    result = script.train(config)
    with np.load(folder / "tables.npz") as stored:
        return result, dict(stored)


@pytest.fixture(scope="module")
def printed():
    return io.StringIO()


@pytest.fixture(scope="module")
def default(tmp_path_factory, printed):
    with contextlib.redirect_stdout(printed):
        return run(tmp_path_factory.mktemp("default"), num_episodes=150)


# --- Worked out by hand: the default grid, S H H / F F F / H H G, down, right, right, down ------

# Per state that can be left: where 8 of 10 steps lead, and one each to the sides.
STEPS = {0: (3, 0, 1), 3: (4, 0, 6), 4: (5, 1, 7), 5: (8, 5, 4)}
REWARD = {1: Fraction(-1), 6: Fraction(-1), 7: Fraction(-1), 8: Fraction(1)}
SHARES = (Fraction(8, 10), Fraction(1, 10), Fraction(1, 10))


def exact_value(gamma: Fraction, sweeps: int = 400) -> float:
    V = dict.fromkeys(range(9), Fraction(0))
    for _ in range(sweeps):
        for s, ways in STEPS.items():
            parts = zip(SHARES, ways, strict=True)
            V[s] = sum(p * (REWARD.get(t, Fraction(-4, 100)) + gamma * V[t]) for p, t in parts)
            V[s] = V[s].limit_denominator(10**18)
    return float(V[0])


def test_where_it_ends(default):
    result, tables = default
    goal = 0.4096 / 0.6724  # x0 = (0.8 x3) / 0.9 and so on, solved on paper
    assert result.facts["ends_in_state_8"] == pytest.approx(goal, abs=1e-14)
    ends = {name: p for name, p in result.facts.items() if name.startswith("ends_in")}
    assert set(ends) == {f"ends_in_state_{s}" for s in (1, 6, 7, 8)}
    assert sum(ends.values()) == pytest.approx(1.0, abs=1e-14)
    np.testing.assert_allclose(tables["B"].sum(axis=1), 1.0, atol=1e-14)
    np.testing.assert_allclose(tables["B"][5, [1, 7, 8]], [0.1 / 8.2, 0.1 / 8.2, 8 / 8.2])


@pytest.mark.parametrize("gamma", [0, 0.5, 0.9, 1])
def test_values_of_the_start(default, gamma):
    value = default[0].facts[f"value_start_gamma_{gamma:g}"]
    assert value == pytest.approx(exact_value(Fraction(gamma).limit_denominator(10)), abs=1e-12)


def test_markov_chain(default):
    _, tables = default
    P, B = tables["P"], tables["B"]
    expected = np.zeros((9, 9))
    for s, ways in STEPS.items():
        for p, t in zip((0.8, 0.1, 0.1), ways, strict=True):
            expected[s, t] += p * (t not in REWARD)
    np.testing.assert_allclose(P, expected, atol=1e-15)

    # The same with states that nothing leaves, as chains are usually written down.
    chain = expected + np.diag([float(s in (1, 2, 6, 7, 8)) for s in range(9)])
    for s, ways in STEPS.items():
        for p, t in zip((0.8, 0.1, 0.1), ways, strict=True):
            chain[s, t] += p * (t in REWARD)
    d = np.eye(9)[0]
    for k in range(12):
        np.testing.assert_allclose(distribution(np.eye(9)[0], P, B, k), d, atol=1e-14)
        d = d @ chain
    assert distribution(np.eye(9)[0], P, B, 3)[5] == pytest.approx(0.8**3)


def test_action_values(default):
    _, tables = default
    V, Q, policy = tables["V"], tables["Q"], tables["policy"]
    np.testing.assert_allclose((policy * Q).sum(axis=1), V, atol=1e-14)
    assert policy.argmax(axis=1).tolist() == [1, 0, 0, 2, 2, 1, 0, 0, 0]
    # In the start, up: 0.8 and 0.1 stay there, 0.1 falls into the hole on the right.
    assert Q[0, 3] == pytest.approx(0.9 * (-0.04 + 0.9 * V[0]) + 0.1 * -1.0, abs=1e-14)
    assert Q[[1, 2, 6, 7, 8]].tolist() == [[0.0] * 4] * 5


def test_policies_on_the_lake(tmp_path):
    result, tables = run(tmp_path / "best", **THIRD, policy=BEST, gamma=0.99)
    assert tables["V"][0] == pytest.approx(0.5420259320, abs=1e-9)
    assert result.facts["value_start_gamma_1"] == pytest.approx(14 / 17, abs=1e-12)
    assert result.facts["ends_in_state_15"] == pytest.approx(14 / 17, abs=1e-12)
    result, _ = run(tmp_path / "random", **THIRD, policy="random")
    assert result.facts["value_start_gamma_1"] == pytest.approx(0.0139, abs=5e-5)


# --- Returns and simulation -------------------------------------------------------------------


def test_returns():
    rewards = [1.0, 2.0, 3.0]
    assert discounted(rewards, 0.9) == pytest.approx(1 + 1.8 + 2.43)
    assert [discounted(rewards, gamma) for gamma in (0.0, 0.5, 1.0)] == [1.0, 2.75, 6.0]
    assert discounted([], 0.9) == 0.0


def test_sample_episode(default, printed):
    out = printed.getvalue()
    rewards = json.loads(out.partition("rewards ")[2].partition("]")[0] + "]")
    states = json.loads(out.partition("states ")[2].partition("]")[0] + "]")
    assert states[0] == 0
    assert states[-1] in REWARD
    assert all(b in STEPS[a] for a, b in pairwise(states))
    assert rewards == [float(REWARD.get(s, -0.04)) for s in states[1:]]
    for gamma in (0.0, 0.5, 0.9, 1.0):
        expected = sum(gamma**k * reward for k, reward in enumerate(rewards))
        found = default[0].facts[f"sample_return_gamma_{gamma:g}"]
        assert found == pytest.approx(expected, abs=1e-12)


def test_episodes_follow_the_policy():
    env = make_env("FrozenLake-v1", desc=["S" + 30 * "F" + "G"], is_slippery=False)
    policy = np.tile([0.1, 0.0, 0.6, 0.3], (32, 1))
    rng = np.random.default_rng(0)
    moves = []
    for _ in range(200):
        env.reset(seed=1)
        states, rewards = play(env.unwrapped, 2, policy, rng)
        assert (states[0], states[1], states[-1]) == (0, 1, 31)
        assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
        moves += np.diff(states)[[s > 0 for s in states[:-1]]].tolist()
    shares = np.array([moves.count(-1), moves.count(1), moves.count(0)]) / len(moves)
    expected = np.array([0.1, 0.6, 0.3])
    np.testing.assert_array_less(abs(shares - expected), 4.5 * np.sqrt(0.25 / len(moves)))
    env.reset(seed=1)
    assert len(play(env.unwrapped, 2, policy, rng, max_steps=4)[1]) == 4


def test_simulation_agrees(tmp_path, default):
    random_policy = run(tmp_path, num_episodes=150, policy="random", gamma=1.0, seed=5)
    for result, tables in (default, random_policy):
        check_simulation(result, tables)


def check_simulation(result, tables):
    assert result.facts["pairs"] == 16  # four actions in each of four states
    assert result.total_timesteps == 16 * 150
    error, simulated = tables["standard_error"], tables["simulated"]
    exact = tables["Q"][[0, 3, 4, 5]].ravel()
    deviation = np.abs(simulated - exact) / error
    assert result.facts["deviation"] == pytest.approx(deviation.max())
    assert deviation.max() < 4.5
    assert deviation.max() > 0.8  # the largest of 16
    # Returns are between -1.5 and 1 here: errors of a mean of 150 are of the right size.
    assert (error > 0.005).all()
    assert (error < 0.09).all()
    metrics = read_metrics(result.run_dir)
    assert metrics["step"][-1] == 2400
    assert abs(np.nanmean(metrics["train/return_minus_q"])) < 0.05


def test_a_wrong_value_is_noticed(default, tmp_path):
    result, tables = default
    off = np.abs(tables["simulated"] - tables["Q"][[0, 3, 4, 5]].ravel() - 0.2)
    assert (off / tables["standard_error"]).max() > NormalDist().inv_cdf(1 - 0.0005 / 16)
    config = Config(run_dir=str(tmp_path))
    assert report_measure(result, config, "x", result.facts["deviation"], 4.0, at_most=True)


# --- Other environments, flags, errors --------------------------------------------------------


def test_cliff_walking(tmp_path):
    result, tables = run(tmp_path, env_id="CliffWalking-v1", gamma=0.0)
    assert result.facts["pairs"] == 4 * 37
    assert result.facts["ends_in_state_47"] == pytest.approx(1.0)
    assert tables["policy"].tolist() == [[0.25] * 4] * 48
    # At the start three of four steps cost 1, the one over the edge 100.
    assert result.facts["value_start_gamma_0"] == -(3 + 100) / 4
    assert result.facts["deviation"] == 0.0  # nothing random in one step
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "markov_chain.png",
        "values.png",
        "simulation.png",
    }


def test_policies_by_flag():
    assert read_policy(Config(), 9, 4).argmax(axis=1).tolist() == [1, 0, 0, 2, 2, 1, 0, 0, 0]
    assert read_policy(Config(), 16, 4).tolist() == [[0.25] * 4] * 16
    assert read_policy(Config(policy="random"), 9, 5).tolist() == [[0.2] * 5] * 9
    assert read_policy(Config(policy="10/2"), 3, 4).argmax(axis=1).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "012"}, r"--policy 012: must be 9 digits from 0 to 3"),
        ({"policy": "400/000/000"}, r"--policy 400/000/000: must be 9 digits from 0 to 3"),
        ({"policy": "left"}, r"--policy left: must be 9 digits"),
        ({"policy": "000/000/000", "success_rate": 1.0}, r"never ends from state [0345]; try rand"),
        ({"success_rate": 1.5}, r"--success-rate 1.5: must be between 0 and 1"),
        ({"env_id": "Blackjack-v1"}, r"--env-id Blackjack-v1: needs env.unwrapped.P and s"),
        ({"env_id": "CartPole-v1"}, r"--env-id CartPole-v1: no transition table"),
        ({"env_id": "Taxi-v4", "map": "SF/FG"}, r"only FrozenLake has maps"),
        ({"num_episodes": 0}, r"--num-episodes 0: must be at least 1"),
        ({"num_episodes": 1}, r"--num-episodes 1: must be at least 2"),
        ({"rewards": (float("nan"), 0.0, 0.0)}, r"--rewards nan 0.0 0.0: must be finite numbers"),
        ({"seed": -1}, r"--seed -1: must be 0 to 4294967295"),
    ],
)
def test_wrong_flags(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        script.train(Config(run_dir=str(tmp_path / "run"), **settings))
    assert not (tmp_path / "run").exists()
