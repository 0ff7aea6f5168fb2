"""Monte Carlo exploring starts: every episode begins with another state and action.

Book: chapter 4, Monte Carlo Methods, "Monte Carlo exploring starts"

Idea
----
Average the returns that followed each pair (s, a) and act greedily on the averages. A greedy policy
never tries the other actions; so let every episode begin in a state, and with an action, drawn
from all there are. From the second action on the policy plays. In the long run each pair is
tried infinitely often, with no randomness left in the policy itself.

Equations
---------
    P(s_0, a_0) = 1 / (number of reachable s · number of actions)                          (1)
    G_t = r_t + γ G_{t+1}, G_T = 0                                                         (2)
    N(s, a) <- N(s, a) + 1,  Q(s, a) <- Q(s, a) + [G_t - Q(s, a)] / N(s, a)                (3)
        where t is the first visit to (s, a) in the episode
    π(s) = argmax_a Q(s, a)                                                                (4)

Differs from the book
---------------------
1. Starts really are explored. Gymnasium cannot reset to a chosen state, but its Blackjack keeps the
   hands in `env.unwrapped.player` and `env.unwrapped.dealer`, lists of cards that may be replaced
   after `reset`. The deck is infinite, so any hand with the right sum and ace will do, and the
   dealer's hidden card stays as drawn. FrozenLake, CliffWalking and Taxi keep the state in
   `env.unwrapped.s`. In environments that hide their state this method cannot be used.
2. Reachable states are those that the transition table leads to from the start; without a table,
   those in which an episode has been. The table serves for nothing else but exact returns.
3. The mean in (3) is incremental; no sum of returns is kept.
4. A time limit (`truncated`) does not end the MDP: the missing rest of the return is filled in with
   max_a Q of the last state. The book's game, Blackjack, has none.
5. Ties in (4) are broken at random; the policy before the first game is random, too.

How to run
----------
    python chapter01_fundamentals/mc_exploring_starts.py
    python chapter01_fundamentals/mc_exploring_starts.py --env-id FrozenLake-v1 \
        --num-episodes 50_000 --gamma 0.99

Expected
--------
Measured: exact return -0.0470, -0.0470, -0.0466 (seeds 0, 1, 2; best -0.0466), 35 s

No pair had fewer than 807 visits. FrozenLake is harder, as Q keeps the returns of old policies:
goal in 74%, 51%, 55% of episodes (exact; the best policy's 74%).

Paper
-----
Sutton and Barto, "Reinforcement Learning: An Introduction", second edition, section 5.3, 2018.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import plots
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.config import RunConfig
from common.environments.tabular import (
    Model,
    exact_facts,
    exact_return,
    has_model,
    make_tabular_env,
    start_distribution,
    tabular_model,
    toy_text_kwargs,
)
from common.errors import UserError
from common.evaluation import report
from common.maps import draw_values
from common.metrics import read_metrics
from common.run import Policy, Result, Run

import numpy as np
from gymnasium.envs.toy_text.blackjack import BlackjackEnv

# Return that counts as solved: the exact one where it can be computed, for in 10,000 games of
# Blackjack chance hides a hundredth.
TARGETS = {"Blackjack-v1": -0.055, "FrozenLake-v1": 0.70}


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for Blackjack-v1."""

    env_id: str = "Blackjack-v1"  # or FrozenLake-v1 and others that keep their state in `s`
    seed: int = 0  # of everything random
    num_episodes: int = 500_000  # episodes to learn from
    gamma: float = 1.0  # γ, discount factor
    max_steps: int = 1_000  # longer episodes are cut, which counts as truncation
    map: str = ""  # FrozenLake only: rows of S, F, H, G joined by "/"; empty: the usual map
    slippery: bool = True  # FrozenLake only: the ice lets you slip sideways two times in three
    eval_episodes: int = 1_000  # fresh greedy episodes at the end


def reachable_states(model: Model) -> np.ndarray:
    """States in which an episode may begin or go on, in ascending order."""
    reachable = model.start > 0.0  # [S]
    while True:
        grown = reachable | (model.transition[reachable] > 0.0).any(axis=(0, 1))
        if np.array_equal(grown, reachable):
            return np.flatnonzero(reachable)
        reachable = grown


def begin_in(env: Any, state: int) -> None:
    """Puts an environment that has just been reset into a state."""
    if not isinstance(env.unwrapped, BlackjackEnv):
        env.unwrapped.s = state
        return
    (rest, usable), cards = divmod(state, 2), env.unwrapped
    total, cards.dealer[0] = divmod(rest, 11)
    if usable:
        cards.player = [1, total - 11]  # the ace counts 11
    elif total < 12:
        cards.player = [2, total - 2]
    else:
        cards.player = [10, total - 10] if total < 21 else [10, 9, 2]


def greedy(values: np.ndarray, rng: np.random.Generator) -> int:
    """(4): the best action by its values, [A]; a random one of several."""
    best = np.flatnonzero(values == values.max())
    return int(best[0] if len(best) == 1 else rng.choice(best))


def train(config: Config) -> Result:
    """Runs Monte Carlo control with exploring starts; see `Config` for what can be set."""
    env, num_states, num_actions = make_tabular_env(config.env_id, **env_kwargs(config))
    model = tabular_model(env, config.env_id) if has_model(env) else None
    env.reset()
    if not isinstance(env.unwrapped, BlackjackEnv) and not hasattr(env.unwrapped, "s"):
        raise UserError(
            f"--env-id {config.env_id}: episodes must begin in any state, but its state cannot be "
            "set (no env.unwrapped.s); try FrozenLake-v1, or use mc_control_epsilon_greedy.py"
        )
    limit = env.spec.max_episode_steps
    run = Run(config, __file__)
    rng = np.random.default_rng([config.seed, 1])
    Q = np.zeros((num_states, num_actions))
    N = np.zeros((num_states, num_actions), np.int64)
    policy = rng.integers(num_actions, size=num_states)
    first = start_distribution(env, config.env_id, config.seed)
    known = np.zeros(num_states, bool)  # states in which episodes begin
    known[reachable_states(model) if model else np.flatnonzero(first)] = True
    run.track(Q=Q, N=N, policy=policy, known=known, rng=rng)
    starts = np.flatnonzero(known).tolist()

    for _ in run.steps(config.num_episodes, unit="episode"):
        env.reset(seed=run.episode_seed)
        state = starts[int(rng.random() * len(starts))]  # (1)
        action = int(rng.random() * num_actions)  # (1)
        begin_in(env, state)
        pairs, rewards, terminated, truncated = [], [], False, False
        while not (terminated or truncated):
            next_state, reward, terminated, truncated, _ = env.step(action)
            pairs.append((state, action))
            rewards.append(reward)
            state, action = next_state, int(policy[next_state])
            truncated = truncated or len(rewards) >= config.max_steps

        if model is None:  # the next episodes begin wherever one has been
            known[[state for state, _ in pairs]] = True
            starts = np.flatnonzero(known).tolist()
        # Going backwards, the earliest visit of a pair is written last.
        first_visit = {pair: t for t, pair in reversed(list(enumerate(pairs)))}
        G = 0.0 if terminated else Q[state].max()
        for t in reversed(range(len(rewards))):
            G = rewards[t] + config.gamma * G  # (2)
            state, action = pairs[t]
            if first_visit[state, action] == t:
                N[state, action] += 1
                Q[state, action] += (G - Q[state, action]) / N[state, action]  # (3)
                policy[state] = greedy(Q[state], rng)  # (4)

        run.log({"train/return_of_start": G, "charts/episode_length": len(rewards)})
        if model is not None and run.every(4 * run.log_every):
            run.log({"train/exact_return": exact_return(policy, model, limit)})

    V = Q.max(axis=1)
    np.savez(run.run_dir / "tables.npz", V=V, Q=Q, N=N, policy=policy)
    draw(run.run_dir, config, env, V, policy, N[starts].ravel())
    facts = {"value_start": float(first @ V), "fewest_visits_of_a_pair": int(N[starts].min())}
    facts |= exact_facts(env, config.env_id, policy)
    return run.finish(lambda state: policy[state], facts)


def load_policy(config: Config) -> Policy:
    """The greedy policy of a finished or interrupted run, for `python -m common.play`."""
    _, num_states, _ = make_tabular_env(config.env_id, **env_kwargs(config))
    policy = np.zeros(num_states, np.int64)
    restore_latest(config.resume, policy=policy)
    return lambda state: policy[state]


def env_kwargs(config: Config) -> dict[str, Any]:
    """Arguments of the environment's constructor."""
    return toy_text_kwargs(config.env_id, config.map, config.slippery)


def draw(
    run_dir: Path, config: Config, env: Any, V: np.ndarray, policy: np.ndarray, visits: np.ndarray
) -> None:
    """`learning_curve.png`: the policy's return, visits of each pair; `values.png`: V, policy."""
    title = f"Monte Carlo, exploring starts: {config.env_id}"
    draw_values(run_dir / "values.png", env, config.env_id, V, policy, title)
    with plots.figure(run_dir / "learning_curve.png", columns=2) as [left, right]:
        metrics = read_metrics(run_dir)
        shown = "exact_return" if "train/exact_return" in metrics else "return_of_start"
        left.plot(*plots.curve(metrics, f"train/{shown}"), label="greedy policy")
        if config.env_id in TARGETS and not config.map:
            left.axhline(TARGETS[config.env_id], color=plots.GREY, ls="--", label="target")
        left.set(xlabel="episodes", ylabel=shown.replace("_", " "), title=title)
        left.legend()
        right.semilogy(np.sort(visits)[::-1], label="visits of a pair")
        mean = config.num_episodes / len(visits)
        right.axhline(mean, color=plots.GREY, ls="--", label=f"its starts, on average: {mean:,.0f}")
        right.set(xlabel="pairs (s, a), most visited first", ylabel="first visits N(s, a)")
        right.set(ylim=(1, None), title="every pair is tried, again and again")
        right.legend(loc="lower left")


@command
def main() -> None:
    """Learns, evaluates, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report(result, config, TARGETS, env_kwargs(config), judged_by="exact_return")


if __name__ == "__main__":
    main()
