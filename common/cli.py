"""Command line: one flag per field of a script's `Config`; errors as one sentence."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import TypeVar

from common import run
from common.config import RunConfig
from common.errors import UserError

C = TypeVar("C", bound=RunConfig)
# Flags that may be changed when resuming: they do not touch training.
CHANGEABLE = ("resume", "eval_episodes", "capture_video")


def parse(
    config_class: type[C], description: str | None = None, args: list[str] | None = None
) -> C:
    """Reads `sys.argv` (or `args`) into a `Config`; with --resume, the stored flags of that run.

    Args:
        config_class: frozen dataclass whose field comments become the help text.
        description: first paragraph of `--help`; usually the script's `__doc__`.
        args: arguments without the program's name, default `sys.argv[1:]`.

    Raises:
        UserError: --resume names no run, or a flag differs from the resumed run's.
        SystemExit: unknown flag or unreadable value (status 2), `--help` (status 0).
    """
    import tyro

    title = (description or "").strip().split("\n\n")[0]
    read = functools.partial(tyro.cli, config_class, args=args, description=title)
    config = read()
    if config.resume:
        stored = run.read_config(config.resume, config_class)
        stored = dataclasses.replace(stored, resume=config.resume)
        config = read(default=stored)
        for field in dataclasses.fields(config):
            old, new = getattr(stored, field.name), getattr(config, field.name)
            if old != new and field.name not in CHANGEABLE:
                flag = "--" + field.name.replace("_", "-")
                raise UserError(
                    f"{flag} {new}: a resumed run keeps its flags ({flag} {old}); "
                    f"leave it out or start a new run"
                )
    acts = hasattr(sys.modules[config_class.__module__], "load_policy")
    if config.capture_video and not (acts or config_class.capture_video):
        raise UserError("--capture-video: no agent is trained here, nothing to film; leave it out")
    return config


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorates `main`: a `UserError` becomes one sentence and status 2, Ctrl-C status 130."""

    @functools.wraps(main)
    def wrapped() -> None:
        try:
            main()
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except MemoryError as error:
            remedy = "choose smaller numbers for what multiplies (--num-..., --batch-size, ...)"
            print(f"error: not enough memory: {error or 'none left'}; {remedy}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print(f"interrupted{run.resume_hint()}", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:  # `script | head`
            sys.stderr.close()
            sys.exit(1)

    return wrapped
