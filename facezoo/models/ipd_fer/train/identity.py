"""Train the identity encoder E_id from a teacher's embeddings, names and pairs of expressions.

The paper takes E_id from face recognition on CASIA-WebFace and keeps it fixed. Ours learns the
geometry of a teacher's embeddings (distillation), with the directions removed in which the teacher
shows expression. All images of one identity share one target, the mean of its embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from facezoo.data.augment import augment
from facezoo.evaluate.verification import verification_accuracy
from facezoo.models.identity_removal import IdentityRemoval, remove_identity
from facezoo.models.ipd_fer import losses
from facezoo.models.ipd_fer.networks import Encoder
from facezoo.models.ipd_fer.train.data import (
    Rows,
    Sources,
    embed,
    gather,
    rows_by_identity,
    sample_images,
)
from facezoo.models.ipd_fer.train.recipes import IdentityConfig, Recipe
from facezoo.training.loop import Position, fit
from facezoo.training.optim import autocast, descend, layer_groups
from facezoo.training.processes import Processes
from facezoo.training.state import generator

STRONG = partial(augment, blur=0.3, erase=0.2, patch=0.2, noise=0.2, jpeg=0.2)
"""Augmentation of the identity encoder: changes that keep the identity."""
REMOVAL_ROWS = 8192
"""Images per pack that the removal of expression is fitted to."""


class EmbeddingQueue(nn.Module):
    """The last Q features, of D numbers, and teacher embeddings, of D', of training images."""

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


def train_identity(
    recipe: Recipe,
    sources: Sources,
    out: Path,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Train E_id and select the epoch of highest verification accuracy.

    Args:
        recipe: recipe whose ``start.identity`` is used.

    Returns:
        Tensors of the model by name: of E_id, and of the removal of expression from f_id.
    """
    config, dim = recipe.start.identity, recipe.feature_dim
    torch.manual_seed(seed)
    packs = {**sources.train, **sources.faces}
    rows = list(packs.values())
    targets = identity_targets(rows, config.teacher_directions)
    teachers = torch.cat([part.teacher for part in rows[1:]])
    offset = (1 - config.centering) * teachers[torch.isfinite(teachers).all(1)].mean(0).to(device)
    numbers = number_identities(rows)
    encoder, head = Encoder(recipe.backbone, dim), nn.Linear(dim, len(offset))
    centers = nn.Linear(dim, 1 + int(max(n.max() for n in numbers)), bias=False)
    queue = EmbeddingQueue(config.queue, dim, len(offset))
    named = {"encoder": encoder, "head": head, "centers": centers, "queue": queue}
    parts = nn.ModuleDict(named).to(device).to(memory_format=torch.channels_last)
    stage, together = config.stage, Processes.present()
    groups = layer_groups(parts)
    optimizer = torch.optim.AdamW(groups, stage.lr, weight_decay=stage.weight_decay, fused=True)
    batches_of = lru_cache(1)(lambda epoch: identity_batches(packs, config, seed, epoch))

    def step(_: Tensor, at: Position) -> dict[str, Tensor]:
        whole = batches_of(at.epoch)[at.batch]
        index = whole[:, together.share(torch.arange(whole.shape[1]))]
        images = sample_images(rows, index, at.size, at.generator, STRONG).to(device)
        with autocast(device):
            features = encoder(images).float()
        target = gather(targets, index).to(device)
        taught = torch.isfinite(target).all(1)
        ours, theirs, past = features[taught], target[taught] + offset, queue.entries()
        first, second = features[-2 * config.pairs // together.count :].chunk(2)
        terms = {
            "regression": losses.teacher_loss(head(ours), target[taught]),
            "matching": losses.similarity_matching_loss(ours, theirs, past),
            "ranking": losses.similarity_ranking_loss(ours, theirs, past),
            "margin": losses.margin_loss(
                features, centers.weight, gather(numbers, index).to(device)
            ),
            "same_identity": losses.same_identity_loss(first, second),
        }
        weighted = [getattr(config.weights, name) * term for name, term in terms.items()]
        total = torch.stack(weighted).sum()
        descend(optimizer, total)
        queue.push(ours, theirs)
        return {"loss": total, **terms}

    val, pairs = sources.val["lfw"], sources.pairs
    assert pairs is not None

    def validate(network: nn.Module, at: Position) -> dict[str, float]:
        features = embed(network.get_submodule("encoder"), val.crops, device, at.size)
        mean, spread = verification_accuracy(features, val.files, pairs)
        return {"verification": mean, "verification_std": spread}

    places = torch.arange(config.batches * stage.batch_size)  # the step composes its batch itself
    folder = out / "identity"
    result = fit(
        parts,
        [optimizer],
        step,
        stage,
        places,
        folder,
        seed,
        validate=validate,
        select="verification",
    )
    state = {k: v for k, v in result.state.items() if k.startswith("encoder.")}
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in state.items()})
    tensors = {f"identity_{k}": v for k, v in state.items()}
    if config.removed_directions:
        rows = [known_expressions(part) for part in sources.train.values()]
        features = [embed(encoder.eval(), part.crops, device) for part in rows]
        removal = expression_removal(
            features, [part.labels for part in rows], config.removed_directions
        )
        tensors |= {f"expression_removal.{k}": v for k, v in removal.state_dict().items()}
    return tensors


def known_expressions(rows: Rows, most: int = REMOVAL_ROWS) -> Rows:
    """Return the first rows with an expression label."""
    known = rows.labels >= 0
    return rows.rows_where(known & (known.cumsum(0) <= most))


def expression_removal(
    features: Sequence[Tensor], labels: Sequence[Tensor], directions: int
) -> IdentityRemoval:
    """Fit the removal of what a linear probe reads of expression from f_id.

    It removes the Fisher directions of the expressions instead of those of the identities. Each
    pack is centered on its own, and its expressions count as classes of their own.

    Args:
        features: of E_id, one tensor (N, D) per pack.
        labels: expressions, -1 where unknown, one tensor (N,) per pack.
    """
    centered, classes = [], []
    for number, (rows, expressions) in enumerate(zip(features, labels, strict=True)):
        known = expressions >= 0
        centered.append(rows[known] - rows[known].mean(0))
        classes.append(expressions[known] + 100 * number)
    removal = remove_identity(torch.cat(centered), torch.cat(classes), directions=directions)
    removal.mean.zero_()  # a shift of all features, which no cosine of differences needs
    return removal


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
    result = [removal(part) for part in centered]
    for part, embeddings in zip(rows, result, strict=True):
        for members in rows_by_identity(part).values():
            embeddings[members] = embeddings[members].mean(0)
    return result


def identity_batches(
    packs: Mapping[str, Rows], config: IdentityConfig, seed: int, epoch: int
) -> list[Tensor]:
    """Compose the batches of an epoch: single images, then pairs of images of one identity.

    Returns:
        (pack, row) of each image, ``config.batches`` tensors (2, B). The last 2 x ``config.pairs``
        columns are the first images of the pairs, then the second ones.
    """
    source, names = generator(seed, epoch), list(packs)
    columns = []
    for name, count in config.singles:
        taught = torch.isfinite(packs[name].teacher).all(1).nonzero()[:, 0]
        rows = _repeat_shuffled(taught, config.batches * count, source)
        index = torch.stack([torch.full_like(rows, names.index(name)), rows])
        columns.append(index.view(2, config.batches, count))
    first, second = [], []
    for number, part in enumerate(packs.values()):
        if any(part.identities):
            pack = torch.full((len(part.identities),), number)
            first.append(torch.stack([pack, torch.arange(len(pack))]))
            second.append(torch.stack([pack, choose_partners(part, source)]))
    pairs = torch.cat([torch.cat(first, 1), torch.cat(second, 1)])  # (4, N)
    order = _repeat_shuffled(torch.arange(pairs.shape[1]), config.batches * config.pairs, source)
    chosen = pairs[:, order].view(2, 2, config.batches, config.pairs)
    return list(torch.cat([*columns, chosen[0], chosen[1]], 2).transpose(0, 1))


def choose_partners(rows: Rows, source: torch.Generator) -> Tensor:
    """Choose another image of the same identity for every row, with another expression if any.

    Returns:
        Row numbers; the row itself where the identity has one image, (N,).
    """
    result = torch.arange(len(rows.identities))
    for members in rows_by_identity(rows).values():
        for row in members:
            others = [m for m in members if m != row]
            different = [m for m in others if rows.labels[m] != rows.labels[row]]
            choices = different or others or [row]
            result[row] = choices[int(torch.randint(len(choices), (), generator=source))]
    return result


def number_identities(rows: Sequence[Rows]) -> list[Tensor]:
    """Number the identities with two images or more; -1 for the other rows."""
    counts: dict[str, int] = {}
    for name in (name for part in rows for name in part.identities if name):
        counts[name] = counts.get(name, 0) + 1
    numbers = {n: i for i, n in enumerate(sorted(n for n, c in counts.items() if c > 1))}
    return [torch.tensor([numbers.get(name, -1) for name in part.identities]) for part in rows]


def _repeat_shuffled(rows: Tensor, count: int, source: torch.Generator) -> Tensor:
    """Shuffle rows as often as it takes to have ``count`` of them, (count,)."""
    orders = [
        rows[torch.randperm(len(rows), generator=source)] for _ in range(-(-count // len(rows)))
    ]
    return torch.cat(orders)[:count]
