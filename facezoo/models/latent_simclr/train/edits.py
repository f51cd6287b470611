"""Fit what moves a face: the feature's part of each direction, and the expression axes; ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from facezoo.data.unlabeled import FaceCrops, center, read_face_crops
from facezoo.models.base import FaceModel
from facezoo.models.latent_simclr.expression import feature_direction
from facezoo.models.latent_simclr.feature_style import FeatureStyleEncoder
from facezoo.models.latent_simclr.model import LatentSimCLR
from facezoo.progress import progress_bar
from facezoo.training.optim import autocast


def with_edits(
    model: LatentSimCLR,
    data: Path,
    faces: FaceCrops,
    codes: Tensor,
    labels: Mapping[str, Tensor],
    teacher: str,
    count: int,
    device: torch.device,
) -> LatentSimCLR:
    """Return the model with changes of f for its directions, and with expression axes.

    Args:
        data: folder of the training images, see ``read_face_crops``.
        faces: these images, aligned for the model.
        codes: their codes, (N, L, D).
        labels: labels of the directions by name, each (N,).
        teacher: checkpoint whose expression features the axes follow.
    """
    features = features_of(model.inverter.encoder, faces.crops, device)
    arguments = {**model.architecture, "feature_directions": True, "expression_axes": count}
    fitted = LatentSimCLR(**arguments)
    fitted.load_state_dict({**fitted.state_dict(), **model.cpu().state_dict()})
    assert fitted.feature_directions is not None
    assert fitted.expression_axes is not None
    for number, name in enumerate(model.architecture["directions"]):
        fitted.feature_directions[number] = feature_direction(
            fitted.directions[number], codes, features, labels[name]
        )
    expression = expression_of(teacher, data, device)
    fitted.expression_axes.fit(codes, features, expression, faces.identities)
    return fitted


@torch.inference_mode()
def features_of(encoder: FeatureStyleEncoder, crops: Tensor, device: torch.device) -> Tensor:
    """Encode crops with a margin as feature maps f, float16, (N, C, H, W)."""
    encoder.eval().to(device)
    parts = []
    for part in progress_bar(crops.split(256), desc="features", unit="batch"):
        with autocast(device):
            parts.append(encoder(center(part).to(device))[1].half().cpu())
    return torch.cat(parts).clone()


@torch.inference_mode()
def expression_of(teacher: str, data: Path, device: torch.device) -> Tensor:
    """Compute the expression features of the training images by another model, (N, M)."""
    model = FaceModel.from_pretrained(teacher).to(device)
    crops = read_face_crops(data, model.preprocessing, device).crops
    parts = []
    for part in progress_bar(crops.split(256), desc="expressions", unit="batch"):
        with autocast(device):
            parts.append(model.embed_expression(center(part).to(device)).float().cpu())
    return torch.cat(parts).clone()
