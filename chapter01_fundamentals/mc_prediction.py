"""Monte Carlo prediction: the values of a policy as mean returns of whole episodes.

Book: chapter 4, Monte Carlo Methods, "Monte Carlo prediction"

Idea
----
The value of a state is the expected return from there on. So play with the policy, and average the
returns that followed each state: no model is needed, nor the value of any other state. The mean
over first visits is unbiased; every-visit takes more returns from the same games, which depend on
each other, and is biased where states recur. In Blackjack nothing recurs within a game, so that
both give the same numbers; on FrozenLake they do not.

Equations
---------
    a ~ π(.|s)                                                                             (1)
    G_t = r_t + γ G_{t+1}, G_T = 0                                                         (2)
    N(s) <- N(s) + 1,  V(s) <- V(s) + [G_t - V(s)] / N(s), the mean of the returns so far  (3)
        alike for Q and N(s, a); first-visit: only if t is the first visit in the episode
    q(s, a) = r(s, a) + γ Σ_s' P(s'|s, a) v(s'),  v(s) = Σ_a π(a|s) q(s, a)                (4)
    RMS error = sqrt( Σ_s μ(s) [V(s) - v(s)]² ),  μ(s) = N(s) / Σ_s' N(s')                 (5)

Differs from the book
---------------------
1. V and Q are learned from the same games. Q knows only the actions that π takes; with
   `--epsilon 0.2` a fifth of them are random, and all pairs get a value (of that policy).
2. Errors are shown: (4) is solved from the transition table, which learning does not see. (5)
   weights states by their visits, since one seen ten times stays a guess however many games are
   played; the largest error is taken over states with 1,000 visits or more.
3. A time limit (`truncated`) does not end the MDP: the missing rest of the return is filled in with
   V of the last state. The book's game, Blackjack, has none.
4. 21 is 21, in two cards or in three: Gymnasium's Blackjack is made with `sab=False`.

How to run
----------
    python chapter01_fundamentals/mc_prediction.py
    python chapter01_fundamentals/mc_prediction.py --stick-on 17 --epsilon 0.2
    python chapter01_fundamentals/mc_prediction.py --env-id FrozenLake-v1 --num-episodes 50_000
    python chapter01_fundamentals/mc_prediction.py --env-id FrozenLake-v1 --num-episodes 50_000 \
        --every-visit

Expected
--------
Measured: RMS error 0.0136, 0.0145, 0.0142 (seeds 0, 1, 2; target 0.02), 37 s

The start is worth -0.3536, -0.3550, -0.3511 (exact: -0.353554); the largest error of a state with
1,000 visits is 0.064, 0.050, 0.054. FrozenLake's random policy: first-visit RMS 0.0013, 0.0014,
0.0022, every-visit 0.0013, 0.0017, 0.0025 (weighted by its own visits).

Paper
-----
Singh and Sutton, "Reinforcement learning with replacing eligibility traces", Machine Learning 22,
1996 (first-visit against every-visit).
"""

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import plots
from common.cli import command, parse
from common.config import RunConfig
from common.environments import tabular
from common.evaluation import report_measure
from common.maps import draw_values
from common.metrics import read_metrics
from common.run import Result, Run

import numpy as np
from gymnasium.envs.toy_text.blackjack import BlackjackEnv

TARGETS = {"Blackjack-v1": 0.02}  # RMS error that counts as solved
OFTEN = 1_000  # visits that a state needs to be counted in the largest error


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for Blackjack-v1."""

    env_id: str = "Blackjack-v1"  # Gymnasium id or module:Id-v0; states and actions Discrete
    seed: int = 0  # of everything random
    num_episodes: int = 500_000  # episodes to learn from
    gamma: float = 1.0  # γ, discount factor
    every_visit: bool = False  # count every visit of a state in an episode, not only the first
    stick_on: int = 20  # Blackjack only: the policy sticks on this sum or more and hits below
    epsilon: float = 0.0  # Blackjack only: share of random actions; elsewhere all are random
    max_steps: int = 1_000  # longer episodes are cut, which counts as truncation
    map: str = ""  # FrozenLake only: rows of S, F, H, G joined by "/"; empty: the usual map
    slippery: bool = True  # FrozenLake only: the ice lets you slip sideways two times in three


def policy_to_predict(config: Config, env: Any, num_states: int, num_actions: int) -> np.ndarray:
    """π(a|s), [S, A]: in Blackjack "stick on 20 or more", anywhere else all actions alike."""
    uniform = np.full((num_states, num_actions), 1.0 / num_actions)
    if not isinstance(env.unwrapped, BlackjackEnv):
        return uniform
    hit = np.indices(env.table_shape)[0].ravel() < config.stick_on  # [S], by the player's sum
    threshold = np.stack([~hit, hit], axis=1)
    return (1.0 - config.epsilon) * threshold + config.epsilon * uniform


def reward_to_go(rewards: Sequence[float], gamma: float, last_value: float) -> list[float]:
    """G_t of each step of one episode; `last_value` stands for what a time limit has cut off."""
    G, returns = last_value, []
    for reward in reversed(rewards):
        G = reward + gamma * G  # (2)
        returns.append(G)
    return returns[::-1]


def average(
    values: np.ndarray, N: np.ndarray, visited: Sequence, returns: Sequence[float], every: bool
) -> None:
    """(3): takes one episode into the means `values`, V [S] or Q [S, A], in place.

    N counts the returns in each mean; `visited` and `returns` have the state s, or the pair (s, a),
    and the G of each step.
    """
    seen = set()
    for s, G in zip(visited, returns, strict=True):
        if every or s not in seen:
            seen.add(s)
            N[s] += 1
            values[s] += (G - values[s]) / N[s]  # (3)


def exact_values(policy: np.ndarray, model: Any, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """v, [S], and q, [S, A], of a policy, [S, A], by solving (4); `model` as `tabular_model`'s."""
    transition = np.einsum("sa,sat->st", policy, model.transition)  # [S, S]
    reward = (policy * model.reward).sum(axis=1)  # [S]
    known = tabular.settled_states(transition, model.start, gamma)  # [S]; elsewhere v is not needed
    v = np.zeros(len(policy))
    matrix = np.eye(known.sum()) - gamma * transition[np.ix_(known, known)]
    v[known] = np.linalg.solve(matrix, reward[known])
    return v, model.reward + gamma * model.transition @ v  # (4)


def errors(values: np.ndarray, exact: np.ndarray, N: np.ndarray) -> dict[str, float]:
    """(5), and the largest error where there are many visits, if there are any such."""
    error, often = np.abs(values - exact), N >= OFTEN
    found = {"rms_error": float(np.sqrt((N * error**2).sum() / N.sum()))}  # (5)
    return found | ({"max_error": float(error[often].max())} if often.any() else {})


def train(config: Config) -> Result:
    """Predicts V and Q of a policy; see `Config` for everything that can be set."""
    env, num_states, num_actions = tabular.make_tabular_env(config.env_id, **env_kwargs(config))
    policy = policy_to_predict(config, env, num_states, num_actions)
    cumulative = policy.cumsum(axis=1).round(12).tolist()  # ends with 1.0
    model = tabular.tabular_model(env, config.env_id) if tabular.has_model(env) else None
    exact = None if model is None else exact_values(policy, model, config.gamma)
    run = Run(config, __file__)
    rng = np.random.default_rng([config.seed, 1])
    V, Q = np.zeros(num_states), np.zeros((num_states, num_actions))
    N, N_Q, starts = np.zeros_like(V, int), np.zeros_like(Q, int), np.zeros_like(V, int)
    run.track(V=V, Q=Q, N=N, N_Q=N_Q, starts=starts, rng=rng)

    for episode in run.steps(config.num_episodes, unit="episode"):
        state, _ = env.reset(seed=run.episode_seed)
        starts[state] += 1
        states, actions, rewards, terminated, truncated = [], [], [], False, False
        while not (terminated or truncated):
            action = bisect(cumulative[state], rng.random())  # (1)
            next_state, reward, terminated, truncated, _ = env.step(action)
            states.append(state)
            actions.append(action)
            rewards.append(reward)
            state, truncated = next_state, truncated or len(rewards) >= config.max_steps

        returns = reward_to_go(rewards, config.gamma, 0.0 if terminated else V[state])
        average(V, N, states, returns, config.every_visit)
        average(Q, N_Q, list(zip(states, actions, strict=True)), returns, config.every_visit)

        run.log({"charts/episode_return": sum(rewards), "charts/episode_length": len(rewards)})
        last = episode + 1 == config.num_episodes
        if exact is not None and (last or run.every(run.log_every)):
            run.log({f"train/{name}": value for name, value in errors(V, exact[0], N).items()})
            run.log({f"train/q_{name}": e for name, e in errors(Q, exact[1], N_Q).items()})

    facts: dict[str, float | None] = {"value_start": float(starts @ V / starts.sum())}
    if exact is not None:
        facts["exact_value_start"] = float(model.start @ exact[0])
        facts |= errors(V, exact[0], N) | {"q_rms_error": errors(Q, exact[1], N_Q)["rms_error"]}
    tables = {"V": V, "Q": Q, "N": N, "N_Q": N_Q, "policy": policy}
    np.savez(run.run_dir / "tables.npz", **tables)
    draw(run.run_dir, config, env, tables, exact and exact[0])
    return run.finish(None, facts)


def env_kwargs(config: Config) -> dict[str, Any]:
    """Arguments of the environment's constructor."""
    return tabular.toy_text_kwargs(config.env_id, config.map, config.slippery)


def draw(run_dir: Path, config: Config, env: Any, tables: dict[str, np.ndarray], v: Any) -> None:
    """`learning_curve.png`: errors over episodes and by visits; `values.png`: V and the policy."""
    visits = "every" if config.every_visit else "first"
    title = f"Monte Carlo prediction, {visits} visit: {config.env_id}"
    V, N = tables["V"], tables["N"]
    actions = tables["policy"].argmax(axis=1) if isinstance(env.unwrapped, BlackjackEnv) else None
    draw_values(run_dir / "values.png", env, config.env_id, V, actions, title)
    if v is None:  # no exact values
        plots.learning_curve(run_dir)
        return
    metrics = read_metrics(run_dir)
    with plots.figure(run_dir / "learning_curve.png", columns=2) as [left, right]:
        step, rms = plots.curve(metrics, "train/rms_error")
        left.loglog(step, rms, label="V: RMS, weighted by visits (5)")
        left.loglog(*plots.curve(metrics, "train/q_rms_error"), "--", label="Q: RMS, alike")
        largest = plots.curve(metrics, "train/max_error")
        left.loglog(*largest, label=f"V: largest, {OFTEN:,} visits or more")
        slope = rms[-1] * np.sqrt(step[-1] / step)
        left.loglog(step, slope, ":", color=plots.GREY, label="proportional to 1/√episodes")
        if config.env_id in TARGETS:
            left.axhline(TARGETS[config.env_id], color=plots.GREY, lw=1, label="target of the RMS")
        left.set(xlabel="episodes", ylabel="error against the exact values", title=title)
        right.loglog(N, np.abs(V - v), ".", label="a state")
        counts = np.unique(N[N > 0])
        right.loglog(counts, counts**-0.5, ":", color=plots.GREY, label="1/√visits")
        right.set(xlabel="visits N(s)", ylabel="|V(s) - v(s)|", title="more visits, less error")
        left.legend()
        right.legend()


@command
def main() -> None:
    """Predicts, compares with the exact values, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    measure = "rms_error" if "rms_error" in result.facts else "value_start"
    value, target = result.facts[measure], TARGETS.get(config.env_id)
    report_measure(result, config, measure.replace("_", " "), value, target, at_most=True)


if __name__ == "__main__":
    main()
