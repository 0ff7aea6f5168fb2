"""Replay of sequences, for networks with memory: stretches of what each environment showed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from common.environments import VectorEnvs, shape_of
from common.errors import UserError
from common.replay import empty_actions, get_position, set_position, stored_dtype, tell_size

import numpy as np


class Sequences(NamedTuple):
    """Stretches of T transitions and T + 1 observations; leading shape [B] or [K, B].

    `observation[t + 1]` is the true successor of `observation[t]` wherever `mask[t]` is 1. A
    stretch may cross the end of an episode: the episode's last observation, after which nothing
    was done, has mask 0, and `begins` is 1 at the observation that follows it.
    """

    observation: np.ndarray  # [B, T + 1, ...] as the environment delivers observations
    action: np.ndarray  # [B, T] int32 (Discrete) or [B, T, A] float32 (Box)
    reward: np.ndarray  # [B, T] float32
    terminated: np.ndarray  # [B, T] float32: 1 where the MDP ended, so no bootstrap
    begins: np.ndarray  # [B, T + 1] float32: 1 at the first observation of an episode
    mask: np.ndarray  # [B, T] float32: 1 where a transition happened, 0 where there is none
    memory: np.ndarray  # [B, M] float32: the actor's memory before the first observation


def make_sequence_replay(
    envs: VectorEnvs,
    capacity: int,
    length: int,
    memory_size: int,
    seed: int | np.random.SeedSequence,
) -> SequenceReplay:
    """A replay buffer of sequences. Says its size before it allocates.

    Args:
        envs: training environments.
        capacity: observations to keep, all environments together.
        length: T, transitions of a sequence.
        memory_size: M, numbers of the actor's memory stored with each observation; 0 for none.
        seed: of the generator that draws sequences.

    Raises:
        UserError: the buffer does not fit into memory, or a sequence does not fit into the buffer.
    """
    if capacity // envs.num_envs < length + 2:
        raise UserError(
            f"--buffer-size {capacity}: too small for sequences of {length} steps in each of "
            f"{envs.num_envs} environments; choose at least {envs.num_envs * (length + 2)}"
        )
    size = SequenceReplay.bytes_needed(envs, capacity, memory_size)
    tell_size(size, capacity, "observations")
    return SequenceReplay(envs, capacity, length, memory_size, seed)


class SequenceReplay:
    """The last observations of each environment in the order in which they were seen.

    Every environment has its own ring of slots, one for each observation, so that each observation
    (and each image) is stored once. The slot also keeps what was done there: action, reward,
    `terminated`. The last observation of an episode takes a slot, too, in which nothing was done.

    Slots are counted with numbers that never wrap: slot `n` stands at `n % ring`. A sequence begins
    at any slot, each with the same probability, so that all transitions are drawn equally often but
    for those at the edge of what is stored; what a sequence wants beyond the newest is padding.
    """

    def __init__(
        self,
        envs: VectorEnvs,
        capacity: int,
        length: int,
        memory_size: int,
        seed: int | np.random.SeedSequence,
    ) -> None:
        """Allocates; memory is touched only as the buffer fills. For arguments see above."""
        n, space = envs.num_envs, envs.single_observation_space
        self.length = length
        self.ring = capacity // n
        self.observation = np.zeros((n, self.ring, *shape_of(space)), stored_dtype(space))
        actions = empty_actions(envs, n * self.ring)
        self.action = actions.reshape(n, self.ring, *actions.shape[1:])
        self.reward = np.zeros((n, self.ring), np.float32)
        self.terminated = np.zeros((n, self.ring), np.float32)
        self.begins = np.zeros((n, self.ring), np.float32)
        self.mask = np.zeros((n, self.ring), np.float32)
        self.memory = np.zeros((n, self.ring, memory_size), np.float32)
        self.rng = np.random.default_rng(seed)
        self.added = 0  # transitions ever added to each environment
        self.count = np.zeros(n, np.int64)  # slots ever written, by environment

    @staticmethod
    def bytes_needed(envs: VectorEnvs, capacity: int, memory_size: int) -> int:
        """Memory of a full buffer, in bytes."""
        space = envs.single_observation_space
        observation = int(np.prod(shape_of(space))) * stored_dtype(space).itemsize
        return capacity * (observation + empty_actions(envs, 1).nbytes + 4 * (4 + memory_size))

    def __len__(self) -> int:
        """Transitions that are stored."""
        return int(self.mask.sum())

    def add(
        self,
        state: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        next_state: np.ndarray,
        terminated: np.ndarray,
        begins: np.ndarray,
        memory: np.ndarray | None = None,
    ) -> None:
        """Stores one transition of each of N environments, over the oldest ones when full.

        Args:
            state: [N, ...]; where no episode begins, it is stored already: the last `next_state`.
            action: [N] or [N, A].
            reward: [N].
            next_state: the true successors, [N, ...]; see `successor`.
            terminated: [N].
            begins: whether `state` is the first observation of an episode, [N].
            memory: what the actor remembered before it saw `state`, [N, M]; left out if M = 0.
        """
        assert self.added or np.all(begins), "the first call begins an episode everywhere"
        first = np.flatnonzero(begins)
        self._write(first, state[first], 1.0)
        envs = np.arange(len(reward))
        at = (self.count - 1) % self.ring
        self.action[envs, at] = action
        self.reward[envs, at] = reward
        self.terminated[envs, at] = terminated
        self.mask[envs, at] = 1.0
        if memory is not None and self.memory.shape[2]:
            self.memory[envs, at] = memory
        self._write(envs, next_state, 0.0)
        self.added += 1

    def _write(self, envs: np.ndarray, observation: np.ndarray, begins: float) -> None:
        """A new slot in some environments, in which nothing has been done yet."""
        at = self.count[envs] % self.ring
        self.observation[envs, at] = observation
        self.begins[envs, at] = begins
        self.mask[envs, at] = self.reward[envs, at] = self.terminated[envs, at] = 0.0
        self.action[envs, at] = 0
        self.memory[envs, at] = 0.0
        self.count[envs] += 1

    def sample(self, *shape: int) -> Sequences:
        """Draws sequences: `sample(B)`, or `sample(K, B)` for K batches at once."""
        alive = np.minimum(self.count, self.ring) - 1  # [N]; the newest slot begins no sequence
        ends = np.cumsum(alive)
        draw = self.rng.integers(0, ends[-1], shape)
        env = np.searchsorted(ends, draw, side="right")
        oldest = np.maximum(self.count - self.ring, 0)
        first = oldest[env] + draw - (ends - alive)[env]  # [...] number of the first slot
        env = env[..., None]
        slot = first[..., None] + np.arange(self.length + 1)  # [..., T + 1]
        at, padding = slot % self.ring, slot >= self.count[env]
        observation = self.observation[env, at]
        begins = self.begins[env, at]
        mask = self.mask[env, at[..., :-1]]
        observation[padding] = 0
        begins[padding] = 0.0
        mask[padding[..., :-1]] = 0.0
        return Sequences(
            observation,
            self.action[env, at[..., :-1]],
            self.reward[env, at[..., :-1]],
            self.terminated[env, at[..., :-1]],
            begins,
            mask,
            self.memory[env[..., 0], at[..., 0]],
        )

    def get_state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps: the filled part, the positions, the generator's state."""
        parts = dict(self._parts(self.count))
        return parts | {"count": self.count} | get_position(self.added, self.rng)

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `get_state` gave."""
        self.added = set_position(state, self.rng)
        self.count[:] = state["count"]
        for name, part in self._parts(self.count):
            part[...] = state[name]

    def _parts(self, count: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        """(name, view) of all that is filled; by environment, so that loading needs no copy."""
        for name in ("observation", "action", "reward", "terminated", "begins", "mask", "memory"):
            array = getattr(self, name)
            for env, slots in enumerate(np.minimum(count, self.ring)):
                yield f"{name}_{env}", array[env, :slots]
