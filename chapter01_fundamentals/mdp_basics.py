"""Markov chain, reward process, MDP: what a given policy is worth, solved exactly and simulated.

Book: chapter 1, Fundamentals of Reinforcement Learning, "Markov Decision Processes"

Idea
----
Follow one policy through a grid world. Where the agent goes, and where it ends, is a Markov chain.
Rewards make it a Markov reward process: a return for each episode, a value for each state. Actions
make it an MDP, with a value for each action. All of it can be computed, and simulation agrees.

Equations
---------
    P_π(s'|s) = Σ_a π(a|s) P(s'|s, a), without steps that end the episode: those are E_π   (1)
    d_k = d_0 P_π^k                                where the agent is if it still goes on  (2)
    B = (I - P_π)⁻¹ E_π                            where the episode ends                  (3)
    r_π(s) = Σ_a π(a|s) r(s, a)                    reward of a step                        (4)
    G = r_1 + γ r_2 + γ² r_3 + ...                 return of an episode                    (5)
    V = (I - γ P_π)⁻¹ r_π                          its mean if it begins in s              (6)
    Q(s, a) = r(s, a) + γ Σ_s' P(s'|s, a) V(s')    and if it begins with action a in s     (7)

Differs from the book
---------------------
1. The book explains these terms without code. The grid is like the book's, nine states of which
   four are to be avoided, but on ice: one step in five slips sideways.

How to run
----------
    python chapter01_fundamentals/mdp_basics.py
    python chapter01_fundamentals/mdp_basics.py --policy random --gamma 1
    python chapter01_fundamentals/mdp_basics.py --map SFFF/FHFH/FFFH/HFFG --rewards 1 0 0
    python chapter01_fundamentals/mdp_basics.py --env-id CliffWalking-v1 --num-episodes 20

Expected
--------
Measured: Q and means at most 2.3, 1.6, 1.6 standard errors apart (seeds 0, 1, 2; target 4), 4 s

Paper
-----
Puterman, "Markov Decision Processes", Wiley 1994; Kemeny and Snell, "Finite Markov Chains", 1960.
"""

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from common import plots
from common.cli import command, parse
from common.config import RunConfig, check_config
from common.environments import make_env, reset_seed
from common.environments.tabular import grid_of, tabular_model, toy_text_kwargs
from common.errors import UserError
from common.evaluation import report_measure
from common.maps import ARROWS, draw_map
from common.run import Result, Run

import numpy as np

GAMMAS = (0.0, 0.5, 0.9, 1.0)


@dataclass(frozen=True)
class Config(RunConfig):
    """What is shown; the defaults are a grid world of nine states."""

    env_id: str = "FrozenLake-v1"  # Gymnasium id of an environment with a transition table
    seed: int = 0  # of all episodes
    gamma: float = 0.9  # γ, discount factor of Q and of the simulated returns
    map: str = "SHH/FFF/HHG"  # FrozenLake-v1 only: rows of S, F, H, G joined by "/"
    success_rate: float = 0.8  # FrozenLake only: probability of going straight, not sideways
    rewards: tuple[float, float, float] = (1.0, -1.0, -0.04)  # FrozenLake only: goal, hole, other
    policy: str = "100/221/000"  # action of each state, or: random (default if not nine states)
    num_episodes: int = 1_000  # to simulate for each action in each state, at least 2


def read_policy(config: Config, states: int, actions: int) -> np.ndarray:
    """π(a|s), [S, A]."""
    digits = config.policy.replace("/", "")
    if digits == "random" or (config.policy == Config.policy and len(digits) != states):
        return np.full((states, actions), 1.0 / actions)
    if len(digits) != states or not set(digits) <= set("0123456789"[:actions]):
        meant = f"{states} digits from 0 to {actions - 1}, an action for each state, or: random"
        raise UserError(f"--policy {config.policy}: must be {meant}")
    return np.eye(actions)[[int(digit) for digit in digits]]


def read_endings(env: Any, shape: tuple[int, int]) -> np.ndarray:
    """Probability that action a in state s ends the episode in state s', [S, A, S]."""
    endings = np.zeros((*shape, shape[0]))
    for s, a in np.ndindex(shape):
        for probability, next_state, _, terminated in env.unwrapped.P[s][a]:
            endings[s, a, next_state] += probability * terminated
    return endings


def distribution(start: np.ndarray, P_pi: np.ndarray, B: np.ndarray, k: int) -> np.ndarray:
    """Where the agent is after k steps, or where it has ended by then, [S]."""
    going_on = start @ np.linalg.matrix_power(P_pi, k)  # [S] (2)
    return going_on + (start - going_on) @ B  # whatever will end from now on has not ended yet


def discounted(rewards: list[float], gamma: float) -> float:
    """Return of an episode with these rewards."""
    return sum(gamma**k * reward for k, reward in enumerate(rewards))  # (5)


def play(
    env: Any, action: int, policy: np.ndarray, rng: np.random.Generator, max_steps: float = np.inf
) -> tuple[list[int], list[float]]:
    """States and rewards of an episode that begins where `env` is, with `action`."""
    states, rewards, terminated = [int(env.unwrapped.s)], [], False
    cumulative = policy.cumsum(axis=1)[:, :-1]
    while not terminated and len(rewards) < max_steps:
        next_state, reward, terminated, _, _ = env.step(action)
        states.append(int(next_state))
        rewards.append(float(reward))
        action = int((cumulative[next_state] <= rng.random()).sum())  # drawn from π(a|s')
    return states, rewards


def train(config: Config) -> Result:
    """Computes, then simulates; see `Config` for everything that can be set."""
    check_config(config)
    if config.num_episodes == 1:
        raise UserError("--num-episodes 1: must be at least 2, or there is no standard error")
    env = make_env(config.env_id, max_episode_steps=-1, **env_kwargs(config))  # no time limit
    model = tabular_model(env, config.env_id)
    start, _ = env.reset(seed=reset_seed(config.seed, 2))
    if not hasattr(env.unwrapped, "P") or not hasattr(env.unwrapped, "s"):
        raise UserError(f"--env-id {config.env_id}: needs env.unwrapped.P and s; try FrozenLake-v1")
    policy = read_policy(config, *model.reward.shape)
    P_pi = np.einsum("sa,sat->st", policy, model.transition)  # [S, S] (1)
    E_pi = np.einsum("sa,sat->st", policy, read_endings(env, model.reward.shape))  # [S, S]
    r_pi = (policy * model.reward).sum(axis=1)  # [S] (4)
    walks = np.linalg.matrix_power(P_pi, 2**20).sum(axis=1)  # [S]: still after a million steps
    endless = f"--policy {config.policy}: never ends from state {walks.argmax()}; try random"
    if walks.max() > 0.5:
        raise UserError(endless)
    run = Run(config, __file__)
    rng = np.random.default_rng([config.seed, 2])
    states, sample = play(env, rng.choice(len(policy[0]), p=policy[start]), policy, rng)
    print(f"a sample episode: states {states[:20]}, rewards {sample[:20]}, {len(sample)} steps")
    eye = np.eye(len(P_pi))
    B = np.linalg.solve(eye - P_pi, E_pi)  # [S, S] (3)
    V = {g: np.linalg.solve(eye - g * P_pi, r_pi) for g in (*GAMMAS, config.gamma)}  # [S] (6)
    Q = model.reward + config.gamma * model.transition @ V[config.gamma]  # [S, A] (7)

    acting = (model.start > 0.0) | (model.transition.sum(axis=(0, 1)) > 0.0)  # [S]: not in holes
    pairs = [(s, a) for s in np.flatnonzero(acting).tolist() for a in range(len(policy[0]))]
    exact = np.array([Q[pair] for pair in pairs])
    returns = np.zeros((config.num_episodes, len(pairs)))
    rng = np.random.default_rng([config.seed, 1])
    run.track(returns=returns, rng=rng)
    max_steps = np.log(1e-9) / np.log(max(config.gamma, 1e-9)) if config.gamma < 1.0 else np.inf
    for episode in run.steps(returns.size, unit="episode"):
        number, pair = divmod(episode, len(pairs))
        env.reset(seed=run.episode_seed)
        env.unwrapped.s, action = pairs[pair]
        _, rewards = play(env, action, policy, rng, max_steps)  # until discounted to nothing
        returns[number, pair] = discounted(rewards, config.gamma)
        run.log({"train/return_minus_q": returns[number, pair] - exact[pair]})

    mean, error = returns.mean(axis=0), returns.std(axis=0) / np.sqrt(len(returns))
    deviation = np.abs(mean - exact) / np.maximum(error, 1e-9)  # in standard errors
    facts = {"pairs": float(len(pairs)), "deviation": float(deviation.max())}
    facts |= {f"sample_return_gamma_{gamma:g}": discounted(sample, gamma) for gamma in GAMMAS}
    facts |= {f"value_start_gamma_{gamma:g}": float(model.start @ V[gamma]) for gamma in GAMMAS}
    facts |= {f"ends_in_state_{s}": float(p) for s, p in enumerate(model.start @ B) if p > 1e-12}
    tables = {"P": P_pi, "B": B, "V": V[config.gamma], "Q": Q, "policy": policy}
    np.savez(run.run_dir / "tables.npz", **tables, simulated=mean, standard_error=error)
    draw_chain(run, env, P_pi, B, model.start)
    draw_values(run, env, config, V, Q, policy)
    with plots.figure(run.run_dir / "simulation.png", size=(6.0, 5.0)) as [axes]:
        axes.errorbar(exact, mean, 2.0 * error, fmt="o", ms=3)
        axes.axline((0.0, 0.0), slope=1.0, color="grey", lw=1)
        axes.set(xlabel="Q(s, a), solved", ylabel="mean return, ±2 standard errors")
    return run.finish(None, facts)


def env_kwargs(config: Config) -> dict[str, Any]:
    """Arguments of the environment's constructor."""
    other = config.env_id != Config.env_id and config.map == Config.map  # our map is not for it
    kwargs = toy_text_kwargs(config.env_id, "" if other else config.map)
    ice = {"success_rate": config.success_rate, "reward_schedule": config.rewards}
    return kwargs | (ice if "is_slippery" in kwargs else {})


def draw_numbers(axes: Any, table: np.ndarray, title: str, xlabel: str, ylabel: str) -> None:
    """A heat map of probabilities, with numbers if there is room for them."""
    axes.imshow(table, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        if value >= 0.005 and table.size <= 256:
            colour = "white" if value > 0.6 else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", size=7, color=colour)
    xticks, yticks = (range(0, size, 1 + size // 16) for size in table.T.shape)
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel, xticks=xticks, yticks=yticks)
    axes.grid(False)


def draw_chain(run: Run, env: Any, P_pi: np.ndarray, B: np.ndarray, start: np.ndarray) -> None:
    """`markov_chain.png`: the matrix of (1), the distributions of (2), the endings of (3)."""
    shape = (len(grid_of(env) or [0]), -1)  # of the map; without one, one row
    with plots.figure(run.run_dir / "markov_chain.png", 2, 4, (17, 8)) as [first, *others, last]:
        chain = P_pi + (B - P_pi @ B)  # [S, S]: steps after which the episode goes on, or ends (3)
        draw_numbers(first, chain, "the Markov chain", "next state s'", "state s")
        for axes, k in zip(others, (0, 1, 2, 3, 5, 10), strict=True):
            d = distribution(start, P_pi, B, k).reshape(shape)
            draw_numbers(axes, d, f"where after k = {k} steps", "column", "row")
        draw_numbers(last, (start @ B).reshape(shape), "where in the end, k → ∞", "column", "row")


def draw_values(run: Run, env: Any, config: Config, V: dict, Q: Any, policy: Any) -> None:
    """`values.png`: V for several γ, and Q for each action, on a grid world's map."""
    grid, arrows = grid_of(env), [ARROWS[name] for name in ARROWS if name in config.env_id]
    if grid is None or not arrows:
        return
    actions = policy.argmax(axis=1) if policy.max() == 1.0 else None
    rows, columns = (2, 4) if len(grid[0]) <= 8 else (4, 2)
    size = (columns * (0.9 * len(grid[0]) + 2.0), rows * (0.8 * len(grid) + 1.2))
    with plots.figure(run.run_dir / "values.png", rows, columns, size) as panels:
        for axes, gamma in zip(panels, GAMMAS, strict=False):
            draw_map(axes, grid, V[gamma], actions, arrows[0], f"V, γ = {gamma:g}")
        for action, axes in enumerate(panels[4:]):
            title, always = f"Q of this action, γ = {config.gamma:g}", np.full(len(Q), action)
            draw_map(axes, grid, Q[:, action], always, arrows[0], title)
            axes.images[0].colorbar.set_label("Q(s, a)")


@command
def main() -> None:
    """Shows everything, and how far the simulation is from what was solved."""
    config = parse(Config, __doc__)
    result = train(config)
    # So far apart are the largest of all pairs by chance once in 1000 runs.
    target = NormalDist().inv_cdf(1.0 - 0.0005 / result.facts["pairs"])
    measure = "largest difference in standard errors"
    report_measure(result, config, measure, result.facts["deviation"], target, at_most=True)


if __name__ == "__main__":
    main()
