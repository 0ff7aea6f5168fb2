"""Runs that several tests compare with: uninterrupted, one for each script and kind of problem."""

import sys
from concurrent.futures import ThreadPoolExecutor

from tests.forked import run_to_end
from tests.processes import DQN, PENDULUM, PONG, PPO, ROOT, SCRIPTS, load

import pytest

sys.path.append(str(ROOT / "tests"))  # for odd_environments, here as in the started processes


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Tests marked `no_xla`, and not `xla`, run without XLA; so do the processes they start."""
    without = item.get_closest_marker("no_xla") and not item.get_closest_marker("xla")
    with pytest.MonkeyPatch.context() as patch:
        if without:
            patch.setenv("NO_XLA", "1")
        else:
            patch.delenv("NO_XLA", raising=False)
        return (yield)


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory):
    """Returns a function from a name to the directory of a finished run.

    All of them start at the first call, one after the other in the background: while tests wait
    for processes of their own, a core is free. They use XLA, so what is compared with them must.
    """
    folder = tmp_path_factory.mktemp("uninterrupted")
    runs = {"dqn": ("dqn", DQN), "ppo": ("ppo", PPO)}
    runs |= {"pendulum": ("ppo", PENDULUM), "pong": ("dqn", PONG)}
    with ThreadPoolExecutor(max_workers=1) as background:
        futures = {
            name: background.submit(
                run_to_end, script, *args, "--run-dir", name, cwd=folder, env={"NO_XLA": ""}
            )
            for name, (script, args) in runs.items()
        }

        def run_dir(name):
            futures[name].result()
            return folder / name

        yield run_dir
        for future in futures.values():
            future.cancel()


@pytest.fixture
def command_line(capsys, monkeypatch):
    """Returns a function that calls a script's `main` in this process, which saves its start-up.

    It takes the script's key and its arguments, and returns exit status, stdout and stderr.
    """

    def call(script, *args):
        monkeypatch.setattr(sys, "argv", [SCRIPTS[script], *map(str, args)])
        capsys.readouterr()
        status = 0
        try:
            load(script).main()
        except SystemExit as ending:
            status = ending.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call
