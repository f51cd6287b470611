"""Denoising U-Net of LatentFace's second stage.

Source: LatentFace, Sec. 5.2: one down block, one middle block and one up block, two residual layers
in each. Where the paper is silent, the network follows diffusers' ``UNet2DModel``, which the
published weights need: group norms, SiLU, a sinusoidal time embedding with the cosines first,
attention with heads of 8 channels in the middle block, and three residual layers in the up block,
one for each skip connection. With one level there is no downsampling.
"""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

GROUP = 4  # channels per group of a group norm, of the first map; 128 channels have 32 groups
HEAD_DIM = 8
MAX_PERIOD = 10_000.0


class UNet(nn.Module):
    """Network that predicts a clean map from a noisy map and its time step.

    Args:
        in_channels: channels of noisy map and condition together; 512 in the paper.
        out_channels: 256 in the paper.
        width: channels of the hidden maps; 128 in the published weights. A multiple of 8.
    """

    def __init__(self, in_channels: int = 512, out_channels: int = 256, width: int = 128) -> None:
        super().__init__()
        if width < HEAD_DIM or width % HEAD_DIM:
            raise ValueError(f"width must be a multiple of {HEAD_DIM} channels, got {width}")
        self.width = width
        time_dim = 4 * width
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.time_embedding = nn.Sequential(
            nn.Linear(width, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim)
        )
        self.down = nn.ModuleList(ResidualLayer(width, width, time_dim) for _ in range(2))
        self.middle = nn.ModuleList(ResidualLayer(width, width, time_dim) for _ in range(2))
        self.attention = Attention(width)
        self.up = nn.ModuleList(ResidualLayer(2 * width, width, time_dim) for _ in range(3))
        self.norm_out = nn.GroupNorm(width // GROUP, width)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)

    def forward(self, maps: Tensor, steps: Tensor) -> Tensor:
        """Predict the clean map of a noisy map and its condition, (B, C, H, W), at steps (B,)."""
        time = self.time_embedding(time_features(steps, self.width).to(maps.dtype))
        hidden = self.conv_in(maps)
        skips = [hidden]
        for layer in self.down:
            hidden = layer(hidden, time)
            skips.append(hidden)
        hidden = self.middle[0](hidden, time)
        hidden = self.middle[1](self.attention(hidden), time)
        for layer in self.up:
            hidden = layer(torch.cat([hidden, skips.pop()], 1), time)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class ResidualLayer(nn.Module):
    """Residual block of two normalized convolutions with the time embedding in between."""

    def __init__(self, before: int, after: int, time_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(after // GROUP, before)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.time = nn.Linear(time_dim, after)
        self.norm2 = nn.GroupNorm(after // GROUP, after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        self.shortcut = nn.Identity() if before == after else nn.Conv2d(before, after, 1)

    def forward(self, maps: Tensor, time: Tensor) -> Tensor:
        """Map (B, before, H, W) and time features (B, time_dim) to (B, after, H, W)."""
        hidden = self.conv1(F.silu(self.norm1(maps)))
        hidden = hidden + rearrange(self.time(F.silu(time)), "b c -> b c 1 1")
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.shortcut(maps) + hidden


class Attention(nn.Module):
    """Residual self-attention over the pixels of a map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // HEAD_DIM
        self.norm = nn.GroupNorm(width // GROUP, width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, maps: Tensor) -> Tensor:
        """Add the attention output to the maps, (B, width, H, W)."""
        height = maps.shape[2]
        pixels = rearrange(self.norm(maps), "b c h w -> b (h w) c")
        query, key, value = (
            rearrange(layer(pixels), "b p (n d) -> b n p d", n=self.heads)
            for layer in (self.query, self.key, self.value)
        )
        values = F.scaled_dot_product_attention(query, key, value)
        values = self.out(rearrange(values, "b n p d -> b p (n d)"))
        return maps + rearrange(values, "b (h w) c -> b c h w", h=height)


def time_features(steps: Tensor, width: int) -> Tensor:
    """Compute the sinusoidal features of time steps, frequencies 10000^(-2 i / width).

    Cosines come first. Exponents, frequencies and angles are rounded to float32, as in the training
    of the published weights; without it the output at late steps moves by 1e-5. The exponential is
    computed in float64, since processors differ in its last float32 bit.

    Args:
        steps: (B,).
        width: even.

    Returns:
        float32, (B, width).
    """
    half = width // 2
    exponents = -log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device="cpu") / half
    frequencies = exponents.double().exp().float().to(steps.device)
    angles = steps[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)
