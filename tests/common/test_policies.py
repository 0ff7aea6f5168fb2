"""Action distributions against closed forms and numerical integration."""

import math

from common.policies import categorical, diagonal_gaussian

import numpy as np
import tensorflow as tf


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
