"""Measure a checkpoint, and write the results as a table, JSON or part of a card."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from facezoo.evaluate.detection import detection
from facezoo.evaluate.ict import as_metrics, benchmark
from facezoo.evaluate.protocols import Measurements, evaluate
from facezoo.hub.card import Card
from facezoo.hub.families import model_class
from facezoo.hub.names import resolve
from facezoo.models.base import FaceModel
from facezoo.models.mesh_base import MeshModel
from facezoo.preprocess.bundled import read_detector
from facezoo.preprocess.detection import detect
from facezoo.preprocess.detector import DETECTOR


def measure_checkpoint(name: str, data: Path, device: torch.device) -> tuple[Card, Measurements]:
    """Run every measurement that suits a checkpoint.

    Args:
        name: a checkpoint, or a folder or ``.safetensors`` file with a card.
        data: folder with the packs, or with the files of ICT-3D for a model of meshes.

    Returns:
        The card before the measurement, and the measurements.
    """
    card = resolve(name).card
    command = f"facezoo evaluate {card.name} --data DATA"
    if card.model == DETECTOR:
        detector = read_detector(name, device)
        find_faces = lambda images: detect(detector, [i.to(device) for i in images])  # noqa: E731
        measured = Measurements(detection(find_faces, data, command))
    elif issubclass(model_class(card.model), MeshModel):
        meshes = MeshModel.from_pretrained(name).to(device)
        measured = Measurements(as_metrics(benchmark(meshes, data), command))
    else:
        measured = evaluate(FaceModel.from_pretrained(name).to(device), data, command)
    rounded = [replace(m, value=round(m.value, 4)) for m in measured.metrics]
    return card, replace(measured, metrics=rounded)


def check_card(card_path: Path, measured: Card) -> Card:
    """Read the card that shall get measurements.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it does not describe the weights that are measured.
    """
    card = Card.load(card_path)
    if card.weights.sha256 != measured.weights.sha256:
        raise ValueError(
            f"{card_path} describes other weights than the measured ones of {measured.name}; give "
            "the card of these weights"
        )
    return card


def write_card(card_path: Path, measured: Card, measurements: Measurements) -> None:
    """Replace the metrics in a card.

    Raises:
        ValueError: if the card does not describe the measured weights.
    """
    card = check_card(card_path, measured)
    verification = measurements.verification or card.verification
    card = replace(card, metrics=tuple(measurements.metrics), verification=verification)
    card_path.write_text(card.to_json(), encoding="utf-8")


def as_json(card: Card, measurements: Measurements) -> str:
    """Format measurements as JSON, with the checkpoint, its commit and its seed.

    ``confusion`` is there if the model predicts expressions; cards do not hold it.
    """
    content: dict[str, Any] = {
        "checkpoint": card.name,
        "sha256": card.weights.sha256,
        "commit": card.training.commit,
        "seed": card.training.seed,
        "metrics": [asdict(metric) for metric in measurements.metrics],
    }
    if measurements.confusion is not None:
        content["confusion"] = asdict(measurements.confusion)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def as_table(measurements: Measurements) -> str:
    """Format the metrics as lines of text."""
    return "\n".join(
        f"{m.dataset:28} {m.split:6} {m.name:56} {m.value:8.2f} {m.unit:5} {m.protocol}"
        for m in measurements.metrics
    )


def write_tables(path: Path, result: dict[str, Any]) -> None:
    """Write the tables of a checkpoint, next to those of the same weights that the file has.

    Args:
        path: a JSON file, new or written by this function.
        result: ``checkpoint``, ``sha256`` and ``tables``, by name.
    """
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else result
    if old["sha256"] == result["sha256"]:
        result = {**result, "tables": {**old["tables"], **result["tables"]}}
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
