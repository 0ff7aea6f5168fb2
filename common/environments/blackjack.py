"""The transition table that Gymnasium's Blackjack does not keep, so that policies can be solved.

Cards come from an infinite deck: ace (1) to nine with probability 1/13 each, ten with 4/13.
"""

from __future__ import annotations

from functools import cache

import numpy as np

SHAPE = (32, 11, 2)  # player's sum, dealer's card (ace = 1), usable ace
CARDS = dict.fromkeys(range(1, 10), 1 / 13) | {10: 4 / 13}
STICK, HIT = 0, 1

Outcome = tuple[float, int, float, bool]  # probability, next state, reward, terminated


def number(player: int, dealer: int, usable: int) -> int:
    """The number of a state, in the order of `V.reshape(32, 11, 2)`."""
    return (player * SHAPE[1] + dealer) * SHAPE[2] + usable


def draw(total: int, usable: int, card: int) -> tuple[int, int]:
    """Sum and usable ace after one more card; a sum above 21 is bust."""
    total += card
    if card == 1 and not usable and total + 10 <= 21:
        return total + 10, 1
    if total > 21 and usable:
        return total - 10, 0
    return total, usable


@cache
def dealer_ends(total: int, usable: int) -> dict[int, float]:
    """Distribution of the dealer's final sum, 0 if bust; the dealer draws below 17."""
    if total > 21:
        return {0: 1.0}
    if total >= 17:
        return {total: 1.0}
    ends: dict[int, float] = {}
    for card, probability in CARDS.items():
        for end, p in dealer_ends(*draw(total, usable, card)).items():
            ends[end] = ends.get(end, 0.0) + probability * p
    return ends


def stick_reward(player: int, dealer: int) -> dict[float, float]:
    """Distribution of the reward (1 won, 0 drawn, -1 lost) of sticking on a sum."""
    rewards = {1.0: 0.0, 0.0: 0.0, -1.0: 0.0}
    for end, probability in dealer_ends(*draw(0, 0, dealer)).items():
        rewards[float(np.sign(player - end))] += probability
    return rewards


def table() -> list[list[list[Outcome]]]:
    """P[s][a], a list of outcomes, in the manner of Gymnasium's tabular environments.

    The rules are those of `Blackjack-v1` without its options `natural` and `sab`.
    """
    P: list[list[list[Outcome]]] = []
    for s in range(int(np.prod(SHAPE))):
        player, dealer, usable = (int(i) for i in np.unravel_index(s, SHAPE))
        if not (4 <= player <= 21 and dealer >= 1 and (not usable or player >= 12)):
            P.append([[(1.0, s, 0.0, True)]] * 2)  # no game gets here
            continue
        stick = [(p, s, reward, True) for reward, p in stick_reward(player, dealer).items()]
        hit = []
        for card, probability in CARDS.items():
            total, ace = draw(player, usable, card)
            bust = total > 21
            next_state = s if bust else number(total, dealer, ace)
            hit.append((probability, next_state, -1.0 if bust else 0.0, bust))
        P.append([stick, hit])
    return P


def start() -> np.ndarray:
    """P(s0), [704]: two cards for the player, one to be seen of the dealer's."""
    distribution = np.zeros(int(np.prod(SHAPE)))
    for first, p in CARDS.items():
        for second, q in CARDS.items():
            player, usable = draw(*draw(0, 0, first), second)
            for dealer, r in CARDS.items():
                distribution[number(player, dealer, usable)] += p * q * r
    return distribution
