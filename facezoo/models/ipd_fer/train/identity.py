"""Train the identity encoder E_id from a teacher's embeddings, names and pairs of expressions.

The paper takes E_id from face recognition on CASIA-WebFace and keeps it fixed. Ours learns the
geometry of a teacher's embeddings (distillation), with the directions removed in which the teacher
shows expression. All images of one identity share one target, the mean of its embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from facezoo.data.augment import augment
from facezoo.evaluate.verification import Pairs, verification_accuracy
from facezoo.models.ipd_fer import losses
from facezoo.models.ipd_fer.networks import Encoder
from facezoo.models.ipd_fer.train.recipes import IdentityConfig, Recipe
from facezoo.models.ipd_fer.train.rounds import adam, fit
from facezoo.models.ipd_fer.train.dataset import Rows, embed, gather, pick
from facezoo.models.identity_removal import remove_identity
from facezoo.training.optim import autocast, descend
from facezoo.training.processes import Processes
from facezoo.training.state import generator

STRONG = partial(
    augment,
    rotation_deg=12.0,
    scaling=0.1,
    shift=0.05,
    blur=0.3,
    erase=0.2,
    patch=0.2,
    noise=0.2,
    jpeg=0.2,
)
"""Augmentation of the identity encoder: whatever leaves the identity as it is."""


class EmbeddingQueue(nn.Module):
    """The features and teacher embeddings of the latest training images.

    Args:
        length: Q, rows.
        feature_dim: D of the features.
        teacher_dim: D' of the teacher.
    """

    features: Tensor
    teacher: Tensor
    count: Tensor

    def __init__(self, length: int, feature_dim: int, teacher_dim: int) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(length, feature_dim))
        self.register_buffer("teacher", torch.zeros(length, teacher_dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def push(self, features: Tensor, teacher: Tensor) -> None:
        """Replace the oldest rows, features (B, D) and teacher (B, D')."""
        places = (int(self.count) + torch.arange(len(features))) % len(self.features)
        self.features[places] = features.detach().float()
        self.teacher[places] = teacher
        self.count += len(features)

    def entries(self) -> tuple[Tensor, Tensor] | None:
        """Return copies of both, (min(Q, rows so far), D) and D'; None before the first push."""
        filled = min(int(self.count), len(self.features))
        return (self.features[:filled].clone(), self.teacher[:filled]) if filled else None


def identity_targets(rows: Sequence[Rows], directions: int) -> list[Tensor]:
    """Compute what E_id learns: centered teacher embeddings without expression.

    Each domain (gray FER+, which comes first, and the color packs) has its own center. The
    ``directions`` in which the means of FER+'s expressions differ most are removed. Images of one
    identity get the mean of their embeddings.

    Returns:
        One tensor per pack, NaN where the teacher's embedding is unknown, (N, 128).
    """
    known = [torch.isfinite(part.teacher).all(1) for part in rows]
    color = torch.cat([r.teacher[k] for r, k in zip(rows[1:], known[1:], strict=True)]).mean(0)
    centers = [rows[0].teacher[known[0]].mean(0)] + [color] * (len(rows) - 1)
    centered = [part.teacher - center for part, center in zip(rows, centers, strict=True)]
    labeled = known[0] & (rows[0].labels >= 0)
    removal = remove_identity(centered[0][labeled], rows[0].labels[labeled], directions=directions)
    erased = [removal(part) for part in centered]
    return [_identity_means(part, r.persons) for part, r in zip(erased, rows, strict=True)]


def _identity_means(embeddings: Tensor, names: Sequence[str]) -> Tensor:
    result = embeddings.clone()
    for members in _rows_by_name(names).values():
        result[members] = embeddings[members].mean(0)
    return result


def _rows_by_name(names: Sequence[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name:
            rows.setdefault(name, []).append(row)
    return rows


def partners(rows: Rows, source: torch.Generator) -> Tensor:
    """Choose another image of the same identity for every row, with another expression if any.

    Returns:
        Row numbers, the row itself where the identity has one image, (N,).
    """
    result = torch.arange(len(rows.persons))
    for members in _rows_by_name(rows.persons).values():
        for row in members:
            others = [m for m in members if m != row]
            different = [m for m in others if rows.labels[m] != rows.labels[row]]
            choices = different or others or [row]
            result[row] = choices[int(torch.randint(len(choices), (), generator=source))]
    return result


def identity_batches(
    rows: Sequence[Rows], config: IdentityConfig, seed: int, epoch: int
) -> list[Tensor]:
    """Compose the batches of an epoch: single images, then pairs of images of one identity.

    Returns:
        (pack, row) of each image, ``config.round.steps`` tensors (2, B); the last 2 x
        ``config.pairs`` columns are the first images of the pairs, then the second ones.
    """
    source = generator(seed, epoch)
    steps = config.steps
    columns = []
    for pack, count in config.singles:
        known = torch.isfinite(rows[pack].teacher).all(1).nonzero()[:, 0]
        chosen = _endless(known, steps * count, source).view(steps, count)
        columns.append(torch.stack([torch.full_like(chosen, pack), chosen], 1))
    named = [pack for pack, part in enumerate(rows) if any(part.persons)]
    first = torch.cat(
        [
            torch.stack(
                [torch.full((len(rows[p].persons),), p), torch.arange(len(rows[p].persons))]
            )
            for p in named
        ],
        1,
    )
    second = torch.cat(
        [
            torch.stack([torch.full((len(rows[p].persons),), p), partners(rows[p], source)])
            for p in named
        ],
        1,
    )
    order = _endless(torch.arange(first.shape[1]), steps * config.pairs, source)
    for side in (first, second):
        columns.append(side[:, order].view(2, steps, config.pairs).transpose(0, 1))
    return list(torch.cat(columns, 2))


def _endless(rows: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Shuffle rows again and again until there are ``count``, (count,)."""
    rounds = -(-count // len(rows))
    orders = [rows[torch.randperm(len(rows), generator=source)] for _ in range(rounds)]
    return torch.cat(orders)[:count]


def train_identity(
    recipe: Recipe,
    rows: Sequence[Rows],
    val: Rows,
    pairs: Pairs,
    out: Path,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Train E_id, and keep the epoch of highest verification accuracy.

    Args:
        recipe: whose ``start.identity`` counts.
        rows: training splits of FER+, LFW, the web faces and London, in this order.
        val: LFW, validation split.
        pairs: of ``val``.
        out: folder for the state and log.
        seed: of initial weights, order and augmentation.
        device: where to train.

    Returns:
        Tensors of the encoder by name.
    """
    config = recipe.start.identity
    weights = config.weights
    torch.manual_seed(seed)
    targets = identity_targets(rows, config.erased_directions)
    color = torch.cat([part.teacher for part in rows[1:]])
    offset = (1 - config.centering) * color[torch.isfinite(color).all(1)].mean(0)
    persons = _number_persons(rows)
    parts = nn.ModuleDict(
        {
            "encoder": Encoder(recipe.backbone, recipe.feature_dim),
            "head": nn.Linear(recipe.feature_dim, len(offset)),
            "centers": nn.Linear(
                recipe.feature_dim, int(max(p.max() for p in persons)) + 1, bias=False
            ),
            "queue": EmbeddingQueue(config.queue, recipe.feature_dim, len(offset)),
        }
    ).to(device, memory_format=torch.channels_last)
    queue = parts["queue"]
    optimizer = adam(parts, config.round)
    paired = config.pairs // Processes.present().count  # of one process

    def step(chosen: Tensor, size: int, source: torch.Generator) -> dict[str, Tensor]:
        images = pick(rows, chosen, size, source, STRONG).to(device)
        with autocast(device):
            features = parts["encoder"](images).float()
        target = gather(targets, chosen)
        known = torch.isfinite(target).all(1)
        taught, target = features[known.to(device)], target[known].to(device)
        shifted = target + offset.to(device)
        past = queue.entries()
        first, second = features[-2 * paired :].chunk(2)
        terms = {
            "regression": losses.teacher_loss(parts["head"](taught), target),
            "matching": losses.similarity_matching_loss(taught, shifted, past),
            "ranking": losses.similarity_ranking_loss(taught, shifted, past),
            "margin": losses.margin_loss(
                features, parts["centers"].weight, gather(persons, chosen).to(device)
            ),
            "same_identity": losses.same_identity_loss(first, second),
        }
        total = torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()
        descend(optimizer, total)
        queue.push(taught, shifted)
        return {"loss": total.detach(), **{name: term.detach() for name, term in terms.items()}}

    def validate(network: nn.Module, size: int) -> dict[str, float]:
        features = embed(network.get_submodule("encoder"), val.crops, device, size)
        mean, spread = verification_accuracy(features, val.files, pairs)
        return {"verification": mean, "verification_std": spread}

    state = fit(
        parts,
        [optimizer],
        config.round,
        lambda epoch: identity_batches(rows, config, seed, epoch),
        step,
        validate,
        "verification",
        out / "identity",
        seed,
        save_every=100,
    )
    return {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}


def _number_persons(rows: Sequence[Rows]) -> list[Tensor]:
    """Number the identities with two images or more; -1 for the other rows."""
    counts: dict[str, int] = {}
    for name in (name for part in rows for name in part.persons if name):
        counts[name] = counts.get(name, 0) + 1
    numbers = {n: i for i, n in enumerate(sorted(n for n, c in counts.items() if c > 1))}
    return [torch.tensor([numbers.get(name, -1) for name in part.persons]) for part in rows]
