"""Action distributions against closed forms and numerical integration."""

import math

from common.errors import UserError
from common.policies import (
    categorical,
    diagonal_gaussian,
    require_bounded_box,
    require_discrete,
    rescale_action,
)

import numpy as np
import pytest
import tensorflow as tf
from gymnasium.spaces import Box, Discrete


def constant(*values):
    return tf.constant(values, tf.float32)


def gaussian_log_density(u, mean, std):
    return -0.5 * ((u - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)


def test_categorical():
    probabilities = [0.2, 0.3, 0.5]
    policy = categorical(tf.math.log([probabilities] * 4) + 7.0)  # [B, A]; logits may be shifted
    assert policy.log_prob([0, 1, 2, 2]).shape == (4,)
    np.testing.assert_allclose(policy.prob([0, 1, 2, 2]), [0.2, 0.3, 0.5, 0.5], rtol=1e-5)
    np.testing.assert_allclose(policy.entropy(), [1.0296530] * 4, rtol=1e-5)
    other = categorical(tf.zeros([4, 3]))
    np.testing.assert_allclose(
        policy.kl_divergence(other), [math.log(3) - 1.0296530] * 4, rtol=1e-4
    )


def test_diagonal_gaussian_sums_over_the_components():
    # B = 3, A = 2: u = 0.7 under mean 0.2, σ 0.5 has log-density -0.725791.
    mean, log_std = tf.fill([3, 2], 0.2), tf.math.log(constant(0.5, 0.5))
    policy = diagonal_gaussian(mean, log_std)
    log_prob = policy.log_prob(tf.fill([3, 2], 0.7))
    assert log_prob.shape == (3,)
    np.testing.assert_allclose(log_prob, [2 * -0.725791] * 3, atol=1e-5)
    np.testing.assert_allclose(
        policy.entropy(), [math.log(2 * math.pi * math.e * 0.25)] * 3, atol=1e-5
    )


def test_diagonal_gaussian_with_a_spread_for_each_state():
    log_std = tf.math.log([[0.5, 2.0], [1.0, 0.1]])
    policy = diagonal_gaussian(tf.constant([[0.0, 1.0], [2.0, 3.0]]), log_std)
    expected = [
        gaussian_log_density(0.5, 0.0, 0.5) + gaussian_log_density(0.5, 1.0, 2.0),
        gaussian_log_density(0.5, 2.0, 1.0) + gaussian_log_density(0.5, 3.0, 0.1),
    ]
    np.testing.assert_allclose(policy.log_prob(tf.fill([2, 2], 0.5)), expected, rtol=1e-5)


def test_rescale_action():
    space = Box(np.float32([-1, 0, -np.inf, 0]), np.float32([3, 0.5, np.inf, np.inf]))
    action = np.array([[-1.0, -1, -7, -7], [0, 0, 0, 0], [1, 1, 7, 7], [5, -5, 1e6, -1e6]])
    rescaled = rescale_action(action, space)
    expected = [[-1, 0, -7, -7], [1, 0.25, 0, 0], [3, 0.5, 7, 7], [3, 0, 1e6, -1e6]]
    np.testing.assert_array_equal(rescaled, np.float32(expected), strict=True)
    np.testing.assert_array_equal(rescale_action(action[2], space), np.float32(expected[2]))
    assert rescale_action(np.zeros(1), Box(-2.0, 2.0, (1,), np.float64)).dtype == np.float64
    integers = Box(-100, 100, (5,), np.int8)  # high - low is no int8
    rescaled = rescale_action(np.array([-1.0, -0.5, 0.0, 0.5, 0.9]), integers)
    np.testing.assert_array_equal(rescaled, np.int8([-100, -50, 0, 50, 90]), strict=True)


def test_require_discrete():
    assert require_discrete(Discrete(4), "CartPole-v1", "ppo_clip.py") == 4
    with pytest.raises(UserError, match=r"--env-id Pendulum-v1.*continuous.*use ppo_clip"):
        require_discrete(Box(-2.0, 2.0, (1,)), "Pendulum-v1", "ppo_clip.py")
    with pytest.raises(UserError, match=r"--env-id Odd-v0.*start at 1"):
        require_discrete(Discrete(4, start=1), "Odd-v0", "ppo_clip.py")


def test_a_box_with_finite_bounds_is_required():
    space = Box(np.float32([-1, 0]), np.float32([3, 0.25]))
    assert require_bounded_box(space, "Some-v0", "ppo_clip.py") is space
    for other, message in (
        (Discrete(2), r"--env-id Some-v0: actions are discrete .*; use dqn.py or ppo_clip.py"),
        (Box(-np.inf, 1.0, (1,)), r"no finite bounds .*; use ppo_clip.py"),
        (Box(np.float32([-1, 2]), np.float32([1, 2])), "has no width"),
    ):
        with pytest.raises(UserError, match=message):
            require_bounded_box(other, "Some-v0", "ppo_clip.py")
