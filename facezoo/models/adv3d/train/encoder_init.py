"""Encoder layers that measure distances; set, not trained.

The paper starts from random weights and trains 280 epochs on a large GPU. Here the shared layers
are set once and stay fixed. Each of the 1024 features is the negative squared distance from an
anchor point to the nearest vertex. The layers after them are trained. The architecture is
unchanged: the first layer has hinges max(0, u·x − t), whose sums approximate |x|² and x, the next
three layers pass them on, and the fifth combines them to −|x − q|² = 2 q·x − |x|² − |q|². The
encoder takes the maximum over the points.

Letters: M meshes, N vertices, R rows. Coordinates are divided by the scale of the training frame.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.models.adv3d.networks import FEATURES, VAE

KNOTS = (-0.05, 0.12, 0.27, 0.42, 0.57, 0.72, 0.87)
"""Positions of the hinges of a direction, as shares of the range of its coordinates."""
GAIN = 100.0
"""Factor on the squared distances, which makes their variance about one."""
SAMPLES = 20_000
"""Points of the least-squares fit."""


@torch.no_grad()
def set_shared_layers(
    vae: VAE, meshes: Tensor, spreads: tuple[float, float], generator: torch.Generator
) -> None:
    """Set the five shared layers of the encoder, and the fixed statistics of their batch norms.

    Args:
        vae: changed in place.
        meshes: some of the training meshes, (M, N, 3).
        spreads: range of the standard deviations of the anchors about the mean mesh. Each anchor
            has its own. Far anchors measure smooth surfaces well, near ones measure detail.
    """
    points = meshes.flatten(0, 1)
    points = points[torch.randint(len(points), (SAMPLES,), generator=generator)]
    points = points + 0.02 * torch.randn(SAMPLES, 3, generator=generator)
    directions = _directions()
    along = points @ directions.T
    low, high = along.amin(0), along.amax(0)
    knots = torch.tensor(KNOTS).repeat(9)
    knots = torch.cat([knots, torch.tensor([0.65])])
    vae.conv1.weight[:, :, 0] = directions
    _bias(vae.conv1).copy_(-(low + (high - low) * knots))
    for number in (2, 3, 4):
        _pass_on(vae, number, generator)
    hidden = points.T[None]
    for number in (1, 2, 3, 4):
        hidden = _fix_statistics(vae, number, hidden)
    mean_mesh = meshes.mean(0)
    vertices = torch.randint(len(mean_mesh), (FEATURES,), generator=generator)
    closest, farthest = spreads
    reach = closest * (farthest / closest) ** torch.rand(FEATURES, 1, generator=generator)
    anchors = mean_mesh[vertices] + reach * torch.randn(FEATURES, 3, generator=generator)
    _set_distances(vae, hidden[0].T, points, anchors)
    vae.bn5.reset_parameters()
    mean, variance = _statistics(vae.bn5)
    mean.zero_()
    variance.fill_(1 - vae.bn5.eps)  # the identity for now


@torch.no_grad()
def standardize_features(vae: VAE, responses: Tensor, shift: float = 6.0) -> None:
    """Give the responses (R, 1024) mean ``shift`` and variance 1 through the last batch norm.

    The ReLU after it then changes nothing.
    """
    mean, variance = _statistics(vae.bn5)
    mean.copy_(responses.mean(0))
    variance.copy_(responses.var(0))
    vae.bn5.bias.fill_(shift)


@torch.no_grad()
def round_to_half(layer: nn.Module) -> None:
    """Round a layer to half precision, the precision of the checkpoint."""
    for value in layer.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half().float())


def _statistics(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _bias(layer: nn.Conv1d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _directions() -> Tensor:
    """Return three axes and six diagonals, seven times each, and z once more, unit, (64, 3)."""
    axes = torch.eye(3)
    pairs = ((0, 1), (0, 2), (1, 2))
    diagonals = [axes[i] + sign * axes[j] for i, j in pairs for sign in (1, -1)]
    nine = F.normalize(torch.stack([*axes, *diagonals]), dim=1)
    return torch.cat([nine.repeat_interleave(len(KNOTS), 0), axes[2:]])


def _pass_on(vae: VAE, number: int, generator: torch.Generator) -> None:
    """Pass 64 channels through a layer unchanged; its other channels are random."""
    layer = getattr(vae, f"conv{number}")
    outer, inner = layer.weight.shape[:2]
    layer.weight.copy_(torch.randn(outer, inner, 1, generator=generator) * math.sqrt(2 / inner))
    layer.weight[:64, :, 0] = torch.eye(64)
    layer.bias.zero_()


def _fix_statistics(vae: VAE, number: int, hidden: Tensor) -> Tensor:
    """Fix a batch norm to points (1, C, R): hinges are scaled only, other channels centered."""
    layer, norm = getattr(vae, f"conv{number}"), getattr(vae, f"bn{number}")
    response = layer(hidden)
    mean, variance = _statistics(norm)
    mean.zero_()
    mean[64:] = response.mean((0, 2))[64:]
    variance.copy_(response.square().mean((0, 2)))
    return F.relu(F.batch_norm(response, mean, variance))


def _set_distances(vae: VAE, hidden: Tensor, points: Tensor, anchors: Tensor) -> None:
    """Fit the fifth layer to −|x − q|² by least squares, from hidden (R, 128)."""
    inputs = torch.cat([hidden, torch.ones(len(hidden), 1)], 1).double()
    targets = torch.cat([points, points.square().sum(1, keepdim=True)], 1).double()
    gram = inputs.T @ inputs
    penalty = 1e-7 * len(inputs) * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(gram + penalty, inputs.T @ targets)  # (129, 4)
    weight = GAIN * (2 * anchors.double() @ solution[:, :3].T - solution[:, 3])
    vae.conv5.weight[:, :, 0] = weight[:, :-1].float()
    offset = GAIN * anchors.double().square().sum(1)
    _bias(vae.conv5).copy_((weight[:, -1] - offset).float())
