r"""REINFORCE with reward-to-go: an action is not to blame for what came before it.

Book: chapter 10, Policy Gradient Method, "Policy gradient with reward-to-go"

Idea
----
In REINFORCE every action is weighted with the return of the whole episode. But an action cannot
change the rewards that were paid before it: in expectation their part of the gradient is zero, and
all they add is noise. So weight each action with the rewards that follow it alone. The estimate has
the same expectation and less variance (compare `train/gradient_variance`).

Equations
---------
    G_t = Σ_{k>=t} γ^(k-t) r_k, the reward-to-go                                            (1)
    g_i = Σ_t ∇_θ log π_θ(a_t|s_t) G_t                                                      (2)
    ∇_θ J ≈ g = mean of g_1 ... g_N;  θ <- θ + α g, with Adam's step sizes                  (3)
    variance of g ≈ Σ_i |g_i - g|² / (N (N - 1)), all weights together                      (4)

Differs from the book
---------------------
1. N environments play one episode each, side by side, are masked out from its end on, and count as
   steps taken until the longest episode has ended.
2. Returns are not normalized, and those of episodes that a time limit cuts lack what would follow.
3. Besides discrete actions, continuous ones: a Gaussian instead of a softmax.
4. With γ < 1 (not the default), (2) leaves out a factor γ^t, as is usual: it would take the weight
   from the later parts of an episode.

How to run
----------
    python chapter11_policy_gradient/reinforce_reward_to_go.py

Expected
--------
Measured: 498.7 mean return (median of seeds 0, 1, 2), 16 s on two CPU cores

CartPole-v1, 500,000 steps, 100 greedy episodes: 498.7, 498.1, 500.0 for seeds 0, 1, 2. Random play
earns 22.7.
The variance of the gradient is 3 to 4 times smaller than with whole returns, for the same episodes
(measured by `reinforce_baseline.py`). With rewards that come evenly one expects 3.

Paper
-----
Sutton, McAllester, Singh and Mansour, "Policy gradient methods for reinforcement learning with
function approximation", NIPS 1999.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from common.acting import forward
from common.actions import rescale_action
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.compiled import compiled, mean_over, use_threads
from common.config import RunConfig, check_config
from common.environments import is_image, make_envs
from common.evaluation import report
from common.networks import body
from common.policies import categorical, diagonal_gaussian
from common.returns import discounted_returns
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
    num_envs: int = 16  # N, episodes per update, played side by side
    learning_rate: float = 3e-3  # α, step size of Adam at the start
    anneal: bool = True  # learning rate falls linearly to 0 over the run
    gamma: float = 1.0  # γ, discount factor
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of the dense layers (images: Nature CNN)


class Episodes(NamedTuple):
    """What an update sees: N episodes, padded to the same number of steps T."""

    state: np.ndarray  # [N, T, ...]
    action: np.ndarray  # [N, T] or [N, T, A]
    alive: np.ndarray  # 1 for steps of the episode, 0 after its end, [N, T]
    reward_to_go: np.ndarray  # NEW: G_t in place of R(τ), [N, T]


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


def variance_of_mean(each: list[tf.Tensor]) -> tf.Tensor:
    """How far g is from its expectation, squared; from g_1 ... g_N: [N, ...] for each variable."""
    n = each[0].shape[0]
    squares = [tf.reduce_sum((one - tf.reduce_mean(one, axis=0)) ** 2) for one in each]
    return tf.add_n(squares) / (n * (n - 1))  # (4)


def build_update(
    policy_network: keras.Model, actions: Actions, optimizer: keras.optimizers.Optimizer
) -> Callable[..., tuple[dict[str, tf.Tensor], tf.Tensor]]:
    """One gradient step on N episodes; returns metrics and log σ."""
    variables = [
        *policy_network.trainable_variables,
        *([] if actions.discrete else [actions.log_std]),
    ]
    optimizer.build(variables)

    def episode_gradients(episode: Episodes) -> dict[str, Any]:
        weights = [variable.value for variable in variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            policy = actions.distribution(policy_network(episode.state))
            log_prob = episode.alive * policy.log_prob(episode.action)  # [T]
            policy_loss = -tf.reduce_sum(log_prob * episode.reward_to_go)  # (2)
        steps = tf.reduce_sum(episode.alive)
        return {
            "gradients": tape.gradient(policy_loss, weights),
            "train/policy_loss": policy_loss,
            "train/entropy": tf.reduce_sum(episode.alive * policy.entropy()) / steps,
        }

    def update(
        episodes: Episodes, learning_rate: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        optimizer.learning_rate.assign(learning_rate)
        metrics = mean_over(episode_gradients, episodes)
        each = metrics.pop("gradients")  # of every episode: [N, ...] for each variable
        gradients = [tf.reduce_mean(one, axis=0) for one in each]  # (3)
        optimizer.apply(gradients, variables)
        if each[0].shape[0] > 1:  # one episode alone tells nothing of it
            metrics["train/gradient_variance"] = variance_of_mean(each)  # (4)
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
    optimizer = keras.optimizers.Adam(config.learning_rate)
    rng = np.random.default_rng([config.seed, 1])
    update = build_update(policy_network, actions, optimizer)
    run.track(policy_network=policy_network, optimizer=optimizer)
    run.track(log_std=actions, rng=rng)

    # After `track`, which may have put other weights in place: `forward` copies them.
    policy_outputs = forward(policy_network)  # logits or means, for acting
    update = compiled(update, xla=not images, refreshes=policy_outputs)

    learning_rate = linear_schedule(
        config.learning_rate, 0.0 if config.anneal else config.learning_rate, config.total_timesteps
    )
    log_std = np.asarray(actions.log_std)
    trajectory, alive = [], np.ones(config.num_envs, bool)
    state, _ = envs.reset(seed=run.reset_seed)
    for step in run.steps(config.total_timesteps, config.num_envs):
        action = actions.sample(policy_outputs(state), np.exp(log_std), rng)
        next_state, reward, terminated, truncated, _ = envs.step(actions.to_environment(action))
        clipped = np.sign(reward) if envs.is_atari else reward  # Atari scores differ by game
        trajectory.append((state, action, clipped, alive))
        state = next_state
        if (alive & envs.cut_short).any():  # for a checkpoint: these episodes would look bad
            run.discard()
            trajectory, alive = [], np.ones(config.num_envs, bool)
            continue
        alive = alive & ~(terminated | truncated)
        if alive.any():
            continue

        # Every environment has played an episode. Each [T, N, ...], T steps of the longest.
        states, action, reward, alive = (np.stack(x) for x in zip(*trajectory, strict=True))
        # NEW: an action answers only for the rewards that follow it.
        reward_to_go = [discounted_returns(one, config.gamma) for one in (reward * alive).T]
        reward_to_go = np.stack(reward_to_go, axis=1)  # [T, N] (1)
        arrays = (padded(x) for x in (states, action, alive, reward_to_go))  # [N, T, ...]
        metrics, log_std = update(Episodes(*arrays), learning_rate(step))
        run.log(metrics)
        run.log({"train/learning_rate": learning_rate(step)})
        trajectory, alive = [], np.ones(config.num_envs, bool)
        if not (terminated | truncated).all():  # all begin anew, not only those that just ended
            state, _ = envs.reset()
    return run.finish(greedy_policy(policy_outputs, actions))


def padded(array: np.ndarray) -> np.ndarray:
    """[T, N, ...] -> [N, P, ...], zeros from T to P: the next power of two, at least 128.

    The update is compiled once for each P, which takes seconds: for a few lengths, not hundreds.
    """
    length = max(128, 1 << (len(array) - 1).bit_length())
    result = np.zeros((array.shape[1], length, *array.shape[2:]), array.dtype)
    result[:, : len(array)] = array.swapaxes(0, 1)
    return result


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
