r"""Twin delayed DDPG (TD3): two critics, a slower actor and a smoothed target.

Book: chapter 12, Learning DDPG, TD3, and SAC, "Twin delayed DDPG"

Idea
----
DDPG's actor climbs to wherever its critic is too high, and the target then repeats the error. TD3
changes three things. Two critics are trained, and the smaller of their values makes the target
(clipped double Q-learning). Actor and targets move only at every d-th update, when the critics
have had time to settle (delayed policy updates). And the target's action is blurred by noise, so
that a narrow peak of Q counts for no more than its neighbourhood (target policy smoothing).

Equations
---------
    a = clip(μ_φ(s) + σ n, -1, 1), n ~ N(0, 1) or Ornstein-Uhlenbeck as in `ddpg.py`       (1)
    a' = clip(μ_φ'(s') + clip(σ' ε, -c, c), -1, 1), ε ~ N(0, 1)                            (2)
    y = r + γ (1 - terminated) min_i Q_θi'(s', a'), i = 1, 2                               (3)
    L(θ) = sum over i of the mean over the batch of (y - Q_θi(s, a))²                      (4)
    L(φ) = -mean over the batch of Q_θ1(s, μ_φ(s)), at every d-th update                   (5)
    θ' <- (1 - τ) θ' + τ θ,  φ' <- (1 - τ) φ' + τ φ, at every d-th update                  (6)

Actions are counted in the environment's bounds: -1 is the lower, 1 the upper one. What is new:
`python -m common.diff td3 ddpg`.

Differs from the book
---------------------
1. As `ddpg.py` does: two kinds of noise, random actions at first, updates in blocks, and a time
   limit does not stop the bootstrap.
2. Both critics are one network with two outputs, which share nothing but the input (images: and
   the convolutions).
3. d updates of the critics and the one of actor and targets that follows are one round, which is
   the book's order; what `--gradient-steps` leaves over waits for the next training.

How to run
----------
    python chapter11_policy_gradient/td3.py
    python chapter11_policy_gradient/td3.py --env-id MountainCarContinuous-v0 \
        --total-timesteps 30_000 --noise ou --noise-std 0.5 --noise-dt 0.1 --gamma 0.99 \
        --hidden-sizes 64 64 --batch-size 128 --train-frequency 32 --gradient-steps 32
    python chapter11_policy_gradient/td3.py --env-id HalfCheetah-v5 --total-timesteps 60_000 \
        --learning-starts 5_000 --gamma 0.99

Expected
--------
Measured: -143.8 mean return (median of seeds 0, 1, 2), 31 s on two CPU cores

Pendulum-v1, 10,000 steps, 100 greedy episodes: -143.8, -151.6, -139.9 for seeds 0, 1, 2. Random
play earns -1230.
MountainCarContinuous-v0 by the second command, 30,000 steps: 92.1, 22.3, 94.3 for seeds 0, 1, 2, in
19 to 25 s on busy cores; on another machine 92.4, 92.5, 93.3. Independent noise does not get the
car out of the valley; this process, which pushes for a while in one direction, alone does so in
three episodes of four.
HalfCheetah-v5 by the third command, 60,000 steps: 1213.4, 3248.1, 2274.4 for seeds 0, 1, 2, in 4 to
9 minutes on busy cores; on another machine 3670.9, 2565.8, 2839.7. There Stable-Baselines3 with the
same flags came to 4122.0, 3548.2, 4409.9. At 60,000 steps returns are still climbing steeply.

Paper
-----
Fujimoto, van Hoof and Meger, "Addressing function approximation error in actor-critic methods",
ICML 2018.
"""

from collections.abc import Callable
from dataclasses import dataclass

from common.acting import forward
from common.actions import require_bounded_box, rescale_action
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.compiled import compiled, mean_over, use_threads_for
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

TARGETS = {
    "Pendulum-v1": -200.0,
    "MountainCarContinuous-v0": 90.0,
}  # mean return over 100 episodes that counts as solved


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
    gradient_steps: int = 4  # gradient steps of the critics per training
    noise: str = "gaussian"  # exploration noise n: gaussian, or ou for Ornstein-Uhlenbeck
    noise_std: float = 0.1  # σ, scale of the noise; 1 is half of the range between the bounds
    noise_theta: float = 0.15  # θ_n of ou, how strongly it is pulled back to 0
    noise_dt: float = 0.01  # dt of ou, time that passes in a step
    # NEW: how much later the actor moves, and how far the target's action is blurred
    policy_delay: int = 2  # d, updates of the critics before each one of actor and targets
    smoothing_std: float = 0.2  # σ', scale of the noise on the target's action
    smoothing_clip: float = 0.5  # c, largest noise on the target's action


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
    """Q_θ1 and Q_θ2: observations [B, ...] and actions [B, A] -> two tensors of values, [B]."""
    inputs, features = body(observation_space, ())
    action = keras.Input((action_size,))
    features = keras.layers.Concatenate()([features, action])
    # NEW: two of them
    values = [keras.layers.Dense(1)(mlp(features, hidden_sizes)) for _ in range(2)]  # [B, 1]
    return keras.Model([inputs, action], [keras.ops.squeeze(value, axis=1) for value in values])


def explore(action: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """(1): the actor's action and noise, [N, A] -> [N, A]."""
    return np.clip(action + noise, -1.0, 1.0)


def build_train_round(
    actor: keras.Model,
    critic: keras.Model,
    target_actor: keras.Model,
    target_critic: keras.Model,
    actor_optimizer: keras.optimizers.Optimizer,
    critic_optimizer: keras.optimizers.Optimizer,
    config: Config,
) -> Callable[[Batch, tf.Tensor], dict[str, tf.Tensor]]:
    """One round: d gradient steps of the critics, a batch each, and one of the actor."""
    actor_variables, critic_variables = actor.trainable_variables, critic.trainable_variables
    actor_optimizer.build(actor_variables)
    critic_optimizer.build(critic_variables)

    def update_critics(batch: Batch, noise: tf.Tensor) -> dict[str, tf.Tensor]:
        # NEW: the target's action is blurred by noise, [B, A], drawn from N(0, 1)
        blur = config.smoothing_std * noise  # [B, A]
        blur = tf.clip_by_value(blur, -config.smoothing_clip, config.smoothing_clip)
        next_action = tf.clip_by_value(target_actor(batch.next_state) + blur, -1.0, 1.0)  # (2)
        # NEW: the smaller of two values
        next_q = tf.minimum(*target_critic([batch.next_state, next_action]))  # [B]
        td_target = batch.reward + config.gamma * (1.0 - batch.terminated) * next_q  # [B] (3)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in critic_variables])
            q_values = critic([batch.state, batch.action])  # NEW: two of [B]
            value_loss = sum(tf.reduce_mean((td_target - q) ** 2) for q in q_values)  # (4)
        gradients = tape.gradient(value_loss, [variable.value for variable in critic_variables])
        critic_optimizer.apply(gradients, critic_variables)
        return {"train/value_loss": value_loss, "train/q_value": tf.reduce_mean(q_values)}

    def train_round(batches: Batch, noise: tf.Tensor) -> dict[str, tf.Tensor]:
        # NEW: d updates of the critics, one on each of [d, B, ...], come before the actor's
        metrics = mean_over(lambda one: update_critics(*one), (batches, noise), unroll=4)
        state = batches.state[-1]  # [B, ...]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in actor_variables])
            q_value, _ = critic([state, actor(state)])  # [B]
            policy_loss = -tf.reduce_mean(q_value)  # (5)
        gradients = tape.gradient(policy_loss, [variable.value for variable in actor_variables])
        actor_optimizer.apply(gradients, actor_variables)

        soft_update(critic, target_critic, config.polyak)  # (6)
        soft_update(actor, target_actor, config.polyak)  # (6)
        return {"train/policy_loss": policy_loss, **metrics}

    return train_round


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
    how = use_threads_for(images, config.hidden_sizes)  # measured, see benchmarks/README.md
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
    train_round = build_train_round(*networks, actor_optimizer, critic_optimizer, config)
    run.track(actor=actor, critic=critic, target_actor=target_actor, target_critic=target_critic)
    run.track(actor_optimizer=actor_optimizer, critic_optimizer=critic_optimizer)
    due = np.zeros(1, np.int64)  # NEW: updates that wait (an array, which a checkpoint can fill)
    run.track(replay=replay, rng=rng, noise=noise, due=due)

    mean_action = forward(actor)  # μ_φ for acting
    train_rounds = compiled(train_round, loop=True, refreshes=mean_action, **how)

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
            # NEW: in rounds of d updates, with noise for (2)
            rounds, due[0] = divmod(due[0] + config.gradient_steps, config.policy_delay)
            if rounds:
                shape = rounds, config.policy_delay, config.batch_size
                batches = replay.sample(*shape)  # [rounds, d, B, ...]
                noises = rng.standard_normal((*shape, *space.shape), np.float32)
                run.log(train_rounds(batches, noises))
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
