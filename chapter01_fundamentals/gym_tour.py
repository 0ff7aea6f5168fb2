"""A tour of Gymnasium: spaces, transition tables, episodes, a random policy, an Atari film.

Book: chapter 2, A Guide to the Gym Toolkit, "Creating our first Gym environment"

Idea
----
Every environment speaks one language: `reset` begins an episode, `step` takes an action and says
what came of it, and two spaces say what observations and actions look like. FrozenLake also shows
its inside, the table of all transitions, which planning needs (`dp_value_iteration.py`) and
learning does not. A policy that draws its actions at random needs neither; what it scores is what
every learner has to beat.

Equations
---------
    P[s][a] = [(P(s'|s, a), s', r, terminated), ...], one entry per possible outcome       (1)
    return of an episode = r_1 + r_2 + ... + r_T                                           (2)
    mean of n returns, with standard error: their standard deviation / √n                  (3)

Differs from the book
---------------------
1. The book's `gym` is now Gymnasium: `reset` also returns an info dictionary and takes the seed;
   `step` tells an end of the task (`terminated`) from a time limit (`truncated`).
2. CartPole ends after 500 steps (v1), not after 200. A random policy never gets that far.
3. The Atari game is filmed by `common/video.py`, in colour, while the player sees what learners
   see: four small grey frames. Tennis, as in the book: `--game ALE/Tennis-v5`.

How to run
----------
    python chapter01_fundamentals/gym_tour.py
    python chapter01_fundamentals/gym_tour.py --game ALE/Breakout-v5 --seed 1
    python chapter01_fundamentals/gym_tour.py --env-id MountainCarContinuous-v0 --num-episodes 20
    python chapter01_fundamentals/gym_tour.py --no-capture-video

Expected
--------
Measured: CartPole at random 22.1, 22.9, 22.1 ± 0.4 (seeds 0, 1, 2; 100,000 episodes: 22.2), 8 s

Of a thousand random episodes the shortest lasts 8 steps, the longest 82 to 127; 500 would be all.
Pong is lost by 21 points or nearly so: the film shows what a DQN begins with.

Paper
-----
Towers et al., "Gymnasium: A standard interface for reinforcement learning environments", 2024.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common import plots, video
from common.cli import command, parse
from common.config import RunConfig
from common.environments import make_env, make_envs, reset_seed
from common.errors import UserError
from common.evaluation import report_measure
from common.run import Policy, Result, Run

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Discrete

CARTPOLE, TOLERANCE = 22.0, 1.5  # random return; four standard errors of 1000 episodes
PER_ROW = 6  # pictures of FrozenLake side by side
STRIP = 10  # pictures of the game that are drawn, at most


@dataclass(frozen=True)
class Config(RunConfig):
    """What is shown; the defaults are the book's CartPole and an Atari game."""

    env_id: str = "CartPole-v1"  # Gymnasium id or module:Id-v0, played by a random policy
    seed: int = 0  # of everything random
    num_episodes: int = 1_000  # episodes of the random policy
    game: str = "ALE/Pong-v5"  # Atari game (or any environment that draws itself) to film
    capture_video: bool = True  # play the game; film to videos/, pictures to game.png


def show_frozen_lake(seed: int) -> None:
    """Prints FrozenLake's spaces, one entry of its table, and an episode of random actions."""
    env = make_env("FrozenLake-v1", render_mode="ansi")
    print("FrozenLake-v1: from S to G over the ice (F), past the holes (H)")
    print(f"  observations  {env.observation_space}: the number of the agent's cell, row by row")
    print(f"  actions       {env.action_space}: 0 left, 1 down, 2 right, 3 up; the ice is slippery")
    print("  P[14][2], what may happen to the left of the goal on a step to the right:")
    for probability, next_state, reward, terminated in env.unwrapped.P[14][2]:  # (1)
        then = "the episode ends" if terminated else "it goes on"
        print(f"    with probability {probability:.3f} to {next_state}, reward {reward}, {then}")

    print("  an episode of random actions, the agent in brackets:")
    env.action_space.seed(seed)
    state, _ = env.reset(seed=seed)
    pictures, done = [lines_of(env.render(), f"start: {state}")], False
    while not done:
        state, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        pictures.append(lines_of(env.render(), f"to {state}"))
        done = terminated or truncated
    for first in range(0, len(pictures), PER_ROW):
        for line in zip(*pictures[first : first + PER_ROW], strict=True):
            print("    " + "".join(f"{part:<18}" for part in line).rstrip())
    print("  the end:", "goal" if reward else "a hole" if terminated else "the time limit")


def lines_of(picture: str, caption: str) -> list[str]:
    """Lines of FrozenLake's text picture; the colour of the agent's cell becomes brackets."""
    action, *rows = picture.rstrip().split("\n")
    cell = "\x1b\\[41m(.)\x1b\\[0m|(.)"
    rows = [re.sub(cell, lambda m: f"[{m[1]}]" if m[1] else f" {m[2]} ", row) for row in rows]
    return [f" {action.strip(' ()').lower()} {caption}".replace("  ", " "), *rows]


def newest(module: str) -> list[str]:
    """Ids of the environments that a module of Gymnasium defines, each in its newest version."""
    ids = [name for name, spec in gym.registry.items() if module in str(spec.entry_point)]
    versions = {name.rpartition("-v")[0]: name for name in sorted(ids)}
    return list(versions.values())


def show_spaces(ids: Iterable[str]) -> None:
    """Prints a table of observation and action spaces."""
    print(f"  {'environment':<26}{'observations, bounds of each':<52}{'actions':<18}time limit")
    for env_id in ids:
        env = make_env(env_id)
        spaces = describe(env.observation_space), describe(env.action_space)
        limit = env.spec.max_episode_steps if env.spec else None
        print(f"  {env_id:<26}{spaces[0]:<52}{spaces[1]:<18}{limit or 'none'}")


def describe(space: gym.Space) -> str:
    """`Discrete(2)`, or the bounds of each component of a Box."""
    if not isinstance(space, Box):
        return str(space)
    bounds = [f"{low:.3g}..{high:.3g}" for low, high in zip(space.low, space.high, strict=True)]
    return " ".join(bounds)


def random_policy(game: str, seed: int) -> Policy:
    """Draws an action from the space's own generator for every observation."""
    envs = make_envs(game, 1, training=False)
    space = envs.single_action_space
    envs.close()
    space.seed(seed)
    return lambda state: np.array([space.sample() for _ in state])


def evenly(pictures: Iterable[np.ndarray], most: int) -> list[tuple[int, np.ndarray]]:
    """At most so many pictures of a film of unknown length, with their numbers, evenly spaced."""
    kept: list[tuple[int, np.ndarray]] = []
    stride = 1
    for number, picture in enumerate(pictures):
        if number % stride == 0 and len(kept) == most:  # too many: from now on every second one
            kept, stride = kept[::2], 2 * stride
        if number % stride == 0:
            kept.append((number, picture))
    return kept


def draw_strip(path: Path, game: str, seed: int) -> None:
    """Draws pictures of the whole episode side by side."""
    _, pictures = video.frames_of(random_policy(game, seed), game, seed, {})
    kept = evenly(pictures, STRIP)
    with plots.figure(path, columns=len(kept), size=(2.0 * len(kept), 2.9)) as panels:
        for axes, (number, picture) in zip(panels, kept, strict=True):
            axes.imshow(picture)
            axes.set_title(f"step {number}")
            axes.set_axis_off()


def check_game(game: str) -> None:
    """Refuses what cannot be played or filmed, before anything else is done."""
    try:
        video.frames_of(random_policy(game, 0), game, 0, {})
    except UserError as error:
        told = str(error).replace("--env-id", "--game").replace("--capture-video:", "--game")
        raise UserError(told) from error


def train(config: Config) -> Result:
    """Shows FrozenLake and classic control, plays at random; see `Config` for what can be set."""
    env = make_env(config.env_id)
    if not isinstance(env.action_space, Box | Discrete):
        raise UserError(
            f"--env-id {config.env_id}: actions must be Discrete or Box; try CartPole-v1"
        )
    if config.capture_video:
        check_game(config.game)
    run = Run(config, __file__)
    show_frozen_lake(config.seed)
    print("\nclassic control:")
    show_spaces(newest("classic_control"))

    env.action_space.seed(config.seed)
    returns = np.zeros(config.num_episodes)
    run.track(returns=returns, actions=env.action_space.np_random)
    for episode in run.steps(config.num_episodes, unit="episode"):
        env.reset(seed=run.episode_seed)
        episode_length, done = 0, False
        while not done:
            action = env.action_space.sample()
            _, reward, terminated, truncated, _ = env.step(action)
            returns[episode] += float(reward)  # (2)
            episode_length, done = episode_length + 1, terminated or truncated
        metrics = {"charts/episode_return": returns[episode]}
        run.log(metrics | {"charts/episode_length": episode_length})

    mean, error = returns.mean(), returns.std() / np.sqrt(len(returns))  # (3)
    with plots.figure(run.run_dir / "random_returns.png") as [axes]:
        low, high = returns.min(), returns.max()
        axes.hist(returns, np.arange(low - 0.5, high + 2.0, max(1.0, (high - low) // 40)))
        axes.axvline(mean, color="black", label=f"mean {mean:.2f} ± {error:.2f}")
        axes.set(xlabel="return of an episode", ylabel="episodes")
        axes.set_title(f"{config.env_id}, random policy")
        axes.legend()
    facts = {"mean_return": float(mean), "standard_error": float(error)}
    facts |= {"smallest_return": float(low), "largest_return": float(high)}

    if config.capture_video:
        seed = reset_seed(config.seed, 1)
        film = run.run_dir / "videos" / f"{config.game.replace('/', '-').replace(':', '-')}.mp4"
        print("video:", video.record(random_policy(config.game, seed), config.game, seed, film))
        draw_strip(run.run_dir / "game.png", config.game, seed)
    return run.finish(None, facts)


@command
def main() -> None:
    """Tours, and compares CartPole's random score with the known one."""
    config = parse(Config, __doc__)
    result = train(config)
    mean = result.facts["mean_return"]
    if config.env_id == "CartPole-v1":
        off = abs(mean - CARTPOLE)
        report_measure(result, config, f"distance from {CARTPOLE:g}", off, TOLERANCE, at_most=True)
    else:
        report_measure(result, config, "mean return", mean)


if __name__ == "__main__":
    main()
