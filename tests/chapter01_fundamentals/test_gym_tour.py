"""The tour of Gymnasium: what it prints, what a random policy earns, and the film it makes."""

import re

from chapter01_fundamentals import gym_tour as script
from chapter01_fundamentals.gym_tour import Config, describe, evenly, lines_of, newest
from common.errors import UserError
from common.metrics import read_metrics
from tests import known_values  # noqa: F401  (registers Constant-v0, which draws nothing)

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis import strategies as st

# --- What is printed --------------------------------------------------------------------------


def test_frozen_lake_is_told_as_it_is(capsys):
    script.show_frozen_lake(seed=4)
    out = capsys.readouterr().out
    told = re.findall(r"with probability ([\d.]+) to (\d+), reward (\d), (.+)", out)
    table = gym.make("FrozenLake-v1").unwrapped.P[14][2]
    assert [(float(p), int(s), int(r)) for p, s, r, _ in told] == [
        (pytest.approx(p, abs=1e-3), s, r) for p, s, r, _ in table
    ]
    assert [end == "the episode ends" for *_, end in told] == [end for *_, end in table]
    assert "observations  Discrete(16)" in out
    assert "actions       Discrete(4)" in out

    # The brackets follow the agent, and the end is the one of the last cell.
    rows = [line for line in out.splitlines() if re.match(r"    [\[ ][SFHG][\] ]", line)]
    states = [int(s) for s in re.findall(r"(?:start:|(?:left|right|up|down) to) (\d+)", out)]
    cells = "SFFFFHFHFFFHHFFG"
    assert len(states) > script.PER_ROW  # more than one row of pictures
    assert states[0] == 0
    assert {"G": "goal", "H": "a hole"}[cells[states[-1]]] == out.split("the end: ")[1].strip()
    for first in range(0, len(states), script.PER_ROW):
        block = rows[4 * (first // script.PER_ROW) :][:4]
        for number, state in enumerate(states[first : first + script.PER_ROW]):
            part = block[state // 4][4 + 18 * number :][3 * (state % 4) :][:3]
            assert part == f"[{cells[state]}]"


def test_pictures_of_the_lake():
    env = gym.make("FrozenLake-v1", render_mode="ansi", is_slippery=False)
    env.reset(seed=0)
    assert lines_of(env.render(), "start: 0")[:2] == [" start: 0", "[S] F  F  F "]
    env.step(1)
    expected = [" down to 4", " S  F  F  F ", "[F] H  F  H ", " F  F  F  H ", " H  F  F  G "]
    assert lines_of(env.render(), "to 4") == expected


def test_classic_control(capsys):
    names = ["Acrobot-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0"]
    assert newest("classic_control") == [*names, "Pendulum-v1"]
    script.show_spaces(newest("classic_control"))
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "environment"
    found = {row.split()[0]: re.split(r"  +", row.strip())[1:] for row in rows}
    assert found["CartPole-v1"][1:] == ["Discrete(2)", "500"]
    assert found["CartPole-v1"][0] == "-4.8..4.8 -inf..inf -0.419..0.419 -inf..inf"
    assert found["Pendulum-v1"] == ["-1..1 -1..1 -8..8", "-2..2", "200"]
    assert found["MountainCar-v0"][1:] == ["Discrete(3)", "200"]


def test_spaces_are_described():
    assert describe(Discrete(3)) == "Discrete(3)"
    assert describe(Box(np.float32([-1.0, 0.0]), np.float32([1.0, np.inf]))) == "-1..1 0..inf"


# --- The random policy ------------------------------------------------------------------------


def play(env_id: str, episodes: int) -> np.ndarray:
    """Returns of a random policy, independent of the script."""
    env, rng = gym.make(env_id), np.random.default_rng(77)
    returns = []
    for episode in range(episodes):
        env.reset(seed=episode)
        total, done = 0.0, False
        while not done:
            _, reward, terminated, truncated, _ = env.step(int(rng.integers(env.action_space.n)))
            total, done = total + reward, terminated or truncated
        returns.append(total)
    return np.array(returns)


def test_random_cartpole(tmp_path):
    config = Config(num_episodes=600, capture_video=False, run_dir=str(tmp_path))
    result = script.train(config)
    mean, error = result.facts["mean_return"], result.facts["standard_error"]
    # The mean over 100,000 episodes is 22.17 ± 0.04, the standard deviation 11.8.
    assert abs(mean - 22.17) < 4 * 11.8 / np.sqrt(600)
    assert error == pytest.approx(11.8 / np.sqrt(600), rel=0.2)
    other = play("CartPole-v1", 600)
    assert abs(mean - other.mean()) < 4 * np.hypot(error, other.std() / np.sqrt(600))
    assert 8 <= result.facts["smallest_return"] < 11 < 60 < result.facts["largest_return"]
    metrics = read_metrics(tmp_path)
    assert metrics["step"][-1] == result.total_timesteps == 600
    np.testing.assert_array_equal(
        metrics["charts/episode_return"], metrics["charts/episode_length"]
    )  # CartPole pays 1 for every step
    assert metrics["charts/episode_return"].mean() == pytest.approx(mean)
    assert (tmp_path / "random_returns.png").stat().st_size > 5000
    assert not (tmp_path / "videos").exists()
    assert not (tmp_path / "game.png").exists()


def test_box_actions_and_time_limits(tmp_path):
    config = Config(
        env_id="Pendulum-v1", num_episodes=3, capture_video=False, run_dir=str(tmp_path)
    )
    result = script.train(config)
    assert -1900 < result.facts["smallest_return"] <= result.facts["mean_return"] < -300
    assert set(read_metrics(tmp_path)["charts/episode_length"]) == {200.0}


# --- The film ---------------------------------------------------------------------------------


@given(st.integers(1, 400), st.sampled_from([2, 6, 10]))
def test_pictures_of_a_film_are_evenly_spaced(length, most):
    kept = evenly((np.full(1, number) for number in range(length)), most)
    numbers = [number for number, _ in kept]
    assert [int(picture[0]) for _, picture in kept] == numbers
    assert numbers[0] == 0
    assert len(set(np.diff(numbers))) <= 1
    assert min(length, most) / 2 <= len(kept) <= most
    stride = numbers[1] if len(numbers) > 1 else 1
    assert length - stride <= numbers[-1]  # up to the end


def test_film_of_a_game(tmp_path, capsys):
    script.train(Config(num_episodes=2, game="ALE/Breakout-v5", run_dir=str(tmp_path)))
    [film] = (tmp_path / "videos").iterdir()
    assert film.name == "ALE-Breakout-v5.mp4"
    assert film.read_bytes()[4:8] == b"ftyp"  # the beginning of every MP4 file
    assert film.stat().st_size > 5000
    assert (tmp_path / "game.png").stat().st_size > 5000
    assert f"video: {film}" in capsys.readouterr().out


def test_random_policy_of_a_game():
    first, again, other = (script.random_policy("ALE/Pong-v5", seed) for seed in (0, 0, 1))
    state = np.zeros((500, 1))
    actions = first(state)
    assert set(actions) == set(range(6))
    np.testing.assert_array_equal(actions, again(state))
    assert (actions != other(state)).any()
    assert (actions[:-1] != first(state)[:-1]).any()  # it goes on, not from the beginning


class TwoHands(gym.Env):
    observation_space = Discrete(1)
    action_space = gym.spaces.Tuple([Discrete(2), Discrete(2)])


gym.register("TwoHands-v0", TwoHands)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"game": "ALE/Ponk-v5"}, "--game ALE/Ponk-v5: no such environment; did you mean ALE/Pong"),
        ({"game": "no_module:Id-v0"}, "--game no_module:Id-v0: cannot import module 'no_module'"),
        ({"game": "Constant-v0"}, "--game Constant-v0: the environment does not start"),
        ({"env_id": "TwoHands-v0"}, "--env-id TwoHands-v0: actions must be Discrete or Box"),
        ({"num_episodes": 0}, "--num-episodes 0: must be at least 1"),
    ],
)
def test_wrong_flags(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        script.train(Config(run_dir=str(tmp_path / "run"), **settings))
    assert not (tmp_path / "run").exists()
