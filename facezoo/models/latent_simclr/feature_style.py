"""Feature-Style encoder from an image to W+ codes and a generator feature.

Source: Yao et al., "Feature-Style Encoder for Style-Based GAN Inversion", ECCV 2022. Written from
a description of the method; docstrings mention the choices that it leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from facezoo.models.latent_simclr.iresnet import IRESNET50, IResNetTrunk, PReLU
from facezoo.models.latent_simclr.layers import EqualLinear

POOLED = 3
"""Side of the pooled outputs of the four stages."""


class FeatureStyleEncoder(nn.Module):
    """Encoder from an image to w in W+ and f in F.

    The four stages of an ArcFace-style trunk are pooled to 3 x 3 and concatenated; one linear map
    per style predicts its code as an offset from ``mean_code`` (our choice). A small convolutional
    head on the third stage predicts the feature that replaces the output of generator layer K.

    Args:
        num_codes: number of styles L: 18 at 1024 pixels, 10 at 64.
        style_dim: size D of a style.
        feature_shape: channels, height and width of layer K: ``generator.feature_shape(K)``.
        depths: residual blocks per stage of the trunk.
        width: channels of the trunk's first stage.
        trunk_size: side to which images are resized, pixels; 256 in the paper.
    """

    mean_code: Tensor

    def __init__(
        self,
        num_codes: int,
        style_dim: int,
        feature_shape: tuple[int, int, int],
        *,
        depths: Sequence[int] = IRESNET50,
        width: int = 64,
        trunk_size: int = 256,
    ) -> None:
        super().__init__()
        self.num_codes, self.trunk_size = num_codes, trunk_size
        self.output_shape = (num_codes, style_dim, *feature_shape)
        self.trunk = IResNetTrunk(depths, width)
        self.maps = EqualLinear(sum(self.trunk.widths) * POOLED**2, num_codes * style_dim)
        nn.init.normal_(self.maps.weight, std=0.01)
        self.head = _FeatureHead(self.trunk.widths[2], -(-trunk_size // 8), feature_shape)
        self.register_buffer("mean_code", torch.zeros(style_dim))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images as codes and a feature; gradients are kept.

        Args:
            images: RGB in [-1, 1], square, of any size, (B, 3, H, H).

        Returns:
            w in W+, (B, L, D), and f, (B, C, H_K, H_K).

        Raises:
            ValueError: if the images have another shape.
        """
        stages = self._stages(images)
        return self._codes(stages), self.head(stages[2])

    def encode_codes(self, images: Tensor) -> Tensor:
        """Encode images, RGB in [-1, 1], (B, 3, H, H), as codes w in W+ only, (B, L, D)."""
        return self._codes(self._stages(images))

    def _stages(self, images: Tensor) -> list[Tensor]:
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
            raise ValueError(
                f"images must be square, (B, 3, H, H), got {tuple(images.shape)}; "
                "crop and align them first"
            )
        if images.shape[-1] != self.trunk_size:
            size = (self.trunk_size, self.trunk_size)
            # Antialiased resizing does not support bfloat16 on every device.
            resized = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
            images = resized.to(images.dtype)
        return self.trunk.stages(images)

    def _codes(self, stages: list[Tensor]) -> Tensor:
        pooled = torch.cat([F.adaptive_avg_pool2d(stage, POOLED) for stage in stages], dim=1)
        offsets = rearrange(self.maps(pooled.flatten(1)), "b (l d) -> b l d", l=self.num_codes)
        return self.mean_code + offsets


class _FeatureHead(nn.Module):
    """Head of two convolutions from the third stage to the generator's feature of ``shape``.

    A stride reduces a larger stage, of height and width ``side``; a smaller one is upsampled first.
    """

    def __init__(self, inputs: int, side: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, self.side, _ = shape
        stride = 2 ** max(0, round(math.log2(side / self.side)))
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            PReLU(channels),
            nn.Conv2d(channels, channels, 3, stride, padding=1),
        )
        self.before = self.side * stride

    def forward(self, stage: Tensor) -> Tensor:
        """Map (B, inputs, H, H) to (B, C, H_K, H_K)."""
        if stage.shape[-1] != self.before:
            stage = F.interpolate(stage, size=(self.before, self.before), mode="bilinear")
        return self.layers(stage)
