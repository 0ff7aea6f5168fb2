"""Shows what one script changes in its neighbour: the difference between siblings is the lesson.

    python -m common.diff double_dqn dqn

prints what `double_dqn.py` adds to `dqn.py` in green, and what it takes away in red. Module
docstrings differ everywhere and teach nothing here, so they are left out unless `--docstrings`
is given. Colour is for terminals; `--no-color`, NO_COLOR or a pipe switch it off.
"""

import argparse
import ast
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import TextIO

from common.catalog import find_path
from common.cli import command
from common.errors import UserError

RED, GREEN, CYAN, BOLD, RESET = "\x1b[31m", "\x1b[32m", "\x1b[36m", "\x1b[1m", "\x1b[0m"
CONTEXT = 3  # unchanged lines shown on either side of a change


@dataclass(frozen=True)
class Source:
    """The lines of a file that are compared, each with its number in the file."""

    name: str
    lines: list[str]
    numbers: list[int]  # numbers[i] is the line number of lines[i], counted from 1
    scopes: list[str]  # scopes[i] is the function or class around it, "" at the top level


def read_source(path: Path, docstrings: bool = False) -> Source:
    """Read a Python file, without its module docstring unless asked for.

    Raises UserError if it cannot be read or is not valid Python.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text, filename=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid Python ({error.msg})") from None

    lines = text.splitlines()
    first = 0
    if not docstrings and ast.get_docstring(tree, clean=False) is not None:
        first = tree.body[0].end_lineno or 0
        while first < len(lines) and not lines[first].strip():
            first += 1

    scopes = [""] * len(lines)
    for start, end, name in _definitions(tree, ""):  # outer before inner: the innermost stays
        scopes[start - 1 : end] = [name] * (end - start + 1)
    return Source(path.name, lines[first:], list(range(first + 1, len(lines) + 1)), scopes[first:])


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[int, int, str]]:
    """First line, last line and qualified name of every function and class below a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{child.name}"
            first = min([child.lineno, *(line.lineno for line in child.decorator_list)])
            yield first, child.end_lineno or child.lineno, name
            yield from _definitions(child, f"{name}.")
        else:
            yield from _definitions(child, prefix)


def difference(new: Source, old: Source, color: bool = False) -> str:
    """What leads from `old` to `new`, as text that ends in a line such as `+18 -6 lines`."""

    def paint(text: str, code: str) -> str:
        return f"{code}{text}{RESET}" if color else text

    # Without autojunk=False, a line that is frequent in a long file never counts as unchanged.
    matcher = SequenceMatcher(None, old.lines, new.lines, autojunk=False)
    added = removed = 0
    out = [paint(f"--- {old.name}", RED), paint(f"+++ {new.name}", GREEN)]
    for group in matcher.get_grouped_opcodes(CONTEXT):
        body = []
        scopes: dict[str, None] = {}  # in order of appearance
        for tag, i1, i2, j1, j2 in group:
            if tag == "equal":
                body += [f"{new.numbers[j]:>5}   {new.lines[j]}".rstrip() for j in range(j1, j2)]
                continue
            for i in range(i1, i2):
                body.append(paint(f"{old.numbers[i]:>5} - {old.lines[i]}".rstrip(), RED))
            for j in range(j1, j2):
                body.append(paint(f"{new.numbers[j]:>5} + {new.lines[j]}".rstrip(), GREEN))
            # A blank line between two functions belongs to neither: it names nothing.
            changed = [(old, i) for i in range(i1, i2)] + [(new, j) for j in range(j1, j2)]
            scopes |= {side.scopes[k]: None for side, k in changed if side.lines[k].strip()}
            removed += i2 - i1
            added += j2 - j1
        heading = ", ".join(scope or "top level" for scope in scopes) or "blank lines"
        out += ["", paint(f"@@ {heading} @@", CYAN), *body]
    out += ["", paint(f"+{added} -{removed} lines", BOLD)]
    return "\n".join(out)


def use_color(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colour (NO_COLOR: see no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _path(name: str) -> Path:
    """A script of the catalog by name, or any Python file by path."""
    path = Path(name)
    return path if path.suffix == ".py" and path.is_file() else find_path(name)


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m common.diff",
        description="Show what script NEW changes in script OLD.",
    )
    parser.add_argument("new", metavar="NEW", help="script name (double_dqn) or file")
    parser.add_argument("old", metavar="OLD", help="the script it builds on (dqn) or file")
    parser.add_argument("--docstrings", action="store_true", help="compare module docstrings too")
    parser.add_argument("--no-color", action="store_true", help="plain text, even on a terminal")
    options = parser.parse_args()

    new = read_source(_path(options.new), options.docstrings)
    old = read_source(_path(options.old), options.docstrings)
    print(difference(new, old, color=not options.no_color and use_color(sys.stdout)))


if __name__ == "__main__":
    main()
