"""Network bodies: shapes, parameter counts, and every kind of observation."""

from common.environments import is_image
from common.errors import UserError
from common.networks import (
    body,
    convolutions,
    copy_weights,
    mlp,
    nature_cnn,
    soft_update,
    trunk,
)

import gymnasium as gym
import keras
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete


def images(*shape):
    return Box(0, 255, shape, np.uint8)


def network_for(space, hidden_sizes=(6,)):
    inputs, features = body(space, hidden_sizes)
    return keras.Model(inputs, features)


def test_mlp():
    inputs = keras.Input((4,))
    network = keras.Model(inputs, mlp(inputs, (120, 84), "tanh", keras.initializers.Orthogonal))
    assert network.output_shape == (None, 84)
    assert network.count_params() == 4 * 120 + 120 + 120 * 84 + 84
    first, second = network.layers[1:]
    assert [layer.activation.__name__ for layer in (first, second)] == ["tanh", "tanh"]
    kernel = np.asarray(first.kernel)  # [4, 120], orthogonal rows
    np.testing.assert_allclose(kernel @ kernel.T, np.eye(4), atol=1e-5)


def test_layers_of_equal_size_begin_with_different_weights():
    inputs = keras.Input((8,))
    network = keras.Model(inputs, mlp(inputs, (8, 8)))
    assert not np.array_equal(network.layers[1].kernel, network.layers[2].kernel)


def test_mlp_without_layers_passes_on():
    inputs = keras.Input((4,))
    assert mlp(inputs, ()) is inputs


def test_nature_cnn_has_the_sizes_of_the_paper():
    inputs = keras.Input((84, 84, 4))
    network = keras.Model(inputs, nature_cnn(inputs))
    layers = [layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.output.shape[1:] for layer in layers] == [
        (20, 20, 32),
        (9, 9, 64),
        (7, 7, 64),
    ]
    assert [layer.count_params() for layer in layers] == [8_224, 32_832, 36_928]
    assert network.output_shape == (None, 512)
    assert network.count_params() == 1_684_128
    assert network.output.shape == (None, 512)


@pytest.mark.parametrize("shape", [(4, 84, 84), (3, 40, 60), (1, 36, 36)])
def test_channels_first_and_last_are_the_same_picture(shape):
    """H is not W: rows and columns must not change places."""
    keras.utils.set_random_seed(0)
    first = network_for(images(*shape))
    last = network_for(images(*shape[1:], shape[0]))
    copy_weights(first, last)
    pixels = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)
    ours, theirs = first(pixels), last(np.moveaxis(pixels, 1, -1))
    assert ours.shape == (2, 512 if min(shape[1:]) >= 64 else 256)
    assert np.asarray(ours).max() > 0
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_images_are_scaled_to_one():
    space = images(36, 36, 3)
    inputs, features = body(space, ())
    network = keras.Model(inputs, features)
    convolution = next(x for x in network.layers if isinstance(x, keras.layers.Conv2D))
    scaled = keras.Model(inputs, convolution.input)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 36, 36, 3), np.uint8)
    np.testing.assert_allclose(scaled(pixels), pixels / 255, atol=1e-6)
    assert inputs.dtype == "uint8"


def test_discrete_observations_become_one_hot():
    """The features are the input of a network without hidden layers."""
    shifted = network_for(Discrete(5, start=-2), hidden_sizes=())
    np.testing.assert_array_equal(shifted(np.array([-2, 2, 0])), np.eye(5)[[0, 4, 2]])
    assert shifted(np.array([0], np.int64)).shape == (1, 5)
    plain = network_for(Discrete(3), hidden_sizes=())
    np.testing.assert_array_equal(plain(np.array([2, 0])), np.eye(3)[[2, 0]])
    assert network_for(Discrete(5, start=-2), (7,)).count_params() == 5 * 7 + 7


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8])
def test_vectors_of_any_number_type(dtype):
    space = Box(0, 200, (3,), dtype)
    network = network_for(space)
    x = np.array([[1, 20, 200]])
    np.testing.assert_allclose(network(x.astype(dtype)), network(x.astype(np.float32)), rtol=1e-6)
    assert not is_image(space)


def test_what_counts_as_an_image():
    assert is_image(images(4, 84, 84))
    assert is_image(images(210, 160, 3))
    assert not is_image(images(4, 35, 35))
    assert not is_image(images(84, 84))
    assert not is_image(Box(0.0, 1.0, (4, 84, 84), np.float32))
    assert not is_image(Discrete(4))


UNSUPPORTED = [
    gym.spaces.Dict({"a": Discrete(2)}),
    gym.spaces.Tuple((Discrete(2), Discrete(3))),
    gym.spaces.MultiBinary(3),
    gym.spaces.MultiDiscrete([2, 3]),
    Box(0.0, 1.0, (84, 84), np.float32),
    Box(0.0, 1.0, (84, 84, 3), np.float32),
    images(20, 20, 3),
    Box(0.0, 1.0, (), np.float32),
]


@pytest.mark.parametrize("space", UNSUPPORTED, ids=str)
def test_other_observations_are_refused(space):
    with pytest.raises(UserError, match="--env-id: observations are ") as error:
        body(space, (8,))
    assert str(space) in str(error.value)


def test_copy_weights_copies_and_does_not_tie():
    space = Box(-1.0, 1.0, (3,), np.float32)
    source, target = network_for(space), network_for(space)
    x = np.ones((1, 3), np.float32)
    assert np.abs(np.asarray(source(x)) - np.asarray(target(x))).max() > 0
    copy_weights(source, target)
    np.testing.assert_array_equal(source(x), target(x))
    before = np.asarray(target(x))
    source.layers[1].bias.assign(np.full(6, 9.0))
    np.testing.assert_array_equal(target(x), before)


def test_copy_weights_leaves_random_generators_alone():
    """Two networks with noise must not come to draw the same noise."""
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(50)(keras.layers.Dropout(0.5)(inputs))
    source = keras.Model(inputs, outputs)
    target = keras.models.clone_model(source)
    seeds = [
        [np.array(v.numpy()) for v in model.variables if "seed" in v.name]
        for model in (source, target)
    ]
    assert len(seeds[0]) == len(seeds[1]) == 1
    assert not np.array_equal(*seeds)
    copy_weights(source, target)
    now = [v.numpy() for v in target.variables if "seed" in v.name]
    np.testing.assert_array_equal(now, seeds[1])
    for theta, same in zip(source.weights, target.weights, strict=True):
        np.testing.assert_array_equal(theta, same)


def test_convolutions_are_the_body_of_the_nature_network():
    inputs = keras.Input((84, 84, 4))
    network = keras.Model(inputs, convolutions(inputs))
    assert network.output_shape == (None, 7 * 7 * 64)
    assert network.count_params() == 8_224 + 32_832 + 36_928


@pytest.mark.parametrize(
    ("space", "hidden_sizes", "features", "units"),
    [
        (Box(-1.0, 1.0, (3,), np.float32), (20, 10, 5), 10, 5),
        (Box(-1.0, 1.0, (3,), np.float32), (20,), 3, 20),
        (Discrete(4, start=2), (6, 5), 6, 5),
        (images(4, 84, 84), (), 3136, 512),
        (images(84, 84, 4), (20, 10), 3136, 512),
    ],
)
def test_the_trunk_is_the_body_without_its_last_layer(space, hidden_sizes, features, units):
    inputs, outputs, last = trunk(space, hidden_sizes)
    assert outputs.shape == (None, features)
    assert last == units
    short = keras.Model(inputs, outputs)
    whole = keras.Model(*body(space, hidden_sizes))
    assert whole.output_shape == (None, units)
    *same, kernel, bias = whole.weights
    assert [w.shape for w in same] == [w.shape for w in short.weights]
    for ours, theirs in zip(short.weights, same, strict=True):
        ours.assign(theirs)
    states = np.stack([space.sample() for _ in range(3)])
    layer = np.maximum(np.asarray(short(states)) @ np.asarray(kernel) + np.asarray(bias), 0.0)
    np.testing.assert_allclose(layer, whole(states), rtol=1e-4, atol=1e-5)


def test_a_trunk_needs_a_layer_to_leave_out():
    with pytest.raises(UserError, match="--hidden-sizes: must name at least one layer"):
        trunk(Box(-1.0, 1.0, (3,), np.float32), ())
    with pytest.raises(UserError, match="--env-id: observations are "):
        trunk(gym.spaces.MultiBinary(3), (8,))


@pytest.mark.parametrize("polyak", [0.0, 0.25, 1.0])
def test_soft_update_moves_the_target_a_part_of_the_way(polyak):
    source, target = (keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]) for _ in "ab")
    source.set_weights([np.full((3, 2), 4.0), np.full(2, 1.0)])
    target.set_weights([np.full((3, 2), 8.0), np.full(2, -1.0)])
    soft_update(source, target, polyak)
    kernel, bias = target.get_weights()
    np.testing.assert_allclose(kernel, np.full((3, 2), 8.0 - 4.0 * polyak), rtol=1e-6)
    np.testing.assert_allclose(bias, np.full(2, -1.0 + 2.0 * polyak), rtol=1e-6)
    assert source.get_weights()[0][0, 0] == 4.0
