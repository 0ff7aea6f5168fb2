"""Advertisement banners: one log of clicks for all, A/B tests of every length, clicks lost."""

from chapter01_fundamentals import bandit_ad_banner as script
from chapter01_fundamentals.bandit_ad_banner import (
    KEYS,
    NAMES,
    Config,
    ab_test,
    ab_tests_of_all_lengths,
    argmax,
    bandit,
    click_log,
    facts,
    softmax,
    train,
)
from common.metrics import read_metrics

import numpy as np
import pytest

SMALL = {"num_visitors": 600, "num_logs": 7, "test_visitors": 150}


def tables(result) -> dict[str, np.ndarray]:
    with np.load(result.run_dir / "tables.npz") as stored:
        return dict(stored)


# --- The log ----------------------------------------------------------------------------------


def test_the_log_has_the_rates():
    config = Config(num_logs=40)
    log = click_log(config, np.array(config.rates))
    assert log.shape == (20_000, 40, 5)
    assert log.dtype == bool
    size = 20_000 * 40
    for banner, rate in enumerate(config.rates):
        error = np.sqrt(rate * (1 - rate) / size)
        assert log[..., banner].mean() == pytest.approx(rate, abs=4 * error)
        # No log is like another, no visitor like the one before.
        assert log[..., banner].mean(axis=0).std() == pytest.approx(error * np.sqrt(40), rel=0.4)
    certain = click_log(Config(**SMALL), np.array([0.0, 1.0]))
    assert not certain[..., 0].any()
    assert certain[..., 1].all()


def test_the_log_depends_on_the_seed_and_on_nothing_that_strategies_do():
    log = click_log(Config(**SMALL), np.array([0.1, 0.2]))
    for flags in (
        {"epsilon": 0.5},
        {"confidence": 3.0},
        {"temperature": 1.0},
        {"click_value": 2.0},
    ):
        np.testing.assert_array_equal(
            log, click_log(Config(**SMALL, **flags), np.array([0.1, 0.2]))
        )
    assert (log != click_log(Config(**SMALL, seed=1), np.array([0.1, 0.2]))).any()


def test_every_strategy_gets_the_clicks_of_the_same_log(tmp_path):
    """The same decisions, made again from the log alone."""
    config = Config(**SMALL, rates=(0.1, 0.3, 0.2), run_dir=str(tmp_path))
    saved = tables(train(config))
    log = click_log(config, np.array(config.rates))
    np.testing.assert_array_equal(saved["first_log"], log[:, 0])
    rng = np.random.default_rng([config.seed, 1])
    clicks, visits = np.zeros((5, 7, 3)), np.zeros((5, 7, 3))
    winner = None
    for t, row in enumerate(log):  # row: what visitor t of each log would click, [7, 3]
        if t == 150:
            winner = argmax(clicks[0] / visits[0], rng)
        for i, name in enumerate(NAMES):
            if i == 0:
                banner = np.full(7, t % 3) if t < 150 else winner
            else:
                banner = bandit(name, t, clicks[i], visits[i], config, rng)
            for number in range(7):
                clicks[i, number, banner[number]] += row[number, banner[number]]
                visits[i, number, banner[number]] += 1
    np.testing.assert_array_equal(saved["visits"], visits)
    np.testing.assert_array_equal(saved["clicks"], clicks)
    assert (visits.sum(axis=2) == 600).all()
    lost = (visits * (0.3 - np.array([0.1, 0.3, 0.2]))).sum(axis=2)
    np.testing.assert_allclose(saved["lost"], lost, rtol=1e-12, atol=1e-9)


# --- The A/B test -----------------------------------------------------------------------------


def test_the_ab_test_shows_all_equally_then_the_winner(tmp_path):
    config = Config(**SMALL, rates=(0.1, 0.3, 0.2))
    winner = np.array([2, 0])
    shown = [ab_test(t, winner, config).tolist() for t in (0, 1, 2, 3, 149, 150, 599)]
    assert shown == [[0, 0], [1, 1], [2, 2], [0, 0], [2, 2], [2, 0], [2, 0]]
    saved = tables(train(Config(**SMALL, rates=(0.1, 0.3, 0.2), run_dir=str(tmp_path))))
    visits = np.sort(saved["visits"][0], axis=1)
    assert (visits == [50, 50, 500]).all()


def test_ab_tests_of_all_lengths_by_hand():
    rates = np.array([0.2, 0.5])
    config = Config(rates=(0.2, 0.5), num_visitors=400, num_logs=6, test_visitors=2)
    log = click_log(config, rates)
    losses = ab_tests_of_all_lengths(log, rates, np.random.default_rng(0))
    assert losses.shape == (100, 6)
    for hundredth in (3, 10, 40, 100):
        length = 4 * hundredth
        for number in range(6):
            won = [log[a:length:2, number, a].sum() for a in range(2)]
            stays_wrong = won[0] > won[1]
            if won[0] != won[1]:
                expected = length * 0.15 + (400 - length) * 0.3 * stays_wrong
                assert losses[hundredth - 1, number] == pytest.approx(expected)


def test_the_ab_test_is_one_of_all_lengths(tmp_path):
    flags = {"rates": (0.1, 0.6), "num_visitors": 1000, "num_logs": 9, "test_visitors": 200}
    saved = tables(train(Config(**flags, run_dir=str(tmp_path))))
    log, rates = click_log(Config(**flags), np.array(flags["rates"])), np.array(flags["rates"])
    losses = ab_tests_of_all_lengths(log, rates, np.random.default_rng(0))
    np.testing.assert_allclose(saved["lost"][0], losses[19])
    np.testing.assert_allclose(losses[-1], 1000 * 0.25)  # all visitors: it is no test any more


def test_facts_of_the_best_ab_test():
    """100 lengths of a test of 2,000 visitors, two logs; that of 20 hundredths is the best."""
    tests = np.tile(np.linspace(50.0, 149.0, 100)[:, None], (1, 2))
    tests[19] = [10.0, 30.0]
    found = facts(Config(num_visitors=2_000), np.array([[90.0, 110.0]] + [[40.0, 60.0]] * 4), tests)
    assert found["visitors_in_best_ab_test"] == 400.0
    assert found["clicks_lost_best_ab_test"] == 20.0
    assert found["relative_regret_of_the_worst_bandit"] == 0.5


def test_pictures_show_the_last_visitor(tmp_path, monkeypatch):
    """209 visitors make points every second visitor; the last one is none of them."""
    shown = []
    monkeypatch.setattr(script, "draw", lambda *args: shown.append(args))
    saved = tables(train(Config(**SMALL | {"num_visitors": 209}, run_dir=str(tmp_path))))
    [(_, _, visitors, curves, lost, tests)] = shown
    assert visitors[-1] == 208
    np.testing.assert_array_equal(lost, saved["lost"])
    assert (lost.sum(axis=1) > curves[-1].sum(axis=1)).any()
    assert tests.shape == (100, 7)


# --- The bandits ------------------------------------------------------------------------------


def chosen(name, clicks, visits, t=100, runs=40_000, **flags):
    """Shares of the banners over many equal logs."""
    S, N = (np.tile(np.array(row, float), (runs, 1)) for row in (clicks, visits))
    banner = bandit(name, t, S, N, Config(**flags), np.random.default_rng(0))
    return np.bincount(banner, minlength=len(clicks)) / runs


def test_decisions_of_the_bandits():
    error = 4 * 0.5 / np.sqrt(40_000)
    clicks, visits = (2, 3, 0), (10, 10, 10)
    shares = chosen("epsilon-greedy", clicks, visits, epsilon=0.3)
    np.testing.assert_allclose(shares, [0.1, 0.8, 0.1], atol=error)
    assert chosen("epsilon-greedy", clicks, visits, epsilon=0.0).tolist() == [0, 1, 0]
    shares = chosen("softmax", clicks, visits, t=3, temperature=0.4, temperature_decay=0.5)
    weights = np.exp(np.array([0.2, 0.3, 0.0]) / 0.05)
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=error)
    shares = chosen("Thompson sampling", (2, 0), (2, 2))  # Beta(3, 1) against Beta(1, 3)
    np.testing.assert_allclose(shares, [0.95, 0.05], atol=error)
    assert chosen("UCB", clicks, visits).tolist() == [0, 1, 0]
    assert chosen("UCB", clicks, (10, 10, 0)).tolist() == [0, 0, 1]
    # The second visitor: 0.2 + c sqrt(ln 2 / 1) against 0.3 + c sqrt(ln 2 / 10), c = 0.1757.
    assert chosen("UCB", (0.2, 3, 0), (1, 10, 10), t=1, confidence=0.17).tolist() == [0, 1, 0]
    assert chosen("UCB", (0.2, 3, 0), (1, 10, 10), t=1, confidence=0.18).tolist() == [1, 0, 0]


def test_softmax_does_not_overflow():
    assert softmax(np.array([[1.0, 0.0]]), np.finfo(float).tiny).tolist() == [[1.0, 0.0]]
    np.testing.assert_allclose(softmax(np.array([[1.0, 2, 3]]), 1.0)[0, 2], 0.66524, atol=5e-6)


def test_bandits_lose_less_than_the_ab_test(tmp_path):
    flags = {"rates": (0.05, 0.06, 0.07, 0.08, 0.15), "temperature": 0.1, "num_logs": 60}
    config = Config(
        **flags,
        temperature_decay=0.999,
        confidence=0.4,
        num_visitors=5000,
        test_visitors=1000,
        run_dir=str(tmp_path),
    )
    result = train(config)
    found, saved = result.facts, tables(result)
    assert found["relative_regret_of_the_worst_bandit"] < 1.0
    assert found["clicks_lost_thompson_sampling"] < found["clicks_lost_best_ab_test"]
    for i, key in enumerate(KEYS):
        assert found[f"clicks_lost_{key}"] == pytest.approx(saved["lost"][i].mean())
        assert found[f"money_lost_{key}"] == pytest.approx(0.5 * saved["lost"][i].mean())
    worst = max(found[f"clicks_lost_{key}"] for key in KEYS[1:])
    relative = worst / found["clicks_lost_ab_test"]
    assert found["relative_regret_of_the_worst_bandit"] == pytest.approx(relative)
    better = (saved["lost"][4] < saved["lost"][0]).mean()
    assert found["logs_better_than_ab_test_thompson_sampling"] == better > 0.9
    metrics = read_metrics(tmp_path)
    np.testing.assert_array_equal(metrics["step"], np.arange(25, 5001, 25))
    for i, key in enumerate(KEYS):
        assert metrics[f"train/regret_{key}"][-1] == pytest.approx(saved["lost"][i].mean())
        assert (np.diff(metrics[f"train/regret_{key}"]) >= 0.0).all()
    for name in ("learning_curve.png", "ab_test.png"):
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_target(tmp_path, seed):
    found = train(Config(seed=seed, run_dir=str(tmp_path))).facts
    assert found["relative_regret_of_the_worst_bandit"] < 1.0
    for key in ("softmax", "ucb", "thompson_sampling"):
        assert found[f"clicks_lost_{key}"] < found["clicks_lost_best_ab_test"]


def test_few_visitors_and_one_log(tmp_path):
    result = train(Config(num_visitors=7, num_logs=1, test_visitors=5, run_dir=str(tmp_path)))
    assert tables(result)["visits"].sum() == 35
    assert all(np.isfinite(value) for value in result.facts.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--rates 0.02", "--rates 0.02: must be at least two numbers"),
        ("--rates 0.02 1.5", "--rates 0.02 1.5: must be probabilities, between 0 and 1"),
        ("--rates 2 3", "--rates 2 3: must be probabilities"),
        ("--test-visitors 4", "--test-visitors 4: must be at least one for each banner (5)"),
        ("--test-visitors 30_000", "--test-visitors 30000: must be at least one for each"),
        ("--num-visitors 0", "--num-visitors 0: must be at least 1"),
        ("--num-logs 0", "--num-logs 0: must be at least 1"),
        ("--num-logs 100_000_000", "--num-visitors 20000, --num-logs 100000000: so many clicks"),
        ("--epsilon 2", "--epsilon 2.0: must be between 0 and 1"),
        ("--click-value -1", "--click-value -1.0: must be 0 or more"),
    ],
)
def test_bad_input(command_line, tmp_path, flags, message):
    run_dir = tmp_path / "run"
    status, _, err = command_line("bandit_ad_banner", *flags.split(), "--run-dir", run_dir)
    assert status == 2
    assert err.startswith(f"error: {message}")
    assert not run_dir.exists()
