"""The table of Blackjack: exact values of known policies, and Gymnasium's own game as a witness."""

from common.environments import blackjack, make_env
from common.environments.tabular import exact_return, make_tabular_env, tabular_model

import gymnasium as gym
import numpy as np
import pytest

SHAPE = (32, 11, 2)


@pytest.fixture(scope="module")
def model():
    env, states, actions = make_tabular_env("Blackjack-v1", sab=False)
    assert (states, actions) == (704, 2)
    return tabular_model(env, "Blackjack-v1")


def stick_on(total: int) -> np.ndarray:
    policy = np.zeros(SHAPE, int)
    policy[:total] = 1  # hit
    return policy.ravel()


def test_values_of_known_policies(model):
    assert model.start.sum() == pytest.approx(1.0, abs=1e-12)
    assert exact_return(stick_on(20), model) == pytest.approx(-0.353554, abs=5e-7)
    assert exact_return(stick_on(17), model) == pytest.approx(-0.079295, abs=5e-7)
    assert exact_return(np.full((704, 2), 0.5), model) == pytest.approx(-0.395896, abs=5e-7)


def test_optimal_policy(model):
    V = np.zeros(704)
    for _ in range(30):
        Q = model.reward + model.transition @ V
        V = Q.max(axis=1)
    assert model.start @ V == pytest.approx(-0.0465560, abs=5e-8)
    policy = Q.argmax(axis=1)
    assert exact_return(policy, model) == pytest.approx(-0.0465560, abs=5e-8)
    hit = policy.reshape(SHAPE)
    first_stick = [
        [np.flatnonzero(hit[12:22, d, ace] == 0)[0] + 12 for d in range(1, 11)] for ace in (0, 1)
    ]
    assert first_stick[0] == [17, 13, 13, 12, 12, 12, 17, 17, 17, 17]  # dealer A, 2, ..., 10
    assert first_stick[1] == [19, 18, 18, 18, 18, 18, 18, 18, 19, 19]


def optimal_policy(model) -> np.ndarray:
    V = np.zeros(704)
    for _ in range(30):
        Q = model.reward + model.transition @ V
        V = Q.max(axis=1)
    return Q.argmax(axis=1)


def test_how_games_of_the_optimal_policy_end(model):
    """Reference: wins 42.946%, draws 9.453%, loses 47.601%; standard deviation 0.950."""
    policy, table = optimal_policy(model), blackjack.table()
    chances = {}
    for reward in (1.0, 0.0, -1.0):
        ends = np.zeros((704, 2))
        for pair in np.ndindex(ends.shape):
            outcomes = table[pair[0]][pair[1]]
            ends[pair] = sum(p for p, _, r, ended in outcomes if ended and r == reward)
        chances[reward] = exact_return(policy, model._replace(reward=ends))
    assert chances[1.0] == pytest.approx(0.42946, abs=5e-6)
    assert chances[0.0] == pytest.approx(0.09453, abs=5e-6)
    assert chances[-1.0] == pytest.approx(0.47601, abs=5e-6)
    assert sum(chances.values()) == pytest.approx(1.0, abs=1e-12)
    mean = chances[1.0] - chances[-1.0]
    variance = chances[1.0] + chances[-1.0] - mean**2
    assert np.sqrt(variance) == pytest.approx(0.950, abs=5e-4)


def test_naturals_that_pay_half_as_much_again(model):
    """`natural=True`: an ace and a ten that win pay 1.5. Reference: -0.0257292.

    The table does not know how 21 came about. Nobody draws another card to it, so the extra half is
    won as often as a first hand of 21 wins.
    """
    natural = 2.0 * blackjack.CARDS[1] * blackjack.CARDS[10]
    wins = sum(p * blackjack.stick_reward(21, card)[1.0] for card, p in blackjack.CARDS.items())
    value = exact_return(optimal_policy(model), model) + 0.5 * natural * wins
    assert value == pytest.approx(-0.0257292, abs=5e-8)


def test_sticking_on_twenty(model):
    expected = [
        0.146095,
        0.639987,
        0.650272,
        0.661050,
        0.670360,
        0.703959,
        0.773227,
        0.791815,
        0.758357,
        0.434958,
    ]
    values = model.reward.reshape(*SHAPE, 2)[20, 1:, 0, 0]
    np.testing.assert_allclose(values, expected, atol=5e-7)


def test_gymnasium_plays_by_this_table(model):
    """20,000 random games: where they begin, how they go on, what they pay."""
    env = make_env("Blackjack-v1", sab=False)
    rng = np.random.default_rng(0)
    starts, moves, rewards = np.zeros(704), np.zeros((704, 2, 704)), np.zeros((704, 2))
    count = np.zeros((704, 2))
    state, _ = env.reset(seed=0)
    for _ in range(20_000):
        starts[state] += 1
        done = False
        while not done:
            action = int(rng.integers(2))
            next_state, reward, done, _, _ = env.step(action)
            count[state, action] += 1
            rewards[state, action] += reward
            if not done:
                moves[state, action, next_state] += 1
            state = next_state
        state, _ = env.reset()
    assert not np.any((starts > 0) & (model.start == 0))
    assert not np.any((moves > 0) & (model.transition == 0))
    # Standardized deviations over all cells: their mean square is 1 if the probabilities are right.
    expected = 20_000 * model.start
    kept = expected > 5
    assert np.mean((starts - expected)[kept] ** 2 / expected[kept]) < 1.3
    expected = count[:, :, None] * model.transition
    kept = expected > 5
    assert np.mean((moves - expected)[kept] ** 2 / expected[kept]) < 1.3
    kept = count > 50
    deviation = (rewards - count * model.reward)[kept] / np.sqrt(count[kept])
    assert np.mean(deviation**2) < 1.0  # a reward's variance is at most 1
    assert abs(deviation.sum()) / np.sqrt(kept.sum()) < 4.0


def test_other_rules_have_no_table():
    for kwargs in ({}, {"natural": True, "sab": False}):  # the registry's own is sab=True
        env = make_env("Blackjack-v1", **kwargs)
        assert env.unwrapped.sab or env.unwrapped.natural
        with pytest.raises(Exception, match="no transition table"):
            tabular_model(env, "Blackjack-v1")
    assert isinstance(env, gym.Wrapper)
