"""Double Q-learning: one table chooses the best action, another one says what it is worth.

Book: chapter 5, Understanding Temporal Difference Learning, beyond the book

Idea
----
The maximum of noisy estimates is too large: the luckiest one wins, and Q-learning believes it. Two
tables, each learned from its own half of the steps, make independent errors, so that the value of
one's favourite is asked of the other. `maximization_bias.png` shows both methods on an example
where the bias matters: from A one goes right to the end for 0, or left to B, where each of ten
actions pays -0.1 on average, with noise of standard deviation 1. Left is always wrong, yet
Q-learning goes there for a long time, and double Q-learning recovers sooner.

Equations
---------
    a = argmax_a Q1(s, a) + Q2(s, a) with probability 1 - ε, else any action              (1)
    a* = argmax_a Q1(s', a)                                                               (2)
    Q1(s, a) <- Q1(s, a) + α [ r + γ Q2(s', a*) - Q1(s, a) ]                              (3)
    in every other step, chosen by a coin, with Q1 and Q2 exchanged                       (4)

Differs from the book
---------------------
1. The book has the double estimator in chapter 9 only, for deep networks (`double_dqn.py`). There,
   the target network is the second table; here the two are equals.
2. A time limit (`truncated`) does not end the MDP: only `terminated` stops the bootstrap in (3).
3. Ties in (1) and (2) are broken at random.
4. α is smaller than in `td_q_learning.py`. Beside the cliff, an action that one table has not tried
   yet may be the other one's fall. With large steps a single fall condemns the edge, and the
   agent keeps away: with α = 0.2, 5,000 episodes end at -17.

How to run
----------
    python chapter01_fundamentals/td_double_q_learning.py
    python chapter01_fundamentals/td_double_q_learning.py --env-id FrozenLake-v1 \
        --num-episodes 20_000 --gamma 0.99 --start-epsilon 1 --end-epsilon 0
    python chapter01_fundamentals/td_double_q_learning.py --env-id Taxi-v4 --num-episodes 10_000 \
        --alpha 0.2 --end-epsilon 0
    python -m common.plot runs/td_q_learning runs/td_double_q_learning --smooth 5
    python -m common.diff td_double_q_learning td_q_learning

Expected
--------
Measured: greedy return -13.0, -13.0, -13.0 on CliffWalking (seeds 0, 1, 2), 7 s

5,000 episodes. Exactly, the greedy policy earns -13, along the edge, and with the slips it was
learned with -51.7, -70.1, -57.8: it learns more slowly than Q-learning. Seeds 3 to 15: -13, too.
Maximization bias: Q-learning goes left in up to 94% of the runs, and after 300 episodes still in
11.4%, 12.0%, 12.3%; double Q-learning in 50% at the beginning, then in 6.7%, 6.6%, 7.1%.
Exploration alone would be 5%.
FrozenLake-v1, second command, exact greedy return: 0.740, 0.740, 0.740, the optimum. Taxi-v4, third
command: 7.93, 7.92, 7.93 (optimum 7.93).

Paper
-----
van Hasselt, "Double Q-learning", NeurIPS 2010. The example is 6.7 in Sutton and Barto, 2018.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import plots
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
    alpha: float = 0.02  # α, step size
    gamma: float = 1.0  # γ, discount factor
    start_epsilon: float = 0.1  # ε in the first episode
    end_epsilon: float = 0.1  # ε in the last episode
    max_steps: int = 1_000  # longer episodes are cut, which counts as truncation
    map: str = ""  # FrozenLake only: rows of S, F, H, G joined by "/"; empty: the usual map
    slippery: bool = True  # FrozenLake only: the ice lets you slip sideways two times in three
    bias_runs: int = 10_000  # runs that `maximization_bias.png` averages over; 0: no such picture
    eval_episodes: int = 1_000  # fresh greedy episodes at the end


def epsilon_greedy(q: np.ndarray, epsilon: float, rng: np.random.Generator) -> int:
    """(1): the best action of a row of Q, [A], or any action with probability ε."""
    if rng.random() < epsilon:
        return int(rng.integers(len(q)))
    best = np.flatnonzero(q == q.max())
    return int(best[0] if len(best) == 1 else rng.choice(best))


def train(config: Config) -> Result:
    """Runs double Q-learning; see `Config` for everything that can be set."""
    env, num_states, num_actions = make_tabular_env(config.env_id, **env_kwargs(config))
    run = Run(config, __file__)
    shares = biased_moves(config)  # first, so that too many runs are refused before training
    rng = np.random.default_rng([config.seed, 1])
    Q1, Q2 = np.zeros((2, num_states, num_actions))  # NEW: two tables
    run.track(Q1=Q1, Q2=Q2, rng=rng)
    epsilon = linear_schedule(config.start_epsilon, config.end_epsilon, config.num_episodes)

    for episode in run.steps(config.num_episodes, unit="episode"):
        state, _ = env.reset(seed=run.episode_seed)
        episode_return, episode_length, done = 0.0, 0, False
        while not done:
            action = epsilon_greedy(Q1[state] + Q2[state], epsilon(episode), rng)  # (1)
            next_state, reward, terminated, truncated, _ = env.step(action)
            Q, other = (Q1, Q2) if rng.random() < 0.5 else (Q2, Q1)  # NEW: (4)
            best = epsilon_greedy(Q[next_state], 0.0, rng)  # NEW: (2)
            next_value = 0.0 if terminated else other[next_state, best]  # NEW: asked of the other
            td_error = reward + config.gamma * next_value - Q[state, action]
            Q[state, action] += config.alpha * td_error  # (3)
            episode_return, episode_length = episode_return + reward, episode_length + 1
            state = next_state
            done = terminated or truncated or episode_length == config.max_steps
        run.log({"charts/episode_return": episode_return, "charts/episode_length": episode_length})

    Q = (Q1 + Q2) / 2
    V, policy = Q.max(axis=1), Q.argmax(axis=1)
    np.savez(run.run_dir / "tables.npz", V=V, Q=Q, policy=policy, Q1=Q1, Q2=Q2)
    title = f"Double Q-learning: {config.env_id}, {config.num_episodes:,} episodes"
    draw_values(run.run_dir / "values.png", env, config.env_id, V, policy, title)
    facts = learned_facts(env, config.env_id, policy, V, config.seed)
    slips = config.end_epsilon / num_actions  # probability of each action that is not greedy
    exploring = slips + (1.0 - config.end_epsilon) * np.eye(num_actions)[policy]  # π(a|s), [S, A]
    facts |= exact_facts(env, config.env_id, exploring, "exact_return_exploring")
    if shares:
        facts |= {f"left_moves_{name}": share[-1] for name, share in shares.items()}
        draw_bias(run.run_dir / "maximization_bias.png", config, shares)
    return run.finish(lambda state: policy[state], facts)


def load_policy(config: Config) -> Policy:
    """The greedy policy of a finished or interrupted run, for `python -m common.play`."""
    _, num_states, num_actions = make_tabular_env(config.env_id, **env_kwargs(config))
    Q1, Q2 = np.zeros((2, num_states, num_actions))
    restore_latest(config.resume, Q1=Q1, Q2=Q2)
    return lambda state: (Q1 + Q2)[state].argmax(axis=-1)


def env_kwargs(config: Config) -> dict[str, Any]:
    """Arguments of the environment's constructor."""
    return toy_text_kwargs(config.env_id, config.map, config.slippery)


def left_moves(num_tables: int, num_runs: int, rng: np.random.Generator) -> np.ndarray:
    """Share of runs that go left in A, by episode, [300]; one table: Q-learning, two: double.

    All runs play at once; α = ε = 0.1, γ = 1. Right is worth 0 from the beginning, so that only
    left moves teach anything.
    """
    QA = np.zeros((num_tables, num_runs, 2))  # left, right
    QB = np.zeros((num_tables, num_runs, 10))
    share = np.zeros(300)

    def choose(q: np.ndarray, epsilon: float) -> np.ndarray:
        """(1) and (2) for each row of q, [R, A]: the largest, ties at random, or any action."""
        noise = rng.random(q.shape)
        best = np.where(q == q.max(axis=1, keepdims=True), noise, -1.0).argmax(axis=1)
        return np.where(rng.random(len(q)) < epsilon, noise.argmax(axis=1), best)

    for episode in range(len(share)):
        left = np.flatnonzero(choose(QA.sum(axis=0), 0.1) == 0)  # the runs that go to B, [L]
        share[episode] = len(left) / num_runs
        table = rng.integers(num_tables, size=len(left))  # (4)
        other = num_tables - 1 - table
        best = choose(QB[table, left], 0.0)  # (2)
        QA[table, left, 0] += 0.1 * (QB[other, left, best] - QA[table, left, 0])  # (3), r = 0

        action = choose(QB[:, left].sum(axis=0), 0.1)
        reward = rng.normal(-0.1, 1.0, len(left))
        table = rng.integers(num_tables, size=len(left))
        QB[table, left, action] += 0.1 * (reward - QB[table, left, action])  # (3), the end
    return share


def biased_moves(config: Config) -> dict[str, np.ndarray]:
    """Shares of left moves, [300], of both methods; nothing with `--bias-runs 0`."""
    shares = {}
    for num_tables, name in enumerate(("q_learning", "double_q_learning"), start=1):
        rng = np.random.default_rng([config.seed, 1 + num_tables])
        if config.bias_runs:
            shares[name] = left_moves(num_tables, config.bias_runs, rng)
    return shares


def draw_bias(path: Path, config: Config, shares: dict[str, np.ndarray]) -> None:
    """Draws the shares of left moves of both methods."""
    with plots.figure(path) as [axes]:
        for share, name in zip(shares.values(), ("Q-learning", "double Q-learning"), strict=True):
            axes.plot(np.arange(1, len(share) + 1), 100 * share, label=name)
        axes.axhline(5.0, color=plots.GREY, linestyle="--", label="exploration alone: ε / 2")
        axes.set(xlabel="episodes", ylabel="runs that go left in A [%]", ylim=(0, 100))
        axes.set_title(f"Left is a mistake: maximization bias, mean of {config.bias_runs:,} runs")
        axes.legend()


@command
def main() -> None:
    """Learns, evaluates, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report(result, config, TARGETS, env_kwargs(config))


if __name__ == "__main__":
    main()
