"""What can be read from one kind of features: expression, identity, and pose in between."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from facezoo.evaluate.benchmark.splits import (
    FERPLUS,
    FERPLUS_TRAIN,
    LFW,
    LFW_TRAIN,
    LONDON,
    Packs,
    View,
)
from facezoo.evaluate.classification import scores
from facezoo.evaluate.leakage import (
    TRAINING_ROWS,
    Reading,
    expressions_from,
    identity_from,
    neutral_and_smiling,
    pairs_from,
    same_person_from,
)
from facezoo.evaluate.pose import accuracy_by_yaw
from facezoo.evaluate.probes import nearest_neighbours
from facezoo.results import EXPRESSIONS

TWO = ("neutral", "happiness")
"""What LFW and London are told on: the labels of the others cannot be trusted, or are not there."""
PROTOCOLS = (FERPLUS, LFW, LONDON)
"""The views on which expressions are told."""
FITS = ((FERPLUS_TRAIN, EXPRESSIONS, (FERPLUS,)), (LFW_TRAIN, TWO, (LFW, LONDON)))
"""What is fitted to, which classes count, and what is told."""

Numbers = dict[str, Any]


def read_out(features: dict[str, Tensor], packs: Packs) -> Numbers:
    """Everything that is read from one kind of features, in per cent.

    Args:
        features: by view, (N, D).
        packs: what they are of.
    """
    return {
        "dim": next(iter(features.values())).shape[1],
        "expression": {
            name: found for fit in FITS for name, found in _expressions(features, packs, *fit)
        },
        "identity": _identity(features, packs),
    }


def _expressions(
    features: dict[str, Tensor],
    packs: Packs,
    fitted: str,
    words: tuple[str, ...],
    told: tuple[str, ...],
) -> Iterator[tuple[str, Numbers]]:
    """Accuracy, macro-F1 and accuracy by yaw on some views, from probes fitted to another."""
    names = (fitted, *told)
    views = [packs.views[name] for name in names]
    rows = [rows_with(view, words) for view in views]
    rows[0] = rows[0][:TRAINING_ROWS]
    both = torch.cat([features[name][r] for name, r in zip(names, rows, strict=True)])
    labels = torch.cat([view.labels[r] for view, r in zip(views, rows, strict=True)])
    train, *tests = torch.arange(len(labels)).split([len(r) for r in rows])
    people = [v.people[r] for v, r in zip(views, rows, strict=True) if v.people is not None]
    groups = torch.cat(people) if len(people) == len(views) else None
    readings = expressions_from(both, labels, train, tests, groups)
    near = nearest_neighbours(both, labels, train, torch.cat(tests), groups).probabilities
    parts = near.split([len(test) for test in tests])
    for name, found, neighbours, view, r in zip(
        told, readings, parts, views[1:], rows[1:], strict=True
    ):
        truth = view.labels[r]
        assert found.probabilities is not None
        yaw = accuracy_by_yaw(found.probabilities, truth, view.yaw_deg[r])
        yield (
            name,
            {
                "fitted": len(train),
                "told": len(r),
                "linear": _per_cent(scores(found.probabilities, truth)),
                "neighbours": _per_cent(scores(neighbours, truth)),
                "reading": reading(found),
                "yaw": [
                    {"beyond_deg": b.beyond_deg, "images": b.images, "accuracy": _cent(b.accuracy)}
                    for b in yaw
                    if b.images
                ],
            },
        )


def _identity(features: dict[str, Tensor], packs: Packs) -> Numbers:
    """Verification, closed-set identification and same person with another expression."""
    lfw, london = packs.views[LFW], packs.views[LONDON]
    assert lfw.people is not None
    assert london.people is not None
    neutral, smiling = neutral_and_smiling(london.labels, london.people)
    told = features[LONDON]
    return {
        "verification": reading(pairs_from(features[LFW], lfw.files, packs.pairs)),
        "identification": reading(identity_from(features[LFW], lfw.people)),
        "same person": reading(same_person_from(told[neutral], told[smiling])),
    }


def reading(found: Reading) -> Numbers:
    """A reading in per cent, without its probabilities."""
    values = {key: value for key, value in asdict(found).items() if key != "probabilities"}
    return {key: None if value is None else _cent(value) for key, value in values.items()}


def rows_with(view: View, words: tuple[str, ...]) -> Tensor:
    """Places of the rows that have one of these expressions, (R,)."""
    wanted = torch.tensor([EXPRESSIONS.index(word) for word in words])
    return torch.isin(view.labels, wanted).nonzero()[:, 0]


def _per_cent(values: dict[str, float]) -> dict[str, float]:
    return {key: _cent(value) for key, value in values.items()}


def _cent(share: float) -> float:
    return round(100 * share, 4)
