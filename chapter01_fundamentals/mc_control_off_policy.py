"""Off-policy Monte Carlo control: learns the best policy from games that another policy plays.

Book: chapter 4, Monte Carlo Methods, "Off-policy Monte Carlo control"

Idea
----
One policy, b, plays and explores; its returns are reweighted to say what another, π, would earn.
The weight is how much likelier π is to play the rest of the game like this. Ordinary importance
sampling divides by the number of returns: unbiased, with a variance that may be infinite. Weighted
divides by the sum of weights: biased after few games, but closer to the truth. In control π is
greedy: an action it would not take gives all earlier ones weight zero, so only the ends teach.

Equations
---------
    b(a|s) = ε / A + (1 - ε) 1[a = π(s)]                                                   (1)
    ρ_t = Π_{k=t..T-1} π(a_k|s_k) / b(a_k|s_k)                                             (2)
    ordinary: V(s) = Σ ρ_t G_t / n,  weighted: V(s) = Σ ρ_t G_t / Σ ρ_t  (0 if Σ ρ_t = 0)  (3)
    G_t = r_t + γ G_{t+1}, G_T = 0; ρ_{t+1} = W is the weight of (s_t, a_t)                (4)
    C(s, a) <- C(s, a) + c,  Q(s, a) <- Q(s, a) + [W G_t - c Q(s, a)] / C(s, a)            (5)
        with c = 1 (ordinary) or c = W (weighted)
    π(s) = argmax_a Q(s, a)                                                                (6)
    W <- W 1[a = π(s)] / b(a|s)                                                            (7)

Differs from the book
---------------------
1. Both kinds of importance sampling: `--no-weighted` takes c = 1 in (5). Every visit counts.
2. Their variance is drawn: the value of one state of Blackjack (13 with a usable ace against a two,
   for "stick on 20 or more") is estimated from random games by (3), `--num-runs` times over.
3. A return that a time limit (`truncated`) has cut off goes on with max_a Q of the last state.

How to run
----------
    python chapter01_fundamentals/mc_control_off_policy.py
    python chapter01_fundamentals/mc_control_off_policy.py --no-weighted --epsilon 0.5
    python chapter01_fundamentals/mc_control_off_policy.py --env-id FrozenLake-v1 --no-slippery \
        --num-episodes 20_000 --gamma 0.9 --epsilon 0.5

Expected
--------
Measured: exact return -0.0478, -0.0497, -0.0483 (seeds 0, 1, 2; best -0.0466), 37 s

Ordinary: -0.0480, -0.0495, -0.0484. Lakes need luck: without slipping all three seeds reach the
goal, on slippery ice hardly any (exact return 0.12 at best): too few ends of episodes teach.

Paper
-----
Precup, Sutton and Singh, "Eligibility traces for off-policy policy evaluation", ICML 2000.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import plots
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.config import RunConfig, check_config
from common.environments import tabular
from common.errors import UserError
from common.evaluation import report
from common.maps import draw_values
from common.metrics import read_metrics
from common.run import Policy, Result, Run

import numpy as np

# Return that counts as solved: the exact one where it can be computed, for in 10,000 games of
# Blackjack chance hides a hundredth.
TARGETS = {"Blackjack-v1": -0.055, "FrozenLake-v1": 0.70}
# Prediction: the value of an ace and a two against a two, for the policy that hits below 20.
SOFT_13, HIT_BELOW_20 = (13 * 11 + 2) * 2 + 1, (np.arange(704) // 22 < 20).astype(int)


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for Blackjack-v1."""

    env_id: str = "Blackjack-v1"  # Gymnasium id or module:Id-v0; states and actions Discrete
    seed: int = 0  # of everything random
    num_episodes: int = 500_000  # episodes to learn from
    gamma: float = 1.0  # γ, discount factor
    weighted: bool = True  # weighted importance sampling; else ordinary
    epsilon: float = 1.0  # ε of the policy that plays; 1: every action is random
    max_steps: int = 1_000  # longer episodes are cut, which counts as truncation
    num_runs: int = 100  # Blackjack only: independent estimates of one state's value
    run_episodes: int = 1_000  # Blackjack only: games for each of these estimates
    map: str = ""  # FrozenLake only: rows of S, F, H, G joined by "/"; empty: the usual map
    slippery: bool = True  # FrozenLake only: the ice lets you slip sideways two times in three
    eval_episodes: int = 1_000  # fresh greedy episodes at the end


def train(config: Config) -> Result:
    """Runs off-policy Monte Carlo control; see `Config` for everything that can be set."""
    check_config(config)
    env, num_states, num_actions = tabular.make_tabular_env(config.env_id, **env_kwargs(config))
    if config.epsilon == 0.0:
        raise UserError("--epsilon 0: must be greater than 0, or only one policy is ever tried")
    model = tabular.tabular_model(env, config.env_id) if tabular.has_model(env) else None
    limit = env.spec.max_episode_steps
    games = random_games(env, config) if config.env_id == "Blackjack-v1" else None
    run = Run(config, __file__)
    rng = np.random.default_rng([config.seed, 1])
    Q = np.zeros((num_states, num_actions))
    C = np.zeros((num_states, num_actions))  # number, or sum of weights, of the returns in Q
    policy = Q.argmax(axis=1)  # (6)
    run.track(Q=Q, C=C, policy=policy, rng=rng)

    for _ in run.steps(config.num_episodes, unit="episode"):
        state, _ = env.reset(seed=run.episode_seed)
        steps, terminated, truncated = [], False, False
        while not (terminated or truncated):
            explore = rng.random() < config.epsilon
            action = int(rng.random() * num_actions) if explore else int(policy[state])
            b = config.epsilon / num_actions  # (1)
            b += (1.0 - config.epsilon) * (action == policy[state])
            next_state, reward, terminated, truncated, _ = env.step(action)
            steps.append((state, action, reward, b))
            state, truncated = next_state, truncated or len(steps) >= config.max_steps

        G, W = 0.0 if terminated else Q[state].max(), 1.0
        for state, action, reward, b in reversed(steps):
            G = reward + config.gamma * G  # (4)
            c = W if config.weighted else 1.0
            C[state, action] += c
            Q[state, action] += (W * G - c * Q[state, action]) / C[state, action]  # (5)
            policy[state] = Q[state].argmax()  # (6)
            W = W / b if action == policy[state] else 0.0  # (7)
            if W == 0.0 and config.weighted:
                break  # all earlier steps have weight zero

        rewards = [step[2] for step in steps]
        run.log({"train/behavior_return": sum(rewards), "charts/episode_length": len(rewards)})
        if model is not None and run.every(4 * run.log_every):
            run.log({"train/exact_return": tabular.exact_return(policy, model, limit)})

    V = Q.max(axis=1)
    np.savez(run.run_dir / "tables.npz", V=V, Q=Q, C=C, policy=policy)
    draw(run.run_dir, config, env, V, policy)
    facts = tabular.learned_facts(env, config.env_id, policy, V, config.seed)
    if games is not None:
        soft_13 = model._replace(start=np.eye(num_states)[SOFT_13])
        facts |= compare(run.run_dir, config, games, tabular.exact_return(HIT_BELOW_20, soft_13))
    return run.finish(lambda state: policy[state], facts)


def random_games(env: Any, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """ρ and G, [runs, games], of random games from `SOFT_13`, for "stick on 20 or more"."""
    rng = np.random.default_rng([config.seed, 2])
    ratios, returns = np.ones((2, config.num_runs, config.run_episodes))
    env.reset(seed=config.seed)
    for game in np.ndindex(ratios.shape):
        env.reset()
        env.unwrapped.player, env.unwrapped.dealer[0] = [1, 2], 2
        state, terminated = SOFT_13, False
        while not terminated:
            action = int(rng.random() * 2)
            ratios[game] *= (action == HIT_BELOW_20[state]) / 0.5  # (2)
            state, reward, terminated, _, _ = env.step(action)
        returns[game] = reward  # the only reward of a game is its last
    return ratios, returns


def estimates(ratios: np.ndarray, returns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(3): ordinary and weighted estimates after each game, [..., games]."""
    total, weights = np.cumsum(ratios * returns, axis=-1), np.cumsum(ratios, axis=-1)
    numbers = np.arange(1, ratios.shape[-1] + 1)
    return total / numbers, total / np.where(weights > 0.0, weights, 1.0)  # (3)


def compare(run_dir: Path, config: Config, sample: Any, exact: float) -> dict[str, float]:
    """Draws `importance_sampling.png`; returns mean squared errors after ten games."""
    ratios, returns = sample  # of `random_games`
    games = np.arange(1, config.run_episodes + 1)
    both = dict(zip(("ordinary", "weighted"), estimates(ratios, returns), strict=True))
    with plots.figure(run_dir / "importance_sampling.png", columns=2) as [left, right]:
        for name, estimate in both.items():  # [runs, games]
            left.loglog(games, ((estimate - exact) ** 2).mean(axis=0), label=name)
            mean, std = estimate.mean(axis=0), estimate.std(axis=0)
            (line,) = right.semilogx(games, mean, label=f"{name}, +- one standard deviation")
            right.fill_between(games, mean - std, mean + std, color=line.get_color(), alpha=0.2)
        theory = np.var(ratios * returns) / games
        left.loglog(games, theory, ":", color=plots.GREY, label="variance of ρG, over games")
        right.axhline(exact, color=plots.GREY, linestyle="--", label=f"exact value {exact:.4f}")
        left.set(xlabel="random games", ylabel=f"mean squared error over {config.num_runs} runs")
        left.legend(title="V(13 with usable ace, dealer shows 2)")
        right.set(xlabel="random games", ylabel="estimates of V")
        right.legend(title="means of the runs")
    ten = {name: estimate[:, :10][:, -1] for name, estimate in both.items()}  # [runs]
    return {f"{k}_mse_10_games": float(np.mean((v - exact) ** 2)) for k, v in ten.items()}


def load_policy(config: Config) -> Policy:
    """The greedy policy of a finished or interrupted run, for `python -m common.play`."""
    _, num_states, _ = tabular.make_tabular_env(config.env_id, **env_kwargs(config))
    policy = np.zeros(num_states, np.int64)
    restore_latest(config.resume, policy=policy)
    return lambda state: policy[state]


def env_kwargs(config: Config) -> dict[str, Any]:
    """Arguments of the environment's constructor."""
    return tabular.toy_text_kwargs(config.env_id, config.map, config.slippery)


def draw(run_dir: Path, config: Config, env: Any, V: np.ndarray, policy: np.ndarray) -> None:
    """`learning_curve.png`: both policies' returns; `values.png`: V and the greedy policy."""
    kind = "weighted" if config.weighted else "ordinary"
    title = f"Off-policy Monte Carlo, {kind}: {config.env_id}"
    draw_values(run_dir / "values.png", env, config.env_id, V, policy, title)
    metrics = read_metrics(run_dir)
    with plots.figure(run_dir / "learning_curve.png") as [axes]:
        axes.plot(*plots.curve(metrics, "train/exact_return"), label="policy π, exact")
        axes.plot(*plots.curve(metrics, "train/behavior_return"), label="games of policy b, mean")
        if config.env_id in TARGETS and not config.map:
            axes.axhline(TARGETS[config.env_id], color=plots.GREY, ls="--", label="target")
        axes.set(xlabel="episodes", ylabel="episode return (sum of rewards)", title=title)
        axes.legend()


@command
def main() -> None:
    """Learns, evaluates, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report(result, config, TARGETS, env_kwargs(config), judged_by="exact_return")


if __name__ == "__main__":
    main()
