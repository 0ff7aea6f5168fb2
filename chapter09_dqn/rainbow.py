r"""Rainbow: six improvements of DQN in one agent, each of which can be taken out.

Book: chapter 9, Deep Q Network and Its Variants, beyond the book

Idea
----
Double DQN, dueling streams and prioritized replay are joined by three more: targets that look n
steps ahead, a network that predicts the whole distribution of the return on fixed atoms (C51), and
layers whose weights carry learned noise, so that exploring is learned too. The book treats the
distribution in chapter 14 and names the others; the paper shows that together they learn far
faster than each alone.

Equations
---------
    Q_θ(s, a) = Σ_i z_i p_i(s, a; θ),  z_i = v_min + i Δz                                  (1)
    a = argmax_a Q_θ(s, a), with new noise ε in the layers at every step                   (2)
    y = x (μ_w + σ_w ⊙ ε_w) + μ_b + σ_b ⊙ ε_b,  ε_w = f(ε_in)ᵀ f(ε_out),  ε_b = f(ε_out),
        f(x) = sgn(x) √|x|, rows x, ε_in, ε_out                                           (3)
    R = r_t + γ r_t+1 + ... + γ^(n-1) r_t+n-1                                              (4)
    a* = argmax_a' Q_θ(s_t+n, a')                                                          (5)
    T z_i = clip(R + γ^n (1 - terminated) z_i, v_min, v_max)                               (6)
    m_j = Σ_i max(0, 1 - |T z_i - z_j| / Δz) p_i(s_t+n, a*; θ')                            (7)
    L(θ) = mean over the batch of w KL(m || p(s_t, a_t; θ))                                (8)
    p_i(s, a) = softmax over i of v_i(s) + A_i(s, a) - 1/|A| Σ_a' A_i(s, a')               (9)
    θ' <- θ every C steps                                                                 (10)

Each transition is drawn by its last KL in (8), and w repairs that; see `prioritized_dqn.py`.
`--no-double` puts θ' into (5); `--no-dueling`, `--no-prioritized` and `--no-noisy` (then ε-greedy)
take out what they name; `--n-step 1` looks one step ahead; `--no-distributional` learns Q itself
with squared errors. That is the paper's ablation.

Differs from the book
---------------------
The book leaves Rainbow out; this is where the script leaves the paper.

1. Several environments step together and share the noise of a step; gradient steps come in blocks,
   and all batches of a block are drawn before its first step.
2. Both streams share the units of the last hidden layer, half each, as in `dueling_dqn.py`.
3. The learning rate falls to 0 (`--no-anneal` keeps it).
4. A time limit does not end the MDP: a stretch of n steps that meets one is cut short, and
   bootstraps there. So is one that reaches the newest transition, until more are stored.
5. Gradients are limited to the length 10, as in the paper of the dueling network, and frames of
   less than 64 pixels get smaller convolutions and 256 units instead of 512.

How to run
----------
    python chapter09_dqn/rainbow.py
    python chapter09_dqn/rainbow.py --env-id LunarLander-v3 --total-timesteps 150_000 \
        --hidden-sizes 256 256 --learning-rate 6.3e-4 --buffer-size 150_000 --train-frequency 64 \
        --gradient-steps 32 --target-frequency 128 --v-min -30 --v-max 100 --no-noisy \
        --end-epsilon 0.1 --exploration-fraction 0.12
    python chapter09_dqn/rainbow.py --env-id Acrobot-v1 --total-timesteps 100_000 \
        --hidden-sizes 256 256 --learning-rate 6.3e-4 --buffer-size 50_000 --batch-size 128 \
        --train-frequency 64 --gradient-steps 16 --target-frequency 256 --v-min -100 --v-max 0
    python chapter09_dqn/rainbow.py --env-id ALE/Freeway-v5 --frame-size 42 \
        --total-timesteps 100_000 --buffer-size 100_000 --learning-starts 5_000 \
        --learning-rate 2e-4 --no-anneal --batch-size 32 --train-frequency 8 --gradient-steps 4 \
        --target-frequency 1_000 --n-step 10 --v-min -10 --v-max 10 --eval-episodes 20

Expected
--------
Measured: 500.0 mean return (seeds 0, 1, 2: 500.0, 500.0, 499.4), 53 s on two CPU cores

CartPole-v1, 75,000 steps, 100 greedy episodes. Random play earns 22.7.
LunarLander-v3 and Acrobot-v1 by the next commands, seeds 0, 1, 2: 218.9, 187.2, 194.6 and -91.2,
-77.9, -82.8. Cut at -30, LunarLander's crash (-100) frightens less; with noisy layers instead of ε,
seed 0 came to 171.1.
ALE/Freeway-v5 by the last command: 25.1, 21.4 and 19.9 over 20 greedy episodes (seeds 0, 1, 2), 9
to 10 minutes of training on two cores that were busy with other work. Random play never crosses;
going up all the time earns 20.8, 20.9 and 21.2.

Paper
-----
Hessel et al., "Rainbow: combining improvements in deep reinforcement learning", AAAI 2018. Noisy
layers: Fortunato et al., "Noisy networks for exploration", ICLR 2018. Distribution: Bellemare,
Dabney and Munos, "A distributional perspective on reinforcement learning", ICML 2017.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from common.actions import require_discrete
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.compiled import compiled, use_threads
from common.config import RunConfig, check_replay_config
from common.environments import atari_kwargs, is_image, make_envs, successor
from common.errors import UserError
from common.evaluation import report
from common.networks import copy_weights, trunk
from common.prioritized import PrioritizedReplay
from common.replay import NStepBatch, make_replay
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
    learning_rate: float = 2e-3  # α, step size of Adam at the start
    adam_epsilon: float = 1.5e-4  # of Adam, against large steps where gradients are small
    max_grad_norm: float = 10.0  # longer gradients are shortened to this norm
    anneal: bool = True  # learning rate falls linearly to 0 over the run
    gamma: float = 0.99  # γ, discount factor
    hidden_sizes: tuple[int, ...] = (120, 84)  # units of the dense layers (images: Nature CNN)
    buffer_size: int = 100_000  # transitions in the replay buffer
    batch_size: int = 128  # B, stretches of n steps per gradient step
    learning_starts: int = 1_000  # steps before the first gradient step
    train_frequency: int = 64  # steps between trainings
    gradient_steps: int = 32  # gradient steps per training
    target_frequency: int = 512  # C, steps between copies θ' <- θ
    double: bool = True  # the online network chooses the next action in the target
    dueling: bool = True  # separate streams for values and advantages
    n_step: int = 3  # n, steps before the bootstrap
    prioritized: bool = True  # replay by priority, proportional to the loss
    prioritization_exponent: float = 0.5  # ω, 0 draws uniformly
    start_beta: float = 0.4  # β of the weights at the first step; it grows to 1 over the run
    distributional: bool = True  # predict the distribution of the return, not only its mean
    num_atoms: int = 51  # atoms of the distribution
    v_min: float = 0.0  # return of the lowest atom; lower ones are cut to it
    v_max: float = 100.0  # return of the highest atom; higher ones are cut to it
    noisy: bool = True  # explore by learned noise in the dense layers
    sigma: float = 0.5  # σ_0, the noise at the start
    start_epsilon: float = 1.0  # ε at the first step, where noise is left out
    end_epsilon: float = 0.04  # ε at the end of exploration, likewise
    exploration_fraction: float = 0.16  # part of the run over which ε falls, likewise


class NoisyDense(keras.layers.Layer):
    """(3): a dense layer with factorised Gaussian noise; without `training=True`, its means."""

    def __init__(self, units: int, activation: str | None = None, sigma: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        self.units, self.sigma = units, sigma
        self.activation = keras.activations.get(activation)
        self.noise = keras.random.SeedGenerator()

    def build(self, input_shape: tuple[int, ...]) -> None:
        size = input_shape[-1]
        uniform = keras.initializers.RandomUniform(-(size**-0.5), size**-0.5)
        constant = keras.initializers.Constant(self.sigma * size**-0.5)
        self.weight_mean = self.add_weight((size, self.units), uniform)  # μ_w
        self.weight_std = self.add_weight((size, self.units), constant)  # σ_w
        self.bias_mean = self.add_weight((self.units,), uniform)  # μ_b
        self.bias_std = self.add_weight((self.units,), constant)  # σ_b

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        weight, bias = self.weight_mean.value, self.bias_mean.value
        if training:
            noise = keras.random.normal((weight.shape[0] + self.units,), seed=self.noise)
            noise = tf.sign(noise) * tf.sqrt(tf.abs(noise))  # f
            noise_in, noise_out = noise[: weight.shape[0]], noise[weight.shape[0] :]
            weight = weight + self.weight_std * noise_in[:, None] * noise_out[None, :]  # (3)
            bias = bias + self.bias_std * noise_out
        return self.activation(inputs @ weight + bias)

    def get_config(self) -> dict[str, Any]:
        activation = keras.activations.serialize(self.activation)
        own = {"units": self.units, "activation": activation, "sigma": self.sigma}
        return super().get_config() | own


def build_network(observation_space: gym.Space, num_actions: int, config: Config) -> keras.Model:
    """Logits v of the distributions p: observations [B, ...] -> [B, A, Z]; Z = 1 is Q itself."""

    def dense(units: int, activation: str | None = None) -> keras.layers.Layer:
        if config.noisy:
            return NoisyDense(units, activation, config.sigma)
        return keras.layers.Dense(units, activation)

    num_atoms = config.num_atoms if config.distributional else 1
    inputs, features, units = trunk(observation_space, config.hidden_sizes)
    if not config.dueling:
        logits = dense(num_actions * num_atoms)(dense(units, "relu")(features))
        return keras.Model(inputs, keras.layers.Reshape((num_actions, num_atoms))(logits))
    value = dense(num_atoms)(dense(-(-units // 2), "relu")(features))
    value = keras.layers.Reshape((1, num_atoms))(value)  # [B, 1, Z]
    advantage = dense(num_actions * num_atoms)(dense(-(-units // 2), "relu")(features))
    advantage = keras.layers.Reshape((num_actions, num_atoms))(advantage)  # [B, A, Z]
    mean_advantage = keras.ops.mean(advantage, axis=1, keepdims=True)  # [B, 1, Z]
    return keras.Model(inputs, value + advantage - mean_advantage)  # (9)


def expected_value(logits: tf.Tensor, atoms: tf.Tensor | None) -> tf.Tensor:
    """(1): logits [..., Z] -> Q [...]; without atoms, the one logit is Q."""
    if atoms is None:
        return logits[..., 0]
    return tf.reduce_sum(atoms * tf.nn.softmax(logits), axis=-1)


def project(
    probabilities: tf.Tensor, reward: tf.Tensor, discount: tf.Tensor, atoms: tf.Tensor
) -> tf.Tensor:
    """(6), (7): the distribution of R + discount * z on the atoms.

    Args:
        probabilities: of the atoms at the next state, [B, Z].
        reward: R, [B].
        discount: γ^n (1 - terminated), [B].
        atoms: z, [Z], equally spaced.
    """
    delta_z = atoms[1] - atoms[0]
    moved = reward[:, None] + discount[:, None] * atoms  # [B, Z]
    moved = tf.clip_by_value(moved, atoms[0], atoms[-1])  # [B, Z] (6)
    # Each atom's mass goes to its two neighbours; where it hits an atom, all of it goes there.
    share = 1.0 - tf.abs(moved[:, None, :] - atoms[:, None]) / delta_z  # [B, Z to, Z from]
    return tf.linalg.matvec(tf.maximum(share, 0.0), probabilities)  # [B, Z] (7)


def epsilon_greedy(q_values: np.ndarray, epsilon: float, rng: np.random.Generator) -> np.ndarray:
    """The greedy action (2), or any action with probability ε; [N, A] -> [N]."""
    num_envs, num_actions = q_values.shape
    greedy = q_values.argmax(axis=1)  # [N]
    random = rng.integers(0, num_actions, num_envs)  # [N]
    return np.where(rng.random(num_envs) < epsilon, random, greedy)


def build_train_step(
    q_network: keras.Model,
    target_network: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    atoms: tf.Tensor | None,
    double: bool,
) -> Callable[[NStepBatch, tf.Tensor], tuple[dict[str, tf.Tensor], tf.Tensor]]:
    """One gradient step on a weighted batch; returns metrics and priorities [B]."""
    variables = q_network.trainable_variables

    def train_step(batch: NStepBatch, weight: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        next_logits = target_network(batch.next_state, training=True)  # [B, A, Z]
        choosing = q_network(batch.next_state, training=True) if double else next_logits
        next_action = tf.argmax(expected_value(choosing, atoms), axis=1)  # [B] (5)
        next_logits = tf.gather(next_logits, next_action, batch_dims=1)  # [B, Z]
        discount = batch.discount * (1.0 - batch.terminated)  # [B]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            logits = q_network(batch.state, training=True)  # [B, A, Z]
            logits = tf.gather(logits, batch.action, batch_dims=1)  # [B, Z]
            q_value = expected_value(logits, atoms)  # [B] (1)
            if atoms is None:
                td_target = batch.reward + discount * next_logits[:, 0]  # [B]
                surprise = tf.abs(td_target - q_value)  # [B]
                loss = tf.reduce_mean(weight * surprise**2)
            else:
                target = project(tf.nn.softmax(next_logits), batch.reward, discount, atoms)
                cross_entropy = -tf.reduce_sum(target * tf.nn.log_softmax(logits), axis=1)  # [B]
                entropy = -tf.reduce_sum(tf.math.xlogy(target, target), axis=1)  # [B]
                surprise = cross_entropy - entropy  # KL(m || p), [B]
                loss = tf.reduce_mean(weight * surprise)  # (8)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        metrics = {
            "train/loss": loss,
            "train/q_value": tf.reduce_mean(q_value),
            "train/learning_rate": optimizer.learning_rate,
        }
        return metrics, surprise

    return train_step


def greedy_policy(q_values: Callable[[np.ndarray], np.ndarray]) -> Policy:
    """π(s) = argmax_a Q_θ(s, a), with the means of noisy weights."""
    return lambda state: q_values(state).argmax(axis=1)


def train(config: Config) -> Result:
    """Trains an agent; see `Config` for everything that can be set."""
    envs = make_envs(config.env_id, config.num_envs, **env_kwargs(config))
    num_actions = require_discrete(envs.single_action_space, config.env_id, "ppo_clip.py")
    check(config)
    replay = PrioritizedReplay(
        make_replay(envs, config.buffer_size, config.seed, config.n_step, config.gamma),
        "proportional",
        config.prioritization_exponent if config.prioritized else 0.0,
        seed=config.seed,
    )
    run = Run(config, __file__, envs)
    if envs.is_atari and config.learning_rate == Config.learning_rate:
        print("note: default flags are for CartPole; the docstring has Atari's", file=sys.stderr)
    support, default = (config.v_min, config.v_max), (Config.v_min, Config.v_max)
    if config.distributional and support == default and config.env_id != Config.env_id:
        print("note: returns outside CartPole's --v-min 0 to --v-max 100 are cut", file=sys.stderr)
    images = is_image(envs.single_observation_space)
    use_threads(2, 2) if images else use_threads(2, 1)  # measured, see benchmarks/README.md
    keras.utils.set_random_seed(config.seed)

    q_network = build_network(envs.single_observation_space, num_actions, config)
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
    optimizer = keras.optimizers.Adam(
        learning_rate, epsilon=config.adam_epsilon, global_clipnorm=config.max_grad_norm
    )
    optimizer.build(q_network.trainable_variables)
    rng = np.random.default_rng([config.seed, 1])
    run.track(q_network=q_network, target_network=target_network, optimizer=optimizer)
    run.track(replay=replay, rng=rng)

    atoms = atoms_of(config)
    noisy_q_values = compiled(lambda s: expected_value(q_network(s, training=True), atoms))
    q_values = compiled(lambda s: expected_value(q_network(s), atoms))
    train_step = build_train_step(q_network, target_network, optimizer, atoms, config.double)
    train_steps = compiled(train_step, loop=True, xla=not images)
    epsilon = linear_schedule(
        0.0 if config.noisy else config.start_epsilon,
        0.0 if config.noisy else config.end_epsilon,
        config.exploration_fraction * config.total_timesteps,
    )

    beta = linear_schedule(config.start_beta, 1.0, config.total_timesteps)
    true_returns = TrueReturns(config.num_envs, config.gamma)  # beside train/q_value
    state, _ = envs.reset(seed=run.reset_seed)
    for step in run.steps(config.total_timesteps, config.num_envs):
        action = epsilon_greedy(noisy_q_values(state), epsilon(step), rng)  # (2)
        next_state, reward, terminated, truncated, info = envs.step(action)
        clipped = np.sign(reward) if envs.is_atari else reward  # Atari scores differ by game
        replay.add(state, action, clipped, successor(next_state, info), terminated, truncated)
        true_return, states = true_returns.add(clipped, terminated, truncated)
        run.log({"train/true_return": true_return}, weight=states)
        state = next_state

        if step >= config.learning_starts and run.every(config.train_frequency):
            batches, weight, index = replay.sample(
                config.gradient_steps, config.batch_size, beta=beta(step)
            )  # [K, B, ...], rewards are R of (4)
            metrics, surprise = train_steps(batches, weight)
            replay.update(index, surprise)  # [K, B]
            run.log(metrics)
            run.log({"train/epsilon": epsilon(step), "train/beta": beta(step)})
        if run.every(config.target_frequency):
            copy_weights(q_network, target_network)  # (10)
    return run.finish(greedy_policy(q_values))


def atoms_of(config: Config) -> tf.Tensor | None:
    """z, [Z]; None if Q is learned without a distribution."""
    if not config.distributional:
        return None
    return tf.linspace(np.float32(config.v_min), np.float32(config.v_max), config.num_atoms)


def env_kwargs(config: Config) -> dict[str, Any]:
    """What the environment's constructor gets."""
    return atari_kwargs(config.env_id, config.frame_size)


def check(config: Config) -> None:
    """Rejects hyperparameters that make no sense, alone or together."""
    check_replay_config(config, forks=True)
    if config.v_min >= config.v_max:
        raise UserError(
            f"--v-min {config.v_min}: must be less than --v-max {config.v_max}; give the range of "
            "the discounted returns"
        )


def load_policy(config: Config) -> Policy:
    """The greedy policy of a finished or interrupted run, for `python -m common.play`."""
    envs = make_envs(config.env_id, 1, **env_kwargs(config))
    num_actions = require_discrete(envs.single_action_space, config.env_id, "ppo_clip.py")
    q_network = build_network(envs.single_observation_space, num_actions, config)
    restore_latest(config.resume, q_network=q_network)
    atoms = atoms_of(config)
    return greedy_policy(compiled(lambda s: expected_value(q_network(s), atoms)))


@command
def main() -> None:
    """Trains, evaluates, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report(result, config, TARGETS, env_kwargs(config))


if __name__ == "__main__":
    main()
