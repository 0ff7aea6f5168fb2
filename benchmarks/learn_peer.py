"""Trains Stable-Baselines3's SAC or TD3 and leaves a run folder that `common.plot` can draw.

    .venv-bench/bin/python benchmarks/learn_peer.py sac HalfCheetah-v5 100000 --seed 0
    .venv/bin/python -m common.plot runs/sac runs/Stable-Baselines3

With Stable-Baselines3's own defaults, but for the flags; the evaluation is that of our scripts: 100
episodes with the mean action. Runs in the environment of the peers, so it imports nothing of ours.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import time
from pathlib import Path

LOG_POINTS = 200  # rows of metrics.csv, as in `common/run.py`


def main() -> None:
    """Trains, evaluates, writes config.json, metrics.csv and evaluation.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("algorithm", choices=["sac", "td3"])
    parser.add_argument("env_id", help="a Gymnasium id")
    parser.add_argument("total_timesteps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--learning-starts", type=int, default=10_000)
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[256, 256])
    parser.add_argument("--threads", type=int, default=2)
    flags = parser.parse_args()

    import numpy as np
    import stable_baselines3
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.noise import NormalActionNoise

    class Returns(BaseCallback):
        """Collects (step, return) of every episode that ends in training."""

        def __init__(self) -> None:
            super().__init__()
            self.ended: list[tuple[int, float]] = []

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    self.ended.append((self.num_timesteps, float(info["episode"]["r"])))
            return True

    torch.set_num_threads(flags.threads)
    envs = make_vec_env(flags.env_id, 1, seed=flags.seed)
    settings = {}
    if flags.algorithm == "td3":  # our scale of exploration; Stable-Baselines3 has none of its own
        size = envs.action_space.shape[0]
        settings["action_noise"] = NormalActionNoise(np.zeros(size), np.full(size, 0.1))
    model = getattr(stable_baselines3, flags.algorithm.upper())(
        "MlpPolicy",
        envs,
        seed=flags.seed,
        device="cpu",
        learning_rate=flags.learning_rate,
        learning_starts=flags.learning_starts,
        policy_kwargs={"net_arch": flags.hidden_sizes},
        train_freq=1,
        gradient_steps=1,
        batch_size=256,
        **settings,
    )
    returns = Returns()
    start = time.perf_counter()
    model.learn(flags.total_timesteps, callback=returns)
    seconds = time.perf_counter() - start
    scores, _ = evaluate_policy(
        model,
        make_vec_env(flags.env_id, 1, seed=flags.seed + 10_000),
        100,
        return_episode_rewards=True,
    )

    name = f"Stable-Baselines3 {flags.algorithm.upper()}"
    run_dir = Path("runs") / "Stable-Baselines3" / flags.algorithm / flags.env_id
    run_dir = run_dir / f"seed{flags.seed}"
    run_dir.mkdir(parents=True)
    config = {key: value for key, value in vars(flags).items() if key != "threads"}
    document = {"script": name, "config": config, "cores": os.cpu_count()}
    (run_dir / "config.json").write_text(json.dumps(document, indent=2) + "\n")
    with open(run_dir / "metrics.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "charts/episode_return"])
        width = max(1, flags.total_timesteps // LOG_POINTS)
        for stop in range(width, flags.total_timesteps + 1, width):
            ended = [score for step, score in returns.ended if stop - width < step <= stop]
            rows.writerow([stop, statistics.fmean(ended) if ended else ""])
    evaluation = {
        "env_id": flags.env_id,
        "seed": flags.seed,
        "episodes": len(scores),
        "mean_return": statistics.fmean(scores),
        "std_return": statistics.pstdev(scores),
        "returns": scores,
        "total_timesteps": flags.total_timesteps,
        "train_seconds": seconds,
        "steps_per_second": flags.total_timesteps / seconds,
    }
    (run_dir / "evaluation.json").write_text(json.dumps(evaluation, indent=2) + "\n")
    print(f"{name} on {flags.env_id}, seed {flags.seed}: {evaluation['mean_return']:.1f}")


if __name__ == "__main__":
    main()
