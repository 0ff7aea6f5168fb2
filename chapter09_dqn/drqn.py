r"""Deep recurrent Q-network (DRQN): an LSTM remembers what one observation does not show.

Book: chapter 9, Deep Q Network and Its Variants, "Deep recurrent Q network"

Idea
----
Often one observation o is not the whole state: a picture of a ball does not tell where it flies.
An LSTM carries a memory m from step to step, and Q is computed from both. The network is trained on
sequences instead of single transitions, so that gradients flow back through time. The default
environment is CartPole without its two velocities, at which no DQN can balance for long.

Equations
---------
    a = argmax_a Q_θ(o, m, a) with probability 1 - ε, else any action                     (1)
    y = r + γ (1 - terminated) max_a' Q_θ'(o', m', a')                                    (2)
    L(θ) = mean over the steps of the batch after each burn-in of (y - Q_θ(o, m, a))²     (3)
    θ' <- θ every C steps                                                                 (4)
    m_t = LSTM_θ(o_t, a_{t-1}, m_{t-1}), with m_{t-1} = 0 where an episode begins         (5)

Differs from the book
---------------------
1. All of `dqn.py`'s differences: several environments, several updates in one call, a learning rate
   that falls to 0, a bootstrap at time limits, `--huber-kappa` against large errors.
2. A sequence begins with the memory that the actor had there, stored beside the observation
   (`--zero-start-state`: with zeros, as in the paper). That memory was made by older weights, so
   the first `--burn-in` steps only bring it up to date and nothing is learned from them, as in
   R2D2. Zeros would never show the network a memory that is older than the sequence.
3. The LSTM also sees the last action. A push changes CartPole's velocities at once, but the
   positions only a step later: without it, the velocities would be known only up to a push.
4. Q is computed from the LSTM's output and the features of the observation side by side, by a
   dense layer more (`--head-sizes`): through the LSTM alone, the limits beyond which an episode
   ends came out blurred. The paper's LSTM replaces the last hidden layer, and Q follows at once.
5. The network learns `--reward-scale` times the rewards. An LSTM's output lies between -1 and 1:
   on its way to values near 100 its gates saturate and stop learning.
6. Sequences begin anywhere and run on into the next episode, where the memory is 0 again (5).
   Steps that did not happen, at the end of an episode and of the data, are masked out of (3).
7. An Atari game shows one frame a step, not the last four; `--flicker 0.5` blanks half of them.

How to run
----------
    python chapter09_dqn/drqn.py
    python chapter09_dqn/drqn.py --env-id common.environments.partial:RecallCue-v0 \
        --total-timesteps 12_000
    python chapter09_dqn/drqn.py --env-id ALE/Pong-v5 --flicker 0.5 --total-timesteps 250_000 \
        --learning-starts 10_000 --lstm-units 512 --learning-rate 2e-4 --no-anneal \
        --sequence-length 8 --batch-size 8 --train-frequency 16 --gradient-steps 2 \
        --target-frequency 1_000 --reward-scale 1 --eval-episodes 20

Expected
--------
Measured: 499.9, 500.0, 259.5 mean return (seeds 0, 1, 2), 26 s on two CPU cores

CartPole without velocities, 60,000 steps, 100 greedy episodes. Differences 3 and 4 were chosen on
seed 0; seed 2 fell short with every other setting that was tried on it. `dqn.py` with this
`--env-id`: 42.1, 39.4, 41.6; random play: 22.7. RecallCue by the second command, seed 0: at least
0.9, where whoever remembers nothing earns 0. Pong's command was not run to its end.

Paper
-----
Hausknecht and Stone, "Deep Recurrent Q-Learning for Partially Observable MDPs", AAAI Fall
Symposium 2015. Kapturowski et al., "Recurrent Experience Replay in Distributed Reinforcement
Learning" (R2D2), ICLR 2019: stored memory and burn-in.
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
from common.environments import atari_kwargs, is_image, make_envs, new_episodes, successor
from common.evaluation import report
from common.memory import GreedyMemoryPolicy, note_actions
from common.networks import body, copy_weights, mlp
from common.recurrent import recurrent_forward
from common.returns import TrueReturns
from common.run import Policy, Result, Run
from common.schedules import linear_schedule
from common.sequences import Sequences, make_sequence_replay

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

# Mean return over 100 episodes that counts as solved.
TARGETS = {"common.environments.partial:CartPoleNoVelocity-v0": 400.0}


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for CartPole without velocities."""

    # Gymnasium id, ALE/Game-v5 or module:Id-v0; discrete actions
    env_id: str = "common.environments.partial:CartPoleNoVelocity-v0"
    seed: int = 0  # of everything random
    total_timesteps: int = 60_000  # environment steps, all environments together
    num_envs: int = 8  # environments that step side by side
    frame_size: int = 84  # pixels on each side of an Atari frame
    learning_rate: float = 2.3e-3  # α, step size of Adam at the start
    anneal: bool = True  # learning rate falls linearly to 0 over the run
    gamma: float = 0.99  # γ, discount factor
    huber_kappa: float = 0.0  # κ, errors beyond it count by their size; 0: all by their square
    hidden_sizes: tuple[int, ...] = (64,)  # units of the dense layers (images: Nature CNN)
    buffer_size: int = 100_000  # observations in the replay buffer
    batch_size: int = 32  # B, sequences per gradient step
    learning_starts: int = 1_000  # steps before the first gradient step
    train_frequency: int = 256  # steps between trainings
    gradient_steps: int = 32  # gradient steps per training
    target_frequency: int = 512  # C, steps between copies θ' <- θ
    start_epsilon: float = 1.0  # ε at the first step
    end_epsilon: float = 0.04  # ε at the end of exploration
    exploration_fraction: float = 0.16  # part of the run over which ε falls
    # NEW: the memory, and the sequences that it is learned from
    lstm_units: int = 32  # U, units of the LSTM
    head_sizes: tuple[int, ...] = (64,)  # units of the dense layers behind the LSTM
    sequence_length: int = 10  # T, steps of a sequence that are learned from
    burn_in: int = 4  # steps before them that only bring the memory up to date
    zero_start_state: bool = False  # sequences begin with memory 0, not with the actor's
    reward_scale: float = 0.01  # rewards are learned times this, so that |Q| stays near 1
    flicker: float = 0.0  # probability with which a frame of an Atari game is blank


class QNetwork(keras.Model):  # NEW
    """Q_θ: what was observed and remembered -> one value per action, and the memory after it."""

    def __init__(self, observation_space: gym.Space, num_actions: int, config: Config) -> None:
        """Dense layers or convolutions for each observation, an LSTM across time, dense layers."""
        super().__init__()
        inputs, features = body(observation_space, config.hidden_sizes)
        self.encoder = keras.Model(inputs, features)
        self.cell = keras.layers.LSTMCell(config.lstm_units)
        self.cell.build((None, features.shape[-1] + num_actions))
        hidden = keras.Input((config.lstm_units + features.shape[-1],))
        self.parts = [config.lstm_units, config.lstm_units, num_actions]  # of the memory
        self.head = keras.Model(
            hidden, keras.layers.Dense(num_actions)(mlp(hidden, config.head_sizes))
        )

    def call(
        self, observation: tf.Tensor, action: tf.Tensor, begins: tf.Tensor, memory: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Q of T steps [B, T, A] and the memory after them [B, M], M = 2 U + A.

        From observations [B, T, ...], actions and begins [B, T], and the memory before them [B, M].
        """
        batch, steps = begins.shape
        features = self.encoder(tf.reshape(observation, [batch * steps, *observation.shape[2:]]))

        def remember(memory: tf.Tensor, slot: tuple[tf.Tensor, ...]) -> tf.Tensor:
            feature, action, begin = slot
            memory *= 1.0 - begin[:, None]  # nothing passes from one episode to the next (5)
            hidden, carry, last_action = tf.split(memory, self.parts, axis=1)
            inputs = tf.concat([feature, last_action], axis=1)
            _, (hidden, carry) = self.cell(inputs, [hidden, carry])  # (5)
            return tf.concat([hidden, carry, tf.one_hot(action, self.parts[2])], axis=1)  # [B, M]

        features = tf.reshape(features, [batch, steps, -1])
        slots = tf.transpose(features, [1, 0, 2]), tf.transpose(action), tf.transpose(begins)
        memories = tf.scan(remember, slots, memory)  # [T, B, M]
        hidden = tf.transpose(memories[:, :, : self.cell.units], [1, 0, 2])  # [B, T, U]
        seen_and_remembered = tf.concat([features, hidden], axis=2)
        q_values = self.head(tf.reshape(seen_and_remembered, [batch * steps, -1]))
        return tf.reshape(q_values, [batch, steps, -1]), memories[-1]


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
    q_network: QNetwork,
    target_network: QNetwork,
    optimizer: keras.optimizers.Optimizer,
    gamma: float,
    burn_in: int,
    reward_scale: float,
    huber_kappa: float = 0.0,
) -> Callable[[Sequences], dict[str, tf.Tensor]]:
    """One gradient step on a batch of sequences; returns metrics."""
    variables = q_network.trainable_variables

    def values(network: QNetwork, batch: Sequences) -> tf.Tensor:  # NEW
        """Q of the steps after the burn-in, which is not learned from; [B, T + 1, A]."""
        action = tf.pad(batch.action, [[0, 0], [0, 1]])  # what follows the last one plays no role
        slots, memory = (batch.observation, action, batch.begins), batch.memory
        if burn_in:
            memory = network(*[array[:, :burn_in] for array in slots], memory)[1]
        return network(*[array[:, burn_in:] for array in slots], tf.stop_gradient(memory))[0]

    def train_step(batch: Sequences) -> dict[str, tf.Tensor]:
        action, reward, terminated, mask = (
            array[:, burn_in:]
            for array in (batch.action, batch.reward, batch.terminated, batch.mask)
        )
        next_q = tf.reduce_max(values(target_network, batch)[:, 1:], axis=2)  # [B, T]
        td_target = reward_scale * reward + gamma * (1.0 - terminated) * next_q  # [B, T] (2)
        steps = tf.maximum(tf.reduce_sum(mask), 1.0)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            q_value = tf.gather(values(q_network, batch)[:, :-1], action, batch_dims=2)  # [B, T]
            td_error = mask * (td_target - q_value)  # [B, T]
            loss = tf.reduce_sum(huber(td_error, huber_kappa)) / steps  # (3)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply(gradients, variables)
        return {
            "train/loss": loss,
            "train/q_value": tf.reduce_sum(mask * q_value) / steps / reward_scale,
            "train/learning_rate": optimizer.learning_rate,
        }

    return train_step


def train(config: Config) -> Result:
    """Trains an agent; see `Config` for everything that can be set."""
    envs = make_envs(config.env_id, config.num_envs, **env_kwargs(config))
    num_actions = require_discrete(envs.single_action_space, config.env_id, "ppo_clip.py")
    check_replay_config(config)
    length = config.burn_in + config.sequence_length
    memory_size = 2 * config.lstm_units + num_actions
    replay = make_sequence_replay(envs, config.buffer_size, length, memory_size, config.seed)
    run = Run(config, __file__, envs)
    if envs.is_atari and config.learning_rate == Config.learning_rate:
        print("note: default flags are for CartPole; the docstring has Atari's", file=sys.stderr)
    images = is_image(envs.single_observation_space)
    use_threads(2, 2) if images else use_threads(2, 1)  # measured, see benchmarks/README.md
    keras.utils.set_random_seed(config.seed)

    q_network = QNetwork(envs.single_observation_space, num_actions, config)
    target_network = QNetwork(envs.single_observation_space, num_actions, config)
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
    memory = np.zeros((config.num_envs, memory_size), np.float32)  # NEW: of each environment
    run.track(replay=replay, rng=rng, memory=memory)

    q_values = recurrent_forward(q_network.encoder, q_network.cell, q_network.head)  # Q_θ to act
    train_step = build_train_step(
        q_network,
        target_network,
        optimizer,
        config.gamma,
        config.burn_in,
        config.reward_scale,
        config.huber_kappa,
    )
    train_steps = compiled(train_step, loop=True, xla=not images, refreshes=q_values)
    epsilon = linear_schedule(
        config.start_epsilon,
        config.end_epsilon,
        config.exploration_fraction * config.total_timesteps,
    )

    true_returns = TrueReturns(config.num_envs, config.gamma)  # beside train/q_value
    state, _ = envs.reset(seed=run.reset_seed)
    begins = np.ones(config.num_envs, bool)  # NEW: where an episode begins
    for step in run.steps(config.total_timesteps, config.num_envs):
        memory[begins] = 0.0  # NEW: (5)
        q_value, next_memory = q_values(state, memory)
        action = epsilon_greedy(q_value, epsilon(step), rng)  # (1)
        next_state, reward, terminated, truncated, info = envs.step(action)
        clipped = np.sign(reward) if envs.is_atari else reward  # Atari scores differ by game
        start = np.zeros_like(memory) if config.zero_start_state else memory  # NEW: stored
        final_state = successor(next_state, info)
        replay.add(state, action, clipped, final_state, terminated, begins, start)  # NEW: begins
        true_return, states = true_returns.add(clipped, terminated, truncated)
        run.log({"train/true_return": true_return}, weight=states)
        state, begins = next_state, new_episodes(info, config.num_envs)
        memory[...] = next_memory  # NEW
        note_actions(memory, action, num_actions)  # NEW

        if step >= config.learning_starts and run.every(config.train_frequency):
            batches = replay.sample(config.gradient_steps, config.batch_size)  # [K, B, ...]
            run.log(train_steps(batches))
            run.log({"train/epsilon": epsilon(step)})
        if run.every(config.target_frequency):
            copy_weights(q_network, target_network)  # (4)
    return run.finish(GreedyMemoryPolicy(q_values, memory_size))


def env_kwargs(config: Config) -> dict[str, Any]:
    """What the environment's constructor gets."""
    # NEW: an Atari game shows one frame a step, which may flicker; the memory does the rest
    one_frame = {"stack_num": 1} if config.env_id.startswith("ALE/") else {}
    flicker = {"flicker": config.flicker} if config.flicker else {}
    return atari_kwargs(config.env_id, config.frame_size) | one_frame | flicker


def load_policy(config: Config) -> Policy:
    """The greedy policy of a finished or interrupted run, for `python -m common.play`."""
    envs = make_envs(config.env_id, 1, **env_kwargs(config))
    num_actions = require_discrete(envs.single_action_space, config.env_id, "ppo_clip.py")
    q_network = QNetwork(envs.single_observation_space, num_actions, config)
    restore_latest(config.resume, q_network=q_network)
    q_values = recurrent_forward(q_network.encoder, q_network.cell, q_network.head)
    return GreedyMemoryPolicy(q_values, 2 * config.lstm_units + num_actions)


@command
def main() -> None:
    """Trains, evaluates, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report(result, config, TARGETS, env_kwargs(config))


if __name__ == "__main__":
    main()
