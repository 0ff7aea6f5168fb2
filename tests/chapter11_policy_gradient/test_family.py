"""What all scripts of the chapter do alike around their networks, seen from what a run leaves."""

import dataclasses
import importlib

from common.checkpoint import latest
from common.environments import vector
from common.errors import UserError
from common.metrics import read_metrics

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from policy_gradients import Watched

pytestmark = pytest.mark.no_xla

REINFORCE = ["reinforce", "reinforce_reward_to_go", "reinforce_baseline"]
ON_POLICY = [*REINFORCE, "actor_critic", "a2c"]
OFF_POLICY = ["ddpg", "td3", "sac"]


class Episodes(gym.Env):
    """Episodes of two to five steps with a reward of 7 each; numbers of very different sizes."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(self, action_space) -> None:
        self.action_space = action_space

    def observation(self):
        return (self.np_random.normal(size=2) * [1000.0, 0.01] + [5000.0, 3.0]).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 6))
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.left -= 1
        return self.observation(), 7.0, self.left == 0, False, {}


gym.register("DiscreteEpisodes-v0", lambda: Episodes(Discrete(3)))
gym.register("BoxEpisodes-v0", lambda: Episodes(Box(-1.0, 5.0, (2,), np.float32)))


def load(stem):
    return importlib.import_module(f"chapter11_policy_gradient.{stem}")


def train(stem, run_dir, **settings):
    script = load(stem)
    small = {"num_envs": 4, "hidden_sizes": (), "total_timesteps": 400, "checkpoint_every": 0}
    small["env_id"] = "BoxEpisodes-v0" if stem in OFF_POLICY else "DiscreteEpisodes-v0"
    if stem in OFF_POLICY:
        small |= {"batch_size": 8, "buffer_size": 500, "learning_starts": 40}
        small |= {"train_frequency": 20, "gradient_steps": 4}
    config = script.Config(**small | settings | {"run_dir": str(run_dir)})
    return config, script.train(config)


def archive(run_dir):
    """Everything in the newest checkpoint, by name."""
    with np.load(latest(run_dir)) as file:
        return {name: file[name] for name in file.files}


def arguments(watched):
    """Of all updates: the fields of their first argument, each with its values."""
    batches = [batch for batch, *_ in watched.updates]
    return {
        name: np.concatenate([np.ravel(getattr(batch, name)) for batch in batches])
        for name in batches[0]._fields
    }


# --- Scripts that learn from what they just did -----------------------------------------------


@pytest.mark.parametrize("stem", ON_POLICY)
def test_the_score_of_a_game_counts_by_its_sign(stem, tmp_path, monkeypatch):
    watched = Watched(monkeypatch, load(stem))

    class Games(vector.VectorEnvs):
        """Calls itself a game, but has no frames to count."""

        def reset(self, **kwargs):
            self.is_atari = False
            result = super().reset(**kwargs)
            self.is_atari = True
            return result

        def step(self, actions):
            self.is_atari = False
            result = super().step(actions)
            self.is_atari = True
            return result

    monkeypatch.setattr(vector, "VectorEnvs", Games)
    train(stem, tmp_path / "run")
    seen = arguments(watched)
    if stem in REINFORCE:  # sums of up to five rewards of 1, and not of 7
        returns = seen["returns" if stem == "reinforce" else "reward_to_go"]
        assert set(np.unique(returns)) == set(range(2 * (stem == "reinforce"), 6)) | {0.0}
    else:
        assert set(np.unique(seen["reward"])) == {1.0}


@pytest.mark.parametrize("stem", ON_POLICY)
def test_a_checkpoint_holds_all_that_was_learned(stem, tmp_path):
    train(stem, tmp_path / "run", env_id="BoxEpisodes-v0", learning_rate=0.01)
    kept = archive(tmp_path / "run")
    assert np.abs(kept["log_std/000"]).min() > 1e-4  # it began at 0
    parts = {name.partition("/")[0] for name in kept}
    assert parts >= {"policy_network", "optimizer", "log_std", "rng"}
    if stem not in REINFORCE[:2]:
        assert "value_network" in parts
    if stem == "reinforce_baseline":
        assert "value_optimizer" in parts


@pytest.mark.parametrize("anneal", [True, False])
@pytest.mark.parametrize("stem", ON_POLICY)
def test_the_learning_rate_falls_to_zero_or_stays(stem, anneal, tmp_path):
    config, _ = train(stem, tmp_path / "run", anneal=anneal)
    metrics = read_metrics(tmp_path / "run")
    rate = metrics["train/learning_rate"] / config.learning_rate
    known = np.isfinite(rate)
    expected = 1.0 - metrics["step"] / config.total_timesteps if anneal else np.ones(len(rate))
    assert known.sum() > 10
    np.testing.assert_allclose(rate[known], expected[known], atol=0.06)


@pytest.mark.parametrize("stem", REINFORCE)
def test_all_environments_begin_anew_together(stem, tmp_path, monkeypatch):
    watched = Watched(monkeypatch, load(stem))
    train(stem, tmp_path / "run")
    together = sum(len({*batch.alive.sum(axis=1)}) == 1 for batch, _ in watched.updates)
    updates = len(watched.updates)
    # The run may end amid episodes; who ends with the others is reset by the environment itself.
    assert 1 + updates - together <= watched.resets <= 2 + updates - together
    assert updates > 15


@pytest.mark.parametrize("stem", REINFORCE)
def test_one_episode_per_update_has_a_gradient_but_no_variance(stem, tmp_path):
    settings = {"env_id": "policy_gradients:TwoStates-v0", "num_envs": 1, "total_timesteps": 12}
    train(stem, tmp_path / "run", **settings)
    metrics = read_metrics(tmp_path / "run")
    assert np.isfinite(metrics["train/policy_loss"]).any()
    assert not [name for name in metrics if "variance" in name]


@pytest.mark.parametrize("stem", REINFORCE)
def test_nothing_is_learned_from_episodes_that_a_checkpoint_cuts(stem, tmp_path, monkeypatch):
    watched = Watched(monkeypatch, load(stem))
    # Every episode lasts six steps, and every 25 steps all are cut.
    settings = {"env_id": "known_values:Constant-v0", "num_envs": 2, "checkpoint_every": 50}
    train(stem, tmp_path / "run", total_timesteps=200, **settings)
    assert len(watched.updates) == 4 * (25 // 6)
    assert all((batch.alive.sum(axis=1) == 6).all() for batch, _ in watched.updates)


@pytest.mark.parametrize("stem", REINFORCE)
def test_checkpoints_that_leave_no_time_for_an_episode_are_refused(stem, tmp_path):
    settings = {"env_id": "known_values:Constant-v0", "checkpoint_every": 20, "num_envs": 4}
    with pytest.raises(UserError, match="--checkpoint-every 20: too few steps for all environ"):
        train(stem, tmp_path / "run", **settings)


@pytest.mark.parametrize("stem", ["a2c", "ppo_clip"])
def test_networks_see_normal_numbers_in_training_and_in_play(stem, tmp_path, monkeypatch):
    watched = Watched(monkeypatch, load(stem))
    settings = {"minibatch_size": 10} if stem == "ppo_clip" else {}
    settings |= {"normalize": True, "num_steps": 5, "total_timesteps": 800}
    settings |= {"env_id": "BoxEpisodes-v0"}
    config, result = train(stem, tmp_path / "run", **settings)
    if stem == "a2c":
        for batch, _ in watched.updates:
            assert np.abs(batch.state).max() <= 10.0  # 5000, if they were not normalized
            assert np.abs(batch.next_state).max() <= 10.0
        rewards = np.ravel([batch.reward for batch, _ in watched.updates[5:]])
        assert np.abs(rewards).max() < 5.0  # 7
        assert len(np.unique(rewards)) > 100  # the scale follows what is seen

    kept = archive(tmp_path / "run")
    [mean] = [value for name, value in kept.items() if name.endswith("observations_mean")]
    [variance] = [value for name, value in kept.items() if name.endswith("observations_variance")]
    [count] = [value for name, value in kept.items() if name.endswith("observations_count")]
    assert count == 800  # every state that was acted on, once
    states = np.random.default_rng(0).normal(size=(200, 2)) * [1000.0, 0.01] + [5000.0, 3.0]
    normal = np.clip((states - mean) / np.sqrt(variance), -10.0, 10.0)
    outputs = normal @ kept["policy_network/000"] + kept["policy_network/001"]
    expected = -1.0 + 6.0 * (np.clip(outputs, -1.0, 1.0) + 1.0) / 2.0
    assert np.std(expected) > 1e-3
    played = load(stem).load_policy(
        dataclasses.replace(config, run_dir="", resume=str(tmp_path / "run"))
    )
    for policy in (result.policy, played):
        np.testing.assert_allclose(policy(states.astype(np.float32)), expected, atol=1e-3)


# --- Scripts that learn from a replay buffer --------------------------------------------------


@pytest.mark.parametrize("stem", OFF_POLICY)
def test_targets_begin_as_copies(stem, tmp_path):
    train(stem, tmp_path / "run", learning_starts=400, hidden_sizes=(4,))  # nothing is learned
    kept = archive(tmp_path / "run")
    pairs = {"sac": {"critic": "target"}}.get(
        stem, {"actor": "target_actor", "critic": "target_critic"}
    )
    for online, target in pairs.items():
        names = [name for name in kept if name.startswith(f"{online}/")]
        assert len(names) >= 4
        for name in names:
            same = kept[name.replace(online, target, 1)]
            np.testing.assert_array_equal(kept[name], same, err_msg=name)


@pytest.mark.parametrize("stem", ["ddpg", "td3"])
def test_actors_begin_in_the_middle_of_the_range(stem):
    """An actor that begins at a bound, where tanh is flat, may stay there."""
    actor = load(stem).build_actor(Box(-9.0, 9.0, (17,), np.float32), 6, (256, 256))
    states = np.random.default_rng(0).uniform(-9.0, 9.0, (100, 17)).astype(np.float32)
    actions = np.abs(actor(states))
    assert 0.0 < actions.mean() < actions.max() < 0.3


@pytest.mark.parametrize("stem", OFF_POLICY)
def test_the_buffer_knows_which_episodes_ended_and_where(stem, tmp_path):
    train(stem, tmp_path / "run")
    kept = archive(tmp_path / "run")
    terminated = kept["replay/terminated"].ravel()[:400]
    assert 400 / 5 - 4 <= terminated.sum() <= 400 / 2
    assert set(np.unique(kept["replay/reward"])) <= {0.0, 7.0}
    assert (kept["replay/next_state"].reshape(-1, 2)[:400, 0] > 0).all()  # 0 begins an episode
    assert (kept["replay/state"].reshape(-1, 2)[:400, 0] == 0).any()


@pytest.mark.parametrize("stem", ["ddpg", "td3"])
def test_noise_wanders_within_an_episode_and_begins_anew_with_the_next(stem, tmp_path):
    settings = {"noise": "ou", "noise_theta": 0.0, "noise_dt": 1.0, "learning_starts": 0}
    settings |= {"env_id": "continuous_control:Constant-v1", "train_frequency": 1000}
    ended = 6 * 4  # episodes of six steps in four environments
    train(stem, tmp_path / "amid", total_timesteps=ended - 4, **settings)
    state = archive(tmp_path / "amid")["noise/state"]
    assert 1.0 < np.sqrt(np.mean(state**2)) < 4.0  # √5, the size of five steps without a pull
    train(stem, tmp_path / "ended", total_timesteps=ended, **settings)
    assert not archive(tmp_path / "ended")["noise/state"].any()


@pytest.mark.parametrize("stem", ["td3", "sac"])
def test_updates_get_fresh_standard_normal_noise(stem, tmp_path, monkeypatch):
    script, seen = load(stem), []
    compiled = script.compiled

    def compile_and_watch(function, **kwargs):
        inner = compiled(function, **kwargs)

        def call(batches, noise):
            seen.append(noise)
            return inner(batches, noise)

        return call

    monkeypatch.setattr(script, "compiled", compile_and_watch)
    train(stem, tmp_path / "run")
    noise = np.concatenate([one.ravel() for one in seen])
    assert len(np.unique(noise)) > 0.99 * len(noise) > 500
    assert np.mean(noise) == pytest.approx(0.0, abs=0.15)
    assert np.std(noise) == pytest.approx(1.0, abs=0.1)
