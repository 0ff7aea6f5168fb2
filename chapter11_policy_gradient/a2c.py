r"""Advantage actor-critic (A2C): a few steps from several environments for each update.

Book: chapter 11, Actor-Critic Methods - A2C and A3C, "Advantage actor-critic (A2C)"

Idea
----
A single step tells little and leans on the critic with all its weight. A2C lets N environments take
T steps each, and sums the surprises that follow each action within them: the advantage is made of
up to T true rewards, and only what lies beyond them is the critic's guess. One update on the N T
samples follows. A bonus for entropy keeps the policy from becoming certain too early.

Equations
---------
    δ_t = r_t + γ (1 - terminated) V_φ(s_{t+1}) - V_φ(s_t)                                  (1)
    A_t = Σ_k (γλ)^k δ_{t+k}, to the end of the episode or of the T steps                   (2)
    L_policy = -mean of log π_θ(a|s) A, with A held fixed                                   (3)
    L_value = mean of (A_t + V_φ(s_t) - V_φ(s_t))², with the first two held fixed           (4)
    minimize  L_policy + c_v L_value - c_e entropy(π_θ)                                     (5)

Differs from the book
---------------------
1. Advantages as in GAE (2); λ = 1, the default, gives the n-step return minus the value.
2. RMSprop, and one limit on the length of the gradient of all weights together, as in OpenAI
   Baselines, where A2C was written first (in TensorFlow 1, which, as Keras, adds ε in the root).
3. The learning rate falls to 0 (`--no-anneal` keeps it).
4. Besides discrete actions, continuous ones: a Gaussian instead of a softmax.
5. A time limit (`truncated`) does not end the MDP: V of the last observation still counts in (1).
6. `--normalize` brings observations to mean 0 and deviation 1 and divides rewards by the deviation
   of the returns, all running and kept with the run.

How to run
----------
    python chapter11_policy_gradient/a2c.py
    python chapter11_policy_gradient/a2c.py --env-id LunarLander-v3 --gamma 0.995 \
        --learning-rate 8.3e-4 --entropy-coefficient 1e-5 --num-envs 16 --gae-lambda 0.9 --normalize

Expected
--------
Measured: 500.0 mean return (median of seeds 0, 1, 2), 21 s on two CPU cores

CartPole-v1, 500,000 steps, 100 greedy episodes: 500.0, 500.0, 500.0 for seeds 0, 1, 2. Random play
earns 22.7.
LunarLander-v3 by the second command, 500,000 steps: 193.3, 149.8, 210.0 for seeds 0, 1, 2, in 84 to
92 s on one busy core. With 8 environments and λ = 1 it is a matter of luck: 96.8, -110.7, 106.0.
Random play earns -200.

Paper
-----
Mnih et al., "Asynchronous methods for deep reinforcement learning", ICML 2016.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from common.acting import forward
from common.actions import rescale_action
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.compiled import compiled, use_threads
from common.config import RunConfig, check_config
from common.environments import is_image, make_envs, successor
from common.evaluation import report
from common.networks import body
from common.normalize import Normalizer
from common.policies import categorical, diagonal_gaussian
from common.run import Policy, Result, Run
from common.schedules import linear_schedule

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

TARGETS = {"CartPole-v1": 475.0}  # mean return that counts as solved


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for CartPole-v1."""

    env_id: str = "CartPole-v1"  # Gymnasium id, ALE/Game-v5 or module:Id-v0
    seed: int = 0  # of everything random
    total_timesteps: int = 500_000  # environment steps, all environments together
    num_envs: int = 8  # N, environments that step side by side
    # NEW: several steps, how they are summed, entropy, one loss with a limited gradient
    num_steps: int = 5  # T, steps of each environment per update
    learning_rate: float = 7e-4  # α, step size of RMSprop at the start
    anneal: bool = True  # learning rate falls linearly to 0 over the run
    gamma: float = 0.99  # γ, discount factor
    gae_lambda: float = 1.0  # λ of the advantage estimate; 1: n-step returns minus values
    entropy_coefficient: float = 0.0  # c_e, weight of the entropy in the loss
    value_coefficient: float = 0.5  # c_v, weight of the value network's loss
    max_grad_norm: float = 0.5  # longest gradient, over all weights together
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of the dense layers (images: Nature CNN)
    normalize: bool = False  # observations and rewards to unit scale, by their running moments


class Samples(NamedTuple):
    """What a gradient step sees; B = N T samples."""

    state: np.ndarray  # [B, ...]
    action: np.ndarray  # [B] or [B, A]
    next_state: np.ndarray  # s', also where an episode ended, [B, ...]
    reward: np.ndarray  # [T, N]
    terminated: np.ndarray  # [T, N]
    truncated: np.ndarray  # [T, N]


def build_network(
    observation_space: gym.Space, outputs: int, hidden_sizes: tuple[int, ...], gain: float
) -> keras.Model:
    """Observations [B, ...] -> [B, outputs]; orthogonal weights, last layer times `gain`."""

    def orthogonal(gain: float = 2**0.5) -> keras.Initializer:
        return keras.initializers.Orthogonal(gain)

    inputs, features = body(observation_space, hidden_sizes, "tanh", orthogonal)
    head = keras.layers.Dense(outputs, kernel_initializer=orthogonal(gain))
    return keras.Model(inputs, head(features))


class Actions:
    """What depends on the kind of actions: distribution, sampling, what the environment gets."""

    def __init__(self, space: gym.Space) -> None:
        self.space = space
        self.discrete = isinstance(space, gym.spaces.Discrete)
        self.outputs = int(space.n) if self.discrete else space.shape[0]  # logits or means
        # Box: log σ, one per component, the same in every state. 1 is the half-width of the bounds.
        self.log_std = keras.Variable(np.zeros(0 if self.discrete else self.outputs, np.float32))
        self.variables = [self.log_std]

    def distribution(self, outputs: tf.Tensor) -> tf.Tensor:
        """π_θ(.|s) from the policy network's outputs [B, outputs]."""
        if self.discrete:
            return categorical(outputs)
        return diagonal_gaussian(outputs, self.log_std.value)

    def sample(self, outputs: np.ndarray, std: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A ~ π_θ(.|s): [N] or [N, A]. In NumPy, because a call into TensorFlow costs more."""
        if self.discrete:  # the Gumbel-max trick: argmax of logits plus noise is a softmax sample
            return (outputs + rng.gumbel(size=outputs.shape)).argmax(axis=1)
        return (outputs + std * rng.standard_normal(outputs.shape)).astype(np.float32)

    def to_environment(self, action: np.ndarray) -> np.ndarray:
        """Box: clipped to [-1, 1] and scaled to the bounds; Discrete: as it is."""
        return action if self.discrete else rescale_action(action, self.space)


def sum_ahead(td_error: tf.Tensor, batch: Samples, decay: float) -> tf.Tensor:  # NEW
    """A_t = δ_t + γλ A_{t+1}, backwards through each episode's part of the T steps: [T, N] (2)."""
    same_episode = 1.0 - tf.maximum(batch.terminated, batch.truncated)  # [T, N]
    advantage, running = [], tf.zeros_like(td_error[0])
    for t in reversed(range(td_error.shape[0])):
        running = td_error[t] + decay * same_episode[t] * running
        advantage.insert(0, running)
    return tf.stack(advantage)


def build_update(
    policy_network: keras.Model,
    value_network: keras.Model,
    actions: Actions,
    optimizer: keras.optimizers.Optimizer,
    config: Config,
) -> Callable[..., tuple[dict[str, tf.Tensor], tf.Tensor]]:
    """One gradient step on T steps of all environments; returns metrics and log σ."""
    variables = [
        *policy_network.trainable_variables,
        *value_network.trainable_variables,
        *([] if actions.discrete else [actions.log_std]),
    ]
    optimizer.build(variables)

    def update(batch: Samples, learning_rate: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        optimizer.learning_rate.assign(learning_rate)
        reward = tf.cast(batch.reward, tf.float32)  # Atari games count in whole numbers
        shape = reward.shape
        next_value = tf.reshape(value_network(batch.next_state), shape)  # [T, N]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            policy = actions.distribution(policy_network(batch.state))
            log_prob = policy.log_prob(batch.action)  # [B]
            value = tf.reshape(value_network(batch.state), shape)  # [T, N]
            td_target = reward + config.gamma * (1.0 - batch.terminated) * next_value  # [T, N]
            td_error = tf.stop_gradient(td_target - value)  # [T, N] (1)
            # NEW: the surprises of the steps that follow count as well.
            advantage = sum_ahead(td_error, batch, config.gamma * config.gae_lambda)  # (2)
            value_target = advantage + tf.stop_gradient(value)  # [T, N]
            policy_loss = -tf.reduce_mean(log_prob * tf.reshape(advantage, [-1]))  # (3)
            value_loss = tf.reduce_mean((value_target - value) ** 2)  # (4)
            entropy = tf.reduce_mean(policy.entropy())
            loss = (  # NEW: entropy, without which certainty comes too early (5)
                policy_loss
                + config.value_coefficient * value_loss
                - config.entropy_coefficient * entropy
            )
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        metrics = {
            "train/policy_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/value": tf.reduce_mean(value),
            "train/entropy": entropy,
        }
        return metrics, tf.identity(actions.log_std.value)

    return update


def greedy_policy(
    outputs: Callable[[np.ndarray], np.ndarray], actions: Actions, normalizer: Normalizer
) -> Policy:
    """The most probable action: argmax of the logits, or the Gaussian's mean."""
    if actions.discrete:
        return lambda state: outputs(normalizer.normalize(state)).argmax(axis=1)
    return lambda state: actions.to_environment(outputs(normalizer.normalize(state)))


def train(config: Config) -> Result:
    """Trains an agent; see `Config` for everything that can be set."""
    check_config(config)
    envs = make_envs(config.env_id, config.num_envs)
    space, hidden_sizes = envs.single_observation_space, config.hidden_sizes
    # NEW: brings observations and rewards to unit scale, if wanted.
    normalizer = Normalizer(space, config.num_envs, config.gamma, config.normalize)
    run = Run(config, __file__, envs)
    images = is_image(space)
    use_threads(2, 2) if images else use_threads(2, 1)  # measured, see benchmarks/README.md
    keras.utils.set_random_seed(config.seed)

    actions = Actions(envs.single_action_space)
    policy_network = build_network(space, actions.outputs, hidden_sizes, gain=0.01)
    value_network = build_network(space, 1, hidden_sizes, gain=1.0)
    # NEW: the gradient's length is limited.
    optimizer = keras.optimizers.RMSprop(
        config.learning_rate, rho=0.99, epsilon=1e-5, global_clipnorm=config.max_grad_norm
    )
    rng = np.random.default_rng([config.seed, 1])
    update = build_update(policy_network, value_network, actions, optimizer, config)
    run.track(policy_network=policy_network, value_network=value_network, optimizer=optimizer)
    run.track(log_std=actions, normalizer=normalizer, rng=rng)

    # After `track`, which may have put other weights in place: `forward` copies them.
    policy_outputs = forward(policy_network)  # logits or means, for acting
    update = compiled(update, xla=not images, refreshes=policy_outputs)

    learning_rate = linear_schedule(
        config.learning_rate, 0.0 if config.anneal else config.learning_rate, config.total_timesteps
    )
    log_std = np.asarray(actions.log_std)
    state, _ = envs.reset(seed=run.reset_seed)
    for step in run.steps(config.total_timesteps, config.num_envs * config.num_steps):
        trajectory = []  # NEW: several steps for each update
        for _ in range(config.num_steps):
            observed = normalizer.observe(state)
            action = actions.sample(policy_outputs(observed), np.exp(log_std), rng)
            next_state, reward, terminated, truncated, info = envs.step(
                actions.to_environment(action)
            )
            clipped = np.sign(reward) if envs.is_atari else reward  # Atari scores differ by game
            scaled = normalizer.scale(clipped, terminated, truncated)
            final_state = normalizer.normalize(successor(next_state, info))
            trajectory.append((observed, action, final_state, scaled, terminated, truncated))
            state = next_state

        # Each [T, N, ...]; the networks see them as one batch of B = T N samples.
        trajectory = [np.stack(arrays) for arrays in zip(*trajectory, strict=True)]
        states, action, final_state, reward, terminated, truncated = trajectory
        states, action, final_state = (flatten(x) for x in (states, action, final_state))
        samples = Samples(states, action, final_state, reward, terminated, truncated)
        metrics, log_std = update(samples, learning_rate(step))
        run.log(metrics)
        run.log({"train/learning_rate": learning_rate(step)})
    return run.finish(greedy_policy(policy_outputs, actions, normalizer))


def flatten(array: np.ndarray) -> np.ndarray:
    """[T, N, ...] -> [T N, ...]."""
    return array.reshape(-1, *array.shape[2:])


def load_policy(config: Config) -> Policy:
    """The greedy policy of a finished or interrupted run, for `python -m common.play`."""
    envs = make_envs(config.env_id, 1)
    actions = Actions(envs.single_action_space)
    space = envs.single_observation_space
    normalizer = Normalizer(space, config.num_envs, config.gamma, config.normalize)
    policy_network = build_network(space, actions.outputs, config.hidden_sizes, gain=0.01)
    restore_latest(config.resume, policy_network=policy_network, normalizer=normalizer)
    return greedy_policy(forward(policy_network), actions, normalizer)


@command
def main() -> None:
    """Trains, evaluates, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report(result, config, TARGETS)


if __name__ == "__main__":
    main()
