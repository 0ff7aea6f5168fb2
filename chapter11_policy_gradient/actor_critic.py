r"""Actor-critic: learn from every step, with a value network in place of the return's rest.

Book: chapter 11, Actor-Critic Methods - A2C and A3C, "Overview of the actor-critic method"

Idea
----
REINFORCE with a baseline waits for the end of the episode to know the reward-to-go. The critic V_φ
knows it at once, roughly: r + γ V_φ(s') is an estimate after a single step. So the actor π_θ learns
after each step from the surprise δ, by which that estimate differs from what the critic expected,
and so does the critic. The noise of a whole episode is gone; the error of the critic has come.

Equations
---------
    δ = r + γ (1 - terminated) V_φ(s') - V_φ(s)                                             (1)
    L_policy = -mean of log π_θ(a|s) δ, with δ held fixed                                   (2)
    L_value = mean of δ², with V_φ(s') held fixed                                           (3)
    minimize  L_policy + L_value                                                            (4)

Differs from the book
---------------------
1. N environments step side by side and give the means in (2) and (3): one update per step of all.
2. The length of the gradient is not limited, as it is in `a2c.py`: with so few samples, a limit
   would cut the rare large δ of an episode's end and leave the many small ones of the steps before,
   until V_φ believes that no episode ends (measured: V near 1 / (1 - γ), return 10).
3. The learning rate falls to 0 (`--no-anneal` keeps it), which steadies the last policy.
4. Besides discrete actions, continuous ones: a Gaussian instead of a softmax.
5. A time limit (`truncated`) does not end the MDP: V of the last observation still counts in (1).

How to run
----------
    python chapter11_policy_gradient/actor_critic.py

Expected
--------
Measured: 500.0 mean return (median of seeds 0, 1, 2), 25 s on two CPU cores

CartPole-v1, 400,000 steps, 100 greedy episodes: 500.0, 500.0, 500.0 for seeds 0, 1, 2. Random play
earns 22.7.
The critic's mean value ends at 100 = 1 / (1 - γ), the value of balancing for ever.
Half as many environments and steps gave 500.0 for seeds 0, 1 and 3, but 12.2 for seed 2.

Paper
-----
Konda and Tsitsiklis, "Actor-critic algorithms", NIPS 1999.
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
    total_timesteps: int = 400_000  # environment steps, all environments together
    num_envs: int = 16  # N, environments that step side by side
    learning_rate: float = 1e-3  # α, step size of Adam at the start
    anneal: bool = True  # learning rate falls linearly to 0 over the run
    gamma: float = 0.99  # γ, discount factor
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of the dense layers (images: Nature CNN)


class Samples(NamedTuple):
    """What a gradient step sees; B = N samples."""

    state: np.ndarray  # [B, ...]
    action: np.ndarray  # [B] or [B, A]
    next_state: np.ndarray  # s', also where an episode ended, [B, ...]
    reward: np.ndarray  # [B]
    terminated: np.ndarray  # [B]


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


def build_update(
    policy_network: keras.Model,
    value_network: keras.Model,
    actions: Actions,
    optimizer: keras.optimizers.Optimizer,
    config: Config,
) -> Callable[..., tuple[dict[str, tf.Tensor], tf.Tensor]]:
    """One gradient step on one step of all environments; returns metrics and log σ."""
    variables = [
        *policy_network.trainable_variables,
        *value_network.trainable_variables,
        *([] if actions.discrete else [actions.log_std]),
    ]
    optimizer.build(variables)

    def update(batch: Samples, learning_rate: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        optimizer.learning_rate.assign(learning_rate)
        reward = tf.cast(batch.reward, tf.float32)  # Atari games count in whole numbers
        # NEW: V of the next state stands for all the rewards that will follow.
        next_value = tf.squeeze(value_network(batch.next_state), axis=1)  # [B]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            policy = actions.distribution(policy_network(batch.state))
            log_prob = policy.log_prob(batch.action)  # [B]
            value = tf.squeeze(value_network(batch.state), axis=1)  # [B]
            td_target = reward + config.gamma * (1.0 - batch.terminated) * next_value  # [B]
            td_error = td_target - value  # [B] (1)
            policy_loss = -tf.reduce_mean(log_prob * tf.stop_gradient(td_error))  # (2)
            value_loss = tf.reduce_mean(td_error**2)  # (3)
            entropy = tf.reduce_mean(policy.entropy())
            loss = policy_loss + value_loss  # (4)
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


def greedy_policy(outputs: Callable[[np.ndarray], np.ndarray], actions: Actions) -> Policy:
    """The most probable action: argmax of the logits, or the Gaussian's mean."""
    if actions.discrete:
        return lambda state: outputs(state).argmax(axis=1)
    return lambda state: actions.to_environment(outputs(state))


def train(config: Config) -> Result:
    """Trains an agent; see `Config` for everything that can be set."""
    check_config(config)
    envs = make_envs(config.env_id, config.num_envs)
    run = Run(config, __file__, envs)
    images = is_image(envs.single_observation_space)
    use_threads(2, 2) if images else use_threads(2, 1)  # measured, see benchmarks/README.md
    keras.utils.set_random_seed(config.seed)

    actions = Actions(envs.single_action_space)
    space, hidden_sizes = envs.single_observation_space, config.hidden_sizes
    policy_network = build_network(space, actions.outputs, hidden_sizes, gain=0.01)
    value_network = build_network(space, 1, hidden_sizes, gain=1.0)
    optimizer = keras.optimizers.Adam(config.learning_rate)
    rng = np.random.default_rng([config.seed, 1])
    update = build_update(policy_network, value_network, actions, optimizer, config)
    run.track(policy_network=policy_network, value_network=value_network, optimizer=optimizer)
    run.track(log_std=actions, rng=rng)

    # After `track`, which may have put other weights in place: `forward` copies them.
    policy_outputs = forward(policy_network)  # logits or means, for acting
    update = compiled(update, xla=not images, refreshes=policy_outputs)

    learning_rate = linear_schedule(
        config.learning_rate, 0.0 if config.anneal else config.learning_rate, config.total_timesteps
    )
    log_std = np.asarray(actions.log_std)
    state, _ = envs.reset(seed=run.reset_seed)
    for step in run.steps(config.total_timesteps, config.num_envs):
        action = actions.sample(policy_outputs(state), np.exp(log_std), rng)
        next_state, reward, terminated, _, info = envs.step(actions.to_environment(action))
        clipped = np.sign(reward) if envs.is_atari else reward  # Atari scores differ by game
        final_state = successor(next_state, info)
        # NEW: an update after every step, without waiting for the end of an episode.
        samples = Samples(state, action, final_state, clipped, terminated)
        metrics, log_std = update(samples, learning_rate(step))
        run.log(metrics)
        run.log({"train/learning_rate": learning_rate(step)})
        state = next_state
    return run.finish(greedy_policy(policy_outputs, actions))


def load_policy(config: Config) -> Policy:
    """The greedy policy of a finished or interrupted run, for `python -m common.play`."""
    envs = make_envs(config.env_id, 1)
    actions = Actions(envs.single_action_space)
    policy_network = build_network(
        envs.single_observation_space, actions.outputs, config.hidden_sizes, gain=0.01
    )
    restore_latest(config.resume, policy_network=policy_network)
    return greedy_policy(forward(policy_network), actions)


@command
def main() -> None:
    """Trains, evaluates, reports."""
    config = parse(Config, __doc__)
    result = train(config)
    report(result, config, TARGETS)


if __name__ == "__main__":
    main()
