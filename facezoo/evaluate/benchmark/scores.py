"""Scores of one kind of features: expression, also by yaw, and identity."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from facezoo.evaluate.leakage import FITS, Score, expression_task, expressions_from, identity_scores
from facezoo.evaluate.metrics import accuracy_by_yaw, scores
from facezoo.evaluate.packs import Packs
from facezoo.evaluate.probes import nearest_neighbors

Numbers = dict[str, Any]


def score_features(features: dict[str, Tensor], packs: Packs) -> Numbers:
    """Compute all scores of one kind of features, by split (N, D), in percent."""
    expression: Numbers = {}
    for train, words, tests in FITS:
        expression |= _expression(features, packs, train, words, tests)
    identity = identity_scores(features, packs)
    return {
        "dim": next(iter(features.values())).shape[1],
        "expression": expression,
        "identity": {name: _numbers(score) for name, score in identity.items()},
    }


def _expression(
    features: dict[str, Tensor],
    packs: Packs,
    train: str,
    words: tuple[str, ...],
    tests: tuple[str, ...],
) -> Numbers:
    """Score expression on test splits, by two probes that are fitted to a training split."""
    task = expression_task(features, packs, train, words, tests)
    probes = expressions_from(**vars(task))
    rows = torch.cat(task.tests)
    neighbors = nearest_neighbors(task.features, task.labels, task.train, rows, task.groups)
    by_neighbors = neighbors.probabilities.split([len(test) for test in task.tests])
    numbers: Numbers = {}
    for name, test, probe, near in zip(tests, task.tests, probes, by_neighbors, strict=True):
        truth, split = task.labels[test], packs.splits[name]
        assert probe.probabilities is not None
        yaw_deg = split.yaw_deg[split.rows_with(words)]
        bins = accuracy_by_yaw(probe.probabilities, truth, yaw_deg)
        numbers[name] = {
            "train_images": len(task.train),
            "images": len(test),
            "linear": {k: _percent(v) for k, v in scores(probe.probabilities, truth).items()},
            "neighbors": {k: _percent(v) for k, v in scores(near, truth).items()},
            "probe": _numbers(probe),
            "yaw": [asdict(b) | {"accuracy": _percent(b.accuracy)} for b in bins if b.images],
        }
    return numbers


def _numbers(score: Score) -> Numbers:
    """Convert a score to percent, without its probabilities."""
    names = ("accuracy", "spread", "chance", "control")
    values = {name: getattr(score, name) for name in names}
    return {name: None if value is None else _percent(value) for name, value in values.items()}


def _percent(share: float) -> float:
    return round(100 * share, 4)
