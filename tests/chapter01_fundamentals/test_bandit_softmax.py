"""Softmax: exact probabilities, safe for rewards of any scale, cooling on the testbed."""

import warnings

from chapter01_fundamentals.bandit_softmax import Config, sample, softmax, train
from common.environments.bandits import BERNOULLI, GAUSSIAN
from common.metrics import read_metrics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays


def tables(result) -> dict[str, np.ndarray]:
    with np.load(result.run_dir / "tables.npz") as stored:
        return dict(stored)


def test_softmax_of_one_two_three():
    probabilities = softmax(np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]]), 1.0)
    np.testing.assert_allclose(probabilities[0], [0.09003, 0.24473, 0.66524], atol=5e-6)
    np.testing.assert_allclose(probabilities[1], [0.66524, 0.09003, 0.24473], atol=5e-6)


def test_temperature():
    Q = np.array([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(softmax(2.0 * Q, 2.0), softmax(Q, 1.0))
    np.testing.assert_allclose(softmax(Q, 1e9), np.full((1, 3), 1 / 3), atol=1e-8)
    assert softmax(Q, 1e-9).tolist() == [[0.0, 0.0, 1.0]]
    np.testing.assert_allclose(softmax(np.array([[3.0, 3.0, 1.0]]), 1e-9), [[0.5, 0.5, 0.0]])
    odds = softmax(Q, 0.7)
    assert odds[0, 2] / odds[0, 0] == pytest.approx(np.exp(2.0 / 0.7))


@given(
    arrays(np.float64, (3, 4), elements=st.floats(-10.0, 10.0)),
    st.sampled_from([1e-6, 1.0, 1e6, 1e300]),
    st.sampled_from([0.0, 1e6, -1e6]),
    st.sampled_from([np.finfo(float).tiny, 1e-6, 0.1, 1.0, 1e6]),
)
@settings(max_examples=200, deadline=None)
def test_probabilities_for_rewards_of_any_scale(Q, scale, shift, temperature):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probabilities = softmax(scale * Q + shift, temperature)
    assert np.isfinite(probabilities).all()
    assert (probabilities >= 0.0).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-12)
    order = np.take_along_axis(probabilities, Q.argsort(axis=1), axis=1)
    assert (np.diff(order, axis=1) >= -1e-15).all()  # a higher Q is never less likely


@given(arrays(np.float64, (2, 3), elements=st.floats(-5.0, 5.0)), st.sampled_from([-64.0, 2.0**20]))
@settings(max_examples=50, deadline=None)
def test_a_shift_of_all_rewards_changes_nothing(Q, shift):
    np.testing.assert_allclose(softmax(Q + shift, 1.0), softmax(Q, 1.0), rtol=1e-8)


class LowestNumbers:
    """A generator that draws 0, once in 2^53 times."""

    def random(self, size):
        return np.zeros(size)


def test_arms_are_drawn_with_their_probabilities():
    probabilities = np.tile([0.1, 0.0, 0.6, 0.3], (50_000, 1))
    arm = sample(probabilities, np.random.default_rng(0))
    share = np.bincount(arm, minlength=4) / len(arm)
    np.testing.assert_allclose(share, [0.1, 0.0, 0.6, 0.3], atol=4 * np.sqrt(0.24 / 50_000))
    assert share[1] == 0.0
    for certain in range(3):  # also the first and the last
        rows = np.tile(np.eye(3)[certain], (1000, 1))
        assert set(sample(rows, np.random.default_rng(1))) == {certain}
    assert sample(np.array([[0.0, 1.0]]), LowestNumbers()).tolist() == [1]  # not the impossible one
    # Every row by its own probabilities.
    rows = np.eye(4)[[3, 0, 2, 1]]
    assert sample(rows, np.random.default_rng(2)).tolist() == [3, 0, 2, 1]


def test_cooling_beats_the_references_of_the_testbed(tmp_path):
    result = train(Config(run_dir=str(tmp_path)))
    assert result.facts["best_arm_share"] > 0.848 + 0.05
    temperature = read_metrics(tmp_path)["train/temperature"]
    assert temperature[0] == pytest.approx(np.mean(0.995 ** np.arange(5)), rel=1e-6)
    assert temperature[-1] == pytest.approx(np.mean(0.995 ** np.arange(995, 1000)), rel=1e-6)


def test_extreme_temperatures(tmp_path):
    hot = train(Config(temperature=1e9, temperature_decay=1.0, run_dir=str(tmp_path / "hot")))
    assert hot.facts["best_arm_share"] == pytest.approx(0.1, abs=0.004)  # any arm
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = Config(temperature_decay=1e-3, num_runs=50, run_dir=str(tmp_path / "cold"))
        cold = train(config)  # τ would be 1e-3000 in the end
    assert cold.facts["best_arm_share"] < 0.7
    counts = tables(cold)["counts"]
    assert (counts.max(axis=1) > 900).mean() > 0.8  # greedy: hardly an arm is ever left


def test_the_books_cooling_is_all_but_uniform(tmp_path):
    config = Config(
        env_id=BERNOULLI,
        means=(0.8, 0.2),
        temperature=50.0,
        temperature_decay=0.99,
        num_steps=100,
        run_dir=str(tmp_path),
    )
    assert train(config).facts["best_arm_share"] == pytest.approx(0.505, abs=0.005)


@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_rewards_of_any_scale(tmp_path, scale):
    config = Config(
        env_id=GAUSSIAN,
        means=(1e6, 1e6 + scale),
        sigma=scale,
        temperature=0.3 * scale,
        num_runs=50,
        num_steps=200,
        run_dir=str(tmp_path),
    )
    result = train(config)
    assert all(np.isfinite(table).all() for table in tables(result).values())
    assert np.isfinite(read_metrics(tmp_path)["train/reward"]).all()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--temperature 0", "--temperature 0.0: must be greater than 0"),
        ("--temperature-decay 0", "--temperature-decay 0.0: must be greater than 0 and at most 1"),
        ("--temperature-decay 1.1", "--temperature-decay 1.1: must be greater than 0 and at most"),
        ("--temperature nan", "--temperature nan: must be a finite number"),
        ("--num-runs 0", "--num-runs 0: must be at least 1"),
        ("--env-id BernoulliBandit-v0 --means 0.8 1.2", "--means 0.8 1.2: must be probabilities"),
    ],
)
def test_bad_input(command_line, tmp_path, flags, message):
    run_dir = tmp_path / "run"
    status, _, err = command_line("bandit_softmax", *flags.split(), "--run-dir", run_dir)
    assert status == 2
    assert err.startswith(f"error: {message}")
    assert not run_dir.exists()
