"""UCB: exact counts on certain arms, the testbed's reference, logarithmic regret."""

from chapter01_fundamentals.bandit_ucb import Config, argmax, train, upper_bound
from common.environments.bandits import BERNOULLI, GAUSSIAN

import numpy as np
import pytest

UCB1 = np.sqrt(2.0)


def tables(result) -> dict[str, np.ndarray]:
    with np.load(result.run_dir / "tables.npz") as stored:
        return dict(stored)


# --- Reference values -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("means", "confidence", "num_steps", "counts"),
    [
        ((0.8, 0.2), UCB1, 100, [89, 11]),
        ((0.83, 0.41), 1.0, 20, [16, 4]),  # [15, 5] if t ran from 2
    ],
)
def test_certain_arms(tmp_path, means, confidence, num_steps, counts):
    config = Config(
        env_id=GAUSSIAN,
        means=means,
        sigma=0.0,
        confidence=confidence,
        num_runs=3,
        num_steps=num_steps,
        run_dir=str(tmp_path),
    )
    result = train(config)
    assert tables(result)["counts"].tolist() == [counts] * 3
    assert result.facts["regret"] == pytest.approx(counts[1] * (means[0] - means[1]))
    np.testing.assert_allclose(tables(result)["Q"], [means] * 3, rtol=1e-12)


def test_testbed(tmp_path):
    facts = train(Config(run_dir=str(tmp_path))).facts
    assert facts["best_arm_share"] == pytest.approx(0.848, abs=0.022)  # four standard errors
    assert facts["mean_reward"] == pytest.approx(1.496, abs=0.055)


@pytest.mark.parametrize(("means", "regret"), [((0.8, 0.2), 16.5), ((0.9, 0.8), 24.9)])
def test_simulated_regret_of_ucb1(tmp_path, means, regret):
    config = Config(env_id=BERNOULLI, means=means, confidence=UCB1, run_dir=str(tmp_path))
    facts = train(config).facts
    assert facts["regret_error"] < regret / 50
    assert facts["regret"] == pytest.approx(regret, abs=4 * facts["regret_error"] + 0.1)


def test_regret_is_sublinear(tmp_path):
    config = Config(
        env_id=BERNOULLI,
        means=(0.8, 0.2),
        confidence=UCB1,
        num_steps=4000,
        num_runs=500,
        run_dir=str(tmp_path),
    )
    regret = tables(train(config))["regret"][0]
    assert regret[3999] / regret[999] < 1.5  # ln 4000 / ln 1000 = 1.2
    slopes = [regret[2**k] - regret[2 ** (k - 1)] for k in range(6, 12)]
    assert max(slopes) < 2.0 * min(slopes)  # each doubling of time costs about the same


# --- The strategy -----------------------------------------------------------------------------


def test_upper_bound():
    Q = np.array([[1.0, 2.0, 3.0]])
    counts = np.array([[1.0, 4.0, 0.0]])
    bound = upper_bound(Q, counts, 5, 2.0)[0]
    assert bound[0] == pytest.approx(1.0 + 2.0 * np.sqrt(np.log(5.0)))
    assert bound[1] == pytest.approx(2.0 + 1.0 * np.sqrt(np.log(5.0)))
    assert bound[2] == np.inf
    np.testing.assert_array_equal(upper_bound(Q, np.ones((1, 3)), 7, 0.0), Q)
    assert (upper_bound(Q, np.zeros((1, 3)), 1, 2.0) == np.inf).all()


def test_every_arm_is_tried_first_and_in_random_order(tmp_path):
    result = train(Config(num_runs=100, num_steps=10, run_dir=str(tmp_path)))
    assert (tables(result)["counts"] == 1).all()
    first = argmax(np.full((30_000, 3), np.inf), np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(first) / 30_000, 1 / 3, atol=0.011)


def test_larger_rewards_with_larger_confidence_change_nothing(tmp_path):
    """A power of two multiplies floating-point numbers exactly."""
    counts = []
    for number, scale in enumerate((1.0, 2.0**20, 2.0**-20)):
        config = Config(
            env_id=GAUSSIAN,
            means=(0.5 * scale, 0.25 * scale, -scale),
            sigma=scale,
            confidence=2.0 * scale,
            num_runs=30,
            num_steps=200,
            run_dir=str(tmp_path / str(number)),
        )
        counts.append(tables(train(config))["counts"])
    np.testing.assert_array_equal(counts[0], counts[1])
    np.testing.assert_array_equal(counts[0], counts[2])


@pytest.mark.parametrize("scale", [1e6, 1e-6])
def test_rewards_of_any_scale_and_far_from_zero(tmp_path, scale):
    config = Config(
        env_id=GAUSSIAN,
        means=(1e6, 1e6 + scale),
        sigma=scale,
        confidence=2 * scale,
        num_runs=200,
        num_steps=300,
        run_dir=str(tmp_path),
    )
    result = train(config)
    assert all(np.isfinite(table).all() for table in tables(result).values())
    assert result.facts["best_arm_share"] > 0.85  # the means are not 0, where Q begins: no matter


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--confidence -1", "--confidence -1.0: must be 0 or more"),
        ("--confidence inf", "--confidence inf: must be a finite number"),
        ("--num-steps 0", "--num-steps 0: must be at least 1"),
        ("--env-id GaussianBandit-v0 --means 1", "--means 1: must be at least two numbers"),
    ],
)
def test_bad_input(command_line, tmp_path, flags, message):
    run_dir = tmp_path / "run"
    status, _, err = command_line("bandit_ucb", *flags.split(), "--run-dir", run_dir)
    assert status == 2
    assert err.startswith(f"error: {message}")
    assert not run_dir.exists()
