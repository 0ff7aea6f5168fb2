"""Draws what a table holds: V and policy on a grid world's map or over Blackjack's states."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import plots
from common.environments.tabular import grid_of

import gymnasium as gym
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

ARROWS = {  # Gymnasium's action numbers -> direction (columns to the right, rows down)
    "FrozenLake": ((-1, 0), (0, 1), (1, 0), (0, -1)),
    "CliffWalking": ((0, -1), (1, 0), (0, 1), (-1, 0)),
}
BLACKJACK_STATES = 32 * 11 * 2
ROLES = {"S": "start", "G": "goal", "H": "hole", "C": "cliff"}


def draw_values(
    path: Path, env: gym.Env, env_id: str, V: np.ndarray, policy: np.ndarray, title: str
) -> None:
    """Draws V and a policy where the environment has a picture: grid worlds and Blackjack.

    Args:
        path: the picture's file; not written for other environments.
        env: the environment.
        env_id: its id.
        V: values, [S].
        policy: action of each state, [S].
        title: of the picture.
    """
    name = env_id.split("-")[0].removesuffix("8x8").removesuffix("Slippery")
    grid = grid_of(env)
    if grid is not None and name in ARROWS:
        size = (0.9 * len(grid[0]) + 2.2, 0.8 * len(grid) + 1.2)
        with plots.figure(path, size=size) as [axes]:
            draw_map(axes, grid, V, policy, ARROWS[name], title)
    elif name == "Blackjack" and len(V) == BLACKJACK_STATES:
        draw_blackjack(path, V, policy, title)


def draw_blackjack(path: Path, V: np.ndarray, policy: np.ndarray, title: str) -> None:
    """Heat maps of V with its contour, and policy tables, with and without a usable ace.

    Args:
        path: the picture's file.
        V: values, [704] in the order of (player's sum, dealer's card, usable ace).
        policy: 0 stick, 1 hit, [704].
        title: of the picture.
    """
    values, actions = V.reshape(32, 11, 2), policy.reshape(32, 11, 2)
    sums, cards = np.arange(12, 22), np.arange(1, 11)
    place: dict[str, Any] = {
        "origin": "lower",
        "extent": (0.5, 10.5, 11.5, 21.5),
        "aspect": "auto",
    }
    with plots.figure(path, rows=2, columns=2, size=(10.0, 8.0)) as axes:
        axes[0].figure.suptitle(title)
        for column, usable in enumerate((1, 0)):
            ace = "usable ace" if usable else "no usable ace"
            top, bottom = axes[column], axes[2 + column]
            V_shown = values[12:22, 1:11, usable]
            image = top.imshow(V_shown, cmap="viridis", vmin=-1, vmax=1, **place)
            lines = top.contour(cards, sums, V_shown, (-0.5, 0.0, 0.5), colors="white")
            top.clabel(lines, fmt="%g")
            top.figure.colorbar(image, ax=top, label="V(s): expected return")
            top.set_title(f"value, {ace}")
            shown = actions[12:22, 1:11, usable]
            bottom.imshow(shown, cmap="Blues", vmin=0, vmax=1.6, **place)
            for i, total in enumerate(sums):
                for j, card in enumerate(cards):
                    letter = "H" if shown[i, j] else "S"
                    bottom.text(float(card), float(total), letter, ha="center", va="center", size=8)
            bottom.set_title(f"policy, {ace}: H hit, S stick")
            for panel in (top, bottom):
                panel.set_xticks(cards, ["A", *map(str, range(2, 11))])
                panel.set_yticks(sums)
                panel.set(xlabel="dealer's card", ylabel="player's sum")
                panel.grid(False)


def draw_map(
    axes: Axes,
    grid: Sequence[str],
    values: np.ndarray,
    policy: np.ndarray | None,
    directions: Sequence[tuple[int, int]],
    title: str,
) -> None:
    """Heat map of V(s) with numbers, the names of special cells, and the policy's arrows.

    Args:
        axes: where to draw.
        grid: rows of letters, see `common.environments.tabular.grid_of`.
        values: V, [S], in the order of the cells.
        policy: action of each state, [S], or None for no arrows.
        directions: (right, down) of each action.
        title: of the picture.
    """
    rows, columns = len(grid), len(grid[0])
    table = np.asarray(values, float).reshape(rows, columns)
    image = axes.imshow(table, cmap="viridis", aspect="equal")
    middle = (table.min() + table.max()) / 2
    digits = 0 if np.abs(table).max() >= 10 else 2
    for row in range(rows):
        for column in range(columns):
            role = ROLES.get(grid[row][column], "")
            colour = "white" if table[row, column] < middle else "black"
            ends = role in ("goal", "hole", "cliff")
            if ends:
                shade = "#2ca02c" if role == "goal" else "#333333"
                axes.add_patch(_square(column, row, shade))
                colour = "white"
            label = role if ends else f"{table[row, column]:.{digits}f}"
            axes.text(column, row + 0.32, label, ha="center", va="center", color=colour, size=7)
            if role == "start":
                axes.text(column, row - 0.36, role, ha="center", va="center", color=colour, size=7)
            if policy is not None and not ends:
                right, down = directions[int(policy[row * columns + column])]
                axes.annotate(
                    "",
                    xy=(column + 0.24 * right, row - 0.03 + 0.2 * down),
                    xytext=(column - 0.24 * right, row - 0.03 - 0.2 * down),
                    arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.4},
                )
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows))
    axes.set_xlabel("column")
    axes.set_ylabel("row")
    axes.set_title(title)
    axes.grid(False)
    axes.figure.colorbar(image, ax=axes, label="V(s)", shrink=0.8)


def _square(column: int, row: int, colour: str) -> Rectangle:
    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour)
