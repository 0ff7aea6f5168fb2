"""Acting: the NumPy twin equals Keras, and everything that is no dense stack goes through Keras."""

from common.acting import CompiledForward, NumpyTwin, forward
from common.networks import body

import gymnasium as gym
import keras
import numpy as np
import pytest

VECTOR = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)


def dense(activation="relu", hidden_sizes=(256, 256)):
    """A network whose biases are not zero, as after training."""
    keras.utils.set_random_seed(0)
    inputs, features = body(VECTOR, hidden_sizes, activation)
    network = keras.Model(inputs, keras.layers.Dense(3)(features))
    rng = np.random.default_rng(0)
    for weight in network.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.normal(size=weight.shape))
    return network


def observations(count=7):
    return np.random.default_rng(1).normal(size=(count, 5)).astype(np.float32)


@pytest.mark.parametrize("hidden_sizes", [(256, 256), (120, 84), (4,), ()])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_the_twin_equals_the_network(activation, hidden_sizes):
    network = dense(activation, hidden_sizes)
    twin = forward(network)
    assert isinstance(twin, NumpyTwin)
    x = observations()
    outputs, expected = twin(x), np.asarray(network(x))
    assert outputs.shape == (7, 3)
    assert outputs.dtype == np.float32
    scale = np.abs(expected).max()
    np.testing.assert_allclose(outputs / scale, expected / scale, atol=1e-6)
    np.testing.assert_array_equal(x, observations())  # the input is left as it was


def test_the_twin_takes_other_number_types():
    network = dense()
    twin, x = forward(network), np.array([[0, 1, 2, 3, 255]])
    expected = np.asarray(network(x.astype(np.float32)))
    for dtype in (np.uint8, np.int64, np.float64):
        np.testing.assert_allclose(twin(x.astype(dtype)), expected, rtol=1e-5)


def test_the_twin_takes_new_weights_in_the_order_it_names():
    network, x = dense(hidden_sizes=(4,)), observations()
    twin = forward(network)
    for weight in network.weights:
        weight.assign(np.random.default_rng(5).normal(size=weight.shape))
    twin.load(np.concatenate([np.ravel(np.asarray(weight)) for weight in twin.weights]))
    np.testing.assert_allclose(twin(x), np.asarray(network(x)), atol=1e-5)


def test_the_twin_keeps_its_results():
    twin = forward(dense())
    first = twin(observations())
    kept = first.copy()
    twin(np.ones((7, 5), np.float32))
    np.testing.assert_array_equal(first, kept)


def shared():
    layer = keras.layers.Dense(5, "relu")
    inputs = keras.Input((5,))
    return keras.Model(inputs, layer(layer(inputs)))


def residual():
    inputs = keras.Input((5,))
    return keras.Model(inputs, keras.layers.Add()([inputs, keras.layers.Dense(5)(inputs)]))


def single(**options):
    inputs = keras.Input((5,))
    return keras.Model(inputs, keras.layers.Dense(3, **options)(inputs))


def dueling(constant=None, maximum=False):
    """V + A - mean A, with operations that are no layers."""
    features = keras.layers.Dense(4, "relu")(inputs := keras.Input((5,)))
    value, advantage = keras.layers.Dense(1)(features), keras.layers.Dense(3)(features)
    reduce = keras.ops.max if maximum else keras.ops.mean
    baseline = reduce(advantage, axis=1, keepdims=True)
    outputs = value + advantage - baseline
    return keras.Model(inputs, outputs if constant is None else outputs + constant)


def test_the_twin_follows_branches_sums_and_means():
    keras.utils.set_random_seed(3)
    network, x = dueling(), observations()
    twin = forward(network)
    assert isinstance(twin, NumpyTwin)
    np.testing.assert_allclose(twin(x), np.asarray(network(x)), atol=1e-6)
    for weight in network.weights:
        weight.assign(np.random.default_rng(5).normal(size=weight.shape))
    twin.load(np.concatenate([np.ravel(np.asarray(weight)) for weight in twin.weights]))
    np.testing.assert_allclose(twin(x), np.asarray(network(x)), atol=1e-5)


class OwnCall(keras.Model):
    """Layers in a class, used in an order that only `call` knows."""

    def __init__(self):
        super().__init__()
        self.second, self.first = keras.layers.Dense(3), keras.layers.Dense(4, "relu")
        self(keras.ops.zeros((1, 5)))

    def call(self, inputs):
        return self.second(self.first(inputs))


def normalised():
    inputs = keras.Input((5,))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.LayerNormalization()(inputs)))


NOT_PLAIN = {
    "shared layer": shared,
    "residual": residual,
    "without bias": lambda: single(use_bias=False),
    "another activation": lambda: single(activation="softplus"),
    "a layer as activation": lambda: single(activation=keras.layers.LeakyReLU()),
    "a function of one's own": lambda: single(activation=lambda x: x * x),
    "normalisation": normalised,
    "a sum with a constant": lambda: dueling(3.0),
    "a maximum": lambda: dueling(maximum=True),
    "a class": OwnCall,
    "no layer": lambda: keras.Model(inputs := keras.Input((5,)), 2 * inputs),
    "sequential": lambda: keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)]),
}


@pytest.mark.parametrize("kind", NOT_PLAIN)
def test_other_networks_are_evaluated_by_keras(kind):
    keras.utils.set_random_seed(3)
    network, x = NOT_PLAIN[kind](), observations()
    function = forward(network)
    assert isinstance(function, CompiledForward)
    np.testing.assert_allclose(function(x), np.asarray(network(x)), atol=1e-6)
    for weight in network.weights[:1]:  # it sees the live weights
        weight.assign(-weight)
    np.testing.assert_allclose(function(x), np.asarray(network(x)), atol=1e-6)
    assert function.weights == []  # nothing to carry along when an update refreshes it


def test_discrete_observations_and_images_are_evaluated_by_keras():
    spaces = {
        "discrete": (gym.spaces.Discrete(4, start=3), np.array([3, 6, 4])),
        "image": (
            gym.spaces.Box(0, 255, (2, 40, 44), np.uint8),
            np.random.default_rng(0).integers(0, 256, (3, 2, 40, 44), np.uint8),
        ),
    }
    for space, x in spaces.values():
        inputs, features = body(space, (8,))
        network = keras.Model(inputs, keras.layers.Dense(2)(features))
        function = forward(network)
        assert isinstance(function, CompiledForward)
        outputs = function(x)
        assert outputs.shape == (3, 2)
        np.testing.assert_allclose(outputs, np.asarray(network(x)), atol=1e-5)
