"""The measurements that stand in the cards, each a data set, a split and a rule.

Every protocol is run in two ways: on crops aligned by the data set's own landmarks, as papers do
it, and from the whole photograph through this package's detector, as a user meets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from facezoo.data.packs import (
    check_packs,
    label_distributions,
    majority_labels,
    read_pack,
    yaw_column,
)
from facezoo.errors import warn_once
from facezoo.evaluate.classification import (
    confusion_of,
    expected_calibration_error,
    is_right,
    recalls,
    scores,
    vote_divergence,
)
from facezoo.evaluate.embedding import FOUND, GIVEN, both_ways
from facezoo.evaluate.leakage import leakage
from facezoo.evaluate.pose import PoseBin, accuracy_by_yaw
from facezoo.evaluate.verification import read_pairs, verification_accuracy
from facezoo.hub.card import Metric
from facezoo.models.base import FaceModel
from facezoo.results import EXPRESSIONS

__all__ = [
    "FOUND",
    "GIVEN",
    "Confusion",
    "Measurements",
    "evaluate",
    "ferplus",
    "lfw_pairs",
    "neutral_or_happy",
]

FERPLUS = "majority rule, 8 classes"
PACKS = ("ferplus.parquet", "lfw.parquet", "lfw_pairs_val.csv", "london_expr.parquet")
NEUTRAL_OR_HAPPY = ("neutral", "happiness")


@dataclass(frozen=True)
class Confusion:
    """Which class was taken for which."""

    dataset: str
    split: str
    protocol: str
    labels: tuple[str, ...]
    """The K classes."""
    counts: list[list[int]]
    """How often each true class (outer) was called each class (inner), K x K."""
    right: str
    """1 for every labelled image that was called right and 0 for the others, in the data's order,
    so that two checkpoints can be compared image by image."""


@dataclass(frozen=True)
class Measurements:
    """All that was measured of a checkpoint."""

    metrics: list[Metric]
    """What goes into the card."""
    confusion: Confusion | None = None
    """The expressions of FER+ on given crops; None for a checkpoint that tells no expressions."""


def evaluate(model: FaceModel, data: Path, command: str) -> Measurements:
    """Everything that can be measured on a model with the packs of a folder.

    A model that tells other classes than the eight of FER+ is not measured there, and one that
    does not tell neutral and happiness not by these.

    Args:
        model: the model.
        data: folder with ``ferplus.parquet``, ``lfw.parquet``, ``lfw_pairs_val.csv`` and
            ``london_expr.parquet``.
        command: what was typed, for the record.

    Returns:
        Metrics, in per cent where a share is measured, and a confusion matrix. What asks for
        classes that the model does not tell is left out, with a warning.

    Raises:
        FileNotFoundError: naming the files that are missing.
    """
    check_packs(data, *PACKS)
    metrics: list[Metric] = []
    confusion = None
    able = model.capabilities()
    if "predict_expression" in able:
        if {*model.labels} == {*EXPRESSIONS}:
            measured = ferplus(model, data, "test", command)
            metrics, confusion = [*measured.metrics], measured.confusion
        else:
            _warn_left_out(model, "expression on FER+", EXPRESSIONS)
        if {*NEUTRAL_OR_HAPPY} <= {*model.labels}:
            metrics += neutral_or_happy(model, data, "lfw", command)
            metrics += neutral_or_happy(model, data, "london_expr", command)
        else:
            _warn_left_out(model, "expression on LFW and London", NEUTRAL_OR_HAPPY)
    if "encode_identity" in able:
        metrics += lfw_pairs(model, data, command)
    metrics += leakage(model, data, command)
    return Measurements(metrics, confusion)


def _warn_left_out(model: FaceModel, what: str, wanted: tuple[str, ...]) -> None:
    warn_once(
        f"{what} is left out: it wants the classes {', '.join(wanted)}, and the model tells "
        f"{', '.join(model.labels)}"
    )


def ferplus(model: FaceModel, data: Path, split: str, command: str) -> Measurements:
    """Eight-class expression on FER+ under the majority rule (Barsoum et al. 2016).

    Calibration, the single classes and, where the pack has the column ``yaw``, poses are measured
    on given crops only.

    Raises:
        ValueError: if the classes of the model are not those of ``EXPRESSIONS``, in any order.
    """
    if {*model.labels} != {*EXPRESSIONS}:
        raise ValueError(
            f"FER+ has the classes {', '.join(EXPRESSIONS)}, and the model tells "
            f"{', '.join(model.labels)}; measure it on data with these"
        )
    columns = [model.labels.index(word) for word in EXPRESSIONS]
    table = read_pack(data / "ferplus.parquet", split)
    truth, votes = majority_labels(table), label_distributions(table)
    known = truth >= 0
    truth, votes = truth[known], votes[known]
    metrics, confusion = [], None
    for how, logits in both_ways(model, table, "predict_expression"):
        rule = f"{FERPLUS}, {len(truth)} images; {how}"
        probabilities = logits[:, columns].softmax(1)[known]
        values = scores(probabilities, truth)
        metrics += [_of_ferplus(name, v, split, rule, command) for name, v in values.items()]
        if how == GIVEN:
            value = vote_divergence(probabilities, votes)
            metrics.append(Metric("KL from votes", value, "nats", "FER+", split, rule, command))
            value = expected_calibration_error(probabilities, truth)
            name = "expected calibration error"
            metrics.append(_of_ferplus(name, value, split, rule, command))
            counts = confusion_of(probabilities, truth)[:, : len(columns)]
            right = "".join("01"[r] for r in is_right(probabilities, truth).tolist())
            confusion = Confusion("FER+", split, rule, EXPRESSIONS, counts.tolist(), right)
            metrics += _per_class(confusion, command)
            if "yaw" in table.column_names:
                bins = accuracy_by_yaw(probabilities, truth, yaw_column(table)[known])
                metrics += _per_pose(bins, split, command)
    return Measurements(metrics, confusion)


def _per_class(confusion: Confusion, command: str) -> list[Metric]:
    """Recall of every class of FER+ that occurs."""
    counts = torch.tensor(confusion.counts)
    rows = zip(confusion.labels, counts.sum(1).tolist(), recalls(counts).tolist(), strict=True)
    return [
        _of_ferplus(
            f"recall of {label}",
            recall,
            confusion.split,
            f"{FERPLUS}, {images} images of {label}; {GIVEN}",
            command,
        )
        for label, images, recall in rows
        if images
    ]


def _per_pose(bins: list[PoseBin], split: str, command: str) -> list[Metric]:
    """Accuracy on FER+ by how far the faces look aside, where there are such faces."""
    return [
        _of_ferplus(
            f"accuracy beyond {part.beyond_deg} degrees of yaw"
            if part.beyond_deg is not None
            else "accuracy at any yaw",
            part.accuracy,
            split,
            f"{FERPLUS}, {part.images} images; {GIVEN}",
            command,
        )
        for part in bins
        if part.images
    ]


def _of_ferplus(name: str, share: float, split: str, rule: str, command: str) -> Metric:
    return Metric(name, 100 * share, "%", "FER+", split, rule, command)


def neutral_or_happy(model: FaceModel, data: Path, pack: str, command: str) -> list[Metric]:
    """Neutral against happiness, the two classes that the labels of these packs can be trusted on.

    The class of higher probability of the two counts, whatever the other six get.
    """
    name = {"lfw": "LFW", "london_expr": "Face Research Lab London Set"}[pack]
    split = "val" if pack == "lfw" else None
    table = read_pack(data / f"{pack}.parquet", split)
    truth = majority_labels(table)
    columns = [model.labels.index(word) for word in NEUTRAL_OR_HAPPY]
    pair = [EXPRESSIONS.index(word) for word in NEUTRAL_OR_HAPPY]
    known = (truth == pair[0]) | (truth == pair[1])
    rule = f"neutral against happiness, {int(known.sum())} images"
    metrics = []
    for how, logits in both_ways(model, table, "predict_expression"):
        probabilities = logits[known][:, columns].softmax(1)
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
    for how, features in both_ways(model, table, "encode_identity"):
        # A face that was not found is like nobody.
        found = features.nan_to_num()
        mean, spread = verification_accuracy(found, table["file"].to_pylist(), pairs)
        rule = f"ten folds of {len(pairs.same)} pairs, cosine; {how}"
        rows = (("accuracy", mean), ("standard deviation over folds", spread))
        for name, value in rows:
            metrics.append(Metric(name, 100 * value, "%", "LFW pairs", "val", rule, command))
    return metrics
