"""One measurement of a peer: `PEER_PYTHON benchmarks/peer.py CASE THREADS PEER`.

Runs in an environment of its own (`requirements-bench.txt`), so it imports nothing of ours but
the table of cases. SBX is Stable-Baselines3's algorithms on JAX; where both have one, its
constructor takes the same arguments.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import CASES, SBX, Case


def build(case: Case, library: Any) -> Any:
    """The peer's model of this case, with the case's numbers and else its own defaults."""
    import ale_py
    import gymnasium as gym
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack

    gym.register_envs(ale_py)
    if case.env_id.startswith("ALE/"):
        # The wrappers skip frames themselves; sticky actions as the registered game has them.
        ale = {"frameskip": 1, "repeat_action_probability": 0.25}
        envs = make_atari_env(case.env_id, case.num_envs, seed=0, env_kwargs=ale)
        envs = VecFrameStack(envs, 4)
    else:
        envs = make_vec_env(case.env_id, case.num_envs, seed=0)
    settings: dict[str, Any] = {"learning_rate": 1e-3 if case.hidden_sizes else 1e-4}
    if case.hidden_sizes:
        settings["policy_kwargs"] = {"net_arch": list(case.hidden_sizes)}
    algorithm = "a2c" if case.algorithm == "acting" else case.algorithm
    if algorithm in ("dqn", "sac", "td3"):
        settings |= {
            "batch_size": case.batch_size,
            "buffer_size": case.buffer_size,
            "learning_starts": case.warmup // 4,
            # Counted in steps of all environments together.
            "train_freq": case.train_frequency // case.num_envs,
            "gradient_steps": case.gradient_steps,
        }
    if algorithm == "dqn":
        settings["target_update_interval"] = 500
    if algorithm in ("ppo", "a2c"):
        settings["n_steps"] = case.num_steps or 5
    if algorithm == "ppo":
        settings |= {"n_epochs": case.num_epochs, "batch_size": case.batch_size}
    policy = "MlpPolicy" if case.hidden_sizes else "CnnPolicy"
    return getattr(library, algorithm.upper())(policy, envs, device="cpu", **settings)


def act(model: Any, steps: int) -> float:
    """Actions per second for one observation at a time, as in collecting data."""
    import torch
    from stable_baselines3.common.utils import obs_as_tensor

    state = model.env.reset()
    start = time.perf_counter()
    for _ in range(steps):
        with torch.no_grad():
            actions, _, _ = model.policy(obs_as_tensor(state, model.device))
        actions.cpu().numpy()
    return steps / (time.perf_counter() - start)


def main() -> None:
    """Prints one line of JSON."""
    case, threads, peer = CASES[sys.argv[1]], int(sys.argv[2]), sys.argv[3]
    warnings.simplefilter("ignore")
    if peer == SBX:
        if threads == 1 and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # JAX takes all cores it may
        import sbx as library
    else:
        import stable_baselines3 as library
        import torch

        torch.set_num_threads(threads)
    model = build(case, library)
    if case.algorithm == "acting":
        act(model, case.warmup)
        rate = act(model, case.steps)
    else:
        model.learn(case.warmup)
        before = model.num_timesteps
        start = time.perf_counter()
        model.learn(case.steps, reset_num_timesteps=False)
        rate = (model.num_timesteps - before) / (time.perf_counter() - start)
    print(json.dumps({"steps_per_second": rate}))


if __name__ == "__main__":
    main()
