"""The loss of large errors, `--huber-kappa`, which five scripts of the chapter repeat."""

import importlib

from common.metrics import read_metrics

import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.no_xla

STEMS = ["dqn", "double_dqn", "dueling_dqn", "prioritized_dqn", "drqn"]
scripts = pytest.mark.parametrize(
    "script", [importlib.import_module(f"chapter09_dqn.{stem}") for stem in STEMS], ids=STEMS
)
ERRORS = np.array([[-3.0, -1.0, -0.5], [0.0, 2.0, 100.0]], np.float32)


@scripts
@pytest.mark.parametrize(
    ("kappa", "loss", "slope"),
    [
        (0.0, [[9, 1, 0.25], [0, 4, 10_000]], [[-6, -2, -1], [0, 4, 200]]),
        (1.0, [[5, 1, 0.25], [0, 3, 199]], [[-2, -2, -1], [0, 2, 2]]),
        (2.0, [[8, 1, 0.25], [0, 4, 396]], [[-4, -2, -1], [0, 4, 4]]),
    ],
)
def test_errors_beyond_kappa_count_by_their_size(script, kappa, loss, slope):
    errors = tf.constant(ERRORS)
    with tf.GradientTape() as tape:
        tape.watch(errors)
        found = script.huber(errors, kappa)
    np.testing.assert_allclose(found, loss, rtol=1e-6)
    np.testing.assert_allclose(tape.gradient(found, errors), slope, rtol=1e-6)


@scripts
def test_the_flag_reaches_the_loss(script, tmp_path):
    config = script.Config(
        total_timesteps=512,
        learning_starts=256,
        train_frequency=64,
        gradient_steps=2,
        batch_size=8,
        buffer_size=1000,
        huber_kappa=1e-6,
        run_dir=str(tmp_path / "run"),
    )
    script.train(config)
    losses = read_metrics(tmp_path / "run")["train/loss"]
    losses = losses[np.isfinite(losses)]
    assert len(losses) > 0
    assert (losses > 0.0).all()
    assert (losses < 1e-4).all()  # 2e-6 times the error; its square is near 1


@pytest.mark.parametrize("stem", STEMS)
def test_kappa_is_not_negative(stem, command_line):
    status, _, err = command_line(stem, "--huber-kappa", -1)
    assert status == 2
    assert "--huber-kappa -1.0: must be 0 or more" in err
