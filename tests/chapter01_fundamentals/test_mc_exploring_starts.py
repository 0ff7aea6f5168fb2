"""Exploring starts: that they are where they should be, uniform, and lead to the best policy."""

import json
from typing import ClassVar

from chapter01_fundamentals import mc_exploring_starts as script
from chapter01_fundamentals.mc_exploring_starts import Config, begin_in, greedy, reachable_states
from common.environments.tabular import exact_return, make_tabular_env, tabular_model
from common.errors import UserError
from common.metrics import read_metrics

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete

SHAPE = (32, 11, 2)


def environment(env_id: str):
    kwargs = {"sab": False} if env_id == "Blackjack-v1" else {}
    env, *_ = make_tabular_env(env_id, **kwargs)
    return env, tabular_model(env, env_id)


def tables(run_dir) -> dict[str, np.ndarray]:
    with np.load(run_dir / "tables.npz") as stored:
        return dict(stored)


def chi_squared(counts: np.ndarray) -> float:
    """Deviation from a uniform distribution in standard deviations of the test's statistic."""
    expected = counts.sum() / counts.size
    statistic = ((counts - expected) ** 2 / expected).sum()
    degrees = counts.size - 1
    return float((statistic - degrees) / np.sqrt(2 * degrees))


def optimal_q(model) -> np.ndarray:
    V = np.zeros(len(model.start))
    for _ in range(40):
        Q = model.reward + model.transition @ V
        V = Q.max(axis=1)
    return Q


# --- Starts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "number"),
    [("Blackjack-v1", 280), ("FrozenLake-v1", 11), ("CliffWalking-v1", 37), ("Taxi-v4", 400)],
)
def test_reachable_states(env_id, number):
    _, model = environment(env_id)
    states = reachable_states(model)
    assert len(states) == number
    np.testing.assert_array_equal(states, np.unique(states))
    if env_id == "Blackjack-v1":
        total, dealer, usable = np.unravel_index(states, SHAPE)
        assert set(zip(total, usable, strict=True)) == {(s, 0) for s in range(4, 22)} | {
            (s, 1) for s in range(12, 22)
        }
        assert set(dealer) == set(range(1, 11))
    else:
        rows = model.transition[states].sum(axis=(0, 1)) > 0
        assert set(np.flatnonzero(rows)) <= set(states)


def test_blackjack_can_begin_in_each_of_its_states():
    env, model = environment("Blackjack-v1")
    env.reset(seed=0)
    hidden = np.zeros(11, int)
    for state in np.tile(reachable_states(model), 5):
        env.reset()
        drawn = env.unwrapped.dealer[1]
        begin_in(env, int(state))
        cards = env.unwrapped
        assert env.observation(cards._get_obs()) == state
        assert all(1 <= card <= 10 for card in cards.player)
        assert len(cards.dealer) == 2
        assert cards.dealer[1] == drawn
        hidden[drawn] += 1
    # The dealer's hidden card is drawn from the whole deck.
    share = np.array([1] * 9 + [4]) / 13
    expected = share * hidden.sum()
    assert ((hidden[1:] - expected) ** 2 / expected).sum() < 9 + 4 * np.sqrt(18)


@pytest.mark.parametrize(
    ("state", "action"),
    [((20, 6, 0), 0), ((21, 1, 1), 0), ((12, 10, 1), 1), ((21, 3, 0), 1), ((4, 5, 0), 1)],
)
def test_games_from_there_go_on_by_the_rules(state, action):
    env, model = environment("Blackjack-v1")
    number = int(np.ravel_multi_index(state, SHAPE))
    rewards, successors = [], np.zeros(704)
    env.reset(seed=1)
    for _ in range(1_500):
        env.reset()
        begin_in(env, number)
        next_state, reward, terminated, _, _ = env.step(action)
        rewards.append(reward)
        successors[next_state] += not terminated
    assert np.mean(rewards) == pytest.approx(model.reward[number, action], abs=4 / np.sqrt(1_500))
    expected = 1_500 * model.transition[number, action]
    assert not np.any((successors > 0) & (expected == 0))
    seen = expected > 0
    if seen.any():
        deviation = ((successors - expected)[seen] ** 2 / expected[seen]).sum()
        assert deviation < seen.sum() + 4 * np.sqrt(2 * seen.sum())


def test_grid_worlds_begin_there_too():
    for env_id in ("FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"):
        env, model = environment(env_id)
        env.reset(seed=0)
        for state in reachable_states(model)[:30]:
            env.reset()
            begin_in(env, int(state))
            next_state, _, terminated, _, _ = env.step(0)
            possible = {t for _, t, *_ in env.unwrapped.P[int(state)][0]}
            assert next_state in possible or terminated


class OneStep(gym.Env):
    """Five states, three actions, every episode ends with the first step."""

    observation_space, action_space = Discrete(5), Discrete(3)
    P: ClassVar = {s: {a: [(1.0, s, float(s == a), True)] for a in range(3)} for s in range(5)}
    initial_state_distrib = np.full(5, 0.2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s = 0
        return self.s, {}

    def step(self, action):
        _, _, reward, terminated = self.P[self.s][action][0]
        return self.s, reward, terminated, False, {}


class Ring(gym.Env):
    """Keeps its state in `s` but has no table: 0 to 4, one step on or two; past 4 it ends, for 1.

    States 5 to 9 are never entered, and nothing is known of them.
    """

    observation_space, action_space = Discrete(10), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.s = 0
        return self.s, {}

    def step(self, action):
        assert self.s < 5
        self.s += 1 + action
        ended = self.s > 4
        return min(self.s, 5), float(ended), ended, False, {}


class HiddenState(OneStep):
    """Says what its table is, but not where it is."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.__dict__.pop("s")
        return 0, {}


class Treadmill(OneStep):
    """One state, reward 2 for ever; only a time limit ends episodes: v = 2 / (1 - γ)."""

    observation_space, action_space = Discrete(1), Discrete(2)
    P: ClassVar = {0: {a: [(1.0, 0, 2.0, False)] for a in range(2)}}
    initial_state_distrib = np.ones(1)


@pytest.fixture
def registered():
    classes = {"OneStep-v0": OneStep, "HiddenState-v0": HiddenState, "Treadmill-v0": Treadmill}
    classes |= {"Ring-v0": Ring}
    for name, kind in classes.items():
        gym.register(name, kind)
    yield
    for name in classes:
        del gym.registry[name]


def test_starts_are_uniform_over_pairs(tmp_path, registered):
    result = script.train(Config(env_id="OneStep-v0", num_episodes=6_000, run_dir=str(tmp_path)))
    saved = tables(tmp_path)
    assert saved["N"].sum() == 6_000
    assert abs(chi_squared(saved["N"])) < 3.5  # 15 pairs, 400 starts each
    np.testing.assert_array_equal(saved["Q"], np.eye(5, 3))
    assert saved["policy"][:3].tolist() == [0, 1, 2]
    assert result.facts["exact_return"] == pytest.approx(3 / 5)
    assert result.facts["fewest_visits_of_a_pair"] == saved["N"].min()


def test_without_a_table_starts_are_the_states_that_were_met(tmp_path, registered):
    config = Config(env_id="Ring-v0", gamma=0.5, num_episodes=4_000, run_dir=str(tmp_path))
    result = script.train(config)
    saved = tables(tmp_path)
    assert saved["N"][:5].min() > 200  # 10 pairs, 400 starts each once all states were met
    assert saved["N"][5:].sum() == 0
    np.testing.assert_allclose(saved["V"][:5], [0.25, 0.5, 0.5, 1.0, 1.0], atol=0.02)
    assert result.facts["value_start"] == saved["V"][0]
    assert result.facts["fewest_visits_of_a_pair"] == saved["N"][:5].min()
    assert "exact_return" not in result.facts
    assert (tmp_path / "learning_curve.png").stat().st_size > 10_000


# --- Learning ---------------------------------------------------------------------------------


def test_ties_are_broken_at_random():
    rng = np.random.default_rng(0)
    picks = np.bincount([greedy(np.array([1.0, 0.0, 1.0, 1.0]), rng) for _ in range(3_000)])
    assert picks[1] == 0
    assert abs(chi_squared(picks[[0, 2, 3]])) < 3.5
    assert greedy(np.array([-2.0, -1.0]), rng) == 1


def test_blackjack(tmp_path):
    result = script.train(Config(num_episodes=40_000, run_dir=str(tmp_path)))
    _, model = environment("Blackjack-v1")
    saved, best = tables(tmp_path), optimal_q(model)
    assert result.facts["exact_return"] > -0.07
    assert result.facts["exact_return"] == exact_return(saved["policy"], model)
    assert result.facts["value_start"] == model.start @ saved["V"]
    curve = read_metrics(tmp_path)["train/exact_return"]
    assert curve[-1] == pytest.approx(result.facts["exact_return"], rel=1e-6)
    reached = reachable_states(model)
    clear = reached[np.abs(best[:, 0] - best[:, 1])[reached] > 0.5]
    assert len(clear) == 76
    np.testing.assert_array_equal(saved["policy"][clear], best.argmax(axis=1)[clear])
    assert saved["N"][reached].min() > 40_000 / 560 / 2
    # No card leads to a hard four or five or to two aces: there all visits are starts.
    N = saved["N"].reshape(*SHAPE, 2)
    starts = np.stack([N[4, 1:, 0], N[5, 1:, 0], N[12, 1:, 1]])  # 60 pairs
    assert abs(chi_squared(starts)) < 3.5
    expected = 40_000 * 60 / 560
    assert starts.sum() == pytest.approx(expected, abs=4 * np.sqrt(expected))
    assert N[:4].sum() == N[:, 0].sum() == N[:12, :, 1].sum() == N[22:].sum() == 0
    # Q of the last action of a game does not depend on the policy: sticking.
    error = (saved["Q"][:, 0] - best[:, 0])[reached]
    assert np.mean(saved["N"][reached, 0] * error**2) < 1.0  # a reward's variance
    assert np.array_equal(result.policy(reached), saved["policy"][reached])
    for picture in ("learning_curve.png", "values.png"):
        assert (tmp_path / picture).stat().st_size > 20_000


def test_only_the_first_visit_counts(tmp_path):
    config = Config(env_id="FrozenLake-v1", num_episodes=150, gamma=0.99, run_dir=str(tmp_path))
    script.train(config)
    saved = tables(tmp_path)
    assert saved["N"].max() <= 150  # pairs recur up to a hundred times in an episode
    lengths = read_metrics(tmp_path)["charts/episode_length"]
    assert lengths.sum() > 1.5 * saved["N"].sum()


def test_a_time_limit_is_not_the_end(tmp_path, registered):
    config = Config(
        env_id="Treadmill-v0", gamma=0.8, max_steps=6, num_episodes=1_000, run_dir=str(tmp_path)
    )
    script.train(config)
    np.testing.assert_allclose(tables(tmp_path)["Q"], 10.0, atol=0.2)
    assert set(read_metrics(tmp_path)["charts/episode_length"]) == {6.0}


def test_states_that_cannot_be_set(tmp_path, registered):
    for env_id, message in (
        ("HiddenState-v0", "episodes must begin in any state, but its state cannot be set"),
        ("known_values:Chain-v0", "episodes must begin in any state, but its state cannot be set"),
    ):
        with pytest.raises(UserError, match=f"--env-id {env_id}: {message}"):
            script.train(Config(env_id=env_id, run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_by_command_line(tmp_path, command_line):
    flags = ["--num-episodes", 60, "--run-dir", tmp_path / "a"]
    status, out, err = command_line("mc_exploring_starts", *flags)
    assert status == 0, err
    verdict = out.splitlines()[-1]
    assert verdict.startswith("not solved: exact return -0.")
    assert " (target -0.055); mean return -0." in verdict
    assert verdict.endswith(" over 1000 episodes")
    evaluation = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert len(evaluation["returns"]) == evaluation["episodes"] == 1000
    assert evaluation["mean_return"] == pytest.approx(np.mean(evaluation["returns"]))
    assert evaluation["mean_return"] == pytest.approx(evaluation["exact_return"], abs=4 / 1000**0.5)
    flags = "--env-id FrozenLake-v1 --no-slippery --num-episodes 600 --gamma 0.9 --eval-episodes 3"
    run_dir = tmp_path / "b"
    status, out, err = command_line("mc_exploring_starts", *flags.split(), "--run-dir", run_dir)
    assert out.splitlines()[-1].startswith("solved: exact return 1 (target 0.7); mean return 1.000")
    status, _, err = command_line("mc_exploring_starts", "--env-id", "CartPole-v1")
    assert status == 2
    assert "--env-id CartPole-v1: states are Box" in err


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_target(tmp_path, seed):
    result = script.train(Config(seed=seed, run_dir=str(tmp_path)))
    assert result.facts["exact_return"] >= script.TARGETS["Blackjack-v1"]
    _, model = environment("Blackjack-v1")
    best, policy = optimal_q(model), tables(tmp_path)["policy"]
    clear = np.abs(best[:, 0] - best[:, 1]) > 0.2
    np.testing.assert_array_equal(policy[clear], best.argmax(axis=1)[clear])
