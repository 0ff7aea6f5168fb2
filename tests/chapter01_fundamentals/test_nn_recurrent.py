"""RNN and LSTM by hand against Keras, finite differences and cells whose gates stand still."""

from chapter01_fundamentals import nn_recurrent as script
from chapter01_fundamentals.nn_recurrent import (
    CELLS,
    SYMBOLS,
    Config,
    adam_step,
    cell_gradients,
    finite_differences,
    gradient_over_time,
    initial_weights,
    keras_gradients,
    log_softmax,
    loss_and_gradients,
    marked_symbols,
    sigmoid,
)
from common.errors import UserError
from common.metrics import read_metrics

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

both_cells = pytest.mark.parametrize("cell", list(CELLS))


def random_weights(cell, inputs, units, rng):
    """Weights with biases that differ from gate to gate: a wrong order would show."""
    theta = initial_weights(cell, inputs, units, rng)
    return {name: array + 0.5 * rng.normal(size=array.shape) for name, array in theta.items()}


# --- Against Keras and finite differences ------------------------------------------------------


@both_cells
@pytest.mark.parametrize(
    ("B", "T", "D", "H"), [(1, 1, 1, 1), (2, 3, 4, 5), (5, 4, 3, 2), (3, 1, 2, 4), (2, 30, 5, 3)]
)
def test_equal_to_keras(cell, B, T, D, H):
    rng = np.random.default_rng([B, T, D, H])
    theta, x, dh = (
        random_weights(cell, D, H, rng),
        rng.normal(size=(B, T, D)),
        rng.normal(size=(B, T, H)),
    )
    forward, backward = CELLS[cell]
    memory = forward(x, theta)
    kept = dh.copy()
    dz, flow = backward(dh, memory, theta)
    np.testing.assert_array_equal(dh, kept)  # the caller's array is left alone
    gradients = cell_gradients(x, memory["h"], dz, theta)
    states, *by_keras = keras_gradients(cell, theta, x, dh)
    np.testing.assert_allclose(memory["h"][:, 1:], states, atol=1e-12)
    for name, gradient in zip("xWUb", by_keras, strict=True):
        np.testing.assert_allclose(gradients[name], gradient, atol=1e-10, err_msg=name)
    assert flow.shape == (B, T, H)


@both_cells
def test_equal_to_keras_in_its_usual_precision(cell):
    rng = np.random.default_rng(5)
    theta, x = random_weights(cell, 4, 6, rng), rng.normal(size=(3, 12, 4))
    make = {"RNN": keras.layers.SimpleRNN, "LSTM": keras.layers.LSTM}[cell]
    layer = make(6)  # float32, last state only
    layer.build(x.shape)
    layer.set_weights([theta["W"], theta["U"], theta["b"]])
    last = CELLS[cell][0](x, theta)["h"][:, -1]
    np.testing.assert_allclose(last, np.asarray(layer(x.astype(np.float32))), atol=1e-5)


@both_cells
@pytest.mark.parametrize(("B", "T", "H"), [(1, 1, 3), (2, 3, 2), (3, 8, 4)])
def test_equal_to_finite_differences(cell, B, T, H):
    rng = np.random.default_rng([B, T, H])
    theta = random_weights(cell, SYMBOLS + 1, H, rng)
    x, y = marked_symbols(rng.integers(T, size=B), T, rng)
    _, gradients, logits, flow = loss_and_gradients(cell, theta, x, y)
    assert logits.shape == (B, SYMBOLS)
    assert flow.shape == (B, T, H)
    for name, finite in finite_differences(cell, theta, x, y).items():
        np.testing.assert_allclose(gradients[name], finite, atol=1e-6, err_msg=name)


# --- Cells that can be computed by hand --------------------------------------------------------


def standing_lstm(units, input_gate, forget_gate, candidate, output_gate):
    """An LSTM whose gates ignore input and state: only the biases count, in this order."""
    b = np.repeat([input_gate, forget_gate, candidate, output_gate], units).astype(float)
    rng = np.random.default_rng(3)
    return {
        "W": np.zeros((SYMBOLS + 1, 4 * units)),
        "U": np.zeros((units, 4 * units)),
        "b": b,
        "V": rng.normal(size=(units, SYMBOLS)),
        "a": np.zeros(SYMBOLS),
    }


def test_order_of_the_gates():
    theta = standing_lstm(2, 0.3, 1.1, -0.7, 2.0)
    memory = CELLS["LSTM"][0](np.zeros((3, 5, SYMBOLS + 1)), theta)
    i, f, g, o = sigmoid(0.3), sigmoid(1.1), np.tanh(-0.7), sigmoid(2.0)
    c = i * g * (1.0 - f ** np.arange(6)) / (1.0 - f)  # a geometric series
    for cell, hidden in zip(memory["c"].reshape(3, 6, 2)[0], memory["h"][2], strict=True):
        assert cell[0] == cell[1]
        assert hidden[0] == hidden[1]
    np.testing.assert_allclose(memory["c"][0, :, 0], c, atol=1e-15)
    np.testing.assert_allclose(memory["h"][2, :, 1], o * np.tanh(c), atol=1e-15)


@pytest.mark.parametrize("forget_gate", [-1.0, 0.0, 1.0, 6.0])
def test_the_gradient_of_the_cell_shrinks_by_the_forget_gate(forget_gate):
    theta = standing_lstm(3, 0.3, forget_gate, -0.7, 2.0)
    f = sigmoid(np.array(forget_gate))
    np.testing.assert_allclose(
        gradient_over_time("LSTM", theta, 12), f ** np.arange(11, -1, -1), rtol=1e-9
    )


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
def test_the_gradient_of_the_rnn_shrinks_or_explodes_by_its_matrix(factor):
    # No input and no bias: h stays 0, where tanh has slope 1.
    rng = np.random.default_rng(4)
    theta = initial_weights("RNN", SYMBOLS + 1, 4, rng)
    theta["W"][:] = 0.0
    theta["U"] *= factor  # orthogonal before
    np.testing.assert_allclose(
        gradient_over_time("RNN", theta, 9), factor ** np.arange(8, -1, -1.0), rtol=1e-9
    )


def test_initial_weights_are_those_keras_describes():
    rng = np.random.default_rng(0)
    theta = initial_weights("LSTM", 5, 7, rng)
    np.testing.assert_array_equal(theta["b"].reshape(4, 7), [[0] * 7, [1] * 7, [0] * 7, [0] * 7])
    assert theta["U"].shape == (7, 28)
    np.testing.assert_allclose(theta["U"] @ theta["U"].T, np.eye(7), atol=1e-12)
    by_keras = np.asarray(keras.initializers.Orthogonal(seed=0)((7, 28)))
    np.testing.assert_allclose(by_keras @ by_keras.T, np.eye(7), atol=1e-5)  # the same property
    limit = np.sqrt(6 / (5 + 28))
    assert 0.8 * limit < np.abs(theta["W"]).max() <= limit
    assert not initial_weights("RNN", 5, 7, rng)["b"].any()


# --- The rest of the training ------------------------------------------------------------------


def test_log_softmax_of_huge_logits():
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        log_p = log_softmax(np.array([[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]]))
    np.testing.assert_allclose(log_p[0], [0.0, -1e4, -2e4])
    np.testing.assert_allclose(log_p[1], np.log([1 / 3] * 3))


@given(st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_the_answer_is_the_marked_symbol(length, sequences, seed):
    rng = np.random.default_rng(seed)
    marks = rng.integers(length, size=sequences)
    x, y = marked_symbols(marks, length, rng)
    assert x.shape == (sequences, length, SYMBOLS + 1)
    np.testing.assert_array_equal(x[..., :SYMBOLS].sum(axis=2), 1.0)
    np.testing.assert_array_equal(x[..., SYMBOLS].argmax(axis=1), marks)
    np.testing.assert_array_equal(x[..., SYMBOLS].sum(axis=1), 1.0)
    np.testing.assert_array_equal((x[..., :SYMBOLS] * x[..., SYMBOLS:]).sum(axis=1).argmax(1), y)


@pytest.mark.parametrize("max_grad_norm", [0.5, 100.0])
def test_adam_is_that_of_keras(max_grad_norm):
    rng = np.random.default_rng(6)
    theta = {"V": rng.normal(size=(3, 2)), "a": rng.normal(size=2)}
    m, v = ({k: np.zeros_like(w) for k, w in theta.items()} for _ in "mv")
    variables = [keras.Variable(array, dtype="float64") for array in theta.values()]
    optimizer = keras.optimizers.Adam(0.05, global_clipnorm=max_grad_norm)
    config = Config(learning_rate=0.05, max_grad_norm=max_grad_norm)
    for k in range(1, 6):
        gradients = {name: rng.normal(size=array.shape) for name, array in theta.items()}
        adam_step(theta, gradients, m, v, k, config)
        optimizer.apply([keras.ops.convert_to_tensor(g) for g in gradients.values()], variables)
        for array, variable in zip(theta.values(), variables, strict=True):
            np.testing.assert_allclose(array, np.asarray(variable), atol=1e-5)


def test_a_short_memory_is_learned(tmp_path):
    config = Config(num_steps=400, sequence_length=6, hidden_units=12, run_dir=str(tmp_path))
    result = script.train(config)
    assert result.facts["lstm_accuracy"] > 0.9  # guessing: 0.25
    assert result.facts["rnn_accuracy"] > 0.5
    for cell in CELLS:
        assert result.facts[f"{cell.lower()}_error_keras"] < 1e-12
        assert result.facts[f"{cell.lower()}_error_finite_differences"] < 1e-8
        assert read_metrics(tmp_path)[f"train/{cell.lower()}_loss"][0] > 1.2  # log 4 = 1.386
    for name in ("learning_curve.png", "gradients.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_a_wrong_backward_pass_is_noticed(tmp_path, monkeypatch):
    def without_recurrence(dh, memory, theta):  # forgets (10)
        return script.rnn_backward(dh, memory, {**theta, "U": np.zeros_like(theta["U"])})

    monkeypatch.setitem(CELLS, "RNN", (script.rnn_forward, without_recurrence))
    with pytest.raises(UserError, match="correct the backward pass"):
        script.train(Config(run_dir=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_target(tmp_path, seed):
    facts = script.train(Config(seed=seed, run_dir=str(tmp_path))).facts
    assert facts["lstm_accuracy"] >= script.TARGET
    assert facts["rnn_accuracy"] < 0.5  # the gradient vanishes before it reaches the mark
