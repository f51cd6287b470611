"""Describe a fine-tuning before it starts, and draw its confusion matrix."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from facezoo.finetuning.loop import Examples, Finetuning, augmented, predict
from facezoo.models.base import FaceModel
from facezoo.training.optim import autocast, layer_groups

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
    seconds = _estimate_seconds(net, parts, recipe)
    spent = f"{seconds / 60:.0f} minutes" if seconds > 90 else f"{max(seconds, 1):.0f} seconds"
    lines += [
        f"  training {trained}: {recipe.epochs} epochs of {len(parts['train'])} faces, "
        f"{recipe.batch_size} per step",
        f"  time for training and scores: about {spent} on {net.device}",
    ]
    smallest = min(counts["train"])
    if smallest < FEW and not recipe.probe and recipe.pretrained:
        lines.append(
            f"  the smallest class has {smallest} faces: training the classifier alone "
            "(--probe, probe=True) is faster, and often as good"
        )
    return "\n".join(lines)


def _estimate_seconds(net: FaceModel, parts: Mapping[str, Examples], recipe: Finetuning) -> float:
    """Estimate the time of all steps, the validations and the test, without changing the model."""
    assert recipe.epochs is not None
    assert recipe.batch_size is not None
    train = parts["train"]
    batch = train[torch.arange(min(len(train), recipe.batch_size))]
    # With a learning rate of 0, a step takes its time and changes no weight.
    groups = layer_groups(net, recipe.layer_decay)
    optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0)

    def step() -> None:
        images = augmented(batch, net.preprocessing, torch.Generator().manual_seed(0))
        with autocast(net.device):
            logits = net(images.to(net.device))
        loss = F.cross_entropy(logits.float(), batch.labels.to(net.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # wait for a GPU

    counts = {name: len(part) for name, part in parts.items()}
    predicted = counts.get("val", 0) * (recipe.epochs + 1) + counts.get("test", 0)
    seconds = recipe.epochs * ceil(len(train) / recipe.batch_size) * _mean_seconds(step)
    if predicted:
        seconds += predicted * _mean_seconds(lambda: predict(net, batch)) / len(batch)
    return seconds


def _mean_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    work()  # the first call is slower
    begin = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - begin) / repeats


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
