"""PPO's details that a learning curve would forgive: optimizer, first policy, order of samples."""

from chapter11_policy_gradient import ppo_clip
from chapter11_policy_gradient.ppo_clip import Config
from common.metrics import read_metrics

import keras
import numpy as np
import pytest

pytestmark = pytest.mark.no_xla


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A run of two batches, and what went into its optimizer and its updates."""
    seen = {"optimizers": [], "orders": []}

    class Adam(keras.optimizers.Adam):
        def __init__(self, *args, **kwargs):
            seen["optimizers"].append(kwargs)
            super().__init__(*args, **kwargs)

    compiled = ppo_clip.compiled

    def compile_and_watch(function=None, **kwargs):
        inner = compiled(function, **kwargs)
        if function is None or function.__name__ != "update":
            return inner

        def call(samples, orders, learning_rate):
            seen["orders"].append(np.array(orders))
            return inner(samples, orders, learning_rate)

        return call

    run_dir = tmp_path_factory.mktemp("ppo") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_clip.keras.optimizers, "Adam", Adam)
        patch.setattr(ppo_clip, "compiled", compile_and_watch)
        config = Config(total_timesteps=512, num_epochs=3, minibatch_size=64, run_dir=str(run_dir))
        ppo_clip.train(config)
    seen["metrics"] = read_metrics(run_dir)
    return seen


def test_optimizer_is_the_one_of_the_paper_code(seen):
    # Keras's defaults would be epsilon 1e-7, and clipnorm would limit each variable on its own.
    assert seen["optimizers"] == [{"epsilon": 1e-5, "global_clipnorm": 0.5}]


def test_each_epoch_sees_every_sample_once_in_a_new_order(seen):
    assert len(seen["orders"]) == 2
    epochs = np.reshape(seen["orders"], (6, 256))
    assert (np.sort(epochs, axis=1) == np.arange(256)).all()
    assert len({epoch.tobytes() for epoch in epochs}) == 6
    assert all((np.diff(epoch) != 1).mean() > 0.9 for epoch in epochs)


def test_the_first_policy_is_nearly_uniform(seen):
    # Small weights in the head: no action is preferred before anything was learned.
    assert seen["metrics"]["train/entropy"][0] == pytest.approx(np.log(2), abs=0.005)
