"""Finite environments as arrays: transition model, exact returns, map of a grid world."""

from __future__ import annotations

from typing import Any, NamedTuple

from common.environments import blackjack
from common.environments.spaces import NumberedStates
from common.environments.vector import EVALUATION_LIMIT, make_env
from common.errors import UserError

import gymnasium as gym
import numpy as np
from gymnasium.envs.toy_text.blackjack import BlackjackEnv
from gymnasium.spaces import Discrete


class Model(NamedTuple):
    """A finite MDP; S states, A actions."""

    transition: np.ndarray  # P(s', not terminated | s, a), [S, A, S]: rows sum to less than 1
    reward: np.ndarray  # E[r | s, a], [S, A]
    start: np.ndarray  # P(s0), [S]


def make_tabular_env(env_id: str, **kwargs: Any) -> tuple[gym.Env, int, int]:
    """An environment whose states and actions are numbers, how many states, how many actions.

    States that are Tuples of Discrete are numbered, see `NumberedStates`.

    Raises:
        UserError: unknown id, or states or actions that cannot be the rows of a table.
    """
    env = make_env(env_id, **kwargs)
    for kind, space in (("states", env.observation_space), ("actions", env.action_space)):
        if not isinstance(space, Discrete) or space.start != 0:
            raise UserError(
                f"--env-id {env_id}: {kind} are {space}, but tables need Discrete ones that start "
                "at 0; try FrozenLake-v1, CliffWalking-v1, Taxi-v4 or Blackjack-v1"
            )
    return env, int(env.observation_space.n), int(env.action_space.n)  # type: ignore[attr-defined]


def tabular_model(env: gym.Env, env_id: str) -> Model:
    """Reads `env.unwrapped.P` into arrays; Gymnasium's Blackjack keeps none, so it is built here.

    A transition that terminates earns its reward and leads nowhere: its probability is left out of
    `transition`, so that `reward + gamma * transition @ V` bootstraps exactly where it should.

    Raises:
        UserError: the environment keeps no transition table.
    """
    table: Any = getattr(env.unwrapped, "P", None)
    start: Any = getattr(env.unwrapped, "initial_state_distrib", None)
    if _plain_blackjack(env):
        table, start = blackjack.table(), blackjack.start()
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
    if start is None:
        start = np.full(states, 1.0 / states)
    return Model(transition, reward, np.asarray(start, float))


def has_model(env: gym.Env) -> bool:
    """Whether `tabular_model` can read the environment."""
    return getattr(env.unwrapped, "P", None) is not None or _plain_blackjack(env)


def exact_return(policy: np.ndarray, model: Model, max_steps: int | None = None) -> float:
    """Expected undiscounted return of a policy within a time limit.

    Args:
        policy: action of each state, [S], or probabilities, [S, A].
        model: the MDP.
        max_steps: the environment's time limit; None: that of evaluation, `EVALUATION_LIMIT`.
    """
    if policy.ndim == 1:
        every = np.arange(len(policy))
        transition, reward = model.transition[every, policy], model.reward[every, policy]
    else:
        transition = np.einsum("sa,sat->st", policy, model.transition)
        reward = (policy * model.reward).sum(axis=1)
    V = np.zeros(len(policy))
    for _ in range(max_steps or EVALUATION_LIMIT):
        new = reward + transition @ V  # [S], with one more step to go
        if np.array_equal(new, V):
            break
        V = new
    return float(model.start @ V)


def exact_facts(env: gym.Env, env_id: str, policy: np.ndarray) -> dict[str, float | None]:
    """`exact_return` for `evaluation.json` where the environment can be solved, else nothing."""
    if not has_model(env):
        return {}
    limit = env.spec.max_episode_steps if env.spec else None
    return {"exact_return": exact_return(policy, tabular_model(env, env_id), limit)}


def toy_text_kwargs(env_id: str, rows: str = "", slippery: bool = True) -> dict[str, Any]:
    """Arguments of the constructors of FrozenLake (from `--map`, `--slippery`) and Blackjack.

    Gymnasium registers Blackjack with `sab=True`, under which 21 in two cards beats 21 in three.
    Both look alike to the player, so the state would not be Markov; here 21 is 21, as in the book.

    Args:
        env_id: other environments get no arguments.
        rows: FrozenLake's rows of S, F, H, G joined by "/"; empty: the usual map.
        slippery: whether FrozenLake's ice lets one slip.

    Raises:
        UserError: the map is no map, or the environment has none.
    """
    if not env_id.startswith("FrozenLake"):
        if rows:
            raise UserError(f"--map {rows}: only FrozenLake has maps, not {env_id}")
        return {"sab": False} if env_id.startswith("Blackjack-v") else {}
    desc = rows.split("/")
    known = set("SG") <= set(rows) <= set("SFHG/")
    if rows and (len({len(row) for row in desc}) != 1 or not known):
        raise UserError(
            f"--map {rows}: must be rows of equal length from S (start), F, H and G (goal), "
            "joined by '/', with at least one S and one G"
        )
    return {"is_slippery": slippery} | ({"desc": desc} if rows else {})


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


def _plain_blackjack(env: gym.Env) -> bool:
    inner = env.unwrapped
    if not isinstance(inner, BlackjackEnv) or not isinstance(env, NumberedStates):
        return False
    return not (inner.natural or inner.sab)
