"""A progress bar: steps per second, latest mean return, time left."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Progress:
    """A live bar on a terminal, a line every tenth of the run anywhere else."""

    def __init__(self, total: int, initial: int = 0, unit: str = "step") -> None:
        """Shows the bar; `total` and `initial` are in `unit`s, usually environment steps."""
        self.total, self.count, self.unit = total, initial, unit
        self._live = sys.stderr.isatty()
        self._next_line = self._tenth() + 1
        self._note = ""
        # Without a terminal the same object still measures, but draws nothing.
        self._bar = tqdm(
            total=total, initial=initial, unit=unit, disable=not self._live, dynamic_ncols=True
        )
        self._rate = 0.0

    def _tenth(self) -> int:
        return 10 * self.count // max(self.total, 1)

    def update(self, count: int) -> None:
        """Moves the bar to `count` units."""
        advanced, self.count = count - self.count, count
        if self._live:
            self._bar.update(advanced)
        elif self._tenth() >= self._next_line:
            self._next_line = self._tenth() + 1
            rate = f", {self._rate:,.0f} {self.unit}s/s" if self._rate else ""
            done = f"{self.count:>12,} / {self.total:,} {self.unit}s"
            print(f"{done}{rate}{self._note}", file=sys.stderr, flush=True)

    def note(self, rate: float, mean_return: float | None) -> None:
        """Sets what stands beside the bar: average units per second, mean of recent returns."""
        self._rate = rate
        self._note = "" if mean_return is None else f", mean return {mean_return:.1f}"
        if self._live:
            self._bar.set_postfix_str(self._note.removeprefix(", "), refresh=False)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()
