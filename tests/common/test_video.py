"""Videos: real MP4 files, decoded again."""

from common.environments import make_env
from common.errors import UserError
from common.video import record

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest


def decode(path):
    """(width, height), frames per second, and the frames [T, H, W, 3]."""
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    width, height = about["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader]
    return (width, height), about["fps"], np.stack(frames)


def lean(state):
    return (state[:, 2] > 0).astype(int)


def test_an_episode_of_cartpole(tmp_path):
    path = record(lean, "CartPole-v1", 3, tmp_path / "videos" / "cartpole.mp4")
    assert path == tmp_path / "videos" / "cartpole.mp4"
    env = make_env("CartPole-v1", render_mode="rgb_array")
    state, _ = env.reset(seed=3)
    expected, done = [env.render()], False
    while not done:
        state, _, terminated, truncated, _ = env.step(int(lean(state[None])[0]))
        expected.append(env.render())
        done = terminated or truncated
    size, fps, frames = decode(path)
    assert size == (600, 400)
    assert fps == 50
    assert len(frames) == len(expected)
    for ours, theirs in zip(frames, expected, strict=True):  # the codec loses a little
        assert np.abs(ours.astype(int) - theirs).mean() < 2
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 2  # the pole did fall


def test_a_game_of_pong_in_colour(tmp_path):
    """The film shows, big and in colour, the very game that the player sees small and grey."""
    rng = np.random.default_rng(0)
    seen = []

    def policy(state):
        seen.append(state.copy())
        return rng.integers(0, 6, len(state))

    path = record(policy, "ALE/Pong-v5", 0, tmp_path / "pong.mp4", max_frames=60)
    size, fps, frames = decode(path)
    assert size == (320, 420)
    assert fps == 15
    assert len(frames) == 60
    assert np.abs(frames[30][200, 160].astype(int) - [144, 72, 17]).max() < 12  # a brown field

    seen = np.concatenate(seen)[:, -1]  # [T, 84, 84], the newest frame of each stack
    assert seen.shape == (59, 84, 84)
    grey = frames[:59] @ [0.299, 0.587, 0.114]
    columns = (np.arange(84) * 320 / 84 + 2).astype(int)
    small = grey.reshape(59, 84, 5, 320)[:, :, 2, columns]
    assert paddle(small) == paddle(seen)
    assert len(set(paddle(seen))) > 20  # the player did move


def paddle(pictures):
    """The rows, one mean for each picture [84, 84], where the player's paddle is."""
    bright = pictures[:, 14:76, 73:76].mean(axis=2) > 110
    return [float(np.flatnonzero(rows).mean()) if rows.any() else None for rows in bright]


def test_a_film_of_odd_size(tmp_path):
    """The codec wants even sizes: a row and a column are left out."""
    gym.register("Odd-v0", Odd)
    try:
        size, fps, frames = decode(record(lambda state: state, "Odd-v0", 0, tmp_path / "odd.mp4"))
    finally:
        del gym.registry["Odd-v0"]
    assert (size, fps, len(frames)) == ((64, 48), 10, 4)
    assert abs(int(frames[0][:, :32].mean()) - 255) < 10  # left half white, right half black
    assert abs(int(frames[0][:, 33:].mean()) - 0) < 10


@pytest.mark.filterwarnings("ignore:.*render_mode")
def test_an_environment_without_pictures_is_refused(tmp_path):
    gym.register("Blind-v0", Blind)
    try:
        with pytest.raises(UserError, match="Blind-v0"):
            record(lambda state: state, "Blind-v0", 0, tmp_path / "blind.mp4")
    finally:
        del gym.registry["Blind-v0"]


class Odd(gym.Env):
    """Ends after three steps; pictures of 49 x 65 pixels."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return 0, {}

    def step(self, action):
        self.steps += 1
        return 0, 0.0, self.steps == 3, False, {}

    def render(self):
        picture = np.zeros((49, 65, 3), np.uint8)
        picture[:, :32] = 255
        return picture


class Blind(Odd):
    """Has no pictures."""

    metadata = {"render_modes": []}  # noqa: RUF012
