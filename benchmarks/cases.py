"""What is compared: one entry per benchmark, the same numbers for both sides.

This file is read by both sides, so it imports nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One piece of work."""

    name: str
    algorithm: str  # "dqn" or "ppo"
    env_id: str
    num_envs: int
    warmup: int  # environment steps before the clock starts: compiling, filling the buffer
    steps: int  # environment steps that are timed
    goal: float  # median ratio we want
    batch_size: int  # DQN: transitions per update; PPO: minibatch
    train_frequency: int = 0  # DQN: environment steps per update
    hidden_sizes: tuple[int, ...] = ()  # empty: Nature CNN
    num_steps: int = 0  # PPO: steps per environment and batch
    num_epochs: int = 0  # PPO
    buffer_size: int = 10_000
    threads: tuple[int, ...] = (1, 2)  # both sides try these and keep what is faster


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
    )
}
