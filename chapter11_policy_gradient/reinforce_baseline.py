r"""REINFORCE with a baseline: credit only for what was better than the state promised.

Book: chapter 10, Policy Gradient Method, "Policy gradient with baseline"

Idea
----
With rewards that are all positive, every action is reinforced, good or bad, and only by how much
tells the difference. Subtract from the reward-to-go what the state was worth anyway, a baseline
V_φ(s): because it does not depend on the action, the expectation of the gradient stays what it was,
and its variance falls. The baseline is a second network, fitted to the rewards-to-go.
`gradient_variance.png` compares the three estimates, computed from the same episodes.

Equations
---------
    G_t = Σ_{k>=t} γ^(k-t) r_k, the reward-to-go                                            (1)
    g_i = Σ_t ∇_θ log π_θ(a_t|s_t) (G_t - V_φ(s_t))                                         (2)
    ∇_θ J ≈ g = mean of g_1 ... g_N;  θ <- θ + α g, with Adam's step sizes                  (3)
    variance of g ≈ Σ_i |g_i - g|² / (N (N - 1)), all weights together                      (4)
    L_value = mean of (G_t - V_φ(s_t))² over all steps of all episodes                      (5)

Differs from the book
---------------------
1. N environments play one episode each, side by side, are masked out from its end on, and count as
   steps taken until the longest episode has ended.
2. Returns are not normalized, and those of episodes that a time limit cuts lack what would follow.
3. Besides discrete actions, continuous ones: a Gaussian instead of a softmax.
4. With γ < 1 (not the default), (2) leaves out a factor γ^t, as is usual: it would take the weight
   from the later parts of an episode.
5. The baseline takes several steps on (5) in each update, as one could not keep up with the policy,
   and only after its use in (2): once fitted to these episodes, it depends on their actions.

How to run
----------
    python chapter11_policy_gradient/reinforce_baseline.py

Expected
--------
Measured: 500.0 mean return (median of seeds 0, 1, 2), 22 s on two CPU cores

CartPole-v1, 500,000 steps, 100 greedy episodes, seeds 0, 1, 2: 500.0, 500.0, 499.3; random: 22.7.
Summed over a run, the variance with whole returns is 3.6, 3.4, 4.2 times (seeds 0, 1, 2) that with
rewards-to-go, and 17.6, 17.2, 44.4 times that with the baseline.

Paper
-----
Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
learning", Machine Learning 8, 1992.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from common import plots
from common.acting import forward
from common.actions import rescale_action
from common.checkpoint import restore_latest
from common.cli import command, parse
from common.compiled import compiled, mean_over, use_threads
from common.config import RunConfig, check_config
from common.environments import is_image, make_envs
from common.evaluation import report
from common.metrics import read_metrics
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
# Variance (4) of the gradient that is followed, and of those of the two scripts before this one.
BASELINE = "train/gradient_variance"
REWARD_TO_GO, WHOLE_RETURN = f"{BASELINE}_reward_to_go", f"{BASELINE}_whole_return"


@dataclass(frozen=True)
class Config(RunConfig):
    """Hyperparameters; the defaults are for CartPole-v1."""

    env_id: str = "CartPole-v1"  # Gymnasium id, ALE/Game-v5 or module:Id-v0
    seed: int = 0  # of everything random
    total_timesteps: int = 500_000  # environment steps, all environments together
    num_envs: int = 16  # N, episodes per update, played side by side
    learning_rate: float = 3e-3  # α, step size of Adam at the start
    anneal: bool = True  # learning rate falls linearly to 0 over the run
    value_learning_rate: float = 1e-2  # step size of Adam for the baseline
    value_steps: int = 10  # gradient steps of the baseline per update
    gamma: float = 1.0  # γ, discount factor
    hidden_sizes: tuple[int, ...] = (64, 64)  # units of the dense layers (images: Nature CNN)


class Episodes(NamedTuple):
    """What an update sees: N episodes, padded to the same number of steps T."""

    state: np.ndarray  # [N, T, ...]
    action: np.ndarray  # [N, T] or [N, T, A]
    alive: np.ndarray  # 1 for steps of the episode, 0 after its end, [N, T]
    reward_to_go: np.ndarray  # G_t, [N, T]


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
    policy_network: keras.Model,
    value_network: keras.Model,
    actions: Actions,
    optimizer: keras.optimizers.Optimizer,
    value_optimizer: keras.optimizers.Optimizer,
    config: Config,
) -> Callable[..., tuple[dict[str, tf.Tensor], tf.Tensor]]:
    """One gradient step on N episodes and some of the baseline's; returns metrics and log σ."""
    variables = [
        *policy_network.trainable_variables,
        *([] if actions.discrete else [actions.log_std]),
    ]
    optimizer.build(variables)
    value_variables = value_network.trainable_variables
    value_optimizer.build(value_variables)

    def episode_gradients(episode: Episodes) -> dict[str, Any]:
        weights = [variable.value for variable in variables]
        # NEW: what the state promised is no merit of the action.
        value = tf.squeeze(value_network(episode.state), axis=1)  # [T]
        advantage = episode.reward_to_go - value  # [T]
        with tf.GradientTape(watch_accessed_variables=False, persistent=True) as tape:
            tape.watch(weights)
            policy = actions.distribution(policy_network(episode.state))
            log_prob = episode.alive * policy.log_prob(episode.action)  # [T]
            policy_loss = -tf.reduce_sum(log_prob * advantage)  # (2)
            # NEW: what the two scripts before this one would follow, only to compare the noise.
            to_go_loss = -tf.reduce_sum(log_prob * episode.reward_to_go)
            whole_loss = -tf.reduce_sum(log_prob * episode.reward_to_go[0])  # G_0 is R(τ)
        steps = tf.reduce_sum(episode.alive)
        return {
            "gradients": tape.gradient(policy_loss, weights),
            "to_go": tape.gradient(to_go_loss, weights),
            "whole": tape.gradient(whole_loss, weights),
            "train/policy_loss": policy_loss,
            "train/entropy": tf.reduce_sum(episode.alive * policy.entropy()) / steps,
            "train/value": tf.reduce_sum(episode.alive * value) / steps,
        }

    def update(
        episodes: Episodes, learning_rate: tf.Tensor
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        optimizer.learning_rate.assign(learning_rate)
        metrics = mean_over(episode_gradients, episodes)
        each = metrics.pop("gradients")  # of every episode: [N, ...] for each variable
        gradients = [tf.reduce_mean(one, axis=0) for one in each]  # (3)
        optimizer.apply(gradients, variables)
        to_go, whole = metrics.pop("to_go"), metrics.pop("whole")
        if each[0].shape[0] > 1:  # one episode alone tells nothing of it
            metrics[BASELINE] = variance_of_mean(each)  # (4)
            metrics[REWARD_TO_GO] = variance_of_mean(to_go)
            metrics[WHOLE_RETURN] = variance_of_mean(whole)

        def value_step(_: tf.Tensor) -> tf.Tensor:
            weights = [variable.value for variable in value_variables]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                value = tf.squeeze(value_network(flatten(episodes.state)), axis=1)  # [N T]
                error = flatten(episodes.alive) * (flatten(episodes.reward_to_go) - value)
                value_loss = tf.reduce_sum(error**2) / tf.reduce_sum(episodes.alive)  # (5)
            value_optimizer.apply(tape.gradient(value_loss, weights), value_variables)
            return value_loss

        # NEW: the baseline learns from these episodes, to be of use for the next ones.
        metrics["train/value_loss"] = mean_over(value_step, tf.range(config.value_steps))
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
    value_network = build_network(space, 1, hidden_sizes, gain=1.0)  # NEW: what a state promises
    optimizer = keras.optimizers.Adam(config.learning_rate)
    value_optimizer = keras.optimizers.Adam(config.value_learning_rate)
    rng = np.random.default_rng([config.seed, 1])
    update = build_update(
        policy_network, value_network, actions, optimizer, value_optimizer, config
    )
    run.track(policy_network=policy_network, value_network=value_network, optimizer=optimizer)
    run.track(log_std=actions, rng=rng, value_optimizer=value_optimizer)

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
        # An action answers only for the rewards that follow it.
        reward_to_go = [discounted_returns(one, config.gamma) for one in (reward * alive).T]
        reward_to_go = np.stack(reward_to_go, axis=1)  # [T, N] (1)
        arrays = (padded(x) for x in (states, action, alive, reward_to_go))  # [N, T, ...]
        metrics, log_std = update(Episodes(*arrays), learning_rate(step))
        run.log(metrics)
        run.log({"train/learning_rate": learning_rate(step)})
        trajectory, alive = [], np.ones(config.num_envs, bool)
        if not (terminated | truncated).all():  # all begin anew, not only those that just ended
            state, _ = envs.reset()
    draw_variances(run.run_dir, config)
    return run.finish(greedy_policy(policy_outputs, actions))


def draw_variances(run_dir: Path, config: Config) -> None:
    """`gradient_variance.png`: how noisy the three estimates from the same episodes are."""
    metrics = read_metrics(run_dir)
    if len(plots.curve(metrics, WHOLE_RETURN)[0]) == 0:  # no update, or one episode for each
        return
    names = {
        "whole return R(τ)": WHOLE_RETURN,
        "reward-to-go $G_t$": REWARD_TO_GO,
        "with baseline $G_t - V(s_t)$": BASELINE,
    }
    steps, whole = plots.curve(metrics, WHOLE_RETURN)
    window = max(1, len(steps) // 20)
    whole = np.maximum(plots.smooth(whole, window), 1e-30)
    with plots.figure(run_dir / "gradient_variance.png", columns=2) as [left, right]:
        for label, name in names.items():
            variance = plots.smooth(plots.curve(metrics, name)[1], window)
            left.plot(steps, variance, label=label)
            right.plot(steps, variance / whole, label=label)
        left.set(ylabel="variance of the gradient, all weights", yscale="log")
        left.set_title(f"mean over {config.num_envs} episodes")
        right.set(ylabel="variance / that of the whole return", ylim=(0.0, 1.1))
        right.set_title("the same, relative")
        for axes in (left, right):
            plots.label_steps(axes, "environment steps")
        left.legend()


def flatten(array: tf.Tensor) -> tf.Tensor:
    """[N, T, ...] -> [N T, ...]."""
    return tf.reshape(array, [-1, *array.shape[2:]])


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
