r"""Dueling DQN: one stream learns what a state is worth, the other what each action adds.

Book: chapter 9, Deep Q Network and Its Variants, "The dueling DQN"

Idea
----
In many states it matters little what one does, yet DQN must learn the value of such a state once
for each action. The dueling network forks before its last hidden layer: one stream gives V(s), the
other the advantages A(s, a), and their sum is Q. Whatever action was taken, V learns from it. A
constant could move between the streams, so the mean advantage is taken away.

Equations
---------
    a = argmax_a Q_θ(s, a) with probability 1 - ε, else any action                        (1)
    y = r + γ (1 - terminated) max_a' Q_θ'(s', a')                                        (2)
    L(θ) = mean over the batch of (y - Q_θ(s, a))²                                        (3)
    θ' <- θ every C steps                                                                 (4)
    Q_θ(s, a) = V(s) + A(s, a) - 1/|A| Σ_a' A(s, a')                                      (5)

Only (5) is new, in the head of the network: `python -m common.diff dueling_dqn dqn`.

Differs from the book
---------------------
1. As `dqn.py` does: environments step together, gradient steps come in blocks, the learning rate
   falls to 0, a time limit does not stop the bootstrap, `--huber-kappa` tames large errors in (3).
2. The two streams share the units of the last hidden layer, half each, so that the network is as
   large as DQN's. The paper gives each stream as many as DQN has. It also scales the gradient that
   comes out of the streams by 1/√2 and limits its length, which is left out here.
3. Q_θ' is asked about all next states of a block at once: the same numbers, in less time.

How to run
----------
    python chapter09_dqn/dueling_dqn.py
    python chapter09_dqn/dueling_dqn.py --env-id LunarLander-v3 --total-timesteps 150_000 \
        --hidden-sizes 256 256 --learning-rate 6.3e-4 --huber-kappa 1 --buffer-size 150_000 \
        --train-frequency 64 --gradient-steps 32 --target-frequency 128 --end-epsilon 0.1 \
        --exploration-fraction 0.12
    python chapter09_dqn/dueling_dqn.py --env-id Acrobot-v1 --total-timesteps 100_000 \
        --hidden-sizes 256 256 --learning-rate 6.3e-4 --buffer-size 50_000 --batch-size 128 \
        --train-frequency 64 --gradient-steps 16 --target-frequency 256 --end-epsilon 0.1 \
        --exploration-fraction 0.12
    python chapter09_dqn/dueling_dqn.py --env-id ALE/Pong-v5 --total-timesteps 250_000 \
        --buffer-size 1_000_000 --learning-starts 10_000 --learning-rate 2e-4 --no-anneal \
        --batch-size 32 --train-frequency 8 --gradient-steps 4 --target-frequency 1_000 \
        --eval-episodes 20

Expected
--------
Measured: 500.0 mean return (seeds 0, 1, 2: 500.0 each), 17 s on two CPU cores

CartPole-v1, 75,000 steps, 100 greedy episodes. Random play earns 22.7.
LunarLander-v3 and Acrobot-v1 by the next commands, seeds 0, 1, 2: 95.6, 196.2, 196.6 and -78.6,
-80.1, -79.4. Pong's command was not run to its end.

Paper
-----
Wang et al., "Dueling network architectures for deep reinforcement learning", ICML 2016.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.acting import forward
from common.actions import require_discrete
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.compiled import compiled, in_large_batches, mean_over, use_threads
from common.config import RunConfig, check_replay_config
from common.environments import atari_kwargs, is_image, make_envs, successor
from common.evaluation import report
from common.networks import copy_weights, trunk
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


def build_q_network(
    observation_space: gym.Space, num_actions: int, hidden_sizes: tuple[int, ...]
) -> keras.Model:
    """Q_θ: observations [B, ...] -> one value per action [B, A]."""
    # NEW: two streams that share the units of the last hidden layer.
    inputs, features, units = trunk(observation_space, hidden_sizes)
    value_features = keras.layers.Dense(-(-units // 2), "relu")(features)
    advantage_features = keras.layers.Dense(-(-units // 2), "relu")(features)
    value = keras.layers.Dense(1)(value_features)  # V(s), [B, 1]
    advantage = keras.layers.Dense(num_actions)(advantage_features)  # A(s, a), [B, A]
    mean_advantage = keras.ops.mean(advantage, axis=1, keepdims=True)  # [B, 1]
    return keras.Model(inputs, value + advantage - mean_advantage)  # (5)


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


def build_train_steps(
    q_network: keras.Model,
    target_network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    gamma: float,
    huber_kappa: float = 0.0,
) -> Callable[[Batch], dict[str, tf.Tensor]]:
    """K gradient steps, one on each batch of a block; returns metrics."""
    variables = q_network.trainable_variables

    def train_step(batch: Batch, target_values: tf.Tensor) -> dict[str, tf.Tensor]:
        next_q = tf.reduce_max(target_values, axis=1)  # [B]
        td_target = batch.reward + gamma * (1.0 - batch.terminated) * next_q  # [B] (2)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            q_value = tf.gather(q_network(batch.state), batch.action, batch_dims=1)  # [B]
            td_error = td_target - q_value  # [B]
            loss = tf.reduce_mean(huber(td_error, huber_kappa))  # (3)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        return {
            "train/loss": loss,
            "train/q_value": tf.reduce_mean(q_value),
            "train/learning_rate": optimizer.learning_rate,
        }

    # θ' rests during a block: it is asked about all next states before the first step, for speed.
    # Two steps per round of the loop were measured to be faster here, see benchmarks/README.md.
    def train_steps(batches: Batch) -> dict[str, tf.Tensor]:
        target_values = in_large_batches(target_network, batches.next_state)  # [K, B, A]
        return mean_over(lambda one: train_step(*one), (batches, target_values), unroll=2)

    return train_steps


def greedy_policy(q_values: Callable[[np.ndarray], np.ndarray]) -> Policy:
    """π(s) = argmax_a Q_θ(s, a)."""
    return lambda state: q_values(state).argmax(axis=1)


def train(config: Config) -> Result:
    """Trains an agent; see `Config` for everything that can be set."""
    envs = make_envs(config.env_id, config.num_envs, **env_kwargs(config))
    num_actions = require_discrete(envs.single_action_space, config.env_id, "ppo_clip.py")
    check_replay_config(config, forks=True)  # NEW
    replay = make_replay(envs, config.buffer_size, seed=config.seed)
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
    train_steps = build_train_steps(
        q_network, target_network, optimizer, config.gamma, config.huber_kappa
    )
    train_steps = compiled(train_steps, xla=not images, refreshes=q_values)
    epsilon = linear_schedule(
        config.start_epsilon,
        config.end_epsilon,
        config.exploration_fraction * config.total_timesteps,
    )

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
            batches = replay.sample(config.gradient_steps, config.batch_size)  # [K, B, ...]
            run.log(train_steps(batches))
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
