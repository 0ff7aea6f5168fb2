"""Acting with an LSTM: one step of a recurrent network for a few environments, fast."""

from __future__ import annotations

from typing import Any

from common.acting import NumpyTwin, forward
from common.compiled import compiled

import keras
import numpy as np
import tensorflow as tf


def recurrent_forward(
    encoder: keras.Model, cell: keras.layers.LSTMCell, head: keras.Model
) -> RecurrentTwin | CompiledRecurrent:
    """A function (observations, memory) -> (outputs, memory), all NumPy arrays.

    The memory of an environment is one row (h, c, extra): both states of the LSTM side by side, and
    what it is shown beside the features, e.g. the last action. After a step `extra` is 0: the
    caller fills it in. Where encoder and head are dense everything is computed with NumPy, else by
    a compiled call. Either way, give it to `compiled(..., refreshes=...)` of what trains.

    Args:
        encoder: observations [N, ...] -> features [N, D].
        cell: of U units, already built for D + E inputs.
        head: features and the LSTM's hidden state side by side [N, D + U] -> outputs [N, A].

    Returns:
        Callable: observations [N, ...], memory [N, 2 U + E] -> outputs [N, A] and memory, float32.
    """
    encode, decode = forward(encoder), forward(head)
    if isinstance(encode, NumpyTwin) and isinstance(decode, NumpyTwin):
        return RecurrentTwin(encode, cell, decode)
    return CompiledRecurrent(encoder, cell, head)


class CompiledRecurrent:
    """One step through TensorFlow; reads the live weights, so nothing to refresh."""

    def __init__(
        self, encoder: keras.Model, cell: keras.layers.LSTMCell, head: keras.Model
    ) -> None:
        """Compiles at the first call, once for each number of environments."""
        self.weights: list[Any] = []
        units = cell.units

        def step(observation: tf.Tensor, memory: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            hidden, carry, extra = tf.split(memory, [units, units, memory.shape[1] - 2 * units], 1)
            features = encoder(observation)
            _, states = cell(tf.concat([features, extra], axis=1), [hidden, carry])
            outputs = head(tf.concat([features, states[0]], axis=1))
            return outputs, tf.concat([*states, tf.zeros_like(extra)], axis=1)

        self._call = compiled(step)

    def load(self, vector: np.ndarray) -> None:
        """Nothing to do."""

    def __call__(
        self, observation: np.ndarray, memory: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Outputs [N, A] and memory after the step [N, 2 U + E], float32."""
        return self._call(observation, memory)


class RecurrentTwin:
    """Dense layers, an LSTM and dense layers with NumPy, on copies of the weights."""

    def __init__(self, encode: NumpyTwin, cell: keras.layers.LSTMCell, decode: NumpyTwin) -> None:
        """Copies the weights; `compiled(..., refreshes=twin)` renews them after each update."""
        self._encode, self._decode = encode, decode
        self._own = [cell.kernel, cell.recurrent_kernel, cell.bias]
        self.weights = [*encode.weights, *self._own, *decode.weights]
        self.load(np.concatenate([np.ravel(np.asarray(weight)) for weight in self.weights]))

    def load(self, vector: np.ndarray) -> None:
        """Takes new weights: all of them, flattened, in the order of `weights`. Does not copy."""
        end = sum(int(np.prod(weight.shape)) for weight in self._encode.weights)
        self._encode.load(vector[:end])
        arrays = []
        for weight in self._own:
            begin, end = end, end + int(np.prod(weight.shape))
            arrays.append(vector[begin:end].reshape(tuple(weight.shape)))
        self._kernel, self._recurrent, self._bias = arrays
        self._decode.load(vector[end:])

    def __call__(
        self, observation: np.ndarray, memory: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Outputs [N, A] and memory after the step [N, 2 U + E], float32."""
        units = len(self._recurrent)
        features = self._encode(observation)
        gates = np.concatenate([features, memory[:, 2 * units :]], axis=1) @ self._kernel
        gates += memory[:, :units] @ self._recurrent
        gates += self._bias
        # Keras's order: input gate, forget gate, candidate, output gate. A sigmoid is a tanh of
        # half its argument, so that one call does for all four.
        gates[:, : 2 * units] *= 0.5
        gates[:, 3 * units :] *= 0.5
        np.tanh(gates, out=gates)
        opened = 0.5 * gates + 0.5
        after = np.zeros_like(memory)
        cell = after[:, units : 2 * units]
        np.multiply(opened[:, units : 2 * units], memory[:, units : 2 * units], out=cell)
        cell += opened[:, :units] * gates[:, 2 * units : 3 * units]
        hidden = np.tanh(cell)
        hidden *= opened[:, 3 * units :]
        after[:, :units] = hidden
        return self._decode(np.concatenate([features, hidden], axis=1)), after
