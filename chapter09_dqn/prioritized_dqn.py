r"""DQN with prioritized replay: transitions that surprise are drawn more often.

Book: chapter 9, Deep Q Network and Its Variants, "DQN with prioritized experience replay"

Idea
----
Most stored transitions teach little: the network predicts them well. Here a transition is drawn
the more often the larger its TD error |δ| was when it was last used, by its size (proportional) or
by its rank. That shifts the distribution over which the loss is a mean, so each draw is weighted
by the inverse of its probability; β grows to 1 because the shift harms most near the end.

Equations
---------
    a = argmax_a Q_θ(s, a) with probability 1 - ε, else any action                        (1)
    y = r + γ (1 - terminated) max_a' Q_θ'(s', a')                                        (2)
    L(θ) = mean over the batch of w_i (y - Q_θ(s, a))²                                    (3)
    θ' <- θ every C steps                                                                 (4)
    p_i = |δ_i| + 1e-6 (proportional) or 1 / rank of |δ_i| (rank)                         (5)
    P(i) = p_i^α / Σ_k p_k^α                                                              (6)
    w_i = (N P(i))^-β / max_j w_j, j over the batch                                       (7)

New transitions get the largest |δ| seen so far, at least 1. (5) to (7) are in
`common/prioritized.py`, over a sum tree; here stand the weight in (3) and the errors that go back
as priorities: `python -m common.diff prioritized_dqn dqn`.

Differs from the book
---------------------
1. As `dqn.py` does: environments step together, gradient steps come in blocks, the learning rate
   falls to 0, a time limit does not stop the bootstrap, `--huber-kappa` tames large errors in (3).
2. All batches of a block are drawn before its first gradient step, so priorities are as old as the
   block. `--gradient-steps 1` draws anew for each step, as the paper does.
3. The maximum in (7) is the batch's, not that of all transitions, which would have to be searched.
4. Ranks are sorted anew when a quarter of them is out of date; a new one is found by bisection
   among the old ones meanwhile.

How to run
----------
    python chapter09_dqn/prioritized_dqn.py
    python chapter09_dqn/prioritized_dqn.py --prioritization rank --prioritization-exponent 0.7
    python chapter09_dqn/prioritized_dqn.py --env-id LunarLander-v3 --total-timesteps 150_000 \
        --hidden-sizes 256 256 --learning-rate 6.3e-4 --huber-kappa 1 --buffer-size 150_000 \
        --train-frequency 64 --gradient-steps 32 --target-frequency 128 --end-epsilon 0.1 \
        --exploration-fraction 0.12
    python chapter09_dqn/prioritized_dqn.py --env-id Acrobot-v1 --total-timesteps 100_000 \
        --hidden-sizes 256 256 --learning-rate 6.3e-4 --buffer-size 50_000 --batch-size 128 \
        --train-frequency 64 --gradient-steps 16 --target-frequency 256 --end-epsilon 0.1 \
        --exploration-fraction 0.12
    python chapter09_dqn/prioritized_dqn.py --env-id ALE/Pong-v5 --total-timesteps 250_000 \
        --buffer-size 1_000_000 --learning-starts 10_000 --learning-rate 1e-4 --no-anneal \
        --batch-size 32 --train-frequency 8 --gradient-steps 4 --target-frequency 1_000 \
        --eval-episodes 20

Expected
--------
Measured: 500.0 mean return (seeds 0, 1, 2: 500.0 each), 19 s on two CPU cores

CartPole-v1, 75,000 steps, 100 greedy episodes. Random play earns 22.7. By rank (the second command)
500.0, 350.9 and 500.0. LunarLander-v3 and Acrobot-v1 by the next commands, seeds 0, 1, 2: 205.4,
231.6, 225.8 and -78.4, -75.8, -78.8. Pong's command, with half of `dqn.py`'s learning rate because
large errors are drawn more often, was not run to its end.

Paper
-----
Schaul, Quan, Antonoglou and Silver, "Prioritized experience replay", ICLR 2016.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.acting import forward
from common.actions import require_discrete
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.compiled import compiled, use_threads
from common.config import RunConfig, check_replay_config
from common.environments import atari_kwargs, is_image, make_envs, successor
from common.evaluation import report
from common.networks import body, copy_weights
from common.prioritized import PrioritizedReplay
from common.replay import Batch, make_replay
from common.returns import TrueReturns
from common.run import Policy, Result, Run
from common.schedules import linear_schedule

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

TARGETS = {"CartPole-v1": 475.0}  # mean return over 100 episodes that counts as solved


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for CartPole-v1."""

    env_id: str = "CartPole-v1"  # Gymnasium id, ALE/Game-v5 or module:Id-v0; discrete actions
    seed: int = 0  # of everything random
    total_timesteps: int = 75_000  # environment steps, all environments together
    num_envs: int = 8  # environments that step side by side
    frame_size: int = 84  # pixels on each side of an Atari frame
    learning_rate: float = 2.3e-3  # α, step size of Adam at the start
    anneal: bool = True  # learning rate falls linearly to 0 over the run
    gamma: float = 0.99  # γ, discount factor
    huber_kappa: float = 0.0  # κ, errors beyond it count by their size; 0: all by their square
    hidden_sizes: tuple[int, ...] = (120, 84)  # units of the dense layers (images: Nature CNN)
    buffer_size: int = 100_000  # transitions in the replay buffer
    batch_size: int = 128  # B, transitions per gradient step
    learning_starts: int = 1_000  # steps before the first gradient step
    train_frequency: int = 256  # steps between trainings
    gradient_steps: int = 128  # gradient steps per training
    target_frequency: int = 512  # C, steps between copies θ' <- θ
    start_epsilon: float = 1.0  # ε at the first step
    end_epsilon: float = 0.04  # ε at the end of exploration
    exploration_fraction: float = 0.16  # part of the run over which ε falls
    # NEW: how much priorities count, and how much of it the weights take back
    prioritization: str = "proportional"  # priorities: proportional (to |δ|) or rank
    prioritization_exponent: float = 0.6  # α, 0 draws uniformly
    start_beta: float = 0.4  # β at the first step; it grows to 1 over the run


def build_q_network(
    observation_space: gym.Space, num_actions: int, hidden_sizes: tuple[int, ...]
) -> keras.Model:
    """Q_θ: observations [B, ...] -> one value per action [B, A]."""
    inputs, features = body(observation_space, hidden_sizes)
    return keras.Model(inputs, keras.layers.Dense(num_actions)(features))


def epsilon_greedy(q_values: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """(1): the greedy action, or any action with probability ε; [N, A] -> [N]."""
    num_envs, num_actions = q_values.shape
    greedy = q_values.argmax(axis=1)  # [N]
    random = rng.integers(0, num_actions, num_envs)  # [N]
    return np.where(rng.random(num_envs) < epsilon, random, greedy)


def huber(td_error: tf.Tensor, kappa: float) -> tf.Tensor:
    """error², and beyond |error| = κ the tangent of it, unless κ is 0; any shape."""
    size = tf.abs(td_error)
    tangent = kappa * (2.0 * size - kappa)
    return tf.where(size > kappa, tangent, td_error**2) if kappa > 0.0 else td_error**2


def build_train_step(
    q_network: keras.Model,
    target_network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    gamma: float,
    huber_kappa: float = 0.0,
) -> Callable[[Batch, tf.Tensor], tuple[dict[str, tf.Tensor], tf.Tensor]]:
    """One gradient step on a weighted batch; returns metrics and TD errors [B]."""
    variables = q_network.trainable_variables

    def train_step(batch: Batch, weight: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        next_q = tf.reduce_max(target_network(batch.next_state), axis=1)  # [B]
        td_target = batch.reward + gamma * (1.0 - batch.terminated) * next_q  # [B] (2)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            q_value = tf.gather(q_network(batch.state), batch.action, batch_dims=1)  # [B]
            td_error = td_target - q_value  # [B]
            loss = tf.reduce_mean(weight * huber(td_error, huber_kappa))  # (3) NEW: weighted
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        metrics = {
            "train/loss": loss,
            "train/q_value": tf.reduce_mean(q_value),
            "train/learning_rate": optimizer.learning_rate,
        }
        return metrics, td_error  # NEW: the errors become priorities

    return train_step


def greedy_policy(q_values: Callable[[np.ndarray], np.ndarray]) -> Policy:
    """π(s) = argmax_a Q_θ(s, a)."""
    return lambda state: q_values(state).argmax(axis=1)


def train(config: Config) -> Result:
    """Trains an agent; see `Config` for everything that can be set."""
    envs = make_envs(config.env_id, config.num_envs, **env_kwargs(config))
    num_actions = require_discrete(envs.single_action_space, config.env_id, "ppo_clip.py")
    check_replay_config(config)
    replay = PrioritizedReplay(  # NEW
        make_replay(envs, config.buffer_size, seed=config.seed),
        config.prioritization,
        config.prioritization_exponent,
        seed=config.seed,
    )
    run = Run(config, __file__, envs)
    if envs.is_atari and config.learning_rate == Config.learning_rate:
        print("note: default flags are for CartPole; the docstring has Atari's", file=sys.stderr)
    images = is_image(envs.single_observation_space)
    use_threads(2, 2) if images else use_threads(2, 1)  # measured, see benchmarks/README.md
    keras.utils.set_random_seed(config.seed)

    q_network = build_q_network(envs.single_observation_space, num_actions, config.hidden_sizes)
    target_network = keras.models.clone_model(q_network)
    copy_weights(q_network, target_network)
    trainings, skipped = (
        steps // config.train_frequency
        for steps in (config.total_timesteps, config.learning_starts)
    )
    updates = max((trainings - skipped) * config.gradient_steps, 1)
    learning_rate = keras.optimizers.schedules.PolynomialDecay(
        config.learning_rate, updates, 0.0 if config.anneal else config.learning_rate
    )
    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build(q_network.trainable_variables)
    rng = np.random.default_rng([config.seed, 1])
    run.track(q_network=q_network, target_network=target_network, optimizer=optimizer)
    run.track(replay=replay, rng=rng)

    q_values = forward(q_network)  # Q_θ for acting
    train_step = build_train_step(
        q_network, target_network, optimizer, config.gamma, config.huber_kappa
    )
    # Two steps per round of the loop were measured to be faster here, see benchmarks/README.md.
    train_steps = compiled(train_step, loop=True, unroll=2, xla=not images, refreshes=q_values)
    epsilon = linear_schedule(
        config.start_epsilon,
        config.end_epsilon,
        config.exploration_fraction * config.total_timesteps,
    )

    beta = linear_schedule(config.start_beta, 1.0, config.total_timesteps)  # NEW
    true_returns = TrueReturns(config.num_envs, config.gamma)  # beside train/q_value
    state, _ = envs.reset(seed=run.reset_seed)
    for step in run.steps(config.total_timesteps, config.num_envs):
        action = epsilon_greedy(q_values(state), epsilon(step), rng)  # (1)
        next_state, reward, terminated, truncated, info = envs.step(action)
        clipped = np.sign(reward) if envs.is_atari else reward  # Atari scores differ by game
        replay.add(state, action, clipped, successor(next_state, info), terminated, truncated)
        true_return, states = true_returns.add(clipped, terminated, truncated)
        run.log({"train/true_return": true_return}, weight=states)
        state = next_state

        if step >= config.learning_starts and run.every(config.train_frequency):
            # NEW: drawn by priority (6) and weighted (7); their errors are the next priorities (5)
            batches, weight, index = replay.sample(
                config.gradient_steps, config.batch_size, beta=beta(step)
            )  # [K, B, ...]
            metrics, td_error = train_steps(batches, weight)
            replay.update(index, td_error)  # [K, B]
            run.log(metrics)
            run.log({"train/beta": beta(step)})
            run.log({"train/epsilon": epsilon(step)})
        if run.every(config.target_frequency):
            copy_weights(q_network, target_network)  # (4)
    return run.finish(greedy_policy(q_values))


def env_kwargs(config: Config) -> dict[str, Any]:
    """What the environment's constructor gets."""
    return atari_kwargs(config.env_id, config.frame_size)


def load_policy(config: Config) -> Policy:
    """The greedy policy of a finished or interrupted run, for `python -m common.play`."""
    envs = make_envs(config.env_id, 1, **env_kwargs(config))
    num_actions = require_discrete(envs.single_action_space, config.env_id, "ppo_clip.py")
    q_network = build_q_network(envs.single_observation_space, num_actions, config.hidden_sizes)
    restore_latest(config.resume, q_network=q_network)
    return greedy_policy(forward(q_network))


@command
def main() -> None:
    """Trains, evaluates, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report(result, config, TARGETS, env_kwargs(config))


if __name__ == "__main__":
    main()
