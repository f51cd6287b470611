"""Fit what moves a face: the feature's part of each direction, and the expression axes; ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from facezoo.data.unlabeled import FaceCrops, center
from facezoo.hub.card import Preprocessing
from facezoo.models.base import FaceModel
from facezoo.models.latent_simclr.expression import feature_direction
from facezoo.models.latent_simclr.model import LatentSimCLR
from facezoo.progress import progress_bar
from facezoo.training.optim import autocast


def with_edits(
    model: LatentSimCLR,
    faces: FaceCrops,
    codes: Tensor,
    labels: Mapping[str, Tensor],
    expression: Tensor,
    count: int,
    device: torch.device,
) -> LatentSimCLR:
    """Return the model with changes of f for its directions, and with expression axes.

    Args:
        faces: training images, aligned for the model.
        codes: their codes, (N, L, D).
        labels: labels of the directions by name, each (N,).
        expression: expression features that the axes follow, (N, M).
        count: number of axes.
    """
    encoder = model.inverter.encoder.eval().to(device)
    features = encode_crops(lambda images: encoder(images)[1].half(), faces.crops, device)
    arguments = {**model.architecture, "feature_directions": True, "expression_axes": count}
    fitted = LatentSimCLR(**arguments)
    fitted.load_state_dict({**fitted.state_dict(), **model.cpu().state_dict()})
    assert fitted.feature_directions is not None
    assert fitted.expression_axes is not None
    for number, name in enumerate(model.architecture["directions"]):
        fitted.feature_directions[number] = feature_direction(
            fitted.directions[number], codes, features, labels[name]
        )
    fitted.expression_axes.fit(codes, features, expression, faces.identities)
    return fitted


def expression_of(
    teacher: str, read: Callable[[Preprocessing], FaceCrops], device: torch.device
) -> Tensor:
    """Compute the expression features of another model for the training images, (N, M).

    Args:
        teacher: name of the checkpoint.
        read: read the images, aligned for a model.
    """
    other = FaceModel.from_pretrained(teacher).to(device)
    crops = read(other.preprocessing).crops
    return encode_crops(lambda images: other.embed_expression(images).float(), crops, device)


@torch.inference_mode()
def encode_crops(encode: Callable[[Tensor], Tensor], crops: Tensor, device: torch.device) -> Tensor:
    """Apply a network to crops with a margin, in batches, on the CPU, (N, ...)."""
    parts = []
    for part in progress_bar(crops.split(256), desc="features", unit="batch"):
        with autocast(device):
            parts.append(encode(center(part).to(device)).cpu())
    return torch.cat(parts).clone()
