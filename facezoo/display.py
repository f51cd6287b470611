"""Text and HTML that results and models show of themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice
from typing import Any

WORDS = 5
"""Number of faces in a line of text."""
ROWS = 10
"""Number of rows in an HTML table."""
_LEFT = 'style="text-align:left"'
_BAR = (
    "display:inline-block;vertical-align:middle;height:0.7em;margin-right:0.4em;background:#5c6bc0;"
)


def model_line(model: Any) -> str:
    """Describe a model in a line: checkpoint, size, device and precision."""
    name = model.card.name if model.card else f"{model.model_name}, random weights"
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{name}, {millions:.1f} M parameters, {model.device}, {dtype}"


def model_rows(model: Any) -> dict[str, str]:
    """Return the rows of a model's table in a notebook."""
    rows = {"checkpoint": model_line(model), "capabilities": ", ".join(model.capabilities())}
    if model.preprocessing is not None:
        size = model.preprocessing.size
        rows["input"] = f"{size} × {size} pixels, template {model.preprocessing.template}"
    if model.labels:
        rows["classes"] = ", ".join(model.labels)
    if model.card is not None:
        rows["license of the weights"] = model.card.licenses.weights
        rows["limits"] = f"{len(model.card.limits)}, see model.card.limits"
    return rows


def counted(count: int, word: str) -> str:
    """Return ``"1 face"``, ``"2 faces"``."""
    return f"{count} {word}" + ("s" if count != 1 else "")


def titled(value: object, body: str) -> str:
    """Return HTML below the name of a value's class."""
    return f"<div><b>{escape(type(value).__name__)}</b></div>{body}"


def table(header: Sequence[str], rows: Iterable[Iterable[str | float]], count: int = 0) -> str:
    """Format a table as HTML.

    Args:
        header: titles of the columns, or none.
        rows: texts, and shares in [0, 1], which become bars; at most ``ROWS`` are shown.
        count: number of all rows, if it is larger than that of ``rows``.
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
