"""Policy iteration: evaluate a policy, act greedily on its values, until nothing changes.

Book: chapter 3, The Bellman Equation and Dynamic Programming, "Policy iteration"

Idea
----
Start with any policy. Compute what it is worth in every state, then change its action wherever
another one is worth more. The new policy is nowhere worse than the old one, and as there are
finitely many policies, this ends: with one that no change improves, which is an optimal one.
Value iteration takes hundreds of cheap sweeps; this takes a handful of expensive improvements.

Equations
---------
    V(s) <- r(s, π(s)) + γ Σ_s' P(s'|s, π(s)) V(s'), until |V - V_π| < θ                   (1)
    V = (I - γ P_π)⁻¹ r_π, the fixed point of (1) in one step                              (2)
    Q(s, a) = Σ_s' P(s'|s, a) [ r(s, a, s') + γ V(s') ]                                    (3)
    π(s) <- argmax_a Q(s, a), if that is worth more than Q(s, π(s))                        (4)

Differs from the book
---------------------
1. All states are updated at once. Each evaluation by sweeps goes on from the V of the policy
   before (`--evaluation solve` takes (2)). If its last sweep changed V by δ, all later ones change
   it by at most δ Σ_k (γ P_π)^k 1, k >= 1; it stops when that is below θ. It holds for γ = 1, too.
2. (4) keeps an action unless another one is better by more than 2θ: V, and so each Q, may be wrong
   by θ. If it took any of equally good actions, equally good policies could take turns for ever.
3. With γ = 1 a policy that never ends an episode has no values: (1) diverges, (2) is singular. So
   the first policy, drawn at random, is drawn again where it never ends; changes for the better
   never undo that, unless rewards can be collected for ever, and then the script says so.

How to run
----------
    python chapter01_fundamentals/dp_policy_iteration.py
    python chapter01_fundamentals/dp_policy_iteration.py --evaluation solve --seed 1
    python chapter01_fundamentals/dp_policy_iteration.py --env-id CliffWalking-v1 --gamma 0.9
    python chapter01_fundamentals/dp_policy_iteration.py --map SFFF/FFHF/FHFF/FFFG --no-slippery

Expected
--------
Measured: V*(s0) = 0.5420259320 after 4, 4, 5 policies (seeds 0, 1, 2), goal in 74.0% (exact), 3 s

Seeds 0 to 19 need 3 to 7 policies. CliffWalking takes 6 to 12: each change reaches one cell further
back. 8x8, γ = 1: all seeds end at V(s0) = 1, with 71% to 89% of episodes at the goal in time.

Paper
-----
Howard, "Dynamic Programming and Markov Processes", MIT Press 1960.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common import plots
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.config import RunConfig, check_config
from common.environments import make_env
from common.environments.tabular import Model, exact_facts, grid_of, tabular_model, toy_text_kwargs
from common.errors import UserError
from common.evaluation import report
from common.maps import ARROWS, draw_map, draw_values
from common.metrics import read_metrics
from common.run import Policy, Result, Run

import numpy as np
from matplotlib.ticker import MaxNLocator

TARGETS = {"FrozenLake-v1": 0.70, "Taxi-v4": 7.5}  # mean return that counts as solved
MAX_PANELS = 8  # policies that are drawn, of more the first, the last and some between


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for FrozenLake-v1."""

    env_id: str = "FrozenLake-v1"  # Gymnasium id of an environment with a transition table
    seed: int = 0  # of the first policy, and of the episodes played at the end
    gamma: float = 0.99  # γ, discount factor
    evaluation: Literal["sweeps", "solve"] = "sweeps"  # of a policy: by (1) or by (2)
    theta: float = 1e-10  # θ, how far V may be from V_π; actions closer than 2θ are equally good
    max_sweeps: int = 100_000  # stop an evaluation here even if (1) has not converged
    max_improvements: int = 100  # stop here even if the policy still changes
    map: str = ""  # FrozenLake only: rows of S, F, H, G joined by "/"; empty: the usual map
    slippery: bool = True  # FrozenLake only: the ice lets you slip sideways two times in three
    eval_episodes: int = 1000  # fresh greedy episodes at the end


def evaluate(
    policy: np.ndarray, V: np.ndarray, model: Model, config: Config
) -> tuple[np.ndarray, int]:
    """V_π, [S], starting from V, and the number of sweeps that took."""
    every, gamma = np.arange(len(policy)), config.gamma
    transition, reward = model.transition[every, policy], model.reward[every, policy]  # [S,S] [S]
    if gamma == 1.0 and not may_end(transition).all():
        raise UserError("--gamma 1: rewards can be collected for ever; choose a gamma below 1")
    if config.evaluation == "solve":
        return np.linalg.solve(np.eye(len(V)) - gamma * transition, reward), 0  # [S] (2)
    power, later = np.ones(len(V)), np.zeros(len(V))  # (γ P_π)^k 1, and its sum over k >= 1
    for sweep in range(1, config.max_sweeps + 1):
        new_V = reward + gamma * transition @ V  # [S] (1)
        delta, V = np.abs(new_V - V).max(), new_V
        power = gamma * transition @ power  # [S]
        later += power
        if delta * later.max() < config.theta * (1.0 - power.max()):  # later / (1 - power) <= Σ_k
            return V, sweep
    stopped = f"--max-sweeps {config.max_sweeps}: reached before V converged"
    print(f"{stopped}; --evaluation solve needs no sweeps", file=sys.stderr)
    return V, config.max_sweeps


def q_values(V: np.ndarray, model: Model, gamma: float) -> np.ndarray:
    """Q(s, a), [S, A]."""
    return model.reward + gamma * model.transition @ V  # [S, A] (3)


def improve(policy: np.ndarray, Q: np.ndarray, theta: float) -> np.ndarray:
    """The greedy policy, [S], that keeps every action which is as good as the best."""
    better = Q.max(axis=1) > Q[np.arange(len(Q)), policy] + 2.0 * theta  # [S]
    return np.where(better, Q.argmax(axis=1), policy)  # [S] (4)


def may_end(transition: np.ndarray) -> np.ndarray:
    """From which states an episode may end, [S], if transitions that do not end it are [S, S]."""
    ends = transition.sum(axis=1) < 1.0 - 1e-9
    settled = np.zeros(len(transition), bool)
    while True:
        new = ends | (transition[:, settled].sum(axis=1) > 0.0)
        if np.array_equal(new, settled):
            return settled
        settled = new


def random_policy(model: Model, config: Config) -> np.ndarray:
    """One random action per state, [S]; with γ = 1, drawn again where episodes never end."""
    rng = np.random.default_rng([config.seed, 1])
    states, actions = model.reward.shape
    policy = rng.integers(actions, size=states)
    if config.gamma != 1.0:
        return policy
    hopeless = np.flatnonzero(~may_end(model.transition.mean(axis=1)))
    if len(hopeless):
        raise UserError(
            f"--gamma 1: from state {hopeless[0]} no policy ends the episode, so that values may "
            "be infinite; choose a gamma below 1"
        )
    while (lost := ~may_end(model.transition[np.arange(states), policy])).any():
        policy[lost] = rng.integers(actions, size=lost.sum())
    return policy


def train(config: Config) -> Result:
    """Runs policy iteration; see `Config` for everything that can be set."""
    check_config(config)
    env = make_env(config.env_id, **env_kwargs(config))
    model = tabular_model(env, config.env_id)
    policy = random_policy(model, config)
    run = Run(config, __file__)
    V = np.zeros(len(model.start))
    history = np.zeros((config.max_improvements, 2, len(V)))  # each policy with its V, for pictures
    run.track(V=V, policy=policy, history=history)

    for improvement in run.steps(config.max_improvements, unit="improvement", log_every=1):
        new_V, sweeps = evaluate(policy, V, model, config)
        if improvement > 0:
            run.log({"train/least_gain": (new_V - V).min()})  # over the states: never negative
        V[:] = new_V
        history[improvement] = policy, V
        new_policy = improve(policy, q_values(V, model, config.gamma), config.theta)
        changes = (new_policy != policy).sum()
        policy[:] = new_policy
        values = {"train/value_start": model.start @ V, "train/changes": changes}
        run.log(values | {"train/sweeps": sweeps})
        if changes == 0:
            run.stop()
    if not run.stopped:
        stopped = f"--max-improvements {config.max_improvements}: reached"
        print(f"{stopped} before the policy stayed the same", file=sys.stderr)

    Q = q_values(V, model, config.gamma)
    np.savez(run.run_dir / "tables.npz", V=V, Q=Q, policy=policy)
    facts = {"value_start": float(model.start @ V)} | exact_facts(env, config.env_id, policy)
    draw(run.run_dir, config, env, history[: run.step])
    return run.finish(lambda state: policy[state], facts)


def load_policy(config: Config) -> Policy:
    """The policy of a finished or interrupted run, for `python -m common.play`."""
    env = make_env(config.env_id, **env_kwargs(config))
    policy = np.zeros(len(tabular_model(env, config.env_id).start), int)
    restore_latest(config.resume, policy=policy)
    return lambda state: policy[state]


def env_kwargs(config: Config) -> dict[str, Any]:
    """Arguments of the environment's constructor."""
    return toy_text_kwargs(config.env_id, config.map, config.slippery)


def draw(run_dir: Path, config: Config, env: Any, history: np.ndarray) -> None:
    """`learning_curve.png`; the last of the policies [K, 2, S] in `values.png`, all on one page."""
    metrics = read_metrics(run_dir)
    title = f"Policy iteration: {config.env_id}, γ = {config.gamma:g}"
    with plots.figure(run_dir / "learning_curve.png", columns=2) as [left, right]:
        left.plot(metrics["step"], metrics["train/value_start"], "o-")
        left.set(xlabel="policy", ylabel="mean V of the start states", title=title)
        right.bar(metrics["step"], metrics["train/changes"])
        right.set(xlabel="policy", ylabel="states in which the next policy differs")
        for axes in (left, right):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    policy, V = history[-1]
    draw_values(run_dir / "values.png", env, config.env_id, V, policy, title)

    grid, name = grid_of(env), config.env_id.split("-")[0]
    name = name.removesuffix("8x8").removesuffix("Slippery")
    if grid is None or name not in ARROWS:
        return
    shown = np.unique(np.linspace(0, len(history) - 1, MAX_PANELS).astype(int))
    columns = min(len(shown), 4 if len(grid[0]) <= 8 else 2)
    rows = -(-len(shown) // columns)
    size = (columns * (0.9 * len(grid[0]) + 1.6), rows * (0.8 * len(grid) + 1.2))
    with plots.figure(run_dir / "policies.png", rows, columns, size) as panels:
        for axes, number in zip(panels, shown, strict=False):
            policy, V = history[number]
            value = f"{metrics['train/value_start'][number]:.4g}"
            draw_map(axes, grid, V, policy, ARROWS[name], f"policy {number + 1}: V(s0) = {value}")
        for axes in panels[len(shown) :]:
            axes.set_axis_off()


@command
def main() -> None:
    """Solves, evaluates, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report(result, config, TARGETS, env_kwargs(config))


if __name__ == "__main__":
    main()
