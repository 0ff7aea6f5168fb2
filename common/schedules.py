"""Values that change over training: learning rates, exploration, clip ranges."""

from __future__ import annotations

from collections.abc import Callable


def linear_schedule(start: float, end: float, duration: float) -> Callable[[int], float]:
    """A line from `start` at step 0 to `end` at step `duration`, constant after that.

    Args:
        start: value at step 0.
        end: value from step `duration` on.
        duration: length of the ramp in environment steps; 0 means `end` from the start.
    """

    def value(step: int) -> float:
        progress = min(step / duration, 1.0) if duration > 0 else 1.0
        return start + progress * (end - start)

    return value
