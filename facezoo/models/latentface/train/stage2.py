"""Second stage: diffusion from the code of a face to the mean code of its identity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from facezoo.data.unlabeled import FaceCrops, center
from facezoo.models.latentface.diffusion import TRAIN_STEPS, add_noise
from facezoo.models.latentface.losses import denoising_loss, snr_weights
from facezoo.models.latentface.networks import AutoEncoder
from facezoo.models.latentface.stages import LatentFaceStages
from facezoo.models.latentface.train.recipes import Disentangling
from facezoo.training.loop import Position, fit
from facezoo.training.optim import descend

PARTS = ("texture", "shape")


@torch.no_grad()
def codes_of(
    model: LatentFaceStages, crops: Tensor, device: torch.device, batch_size: int = 128
) -> Tensor:
    """Encode crops and their mirror images.

    Args:
        model: model with the encoders.
        crops: uint8 crops with a margin, (N, 3, S + 2 MARGIN, S + 2 MARGIN).

    Returns:
        Z_t and Z_s of crop and mirror image, on the CPU, (N, 2 sides, 2 codes, D).
    """
    model.eval().to(device)
    codes = []
    for part in crops.split(batch_size):
        images = center(part).to(device)
        both = [model.embed_latents(view) for view in (images, images.flip(-1))]
        codes.append(torch.stack([torch.stack([z.texture, z.shape], 1) for z in both], 1).cpu())
    return torch.cat(codes)


@torch.no_grad()
def equalize(autoencoder: AutoEncoder, codes: Tensor) -> Tensor:
    """Scale each entry of the codes to a standard deviation of 1, like the noise of eq. (3).

    The encoder ends in a ReLU and the layers on both sides of the code have no bias, so the decoder
    can undo the factors exactly.

    Args:
        autoencoder: autoencoder, changed in place; its maps stay the same.
        codes: its codes, (N, D).

    Returns:
        Factors, 1 for constant entries, (D,).
    """
    spread = codes.std(0)
    factors = torch.where(spread > 1e-6, 1 / spread.clamp(min=1e-6), 1.0)
    inward, outward = autoencoder.encoder[-2].weight, autoencoder.decoder[0].weight
    assert isinstance(inward, Tensor)
    assert isinstance(outward, Tensor)
    inward.mul_(rearrange(factors, "d -> d 1 1 1").to(inward))
    outward.div_(rearrange(factors, "d -> d 1 1 1").to(outward))
    return factors


def group_by_identity(codes: Tensor, faces: FaceCrops) -> list[Tensor]:
    """Group the codes by identity, for identities with two or more images, each (n, 2, 2, D).

    Raises:
        ValueError: if no identity has two images.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(faces.identities):
        if name:
            rows.setdefault(name, []).append(row)
    persons = [codes[indices] for _, indices in sorted(rows.items()) if len(indices) > 1]
    if not persons:
        raise ValueError(
            "no identity has two or more images; stage 2 needs several images per identity, such "
            "as a folder per identity"
        )
    return persons


def sample_pairs(
    persons: Sequence[Tensor], config: Disentangling, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sample codes Z_exp of images, randomly mirrored, and their target codes Z_id.

    Args:
        persons: codes of each identity, (n, 2, 2, D).
        config: number of images per identity, and the images in the mean.

    Returns:
        Z_exp and Z_id, texture and shape, both (B, 2, D).
    """
    faces, identities = [], []
    for codes in persons:
        rows = torch.randperm(len(codes), generator=generator)[: config.frames]
        sides = torch.randint(2, (len(rows),), generator=generator)
        samples = codes[rows, sides]
        total = samples.sum(0, keepdim=True)
        mean = (total - samples) / (len(samples) - 1) if config.others else total / len(samples)
        faces.append(samples)
        identities.append(mean.expand_as(samples))
    return torch.cat(faces), torch.cat(identities)


def train_diffusion(
    model: LatentFaceStages,
    persons: Sequence[Tensor],
    config: Disentangling,
    out: Path,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Train the two denoising U-Nets, by eq. (4) or (10), in float32.

    Args:
        model: model with diffusion; its other networks are not used.
        persons: codes of each person, (n, 2, 2, D).
        seed: seed of order and random numbers; the weights are the model's.

    Returns:
        Averaged tensors of both U-Nets by their names in ``model``, on the CPU.
    """
    assert model.texture_diffusion is not None
    assert model.shape_diffusion is not None
    networks = {"texture": model.texture_diffusion, "shape": model.shape_diffusion}
    parts = nn.ModuleDict({f"{part}_diffusion": networks[part] for part in PARTS}).to(device)

    optimizer = torch.optim.Adam(parts.parameters(), lr=config.schedule.lr)

    def step(rows: Tensor, at: Position) -> dict[str, Tensor]:
        faces, identities = sample_pairs(
            [persons[row] for row in rows.tolist()], config, at.generator
        )
        terms = {}
        for number, part in enumerate(PARTS):
            face, identity = faces[:, number].to(device), identities[:, number].to(device)
            steps = torch.randint(TRAIN_STEPS, (len(face),), generator=at.generator).to(device)
            noise = torch.randn(face.shape, generator=at.generator).to(device)
            noisy = add_noise(identity, noise, steps)
            predicted = networks[part].denoise(noisy, steps, face)
            weights = snr_weights(steps) if config.weighted else None
            terms[part] = denoising_loss(predicted, identity, weights)
        loss = terms["texture"] + terms["shape"]
        descend(optimizer, loss)
        return {"loss": loss, **terms}

    rows = torch.arange(len(persons))
    return fit(parts, [optimizer], step, config.schedule, rows, out, seed).state
