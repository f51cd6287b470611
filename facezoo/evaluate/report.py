"""Measuring a checkpoint and writing down what came out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facezoo.evaluate.detection import detection
from facezoo.evaluate.ict import as_metrics, benchmark
from facezoo.evaluate.protocols import Measurements, evaluate
from facezoo.hub.card import Card
from facezoo.hub.families import model_class
from facezoo.hub.files import find
from facezoo.hub.names import resolve
from facezoo.hub.tensors import load_into, read_tensors
from facezoo.models.base import FaceModel
from facezoo.models.mesh_base import MeshModel
from facezoo.preprocess.detection import detect
from facezoo.preprocess.detector import FaceDetector
from facezoo.preprocess.pipeline import DETECTOR
from facezoo.results import Faces


def measure_checkpoint(name: str, data: Path, device: torch.device) -> tuple[Card, Measurements]:
    """Every measurement that suits a checkpoint.

    Args:
        name: a checkpoint, a folder or a ``.safetensors`` file with its card; the face detector's
            too.
        data: folder with the packs, or with the files of ICT-3D for a model of meshes.
        device: where to run.

    Returns:
        The card as it was, and the measurements.
    """
    source = resolve(name)
    path = find(source.card, source.path)
    command = f"facezoo evaluate {source.card.name} --data DATA"
    if source.card.model == DETECTOR:
        detector = FaceDetector(**source.card.architecture)
        load_into(detector, read_tensors(path))
        detector = detector.to(device).eval()

        def faces_of(images: list[Tensor]) -> Faces:
            return detect(detector, [image.to(device) for image in images])

        found = Measurements(detection(faces_of, data, command))
    elif issubclass(model_class(source.card.model), MeshModel):
        meshes = MeshModel.from_pretrained(name).to(device)
        found = Measurements(as_metrics(benchmark(meshes, data), command))
    else:
        found = evaluate(FaceModel.from_pretrained(name).to(device), data, command)
    rounded = [replace(m, value=round(m.value, 4)) for m in found.metrics]
    return source.card, replace(found, metrics=rounded)


def check_card(card_path: Path, measured: Card) -> Card:
    """The card that measurements shall stand in.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not of the weights that are measured.
    """
    card = Card.load(card_path)
    if card.weights.sha256 != measured.weights.sha256:
        raise ValueError(
            f"{card_path} is the card of {card.name}, whose weights are not those of "
            f"{measured.name} that were measured; give that one's card"
        )
    return card


def write_card(card_path: Path, measured: Card, found: Measurements) -> None:
    """Put the metrics into a card, in place of the ones that it had.

    Raises:
        ValueError: if the card is not of the weights that were measured.
    """
    card = replace(check_card(card_path, measured), metrics=tuple(found.metrics))
    card_path.write_text(card.to_json(), encoding="utf-8")


def as_json(card: Card, found: Measurements) -> str:
    """The measurements with what they were made on, as JSON text.

    Where expressions were told, ``confusion`` stands beside the metrics: labels, and counts with
    the true classes in rows. The card does not hold it.
    """
    content: dict[str, Any] = {
        "checkpoint": card.name,
        "sha256": card.weights.sha256,
        "commit": card.training.commit,
        "seed": card.training.seed,
        "metrics": [asdict(metric) for metric in found.metrics],
    }
    if found.confusion is not None:
        content["confusion"] = asdict(found.confusion)
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def as_table(found: Measurements) -> str:
    """The metrics as lines of text."""
    return "\n".join(
        f"{m.dataset:28} {m.split:6} {m.name:56} {m.value:8.2f} {m.unit:5} {m.protocol}"
        for m in found.metrics
    )


def write_tables(path: Path, result: dict[str, Any]) -> None:
    """Write the tables of a checkpoint, beside those of the same weights that the file has.

    Args:
        path: a JSON file, which may be there already.
        result: ``checkpoint``, ``sha256`` and ``tables``, by name.
    """
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else result
    if there["sha256"] == result["sha256"]:
        result = {**result, "tables": {**there["tables"], **result["tables"]}}
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
