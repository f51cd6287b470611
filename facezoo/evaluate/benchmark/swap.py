"""The swap test: decode the identity of one face with the expression of another.

Every identity of the London set has one neutral and one smiling image in the same light. So the
correct result of a swap is a real image. A judge scores the decoded images: features of another
model, or pixels. It also scores the real images, and images that were decoded without a swap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.data.packs import aligned_crops
from facezoo.evaluate.benchmark.encoders import Entry, Features
from facezoo.evaluate.packs import LFW_TRAIN, LONDON, NEUTRAL_OR_HAPPY, Packs, Split
from facezoo.evaluate.probes import linear_probe
from facezoo.hub.card import Preprocessing
from facezoo.landmarks import similarity_transform
from facezoo.models.base import FaceModel
from facezoo.preprocess.alignment import align, normalize
from facezoo.preprocess.templates import template_points
from facezoo.results import EXPRESSIONS

Transfer = Callable[..., Tensor]
EDITS = ("identity kept", "expression taken", "neutral", "identity, neutralized")
"""Numbers of ``judge_swaps`` about changed images."""


@dataclass(frozen=True)
class Swap:
    """Images of P identities, each with two expressions, in S = 2 P rows."""

    real: Tensor
    """Real crops, uint8, (S, 3, T, T)."""
    decoded: Tensor
    """The same crops, encoded and decoded, uint8, (S, 3, T, T)."""
    swapped: Tensor
    """The identity of each row with the expression of ``sources``, uint8, (S, 3, T, T)."""
    neutralized: Tensor | None
    """The same crops without their expression, uint8, (S, 3, T, T); None if the model cannot."""
    twins: Tensor
    """The row with the same identity and the other expression: the correct result, (S,)."""
    sources: Tensor
    """The row that gives the expression: another identity, the other expression, (S,)."""
    expressions: Tensor
    """Expression of each row, an index in ``NEUTRAL_OR_HAPPY``, (S,)."""


def transfer_of(model: FaceModel | None) -> Transfer | None:
    """Return ``transfer_expression`` of a model, or None if it cannot do it."""
    if model is None or "transfer_expression" not in model.capabilities():
        return None
    return model.transfer_expression


def swaps(entry: Entry, packs: Packs, seed: int = 0, *, detail: bool = False) -> Swap:
    """Swap each identity's expression with the other expression of the next, in seeded order.

    Args:
        entry: of a model that can transfer expressions.
        seed: seed of the order.
        detail: let a model that can keep detail edit the crops, instead of decoding its features
            alone.
    """
    transfer = transfer_of(entry.model)
    assert transfer is not None
    assert entry.model is not None
    options = {} if entry.model.keeps_detail is None else {"detail": detail}
    split = packs.splits[LONDON]
    twins, sources, expressions = partners(split, seed)
    crops = aligned_crops(split.table, entry.preprocessing.template, entry.preprocessing.size)
    images = list(crops)
    swapped = transfer([crops[row] for row in sources.tolist()], images, aligned=True, **options)
    decoded = transfer(images, images, aligned=True, **options)
    neutralized = None
    if "neutralize" in entry.model.capabilities():
        neutralized = _to_bytes(entry.model.neutralize(images, aligned=True, **options))
    made = _to_bytes(decoded), _to_bytes(swapped), neutralized
    return Swap(crops, *made, twins, sources, expressions)


def partners(split: Split, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find the twin, source and expression of each row; see ``Swap``.

    Raises:
        ValueError: if an identity does not have one image of each expression.
    """
    assert split.identities is not None
    classes = torch.tensor([EXPRESSIONS.index(word) for word in NEUTRAL_OR_HAPPY])
    identities = split.identities.unique(return_inverse=True)[1]
    count = int(identities.max()) + 1
    rows = torch.full((count, len(classes)), -1)
    expressions = (split.labels[:, None] == classes).long().argmax(1)
    rows[identities, expressions] = torch.arange(len(identities))
    if len(identities) != 2 * count or bool((rows < 0).any()) or count < 2:
        raise ValueError(
            "the swap test needs two identities or more, each with one neutral and one smiling "
            f"image, got {count} identities in {len(identities)} images"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    following = torch.empty_like(order)
    following[order] = order.roll(-1)
    others = 1 - expressions
    return rows[identities, others], rows[following[identities], others], expressions


def judge_swaps(
    swap: Swap, preprocessing: Preprocessing, judge: Entry, features: Features, packs: Packs
) -> dict[str, float]:
    """Score swapped images by the features of a judge, in percent.

    - *identity kept*: the cosine to the twin is higher than to the source of the expression. Both
      have that expression; chance is 50.
    - *expression taken*: a linear probe, fitted to the judge's features of LFW train, predicts the
      expression of the source; chance is 50.
    - *neutral*, of the neutralized smiling images: the same probe predicts neutral.
    - *identity, neutralized*: of the same images, the cosine to the neutral twin is higher than to
      the neutral image of the other identity; chance is 50.

    Args:
        preprocessing: that of the crops in ``swap``.
        judge: encoder that judges.
    """
    crops = {"photographs": swap.real, "decoded": swap.decoded, "swapped": swap.swapped}
    if swap.neutralized is not None:
        crops["neutralized"] = swap.neutralized
    seen = {name: _features(judge, images, preprocessing) for name, images in crops.items()}
    of_expression, of_identity = judge.spaces[0], judge.spaces[-1]
    predicted = _predict_expressions(
        features[of_expression][LFW_TRAIN],
        packs.splits[LFW_TRAIN],
        torch.cat([rows[of_expression] for rows in seen.values()]),
    ).split(len(swap.expressions))
    expression = dict(zip(crops, predicted, strict=True))
    real = seen["photographs"][of_identity]

    everyone = torch.ones_like(swap.expressions, dtype=torch.bool)

    def identity(name: str, of: Tensor = everyone) -> float:
        rows = seen[name][of_identity]
        twin, other = (F.cosine_similarity(rows, real[r]) for r in (swap.twins, swap.sources))
        return _percent((twin > other)[of])

    result = {
        "identity kept": identity("swapped"),
        "identity, decoded": identity("decoded"),
        "identity, photographs": identity("photographs"),
        "expression taken": _percent(expression["swapped"] == swap.expressions[swap.sources]),
        "expression, decoded": _percent(expression["decoded"] == swap.expressions),
        "expression, photographs": _percent(expression["photographs"] == swap.expressions),
        "swaps": len(swap.expressions),
    }
    if "neutralized" in crops:
        smiles = swap.expressions == NEUTRAL_OR_HAPPY.index("happiness")
        neutral = NEUTRAL_OR_HAPPY.index("neutral")
        result["neutral"] = _percent(expression["neutralized"][smiles] == neutral)
        result["identity, neutralized"] = identity("neutralized", smiles)
    return result


def _features(judge: Entry, crops: Tensor, preprocessing: Preprocessing) -> dict[str, Tensor]:
    """Compute the judge's features of crops in another template, black outside of the crop."""
    source = template_points(preprocessing.template, crops.shape[-1]).float()
    size = judge.preprocessing.size
    target = template_points(judge.preprocessing.template, size).float()
    matrix = similarity_transform(source[None], target).expand(len(crops), 2, 3)
    moved = align(list(crops.permute(0, 2, 3, 1)), torch.arange(len(crops)), matrix, size)
    results = judge.run(normalize(moved.to(judge.device), judge.preprocessing), judge.spaces)
    return {name: rows.cpu() for name, rows in results.items()}


def _predict_expressions(trained: Tensor, split: Split, features: Tensor) -> Tensor:
    """Predict one of ``NEUTRAL_OR_HAPPY`` with a probe that is fitted to a split, (S,)."""
    rows = split.rows_with(NEUTRAL_OR_HAPPY)
    labels = torch.cat([split.labels[rows], torch.zeros(len(features), dtype=torch.long)])
    train, test = torch.arange(len(labels)).split([len(rows), len(features)])
    return linear_probe(torch.cat([trained[rows], features]), labels, train, test).predicted


def _percent(right: Tensor) -> float:
    return round(100 * float(right.double().mean()), 4)


def _to_bytes(crops: Tensor) -> Tensor:
    return (255 * crops).round().clamp(0, 255).to(torch.uint8).cpu()
