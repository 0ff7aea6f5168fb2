"""Ctrl-C between two passes of a loop instead of in the middle of a line.

Python raises KeyboardInterrupt wherever the program happens to be. Inside a `__del__` or a callback
from C it is printed and forgotten, and a run that should have ended goes on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def deferred() -> Iterator[Callable[[], None]]:
    """Within this context the first Ctrl-C waits; a second one interrupts at once, as usual.

    Where Ctrl-C is ignored, handled by somebody else, or cannot be (outside the main thread),
    nothing changes.

    Yields:
        A function to call where the loop may end: raises KeyboardInterrupt if one waits.

    Raises:
        KeyboardInterrupt: at the context's end, if one still waits and nothing else was raised.
    """
    waiting = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal waiting
        if waiting:
            signal.default_int_handler(number, frame)
        waiting = True

    def check() -> None:
        nonlocal waiting
        if waiting:
            waiting = False
            raise KeyboardInterrupt

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield check
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    check()
