"""Policies that remember: their memory begins anew wherever an episode begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

# Observations [N, ...] and memory [N, M] -> outputs [N, D] and the memory after it [N, M].
Step = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def begin_episodes(policy: Any, begins: np.ndarray) -> None:
    """Tells a policy where an episode begins; to a policy without memory that means nothing.

    Args:
        policy: observations [N, ...] -> actions [N, ...]; may have a method `begin(begins)`.
        begins: whether the next observation is the first of an episode, [N] bool.
    """
    begin = getattr(policy, "begin", None)
    if begin is not None:
        begin(begins)


def note_actions(memory: np.ndarray, action: np.ndarray, num_actions: int) -> None:
    """Writes actions [N], one-hot, over the last A columns of a memory [N, M]."""
    memory[:, -num_actions:] = np.arange(num_actions) == action[:, None]


class GreedyMemoryPolicy:
    """π(s) = argmax_a Q(s, a), where Q also depends on a memory of each environment's own.

    The last columns of the memory, one for each action, tell the last action.
    """

    def __init__(self, q_values: Step, memory_size: int) -> None:
        """Begins without environments; the first call shows how many there are.

        Args:
            q_values: observations [N, ...] and memory [N, M] -> values [N, A] and memory [N, M].
            memory_size: M.
        """
        self._q_values = q_values
        self.memory = np.zeros((0, memory_size), np.float32)  # [N, M]

    def begin(self, begins: np.ndarray) -> None:
        """Forgets what happened before, in the environments of a mask [N]."""
        self._fit(len(begins))
        self.memory[begins] = 0.0

    def __call__(self, state: np.ndarray) -> np.ndarray:
        """Greedy actions, [N, ...] -> [N]; remembers what it saw."""
        self._fit(len(state))
        q_values, self.memory = self._q_values(state, self.memory)
        action = q_values.argmax(axis=1)
        note_actions(self.memory, action, q_values.shape[1])
        return action

    def _fit(self, num_envs: int) -> None:
        # Another number of environments: other environments, of which nothing is known.
        if len(self.memory) != num_envs:
            self.memory = np.zeros((num_envs, self.memory.shape[1]), np.float32)
