"""The autoencoder while it trains: small, in principal coordinates of the training meshes.

Training meshes lie in the span of a few principal axes, and the encoder's shared layers are fixed
(see ``start``), so that features are computed once and meshes are short vectors. Every loss keeps
its value; a step costs a hundredth. ``write_into`` multiplies the matrices out into the networks.

Letters: B batch, N vertices, C principal axes, K scores read from the features, L latent numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.geometry.laplacian import laplacian
from facezoo.models.adv3d.networks import DECODER_WIDTH, VAE, sample


@dataclass(frozen=True)
class Frame:
    """The space of the training meshes, in coordinates divided by the scale."""

    mean: Tensor
    """The mean training face, (N, 3)."""
    axes: Tensor
    """Orthonormal principal axes of the offsets from it, (C, N, 3)."""
    deviation: Tensor
    """Standard deviation of the training meshes along each, (C,)."""

    def to(self, device: torch.device) -> Frame:
        """The same on a device."""
        return Frame(self.mean.to(device), self.axes.to(device), self.deviation.to(device))

    def coordinates(self, meshes: Tensor) -> Tensor:
        """Meshes (..., N, 3) as coordinates (..., C)."""
        return (meshes - self.mean).flatten(-2) @ self.axes.flatten(1).T

    def offsets(self, coordinates: Tensor, vertices: Tensor | slice = slice(None)) -> Tensor:
        """Offsets of some vertices from the mean face, (B, V, 3), from coordinates (B, C)."""
        flat = coordinates @ self.axes[:, vertices].flatten(1)
        return flat.unflatten(1, (-1, 3))

    def mean_squared(self, coordinates: Tensor) -> Tensor:
        """Mean square over vertices and coordinates of offsets (B, C), a scalar."""
        return coordinates.square().sum(1).mean() / self.mean.numel()

    def roughness(self, edges: Tensor) -> Tensor:
        """The Laplacian loss as a quadratic form of (coordinates, 1), (C + 1, C + 1)."""
        all_axes = torch.cat([self.axes, self.mean[None]])
        curved = laplacian(all_axes, edges).flatten(1)
        return curved @ curved.T / len(self.mean)


def principal_frame(meshes: Tensor, components: int, draw: torch.Generator) -> Frame:
    """The frame of training meshes (M, N, 3), with as many axes as carry anything."""
    mean = meshes.mean(0)
    offsets = (meshes - mean).flatten(1)
    chosen = torch.randperm(len(offsets), generator=draw)[: 5 * components]
    _, values, axes = torch.linalg.svd(offsets[chosen].double(), full_matrices=False)
    kept = int((values > 1e-5 * values[0]).sum().clamp(max=components))
    flat = axes[:kept].float()
    deviation = (offsets @ flat.T).std(0, correction=0)
    return Frame(mean, flat.unflatten(1, (-1, 3)).contiguous(), deviation)


class Reading(nn.Module):
    """Scores from the encoder's features: a linear map, and hidden units that mend it.

    Args:
        weight: of the linear map, (K, 1024).
        bias: (K,).
        hidden_dim: hidden units.
    """

    def __init__(self, weight: Tensor, bias: Tensor, hidden_dim: int) -> None:
        super().__init__()
        scores, features = weight.shape
        self.linear = nn.Linear(features, scores)
        self.hidden = nn.Linear(features, hidden_dim)
        self.mend = nn.Linear(hidden_dim, scores, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
            self.linear.bias.copy_(bias)
            self.mend.weight.zero_()

    def forward(self, features: Tensor) -> Tensor:
        """Scores (B, K) of features (B, 1024)."""
        scores: Tensor = self.linear(features) + self.mend(F.relu(self.hidden(features)))
        return scores

    def joined(self) -> tuple[Tensor, Tensor]:
        """Weight (K, 1024 + H) on features and hidden units side by side, and bias (K,)."""
        return torch.cat([self.linear.weight, self.mend.weight], 1), self.linear.bias


class Branch(nn.Module):
    """One code, from scores to coordinates: mean, log-variance and decoder.

    Args:
        weight: of the mean, (L, K).
        basis: what the decoder starts from, in standard deviations of the frame, (C, L).
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
            # relu(z) - relu(-z) = z: the decoder starts linear, with hidden units to spare.
            self.hidden.weight[: 2 * dim] = torch.cat([torch.eye(dim), -torch.eye(dim)])
            self.out.weight.zero_()
            self.out.weight[:, : 2 * dim] = torch.cat([basis, -basis], 1)
            for bias in (self.mean.bias, self.hidden.bias, self.out.bias):
                bias.zero_()

    def encode(self, scores: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """A sample of the code and its mean, (B, L) each."""
        mean = self.mean(scores)
        return sample(mean, self.logvar.expand_as(mean), noise), mean

    def decode(self, z: Tensor) -> Tensor:
        """Coordinates (B, C) of a code (B, L)."""
        out: Tensor = self.out(F.relu(self.hidden(z)))
        return out * self.deviation

    @torch.no_grad()
    def write_into(self, vae: VAE, part: str, reading: Reading, frame: Frame) -> None:
        """Multiply out into the layers of ``part``, "id" or "exp"."""
        mean, logvar = getattr(vae, f"fc_{part}_mu"), getattr(vae, f"fc_{part}_sigma")
        weight, bias = reading.joined()
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
    """Both branches on one set of scores."""

    def __init__(self, identity: Branch, expression: Branch) -> None:
        super().__init__()
        self.identity, self.expression = identity, expression

    def write_into(self, vae: VAE, reading: Reading, frame: Frame) -> None:
        """Multiply out into the networks."""
        assert vae.fc_hidden is not None
        vae.fc_hidden.load_state_dict(reading.hidden.state_dict())
        self.identity.write_into(vae, "id", reading, frame)
        self.expression.write_into(vae, "exp", reading, frame)
