"""What is compared: one entry per benchmark, the same numbers for both sides.

This file is read by both sides, so it imports nothing but the standard library.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

SB3, SBX = "Stable-Baselines3", "SBX"


@dataclass(frozen=True)
class Case:
    """One piece of work."""

    name: str
    algorithm: str  # "dqn" or one of its variants, "ppo", "a2c", "sac", "td3"; "acting"
    env_id: str
    _: KW_ONLY
    num_envs: int
    warmup: int  # environment steps before the clock starts: compiling, filling the buffer
    steps: int  # environment steps that are timed
    goal: float | tuple[float, ...]  # median ratio we want, to each peer
    batch_size: int = 0  # off-policy: transitions per update; PPO: minibatch
    train_frequency: int = 0  # off-policy: environment steps between trainings
    gradient_steps: int = 1  # off-policy: updates per training
    hidden_sizes: tuple[int, ...] = ()  # empty: Nature CNN
    num_steps: int = 0  # on-policy: steps per environment and batch
    num_epochs: int = 0  # PPO
    buffer_size: int = 10_000
    threads: tuple[int, ...] = (1, 2)  # both sides try these and keep what is faster
    # Or "dqn.py": what a variant costs; the goal is then a part of DQN's speed.
    peers: tuple[str, ...] = (SB3,)

    def goals(self) -> dict[str, float]:
        """The goal for each peer."""
        goals = self.goal if isinstance(self.goal, tuple) else (self.goal,)
        return dict(zip(self.peers, goals, strict=True))


def variant(algorithm: str, goal: float, env_id: str = "CartPole-v1") -> Case:
    """A variant of DQN against `dqn.py` with the same flags; blocks and sizes as `dqn.py` has them.

    Both run on two threads, as the scripts do; no trial decides.
    """
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
        threads=(2,),
        peers=("dqn.py",),
    )


def continuous(algorithm: str) -> Case:
    """An off-policy algorithm on Pendulum with its script's default blocks of updates."""
    return Case(
        f"{algorithm}-pendulum",
        algorithm,
        "Pendulum-v1",
        num_envs=1,
        warmup=2_000,
        steps=4_000,
        goal=(2.2, 1.1),
        batch_size=256,
        train_frequency=4,
        gradient_steps=4,
        hidden_sizes=(256, 256),
        buffer_size=100_000,
        peers=(SB3, SBX),
    )


CASES = {
    case.name: case
    for case in (
        Case(
            "dqn-cartpole-8envs",
            "dqn",
            "CartPole-v1",
            num_envs=8,
            warmup=4_000,
            steps=60_000,
            goal=2.0,
            batch_size=128,
            train_frequency=8,
            hidden_sizes=(120, 84),
        ),
        Case(
            "dqn-cartpole-1env",
            "dqn",
            "CartPole-v1",
            num_envs=1,
            warmup=2_000,
            steps=30_000,
            goal=1.5,
            batch_size=128,
            train_frequency=10,
            hidden_sizes=(120, 84),
        ),
        Case(
            "dqn-pong",
            "dqn",
            "ALE/Pong-v5",
            num_envs=1,
            warmup=500,
            steps=2_500,
            goal=1.3,
            batch_size=32,
            train_frequency=4,
        ),
        Case(
            "ppo-cartpole",
            "ppo",
            "CartPole-v1",
            num_envs=8,
            warmup=8 * 1024,
            steps=96 * 1024,
            goal=2.0,
            batch_size=256,
            hidden_sizes=(64, 64),
            num_steps=128,
            num_epochs=4,
        ),
        Case(
            "a2c-cartpole",
            "a2c",
            "CartPole-v1",
            num_envs=8,
            warmup=8 * 1024,
            steps=96 * 1024,
            goal=2.0,
            hidden_sizes=(64, 64),
            num_steps=5,
        ),
        Case(
            "acting",
            "acting",
            "CartPole-v1",
            num_envs=1,
            warmup=2_000,
            steps=20_000,
            goal=2.0,
            hidden_sizes=(64, 64),
        ),
        continuous("sac"),
        continuous("td3"),
        variant("double_dqn", 0.87),
        variant("dueling_dqn", 0.87),
        variant("prioritized_dqn", 0.74),
        variant("drqn", 0.0, "common.environments.partial:CartPoleNoVelocity-v0"),
    )
}
