"""SARSA: learns the values of the policy that it follows, exploration included.

Book: chapter 5, Understanding Temporal Difference Learning, "On-policy TD control - SARSA"

Idea
----
After each step, choose the next action too: the five things s, a, r, s', a' give the method its
name. Q(s, a) moves towards the reward plus the value of the pair that really comes next. So the
values are those of the ε-greedy policy itself, slips and all. Beside a cliff, where one step in
forty is a slip over the edge, it learns to keep its distance. Compare with `td_q_learning.py`.

Equations
---------
    a = argmax_a Q(s, a) with probability 1 - ε, else any action                          (1)
    Q(s, a) <- Q(s, a) + α [ r + γ Q(s', a') - Q(s, a) ],  a' chosen in s' by (1)         (2)

Differs from the book
---------------------
1. Q is an array, `Q[s, a]`, not a dictionary.
2. A time limit (`truncated`) does not end the MDP: only `terminated` stops the bootstrap in (2).
3. Ties in (1) are broken at random; the first of equal actions would walk into one wall for ever.
4. α and ε are small (the book: 0.85 and 0.8). (2) follows single samples of a', so that large
   steps keep Q in motion: with α = 0.5 it shies away one row further than it has to (-17).

How to run
----------
    python chapter01_fundamentals/td_sarsa.py
    python chapter01_fundamentals/td_sarsa.py --env-id FrozenLake-v1 --num-episodes 20_000 \
        --gamma 0.99 --start-epsilon 1 --end-epsilon 0
    python chapter01_fundamentals/td_sarsa.py --env-id Taxi-v4 --num-episodes 10_000 --alpha 0.2 \
        --end-epsilon 0
    python -m common.plot runs/td_sarsa runs/td_q_learning runs/td_expected_sarsa \
        runs/td_double_q_learning --smooth 5   # after these have run

Expected
--------
Measured: greedy return -15.0, -15.0, -15.0 on CliffWalking (seeds 0, 1, 2), 3 s

5,000 episodes. Exactly, the greedy policy earns -15, one row away from the edge, and with the slips
it was learned with -20.9, -20.8, -20.8; the best there is with these slips earns -20.71, and it
takes the same path. Seeds 3 to 9: -15, too.
FrozenLake-v1, second command, exact greedy return: 0.730, 0.730, 0.730 (optimum 0.740). Taxi-v4,
third command: 7.89, 7.88, 7.90 (optimum 7.93).

Paper
-----
Rummery and Niranjan, "On-line Q-learning using connectionist systems", Cambridge University, 1994.
"""

from dataclasses import dataclass
from typing import Any

from common.checkpoint import restore_latest
from common.cli import command, parse
from common.config import RunConfig
from common.environments.tabular import (
    exact_facts,
    learned_facts,
    make_tabular_env,
    toy_text_kwargs,
)
from common.evaluation import report
from common.maps import draw_values
from common.run import Policy, Result, Run
from common.schedules import linear_schedule

import numpy as np

# Mean return that counts as solved. CliffWalking: the path of the best policy that slips with
# ε = 0.1; the others: 95% of the optimum, which is 0.740 and 7.93.
TARGETS = {"CliffWalking-v1": -15.0, "FrozenLake-v1": 0.703, "Taxi-v4": 7.53}


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for CliffWalking-v1."""

    env_id: str = "CliffWalking-v1"  # Gymnasium id or module:Id-v0; states and actions Discrete
    seed: int = 0  # of everything random
    num_episodes: int = 5_000  # episodes to learn from
    alpha: float = 0.05  # α, step size
    gamma: float = 1.0  # γ, discount factor
    start_epsilon: float = 0.1  # ε in the first episode
    end_epsilon: float = 0.1  # ε in the last episode
    max_steps: int = 1_000  # longer episodes are cut, which counts as truncation
    map: str = ""  # FrozenLake only: rows of S, F, H, G joined by "/"; empty: the usual map
    slippery: bool = True  # FrozenLake only: the ice lets you slip sideways two times in three
    eval_episodes: int = 1_000  # fresh greedy episodes at the end


def epsilon_greedy(q: np.ndarray, epsilon: float, rng: np.random.Generator) -> int:
    """(1): the best action of a row of Q, [A], or any action with probability ε."""
    if rng.random() < epsilon:
        return int(rng.integers(len(q)))
    best = np.flatnonzero(q == q.max())
    return int(best[0] if len(best) == 1 else rng.choice(best))


def train(config: Config) -> Result:
    """Runs SARSA; see `Config` for everything that can be set."""
    env, num_states, num_actions = make_tabular_env(config.env_id, **env_kwargs(config))
    run = Run(config, __file__)
    rng = np.random.default_rng([config.seed, 1])
    Q = np.zeros((num_states, num_actions))
    run.track(Q=Q, rng=rng)
    epsilon = linear_schedule(config.start_epsilon, config.end_epsilon, config.num_episodes)

    for episode in run.steps(config.num_episodes, unit="episode"):
        state, _ = env.reset(seed=run.episode_seed)
        action = epsilon_greedy(Q[state], epsilon(episode), rng)  # (1)
        episode_return, episode_length, done = 0.0, 0, False
        while not done:
            next_state, reward, terminated, truncated, _ = env.step(action)
            next_action = epsilon_greedy(Q[next_state], epsilon(episode), rng)  # (1)
            next_value = 0.0 if terminated else Q[next_state, next_action]
            td_error = reward + config.gamma * next_value - Q[state, action]
            Q[state, action] += config.alpha * td_error  # (2)
            episode_return, episode_length = episode_return + reward, episode_length + 1
            state, action = next_state, next_action
            done = terminated or truncated or episode_length == config.max_steps
        run.log({"charts/episode_return": episode_return, "charts/episode_length": episode_length})

    V, policy = Q.max(axis=1), Q.argmax(axis=1)
    np.savez(run.run_dir / "tables.npz", V=V, Q=Q, policy=policy)
    title = f"SARSA: {config.env_id}, {config.num_episodes:,} episodes"
    draw_values(run.run_dir / "values.png", env, config.env_id, V, policy, title)
    facts = learned_facts(env, config.env_id, policy, V, config.seed)
    slips = config.end_epsilon / num_actions  # probability of each action that is not greedy
    exploring = slips + (1.0 - config.end_epsilon) * np.eye(num_actions)[policy]  # π(a|s), [S, A]
    facts |= exact_facts(env, config.env_id, exploring, "exact_return_exploring")
    return run.finish(lambda state: policy[state], facts)


def load_policy(config: Config) -> Policy:
    """The greedy policy of a finished or interrupted run, for `python -m common.play`."""
    _, num_states, num_actions = make_tabular_env(config.env_id, **env_kwargs(config))
    Q = np.zeros((num_states, num_actions))
    restore_latest(config.resume, Q=Q)
    return lambda state: Q[state].argmax(axis=-1)


def env_kwargs(config: Config) -> dict[str, Any]:
    """Arguments of the environment's constructor."""
    return toy_text_kwargs(config.env_id, config.map, config.slippery)


@command
def main() -> None:
    """Learns, evaluates, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report(result, config, TARGETS, env_kwargs(config))


if __name__ == "__main__":
    main()
