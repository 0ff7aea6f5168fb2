"""Q-learning: learns the best policy while following another one, from every single step.

Book: chapter 5, Understanding Temporal Difference Learning, "Off-policy TD control - Q learning"

Idea
----
After each step, Q(s, a) moves towards the reward plus the value of the best action in the next
state, whether or not the agent will take it. So the agent may explore as it likes and still learns
about the greedy policy. On the cliff that has a price: the values say "walk along the edge", and
an agent that sometimes slips while learning falls off it. Compare with `td_sarsa.py`.

Equations
---------
    a = argmax_a Q(s, a) with probability 1 - ε, else any action                          (1)
    Q(s, a) <- Q(s, a) + α [ r + γ max_a' Q(s', a') - Q(s, a) ]                           (2)

Differs from the book
---------------------
1. Q is an array, `Q[s, a]`, not a dictionary.
2. A time limit (`truncated`) does not end the MDP: only `terminated` stops the bootstrap in (2).
3. Ties in (1) are broken at random; the first of equal actions would walk into one wall for ever.
4. α and ε are small (the book: 0.85 and 0.8). On ice that slips, (2) averages over random next
   states, and large steps forget all but the last few of them.

How to run
----------
    python chapter01_fundamentals/td_q_learning.py
    python chapter01_fundamentals/td_q_learning.py --env-id FrozenLake-v1 --num-episodes 20_000 \
        --gamma 0.99 --start-epsilon 1 --end-epsilon 0
    python chapter01_fundamentals/td_q_learning.py --env-id Taxi-v4 --num-episodes 10_000 \
        --alpha 0.2 --end-epsilon 0
    python chapter01_fundamentals/td_q_learning.py --env-id Blackjack-v1 --num-episodes 200_000 \
        --alpha 0.01 --start-epsilon 1
    python -m common.plot runs/td_sarsa runs/td_q_learning --smooth 5   # after both have run
    python -m common.diff td_q_learning td_sarsa

Expected
--------
Measured: greedy return -13.0, -13.0, -13.0 on CliffWalking (seeds 0, 1, 2), 3 s

5,000 episodes. Exactly, the greedy policy earns -13, along the edge, and with the slips it was
learned with -49.6, -51.3, -51.1: compare SARSA. A policy along the edge earns -45.8 to -51.8 with
these slips: after a slip upwards, going right first is as short a way to the goal as going straight
back to the edge, and safer, but Q does not know. Seeds 3 to 9: -13, too. In `values.png`, arrows
far from the path mean little: the agent hardly ever goes there.
FrozenLake-v1, second command, exact greedy return: 0.740, 0.740, 0.740, the optimum. Taxi-v4, third
command: 7.92, 7.93, 7.92 (optimum 7.93). Blackjack-v1, fourth command, seed 0: -0.053 (optimum
-0.047), 15 s.

Paper
-----
Watkins and Dayan, "Q-learning", Machine Learning 8, 1992.
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

# Mean return that counts as solved. CliffWalking: the optimum, along the edge; the others: 95% of
# the optimum, which is 0.740 and 7.93.
TARGETS = {"CliffWalking-v1": -13.0, "FrozenLake-v1": 0.703, "Taxi-v4": 7.53}


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
    """Runs Q-learning; see `Config` for everything that can be set."""
    env, num_states, num_actions = make_tabular_env(config.env_id, **env_kwargs(config))
    run = Run(config, __file__)
    rng = np.random.default_rng([config.seed, 1])
    Q = np.zeros((num_states, num_actions))
    run.track(Q=Q, rng=rng)
    epsilon = linear_schedule(config.start_epsilon, config.end_epsilon, config.num_episodes)

    for episode in run.steps(config.num_episodes, unit="episode"):
        state, _ = env.reset(seed=run.episode_seed)
        episode_return, episode_length, done = 0.0, 0, False
        while not done:
            action = epsilon_greedy(Q[state], epsilon(episode), rng)  # (1)
            next_state, reward, terminated, truncated, _ = env.step(action)
            next_value = 0.0 if terminated else Q[next_state].max()  # NEW: the best, taken or not
            td_error = reward + config.gamma * next_value - Q[state, action]
            Q[state, action] += config.alpha * td_error  # (2)
            episode_return, episode_length = episode_return + reward, episode_length + 1
            state = next_state
            done = terminated or truncated or episode_length == config.max_steps
        run.log({"charts/episode_return": episode_return, "charts/episode_length": episode_length})

    V, policy = Q.max(axis=1), Q.argmax(axis=1)
    np.savez(run.run_dir / "tables.npz", V=V, Q=Q, policy=policy)
    title = f"Q-learning: {config.env_id}, {config.num_episodes:,} episodes"
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
