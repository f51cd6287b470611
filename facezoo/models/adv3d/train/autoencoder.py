"""Compact autoencoder in principal coordinates, for training on ICT-3D.

Training meshes lie in the span of a few principal axes, and the encoder's shared layers are fixed
(see ``encoder_init``). So features are computed once, and meshes are short vectors. Every loss
keeps its value, but a step costs a hundredth. ``write_into`` multiplies the matrices back into the
layers of the networks.

Letters: B batch, R rows, N vertices, C principal axes, K scores, L latent dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.geometry.meshes import laplacian
from facezoo.models.adv3d.networks import DECODER_WIDTH, VAE, sample

SHAPE_AXES = 128
"""Principal axes that a checkpoint stores for registration."""


@dataclass(frozen=True)
class Frame:
    """Principal axes of the training meshes, in coordinates divided by the scale."""

    mean: Tensor
    """The mean training face, (N, 3)."""
    axes: Tensor
    """Orthonormal principal axes of the offsets from it, (C, N, 3)."""
    deviation: Tensor
    """Standard deviation of the training meshes along each axis, (C,)."""

    def to(self, device: torch.device) -> Frame:
        """Move to a device."""
        return Frame(self.mean.to(device), self.axes.to(device), self.deviation.to(device))

    def coordinates(self, meshes: Tensor) -> Tensor:
        """Convert meshes (..., N, 3) to coordinates (..., C)."""
        return (meshes - self.mean).flatten(-2) @ self.axes.flatten(1).T

    def offsets(self, coordinates: Tensor, vertices: Tensor | slice = slice(None)) -> Tensor:
        """Convert coordinates (B, C) to offsets of some vertices from the mean face, (B, V, 3)."""
        flat = coordinates @ self.axes[:, vertices].flatten(1)
        return flat.unflatten(1, (-1, 3))

    def shape_axes(self) -> Tensor:
        """Return the axes that a checkpoint stores, times their deviation, (SHAPE_AXES, N, 3).

        Axes beyond the rank of the training meshes are 0.
        """
        axes = (self.axes * self.deviation[:, None, None])[:SHAPE_AXES]
        return F.pad(axes, (0, 0, 0, 0, 0, SHAPE_AXES - len(axes)))

    def mean_squared(self, coordinates: Tensor) -> Tensor:
        """Compute the mean square of offsets (B, C) over vertices and coordinates, a scalar."""
        return coordinates.square().sum(1).mean() / self.mean.numel()

    def roughness(self, edges: Tensor) -> Tensor:
        """Return the Laplacian loss as a quadratic form of (coordinates, 1), (C + 1, C + 1)."""
        all_axes = torch.cat([self.axes, self.mean[None]])
        curved = laplacian(all_axes, edges).flatten(1)
        return curved @ curved.T / len(self.mean)


def principal_frame(meshes: Tensor, components: int, generator: torch.Generator) -> Frame:
    """Compute the frame of training meshes (M, N, 3), with at most ``components`` axes."""
    mean = meshes.mean(0)
    offsets = (meshes - mean).flatten(1)
    sample_rows = torch.randperm(len(offsets), generator=generator)[: 5 * components]
    _, values, axes = torch.linalg.svd(offsets[sample_rows].double(), full_matrices=False)
    rank = int((values > 1e-5 * values[0]).sum().clamp(max=components))
    flat = axes[:rank].float()
    deviation = (offsets @ flat.T).std(0, correction=0)
    return Frame(mean, flat.unflatten(1, (-1, 3)).contiguous(), deviation)


def extended(coordinates: Tensor) -> Tensor:
    """Append a column of ones to coordinates (B, C), (B, C + 1)."""
    return torch.cat([coordinates, torch.ones_like(coordinates[:, :1])], 1)


def ridge(inputs: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Fit a linear regression with a penalty on the squared weights, not on the bias.

    Args:
        inputs: (R, D).
        targets: (R, K).
        penalty: added to the diagonal of the Gram matrix.

    Returns:
        Weights (K, D) and bias (K,), float32.
    """
    center, mean = inputs.double().mean(0), targets.double().mean(0)
    rows = inputs.double() - center
    gram = rows.T @ rows + penalty * torch.eye(rows.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, rows.T @ (targets.double() - mean)).T
    return weight.float(), (mean - weight @ center).float()


class Regressor(nn.Module):
    """Scores from features: a linear map, (K, 1024) and (K,), with hidden units that correct it."""

    def __init__(self, weight: Tensor, bias: Tensor, hidden_dim: int) -> None:
        super().__init__()
        scores, features = weight.shape
        self.linear = nn.Linear(features, scores)
        self.hidden = nn.Linear(features, hidden_dim)
        self.correction = nn.Linear(hidden_dim, scores, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)
            self.correction.weight.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Compute scores (B, K) of features (B, 1024)."""
        return self.linear(features) + self.correction(F.relu(self.hidden(features)))

    def joined(self) -> tuple[Tensor, Tensor]:
        """Return the weight on [features, hidden units], (K, 1024 + H), and the bias (K,)."""
        return torch.cat([self.linear.weight, self.correction.weight], 1), self.linear.bias


class Branch(nn.Module):
    """One latent code: its mean and log-variance from scores, and its decoder.

    Args:
        weight: of the mean, (L, K).
        basis: initial linear decoder, in standard deviations of the frame, (C, L).
        deviation: of the frame, (C,).
    """

    deviation: Tensor

    def __init__(self, weight: Tensor, basis: Tensor, deviation: Tensor) -> None:
        super().__init__()
        dim, scores = weight.shape
        self.mean = nn.Linear(scores, dim)
        self.logvar = nn.Parameter(torch.full((dim,), -5.0))
        self.hidden = nn.Linear(dim, DECODER_WIDTH)
        self.out = nn.Linear(DECODER_WIDTH, len(basis))
        self.register_buffer("deviation", deviation)
        with torch.no_grad():
            self.mean.weight.copy_(weight)
            # relu(z) - relu(-z) = z: the decoder starts linear and leaves hidden units free.
            self.hidden.weight[: 2 * dim] = torch.cat([torch.eye(dim), -torch.eye(dim)])
            self.out.weight.zero_()
            self.out.weight[:, : 2 * dim] = torch.cat([basis, -basis], 1)
            for bias in (self.mean.bias, self.hidden.bias, self.out.bias):
                bias.zero_()

    def encode(self, scores: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return a sample of the code and its mean, (B, L) each."""
        mean = self.mean(scores)
        return sample(mean, self.logvar.expand_as(mean), noise), mean

    def decode(self, z: Tensor) -> Tensor:
        """Decode a code (B, L) to coordinates (B, C)."""
        out: Tensor = self.out(F.relu(self.hidden(z)))
        return out * self.deviation

    @torch.no_grad()
    def write_into(self, vae: VAE, part: str, regressor: Regressor, frame: Frame) -> None:
        """Multiply into the layers of ``part``, "id" or "exp"."""
        mean, logvar = getattr(vae, f"fc_{part}_mu"), getattr(vae, f"fc_{part}_sigma")
        weight, bias = regressor.joined()
        mean.weight.copy_(self.mean.weight @ weight)
        mean.bias.copy_(self.mean(bias))
        logvar.weight.zero_()
        logvar.bias.copy_(self.logvar)
        first, second = getattr(vae, f"fc1_{part}"), getattr(vae, f"fc2_{part}")
        first.load_state_dict(self.hidden.state_dict())
        axes = frame.axes.transpose(1, 2).flatten(1)  # all x, then all y, then all z
        second.weight.copy_(axes.T @ (self.out.weight * self.deviation[:, None]))
        second.bias.copy_((self.out.bias * self.deviation) @ axes)


class Autoencoder(nn.Module):
    """Identity and expression branches on one set of scores."""

    def __init__(self, identity: Branch, expression: Branch) -> None:
        super().__init__()
        self.identity, self.expression = identity, expression

    def write_into(self, vae: VAE, regressor: Regressor, frame: Frame) -> None:
        """Multiply into the layers of the networks."""
        assert vae.fc_hidden is not None
        vae.fc_hidden.load_state_dict(regressor.hidden.state_dict())
        self.identity.write_into(vae, "id", regressor, frame)
        self.expression.write_into(vae, "exp", regressor, frame)
