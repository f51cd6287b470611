"""Leakage: identity in expression features, and expression in identity features.

Every accuracy comes with a chance level (the most frequent class) and a control (the same procedure
on permuted labels). An accuracy well above both is a leak. One near them proves only that these
probes find none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.evaluate.embedding import ALIGNED, embed_aligned
from facezoo.evaluate.packs import (
    FERPLUS,
    FERPLUS_TRAIN,
    LFW,
    LFW_TRAIN,
    LONDON,
    NEUTRAL_OR_HAPPY,
    TRAINING_ROWS,
    Packs,
)
from facezoo.evaluate.probes import linear_probe
from facezoo.evaluate.verification import Pairs, verification_accuracy
from facezoo.hub.card import Metric
from facezoo.models.base import FaceModel
from facezoo.results import EXPRESSIONS

SPLITS = 5
"""Random halves of each identity's images, and permutations of a control."""
MIN_IMAGES = 4
"""Images that an identity needs for identification: two to fit, two to test."""


@dataclass(frozen=True)
class Score:
    """Accuracy of a probe, with its chance level and control."""

    accuracy: float
    """In [0, 1]; the mean over splits or folds."""
    spread: float | None
    """Population standard deviation over splits or folds; None for a single one."""
    chance: float
    """Accuracy of always predicting the most frequent class of train."""
    control: float
    """Accuracy of the same procedure on permuted labels."""
    probabilities: Tensor | None = field(default=None, repr=False, compare=False)
    """Of the test rows, (T, K); None where there are several splits or none."""

    def metrics(
        self, name: str, dataset: str, split: str, protocol: str, command: str
    ) -> list[Metric]:
        """Convert to rows of a card, in percent."""
        rows = {
            name: self.accuracy,
            f"{name}, standard deviation": self.spread,
            f"{name}, chance": self.chance,
            f"{name}, control": self.control,
            f"{name}, above chance": self.accuracy - self.chance,
        }
        return [
            Metric(key, 100 * value, "%", dataset, split, protocol, command)
            for key, value in rows.items()
            if value is not None
        ]


# --- probes of features -------------------------------------------------------------------------


def identity_from(features: Tensor, identities: Tensor, seed: int = 0) -> Score:
    """Identify faces with a linear probe (closed set).

    The probe is fitted to half of each identity's images (and the odd one) and tested on the rest;
    the score is the mean over ``SPLITS`` random halves. Identities with fewer than ``MIN_IMAGES``
    images are left out.

    Args:
        features: (N, D).
        identities: int64, (N,).
        seed: seed of the halves and of the control.

    Raises:
        ValueError: if fewer than two identities have enough images.
    """
    _, numbers, counts = identities.unique(return_inverse=True, return_counts=True)
    rows = counts[numbers] >= MIN_IMAGES
    if (enough := int((counts >= MIN_IMAGES).sum())) < 2:
        raise ValueError(
            f"{enough} of {len(counts)} identities have {MIN_IMAGES} images or more; "
            "identification needs two or more of them"
        )
    features, labels = features[rows], numbers[rows].unique(return_inverse=True)[1]
    generator = torch.Generator().manual_seed(seed)
    outcomes = []
    for _ in range(SPLITS):
        train, test = _halves(labels, generator)
        score = _probe_and_control(features, labels, train, [test], None, generator)[0]
        outcomes.append((score.accuracy, score.chance, score.control))
    accuracy, chance, control = torch.tensor(outcomes, dtype=torch.double).unbind(1)
    return Score(
        accuracy=float(accuracy.mean()),
        spread=float(accuracy.std(correction=0)),
        chance=float(chance.mean()),
        control=float(control.mean()),
    )


def expressions_from(
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    tests: Sequence[Tensor],
    groups: Tensor | None = None,
    seed: int = 0,
) -> list[Score]:
    """Classify expressions with one linear probe on several test sets.

    Args:
        features: (N, D).
        labels: classes, int64, (N,).
        train: rows to fit, (R,).
        tests: rows to predict, (T,) each.
        groups: identities, none of which may be in train and test, int64, (N,); None if unknown.
        seed: seed of the control.

    Returns:
        One score per test set.

    Raises:
        ValueError: if features are not finite, a group is in train and test, or train is too small.
    """
    generator = torch.Generator().manual_seed(seed)
    return _probe_and_control(features, labels, train, tests, groups, generator)


def pairs_from(features: Tensor, files: list[str], pairs: Pairs, seed: int = 0) -> Score:
    """Verify pairs of images by the cosine of their features; the control permutes the images.

    Args:
        features: one row per file, (N, D).
        files: N file names.
        pairs: half of them are of one identity, so that chance is 0.5.
        seed: seed of the control.

    Returns:
        Accuracy over the folds, its spread, chance and control, in [0, 1].
    """
    mean, spread = verification_accuracy(features, files, pairs)
    generator = torch.Generator().manual_seed(seed)
    permuted = [features[torch.randperm(len(features), generator=generator)] for _ in range(SPLITS)]
    control = [verification_accuracy(rows, files, pairs)[0] for rows in permuted]
    return Score(mean, spread, 0.5, sum(control) / SPLITS)


def same_identity_from(neutral: Tensor, smiling: Tensor, seed: int = 0) -> Score:
    """Identify smiling faces by the neutral face of highest cosine; the control permutes the names.

    Args:
        neutral: features of one image per identity, (P, D).
        smiling: features of another image of the same identities, in the same order, (P, D).
        seed: seed of the control.
    """
    nearest = (F.normalize(smiling, dim=1) @ F.normalize(neutral, dim=1).T).argmax(1)
    identities = torch.arange(len(nearest))
    generator = torch.Generator().manual_seed(seed)
    permuted = [torch.randperm(len(nearest), generator=generator) for _ in range(SPLITS)]
    control = [float((names[nearest] == identities).double().mean()) for names in permuted]
    accuracy = float((nearest == identities).double().mean())
    return Score(accuracy, None, 1 / len(nearest), sum(control) / SPLITS)


def neutral_and_smiling(labels: Tensor, identities: Tensor) -> tuple[Tensor, Tensor]:
    """Find the rows of each identity's neutral and smiling image, in the order of the identities.

    Args:
        labels: index in ``EXPRESSIONS``, (N,).
        identities: (N,).

    Returns:
        Two of (P,).

    Raises:
        ValueError: if an identity does not have one neutral and one smiling image.
    """
    rows = [(labels == EXPRESSIONS.index(w)).nonzero()[:, 0] for w in NEUTRAL_OR_HAPPY]
    neutral, smiling = (part[identities[part].argsort()] for part in rows)
    names = identities[neutral]
    if not len(names) or len(names.unique()) < len(names) or not names.equal(identities[smiling]):
        raise ValueError(
            "every identity needs one neutral and one smiling image, got "
            f"{len(neutral)} neutral and {len(smiling)} smiling images; leave out the others"
        )
    return neutral, smiling


def _probe_and_control(
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    tests: Sequence[Tensor],
    groups: Tensor | None,
    generator: torch.Generator,
) -> list[Score]:
    """Fit a probe and a control with permuted training labels; score both on each test set."""
    permuted = labels.clone()
    permuted[train] = labels[train[torch.randperm(len(train), generator=generator)]]
    rows = torch.cat([*tests])
    probe = linear_probe(features, labels, train, rows, groups)
    control = linear_probe(features, permuted, train, rows, groups)
    most_frequent = labels[train].bincount().argmax()
    sizes = [len(test) for test in tests]
    scores = []
    for test, probabilities, of_control in zip(
        tests, probe.probabilities.split(sizes), control.predicted.split(sizes), strict=True
    ):
        predictions = (probabilities.argmax(1), most_frequent, of_control)
        accuracy, chance, by_control = (
            float((predicted == labels[test]).double().mean()) for predicted in predictions
        )
        scores.append(Score(accuracy, None, chance, by_control, probabilities))
    return scores


def _halves(identities: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split the images of each identity in random halves; train gets the odd one."""
    train, test = [], []
    for identity in identities.unique():
        rows = (identities == identity).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)]
        half = (len(rows) + 1) // 2
        train.append(rows[:half])
        test.append(rows[half:])
    return torch.cat(train), torch.cat(test)


# --- protocols on the packs -----------------------------------------------------------------------

FITS = ((FERPLUS_TRAIN, EXPRESSIONS, (FERPLUS,)), (LFW_TRAIN, NEUTRAL_OR_HAPPY, (LFW, LONDON)))
"""Training split, classes and test splits of the expression probes."""


@dataclass(frozen=True)
class ExpressionTask:
    """Features and labels of one expression probe; the fields are arguments of ``linear_probe``."""

    features: Tensor
    labels: Tensor
    train: Tensor
    tests: list[Tensor]
    groups: Tensor | None


def expression_task(
    features: dict[str, Tensor],
    packs: Packs,
    train: str,
    words: tuple[str, ...],
    tests: Sequence[str],
) -> ExpressionTask:
    """Select the rows of an expression probe, ``TRAINING_ROWS`` of train at most.

    Args:
        features: by split, (N, D).
        packs: the data.
        train: name of the training split.
        words: the classes.
        tests: names of the test splits.
    """
    names = (train, *tests)
    splits = [packs.splits[name] for name in names]
    rows = [split.rows_with(words) for split in splits]
    rows[0] = rows[0][:TRAINING_ROWS]
    joined = torch.cat([features[name][r] for name, r in zip(names, rows, strict=True)])
    labels = torch.cat([split.labels[r] for split, r in zip(splits, rows, strict=True)])
    first, *others = torch.arange(len(labels)).split([len(r) for r in rows])
    known = [s.identities[r] for s, r in zip(splits, rows, strict=True) if s.identities is not None]
    groups = torch.cat(known) if len(known) == len(splits) else None
    return ExpressionTask(joined, labels, first, others, groups)


def identity_scores(features: dict[str, Tensor], packs: Packs) -> dict[str, Score]:
    """Score verification, identification, and the same identity with another expression.

    Args:
        features: by split, (N, D).
        packs: the data.
    """
    lfw, london = packs.splits[LFW], packs.splits[LONDON]
    assert lfw.identities is not None
    assert london.identities is not None
    neutral, smiling = neutral_and_smiling(london.labels, london.identities)
    of_london = features[LONDON]
    return {
        "verification": pairs_from(features[LFW], lfw.files, packs.pairs),
        "identification": identity_from(features[LFW], lfw.identities),
        "same identity": same_identity_from(of_london[neutral], of_london[smiling]),
    }


def leakage(model: FaceModel, data: Path, command: str) -> list[Metric]:
    """Measure identity and expression in a model's expression and identity features.

    Args:
        model: the model.
        data: folder with ``ferplus.parquet``, ``lfw.parquet``, ``lfw_pairs_val.csv`` and
            ``london_expr.parquet``.
        command: the command line, for the record.

    Returns:
        Metrics in percent.
    """
    packs = Packs.read(data)
    able = model.capabilities()
    stages = [name for name in ("encode_expression", "encode_identity") if name in able]
    results = {k: embed_aligned(model, s.table, stages) for k, s in packs.splits.items()}
    identities = packs.splits[LFW].identities
    assert identities is not None
    counts = identities.bincount()
    enough = counts[counts >= MIN_IMAGES]
    several = (
        f"linear probe, {len(enough)} people with {MIN_IMAGES} photographs or more "
        f"({int(enough.sum())}), half of each fitted to, {SPLITS} splits"
    )
    pairs = f"ten folds of {len(packs.pairs.same)} pairs, cosine"
    neutrals = (
        f"the smiling photograph of each of {len(packs.splits[LONDON].files) // 2} people, nearest "
        "of their neutral ones by cosine"
    )
    metrics: list[Metric] = []
    for stage in stages:
        name = f"{stage.removeprefix('encode_')} features"
        features = {split: rows[stage] for split, rows in results.items()}
        scores = identity_scores(features, packs)
        for score, title, dataset, split, rule in (
            (scores["identification"], "identity from", "LFW", "val", several),
            (scores["verification"], "verification by", "LFW pairs", "val", pairs),
            (scores["same identity"], "identity from", _LONDON, "all", neutrals),
        ):
            rule = f"{rule}; {ALIGNED}"
            metrics += score.metrics(f"{title} {name}", dataset, split, rule, command)
        for (train, words, tests), dataset, split, classes in (
            (FITS[1], "LFW", "val", "neutral against happiness"),
            (FITS[0], "FER+", "test", "majority rule, 8 classes"),
        ):
            task = expression_task(features, packs, train, words, tests[:1])
            score = expressions_from(**vars(task))[0]
            rule = (
                f"linear probe, {classes}, fitted to {len(task.train)} images of train, "
                f"{len(task.tests[0])} images; {ALIGNED}"
            )
            metrics += score.metrics(f"expression from {name}", dataset, split, rule, command)
    return metrics


_LONDON = "Face Research Lab London Set"
