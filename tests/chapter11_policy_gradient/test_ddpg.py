"""DDPG: one update against formulas in NumPy, and runs whose answers are known."""

from chapter11_policy_gradient import ddpg
from chapter11_policy_gradient.ddpg import (
    Config,
    build_actor,
    build_critic,
    build_train_step,
    explore,
)
from common.checkpoint import latest, restore_latest
from common.compiled import compiled
from common.errors import UserError
from common.evaluation import episode_returns
from common.metrics import read_metrics
from common.replay import Batch

import continuous_control
import keras
import known_values
import numpy as np
import pytest
from continuous_control import assert_weights, network, numeric_gradient, q_value, towers
from gymnasium.spaces import Box

pytestmark = pytest.mark.no_xla

STATES, B, A = Box(-1.0, 1.0, (3,), np.float32), 7, 2
CONFIG = Config(gamma=0.9, polyak=0.2)
ACTOR_RATE, CRITIC_RATE = 0.3, 0.2


def some_batches(count):
    rng = np.random.default_rng(5)
    return Batch(
        state=rng.normal(size=(count, B, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, size=(count, B, A)).astype(np.float32),
        reward=rng.normal(size=(count, B)).astype(np.float32),
        next_state=rng.normal(size=(count, B, 3)).astype(np.float32),
        terminated=np.tile(np.array([1, 0, 0, 1, 0, 0, 0], np.float32), (count, 1)),
    )


def small_agent(actor_rate=ACTOR_RATE, critic_rate=CRITIC_RATE):
    """Four different networks, and what makes one update by plain gradient descent."""
    keras.utils.set_random_seed(1)
    actor, target_actor = (build_actor(STATES, A, (5,)) for _ in range(2))
    critic, target_critic = (build_critic(STATES, A, (5,)) for _ in range(2))
    networks = actor, critic, target_actor, target_critic
    optimizers = keras.optimizers.SGD(actor_rate), keras.optimizers.SGD(critic_rate)
    train_step = build_train_step(*networks, *optimizers, CONFIG)
    return networks, compiled(train_step, loop=True, xla=False)


def action_of(state, weights):
    return np.tanh(network(state, weights))


def test_two_updates_follow_the_formulas():
    (actor, critic, target_actor, target_critic), train_steps = small_agent()
    batches = some_batches(2)
    [[mu], mu_variables], [[mu_target], mu_target_variables] = (
        towers(actor, 1),
        towers(target_actor, 1),
    )
    [[q], q_variables], [[q_target], q_target_variables] = (
        towers(critic, 1),
        towers(target_critic, 1),
    )
    expected = {"train/value_loss": [], "train/policy_loss": [], "train/q_value": []}
    for k in range(2):
        state, action, reward, next_state, terminated = (x[k].astype(float) for x in batches)
        next_q = q_value(next_state, action_of(next_state, mu_target), q_target)
        td_target = reward + 0.9 * (1.0 - terminated) * next_q

        def value_loss(state=state, action=action, td_target=td_target):
            return np.mean((td_target - q_value(state, action, q)) ** 2)

        def policy_loss(state=state):
            return -np.mean(q_value(state, action_of(state, mu), q))

        expected["train/value_loss"].append(value_loss())
        expected["train/q_value"].append(q_value(state, action, q).mean())
        for weights, gradient in zip(q, numeric_gradient(value_loss, q), strict=True):
            weights -= CRITIC_RATE * gradient
        expected["train/policy_loss"].append(policy_loss())  # with the critic as it is now
        for weights, gradient in zip(mu, numeric_gradient(policy_loss, mu), strict=True):
            weights -= ACTOR_RATE * gradient
        for source, target in [*zip(q, q_target, strict=True), *zip(mu, mu_target, strict=True)]:
            target += 0.2 * (source - target)

    results = train_steps(batches)
    for name, values in expected.items():
        assert results[name] == pytest.approx(np.mean(values), rel=1e-4), name
    assert_weights(q_variables[0], q)
    assert_weights(mu_variables[0], mu)
    assert_weights(q_target_variables[0], q_target)
    assert_weights(mu_target_variables[0], mu_target)


@pytest.mark.parametrize("still", ["actor", "critic"])
def test_each_update_leaves_the_other_network_untouched(still):
    rates = {"actor": ACTOR_RATE, "critic": CRITIC_RATE} | {still: 0.0}
    (actor, critic, *_), train_steps = small_agent(rates["actor"], rates["critic"])
    before = {"actor": actor.get_weights(), "critic": critic.get_weights()}
    train_steps(some_batches(3))
    for name, model in (("actor", actor), ("critic", critic)):
        same = [
            np.array_equal(a, b) for a, b in zip(before[name], model.get_weights(), strict=True)
        ]
        assert all(same) if name == still else not any(same), name


def test_actions_with_noise_stay_within_the_bounds():
    action, noise = np.array([[0.5, -0.9], [0.0, 1.0]]), np.array([[0.2, -0.3], [-0.1, 0.5]])
    np.testing.assert_allclose(explore(action, noise), [[0.7, -1.0], [-0.1, 1.0]])


@pytest.mark.parametrize(
    "space",
    [STATES, Box(0, 255, (64, 64, 3), np.uint8)],
    ids=["Box", "image"],
)
def test_networks_for_every_kind_of_observation(space):
    actor, critic = build_actor(space, 2, (7,)), build_critic(space, 2, (7,))
    states = np.stack([space.sample() for _ in range(4)])
    action = np.asarray(actor(states))
    assert action.shape == (4, 2)
    assert np.abs(action).max() <= 1.0
    assert tuple(critic([states, action]).shape) == (4,)


# --- Whole runs where the answer is known -----------------------------------------------------

QUICK = {
    "total_timesteps": 1600,
    "num_envs": 2,
    "gamma": continuous_control.GAMMA,
    "learning_rate": 5e-3,
    "polyak": 0.05,
    "hidden_sizes": (16,),
    "batch_size": 32,
    "buffer_size": 2000,
    "learning_starts": 100,
    "train_frequency": 20,
    "gradient_steps": 20,
}


@pytest.mark.parametrize("env_id", ["continuous_control:Constant-v1", "known_values:OnwardBox-v0"])
def test_a_time_limit_does_not_end_the_mdp(tmp_path, env_id):
    result = ddpg.train(Config(env_id=env_id, run_dir=str(tmp_path), **QUICK))
    assert result.total_timesteps == 1600
    if "Constant" in env_id:
        q_values = read_metrics(tmp_path)["train/q_value"]
        assert q_values[-1] == pytest.approx(continuous_control.VALUE, abs=0.1)  # 10, not 7.4
    else:
        critic = build_critic(Box(0.0, 1.0, (2,), np.float32), 3, (16,))
        restore_latest(str(tmp_path), critic=critic)
        values = np.asarray(critic([np.eye(2, dtype=np.float32), np.zeros((2, 3), np.float32)]))
        assert values[1] == pytest.approx(known_values.VALUE, abs=0.15)
        # Had the next episode's beginning been taken for the successor, both would be less.
        assert values[0] == pytest.approx(known_values.BEGINNING, abs=0.4)


REGULATOR = QUICK | {
    "env_id": "continuous_control:Regulator-v0",
    "total_timesteps": 10_000,
    "gamma": continuous_control.GAIN_GAMMA,
    "hidden_sizes": (64, 64),
    "learning_rate": 1e-3,
    "polyak": 0.02,
    "batch_size": 128,
    "buffer_size": 10_000,
    "learning_starts": 500,
}


@pytest.mark.xla
def test_finds_the_gain_of_a_linear_quadratic_regulator(tmp_path):
    settings = REGULATOR | {"polyak": 0.05, "learning_rate": 5e-4, "batch_size": 256}
    settings |= {"total_timesteps": 20_000, "noise_std": 0.5, "run_dir": str(tmp_path)}
    result = ddpg.train(Config(**settings))
    assert continuous_control.gain(result.policy) == pytest.approx(continuous_control.GAIN, rel=0.1)


def test_first_actions_are_drawn_from_the_whole_range(tmp_path):
    settings = QUICK | {"learning_starts": 10_000, "num_envs": 4}
    ddpg.train(Config(env_id="continuous_control:Constant-v1", run_dir=str(tmp_path), **settings))
    with np.load(latest(tmp_path)) as archive:
        action = archive["replay/action"]
    assert action.shape == (1600, 2)
    assert np.abs(action.mean(axis=0)).max() < 4 / np.sqrt(3 * 1600)
    assert np.abs(action).max(axis=0).min() > 0.98
    assert np.abs((action[:, 0] * action[:, 1]).mean()) < 4 / (3 * np.sqrt(1600))


def test_noise_has_the_size_that_was_asked_for(tmp_path):
    settings = QUICK | {"learning_starts": 0, "train_frequency": 2000, "num_envs": 4}
    config = Config(env_id="continuous_control:Constant-v1", run_dir=str(tmp_path), **settings)
    ddpg.train(config)  # the actor stays as it began
    with np.load(latest(tmp_path)) as archive:
        action = archive["replay/action"]
    assert (np.abs(action.mean(axis=0)) < 0.6).all()  # noise is not cut at the bounds
    assert action.std(axis=0) == pytest.approx([0.1, 0.1], rel=0.1)


def test_resuming_is_exact_with_noise_that_has_a_memory(tmp_path):
    settings = QUICK | {"total_timesteps": 480, "checkpoint_every": 160, "noise": "ou"}
    config = Config(env_id="Pendulum-v1", **settings)
    files = continuous_control.assert_resumes_exactly(ddpg, config, tmp_path)
    assert {"noise/state", "rng/state", "replay/action", "target_critic/000"} <= files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "CartPole-v1"}, r"actions are discrete .*; use dqn.py or ppo_clip.py"),
        ({"env_id": "continuous_control:Choices-v0"}, "actions are discrete"),
        ({"env_id": "continuous_control:Unbounded-v0"}, r"no finite bounds .*; use ppo_clip.py"),
        ({"env_id": "continuous_control:Flat-v0"}, "has no width"),
        ({"noise": "pink"}, "--noise pink: must be one of gaussian, ou"),
        ({"noise_std": -0.1}, "--noise-std -0.1: must be 0 or more"),
        ({"polyak": 1.5}, "--polyak 1.5: must be between 0 and 1"),
        ({"noise_dt": 0.0}, "--noise-dt 0.0: must be greater than 0"),
    ],
)
def test_bad_flags_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        ddpg.train(Config(run_dir=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.xla
def test_swings_a_pendulum_up(tmp_path):
    config = Config(
        total_timesteps=5_000,
        hidden_sizes=(64, 64),
        batch_size=128,
        learning_starts=500,
        run_dir=str(tmp_path),
    )
    result = ddpg.train(config)
    # A random policy earns -1230.
    assert np.mean(episode_returns(result.policy, "Pendulum-v1", 25, seed=0)) >= -600
