"""Modulated convolutions, whose weights are scaled by the style of each sample.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020,
Sec. 2.2, eqs. (1) to (3).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from facezoo.models.latent_simclr.layers import EqualLinear, Filter

BEFORE: dict[int, tuple[int, int]] = {1: (1, 1), 3: (2, 2)}
"""Padding of the filter before a stride-2 convolution, by kernel size."""


class _Modulated(nn.Module):
    """Weight of a modulated convolution.

    In a state dict it is (1, outputs, inputs, k, k), as in published checkpoints. The parameter has
    four axes, (outputs, inputs, k, k), so that the module can be converted to ``channels_last``.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.scale = 1 / math.sqrt(inputs * kernel**2)

    def _save_to_state_dict(
        self, destination: dict[str, Tensor], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = destination[f"{prefix}weight"][None]

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *rest: Any, **named: Any
    ) -> None:
        weight = state_dict.get(f"{prefix}weight")
        if weight is not None and weight.ndim == 5 and len(weight) == 1:
            state_dict[f"{prefix}weight"] = weight[0]
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)


class ModulatedConv2d(_Modulated):
    """Modulated and demodulated convolution with optional up- or downsampling.

    Modulating the weights, eq. (1), equals scaling the input, and demodulating them, eq. (3),
    equals scaling the output. So one convolution without groups serves the whole batch.

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: kernel size, 1 or 3.
        style_dim: size D of a style.
        resize: ``"up"`` doubles and ``"down"`` halves the resolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style_dim: int,
        resize: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__(inputs, outputs, kernel)
        if resize == "up":  # the order in which recorded trainings drew their initial weights
            swapped = self.weight.detach().view(inputs, outputs, kernel, kernel).transpose(0, 1)
            self.weight = nn.Parameter(swapped.contiguous())
        self.resize, self.padding = resize, kernel // 2
        if resize is not None:
            self.blur = Filter((1, 1), gain=4) if resize == "up" else Filter(BEFORE[kernel])
        self.modulation = EqualLinear(style_dim, inputs, bias=1.0)

    def convolve(self, features: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve features (B, inputs, H, W) by styles (B, D), without demodulation.

        Return (B, outputs, H', W'), and the factors of the demodulation, (B, outputs).
        """
        factors = self.modulation(style) * self.scale
        modulated = features * factors.to(features.dtype)[..., None, None]
        energy = self.weight.square().sum((2, 3))
        demodulation = torch.rsqrt(F.linear(factors.square(), energy) + 1e-8)
        return self._convolved(modulated), demodulation

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Convolve features (B, inputs, H, W) by styles (B, D) to (B, outputs, H', W')."""
        convolved, demodulation = self.convolve(features, style)
        return convolved * demodulation.to(convolved.dtype)[..., None, None]

    def _convolved(self, features: Tensor) -> Tensor:
        if self.resize == "up":
            return self.blur(F.conv_transpose2d(features, self.weight.transpose(0, 1), stride=2))
        if self.resize == "down":
            return F.conv2d(self.blur(features), self.weight, stride=2)
        return F.conv2d(features, self.weight, padding=self.padding)


class ModulatedRGB(_Modulated):
    """Modulated 1 x 1 convolution to RGB without demodulation.

    With three outputs, a matrix product with per-sample weights is fastest.
    """

    def __init__(self, inputs: int, style_dim: int) -> None:
        super().__init__(inputs, 3, 1)
        self.modulation = EqualLinear(style_dim, inputs, bias=1.0)

    def forward(self, features: Tensor, style: Tensor) -> Tensor:
        """Map features (B, inputs, H, W) and styles (B, D) to RGB, (B, 3, H, W)."""
        factors = self.modulation(style) * self.scale
        weights = factors[:, :, None] * self.weight[:, :, 0, 0].T
        pixels = rearrange(features, "b c h w -> b (h w) c")
        colors = torch.bmm(pixels, weights.to(pixels.dtype))
        return rearrange(colors, "b (h w) c -> b c h w", h=features.shape[2])
