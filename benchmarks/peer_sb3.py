"""One measurement of Stable-Baselines3: `PEER_PYTHON benchmarks/peer_sb3.py CASE THREADS`.

Runs in an environment of its own (`requirements-bench.txt`), so it imports nothing of ours but
the table of cases.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import CASES

import ale_py
import gymnasium as gym
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecFrameStack


def main() -> None:
    """Prints one line of JSON."""
    case, threads = CASES[sys.argv[1]], int(sys.argv[2])
    warnings.simplefilter("ignore")
    torch.set_num_threads(threads)
    gym.register_envs(ale_py)
    if case.env_id.startswith("ALE/"):
        # The wrappers skip frames themselves; sticky actions as the registered game has them.
        ale = {"frameskip": 1, "repeat_action_probability": 0.25}
        envs = make_atari_env(case.env_id, case.num_envs, seed=0, env_kwargs=ale)
        envs = VecFrameStack(envs, 4)
    else:
        envs = make_vec_env(case.env_id, case.num_envs, seed=0)
    network = {"policy_kwargs": {"net_arch": list(case.hidden_sizes)}} if case.hidden_sizes else {}
    policy = "MlpPolicy" if case.hidden_sizes else "CnnPolicy"
    if case.algorithm == "dqn":
        model = DQN(
            policy,
            envs,
            learning_rate=1e-3 if case.hidden_sizes else 1e-4,
            batch_size=case.batch_size,
            buffer_size=case.buffer_size,
            learning_starts=case.warmup // 4,
            # Counted in steps of all environments together.
            train_freq=case.train_frequency // case.num_envs,
            gradient_steps=1,
            target_update_interval=500,
            device="cpu",
            **network,
        )
    else:
        model = PPO(
            policy,
            envs,
            learning_rate=1e-3,
            n_steps=case.num_steps,
            n_epochs=case.num_epochs,
            batch_size=case.batch_size,
            device="cpu",
            **network,
        )
    model.learn(case.warmup)
    before = model.num_timesteps
    start = time.perf_counter()
    model.learn(case.steps, reset_num_timesteps=False)
    rate = (model.num_timesteps - before) / (time.perf_counter() - start)
    print(json.dumps({"steps_per_second": rate}))


if __name__ == "__main__":
    main()
