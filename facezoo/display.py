"""How models and results show themselves: one line of text, and a small table in a notebook."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import fields
from html import escape
from itertools import islice
from typing import Any

WORDS = 5
"""Faces that a line of text tells of."""
ROWS = 10
"""Rows that a table shows."""
_LEFT = 'style="text-align:left"'
_BAR = (
    "display:inline-block;vertical-align:middle;height:0.7em;margin-right:0.4em;background:#5c6bc0;"
)


class Short:
    """A dataclass of tensors that shows their shapes: on one line, and as a table in a notebook.

    Mixed in first, and with ``@dataclass(repr=False)``.
    """

    def _line(self) -> str:
        """What stands between the brackets of ``repr``."""
        return ", ".join(f"{name} {said}" for name, said in self._said().items())

    def _table(self) -> str:
        """What a notebook shows below the name of the class, as HTML."""
        return table([], self._said().items())

    def _said(self) -> dict[str, str]:
        """Tensors by their shapes, other fields as they are; what is None is left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {
            name: str(tuple(value.shape)) if hasattr(value, "shape") else str(value)
            for name, value in values.items()
            if value is not None
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._line()})"

    def _repr_html_(self) -> str:
        return f"<div><b>{escape(type(self).__name__)}</b></div>{self._table()}"


class ShortModel(Short):
    """Mixed into every model before ``nn.Module``, whose own ``repr`` lists every layer."""

    def _line(self) -> str:
        model: Any = self
        name = model.card.name if model.card else f"{model.model_name}, random weights"
        return f"{name}, {_millions(model)}, {model.device}, {_plain(model.dtype)}"

    def _table(self) -> str:
        model: Any = self
        rows = {"checkpoint": self._line(), "can": ", ".join(model.capabilities())}
        if model.preprocessing is not None:
            size = model.preprocessing.size
            rows["input"] = f"{size} × {size} pixels, template {model.preprocessing.template}"
        if model.labels:
            rows["classes"] = ", ".join(model.labels)
        if model.card is not None:
            rows["licence of the weights"] = model.card.licenses.weights
            rows["limits"] = f"{len(model.card.limits)} are on record: model.card.limits"
        return table([], rows.items())


def counted(count: int, word: str) -> str:
    """``"1 face"``, ``"2 faces"``."""
    return f"{count} {word}" + ("s" if count != 1 else "")


def listed(words: Iterable[str], count: int) -> str:
    """The first few of ``count`` words, and how many more there are."""
    shown = list(islice(words, WORDS))
    more = [f"{count - len(shown)} more"] if count > len(shown) else []
    return ", ".join([*shown, *more])


def table(header: Sequence[str], rows: Iterable[Iterable[str | float]], count: int = 0) -> str:
    """A table as HTML.

    Args:
        header: titles of the columns, or none.
        rows: texts, and shares in [0, 1], which become bars; at most ``ROWS`` are shown.
        count: how many rows there are in all, if more than those given.
    """
    shown = list(islice(rows, ROWS))
    head = "".join(f"<th {_LEFT}>{escape(title)}</th>" for title in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in shown)
    more = f"<div>… {count - len(shown)} more</div>" if count > len(shown) else ""
    return f"<table>{f'<tr>{head}</tr>' if header else ''}{body}</table>{more}"


def _cell(value: str | float) -> str:
    if isinstance(value, str):
        return f"<td {_LEFT}>{escape(value)}</td>"
    if not math.isfinite(value):
        return f"<td {_LEFT}>–</td>"
    return f'<td {_LEFT}><span style="{_BAR}width:{4 * value:.2f}em"></span>{value:.0%}</td>'


def _millions(model: Any) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters"


def _plain(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
