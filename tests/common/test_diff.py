"""The difference between two scripts, through the command line and on real files."""

import os
import subprocess
import sys
from pathlib import Path

from common.diff import difference, read_source
from common.errors import UserError

import pytest

OLD = '''"""DQN: the original."""

import numpy as np


def td_target(reward, next_q):
    """What the network should say."""
    best = next_q.max(axis=1)
    return reward + best


def unchanged():
    a = 1
    b = 2
    c = 3
    d = 4
    e = 5
    return a + b + c + d + e


class Agent:
    def act(self):
        return 0
'''

NEW = '''"""Double DQN: another first line.

And more of it.
"""

import numpy as np


def td_target(reward, next_q, target_q):
    """What the network should say."""
    best = next_q.argmax(axis=1)  # NEW: chosen by one network
    return reward + target_q[best]  # NEW: valued by the other


def unchanged():
    a = 1
    b = 2
    c = 3
    d = 4
    e = 5
    return a + b + c + d + e


class Agent:
    def act(self):
        return 1
'''


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text(OLD)
    new.write_text(NEW)
    return new, old


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "common.diff", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


def signs(text: str, sign: str) -> list[str]:
    """The code behind `12 + code` or `12 - code`, with its line number."""
    parts = [line.split(f" {sign} ", 1) for line in text.splitlines() if f" {sign} " in line[:9]]
    return [f"{number.strip()}:{code.strip()}" for number, code in parts]


def test_the_difference_leads_from_the_second_to_the_first(files: tuple[Path, Path]) -> None:
    result = run(*files)
    assert result.returncode == 0, result.stderr
    assert signs(result.stdout, "+") == [
        "9:def td_target(reward, next_q, target_q):",
        "11:best = next_q.argmax(axis=1)  # NEW: chosen by one network",
        "12:return reward + target_q[best]  # NEW: valued by the other",
        "26:return 1",
    ]
    assert signs(result.stdout, "-") == [
        "6:def td_target(reward, next_q):",
        "8:best = next_q.max(axis=1)",
        "9:return reward + best",
        "23:return 0",
    ]
    assert result.stdout.splitlines()[-1] == "+4 -4 lines"
    assert result.stdout.splitlines()[:2] == ["--- old.py", "+++ new.py"]


def test_headings_name_the_enclosing_function_and_context_is_three_lines(
    files: tuple[Path, Path],
) -> None:
    lines = difference(*map(read_source, files)).splitlines()
    assert [line for line in lines if line.startswith("@@")] == [
        "@@ td_target @@",
        "@@ Agent.act @@",
    ]
    # Three lines after the last change of td_target, three before the change of Agent.act.
    first, second = lines.index("@@ td_target @@"), lines.index("@@ Agent.act @@")
    shown = "\n".join(lines[first:second])
    assert "def unchanged" in shown
    assert "a = 1" not in shown
    assert [line.split()[0] for line in lines[second + 1 : second + 4]] == ["23", "24", "25"]


def test_a_change_between_functions_is_at_the_top_level(tmp_path: Path) -> None:
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text("import os\n")
    new.write_text("import os\nimport sys\n\n\n@cached\ndef f():\n    pass\n")
    assert "@@ top level, f @@" in difference(read_source(new), read_source(old))


def test_decorators_belong_to_their_function_and_blank_lines_to_nothing(tmp_path: Path) -> None:
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text("import os\n")
    new.write_text("import os\n\n\n@cached\ndef f():\n    pass\n")
    assert "@@ f @@" in difference(read_source(new), read_source(old))
    new.write_text("import os\n\n\n")
    assert "@@ blank lines @@" in difference(read_source(new), read_source(old))


def test_module_docstrings_are_compared_on_request_only(files: tuple[Path, Path]) -> None:
    assert "another first line" not in run(*files).stdout
    result = run(*files, "--docstrings")
    assert '1:"""Double DQN: another first line.' in signs(result.stdout, "+")
    assert '1:"""DQN: the original."""' in signs(result.stdout, "-")
    assert "+8 -5 lines" in result.stdout


def test_equal_files_have_no_difference(files: tuple[Path, Path]) -> None:
    assert run(files[0], files[0]).stdout.splitlines()[-1] == "+0 -0 lines"


def test_common_lines_stay_unchanged_in_long_files(tmp_path: Path) -> None:
    # difflib's "automatic junk" drops lines that are frequent in files of 200 lines and more.
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text("x = 1\n" * 300)
    new.write_text("x = 1\n" * 150 + "y = 2\n" + "x = 1\n" * 150)
    assert difference(read_source(new), read_source(old)).endswith("+1 -0 lines")


def test_a_pipe_gets_no_colour(files: tuple[Path, Path]) -> None:
    assert "\x1b" not in run(*files, TERM="xterm").stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(
    ("arguments", "environment", "colored"),
    [
        ([], {}, True),
        (["--no-color"], {}, False),
        ([], {"NO_COLOR": "1"}, False),
        ([], {"TERM": "dumb"}, False),
    ],
)
def test_a_terminal_gets_green_and_red(
    files: tuple[Path, Path], arguments: list[str], environment: dict[str, str], colored: bool
) -> None:
    import pty

    settings = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "common.diff", *map(str, files), *arguments],
        stdout=terminal,
        env=settings | {"TERM": "xterm"} | environment,
    )
    os.close(terminal)
    output = b""
    while True:
        try:
            block = os.read(controller, 65536)
        except OSError:  # Linux: the other end is closed
            break
        if not block:
            break
        output += block
    os.close(controller)
    assert process.wait() == 0
    text = output.decode()
    if colored:
        assert "\x1b[32m   26 +         return 1\x1b[0m" in text
        assert "\x1b[31m   23 -         return 0\x1b[0m" in text
    else:
        assert "return 1" in text
        assert "\x1b" not in text


def test_unknown_scripts_and_broken_files_end_in_one_sentence(tmp_path: Path) -> None:
    result = run("no_such_script", "dqn")
    assert result.returncode == 2
    assert result.stderr.startswith('error: unknown script "no_such_script"')
    assert len(result.stderr.splitlines()) == 1

    broken = tmp_path / "broken.py"
    broken.write_text("x = (\n")
    result = run(broken, broken)
    assert result.returncode == 2
    assert "broken.py, line 1: not valid Python" in result.stderr
    assert "Traceback" not in result.stderr

    broken.write_bytes(b"# \xff\xfe\n")
    with pytest.raises(UserError, match="cannot be read"):
        read_source(broken)
