"""SimCLR on W+ codes, and the labels of its slider directions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from facezoo.data.unlabeled import center
from facezoo.models.latent_simclr.augment import appearance_layers, augment_codes, structure_layers
from facezoo.models.latent_simclr.feature_style import FeatureStyleEncoder
from facezoo.models.latent_simclr.losses import nt_xent_loss
from facezoo.models.latent_simclr.model import LatentSimCLR
from facezoo.models.latent_simclr.simclr import CodeEncoder, ProjectionHead
from facezoo.models.latent_simclr.train.recipes import Contrasting
from facezoo.progress import progress_bar
from facezoo.training.loop import Position, fit
from facezoo.training.optim import autocast, descend

Augment = Callable[[Tensor, Tensor, Generator], Tensor]
"""Function from codes (B, L, D), a bank of codes (M, L, D) and a generator to views (B, L, D)."""
Partners = Callable[[Tensor, Generator], Tensor]
"""Function from rows of images, int64, (B,), to rows of the images of their second views."""
QUARTER = 0.25
"""Share of images with the largest and with the smallest values that get a label."""


@torch.inference_mode()
def codes_of(encoder: FeatureStyleEncoder, crops: Tensor, device: torch.device) -> Tensor:
    """Encode crops with a margin and their mirror images, in eval mode, (2, N, L, D)."""
    encoder.eval().to(device)
    parts = []
    for part in progress_bar(crops.split(256), desc="codes", unit="batch"):
        images = center(part).to(device)
        with autocast(device):
            both = [encoder.encode_codes(side) for side in (images, images.flip(-1))]
        parts.append(torch.stack(both).float().cpu())
    return torch.cat(parts, 1).clone()


def train_contrast(
    encoder: CodeEncoder,
    codes: Tensor,
    rows: Tensor,
    augment: Augment,
    config: Contrasting,
    out: Path,
    seed: int,
    device: torch.device,
    partners: Partners | None = None,
) -> dict[str, Tensor]:
    """Train a code encoder by SimCLR; the projection head is discarded.

    Args:
        encoder: encoder whose scale was fitted to the codes.
        codes: codes of images and of their mirror images, (2, N, L, D).
        rows: indices of the images to learn from, (M,).
        augment: create a view of each code, see ``augmentation``.
        seed: seed of the head, order and random numbers.
        partners: choose the image of the second view (ours); None for the same one.

    Returns:
        Averaged tensors of the encoder, on the CPU.
    """
    torch.manual_seed(seed)
    inputs = encoder.num_features
    head = nn.Linear(inputs, inputs, bias=False) if config.linear_head else ProjectionHead(inputs)
    parts = nn.ModuleDict({"encoder": encoder, "head": head})
    parts.to(device)
    bank = codes.flatten(0, 1).to(device)

    optimizer = torch.optim.Adam(parts.parameters(), lr=config.schedule.lr)

    def step(rows: Tensor, at: Position) -> dict[str, Tensor]:
        chance = at.generator
        batch = some_sides(codes, rows, chance)
        other = batch if partners is None else some_sides(codes, partners(rows, chance), chance)
        views = [augment(side.to(device), bank, chance) for side in (batch, other)]
        first, second = parts["head"](parts["encoder"](torch.cat(views))).chunk(2)
        loss = nt_xent_loss(first, second, config.temperature)
        descend(optimizer, loss)
        return {"loss": loss}

    state = fit(parts, [optimizer], step, config.schedule, rows, out, seed).state
    start = "encoder."
    return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}


def augmentation(
    what: str, model: LatentSimCLR, config: Contrasting, device: torch.device
) -> Augment:
    """Return the function that creates a view of each code, for one of the encoders.

    Args:
        what: ``"expression"`` or ``"identity"``.
        model: a model with directions and, for ``config.exchange``, with expression axes.
    """
    names = config.expression_sliders if what == "expression" else config.identity_sliders
    sliders = [model.direction(name).to(device) for name in names]
    num_codes = model.directions.shape[1]
    layers = replaced_styles(what, num_codes) if config.mixing else range(0)
    axes = None
    if config.exchange and what == "identity":
        assert model.expression_axes is not None
        axes = copy.deepcopy(model.expression_axes).to(device)

    def augment(codes: Tensor, bank: Tensor, generator: Generator) -> Tensor:
        view = augment_codes(
            codes, bank, sliders, generator, layers=layers, strength=config.strength
        )
        if axes is None:
            return view
        rows = torch.randint(len(bank), (len(codes),), generator=generator)
        return axes.exchange(view, bank[rows.to(bank.device)])

    return augment


def some_sides(codes: Tensor, rows: Tensor, generator: Generator) -> Tensor:
    """Take codes (2, N, L, D) of some images, mirrored or not at random, (B, L, D)."""
    return codes[torch.randint(2, (len(rows),), generator=generator), rows]


def nearest_expressions(expression: Tensor, count: int) -> Partners:
    """Pair each image with one of the images of the most similar expression; ours.

    Args:
        expression: expression features of another model, (N, M).
        count: number of nearest images that a partner is chosen from.
    """
    count = min(count, len(expression) - 1)
    nearest = torch.cat(
        [
            torch.cdist(part, expression).topk(count + 1, largest=False).indices[:, 1:]
            for part in expression.float().split(1024)
        ]
    )

    def choose(rows: Tensor, generator: Generator) -> Tensor:
        return nearest[rows, torch.randint(count, (len(rows),), generator=generator)]

    return choose


def same_identities(identities: Sequence[str]) -> Partners:
    """Pair each image with an image of the same identity, which may be itself; ours.

    Args:
        identities: name of each image, N; empty if unknown.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(identities))}
    group = torch.tensor([numbers[name] for name in identities])
    order = group.argsort(stable=True)
    counts = torch.bincount(group)
    starts = counts.cumsum(0) - counts
    unknown = torch.tensor([not name for name in identities])

    def choose(rows: Tensor, generator: Generator) -> Tensor:
        own = group[rows]
        places = (torch.rand(len(rows), generator=generator) * counts[own]).long()
        return torch.where(unknown[rows], rows, order[starts[own] + places])

    return choose


def measured_labels(crops: Tensor) -> dict[str, Tensor]:
    """Label crops, uint8, (N, 3, H, W), by image statistics, for ``fit_directions``.

    ``blur`` is a small variance of the Laplacian. ``skin_tone`` is a dark center of the face, which
    depends on light as well as on skin.
    """
    gray = crops.float().mean(1)
    laplacian = 4 * gray[:, 1:-1, 1:-1] - (
        gray[:, :-2, 1:-1] + gray[:, 2:, 1:-1] + gray[:, 1:-1, :-2] + gray[:, 1:-1, 2:]
    )
    return {
        "blur": label_extremes(-laplacian.flatten(1).std(1)),
        "skin_tone": label_extremes(-face_middles(crops.float()).flatten(1).mean(1)),
    }


def face_middles(crops: Tensor) -> Tensor:
    """Cut the gray middle of the face out of crops (N, 3, H, W), (N, H', W')."""
    height, width = crops.shape[2:]
    gray = crops.mean(1)
    return gray[:, height * 2 // 5 : height * 3 // 4, width // 4 : width * 3 // 4]


def label_extremes(values: Tensor) -> Tensor:
    """Label the largest quarter of values 1, the smallest 0 and the rest NaN, (N,)."""
    finite = values[torch.isfinite(values)]
    low, high = finite.quantile(QUARTER), finite.quantile(1 - QUARTER)
    labels = torch.full_like(values, float("nan"))
    labels[values >= high] = 1
    labels[values <= low] = 0
    return labels


def replaced_styles(what: str, num_codes: int) -> range:
    """Return the styles that views for expression, as in the paper, or identity, ours, replace."""
    return appearance_layers(num_codes) if what == "expression" else structure_layers(num_codes)
