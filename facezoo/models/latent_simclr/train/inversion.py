"""Training of the Feature-Style encoder with a frozen generator."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.data.unlabeled import augmented
from facezoo.models.feature_maps import FeatureMaps
from facezoo.models.latent_simclr.inverter import StyleGANInverter
from facezoo.models.latent_simclr.losses import (
    feature_loss,
    identity_loss,
    image_loss,
    perceptual_loss,
)
from facezoo.models.latent_simclr.train.recipes import Inverting
from facezoo.training.loop import Position, fit
from facezoo.training.optim import autocast, descend


def train_encoder(
    inverter: StyleGANInverter,
    crops: Tensor,
    config: Inverting,
    out: Path,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Train the encoder of an inverter; its generator is frozen.

    Args:
        crops: uint8 crops with a margin, see ``facezoo.data.unlabeled``.
        seed: seed of order and random numbers; the weights are the encoder's.

    Returns:
        Averaged tensors of the encoder, on the CPU.
    """
    inverter.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    inverter.generator.requires_grad_(False)
    stages = (*config.perceptual_stages, *config.identity_stages)
    network = FeatureMaps(config.features, stages).to(device)

    optimizer = torch.optim.Adam(inverter.encoder.parameters(), lr=config.schedule.lr)

    def step(rows: Tensor, at: Position) -> dict[str, Tensor]:
        images = augmented(crops[rows], at.generator, config.grey).to(device)
        with autocast(device):
            terms = inversion_terms(inverter, network, images, config)
        loss = (
            terms["image"]
            + config.lambda_perceptual * terms["perceptual"]
            + config.lambda_identity * terms["identity"]
            + config.lambda_feature * terms["feature"]
        )
        descend(optimizer, loss)
        return {"loss": loss, **terms}

    rows = torch.arange(len(crops))
    return fit(inverter.encoder, [optimizer], step, config.schedule, rows, out, seed).state


def inversion_terms(
    inverter: StyleGANInverter, network: FeatureMaps, images: Tensor, config: Inverting
) -> dict[str, Tensor]:
    """Compute the four losses; image losses are summed over the images of w and of w with f.

    Args:
        network: returns the maps of the perceptual stages, then of the identity stages.
        images: crops, (B, 3, S, S).
    """
    inversion, layer = inverter.encode(images), inverter.layer
    plain = inverter.generator.synthesize(inversion.w_plus, read=(layer,))
    both = inverter.synthesize(inversion.w_plus, inversion.feature)
    generated = torch.cat([plain.images, both])
    maps, identity = loss_maps(network, generated, config)
    with torch.no_grad():
        target_maps, target_identity = loss_maps(network, images, config)
    return {
        "image": 2 * image_loss(generated, _twice(images)),
        "perceptual": 2 * perceptual_loss(maps, [_twice(rows) for rows in target_maps]),
        "identity": 2 * identity_loss(identity, [_twice(rows) for rows in target_identity]),
        "feature": feature_loss(inversion.feature, plain.features[layer]),
    }


def loss_maps(
    network: FeatureMaps, images: Tensor, config: Inverting
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute the maps of the perceptual loss at every scale, and of the identity loss."""
    count = len(config.perceptual_stages)
    maps = network(images)
    perceptual, identity = maps[:count], maps[count:]
    for scale in range(1, config.scales):
        perceptual += network(F.avg_pool2d(images, 2**scale))[:count]
    return perceptual, identity


def _twice(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows])
