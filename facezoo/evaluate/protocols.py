"""Measurements for the cards: each has a data set, a split and a protocol.

Most protocols run twice: on crops that are aligned by the data set's own landmarks, as papers do,
and on whole images through this package's detector, as users do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from facezoo.data.packs import (
    aligned_crops,
    as_points,
    check_packs,
    label_distributions,
    majority_labels,
    read_pack,
    yaw_column,
)
from facezoo.errors import warn_once
from facezoo.evaluate.embedding import ALIGNED, both_ways
from facezoo.evaluate.leakage import leakage
from facezoo.evaluate.metrics import (
    accuracy_by_yaw,
    confusion,
    expected_calibration_error,
    predicted_classes,
    scores,
    vote_divergence,
)
from facezoo.evaluate.packs import NEUTRAL_OR_HAPPY
from facezoo.evaluate.verification import read_pairs, threshold_at, verification_accuracy
from facezoo.hub.card import Metric, Verification
from facezoo.landmarks import head_pose
from facezoo.models.base import FaceModel
from facezoo.results import EXPRESSIONS

FALSE_MATCH_RATE = 0.01
"""Share of pairs of two identities that ``facezoo.verify`` may take for one."""
FERPLUS = "majority rule, 8 classes"
PACKS = ("ferplus.parquet", "lfw.parquet", "lfw_pairs_val.csv", "london_expr.parquet")


@dataclass(frozen=True)
class Confusion:
    """Confusion matrix of one protocol."""

    dataset: str
    split: str
    protocol: str
    labels: tuple[str, ...]
    """The K classes."""
    counts: list[list[int]]
    """Counts of predictions (inner) by true class (outer), K x K."""
    right: str
    """1 for every labeled image that is classified correctly and 0 for the others, in the order of
    the data, so that two checkpoints can be compared image by image."""


@dataclass(frozen=True)
class Measurements:
    """All measurements of a checkpoint."""

    metrics: list[Metric]
    """Metrics for the card."""
    confusion: Confusion | None = None
    """Expressions of FER+ on aligned crops; None if the model does not predict expressions."""
    verification: Verification | None = None
    """Threshold for ``facezoo.verify``; None if the model has no identity features."""


def evaluate(model: FaceModel, data: Path, command: str) -> Measurements:
    """Measure everything that a model can do with the packs of a folder.

    Protocols whose classes the model does not predict are left out with a warning.

    Args:
        data: folder with ``ferplus.parquet``, ``lfw.parquet``, ``lfw_pairs_val.csv`` and
            ``london_expr.parquet``.

    Returns:
        Metrics, shares in percent, and a confusion matrix.

    Raises:
        FileNotFoundError: if files are missing.
    """
    check_packs(data, *PACKS)
    metrics: list[Metric] = []
    matrix = verification = None
    able = model.capabilities()
    if "predict_expression" in able:
        if {*model.labels} == {*EXPRESSIONS}:
            measured = ferplus(model, data, "test", command)
            metrics, matrix = [*measured.metrics], measured.confusion
        else:
            _warn_skipped(model, "expression on FER+", EXPRESSIONS)
        if {*NEUTRAL_OR_HAPPY} <= {*model.labels}:
            metrics += neutral_or_happy(model, data, "lfw", command)
            metrics += neutral_or_happy(model, data, "london_expr", command)
        else:
            _warn_skipped(model, "expression on LFW and London", NEUTRAL_OR_HAPPY)
    if "encode_identity" in able:
        pairs = lfw_pairs(model, data, command)
        metrics += pairs.metrics
        verification = pairs.verification
    if "predict_pose" in able:
        metrics += poses(model, data, command)
    metrics += leakage(model, data, command)
    return Measurements(metrics, matrix, verification)


def _warn_skipped(model: FaceModel, name: str, classes: tuple[str, ...]) -> None:
    warn_once(
        f"{name} is not measured: it needs the classes {', '.join(classes)}, and the model "
        f"predicts {', '.join(model.labels)}"
    )


def ferplus(model: FaceModel, data: Path, split: str, command: str) -> Measurements:
    """Measure eight-class expression on FER+ under the majority rule (Barsoum et al. 2016).

    Calibration, the recall of each class and accuracy by yaw are measured on aligned crops only.

    Raises:
        ValueError: if the classes of the model are not those of ``EXPRESSIONS``, in any order.
    """
    if {*model.labels} != {*EXPRESSIONS}:
        raise ValueError(
            f"FER+ has the classes {', '.join(EXPRESSIONS)}, and the model predicts "
            f"{', '.join(model.labels)}; measure it on data with these classes"
        )
    columns = [model.labels.index(word) for word in EXPRESSIONS]
    table = read_pack(data / "ferplus.parquet", split)
    truth, votes = majority_labels(table), label_distributions(table)
    labeled = truth >= 0
    truth, votes = truth[labeled], votes[labeled]
    metrics: list[Metric] = []
    matrix = None
    for way, results in both_ways(model, table, "predict_expression"):
        rule = f"{FERPLUS}, {len(truth)} images; {way}"
        logits = results[:, columns][labeled]
        shares = scores(logits, truth)
        metrics += [_on_ferplus(name, v, split, rule, command) for name, v in shares.items()]
        if way != ALIGNED:
            continue
        probabilities = logits.softmax(1)
        value = vote_divergence(logits, votes)
        metrics.append(Metric("KL from votes", value, "nats", "FER+", split, rule, command))
        value = expected_calibration_error(probabilities, truth)
        name = "expected calibration error"
        metrics.append(_on_ferplus(name, value, split, rule, command))
        predicted = predicted_classes(probabilities)
        counts = confusion(predicted, truth, len(columns))[:, :-1].tolist()
        right = "".join("01"[r] for r in (predicted == truth).tolist())
        matrix = Confusion("FER+", split, rule, EXPRESSIONS, counts, right)
        yaw_deg = yaw_column(table)[labeled] if "yaw" in table.column_names else None
        for name, share, images in _subsets(probabilities, truth, yaw_deg):
            rule = f"{FERPLUS}, {images}; {ALIGNED}"
            metrics.append(_on_ferplus(name, share, split, rule, command))
    return Measurements(metrics, matrix)


def _on_ferplus(name: str, share: float, split: str, rule: str, command: str) -> Metric:
    return Metric(name, 100 * share, "%", "FER+", split, rule, command)


def _subsets(
    probabilities: Tensor, truth: Tensor, yaw_deg: Tensor | None
) -> Iterator[tuple[str, float, str]]:
    """Yield the recall of each class that occurs, and the accuracy by yaw if it is known."""
    right = (predicted_classes(probabilities) == truth).double()
    for number, label in enumerate(EXPRESSIONS):
        inside = truth == number
        if inside.any():
            recall = float(right[inside].mean())
            yield f"recall of {label}", recall, f"{int(inside.sum())} images of {label}"
    for part in [] if yaw_deg is None else accuracy_by_yaw(probabilities, truth, yaw_deg):
        limit = part.beyond_deg
        where = "at any yaw" if limit is None else f"beyond {limit} degrees of yaw"
        if part.images:
            yield f"accuracy {where}", part.accuracy, f"{part.images} images"


def neutral_or_happy(model: FaceModel, data: Path, pack: str, command: str) -> list[Metric]:
    """Measure neutral against happiness, the two classes whose labels are reliable on these packs.

    The more probable of the two classes is the prediction; the other classes are ignored. The
    recalls of both classes are measured on aligned crops only.
    """
    name = {"lfw": "LFW", "london_expr": "Face Research Lab London Set"}[pack]
    split = "val" if pack == "lfw" else None
    table = read_pack(data / f"{pack}.parquet", split)
    truth = majority_labels(table)
    columns = [model.labels.index(word) for word in NEUTRAL_OR_HAPPY]
    neutral, happy = (EXPRESSIONS.index(word) for word in NEUTRAL_OR_HAPPY)
    labeled = (truth == neutral) | (truth == happy)
    rule = f"neutral against happiness, {int(labeled.sum())} images"
    metrics = []
    for way, logits in both_ways(model, table, "predict_expression"):
        predicted = predicted_classes(logits[labeled][:, columns])
        right = (predicted == (truth[labeled] == happy).long()).double()
        shares = {"accuracy": right.mean()}
        if way == ALIGNED:
            for number, label in zip((neutral, happy), NEUTRAL_OR_HAPPY, strict=True):
                shares[f"recall of {label}"] = right[truth[labeled] == number].mean()
        where = (name, split or "all", f"{rule}; {way}", command)
        metrics += [Metric(what, 100 * float(v), "%", *where) for what, v in shares.items()]
    return metrics


def lfw_pairs(model: FaceModel, data: Path, command: str) -> Measurements:
    """Measure verification on LFW val: ten folds, cosine, the threshold of the other nine.

    The threshold for ``facezoo.verify`` is chosen on all pairs, on whole images.
    """
    table = read_pack(data / "lfw.parquet", "val")
    pairs, files = read_pairs(data / "lfw_pairs_val.csv"), table["file"].to_pylist()
    metrics, verification = [], None
    for way, features in both_ways(model, table, "encode_identity"):
        # A missing face is a zero vector, which is similar to nobody.
        features = features.nan_to_num()
        values = verification_accuracy(features, files, pairs)
        rule = f"ten folds of {len(pairs.same)} pairs, cosine; {way}"
        for name, value in zip(("accuracy", "standard deviation over folds"), values, strict=True):
            metrics.append(Metric(name, 100 * value, "%", "LFW pairs", "val", rule, command))
        cosines = F.cosine_similarity(*pairs.rows(features, files))
        threshold, missed = threshold_at(cosines, pairs.same, FALSE_MATCH_RATE)
        rate = float((cosines[~pairs.same] > threshold).double().mean())
        rule = f"{len(pairs.same)} pairs of the validation split, cosine; {way}"
        verification = Verification(threshold, rate, missed, "LFW pairs", rule)
        name = f"false non-matches at a false-match rate of {100 * FALSE_MATCH_RATE:g} %"
        metrics.append(Metric(name, 100 * missed, "%", "LFW pairs", "val", rule, command))
    return Measurements(metrics, verification=verification)


def poses(model: FaceModel, data: Path, command: str) -> list[Metric]:
    """Measure yaw and pitch on LFW val against those of ``facezoo.landmarks.head_pose``.

    These come from five landmarks of the data set, so they are estimates too. The median of all
    images, as a constant prediction, is the baseline.

    Returns:
        Mean absolute errors in degrees.
    """
    table = read_pack(data / "lfw.parquet", "val")
    truth = head_pose(as_points(table["landmarks"].to_pylist(), 5))
    crops = aligned_crops(table, model.preprocessing.template, model.preprocessing.size)
    predicted = model.predict_pose(list(crops), aligned=True)
    rule = f"mean absolute difference to the angle from landmarks, {len(truth)} images; {ALIGNED}"
    metrics = []
    for column, name in enumerate(("yaw", "pitch")):
        angles = truth[:, column]
        for what, values in (
            (f"error of {name}", getattr(predicted, f"{name}_deg").cpu()),
            (f"error of {name}, constant prediction", angles.nanmedian()),
        ):
            error = float((values - angles).abs().nanmean())
            metrics.append(Metric(what, error, "degrees", "LFW", "val", rule, command))
    return metrics
