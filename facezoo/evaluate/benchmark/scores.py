"""Scores of one kind of features: expression, also by yaw, and identity."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from facezoo.evaluate.benchmark.packs import (
    FERPLUS,
    FERPLUS_TRAIN,
    LFW,
    LFW_TRAIN,
    LONDON,
    Packs,
)
from facezoo.evaluate.leakage import (
    NEUTRAL_OR_HAPPY,
    TRAINING_ROWS,
    Score,
    expressions_from,
    identity_from,
    neutral_and_smiling,
    pairs_from,
    same_identity_from,
)
from facezoo.evaluate.metrics import accuracy_by_yaw, scores
from facezoo.evaluate.probes import nearest_neighbors
from facezoo.results import EXPRESSIONS

PROTOCOLS = (FERPLUS, LFW, LONDON)
"""Splits on which expressions are classified."""
FITS = (
    (FERPLUS_TRAIN, EXPRESSIONS, (FERPLUS,)),
    (LFW_TRAIN, NEUTRAL_OR_HAPPY, (LFW, LONDON)),
)
"""Training split, classes and test splits of each probe."""

Numbers = dict[str, Any]


def score_features(features: dict[str, Tensor], packs: Packs) -> Numbers:
    """Compute all scores of one kind of features, in percent.

    Args:
        features: by split, (N, D).
        packs: the data.
    """
    expression: Numbers = {}
    for train, words, tests in FITS:
        expression |= _expression(features, packs, train, words, tests)
    return {
        "dim": next(iter(features.values())).shape[1],
        "expression": expression,
        "identity": _identity(features, packs),
    }


def _expression(
    features: dict[str, Tensor],
    packs: Packs,
    train_name: str,
    words: tuple[str, ...],
    test_names: tuple[str, ...],
) -> Numbers:
    """Score expression on test splits, by two probes that are fitted to a training split."""
    names = (train_name, *test_names)
    splits = [packs.splits[name] for name in names]
    rows = [split.rows_with(words) for split in splits]
    rows[0] = rows[0][:TRAINING_ROWS]
    joined = torch.cat([features[name][r] for name, r in zip(names, rows, strict=True)])
    labels = torch.cat([split.labels[r] for split, r in zip(splits, rows, strict=True)])
    train, *tests = torch.arange(len(labels)).split([len(r) for r in rows])
    known = [s.identities[r] for s, r in zip(splits, rows, strict=True) if s.identities is not None]
    groups = torch.cat(known) if len(known) == len(splits) else None
    probes = expressions_from(joined, labels, train, tests, groups)
    neighbors = nearest_neighbors(joined, labels, train, torch.cat(tests), groups)
    by_neighbors = neighbors.probabilities.split([len(test) for test in tests])
    numbers: Numbers = {}
    for name, probe, near, split, r in zip(
        test_names, probes, by_neighbors, splits[1:], rows[1:], strict=True
    ):
        truth = split.labels[r]
        assert probe.probabilities is not None
        bins = accuracy_by_yaw(probe.probabilities, truth, split.yaw_deg[r])
        numbers[name] = {
            "train_images": len(train),
            "images": len(r),
            "linear": {k: _percent(v) for k, v in scores(probe.probabilities, truth).items()},
            "neighbors": {k: _percent(v) for k, v in scores(near, truth).items()},
            "probe": _numbers(probe),
            "yaw": [asdict(b) | {"accuracy": _percent(b.accuracy)} for b in bins if b.images],
        }
    return numbers


def _identity(features: dict[str, Tensor], packs: Packs) -> Numbers:
    """Score verification, identification and the same identity with another expression."""
    lfw, london = packs.splits[LFW], packs.splits[LONDON]
    assert lfw.identities is not None
    assert london.identities is not None
    neutral, smiling = neutral_and_smiling(london.labels, london.identities)
    of_london = features[LONDON]
    return {
        "verification": _numbers(pairs_from(features[LFW], lfw.files, packs.pairs)),
        "identification": _numbers(identity_from(features[LFW], lfw.identities)),
        "same identity": _numbers(same_identity_from(of_london[neutral], of_london[smiling])),
    }


def _numbers(score: Score) -> Numbers:
    """Convert a score to percent, without its probabilities."""
    names = ("accuracy", "spread", "chance", "control")
    values = {name: getattr(score, name) for name in names}
    return {name: None if value is None else _percent(value) for name, value in values.items()}


def _percent(share: float) -> float:
    return round(100 * share, 4)
