"""What can be read from one kind of features: expression, identity, and pose in between."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from facezoo.benchmarking.views import FERPLUS, FERPLUS_TRAIN, LFW, LFW_TRAIN, LONDON, Packs, View
from facezoo.evaluate.classification import scores
from facezoo.evaluate.leakage import (
    TRAINING_ROWS,
    Reading,
    expression_from,
    identity_from,
    pairs_from,
    same_person_from,
)
from facezoo.evaluate.pose import accuracy_by_yaw
from facezoo.evaluate.probes import nearest_neighbours
from facezoo.results import EXPRESSIONS

TWO = ("neutral", "happiness")
"""What LFW and London are told on: the labels of the others cannot be trusted, or are not there."""
PROTOCOLS = {
    FERPLUS: (FERPLUS_TRAIN, EXPRESSIONS),
    LFW: (LFW_TRAIN, TWO),
    LONDON: (LFW_TRAIN, TWO),
}
"""What is fitted to, and which classes are told, by what is told."""

Numbers = dict[str, Any]


def read_out(features: dict[str, Tensor], packs: Packs) -> Numbers:
    """Everything that is read from one kind of features, in per cent.

    Args:
        features: by view, (N, D).
        packs: what they are of.
    """
    return {
        "dim": next(iter(features.values())).shape[1],
        "expression": {name: _expression(features, packs, name) for name in PROTOCOLS},
        "identity": _identity(features, packs),
    }


def _expression(features: dict[str, Tensor], packs: Packs, name: str) -> Numbers:
    """Accuracy, macro-F1 and accuracy by yaw on one set, from probes fitted to another."""
    fitted, words = PROTOCOLS[name]
    views = [packs.views[fitted], packs.views[name]]
    rows = [rows_with(view, words) for view in views]
    rows[0] = rows[0][:TRAINING_ROWS]
    both = torch.cat([features[key][r] for key, r in zip((fitted, name), rows, strict=True)])
    labels = torch.cat([view.labels[r] for view, r in zip(views, rows, strict=True)])
    train, test = torch.arange(len(labels)).split([len(r) for r in rows])
    groups = None
    if all(view.people is not None for view in views):
        groups = torch.cat([v.people[r] for v, r in zip(views, rows, strict=True)])  # type: ignore[index]
    linear = expression_from(both, labels, train, test, groups)
    near = nearest_neighbours(both, labels, train, test, groups)
    assert linear.probabilities is not None
    truth = labels[test]
    yaw = accuracy_by_yaw(linear.probabilities, truth, views[1].yaw_deg[rows[1]])
    return {
        "fitted": len(train),
        "told": len(test),
        "linear": _per_cent(scores(linear.probabilities, truth)),
        "neighbours": _per_cent(scores(near.probabilities, truth)),
        "reading": reading(linear),
        "yaw": [
            {"beyond_deg": b.beyond_deg, "images": b.images, "accuracy": _cent(b.accuracy)}
            for b in yaw
            if b.images
        ],
    }


def _identity(features: dict[str, Tensor], packs: Packs) -> Numbers:
    """Verification, closed-set identification and same person with another expression."""
    lfw, london = packs.views[LFW], packs.views[LONDON]
    assert lfw.people is not None
    neutral, smiling = (london.labels == EXPRESSIONS.index(word) for word in TWO)
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
