"""What the README shows works as shown."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_own_environment_example_trains(tmp_path: Path) -> None:
    example = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    command = re.search(r"PYTHONPATH=\. python (\S+) --env-id (\S+)", README)
    assert example is not None
    assert command is not None
    script, env_id = command.groups()
    assert len(example[1].splitlines()) <= 25
    (tmp_path / f"{env_id.partition(':')[0]}.py").write_text(example[1])
    line = [sys.executable, str(ROOT / script), "--env-id", env_id, "--run-dir", "run"]
    line += ["--total-timesteps", "1500", "--train-frequency", "64", "--gradient-steps", "4"]
    subprocess.run(line, cwd=tmp_path, env=os.environ | {"PYTHONPATH": "."}, check=True)
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["env_id"] == env_id
    assert evaluation["episodes"] == 100
    # From cell 0 the way is ten steps long; 50 steps mean that the agent never arrived.
    assert all(-50.0 <= value <= -6.0 for value in evaluation["returns"])


def test_nothing_is_left_to_fill_in() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("chapter*/*.py")]:
        text = path.read_text()
        assert not re.search(r"\b(?:TODO|FIXME|SPEED_TABLE|RESULTS?8?)\b", text), path
        assert "Measured: pending" not in text, path


def test_every_file_and_flag_it_names_exists() -> None:
    for path in re.findall(
        r"(?:chapter|common|benchmarks|docs)[\w/]*/[\w.]+\.(?:py|md|png)", README
    ):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m (common\.\w+)", README):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    named = set(re.findall(r"`(--[a-z-]+)", README))
    known = (ROOT / "chapter09_dqn" / "dqn.py").read_text()
    known += (ROOT / "common" / "config.py").read_text()
    known += (ROOT / "common" / "play.py").read_text()
    for flag in named - {"--help"}:
        name = flag.removeprefix("--")
        assert f'"{flag}"' in known or f"    {name.replace('-', '_')}: " in known, flag
