"""The ramp of learning rates, exploration and clip ranges."""

from common.schedules import linear_schedule

import pytest


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1.0), (250, 0.76), (500, 0.52), (999, 0.04096), (1000, 0.04)]
)
def test_falls_on_a_line(step, expected):
    assert linear_schedule(1.0, 0.04, 1000)(step) == pytest.approx(expected, abs=1e-12)


def test_stays_at_the_end():
    epsilon = linear_schedule(1.0, 0.04, 1000)
    assert epsilon(1001) == epsilon(10**9) == pytest.approx(0.04, abs=1e-12)


def test_rises_as_well():
    assert linear_schedule(0.4, 1.0, 200)(50) == pytest.approx(0.55)


def test_no_ramp_means_the_end_from_the_start():
    assert linear_schedule(1.0, 0.1, 0)(0) == pytest.approx(0.1)


def test_equal_ends_are_a_constant():
    constant = linear_schedule(3e-4, 3e-4, 12.8)
    assert {constant(step) for step in (0, 5, 12, 13, 1000)} == {3e-4}
