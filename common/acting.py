"""Acting fast: a network's outputs for a few observations, by the cheapest way there is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common.compiled import compiled

import keras
import numpy as np


def forward(network: keras.Model) -> NumpyTwin | CompiledForward:
    """A function from observations to a network's outputs, both NumPy arrays.

    For dense layers, and sums and means of them, it is a `NumpyTwin`, else a compiled call.
    Either way, give it to `compiled(..., refreshes=...)` of the function that trains the network.

    Args:
        network: one input [B, ...], one output [B, D].

    Returns:
        Callable: observations [B, ...] -> outputs [B, D], float32.
    """
    return NumpyTwin(network) if _is_dense(network) else CompiledForward(network)


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
        """Copies the weights of a network of dense layers, which may branch, and sums and means."""
        _, *operations = model.operations
        layers = [layer for layer in operations if isinstance(layer, keras.layers.Dense)]
        self.weights = [weight for layer in layers for weight in (layer.kernel, layer.bias)]
        ends = np.cumsum([int(np.prod(weight.shape)) for weight in self.weights])
        self._places = [
            (int(end - np.prod(weight.shape)), int(end), tuple(weight.shape))
            for end, weight in zip(ends, self.weights, strict=True)
        ]
        # A program: each line writes one place from others; place 0 holds the observations.
        place = {id(model.inputs[0]): 0}
        self._program: list[_Line] = []
        for operation in operations:
            [node] = operation._inbound_nodes
            sources = [place[id(tensor)] for tensor in node.input_tensors]
            place[id(node.outputs[0])] = len(place)
            self._program.append(_line(operation, layers, sources))
        self._result = place[id(model.outputs[0])]
        self.load(np.concatenate([np.ravel(np.asarray(weight)) for weight in self.weights]))

    def load(self, vector: np.ndarray) -> None:
        """Takes new weights: all of them, flattened, in the order of `weights`. Does not copy."""
        self._arrays = [vector[a:b].reshape(shape) for a, b, shape in self._places]

    def __call__(self, inputs: np.ndarray) -> np.ndarray:
        """Outputs of the network, [B, ...] -> [B, D], float32."""
        values = [inputs.astype(np.float32, copy=False)]
        for line in self._program:
            values.append(line(values, self._arrays))
        return values[self._result]


_Line = Callable[[list[np.ndarray], list[np.ndarray]], np.ndarray]  # (values, weights) -> value


def _line(operation: Any, layers: list, sources: list[int]) -> _Line:
    """What one operation of a Keras network does, in NumPy."""
    if isinstance(operation, keras.layers.Dense):
        return _dense(sources[0], 2 * layers.index(operation), operation.activation)
    if type(operation).__name__ == "Mean":
        axis, keepdims = operation.axis, operation.keepdims
        axis = tuple(axis) if isinstance(axis, list) else axis
        return lambda values, _: values[sources[0]].mean(axis=axis, keepdims=keepdims)
    function, (a, b) = _SUMS[type(operation).__name__], sources
    return lambda values, _: function(values[a], values[b])


def _dense(source: int, first: int, activation: Any) -> _Line:
    activate = _ACTIVATIONS[activation]

    def line(values: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
        features = values[source] @ weights[first]
        features += weights[first + 1]
        activate(features)
        return features

    return line


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
_SUMS = {"Add": np.add, "Subtract": np.subtract}


def _is_dense(model: keras.Model) -> bool:
    """Whether a model is nothing but what a `NumpyTwin` can do."""
    # `model.layers` would leave out what is no layer: one-hot encoding, sums, means.
    inputs, *operations = getattr(model, "operations", model.layers) or [None]
    return (
        isinstance(inputs, keras.layers.InputLayer)
        and len(operations) > 0
        and len(model.outputs) == 1
        and all(_is_known(operation) for operation in operations)
    )


def _is_known(operation: Any) -> bool:
    if len(operation._inbound_nodes) != 1:
        return False
    if isinstance(operation, keras.layers.Dense):
        return operation.use_bias and operation.activation in _ACTIVATIONS
    if type(operation).__module__.startswith("keras.src.ops"):
        name = type(operation).__name__
        two = len(operation._inbound_nodes[0].input_tensors) == 2  # else one is a constant
        return name == "Mean" or (name in _SUMS and two)
    return False
