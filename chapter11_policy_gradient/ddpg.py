r"""Deep deterministic policy gradient (DDPG): Q-learning for continuous actions.

Book: chapter 12, Learning DDPG, TD3, and SAC, "Deep deterministic policy gradient"

Idea
----
DQN's target takes the largest Q over all actions, which nobody can compute when actions are real
numbers. DDPG trains a second network for it: the actor μ_φ gives the action that the critic Q_θ
likes best, and learns by walking uphill on Q_θ. The policy is deterministic, so noise is added to
explore. As in DQN there are a replay buffer and target networks; these follow a little at each
update instead of being copied now and then.

Equations
---------
    a = clip(μ_φ(s) + σ n, -1, 1), n ~ N(0, 1)                                             (1)
        or, with a memory, n <- n - θ_n n dt + √dt ε, ε ~ N(0, 1) (Ornstein-Uhlenbeck)
    y = r + γ (1 - terminated) Q_θ'(s', μ_φ'(s'))                                          (2)
    L(θ) = mean over the batch of (y - Q_θ(s, a))²                                         (3)
    L(φ) = -mean over the batch of Q_θ(s, μ_φ(s))                                          (4)
    θ' <- (1 - τ) θ' + τ θ,  φ' <- (1 - τ) φ' + τ φ                                        (5)

Actions are counted in the environment's bounds: -1 is the lower, 1 the upper one.

Differs from the book
---------------------
1. Gaussian noise by default, as most do today; `--noise ou` is the process that the book names.
   Its state is kept for each environment and begins anew with each episode.
2. Before learning starts, actions are drawn evenly from the whole range.
3. `--gradient-steps` updates follow each other after every `--train-frequency` steps: as many
   updates as steps, but several in one call.
4. A time limit (`truncated`) does not end the MDP: only `terminated` stops the bootstrap in (2).

How to run
----------
    python chapter11_policy_gradient/ddpg.py

Expected
--------
Measured: -145.3 mean return (median of seeds 0, 1, 2), 29 s on two CPU cores

Pendulum-v1, 10,000 steps, 100 greedy episodes: -139.9, -158.6, -145.3 for seeds 0, 1, 2. Random
play earns -1230.

Paper
-----
Lillicrap et al., "Continuous control with deep reinforcement learning", ICLR 2016.
"""

from collections.abc import Callable
from dataclasses import dataclass

from common.acting import forward
from common.actions import require_bounded_box, rescale_action
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.compiled import compiled, use_threads
from common.config import RunConfig, check_replay_config
from common.environments import is_image, make_envs, successor
from common.evaluation import report
from common.networks import body, copy_weights, mlp, soft_update
from common.noise import Noise
from common.optimizers import FusedAdam
from common.replay import Batch, make_replay
from common.run import Policy, Result, Run

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

TARGETS = {"Pendulum-v1": -200.0}  # mean return over 100 episodes that counts as solved


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for Pendulum-v1."""

    env_id: str = "Pendulum-v1"  # Gymnasium id or module:Id-v0; Box actions with finite bounds
    seed: int = 0  # of everything random
    total_timesteps: int = 10_000  # environment steps, all environments together
    num_envs: int = 1  # environments that step side by side
    learning_rate: float = 1e-3  # step size of Adam, for actor and critic
    gamma: float = 0.98  # γ, discount factor
    polyak: float = 0.005  # τ, share of the new weights in each step of the target networks
    hidden_sizes: tuple[int, ...] = (256, 256)  # units of the dense layers (images: Nature CNN too)
    buffer_size: int = 1_000_000  # transitions in the replay buffer
    batch_size: int = 256  # B, transitions per gradient step
    learning_starts: int = 1_000  # steps with random actions before the first gradient step
    train_frequency: int = 4  # steps between trainings
    gradient_steps: int = 4  # gradient steps per training
    noise: str = "gaussian"  # exploration noise n: gaussian, or ou for Ornstein-Uhlenbeck
    noise_std: float = 0.1  # σ, scale of the noise; 1 is half of the range between the bounds
    noise_theta: float = 0.15  # θ_n of ou, how strongly it is pulled back to 0
    noise_dt: float = 0.01  # dt of ou, time that passes in a step


def build_actor(
    observation_space: gym.Space, action_size: int, hidden_sizes: tuple[int, ...]
) -> keras.Model:
    """μ_φ: observations [B, ...] -> actions in [-1, 1], [B, A]."""
    inputs, features = body(observation_space, hidden_sizes)
    near_zero = keras.initializers.RandomUniform(-3e-3, 3e-3)  # else tanh may begin at a bound
    action = keras.layers.Dense(action_size, "tanh", kernel_initializer=near_zero)(features)
    return keras.Model(inputs, action)


def build_critic(
    observation_space: gym.Space, action_size: int, hidden_sizes: tuple[int, ...]
) -> keras.Model:
    """Q_θ: observations [B, ...] and actions [B, A] -> values [B]."""
    inputs, features = body(observation_space, ())
    action = keras.Input((action_size,))
    features = keras.layers.Concatenate()([features, action])
    value = keras.layers.Dense(1)(mlp(features, hidden_sizes))  # [B, 1]
    return keras.Model([inputs, action], keras.ops.squeeze(value, axis=1))


def explore(action: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """(1): the actor's action and noise, [N, A] -> [N, A]."""
    return np.clip(action + noise, -1.0, 1.0)


def build_train_step(
    actor: keras.Model,
    critic: keras.Model,
    target_actor: keras.Model,
    target_critic: keras.Model,
    actor_optimizer: keras.optimizers.Optimizer,
    critic_optimizer: keras.optimizers.Optimizer,
    config: Config,
) -> Callable[[Batch], dict[str, tf.Tensor]]:
    """One gradient step of critic and actor on a batch; returns metrics."""
    actor_variables, critic_variables = actor.trainable_variables, critic.trainable_variables
    actor_optimizer.build(actor_variables)
    critic_optimizer.build(critic_variables)

    def train_step(batch: Batch) -> dict[str, tf.Tensor]:
        next_action = target_actor(batch.next_state)  # [B, A]
        next_q = target_critic([batch.next_state, next_action])  # [B]
        td_target = batch.reward + config.gamma * (1.0 - batch.terminated) * next_q  # [B] (2)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in critic_variables])
            q_value = critic([batch.state, batch.action])  # [B]
            value_loss = tf.reduce_mean((td_target - q_value) ** 2)  # (3)
        gradients = tape.gradient(value_loss, [variable.value for variable in critic_variables])
        critic_optimizer.apply(gradients, critic_variables)

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in actor_variables])
            policy_loss = -tf.reduce_mean(critic([batch.state, actor(batch.state)]))  # (4)
        gradients = tape.gradient(policy_loss, [variable.value for variable in actor_variables])
        actor_optimizer.apply(gradients, actor_variables)

        soft_update(critic, target_critic, config.polyak)  # (5)
        soft_update(actor, target_actor, config.polyak)  # (5)
        return {
            "train/policy_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/q_value": tf.reduce_mean(q_value),
        }

    return train_step


def greedy_policy(actor: Callable[[np.ndarray], np.ndarray], space: gym.spaces.Box) -> Policy:
    """π(s) = μ_φ(s), in the environment's units."""
    return lambda state: rescale_action(actor(state), space)


def train(config: Config) -> Result:
    """Trains an agent; see `Config` for everything that can be set."""
    envs = make_envs(config.env_id, config.num_envs)
    space = require_bounded_box(envs.single_action_space, config.env_id, "ppo_clip.py")
    check_replay_config(config)
    noise = Noise(
        config.noise, config.num_envs, space.shape[0], config.noise_theta, config.noise_dt
    )
    replay = make_replay(envs, config.buffer_size, seed=config.seed)
    run = Run(config, __file__, envs)
    images = is_image(envs.single_observation_space)
    use_threads(2, 2) if images else use_threads(2, 1)  # measured, see benchmarks/README.md
    keras.utils.set_random_seed(config.seed)

    sizes = envs.single_observation_space, space.shape[0], config.hidden_sizes
    actor, target_actor = build_actor(*sizes), build_actor(*sizes)
    critic, target_critic = build_critic(*sizes), build_critic(*sizes)
    copy_weights(actor, target_actor)
    copy_weights(critic, target_critic)
    actor_optimizer = FusedAdam(config.learning_rate)
    critic_optimizer = FusedAdam(config.learning_rate)
    rng = np.random.default_rng([config.seed, 1])
    networks = actor, critic, target_actor, target_critic
    train_step = build_train_step(*networks, actor_optimizer, critic_optimizer, config)
    run.track(actor=actor, critic=critic, target_actor=target_actor, target_critic=target_critic)
    run.track(actor_optimizer=actor_optimizer, critic_optimizer=critic_optimizer)
    run.track(replay=replay, rng=rng, noise=noise)

    mean_action = forward(actor)  # μ_φ for acting
    train_steps = compiled(train_step, loop=True, xla=not images, refreshes=mean_action)

    state, _ = envs.reset(seed=run.reset_seed)
    for step in run.steps(config.total_timesteps, config.num_envs):
        if step < config.learning_starts:
            action = rng.uniform(-1.0, 1.0, (config.num_envs, *space.shape))
        else:
            action = explore(mean_action(state), config.noise_std * noise.sample(rng))  # (1)
        next_state, reward, terminated, truncated, info = envs.step(rescale_action(action, space))
        replay.add(state, action, reward, successor(next_state, info), terminated, truncated)
        noise.reset(terminated | truncated)
        state = next_state

        if step >= config.learning_starts and run.every(config.train_frequency):
            batches = replay.sample(config.gradient_steps, config.batch_size)  # [K, B, ...]
            run.log(train_steps(batches))
    return run.finish(greedy_policy(mean_action, space))


def load_policy(config: Config) -> Policy:
    """The greedy policy of a finished or interrupted run, for `python -m common.play`."""
    envs = make_envs(config.env_id, 1)
    space = require_bounded_box(envs.single_action_space, config.env_id, "ppo_clip.py")
    actor = build_actor(envs.single_observation_space, space.shape[0], config.hidden_sizes)
    restore_latest(config.resume, actor=actor)
    return greedy_policy(forward(actor), space)


@command
def main() -> None:
    """Trains, evaluates, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report(result, config, TARGETS)


if __name__ == "__main__":
    main()
