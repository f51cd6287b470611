"""The building blocks of StyleGAN2: equalised layers, activation and FIR resampling.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020, and, for
the equalised learning rate, Karras et al., "Progressive Growing of GANs", ICLR 2018, Sec. 4.1.
Parameters have the names and shapes of the widespread PyTorch layout. Weights are drawn from a unit
normal distribution and scaled when they are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.2
"""Of the leaky ReLU for negative values."""
GAIN = math.sqrt(2)
"""What activations are multiplied by, so that they keep the variance of what came in."""
TAPS = (1.0, 3.0, 3.0, 1.0)
"""The low-pass filter of every change of resolution, along each axis."""


def fir_kernel(taps: Sequence[float] = TAPS, gain: float = 1.0) -> Tensor:
    """Outer product of a filter with itself, which sums to ``gain``, (k, k)."""
    line = torch.tensor(taps)
    square = torch.outer(line, line)
    return square / square.sum() * gain


def resample(
    images: Tensor, kernel: Tensor, *, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)
) -> Tensor:
    """Insert zeros, pad, convolve with a FIR filter, and keep every ``down``-th sample.

    Source: Karras et al. 2020, App. B; the order of the steps is that of its code.

    Args:
        images: (B, C, H, W).
        kernel: the filter, (k, l); it is flipped, as convolution has it.
        up: ``up - 1`` zeros are put behind every sample.
        down: of the filtered samples, every ``down``-th is kept, from the first on.
        pad: zeros before and behind, on both axes; a negative number crops.

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
    # A transposed convolution is the convolution of the stretched images with every zero skipped.
    spread = F.conv_transpose2d(images, filters, stride=up, groups=len(filters))
    rows, columns = (
        [pad[0] + 1 - taps, length * up + pad[1] - (length - 1) * up - taps]
        for length, taps in zip((height, width), kernel.shape, strict=True)
    )
    return F.pad(spread, [*columns, *rows])[..., ::down, ::down]


class Filter(nn.Module):
    """``resample`` with a kernel that is stored under ``kernel``: Blur and Upsample of the layout.

    Args:
        pad: zeros before and behind.
        gain: sum of the kernel; 4 makes up for the zeros of twice the resolution.
        up: ``up - 1`` zeros are put behind every sample.
    """

    kernel: Tensor

    def __init__(self, pad: tuple[int, int], *, gain: float = 1.0, up: int = 1) -> None:
        super().__init__()
        self.pad, self.up = pad, up
        self.register_buffer("kernel", fir_kernel(gain=gain))

    def forward(self, images: Tensor) -> Tensor:
        """Filtered images, (B, C, H', W'), of (B, C, H, W)."""
        return resample(images, self.kernel, up=self.up, pad=self.pad)


class PixelNorm(nn.Module):
    """Rows divided by their root mean square."""

    def forward(self, rows: Tensor) -> Tensor:
        """(B, D) of (B, D)."""
        return rows * torch.rsqrt(rows.square().mean(1, keepdim=True) + 1e-8)


class EqualLinear(nn.Module):
    """A linear map with an equalised learning rate, perhaps activated.

    Args:
        inputs: width of what comes in.
        outputs: width of what goes out.
        bias: first value of every bias.
        rate: factor on the learning rate; weights and biases are multiplied by it when used.
        activate: whether ``activation`` follows.
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
        """(B, outputs) of (B, inputs)."""
        mapped = F.linear(rows * self.scale, self.weight, self.bias * self.rate)
        return F.leaky_relu(mapped, SLOPE) * GAIN if self.activate else mapped


class EqualConv2d(nn.Module):
    """A convolution without bias and with an equalised learning rate."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.scale = 1 / math.sqrt(inputs * kernel**2)
        self.stride, self.padding = stride, padding

    def forward(self, features: Tensor) -> Tensor:
        """(B, outputs, H', W') of (B, inputs, H, W)."""
        weight = self.weight * self.scale
        return F.conv2d(features, weight, stride=self.stride, padding=self.padding)


class BiasActivation(nn.Module):
    """Bias, leaky ReLU and gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, H, W) of (B, C, H, W)."""
        return shift_and_activate(features, torch.ones_like(self.bias)[None], self.bias)


def shift_and_activate(
    features: Tensor, scale: Tensor, bias: Tensor, noise: Tensor | None = None
) -> Tensor:
    """``leaky_relu(features * scale + noise + bias) * sqrt(2)`` in as few passes as torch allows.

    The root of two goes into the small tensors, since a leaky ReLU commutes with it.

    Args:
        features: what a convolution gave, (B, C, H, W).
        scale: (B, C) or (1, C).
        bias: (C,).
        noise: (B, 1, H, W) or (1, 1, H, W), its strength included.
    """
    kind = features.dtype
    factor, shift = (scale * GAIN).to(kind)[..., None, None], (bias * GAIN).to(kind)[:, None, None]
    shifted = torch.addcmul(shift, features, factor)
    if noise is not None:
        shifted = shifted.add_((noise * GAIN).to(kind))
    return F.leaky_relu_(shifted, SLOPE)
