"""What all scripts of the chapter do alike around their networks, seen from what a run leaves."""

import importlib

from chapter09_dqn import rainbow
from common.checkpoint import latest
from common.compiled import compiled
from common.metrics import read_metrics
from common.replay import Batch

import gymnasium as gym
import keras
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

pytestmark = pytest.mark.no_xla

STEMS = ["dqn", "double_dqn", "dueling_dqn", "prioritized_dqn", "drqn", "rainbow"]
every_script = pytest.mark.parametrize("stem", STEMS)


class ThreeSteps(gym.Env):
    """Three steps with a reward of 2 each; then the end, or a time limit."""

    observation_space = Box(-1.0, 1.0, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, limit: bool) -> None:
        self.limit, self.steps = limit, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        over = self.steps == 3
        state = np.full(2, self.steps / 3, np.float32)
        return state, 2.0, over and not self.limit, over and self.limit, {}


gym.register("ThreeStepsEnd-v0", lambda: ThreeSteps(limit=False))
gym.register("ThreeStepsLimit-v0", lambda: ThreeSteps(limit=True))


SMALL = {"num_envs": 4, "batch_size": 8, "hidden_sizes": (8,), "buffer_size": 500}
SMALL |= {"train_frequency": 16, "gradient_steps": 2, "learning_starts": 16}


def train(stem, run_dir, **settings):
    script = importlib.import_module(f"chapter09_dqn.{stem}")
    config = script.Config(**SMALL | settings | {"run_dir": str(run_dir)})
    script.train(config)
    return config, read_metrics(run_dir)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns a function from a script to a short run of it: module, settings, policy, metrics."""
    made = {}

    def run_of(stem, noisy):
        key = stem, noisy and stem == "rainbow"  # only Rainbow has noise
        if key not in made:
            script = importlib.import_module(f"chapter09_dqn.{stem}")
            settings = SMALL | {"env_id": "ThreeStepsEnd-v0", "total_timesteps": 1600}
            settings |= {"gamma": 0.5, "end_epsilon": 0.2, "exploration_fraction": 0.5}
            settings |= {"gradient_steps": 8, "learning_rate": 0.1}
            settings |= {"noisy": noisy} if stem == "rainbow" else {}
            settings |= {"run_dir": str(tmp_path_factory.mktemp(stem) / "run")}
            policy = script.train(script.Config(**settings)).policy
            made[key] = script, settings, policy, read_metrics(settings["run_dir"])
        return made[key]

    return run_of


@every_script
def test_true_returns_learning_rate_and_exploration_of_a_run(stem, run):
    _, settings, _, metrics = run(stem, noisy=False)
    # After three, two and one of the rewards: 3.5, 3 and 2.
    true_return = metrics["train/true_return"]
    np.testing.assert_allclose(true_return[np.isfinite(true_return)], 8.5 / 3, rtol=1e-6)
    assert np.isfinite(true_return).sum() > 10

    rate = metrics["train/learning_rate"] / settings["learning_rate"]
    rate, at = rate[np.isfinite(rate)], metrics["step"][np.isfinite(rate)] / 1600
    np.testing.assert_allclose(rate, 1.0 - at, atol=0.04)  # falls to 0; a row is a mean over steps

    epsilon, at = metrics["train/epsilon"], metrics["step"] / 1600
    known = np.isfinite(epsilon)
    expected = np.maximum(1.0 - 0.8 * at / 0.5, 0.2)
    np.testing.assert_allclose(epsilon[known], expected[known], atol=0.04)
    assert epsilon[known][-1] == pytest.approx(0.2)


@pytest.mark.parametrize("stem", ["double_dqn", "dueling_dqn"])
def test_a_block_of_steps_is_its_steps_one_by_one(stem):
    """The target network sees the whole block at once; each step gets what is its own."""
    script, rng = importlib.import_module(f"chapter09_dqn.{stem}"), np.random.default_rng(0)
    space = Box(-1.0, 1.0, (2,), np.float32)
    block = Batch(
        state=rng.normal(size=(3, 4, 2)).astype(np.float32),
        action=rng.integers(0, 3, (3, 4)).astype(np.int32),
        reward=rng.normal(size=(3, 4)).astype(np.float32),
        next_state=rng.normal(size=(3, 4, 2)).astype(np.float32),
        terminated=np.tile(np.array([0, 1, 0, 0], np.float32), (3, 1)),
    )

    def learn(*parts):
        keras.utils.set_random_seed(0)
        q_network, target_network = (script.build_q_network(space, 3, (8,)) for _ in range(2))
        before = [np.asarray(net(block.next_state[0])) for net in (q_network, target_network)]
        q_value = np.asarray(q_network(block.state[0]))[np.arange(4), block.action[0]]
        optimizer = keras.optimizers.Adam(keras.optimizers.schedules.PolynomialDecay(0.1, 3, 0.0))
        optimizer.build(q_network.trainable_variables)
        steps = compiled(script.build_train_steps(q_network, target_network, optimizer, 0.9))
        losses = [steps(Batch(*[array[part] for array in block]))["train/loss"] for part in parts]
        return losses, q_network.get_weights(), q_value, before

    [loss], weights, q_value, (next_q, target_q) = learn(slice(0, 3))
    losses, weights_one_by_one, *_ = learn(slice(0, 1), slice(1, 2), slice(2, 3))
    assert loss == pytest.approx(np.mean(losses), rel=1e-4)
    for ours, theirs in zip(weights, weights_one_by_one, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)

    # The first step's loss, worked out here; no other choice of the next value gives the same.
    chosen = next_q if stem == "double_dqn" else target_q
    next_value = target_q[np.arange(4), chosen.argmax(axis=1)]
    td_target = block.reward[0] + 0.9 * (1.0 - block.terminated[0]) * next_value
    assert losses[0] == pytest.approx(np.mean((td_target - q_value) ** 2), rel=1e-4)


@every_script
def test_the_policy_of_a_run_is_the_greedy_one_of_its_last_weights(stem, run):
    """What acts is a copy of the weights that every training must renew."""
    script, settings, ours, _ = run(stem, noisy=True)
    loaded = script.load_policy(script.Config(**settings | {"resume": settings["run_dir"]}))
    states = np.random.default_rng(0).normal(size=(400, 2)).astype(np.float32)
    np.testing.assert_array_equal(ours(states), loaded(states))
    assert 0 < ours(states).mean() < 1  # two actions, both chosen somewhere


@pytest.mark.parametrize("stem", ["dqn", "prioritized_dqn"])
def test_without_anneal_the_learning_rate_stays(stem, tmp_path):
    settings = {"env_id": "ThreeStepsEnd-v0", "total_timesteps": 400, "anneal": False}
    config, metrics = train(stem, tmp_path / "run", **settings)
    rate = metrics["train/learning_rate"]
    np.testing.assert_allclose(rate[np.isfinite(rate)], config.learning_rate, rtol=1e-6)


@every_script
def test_nobody_knows_the_true_return_of_a_short_episode_that_was_cut(stem, tmp_path):
    settings = {"env_id": "ThreeStepsLimit-v0", "total_timesteps": 400, "learning_starts": 400}
    _, metrics = train(stem, tmp_path / "run", **settings)
    assert not np.isfinite(metrics.get("train/true_return", np.array([np.nan]))).any()


@every_script
def test_atari_rewards_are_clipped_and_a_lost_life_is_no_new_episode(stem, tmp_path):
    """A pellet of MsPacman's is worth 10, and some of her three lives are soon lost."""
    settings = {"frame_size": 42, "num_envs": 4, "buffer_size": 2000, "total_timesteps": 1600}
    settings |= {"learning_starts": 1600, "env_id": "ALE/MsPacman-v5", "learning_rate": 1e-4}
    _, metrics = train(stem, tmp_path / "run", **settings)
    with np.load(latest(tmp_path / "run")) as archive:

        def stored(name):
            keys = [key for key in archive.files if key.startswith(f"replay/{name}")]
            return np.concatenate([archive[key].ravel() for key in keys])

        assert set(np.unique(stored("reward"))) == {0.0, 1.0}
        if stem == "drqn":  # the memory goes on where only a life was lost
            assert stored("terminated").sum() >= 4 > stored("begins").sum() - 4
    returns = metrics["train/true_return"]
    assert np.nanmax(returns, initial=0.0) < 10.0


def test_rainbows_optimizer_is_the_one_of_its_flags(tmp_path, monkeypatch):
    seen = []

    class Adam(rainbow.keras.optimizers.Adam):
        def __init__(self, learning_rate, **settings):
            seen.append(settings)
            super().__init__(learning_rate, **settings)

    monkeypatch.setattr(rainbow.keras.optimizers, "Adam", Adam)
    train("rainbow", tmp_path / "run", total_timesteps=64, adam_epsilon=0.25, max_grad_norm=3.0)
    assert seen == [{"epsilon": 0.25, "global_clipnorm": 3.0}]


def test_rainbow_says_that_its_support_is_cartpoles(tmp_path, capsys):
    train("rainbow", tmp_path / "a", total_timesteps=8, env_id="Acrobot-v1")
    assert "returns outside CartPole's --v-min 0 to --v-max 100 are cut" in capsys.readouterr().err
    train("rainbow", tmp_path / "b", total_timesteps=8, env_id="Acrobot-v1", v_min=-100.0)
    train("rainbow", tmp_path / "c", total_timesteps=8)
    train("rainbow", tmp_path / "d", total_timesteps=8, env_id="Acrobot-v1", distributional=False)
    assert "returns outside" not in capsys.readouterr().err
