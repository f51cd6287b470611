"""The measurements that stand in the cards, each a data set, a split and a rule.

Every protocol is run in two ways: on crops aligned by the data set's own landmarks, as papers do
it, and from the whole photograph through this package's detector, as a user meets it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from tqdm.auto import tqdm

from facezoo.base import FaceModel
from facezoo.card import Metric
from facezoo.data.images import (
    aligned_crops,
    decode,
    label_distributions,
    majority_labels,
    read_pack,
)
from facezoo.detector.model import FaceDetector
from facezoo.evaluate.classification import scores, vote_divergence
from facezoo.evaluate.detection import measure
from facezoo.evaluate.verification import read_pairs, verification_accuracy
from facezoo.preprocess.pipeline import find_faces, normalise

if TYPE_CHECKING:
    import pyarrow as pa

GIVEN, FOUND = "crops by the data set's landmarks", "whole images, faces found by face-detector"


def evaluate(model: FaceModel, data: Path, command: str) -> list[Metric]:
    """Everything that can be measured on a model with the packs of a folder.

    Args:
        model: the model.
        data: folder with ``ferplus.parquet``, ``lfw.parquet`` and ``lfw_pairs_val.csv``.
        command: what was typed, for the record.

    Returns:
        Metrics, in per cent where a share is measured.
    """
    metrics = []
    able = model.capabilities()
    if "predict_expression" in able:
        metrics += ferplus(model, data, "test", command)
        metrics += neutral_or_happy(model, data, "lfw", command)
        metrics += neutral_or_happy(model, data, "london_expr", command)
    if "encode_identity" in able:
        metrics += lfw_pairs(model, data, command)
    return metrics


def ferplus(model: FaceModel, data: Path, split: str, command: str) -> list[Metric]:
    """Eight-class expression on FER+ under the majority rule (Barsoum et al. 2016)."""
    table = read_pack(data / "ferplus.parquet", split)
    truth, votes = majority_labels(table), label_distributions(table)
    known = truth >= 0
    rule = f"majority rule, 8 classes, {int(known.sum())} images"
    metrics = []
    for how, logits in _both_ways(model, table, "predict_expression"):
        probabilities = logits.softmax(1)[known]
        for name, value in scores(probabilities, truth[known]).items():
            metrics.append(Metric(name, 100 * value, "%", "FER+", split, f"{rule}; {how}", command))
        if how == GIVEN:
            value = vote_divergence(probabilities, votes[known])
            metrics.append(
                Metric("KL from votes", value, "nats", "FER+", split, f"{rule}; {how}", command)
            )
    return metrics


def neutral_or_happy(model: FaceModel, data: Path, pack: str, command: str) -> list[Metric]:
    """Neutral against happiness, the two classes that the labels of these packs can be trusted on.

    The class of higher probability of the two counts, whatever the other six get.
    """
    name = {"lfw": "LFW", "london_expr": "Face Research Lab London Set"}[pack]
    split = "val" if pack == "lfw" else None
    table = read_pack(data / f"{pack}.parquet", split)
    truth = majority_labels(table)
    pair = [model.labels.index("neutral"), model.labels.index("happiness")]
    known = (truth == pair[0]) | (truth == pair[1])
    rule = f"neutral against happiness, {int(known.sum())} images"
    metrics = []
    for how, logits in _both_ways(model, table, "predict_expression"):
        probabilities = logits[known][:, pair].softmax(1)
        value = scores(probabilities, (truth[known] == pair[1]).long())["accuracy"]
        metrics.append(
            Metric("accuracy", 100 * value, "%", name, split or "all", f"{rule}; {how}", command)
        )
    return metrics


def lfw_pairs(model: FaceModel, data: Path, command: str) -> list[Metric]:
    """Verification of validation people of LFW: ten folds, cosine, threshold of the other nine."""
    table = read_pack(data / "lfw.parquet", "val")
    pairs = read_pairs(data / "lfw_pairs_val.csv")
    metrics = []
    for how, features in _both_ways(model, table, "encode_identity"):
        # A face that was not found is like nobody.
        found = features.nan_to_num()
        mean, spread = verification_accuracy(found, table["file"].to_pylist(), pairs)
        rule = f"ten folds of {len(pairs.same)} pairs, cosine; {how}"
        rows = (("accuracy", mean), ("standard deviation over folds", spread))
        for name, value in rows:
            metrics.append(Metric(name, 100 * value, "%", "LFW pairs", "val", rule, command))
    return metrics


def detection(
    detector: FaceDetector, data: Path, device: torch.device, command: str
) -> list[Metric]:
    """Face detection on whole photographs, against a teacher's boxes and landmarks."""
    metrics = []
    for pack, name, split in (("lfw", "LFW", "val"), ("backgrounds", "backgrounds", None)):
        table = read_pack(data / f"{pack}.parquet", split)
        for smallest in (24.0, 12.0) if pack == "lfw" else (24.0,):
            numbers = measure(detector, table, device, smallest)
            rule = (
                f"{len(table)} photographs, {numbers['faces']:.0f} faces of {smallest:.0f} px or "
                "more; found at IoU 0.5; what the teacher is unsure of does not count"
            )
            for key, label in (
                ("recall", "recall"),
                ("false_positives", "false positives among detections"),
                ("landmark_error", "mean landmark error over the distance between the eyes"),
                ("landmark_median", "median landmark error over the distance between the eyes"),
            ):
                where = split or "train"
                if math.isnan(numbers[key]):
                    continue  # no landmarks to measure where nothing was found
                metrics.append(Metric(label, 100 * numbers[key], "%", name, where, rule, command))
    return metrics


def _both_ways(model: FaceModel, table: pa.Table, what: str) -> Iterator[tuple[str, Tensor]]:
    """Results (N, D) on given crops and on whole images, NaN rows where no face was found."""
    crops = aligned_crops(table, model.preprocessing.template, model.preprocessing.size)
    parts = []
    for part in tqdm(crops.split(256), desc=f"{what}, given crops", unit="batch"):
        batch = normalise(part.to(model.device).float(), model.preprocessing)
        parts.append(model.run(batch, [what])[what].cpu())
    yield GIVEN, torch.cat(parts)
    parts = []
    images = table["image"]
    for begin in tqdm(range(0, len(table), 64), desc=f"{what}, whole images", unit="batch"):
        photos = [decode(i.as_py()).to(model.device) for i in images[begin : begin + 64]]
        faces = find_faces(photos, faces="largest", on_missing="nan")
        parts.append(model.encode_faces(photos, faces, [what])[what].cpu())
    yield FOUND, torch.cat(parts)
