r"""Soft actor-critic (SAC): a stochastic policy that is paid for staying random.

Book: chapter 12, Learning DDPG, TD3, and SAC, "Soft actor-critic"

Idea
----
TD3's policy is deterministic and explores by noise from outside. SAC learns a distribution, and
its objective is reward plus temperature α times entropy: where several actions are as good, the
policy keeps all of them, and gives up only as much randomness as the reward is worth. What a state
is worth to such a policy, its soft value (2), serves for the critics' target and for the actor.
The temperature is learned, too: it falls while the policy is more random than asked for.

Equations
---------
    a = tanh(u), u = m_φ(s) + σ_φ(s) n, n ~ N(0, 1);                                       (1)
        log π(a|s) = Σ [log N(u; m, σ²) - log(1 - tanh² u) - log w], w: half of the range
    V(s; θ) = min_i Q_θi(s, a) - α log π(a|s), a ~ π_φ(.|s), i = 1, 2                      (2)
    y = r + γ (1 - terminated) V(s'; θ')                                                   (3)
    L(θ) = sum over i of the mean over the batch of (y - Q_θi(s, a))²                      (4)
    L(φ) = -mean over the batch of V(s; θ)                                                 (5)
    L(α) = -log α × mean over the batch of (log π(a|s) + H), H: the entropy asked for      (6)
    θ' <- (1 - τ) θ' + τ θ                                                                 (7)
    with --value-network, V_ψ'(s') takes the place of V(s'; θ') in (3):
    L(ψ) = mean over the batch of (V(s; θ) - V_ψ(s))²,  ψ' <- (1 - τ) ψ' + τ ψ             (8)

Actions are counted in the environment's bounds: -1 is the lower, 1 the upper one. Densities are
those of the environment's own actions, hence w. What is new: `python -m common.diff sac td3`.

Differs from the book
---------------------
1. As `td3.py` does: random actions at first, updates in blocks, a time limit does not stop the
   bootstrap, and both critics are one network with two outputs.
2. The authors' later version by default: the temperature is learned and the critics need no
   network for V. `--value-network --no-learn-temperature --temperature 0.2` is the book's.
3. (6) has log α where the paper has α, as the authors' code: the sign of the slope is the same.
4. log(1 - tanh² u) is computed as 2 (log 2 - u - softplus(-2u)), which is exact for large u.

How to run
----------
    python chapter11_policy_gradient/sac.py
    python chapter11_policy_gradient/sac.py --value-network --no-learn-temperature \
        --temperature 0.2
    python chapter11_policy_gradient/sac.py --env-id HalfCheetah-v5 --total-timesteps 60_000 \
        --learning-starts 5_000 --learning-rate 3e-4 --gamma 0.99

Expected
--------
Measured: -146.5 mean return (median of seeds 0, 1, 2), 44 s on two CPU cores

Pendulum-v1, 10,000 steps, 100 greedy episodes: -146.5, -150.8, -138.7 for seeds 0, 1, 2. The
book's version by the second command: -142.0, -151.0, -140.8. Random play earns -1230.
HalfCheetah-v5 by the third command, 60,000 steps: 3915.3, 4306.6, 3153.6 for seeds 0, 1, 2, in 7 to
9 minutes on one busy core. Stable-Baselines3 with the same flags: 3524.2, 4162.6, 4003.2.

Paper
-----
Haarnoja et al., "Soft actor-critic: off-policy maximum entropy deep reinforcement learning with a
stochastic actor", ICML 2018; "Soft actor-critic algorithms and applications", arXiv:1812.05905.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from common.acting import forward
from common.actions import require_bounded_box, rescale_action
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.compiled import compiled, use_threads
from common.config import RunConfig, check_replay_config
from common.environments import is_image, make_envs, successor
from common.evaluation import report
from common.networks import body, copy_weights, mlp, soft_update
from common.optimizers import FusedAdam
from common.replay import Batch, make_replay
from common.run import Policy, Result, Run

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

TARGETS = {"Pendulum-v1": -200.0}  # mean return over 100 episodes that counts as solved
LOG_STD_RANGE = -20.0, 2.0  # NEW: log σ outside is cut


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for Pendulum-v1."""

    env_id: str = "Pendulum-v1"  # Gymnasium id or module:Id-v0; Box actions with finite bounds
    seed: int = 0  # of everything random
    total_timesteps: int = 10_000  # environment steps, all environments together
    num_envs: int = 1  # environments that step side by side
    learning_rate: float = 1e-3  # step size of Adam, for all networks and α
    gamma: float = 0.98  # γ, discount factor
    polyak: float = 0.005  # τ, share of the new weights in each step of the target networks
    hidden_sizes: tuple[int, ...] = (256, 256)  # units of the dense layers (images: Nature CNN too)
    buffer_size: int = 1_000_000  # transitions in the replay buffer
    batch_size: int = 256  # B, transitions per gradient step
    learning_starts: int = 1_000  # steps with random actions before the first gradient step
    train_frequency: int = 4  # steps between trainings
    gradient_steps: int = 4  # gradient steps per training
    # NEW: how much the entropy counts
    temperature: float = 1.0  # α, weight of the entropy; if it is learned, at the start
    learn_temperature: bool = True  # α is learned, else it stays as it is
    target_entropy: float = -1.0  # H asked for, per component of actions with bounds -1 and 1
    value_network: bool = False  # learn V_ψ, too, and let it make the critics' target (the book's)


def build_actor(
    observation_space: gym.Space, action_size: int, hidden_sizes: tuple[int, ...]
) -> keras.Model:
    """m_φ and log σ_φ: observations [B, ...] -> [B, 2A]."""
    inputs, features = body(observation_space, hidden_sizes)
    return keras.Model(inputs, keras.layers.Dense(2 * action_size)(features))  # NEW: 2A, no tanh


def build_critic(
    observation_space: gym.Space, action_size: int, hidden_sizes: tuple[int, ...]
) -> keras.Model:
    """Q_θ1 and Q_θ2: observations [B, ...] and actions [B, A] -> two tensors of values, [B]."""
    inputs, features = body(observation_space, ())
    action = keras.Input((action_size,))
    features = keras.layers.Concatenate()([features, action])
    # Two of them, which share nothing but the input.
    values = [keras.layers.Dense(1)(mlp(features, hidden_sizes)) for _ in range(2)]  # [B, 1]
    return keras.Model([inputs, action], [keras.ops.squeeze(value, axis=1) for value in values])


def build_value_network(
    observation_space: gym.Space, hidden_sizes: tuple[int, ...]
) -> keras.Model:  # NEW
    """V_ψ: observations [B, ...] -> values [B]."""
    inputs, features = body(observation_space, hidden_sizes)
    return keras.Model(inputs, keras.ops.squeeze(keras.layers.Dense(1)(features), axis=1))


def explore(outputs: np.ndarray, rng: np.random.Generator) -> np.ndarray:  # NEW: not from outside
    """(1): the actor's outputs [N, 2A] -> actions [N, A]. In NumPy, which is faster for a few."""
    mean, log_std = np.split(outputs, 2, axis=1)
    std = np.exp(np.clip(log_std, *LOG_STD_RANGE))
    return np.tanh(mean + std * rng.standard_normal(mean.shape, np.float32))


def sample_action(
    outputs: tf.Tensor, noise: tf.Tensor, half_range: np.ndarray
) -> tuple[tf.Tensor, tf.Tensor]:  # NEW
    """(1): outputs [B, 2A] and noise [B, A] -> actions [B, A] and log π(a|s), [B]."""
    mean, log_std = tf.split(outputs, 2, axis=1)  # [B, A]
    log_std = tf.clip_by_value(log_std, *LOG_STD_RANGE)
    u = mean + tf.exp(log_std) * noise  # [B, A]
    log_density = -0.5 * noise**2 - log_std - 0.5 * np.log(2.0 * np.pi)  # of u, [B, A]
    log_slope = 2.0 * (np.log(2.0) - u - tf.nn.softplus(-2.0 * u)) + np.log(half_range)  # da/du
    return tf.tanh(u), tf.reduce_sum(log_density - log_slope, axis=1)


def build_train_step(
    actor: keras.Model,
    critic: keras.Model,
    value_network: keras.Model | None,
    target: keras.Model,
    log_temperature: keras.Variable,
    actor_optimizer: keras.optimizers.Optimizer,
    critic_optimizer: keras.optimizers.Optimizer,
    half_range: np.ndarray,
    config: Config,
) -> Callable[[Batch, tf.Tensor], dict[str, tf.Tensor]]:
    """One gradient step of critics, actor and temperature on a batch; returns metrics."""
    # NEW: log α and V_ψ; losses that share no weights can share an optimizer
    temperature_variables = [log_temperature] if config.learn_temperature else []
    value_variables = value_network.trainable_variables if value_network else []
    actor_variables = [*actor.trainable_variables, *temperature_variables]
    critic_variables = [*critic.trainable_variables, *value_variables]
    actor_optimizer.build(actor_variables)
    critic_optimizer.build(critic_variables)
    entropy_target = np.sum(config.target_entropy + np.log(half_range))  # H of all components

    def soft_value(
        critics: keras.Model, state: tf.Tensor, noise: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:  # NEW
        """V(s; θ) and log π(a|s) of the action drawn for it, both [B]."""
        action, log_prob = sample_action(actor(state), noise, half_range)  # (1)
        temperature = tf.stop_gradient(tf.exp(log_temperature.value))
        return tf.minimum(*critics([state, action])) - temperature * log_prob, log_prob  # (2)

    def train_step(batch: Batch, noise: tf.Tensor) -> dict[str, tf.Tensor]:
        # NEW: noise [2, B, A], drawn from N(0, 1), makes actions and not only blurs them
        if value_network:
            next_value = target(batch.next_state)  # [B]
            value_target, _ = soft_value(critic, batch.state, noise[0])  # [B]
        else:
            next_value, _ = soft_value(target, batch.next_state, noise[0])  # [B]
        td_target = batch.reward + config.gamma * (1.0 - batch.terminated) * next_value  # [B] (3)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in critic_variables])
            q_values = critic([batch.state, batch.action])  # two of [B]
            value_loss = sum(tf.reduce_mean((td_target - q) ** 2) for q in q_values)  # (4)
            if value_network:  # NEW
                value = value_network(batch.state)  # [B]
                value_loss += tf.reduce_mean((value_target - value) ** 2)  # (8)
        gradients = tape.gradient(value_loss, [variable.value for variable in critic_variables])
        critic_optimizer.apply(gradients, critic_variables)

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in actor_variables])
            value, log_prob = soft_value(critic, batch.state, noise[1])  # [B]
            policy_loss = loss = -tf.reduce_mean(value)  # (5)
            if config.learn_temperature:  # NEW
                excess = tf.stop_gradient(tf.reduce_mean(log_prob) + entropy_target)
                loss -= log_temperature.value * excess  # (6)
        gradients = tape.gradient(loss, [variable.value for variable in actor_variables])
        actor_optimizer.apply(gradients, actor_variables)

        soft_update(value_network or critic, target, config.polyak)  # (7), (8)
        return {
            "train/policy_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/q_value": tf.reduce_mean(q_values),
            "train/entropy": -tf.reduce_mean(log_prob),
            "train/temperature": tf.exp(log_temperature.value),
        }

    return train_step


def greedy_policy(outputs: Callable[[np.ndarray], np.ndarray], space: gym.spaces.Box) -> Policy:
    """π(s) = tanh(m_φ(s)), in the environment's units."""  # NEW: the middle of a distribution
    return lambda state: rescale_action(np.tanh(np.split(outputs(state), 2, axis=1)[0]), space)


def train(config: Config) -> Result:
    """Trains an agent; see `Config` for everything that can be set."""
    envs = make_envs(config.env_id, config.num_envs)
    space = require_bounded_box(envs.single_action_space, config.env_id, "ppo_clip.py")
    check_replay_config(config)
    replay = make_replay(envs, config.buffer_size, seed=config.seed)
    run = Run(config, __file__, envs)
    images = is_image(envs.single_observation_space)
    use_threads(2, 2) if images else use_threads(1, 2)  # measured, see benchmarks/README.md
    keras.utils.set_random_seed(config.seed)

    sizes = envs.single_observation_space, space.shape[0], config.hidden_sizes
    actor, critic = build_actor(*sizes), build_critic(*sizes)
    # NEW: no target actor; the target follows V_ψ, if there is one, else the critics
    value_network, target = None, build_critic(*sizes)
    if config.value_network:
        value_network, target = (build_value_network(sizes[0], sizes[2]) for _ in range(2))
        run.track(value_network=value_network)
    copy_weights(value_network or critic, target)
    log_temperature = keras.Variable(np.float32(np.log(config.temperature)))
    actor_optimizer = FusedAdam(config.learning_rate)
    critic_optimizer = FusedAdam(config.learning_rate)
    rng = np.random.default_rng([config.seed, 1])
    networks = actor, critic, value_network, target
    optimizers = actor_optimizer, critic_optimizer
    half_range = space.high / 2 - space.low / 2  # w, [A]
    train_step = build_train_step(*networks, log_temperature, *optimizers, half_range, config)
    run.track(actor=actor, critic=critic, target=target)
    run.track(actor_optimizer=actor_optimizer, critic_optimizer=critic_optimizer)
    run.track(replay=replay, rng=rng, temperature=SimpleNamespace(variables=[log_temperature]))

    outputs = forward(actor)  # m_φ and log σ_φ for acting
    train_steps = compiled(train_step, loop=True, xla=False, refreshes=outputs)

    state, _ = envs.reset(seed=run.reset_seed)
    for step in run.steps(config.total_timesteps, config.num_envs):
        if step < config.learning_starts:
            action = rng.uniform(-1.0, 1.0, (config.num_envs, *space.shape))
        else:
            action = explore(outputs(state), rng)  # (1)
        next_state, reward, terminated, truncated, info = envs.step(rescale_action(action, space))
        replay.add(state, action, reward, successor(next_state, info), terminated, truncated)
        state = next_state

        if step >= config.learning_starts and run.every(config.train_frequency):
            batches = replay.sample(config.gradient_steps, config.batch_size)  # [K, B, ...]
            # NEW: noise for two draws of (1), [K, 2, B, A]
            shape = config.gradient_steps, 2, config.batch_size, *space.shape
            run.log(train_steps(batches, rng.standard_normal(shape, np.float32)))
    return run.finish(greedy_policy(outputs, space))


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
