"""Scripts in processes that are forked from one which has imported TensorFlow: seconds saved each.

Such a process runs its script from the first line to the last, as `python script.py` does, with
files for its output; only `atexit` is skipped. Where the start-up itself matters, or signals, use
`processes.start`.
"""

import itertools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from multiprocessing import connection
from pathlib import Path

import common
from tests.processes import ROOT, SCRIPTS, finish

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    ["common.quiet", "tensorflow_probability", "common.evaluation", "tyro"]
)
_numbers = itertools.count()
# Each start asks all processes whether they have ended. A pipe tells it once, to who asks first: of
# two threads, the other one would take the process for lost.
_one_asks = threading.Lock()


class Forked:
    """As much of `subprocess.Popen` as tests need."""

    def __init__(self, process, output):
        self._process, self._output, self.pid = process, output, process.pid

    def poll(self):
        with _one_asks:
            return self._process.exitcode  # negative: ended by that signal

    @property
    def returncode(self):
        return self.poll()

    def kill(self):
        with _one_asks:
            self._process.kill()

    def communicate(self, timeout=None):
        if not connection.wait([self._process.sentinel], timeout):
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        self.poll()
        return tuple(path.read_text() for path in self._output)


def start(script, *args, cwd, env=None, kill_at=None):
    """Starts a script by its key in SCRIPTS or its path; the caller waits for it or kills it.

    With `kill_at`, SIGKILL comes at this call of `run.log`, or for 0 after the last step.
    """
    name = f"{Path(script).stem}-{next(_numbers)}"
    output = [Path(cwd) / f"{name}.{stream}" for stream in ("out", "err")]
    env = {"NO_XLA": os.environ.get("NO_XLA", ""), **(env or {})}  # the server's is an older one
    path = str(ROOT / SCRIPTS.get(script, script))
    arguments = (path, [*map(str, args)], cwd, env, kill_at, output)
    process = _server.Process(target=_run_script, args=arguments, name=name)
    with _one_asks:
        process.start()
    return Forked(process, output)


def run(script, *args, cwd, **options):
    """Runs a script to its end; returns its exit status, standard output and standard error."""
    return finish(start(script, *args, cwd=cwd, **options))


def run_to_end(script, *args, cwd, env=None):
    """Runs a script that must succeed."""
    status, out, err = run(script, *args, cwd=cwd, env=env)
    assert status == 0, err
    return out


def _run_script(path, args, cwd, env, kill_at, output):
    for number, name in enumerate(output, start=1):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    assert Path(common.__file__).is_relative_to(ROOT), "run the tests from the project's root"
    os.chdir(cwd)
    os.environ.update(env)
    if kill_at is not None:
        _kill_at(kill_at)
    sys.argv = [path, *args]
    sys.path.insert(0, os.path.dirname(path))
    runpy.run_path(path, run_name="__main__")


def _kill_at(call):
    from common.run import Run

    calls, log, steps = 0, Run.log, Run.steps

    def deadly_log(self, row, weight=1):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        log(self, row, weight)

    def deadly_steps(self, *args, **kwargs):
        yield from steps(self, *args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    if call:
        Run.log = deadly_log
    else:
        Run.steps = deadly_steps
