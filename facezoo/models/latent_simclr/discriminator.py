"""StyleGAN2 discriminator.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, Sec. 4.1
(residual), and "Progressive Growing of GANs", ICLR 2018, Sec. 3 (batch standard deviation).
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from facezoo.models.latent_simclr.layers import BiasActivation, EqualConv2d, EqualLinear, Filter
from facezoo.models.latent_simclr.modulation import BEFORE
from facezoo.models.latent_simclr.stylegan2 import channels_at, check_size

GROUP = 4
"""Largest group of the batch standard deviation."""


class StyleGANDiscriminator(nn.Module):
    """Discriminator with one logit per image.

    Args:
        size: image side S, a power of 2 of at least 8, pixels.
        channel_multiplier: a layer has this times 16384 / side channels.
        max_channels: largest number of channels.

    Raises:
        ValueError: if ``size`` is not a power of 2 of at least 8.
    """

    def __init__(
        self, size: int = 64, channel_multiplier: float = 2, max_channels: int = 512
    ) -> None:
        super().__init__()
        self.size = check_size(size)
        sides = [size // 2**k for k in range(int(math.log2(size)) - 1)]
        widths = [channels_at(side, channel_multiplier, max_channels) for side in sides]
        blocks = [ResidualBlock(a, b) for a, b in pairwise(widths)]
        last = widths[-1]
        self.convs = nn.Sequential(_activated(3, widths[0], 1), *blocks)
        self.final_conv = _activated(last + 1, last, 3)
        self.final_linear = nn.Sequential(
            EqualLinear(last * 16, last, activate=True), EqualLinear(last, 1)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Compute logits; gradients are kept.

        Args:
            images: (B, 3, S, S) in [-1, 1].

        Returns:
            Logits, large for real images, (B, 1).

        Raises:
            ValueError: if the images have another shape.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, self.size, self.size):
            raise ValueError(
                f"images must be (B, 3, {self.size}, {self.size}), got {tuple(images.shape)}; "
                "resize them, or build a discriminator of their size"
            )
        features = self.convs(images.contiguous(memory_format=torch.channels_last))
        features = self.final_conv(append_deviation(features))
        return self.final_linear(features.flatten(1))  # in the order C, H, W


def append_deviation(features: Tensor) -> Tensor:
    """Append the deviation within groups of a batch (B, C, H, W) as a channel, (B, C + 1, H, W).

    A group holds the samples whose index is equal modulo B / G, where G is the largest number up
    to 4 that divides B.
    """
    count, _, height, width = features.shape
    size = next(g for g in range(min(GROUP, count), 0, -1) if count % g == 0)
    groups = rearrange(features, "(g n) c h w -> g n c h w", g=size)
    deviation = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    channel = repeat(deviation, "n -> (g n) 1 h w", g=size, h=height, w=width)
    return torch.cat([features, channel], dim=1)


class ResidualBlock(nn.Module):
    """Residual block to half the resolution with a 1 x 1 shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = _activated(inputs, inputs, 3)
        self.conv2 = nn.Sequential(*_halving(inputs, outputs, 3), BiasActivation(outputs))
        self.skip = nn.Sequential(*_halving(inputs, outputs, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H/2, W/2)."""
        return (self.conv2(self.conv1(features)) + self.skip(features)) / math.sqrt(2)


def _activated(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = EqualConv2d(inputs, outputs, kernel, padding=kernel // 2)
    return nn.Sequential(convolution, BiasActivation(outputs))


def _halving(inputs: int, outputs: int, kernel: int) -> tuple[nn.Module, nn.Module]:
    return Filter(BEFORE[kernel]), EqualConv2d(inputs, outputs, kernel, stride=2)
