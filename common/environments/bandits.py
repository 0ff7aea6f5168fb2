"""Bandits: many independent runs of K arms side by side, and as Gymnasium environments.

A bandit is an environment with one state; an episode of those registered here is one pull:
`TenArmedTestbed-v0`, `GaussianBandit-v0` and `BernoulliBandit-v0`. Scripts pull N of them at once
through `make_bandits`, in NumPy, and `History` keeps what happened: 2,000 runs of 1,000 pulls take
a second or two. A bandit of one's own, `module:Id-v0`, is stepped as N environments.

Regret here is what was lost on average, not by luck: the best arm's mean minus that of the arm
pulled, summed over the pulls of a run.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common import checkpoint, plots
from common.environments.vector import make_envs, reset_seed
from common.errors import UserError

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete
from matplotlib.axes import Axes

TESTBED, GAUSSIAN, BERNOULLI = "TenArmedTestbed-v0", "GaussianBandit-v0", "BernoulliBandit-v0"
DEFAULT_MEANS = {GAUSSIAN: (0.0, 0.5, 1.0), BERNOULLI: (0.8, 0.2)}
TESTBED_ARMS = 10
Means = Sequence[float] | np.ndarray
LARGEST = 1e250  # of means and σ: their sums over a run must be finite
LAST = 100  # steps at the end of a run over which `History.facts` averages

# ---------------------------------------------------------------------------------------------
# N runs at once
# ---------------------------------------------------------------------------------------------


def make_bandits(
    env_id: str, num_runs: int, seed: int, means: Means = (), sigma: float = 1.0
) -> Bandits:
    """N independent runs of a bandit.

    Args:
        env_id: `TenArmedTestbed-v0`, `GaussianBandit-v0`, `BernoulliBandit-v0`, or any Gymnasium
            environment with Discrete actions and one state.
        num_runs: number of runs N.
        seed: the same seed gives the same arms, and the same luck to those who pull alike.
        means: of the Gaussian or Bernoulli arms; empty: see `DEFAULT_MEANS`.
        sigma: σ, standard deviation of Gaussian rewards, the testbed's included.

    Raises:
        UserError: not a bandit, or flags that make no sense for it.
    """
    if num_runs < 1:
        raise UserError(f"--num-runs {num_runs}: must be at least 1")
    given = len(means) > 0
    if given and env_id not in DEFAULT_MEANS:
        raise UserError(
            f"--means {_text(means)}: {env_id} has its own; means can be given to "
            f"--env-id {GAUSSIAN} and {BERNOULLI}"
        )
    if env_id != TESTBED and env_id not in DEFAULT_MEANS:
        return EnvironmentBandits(env_id, num_runs, seed)
    arms = np.zeros(0)  # of all runs; the testbed draws them for each run
    if env_id != TESTBED:
        arms = checked_means(means if given else DEFAULT_MEANS[env_id], env_id == BERNOULLI)
    sigma = _checked_sigma(sigma)
    rng = np.random.default_rng([seed, 2])
    try:
        shape = num_runs, TESTBED_ARMS
        table = rng.standard_normal(shape) if env_id == TESTBED else np.tile(arms, (num_runs, 1))
    except (MemoryError, OverflowError, ValueError) as error:  # more than NumPy can count
        raise UserError(f"--num-runs {num_runs}: too many for this machine's memory") from error
    if env_id == BERNOULLI:
        bandits: Bandits = BernoulliBandits(table, rng)
        bandits.lai_robbins = lai_robbins(arms)
        return bandits
    bandits = GaussianBandits(table, rng, sigma)
    if env_id == GAUSSIAN:
        bandits.lai_robbins = lai_robbins(arms, sigma)
    return bandits


class Bandits:
    """N runs of a bandit with K arms; `Run.track` saves and restores what is random in them."""

    num_runs: int
    num_arms: int
    means: np.ndarray | None = None  # true mean rewards, [N, K]; None: unknown
    lai_robbins: float | None = None  # see `lai_robbins`; None where arms differ between runs

    def pull(self, arm: np.ndarray) -> np.ndarray:
        """Rewards, [N], of one arm in each run, [N]."""
        raise NotImplementedError

    def get_state(self) -> dict[str, np.ndarray]:
        """For checkpoints."""
        raise NotImplementedError

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `get_state` took."""
        raise NotImplementedError


class _ArrayBandits(Bandits):
    """Arms in NumPy. Each pull takes one draw per run from the generator, whatever the arm."""

    def __init__(self, means: np.ndarray, rng: np.random.Generator) -> None:
        """Makes arms with these true means, [N, K]."""
        self.num_runs, self.num_arms = means.shape
        self.means, self._rng = means, rng
        self._runs = np.arange(self.num_runs)

    def pull(self, arm: np.ndarray) -> np.ndarray:
        """Rewards, [N]."""
        assert self.means is not None
        return self._draw(self.means[self._runs, arm])

    def _draw(self, mean: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def get_state(self) -> dict[str, np.ndarray]:
        """State of the generator; the means come from the flags."""
        return checkpoint.get_state(self._rng)

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `get_state` took."""
        checkpoint.set_state(self._rng, state)


class BernoulliBandits(_ArrayBandits):
    """Rewards 1 with the arm's probability, else 0."""

    def _draw(self, mean: np.ndarray) -> np.ndarray:
        return (self._rng.random(len(mean)) < mean).astype(float)


class GaussianBandits(_ArrayBandits):
    """Rewards ~ N(mean, σ²)."""

    def __init__(self, means: np.ndarray, rng: np.random.Generator, sigma: float) -> None:
        """Makes arms with these true means, [N, K], and σ."""
        super().__init__(means, rng)
        self.sigma = sigma

    def _draw(self, mean: np.ndarray) -> np.ndarray:
        return mean + self.sigma * self._rng.standard_normal(len(mean))


class EnvironmentBandits(Bandits):
    """N copies of a Gymnasium environment with one state.

    Environments hide their state. Resuming therefore begins anew with the same seed and pulls the
    same arms again, which is exact for every environment that takes its randomness from its seed.
    The arms must stay what they are when an episode begins without a seed.
    """

    def __init__(self, env_id: str, num_runs: int, seed: int) -> None:
        """Makes and resets the environments; see `make_bandits`."""
        self.env_id = env_id
        self._seed = reset_seed(seed, 2)
        one = make_envs(env_id, 1)  # thousands would take a while to be refused
        observations, actions = one.single_observation_space, one.single_action_space
        one.close()
        if not isinstance(actions, Discrete) or actions.n < 2:
            raise UserError(
                f"--env-id {env_id}: actions are {actions}, but a bandit needs Discrete ones, at "
                f"least two; try {TESTBED}, {GAUSSIAN} or {BERNOULLI}"
            )
        if not isinstance(observations, Discrete) or observations.n != 1:
            raise UserError(
                f"--env-id {env_id}: observations are {observations}, but a bandit has one state, "
                "Discrete(1); for more states there are the td_ and mc_ scripts"
            )
        self.num_runs, self.num_arms = num_runs, int(actions.n)
        self._envs = make_envs(env_id, num_runs)
        self._begin()
        if self.means is None:
            print(
                f"{env_id} has no attribute `means`: regret and best arm are unknown",
                file=sys.stderr,
            )

    def pull(self, arm: np.ndarray) -> np.ndarray:
        """Rewards, [N]."""
        _, reward, _, _, _ = self._envs.step(arm)
        self._envs.take_finished()  # episodes of one pull: a list of them would only grow
        if not np.isfinite(reward).all():
            raise UserError(
                f"--env-id {self.env_id}: arm {arm[~np.isfinite(reward)][0]} gave a reward that is "
                "not finite; an environment must give finite rewards"
            )
        self._pulled.append(arm.astype(np.uint16))
        self._earned += reward
        return np.asarray(reward, float)

    def get_state(self) -> dict[str, np.ndarray]:
        """All arms pulled so far, [T, N], and what they earned, [N]."""
        pulled = np.array(self._pulled, np.uint16).reshape(-1, self.num_runs)
        return {"pulled": pulled, "earned": self._earned}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Pulls the same arms again.

        Raises:
            UserError: they earn something else, so the environment ignores its seed.
        """
        self._begin()
        for arm in state["pulled"]:
            self.pull(arm.astype(np.int64))
        if not np.array_equal(self._earned, state["earned"]):
            raise UserError(
                f"--resume: {self.env_id} gives other rewards for the same seed and the same arms, "
                "so its runs cannot be resumed; take all randomness from self.np_random"
            )

    def _begin(self) -> None:
        self._envs.reset(seed=self._seed)
        self._pulled: list[np.ndarray] = []
        self._earned = np.zeros(self.num_runs)
        try:
            told = self._envs.env.get_attr("means")  # type: ignore[attr-defined]
        except AttributeError:
            return
        try:
            means = np.array(told, float).reshape(self.num_runs, self.num_arms)
        except (TypeError, ValueError):
            means = np.array(np.nan)
        if not np.isfinite(means).all():
            raise UserError(
                f"--env-id {self.env_id}: its attribute `means` must hold one finite number for "
                f"each of the {self.num_arms} arms"
            )
        self.means = means


# ---------------------------------------------------------------------------------------------
# One at a time
# ---------------------------------------------------------------------------------------------


class BanditEnv(gym.Env):
    """K arms, one state; an episode is one pull. Subclasses say what a pull earns."""

    def __init__(self, means: np.ndarray) -> None:
        """Makes arms with these true means, [K]."""
        self.means = means
        self.observation_space, self.action_space = Discrete(1), Discrete(len(means))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begins an episode."""
        super().reset(seed=seed)
        return 0, {}

    def step(self, action: Any) -> Any:
        """Pulls an arm, which ends the episode."""
        return 0, self.draw(float(self.means[action])), True, False, {}

    def draw(self, mean: float) -> float:
        """A reward of an arm with this mean, drawn with `self.np_random`."""
        raise NotImplementedError


class BernoulliBandit(BanditEnv):
    """Arms that pay 1 with their probability, else 0."""

    def __init__(self, means: Means = DEFAULT_MEANS[BERNOULLI]) -> None:
        """Makes arms with these probabilities, [K]."""
        super().__init__(checked_means(means, probabilities=True))

    def draw(self, mean: float) -> float:
        """1 or 0."""
        return float(self.np_random.random() < mean)


class GaussianBandit(BanditEnv):
    """Arms whose rewards are ~ N(mean, σ²)."""

    def __init__(self, means: Means = DEFAULT_MEANS[GAUSSIAN], sigma: float = 1.0) -> None:
        """Makes arms with these means, [K], and σ."""
        super().__init__(checked_means(means))
        self.sigma = _checked_sigma(sigma)

    def draw(self, mean: float) -> float:
        """A normally distributed number."""
        return mean + self.sigma * float(self.np_random.standard_normal())


class TenArmedTestbed(GaussianBandit):
    """Sutton and Barto's: means ~ N(0, 1), drawn by `reset(seed=...)` and kept until the next."""

    def __init__(self, sigma: float = 1.0) -> None:
        """Makes the arms; they get their means from the first `reset`."""
        super().__init__(np.zeros(TESTBED_ARMS), sigma)
        self._drawn = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begins an episode; with a seed, on new arms."""
        result = super().reset(seed=seed)
        if seed is not None or not self._drawn:
            self.means, self._drawn = self.np_random.standard_normal(TESTBED_ARMS), True
        return result


gym.register(TESTBED, f"{__name__}:TenArmedTestbed")
gym.register(GAUSSIAN, f"{__name__}:GaussianBandit")
gym.register(BERNOULLI, f"{__name__}:BernoulliBandit")


# ---------------------------------------------------------------------------------------------
# Arms
# ---------------------------------------------------------------------------------------------


def checked_means(means: Means, probabilities: bool = False, flag: str = "--means") -> np.ndarray:
    """The means as an array, [K].

    Raises:
        UserError: fewer than two, not finite, or no probabilities where they must be.
    """
    arms, given = np.asarray(means, float), f"{flag} {_text(means)}".strip()
    if arms.ndim != 1 or len(arms) < 2:
        raise UserError(f"{given}: must be at least two numbers, one for each arm")
    if not np.isfinite(arms).all():
        raise UserError(f"{given}: must be finite numbers")
    if np.abs(arms).max() > LARGEST:
        raise UserError(f"{given}: must be from {-LARGEST:g} to {LARGEST:g}, or sums overflow")
    if probabilities and not ((arms >= 0.0) & (arms <= 1.0)).all():
        raise UserError(f"{given}: must be probabilities, between 0 and 1")
    return arms


def _checked_sigma(sigma: float) -> float:
    if not 0.0 <= sigma < np.inf:
        raise UserError(f"--sigma {sigma}: must be a finite number, 0 or more")
    if sigma > LARGEST:
        raise UserError(f"--sigma {sigma:g}: must be at most {LARGEST:g}, or sums overflow")
    return sigma


def _text(means: Means) -> str:
    return " ".join(f"{mean:g}" for mean in np.ravel(means))


def lai_robbins(means: np.ndarray, sigma: float | None = None) -> float:
    """C of Lai and Robbins' lower bound: in the long run, regret grows at least as C ln t.

    C is the sum over the inferior arms of (gap to the best mean) / KL(arm, best arm). It says
    nothing about short runs: a good strategy's regret can stay below C ln t for a long time.

    Args:
        means: true mean rewards, [K].
        sigma: standard deviation of Gaussian arms; None: Bernoulli arms.
    """
    arms = np.asarray(means, float)
    best = arms.max()
    worse = arms[arms < best]
    # An infinite divergence means that one pull will do; one that rounds to 0, that C is infinite.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore", under="ignore"):
        if sigma is not None:
            divergence = ((best - worse) / np.float64(sigma)) ** 2 / 2.0
        else:
            heads = np.where(worse > 0.0, worse * np.log(worse / best), 0.0)
            divergence = heads + (1.0 - worse) * np.log((1.0 - worse) / (1.0 - best))
        return float(((best - worse) / divergence).sum())


# ---------------------------------------------------------------------------------------------
# What happened
# ---------------------------------------------------------------------------------------------


class History:
    """Statistics over N runs at each of T time steps; `Run.track` saves and restores them."""

    def __init__(self, bandits: Bandits, num_steps: int) -> None:
        """Makes room for T steps."""
        self.bandits, self.num_steps = bandits, num_steps
        means = bandits.means
        self._best = None if means is None else means.max(axis=1)  # [N]
        try:
            self.tables = {
                "step": np.zeros(1, np.int64),  # taken so far
                "reward": np.zeros(num_steps),  # mean over runs
                "best_arm": np.zeros(num_steps),  # share of the runs that pull a best arm
                "regret": np.zeros((3, num_steps)),  # so far: mean, 5% and 95% quantile over runs
                "total_regret": np.zeros(bandits.num_runs),  # so far, of each run
                "last_reward": np.zeros(bandits.num_runs),  # sum over the last steps
                "last_best": np.zeros(bandits.num_runs),  # pulls of a best arm in the last steps
            }
        except (MemoryError, OverflowError, ValueError) as error:
            raise UserError(
                f"--num-steps {num_steps}: too many for this machine's memory"
            ) from error

    def get_state(self) -> dict[str, np.ndarray]:
        """For checkpoints."""
        return self.tables

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `get_state` took."""
        for name, table in self.tables.items():
            table[...] = state[name]

    def add(self, arm: np.ndarray, reward: np.ndarray) -> dict[str, float]:
        """Notes one step of all runs.

        Args:
            arm: pulled, [N].
            reward: earned, [N].

        Returns:
            Means over runs for `Run.log`.
        """
        tables, t = self.tables, int(self.tables["step"][0])
        tables["step"] += 1
        last = t >= self.num_steps - LAST
        tables["reward"][t] = reward.mean()
        tables["last_reward"] += reward * last
        metrics = {"train/reward": tables["reward"][t]}
        if self._best is not None:
            assert self.bandits.means is not None
            mean = self.bandits.means[np.arange(len(arm)), arm]  # [N]
            tables["best_arm"][t] = (mean == self._best).mean()
            tables["last_best"] += (mean == self._best) * last
            tables["total_regret"] += self._best - mean
            regret = tables["total_regret"]
            tables["regret"][:, t] = regret.mean(), *np.quantile(regret, (0.05, 0.95))
            metrics["train/best_arm_share"] = tables["best_arm"][t]
            metrics["train/regret"] = tables["regret"][0, t]
        return metrics

    def facts(self) -> dict[str, float | None]:
        """For `evaluation.json`: means over runs and their standard errors; None where unknown.

        `best_arm_share` and `mean_reward` are those of the last 100 steps, or of all if fewer.
        """
        tables, last = self.tables, min(LAST, self.num_steps)
        known = self._best is not None
        share, share_error = _mean(tables["last_best"] / last)
        regret, regret_error = _mean(tables["total_regret"])
        return {
            "best_arm_share": share if known else None,
            "best_arm_share_error": share_error if known else None,
            "mean_reward": _mean(tables["last_reward"] / last)[0],
            "regret": regret if known else None,
            "regret_error": regret_error if known else None,
            "lai_robbins": self._lai_robbins(),
        }

    def _lai_robbins(self) -> float | None:
        constant = self.bandits.lai_robbins
        return constant if constant is not None and np.isfinite(constant) else None

    def draw(self, path: Path, title: str) -> None:
        """Draws share of the best arm and regret over time, or rewards where nothing is known."""
        tables, runs = self.tables, self.bandits.num_runs
        steps = np.arange(1, self.num_steps + 1)
        band: dict[str, Any] = {"alpha": 0.2, "linewidth": 0}
        with plots.figure(path, columns=2, size=(11.0, 4.2)) as [left, right]:
            left.figure.suptitle(f"{title}, {runs:,} run{'s' * (runs > 1)}")
            if self._best is None:
                left.plot(steps, tables["reward"])
                left.set(xlabel="step", ylabel="reward", title="mean reward over runs")
                total = np.cumsum(tables["reward"])
                right.plot(steps, total / steps)
                right.set(xlabel="step", ylabel="reward per step", title="mean reward so far")
                return
            share = 100.0 * tables["best_arm"]
            error = 1.96 * np.sqrt(share * (100.0 - share) / runs)
            left.plot(steps, share, linewidth=1.0)
            left.fill_between(
                steps,
                np.maximum(share - error, 0.0),
                np.minimum(share + error, 100.0),
                label="95 % interval of the share",
                **band,
            )
            left.set(xlabel="step", ylabel="runs that pull the best arm [%]", ylim=(0.0, 101.0))
            left.legend(loc="lower right")
            mean, low, high = tables["regret"]
            right.plot(steps, mean, label="mean over runs")
            right.fill_between(steps, low, high, label="nine runs in ten", **band)
            constant = self._lai_robbins()
            if constant:
                slope = f"Lai and Robbins' slope: {constant:.3g} ln t"
                right.plot(steps, constant * np.log(steps), "--", color=plots.GREY, label=slope)
            right.set(xlabel="step", ylabel="regret so far [reward]")
            right.set_ylim(0.0, 1.35 * right.dataLim.y1 or 1.0)  # room for the legend
            right.legend(loc="upper left")


def draw_means(axes: Axes, steps: np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
    """Draws means over runs with their 95 % intervals.

    Args:
        axes: where to.
        steps: [P].
        curves: values of each run, [P, N], by label.
    """
    for label, values in curves.items():
        mean, error = values.mean(axis=1), 1.96 * values.std(axis=1) / np.sqrt(values.shape[1])
        [line] = axes.plot(steps, mean, label=label)
        color = line.get_color()
        axes.fill_between(steps, mean - error, mean + error, color=color, alpha=0.2, linewidth=0)


def final_measure(facts: Mapping[str, float | None]) -> tuple[str, float]:
    """What a bandit script reports: name and value, from `History.facts`."""
    share = facts["best_arm_share"]
    if share is not None:
        return "best arm share", share
    return "mean reward", float(facts["mean_reward"] or 0.0)


def _mean(values: np.ndarray) -> tuple[float, float | None]:
    """Mean of [N] values and its standard error, None for a single one."""
    scale = float(np.abs(values).max()) or 1.0  # squares of huge or tiny values are out of range
    error = scale * (values / scale).std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else None
    return float(values.mean()), None if error is None else float(error)
