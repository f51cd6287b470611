"""Colors, names and tables in the panels of figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from matplotlib import colormaps
from torch import Tensor

from facezoo.plot.annotation import COLORS
from facezoo.results import EXPRESSIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def colors_of(names: Sequence[str]) -> list[Any]:
    """Return a color per class or name; not everyone can distinguish more than eight."""
    if set(names) <= set(EXPRESSIONS):
        return [COLORS[EXPRESSIONS.index(name)] for name in names]
    if len(names) <= len(COLORS):
        return list(COLORS[: len(names)])
    return [colormaps["viridis"](number / (len(names) - 1)) for number in range(len(names))]


def as_names(names: Sequence[str]) -> list[str]:
    """Convert names to a list; the numbers of a tensor would all differ."""
    return names.tolist() if isinstance(names, Tensor) else list(names)


def draw_cosines(axes: Axes, rows: Tensor, name: str) -> None:
    """Draw a table of the cosines between faces."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    cosines = (unit @ unit.T).numpy()
    axes.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r")
    for row, column in product(range(len(rows)), repeat=2):
        value = cosines[row, column]
        color = "white" if abs(value) > 0.6 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color, fontsize=8)
    ticks = list(range(len(rows)))
    axes.set(title=f"{name}, cosine".removeprefix(", "), xticks=ticks, yticks=ticks)
