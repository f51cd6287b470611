"""Measure how well expressions are predicted in groups of faces.

    python benchmarks/groups.py DATA [--model ipd-fer] [--json groups.json]

DATA holds the packs of ``facezoo evaluate``, and ``faces_wild.parquet``. Groups are bands of yaw,
of sharpness and of the luminance of the cheeks; faces without expression labels are grouped by age.
The luminance is that of a crop, so it depends on light and camera as well as on skin.
Values have 95 % intervals: Wilson's for shares of images, and one from draws of the recalls for the
balanced accuracy. The classes of the groups of FER+ show if they explain a difference in accuracy.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from measuring import run_on_packs, stamp
from scipy.stats import binomtest
from torch import Tensor

import facezoo
from facezoo.data.packs import aligned_crops, majority_labels, read_pack, yaw_column
from facezoo.evaluate.embedding import embed_aligned
from facezoo.evaluate.metrics import balanced_accuracy, confusion, predicted_classes
from facezoo.evaluate.packs import NEUTRAL_OR_HAPPY
from facezoo.models.base import FaceModel
from facezoo.preprocess.quality import LUMINANCE, sharpness
from facezoo.results import EXPRESSIONS

SIDE = 112
CHEEKS = ((slice(64, 80), slice(30, 46)), (slice(64, 80), slice(66, 82)))
"""Rows and columns of both cheeks in a crop of the template arcface112."""
YAW_DEG = (0.0, 10.0, 20.0, 30.0, 90.0)
BEYOND_DEG = (10.0, 40.0)
AGES = (0, 10, 20, 40, 60, 120)
MIN_IMAGES = 100
"""Smaller data sets are left out: their groups show nothing."""
OVERLAPPING = "(also in other rows)"
THIRDS = ("lowest", "middle", "highest")
HAPPY = EXPRESSIONS.index("happiness")
DRAWS = 10_000
NAMES = {"ferplus": "FER+ test", "lfw": "LFW val", "london_expr": "London val"}


def cheek_luminance(crops: Tensor) -> Tensor:
    """Return the median luminance of both cheeks in [0, 255], of uint8 crops (N, 3, S, S)."""
    gray = (crops.float() * torch.tensor(LUMINANCE)[:, None, None]).sum(1)
    patches = torch.cat([gray[:, rows, columns].flatten(1) for rows, columns in CHEEKS], 1)
    return patches.median(1).values


def crop_sharpness(crops: Tensor) -> Tensor:
    """Return ``facezoo.preprocess.quality.sharpness`` of whole crops, (N,)."""
    boxes = torch.tensor([[0.0, 0.0, SIDE, SIDE]]).expand(len(crops), 4)
    return sharpness(list(crops.permute(0, 2, 3, 1)), boxes, torch.arange(len(crops)))


def thirds(values: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield three groups of equal size by rising value."""
    order = values.argsort()
    for name, rows in zip(THIRDS, order.tensor_split(3), strict=True):
        low, high = values[rows].min(), values[rows].max()
        yield f"{name} third ({low:.0f} to {high:.0f})", rows


def bands(values: Tensor, limits: tuple[float, ...], unit: str) -> Iterator[tuple[str, Tensor]]:
    """Yield the groups between neighboring limits."""
    for low, high in pairwise(limits):
        rows = ((values >= low) & (values < high)).nonzero()[:, 0]
        if len(rows):
            yield f"{low:.0f} to {high:.0f} {unit}", rows


def groups_of(table, crops: Tensor) -> Iterator[tuple[str, str, Tensor]]:
    """Yield name of the property, name of the group, and rows."""
    yield "all faces", "", torch.arange(len(table))
    if "yaw" in table.column_names:
        yaw = yaw_column(table).abs()
        for name, rows in bands(yaw, YAW_DEG, "degrees"):
            yield "yaw", name, rows
        for limit in BEYOND_DEG:
            if len(rows := (yaw > limit).nonzero()[:, 0]):
                yield "yaw", f"beyond {limit:.0f} degrees {OVERLAPPING}", rows
        if len(rows := yaw.isnan().nonzero()[:, 0]):
            yield "faces", "without landmarks", rows
    for name, rows in thirds(crop_sharpness(crops)):
        yield "sharpness", name, rows
    for name, rows in thirds(cheek_luminance(crops)):
        yield "luminance of the cheeks", name, rows


def share(count: int, total: int) -> str:
    """Format the share of a count with its Wilson interval."""
    if not total:
        return "–"
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return ranged(count / total, interval.low, interval.high)


def ranged(value: float, low: float, high: float) -> str:
    """Format a share and its interval."""
    return f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def balanced_interval(counts: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the balanced accuracy of a confusion matrix.

    The recall of each class is drawn from its Jeffreys posterior. A bootstrap would give no
    uncertainty to a class with one image, or lose the class. The interval includes the balanced
    accuracy, also if all images are right.
    """
    images, right = counts.sum(1).numpy(), counts.diagonal().numpy()
    occurs = images > 0
    recalls = np.random.default_rng(seed).beta(
        right[occurs] + 0.5, (images - right)[occurs] + 0.5, size=(DRAWS, occurs.sum())
    )
    low, high = np.quantile(recalls.mean(1), (0.025, 0.975))
    value = balanced_accuracy(counts)
    return min(float(low), value), max(float(high), value)


def scored(predicted: Tensor, truth: Tensor, classes: int) -> dict[str, str]:
    """Return the scores of one group."""
    counts = confusion(predicted, truth, classes)
    others = truth != HAPPY
    called_happy = int((predicted[others] == HAPPY).sum())
    return {
        "images": str(len(truth)),
        "accuracy": share(int(counts.diagonal().sum()), len(truth)),
        "balanced accuracy": ranged(balanced_accuracy(counts), *balanced_interval(counts)),
        "images not happy": str(int(others.sum())),
        "false happiness": share(called_happy, int(others.sum())),
    }


def logits_of(model: FaceModel, table) -> Tensor:
    """Return logits with columns in the order of ``EXPRESSIONS``."""
    columns = [model.labels.index(word) for word in EXPRESSIONS]
    return embed_aligned(model, table, ["predict_expression"])["predict_expression"][:, columns]


def mixed(predicted: Tensor, truth: Tensor, rows: Tensor) -> dict[str, str]:
    """Return the classes of a group, and its accuracy if only their shares differed.

    The expected accuracy has the recall of each class in all faces. So it differs from that of all
    faces by the classes of the group alone.
    """
    counts = confusion(predicted, truth, len(EXPRESSIONS))
    recalls = counts.diagonal() / counts.sum(1).clamp(min=1)
    images = torch.bincount(truth[rows], minlength=len(EXPRESSIONS))
    expected = float(100 * (images * recalls).sum() / images.sum())
    right = float(100 * (predicted[rows] == truth[rows]).double().mean())
    shares = (100 * images / images.sum()).tolist()
    named = {f"{word}, %": f"{share:.1f}" for word, share in zip(EXPRESSIONS, shares, strict=True)}
    return named | {"expected accuracy, %": f"{expected:.1f}", "accuracy, %": f"{right:.1f}"}


def labeled_rows(
    model: FaceModel, data: Path, pack: str, split: str
) -> tuple[list[dict], list[dict]]:
    """Measure the groups of a pack with labels: their scores, and their classes."""
    table = read_pack(data / f"{pack}.parquet", split)
    truth = majority_labels(table)
    two = [EXPRESSIONS.index(word) for word in NEUTRAL_OR_HAPPY]
    known = truth >= 0 if pack == "ferplus" else torch.isin(truth, torch.tensor(two))
    table, truth = table.filter(known.tolist()), truth[known]
    if len(table) < MIN_IMAGES:
        return [], []
    logits = logits_of(model, table)
    if pack != "ferplus":
        others = [k for k in range(len(EXPRESSIONS)) if k not in two]
        logits[:, others] = -torch.inf
    predicted = predicted_classes(logits.softmax(1))
    crops = aligned_crops(table, "arcface112", SIDE)
    scores, mixes = [], []
    for kind, name, rows in groups_of(table, crops):
        group = {"data": NAMES[pack], "group": f"{kind} {name}".strip()}
        scores.append(group | scored(predicted[rows], truth[rows], len(EXPRESSIONS)))
        mixes.append(group | mixed(predicted, truth, rows))
    return scores, mixes


def age_rows(model: FaceModel, data: Path) -> list[dict]:
    """Describe the predictions for faces of known age without labels."""
    table = read_pack(data / "faces_wild.parquet", "val")
    ages = torch.tensor([-1.0 if age is None else float(age) for age in table["age"].to_pylist()])
    probabilities = logits_of(model, table).softmax(1)
    predicted = predicted_classes(probabilities)
    return [
        {
            "age": name,
            "images": str(len(rows)),
            "predicted happiness": share(int((predicted[rows] == HAPPY).sum()), len(rows)),
            "mean confidence": f"{100 * float(probabilities[rows].amax(1).mean()):.1f} %",
        }
        for name, rows in bands(ages, AGES, "years")
    ]


def main(data: Path, model: str = "ipd-fer") -> dict:
    """Measure all groups of a checkpoint that predicts the eight expressions."""
    network = facezoo.load(model, device="cpu")
    packs = (("ferplus", "test"), ("lfw", "val"), ("london_expr", "val"))
    found = {pack: labeled_rows(network, data, pack, split) for pack, split in packs}
    tables = {
        "groups": [row for scores, _ in found.values() for row in scores],
        "classes": [
            {name: value for name, value in row.items() if name != "data"}
            for row in found["ferplus"][1]
        ],
        "ages": age_rows(network, data),
    }
    command = f"python benchmarks/groups.py DATA --model {model} --json OUT"
    return {**stamp(command), "checkpoint": network.card.name, "tables": tables}


if __name__ == "__main__":
    run_on_packs(main, __doc__)
