"""Exploration noise for continuous actions: independent, or with a memory of its own."""

from __future__ import annotations

from collections.abc import Mapping

from common.errors import UserError

import numpy as np

KINDS = ("gaussian", "ou")


class Noise:
    """Noise of standard size 1 for N environments and A action components.

    `gaussian`: independent draws from N(0, 1).

    `ou`: an Ornstein-Uhlenbeck process in each environment, n <- n - θ n dt + √dt ε with ε from
    N(0, 1). It begins at 0 and wanders for about 1 / (θ dt) steps in one direction, so that it
    pushes a mass where independent noise would only shake it. Its spread grows to 1 / √(2 θ).
    """

    def __init__(
        self, kind: str, num_envs: int, size: int, theta: float = 0.15, dt: float = 0.01
    ) -> None:
        """Begins at 0.

        Args:
            kind: "gaussian" or "ou".
            num_envs: N.
            size: A.
            theta: θ, how strongly the process is pulled back to 0.
            dt: time that passes from step to step.

        Raises:
            UserError: no such kind.
        """
        if kind not in KINDS:
            raise UserError(f"--noise {kind}: must be one of {', '.join(KINDS)}")
        self.kind, self.theta, self.dt = kind, theta, dt
        self.state = np.zeros((num_envs, size), np.float32)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """The noise of the next step, [N, A] float32."""
        draw = rng.standard_normal(self.state.shape, np.float32)
        if self.kind == "gaussian":
            return draw
        self.state += (
            np.float32(self.dt**0.5) * draw - np.float32(self.theta * self.dt) * self.state
        )
        return self.state.copy()

    def reset(self, done: np.ndarray) -> None:
        """Begins at 0 again where an episode ended, [N] bool."""
        self.state[done] = 0.0

    def get_state(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps."""
        return {"state": self.state}

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Puts back what `get_state` gave."""
        self.state[...] = state["state"]
