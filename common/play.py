"""`python -m common.play RUN`: plays a finished run again, and records or shows it."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from common import catalog, video
from common.cli import command
from common.environments import EVALUATION_LIMIT, make_env, make_envs, reset_seed
from common.errors import UserError
from common.evaluation import STREAM, episode_returns
from common.memory import begin_episodes
from common.run import Policy, read_config, read_run

import numpy as np


def load_script(run_dir: Path) -> ModuleType:
    """Imports the script that made a run; only scripts of this project are ever run.

    Raises:
        UserError: the folder holds no run, or its script is none of ours.
    """
    name = read_run(run_dir, flag="")["script"]
    known = {path.relative_to(catalog.ROOT).as_posix(): path for path in catalog.script_paths()}
    if name not in known:
        raise UserError(f"{run_dir}: made by {name}, which is no script of this project")
    spec = importlib.util.spec_from_file_location(f"played_{Path(name).stem}", known[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def show(policy: Policy, env_id: str, seed: int, env_kwargs: dict) -> None:
    """Plays one episode in a window.

    Raises:
        UserError: Atari games cannot be shown.
    """
    envs = make_envs(env_id, 1, training=False, **env_kwargs)
    if envs.is_atari:
        raise UserError("--show: Atari games have no window here; use --video")
    envs.close()
    env = make_env(env_id, render_mode="human", **env_kwargs)
    state, _ = env.reset(seed=seed)
    begin_episodes(policy, np.ones(1, bool))
    for _ in range(EVALUATION_LIMIT):
        state, _, terminated, truncated, _ = env.step(policy(np.asarray(state)[None])[0])
        if terminated or truncated:
            break
    env.close()


def _has_screen() -> bool:
    return sys.platform != "linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))


@command
def main() -> None:
    """Reads the flags, plays, prints the returns."""
    parser = argparse.ArgumentParser(prog="python -m common.play", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--episodes", type=int, default=20, help="episodes to play (20)")
    parser.add_argument("--seed", type=int, default=None, help="of the episodes (the run's)")
    parser.add_argument("--video", action="store_true", help="record an episode to RUN/videos/")
    parser.add_argument("--show", action="store_true", help="show an episode in a window")
    arguments = parser.parse_args()
    if arguments.episodes < 1:
        raise UserError(f"--episodes {arguments.episodes}: must be at least 1")
    if arguments.seed is not None and arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: must be 0 or more")
    if arguments.show and not _has_screen():
        raise UserError("--show: this machine has no screen; use --video")

    script = load_script(arguments.run)
    stored = read_config(arguments.run, script.Config, read_run(arguments.run)["script"])
    config = replace(stored, resume=str(arguments.run))
    policy = script.load_policy(config)
    env_kwargs = script.env_kwargs(config) if hasattr(script, "env_kwargs") else {}
    seed = config.seed if arguments.seed is None else arguments.seed
    returns = episode_returns(policy, config.env_id, arguments.episodes, seed, env_kwargs)
    for number, value in enumerate(returns, start=1):
        print(f"  episode {number:>3}  return {value:,.1f}")
    print(
        f"{config.env_id}: mean return {np.mean(returns):.1f} +- {np.std(returns):.1f} "
        f"over {len(returns)} episodes"
    )
    if arguments.video:
        name = config.env_id.replace("/", "-").replace(":", "-")
        path = arguments.run / "videos" / f"{name}-seed{seed}.mp4"
        first = reset_seed(seed, STREAM)
        print(f"video: {video.record(policy, config.env_id, first, path, env_kwargs)}")
    if arguments.show:
        show(policy, config.env_id, reset_seed(seed, STREAM), env_kwargs)


if __name__ == "__main__":
    main()
