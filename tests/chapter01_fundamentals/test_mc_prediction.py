"""Monte Carlo prediction against exact values, batch means and episodes worked out by hand."""

import json
from typing import ClassVar

from chapter01_fundamentals import mc_prediction as script
from chapter01_fundamentals.mc_prediction import (
    Config,
    average,
    errors,
    exact_values,
    policy_to_predict,
    reward_to_go,
)
from common.environments.tabular import Model, make_tabular_env, tabular_model
from common.errors import UserError
from common.metrics import read_metrics

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from hypothesis import given, settings
from hypothesis import strategies as st


def solved(stick_on: int = 20, epsilon: float = 0.0):
    """Model, policy, v and q of Blackjack."""
    env, states, actions = make_tabular_env("Blackjack-v1", sab=False)
    model = tabular_model(env, "Blackjack-v1")
    policy = policy_to_predict(Config(stick_on=stick_on, epsilon=epsilon), env, states, actions)
    return model, policy, *exact_values(policy, model, 1.0)


def tables(run_dir) -> dict[str, np.ndarray]:
    with np.load(run_dir / "tables.npz") as stored:
        return dict(stored)


# --- Exact values -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stick_on", "epsilon", "value"),
    [(20, 0.0, -0.353554), (17, 0.0, -0.079295), (20, 1.0, -0.395896), (4, 1.0, -0.395896)],
)
def test_exact_values_of_known_policies(stick_on, epsilon, value):
    model, policy, v, q = solved(stick_on, epsilon)
    assert model.start @ v == pytest.approx(value, abs=5e-7)
    np.testing.assert_allclose((policy * q).sum(axis=1), v, atol=1e-12)


def test_exact_value_of_sticking_on_twenty():
    v = solved()[2]
    known = """0.146095 0.639987 0.650272 0.661050 0.670360
        0.703959 0.773227 0.791815 0.758357 0.434958""".split()
    for usable in (0, 1):
        np.testing.assert_allclose(
            v.reshape(32, 11, 2)[20, 1:, usable], np.float64(known), atol=5e-7
        )
    # Sutton and Barto's example 5.4, 13 with a usable ace against a two: -0.27726, by simulation.
    assert v.reshape(32, 11, 2)[13, 2, 1] == pytest.approx(-0.27726, abs=3e-4)


def test_the_policy_sticks_from_the_threshold_on():
    _, policy, *_ = solved(stick_on=18, epsilon=0.2)
    table = policy.reshape(32, 11, 2, 2)
    np.testing.assert_allclose(table[4:18, ..., 1], 0.9)
    np.testing.assert_allclose(table[18:, ..., 1], 0.1)
    np.testing.assert_allclose(table.sum(axis=-1), 1.0)
    env, states, actions = make_tabular_env("Taxi-v4")
    np.testing.assert_allclose(policy_to_predict(Config(), env, states, actions), 1 / 6)


def test_value_of_the_random_policy_on_the_lake():
    env, states, actions = make_tabular_env("FrozenLake-v1")
    model = tabular_model(env, "FrozenLake-v1")
    v, _ = exact_values(policy_to_predict(Config(), env, states, actions), model, 1.0)
    assert v[0] == pytest.approx(0.0139, abs=1e-4)


# --- Returns and means ------------------------------------------------------------------------


def test_reward_to_go():
    assert reward_to_go([1, 2, 3], 0.9, 10.0)[0] == pytest.approx(12.52)
    assert reward_to_go([1, 2], 0.9, 0.0) == pytest.approx([2.8, 2.0])
    assert reward_to_go([5.0, 0.0, -1.0], 1.0, 0.0) == [4.0, -1.0, -1.0]


def test_first_and_every_visit_of_a_state_that_recurs():
    states, rewards = [0, 1, 0, 2, 1], [1, 0, 2, 0, 4]
    returns = reward_to_go(rewards, 0.5, 0.0)
    assert returns == [1.75, 1.5, 3.0, 2.0, 4.0]
    first, N = np.zeros(4), np.zeros(4, int)
    average(first, N, states, returns, every=False)
    assert first.tolist() == [1.75, 1.5, 2.0, 0.0]
    assert N.tolist() == [1, 1, 1, 0]
    every, N = np.zeros(4), np.zeros(4, int)
    average(every, N, states, returns, every=True)
    assert every.tolist() == [(1.75 + 3) / 2, (1.5 + 4) / 2, 2.0, 0.0]
    assert N.tolist() == [2, 2, 1, 0]
    # A pair recurs less often than its state.
    Q, N = np.zeros((4, 2)), np.zeros((4, 2), int)
    average(Q, N, [(0, 0), (1, 1), (0, 1), (2, 0), (1, 1)], returns, every=False)
    assert Q.tolist() == [[1.75, 3.0], [0.0, 1.5], [2.0, 0.0], [0.0, 0.0]]
    # Another episode: a new first visit.
    average(first, np.array([1, 1, 1, 0]), [1, 1], [3.5, 9.0], every=False)
    assert first.tolist() == [1.75, 2.5, 2.0, 0.0]


def test_ten_steps_in_one_state():
    """Sutton and Barto, exercise 5.5: first-visit says 10, every-visit 5.5."""
    returns = reward_to_go([1] * 10, 1.0, 0.0)
    for every, value in ((False, 10.0), (True, 5.5)):
        V = np.zeros(1)
        average(V, np.zeros(1, int), [0] * 10, returns, every)
        assert V[0] == pytest.approx(value)


def test_first_visit_is_unbiased_and_every_visit_is_not():
    """One state, left with probability 1 - p: E[G] = 1 / (1 - p), all lengths enumerated."""
    p, expected = 0.6, {False: 0.0, True: 0.0}
    for length in range(1, 120):
        for every in expected:
            V = np.zeros(1)
            returns = reward_to_go([1.0] * length, 1.0, 0.0)
            average(V, np.zeros(1, int), [0] * length, returns, every)
            expected[every] += p ** (length - 1) * (1 - p) * V[0]
    assert expected[False] == pytest.approx(1 / (1 - p))
    assert expected[True] == pytest.approx((1 / (1 - p) + 1) / 2)  # Singh and Sutton


episodes = st.lists(
    st.lists(st.tuples(st.integers(0, 3), st.integers(-50, 50)), min_size=1, max_size=8),
    min_size=1,
    max_size=8,
)


@given(episodes, st.booleans(), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=150, deadline=None)
def test_incremental_means_are_batch_means(played, every, gamma):
    V, N, batch = np.zeros(4), np.zeros(4, int), {s: [] for s in range(4)}
    for episode in played:
        states, rewards = [s for s, _ in episode], [r for _, r in episode]
        average(V, N, states, reward_to_go(rewards, gamma, 0.0), every)
        for t, s in enumerate(states):
            if every or s not in states[:t]:
                batch[s].append(sum(gamma**k * r for k, r in enumerate(rewards[t:])))
    assert N.tolist() == [len(batch[s]) for s in range(4)]
    np.testing.assert_allclose(V, [np.mean(batch[s] or [0.0]) for s in range(4)], atol=1e-9)


def test_errors_weigh_states_by_their_visits():
    found = errors(np.array([1.0, 5.0, 3.0]), np.array([0.0, 3.0, 0.0]), np.array([2000, 999, 0]))
    assert found == {"rms_error": pytest.approx(np.sqrt((2000 + 999 * 4) / 2999)), "max_error": 1.0}
    few = errors(np.array([2.0]), np.array([0.0]), np.array([999]))
    assert few == {"rms_error": pytest.approx(2.0)}
    assert errors(np.array([2.0]), np.array([0.0]), np.array([1000]))["max_error"] == 2.0


# --- Learning ---------------------------------------------------------------------------------


def test_blackjack(tmp_path):
    config = Config(num_episodes=20_000, epsilon=0.2, run_dir=str(tmp_path))
    result = script.train(config)
    model, policy, v, q = solved(epsilon=0.2)
    saved, metrics = tables(tmp_path), read_metrics(tmp_path)
    np.testing.assert_allclose(saved["policy"], policy)
    assert saved["N"].sum() == pytest.approx((metrics["charts/episode_length"] * 100).sum())
    np.testing.assert_array_equal(saved["N_Q"].sum(axis=1), saved["N"])
    # A return is between -1 and 1, so that its variance is at most 1; N times the squared error
    # is that variance on average. Over 280 states: about 0.7, were the values exact.
    for values, exact, N in ((saved["V"], v, saved["N"]), (saved["Q"], q, saved["N_Q"])):
        seen = N > 0
        assert 0.4 < np.mean((N * (values - exact) ** 2)[seen]) < 0.95
        assert abs(np.sum((N * (values - exact))[seen])) < 4 * np.sqrt(N.sum())
    share = (
        saved["N_Q"][..., 1].reshape(32, 11, 2)[12:20].sum()
        / saved["N"].reshape(32, 11, 2)[12:20].sum()
    )
    assert share == pytest.approx(0.9, abs=0.01)  # (1)
    facts = result.facts
    assert facts["exact_value_start"] == pytest.approx(model.start @ v)
    assert facts["value_start"] == pytest.approx(model.start @ v, abs=4 / np.sqrt(20_000))
    assert metrics["train/rms_error"][-1] == pytest.approx(facts["rms_error"], rel=1e-6)
    assert metrics["train/q_rms_error"][-1] == pytest.approx(facts["q_rms_error"], rel=1e-6)
    assert facts["rms_error"] == pytest.approx(errors(saved["V"], v, saved["N"])["rms_error"])
    assert facts["rms_error"] < 0.1 < metrics["train/rms_error"][0]
    for picture in ("learning_curve.png", "values.png"):
        assert (tmp_path / picture).stat().st_size > 20_000


def test_in_blackjack_nothing_recurs():
    """So that first-visit and every-visit are the same there, as the docstring says."""
    leads_to = (solved()[0].transition > 0).any(axis=1)  # [S, S]
    left = np.ones(704, bool)
    while (dead_ends := left & ~leads_to[:, left].any(axis=1)).any():
        left &= ~dead_ends
    assert not left.any()  # no circles


def test_both_kinds_learn_the_lake(tmp_path):
    found = {}
    for every in (False, True):
        run_dir = tmp_path / str(every)
        config = Config(
            env_id="FrozenLake-v1", num_episodes=6_000, every_visit=every, run_dir=str(run_dir)
        )
        facts = script.train(config).facts
        found[every] = tables(run_dir)
        assert facts["rms_error"] < 0.012  # the values' own root mean square is 0.05
        assert facts["max_error"] < 0.05
        assert found[every]["N"][[5, 7, 11, 12, 15]].sum() == 0  # nothing follows a hole
        assert (run_dir / "values.png").stat().st_size > 10_000
    assert found[False]["N"][0] == 6_000  # every episode begins there
    assert found[True]["N"][0] > 12_000
    assert found[False]["N"].max() == 6_000
    assert np.abs(found[True]["V"] - found[False]["V"]).max() > 1e-4


class Treadmill(gym.Env):
    """One state, reward 2 for ever; only a time limit ends episodes: v = 2 / (1 - γ)."""

    observation_space, action_space = Discrete(1), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 0, 2.0, False, False, {}


class TreadmillWithTable(Treadmill):
    P: ClassVar = {0: {a: [(1.0, 0, 2.0, False)] for a in range(2)}}


@pytest.fixture
def treadmills():
    gym.register("Treadmill-v0", Treadmill)
    gym.register("LimitedTreadmill-v0", Treadmill, max_episode_steps=6)
    gym.register("TableTreadmill-v0", TreadmillWithTable, max_episode_steps=6)
    yield
    for name in ("Treadmill-v0", "LimitedTreadmill-v0", "TableTreadmill-v0"):
        del gym.registry[name]


@pytest.mark.parametrize("env_id", ["Treadmill-v0", "LimitedTreadmill-v0"])
def test_a_time_limit_is_not_the_end(tmp_path, treadmills, env_id):
    config = Config(
        env_id=env_id, gamma=0.8, max_steps=6, num_episodes=1_500, run_dir=str(tmp_path)
    )
    result = script.train(config)
    saved = tables(tmp_path)
    # Six rewards are worth 7.38; with the rest, 10, reached as slowly as a running mean can.
    assert saved["V"][0] == pytest.approx(10.0, abs=0.05)
    np.testing.assert_allclose(saved["Q"][0], 10.0, atol=0.1)
    assert set(read_metrics(tmp_path)["charts/episode_length"]) == {6.0}
    assert "rms_error" not in result.facts  # no table, no exact values
    assert result.facts["value_start"] == saved["V"][0]


def test_reports_by_command_line(tmp_path, treadmills, command_line):
    flags = ["--env-id", "LimitedTreadmill-v0", "--gamma", 0.5, "--num-episodes", 30]
    status, out, err = command_line("mc_prediction", *flags, "--run-dir", tmp_path / "a")
    assert status == 0, err
    assert out.splitlines()[-1].startswith("finished: value start ")
    flags[1] = "TableTreadmill-v0"
    status, out, err = command_line("mc_prediction", *flags, "--run-dir", tmp_path / "b")
    assert status == 0, err
    assert out.splitlines()[-1].startswith("finished: rms error ")
    evaluation = json.loads((tmp_path / "b" / "evaluation.json").read_text())
    assert evaluation["exact_value_start"] == pytest.approx(4.0)
    assert evaluation["unit"] == "episode"


def test_values_that_do_not_exist(tmp_path, treadmills):
    with pytest.raises(UserError, match=r"--gamma 1\.0: must be below 1, for the policy"):
        script.train(Config(env_id="TableTreadmill-v0", run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_traps_that_no_episode_comes_to_do_no_harm():
    """State 0 ends with 3; 1 leads nowhere but to itself; 2 leads to 1 or ends with 5."""
    transition = np.zeros((3, 1, 3))
    transition[1, 0, 1], transition[2, 0, 1] = 1.0, 0.5
    reward = np.array([[3.0], [7.0], [2.5]])
    policy = np.ones((3, 1))
    model = Model(transition, reward, np.array([1.0, 0.0, 0.0]))
    assert exact_values(policy, model, 1.0)[0].tolist() == [3.0, 0.0, 0.0]  # 0: not known
    for start in (1, 2):
        with pytest.raises(UserError, match=f"--gamma 1.0: .* from state {start} "):
            exact_values(policy, model._replace(start=np.eye(3)[start]), 1.0)
    discounted = exact_values(policy, model._replace(start=np.eye(3)[2]), 0.5)[0]
    np.testing.assert_allclose(discounted, [3.0, 14.0, 6.0])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--stick-on 3", "--stick-on 3: must be 4 to 22"),
        ("--epsilon 1.5", "--epsilon 1.5: must be between 0 and 1"),
        ("--max-steps 0", "--max-steps 0: must be at least 1"),
        ("--num-episodes 0", "--num-episodes 0: must be at least 1"),
        ("--env-id CartPole-v1", "--env-id CartPole-v1: states are Box"),
        ("--map SG", "--map SG: only FrozenLake has maps, not Blackjack-v1"),
    ],
)
def test_bad_input(tmp_path, command_line, flags, message):
    status, _, err = command_line("mc_prediction", *flags.split(), "--run-dir", tmp_path / "run")
    assert status == 2
    assert message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_target(tmp_path, seed):
    result = script.train(Config(seed=seed, run_dir=str(tmp_path)))
    assert result.facts["rms_error"] <= script.TARGETS["Blackjack-v1"]
