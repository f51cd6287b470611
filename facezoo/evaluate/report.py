"""Measuring a checkpoint and writing down what came out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from facezoo.base import FaceModel
from facezoo.card import Card, Metric
from facezoo.detector.model import FaceDetector
from facezoo.evaluate.protocols import detection, evaluate
from facezoo.preprocess.pipeline import DETECTOR
from facezoo.pretrained import resolve
from facezoo.weights import find, load_into, read_tensors


def measure_checkpoint(name: str, data: Path, device: torch.device) -> tuple[Card, list[Metric]]:
    """Every measurement that suits a checkpoint.

    Args:
        name: a checkpoint, a folder or a ``.safetensors`` file with its card; the face detector's
            too.
        data: folder with the packs.
        device: where to run.

    Returns:
        The card as it was, and the metrics.
    """
    source = resolve(name)
    path = find(source.card, source.path)
    command = f"facezoo evaluate {source.card.name} --data DATA"
    if source.card.model == DETECTOR:
        detector = FaceDetector(**source.card.architecture)
        load_into(detector, read_tensors(path))
        metrics = detection(detector.to(device).eval(), data, device, command)
    else:
        metrics = evaluate(FaceModel.from_pretrained(name).to(device), data, command)
    return source.card, [replace(m, value=round(m.value, 4)) for m in metrics]


def write_card(card_path: Path, measured: Card, metrics: list[Metric]) -> None:
    """Put metrics into a card, in place of the ones that it had.

    Raises:
        ValueError: if the card is not of the weights that were measured.
    """
    card = Card.load(card_path)
    if card.weights.sha256 != measured.weights.sha256:
        raise ValueError(
            f"{card_path} is the card of {card.name}, whose weights are not those of "
            f"{measured.name} that were measured; give that one's card"
        )
    card = replace(card, metrics=tuple(metrics))
    card_path.write_text(card.to_json(), encoding="utf-8")


def as_json(card: Card, metrics: list[Metric]) -> str:
    """The measurements with what they were made on, as JSON text."""
    content = {
        "checkpoint": card.name,
        "sha256": card.weights.sha256,
        "commit": card.training.commit,
        "seed": card.training.seed,
        "metrics": [asdict(metric) for metric in metrics],
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def as_table(metrics: list[Metric]) -> str:
    """The measurements as lines of text."""
    return "\n".join(
        f"{m.dataset:28} {m.split:6} {m.name:36} {m.value:8.2f} {m.unit:5} {m.protocol}"
        for m in metrics
    )
