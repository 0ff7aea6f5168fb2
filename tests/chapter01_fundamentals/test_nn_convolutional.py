"""Convolution and pooling by hand against Keras, finite differences and small images."""

from chapter01_fundamentals import nn_convolutional as script
from chapter01_fundamentals.nn_convolutional import (
    Config,
    add_windows,
    backward,
    conv_backward,
    conv_forward,
    forward,
    initial_weights,
    log_softmax,
    padding_of,
    pool_backward,
    pool_forward,
    windows_of,
)
from common.errors import UserError

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

# Image (N, H, W, C), window, stride, padding: odd sizes, unequal sides, strides past the window.
GEOMETRIES = [
    ((2, 7, 6, 3), (3, 2), 1, "valid"),
    ((2, 7, 6, 3), (3, 2), 1, "same"),
    ((3, 5, 9, 1), (2, 3), 2, "valid"),
    ((3, 5, 9, 1), (2, 3), 2, "same"),
    ((1, 8, 8, 2), (4, 4), 3, "same"),
    ((1, 8, 8, 2), (4, 4), 3, "valid"),
    ((2, 9, 4, 5), (1, 1), 2, "same"),
    ((2, 7, 8, 2), (2, 1), 3, "valid"),  # stride > window: some pixels are in none
    ((2, 7, 8, 2), (2, 1), 3, "same"),
    ((2, 3, 3, 2), (3, 3), 5, "valid"),
    ((2, 3, 4, 2), (5, 5), 1, "same"),  # window larger than the image
]
each_geometry = pytest.mark.parametrize(("shape", "size", "stride", "padding"), GEOMETRIES)


def gradients_of(layer, x, dy):
    """Output of a Keras layer, and what `dy` means for its input and its weights."""
    watched = [tf.constant(x), *[variable.value for variable in layer.trainable_variables]]
    with tf.GradientTape() as tape:
        tape.watch(watched)
        y = layer(watched[0])
        loss = tf.reduce_sum(y * dy(y.shape))
    return y.numpy(), [gradient.numpy() for gradient in tape.gradient(loss, watched)]


def finite_differences(function, array, eps=1e-5):
    """∂ function() / ∂ array, moving one number at a time."""
    gradient = np.zeros_like(array)
    for i in np.ndindex(array.shape):
        kept = array[i]
        array[i] = kept + eps
        above = function()
        array[i] = kept - eps
        gradient[i] = (above - function()) / (2 * eps)
        array[i] = kept
    return gradient


# --- Against Keras and finite differences ------------------------------------------------------


@each_geometry
def test_convolution(shape, size, stride, padding):
    rng = np.random.default_rng(0)
    x, filters = rng.normal(size=shape), 4
    K, b = rng.normal(size=(*size, shape[-1], filters)), rng.normal(size=filters)
    layer = keras.layers.Conv2D(filters, size, stride, padding, dtype="float64")
    layer.build(x.shape)
    layer.set_weights([K, b])
    y = conv_forward(x, K, b, stride, padding)
    dy = rng.normal(size=y.shape)
    by_keras, gradients = gradients_of(layer, x, lambda _: dy)
    np.testing.assert_allclose(y, by_keras, atol=1e-11)
    ours = conv_backward(dy, x, K, stride, padding)
    for name, a, b_ in zip(("x", "K", "b"), ours, gradients, strict=True):
        np.testing.assert_allclose(a, b_, atol=1e-11, err_msg=name)

    def loss():
        return np.sum(conv_forward(x, K, b, stride, padding) * dy)

    for name, array, gradient in zip(("x", "K", "b"), (x, K, b), ours, strict=True):
        finite = finite_differences(loss, array)
        np.testing.assert_allclose(gradient, finite, atol=1e-6, err_msg=name)


@each_geometry
def test_max_pooling(shape, size, stride, padding):
    rng = np.random.default_rng(1)
    # No two values are closer than 0.01: finite differences do not change which is largest. All
    # are negative: zeros as padding would win.
    x = -0.01 * (1.0 + rng.permutation(np.prod(shape)).reshape(shape))
    y, largest = pool_forward(x, size, stride, padding)
    dy = rng.normal(size=y.shape)
    by_keras, [gradient] = gradients_of(
        keras.layers.MaxPooling2D(size, stride, padding, dtype="float64"), x, lambda _: dy
    )
    np.testing.assert_array_equal(y, by_keras)
    dx = pool_backward(dy, largest, shape, size, stride, padding)
    np.testing.assert_allclose(dx, gradient, atol=1e-13)
    finite = finite_differences(
        lambda: np.sum(pool_forward(x, size, stride, padding)[0] * dy), x, 1e-4
    )
    np.testing.assert_allclose(dx, finite, atol=1e-6)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_equal_to_keras_in_its_usual_precision(padding):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, 9, 7, 3)).astype(np.float32)
    layer = keras.layers.Conv2D(5, 3, 2, padding)
    y = np.asarray(layer(x))
    K, b = (np.asarray(weight) for weight in layer.weights)
    np.testing.assert_allclose(conv_forward(x, K, b, 2, padding), y, atol=1e-5)


@pytest.mark.parametrize("filters", [(8, 16), (3, 5)])
def test_the_whole_network(filters):
    rng = np.random.default_rng(3)
    theta = initial_weights(filters, 8, rng)
    for name in ("b1", "b2", "b"):
        theta[name] += 0.1 * rng.normal(size=theta[name].shape)
    image, label = rng.uniform(size=(6, 8, 8, 1)), rng.integers(10, size=6)
    layers = [
        keras.layers.Conv2D(filters[0], 3, padding="same", activation="relu", dtype="float64"),
        keras.layers.MaxPooling2D(dtype="float64"),
        keras.layers.Conv2D(filters[1], 3, padding="same", activation="relu", dtype="float64"),
        keras.layers.MaxPooling2D(dtype="float64"),
        keras.layers.Flatten(dtype="float64"),
        keras.layers.Dense(10, dtype="float64"),
    ]
    model = keras.Sequential([keras.Input((8, 8, 1), dtype="float64"), *layers])
    model.set_weights(list(theta.values()))
    weights = [variable.value for variable in model.trainable_variables]
    with tf.GradientTape() as tape:
        tape.watch(weights)
        logits = model(image)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(label, logits)
        by_keras = tf.reduce_mean(losses)
    memory = forward(image, theta)
    loss, gradients = backward(label, memory, theta)
    np.testing.assert_allclose(memory["logits"], logits, atol=1e-12)
    assert loss == pytest.approx(float(by_keras), abs=1e-13)
    for (name, ours), gradient in zip(
        gradients.items(), tape.gradient(by_keras, weights), strict=True
    ):
        np.testing.assert_allclose(ours, gradient, atol=1e-12, err_msg=name)


# --- Small images ------------------------------------------------------------------------------


def test_a_convolution_computed_by_hand():
    x = np.arange(12.0).reshape(1, 3, 4, 1)  # 0 1 2 3 / 4 5 6 7 / 8 9 10 11
    K = np.array([[1.0, 2.0], [0.0, -1.0]]).reshape(2, 2, 1, 1)
    y = conv_forward(x, K, np.array([0.5]))
    # 0·1 + 1·2 + 4·0 - 5 = -3 at the top left, 2 more with each step to the right, 8 below.
    np.testing.assert_array_equal(y[0, :, :, 0], [[-2.5, -0.5, 1.5], [5.5, 7.5, 9.5]])
    y = conv_forward(x, K, np.array([0.5]), 2, "same")
    np.testing.assert_array_equal(y[0, :, :, 0], [[-2.5, 1.5], [8 + 18 + 0.5, 10 + 22 + 0.5]])


@pytest.mark.parametrize(
    ("length", "k", "stride", "expected"),
    [(8, 3, 1, (1, 1)), (8, 3, 2, (0, 1)), (7, 3, 2, (1, 1)), (8, 2, 2, (0, 0)), (5, 4, 1, (1, 2)),
     (5, 1, 3, (0, 0)), (3, 5, 1, (2, 2)), (10, 5, 3, (2, 2))],
)  # fmt: skip
def test_same_padding(length, k, stride, expected):
    assert padding_of(length, k, stride, "same") == expected
    assert padding_of(length, k, stride, "valid") == (0, 0)


def test_of_equal_pixels_the_first_gets_the_gradient_as_in_tensorflow():
    x, dy = np.zeros((1, 4, 4, 2)), np.array([[1.0, 2.0], [3.0, 4.0]])
    dy = np.stack([dy, -dy], axis=-1)[None]  # [1, 2, 2, 2]
    x[0, 1, 1, 0] = x[0, 0, 1, 0] = 5.0  # a tie that is not in the corner
    _, largest = pool_forward(x, (2, 2), 2)
    dx = pool_backward(dy, largest, x.shape, (2, 2), 2, "valid")
    expected = np.zeros((4, 4))
    expected[0, 1], expected[0, 2], expected[2, 0], expected[2, 2] = 1.0, 2.0, 3.0, 4.0
    np.testing.assert_array_equal(dx[0, :, :, 0], expected)
    assert dx.sum() == dy.sum()
    layer = keras.layers.MaxPooling2D(dtype="float64")
    np.testing.assert_array_equal(dx, gradients_of(layer, x, lambda _: dy)[1][0])


def test_a_pixel_that_is_largest_in_several_windows_gets_the_sum():
    x = np.zeros((1, 3, 3, 1))
    x[0, 1, 1, 0] = 1.0
    y, largest = pool_forward(x, (2, 2), 1)
    np.testing.assert_array_equal(y, 1.0)
    dx = pool_backward(np.array([[1.0, 2.0], [4.0, 8.0]])[None, ..., None], largest, x.shape,
                       (2, 2), 1, "valid")  # fmt: skip
    assert dx[0, 1, 1, 0] == dx.sum() == 15.0


@given(
    shape=st.tuples(*[st.integers(1, 6)] * 4),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.integers(1, 5),
    padding=st.sampled_from(["valid", "same"]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=80, deadline=None)
def test_adding_windows_is_the_transpose_of_taking_them(shape, size, stride, padding, seed):
    if padding == "valid":
        size = tuple(min(k, length) for k, length in zip(size, shape[1:3], strict=True))
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    windows = windows_of(x, size, stride, padding)
    rows, columns = (
        -(-length // stride) if padding == "same" else (length - k) // stride + 1
        for length, k in zip(shape[1:3], size, strict=True)
    )
    assert windows.shape == (shape[0], rows, columns, shape[3], *size)  # (1)
    parts = rng.normal(size=windows.shape)
    back = add_windows(parts, shape, stride, padding)
    assert back.shape == shape
    assert np.sum(windows * parts) == pytest.approx(np.sum(x * back), abs=1e-10)


# --- Training ----------------------------------------------------------------------------------


def test_log_softmax_of_huge_logits():
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        log_p = log_softmax(np.array([[1e4, 0.0], [-1e4, -1e4]]))
    np.testing.assert_allclose(log_p, [[0.0, -1e4], [np.log(0.5)] * 2])


def test_digits_are_learned(tmp_path):
    config = Config(num_epochs=3, filters=(4, 8), run_dir=str(tmp_path))
    result = script.train(config)
    assert result.facts["accuracy"] > 0.85  # guessing: 0.1
    assert result.facts["conv_error_keras"] < 1e-12
    assert result.facts["pool_error_keras"] < 1e-12
    for name in ("learning_curve.png", "feature_maps.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_a_wrong_backward_pass_is_noticed(tmp_path, monkeypatch):
    def flipped(dy, x, K, stride=1, padding="valid"):
        return conv_backward(dy, x, K[::-1], stride, padding)

    monkeypatch.setattr(script, "conv_backward", flipped)
    with pytest.raises(UserError, match="correct"):
        script.train(Config(run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_target(tmp_path, seed):
    assert script.train(Config(seed=seed, run_dir=str(tmp_path))).facts["accuracy"] >= script.TARGET
