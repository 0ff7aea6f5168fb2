"""Videos of a policy: MP4 through imageio-ffmpeg, which brings its own encoder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.environments import make_env, make_envs
from common.errors import UserError
from common.memory import begin_episodes

import gymnasium as gym
import numpy as np

Policy = Callable[[np.ndarray], np.ndarray]


def record(
    policy: Policy,
    env_id: str,
    seed: int,
    path: Path,
    env_kwargs: Mapping[str, Any] | None = None,
    max_frames: int = 5000,
) -> Path:
    """Plays one episode and writes it to an MP4 file.

    Args:
        policy: observations [N, ...] -> actions [N, ...].
        env_id: as in `make_envs`; must be able to render "rgb_array".
        seed: of the episode.
        path: file to write; its folder is made.
        env_kwargs: arguments of the environment's constructor.
        max_frames: longest film.

    Raises:
        UserError: the environment cannot be rendered or the package imageio-ffmpeg is missing.
    """
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError("--capture-video needs a package: pip install imageio-ffmpeg") from error
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # draws without a screen, and quietly
    fps, frames = frames_of(policy, env_id, seed, env_kwargs or {})
    first = next(frames)
    height, width = first.shape[0] // 2 * 2, first.shape[1] // 2 * 2  # the codec wants even sizes
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = imageio_ffmpeg.write_frames(
            str(path), (width, height), fps=fps, macro_block_size=2, ffmpeg_log_level="error"
        )
        writer.send(None)
        writer.send(np.ascontiguousarray(first[:height, :width]))
        for _, frame in zip(range(max_frames - 1), frames, strict=False):
            writer.send(np.ascontiguousarray(frame[:height, :width]))
        writer.close()
    except OSError as error:  # a full disk arrives as a broken pipe: the encoder gave up
        raise UserError(
            f"--capture-video: cannot write {path}; make room or choose another folder"
        ) from error
    return path


def frames_of(
    policy: Policy, env_id: str, seed: int, env_kwargs: Mapping[str, Any]
) -> tuple[int, Iterator[np.ndarray]]:
    """Frames per second, and the frames [H, W, 3] (uint8) of one episode."""
    envs = make_envs(env_id, 1, training=False, **env_kwargs)
    atari = envs.is_atari
    envs.close()
    if atari:
        return 15, _atari_frames(policy, env_id, seed, env_kwargs)
    env = make_env(env_id, render_mode="rgb_array", **env_kwargs)
    if "rgb_array" not in env.metadata.get("render_modes", []):
        raise UserError(f"--capture-video: {env_id} cannot be rendered as pictures; leave it out")
    return int(env.metadata.get("render_fps", 30)), _frames(policy, env, seed)


def _frames(policy: Policy, env: gym.Env, seed: int) -> Iterator[np.ndarray]:
    state, _ = env.reset(seed=seed)
    begin_episodes(policy, np.ones(1, bool))
    done = False
    yield np.asarray(env.render())
    while not done:
        action = policy(np.asarray(state)[None])[0]
        state, _, terminated, truncated, _ = env.step(action)
        done = terminated or truncated
        yield np.asarray(env.render())
    env.close()


def _atari_frames(
    policy: Policy, env_id: str, seed: int, env_kwargs: Mapping[str, Any]
) -> Iterator[np.ndarray]:
    """What the player sees is small and grey: a second game in colour follows it move by move.

    Same seed and same actions make the same game, sticky actions included.
    """
    envs = make_envs(env_id, 1, training=False, **env_kwargs)
    # Pictures in colour have four axes: nothing for a network, so not through `make_envs`.
    shown = gym.make_vec(
        env_id,
        num_envs=1,
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
        grayscale=False,
        img_height=210,
        img_width=160,
        stack_num=1,
    )
    state, _ = envs.reset(seed=seed)
    picture, _ = shown.reset(seed=seed)
    begin_episodes(policy, np.ones(1, bool))
    done = False
    while not done:
        yield np.repeat(np.repeat(picture[0, -1], 2, axis=0), 2, axis=1)
        action = policy(state)
        state, _, terminated, truncated, _ = envs.step(action)
        picture = shown.step(action)[0]
        done = bool(terminated[0] or truncated[0])
    envs.close()
    shown.close()
