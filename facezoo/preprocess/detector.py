"""A small single-shot face detector with five landmarks, of our own design.

A residual trunk of plain 3 x 3 convolutions, a top-down path, and one head shared by four levels,
each of which sees faces of an octave or two. Every cell of a level says how sure it is that a face
is centred near it, where the box is, and where the landmarks are. In the manner of FCOS (Tian et
al., ICCV 2019) for the levels and of RetinaFace (Deng et al., CVPR 2020) for the landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

STRIDES = (8, 16, 32, 64)
BASES = (40.0, 80.0, 160.0, 320.0)
"""Typical side of a level's faces in pixels; the head's outputs are in this unit."""


def _conv(
    inputs: int, outputs: int, stride: int = 1, groups: int = 1, kernel: int = 3
) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _tower(width: int) -> nn.Module:
    """Two depthwise separable convolutions."""
    pairs = [(_conv(width, width, groups=width), _conv(width, width, kernel=1)) for _ in range(2)]
    return nn.Sequential(*[layer for pair in pairs for layer in pair])


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


@dataclass(frozen=True)
class Candidates:
    """Outputs of the A cells of all levels."""

    logits: Tensor
    """How likely the cell's box is a face and fits it, before the sigmoid, (B, A)."""
    boxes: Tensor
    """x0, y0, x1, y1 in pixels of the input, (B, A, 4)."""
    landmarks: Tensor
    """Five points in pixels of the input, (B, A, 5, 2)."""


class FaceDetector(nn.Module):
    """Faces of some 12 to 300 pixels in a batch of equally large images.

    Args:
        width: channels of the trunk and the head.
    """

    multiple: ClassVar[int] = 64
    """Sides of the images are multiples of this, pixels."""
    smallest_face: ClassVar[float] = 20.0
    """Least length of the longer side of a face, pixels."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        half = width // 2
        self.stem = nn.Sequential(
            _conv(3, half // 2, 2), _conv(half // 2, half, 2), _conv(half, half)
        )
        self.stages = nn.ModuleList(
            [
                nn.Sequential(_conv(half, width, 2), _Residual(width)),
                nn.Sequential(_conv(width, width, 2), _Residual(width)),
                nn.Sequential(_conv(width, width, 2), _Residual(width)),
                nn.Sequential(_conv(width, width, 2), _Residual(width)),
            ]
        )
        self.laterals = nn.ModuleList(_conv(width, width, kernel=1) for _ in STRIDES)
        self.box_tower = _tower(width)
        self.landmark_tower = _tower(width)
        self.box_output = nn.Conv2d(width, 1 + 4, 1)
        self.landmark_output = nn.Conv2d(width, 10, 1)
        nn.init.normal_(self.box_output.weight, std=0.01)
        nn.init.normal_(self.landmark_output.weight, std=0.01)
        # Most cells hold no face.
        self.box_output.bias = nn.Parameter(torch.tensor([-4.0, 0.0, 0.0, 0.0, 0.0]))

    def forward(self, images: Tensor) -> Candidates:
        """Compute the outputs of every cell.

        Args:
            images: RGB in [-1, 1], sides multiples of 64, (B, 3, H, W).

        Returns:
            Candidates in pixels of the input.

        Raises:
            ValueError: if a side is not a multiple of 64.
        """
        height, width = images.shape[-2:]
        if height % STRIDES[-1] or width % STRIDES[-1]:
            raise ValueError(
                f"images must have sides that are multiples of {STRIDES[-1]}, got "
                f"{height} x {width}; pad them with zeros on the right and below"
            )
        raw = self.raw(images)
        centres, bases = cells(height, width, raw.device)
        return decode(raw, centres, bases)

    def raw(self, images: Tensor) -> Tensor:
        """Compute the numbers of every cell, (B, A, 15); see ``forward``."""
        features = []
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        outputs, above = [], None
        for level in reversed(range(len(STRIDES))):
            merged = self.laterals[level](features[level])
            if above is not None:
                merged = merged + F.interpolate(above, scale_factor=2.0, mode="nearest")
            above = merged
            outputs.append(self._read(merged))
        return torch.cat(outputs[::-1], 1)

    @torch.no_grad()
    def fold_norms(self) -> FaceDetector:
        """Take every batch norm into the convolution before it, in place; eval mode only after.

        What comes out changes by rounding alone. The norms' own weights are gone.
        """
        for layer in list(self.modules()):
            if isinstance(layer, nn.Sequential) and isinstance(layer[0], nn.Conv2d):
                convolution, norm = layer[0].eval(), layer[1].eval()
                assert isinstance(norm, nn.BatchNorm2d)
                layer[0] = fuse_conv_bn_eval(convolution, norm)
                del layer[1]
        return self.eval()

    def _read(self, features: Tensor) -> Tensor:
        """A level's features as numbers per cell, (B, A, 15), in float32 as they become pixels."""
        box, landmark = self.box_tower(features), self.landmark_tower(features)
        with torch.autocast(features.device.type, enabled=False):
            dtype = self.box_output.weight.dtype
            numbers = [self.box_output(box.to(dtype)), self.landmark_output(landmark.to(dtype))]
        return torch.cat(numbers, 1).float().flatten(2).transpose(1, 2)


@lru_cache(maxsize=64)
def cells(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return center x, y (A, 2) and unit (A, 1) of every cell of an input of this size, pixels."""
    centers, bases = [], []
    # The tensors are cached, so that they must not depend on the state of the first caller.
    with torch.inference_mode(False):
        for stride, base in zip(STRIDES, BASES, strict=True):
            y = torch.arange(height // stride, dtype=torch.float32, device=device)
            x = torch.arange(width // stride, dtype=torch.float32, device=device)
            y, x = y * stride + (stride - 1) / 2, x * stride + (stride - 1) / 2
            grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).reshape(-1, 2)
            centers.append(grid)
            bases.append(grid.new_full((len(grid), 1), base))
        return torch.cat(centers), torch.cat(bases)


def decode(raw: Tensor, centres: Tensor, bases: Tensor) -> Candidates:
    """The head's numbers (B, A, 15) as boxes and landmarks in pixels."""
    middle = centres + raw[..., 1:3] * bases
    half = bases * raw[..., 3:5].clamp(-4, 4).exp() / 2
    points = centres[:, None] + raw[..., 5:].unflatten(-1, (5, 2)) * bases[:, None]
    return Candidates(raw[..., 0], torch.cat([middle - half, middle + half], -1), points)
