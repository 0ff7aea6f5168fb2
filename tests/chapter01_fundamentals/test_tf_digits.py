"""Digits: the split, the confusion matrix, learning, and MNIST without a network."""

from chapter01_fundamentals import tf_digits as script
from chapter01_fundamentals.tf_digits import (
    Config,
    build_model,
    confusion_matrix,
    load,
    probabilities,
)
from common.metrics import read_metrics
from tests.processes import run

import numpy as np
import pytest
from sklearn.datasets import load_digits


def test_training_and_test_images_are_all_digits_once():
    training, test = load("digits", np.random.default_rng(0))
    assert training.x.shape == (1438, 8, 8, 1)
    assert test.x.shape == (359, 8, 8, 1)
    assert training.x.min() == 0.0
    assert training.x.max() == 1.0
    x, y = np.concatenate([training.x, test.x]), np.concatenate([training.y, test.y])
    ours = sorted(
        (*(16 * image).astype(int).ravel(), label) for image, label in zip(x, y, strict=True)
    )
    digits = load_digits()
    theirs = (
        (*image.astype(int).ravel(), label)
        for image, label in zip(digits.images, digits.target, strict=True)
    )
    assert ours == sorted(theirs)
    other = load("digits", np.random.default_rng(1))[1]
    assert not np.array_equal(other.y, test.y)


def test_confusion_matrix():
    label, read = np.array([0, 0, 0, 3, 9, 9]), np.array([0, 0, 7, 3, 4, 4])
    counts = confusion_matrix(label, read)
    expected = np.zeros((10, 10), int)
    expected[0, 0], expected[0, 7], expected[3, 3], expected[9, 4] = 2, 1, 1, 2
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("side", [8, 28])
def test_the_model_takes_both_sizes(side):
    model = build_model((side, side, 1), 100, Config())
    p = probabilities(model, np.random.default_rng(0).uniform(size=(1003, side, side, 1)))
    assert p.shape == (1003, 10)
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-5)
    [again] = probabilities(model, np.full((1, side, side, 1), 0.5))
    np.testing.assert_array_equal(again, probabilities(model, np.full((1, side, side, 1), 0.5))[0])


def test_digits_are_learned(tmp_path):
    result = script.train(Config(num_epochs=6, run_dir=str(tmp_path)))
    assert result.facts["accuracy"] > 0.85  # guessing: 0.1
    with np.load(tmp_path / "tables.npz") as tables:
        confusion = tables["confusion"]
    assert confusion.sum() == 359
    assert np.trace(confusion) / 359 == result.facts["accuracy"]
    assert result.facts["mistakes"] == 359 - np.trace(confusion)
    metrics = read_metrics(tmp_path)
    assert metrics["charts/test_accuracy"][-1] == pytest.approx(result.facts["accuracy"], abs=1e-6)
    assert metrics["train/loss"][0] > metrics["train/loss"][-1]
    for name in ("learning_curve.png", "confusion.png", "mistakes.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_mnist_without_a_network_says_what_to_do(tmp_path):
    home = tmp_path / "keras"
    nowhere = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    env = {"KERAS_HOME": str(home), "no_proxy": "", "NO_PROXY": "", **nowhere}
    status, _, err = run(
        "tf_digits", "--dataset", "mnist", "--run-dir", "run", cwd=tmp_path, env=env
    )
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("error: --dataset mnist: ")
    assert str(home / "datasets") in err
    assert "--dataset digits" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_target(tmp_path, seed):
    assert script.train(Config(seed=seed, run_dir=str(tmp_path))).facts["accuracy"] >= script.TARGET
