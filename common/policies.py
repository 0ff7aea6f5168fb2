"""Probability distributions over actions, for Discrete and Box action spaces."""

from __future__ import annotations

import common.quiet  # noqa: F401

import tensorflow as tf
import tensorflow_probability as tfp

tfd = tfp.distributions


def categorical(logits: tf.Tensor) -> tfp.distributions.Distribution:
    """π(a|s) for Discrete actions 0 ... A-1.

    Args:
        logits: [B, A].
    """
    return tfd.Categorical(logits=logits)


def diagonal_gaussian(mean: tf.Tensor, log_std: tf.Tensor) -> tfp.distributions.Distribution:
    """π(a|s) for Box actions without bounds; `log_prob` sums over the action's components.

    Args:
        mean: [B, A].
        log_std: [A] or [B, A], logarithm of the standard deviation.
    """
    return tfd.MultivariateNormalDiag(loc=mean, scale_diag=tf.exp(log_std) * tf.ones_like(mean))
