"""The Feature-Style encoder: photographs through a frozen generator and back."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.data.photographs import augmented
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
    """Train an inverter's encoder; its generator stays as it is.

    Args:
        inverter: generator and new encoder.
        crops: uint8 with a margin, see ``facezoo.data.photographs``.
        config: how.
        out: folder for state and log.
        seed: of order and chance; initial weights are the encoder's.
        device: where to train.

    Returns:
        Averaged tensors of the encoder, on the CPU.
    """
    inverter.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    inverter.generator.requires_grad_(False)
    stages = (*config.perceptual_stages, *config.identity_stages)
    judge = FeatureMaps(config.features, stages).to(device)

    optimizer = torch.optim.Adam(inverter.encoder.parameters(), lr=config.schedule.lr)

    def step(rows: Tensor, at: Position) -> dict[str, Tensor]:
        images = augmented(crops[rows], at.generator, config.grey).to(device)
        with autocast(device):
            terms = inversion_terms(inverter, judge, images, config)
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
    inverter: StyleGANInverter, judge: FeatureMaps, images: Tensor, config: Inverting
) -> dict[str, Tensor]:
    """The four losses, those of images summed over drawing with w alone and with w and f.

    Args:
        inverter: generator and encoder.
        judge: gives the maps of the perceptual stages, then those of the identity stages.
        images: (B, 3, S, S).
        config: stages and scales.
    """
    inversion, layer = inverter.encode(images), inverter.layer
    plain = inverter.generator.synthesize(inversion.w_plus, read=(layer,))
    both = inverter.synthesize(inversion.w_plus, inversion.feature)
    drawn = torch.cat([plain.images, both])
    looks, persons = judged(judge, drawn, config)
    with torch.no_grad():
        wanted_looks, wanted_persons = judged(judge, images, config)
    return {
        "image": 2 * image_loss(drawn, _twice(images)),
        "perceptual": 2 * perceptual_loss(looks, [_twice(maps) for maps in wanted_looks]),
        "identity": 2 * identity_loss(persons, [_twice(maps) for maps in wanted_persons]),
        "feature": feature_loss(inversion.feature, plain.features[layer]),
    }


def judged(
    judge: FeatureMaps, images: Tensor, config: Inverting
) -> tuple[list[Tensor], list[Tensor]]:
    """Maps for the perceptual loss at every scale, and those for the identity loss."""
    count = len(config.perceptual_stages)
    maps = judge(images)
    looks, persons = maps[:count], maps[count:]
    for scale in range(1, config.scales):
        looks += judge(F.avg_pool2d(images, 2**scale))[:count]
    return looks, persons


def _twice(rows: Tensor) -> Tensor:
    return torch.cat([rows, rows])
