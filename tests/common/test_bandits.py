"""Bandits side by side and one at a time: their arms, their luck, their history, their errors."""

import json
import sys
import warnings

from common import checkpoint
from common.environments import bandits as module
from common.environments.bandits import History, final_measure, lai_robbins, make_bandits
from common.errors import UserError

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.utils.env_checker import check_env

IDS = (module.TESTBED, module.GAUSSIAN, module.BERNOULLI)
PREFIX = "common.environments.bandits:"


def pull_at_random(bandits, steps, seed=0):
    """Arms and rewards, [steps, N] each."""
    rng = np.random.default_rng(seed)
    arms = rng.integers(bandits.num_arms, size=(steps, bandits.num_runs))
    return arms, np.array([bandits.pull(arm) for arm in arms])


# --- Arms -------------------------------------------------------------------------------------


def test_the_testbed_has_means_and_noise_of_variance_one():
    bandits = make_bandits(module.TESTBED, 4000, seed=0)
    assert bandits.means.shape == (4000, 10)
    assert bandits.means.mean() == pytest.approx(0.0, abs=4 / np.sqrt(40_000))
    assert bandits.means.std() == pytest.approx(1.0, abs=4 / np.sqrt(80_000))
    # The expected maximum of ten normal numbers.
    assert bandits.means.max(axis=1).mean() == pytest.approx(1.53875, abs=4 * 0.587 / np.sqrt(4000))
    arms, rewards = pull_at_random(bandits, 10)
    noise = rewards - bandits.means[np.arange(4000), arms]
    assert noise.mean() == pytest.approx(0.0, abs=4 / np.sqrt(40_000))
    assert noise.std() == pytest.approx(1.0, abs=4 / np.sqrt(80_000))
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 4 / np.sqrt(4000)
    assert abs(np.corrcoef(noise[0], bandits.means[:, 0])[0, 1]) < 4 / np.sqrt(4000)
    assert bandits.lai_robbins is None


def test_gaussian_arms_have_the_given_means_and_sigma():
    bandits = make_bandits(module.GAUSSIAN, 5000, 0, means=(-3.0, 0.0, 1e3), sigma=2.0)
    np.testing.assert_array_equal(bandits.means, np.tile([-3.0, 0.0, 1e3], (5000, 1)))
    for arm, mean in enumerate((-3.0, 0.0, 1e3)):
        reward = bandits.pull(np.full(5000, arm))
        assert reward.mean() == pytest.approx(mean, abs=4 * 2 / np.sqrt(5000))
        assert reward.std() == pytest.approx(2.0, abs=4 * 2 / np.sqrt(10_000))


def test_bernoulli_arms_pay_one_with_the_given_probabilities():
    bandits = make_bandits(module.BERNOULLI, 5000, 0, means=(0.0, 0.25, 1.0))
    for arm, mean in enumerate((0.0, 0.25, 1.0)):
        reward = bandits.pull(np.full(5000, arm))
        assert set(reward) <= {0.0, 1.0}
        assert reward.mean() == pytest.approx(mean, abs=4 * np.sqrt(mean * (1 - mean) / 5000))


def test_the_seed_decides_the_arms_and_the_luck_whatever_is_pulled():
    for env_id in IDS:
        one, same, other = (make_bandits(env_id, 50, seed) for seed in (1, 1, 2))
        np.testing.assert_array_equal(one.means, same.means)
        rewards = [pull_at_random(bandits, 20)[1] for bandits in (one, same, other)]
        np.testing.assert_array_equal(rewards[0], rewards[1])
        assert (rewards[0] != rewards[2]).any()
    # Whoever pulls another arm meets the same noise.
    one, two = (make_bandits(module.GAUSSIAN, 50, 0, means=(0.0, 8.0)) for _ in range(2))
    for _ in range(3):
        low, high = one.pull(np.zeros(50, int)), two.pull(np.ones(50, int))
        np.testing.assert_allclose(high - low, 8.0, atol=1e-12)


@pytest.mark.parametrize("env_id", [*IDS, PREFIX + module.BERNOULLI])
def test_the_state_goes_through_a_checkpoint(tmp_path, env_id):
    bandits = make_bandits(env_id, 8, seed=3)
    pull_at_random(bandits, 7)
    path = checkpoint.save(tmp_path, 7, {"bandits": bandits}, {})
    _, expected = pull_at_random(bandits, 9, seed=1)
    fresh = make_bandits(env_id, 8, seed=3)
    checkpoint.Checkpoint(path).restore({"bandits": fresh})
    np.testing.assert_array_equal(fresh.means, bandits.means)
    np.testing.assert_array_equal(pull_at_random(fresh, 9, seed=1)[1], expected)


# --- Lai and Robbins --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("means", "sigma", "constant"),
    [
        ([0.8, 0.2], None, 0.7213),
        ([0.2, 0.8], None, 0.7213),
        ([0.9, 0.8], None, 2.2521),
        ([0.9, 0.8, 0.9], None, 2.2521),
        ([0.5, 0.5], None, 0.0),
        ([1.0, 0.5], None, 0.0),  # one failure tells that an arm is not the certain one
        ([0.5, 0.0], None, 0.5 / np.log(2.0)),
        ([1.0, 0.0, -1.0], 1.0, 2.0 / 1.0 + 2.0 / 2.0),  # Σ 2 σ² / gap
        ([1.0, 0.0, -1.0], 10.0, 300.0),
        ([1.0, 0.0], 0.0, 0.0),
        ([2.0, 1.0], 1e160, np.inf),  # 2e320 is more than a number can be
        ([2.0, 1.0], 1e100, 2e200),
        ([2e200, 1e200], 1e200, 2e200),
    ],
)
def test_lai_robbins(means, sigma, constant):
    assert lai_robbins(np.array(means), sigma) == pytest.approx(constant, rel=1e-9, abs=5e-5)


def test_lai_robbins_of_tiny_rewards():
    found = lai_robbins(np.array([1e-300, 2e-300]), 1e-300)
    assert found == pytest.approx(2e-300, rel=1e-12, abs=0.0)


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1e160, 1e250])
@pytest.mark.parametrize("script", ["epsilon_greedy", "softmax", "ucb", "thompson_sampling"])
def test_rewards_of_any_scale(tmp_path, command_line, script, size):
    flags = f"--env-id {module.GAUSSIAN} --means {size} {2 * size / 3} {size / 2} --sigma {size}"
    flags += f" --num-steps 20 --num-runs 10 --run-dir {tmp_path / 'run'}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        status, _, err = command_line(f"bandit_{script}", *flags.split())
    assert status == 0, err
    text = (tmp_path / "run" / "evaluation.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert 0.0 < found["regret"] <= 20 * size
    assert found["regret_error"] > 0.0
    assert found["lai_robbins"] == pytest.approx(10 * size, rel=1e-9, abs=0.0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--means 1e308 -1e308", "--means 1e+308 -1e+308: must be from -1e+250 to 1e+250"),
        ("--sigma 1e251", "--sigma 1e+251: must be at most 1e+250"),
    ],
)
def test_rewards_whose_sums_overflow_are_refused(tmp_path, command_line, flags, message):
    flags = f"--env-id {module.GAUSSIAN} {flags} --run-dir {tmp_path / 'run'}"
    status, _, err = command_line("bandit_ucb", *flags.split())
    assert status == 2
    assert err.startswith(f"error: {message}")
    assert not (tmp_path / "run").exists()


def test_bandits_know_their_constant():
    assert make_bandits(module.BERNOULLI, 3, 0).lai_robbins == pytest.approx(0.7213, abs=5e-5)
    gaussian = make_bandits(module.GAUSSIAN, 3, 0, means=(1.0, 0.0), sigma=3.0)
    assert gaussian.lai_robbins == pytest.approx(18.0)


# --- Gymnasium environments -------------------------------------------------------------------


@pytest.mark.parametrize("env_id", IDS)
def test_gymnasiums_checker_accepts_the_environments(env_id):
    env = gym.make(env_id, disable_env_checker=True)
    check_env(env.unwrapped, skip_render_check=True)
    assert env.observation_space == Discrete(1)
    assert (
        env.action_space.n == {module.TESTBED: 10, module.GAUSSIAN: 3, module.BERNOULLI: 2}[env_id]
    )


def test_an_episode_is_one_pull():
    env = gym.make(module.BERNOULLI, means=(1.0, 0.0))
    for action, expected in ((0, 1.0), (1, 0.0)):
        assert env.reset(seed=0)[0] == 0
        assert env.step(action)[:4] == (0, expected, True, False)
    env = gym.make(module.GAUSSIAN, means=(5.0, -5.0), sigma=0.0)
    env.reset(seed=0)
    assert env.step(1)[1] == -5.0
    env = gym.make(module.GAUSSIAN, means=(5.0, -5.0), sigma=2.0)
    env.reset(seed=0)
    rewards = [env.unwrapped.step(0)[1] for _ in range(2000)]
    assert np.mean(rewards) == pytest.approx(5.0, abs=4 * 2 / np.sqrt(2000))
    assert np.std(rewards) == pytest.approx(2.0, abs=4 * 2 / np.sqrt(4000))


def test_the_testbed_keeps_its_arms_until_it_is_seeded_anew():
    env = gym.make(module.TESTBED).unwrapped
    env.reset(seed=1)
    first = env.means
    env.reset()
    np.testing.assert_array_equal(env.means, first)
    env.reset(seed=2)
    assert (env.means != first).all()
    env.reset(seed=1)
    np.testing.assert_array_equal(env.means, first)
    unseeded = gym.make(module.TESTBED).unwrapped
    unseeded.reset()
    assert np.ptp(unseeded.means) > 0.1


# --- A bandit of one's own --------------------------------------------------------------------


class Own(gym.Env):
    """Three arms that pay 0, 1 and 2, plus what has piled up in the environment; says no means."""

    def __init__(self, arms=3, length=4):
        self.observation_space, self.action_space = Discrete(1), Discrete(arms)
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.pile = 0.0
        self.left = self.length
        return 0, {}

    def step(self, action):
        self.left -= 1
        self.pile += 0.01 * self.np_random.random()  # hidden, and never the same
        return 0, float(action) + self.pile, self.left == 0, False, {}


class Told(Own):
    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.means = np.random.default_rng(seed).normal(size=self.action_space.n)
        return super().reset(seed=seed)


class Unseeded(Own):
    luck = np.random.default_rng(0)

    def step(self, action):
        return 0, float(self.luck.random()), True, False, {}


@pytest.fixture
def own():
    """Registers environments under an id; takes them out again."""
    names = []

    def register(factory, **kwargs):
        name = f"Own{len(names)}-v0"
        gym.register(name, factory, kwargs=kwargs)
        names.append(name)
        return name

    yield register
    for name in names:
        del gym.registry[name]


def test_a_bandit_of_ones_own_without_means(own, capsys):
    name = own(Own)
    bandits = make_bandits(name, 5, seed=0)
    assert (bandits.num_runs, bandits.num_arms, bandits.means) == (5, 3, None)
    assert capsys.readouterr().err == (
        f"{name} has no attribute `means`: regret and best arm are unknown\n"
    )
    reward = bandits.pull(np.array([0, 1, 2, 1, 0]))
    assert ((reward - [0, 1, 2, 1, 0]) > 0).all()
    assert len(set(reward - [0, 1, 2, 1, 0])) == 5  # every copy has luck of its own


def test_a_bandit_of_ones_own_tells_its_means(own):
    bandits = make_bandits(own(Told), 5, seed=0)
    assert bandits.means.shape == (5, 3)
    assert len(np.unique(bandits.means)) == 15


def test_a_bandit_of_ones_own_goes_on_exactly(own, capsys):
    """Its state is hidden, grows with every pull, and outlives the episodes."""
    name = own(Told)
    bandits = make_bandits(name, 6, seed=0)
    pull_at_random(bandits, 10)
    state = {key: value.copy() for key, value in bandits.get_state().items()}
    assert state["pulled"].shape == (10, 6)
    means = bandits.means
    _, expected = pull_at_random(bandits, 10, seed=1)
    fresh = make_bandits(name, 6, seed=0)
    fresh.pull(np.zeros(6, int))  # it need not even be fresh
    fresh.set_state(state)
    np.testing.assert_array_equal(fresh.means, means)
    np.testing.assert_array_equal(pull_at_random(fresh, 10, seed=1)[1], expected)
    assert len(fresh.get_state()["pulled"]) == 20
    for key, value in make_bandits(name, 6, seed=0).get_state().items():
        assert not value.any(), key
    assert capsys.readouterr().err == ""


def test_a_bandit_of_ones_own_that_ignores_its_seed_cannot_go_on(own):
    name = own(Unseeded)
    bandits = make_bandits(name, 2, seed=0)
    pull_at_random(bandits, 3)
    with pytest.raises(UserError, match=r"--resume: Own0-v0 gives other rewards for the same seed"):
        make_bandits(name, 2, seed=0).set_state(bandits.get_state())


def test_a_module_is_imported_for_its_environment(tmp_path, monkeypatch):
    (tmp_path / "my_bandits.py").write_text(
        "import gymnasium as gym\n"
        "from common.environments.bandits import BanditEnv\n"
        "class Coin(BanditEnv):\n"
        "    def __init__(self):\n"
        "        super().__init__([0.5, 1.5])\n"
        "    def draw(self, mean):\n"
        "        return 2.0 * mean * self.np_random.integers(2)\n"
        "gym.register('Coin-v0', Coin)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        bandits = make_bandits("my_bandits:Coin-v0", 40, seed=0)
    finally:
        gym.registry.pop("Coin-v0", None)
        sys.modules.pop("my_bandits", None)
    np.testing.assert_array_equal(bandits.means, np.tile([0.5, 1.5], (40, 1)))
    assert set(bandits.pull(np.ones(40, int))) == {0.0, 3.0}


def test_the_same_arms_stepped_as_environments_pay_the_same_on_average():
    bandits = make_bandits(PREFIX + module.TESTBED, 200, seed=0)
    assert np.std(bandits.means) == pytest.approx(1.0, abs=4 / np.sqrt(4000))
    arms, rewards = pull_at_random(bandits, 50)
    noise = rewards - bandits.means[np.arange(200), arms]
    assert noise.mean() == pytest.approx(0.0, abs=4 / np.sqrt(10_000))
    assert noise.std() == pytest.approx(1.0, abs=4 / np.sqrt(20_000))


# --- Bad input --------------------------------------------------------------------------------


def made(env_id=module.BERNOULLI, num_runs=2, seed=0, **kwargs):
    return make_bandits(env_id, num_runs, seed, **kwargs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"means": (0.8, 1.2)}, "--means 0.8 1.2: must be probabilities, between 0 and 1"),
        ({"means": (-0.1, 0.5)}, "--means -0.1 0.5: must be probabilities"),
        ({"means": (0.8,)}, "--means 0.8: must be at least two numbers, one for each arm"),
        ({"means": (0.8, np.nan)}, "--means 0.8 nan: must be finite"),
        ({"env_id": module.GAUSSIAN, "means": (0.8, np.inf)}, "--means 0.8 inf: must be finite"),
        ({"env_id": module.GAUSSIAN, "sigma": -1.0}, "--sigma -1.0: must be a finite number, 0 or"),
        ({"env_id": module.TESTBED, "sigma": np.nan}, "--sigma nan: must be"),
        (
            {"env_id": module.TESTBED, "means": (1.0, 2.0)},
            "--means 1 2: TenArmedTestbed-v0 has its",
        ),
        ({"num_runs": 0}, "--num-runs 0: must be at least 1"),
        ({"num_runs": 10**14}, f"--num-runs {10**14}: too many for this machine's memory"),
        ({"num_runs": 10**30}, f"--num-runs {10**30}: too many for this machine's memory"),
        ({"env_id": module.TESTBED, "num_runs": 10**14}, f"--num-runs {10**14}: too many"),
        ({"env_id": "BernouliBandit-v0"}, "no such environment; did you mean BernoulliBandit-v0"),
        ({"env_id": "Pendulum-v1"}, "--env-id Pendulum-v1: actions are Box"),
        (
            {"env_id": "FrozenLake-v1"},
            r"observations are Discrete\(16\), but a bandit has one state",
        ),
        ({"env_id": "CartPole-v1"}, "observations are Box.*, but a bandit has one state"),
        ({"env_id": "no_such_module:A-v0"}, "cannot import module 'no_such_module'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UserError, match=message):
        made(**call)


class BadMeans(Own):
    def __init__(self, means):
        super().__init__()
        self.means = means


@pytest.mark.parametrize("means", [(1.0, 2.0), "many", (1.0, 2.0, np.nan), 1.0])
def test_means_that_are_none(own, means):
    with pytest.raises(
        UserError, match="`means` must hold one finite number for each of the 3 arms"
    ):
        make_bandits(own(BadMeans, means=means), 2, seed=0)


def test_environments_that_are_no_bandits(own):
    class Odd(Own):
        def __init__(self, observation_space=None, action_space=None, reward=0.0):
            super().__init__()
            self.observation_space = observation_space or self.observation_space
            self.action_space = action_space or self.action_space
            self.reward = reward

        def step(self, action):
            return 0, self.reward, False, False, {}

    with pytest.raises(UserError, match=r"actions are Discrete\(1\)"):
        make_bandits(own(Odd, action_space=Discrete(1)), 2, seed=0)
    with pytest.raises(UserError, match="observations are Box"):
        make_bandits(own(Odd, observation_space=Box(0.0, 1.0, (2,))), 2, seed=0)
    bandits = make_bandits(own(Odd, reward=np.inf), 2, seed=0)
    with pytest.raises(UserError, match="arm 1 gave a reward that is not finite"):
        bandits.pull(np.array([1, 2]))


# --- History ----------------------------------------------------------------------------------


def test_history_by_hand():
    bandits = make_bandits(module.GAUSSIAN, 2, 0, means=(1.0, 0.0, 1.0))
    history = History(bandits, 3)
    metrics = history.add(np.array([0, 1]), np.array([5.0, 7.0]))
    assert metrics == {"train/reward": 6.0, "train/best_arm_share": 0.5, "train/regret": 0.5}
    history.add(np.array([1, 1]), np.array([1.0, 1.0]))
    metrics = history.add(np.array([2, 0]), np.array([0.0, 3.0]))  # two best arms
    assert metrics == {"train/reward": 1.5, "train/best_arm_share": 1.0, "train/regret": 1.5}
    tables = history.tables
    assert tables["reward"].tolist() == [6.0, 1.0, 1.5]
    assert tables["best_arm"].tolist() == [0.5, 0.0, 1.0]
    assert tables["total_regret"].tolist() == [1.0, 2.0]
    assert tables["regret"][0].tolist() == [0.5, 1.5, 1.5]
    np.testing.assert_allclose(tables["regret"][1:, 2], [1.05, 1.95])  # 5% and 95% of {1, 2}
    facts = history.facts()
    assert facts["best_arm_share"] == pytest.approx(3 / 6)
    assert facts["mean_reward"] == pytest.approx(17 / 6)
    assert facts["regret"] == 1.5
    assert facts["regret_error"] == pytest.approx(0.5)  # std of {1, 2} is sqrt(1/2), over sqrt(2)
    assert final_measure(facts) == ("best arm share", pytest.approx(0.5))


def test_facts_are_about_the_last_hundred_steps():
    history = History(make_bandits(module.BERNOULLI, 1, 0), 250)
    for t in range(250):
        history.add(np.array([int(t < 150 or t % 4 == 0)]), np.array([float(t)]))
    facts = history.facts()
    assert facts["best_arm_share"] == pytest.approx(0.75)  # t = 150, 151, ..., 249
    assert facts["mean_reward"] == pytest.approx(199.5)
    assert facts["regret"] == pytest.approx(0.6 * 175)
    assert facts["regret_error"] is None  # of one run


def test_what_is_unknown_is_said_to_be(own):
    history = History(make_bandits(own(Own), 2, 0), 2)
    for reward in (1.0, 2.0):
        assert history.add(np.array([0, 2]), np.full(2, reward)) == {"train/reward": reward}
    facts = history.facts()
    assert facts["mean_reward"] == 1.5
    assert [name for name, value in facts.items() if value is not None] == ["mean_reward"]
    assert final_measure(facts) == ("mean reward", 1.5)


def test_history_goes_through_a_checkpoint(tmp_path):
    bandits = make_bandits(module.TESTBED, 5, seed=0)
    rng = np.random.default_rng(0)
    steps = [(rng.integers(10, size=5), rng.normal(size=5)) for _ in range(20)]
    whole, half, rest = (History(bandits, 20) for _ in range(3))
    for number, (arm, reward) in enumerate(steps):
        whole.add(arm, reward)
        if number < 10:
            half.add(arm, reward)
    path = checkpoint.save(tmp_path, 10, {"history": half}, {})
    checkpoint.Checkpoint(path).restore({"history": rest})
    for arm, reward in steps[10:]:
        rest.add(arm, reward)
    assert rest.facts() == whole.facts()
    for name, table in whole.tables.items():
        np.testing.assert_array_equal(rest.tables[name], table)


@pytest.mark.parametrize("env_id", [*IDS, "unknown"])
@pytest.mark.parametrize(("num_runs", "num_steps"), [(1, 1), (3, 40)])
def test_pictures(tmp_path, own, recwarn, env_id, num_runs, num_steps):
    bandits = make_bandits(own(Own) if env_id == "unknown" else env_id, num_runs, 0)
    history = History(bandits, num_steps)
    for arm in np.zeros((num_steps, num_runs), int):
        history.add(arm, bandits.pull(arm))
    history.draw(tmp_path / "picture.png", "Title")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert not recwarn.list


def test_too_many_steps():
    bandits = make_bandits(module.BERNOULLI, 1, 0)
    for steps in (10**15, 10**30):
        with pytest.raises(UserError, match=f"--num-steps {steps}: too many"):
            History(bandits, steps)
