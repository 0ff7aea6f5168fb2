"""The fused Adam against Keras's own."""

from common.compiled import compiled
from common.optimizers import FusedAdam

import keras
import numpy as np
import pytest
import tensorflow as tf


@pytest.mark.parametrize("xla", [False, True])
def test_fused_adam_is_adam(xla):
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (4,), ()]
    gradients = [[rng.normal(size=s).astype(np.float32) * 10**k for s in shapes] for k in range(5)]
    start = [rng.normal(size=s).astype(np.float32) for s in shapes]
    results = []
    for kind in (FusedAdam, keras.optimizers.Adam):
        variables = [keras.Variable(value) for value in start]
        optimizer = kind(0.01, beta_1=0.8, beta_2=0.9, epsilon=1e-3)
        optimizer.build(variables)

        def update(*gradients, optimizer=optimizer, variables=variables):
            optimizer.apply(list(gradients), variables)
            return tf.constant(0.0)

        update = compiled(update, xla=xla)
        for step in gradients * 3:
            update(*step)
        assert int(optimizer.iterations) == 15
        results.append([np.asarray(v) for v in [*variables, *optimizer.variables]])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=1e-7)
    for ours, value in zip(results[0], start, strict=False):
        assert np.abs(ours - value).max() > 0.01
