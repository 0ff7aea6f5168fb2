"""Importance sampling, unbiased or consistent as it should be, and off-policy control."""

from itertools import pairwise, product

from chapter01_fundamentals import mc_control_off_policy as script
from chapter01_fundamentals.mc_control_off_policy import (
    HIT_BELOW_20,
    SOFT_13,
    Config,
    estimates,
    random_games,
)
from common.environments import blackjack
from common.environments.tabular import exact_return, make_tabular_env, tabular_model
from common.metrics import read_metrics

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from hypothesis import given, settings
from hypothesis import strategies as st


def tables(run_dir) -> dict[str, np.ndarray]:
    with np.load(run_dir / "tables.npz") as stored:
        return dict(stored)


def blackjack_model():
    env, *_ = make_tabular_env("Blackjack-v1", sab=False)
    return env, tabular_model(env, "Blackjack-v1")


# --- Ordinary and weighted estimates, over all trajectories ------------------------------------


def trajectories(pi, b, reward, stop):
    """All (probability under b, ρ, G) of episodes of at most three steps, and the value under π.

    Time is the state: step t takes action a with probability `b[t, a]`, earns `reward[t, a]` and
    ends the episode with probability `stop[t, a]`, the third step always.
    """
    found = []

    def walk(t, probability, ratio, gain):
        for a in range(2):
            p, q, g = probability * b[t, a], ratio * pi[t, a] / b[t, a], gain + reward[t, a]
            ends = 1.0 if t == 2 else stop[t, a]
            found.append((p * ends, q, g))
            if ends < 1.0:
                walk(t + 1, p * (1.0 - ends), q, g)

    walk(0, 1.0, 1.0, 0.0)
    value = 0.0
    for t in (2, 1, 0):
        value = sum(
            pi[t, a] * (reward[t, a] + (t < 2) * (1 - stop[t, a]) * value) for a in range(2)
        )
    return np.array(found), value


def expectations(found, games):
    """E[ordinary] and E[weighted] after `games` episodes, over all sequences of trajectories."""
    sequences = found[list(product(range(len(found)), repeat=games))]  # [sequences, games, 3]
    probability = sequences[..., 0].prod(axis=1)
    ordinary, weighted = estimates(sequences[..., 1], sequences[..., 2])
    return probability @ ordinary[:, -1], probability @ weighted[:, -1], probability.sum()


probabilities = st.floats(0.05, 0.95)
pairs = st.lists(probabilities, min_size=3, max_size=3)


@given(pairs, pairs, st.lists(st.integers(-5, 5), min_size=6, max_size=6), pairs, st.booleans())
@settings(max_examples=40, deadline=None)
def test_ordinary_importance_sampling_is_unbiased(pi, b, rewards, stop, greedy):
    if greedy:
        pi = np.round(pi)  # ratios of 0
    pi, b, stop = (np.stack([np.array(x), 1 - np.array(x)], axis=1) for x in (pi, b, stop))
    found, value = trajectories(pi, b, np.reshape(rewards, (3, 2)), stop)
    for games in (1, 2):
        ordinary, _, total = expectations(found, games)
        assert total == pytest.approx(1.0)
        assert ordinary == pytest.approx(value, abs=1e-9)


def test_weighted_importance_sampling_is_biased_and_consistent():
    # π takes action 0 and earns 1; b takes either and earns 1 or 3: one decision.
    pi, b = np.array([[1.0, 0.0]] * 3), np.full((3, 2), 0.5)
    found, value = trajectories(pi, b, np.array([[1.0, 3.0]] * 3), np.ones((3, 2)))
    assert value == 1.0
    bias = [expectations(found, games)[1] - value for games in range(1, 9)]
    # With a probability of 2^-n no game of n had weight, and the estimate is 0; else it is right.
    np.testing.assert_allclose(bias, [-(0.5**n) for n in range(1, 9)], atol=1e-12)
    # Where no weight is zero, one game gives the value of b, and more of them lead to that of π.
    pi = np.array([[0.8, 0.2]] * 3)
    found, value = trajectories(pi, b, np.array([[1.0, 3.0]] * 3), np.ones((3, 2)))
    assert value == pytest.approx(1.4)
    bias = [expectations(found, games)[1] - value for games in range(1, 9)]
    assert bias[0] == pytest.approx(0.6)  # the value of b, 2, less that of π
    assert all(0 < after < before for before, after in pairwise(bias))
    assert bias[-1] < 0.12


def test_running_estimates():
    ordinary, weighted = estimates(np.array([0.0, 2.0, 4.0, 0.0]), np.array([5.0, 1.0, -1.0, 9.0]))
    np.testing.assert_allclose(ordinary, [0.0, 1.0, -2 / 3, -0.5])
    np.testing.assert_allclose(weighted, [0.0, 1.0, -1 / 3, -1 / 3])
    many = estimates(np.ones((2, 3)), np.array([[1.0, 2.0, 3.0], [4.0, 6.0, 8.0]]))
    np.testing.assert_allclose(many, [[[1.0, 1.5, 2.0], [4.0, 5.0, 6.0]]] * 2)


# --- One state of Blackjack -------------------------------------------------------------------


def second_moment() -> float:
    """E[ρ² G²] of random games from `SOFT_13`: M(s) = Σ_a π²/b Σ p (r² at the end, else M(s'))."""
    table, memo = blackjack.table(), {}

    def moment(state):
        if state not in memo:
            outcomes = table[state][HIT_BELOW_20[state]]
            memo[state] = 2.0 * sum(  # π²/b = 1 / 0.5
                p * (reward**2 if terminated else moment(next_state))
                for p, next_state, reward, terminated in outcomes
            )
        return memo[state]

    return moment(SOFT_13)


class Witness(gym.Wrapper):
    """Notes the hands with which games begin."""

    def __init__(self, env):
        super().__init__(env)
        self.hands = []

    def reset(self, **kwargs):
        self.begun = False
        return super().reset(**kwargs)

    def step(self, action):
        if not self.begun:
            self.hands.append((tuple(self.unwrapped.player), tuple(self.unwrapped.dealer)))
        self.begun = True
        return super().step(action)


def test_random_games_have_the_moments_they_should():
    env, model = blackjack_model()
    env = Witness(env)
    value = exact_return(HIT_BELOW_20, model._replace(start=np.eye(704)[SOFT_13]))
    # Sutton and Barto have -0.27726 from 100 million games, give or take 0.0001.
    assert value == pytest.approx(-0.27720419, abs=5e-9)
    ratios, returns = random_games(env, Config(num_runs=60, run_episodes=100))
    players, dealers = zip(*env.hands, strict=True)
    assert set(players) == {(1, 2)}
    assert {cards[0] for cards in dealers} == {2}
    assert {cards[1] for cards in dealers} == set(range(1, 11))  # the hidden card is any
    assert len(env.hands) == ratios.size
    assert set(returns.ravel()) == {-1.0, 0.0, 1.0}
    assert set(np.log2(ratios[ratios > 0])) <= set(range(1, 15))  # at least one decision
    games, variance = ratios.size, second_moment() - value**2
    assert np.mean(ratios * returns) == pytest.approx(value, abs=4 * np.sqrt(variance / games))
    assert np.mean(ratios) == pytest.approx(1.0, abs=4 * np.sqrt(variance / games))
    assert np.var(ratios * returns) == pytest.approx(variance, rel=0.25)
    ordinary, weighted = estimates(ratios, returns)
    # The ordinary one's mean squared error is variance / games, exactly; the weighted one's is
    # far smaller after few games.
    error = ((ordinary - value) ** 2).mean(axis=0) * np.arange(1, 101)
    assert np.mean(error) == pytest.approx(variance, rel=0.35)
    early = ((weighted - value) ** 2).mean(axis=0)[:5]
    assert early.max() < 0.8 < variance / 5


# --- Control ----------------------------------------------------------------------------------


class Corridor(gym.Env):
    """State 0 leads to 1 by any action; there action 0 earns 1, action 1 loses 1; γ shows."""

    observation_space, action_space = Discrete(2), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = 0
        return 0, {}

    def step(self, action):
        if self.state == 0:
            self.state = 1
            return 1, 0.0, False, False, {}
        return 1, 1.0 - 2.0 * action, True, False, {}


class MirroredCorridor(Corridor):
    """The better action is 1, not the one that the first policy takes."""

    def step(self, action):
        return super().step(1 - action)


class Treadmill(gym.Env):
    """One state, one action, reward 2 for ever; only a time limit ends episodes."""

    observation_space, action_space = Discrete(1), Discrete(1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 0, 2.0, False, False, {}


@pytest.fixture
def registered():
    gym.register("Corridor-v0", Corridor)
    gym.register("MirroredCorridor-v0", MirroredCorridor)
    gym.register("Treadmill-v0", Treadmill)
    yield
    for name in ("Corridor-v0", "MirroredCorridor-v0", "Treadmill-v0"):
        del gym.registry[name]


@pytest.mark.parametrize("epsilon", [1.0, 0.5])
@pytest.mark.parametrize("weighted", [True, False])
def test_weights_in_a_corridor(tmp_path, registered, epsilon, weighted):
    config = Config(
        env_id="Corridor-v0",
        gamma=0.5,
        epsilon=epsilon,
        weighted=weighted,
        num_episodes=800,
        run_dir=str(tmp_path),
    )
    result = script.train(config)
    saved = tables(tmp_path)
    Q, C = saved["Q"], saved["C"]
    assert Q[1].tolist() == [1.0, -1.0]
    assert C[1].sum() == 800
    best = 1.0 - epsilon / 2  # how often b takes the best action
    spread = 4 * np.sqrt(800 * best * (1 - best))
    assert C[1, 0] == pytest.approx(800 * best, abs=spread)
    if weighted:
        # Only episodes that ended well tell of the first step, each with weight 1 / b.
        assert C[0].sum() == pytest.approx(C[1, 0] / best)
        np.testing.assert_allclose(Q[0], 0.5)
    else:
        # All episodes count; those that ended well with their return times 1 / b.
        assert C[0].sum() == 800
        assert Q[0] @ C[0] == pytest.approx(0.5 * C[1, 0] / best)
    assert result.policy(np.array([1, 1])).tolist() == [0, 0]
    assert result.facts == {"value_start": Q[0].max()}
    behavior = read_metrics(tmp_path)["train/behavior_return"]
    assert behavior.mean() == pytest.approx((C[1, 0] - C[1, 1]) / 800)


@pytest.mark.parametrize("seed", range(4))  # the first game ends well with two of them
def test_weights_are_those_of_the_policy_as_it_is_now(tmp_path, registered, seed):
    """π changes in the first game, and the weight of its first step is that of the new π."""
    config = Config(env_id="MirroredCorridor-v0", num_episodes=5, seed=seed, run_dir=str(tmp_path))
    script.train(config)
    saved = tables(tmp_path)
    assert saved["C"][0].sum() == 2 * saved["C"][1, 1]  # 1 / b = 2 for each game that ended well


def test_absurd_numbers_of_runs_are_refused_before_training(tmp_path, command_line):
    flags = ["--num-runs", 10**11, "--run-dir", tmp_path / "run"]
    status, _, err = command_line("mc_control_off_policy", *flags)
    assert status == 2
    assert err.startswith("error: not enough memory")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("weighted", [True, False])
def test_a_time_limit_is_not_the_end(tmp_path, registered, weighted):
    config = Config(
        env_id="Treadmill-v0",
        gamma=0.8,
        weighted=weighted,
        max_steps=6,
        num_episodes=400,
        run_dir=str(tmp_path),
    )
    script.train(config)
    assert tables(tmp_path)["Q"][0, 0] == pytest.approx(10.0, abs=0.6)  # 4.9 without the rest


def test_blackjack(tmp_path):
    config = Config(
        num_episodes=25_000,
        num_runs=100,
        run_episodes=12,
        run_dir=str(tmp_path),
    )
    result = script.train(config)
    _, model = blackjack_model()
    saved = tables(tmp_path)
    V = np.zeros(704)
    for _ in range(40):
        best = model.reward + model.transition @ V
        V = best.max(axis=1)
    assert result.facts["exact_return"] > -0.08
    assert result.facts["exact_return"] == exact_return(saved["policy"], model)
    assert result.facts["value_start"] == model.start @ saved["Q"].max(axis=1)
    # Hard 12 and more, which are frequent: no error where it would cost half a stake.
    clear = np.abs(best[:, 0] - best[:, 1]).reshape(32, 11, 2)
    clear[:12], clear[:, :, 1] = 0.0, 0.0
    clear = np.flatnonzero(clear.ravel() > 0.5)
    np.testing.assert_array_equal(saved["policy"][clear], best.argmax(axis=1)[clear])
    # Every game is random, whatever was learned.
    behavior = read_metrics(tmp_path)["train/behavior_return"]
    assert behavior.mean() == pytest.approx(-0.395896, abs=4 / np.sqrt(25_000))
    facts = result.facts  # after ten games: as variance / games says, and much less
    assert 0.5 < facts["ordinary_mse_10_games"] < 2.0
    assert 0.1 < facts["weighted_mse_10_games"] < 0.8
    for picture in ("learning_curve.png", "importance_sampling.png", "values.png"):
        assert (tmp_path / picture).stat().st_size > 15_000


def test_by_command_line(tmp_path, command_line):
    flags = """--env-id FrozenLake-v1 --no-slippery --num-episodes 3_000 --gamma 0.9
        --epsilon 0.5 --eval-episodes 3""".split()
    status, out, err = command_line("mc_control_off_policy", *flags, "--run-dir", tmp_path)
    assert status == 0, err
    assert out.splitlines()[-1].startswith("solved: exact return 1 (target 0.7); mean return 1.000")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--epsilon 0", "--epsilon 0: must be greater than 0"),
        ("--epsilon 1.5", "--epsilon 1.5: must be between 0 and 1"),
        ("--num-runs 0", "--num-runs 0: must be at least 1"),
        ("--run-episodes 0", "--run-episodes 0: must be at least 1"),
        ("--env-id CartPole-v1", "--env-id CartPole-v1: states are Box"),
    ],
)
def test_bad_input(tmp_path, command_line, flags, message):
    run_dir = tmp_path / "run"
    status, _, err = command_line("mc_control_off_policy", *flags.split(), "--run-dir", run_dir)
    assert status == 2
    assert message in err
    assert not run_dir.exists()


@pytest.mark.learning
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_target(tmp_path, seed, weighted):
    result = script.train(Config(seed=seed, weighted=weighted, run_dir=str(tmp_path)))
    assert result.facts["exact_return"] >= script.TARGETS["Blackjack-v1"]
