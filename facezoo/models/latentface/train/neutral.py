"""Fit the directions of the codes that show expression; ours, with labels, not in the paper."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from facezoo.data.packs import aligned_crops, check_packs, majority_labels, read_pack
from facezoo.data.unlabeled import MARGIN
from facezoo.models.identity_removal import IdentityRemoval, remove_identity
from facezoo.models.latentface.model import LatentFace
from facezoo.models.latentface.train.stage2 import codes_of
from facezoo.results import EXPRESSIONS

PACKS = ("lfw.parquet", "ferplus.parquet")
NEUTRAL = EXPRESSIONS.index("neutral")


def with_neutral_codes(
    model: LatentFace, data: Path, directions: int, device: torch.device
) -> LatentFace:
    """Return the model with ``expression_directions`` fitted to labeled images.

    The directions are those of ``remove_identity`` with expressions as classes. The two packs
    differ in color and sharpness; directions that show this are not removed.

    Args:
        model: model with trained autoencoders.
        data: folder with the packs ``PACKS``, whose training splits are used.

    Raises:
        FileNotFoundError: if a pack is missing.
    """
    check_packs(data, *PACKS)
    codes, labels, packs = [], [], []
    for number, pack in enumerate(PACKS):
        table = read_pack(data / pack, "train")
        known = majority_labels(table) >= 0
        table = table.filter(known.numpy())
        crops = aligned_crops(table, model.preprocessing.template, model.preprocessing.size, MARGIN)
        codes.append(codes_of(model, crops, device).flatten(2))  # (N, 2 sides, 2 D)
        labels.append(majority_labels(table)[:, None].expand(-1, 2))
        packs.append(torch.full((len(table), 2), number))
    removal = fit_removal(torch.cat(codes), torch.cat(labels), torch.cat(packs), directions)
    fitted = LatentFace(**{**model.architecture, "expression_directions": directions})
    tensors = {f"expression_removal.{name}": value for name, value in removal.state_dict().items()}
    fitted.load_state_dict({**model.cpu().state_dict(), **tensors})
    return fitted


def fit_removal(codes: Tensor, labels: Tensor, packs: Tensor, directions: int) -> IdentityRemoval:
    """Fit a projection that moves codes to the mean of the neutral images of the first pack.

    Args:
        codes: (N, 2, D), of images and of their mirror images.
        labels: expressions, (N, 2).
        packs: number of the pack, which the directions must not depend on, (N, 2).
    """
    codes, labels, packs = codes.flatten(0, 1), labels.flatten(), packs.flatten()
    removal = remove_identity(codes, labels, keep=packs, directions=directions)
    removal.mean = codes[(labels == NEUTRAL) & (packs == 0)].mean(0)
    return removal
