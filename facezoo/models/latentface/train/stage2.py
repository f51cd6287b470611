"""The second stage: diffusion from the code of a face to the mean code of that person's faces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from facezoo.data.photographs import Photographs, centred
from facezoo.models.latentface.diffusion import TRAIN_STEPS, add_noise
from facezoo.models.latentface.losses import denoising_loss, snr_weights
from facezoo.models.latentface.model import LatentFace
from facezoo.models.latentface.networks import AutoEncoder
from facezoo.models.latentface.train.recipes import Disentangling
from facezoo.training.loop import Position, fit
from facezoo.training.optim import descend

PARTS = ("texture", "shape")


@torch.no_grad()
def codes_of(
    model: LatentFace, crops: Tensor, device: torch.device, batch_size: int = 128
) -> Tensor:
    """Codes of crops and of their mirror images.

    Args:
        model: whose encoders are used.
        crops: with a margin, uint8, (N, 3, S + 2 MARGIN, S + 2 MARGIN).
        device: where to compute.
        batch_size: crops at a time.

    Returns:
        Of crop and mirror image, Z_t and Z_s of each, on the CPU, (N, 2, 2, D).
    """
    model.eval().to(device)
    codes = []
    for part in crops.split(batch_size):
        images = centred(part).to(device)
        both = [model.embed_latents(view) for view in (images, images.flip(-1))]
        codes.append(torch.stack([torch.stack([z.texture, z.shape], 1) for z in both], 1).cpu())
    return torch.cat(codes)


@torch.no_grad()
def equalise(autoencoder: AutoEncoder, codes: Tensor) -> Tensor:
    """Give every entry of the codes a standard deviation of 1, and change nothing else.

    The noise of eq. (3) has one too. Since the last layer of the encoder is a ReLU and neither it
    nor the decoder's first layer has a bias, factors can be moved from the one to the other.

    Args:
        autoencoder: changed in place; makes the same maps as before.
        codes: of it, (N, D).

    Returns:
        The factors; 1 for an entry that does not vary, (D,).
    """
    spread = codes.std(0)
    factors = torch.where(spread > 1e-6, 1 / spread.clamp(min=1e-6), 1.0)
    inward, outward = autoencoder.encoder[-2].weight, autoencoder.decoder[0].weight
    assert isinstance(inward, Tensor)
    assert isinstance(outward, Tensor)
    inward.mul_(rearrange(factors, "d -> d 1 1 1").to(inward))
    outward.div_(rearrange(factors, "d -> d 1 1 1").to(outward))
    return factors


def by_person(codes: Tensor, photographs: Photographs) -> list[Tensor]:
    """The codes of everyone who is shown twice or more, each (n, 2, 2, D).

    Raises:
        ValueError: if nobody is.
    """
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(photographs.persons):
        if name:
            rows.setdefault(name, []).append(row)
    persons = [codes[chosen] for _, chosen in sorted(rows.items()) if len(chosen) > 1]
    if not persons:
        raise ValueError(
            "nobody is shown in two photographs or more, and stage 2 learns from what several "
            "photographs of one person have in common; give data with a folder per person"
        )
    return persons


def draw_pairs(
    persons: Sequence[Tensor], config: Disentangling, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Codes Z_exp of photographs, each mirrored or not, and the codes Z_id that belong to them.

    Args:
        persons: codes, each (n, 2, 2, D).
        config: how many photographs of a person are drawn, and which of them the mean is over.
        draw: chance.

    Returns:
        Two of the same shape, texture and shape, (B, 2, D).
    """
    faces, identities = [], []
    for codes in persons:
        rows = torch.randperm(len(codes), generator=draw)[: config.frames]
        sides = torch.randint(2, (len(rows),), generator=draw)
        drawn = codes[rows, sides]
        total = drawn.sum(0, keepdim=True)
        mean = (total - drawn) / (len(drawn) - 1) if config.others else total / len(drawn)
        faces.append(drawn)
        identities.append(mean.expand_as(drawn))
    return torch.cat(faces), torch.cat(identities)


def train_diffusion(
    model: LatentFace,
    persons: Sequence[Tensor],
    config: Disentangling,
    out: Path,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Train the two denoising U-Nets, by eq. (4) or (10), in float32.

    Args:
        model: with diffusion; its other networks are not used.
        persons: codes of each person, (n, 2, 2, D).
        config: the stage's recipe.
        out: folder for state and log.
        seed: of order and chance; initial weights are the model's.
        device: where to train.

    Returns:
        Averaged tensors of the two, by the names that they have in ``model``, on the CPU.
    """
    assert model.texture_diffusion is not None
    assert model.shape_diffusion is not None
    networks = {"texture": model.texture_diffusion, "shape": model.shape_diffusion}
    parts = nn.ModuleDict({f"{part}_diffusion": networks[part] for part in PARTS}).to(device)

    optimizer = torch.optim.Adam(parts.parameters(), lr=config.schedule.lr)

    def step(rows: Tensor, at: Position) -> dict[str, Tensor]:
        faces, identities = draw_pairs(
            [persons[row] for row in rows.tolist()], config, at.generator
        )
        terms = {}
        for number, part in enumerate(PARTS):
            face, identity = faces[:, number].to(device), identities[:, number].to(device)
            steps = torch.randint(TRAIN_STEPS, (len(face),), generator=at.generator).to(device)
            noise = torch.randn(face.shape, generator=at.generator).to(device)
            noisy = add_noise(identity, noise, steps)
            predicted = networks[part].denoise(noisy, steps, face)
            limit = config.snr_limit
            weights = None if limit is None else snr_weights(steps, limit)
            terms[part] = denoising_loss(predicted, identity, weights)
        loss = terms["texture"] + terms["shape"]
        descend(optimizer, loss)
        return {"loss": loss, **terms}

    rows = torch.arange(len(persons))
    return fit(parts, [optimizer], step, config.schedule, rows, out, seed).state
