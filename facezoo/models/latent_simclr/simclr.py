"""SimCLR on W+ codes: base encoder and projection head.

Source: Hoock, Brügge & Handels, "Disentanglement Learning of Facial Expression and Appearance",
Sec. II.III, after Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020. The paper gives neither architecture.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn


class CodeEncoder(nn.Module):
    """Base encoder f from W+ codes to a representation h.

    It is ours: two convolutions along the L styles, then one linear map of all of them. With a
    linear classifier it is also the paper's "CNN", so its table's rows differ in training only.
    Codes are standardized by ``mean`` and ``deviation``, which ``fit_scale`` sets.

    Args:
        num_codes: number of styles L.
        style_dim: size D of a style.
        width: channels of the convolutions.
        num_features: size of h.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, num_codes: int, style_dim: int = 512, width: int = 256, num_features: int = 512
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.register_buffer("mean", torch.zeros(num_codes, style_dim))
        self.register_buffer("deviation", torch.ones(num_codes, style_dim))
        self.convolutions = nn.Sequential(
            nn.Conv1d(style_dim, width, 3, padding=1, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Conv1d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
        )
        self.mapping = nn.Sequential(
            nn.Linear(num_codes * width, num_features, bias=False), nn.BatchNorm1d(num_features)
        )

    @torch.no_grad()
    def fit_scale(self, codes: Tensor) -> None:
        """Set mean and standard deviation from codes (N, L, D), per entry.

        Raises:
            ValueError: for fewer than two codes or another shape.
        """
        self._check(codes)
        if len(codes) < 2:
            raise ValueError(f"fit_scale needs at least 2 codes, got {len(codes)}")
        self.mean.copy_(codes.mean(0))
        self.deviation.copy_(codes.std(0).clamp(min=1e-6))

    def forward(self, codes: Tensor) -> Tensor:
        """Compute h of codes; gradients are kept.

        Args:
            codes: W+ codes, (B, L, D).

        Returns:
            (B, num_features).

        Raises:
            ValueError: if the codes have another shape.
        """
        self._check(codes)
        standard = (codes - self.mean) / self.deviation
        features = self.convolutions(rearrange(standard, "b l d -> b d l"))
        return self.mapping(rearrange(features, "b d l -> b (d l)"))

    def _check(self, codes: Tensor) -> None:
        if codes.ndim != 3 or codes.shape[1:] != self.mean.shape:
            shape = ", ".join(map(str, self.mean.shape))
            raise ValueError(
                f"codes must be (B, {shape}) of W+, got {tuple(codes.shape)}; invert() computes "
                "them from images"
            )


class ProjectionHead(nn.Sequential):
    """Projection head g from h to the z of the contrastive loss, Chen et al., Sec. 2.1."""

    def __init__(self, inputs: int, outputs: int = 128) -> None:
        super().__init__(
            nn.Linear(inputs, inputs), nn.ReLU(inplace=True), nn.Linear(inputs, outputs)
        )
