"""TD prediction: learns the values of a given policy while it plays, with one-step and n-step TD.

Book: chapter 5, Understanding Temporal Difference Learning, "TD prediction"

Idea
----
Monte Carlo waits for the end of an episode to learn what a state was worth. TD(0) looks one step
ahead and trusts its own estimate for the rest: it learns at once, with less noise, but from
guesses. n-step TD lies between. The exact values are known here: errors over episodes, n and α.

Equations
---------
    G = r1 + γ r2 + ... + γ^(n-1) rn + γ^n V(sn);  n = 1, TD(0): G = r + γ V(s')          (1)
    V(s) <- V(s) + α [ G - V(s) ]                                                         (2)
    V = r_π + γ P_π V, solved for the exact values                                        (3)
    RMS error = root of the mean over states of (V(s) - exact V(s))², averaged over runs  (4)

Differs from the book
---------------------
1. The default is a random walk whose error is known from the literature (Sutton and Barto 2018,
   example 6.2; the second command: figure 7.2). The third is the book's lake and random policy.
2. The book's α = 0.85 makes V(s) forget all but the last few visits; a small α averages.
3. A time limit (`truncated`) does not end the MDP: only `terminated` stops the bootstrap in (1).

How to run
----------
    python chapter01_fundamentals/td_prediction.py
    python chapter01_fundamentals/td_prediction.py --n-step 4 --alpha 0.4 --num-episodes 10 \
        --initial-value 0 --env-id common.environments.random_walk:RandomWalk19-v0
    python chapter01_fundamentals/td_prediction.py --env-id FrozenLake-v1 --num-episodes 5_000 \
        --num-runs 10 --alpha 0.02 --gamma 0.9 --initial-value 0
    python chapter01_fundamentals/td_prediction.py --env-id FrozenLake-v1 --initial-value 0 \
        --num-runs 10 --num-episodes 1_000 --policy 0 3 3 3 0 0 0 0 3 1 0 0 0 2 1 0

Expected
--------
Measured: RMS error 0.035, 0.036, 0.035 after 100 episodes (seeds 0, 1, 2; at most 0.04), 4 s

Walk over 19 states, second command, first ten episodes: 0.263, 0.266, 0.262 (at most 0.275), 12 s;
n = 1 at its best α 0.344. FrozenLake, third command: 0.016 (seed 0; with the book's α: 0.128).

Paper
-----
Sutton, "Learning to predict by the methods of temporal differences", Machine Learning 3, 1988.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import plots
from common.cli import command, parse
from common.config import RunConfig
from common.environments import tabular
from common.errors import UserError
from common.evaluation import report_measure
from common.maps import draw_map
from common.run import Result, Run

import numpy as np
from numpy.random import Generator, default_rng

# What is measured, and the most it may be, with the flags under "How to run".
WALK = "common.environments.random_walk:RandomWalk"
TARGETS = {WALK + "5-v0": ("rms_error_last", 0.04), WALK + "19-v0": ("rms_error_mean", 0.275)}
SWEEP_N, SWEEP_ALPHA = (1, 2, 4, 8, 16, 32), np.linspace(0.05, 1.0, 20)
MILESTONES = (1, 10, 100, 1_000, 10_000)  # episodes after which one run's V is drawn


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for the random walk over five states."""

    # Gymnasium id or module:Id-v0, Discrete; errors are shown where there is a transition table
    env_id: str = "common.environments.random_walk:RandomWalk5-v0"
    seed: int = 0  # of everything random
    num_episodes: int = 100  # episodes per run
    num_runs: int = 400  # runs that the error is averaged over
    n_step: int = 1  # n, real rewards before the estimate; 1: TD(0)
    alpha: float = 0.05  # α, step size
    gamma: float = 1.0  # γ, discount factor
    initial_value: float = 0.5  # V(s) at the beginning
    policy: tuple[int, ...] = ()  # action of each state; empty: all actions alike, at random
    max_steps: int = 1_000  # longer episodes are cut, which counts as truncation
    sweep_episodes: int = 10  # episodes for the picture of the error over n and α; 0: none
    map: str = ""  # FrozenLake only: rows of S, F, H, G joined by "/"; empty: the usual map
    slippery: bool = True  # FrozenLake only: the ice lets you slip sideways two times in three


def play(
    env: Any, policy: np.ndarray, rng: Generator, max_steps: int, seed: int | None = None
) -> Iterator[tuple[int, float, int, bool, bool]]:
    """One episode of a policy, [S, A]: (state, reward, next state, terminated, truncated), ..."""
    cumulative = policy.cumsum(axis=1)
    state, _ = env.reset(seed=seed)
    for length in range(1, max_steps + 1):
        action = int((rng.random() * cumulative[state, -1] < cumulative[state]).argmax())
        next_state, reward, terminated, truncated, _ = env.step(action)
        yield state, reward, next_state, terminated, truncated or length == max_steps
        if terminated or truncated:
            break
        state = next_state


def learn(V: np.ndarray, steps: Iterable, n: int, alpha: Any, gamma: float) -> None:
    """n-step TD over one episode; changes V, [S], in place (or [K, S] for K step sizes α, [K])."""
    window: deque[tuple[int, float]] = deque()  # (s, r) of steps that wait for their n-step return
    for state, reward, next_state, terminated, truncated in steps:
        window.append((state, reward))
        while len(window) == n or (window and (terminated or truncated)):
            rewards = 0.0
            for _, r in reversed(window):
                rewards = r + gamma * rewards
            G = rewards + gamma ** len(window) * (0.0 if terminated else V[..., next_state])  # (1)
            s, _ = window.popleft()
            V[..., s] += alpha * (G - V[..., s])  # (2)


def exact_values(policy: np.ndarray, model: tabular.Model, gamma: float) -> np.ndarray:
    """V of a policy, [S]; NaN in states where its episodes never are before they end."""
    transition = np.einsum("sa,sat->st", policy, model.transition)  # P_π, [S, S]
    reward = (policy * model.reward).sum(axis=1)  # r_π, [S]
    live = tabular.visited_states(transition, model.start, gamma)
    V = np.full(len(live), np.nan)
    matrix = np.eye(live.sum()) - gamma * transition[np.ix_(live, live)]
    V[live] = np.linalg.solve(matrix, reward[live])  # (3)
    return V


def rms_error(V: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """(4) before it is averaged: tables [..., S] -> errors [...]."""
    return np.sqrt(np.nanmean(np.square(V - exact), axis=-1))


def train(config: Config) -> Result:
    """Runs n-step TD prediction; see `Config` for everything that can be set."""
    kwargs = tabular.toy_text_kwargs(config.env_id, config.map, config.slippery)
    env, num_states, num_actions = tabular.make_tabular_env(config.env_id, **kwargs)
    policy = given_policy(config, num_states, num_actions)
    exact = np.zeros(num_states)  # without a transition table no errors are known
    if known := tabular.has_model(env):
        exact = exact_values(policy, tabular.tabular_model(env, config.env_id), config.gamma)
    start = tabular.start_distribution(env, config.env_id, config.seed)
    run = Run(config, __file__)
    rng = default_rng([config.seed, 1])
    V = np.full((config.num_runs, num_states), config.initial_value)  # a table for each run
    V[:, np.isnan(exact)] = 0.0
    errors, history = np.zeros(config.num_episodes), np.full((len(MILESTONES), num_states), np.nan)
    run.track(V=V, errors=errors, history=history, rng=rng)

    for episode in run.steps(config.num_episodes, unit="episode"):
        for i in range(config.num_runs):
            steps = play(env, policy, rng, config.max_steps, None if i else run.episode_seed)
            learn(V[i], steps, config.n_step, config.alpha, config.gamma)
        errors[episode] = rms_error(V, exact).mean()  # (4)
        run.log({"train/rms_error": errors[episode]}, weight=int(known))
        if episode + 1 in MILESTONES:
            history[MILESTONES.index(episode + 1)] = V[0] + 0.0 * exact  # NaN where it is NaN

    tables = {"V": V.mean(axis=0), "policy": policy}
    facts = {"value_start": float(start @ tables["V"])}  # the error, if it is known, comes first
    if known:
        tables |= {"V_exact": exact, "rms_by_n_alpha": sweep(env, policy, exact, config)}
        facts = {"rms_error_last": errors[-1], "rms_error_mean": errors.mean()} | facts
        draw_errors(run.run_dir / "learning_curve.png", config, errors, tables["rms_by_n_alpha"])
    np.savez(run.run_dir / "tables.npz", **tables)
    draw_values(run.run_dir / "values.png", known and tabular.grid_of(env), tables, history)
    return run.finish(facts=facts)


def sweep(env: Any, policy: np.ndarray, exact: np.ndarray, config: Config) -> np.ndarray:
    """Mean of (4) over the first episodes for each n and α, [N, K]; all see the same episodes."""
    rng, seed = default_rng([config.seed, 2]), config.seed
    errors = np.zeros((len(SWEEP_N), len(SWEEP_ALPHA)))
    for _ in range(config.num_runs if config.sweep_episodes else 0):
        V = np.full((*errors.shape, len(exact)), config.initial_value)
        for _ in range(config.sweep_episodes):
            steps, seed = list(play(env, policy, rng, config.max_steps, seed)), None
            for i, n in enumerate(SWEEP_N):
                learn(V[i], steps, n, SWEEP_ALPHA, config.gamma)
            errors += rms_error(V, exact) / (config.num_runs * config.sweep_episodes)
    return errors


def given_policy(config: Config, num_states: int, num_actions: int) -> np.ndarray:
    """π(a|s), [S, A], of --policy, or all actions alike."""
    if not config.policy:
        return np.full((num_states, num_actions), 1.0 / num_actions)
    if len(config.policy) != num_states or not set(config.policy) <= set(range(num_actions)):
        form = f"{num_states} actions (0 to {num_actions - 1}), one for each state"
        raise UserError(f"--policy {' '.join(map(str, config.policy))}: must be {form}")
    return np.eye(num_actions)[list(config.policy)]


def draw_errors(path: Path, config: Config, errors: np.ndarray, by_alpha: np.ndarray) -> None:
    """The error over episodes and, if it was asked for, over α for several n."""
    with plots.figure(path, columns=2 if config.sweep_episodes else 1) as [left, *right]:
        left.plot(np.arange(1, len(errors) + 1), errors)
        left.set(xlabel="episodes", ylabel="RMS error", ylim=(0, None))
        left.set_title(f"{config.n_step}-step TD, α = {config.alpha:g}, {config.num_runs} runs")
        for axes in right:
            for n, row in zip(SWEEP_N, by_alpha, strict=True):
                axes.plot(SWEEP_ALPHA, row, label=f"n = {n}")
            axes.set(xlabel="step size α", ylabel="RMS error", xlim=(0, 1))
            axes.set_title(f"n-step TD, mean of the first {config.sweep_episodes} episodes")
            axes.legend(ncols=2)


def draw_values(path: Path, grid: Any, tables: dict[str, np.ndarray], history: np.ndarray) -> None:
    """Learned and exact values: maps of a grid world, elsewhere curves over the states."""
    exact = tables.get("V_exact")
    with plots.figure(path, columns=2 if grid else 1) as axes:
        if grid:
            draw_map(axes[0], grid, tables["V"], None, (), "learned, mean over runs")
            draw_map(axes[1], grid, np.nan_to_num(exact), None, (), "exact")
            return
        for episodes, values in zip(MILESTONES, history, strict=True):
            if np.isfinite(values).any():
                axes[0].plot(values, ".-", label=f"after episode {episodes:,}")
        if exact is not None:
            axes[0].plot(exact, "o-", color="black", label="exact")
        axes[0].set(xlabel="state s", ylabel="V(s)", title="What one run knows")
        axes[0].xaxis.get_major_locator().set_params(integer=True)
        axes[0].legend()


@command
def main() -> None:
    """Learns, measures, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    measure, target = TARGETS.get(config.env_id, (next(iter(result.facts)), None))
    report_measure(result, config, measure, result.facts[measure], target, at_most=True)


if __name__ == "__main__":
    main()
