"""Networks of adv3d: the PointNet variational autoencoder and the identity discriminator.

Names and order of the tensors match the authors' published code, so their checkpoints load
unchanged. Shapes: B batch, N vertices, L latent dimensions.

Source: Gu, Pears & Sun, "Adversarial 3D Face Disentanglement of Identity and Expression",
Sec. III, with the layer widths of the authors' code, where the paper gives none.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.folding import fuse_linear, fused

FEATURES = 1024
"""Features of a face, after the maximum over its vertices."""
POINTS = 288
"""Points whose responses the encoder computes at once on a CPU; these stay in its cache."""
DECODER_WIDTH = 256
SHARED, HEAD = (64, 128, 1024), (512, 256)
"""Discriminator widths of the authors' code: over points, and after pooling."""


class VAE(nn.Module):
    """One PointNet encoder with two latent distributions, and two decoders (Sec. III-B).

    Decoded values are offsets from the mean training face, which the caller adds.

    Args:
        num_vertices: N of decoded meshes; the encoder takes any number.
        identity_dim: dimensions of z_id.
        expression_dim: dimensions of z_exp.
        hidden_dim: hidden units between features and codes, in addition to the direct path; the
            authors' code has none (0).
    """

    def __init__(
        self,
        num_vertices: int,
        identity_dim: int = 64,
        expression_dim: int = 64,
        hidden_dim: int = 0,
    ) -> None:
        super().__init__()
        self.num_vertices = num_vertices
        self.conv1 = nn.Conv1d(3, 64, 1)
        self.conv2 = nn.Conv1d(64, 64, 1)
        self.conv3 = nn.Conv1d(64, 64, 1)
        self.conv4 = nn.Conv1d(64, 128, 1)
        self.conv5 = nn.Conv1d(128, FEATURES, 1)
        self.fc_hidden = nn.Linear(FEATURES, hidden_dim) if hidden_dim else None
        wide = FEATURES + hidden_dim
        self.fc_id_mu = nn.Linear(wide, identity_dim)
        self.fc_id_sigma = nn.Linear(wide, identity_dim)
        self.fc_exp_mu = nn.Linear(wide, expression_dim)
        self.fc_exp_sigma = nn.Linear(wide, expression_dim)
        self.fc1_id = nn.Linear(identity_dim, DECODER_WIDTH)
        self.fc2_id = nn.Linear(DECODER_WIDTH, 3 * num_vertices)
        self.fc1_exp = nn.Linear(expression_dim, DECODER_WIDTH)
        self.fc2_exp = nn.Linear(DECODER_WIDTH, 3 * num_vertices)
        self.bn1 = nn.BatchNorm1d(64)
        self.bn2 = nn.BatchNorm1d(64)
        self.bn3 = nn.BatchNorm1d(64)
        self.bn4 = nn.BatchNorm1d(128)
        self.bn5 = nn.BatchNorm1d(FEATURES)

    def point_features(self, points: Tensor) -> Tensor:
        """Compute features of scaled points (B, N, 3) before the last shared layer, (B, 128, N)."""
        hidden = points.transpose(1, 2)
        for layer, norm in self._layers():
            hidden = F.relu(norm(layer(hidden)))
        return hidden

    def features(self, points: Tensor) -> Tensor:
        """Compute the largest response over scaled points (B, N, 3), in any order, (B, 1024)."""
        return F.relu(self.responses(points))

    def responses(self, points: Tensor) -> Tensor:
        """Compute ``features`` before the last ReLU, (B, 1024).

        In eval mode the batch norm is folded into the last layer, which saves 30 % of the time.
        Then hooks on these two layers are not called.
        """
        if self.training or not _plain(self.conv5, self.bn5):
            values: Tensor = self.bn5(self.conv5(self.point_features(points)))
            return values.amax(2)
        if all(_plain(*pair) for pair in self._layers()):
            run = fused(self, points, self._fused)
            if run is not None and points.numel():
                return run(points)
        weight, bias = self._folded()
        if torch.is_grad_enabled():
            return self._sparse_responses(points, weight, bias)
        return (weight @ self.point_features(points)).amax(2) + bias

    def _layers(self) -> list[tuple[nn.Conv1d, nn.BatchNorm1d]]:
        """List the layers over points with their batch norms, without the last one."""
        return [
            (self.conv1, self.bn1),
            (self.conv2, self.bn2),
            (self.conv3, self.bn3),
            (self.conv4, self.bn4),
        ]

    def _folded(self) -> tuple[Tensor, Tensor]:
        """Fold the batch norm with its fixed statistics into the last layer."""
        norm = self.bn5
        factor, mean, bias = _factor(norm), norm.running_mean, self.conv5.bias
        assert mean is not None
        assert bias is not None
        bias = (bias - mean) * factor + norm.bias
        return self.conv5.weight[:, :, 0] * factor[:, None], bias

    def _fused(self) -> Callable[[Tensor], Tensor]:
        """Return the computation of ``responses`` with the points of one mesh at a time.

        The channels of a point are adjacent in memory. The responses of the last layer stay in the
        cache until their maximum is known. The batch norms of the other layers are not folded into
        the weights: rounded weights would change the codes as much as all rounding of float32.
        """
        steps = []
        for layer, norm in self._layers():
            factor, mean = _factor(norm), norm.running_mean
            assert mean is not None
            step = _step(layer.weight[:, :, 0], layer.bias)
            steps.append((step, factor, norm.bias - mean * factor))
        weight, bias = self._folded()
        last = fuse_linear(weight, None, POINTS)

        def responses(points: Tensor) -> Tensor:
            for step, factor, shift in steps:
                points = torch.addcmul(shift, step(points), factor).relu_()
            parts = [last(part).amax(0) for part in points.split(POINTS)]
            return torch.stack(parts).amax(0) + bias

        return lambda points: torch.stack([responses(cloud.contiguous()) for cloud in points])

    def _sparse_responses(self, points: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Compute the responses with gradients through the winning points only.

        With fixed batch-norm statistics the other gradients are 0, so this is exact, and it saves
        most of the backward pass.
        """
        with torch.no_grad():
            winners = (weight @ self.point_features(points)).argmax(2)  # (B, 1024)
        winning_points = points.gather(1, winners[..., None].expand(-1, -1, 3))
        hidden = self.point_features(winning_points)  # (B, 128, 1024): column c for channel c
        return torch.einsum("bdc,cd->bc", hidden, weight) + bias

    def distributions(self, features: Tensor) -> dict[str, Tensor]:
        """Compute means and log-variances of both codes from ``features`` (B, 1024).

        Returns:
            ``id_mean``, ``id_logvar``, ``exp_mean``, ``exp_logvar``, each (B, L).
        """
        if self.fc_hidden is not None:
            features = torch.cat([features, F.relu(self.fc_hidden(features))], 1)
        return {
            "id_mean": self.fc_id_mu(features),
            "id_logvar": self.fc_id_sigma(features),
            "exp_mean": self.fc_exp_mu(features),
            "exp_logvar": self.fc_exp_sigma(features),
        }

    def decode_identity(self, z_id: Tensor) -> Tensor:
        """Decode z_id (B, L) to offsets of the identity face from the mean face, (B, N, 3)."""
        return _as_vertices(_last(self.fc2_id, F.relu(self.fc1_id(z_id))))

    def decode_expression(self, z_exp: Tensor) -> Tensor:
        """Decode z_exp (B, L) to the offsets of the expression, (B, N, 3)."""
        return _as_vertices(_last(self.fc2_exp, F.relu(self.fc1_exp(z_exp))))


def _plain(layer: nn.Module, norm: nn.Module) -> bool:
    """Return whether both can be folded; adapters and parametrizations change the type."""
    return type(layer) is nn.Conv1d and type(norm) is nn.BatchNorm1d


def _step(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return a linear layer as a function; layers that kept the identity cost nothing."""
    identity = torch.eye(*weight.shape, dtype=weight.dtype, device=weight.device)
    if bias is not None and not bias.any() and torch.equal(weight, identity):
        return lambda points: points
    return fuse_linear(weight, bias, POINTS)


def _factor(norm: nn.BatchNorm1d) -> Tensor:
    """Return the factor of a batch norm with its fixed statistics."""
    assert norm.running_var is not None
    return norm.weight * torch.rsqrt(norm.running_var + norm.eps)


def _last(layer: nn.Module, hidden: Tensor) -> Tensor:
    """Apply the last layer of a decoder to (B, C).

    On a CPU, one code takes less than half the time with a transposed copy of the weight.
    """
    if type(layer) is nn.Linear and hidden.shape[0] == 1:
        weight = fused(layer, hidden, lambda: layer.weight.T.contiguous())
        if weight is not None:
            return torch.addmm(layer.bias, hidden, weight)
    return layer(hidden)


def _as_vertices(flat: Tensor) -> Tensor:
    """Reshape (B, 3 N), all x, then all y, then all z, to (B, N, 3)."""
    return flat.unflatten(1, (3, -1)).transpose(1, 2)


def sample(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """Sample z = mean + σ ε with σ² = exp(logvar), all (B, L)."""
    return mean + torch.exp(logvar / 2) * noise


class PointFeatures(nn.Module):
    """Shared layers over the points of a pair, then the maximum over the points.

    Args:
        channels: values per point.
        use_norm: apply batch norm before each ReLU; its tensors always exist.
        shared: widths over the points, (C1, C2, C3).
        head: widths of the T-Net after pooling.
    """

    def __init__(
        self,
        channels: int,
        use_norm: bool,
        shared: tuple[int, int, int] = SHARED,
        head: tuple[int, int] = HEAD,
    ) -> None:
        super().__init__()
        self.use_norm = use_norm
        self.stn = InputTransform(channels, use_norm, shared, head)
        first, second, third = shared
        self.conv1 = nn.Conv1d(channels, first, 1)
        self.conv2 = nn.Conv1d(first, second, 1)
        self.conv3 = nn.Conv1d(second, third, 1)
        self.bn1 = nn.BatchNorm1d(first)
        self.bn2 = nn.BatchNorm1d(second)
        self.bn3 = nn.BatchNorm1d(third)

    def forward(self, pairs: Tensor) -> Tensor:
        """Compute features (B, C3) of pairs (B, N, 6)."""
        return _pooled(self, pairs @ self.stn(pairs))


class InputTransform(nn.Module):
    """PointNet's T-Net: a matrix per pair that multiplies its points."""

    def __init__(
        self, channels: int, use_norm: bool, shared: tuple[int, int, int], head: tuple[int, int]
    ) -> None:
        super().__init__()
        self.use_norm = use_norm
        first, second, third = shared
        self.conv1 = nn.Conv1d(channels, first, 1)
        self.conv2 = nn.Conv1d(first, second, 1)
        self.conv3 = nn.Conv1d(second, third, 1)
        self.fc1 = nn.Linear(third, head[0])
        self.fc2 = nn.Linear(head[0], head[1])
        self.fc3 = nn.Linear(head[1], channels * channels)
        self.bn1 = nn.BatchNorm1d(first)
        self.bn2 = nn.BatchNorm1d(second)
        self.bn3 = nn.BatchNorm1d(third)
        self.bn4 = nn.BatchNorm1d(head[0])
        self.bn5 = nn.BatchNorm1d(head[1])

    def forward(self, pairs: Tensor) -> Tensor:
        """Compute the matrix (B, C, C) of pairs (B, N, C)."""
        hidden = _pooled(self, pairs)
        hidden = F.relu(_normed(self, self.bn4, self.fc1(hidden)))
        hidden = F.relu(_normed(self, self.bn5, self.fc2(hidden)))
        channels = pairs.shape[2]
        matrix: Tensor = self.fc3(hidden).unflatten(1, (channels, channels))
        return matrix + torch.eye(channels, device=pairs.device, dtype=pairs.dtype)


class IdentityDiscriminator(nn.Module):
    """Classifier of pairs of faces: one identity or two (Sec. III-C).

    Args:
        use_norm: apply batch norm and dropout, as the authors' code does in the pretraining only.
            The tensors are the same.
        shared: widths over the points.
        head: widths after pooling.
    """

    def __init__(
        self,
        use_norm: bool = False,
        shared: tuple[int, int, int] = SHARED,
        head: tuple[int, int] = HEAD,
    ) -> None:
        super().__init__()
        self.use_norm = use_norm
        self.feature_network = PointFeatures(6, use_norm, shared, head)
        self.fc1 = nn.Linear(shared[2], head[0])
        self.fc2 = nn.Linear(head[0], head[1])
        self.fc3 = nn.Linear(head[1], 2)
        self.bn4 = nn.BatchNorm1d(head[0])
        self.bn5 = nn.BatchNorm1d(head[1])

    def forward(self, pairs: Tensor) -> Tensor:
        """Compute log-probabilities of two identities (0) and one identity (1), (B, 2).

        Pairs have x y z of one face and of the other per vertex, (B, N, 6).
        """
        hidden = self.feature_network(pairs)
        hidden = F.relu(_normed(self, self.bn4, self.fc1(hidden)))
        hidden = self.fc2(hidden)
        if self.use_norm:
            hidden = F.dropout(hidden, 0.5, self.training)
        return F.log_softmax(self.fc3(F.relu(_normed(self, self.bn5, hidden))), -1)


def _normed(
    network: PointFeatures | InputTransform | IdentityDiscriminator,
    norm: nn.BatchNorm1d,
    hidden: Tensor,
) -> Tensor:
    return norm(hidden) if network.use_norm else hidden


def _pooled(network: PointFeatures | InputTransform, points: Tensor) -> Tensor:
    """Apply three shared layers of the discriminator, then the maximum over the points."""
    hidden = points.transpose(1, 2)
    for layer, norm in (
        (network.conv1, network.bn1),
        (network.conv2, network.bn2),
        (network.conv3, network.bn3),
    ):
        hidden = F.relu(_normed(network, norm, layer(hidden)))
    return hidden.amax(2)
