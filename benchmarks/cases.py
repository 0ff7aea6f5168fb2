"""What is compared: one entry per benchmark, the same numbers for both sides.

This file is read by both sides, so it imports nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass

SB3 = "Stable-Baselines3"


@dataclass(frozen=True)
class Case:
    """One piece of work."""

    name: str
    algorithm: str  # "ppo", "dqn" or one of its variants
    env_id: str
    num_envs: int
    warmup: int  # environment steps before the clock starts: compiling, filling the buffer
    steps: int  # environment steps that are timed
    goal: float  # median ratio we want
    batch_size: int  # DQN: transitions per update; PPO: minibatch
    train_frequency: int = 0  # DQN: environment steps between trainings
    gradient_steps: int = 1  # DQN: updates per training
    hidden_sizes: tuple[int, ...] = ()  # empty: Nature CNN
    num_steps: int = 0  # PPO: steps per environment and batch
    num_epochs: int = 0  # PPO
    buffer_size: int = 10_000
    threads: tuple[int, ...] = (1, 2)  # both sides try these and keep what is faster
    peer: str = SB3  # or "dqn.py": what a variant costs; the goal is then a part of DQN's speed


def variant(algorithm: str, goal: float, env_id: str = "CartPole-v1") -> Case:
    """A variant of DQN against `dqn.py` with the same flags, the default ones of `dqn.py`."""
    return Case(
        f"{algorithm.removesuffix('_dqn')}-cartpole",
        algorithm,
        env_id,
        num_envs=8,
        warmup=8_192,
        steps=65_536,
        goal=goal,
        batch_size=128,
        train_frequency=256,
        gradient_steps=128,
        hidden_sizes=(120, 84),
        buffer_size=100_000,
        peer="dqn.py",
    )


CASES = {
    case.name: case
    for case in (
        Case("dqn-cartpole-8envs", "dqn", "CartPole-v1", 8, 4_000, 60_000, 2.0, 128, 8, (120, 84)),
        Case("dqn-cartpole-1env", "dqn", "CartPole-v1", 1, 2_000, 30_000, 1.5, 128, 10, (120, 84)),
        Case("dqn-pong", "dqn", "ALE/Pong-v5", 1, 500, 2_500, 1.3, 32, 4),
        Case(
            "ppo-cartpole",
            "ppo",
            "CartPole-v1",
            8,
            8 * 1024,
            96 * 1024,
            2.0,
            256,
            hidden_sizes=(64, 64),
            num_steps=128,
            num_epochs=4,
        ),
        variant("double_dqn", 0.87),
        variant("dueling_dqn", 0.87),
        variant("prioritized_dqn", 0.74),
        variant("drqn", 0.0, "common.environments.partial:CartPoleNoVelocity-v0"),
    )
}
