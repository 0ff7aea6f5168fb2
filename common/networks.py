"""Network bodies for every kind of observation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import common.quiet  # noqa: F401
from common.environments import is_image
from common.errors import UserError

import gymnasium as gym
import keras

NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # filters, size of the kernel, stride
SMALL = ((16, 5, 3), (32, 3, 2), (32, 3, 1))

Initializer = Callable[[], keras.Initializer]


def mlp(
    inputs: keras.KerasTensor,
    hidden_sizes: Sequence[int],
    activation: str = "relu",
    initializer: Initializer = keras.initializers.GlorotUniform,
) -> keras.KerasTensor:
    """A stack of dense layers.

    Args:
        inputs: features, [B, D].
        hidden_sizes: units of each layer.
        activation: Keras name, applied after every layer.
        initializer: makes a new kernel initializer for each layer.

    Returns:
        Features, [B, hidden_sizes[-1]].
    """
    features = inputs
    for units in hidden_sizes:
        layer = keras.layers.Dense(units, activation, kernel_initializer=initializer())
        features = layer(features)
    return features


def nature_cnn(
    inputs: keras.KerasTensor, initializer: Initializer = keras.initializers.HeUniform
) -> keras.KerasTensor:
    """The convolutional body of Mnih et al. (Nature, 2015): three convolutions and 512 units.

    Args:
        inputs: images with channels last and values in [0, 1], [B, H, W, C]; H and W at least 36,
            below 64 with smaller and fewer kernels than the paper's, and half of the units.
        initializer: makes a new kernel initializer for each layer.

    Returns:
        Features, [B, 512], or [B, 256] of small images.
    """
    features = convolutions(inputs, initializer)
    return keras.layers.Dense(_units(inputs), "relu", kernel_initializer=initializer())(features)


def convolutions(
    inputs: keras.KerasTensor, initializer: Initializer = keras.initializers.HeUniform
) -> keras.KerasTensor:
    """The three convolutions of `nature_cnn`, flattened: [B, H, W, C] -> [B, D]."""
    features = inputs
    for filters, size, stride in SMALL if _is_small(inputs) else NATURE:
        layer = keras.layers.Conv2D(
            filters, size, stride, activation="relu", kernel_initializer=initializer()
        )
        features = layer(features)
    return keras.layers.Flatten()(features)


def _is_small(images: keras.KerasTensor) -> bool:
    """Whether the paper's convolutions would leave less than 3 x 3 places of the images."""
    return min(images.shape[1:3]) < 64


def _units(images: keras.KerasTensor) -> int:
    return 256 if _is_small(images) else 512


def body(
    observation_space: gym.Space,
    hidden_sizes: Sequence[int],
    activation: str = "relu",
    initializer: Initializer = keras.initializers.GlorotUniform,
) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """Input and features for an observation space: images get `nature_cnn`, all else `mlp`.

    Args:
        observation_space: Box vector, Box image (uint8, channels first or last) or Discrete.
        hidden_sizes: units of the dense layers; images ignore it.
        activation: of the dense layers.
        initializer: makes a new kernel initializer for each layer.

    Returns:
        The Keras input, [B, ...] as the environment delivers observations (Discrete: [B]), and the
        features, [B, D]. Images are scaled to [0, 1], Discrete observations become one-hot.

    Raises:
        UserError: the observation space is of another kind.
    """
    inputs, features = _prepared(observation_space)
    if is_image(observation_space):
        return inputs, nature_cnn(features, initializer)
    return inputs, mlp(features, hidden_sizes, activation, initializer)


def trunk(
    observation_space: gym.Space, hidden_sizes: Sequence[int]
) -> tuple[keras.KerasTensor, keras.KerasTensor, int]:
    """What `body` makes, without its last dense layer: for networks that branch there.

    Args:
        observation_space: as for `body`.
        hidden_sizes: units of the dense layers, at least one; images ignore it.

    Returns:
        The Keras input, the features [B, D], and the units of the layer that was left out.

    Raises:
        UserError: the observation space is of another kind, or there is no layer to leave out.
    """
    inputs, features = _prepared(observation_space)
    if is_image(observation_space):
        return inputs, convolutions(features), _units(features)
    if not hidden_sizes:
        raise UserError("--hidden-sizes: must name at least one layer, in which the network forks")
    return inputs, mlp(features, hidden_sizes[:-1]), hidden_sizes[-1]


def _prepared(observation_space: gym.Space) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    """The Keras input for an observation space, and what the first layer should see of it."""
    if isinstance(observation_space, gym.spaces.Discrete):
        inputs = keras.Input((), dtype="int32")
        shifted = inputs - int(observation_space.start)
        return inputs, keras.ops.one_hot(shifted, int(observation_space.n))
    if is_image(observation_space):
        assert observation_space.shape is not None
        inputs = keras.Input(observation_space.shape, dtype="uint8")
        images = inputs
        if observation_space.shape[0] < observation_space.shape[-1]:  # channels (or frames) first
            images = keras.layers.Permute((2, 3, 1))(images)
        return inputs, keras.layers.Rescaling(1.0 / 255.0)(images)
    if isinstance(observation_space, gym.spaces.Box) and len(observation_space.shape) == 1:
        inputs = keras.Input(observation_space.shape)
        return inputs, inputs
    raise UserError(
        f"--env-id: observations are {observation_space}; networks here take Box vectors, "
        "Box images (uint8, at least 36 x 36) and Discrete observations"
    )


def copy_weights(source: keras.Model, target: keras.Model) -> None:
    """θ' <- θ: makes `target`'s weights equal to `source`'s."""
    # Not `variables`: the states of random generators are among these.
    for theta, theta_target in zip(source.weights, target.weights, strict=True):
        theta_target.assign(theta)


def soft_update(source: keras.Model, target: keras.Model, polyak: float) -> None:
    """θ' <- (1 - polyak) θ' + polyak θ; for use in compiled functions.

    Args:
        source: θ, the network that learns.
        target: θ', the network that follows it.
        polyak: share of θ; 1 copies.
    """
    for theta, theta_target in zip(source.weights, target.weights, strict=True):
        theta_target.assign_add(polyak * (theta.value - theta_target.value))
