"""Monte Carlo control, epsilon-greedy: learns from whole games it plays itself, exploring a bit.

Book: chapter 4, Monte Carlo Methods, "Monte Carlo with the epsilon-greedy policy"

Idea
----
Play an episode, average the returns that followed each pair (s, a), make the policy greedy with
respect to these averages, repeat. A greedy policy would never try most pairs again; so now and
then, with probability ε, any action is taken. What is learned is the value of that policy, with its
random moves: the best policy among those that explore. Its greedy half is what is played at the
end.

Equations
---------
    a = π(s) with probability 1 - ε, else any action                                       (1)
    G_t = r_t + γ G_{t+1}, G_T = 0                                                         (2)
    N(s, a) <- N(s, a) + 1,  Q(s, a) <- Q(s, a) + [G_t - Q(s, a)] / N(s, a)                (3)
        where t is the first visit to (s, a) in the episode
    π(s) = argmax_a Q(s, a)                                                                (4)

Differs from the book
---------------------
1. The mean in (3) is incremental; no sum of returns is kept. `--step-size 0.01` replaces 1 / N by
   a constant, so that returns of old, worse policies are forgotten. The plain mean keeps them: with
   `--start-epsilon 1` it holds so many random games that hitting looks worse than it is.
2. ε may fall linearly from `--start-epsilon` to `--end-epsilon`.
3. A time limit (`truncated`) does not end the MDP: the missing rest of the return is filled in with
   Q of the last state. The book's game, Blackjack, has none.
4. Ties in (4) are broken at random; the policy before the first game is random, too.
5. 21 is 21: Gymnasium's Blackjack is made with `sab=False`, see `toy_text_kwargs`.

How to run
----------
    python chapter01_fundamentals/mc_control_epsilon_greedy.py
    python chapter01_fundamentals/mc_control_epsilon_greedy.py --start-epsilon 1
    python chapter01_fundamentals/mc_control_epsilon_greedy.py --env-id FrozenLake-v1 \
        --num-episodes 100_000 --gamma 0.99 --start-epsilon 1 --step-size 0.005

Expected
--------
Measured: exact return -0.0504, -0.0520, -0.0515 (seeds 0, 1, 2; best -0.0466), 38 s

Behind exploring starts, for some pairs are visited eight times in 500,000 games. With
`--start-epsilon 1` it ends at -0.0752 (seed 0): see 1. FrozenLake: goal in 73.0% of episodes
(exact) with all three seeds.

Paper
-----
Sutton and Barto, "Reinforcement Learning: An Introduction", second edition, section 5.4, 2018.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import plots
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.config import RunConfig
from common.environments.tabular import (
    exact_return,
    has_model,
    learned_facts,
    make_tabular_env,
    tabular_model,
    toy_text_kwargs,
)
from common.evaluation import report
from common.maps import draw_values
from common.metrics import read_metrics
from common.run import Policy, Result, Run
from common.schedules import linear_schedule

import numpy as np

# Return that counts as solved: the exact one where it can be computed, for in 10,000 games of
# Blackjack chance hides a hundredth.
TARGETS = {"Blackjack-v1": -0.055, "FrozenLake-v1": 0.70}


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for Blackjack-v1."""

    env_id: str = "Blackjack-v1"  # Gymnasium id or module:Id-v0; states and actions Discrete
    seed: int = 0  # of everything random
    num_episodes: int = 500_000  # episodes to learn from
    gamma: float = 1.0  # γ, discount factor
    start_epsilon: float = 0.2  # ε in the first episode
    end_epsilon: float = 0.05  # ε in the last episode
    step_size: float = 0.0  # α, constant weight of a new return; 0: 1 / N(s, a), the mean
    max_steps: int = 1_000  # longer episodes are cut, which counts as truncation
    map: str = ""  # FrozenLake only: rows of S, F, H, G joined by "/"; empty: the usual map
    slippery: bool = True  # FrozenLake only: the ice lets you slip sideways two times in three
    eval_episodes: int = 1_000  # fresh greedy episodes at the end


def greedy(values: np.ndarray, rng: np.random.Generator) -> int:
    """(4): the best action by its values, [A]; a random one of several."""
    best = np.flatnonzero(values == values.max())
    return int(best[0] if len(best) == 1 else rng.choice(best))


def train(config: Config) -> Result:
    """Runs on-policy Monte Carlo control; see `Config` for everything that can be set."""
    env, num_states, num_actions = make_tabular_env(config.env_id, **env_kwargs(config))
    model = tabular_model(env, config.env_id) if has_model(env) else None
    limit = env.spec.max_episode_steps
    run = Run(config, __file__)
    rng = np.random.default_rng([config.seed, 1])
    Q = np.zeros((num_states, num_actions))
    N = np.zeros((num_states, num_actions), np.int64)
    policy = rng.integers(num_actions, size=num_states)
    run.track(Q=Q, N=N, policy=policy, rng=rng)
    schedule = linear_schedule(config.start_epsilon, config.end_epsilon, config.num_episodes)

    for episode in run.steps(config.num_episodes, unit="episode"):
        epsilon = schedule(episode)
        state, _ = env.reset(seed=run.episode_seed)
        pairs, rewards, terminated, truncated = [], [], False, False
        while not (terminated or truncated):
            explore = rng.random() < epsilon
            action = int(rng.random() * num_actions) if explore else int(policy[state])  # (1)
            next_state, reward, terminated, truncated, _ = env.step(action)
            pairs.append((state, action))
            rewards.append(reward)
            state, truncated = next_state, truncated or len(rewards) >= config.max_steps

        # Going backwards, the earliest visit of a pair is written last.
        first_visit = {pair: t for t, pair in reversed(list(enumerate(pairs)))}
        soft_value = (1.0 - epsilon) * Q[state].max() + epsilon * Q[state].mean()
        G = 0.0 if terminated else soft_value
        for t in reversed(range(len(rewards))):
            G = rewards[t] + config.gamma * G  # (2)
            state, action = pairs[t]
            if first_visit[state, action] == t:
                N[state, action] += 1
                weight = config.step_size or 1.0 / N[state, action]
                Q[state, action] += weight * (G - Q[state, action])  # (3)
                policy[state] = greedy(Q[state], rng)  # (4)

        run.log({"charts/episode_return": sum(rewards), "charts/episode_length": len(rewards)})
        if model is not None and run.every(4 * run.log_every):
            run.log({"train/exact_return": exact_return(policy, model, limit)})

    V = Q.max(axis=1)
    np.savez(run.run_dir / "tables.npz", V=V, Q=Q, N=N, policy=policy)
    draw(run.run_dir, config, env, V, policy, N)
    facts = learned_facts(env, config.env_id, policy, V, config.seed)
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
    run_dir: Path, config: Config, env: Any, V: np.ndarray, policy: np.ndarray, N: np.ndarray
) -> None:
    """`exploration.png`: what exploring costs, visits of each pair; `values.png`: V, policy."""
    title = f"Monte Carlo, ε-greedy: {config.env_id}"
    plots.learning_curve(run_dir, None if config.map else TARGETS.get(config.env_id))
    draw_values(run_dir / "values.png", env, config.env_id, V, policy, title)
    metrics = read_metrics(run_dir)
    with plots.figure(run_dir / "exploration.png", columns=2) as [left, right]:
        step, played = plots.curve(metrics, plots.RETURN)
        window = max(1, len(played) // 20)
        left.plot(*plots.curve(metrics, "train/exact_return"), label="greedy policy, exact")
        left.plot(step, plots.smooth(played, window), label="ε-greedy games, mean")
        if config.env_id in TARGETS and not config.map:
            left.axhline(TARGETS[config.env_id], color=plots.GREY, ls="--", label="target")
        left.set(xlabel="episodes", ylabel="episode return (sum of rewards)", title=title)
        left.legend()
        visits = N[N.any(axis=1)].ravel()
        right.semilogy(np.sort(visits[visits > 0])[::-1])
        right.set(xlabel="pairs (s, a), most visited first", ylabel="first visits N(s, a)")
        right.set(ylim=(1, None), title=f"the least tried pair: {visits.min()} visits")


@command
def main() -> None:
    """Learns, evaluates, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report(result, config, TARGETS, env_kwargs(config), judged_by="exact_return")


if __name__ == "__main__":
    main()
