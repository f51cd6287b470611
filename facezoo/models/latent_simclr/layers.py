"""Building blocks of StyleGAN2: equalized layers, activation and FIR resampling.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, and, for
the equalized learning rate, Karras et al., "Progressive Growing of GANs", ICLR 2018, Sec. 4.1.
Parameters have the names and shapes of rosinality's layout. Weights are initialized from a unit
normal distribution and scaled at run time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
"""Negative slope of the leaky ReLU."""
GAIN = math.sqrt(2)
"""Factor on activations that preserves the variance."""
TAPS = (1.0, 3.0, 3.0, 1.0)
"""Low-pass filter of up- and downsampling, along each axis."""


def fir_kernel(taps: Sequence[float] = TAPS, gain: float = 1.0) -> Tensor:
    """Compute the outer product of a filter with itself, normalized to sum ``gain``, (k, k)."""
    line = torch.tensor(taps)
    square = torch.outer(line, line)
    return square / square.sum() * gain


def resample(
    images: Tensor, kernel: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> Tensor:
    """Upsample with zeros, pad, filter and downsample.

    Source: Karras et al. 2020, App. B; in the order of its code.

    Args:
        images: (B, C, H, W).
        kernel: FIR filter, (k, l); it is flipped, as in a convolution.
        up: upsampling factor; ``up - 1`` zeros follow each sample.
        down: downsampling factor; the first sample is kept.
        pad: zeros before and after, on both axes; a negative number crops.

    Returns:
        (B, C, (H up + pad - k) // down + 1, (W up + pad - l) // down + 1).
    """
    height, width = images.shape[-2:]
    filters = kernel.to(images.dtype).expand(images.shape[1], 1, *kernel.shape)
    if up == 1:
        if min(pad) < 0 or pad[0] != pad[1]:
            images, pad = F.pad(images, [*pad, *pad]), (0, 0)
        flipped = filters.flip(2, 3)
        return F.conv2d(images, flipped, stride=down, padding=pad[0], groups=len(filters))
    # A transposed convolution skips the inserted zeros.
    spread = F.conv_transpose2d(images, filters, stride=up, groups=len(filters))
    rows, columns = (
        [pad[0] + 1 - taps, length * up + pad[1] - (length - 1) * up - taps]
        for length, taps in zip((height, width), kernel.shape, strict=True)
    )
    return F.pad(spread, [*columns, *rows])[..., ::down, ::down]


class Filter(nn.Module):
    """``resample`` with a stored kernel: Blur and Upsample of rosinality's layout.

    Args:
        pad: zeros before and after.
        gain: sum of the kernel; 4 compensates the zeros of upsampling by 2.
        up: upsampling factor.
    """

    kernel: Tensor

    def __init__(self, pad: tuple[int, int], *, gain: float = 1.0, up: int = 1) -> None:
        super().__init__()
        self.pad, self.up = pad, up
        self.register_buffer("kernel", fir_kernel(gain=gain))

    def forward(self, images: Tensor) -> Tensor:
        """Filter images (B, C, H, W) to (B, C, H', W')."""
        return resample(images, self.kernel, up=self.up, pad=self.pad)


class PixelNorm(nn.Module):
    """Division of each row by its root mean square."""

    def forward(self, rows: Tensor) -> Tensor:
        """Normalize rows, (B, D)."""
        return rows * torch.rsqrt(rows.square().mean(1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """Linear layer with an equalized learning rate and an optional activation.

    Args:
        inputs: input size.
        outputs: output size.
        bias: initial bias.
        rate: learning rate multiplier; weights and biases are multiplied by it at run time.
        activate: apply the leaky ReLU.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        bias: float = 0.0,
        rate: float = 1.0,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias))
        self.scale, self.rate, self.activate = rate / math.sqrt(inputs), rate, activate

    def forward(self, rows: Tensor) -> Tensor:
        """Map (B, inputs) to (B, outputs)."""
        mapped = F.linear(rows * self.scale, self.weight, self.bias * self.rate)
        return F.leaky_relu(mapped, SLOPE) * GAIN if self.activate else mapped


class EqualConv2d(nn.Module):
    """Convolution without bias and with an equalized learning rate."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.stride, self.padding = stride, padding

    def forward(self, features: Tensor) -> Tensor:
        """Convolve (B, inputs, H, W) to (B, outputs, H', W')."""
        weight = self.weight * self.scale
        return F.conv2d(features, weight, stride=self.stride, padding=self.padding)


class BiasActivation(nn.Module):
    """Bias, leaky ReLU and gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """Apply bias, activation and gain to (B, C, H, W)."""
        return shift_and_activate(features, torch.ones_like(self.bias)[None], self.bias)


def shift_and_activate(
    features: Tensor, scale: Tensor, bias: Tensor, noise: Tensor | None = None
) -> Tensor:
    """Compute ``leaky_relu(features * scale + noise + bias) * sqrt(2)`` in few passes.

    The factor sqrt(2) is folded into the small tensors, since it commutes with the leaky ReLU.

    Args:
        features: output of a convolution, (B, C, H, W).
        scale: (B, C) or (1, C).
        bias: (C,).
        noise: scaled noise, (B, 1, H, W) or (1, 1, H, W).
    """
    kind = features.dtype
    factor, shift = (scale * GAIN).to(kind)[..., None, None], (bias * GAIN).to(kind)[:, None, None]
    shifted = torch.addcmul(shift, features, factor)
    if noise is not None:
        shifted = shifted.add_((noise * GAIN).to(kind))
    return F.leaky_relu_(shifted, SLOPE)
