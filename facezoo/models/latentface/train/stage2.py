"""The second stage: diffusion from the code of a face to the mean code of that person's faces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from facezoo.models.latentface.diffusion import (
    TRAIN_STEPS,
    RepresentationDiffusion,
    add_noise,
)
from facezoo.models.latentface.losses import denoising_loss, snr_weights
from facezoo.models.latentface.model import LatentFace
from facezoo.models.latentface.networks import AutoEncoder
from facezoo.models.latentface.train.loop import fit
from facezoo.models.latentface.train.photographs import Photographs, centred
from facezoo.models.latentface.train.recipes import Disentangling

PARTS = ("texture", "shape")


@torch.no_grad()
def person_codes(
    model: LatentFace, photographs: Photographs, device: torch.device, batch: int = 128
) -> list[Tensor]:
    """Codes Z_t and Z_s of everyone who is shown twice or more.

    Args:
        model: whose encoders are used, in eval mode.
        photographs: with persons.
        device: where to compute.
        batch: crops at a time.

    Returns:
        Per person (n, 2, D), on the CPU: the codes of each photograph and of its mirror image.

    Raises:
        ValueError: if nobody is shown twice.
    """
    model.eval().to(device)
    codes = []
    for part in photographs.crops.split(batch):
        images = centred(part).to(device)
        both = [model.embed_latents(view) for view in (images, images.flip(-1))]
        codes.append(torch.stack([torch.stack([z.texture, z.shape], 1) for z in both], 1).cpu())
    every = torch.cat(codes)  # (N, 2 views, 2 parts, D)
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(photographs.persons):
        rows.setdefault(name, []).append(row)
    persons = [every[r].flatten(0, 1) for name, r in sorted(rows.items()) if name and len(r) > 1]
    if not persons:
        raise ValueError(
            "nobody is shown in two photographs or more, and stage 2 learns from what several "
            "photographs of one person have in common; give data with persons"
        )
    return persons
