"""Describe a fine-tuning before it starts, and draw its confusion matrix."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from facezoo.finetuning.loop import Examples, Finetuning, augmented
from facezoo.models.base import FaceModel
from facezoo.training.optim import autocast

FEW = 100
"""Images per class below which a plan suggests to train the classifier alone."""
CELL, GAP = 64, 12
"""Side of a cell of the picture and space around labels, pixels."""


def plan(net: FaceModel, parts: Mapping[str, Examples], recipe: Finetuning, start: str) -> str:
    """Describe the fine-tuning of a model, with its new classifier, before it starts."""
    assert recipe.epochs is not None
    assert recipe.batch_size is not None
    width = max(map(len, net.labels))
    counts = {
        name: torch.bincount(part.labels, minlength=len(net.labels)).tolist()
        for name, part in parts.items()
    }
    lines = [f"fine-tuning {start}; faces per class and split:"]
    lines += [f"  {'':<{width}} " + " ".join(f"{name:>6}" for name in counts)]
    lines += [
        f"  {label:<{width}} " + " ".join(f"{column[row]:>6}" for column in counts.values())
        for row, label in enumerate(net.labels)
    ]
    lines.append(f"  {'all':<{width}} " + " ".join(f"{sum(c):>6}" for c in counts.values()))
    trained = "the classifier" if recipe.probe else "all parts that classify"
    trained += f" but {', '.join(recipe.freeze)}" if recipe.freeze else ""
    steps = recipe.epochs * ceil(len(parts["train"]) / recipe.batch_size)
    seconds = steps * _step_seconds(net, parts["train"], recipe)
    spent = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{max(seconds, 1):.0f} seconds"
    lines += [
        f"  training {trained}: {recipe.epochs} epochs of {len(parts['train'])} faces, "
        f"{recipe.batch_size} per step",
        f"  time: about {spent} on {net.device}",
    ]
    smallest = min(counts["train"])
    if smallest < FEW and not recipe.probe and recipe.pretrained:
        lines.append(
            f"  the smallest class has {smallest} faces: training the classifier alone "
            "(--probe, probe=True) is faster, and often as good"
        )
    return "\n".join(lines)


def _step_seconds(net: FaceModel, train: Examples, recipe: Finetuning) -> float:
    """Measure the time of a training step, without changing the model."""
    batch = train[torch.arange(min(len(train), recipe.batch_size or 1))]
    seconds = 0.0
    for _ in range(2):  # the first one is slower
        begin = time.perf_counter()
        images = augmented(batch, net.preprocessing, torch.Generator().manual_seed(0))
        with autocast(net.device):
            logits = net(images.to(net.device))
        F.cross_entropy(logits.float(), batch.labels.to(net.device)).backward()
        net.zero_grad()
        seconds = time.perf_counter() - begin
    return seconds


def draw_confusion(counts: Tensor, labels: Sequence[str], title: str, path: Path) -> None:
    """Draw a confusion matrix (K, K): true classes in rows, predicted ones in columns."""
    font = ImageFont.load_default(14)
    left = GAP + ceil(max(font.getlength(label) for label in labels)) + GAP
    top = 2 * GAP + 20
    side = CELL * len(labels)
    width = max(left + side, ceil(GAP + font.getlength(title))) + GAP
    picture = Image.new("RGB", (width, top + side + left + GAP), "white")
    draw = ImageDraw.Draw(picture)
    draw.text((GAP, GAP), title, "black", font)
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    for row, label in enumerate(labels):
        y = top + row * CELL
        draw.text((left - GAP, y + CELL // 2), label, "black", font, anchor="rm")
        name = Image.new("RGB", (left - GAP, 20), "white")
        ImageDraw.Draw(name).text((left - GAP - 1, 10), label, "black", font, anchor="rm")
        picture.paste(
            name.rotate(90, expand=True), (left + row * CELL + CELL // 2 - 10, top + side + 6)
        )
        for column in range(len(labels)):
            x, share = left + column * CELL, float(shares[row, column])
            color = tuple(round(255 + share * (blue - 255)) for blue in (31, 90, 160))
            draw.rectangle((x, y, x + CELL - 2, y + CELL - 2), color)
            text = f"{int(counts[row, column])}\n{share:.0%}"
            middle = (x + CELL // 2, y + CELL // 2)
            shade = "white" if share > 0.5 else "black"
            draw.multiline_text(middle, text, shade, font, anchor="mm", align="center")
    picture.save(path)
