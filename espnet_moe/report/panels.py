"""Pictures side by side: heat maps with their numbers, and places for anything else."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SIDES = ("rows", "columns")


def heat_maps(
    figure: Any,
    maps: Sequence[tuple[str, Mapping[str, Any]]],
    low: float = 0.0,
    high: float = 1.0,
    labels: tuple[str, str] = ("", ""),
    colours: str = "",
    decimals: int = 2,
) -> None:
    """Matrices side by side: ``names`` (or ``rows`` and ``columns``), ``values``, and ``marks``.

    One colour scale serves all, centred where it has two sides.
    """
    across = len(maps) if len(maps) <= 3 else min(4, -(-len(maps) // 2))
    down = -(-len(maps) // across)
    high_up, wide = (max(len(_names(each, side)) for _, each in maps) for side in SIDES)
    longest = max(len(name) for _, each in maps for name in _names(each, "columns"))
    figure.set_size_inches(
        across * max(3.0, 0.55 * wide + 1.2),
        down * (max(1.8, 0.5 * high_up + 0.6) + 0.07 * longest),
    )
    places = figure.subplots(down, across, squeeze=False).ravel()
    colours = colours or ("RdBu_r" if low < 0 else "Blues")
    image = None
    for axes, (title, each) in zip(places, maps, strict=False):
        values = np.array(each["values"], dtype=float)  # None: not known
        image = axes.imshow(values, cmap=colours, vmin=low, vmax=high, aspect="auto")
        for (y, x), value in np.ndenumerate(values):
            if np.isnan(value):
                continue
            share = abs(2 * (value - low) / (high - low) - 1) if low < 0 else value / high
            mark = each["marks"][y][x] if "marks" in each else ""
            axes.text(
                *(x, y, f"{round(float(value), decimals) + 0.0:.{decimals}f}{mark}"),
                ha="center",
                va="center",
                fontsize="small",
                color="white" if share > 0.6 else "black",
            )
        rows, columns = (_names(each, side) for side in SIDES)
        turned = {"rotation": 45, "ha": "right"} if longest > 5 else {}
        axes.set_xticks(range(len(columns)), columns, **turned)
        axes.set_yticks(range(len(rows)), rows)
        axes.set(xlabel=labels[0], ylabel=labels[1])
        axes.set_title(title, fontsize="medium")
    for axes in places[len(maps) :]:
        axes.axis("off")
    if image is not None:
        figure.colorbar(image, ax=list(places), shrink=0.8)


def _names(each: Mapping[str, Any], side: str) -> list[str]:
    return list(each[side] if side in each else each["names"])


def panels(figure: Any, count: int, width: float = 3.4, height: float = 3.0) -> list[Any]:
    """Places for so many pictures of one kind, four in a line."""
    across = min(4, count)
    down = -(-count // across)
    figure.set_size_inches(across * width, down * height)
    places = list(figure.subplots(down, across, squeeze=False).ravel())
    for axes in places[count:]:
        axes.axis("off")
    return places[:count]
