"""Expression of W+ codes as a few coordinates, and the change of a face along them; ours.

The codes of the paper's coarse styles hold identity, pose and expression together. These linear
maps separate the expression, with the features of another model as targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facezoo.models.latent_simclr.inverter import Inversion

LEAST = 1e-3
"""Least share of the largest variation for a component to count; less is rounding."""
PENALTY = 0.02
"""Ridge penalty of the coordinates, as a share of the mean variance of an entry of the codes."""


class ExpressionAxes(nn.Module):
    """Linear maps from codes to expression coordinates, and from coordinates to a change of a face.

    Args:
        count: number of coordinates K.
        num_codes: number of styles L.
        style_dim: size D of a style.
        feature_shape: shape (C, H, W) of the feature f.

    Examples:
        >>> model = facezoo.load("latent-simclr")
        >>> axes, codes = model.expression_axes, model.encode_factors(images).w_plus
        >>> axes.change(axes.coordinates(codes)).w_plus.shape  # two images
        torch.Size([2, 10, 128])
    """

    read: Tensor
    codes: Tensor
    feature: Tensor

    def __init__(
        self, count: int, num_codes: int, style_dim: int, feature_shape: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.register_buffer("read", torch.zeros(count, num_codes, style_dim))
        self.register_buffer("codes", torch.zeros(count, num_codes, style_dim))
        self.register_buffer("feature", torch.zeros(count, *feature_shape))

    def coordinates(self, codes: Tensor) -> Tensor:
        """Compute coordinates (B, K) of codes (B, L, D), up to a constant."""
        return torch.einsum("bld,kld->bk", codes, self.read)

    def change(self, coordinates: Tensor) -> Inversion:
        """Compute the change of codes (B, L, D) and feature (B, C, H, W) for coordinates (B, K)."""
        return Inversion(
            torch.einsum("bk,kld->bld", coordinates, self.codes),
            torch.einsum("bk,kchw->bchw", coordinates, self.feature),
        )

    def exchange(self, codes: Tensor, others: Tensor) -> Tensor:
        """Give codes the expression coordinates of other codes, exactly.

        Args:
            codes: (B, L, D).
            others: codes that have the coordinates, (B, L, D).

        Returns:
            New codes, (B, L, D).

        Raises:
            RuntimeError: if the axes were not fitted.

        Examples:
            >>> model = facezoo.load("latent-simclr")
            >>> axes, codes = model.expression_axes, model.encode_factors(images).w_plus
            >>> axes.exchange(codes, codes.flip(0)).shape  # two images
            torch.Size([2, 10, 128])
        """
        response = torch.einsum("jld,kld->jk", self.codes, self.read)
        missing = self.coordinates(others) - self.coordinates(codes)
        steps = torch.linalg.solve(response.T, missing.T).T
        return codes + torch.einsum("bk,kld->bld", steps, self.codes)

    @torch.no_grad()
    def fit(
        self, codes: Tensor, features: Tensor, expression: Tensor, identities: Sequence[str]
    ) -> None:
        """Fit the maps to faces.

        The coordinates are the first principal components of expression features, with unit
        variance. A ridge regression reads them from codes. The changes are least squares of what
        varies within identities, so that they show expression and not who tends to smile.

        Args:
            codes: (N, L, D).
            features: feature maps f, (N, C, H, W).
            expression: expression features of another model, (N, M).
            identities: name of each face, N; empty if unknown.

        Raises:
            ValueError: if no identity has two faces, or the expression features vary in fewer than
                K dimensions.
        """
        count = len(self.read)
        centered = (expression - expression.mean(0)).double()
        left, values, _ = torch.linalg.svd(centered, full_matrices=False)
        if int((values > values[0] * LEAST).sum()) < count:
            raise ValueError(
                f"the expression features vary in fewer than {count} dimensions; fit fewer axes"
            )
        targets = left[:, :count] * len(centered) ** 0.5
        rows = codes.flatten(1).double()
        rows = rows - rows.mean(0)
        products = rows.T @ rows
        unit = torch.eye(len(products), dtype=products.dtype, device=products.device)
        penalty = PENALTY * products.diagonal().mean() * unit
        read = torch.linalg.solve(products + penalty, rows.T @ targets)
        within = differences(identities, targets)
        if within is None:
            raise ValueError("no identity has two faces; the axes need names of identities")
        self.read.copy_(read.T.view_as(self.read))
        for buffer, rows in ((self.codes, codes), (self.feature, features)):
            products = within.T.float() @ rows.flatten(1).float()
            slopes = torch.linalg.solve(targets.T @ within, products.double())
            buffer.copy_(slopes.view_as(buffer))


def differences(identities: Sequence[str], values: Tensor) -> Tensor | None:
    """Subtract the mean of each identity from its rows; zero for a single or unnamed face.

    Args:
        identities: name of each row, N; empty if unknown.
        values: (N, K).

    Returns:
        (N, K), or None if no identity has two rows.
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(identities))}
    group = torch.tensor([names[name] for name in identities], device=values.device)
    counts = torch.bincount(group, minlength=len(names))
    sums = values.new_zeros(len(names), values.shape[1]).index_add_(0, group, values)
    named = torch.tensor([bool(name) for name in identities], device=values.device)
    named &= counts[group] > 1
    if not named.any():
        return None
    return (values - sums[group] / counts[group, None]) * named[:, None]


def feature_direction(direction: Tensor, codes: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Compute how the feature f changes while codes move along a direction by its length.

    It is the difference of the class means of f, divided by that of the codes along the direction.

    Args:
        direction: (L, D).
        codes: (N, L, D).
        features: feature maps f, (N, C, H, W).
        labels: 1 with the attribute, 0 without, NaN for unknown, (N,).

    Returns:
        (C, H, W).
    """
    places = torch.einsum("nld,ld->n", codes, direction) / direction.square().sum()
    means = [
        (places[labels == label].mean(), features[labels == label].float().mean(0))
        for label in (0, 1)
    ]
    return (means[1][1] - means[0][1]) / (means[1][0] - means[0][0])
