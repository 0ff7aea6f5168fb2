"""Finite environments as arrays: transition model, exact returns, map of a grid world."""

from __future__ import annotations

from typing import Any, NamedTuple

from common.environments import blackjack
from common.environments.spaces import NumberedStates
from common.environments.vector import EVALUATION_LIMIT, make_env, reset_seed
from common.errors import UserError

import gymnasium as gym
import numpy as np
from gymnasium.envs.toy_text.blackjack import BlackjackEnv
from gymnasium.spaces import Discrete

START_SAMPLES = 1_000  # resets that tell where episodes begin if there is no transition table
START_STREAM = 2**61  # keeps their seed apart from those of training and evaluation


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


def exact_facts(
    env: gym.Env, env_id: str, policy: np.ndarray, name: str = "exact_return"
) -> dict[str, float | None]:
    """For `evaluation.json`: `exact_return` where the environment can be solved, else nothing.

    Args:
        env: the environment.
        env_id: its id.
        policy: action of each state, [S], or probabilities, [S, A].
        name: of the entry.
    """
    if not has_model(env):
        return {}
    limit = env.spec.max_episode_steps if env.spec else None
    return {name: exact_return(policy, tabular_model(env, env_id), limit)}


def learned_facts(
    env: gym.Env, env_id: str, policy: np.ndarray, V: np.ndarray, seed: int
) -> dict[str, float | None]:
    """`value_start`, the learned value of where episodes begin, and `exact_facts` of the policy.

    Args:
        env: the environment.
        env_id: its id.
        policy: action of each state, [S].
        V: learned value of each state, [S].
        seed: the run's seed.
    """
    value_start = float(start_distribution(env, env_id, seed) @ V)
    return {"value_start": value_start} | exact_facts(env, env_id, policy)


def start_distribution(env: gym.Env, env_id: str, seed: int) -> np.ndarray:
    """P(s0), [S]: that of the transition table, elsewhere shares of `START_SAMPLES` resets.

    Args:
        env: the environment; without a table, it is reset.
        env_id: its id.
        seed: the run's seed.
    """
    if has_model(env):
        return tabular_model(env, env_id).start
    seeds = [reset_seed(seed, START_STREAM), *[None] * (START_SAMPLES - 1)]
    counts = np.zeros(int(env.observation_space.n))  # type: ignore[attr-defined]
    for one in seeds:
        counts[env.reset(seed=one)[0]] += 1.0
    return counts / START_SAMPLES


def visited_states(transition: np.ndarray, start: np.ndarray, gamma: float) -> np.ndarray:
    """Of the `settled_states` those that episodes of the policy come to, [S] bool."""
    settled_states(transition, start, gamma)  # if it does not refuse, it has all of them
    return _leads_to(transition.T > 0.0, start > 0.0)


def settled_states(transition: np.ndarray, start: np.ndarray, gamma: float) -> np.ndarray:
    """States that have a value under a policy, [S] bool: with γ = 1, where it is sure to end.

    Traps that no episode comes to do no harm; their values are left out.

    Args:
        transition: P(s', not terminated | s) of the policy, [S, S].
        start: P(s0), [S].
        gamma: γ, discount factor.

    Raises:
        UserError: γ = 1, and episodes of the policy can come to where they never end.
    """
    if gamma < 1.0:
        return np.ones(len(start), bool)
    steps, ends = transition > 0.0, transition.sum(axis=1) < 1.0 - 1e-9
    trapped = _leads_to(steps, ~_leads_to(steps, ends))
    if (trapped & (start > 0.0)).any():
        raise UserError(
            f"--gamma {gamma}: must be below 1, for the policy can go on for ever: from state "
            f"{np.flatnonzero(trapped & (start > 0.0))[0]} it may come to where no episode ends"
        )
    return ~trapped


def _leads_to(steps: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """From which states, [S], steps, [S, S], may lead to a goal, [S]; goals count themselves."""
    while True:
        grown = goal | (steps & goal).any(axis=1)
        if np.array_equal(grown, goal):
            return goal
        goal = grown


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
