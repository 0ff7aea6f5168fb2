"""Exploration noise: moments of the draws, and the process against its recurrence."""

from common.errors import UserError
from common.noise import Noise

import numpy as np
import pytest


def test_gaussian_noise_has_no_memory():
    noise, rng = Noise("gaussian", 2, 3), np.random.default_rng(0)
    draws = np.stack([noise.sample(rng) for _ in range(20_000)])
    assert draws.shape == (20_000, 2, 3)
    assert draws.dtype == np.float32
    assert np.abs(draws.mean(axis=0)).max() < 4 / np.sqrt(20_000)
    assert np.abs(draws.std(axis=0) - 1.0).max() < 4 / np.sqrt(40_000)
    assert np.abs((draws[1:] * draws[:-1]).mean(axis=0)).max() < 4 / np.sqrt(20_000)


def test_ornstein_uhlenbeck_follows_its_recurrence():
    theta, dt = 0.7, 0.05
    noise = Noise("ou", 2, 3, theta, dt)
    draws = np.random.default_rng(3).standard_normal((50, 2, 3), np.float32)
    rng, expected = np.random.default_rng(3), np.zeros((2, 3))
    for t, draw in enumerate(draws):
        if t == 20:
            noise.reset(np.array([False, True]))
            expected[1] = 0.0
        expected = expected - theta * expected * dt + np.sqrt(dt) * draw
        np.testing.assert_allclose(noise.sample(rng), expected, atol=1e-5)


def test_ornstein_uhlenbeck_settles_at_its_spread_and_remembers():
    theta, dt = 0.5, 0.1
    noise, rng = Noise("ou", 400, 1, theta, dt), np.random.default_rng(0)
    draws = np.stack([noise.sample(rng) for _ in range(600)])[200:, :, 0]
    spread = np.sqrt(dt / (1 - (1 - theta * dt) ** 2))  # exact in steps; 1 / √(2 θ) for small dt
    assert draws.std() == pytest.approx(spread, rel=0.03)
    assert spread == pytest.approx(1 / np.sqrt(2 * theta), rel=0.03)
    correlation = (draws[10:] * draws[:-10]).mean() / draws.var()
    assert correlation == pytest.approx((1 - theta * dt) ** 10, abs=0.05)


def test_samples_do_not_change_later():
    noise, rng = Noise("ou", 1, 1), np.random.default_rng(0)
    first = noise.sample(rng)
    value = first.copy()
    noise.sample(rng)
    noise.reset(np.array([True]))
    np.testing.assert_array_equal(first, value)


def test_the_state_survives_a_checkpoint():
    noise, rng = Noise("ou", 2, 1), np.random.default_rng(0)
    noise.sample(rng)
    state = {name: array.copy() for name, array in noise.get_state().items()}
    expected = noise.sample(np.random.default_rng(1))
    other = Noise("ou", 2, 1)
    other.set_state(state)
    np.testing.assert_array_equal(other.sample(np.random.default_rng(1)), expected)


def test_other_kinds_are_refused():
    with pytest.raises(UserError, match="--noise pink: must be one of gaussian, ou"):
        Noise("pink", 1, 1)
