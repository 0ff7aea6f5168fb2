"""Knows every script of the repository, in book order, from the docstrings alone.

    python -m common.catalog                prints all scripts in the order of the book
    python -m common.catalog --chapter 9    only those of one chapter of the book
    python -m common.catalog --update       rewrites the generated tables of the READMEs
    python -m common.catalog --check        exit status 1 if a table is out of step

A script is read with `ast` and never imported, so listing all of them takes milliseconds and
runs nothing. The README tables stand between two marker lines, which are written by hand once.
"""

import argparse
import ast
import difflib
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common.cli import command
from common.errors import UserError

ROOT = Path(__file__).resolve().parents[1]

BEGIN = "<!-- catalog:begin -->"
END = "<!-- catalog:end -->"
GENERATED = "<!-- written by `python -m common.catalog --update` from the scripts' docstrings -->"

SECTIONS = ("Idea", "Equations", "Differs from the book", "How to run", "Expected", "Paper")

# Book order within a chapter follows no rule that a program could find, so it is written down.
BOOK_ORDER = (
    # chapter 1 to 8: fundamentals
    "mdp_basics",
    "gym_tour",
    "dp_value_iteration",
    "dp_policy_iteration",
    "mc_prediction",
    "mc_exploring_starts",
    "mc_control_epsilon_greedy",
    "mc_control_off_policy",
    "td_prediction",
    "td_sarsa",
    "td_q_learning",
    "td_expected_sarsa",
    "td_double_q_learning",
    "bandit_epsilon_greedy",
    "bandit_softmax",
    "bandit_ucb",
    "bandit_thompson_sampling",
    "bandit_ad_banner",
    "bandit_contextual",
    "nn_from_scratch",
    "nn_recurrent",
    "nn_convolutional",
    "nn_gan",
    "tf_basics",
    "tf_digits",
    # chapter 9: deep Q networks
    "dqn",
    "double_dqn",
    "dueling_dqn",
    "prioritized_dqn",
    "drqn",
    "rainbow",
    # chapter 10 to 13: policy gradients
    "reinforce",
    "reinforce_reward_to_go",
    "reinforce_baseline",
    "actor_critic",
    "a2c",
    "a3c",
    "ddpg",
    "td3",
    "sac",
    "trpo",
    "ppo_clip",
    "ppo_penalty",
    "acktr",
    # chapter 14: distributional
    "c51",
    "qr_dqn",
    "iqn",
    "d4pg",
    # chapter 15 to 17: frontiers
    "behavioral_cloning",
    "dagger",
    "dqfd",
    "maxent_irl",
    "gail",
    "maml_supervised",
    "maml_rl",
    "maxq",
    "i2a",
)


@dataclass(frozen=True)
class Script:
    """What the docstring and the `Config` of one script say about it."""

    path: Path  # absolute
    folder: str  # "chapter09_dqn"
    name: str  # "dqn"
    title: str  # "Deep Q-network (DQN)"
    summary: str  # "Q-learning with a neural network, experience replay and a target network"
    chapter: int  # of the book: 9
    book: str  # title of that chapter: "Deep Q Network and Its Variants"
    section: str  # "Understanding DQN", or "beyond the book"
    env_id: str  # default of Config.env_id; "" if the script has none
    measured: str  # "500.0 mean return (median of seeds 0, 1, 2), 25 s on two CPU cores"
    order: int  # rank in BOOK_ORDER; len(BOOK_ORDER) for a script that is not in it

    @property
    def relative(self) -> str:
        """Path from the root of the repository, with forward slashes on every system."""
        return f"{self.folder}/{self.name}.py"


# ---------------------------------------------------------------------------------------------
# Reading scripts
# ---------------------------------------------------------------------------------------------


def script_paths(root: Path = ROOT) -> list[Path]:
    """Every script file, by folder and name; nothing is read."""
    return sorted(path for path in root.glob("chapter*/*.py") if not path.name.startswith("_"))


def scripts(root: Path = ROOT) -> list[Script]:
    """Every script in book order; unknown names come last in their chapter, by name.

    Raises UserError if a file is not valid Python or its docstring lacks a required part.
    """
    found = [read_script(path) for path in script_paths(root)]
    return sorted(found, key=lambda script: (script.chapter, script.order, script.name))


def find_path(name: str, root: Path = ROOT) -> Path:
    """The file of a script called by its name ("dqn") or by a path to it.

    A path may be relative to the root of the repository or to the current directory. Only the
    catalog's own scripts are found: the answer is safe to load. Raises UserError with the
    nearest known names otherwise.
    """
    paths = {path.resolve(): path for path in script_paths(root)}
    stem = name.removesuffix(".py")
    for path in paths.values():
        if stem == path.stem:
            return path
    for candidate in (root / name, Path(name)):
        if candidate.resolve() in paths:
            return paths[candidate.resolve()]

    known = sorted(path.stem for path in paths.values())
    near = difflib.get_close_matches(Path(stem).name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise UserError(f'unknown script "{name}": {hint}`python -m common.catalog` lists all of them')


def find_script(name: str, root: Path = ROOT) -> Script:
    """The script called by its name or path; errors as in `find_path` and `read_script`."""
    return read_script(find_path(name, root))


def read_script(path: Path) -> Script:
    """Parse one script without importing it.

    Raises UserError that names the file and what is missing from its docstring.
    """
    where = f"{path.parent.name}/{path.name}"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except SyntaxError as error:
        raise UserError(f"{where}, line {error.lineno}: not valid Python ({error.msg})") from None

    docstring = ast.get_docstring(tree)
    if docstring is None:
        raise UserError(f"{where}: the module docstring is missing")
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", docstring)]

    title, colon, summary = paragraphs[0].partition(": ")
    if not colon:
        raise UserError(f'{where}: the docstring\'s first line must read "Name: what it shows."')

    book_line = next((part for part in paragraphs if part.startswith("Book:")), None)
    if book_line is None:
        raise UserError(f'{where}: the module docstring lacks the line "Book:"')
    book = re.fullmatch(r'Book: chapter (\d+), (.+?), (".+"|beyond the book)', book_line)
    if book is None:
        raise UserError(
            f'{where}: the line "Book:" must read \'Book: chapter N, Title, "Section"\' '
            "or 'Book: chapter N, Title, beyond the book'"
        )

    sections = _sections(docstring)
    for section in SECTIONS:
        if not sections.get(section):
            raise UserError(f'{where}: the module docstring lacks the section "{section}"')
    measured = re.search(r"^\s*Measured: (.+)$", sections["Expected"], flags=re.MULTILINE)
    if measured is None:
        raise UserError(f'{where}: the section "Expected" lacks its line "Measured:"')

    return Script(
        path=path,
        folder=path.parent.name,
        name=path.stem,
        title=title,
        summary=summary.removesuffix("."),
        chapter=int(book[1]),
        book=book[2],
        section=book[3].replace('"', ""),
        env_id=_default_env_id(tree),
        measured=measured[1].strip(),
        order=BOOK_ORDER.index(path.stem) if path.stem in BOOK_ORDER else len(BOOK_ORDER),
    )


def _sections(docstring: str) -> dict[str, str]:
    """Body of every section whose heading is underlined with dashes."""
    # re.split with one group gives [text before, heading, body, heading, body, ...]
    parts = re.split(r"^(\S.*)\n-{3,}[ ]*$", docstring, flags=re.MULTILINE)
    return {parts[i].strip(): parts[i + 1].strip() for i in range(1, len(parts), 2)}


def _default_env_id(tree: ast.Module) -> str:
    """Default of `env_id` in `class Config`; "" where there is none that can be read."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            for field in node.body:
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and field.target.id == "env_id"
                    and isinstance(field.value, ast.Constant)
                ):
                    return str(field.value.value)
    return ""


# ---------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a `|` inside a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def root_table(catalog: Sequence[Script]) -> str:
    """Table for the README of the repository."""
    rows = [
        (
            f"{script.chapter}. {script.book}",
            f"[{script.name}]({script.relative})",
            f"{script.title}: {script.summary}",
            f"`{script.env_id}`" if script.env_id else "-",
            script.measured,
        )
        for script in catalog
    ]
    header = ("Book chapter", "Script", "What it shows", "Default environment", "Measured")
    return markdown_table(header, rows)


def chapter_table(catalog: Sequence[Script]) -> str:
    """Table for the README of one chapter folder."""
    rows = [
        (
            f"{script.chapter}. {script.section}",
            f"[{script.name}.py]({script.name}.py)",
            f"`python {script.relative}`",
            f"{script.title}: {script.summary}",
            script.measured,
        )
        for script in catalog
    ]
    return markdown_table(("Section", "Script", "Command", "What it shows", "Measured"), rows)


def text_table(catalog: Sequence[Script], width: int | None = None) -> str:
    """Aligned plain text. With a width in characters, the long cells wrap to fit it."""
    header = ("book", "script", "what it shows", "environment", "measured")
    rows = [
        (
            str(script.chapter),
            script.relative,
            f"{script.title}: {script.summary}",
            script.env_id or "-",
            script.measured,
        )
        for script in catalog
    ]
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    if width is not None:
        # Only "what it shows" and "measured" wrap; they share what the other columns leave,
        # but never less than a readable 20 characters each.
        room = width - sum(widths[i] for i in (0, 1, 3)) - 2 * (len(header) - 1)
        if room < widths[2] + widths[4]:
            widths[4] = min(widths[4], max(20, 2 * room // 5))
            widths[2] = min(widths[2], max(20, room - widths[4]))

    def draw(cells: Sequence[str]) -> list[str]:
        wrapped = [textwrap.wrap(cell, widths[i]) or [""] for i, cell in enumerate(cells)]
        height = max(len(lines) for lines in wrapped)
        grid = [lines + [""] * (height - len(lines)) for lines in wrapped]
        return [
            "  ".join(map(str.ljust, line, widths)).rstrip() for line in zip(*grid, strict=True)
        ]

    rule = ["-" * column for column in widths]
    return "\n".join(line for cells in (header, rule, *rows) for line in draw(cells))


# ---------------------------------------------------------------------------------------------
# READMEs
# ---------------------------------------------------------------------------------------------


def updated_readmes(root: Path = ROOT) -> dict[Path, tuple[str, str]]:
    """For every README with a generated table: its text on disk, and as it ought to be.

    Raises UserError if a README does not exist or has no pair of marker lines.
    """
    catalog = scripts(root)
    tables = {root / "README.md": root_table(catalog)}
    for folder in dict.fromkeys(script.folder for script in catalog):
        own = [script for script in catalog if script.folder == folder]
        tables[root / folder / "README.md"] = chapter_table(own)

    texts = {}
    for readme, table in tables.items():
        where = readme.relative_to(root).as_posix()
        try:
            text = readme.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(
                f"{where} does not exist: create it, with the lines {BEGIN} and {END}"
            ) from None
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not (begin and end):
            raise UserError(f"{where}: add the lines {BEGIN} and {END} where its table belongs")
        texts[readme] = (text, f"{before}{BEGIN}\n{GENERATED}\n\n{table}\n\n{END}{after}")
    return texts


def _write(path: Path, text: str) -> None:
    """Write by renaming, so that an interruption leaves the old file whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@command
def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m common.catalog", description="List every script in the order of the book."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--chapter", type=int, metavar="N", help="only this chapter of the book")
    what.add_argument("--update", action="store_true", help="rewrite the tables of the READMEs")
    what.add_argument(
        "--check", action="store_true", help="exit status 1 if a README's table is out of step"
    )
    options = parser.parse_args()

    if options.update or options.check:
        stale = {path: new for path, (old, new) in updated_readmes().items() if old != new}
        for path, text in stale.items():
            where = path.relative_to(ROOT).as_posix()
            if options.update:
                _write(path, text)
                print(f"updated {where}")
            else:
                print(f"{where} is out of step: run `python -m common.catalog --update`")
        if not stale:
            print("the tables of all READMEs are in step")
        if stale and options.check:
            sys.exit(1)
        return

    catalog = scripts()
    if options.chapter is not None:
        chapters = sorted({script.chapter for script in catalog})
        catalog = [script for script in catalog if script.chapter == options.chapter]
        if not catalog:
            raise UserError(
                f"--chapter {options.chapter}: no script for this chapter of the book; "
                f"there are scripts for {', '.join(map(str, chapters))}"
            )
    # In a pipe every script keeps its own line, whatever its length: that is what grep wants.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(text_table(catalog, width))


if __name__ == "__main__":
    main()
