"""Acting fast: a network's outputs for a few observations, by the cheapest way there is."""

from __future__ import annotations

from typing import Any

from common.compiled import compiled

import keras
import numpy as np


def forward(network: keras.Model) -> NumpyTwin | CompiledForward:
    """A function from observations to a network's outputs, both NumPy arrays.

    For a plain stack of dense layers it is a `NumpyTwin`, for anything else a compiled call.
    Either way, give it to `compiled(..., refreshes=...)` of the function that trains the network.

    Args:
        network: one input [B, ...], one output [B, D].

    Returns:
        Callable: observations [B, ...] -> outputs [B, D], float32.
    """
    return NumpyTwin(network) if _is_dense_stack(network) else CompiledForward(network)


class CompiledForward:
    """A network's outputs through TensorFlow; reads the live weights, so nothing to refresh."""

    def __init__(self, network: keras.Model) -> None:
        """Compiles at the first call, once for each batch size."""
        self.weights: list[Any] = []
        # XLA pays for a few images (0.8 against 1.5 ms for one), though not for training on many.
        self._call = compiled(lambda inputs: network(inputs))

    def load(self, vector: np.ndarray) -> None:
        """Nothing to do."""

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs of the network, [B, ...] -> [B, D], float32."""
        return self._call(inputs)


class NumpyTwin:
    """A dense network evaluated with NumPy: 10 us a call where TensorFlow takes 100 and more.

    It holds a copy of the weights. `compiled(..., refreshes=twin)` renews it after each update.
    """

    def __init__(self, model: keras.Model) -> None:
        """Copies the weights of a network that is a stack of dense layers."""
        self._layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
        self.weights = [weight for layer in self._layers for weight in (layer.kernel, layer.bias)]
        self._activations = [_ACTIVATIONS[layer.activation] for layer in self._layers]
        ends = np.cumsum([int(np.prod(weight.shape)) for weight in self.weights])
        self._places = [
            (int(end - np.prod(weight.shape)), int(end), tuple(weight.shape))
            for end, weight in zip(ends, self.weights, strict=True)
        ]
        self.load(np.concatenate([np.ravel(np.asarray(weight)) for weight in self.weights]))

    def load(self, vector: np.ndarray) -> None:
        """Takes new weights: all of them, flattened, in the order of `weights`. Does not copy."""
        arrays = [vector[a:b].reshape(shape) for a, b, shape in self._places]
        self._stack = list(zip(arrays[::2], arrays[1::2], self._activations, strict=True))

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs of the network, [B, ...] -> [B, D], float32."""
        features = inputs.astype(np.float32, copy=False)
        for kernel, bias, activation in self._stack:
            features = features @ kernel
            features += bias
            activation(features)
        return features


def _relu(x: np.ndarray) -> None:
    np.maximum(x, 0.0, out=x)


def _tanh(x: np.ndarray) -> None:
    np.tanh(x, out=x)


def _linear(x: np.ndarray) -> None:
    pass


_ACTIVATIONS = {
    keras.activations.relu: _relu,
    keras.activations.tanh: _tanh,
    keras.activations.linear: _linear,
}


def _is_dense_stack(model: keras.Model) -> bool:
    """Whether a model is nothing but dense layers on one input, with activations NumPy has."""
    # `model.layers` would leave out what is no layer: one-hot encoding, sums, means.
    inputs, *operations = getattr(model, "operations", model.layers) or [None]
    return (
        isinstance(inputs, keras.layers.InputLayer)
        and len(operations) > 0
        and len(model.outputs) == 1
        and all(
            isinstance(operation, keras.layers.Dense)
            and operation.use_bias
            and operation.activation in _ACTIVATIONS
            and len(operation._inbound_nodes) == 1
            for operation in operations
        )
    )
