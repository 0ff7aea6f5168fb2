"""Draws a grid world: a value in every cell, an arrow for every action the policy takes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

ARROWS = {  # Gymnasium's action numbers -> direction (columns to the right, rows down)
    "FrozenLake": ((-1, 0), (0, 1), (1, 0), (0, -1)),
    "CliffWalking": ((0, -1), (1, 0), (0, 1), (-1, 0)),
}
ROLES = {"S": "start", "G": "goal", "H": "hole", "C": "cliff"}


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


def _square(column: int, row: int, colour: str):  # type: ignore[no-untyped-def]
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour)
