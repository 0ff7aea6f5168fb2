"""Contextual bandits: ridge regression and its posterior in closed form, disjoint LinUCB."""

from chapter01_fundamentals import bandit_contextual as script
from chapter01_fundamentals.bandit_contextual import (
    ARTWORK,
    TASTE,
    Config,
    draw_theta,
    estimate,
    features,
    learn,
    linucb,
    train,
    ucb,
)
from common.metrics import read_metrics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def tables(result) -> dict[str, np.ndarray]:
    with np.load(result.run_dir / "tables.npz") as stored:
        return dict(stored)


def learned(x: np.ndarray, clicks: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """A^-1 and b after x [T, N, D] and clicks [T, N]."""
    _, runs, size = x.shape
    A_inverse, b = np.tile(np.eye(size) / ridge, (runs, 1, 1)), np.zeros((runs, size))
    for one, click in zip(x, clicks, strict=True):
        learn(A_inverse, b, one, click)
    return A_inverse, b


# --- Ridge regression -------------------------------------------------------------------------


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 30),
    st.integers(1, 5),
    st.sampled_from([0.1, 1.0, 10]),
)
@settings(max_examples=60, deadline=None)
def test_learning_is_ridge_regression(seed, steps, size, ridge):
    rng = np.random.default_rng(seed)
    x, clicks = rng.normal(size=(steps, 3, size)), rng.integers(2, size=(steps, 3)).astype(float)
    A_inverse, b = learned(x, clicks, ridge)
    for run in range(3):
        A = ridge * np.eye(size) + sum(np.outer(one, one) for one in x[:, run])
        np.testing.assert_allclose(np.linalg.inv(A_inverse[run]), A, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(A_inverse[run] @ A, np.eye(size), atol=1e-10)
        # Ridge regression is least squares with rows of sqrt(λ) e_i and 0 below the data.
        rows = np.concatenate([x[:, run], np.sqrt(ridge) * np.eye(size)])
        answers = np.concatenate([clicks[:, run], np.zeros(size)])
        theta = np.linalg.lstsq(rows, answers, rcond=None)[0]
        np.testing.assert_allclose(estimate(A_inverse, b)[run], theta, rtol=1e-8, atol=1e-9)


def test_the_inverse_stays_exact_over_many_updates():
    rng = np.random.default_rng(0)
    user, arm = rng.dirichlet(np.full(4, 0.3), (5000, 2)), rng.integers(8, size=(5000, 2))
    x = np.array([features(u, ARTWORK)[np.arange(2), a] for u, a in zip(user, arm, strict=True)])
    A_inverse, _ = learned(x, np.zeros((5000, 2)), ridge=1.0)
    A = np.eye(16) + np.einsum("tnd,tne->nde", x, x)
    np.testing.assert_allclose(A_inverse, np.linalg.inv(A), atol=1e-13)
    np.testing.assert_array_equal(A_inverse, A_inverse.transpose(0, 2, 1))


def test_thompsons_posterior_is_that_of_bayesian_linear_regression():
    """Prior θ ~ N(0, v²/λ I), clicks ~ N(θ x, v²)."""
    rng = np.random.default_rng(0)
    v, ridge = 0.3, 2.0
    x, clicks = rng.normal(size=(6, 3)), rng.normal(size=6)
    precision = ridge / v**2 * np.eye(3) + x.T @ x / v**2
    covariance = np.linalg.inv(precision)
    mean = covariance @ x.T @ clicks / v**2
    A_inverse, b = learned(x[:, None], clicks[:, None], ridge)
    draws = 200_000
    theta = draw_theta(np.tile(A_inverse, (draws, 1, 1)), np.tile(b, (draws, 1)), v, rng)
    std = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((theta.mean(axis=0) - mean) / std, 0.0, atol=4 / np.sqrt(draws))
    found = np.cov(theta.T) / np.outer(std, std)
    np.testing.assert_allclose(found, covariance / np.outer(std, std), atol=6 / np.sqrt(draws))


def test_linucb_by_hand():
    rng = np.random.default_rng(0)
    x, b = rng.normal(size=(40, 3, 2)), rng.normal(size=(40, 2))
    root = rng.normal(size=(40, 2, 2))
    A_inverse = root @ root.transpose(0, 2, 1) + 0.1 * np.eye(2)
    for c in (0.0, 0.7, 10.0):
        expected = [
            max(
                range(3),
                key=lambda a: (
                    x[n, a] @ A_inverse[n] @ b[n] + c * (x[n, a] @ A_inverse[n] @ x[n, a]) ** 0.5
                ),
            )
            for n in range(40)
        ]
        assert linucb(A_inverse, b, x, c).tolist() == expected


def test_ucb_without_context_by_hand():
    clicks, shown = np.array([[1.0, 5.0, 0.0]]), np.array([[2.0, 20.0, 0.0]])
    assert ucb(clicks, shown, 22, 0.1).tolist() == [2]
    assert ucb(clicks, np.array([[2.0, 20.0, 5.0]]), 27, 0.0).tolist() == [0]
    # 0.1 + c sqrt(ln 27 / 1) against 0.25 + c sqrt(ln 27 / 20): equal at c = 0.1064
    for confidence, best in ((0.10, 1), (0.11, 0)):
        assert ucb(np.array([[0.1, 5.0]]), np.array([[1.0, 20.0]]), 27, confidence) == best


# --- Features and viewers ---------------------------------------------------------------------


def test_features_are_all_products_and_clicks_are_linear_in_them():
    user = np.random.default_rng(0).dirichlet(np.ones(4), 6)
    x = features(user, ARTWORK)
    assert x.shape == (6, 8, 16)
    assert x[2, 3, 4 * 1 + 2] == user[2, 1] * ARTWORK[3, 2]
    chance = user @ TASTE @ ARTWORK.T
    np.testing.assert_allclose(x @ TASTE.ravel(), chance)
    assert 0.0 <= chance.min() <= chance.max() <= 1.0


def test_the_vectors_are_mixtures_of_genres():
    np.testing.assert_allclose(ARTWORK.sum(axis=1), 1.0)
    assert (ARTWORK >= 0.0).all()
    assert ((TASTE >= 0.0) & (TASTE <= 1.0)).all()
    assert np.linalg.matrix_rank(TASTE) == 4
    mean = TASTE.mean(axis=0) @ ARTWORK.T
    assert list(script.ARTWORKS)[mean.argmax()] == "kiss"  # the best without context, and alone
    assert np.sort(mean)[-1] - np.sort(mean)[-2] > 0.01


def test_without_artwork_features_it_is_disjoint_linucb():
    """Li et al.'s algorithm 1, one matrix for each artwork, makes the same choices."""
    rng = np.random.default_rng(0)
    A = [np.eye(4) for _ in range(8)]
    b = [np.zeros(4) for _ in range(8)]
    A_inverse, total = np.eye(32)[None], np.zeros((1, 32))
    for _ in range(200):
        user = rng.dirichlet(np.full(4, 0.5), 1)
        bounds = []
        for a in range(8):
            inverse, u = np.linalg.inv(A[a]), user[0]
            bounds.append(inverse @ b[a] @ u + 0.8 * np.sqrt(u @ inverse @ u))
        x = features(user, np.eye(8))
        arm = linucb(A_inverse, total, x, 0.8)
        # The first choices are ties, which rounding decides.
        assert bounds[arm[0]] == pytest.approx(max(bounds), abs=1e-9)
        click = (rng.random(1) < user @ TASTE @ ARTWORK[arm[0]]).astype(float)
        A[arm[0]] += np.outer(user, user)
        b[arm[0]] += click * user[0]
        learn(A_inverse, total, x[[0], arm], click)
    for a in range(8):
        block = A_inverse[0].reshape(4, 8, 4, 8)[:, a, :, a]
        np.testing.assert_allclose(block, np.linalg.inv(A[a]), atol=1e-10)
    mixed = A_inverse[0].reshape(4, 8, 4, 8)[:, 0, :, 1]
    np.testing.assert_array_equal(mixed, 0.0)


# --- Regret -----------------------------------------------------------------------------------


def test_context_pays(tmp_path):
    result = train(Config(num_users=2000, num_runs=15, run_dir=str(tmp_path)))
    facts, saved = result.facts, tables(result)
    assert facts["relative_regret"] < 0.5
    for key in ("linucb", "linear_thompson"):
        assert facts[f"regret_against_single_{key}"] < -100.0  # better than any single artwork
    for key in ("ucb_without_context", "thompson_without_context"):
        assert facts[f"regret_against_single_{key}"] > 0.0
    assert facts["regret_best_policy"] == 0.0
    means = saved["regret"].mean(axis=1)
    worst, best = max(means[:2]), min(means[2:4])
    assert facts["relative_regret"] == pytest.approx(worst / best)
    assert facts["regret_against_single_linucb"] == pytest.approx(means[0] - means[4])
    metrics = read_metrics(tmp_path)
    for i, key in enumerate(script.KEYS[:4]):
        regret = metrics[f"train/regret_{key}"]
        assert regret[-1] == pytest.approx(means[i], rel=1e-6)
        assert (np.diff(regret) >= 0.0).all()
    # Without context the regret grows steadily; with it ever more slowly.
    growth = {
        key: np.diff(metrics[f"train/regret_{key}"][[49, 99, 199]]) for key in script.KEYS[:4]
    }
    for key in ("linucb", "linear_thompson"):
        assert growth[key][1] < 1.3 * growth[key][0]  # in twice as many viewers
    assert growth["thompson_without_context"][1] > 1.7 * growth["thompson_without_context"][0]
    # θ approaches the truth.
    assert np.abs(saved["theta"].mean(axis=0) - TASTE.ravel()).max() < 0.25
    for name in ("learning_curve.png", "artworks.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_the_regret_of_a_single_artwork_is_that_of_the_kiss(tmp_path):
    """The same viewers, drawn again."""
    config = Config(num_users=50, num_runs=4, concentration=0.7, run_dir=str(tmp_path))
    saved = tables(train(config))
    users = np.random.default_rng([config.seed, 2])
    lost = np.zeros(4)
    for _ in range(50):
        chance = users.dirichlet(np.full(4, 0.7), 4) @ TASTE @ ARTWORK.T
        users.random((4, 8))
        lost += chance.max(axis=1) - chance[:, list(script.ARTWORKS).index("kiss")]
    np.testing.assert_allclose(saved["regret"][4], lost)


def test_every_bandit_learns_from_its_own_choices(tmp_path, monkeypatch):
    """The same decisions, made again with a posterior and counts for each bandit."""
    shown = []
    monkeypatch.setattr(script, "draw", lambda *args: shown.append(args))
    config = Config(
        num_users=150, num_runs=6, ridge=0.5, posterior_scale=0.7, ucb_confidence=0.6,
        confidence=0.8, run_dir=str(tmp_path),
    )  # fmt: skip
    saved = tables(train(config))
    rng, users = (np.random.default_rng([config.seed, k]) for k in (1, 2))
    runs, regret, choices = np.arange(6), np.zeros((6, 6)), np.zeros((6, 4, 8))
    first, second = ((np.tile(np.eye(16) / 0.5, (6, 1, 1)), np.zeros((6, 16))) for _ in range(2))
    clicks, times = np.zeros((2, 6, 8)), np.zeros((2, 6, 8))
    for t in range(1, 151):
        user = users.dirichlet(np.full(4, config.concentration), 6)
        chance = user @ TASTE @ ARTWORK.T
        clicked = users.random((6, 8)) < chance
        x = features(user, ARTWORK)
        theta = draw_theta(*second, 0.7, rng)
        arms = [
            linucb(*first, x, 0.8),
            np.array([(x[n] @ theta[n]).argmax() for n in range(6)]),
            ucb(clicks[0], times[0], t, 0.6),
            rng.beta(1 + clicks[1], 1 + times[1] - clicks[1]).argmax(axis=1),
            np.full(6, list(script.ARTWORKS).index("kiss")),
            chance.argmax(axis=1),
        ]
        for i, arm in enumerate(arms):
            click = clicked[runs, arm].astype(float)
            if i < 2:
                learn(*(first, second)[i], x[runs, arm], click)
            elif i < 4:
                clicks[i - 2, runs, arm] += click
                times[i - 2, runs, arm] += 1
            regret[i] += chance.max(axis=1) - chance[runs, arm]
            if t > 120:  # the last fifth
                np.add.at(choices[i], (user.argmax(axis=1), arm), 1)
    np.testing.assert_allclose(saved["regret"], regret, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(shown[0][-1], choices)


def test_artworks_without_features_are_learned_one_by_one(tmp_path):
    flags = {"num_users": 1500, "num_runs": 10}
    runs = [
        train(Config(**flags, artwork_features=known, run_dir=str(tmp_path / str(known))))
        for known in (True, False)
    ]
    shared, disjoint = (run.facts for run in runs)
    assert tables(runs[1])["theta"].shape == (10, 32)
    # The same viewers either way.
    assert shared["regret_best_single_artwork"] == disjoint["regret_best_single_artwork"]
    assert shared["regret_linucb"] < disjoint["regret_linucb"]
    assert disjoint["relative_regret"] < 0.7


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_target(tmp_path, seed):
    assert train(Config(seed=seed, run_dir=str(tmp_path))).facts["relative_regret"] < 0.2


def test_the_smallest_ridge(tmp_path):
    result = train(Config(num_users=400, num_runs=3, ridge=1e-8, run_dir=str(tmp_path)))
    assert 0.0 < result.facts["regret_linear_thompson"] < result.facts["regret_best_single_artwork"]


def test_a_huge_ridge_keeps_theta_at_zero(tmp_path):
    saved = tables(train(Config(num_users=30, num_runs=2, ridge=1e9, run_dir=str(tmp_path))))
    assert 0.0 < np.abs(saved["theta"]).max() < 1e-7


@pytest.mark.parametrize("concentration", [1e-3, 1e6])
def test_viewers_of_one_genre_only_or_all_alike(tmp_path, concentration):
    config = Config(
        num_users=30, num_runs=2, ridge=1e-6, concentration=concentration, run_dir=str(tmp_path)
    )
    result = train(config)
    assert all(np.isfinite(value) for value in result.facts.values())
    if concentration == 1e6:
        assert result.facts["regret_best_single_artwork"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num-users 0", "--num-users 0: must be at least 1"),
        ("--num-runs 0", "--num-runs 0: must be at least 1"),
        ("--ridge 0", "--ridge 0.0: must be at least 1e-8"),
        ("--ridge 1e-20", "--ridge 1e-20: must be at least 1e-8"),
        ("--ridge 1e-310", "--ridge 1e-310: must be at least 1e-8"),
        ("--concentration 0", "--concentration 0.0: must be greater than 0"),
        ("--confidence -1", "--confidence -1.0: must be 0 or more"),
        ("--ucb-confidence -1", "--ucb-confidence -1.0: must be 0 or more"),
        ("--posterior-scale 0", "--posterior-scale 0.0: must be greater than 0"),
    ],
)
def test_bad_input(command_line, tmp_path, flags, message):
    run_dir = tmp_path / "run"
    status, _, err = command_line("bandit_contextual", *flags.split(), "--run-dir", run_dir)
    assert status == 2
    assert err.startswith(f"error: {message}")
    assert not run_dir.exists()


def test_more_runs_than_memory_end_in_one_sentence(tmp_path, command_line):
    status, _, err = command_line(
        "bandit_contextual", "--num-runs", 10**12, "--run-dir", tmp_path / "run"
    )
    assert status == 2
    assert err.splitlines()[-1].startswith("error: not enough memory: ")
    assert "choose smaller numbers" in err
