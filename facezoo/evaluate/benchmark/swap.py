"""The swap test: decode the identity of one person with the expression of another.

Everyone of the London set is there once neutral and once smiling, in the same light, so the face
that a swap should show exists as a photograph. The pictures are judged by another family's
features, and by pixels. Each number stands beside what the judge makes of real photographs, shown
to it in the same crops, and of pictures that were decoded without swapping.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.data.packs import aligned_crops
from facezoo.evaluate.benchmark.entrants import Entrant
from facezoo.evaluate.benchmark.measure import TWO, rows_with
from facezoo.evaluate.benchmark.splits import LFW_TRAIN, LONDON, Features, Packs, View
from facezoo.evaluate.probes import linear_probe
from facezoo.hub.card import Preprocessing
from facezoo.models.base import FaceModel
from facezoo.preprocess.alignment import align, normalize, similarity_transform
from facezoo.preprocess.templates import template_points
from facezoo.results import EXPRESSIONS

Transfer = Callable[..., Tensor]


@dataclass(frozen=True)
class Swap:
    """Photographs of P people, each in two expressions, and what was made of them: S = 2 P rows.

    Row r shows person ``whose[r]`` in ``shown[r]``, one of ``TWO``.
    """

    photographs: Tensor
    """uint8, (S, 3, T, T)."""
    decoded: Tensor
    """The same photographs encoded and decoded again, uint8, (S, 3, T, T)."""
    swapped: Tensor
    """The identity of each with the expression of ``sources``, uint8, (S, 3, T, T)."""
    twins: Tensor
    """The row of the same person in the other expression, which a swap should look like, (S,)."""
    sources: Tensor
    """The row that the expression was taken from: another person, the other expression, (S,)."""
    shown: Tensor
    """Index in ``TWO``, (S,)."""


def transfer_of(model: FaceModel | None) -> Transfer | None:
    """``transfer_expression`` of a model that has it in its configuration; None of others."""
    if model is None or "transfer_expression" in model.absent:
        return None
    transfer: Transfer | None = getattr(model, "transfer_expression", None)
    return transfer


def swaps(entrant: Entrant, packs: Packs, seed: int = 0) -> Swap:
    """Everyone's identity with the other expression of the next person, in a seeded order."""
    model = entrant.model
    transfer = transfer_of(model)
    assert model is not None
    assert transfer is not None
    table = packs.views[LONDON].table
    twins, sources, shown = partners(packs.views[LONDON], seed)
    crops = aligned_crops(table, entrant.preprocessing.template, entrant.preprocessing.size)
    photographs = list(crops)
    swapped = transfer([crops[row] for row in sources.tolist()], photographs, aligned=True)
    decoded = transfer(photographs, photographs, aligned=True)
    return Swap(crops, _as_pixels(decoded), _as_pixels(swapped), twins, sources, shown)


def partners(view: View, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each row its twin, its source and its expression; see ``Swap``.

    Raises:
        ValueError: if not everyone is there once in each of ``TWO``.
    """
    assert view.people is not None
    words = torch.tensor([EXPRESSIONS.index(word) for word in TWO])
    people = view.people.unique(return_inverse=True)[1]
    count = int(people.max()) + 1
    rows = torch.full((count, len(words)), -1)
    shown = (view.labels[:, None] == words).long().argmax(1)
    rows[people, shown] = torch.arange(len(people))
    if len(people) != 2 * count or bool((rows < 0).any()) or count < 2:
        raise ValueError(
            "the swap test wants two people or more, each once neutral and once smiling, got "
            f"{count} people on {len(people)} photographs"
        )
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    following = torch.empty_like(order)
    following[order] = order.roll(-1)
    return rows[people, 1 - shown], rows[following[people], 1 - shown], shown


def judged(
    swap: Swap, made_for: Preprocessing, judge: Entrant, features: Features, packs: Packs
) -> dict[str, float]:
    """What a judge makes of swapped pictures, in per cent.

    - *identity kept*: nearer by cosine to the person's other photograph than to the photograph
      that the expression was taken from. Both show that expression; chance is 50.
    - *expression taken*: read as the expression that was asked for, by a linear probe fitted to
      the judge's features of the training photographs of LFW; chance is 50.

    Args:
        swap: the pictures.
        made_for: how the crops of the model under test are prepared.
        judge: whose features judge.
        features: the judge's, of the views.
        packs: what these are of.
    """
    sets = {
        "photographs": swap.photographs,
        "decoded": swap.decoded,
        "swapped": swap.swapped,
    }
    seen = {name: _features(judge, crops, made_for) for name, crops in sets.items()}
    of_expression, of_identity = judge.spaces[0], judge.spaces[-1]
    told = _expressions(
        features[of_expression][LFW_TRAIN],
        packs.views[LFW_TRAIN],
        torch.cat([found[of_expression] for found in seen.values()]),
    ).split(len(swap.shown))
    expression = dict(zip(sets, told, strict=True))
    real = seen["photographs"][of_identity]

    def kept(name: str) -> float:
        made = seen[name][of_identity]
        twin, other = (F.cosine_similarity(made, real[r]) for r in (swap.twins, swap.sources))
        return _share(twin > other)

    return {
        "identity kept": kept("swapped"),
        "identity, decoded": kept("decoded"),
        "identity, photographs": kept("photographs"),
        "expression taken": _share(expression["swapped"] == swap.shown[swap.sources]),
        "expression, decoded": _share(expression["decoded"] == swap.shown),
        "expression, photographs": _share(expression["photographs"] == swap.shown),
        "swaps": len(swap.shown),
    }


def _features(judge: Entrant, crops: Tensor, made_for: Preprocessing) -> dict[str, Tensor]:
    """A judge's features of crops in another template; outside of them it is black."""
    source = template_points(made_for.template, crops.shape[-1]).float()
    size = judge.preprocessing.size
    target = template_points(judge.preprocessing.template, size).float()
    matrix = similarity_transform(source[None], target).expand(len(crops), 2, 3)
    moved = align(list(crops.permute(0, 2, 3, 1)), torch.arange(len(crops)), matrix, size)
    found = judge.run(normalize(moved.to(judge.device), judge.preprocessing), judge.spaces)
    return {name: rows.cpu() for name, rows in found.items()}


def _expressions(trained: Tensor, view: View, pictures: Tensor) -> Tensor:
    """Which of ``TWO`` a probe on the view's features reads from those of pictures, (S,)."""
    rows = rows_with(view, TWO)
    features = torch.cat([trained[rows], pictures])
    labels = torch.cat([view.labels[rows], torch.zeros(len(pictures), dtype=torch.long)])
    fitted, told = torch.arange(len(labels)).split([len(rows), len(pictures)])
    return linear_probe(features, labels, fitted, told).predicted


def _share(right: Tensor) -> float:
    return round(100 * float(right.double().mean()), 4)


def _as_pixels(crops: Tensor) -> Tensor:
    return (255 * crops).round().clamp(0, 255).to(torch.uint8).cpu()
