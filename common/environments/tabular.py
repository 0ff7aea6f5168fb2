"""Finite environments as arrays: transition model, start distribution, map of a grid world."""

from __future__ import annotations

from typing import NamedTuple

from common.errors import UserError

import gymnasium as gym
import numpy as np


class Model(NamedTuple):
    """A finite MDP; S states, A actions."""

    transition: np.ndarray  # P(s', not terminated | s, a), [S, A, S]: rows sum to less than 1
    reward: np.ndarray  # E[r | s, a], [S, A]
    start: np.ndarray  # P(s0), [S]


def tabular_model(env: gym.Env, env_id: str) -> Model:
    """Reads `env.unwrapped.P` into arrays.

    A transition that terminates earns its reward and leads nowhere: its probability is left out of
    `transition`, so that `reward + gamma * transition @ V` bootstraps exactly where it should.

    Raises:
        UserError: the environment keeps no transition table.
    """
    table = getattr(env.unwrapped, "P", None)
    if table is None:
        raise UserError(
            f"--env-id {env_id}: no transition table (env.unwrapped.P), which this script needs; "
            "try FrozenLake-v1, FrozenLake8x8-v1, CliffWalking-v1 or Taxi-v4"
        )
    states, actions = int(env.observation_space.n), int(env.action_space.n)  # type: ignore[attr-defined]
    transition = np.zeros((states, actions, states))
    reward = np.zeros((states, actions))
    for s in range(states):
        for a in range(actions):
            for probability, next_state, r, terminated in table[s][a]:
                reward[s, a] += probability * r
                if not terminated:
                    transition[s, a, next_state] += probability
    start = getattr(env.unwrapped, "initial_state_distrib", None)
    if start is None:
        start = np.full(states, 1.0 / states)
    return Model(transition, reward, np.asarray(start, float))


def grid_of(env: gym.Env) -> list[str] | None:
    """Rows of a grid world's map, one letter per cell (S start, G goal, H hole, C cliff), or None.

    State s is the cell in row s // columns, column s % columns.
    """
    inner = env.unwrapped
    desc = getattr(inner, "desc", None)
    if desc is not None and np.size(desc) == env.observation_space.n:  # type: ignore[attr-defined]
        return [b"".join(row).decode() for row in np.asarray(desc, "S1")]
    cliff = getattr(inner, "_cliff", None)
    if cliff is not None:
        rows = np.where(cliff, "C", "F")
        rows[-1, 0], rows[-1, -1] = "S", "G"
        return ["".join(row) for row in rows]
    return None
