"""The network on XOR: gradients against TensorFlow and finite differences; what can be learned."""

import math

from chapter01_fundamentals import nn_from_scratch as script
from chapter01_fundamentals.nn_from_scratch import (
    Config,
    Weights,
    X,
    Y,
    backward,
    cross_entropy,
    finite_differences,
    forward,
    initial_weights,
    sigmoid,
    tensorflow_gradient,
)
from common.errors import UserError
from common.metrics import read_metrics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def assert_equal_gradients(ours: Weights, others: Weights, tolerance: float) -> None:
    for name, a, b in zip(Weights._fields, ours, others, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance, err_msg=name)


def test_a_network_computed_by_hand():
    theta = Weights(
        np.array([[0.5], [-1.0]]), np.array([0.25]), np.array([[2.0]]), np.array([-0.5])
    )
    x, y = np.array([[1.0, 0.5]]), np.array([[1.0]])
    h, z = forward(x, theta)
    hidden = math.tanh(0.5 * 1.0 - 1.0 * 0.5 + 0.25)
    logit = 2.0 * hidden - 0.5
    assert h.item() == pytest.approx(hidden, abs=1e-15)
    assert z.item() == pytest.approx(logit, abs=1e-15)
    p = 1.0 / (1.0 + math.exp(-logit))
    assert cross_entropy(z, y) == pytest.approx(-math.log(p), abs=1e-14)
    assert cross_entropy(z, 1.0 - y) == pytest.approx(-math.log(1.0 - p), abs=1e-14)
    gradients = backward(x, y, h, z, theta)
    delta1 = (p - 1.0) * 2.0 * (1.0 - hidden**2)
    np.testing.assert_allclose(gradients.b2, [p - 1.0], atol=1e-14)
    np.testing.assert_allclose(gradients.W2, [[(p - 1.0) * hidden]], atol=1e-14)
    np.testing.assert_allclose(gradients.b1, [delta1], atol=1e-14)
    np.testing.assert_allclose(gradients.W1, [[delta1], [0.5 * delta1]], atol=1e-14)


def test_the_zero_network_says_one_half():
    theta = Weights(*map(np.zeros_like, initial_weights(3, np.random.default_rng(0))))
    h, z = forward(X, theta)
    assert cross_entropy(z, Y) == pytest.approx(math.log(2.0), abs=1e-15)
    # Every gradient is 0: a saddle point. This is why weights begin at random.
    assert_equal_gradients(backward(X, Y, h, z, theta), theta, 1e-16)


@given(
    examples=st.integers(1, 7),
    units=st.integers(1, 6),
    scale=st.sampled_from([0.1, 1.0, 3.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=30, deadline=None)
def test_gradients_are_those_of_finite_differences_and_tensorflow(examples, units, scale, seed):
    rng = np.random.default_rng(seed)
    theta = Weights(*(scale * rng.normal(size=w.shape) for w in initial_weights(units, rng)))
    x, y = rng.normal(size=(examples, 2)), rng.integers(2, size=(examples, 1)).astype(float)
    kept = [weights.copy() for weights in theta]
    ours = backward(x, y, *forward(x, theta), theta)
    assert_equal_gradients(ours, finite_differences(x, y, theta), 1e-6)
    assert_equal_gradients(ours, tensorflow_gradient(x, y, theta), 1e-12)
    for weights, before in zip(theta, kept, strict=True):  # looking changes nothing
        np.testing.assert_array_equal(weights, before)


def test_huge_logits_are_no_trouble():
    z, y = np.array([[1e4], [-1e4], [1e4], [-1e4], [0.0]]), np.array([[1.0], [0], [0], [1], [1]])
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        np.testing.assert_array_equal(sigmoid(z)[:, 0], [1.0, 0.0, 1.0, 0.0, 0.5])
        assert cross_entropy(z[:2], y[:2]) == 0.0
        assert cross_entropy(z[2:4], y[2:4]) == 1e4  # where a logarithm of p would be -inf
        theta = Weights(np.zeros((2, 1)), np.zeros(1), np.zeros((1, 1)), np.zeros(1))
        gradients = backward(np.ones((4, 2)), y[:4], np.ones((4, 1)), z[:4], theta)
    np.testing.assert_allclose(gradients.b2, [(0 + 0 + 1 - 1) / 4], atol=1e-15)
    np.testing.assert_allclose(sigmoid(z), 1.0 - sigmoid(-z), atol=1e-16)


@pytest.mark.parametrize("seed", [0, 1])
def test_xor_is_learned(tmp_path, seed):
    result = script.train(Config(seed=seed, num_steps=800, run_dir=str(tmp_path)))
    assert result.facts["accuracy"] == 1.0
    assert result.facts["loss"] < 0.05
    assert result.facts["gradient_error_finite_differences"] < 1e-9
    assert result.facts["gradient_error_tensorflow"] < 1e-14
    metrics = read_metrics(tmp_path)
    assert metrics["train/loss"][0] > 0.3
    for name, label in (("00", 0), ("01", 1), ("10", 1), ("11", 0)):
        assert metrics[f"train/p_{name}"][-1] == pytest.approx(label, abs=0.1)
    for name in ("learning_curve.png", "decision_boundary.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_one_hidden_unit_is_one_line_and_cannot(tmp_path):
    result = script.train(Config(hidden_units=1, num_steps=500, run_dir=str(tmp_path)))
    assert result.facts["accuracy"] <= 0.75


def test_a_wrong_backward_pass_is_noticed(tmp_path, monkeypatch):
    def without_slope(x, y, h, z, theta):  # forgets (1 - h²) in (6)
        right = backward(x, y, h, z, theta)
        delta1 = (sigmoid(z) - y) / len(x) @ theta.W2.T
        return right._replace(W1=x.T @ delta1)

    monkeypatch.setattr(script, "backward", without_slope)
    run_dir = tmp_path / "run"
    with pytest.raises(UserError, match="correct backward"):
        script.train(Config(run_dir=str(run_dir)))
    assert not run_dir.exists()


@pytest.mark.parametrize("flag", ["--hidden-units 0", "--num-steps 0", "--learning-rate 0"])
def test_bad_flags(tmp_path, command_line, monkeypatch, flag):
    monkeypatch.chdir(tmp_path)
    status, out, err = command_line("nn_from_scratch", *flag.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {flag}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.learning
@pytest.mark.parametrize("seed", range(10))
def test_target(tmp_path, seed):
    assert script.train(Config(seed=seed, run_dir=str(tmp_path))).facts["accuracy"] == 1.0
