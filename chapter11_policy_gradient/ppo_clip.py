r"""Proximal policy optimization (PPO) with a clipped objective: small safe steps, many per batch.

Book: chapter 13, TRPO, PPO, and ACKTR Methods, "PPO with a clipped objective"

Idea
----
A policy gradient is only valid near the policy that collected the data. PPO collects T steps from
N environments with π_old, then takes several epochs of gradient steps on them, and removes the
reason to go far: once the ratio π/π_old has moved by ε in the direction the advantage asks for,
the objective is flat. A value network V_φ supplies the advantages by GAE.

Equations
---------
    δ_t = r_t + γ (1 - terminated) V_φ(s_{t+1}) - V_φ(s_t),  A_t = Σ_k (γλ)^k δ_{t+k}       (1)
    ratio = π_θ(a|s) / π_old(a|s) = exp(log π_θ(a|s) - log π_old(a|s))                     (2)
    L_clip = mean of min(ratio A, clip(ratio, 1 - ε, 1 + ε) A)                             (3)
    L_value = mean of (A_t + V_old(s_t) - V_φ(s_t))²                                       (4)
    maximize  L_clip - c_v L_value + c_e entropy(π_θ)                                      (5)

Differs from the book
---------------------
1. Advantages come from GAE (1); λ = 1 gives the book's return minus value.
2. Data come from N environments in step, and one batch serves several epochs of minibatches.
3. Advantages are normalized in each minibatch; the gradient's length is limited; the learning rate
   falls to 0 (`--no-anneal` keeps it). All three are in the authors' own code.
4. Besides the book's continuous actions, discrete ones: a softmax instead of a Gaussian.
5. A time limit (`truncated`) does not end the MDP: V of the last observation still counts in (1).
6. `--normalize` brings observations to mean 0 and deviation 1 and divides rewards by the deviation
   of the returns, all running and kept with the network: MuJoCo's numbers differ widely in size.

How to run
----------
    python chapter11_policy_gradient/ppo_clip.py
    python chapter11_policy_gradient/ppo_clip.py --env-id Pendulum-v1 --gamma 0.9 \
        --gae-lambda 0.95 --num-steps 256 --num-epochs 10 --total-timesteps 200_000
    python chapter11_policy_gradient/ppo_clip.py --env-id LunarLander-v3 \
        --total-timesteps 1_000_000 --num-envs 16 --num-steps 1024 --num-epochs 4 \
        --minibatch-size 64 --gamma 0.999 --gae-lambda 0.98 --learning-rate 3e-4 \
        --entropy-coefficient 0.01
    python chapter11_policy_gradient/ppo_clip.py --env-id Hopper-v5 --normalize \
        --total-timesteps 500_000 --num-steps 256 --num-epochs 10 --minibatch-size 64 \
        --learning-rate 3e-4 --gamma 0.99 --gae-lambda 0.95

Expected
--------
Measured: 500.0 mean return (median of seeds 0, 1, 2), 11 s on two CPU cores

CartPole-v1, 100,000 steps, 100 greedy episodes: 500.0, 500.0, 500.0 for seeds 0, 1, 2.
Pendulum-v1 by the second command, 200,000 steps: -167.5, -166.4, -166.4, in 14 s. Random play
earns 22.7 and -1230.
LunarLander-v3 by the third command, 1,000,000 steps: 209.1, 198.8, 224.5, in 65 to 80 s on one busy
core. Random play earns -200.
Hopper-v5 by the fourth command, 500,000 steps: 3061.0, 2111.4, 3598.8, in 100 to 180 s on one busy
core. Random play earns 18.

Paper
-----
Schulman et al., "Proximal policy optimization algorithms", arXiv:1707.06347, 2017.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from common.acting import forward
from common.actions import rescale_action
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.compiled import compiled, mean_over, use_threads
from common.config import RunConfig, check_config
from common.environments import is_image, make_envs, successor
from common.errors import UserError
from common.evaluation import report
from common.networks import body
from common.normalize import Normalizer
from common.policies import categorical, diagonal_gaussian
from common.returns import gae
from common.run import Policy, Result, Run
from common.schedules import linear_schedule

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

TARGETS = {"CartPole-v1": 475.0, "Pendulum-v1": -300.0}  # mean return that counts as solved


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for CartPole-v1."""

    env_id: str = "CartPole-v1"  # Gymnasium id, ALE/Game-v5 or module:Id-v0
    seed: int = 0  # of everything random
    total_timesteps: int = 100_000  # environment steps, all environments together
    num_envs: int = 8  # N, environments that step side by side
    num_steps: int = 32  # T, steps of each environment per batch
    learning_rate: float = 1e-3  # α, step size of Adam at the start
    anneal: bool = True  # learning rate falls linearly to 0 over the run
    gamma: float = 0.98  # γ, discount factor
    gae_lambda: float = 0.8  # λ of the advantage estimate
    # NEW: how far, how often and in which portions a batch is used
    clip_epsilon: float = 0.2  # ε, how far the ratio may move
    num_epochs: int = 20  # passes over each batch
    minibatch_size: int = 256  # samples per gradient step
    entropy_coefficient: float = 0.0  # c_e, weight of the entropy in the loss
    value_coefficient: float = 0.5  # c_v, weight of the value network's loss
    max_grad_norm: float = 0.5  # longest gradient, over all weights together
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of the dense layers (images: Nature CNN)
    normalize: bool = False  # observations and rewards to unit scale, by their running moments


class Samples(NamedTuple):
    """What the gradient steps see; B = N T samples."""

    state: np.ndarray  # [B, ...]
    action: np.ndarray  # [B] or [B, A]
    log_prob: np.ndarray  # log π_old(a|s), [B]
    advantage: np.ndarray  # A, [B]
    value_target: np.ndarray  # A + V_old(s), [B]


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


def clipped_objective(ratio: tf.Tensor, advantage: tf.Tensor, clip_epsilon: float) -> tf.Tensor:
    """(3) for each sample; all [B]."""
    # NEW: beyond the clip, the objective is flat, and its gradient 0.
    clipped = tf.clip_by_value(ratio, 1.0 - clip_epsilon, 1.0 + clip_epsilon)  # [B]
    return tf.minimum(ratio * advantage, clipped * advantage)  # [B] (3)


def build_update(
    policy_network: keras.Model,
    value_network: keras.Model,
    actions: Actions,
    optimizer: keras.optimizers.Optimizer,
    config: Config,
) -> Callable[..., dict[str, tf.Tensor]]:
    """All gradient steps on one batch of samples; returns metrics."""
    variables = [
        *policy_network.trainable_variables,
        *value_network.trainable_variables,
        *([] if actions.discrete else [actions.log_std]),
    ]
    optimizer.build(variables)

    def train_step(batch: Samples) -> dict[str, tf.Tensor]:
        # NEW: advantages are normalized in each minibatch.
        advantage = batch.advantage - tf.reduce_mean(batch.advantage)  # [B]
        advantage /= tf.math.reduce_std(batch.advantage) + 1e-8
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            policy = actions.distribution(policy_network(batch.state))
            # NEW: how much more probable the action has become since it was taken.
            log_ratio = policy.log_prob(batch.action) - batch.log_prob  # [B]
            ratio = tf.exp(log_ratio)  # [B] (2)
            objective = clipped_objective(ratio, advantage, config.clip_epsilon)  # [B] (3)
            value = tf.squeeze(value_network(batch.state), axis=1)  # [B]
            value_loss = tf.reduce_mean((batch.value_target - value) ** 2)  # (4)
            entropy = tf.reduce_mean(policy.entropy())
            policy_loss = -tf.reduce_mean(objective)
            loss = (  # (5)
                policy_loss
                + config.value_coefficient * value_loss
                - config.entropy_coefficient * entropy
            )
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        outside = tf.abs(ratio - 1.0) > config.clip_epsilon
        return {
            "train/policy_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/value": tf.reduce_mean(value),
            "train/entropy": entropy,
            "train/kl": tf.reduce_mean(ratio - 1.0 - log_ratio),  # from π_old, estimated
            "train/clip_fraction": tf.reduce_mean(tf.cast(outside, tf.float32)),
        }

    def update(samples: Samples, orders: tf.Tensor, learning_rate: tf.Tensor) -> dict:
        optimizer.learning_rate.assign(learning_rate)

        # NEW: several epochs of minibatches on the same samples.
        def minibatch(indices: tf.Tensor) -> dict[str, tf.Tensor]:
            return train_step(Samples(*[tf.gather(array, indices) for array in samples]))

        return mean_over(minibatch, orders)  # orders: [epochs * minibatches, minibatch size]

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
    check(config)
    envs = make_envs(config.env_id, config.num_envs)
    space, hidden_sizes = envs.single_observation_space, config.hidden_sizes
    normalizer = Normalizer(space, config.num_envs, config.gamma, config.normalize)
    run = Run(config, __file__, envs)
    images = is_image(space)
    use_threads(2, 2) if images else use_threads(2, 1)  # measured, see benchmarks/README.md
    keras.utils.set_random_seed(config.seed)

    actions = Actions(envs.single_action_space)
    policy_network = build_network(space, actions.outputs, hidden_sizes, gain=0.01)
    value_network = build_network(space, 1, hidden_sizes, gain=1.0)
    optimizer = keras.optimizers.Adam(
        config.learning_rate, epsilon=1e-5, global_clipnorm=config.max_grad_norm
    )
    rng = np.random.default_rng([config.seed, 1])
    update = build_update(policy_network, value_network, actions, optimizer, config)
    run.track(policy_network=policy_network, value_network=value_network, optimizer=optimizer)
    run.track(log_std=actions, normalizer=normalizer, rng=rng)

    # After `track`, which may have put other weights in place: `forward` copies them.
    policy_outputs = forward(policy_network)  # logits or means, for acting
    update = compiled(update, xla=not images, refreshes=policy_outputs)

    # NEW: V and π_old, before the first gradient step changes them.
    @compiled(xla=not images)
    def evaluate(state, next_state, action):
        """V(s), V(s') and log π_old(a|s) of a whole batch, each [B]."""
        value = tf.squeeze(value_network(state), axis=1)
        next_value = tf.squeeze(value_network(next_state), axis=1)
        return value, next_value, actions.distribution(policy_network(state)).log_prob(action)

    learning_rate = linear_schedule(
        config.learning_rate, 0.0 if config.anneal else config.learning_rate, config.total_timesteps
    )
    state, _ = envs.reset(seed=run.reset_seed)
    for step in run.steps(config.total_timesteps, config.num_envs * config.num_steps):
        std = np.exp(np.asarray(actions.log_std))
        trajectory = []
        for _ in range(config.num_steps):
            observed = normalizer.observe(state)
            action = actions.sample(policy_outputs(observed), std, rng)
            next_state, reward, terminated, truncated, info = envs.step(
                actions.to_environment(action)
            )
            clipped = np.sign(reward) if envs.is_atari else reward  # Atari scores differ by game
            scaled = normalizer.scale(clipped, terminated, truncated)
            final_state = normalizer.normalize(successor(next_state, info))
            trajectory.append((observed, action, scaled, final_state, terminated, truncated))
            state = next_state

        # Each [T, N, ...]; the networks see them as one batch of B = T N samples.
        trajectory = [np.stack(arrays) for arrays in zip(*trajectory, strict=True)]
        states, action, reward, final_state, terminated, truncated = trajectory
        shape = reward.shape
        states, final_state, action = (flatten(x) for x in (states, final_state, action))
        value, next_value, log_prob = evaluate(states, final_state, action)  # [B]
        value, next_value = value.reshape(shape), next_value.reshape(shape)  # [T, N]
        advantage = gae(  # [T, N] (1)
            reward, value, next_value, terminated, truncated, config.gamma, config.gae_lambda
        )
        value_target = advantage + value  # [T, N]
        samples = Samples(states, action, log_prob, advantage.ravel(), value_target.ravel())
        orders = [rng.permutation(reward.size) for _ in range(config.num_epochs)]
        orders = np.reshape(orders, (-1, config.minibatch_size))  # [epochs * minibatches, size]
        run.log(update(samples, orders, learning_rate(step)))
        run.log({"train/learning_rate": learning_rate(step)})
    return run.finish(greedy_policy(policy_outputs, actions, normalizer))


def flatten(array: np.ndarray) -> np.ndarray:
    """[T, N, ...] -> [T N, ...]."""
    return array.reshape(-1, *array.shape[2:])


def check(config: Config) -> None:
    """Rejects hyperparameters that make no sense, alone or together."""
    check_config(config)
    batch = config.num_envs * config.num_steps
    if batch % config.minibatch_size:
        raise UserError(
            f"--minibatch-size {config.minibatch_size}: must divide --num-envs times --num-steps, "
            f"{batch}"
        )
    if config.minibatch_size == 1:
        raise UserError(
            "--minibatch-size 1: advantages are compared within a minibatch; take at least 2"
        )


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
