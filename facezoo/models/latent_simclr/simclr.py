"""SimCLR on codes of W+: the base encoder and its projection head.

Source: Hoock, Brügge & Handels, "Disentanglement Learning of Facial Expression and Appearance",
Sec. II.III, after Chen et al., "A Simple Framework for Contrastive Learning of Visual
Representations", ICML 2020. The paper names neither architecture.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn


class CodeEncoder(nn.Module):
    """The base encoder f: codes of W+ to a representation h.

    A convolutional network along the styles, which are L positions with D channels: two
    convolutions over three neighbouring styles, then one linear map of all positions. It is ours.
    With a linear classifier behind it, it serves for the paper's "CNN" too, so that the rows of its
    table differ by training alone.

    Codes are standardised first by ``mean`` and ``deviation``, which ``standardise_by`` takes from
    the training codes.

    Args:
        num_codes: L.
        style_dim: D of a code.
        width: channels of the convolutions.
        num_features: width of h.
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
    def standardise_by(self, codes: Tensor) -> None:
        """Take the mean and the standard deviation of codes (N, L, D), entry by entry.

        Raises:
            ValueError: if there are fewer than two codes, or they are of another shape.
        """
        self._check(codes)
        if len(codes) < 2:
            raise ValueError(f"standardise_by needs 2 codes or more, got {len(codes)}")
        self.mean.copy_(codes.mean(0))
        self.deviation.copy_(codes.std(0).clamp(min=1e-6))

    def forward(self, codes: Tensor) -> Tensor:
        """h of codes, keeping gradients.

        Args:
            codes: w in W+, (B, L, D).

        Returns:
            (B, num_features).

        Raises:
            ValueError: if the codes have another shape.
        """
        self._check(codes)
        standard = (codes - self.mean) / self.deviation
        features = self.convolutions(rearrange(standard, "b l d -> b d l"))
        mapped: Tensor = self.mapping(rearrange(features, "b d l -> b (d l)"))
        return mapped

    def _check(self, codes: Tensor) -> None:
        if codes.ndim != 3 or codes.shape[1:] != self.mean.shape:
            wanted = ", ".join(map(str, self.mean.shape))
            raise ValueError(
                f"codes must be (B, {wanted}) of W+, got {tuple(codes.shape)}; invert() gives such "
                "codes for images"
            )


class ProjectionHead(nn.Sequential):
    """The head g: h to the z that the contrastive loss compares, Chen et al., Sec. 2.1.

    Args:
        inputs: width of h.
        outputs: width of z.
    """

    def __init__(self, inputs: int, outputs: int = 128) -> None:
        super().__init__(
            nn.Linear(inputs, inputs), nn.ReLU(inplace=True), nn.Linear(inputs, outputs)
        )
