"""SimCLR on W+ codes, and the labels of its slider directions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from facezoo.data.unlabeled import center
from facezoo.models.latent_simclr.augment import appearance_layers, augment_codes, structure_layers
from facezoo.models.latent_simclr.feature_style import FeatureStyleEncoder
from facezoo.models.latent_simclr.losses import nt_xent_loss
from facezoo.models.latent_simclr.simclr import CodeEncoder, ProjectionHead
from facezoo.models.latent_simclr.train.recipes import Contrasting
from facezoo.progress import progress_bar
from facezoo.training.loop import Position, fit
from facezoo.training.optim import autocast, descend

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
    directions: Mapping[str, Tensor],
    config: Contrasting,
    layers: range,
    out: Path,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Train a code encoder by SimCLR; the projection head is discarded.

    Args:
        encoder: encoder whose scale was fitted to the codes.
        codes: codes of images and of their mirror images, (2, N, L, D).
        layers: indices of the styles that views replace.
        seed: seed of the head, order and random numbers.

    Returns:
        Averaged tensors of the encoder, on the CPU.
    """
    torch.manual_seed(seed)
    parts = nn.ModuleDict({"encoder": encoder, "head": ProjectionHead(encoder.num_features)})
    parts.to(device)
    bank = codes.flatten(0, 1).to(device)
    sliders = [direction.to(device) for direction in directions.values()]

    optimizer = torch.optim.Adam(parts.parameters(), lr=config.schedule.lr)

    def step(rows: Tensor, at: Position) -> dict[str, Tensor]:
        chance = at.generator
        side = torch.randint(2, (len(rows),), generator=chance)
        batch = codes[side, rows].to(device)
        views = [
            augment_codes(batch, bank, sliders, chance, layers=layers, strength=config.strength)
            for _ in range(2)
        ]
        first, second = parts["head"](parts["encoder"](torch.cat(views))).chunk(2)
        loss = nt_xent_loss(first, second, config.temperature)
        descend(optimizer, loss)
        return {"loss": loss}

    state = fit(
        parts, [optimizer], step, config.schedule, torch.arange(codes.shape[1]), out, seed
    ).state
    start = "encoder."
    return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}


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


def views(what: str, num_codes: int) -> range:
    """Return the styles that views for expression, as in the paper, or identity, ours, replace."""
    return appearance_layers(num_codes) if what == "expression" else structure_layers(num_codes)
