"""Networks of LatentFace's first stage; they are those of Unsup3D.

Source: LatentFace, Sec. 5.2; Wu et al., "Unsupervised Learning of Probably Symmetric Deformable 3D
Objects", CVPR 2020, supplementary. All convolutions are without bias. ``width`` is the channels of
the first layer; narrower networks keep four channels per group of each group norm.

At 128 pixels there is one more stride-2 layer before the code and one more upsampling layer after
it. The papers do not give their place; the layouts at 128 are our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from einops import rearrange
from torch import Tensor, nn

SIZES = (64, 128)
"""Supported image sides, pixels."""

GROUP = 4  # channels per group of a group norm; 64 channels have the paper's 16 groups


class AutoEncoder(nn.Module):
    """Autoencoder from images to a code and to a map: E and D of Fig. 2, 7 and 9.

    Args:
        out_channels: 3 for texture, 1 for shape.
        size: side of image and map, 64 or 128 pixels.
        width: channels of the first layer; 64 in the paper.
        code_dim: D of the code; 256 in the paper.
        tanh: whether the map ends in a tanh; the renderer squashes the shape map itself.
    """

    def __init__(
        self,
        out_channels: int,
        size: int = 64,
        width: int = 64,
        code_dim: int = 256,
        tanh: bool = False,
    ) -> None:
        super().__init__()
        _check(size, width)
        self.encoder = nn.Sequential(*_encoder(size, width, code_dim))
        self.decoder = nn.Sequential(
            _up(code_dim, 8 * width, 4, 1, 0),
            nn.ReLU(),
            _conv(8 * width, 8 * width),
            nn.ReLU(),
            *(_up_and_smooth(8 * width, 8 * width) if size == 128 else []),
            *_up_and_smooth(8 * width, 4 * width),
            *_up_and_smooth(4 * width, 2 * width),
            *_up_and_smooth(2 * width, width),
            nn.Upsample(scale_factor=2),
            *_normed(_conv(width, width), width),
            *_normed(_conv(width, width, 5), width),
            _conv(width, out_channels, 5),
            *([nn.Tanh()] if tanh else []),
        )

    def encode(self, images: Tensor) -> Tensor:
        """Encode images in [-1, 1], (B, 3, S, S), as non-negative codes, (B, D)."""
        return rearrange(self.encoder(images), "b d 1 1 -> b d")

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, D) to maps, (B, C, S, S)."""
        hidden = self.decoder[:-1](rearrange(codes, "b d -> b d 1 1"))
        last = self.decoder[-1]
        # Normals are differences of depths, for which bfloat16 is too coarse.
        with torch.autocast(hidden.device.type, enabled=False):
            maps: Tensor = last(hidden.to(self.encoder[0].weight.dtype))
        return maps

    def forward(self, images: Tensor) -> Tensor:
        """Encode images and decode them to maps, (B, C, S, S)."""
        return self.decode(self.encode(images))


class NumberEncoder(nn.Module):
    """Encoder from images to a few numbers in [-1, 1], for light and view, Fig. 8.

    Args:
        out_dim: 4 for light, 6 for view.
        size: side of the images, 64 or 128 pixels.
        width: channels of the first layer; 32 in the paper.
    """

    def __init__(self, out_dim: int, size: int = 64, width: int = 32) -> None:
        super().__init__()
        _check(size, width)
        channels = [3, width, 2 * width, 4 * width, 8 * width]
        if size == 128:
            channels.append(8 * width)
        layers: list[nn.Module] = []
        for before, after in pairwise(channels):
            layers += [_conv(before, after, 4, 2, 1), nn.ReLU()]
        self.network = nn.Sequential(
            *layers,
            _conv(8 * width, 8 * width, 4, 1, 0),
            nn.ReLU(),
            _conv(8 * width, out_dim, 1),
            nn.Tanh(),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Regress the numbers, (B, out_dim), from images in [-1, 1], (B, 3, S, S)."""
        return rearrange(self.network(images), "b d 1 1 -> b d")


class ConfidenceNetwork(nn.Module):
    """Network that predicts the standard deviations σ of the losses, Fig. 11.

    Args:
        size: side of the images, 64 or 128 pixels.
        width: channels of the first layer; 64 in the paper.
        code_dim: width of the bottleneck; 128 in the paper.
    """

    def __init__(self, size: int = 64, width: int = 64, code_dim: int = 128) -> None:
        super().__init__()
        _check(size, width)
        self.network = nn.Sequential(
            *_encoder(size, width, code_dim),
            _up(code_dim, 8 * width, 4, 1, 0),
            nn.ReLU(),
            *([_up(8 * width, 8 * width), nn.ReLU()] if size == 128 else []),
            *_normed(_up(8 * width, 4 * width), 4 * width),
            *_normed(_up(4 * width, 2 * width), 2 * width),
        )
        self.pixel_head = nn.Sequential(
            *_normed(_up(2 * width, width), width),
            *_normed(_up(width, width), width),
            _conv(width, 2, 5),
            nn.Softplus(),
        )
        self.feature_head = nn.Sequential(_conv(2 * width, 2), nn.Softplus())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict σ for pixels and for features.

        Args:
            images: in [-1, 1], (B, 3, S, S).

        Returns:
            σ_p, (B, 2, S, S), and σ_f, (B, 2, S / 4, S / 4). The first channel is for the
            reconstruction, the second for the one with mirrored shape and texture.
        """
        trunk = self.network(images)
        return self.pixel_head(trunk), self.feature_head(trunk)


def _encoder(size: int, width: int, code_dim: int) -> list[nn.Module]:
    """List the layers from an image to a code of 1 x 1 pixel."""
    return [
        *_normed(_conv(3, width, 4, 2, 1), width, leak=0.2),
        *_normed(_conv(width, 2 * width, 4, 2, 1), 2 * width, leak=0.2),
        *_normed(_conv(2 * width, 4 * width, 4, 2, 1), 4 * width, leak=0.2),
        _conv(4 * width, 8 * width, 4, 2, 1),
        nn.LeakyReLU(0.2),
        *([_conv(8 * width, 8 * width, 4, 2, 1), nn.LeakyReLU(0.2)] if size == 128 else []),
        _conv(8 * width, code_dim, 4, 1, 0),
        nn.ReLU(),
    ]


def _up_and_smooth(before: int, after: int) -> Sequence[nn.Module]:
    return [*_normed(_up(before, after), after), *_normed(_conv(after, after), after)]


def _normed(layer: nn.Module, channels: int, leak: float = 0.0) -> list[nn.Module]:
    return [
        layer,
        nn.GroupNorm(channels // GROUP, channels),
        nn.LeakyReLU(leak) if leak else nn.ReLU(),
    ]


def _conv(
    before: int, after: int, kernel: int = 3, stride: int = 1, padding: int | None = None
) -> nn.Conv2d:
    padding = kernel // 2 if padding is None else padding
    return nn.Conv2d(before, after, kernel, stride, padding, bias=False)


def _up(
    before: int, after: int, kernel: int = 4, stride: int = 2, padding: int = 1
) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(before, after, kernel, stride, padding, bias=False)


def _check(size: int, width: int) -> None:
    if size not in SIZES:
        raise ValueError(f"size must be 64 or 128 pixels, got {size}")
    if width < GROUP or width % GROUP:
        raise ValueError(f"width must be a multiple of {GROUP} channels, got {width}")
