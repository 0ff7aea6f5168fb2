"""Environments that hide something: they keep the rules, and hide neither more nor less."""

import itertools

from common.environments import make_env, make_envs, new_episodes, partial, reward_threshold
from common.environments.flicker import FlickeringFrames
from common.errors import UserError
from common.evaluation import episode_returns
from common.memory import GreedyMemoryPolicy, begin_episodes

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

CARTPOLE = "common.environments.partial:CartPoleNoVelocity-v0"
RECALL = "common.environments.partial:RecallCue-v0"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("env_id", ["CartPoleNoVelocity-v0", "RecallCue-v0"])
def test_gymnasium_finds_nothing_wrong(env_id):
    env = gym.make(env_id)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


def test_cartpole_without_velocities_is_cartpole():
    full, part = make_env("CartPole-v1"), make_env(CARTPOLE)
    assert part.spec.max_episode_steps == full.spec.max_episode_steps == 500
    assert reward_threshold(CARTPOLE) == reward_threshold("CartPole-v1") == 475.0
    rng = np.random.default_rng(0)
    lengths = set()
    for seed in range(10):
        whole, _ = full.reset(seed=seed)
        shown, _ = part.reset(seed=seed)
        done, length = False, 0
        while not done:
            np.testing.assert_array_equal(shown, whole[[0, 2]], strict=True)
            assert part.observation_space.contains(shown)
            action = int(rng.integers(2))
            whole, *rest = full.step(action)
            shown, *others = part.step(action)
            assert rest == others
            done, length = rest[1] or rest[2], length + 1
        lengths.add(length)
    assert len(lengths) > 5


@pytest.mark.parametrize("delay", [0, 3])
def test_recall_tells_the_cue_once_and_asks_after_the_delay(delay):
    env = gym.make("RecallCue-v0", delay=delay)
    cues = set()
    for seed in range(8):
        shown, _ = env.reset(seed=seed)
        cue = int(shown[:2].argmax())
        np.testing.assert_array_equal(shown, np.eye(3)[cue])
        cues.add(cue)
        for t in range(delay + 1):
            shown, reward, terminated, truncated, _ = env.step(t % 2)
            assert (reward, terminated, truncated) == (0.0, False, False)
            np.testing.assert_array_equal(shown, np.eye(3)[2] if t == delay else np.zeros(3))
        answer = seed % 2
        _, reward, terminated, truncated, _ = env.step(answer)
        assert (terminated, truncated) == (True, False)
        assert reward == (1.0 if answer == cue else -1.0)
    assert cues == {0, 1}


def test_no_memoryless_policy_recalls_better_than_by_chance():
    """Every policy that sees only the present, played against every cue: exactly 0 on average.

    There are four observations, so sixteen such policies; a random one is a mixture of these.
    """
    env = gym.make("RecallCue-v0", delay=2).unwrapped
    for policy in itertools.product(range(2), repeat=4):
        total = 0.0
        for cue in range(2):
            env.reset()
            env.cue = cue
            shown, done = env._observe(), False
            while not done:
                number = int(shown @ [1, 2, 3])  # 0: nothing is shown
                shown, reward, done, _, _ = env.step(policy[number])
                total += reward
        assert total == 0.0


# --- Policies that remember -------------------------------------------------------------------


def recall(state, memory):
    """Remembers the first cue it was shown since it began: the best policy for RecallCue."""
    cue = state[:, :2] * (memory[:, :2].sum(axis=1, keepdims=True) == 0.0)
    memory = memory + np.pad(cue, ((0, 0), (0, 2)))
    return memory[:, :2].copy(), memory


@pytest.mark.parametrize("episodes", [1, 60])
def test_evaluation_keeps_a_memory_of_each_environment_and_begins_it_anew(episodes):
    policy = GreedyMemoryPolicy(recall, 4)
    assert episode_returns(policy, RECALL, episodes, seed=0) == [1.0] * episodes
    # A second evaluation does not remember the first.
    assert episode_returns(policy, RECALL, episodes, seed=1) == [1.0] * episodes


def test_without_being_told_of_new_episodes_the_policy_recalls_the_wrong_cue():
    policy = GreedyMemoryPolicy(recall, 4)
    policy.begin = lambda begins: None
    assert np.mean(episode_returns(policy, RECALL, 100, seed=0)) < 0.6


def test_another_number_of_environments_begins_with_no_memory():
    policy = GreedyMemoryPolicy(lambda state, memory: (state, memory + 1.0), 3)
    begin_episodes(policy, np.ones(3, bool))
    actions = policy(np.eye(3)[:, :2])
    np.testing.assert_array_equal(actions, [0, 1, 0])
    # The last two columns tell what was done.
    np.testing.assert_array_equal(policy.memory, [[1, 1, 0], [1, 0, 1], [1, 1, 0]])
    begin_episodes(policy, np.array([False, True, False]))
    np.testing.assert_array_equal(policy.memory, [[1, 1, 0], [0, 0, 0], [1, 1, 0]])
    policy(np.zeros((1, 2)))
    np.testing.assert_array_equal(policy.memory, [[1, 1, 0]])


def test_policies_without_memory_are_left_alone():
    begin_episodes(lambda state: state, np.ones(3, bool))


# --- Where episodes begin ---------------------------------------------------------------------


def test_new_episodes_are_those_that_ended_or_were_cut():
    envs = make_envs("CartPole-v1", 3)
    envs.reset(seed=0)
    envs.cut_every = 3 * 50
    begun = 0
    for t in range(1, 61):
        _, _, terminated, truncated, info = envs.step(np.array([0, 1, t % 2]))
        begins = new_episodes(info, 3)
        assert begins.dtype == bool
        np.testing.assert_array_equal(begins, terminated | truncated)
        assert begins.all() == (t == 50) or t != 50
        begun += begins.sum()
    assert begun > 6
    envs.close()


def test_a_lost_life_begins_no_episode():
    """Breakout has five lives; without playing they are lost one after the other."""
    envs = make_envs("ALE/Breakout-v5", 1)
    envs.reset(seed=0)
    lost = begun = 0
    while not begun:
        _, _, terminated, _, info = envs.step(np.array([1]))  # fire, so that the ball comes
        lost += int(terminated[0])
        begun += int(new_episodes(info, 1)[0])
    assert lost == 5
    envs.close()


# --- Flicker ----------------------------------------------------------------------------------


def frames(flicker, seed=0, steps=200):
    kwargs = {"stack_num": 1} | ({"flicker": flicker} if flicker else {})
    envs = make_envs("ALE/Pong-v5", 4, **kwargs)
    assert envs.single_observation_space.shape == (1, 84, 84)
    shown = [envs.reset(seed=seed)[0]]
    for t in range(steps):
        shown.append(envs.step(np.full(4, 2 + t // 10 % 2))[0].copy())
    envs.close()
    return np.array(shown)  # [T, N, 1, 84, 84]


def test_half_of_the_frames_are_blank_and_all_others_as_they_were():
    clear, flickering = frames(0.0), frames(0.5)
    blank = (flickering == 0).all(axis=(2, 3, 4))  # [T, N]
    assert not (clear == 0).all(axis=(2, 3, 4)).any()
    np.testing.assert_array_equal(flickering[~blank], clear[~blank])
    draws = blank.size
    assert abs(blank.sum() - draws / 2) < 4 * np.sqrt(draws / 4)
    # Every copy and every step by itself.
    assert 0.3 < np.mean(blank[:-1] & blank[1:]) / np.mean(blank[1:]) < 0.7
    assert 0.3 < np.mean(blank[:, 0] == blank[:, 1]) < 0.7


def test_flicker_comes_from_the_seed():
    first, again, other = (frames(0.5, seed, 30) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    blank = [(shown == 0).all(axis=(2, 3, 4)) for shown in (first, other)]
    assert (blank[0] != blank[1]).any()


def test_final_observations_flicker_too():
    class Ending(gym.vector.VectorEnv):
        metadata = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}  # noqa: RUF012
        num_envs = 1000

        def step(self, actions):
            frame, flags = np.ones((1000, 1, 2, 2), np.uint8), np.ones(1000, bool)
            return frame, np.zeros(1000), flags, ~flags, {"final_obs": frame}

    shown, _, _, _, info = FlickeringFrames(Ending(), 0.3).step(None)
    for some in (shown, info["final_obs"]):
        assert abs(np.mean(some[:, 0, 0, 0] == 0) - 0.3) < 0.06
    assert (shown != info["final_obs"]).any()


def test_only_single_frames_of_games_flicker():
    for env_id, kwargs in [
        ("CartPole-v1", {}),
        ("ALE/Pong-v5", {}),
        ("ALE/Pong-v5", {"stack_num": 4}),
    ]:
        with pytest.raises(UserError, match=r"--flicker 0.5: only single frames of Atari games"):
            make_envs(env_id, 1, flicker=0.5, **kwargs)


def test_names():
    assert {spec for spec in gym.registry if "NoVelocity" in spec or "Recall" in spec} == {
        "CartPoleNoVelocity-v0",
        "RecallCue-v0",
    }
    assert partial.__name__ == CARTPOLE.partition(":")[0]
