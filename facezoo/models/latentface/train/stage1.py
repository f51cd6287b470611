"""First stage: texture, shape, light and view, learned by reconstructing images."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.data.unlabeled import FaceCrops, augmented
from facezoo.geometry.shading import Light
from facezoo.models.feature_maps import FeatureMaps
from facezoo.models.latentface.losses import confidence_loss, feature_map_loss, reconstruction_loss
from facezoo.models.latentface.model import LatentFace
from facezoo.models.latentface.renderer import BORDER, MAX_DEPTH, MIN_DEPTH, depth_from_output
from facezoo.models.latentface.train.recipes import Autoencoding
from facezoo.training.loop import Position, fit
from facezoo.training.optim import autocast, descend

EXPRESSION_STAGES = (1, 2, 3)
"""Stages of the expression encoder that ``expression_distance`` compares."""
LOOSE = 2 / 3
"""Side of the square of the template ``arcface112``, as a share of ``facenet-loose``."""


def train_autoencoders(
    model: LatentFace,
    faces: FaceCrops,
    config: Autoencoding,
    out: Path,
    seed: int,
    device: torch.device,
) -> dict[str, Tensor]:
    """Train all networks but the diffusion, by eq. (8) and (9).

    Args:
        model: model without diffusion, with a confidence network.
        seed: seed of order and random numbers; the weights are the model's.

    Returns:
        Averaged tensors of ``model``, on the CPU.
    """
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    features = FeatureMaps(config.features, config.feature_stages).to(device)
    expression = None
    if config.lambda_expression:
        expression = FeatureMaps(config.features, EXPRESSION_STAGES, "expression_encoder")
        expression.to(device)
    convex = convex_depth(model.preprocessing.size).to(device)

    optimizer = torch.optim.Adam(model.parameters(), lr=config.schedule.lr)

    def step(rows: Tensor, at: Position) -> dict[str, Tensor]:
        images = augmented(faces.crops[rows], at.generator, config.grey).to(device)
        terms, depth, redrawn = reconstruction_terms(model, features, images)
        away = F.mse_loss(depth, convex.expand_as(depth)) / (MAX_DEPTH - MIN_DEPTH) ** 2
        weight = config.prior * max(0.0, 1 - at.progress / config.prior_share)
        loss = reconstruction_loss(
            **terms, lambda_feature=config.lambda_feature, lambda_flip=config.lambda_flip
        )
        rough = roughness(depth)
        loss = loss + weight * away + config.smoothness * rough
        if expression is not None:
            terms["expression"] = expression_distance(expression, redrawn, images)
            loss = loss + config.lambda_expression * terms["expression"]
        descend(optimizer, loss)
        return {"loss": loss, **terms, "away": away, "rough": rough}

    rows = torch.arange(len(faces.crops))
    return fit(model, [optimizer], step, config.schedule, rows, out, seed).state


def reconstruction_terms(
    model: LatentFace, features: FeatureMaps, images: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Compute the four losses of eq. (8) and (9), by the names of ``reconstruction_loss``.

    The networks run under ``autocast``, the renderer and the losses in float32.

    Args:
        model: model with a confidence network.
        features: feature network of eq. (6).
        images: crops, (B, 3, S, S).

    Returns:
        The losses, the canonical depth maps, (B, S, S), and the reconstructions, (B, 3, S, S).
    """
    with autocast(images.device):
        latents = model.embed_latents(images)
        depth, albedo = model.decode_depth(latents), model.decode_albedo(latents)
        sigma_pixel, sigma_feature = model.confidence(images)
    light = Light.from_parameters(latents.light.float())
    both = [(depth, albedo), (depth.flip(-1), albedo.flip(-1))]
    rendered = [model.renderer.render(*pair, light, latents.view.float()) for pair in both]
    with autocast(images.device):
        maps = features(torch.cat([face.image for face in rendered]))
        with torch.no_grad():
            target_maps = features(images)
    terms = {}
    for number, (prefix, face) in enumerate(zip(("", "flipped_"), rendered, strict=True)):
        channel = slice(number, number + 1)
        terms[f"{prefix}pixel"] = confidence_loss(
            face.image, images, sigma_pixel[:, channel], face.mask
        )
        sigma = sigma_feature[:, channel].float()
        losses = [
            feature_map_loss(stage.chunk(2)[number], target, sigma, face.mask)
            for stage, target in zip(maps, target_maps, strict=True)
        ]
        terms[f"{prefix}feature"] = torch.stack(losses).mean()
    return terms, depth, rendered[0].image


def expression_distance(features: FeatureMaps, images: Tensor, targets: Tensor) -> Tensor:
    """Compute the mean absolute difference of feature maps of the inner faces.

    Args:
        features: feature network, trained on crops of the template ``arcface112``.
        images: crops of the template ``facenet-loose``, (B, 3, S, S).
        targets: crops that they should look like, (B, 3, S, S).

    Returns:
        Scalar, as a share of the mean absolute value of the targets' maps, averaged over stages.
    """
    with autocast(images.device):
        maps = features(inner_faces(images))
        with torch.no_grad():
            target_maps = features(inner_faces(targets))
    shares = [
        (stage - target).float().abs().mean() / target.float().abs().mean()
        for stage, target in zip(maps, target_maps, strict=True)
    ]
    return torch.stack(shares).mean()


def inner_faces(crops: Tensor) -> Tensor:
    """Enlarge the middle of crops, from template ``facenet-loose`` to ``arcface112``."""
    scale = crops.new_tensor([[LOOSE, 0, 0], [0, LOOSE, 0]]).expand(len(crops), 2, 3)
    grid = F.affine_grid(scale, list(crops.shape), align_corners=False)
    return F.grid_sample(crops, grid, align_corners=False)


def roughness(depth: Tensor) -> Tensor:
    """Compute the mean absolute second difference of depth maps (B, S, S) inside their borders.

    It is a share of the depth range.
    """
    inside = depth[..., BORDER:-BORDER]
    across = inside[..., 2:] - 2 * inside[..., 1:-1] + inside[..., :-2]
    down = inside[:, 2:] - 2 * inside[:, 1:-1] + inside[:, :-2]
    return (across.abs().mean() + down.abs().mean()) / (MAX_DEPTH - MIN_DEPTH)


def convex_depth(size: int) -> Tensor:
    """Create a convex, half-ellipsoid depth map at the place of the head, (S, S).

    Without this prior, training may converge to flat or hollow faces, which explain an image as
    well.
    """
    place = torch.linspace(-1, 1, size)
    squared = (place / 0.55) ** 2 + (place[:, None] / 0.8) ** 2
    bump = (1 - squared).clamp(min=0).sqrt()
    return depth_from_output(-0.8 * bump[None, None])[0]
