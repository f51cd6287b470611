"""Draw the charts of this folder from ``docs/results``.

    python docs/charts.py            draws ``docs/images/charts/*.svg``
    python docs/charts.py --check    exits with 1 if a chart was drawn from other numbers

Colors are readable on white and on dark pages; the background is transparent.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
CHARTS = ROOT / "docs" / "images" / "charts"
TEXT, MODEL, LEAK, BASELINE = "#7f8794", "#4f7cd8", "#d9822b", "#a9adb5"
LFW_PAIRS, IDENTIFIED = 1973, 346
"""Pairs of LFW, and tested images of one split of the identification."""
ACCURACIES = ("accuracy", "balanced accuracy")
PROBE = ("expression", "FER+ test", "probe")
PANELS = (
    ("Expression\nFER+ test, 8 classes", "expression", PROBE, "higher"),
    ("Same identity or not\nLFW pairs", "identity", ("identity", "verification"), "higher"),
    (
        "Leakage: identity from\nexpression features\nLFW val",
        "expression",
        ("identity", "identification"),
        "lower",
    ),
    ("Leakage: expression from\nidentity features\nFER+ test", "identity", PROBE, "lower"),
)


def interval(accuracy: float, count: int) -> tuple[float, float]:
    """Compute the 95 % Wilson interval of an accuracy in per cent, of ``count`` images."""
    z, share = 1.96, accuracy / 100
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * sqrt(share * (1 - share) / count + z**2 / (4 * count**2)) / (1 + z**2 / count)
    return 100 * (middle - half), 100 * (middle + half)


def benchmark_numbers() -> dict[str, Any]:
    """Collect accuracy, interval and chance by panel and model."""
    models = _read("benchmark")["models"]
    panels = {}
    for title, space, place, better in PANELS:
        rows = []
        for name, entry in models.items():
            scores = entry["scores"].get(space) or entry["scores"]["features"]
            found: Any = scores
            for key in place:
                found = found[key]
            if place[0] == "expression":
                count = scores["expression"][place[1]]["images"]
            else:
                count = LFW_PAIRS if place[1] == "verification" else IDENTIFIED
            low, high = interval(found["accuracy"], count)
            alone = sum(other["family"] == entry["family"] for other in models.values()) == 1
            short = entry["family"] if entry["family"] and alone else name
            rows.append([short, found["accuracy"], low, high, found["chance"]])
        panels[title] = {"better": better, "rows": rows}
    return panels


def draw_benchmark(panels: dict[str, Any]) -> Any:
    """Draw one panel of bars for each measure."""
    figure, axes = plt.subplots(
        2, 2, figsize=(5, 5.9), sharey=True, sharex=True, layout="constrained"
    )  # narrow, so that its text is readable on a phone
    for axis, (title, panel) in zip(axes.flat, panels.items(), strict=True):
        for row, (name, accuracy, low, high, _) in enumerate(panel["rows"]):
            color = MODEL if panel["better"] == "higher" else LEAK
            color = BASELINE if name in ("pixels", "random-network") else color
            axis.barh(row, accuracy, color=color, height=0.62)
            axis.plot([low, high], [row, row], color=TEXT, linewidth=1.6)
            axis.text(high + 3, row, f"{accuracy:.0f}", va="center", color=TEXT)
        chance = panel["rows"][0][4]
        axis.axvline(chance, color=TEXT, linestyle=":", linewidth=1.4)
        axis.set_title(f"{title}\n({panel['better']} is better)", fontsize=9.5, color=TEXT)
        axis.set_yticks(range(len(panel["rows"])), [row[0] for row in panel["rows"]])
        axis.set_xlim(0, 118)
        axis.set_xticks(range(0, 101, 25))
    axes[0, 0].invert_yaxis()
    figure.supxlabel("accuracy in %; dotted: chance; lines on bars: 95 % intervals", fontsize=10)
    return figure


def encode_numbers() -> list[list[Any]]:
    """Collect the speed of ``encode`` by precision and batch."""
    rows = _read("encode")["tables"]["encode"]
    return [[row["dtype"], row["batch"], row["encode, images/s"]] for row in rows]


def draw_encode(rows: list[list[Any]]) -> Any:
    """Draw crops per second over the batch size, one line per precision."""
    figure, axis = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    colors = dict(zip(dict.fromkeys(row[0] for row in rows), (BASELINE, MODEL), strict=True))
    for dtype, color in colors.items():
        batches, speeds = zip(*[row[1:] for row in rows if row[0] == dtype], strict=True)
        axis.plot(batches, speeds, marker="o", color=color)
        axis.annotate(
            dtype, (batches[-1], speeds[-1]), (6, 0), textcoords="offset points", color=TEXT
        )
    axis.set_xscale("log", base=2)
    axis.set_xticks(batches, map(str, batches))
    axis.set_xlim(None, batches[-1] * 2.4)
    axis.set_ylim(0, 1.08 * max(row[2] for row in rows))
    axis.set_xlabel("batch size")
    axis.set_ylabel("face crops per second")
    return figure


def detector_numbers() -> list[dict[str, Any]]:
    """Collect the recall of each detector by share of false detections; may be empty."""
    return _read("detectors")["tables"].get("curves", [])


def draw_detectors(rows: list[dict[str, Any]]) -> Any:
    """Draw one panel per set of images and one line per detector."""
    sets = list(dict.fromkeys(row["images"] for row in rows))
    names = list(dict.fromkeys(row["detector"] for row in rows))
    colors = dict(zip(names, (MODEL, LEAK, "#4a9d6f", BASELINE), strict=False))
    figure, axes = plt.subplots(1, len(sets), figsize=(6.4, 3), sharey=True, layout="tight")
    for axis, images in zip(axes, sets, strict=True):
        for row in (row for row in rows if row["images"] == images):
            keys = [key for key in row if key.startswith("recall at ")]
            shares = [float(key.split()[2]) for key in keys]
            color = colors[row["detector"]]
            axis.plot(shares, [row[key] for key in keys], color=color, marker="o", markersize=3)
        axis.set_title(images, fontsize=9.5, color=TEXT)
        axis.set_xlabel("false detections, %")
    axes[0].set_ylabel("recall, %")
    axes[0].set_ylim(70, 100)  # one detector is below at small shares
    lines = [plt.Line2D([], [], color=colors[name], label=name) for name in names]
    axes[-1].legend(handles=lines, frameon=False, labelcolor=TEXT)
    return figure


def group_numbers() -> list[list[Any]]:
    """Collect both accuracies of the groups of FER+ test, each with its 95 % interval."""
    return [
        [row["group"].partition(" (")[0], *(_bounds(row[key]) for key in ACCURACIES)]
        for row in _read("groups")["tables"]["groups"]
        if row["data"] == "FER+ test"
    ]


def draw_groups(rows: list[list[Any]]) -> Any:
    """Draw one panel per accuracy and one line per group, from the top."""
    figure, axes = plt.subplots(2, 1, figsize=(4.4, 6.4), layout="tight")  # for phones
    names = [row[0].replace(" of the cheeks", "") for row in rows]
    for column, (axis, title) in enumerate(zip(axes, ACCURACIES, strict=True), 1):
        values = [row[column] for row in rows]
        colors = [BASELINE, *[MODEL] * (len(rows) - 1)]
        axis.hlines(range(len(rows)), *zip(*(bounds[1:] for bounds in values), strict=True), colors)
        axis.scatter([bounds[0] for bounds in values], range(len(rows)), color=colors, s=16)
        axis.axvline(values[0][0], color=BASELINE, linewidth=0.8, linestyle=":")
        axis.set_xlabel(f"{title}, %")
        axis.set_yticks(range(len(rows)), names)
        axis.invert_yaxis()
    return figure


def training_numbers() -> dict[str, list[float]]:
    """Read three losses of stage 1 of ``latentface.wild``, by epoch, from the logs of both runs."""
    with (RESULTS / "latentface.wild-stage1.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in ("pixel", "feature", "expression")}


def draw_training(losses: dict[str, list[float]]) -> Any:
    """Draw one panel per loss."""
    figure, axes = plt.subplots(1, len(losses), figsize=(5.4, 2.2), layout="constrained")
    for axis, (name, values) in zip(axes, losses.items(), strict=True):
        axis.plot(range(1, len(values) + 1), values, color=MODEL, marker="o", markersize=3)
        axis.set_title(f"{name} loss", fontsize=9.5, color=TEXT)
        axis.set_xlabel("epoch")
        axis.set_xticks([1, *range(7, len(values) + 1, 7)])  # the last epoch of each run
    return figure


def _bounds(text: str) -> list[float]:
    """Read a value and its interval, such as 86.8 % (85.6 to 88.0)."""
    return [float(number) for number in re.findall(r"[\d.]+", text)]


CHART: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "benchmark": (benchmark_numbers, draw_benchmark),
    "encode": (encode_numbers, draw_encode),
    "detectors": (detector_numbers, draw_detectors),
    "groups": (group_numbers, draw_groups),
    "training": (training_numbers, draw_training),
}


def digest(numbers: Any) -> str:
    """Hash the numbers of a chart."""
    return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:16]


def stale(charts: Path = CHARTS) -> list[str]:
    """List the charts that were drawn from other numbers."""
    wanted = {name: digest(rows) for name, (numbers, _) in CHART.items() if (rows := numbers())}
    drawn = {path.stem: path.read_text(encoding="utf-8") for path in charts.glob("*.svg")}
    return [name for name, mark in wanted.items() if mark not in drawn.get(name, "")]


def _read(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _style() -> None:
    keys = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    plt.rcParams.update(dict.fromkeys(keys, TEXT))
    plt.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "facezoo",
            "font.family": "sans-serif",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 9,
        }
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the charts, or print the outdated ones."""
    parser = argparse.ArgumentParser(description="Draw the charts of the documentation.")
    parser.add_argument("--check", action="store_true", help="only print the charts that differ")
    options = parser.parse_args(arguments)
    _style()
    differing = stale()
    for name in differing:
        print(name)
        if not options.check:
            numbers, draw = CHART[name]
            content = numbers()
            figure = draw(content)
            CHARTS.mkdir(parents=True, exist_ok=True)
            figure.savefig(
                CHARTS / f"{name}.svg",
                transparent=True,
                bbox_inches="tight",
                metadata={"Date": None, "Description": f"numbers {digest(content)}"},
            )
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
