"""Prioritized experience replay (Schaul et al. 2016): transitions drawn by how much they surprise.

The book's chapter 9, "DQN with prioritized experience replay". Both kinds of priority are here:

    proportional   p_i = |δ_i| + 1e-6                                                     (1)
    rank           p_i = 1 / rank(i), rank 1 for the largest |δ|                          (2)
    P(i) = p_i^α / Σ_k p_k^α                                                              (3)
    w_i = (N P(i))^-β / max_j w_j over the batch                                          (4)
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from common.checkpoint import get_state, set_state
from common.errors import UserError
from common.replay import Batch, FrameReplayBuffer, NStepBatch, ReplayBuffer

import numpy as np

KINDS = ("proportional", "rank")
SMALLEST = 1e-6  # added to |δ|, so that no transition is lost for ever
MOST_WAITING = 1000  # changes of the tree that may wait until its sums are added up
SORT_AFTER = 0.25  # part of the ranks that may be out of date before all are sorted again


class SumTree:
    """Weights of numbered leaves; finds the leaf at a point of their running sum in O(log n).

    A binary tree in which every node holds the sum of its two children. All points go down side by
    side, and sums are brought up to date when they are next asked for, not at each change.
    """

    def __init__(self, size: int) -> None:
        """Makes a tree with `size` leaves of weight 0."""
        self.size = size
        depth = (size - 1).bit_length()
        self.levels = [np.zeros(2**k) for k in reversed(range(depth + 1))]  # leaves to root
        self._changed: list[np.ndarray] = []  # leaves, by call, that the nodes do not know yet

    @property
    def leaves(self) -> np.ndarray:
        """Weights by leaf, [size]; to be changed only by `set` and `fill`."""
        return self.levels[0][: self.size]

    @property
    def total(self) -> float:
        """The sum of all weights."""
        self._add_up()
        return float(self.levels[-1][0])

    def set(self, index: np.ndarray, weight: np.ndarray) -> None:
        """Gives leaves new weights; where a leaf is named twice, the last weight counts.

        Args:
            index: leaves, [M].
            weight: [M], 0 or more.
        """
        self.levels[0][index] = weight
        self._changed.append(np.array(index))
        if len(self._changed) == MOST_WAITING:
            self._add_up()

    def fill(self, weight: np.ndarray) -> None:
        """Gives all leaves new weights, [size]."""
        self.leaves[:] = weight
        self._add_up_all()

    def _add_up(self) -> None:
        """Brings the nodes above changed leaves up to date."""
        if not self._changed:
            return
        node = np.concatenate(self._changed)
        if len(node) * len(self.levels) > self.size:  # so many that all is less work
            self._add_up_all()
            return
        self._changed = []
        for below, level in pairwise(self.levels):
            node //= 2
            level[node] = below[2 * node] + below[2 * node + 1]

    def _add_up_all(self) -> None:
        self._changed = []
        for below, level in pairwise(self.levels):
            np.add(below[0::2], below[1::2], out=level)

    def find(self, point: np.ndarray) -> np.ndarray:
        """The leaves at the given points of the running sum, [...], 0 <= point < `total`.

        A leaf of weight 0 is never found.
        """
        self._add_up()
        rest = point.astype(np.float64).reshape(-1)  # a copy: each point, seen from its node
        node = np.zeros(len(rest), np.int64)
        for below in self.levels[-2::-1]:
            node *= 2
            left = below.take(node)  # the left child's sum
            right = rest >= left  # whether the point lies in the right child
            rest -= left * right
            node += right
        # Rounding may lead past the end of the weights of a node: to the last leaf that has one.
        lost = self.levels[0].take(node) == 0.0
        if lost.any():
            used = np.flatnonzero(self.levels[0])
            node[lost] = used[np.searchsorted(used, node[lost]) - 1]
        return node.reshape(point.shape)


class PrioritizedReplay:
    """Draws from a replay buffer with probabilities (3) and says the weights (4) that repair it."""

    def __init__(
        self,
        replay: ReplayBuffer | FrameReplayBuffer,
        prioritization: str,
        alpha: float,
        seed: int | np.random.SeedSequence,
    ) -> None:
        """Puts priorities on an empty buffer.

        Args:
            replay: what `make_replay` made.
            prioritization: "proportional" or "rank".
            alpha: α, 0 for uniform draws, 1 for full prioritization.
            seed: of the generator that draws.

        Raises:
            UserError: no such kind of priority.
        """
        if prioritization not in KINDS:
            raise UserError(f"--prioritization {prioritization}: must be one of {', '.join(KINDS)}")
        self.replay, self.alpha = replay, alpha
        self.tree = SumTree(replay.capacity)
        self.surprise = np.zeros(replay.capacity)  # |δ| by place; 0 where there is no transition
        self.largest = np.ones(())  # largest |δ| so far: what new transitions get
        self.by_rank = prioritization == "rank"
        self.ordered = np.zeros(0)  # all |δ| in rising order, when they were last sorted
        self.changed = np.zeros((), np.int64)  # places that changed since then
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.replay)

    def add(self, *transition: np.ndarray) -> np.ndarray:
        """Stores one transition of each environment, with the largest priority so far.

        Args:
            *transition: as in `ReplayBuffer.add`.

        Returns:
            Their places, [N].
        """
        index = self.replay.add(*transition)
        self._set(index, np.full(len(index), self.largest))
        if dead := self.replay.dead:
            self.surprise[dead] = 0.0
            self.tree.set(np.array(dead), np.zeros(len(dead)))
        return index

    def sample(self, *shape: int, beta: float) -> tuple[Batch | NStepBatch, np.ndarray, np.ndarray]:
        """Draws transitions: `sample(B, beta=...)`, or `sample(K, B, beta=...)` for K batches.

        Each batch of B takes one from each B-th of the probability mass.

        Args:
            *shape: [B] or [K, B].
            beta: β, 0 for no correction, 1 for the full one.

        Returns:
            The transitions; their weights, [..., B] float32, the largest in each batch 1; and
            their places, [..., B], for `update`.
        """
        if self.by_rank and self.changed > SORT_AFTER * len(self):
            self._sort()
        strata = (np.arange(shape[-1]) + self.rng.random(shape)) / shape[-1]
        index = self.tree.find(strata * self.tree.total)
        probability = self.tree.leaves[index] / self.tree.total
        weight = (len(self) * probability) ** -beta  # (4)
        weight /= weight.max(axis=-1, keepdims=True)
        return self.replay.gather(index), weight.astype(np.float32), index

    def update(self, index: np.ndarray, td_error: np.ndarray) -> None:
        """New priorities for transitions that were drawn.

        Args:
            index: places as `sample` gave them, [B] or [K, B].
            td_error: δ, or any measure of surprise, same shape; where a place comes twice, the
                last one counts.
        """
        surprise = np.abs(td_error.reshape(-1)).astype(np.float64) + SMALLEST
        self.largest[...] = max(float(self.largest), float(surprise.max()))
        self._set(index.reshape(-1), surprise)

    def _set(self, index: np.ndarray, surprise: np.ndarray) -> None:
        self.surprise[index] = surprise
        if self.by_rank:
            # One more than the number of larger ones when all were last sorted.
            larger = len(self.ordered) - np.searchsorted(self.ordered, surprise, side="right")
            self.tree.set(index, (1.0 + larger) ** -self.alpha)  # (2)
            self.changed += len(index)
        else:
            self.tree.set(index, surprise**self.alpha)  # (1)

    def _sort(self) -> None:
        """Gives every transition its true rank."""
        used = np.flatnonzero(self.surprise)
        order = used[np.argsort(-self.surprise[used], kind="stable")]
        weight = np.zeros(self.tree.size)
        weight[order] = np.arange(1.0, len(order) + 1.0) ** -self.alpha  # (2)
        self.tree.fill(weight)
        self.ordered = self.surprise[order[::-1]]
        self.changed[...] = 0

    def get_state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps: the buffer, the priorities, the generator's state."""
        state = {
            "surprise": self.surprise,
            "leaves": self.tree.leaves,
            "largest": self.largest,
            "ordered": self.ordered,
            "changed": self.changed,
            "draws": get_state(self.rng)["state"],
        }
        return state | self.replay.get_state()

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `get_state` gave."""
        self.replay.set_state(state)
        self.surprise[:], self.largest[...] = state["surprise"], state["largest"]
        self.ordered, self.changed[...] = np.array(state["ordered"]), state["changed"]
        self.tree.fill(state["leaves"])
        set_state(self.rng, {"state": state["draws"]})
