"""Replay buffers for any observation, one of which stores each Atari frame once.

Both draw uniformly; `common.prioritized` draws by priority from either of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from common.checkpoint import get_state, set_state
from common.environments import VectorEnvs, shape_of
from common.errors import UserError

import gymnasium as gym
import numpy as np


class Batch(NamedTuple):
    """Transitions; every array has the leading shape that was asked for, [B] or [K, B]."""

    state: np.ndarray  # [B, ...] as the environment delivers observations
    action: np.ndarray  # [B] int32 (Discrete) or [B, A] float32 (Box)
    reward: np.ndarray  # [B] float32
    next_state: np.ndarray  # [B, ...] the true successor, also at an episode's end
    terminated: np.ndarray  # [B] float32: 1 where the MDP ended, so no bootstrap


class NStepBatch(NamedTuple):
    """Stretches of up to n steps of one episode; leading shapes as in `Batch`.

    A stretch ends early where its episode does, and at the newest transition of its environment. A
    time limit ends it without `terminated`: bootstrap from `next_state` with `discount`.
    """

    state: np.ndarray  # [B, ...] s_t
    action: np.ndarray  # [B] or [B, A] a_t
    reward: np.ndarray  # [B] float32: r_t + γ r_t+1 + ... + γ^(k-1) r_t+k-1, with k <= n
    next_state: np.ndarray  # [B, ...] the true s_t+k
    terminated: np.ndarray  # [B] float32: 1 where the MDP ended within the stretch
    discount: np.ndarray  # [B] float32: γ^k, for what comes after


def make_replay(
    envs: VectorEnvs,
    capacity: int,
    seed: int | np.random.SeedSequence,
    n_step: int | None = None,
    gamma: float = 1.0,
) -> ReplayBuffer | FrameReplayBuffer:
    """The replay buffer that fits the environments: stacked Atari frames are stored once.

    Says its size before it allocates.

    Args:
        envs: training environments.
        capacity: transitions to keep, all environments together.
        seed: of the generator that draws batches.
        n_step: steps per stretch: batches are `NStepBatch`es; None: single steps, as `Batch`es.
        gamma: discount factor γ within a stretch.

    Raises:
        UserError: the buffer does not fit into memory.
    """
    kind = FrameReplayBuffer if envs.frame_stack > 1 else ReplayBuffer
    size = kind.bytes_needed(envs, capacity)
    tell_size(size, capacity, "transitions")
    return kind(envs, capacity, seed, n_step, gamma)


def tell_size(size: int, capacity: int, unit: str) -> None:
    """Says how much memory a buffer will take if that is much.

    Args:
        size: in bytes, when full.
        capacity: what `--buffer-size` asks for.
        unit: of the capacity.

    Raises:
        UserError: it does not fit into memory.
    """
    if size > 100e6:
        print(f"replay buffer: {capacity:,} {unit}, {size / 1e9:.2f} GB", file=sys.stderr)
    available = _memory_available()
    if available is not None and size > available:
        fitting = int(capacity * available / size * 0.9)
        raise UserError(
            f"--buffer-size {capacity}: needs {size / 1e9:.1f} GB of memory, "
            f"{available / 1e9:.1f} GB are free; choose at most {fitting}"
        )


class ReplayBuffer:
    """The last `capacity` transitions, drawn uniformly with replacement."""

    def __init__(
        self,
        envs: VectorEnvs,
        capacity: int,
        seed: int | np.random.SeedSequence,
        n_step: int | None = None,
        gamma: float = 1.0,
    ) -> None:
        """Allocates; memory is touched only as the buffer fills. Arguments as in `make_replay`."""
        space = envs.single_observation_space
        self.capacity, self.num_envs = capacity, envs.num_envs
        self.n_step, self.gamma = n_step, gamma
        self.state = np.zeros((capacity, *shape_of(space)), stored_dtype(space))
        self.next_state = np.zeros((capacity, *shape_of(space)), stored_dtype(space))
        self.action = empty_actions(envs, capacity)
        self.reward = np.zeros(capacity, np.float32)
        self.terminated = np.zeros(capacity, np.float32)
        self.done = np.zeros(capacity, bool)  # the episode ended, by itself or by a time limit
        self.rng = np.random.default_rng(seed)
        self.added = 0  # transitions ever added
        self.dead: list[int] = []  # none ever dies before it is written over

    @staticmethod
    def bytes_needed(envs: VectorEnvs, capacity: int) -> int:
        """Memory of a full buffer, in bytes."""
        space = envs.single_observation_space
        observation = int(np.prod(shape_of(space))) * stored_dtype(space).itemsize
        return capacity * (2 * observation + empty_actions(envs, 1).nbytes + 9)

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(
        self,
        state: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        next_state: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> np.ndarray:
        """Stores one transition of each of N environments, over the oldest ones when full.

        Args:
            state: [N, ...].
            action: [N] or [N, A].
            reward: [N].
            next_state: the true successors, [N, ...]; see `successor`.
            terminated: [N].
            truncated: [N]; a stretch of n steps ends there, without having terminated.

        Returns:
            The places they took, [N]: what `gather` wants, from 0 to `capacity` - 1.
        """
        n = len(reward)
        start = self.added % self.capacity
        if start + n <= self.capacity:
            at: slice | np.ndarray = slice(start, start + n)
        else:
            at = np.arange(start, start + n) % self.capacity
        self.state[at] = state
        self.action[at] = action
        self.reward[at] = reward
        self.next_state[at] = next_state
        self.terminated[at] = terminated
        self.done[at] = np.logical_or(terminated, truncated)
        self.added += n
        return np.arange(start, start + n) % self.capacity

    def sample(self, *shape: int) -> Batch | NStepBatch:
        """Draws transitions: `sample(B)`, or `sample(K, B)` for K batches at once."""
        return self.gather(self.rng.integers(0, len(self), shape))

    def gather(self, index: np.ndarray) -> Batch | NStepBatch:
        """The transitions at the given places, [...], or the stretches that begin there."""
        # `take`: indexing with arrays is ten times slower where it copies rows.
        state, action = self.state.take(index, axis=0), self.action.take(index, axis=0)
        if self.n_step is None:
            next_state = self.next_state.take(index, axis=0)
            return Batch(state, action, self.reward[index], next_state, self.terminated[index])
        last, reward, discount = _stretch(self, index)
        next_state = self.next_state.take(last, axis=0)
        return NStepBatch(state, action, reward, next_state, self.terminated[last], discount)

    def following(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the same environments' next transitions are, and whether they exist yet."""
        age = (self.added - 1 - index) % self.capacity  # transitions that were added later
        return (index + self.num_envs) % self.capacity, age >= self.num_envs

    def get_state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps: the filled part, the position, the generator's state."""
        filled = {name: getattr(self, name)[: len(self)] for name in self._arrays}
        return filled | get_position(self.added, self.rng)

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `get_state` gave."""
        self.added = set_position(state, self.rng)
        for name in self._arrays:
            getattr(self, name)[: len(self)] = state[name]

    _arrays = ("state", "action", "reward", "next_state", "terminated", "done")


class FrameReplayBuffer:
    """Uniform replay for stacked frames: each frame is stored once, stacks are rebuilt on drawing.

    Every environment has its own ring of frames. An episode begins with a whole stack; each step
    adds one frame; an episode's last observation stays, so that the true successor of the last
    transition can be rebuilt. Frames are counted with numbers that never wrap: `frame % ring` is
    the place, and a transition is alive as long as its oldest frame has not been written over.
    """

    CHUNK = 64 * 2**20  # bytes of frames per array in a checkpoint, so that loading needs no copy

    def __init__(
        self,
        envs: VectorEnvs,
        capacity: int,
        seed: int | np.random.SeedSequence,
        n_step: int | None = None,
        gamma: float = 1.0,
    ) -> None:
        """Allocates; memory is touched only as the buffer fills. Arguments as in `make_replay`."""
        n, shape = envs.num_envs, shape_of(envs.single_observation_space)
        self.stack = envs.frame_stack
        self.n_step, self.gamma = n_step, gamma
        self.per_env = -(-capacity // n)  # transitions of each environment
        self.capacity = n * self.per_env
        self.ring = self._ring(self.per_env, self.stack)
        self.frames = np.zeros((n, self.ring, *shape[1:]), np.uint8)
        # Number of the newest frame of each transition's state; its successor's is one higher.
        self.newest = np.zeros((n, self.per_env), np.int64)
        self.action = empty_actions(envs, n * self.per_env).reshape(n, self.per_env, -1)
        if isinstance(envs.single_action_space, gym.spaces.Discrete):
            self.action = self.action[..., 0]
        self.reward = np.zeros((n, self.per_env), np.float32)
        self.terminated = np.zeros((n, self.per_env), np.float32)
        self.done = np.zeros((n, self.per_env), bool)
        self.rng = np.random.default_rng(seed)
        self.added = 0  # transitions ever added to each environment
        self.count = np.zeros(n, np.int64)  # frames ever written, by environment
        self.oldest = np.zeros(n, np.int64)  # first transition whose frames are all alive
        self.dead: list[int] = []  # places that died in the last `add`, nothing new stands there
        self._expected: np.ndarray | None = None  # what add() should see next as `state`

    @staticmethod
    def _ring(per_env: int, stack: int) -> int:
        # Two per cent for the whole stacks at the beginning of episodes. Where episodes are so
        # short that this is too little, the oldest transitions die a little earlier.
        return per_env + per_env // 50 + 2 * stack + 2

    @staticmethod
    def bytes_needed(envs: VectorEnvs, capacity: int) -> int:
        """Memory of a full buffer, in bytes."""
        per_env = -(-capacity // envs.num_envs)
        frame = int(np.prod(shape_of(envs.single_observation_space)[1:]))
        ring = FrameReplayBuffer._ring(per_env, envs.frame_stack)
        action = empty_actions(envs, 1).nbytes
        return envs.num_envs * (ring * frame + per_env * (8 + action + 9))

    def __len__(self) -> int:
        return int(np.sum(self.added - self.oldest))

    def add(
        self,
        state: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        next_state: np.ndarray,
        terminated: np.ndarray,
        truncated: np.ndarray,
    ) -> np.ndarray:
        """Stores one transition of each of N environments; see `ReplayBuffer.add`.

        `terminated` may be a lost life in a game that goes on: if the next call's `state` is this
        call's `next_state`, nothing is stored twice, whatever the flags say.
        """
        for i in range(len(reward)):
            fresh = self._expected is None or not np.array_equal(self._expected[i], state[i])
            if fresh:
                self._write(i, state[i])
            self._write(i, next_state[i, -1:])
        at = self.added % self.per_env
        self.newest[:, at] = self.count - 2
        self.action[:, at] = action
        self.reward[:, at] = reward
        self.terminated[:, at] = terminated
        self.done[:, at] = np.logical_or(terminated, truncated)
        self.added += 1
        self._expected = next_state
        # A transition dies when it is itself overwritten or when its oldest frame is.
        np.maximum(self.oldest, self.added - self.per_env, out=self.oldest)
        first_frame = self.count - self.ring
        self.dead = []
        for i in range(len(reward)):
            while self.newest[i, self.oldest[i] % self.per_env] - self.stack + 1 < first_frame[i]:
                self.dead.append(i * self.per_env + int(self.oldest[i]) % self.per_env)
                self.oldest[i] += 1
        return np.arange(len(reward)) * self.per_env + at

    def _write(self, env: int, frames: np.ndarray) -> None:
        for frame in frames:
            self.frames[env, self.count[env] % self.ring] = frame
            self.count[env] += 1

    def sample(self, *shape: int) -> Batch | NStepBatch:
        """Draws transitions: `sample(B)`, or `sample(K, B)` for K batches at once."""
        alive = self.added - self.oldest  # [N]
        ends = np.cumsum(alive)
        draw = self.rng.integers(0, ends[-1], shape)
        env = np.searchsorted(ends, draw, side="right")
        at = (self.oldest[env] + draw - (ends - alive)[env]) % self.per_env
        return self.gather(env * self.per_env + at)

    def gather(self, index: np.ndarray) -> Batch | NStepBatch:
        """The transitions at the given places, [...], or the stretches that begin there."""
        env, at = np.divmod(index, self.per_env)
        newest = self.newest[env, at]
        if self.n_step is None:
            reward, terminated = self.reward[env, at], self.terminated[env, at]
            window = newest[..., None] + np.arange(1 - self.stack, 2)  # [..., stack + 1]
            stacks = self._frames(env, window)
            return Batch(
                np.moveaxis(stacks[:-1], 0, index.ndim),
                self.action[env, at],
                reward,
                np.moveaxis(stacks[1:], 0, index.ndim),
                terminated,
            )
        last, reward, discount = _stretch(self, index)
        last_at = last % self.per_env
        window = np.arange(1 - self.stack, 1)
        return NStepBatch(
            np.moveaxis(self._frames(env, newest[..., None] + window), 0, index.ndim),
            self.action[env, at],
            reward,
            np.moveaxis(
                self._frames(env, self.newest[env, last_at][..., None] + 1 + window), 0, index.ndim
            ),
            self.terminated[env, last_at],
            discount,
        )

    def _frames(self, env: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        """Frames by environment [...] and number [..., F], as [F, ..., H, W]."""
        frames = self.frames[env[..., None], numbers % self.ring]
        return np.moveaxis(frames, env.ndim, 0)

    def following(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the same environments' next transitions are, and whether they exist yet."""
        env, at = np.divmod(index, self.per_env)
        exists = (self.added - 1 - at) % self.per_env >= 1
        return env * self.per_env + (at + 1) % self.per_env, exists

    def get_state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps: the filled part, the positions, the generator's state."""
        transitions = min(self.added, self.per_env)
        state = {name: getattr(self, name)[:, :transitions] for name in self._arrays}
        state |= {"count": self.count, "oldest": self.oldest}
        for name, part in self._chunks():
            state[name] = part
        return state | get_position(self.added, self.rng)

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `get_state` gave; the next episode starts with a whole stack."""
        self.added = set_position(state, self.rng)
        transitions = min(self.added, self.per_env)
        for name in self._arrays:
            getattr(self, name)[:, :transitions] = state[name]
        self.count[:], self.oldest[:] = state["count"], state["oldest"]
        for name, part in self._chunks():
            part[...] = state[name]
        self._expected = None

    def _chunks(self) -> Iterator[tuple[str, np.ndarray]]:
        """(name, view) of the frames written so far, in pieces of about `CHUNK` bytes."""
        length = max(1, self.CHUNK // self.frames[0, 0].nbytes)
        for env, count in enumerate(self.count):
            filled = min(int(count), self.ring)
            for start in range(0, filled, length):
                stop = min(start + length, filled)
                yield f"frames_{env}_{start:09d}", self.frames[env, start:stop]

    _arrays = ("newest", "action", "reward", "terminated", "done")


def _stretch(
    replay: ReplayBuffer | FrameReplayBuffer, first: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Follows up to n transitions of one episode.

    Args:
        replay: the buffer.
        first: places of s_t, a_t, [...].

    Returns:
        Places of the last transitions, the discounted sums of rewards, and γ to the number of
        steps, all [...].
    """
    reward_of, done = replay.reward.reshape(-1), replay.done.reshape(-1)
    assert replay.n_step is not None
    last, reward = first, reward_of[first]
    discount = np.full(first.shape, replay.gamma, np.float32)
    going = ~done[first]
    for _ in range(replay.n_step - 1):
        following, exists = replay.following(last)
        going &= exists
        last = np.where(going, following, last)
        reward = np.where(going, reward + discount * reward_of[last], reward)
        discount = np.where(going, discount * np.float32(replay.gamma), discount)
        going &= ~done[last]
    return last, reward.astype(np.float32), discount


def stored_dtype(space: gym.Space) -> np.dtype:
    """Images stay uint8, integers int32; everything else is stored as float32."""
    if space.dtype == np.uint8:
        return np.dtype(np.uint8)
    return np.dtype(np.int32 if np.issubdtype(space.dtype, np.integer) else np.float32)


def empty_actions(envs: VectorEnvs, capacity: int) -> np.ndarray:
    space = envs.single_action_space
    return np.zeros((capacity, *shape_of(space)), stored_dtype(space))


def get_position(added: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"added": np.array(added), "rng": get_state(rng)["state"]}


def set_position(state: Mapping[str, np.ndarray], rng: np.random.Generator) -> int:
    set_state(rng, {"state": state["rng"]})
    return int(state["added"])


def _memory_available() -> int | None:
    """Free memory in bytes where the system tells (Linux), else None."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
