"""TD3: its three ideas in one update after the other, against formulas in NumPy."""

from chapter11_policy_gradient import td3
from chapter11_policy_gradient.td3 import Config, build_actor, build_critic, build_train_round
from common import checkpoint
from common.compiled import compiled
from common.errors import UserError
from common.evaluation import episode_returns
from common.metrics import read_metrics
from common.replay import Batch

import continuous_control
import keras
import numpy as np
import pytest
from continuous_control import assert_weights, network, numeric_gradient, q_value, towers
from gymnasium.spaces import Box

pytestmark = pytest.mark.no_xla

STATES, B, A = Box(-1.0, 1.0, (3,), np.float32), 7, 2
ACTOR_RATE, CRITIC_RATE, ROUNDS, D = 0.3, 0.2, 2, 3
# Noise as wide as this is often cut, by c and by the bounds of the actions.
CONFIG = Config(gamma=0.9, polyak=0.2, smoothing_std=0.6, smoothing_clip=0.4, policy_delay=D)


QUICK = {
    "total_timesteps": 1600,
    "num_envs": 2,
    "gamma": continuous_control.GAMMA,
    "learning_rate": 5e-3,
    "polyak": 0.1,
    "hidden_sizes": (16,),
    "batch_size": 32,
    "buffer_size": 2000,
    "learning_starts": 100,
    "train_frequency": 20,
    "gradient_steps": 20,
}


def some_rounds(rounds):
    """Batches and noise, both [rounds, D, B, ...]."""
    rng, shape = np.random.default_rng(5), (rounds, D, B)
    batches = Batch(
        state=rng.normal(size=(*shape, 3)).astype(np.float32),
        action=rng.uniform(-1, 1, size=(*shape, A)).astype(np.float32),
        reward=rng.normal(size=shape).astype(np.float32),
        next_state=2.0 * rng.normal(size=(*shape, 3)).astype(np.float32),
        terminated=np.tile(np.array([1, 0, 0, 1, 0, 0, 0], np.float32), (rounds, D, 1)),
    )
    return batches, rng.standard_normal((*shape, A), np.float32)


def small_agent(actor_rate=ACTOR_RATE, critic_rate=CRITIC_RATE, **how):
    """Four different networks, and what trains them in rounds by plain gradient descent."""
    keras.utils.set_random_seed(1)
    actor, target_actor = (build_actor(STATES, A, (5,)) for _ in range(2))
    critic, target_critic = (build_critic(STATES, A, (5,)) for _ in range(2))
    networks = actor, critic, target_actor, target_critic
    optimizers = keras.optimizers.SGD(actor_rate), keras.optimizers.SGD(critic_rate)
    train_round = build_train_round(*networks, *optimizers, CONFIG)
    return networks, compiled(train_round, loop=True, **({"xla": False} | how))


def action_of(state, weights):
    return np.tanh(network(state, weights))


def formulas(networks, batches, noise, *, critics=2, std=0.6, clip=0.4, delay=D):
    """Equations (2) to (6) in float64; the ideas of TD3 can be switched off.

    Returns the mean metrics and the weights after the last update.
    """
    *batches, noise = (x.reshape(-1, *x.shape[2:]) for x in (*batches, noise))  # [rounds * D, ...]
    actor, critic, target_actor, target_critic = networks
    mu, mu_target = towers(actor, 1)[0][0], towers(target_actor, 1)[0][0]
    q, q_target = towers(critic, 2)[0], towers(target_critic, 2)[0]
    metrics = {"train/value_loss": [], "train/q_value": [], "train/policy_loss": []}
    for k in range(len(noise)):
        state, action, reward, next_state, terminated = (x[k].astype(float) for x in batches)
        blur = np.clip(std * noise[k], -clip, clip)
        next_action = np.clip(action_of(next_state, mu_target) + blur, -1.0, 1.0)
        next_q = np.min([q_value(next_state, next_action, w) for w in q_target[:critics]], axis=0)
        td_target = reward + 0.9 * (1.0 - terminated) * next_q

        def value_loss(state=state, action=action, td_target=td_target):
            return sum(np.mean((td_target - q_value(state, action, w)) ** 2) for w in q)

        def policy_loss(state=state):
            return -np.mean(q_value(state, action_of(state, mu), q[0]))

        metrics["train/value_loss"].append(value_loss())
        metrics["train/q_value"].append(np.mean([q_value(state, action, w) for w in q]))
        every = [weights for tower in q for weights in tower]
        for weights, gradient in zip(every, numeric_gradient(value_loss, every), strict=True):
            weights -= CRITIC_RATE * gradient
        if (k + 1) % delay == 0:
            metrics["train/policy_loss"].append(policy_loss())
            for weights, gradient in zip(mu, numeric_gradient(policy_loss, mu), strict=True):
                weights -= ACTOR_RATE * gradient
            for source, target in zip([mu, *q], [mu_target, *q_target], strict=True):
                for weights, following in zip(source, target, strict=True):
                    following += 0.2 * (weights - following)
    return {name: np.mean(values) for name, values in metrics.items()}, [
        mu,
        *q,
        mu_target,
        *q_target,
    ]


def variables_of(networks):
    actor, critic, target_actor, target_critic = networks
    pairs = (actor, 1), (critic, 2), (target_actor, 1), (target_critic, 2)
    return [tower for model, count in pairs for tower in towers(model, count)[1]]


@pytest.mark.parametrize("how", [{"xla": True}, {"xla": False}, {"xla": False, "unroll": 4}])
def test_updates_follow_the_formulas(how):
    networks, train_rounds = small_agent(**how)
    batches, noise = some_rounds(ROUNDS)
    metrics, weights = formulas(networks, batches, noise)
    results = train_rounds(batches, noise)
    assert results == {name: pytest.approx(value, rel=1e-4) for name, value in metrics.items()}
    for variables, expected in zip(variables_of(networks), weights, strict=True):
        assert_weights(variables, expected, atol=1e-5)


OFF = {
    "one critic": {"critics": 1},
    "no smoothing": {"std": 0.0},
    "noise that is not cut": {"clip": 100.0},
    "no delay": {"delay": 1},
}


@pytest.mark.parametrize("idea", OFF)
def test_the_formulas_see_each_idea(idea):
    """Without this the test above might pass whatever the script does."""
    networks, _ = small_agent()
    batches, noise = some_rounds(ROUNDS)
    _, weights = formulas(networks, batches, noise)
    _, without = formulas(networks, batches, noise, **OFF[idea])
    apart = [np.abs(a - b).max() for a, b in zip(weights[1], without[1], strict=True)]
    assert max(apart) > 1e-3


def test_a_round_moves_the_critics_d_times_and_actor_and_targets_once():
    networks, _ = small_agent()
    optimizers = keras.optimizers.SGD(ACTOR_RATE), keras.optimizers.SGD(CRITIC_RATE)
    train_round = build_train_round(*networks, *optimizers, CONFIG)
    train_rounds = compiled(train_round, loop=True, xla=False)
    for rounds in (1, 2, 3):
        train_rounds(*some_rounds(1))
        assert [int(optimizer.iterations) for optimizer in optimizers] == [rounds, D * rounds]


def test_critics_begin_and_stay_different():
    (_, critic, *_), train_rounds = small_agent()
    train_rounds(*some_rounds(1))
    first, second = towers(critic, 2)[0]
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(first[::2], second[::2], strict=True))


@pytest.mark.parametrize("still", ["actor", "critic"])
def test_each_update_leaves_the_other_network_untouched(still):
    rates = {"actor": ACTOR_RATE, "critic": CRITIC_RATE} | {still: 0.0}
    (actor, critic, *_), train_rounds = small_agent(rates["actor"], rates["critic"])
    before = {"actor": actor.get_weights(), "critic": critic.get_weights()}
    train_rounds(*some_rounds(1))
    for name, model in (("actor", actor), ("critic", critic)):
        same = [
            np.array_equal(a, b) for a, b in zip(before[name], model.get_weights(), strict=True)
        ]
        assert all(same) if name == still else not all(same), name


@pytest.mark.parametrize(
    ("width", "how"), [(127, {"xla": True}), (128, {"xla": False, "unroll": 4})]
)
def test_a_run_compiles_by_its_width_and_every_update_gets_its_own_batch(
    tmp_path, monkeypatch, width, how
):
    given, seen = [], []

    def compile_and_watch(function, **kwargs):
        given.append(kwargs)
        inner = compiled(function, **kwargs)

        def call(batches, noise):
            seen.append(batches)
            return inner(batches, noise)

        return call

    monkeypatch.setattr(td3, "compiled", compile_and_watch)
    settings = QUICK | {"total_timesteps": 200, "hidden_sizes": (8, width), "gradient_steps": 4}
    td3.train(Config(env_id="Pendulum-v1", run_dir=str(tmp_path), **settings))
    assert [{k: v for k, v in kwargs.items() if k in ("xla", "unroll")} for kwargs in given] == [
        how
    ]
    assert len(seen) == 5
    for batches in seen:
        assert batches.state.shape == (2, 2, 32, 3)  # [rounds, d, B, ...]
        assert len(np.unique(batches.state.reshape(4, -1), axis=0)) == 4


# --- Whole runs where the answer is known -----------------------------------------------------


@pytest.mark.parametrize(("gradient_steps", "delay"), [(1, 3), (4, 3), (3, 1)])
def test_updates_that_do_not_fill_a_round_wait(tmp_path, gradient_steps, delay):
    settings = QUICK | {"total_timesteps": 300, "gradient_steps": gradient_steps}
    env_id = "continuous_control:Constant-v1"
    td3.train(Config(env_id=env_id, policy_delay=delay, run_dir=str(tmp_path), **settings))
    updates = 10 * gradient_steps  # 10 trainings: after steps 120, 140, ..., 300
    with np.load(checkpoint.latest(tmp_path)) as saved:
        assert saved["actor_optimizer/000"] == updates // delay
        assert saved["critic_optimizer/000"] == updates // delay * delay
        assert saved["due/array"] == updates % delay


def test_a_time_limit_does_not_end_the_mdp(tmp_path):
    env_id = "continuous_control:Constant-v1"
    td3.train(Config(env_id=env_id, run_dir=str(tmp_path), **QUICK))
    q_values = read_metrics(tmp_path)["train/q_value"]
    assert q_values[-1] == pytest.approx(continuous_control.VALUE, abs=0.1)  # 10, not 7.4


@pytest.mark.xla
def test_finds_the_gain_of_a_linear_quadratic_regulator(tmp_path):
    settings = QUICK | {
        "total_timesteps": 10_000,
        "gamma": continuous_control.GAIN_GAMMA,
        "hidden_sizes": (64, 64),
        "learning_rate": 1e-3,
        "polyak": 0.04,
        "batch_size": 128,
        "buffer_size": 10_000,
        "learning_starts": 500,
    }
    config = Config(
        env_id="continuous_control:Regulator-v0",
        noise_std=0.5,
        smoothing_std=0.05,  # Q bends within the width of the noise, which would change K
        run_dir=str(tmp_path),
        **settings,
    )
    result = td3.train(config)
    assert continuous_control.gain(result.policy) == pytest.approx(continuous_control.GAIN, rel=0.1)


def test_resuming_is_exact(tmp_path):
    # Where it goes on, after 320 steps, 44 updates were due, of which 2 wait for a round of three.
    settings = QUICK | {"total_timesteps": 480, "checkpoint_every": 160, "gradient_steps": 4}
    settings |= {"policy_delay": 3, "hidden_sizes": (128, 128)}  # rounds side by side
    config = Config(env_id="Pendulum-v1", noise="ou", **settings)
    files = continuous_control.assert_resumes_exactly(td3, config, tmp_path)
    assert {
        "due/array",
        "noise/state",
        "rng/state",
        "target_actor/000",
        "critic_optimizer/000",
    } <= files


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"env_id": "CartPole-v1"}, r"actions are discrete .*; use dqn.py or ppo_clip.py"),
        ({"env_id": "continuous_control:Unbounded-v0"}, r"no finite bounds .*; use ppo_clip.py"),
        ({"policy_delay": 0}, "--policy-delay 0: must be at least 1"),
        ({"smoothing_std": -1.0}, "--smoothing-std -1.0: must be 0 or more"),
        ({"smoothing_clip": -1.0}, "--smoothing-clip -1.0: must be 0 or more"),
    ],
)
def test_bad_flags_are_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        td3.train(Config(run_dir=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.xla
def test_swings_a_pendulum_up(tmp_path):
    config = Config(
        total_timesteps=6_000,
        hidden_sizes=(64, 64),
        learning_rate=2e-3,
        batch_size=128,
        learning_starts=500,
        run_dir=str(tmp_path),
    )
    result = td3.train(config)
    # A random policy earns -1230, this one -214 to -224 (seeds 0, 1, 2, 5, 6, 7).
    assert np.mean(episode_returns(result.policy, "Pendulum-v1", 25, seed=0)) >= -300
