"""The catalog, on a small repository of real files that would fail if a script were imported."""

import shutil
import subprocess
import sys
from pathlib import Path

from common import catalog
from common.errors import UserError

import pytest

COMMON = Path(catalog.__file__).parent

SCRIPT = '''"""{title}: {summary}.

Book: chapter {chapter}, {book}

Idea
----
Learn from what was done before.

Equations
---------
    y = r + γ max Q(s', a')        (1)

Differs from the book
---------------------
1. Seeds.

How to run
----------
    python {folder}/{name}.py

Expected
--------
Measured: {measured}
Much the same on other machines.

Paper
-----
Mnih et al., 2015.
"""

raise RuntimeError("the catalog must not import scripts")


class Config(RunConfig):
    env_id: str = "{env_id}"  # environment
'''


def write_script(root: Path, folder: str, name: str, **values: object) -> Path:
    fields = {
        "title": name.upper(),
        "summary": f"what {name} shows",
        "chapter": 9,
        "book": 'Deep Q Network and Its Variants, "Understanding DQN"',
        "measured": "500.0 mean return",
        "env_id": "CartPole-v1",
    } | values
    path = root / folder / f"{name}.py"
    path.parent.mkdir(exist_ok=True)
    path.write_text(SCRIPT.format(folder=folder, name=name, **fields), encoding="utf-8")
    return path


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A repository with the real `common` and five scripts, whose file order is not book order."""
    shutil.copytree(COMMON, tmp_path / "common", ignore=shutil.ignore_patterns("__pycache__"))
    write_script(tmp_path, "chapter01_fundamentals", "td_sarsa", chapter=5, book='TD, "SARSA"')
    write_script(
        tmp_path, "chapter01_fundamentals", "dp_value_iteration", chapter=3, book='DP, "V"'
    )
    write_script(tmp_path, "chapter09_dqn", "dqn", summary="with a | in it")
    write_script(
        tmp_path, "chapter09_dqn", "double_dqn", book='Variants, "Double DQN" and "Its target"'
    )
    write_script(tmp_path, "chapter09_dqn", "aaa_new", book="Variants, beyond the book")
    (tmp_path / "chapter09_dqn" / "__init__.py").write_text("")
    for folder in (".", "chapter01_fundamentals", "chapter09_dqn"):
        text = f"# Title\n\n{catalog.BEGIN}\n{catalog.END}\n\nWritten by hand.\n"
        (tmp_path / folder / "README.md").write_text(text)
    return tmp_path


def run(repo: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # The current directory comes first on the path, so it is the copied `common` that runs.
    command = [sys.executable, "-m", "common.catalog", *arguments]
    return subprocess.run(command, cwd=repo, capture_output=True, text=True, encoding="utf-8")


def test_scripts_come_in_book_order_and_unknown_ones_last_in_their_chapter(repo: Path) -> None:
    names = [script.name for script in catalog.scripts(repo)]
    assert names == ["dp_value_iteration", "td_sarsa", "dqn", "double_dqn", "aaa_new"]


def test_a_script_says_all_there_is_to_know(repo: Path) -> None:
    script = catalog.find_script("double_dqn", repo)
    assert script == catalog.Script(
        path=repo / "chapter09_dqn" / "double_dqn.py",
        folder="chapter09_dqn",
        name="double_dqn",
        title="DOUBLE_DQN",
        summary="what double_dqn shows",
        chapter=9,
        book="Variants",
        section="Double DQN and Its target",
        env_id="CartPole-v1",
        measured="500.0 mean return",
        order=catalog.BOOK_ORDER.index("dqn") + 1,
    )
    assert catalog.find_script("aaa_new", repo).section == "beyond the book"


def test_wrapped_first_and_book_lines_are_read_whole(repo: Path) -> None:
    path = write_script(
        repo,
        "chapter09_dqn",
        "drqn",
        summary="reads\nmemory",
        book='Deep\nQ, "Recurrent\nnetworks"',
    )
    script = catalog.read_script(path)
    assert (script.summary, script.book, script.section) == (
        "reads memory",
        "Deep Q",
        "Recurrent networks",
    )


def test_a_script_without_environment_has_none(repo: Path) -> None:
    path = repo / "chapter09_dqn" / "dqn.py"
    path.write_text(path.read_text(encoding="utf-8").replace("env_id", "digits"), encoding="utf-8")
    assert catalog.read_script(path).env_id == ""
    assert "| - |" in catalog.root_table([catalog.read_script(path)])


def test_the_book_order_names_no_script_twice() -> None:
    assert len(set(catalog.BOOK_ORDER)) == len(catalog.BOOK_ORDER)


@pytest.mark.parametrize("section", catalog.SECTIONS)
def test_a_missing_or_empty_section_is_named_with_its_file(repo: Path, section: str) -> None:
    path = repo / "chapter09_dqn" / "dqn.py"
    text = path.read_text(encoding="utf-8")
    heading = f"{section}\n{'-' * len(section)}\n"
    message = f'chapter09_dqn/dqn.py: the module docstring lacks the section "{section}"'

    path.write_text(text.replace(heading, ""), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        catalog.scripts(repo)

    start = text.index(heading) + len(heading)
    stop = text.index("\n\n", start) if section != "Paper" else text.index('"""', start)
    path.write_text(text[:start] + text[stop:], encoding="utf-8")
    with pytest.raises(UserError, match=message):
        catalog.scripts(repo)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Book: chapter 9, ", "Chapter 9, ", 'lacks the line "Book:"'),
        ('"Understanding DQN"', "Understanding DQN", 'line "Book:" must read'),
        ("Measured: ", "Perhaps: ", '"Expected" lacks its line "Measured:"'),
        ("DQN: with", "DQN with", "first line must read"),
        ("raise RuntimeError(", "raise RuntimeError((", "line 31: not valid Python"),
    ],
)
def test_a_malformed_script_is_told_what_is_wrong(
    repo: Path, old: str, new: str, message: str
) -> None:
    path = repo / "chapter09_dqn" / "dqn.py"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(UserError, match=r"chapter09_dqn/dqn\.py") as caught:
        catalog.scripts(repo)
    assert message in str(caught.value)


def test_a_script_without_docstring_is_an_error(repo: Path) -> None:
    (repo / "chapter09_dqn" / "dqn.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"chapter09_dqn/dqn\.py: the module docstring is missing"):
        catalog.scripts(repo)


def test_scripts_are_found_by_name_and_by_path(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = repo / "chapter09_dqn" / "dqn.py"
    for name in ("dqn", "dqn.py", "chapter09_dqn/dqn.py", str(expected)):
        assert catalog.find_path(name, repo) == expected
    monkeypatch.chdir(repo / "chapter01_fundamentals")
    assert catalog.find_path("../chapter09_dqn/dqn.py", repo) == expected


def test_a_script_is_found_although_its_neighbour_is_broken(repo: Path) -> None:
    (repo / "chapter09_dqn" / "double_dqn.py").write_text("x = (")
    assert catalog.find_script("dqn", repo).title == "DQN"


def test_an_unknown_script_is_answered_with_the_nearest_names(repo: Path) -> None:
    with pytest.raises(UserError, match=r'unknown script "duble_dqn": did you mean double_dqn'):
        catalog.find_path("duble_dqn", repo)
    with pytest.raises(UserError, match=r'unknown script "xyzzy": `python -m common.catalog`'):
        catalog.find_path("xyzzy", repo)


def test_a_file_outside_the_catalog_is_not_found(repo: Path) -> None:
    stranger = repo / "stranger.py"
    stranger.write_text("x = 1\n")
    for name in ("stranger", "stranger.py", str(stranger), "common/catalog.py", "__init__"):
        with pytest.raises(UserError, match="unknown script"):
            catalog.find_path(name, repo)


def test_the_printed_table_is_aligned_and_in_book_order(repo: Path) -> None:
    result = run(repo)
    assert result.returncode == 0, result.stderr
    header, rule, *rows = result.stdout.splitlines()
    assert [row.split()[1] for row in rows] == [
        "chapter01_fundamentals/dp_value_iteration.py",
        "chapter01_fundamentals/td_sarsa.py",
        "chapter09_dqn/dqn.py",
        "chapter09_dqn/double_dqn.py",
        "chapter09_dqn/aaa_new.py",
    ]
    starts = [header.index(word) for word in ("script", "what", "environment", "measured")]
    for row in rows:
        assert all(row[start - 1] == " " and row[start] != " " for start in starts)
    assert set(rule) == {"-", " "}


def test_chapter_filters(repo: Path) -> None:
    result = run(repo, "--chapter", "9")
    assert "dqn.py" in result.stdout
    assert "td_sarsa" not in result.stdout
    result = run(repo, "--chapter", "42")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: --chapter 42: ")
    assert "3, 5, 9" in result.stderr


def test_long_cells_wrap_to_the_terminal(repo: Path) -> None:
    catalog_ = catalog.scripts(repo)
    unlimited = max(map(len, catalog.text_table(catalog_).splitlines()))
    table = catalog.text_table(catalog_, width=unlimited - 5)
    assert max(map(len, table.splitlines())) <= unlimited - 5
    words = " ".join(table.split())
    assert all(word in words for script in catalog_ for word in script.summary.split())


def test_update_writes_the_tables_and_check_finds_them_in_step(repo: Path) -> None:
    before = run(repo, "--check")
    assert before.returncode == 1
    assert "chapter09_dqn/README.md is out of step" in before.stdout
    assert run(repo, "--update").returncode == 0
    after = run(repo, "--check")
    assert (after.returncode, after.stderr) == (0, "")

    readme = (repo / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(f"# Title\n\n{catalog.BEGIN}\n")
    assert readme.endswith(f"{catalog.END}\n\nWritten by hand.\n")
    assert (
        "| 9. Deep Q Network and Its Variants | [dqn](chapter09_dqn/dqn.py) "
        "| DQN: with a \\| in it | `CartPole-v1` | 500.0 mean return |\n"
    ) in readme
    chapter = (repo / "chapter09_dqn" / "README.md").read_text(encoding="utf-8")
    assert (
        "| 9. Double DQN and Its target | [double_dqn.py](double_dqn.py) "
        "| `python chapter09_dqn/double_dqn.py` | DOUBLE_DQN: what double_dqn shows "
        "| 500.0 mean return |\n"
    ) in chapter
    assert "td_sarsa" in readme
    assert "td_sarsa" not in chapter

    # One more round changes nothing; a changed docstring is noticed again.
    assert "updated" not in run(repo, "--update").stdout
    write_script(repo, "chapter09_dqn", "dqn", measured="499.9 mean return")
    assert run(repo, "--check").returncode == 1
    assert sorted(path.name for path in repo.glob("chapter09_dqn/*")) == [
        "README.md",
        "__init__.py",
        "aaa_new.py",
        "double_dqn.py",
        "dqn.py",
    ]


def test_a_readme_that_is_missing_or_has_no_markers_is_an_error(repo: Path) -> None:
    readme = repo / "chapter09_dqn" / "README.md"
    readme.write_text(f"{catalog.END} {catalog.BEGIN}\n")  # the wrong way round
    result = run(repo, "--update")
    assert result.returncode == 2
    assert result.stderr.startswith("error: chapter09_dqn/README.md: add the lines")
    readme.unlink()
    result = run(repo, "--check")
    assert result.returncode == 2
    assert result.stderr.startswith("error: chapter09_dqn/README.md does not exist")


@pytest.mark.parametrize("module", ["catalog", "diff", "plot", "plots"])
def test_the_tools_start_without_tensorflow_or_pyplot(module: str) -> None:
    heavy = "{'tensorflow', 'keras', 'torch', 'matplotlib.pyplot'}"
    code = f"import sys, common.{module}; sys.exit(str({heavy} & set(sys.modules) or ''))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.strip() == ""
