"""Vector environments in SAME_STEP mode: `make_envs`, the true `successor`, episode statistics."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from common.environments.flicker import FlickeringFrames
from common.environments.spaces import is_image, numbered, shape_of
from common.errors import UserError

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

# Evaluation of an environment without a time limit: a policy that runs in circles must end, too.
EVALUATION_LIMIT = 10_000  # steps per episode


def make_envs(
    env_id: str, num_envs: int, *, training: bool = True, flicker: float = 0.0, **kwargs: Any
) -> VectorEnvs:
    """Makes `num_envs` copies of an environment that step together.

    Args:
        env_id: a registered Gymnasium id, `ALE/Game-v5`, or `module:Id-v0` (imports `module`).
        num_envs: number of copies N.
        training: for training, losing a life in an Atari game ends an episode for the learner
            (`terminated`) although the game goes on; evaluation plays whole games, and cuts
            episodes of environments without a time limit after `EVALUATION_LIMIT` steps.
        flicker: probability with which each frame of an Atari game is blank; needs `stack_num=1`.
        **kwargs: passed to the environment's constructor (Atari: to `AtariVectorEnv`).

    Returns:
        Environments whose `step` takes actions `[N, ...]` and returns observations `[N, ...]` (an
        ended episode's slot already shows the first observation of the next), rewards,
        `terminated` and `truncated`, all `[N]`, and an `info` for `successor`.

    Raises:
        UserError: unknown id, missing package, or a space no script here can handle.
    """
    if num_envs < 1:
        raise UserError(f"--num-envs {num_envs}: must be at least 1")
    spec = _spec(env_id)
    if flicker and (spec.namespace != "ALE" or kwargs.get("stack_num") != 1):
        raise UserError(f"--flicker {flicker}: only single frames of Atari games flicker; use 0")
    if not training and spec.max_episode_steps is None and spec.namespace != "ALE":
        kwargs = {"max_episode_steps": EVALUATION_LIMIT} | kwargs

    def make() -> gym.vector.VectorEnv:
        if spec.namespace == "ALE":
            # True rewards here; what a learner makes of them (clipping) is the algorithm's affair.
            # `episodic_life` would restart the game at each lost life: nobody would see level two.
            games = gym.make_vec(
                spec,
                num_envs,
                autoreset_mode=AutoresetMode.SAME_STEP,
                reward_clipping=False,
                life_loss_info=training,
                **kwargs,
            )
            return FlickeringFrames(games, flicker) if flicker else games
        copies = [partial(_make, spec, **kwargs)] * num_envs
        return SyncVectorEnv(copies, autoreset_mode=AutoresetMode.SAME_STEP, copy=True)

    with _told(env_id):
        envs = make()
    _check_spaces(env_id, envs.single_observation_space, envs.single_action_space)
    # Atari's reset restores the whole emulator; others may keep something in their objects.
    return VectorEnvs(envs, env_id, None if spec.namespace == "ALE" else make)


def atari_kwargs(env_id: str, frame_size: int) -> dict[str, Any]:
    """What `make_envs` needs for Atari frames of another size than 84 x 84.

    Args:
        env_id: any environment's id; only Atari games get anything.
        frame_size: pixels on each side.

    Raises:
        UserError: too small for the convolutions, or no Atari game.
    """
    if not 36 <= frame_size <= 210:
        raise UserError(
            f"--frame-size {frame_size}: must be 36 (the smallest the convolutions take) to 210"
        )
    if frame_size == 84:
        return {}
    if _spec(env_id).namespace != "ALE":
        raise UserError(f"--frame-size {frame_size}: only for Atari games, {env_id} has no frames")
    return {"img_height": frame_size, "img_width": frame_size}


def make_env(env_id: str, **kwargs: Any) -> gym.Env:
    """One plain Gymnasium environment, for tabular scripts and pictures.

    Raises:
        UserError: unknown id or missing package.
    """
    spec = _spec(env_id)
    with _told(env_id):
        return _make(spec, **kwargs)


@contextmanager
def _told(env_id: str) -> Iterator[None]:
    """Whatever an environment's constructor raises becomes one sentence."""
    try:
        yield
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise UserError(f"--env-id {env_id}: a package is missing: {error}") from error
    except Exception as error:
        raise UserError(
            f"--env-id {env_id}: the environment does not start: {type(error).__name__}: {error}"
        ) from error


def reward_threshold(env_id: str) -> float | None:
    """The mean return at which the registry calls the environment solved, or None.

    Taxi's is 8 there, but the best policy earns 7.93 on average: 7.5 here.
    """
    spec = _spec(env_id)
    return 7.5 if spec.name == "Taxi" else spec.reward_threshold


def reset_seed(seed: int, *parts: int) -> int:
    """A seed for `envs.reset` from a run's seed and, say, the step at which it happens.

    Gymnasium gives copy i the seed plus i. Plain seeds 0 and 1 would share all but one of their
    copies' seeds; hashed ones do not meet.
    """
    return int(np.random.SeedSequence([seed, *parts]).generate_state(1)[0] >> 2)


def successor(next_state: np.ndarray, info: dict[str, Any]) -> np.ndarray:
    """The observations that the actions really led to, [N, ...].

    Where an episode ended, `next_state` is already the first observation of the next episode and
    the true successor stands in `info["final_obs"]`: an object array for Gymnasium's own vector
    environments, a plain one for Atari's. Only slots in the mask `info["_final_obs"]` mean
    anything. This module is the only place that looks at them.
    """
    if "final_obs" not in info:
        return next_state
    result = next_state.copy()
    for i in np.flatnonzero(info["_final_obs"]):
        result[i] = info["final_obs"][i]
    return result


def new_episodes(info: dict[str, Any], num_envs: int) -> np.ndarray:
    """Whether `next_state` is the first observation of a new episode, [N] bool.

    Not the same as `terminated | truncated`: when a life is lost in an Atari game, the learner's
    episode ends but the game goes on.
    """
    return np.array(info["_final_obs"] if "final_obs" in info else np.zeros(num_envs), bool)


class VectorEnvs(gym.vector.VectorWrapper):
    """Vector environments that keep episode statistics and can cut all episodes at a given step.

    The cut makes exact resumption possible for environments that hide their state: at each
    checkpoint every episode is truncated, in interrupted and uninterrupted runs alike, and fresh
    ones begin from a seed that depends on nothing but the run's seed and the step.
    """

    def __init__(
        self,
        env: gym.vector.VectorEnv,
        env_id: str = "",
        remake: Callable[[], gym.vector.VectorEnv] | None = None,
    ) -> None:
        """Wraps a Gymnasium vector environment in SAME_STEP mode.

        Args:
            env: the environments.
            env_id: for messages.
            remake: makes new ones at every cut, because objects may keep what `reset` forgets:
                BipedalWalker's physics, for one, remembers earlier episodes.
        """
        super().__init__(env)
        # Stays the same, and goes on with its random numbers, when environments are made anew.
        self.action_space = env.action_space
        self._remake = remake
        if env.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise ValueError("VectorEnvs needs autoreset_mode=AutoresetMode.SAME_STEP")
        self.env_id = env_id
        self.is_atari = hasattr(env.unwrapped, "ale")
        # Frames per observation when the environment stacks them on the first axis, else 1.
        self.frame_stack = shape_of(self.single_observation_space)[0] if self.is_atari else 1
        self.finished: list[tuple[float, int]] = []  # (return, length) since the last look
        self.step_count = 0  # environment steps, all copies together
        self.cut_every, self.seed = 0, 0
        # Episodes that the last step ended for a checkpoint, and not of their own accord, [N].
        self.cut_short = np.zeros(self.num_envs, bool)
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, np.int64)
        # Atari reports a lost life as `terminated`; a new game has begun if and only if the frame
        # number at which the running game began has changed.
        self._game_start = np.zeros(self.num_envs, np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Begins a new episode in every copy; returns observations [N, ...] and info."""
        self._returns[:] = 0.0
        self._lengths[:] = 0
        state, info = self.env.reset(seed=seed, options=options)
        if self.is_atari:
            self._game_start = info["frame_number"] - info["episode_frame_number"]
        return state, info

    def step(self, actions: np.ndarray) -> Any:
        """Steps every copy; see `make_envs` for shapes."""
        next_state, reward, terminated, truncated, info = self.env.step(actions)
        self.step_count += self.num_envs
        self._returns += reward
        self._lengths += 1
        done = terminated | truncated
        if self.is_atari:
            game_start = info["frame_number"] - info["episode_frame_number"]
            over = game_start != self._game_start
            self._game_start = game_start
            # Atari gives no mask: slots of games that go on, lost life or not, hold old memory.
            info["_final_obs"] = over
        else:
            over = done
        cut = self.cut_every and self.step_count % self.cut_every == 0
        self.cut_short = ~done if cut else np.zeros_like(done)
        if over.any() or cut:
            self._check_returns()
            for i in np.flatnonzero(over):
                self.finished.append((float(self._returns[i]), int(self._lengths[i])))
            self._returns[over] = 0.0
            self._lengths[over] = 0
        if cut:
            every = np.ones(self.num_envs, bool)
            info = {"final_obs": successor(next_state, info), "_final_obs": every}
            truncated = truncated | ~done
            if self._remake is not None:
                self.env.close()
                self.env = self._remake()
            next_state, _ = self.reset(seed=reset_seed(self.seed, self.step_count))
        return next_state, reward, terminated, truncated, info

    def restart(self, mask: np.ndarray) -> np.ndarray:
        """Begins a new game in some copies of an Atari game; returns all observations, [N, ...]."""
        state, info = self.env.reset(options={"reset_mask": mask})
        self._returns[mask], self._lengths[mask] = 0.0, 0
        self._game_start = info["frame_number"] - info["episode_frame_number"]
        return state

    def _check_returns(self) -> None:
        # Before every checkpoint: a replay buffer must not keep what no loss can be computed from.
        if not np.isfinite(self._returns).all():
            raise UserError(
                f"--env-id {self.env_id}: rewards add up to {self._returns.tolist()} by step "
                f"{self.step_count}; an environment must give finite rewards"
            )

    def take_finished(self) -> list[tuple[float, int]]:
        """(return, length) of the episodes that ended since the last call, cut ones left out."""
        finished, self.finished = self.finished, []
        return finished


def _spec(env_id: str) -> gym.envs.registration.EnvSpec:
    """The registry's entry, or a sentence with the nearest known names."""
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever is wrong with a reader's file
            raise UserError(
                f"--env-id {env_id}: cannot import module '{module}' "
                f"({type(error).__name__}: {error}); "
                "repair it, or put the folder that holds it on PYTHONPATH"
            ) from error
    if name.startswith("ALE/") or "ALE/" not in "".join(gym.registry):
        _register_atari()
    try:
        spec = gym.spec(name)
    except (gym.error.Error, ValueError) as error:
        usable = [known for known in gym.registry if _usable(known)]
        near = difflib.get_close_matches(name, usable, n=3, cutoff=0.5)
        # A wrong version of a right name is the commonest slip: offer the newest first.
        base = name.rpartition("-v")[0] or name
        near = sorted((k for k in usable if k.rpartition("-v")[0] == base), reverse=True) + [
            name for name in near if name.rpartition("-v")[0] != base
        ]
        hint = (
            f"did you mean {' or '.join(near[:3])}?"
            if near
            else "gymnasium.pprint_registry() lists all"
        )
        raise UserError(f"--env-id {env_id}: no such environment; {hint}") from error
    if _is_old_atari(spec):
        game = re.sub("(NoFrameskip|Deterministic|-ram)+$", "", spec.name)
        raise UserError(f"--env-id {env_id}: an old id without preprocessing; use ALE/{game}-v5")
    return spec


def _is_old_atari(spec: gym.envs.registration.EnvSpec) -> bool:
    return str(spec.entry_point).startswith("ale_py") and spec.namespace != "ALE"


def _usable(env_id: str) -> bool:
    """Whether to offer an id to somebody who mistyped one."""
    spec = gym.registry[env_id]
    if _is_old_atari(spec) or spec.name.startswith("GymV"):
        return False
    # Gymnasium registers environments of packages that need not be there.
    return spec.namespace in (None, "ALE") or importlib.util.find_spec("jax") is not None


def _make(spec: gym.envs.registration.EnvSpec, **kwargs: Any) -> gym.Env:
    # The checker is for authors of environments; it costs a third of a CartPole step.
    return numbered(gym.make(spec, disable_env_checker=True, **kwargs))


def _register_atari() -> None:
    try:
        import ale_py
    except ImportError as error:
        raise UserError("Atari games need a package: pip install ale-py") from error
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    gym.register_envs(ale_py)


def _check_spaces(env_id: str, observation: gym.Space, action: gym.Space) -> None:
    if not (
        isinstance(observation, Discrete)
        or (isinstance(observation, Box) and len(observation.shape) == 1)
        or is_image(observation)
    ):
        raise UserError(
            f"--env-id {env_id}: observations are {observation}; scripts here take Box vectors, "
            "Box images (uint8, at least 36 x 36), Discrete observations and Tuples of those"
        )
    if not isinstance(action, Box | Discrete) or (
        isinstance(action, Box) and len(action.shape) != 1
    ):
        raise UserError(
            f"--env-id {env_id}: actions are {action}; scripts here take Discrete and Box vectors"
        )
    if isinstance(action, Discrete) and action.start != 0:
        raise UserError(f"--env-id {env_id}: actions start at {action.start}; they must start at 0")
