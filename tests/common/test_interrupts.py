"""Ctrl-C waits for the end of a pass, wherever in the pass it comes."""

import signal
import threading
from dataclasses import dataclass

from common import checkpoint, interrupts
from common.config import RunConfig
from common.run import Run

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def python_handles_control_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def press():
    signal.raise_signal(signal.SIGINT)


class PressedWhenDeleted:
    """Python prints what is raised in here, and goes on."""

    def __del__(self):
        press()


@dataclass(frozen=True)
class Config(RunConfig):
    """The least a script has."""


def test_a_run_ends_after_the_pass_also_where_python_would_forget_the_interrupt(tmp_path, capsys):
    run = Run(Config(run_dir=str(tmp_path), checkpoint_every=3), __file__)
    run.track(nothing=np.zeros(1))
    passes = []
    with pytest.raises(KeyboardInterrupt):
        for step in run.steps(10):
            if step == 2:
                thing = PressedWhenDeleted()
                del thing
            passes.append(step)
    assert passes == [0, 1, 2]
    assert checkpoint.latest(tmp_path).stem == f"{3:012d}"
    assert "KeyboardInterrupt" not in capsys.readouterr().err


def test_a_run_whose_last_pass_was_interrupted_does_not_go_on(tmp_path):
    run = Run(Config(run_dir=str(tmp_path)), __file__)
    with pytest.raises(KeyboardInterrupt):
        for step in run.steps(3):
            if step == 2:
                press()


def test_a_second_one_interrupts_at_once():
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        press()
        reached.append("after the first")
        press()
        reached.append("after the second")
    assert reached == ["after the first"]


def test_one_that_nobody_asked_for_is_raised_at_the_end():
    reached = []
    with pytest.raises(KeyboardInterrupt), interrupts.deferred():
        press()
        reached.append("the end")
    assert reached == ["the end"]


def test_it_is_raised_once():
    with interrupts.deferred() as check:
        check()
        press()
        with pytest.raises(KeyboardInterrupt):
            check()
        check()


def test_another_error_comes_first():
    with pytest.raises(ZeroDivisionError), interrupts.deferred():
        press()
        raise ZeroDivisionError
    with pytest.raises(KeyboardInterrupt):  # and does not leave the handler behind
        press()


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_who_handles_control_c_otherwise_is_left_alone(handler):
    signal.signal(signal.SIGINT, handler)
    try:
        with interrupts.deferred() as check:
            assert signal.getsignal(signal.SIGINT) is handler
            press()
            check()
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_other_threads_train_too():
    done = []

    def loop():
        with interrupts.deferred() as check:
            check()
            done.append(True)

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert done == [True]
