"""Vector environments against single ones stepped by hand: every end of an episode told right."""

import re
import sys
import textwrap
from itertools import pairwise

from common.environments import (
    VectorEnvs,
    atari_kwargs,
    make_env,
    make_envs,
    reset_seed,
    reward_threshold,
    successor,
)
from common.errors import UserError

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

# CartPole whose pole falls before the limit in some episodes and after it in others.
SHORT = """
    import gymnasium as gym

    gym.register("ShortCartPole-v0", "gymnasium.envs.classic_control:CartPoleEnv",
                 max_episode_steps=15)
    gym.register("ShortPendulum-v0", "gymnasium.envs.classic_control:PendulumEnv",
                 max_episode_steps=16)
"""


@pytest.fixture
def write_module(tmp_path, monkeypatch):
    """Writes a module that Python can import by its name until the test ends."""
    known = set(gym.registry)

    def write(name: str, text: str) -> None:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, name, raising=False)

    yield write
    for name in set(gym.registry) - known:  # Atari's names come with an import, only once
        if not name.startswith("ALE/"):
            del gym.registry[name]


@pytest.fixture
def short(write_module):
    write_module("short_episodes", SHORT)
    return "short_episodes:ShortCartPole-v0"


def play_by_hand(env_id: str, seed: int, actions: np.ndarray, **kwargs) -> list[tuple]:
    """One plain environment, reset by hand: (state, reward, successor, terminated, truncated)."""
    env = gym.make(env_id, **kwargs)
    state, _ = env.reset(seed=seed)
    played = []
    for action in actions:
        after, reward, terminated, truncated, _ = env.step(action)
        played.append((state, reward, after, terminated, truncated))
        state = env.reset()[0] if terminated or truncated else after
    return played


def play(envs: VectorEnvs, seed: int | None, actions: np.ndarray) -> list[tuple]:
    """The same from the vector environment, arrays [N, ...]; everything copied at once."""
    state, _ = envs.reset(seed=seed)
    return play_on(envs, state, actions)


def play_on(envs: VectorEnvs, state: np.ndarray, actions: np.ndarray) -> list[tuple]:
    played = []
    for action in actions:
        next_state, reward, terminated, truncated, info = envs.step(action)
        after = successor(next_state, info)
        played.append(
            tuple(np.array(x) for x in (state, reward, after, terminated, truncated, next_state))
        )
        state = next_state
    return played


@pytest.mark.parametrize(
    ("env_id", "num_actions"), [("ShortCartPole-v0", 2), ("FrozenLake-v1", 4), ("CartPole-v1", 2)]
)
def test_same_transitions_as_single_environments_by_hand(short, env_id, num_actions):
    make_envs(short, 1)  # registers
    n, seed = 3, 11
    actions = np.random.default_rng(0).integers(0, num_actions, (120, n))
    envs = make_envs(env_id, n)
    played = play(envs, seed, actions)
    ends = {"terminated": 0, "truncated": 0}
    finished = []
    for i in range(n):
        total, length = 0.0, 0
        for t, expected in enumerate(play_by_hand(env_id, seed + i, actions[:, i])):
            state, reward, after, terminated, truncated = expected
            np.testing.assert_array_equal(played[t][0][i], state)
            assert played[t][1][i] == reward
            np.testing.assert_array_equal(played[t][2][i], after)
            assert played[t][3][i] == terminated
            assert played[t][4][i] == truncated
            ends["terminated"] += terminated
            ends["truncated"] += truncated and not terminated
            total, length = total + reward, length + 1
            if terminated or truncated:
                finished.append((total, length))
                total, length = 0.0, 0
    assert ends["terminated"] > 5
    assert ends["truncated"] > 5 or env_id != "ShortCartPole-v0"
    assert sorted(envs.take_finished()) == sorted(finished)
    assert envs.take_finished() == []


def test_no_transition_that_never_happened(short):
    # With NEXT_STEP the call after an episode's end ignores the action and pays 0.
    envs = make_envs(short, 4)
    played = play(envs, 0, np.random.default_rng(1).integers(0, 2, (200, 4)))
    assert all((reward == 1.0).all() for _, reward, *_ in played)
    for state, _, after, *_ in played:
        # Euler steps: the cart's new position is the old one plus 0.02 s of the old velocity.
        np.testing.assert_allclose(after[:, 0], state[:, 0] + 0.02 * state[:, 1], atol=1e-6)


def test_after_an_end_the_state_is_where_the_next_episode_begins(short):
    played = play(make_envs(short, 4), 0, np.random.default_rng(1).integers(0, 2, (100, 4)))
    ends = 0
    for _, _, after, terminated, truncated, next_state in played:
        done = terminated | truncated
        np.testing.assert_array_equal(next_state[~done], after[~done])
        assert (np.abs(next_state[done]) <= 0.05).all()  # CartPole begins within +-0.05
        assert (np.abs(after[done]).max(axis=1) > 0.05).all()
        ends += done.sum()
    assert ends > 20


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_other_autoreset_modes_are_refused(mode):
    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")], autoreset_mode=mode)
    with pytest.raises(ValueError, match="SAME_STEP"):
        VectorEnvs(envs)


def test_observations_are_not_overwritten_by_the_next_step():
    envs = make_envs("CartPole-v1", 2)
    seen = [(state := envs.reset(seed=0)[0], state.copy())]
    for action in np.random.default_rng(0).integers(0, 2, (60, 2)):
        next_state, _, _, _, info = envs.step(action)
        after = successor(next_state, info)
        seen += [(next_state, next_state.copy()), (after, after.copy())]
    assert all(np.array_equal(array, copy) for array, copy in seen)


# --- Atari ------------------------------------------------------------------------------------


def games(name: str, n: int, **kwargs) -> VectorEnvs:
    return make_envs(f"ALE/{name}-v5", n, **kwargs)


@pytest.mark.parametrize(("training", "limit"), [(True, 108_000), (True, 480), (False, 480)])
def test_atari_successors_are_those_of_games_played_one_by_one(training, limit):
    # Only slots of finished games are filled in AtariVectorEnv's final observations; the others,
    # lost lives among them, hold whatever was in memory.
    n, steps, seed = 2, 250, 5
    actions = np.random.default_rng(0).integers(0, 4, (steps, n))
    envs = games("Breakout", n, training=training, max_num_frames_per_episode=limit)
    played = play(envs, seed, actions)
    ended = 0
    for i in range(n):
        single = gym.make_vec(
            "ALE/Breakout-v5",
            1,
            autoreset_mode=AutoresetMode.NEXT_STEP,  # shows each end, then each beginning
            reward_clipping=False,
            max_num_frames_per_episode=limit,
        )
        state, _ = single.reset(seed=seed + i)
        for t in range(steps):
            after, reward, over, cut, _ = single.step(actions[t, [i]])
            np.testing.assert_array_equal(played[t][0][i], state[0])
            np.testing.assert_array_equal(played[t][2][i], after[0])
            assert played[t][1][i] == reward[0]
            assert played[t][4][i] == cut[0]
            if not training:
                assert played[t][3][i] == over[0]
            if over[0] or cut[0]:
                ended += 1
                after = single.step(actions[t, [i]])[0]
            np.testing.assert_array_equal(played[t][5][i], after[0])
            state = after
    assert ended >= 2
    assert len(envs.take_finished()) == ended


def test_atari_arrays_are_not_reused_between_steps():
    envs = games("Breakout", 2, max_num_frames_per_episode=200)
    seen = [(state := envs.reset(seed=0)[0], state.copy())]
    for action in np.random.default_rng(0).integers(0, 4, (120, 2)):
        next_state, reward, terminated, truncated, info = envs.step(action)
        after = successor(next_state, info)
        for array in (next_state, after, reward, terminated, truncated):
            seen.append((array, array.copy()))
    assert all(np.array_equal(array, copy) for array, copy in seen)


def test_a_lost_life_ends_an_episode_for_the_learner_only():
    actions = np.random.default_rng(0).integers(0, 4, (400, 2))
    envs = games("Breakout", 2)
    state, info = envs.reset(seed=5)
    lives, score, length = info["lives"].copy(), np.zeros(2), np.zeros(2, int)
    assert (lives == 5).all()
    games_over, lost, scores = 0, 0, []
    for action in actions:
        next_state, reward, terminated, truncated, info = envs.step(action)
        score, length = score + reward, length + 1
        new_game = info["lives"] > lives
        fewer = info["lives"] < lives
        np.testing.assert_array_equal(terminated, new_game | fewer)
        assert not truncated.any()
        after = successor(next_state, info)
        # The game goes on after a lost life, and every successor continues its state's frames.
        np.testing.assert_array_equal(after[~new_game], next_state[~new_game])
        np.testing.assert_array_equal(after[:, :3], state[:, 1:])
        for i in np.flatnonzero(new_game):
            scores.append((score[i], length[i]))
            score[i], length[i] = 0.0, 0
        games_over, lost = games_over + new_game.sum(), lost + fewer.sum()
        lives, state = info["lives"].copy(), next_state
    assert games_over >= 3
    assert lost >= 4 * games_over
    assert sum(score for score, _ in scores) > 0
    assert envs.take_finished() == scores

    # Evaluation plays the same games whole.
    evaluation = games("Breakout", 2, training=False)
    played = play(evaluation, 5, actions)
    assert sum(terminated.sum() for *_, terminated, _, _ in played) == games_over
    assert evaluation.take_finished() == scores


def test_atari_rewards_are_the_true_ones():
    played = play(games("MsPacman", 2), 0, np.random.default_rng(0).integers(0, 9, (100, 2)))
    rewards = {float(r) for _, reward, *_ in played for r in reward}
    assert {0.0, 10.0} <= rewards


# --- The cut at checkpoints -------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["ShortCartPole-v0", "ALE/Breakout-v5"])
def test_the_cut_truncates_every_episode_and_begins_fresh_ones(short, env_id):
    make_envs(short, 1)
    n, passes, run_seed = 3, 40, 7
    actions = np.random.default_rng(3).integers(0, 2, (2 * passes, n))
    expected = play(make_envs(env_id, n), 1, actions[:passes])
    while not expected[-1][3].any():  # cut where some episode, or life, ends by itself
        expected.pop()
    passes = len(expected)
    assert not expected[-1][3].all()
    cut = make_envs(env_id, n)
    cut.cut_every, cut.seed = passes * n, run_seed
    played = play(cut, 1, actions)

    for before, now in zip(expected[:-1], played, strict=False):
        for a, b in zip(before, now, strict=True):
            np.testing.assert_array_equal(a, b)
    state, reward, after, terminated, truncated, next_state = played[passes - 1]
    np.testing.assert_array_equal(truncated, ~terminated | expected[-1][4])
    np.testing.assert_array_equal(state, expected[-1][0])
    np.testing.assert_array_equal(reward, expected[-1][1])
    np.testing.assert_array_equal(after, expected[-1][2])  # not the fresh episodes' beginning
    np.testing.assert_array_equal(terminated, expected[-1][3])  # a cut is no end of the MDP
    assert not np.array_equal(after, next_state)

    # What follows equals a run that begins with the cut's seed.
    fresh = make_envs(env_id, n)
    if env_id.startswith("ALE/"):
        fresh.reset(seed=99)  # as in a resumed run, whatever happened before does not matter
    again = play(fresh, reset_seed(run_seed, passes * n), actions[passes : 2 * passes - 1])
    np.testing.assert_array_equal(again[0][0], next_state)
    for a, b in zip(again, played[passes:], strict=False):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_random_actions_stay_those_of_their_seed_over_a_cut():
    envs = make_envs("CartPole-v1", 3)
    envs.cut_every = 3 * 5
    envs.reset(seed=0)
    envs.action_space.seed(4)
    played = []
    for _ in range(20):
        played.append(envs.action_space.sample())
        envs.step(played[-1])
    alone = make_envs("CartPole-v1", 3).action_space
    alone.seed(4)
    np.testing.assert_array_equal(played, [alone.sample() for _ in range(20)])


def test_cut_episodes_are_not_counted_but_finished_ones_are(write_module):
    write_module("short_episodes", SHORT)
    envs = make_envs("short_episodes:ShortPendulum-v0", 2)  # every episode has 16 steps
    envs.cut_every = 2 * 24  # the second episode is cut in the middle
    envs.reset(seed=0)
    action, rewards, ends = np.zeros((2, 1), np.float32), [], []
    for t in range(48):
        _, reward, terminated, truncated, _ = envs.step(action)
        rewards.append(reward)
        assert not terminated.any()
        ends += [t] * int(truncated.all())
        assert truncated.all() == truncated.any()
    assert ends == [15, 23, 39, 47]
    finished = envs.take_finished()
    assert [length for _, length in finished] == [16, 16, 16, 16]
    expected = np.concatenate([np.sum(rewards[:16], axis=0), np.sum(rewards[24:40], axis=0)])
    np.testing.assert_allclose([value for value, _ in finished], expected)

    envs.cut_every = 2 * 16  # an episode that ends by itself at the cut counts
    envs.step_count = 0
    envs.reset(seed=0)
    for _ in range(16):
        envs.step(action)
    assert [length for _, length in envs.take_finished()] == [16, 16]


# --- Seeds ------------------------------------------------------------------------------------


def test_seeds_of_different_runs_do_not_overlap():
    copies = 25
    starts = sorted(
        reset_seed(seed, step) for seed in range(50) for step in (*range(0, 50_000, 5_000), 10**6)
    )
    assert all(b - a >= copies for a, b in pairwise(starts))
    assert starts[0] >= 0
    assert starts[-1] + copies < 2**31  # Atari's seeds are 32-bit integers
    assert reset_seed(3, 100) == reset_seed(3, 100)


def test_runs_with_neighbouring_seeds_begin_differently():
    envs = make_envs("CartPole-v1", 8)
    rows = np.concatenate([envs.reset(seed=reset_seed(seed, 0))[0] for seed in range(4)])
    assert len(np.unique(rows, axis=0)) == 32


# --- What users type --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env_id", "near"),
    [
        ("CartPole-v9", "CartPole-v1"),
        ("Cartpole-v1", "CartPole-v1"),
        ("LunarLander-v2", "LunarLander-v3"),
        ("ALE/Pongg-v5", "ALE/Pong-v5"),
        ("Taxi-v44", "Taxi-v4"),
        ("Qwxzjk", "gymnasium.pprint_registry"),
    ],
)
@pytest.mark.parametrize("make", [lambda env_id: make_envs(env_id, 1), make_env])
def test_unknown_environments_offer_near_names(env_id, near, make):
    with pytest.raises(UserError) as error:
        make(env_id)
    assert str(error.value).startswith(f"--env-id {env_id}: ")
    assert near in str(error.value).partition("; ")[2]
    assert "\n" not in str(error.value)


def test_module_prefix_imports_the_users_module(short):
    envs = make_envs(short, 2)
    assert envs.env_id == short
    assert envs.num_envs == 2
    assert make_env(short).spec.max_episode_steps == 15
    with pytest.raises(UserError, match="cannot import module 'no_such_module_here'"):
        make_envs("no_such_module_here:Thing-v0", 1)
    with pytest.raises(UserError, match="did you mean ShortCartPole-v0"):
        make_envs("short_episodes:ShortCartPole-v3", 1)


SPACES = """
    import gymnasium as gym
    import numpy as np
    from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

    class Any(gym.Env):
        def __init__(self, observation, action):
            self.observation_space, self.action_space = observation, action

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

    class Missing(gym.Env):
        def __init__(self):
            raise gym.error.DependencyNotInstalled("pip install something-rare")

    vector, image = Box(-1, 1, (3,)), Box(0, 255, (40, 40, 3), np.uint8)
    discrete, pair = Discrete(3), Box(-1, 1, (2,))
    for name, observation, action in [
        ("Vector", vector, discrete), ("Image", image, pair), ("Number", discrete, discrete),
        ("DictObservation", Dict(a=vector), discrete),
        ("MatrixObservation", Box(-1, 1, (3, 3)), discrete),
        ("ScalarObservation", Box(-1, 1, ()), discrete),
        ("TupleObservation", Tuple([discrete, vector]), discrete),
        ("PairObservation", Tuple([discrete, Discrete(5)]), discrete),
        ("MultiAction", vector, MultiDiscrete([2, 2])),
        ("BinaryAction", vector, MultiBinary(3)),
        ("MatrixAction", vector, Box(-1, 1, (2, 2))),
    ]:
        gym.register(f"{name}-v0", Any, kwargs={"observation": observation, "action": action})
    gym.register("Missing-v0", Missing)
"""


def test_spaces_no_script_can_handle_are_refused(write_module):
    write_module("odd_spaces", SPACES)
    for name in ("Vector", "Image", "Number", "PairObservation"):
        assert make_envs(f"odd_spaces:{name}-v0", 2).num_envs == 2
    for name in ("DictObservation", "MatrixObservation", "ScalarObservation", "TupleObservation"):
        with pytest.raises(UserError, match=f"--env-id odd_spaces:{name}-v0: observations are"):
            make_envs(f"odd_spaces:{name}-v0", 2)
    for name in ("MultiAction", "BinaryAction", "MatrixAction"):
        with pytest.raises(UserError, match=f"--env-id odd_spaces:{name}-v0: actions are"):
            make_envs(f"odd_spaces:{name}-v0", 2)


def test_tuples_of_numbers_are_numbered(write_module):
    plain, env = gym.make("Blackjack-v1"), make_env("Blackjack-v1")
    assert env.observation_space == Discrete(32 * 11 * 2)
    seen = set()
    for seed in range(200):
        (player, dealer, usable), _ = plain.reset(seed=seed)
        state, _ = env.reset(seed=seed)
        assert state == (player * 11 + dealer) * 2 + usable
        seen.add(state)
    assert len(seen) > 100
    envs = make_envs("Blackjack-v1", 4)
    state, _ = envs.reset(seed=1)
    assert state.shape == (4,)
    assert envs.single_observation_space.contains(int(state[0]))


def test_missing_packages_and_bad_numbers_are_told_in_one_sentence(write_module):
    write_module("odd_spaces", SPACES)
    for make in (lambda env_id: make_envs(env_id, 1), make_env):
        with pytest.raises(UserError, match=r"a package is missing: .*something-rare"):
            make("odd_spaces:Missing-v0")
    for n in (0, -3):
        with pytest.raises(UserError, match=f"--num-envs {n}: must be at least 1"):
            make_envs("CartPole-v1", n)
    with pytest.raises(UserError, match="--env-id CartPole-v1: the environment does not start"):
        make_envs("CartPole-v1", 1, no_such_argument=1)


def test_taxi_is_not_asked_for_more_than_there_is():
    assert reward_threshold("Taxi-v4") == 7.5  # its optimum is 7.93, the registry says 8
    assert reward_threshold("CartPole-v1") == 475.0


def test_only_what_can_be_made_is_offered():
    for wrong in ("CartPole", "CartPol-v1", "Taxi", "Pong-v5", "PongNoFrameskip-v5", "GymV26"):
        with pytest.raises(UserError) as caught:
            make_env(wrong)
        offered = re.findall(r"[\w/]+-v\d+", str(caught.value).partition("did you mean")[2])
        for env_id in offered:
            make_env(env_id).close()


def test_some_games_can_be_restarted():
    envs = make_envs("ALE/Pong-v5", 3, training=False)
    envs.reset(seed=0)
    for _ in range(40):
        state, *_ = envs.step(np.array([2, 2, 2]))
    again = envs.restart(np.array([False, True, False]))
    np.testing.assert_array_equal(again[[0, 2]], state[[0, 2]])
    assert not np.array_equal(again[1], state[1])
    _, _, _, _, info = envs.step(np.array([2, 2, 2]))
    frames = info["episode_frame_number"]
    assert frames[1] < 130 < min(frames[0], frames[2])  # up to 30 steps of waiting at the start
    assert envs.take_finished() == []


def test_frames_of_the_size_that_was_asked_for():
    assert atari_kwargs("ALE/Pong-v5", 84) == atari_kwargs("CartPole-v1", 84) == {}
    for size in (36, 42, 210):
        envs = make_envs("ALE/Pong-v5", 2, **atari_kwargs("ALE/Pong-v5", size))
        state, _ = envs.reset(seed=0)
        assert state.shape == (2, 4, size, size)
        assert state.max() > state.min()
        envs.close()


def test_frames_of_other_sizes_are_refused():
    for size in (0, -84, 35, 211):
        with pytest.raises(UserError, match=f"--frame-size {size}: must be 36 .* to 210"):
            atari_kwargs("ALE/Pong-v5", size)
    with pytest.raises(UserError, match="--frame-size 42: only for Atari games, CartPole-v1 has"):
        atari_kwargs("CartPole-v1", 42)
    with pytest.raises(UserError, match=r"--env-id ALE/Ponk-v5: .*ALE/Pong-v5"):
        atari_kwargs("ALE/Ponk-v5", 42)
