"""StyleGAN2 generator.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020. State
dicts have the names and shapes of rosinality's layout, so published generators load.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import repeat
from torch import Generator, Tensor, nn

from facezoo.models.latent_simclr.layers import EqualLinear, Filter, PixelNorm, shift_and_activate
from facezoo.models.latent_simclr.modulation import ModulatedConv2d, ModulatedRGB

Noise = Sequence[Tensor]
"""One map per layer, (1, 1, H, W) or (B, 1, H, W)."""


@dataclass(frozen=True)
class Synthesis:
    """Output of a generator.

    Attributes:
        images: (B, 3, S, S), around [-1, 1] and not clamped.
        features: outputs of the requested layers by number, (B, C, H, H).
    """

    images: Tensor
    features: dict[int, Tensor]


class StyleGANGenerator(nn.Module):
    """StyleGAN2 generator with skip connections to RGB, Sec. 4.1.

    Layer k, from 1, is the k-th styled convolution and takes code k - 1 of W+. The RGB layers
    follow layers 1, 3, 5 and so on, and take code k. A generator of size S has L = 2 log2(S) - 2
    codes and L - 1 layers; layer k has side 4 * 2 ** (k // 2).

    Args:
        size: image side S, a power of 2 of at least 8, pixels.
        style_dim: size D of z, w and each code of W+.
        mapping_layers: depth of the mapping network.
        channel_multiplier: a layer has this times 16384 / side channels; 2 in the paper's large
            configuration.
        max_channels: largest number of channels.

    Raises:
        ValueError: if ``size`` is not a power of 2 of at least 8.
    """

    def __init__(
        self,
        size: int = 64,
        style_dim: int = 512,
        mapping_layers: int = 8,
        channel_multiplier: float = 2,
        max_channels: int = 512,
    ) -> None:
        super().__init__()
        self.size, self.style_dim = check_size(size), style_dim
        self.num_layers = 2 * int(math.log2(size)) - 3
        self.num_codes = self.num_layers + 1
        self.channels = [
            channels_at(layer_side(k), channel_multiplier, max_channels)
            for k in range(1, self.num_layers + 1)
        ]
        mapping = [
            EqualLinear(style_dim, style_dim, rate=0.01, activate=True)
            for _ in range(mapping_layers)
        ]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        self.input = _Constant(self.channels[0])
        widths = [self.channels[0], *self.channels]
        layers = [
            _StyledConv(before, after, style_dim, up=k > 1 and k % 2 == 0)
            for k, (before, after) in enumerate(pairwise(widths), 1)
        ]
        colors = [_ToRGB(width, style_dim, up=k > 0) for k, width in enumerate(self.channels[::2])]
        self.conv1, self.to_rgb1 = layers[0], colors[0]
        self.convs, self.to_rgbs = nn.ModuleList(layers[1:]), nn.ModuleList(colors[1:])
        self.noises = _StoredNoise(self.num_layers)

    def map(self, z: Tensor, psi: float = 1.0, center: Tensor | None = None) -> Tensor:
        """Map normal noise to codes of W, with the truncation trick.

        Args:
            z: (B, D).
            psi: truncation; 1 changes nothing, 0 returns the center.
            center: mean of W from ``mean_code``, (D,) or (1, D); required if psi is not 1.

        Returns:
            w, (B, D).

        Raises:
            ValueError: if psi is not 1 and ``center`` is None.
        """
        codes: Tensor = self.style(z)
        if psi == 1:
            return codes
        if center is None:
            raise ValueError(
                f"psi={psi} needs the center of W; pass center=generator.mean_code(10_000)"
            )
        return center + psi * (codes - center)

    @torch.no_grad()
    def mean_code(self, count: int, generator: Generator | None = None) -> Tensor:
        """Compute the mean code of ``count`` random z, (D,)."""
        total = torch.zeros(self.style_dim, dtype=torch.float32, device=self.input.input.device)
        for begin in range(0, count, 4096):
            rows = min(4096, count - begin)
            z = _normal((rows, self.style_dim), self.input.input, generator)
            total += self.style(z).float().sum(0)
        return (total / count).to(self.input.input.dtype)

    def stored_noise(self) -> list[Tensor]:
        """Return the noise maps of the checkpoint, one per layer, (1, 1, H, H)."""
        return [getattr(self.noises, f"noise_{k}") for k in range(self.num_layers)]

    def draw_noise(self, count: int, generator: Generator | None = None) -> list[Tensor]:
        """Sample noise maps, one per layer, (count, 1, H, H)."""
        sides = [layer_side(k) for k in range(1, self.num_layers + 1)]
        return [_normal((count, 1, s, s), self.input.input, generator) for s in sides]

    def forward(
        self, codes: Tensor, noise: Noise | None = None, replace: Mapping[int, Tensor] | None = None
    ) -> Tensor:
        """Generate images around [-1, 1], (B, 3, S, S); arguments are those of ``synthesize``."""
        return self.synthesize(codes, noise, replace).images

    def synthesize(
        self,
        codes: Tensor,
        noise: Noise | None = None,
        replace: Mapping[int, Tensor] | None = None,
        read: Collection[int] = (),
    ) -> Synthesis:
        """Generate images and return features of layers; gradients are kept.

        Args:
            codes: of W, (B, D), or of W+, (B, L, D).
            noise: ``stored_noise()``, ``draw_noise(B)`` or other maps; None for no noise.
            replace: features that replace the outputs of layers, by layer number.
            read: layer numbers whose outputs are returned.

        Returns:
            Images and features.

        Raises:
            ValueError: if a shape or a layer's number does not fit the generator.
        """
        self._check_layers(read)
        features = {}
        for number, feature, colors in self._layers(codes, noise, replace or {}):
            images = colors
            if number in read:
                features[number] = feature
        return Synthesis(images, features)

    def features(self, codes: Tensor, layer: int, noise: Noise | None = None) -> Tensor:
        """Compute the output of one layer, (B, C, H, H), without the later layers.

        Raises:
            ValueError: if a shape or the layer's number does not fit the generator.
        """
        self._check_layers([layer])
        for number, feature, _ in self._layers(codes, noise, {}):
            if number == layer:
                return feature
        raise AssertionError

    def feature_shape(self, layer: int) -> tuple[int, int, int]:
        """Return channels, height and width of the output of a layer.

        Raises:
            ValueError: if the layer does not exist.
        """
        self._check_layers([layer])
        return self.channels[layer - 1], layer_side(layer), layer_side(layer)

    def _layers(
        self, codes: Tensor, noise: Noise | None, replace: Mapping[int, Tensor]
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Iterate over layers: number, output and accumulated RGB."""
        w_plus = self._as_w_plus(codes)
        self._check_replaced(replace, len(w_plus))
        if noise is not None and len(noise) != self.num_layers:
            raise ValueError(
                f"noise must have {self.num_layers} maps, one per layer, got {len(noise)}; "
                "draw_noise() samples them"
            )
        feature: Tensor = self.input(len(w_plus))
        colors: Tensor | None = None
        for number, layer in enumerate([self.conv1, *self.convs], 1):
            if number in replace:
                feature = replace[number].contiguous(memory_format=torch.channels_last)
            else:
                map_ = None if noise is None else noise[number - 1]
                feature = layer(feature, w_plus[:, number - 1], map_)
            if number % 2:
                to_rgb = self.to_rgb1 if number == 1 else self.to_rgbs[number // 2 - 1]
                colors = to_rgb(feature, w_plus[:, number], colors)
            assert colors is not None
            yield number, feature, colors

    def _as_w_plus(self, codes: Tensor) -> Tensor:
        if codes.ndim == 2 and codes.shape[1] == self.style_dim:
            return repeat(codes, "b d -> b l d", l=self.num_codes)
        if codes.ndim == 3 and codes.shape[1:] == (self.num_codes, self.style_dim):
            return codes
        raise ValueError(
            f"codes must be (B, {self.style_dim}) of W or (B, {self.num_codes}, {self.style_dim}) "
            f"of W+, got {tuple(codes.shape)}; for normal noise call map() first"
        )

    def _check_layers(self, numbers: Collection[int]) -> None:
        for number in numbers:
            if not 1 <= number <= self.num_layers:
                raise ValueError(
                    f"there is no layer {number}: a generator of size {self.size} has layers 1 to "
                    f"{self.num_layers}"
                )

    def _check_replaced(self, replace: Mapping[int, Tensor], count: int) -> None:
        for number, feature in replace.items():
            expected = (count, *self.feature_shape(number))
            if tuple(feature.shape) != expected:
                raise ValueError(
                    f"the feature that replaces layer {number} must be {expected}, got "
                    f"{tuple(feature.shape)}"
                )


def mix_codes(first: Tensor, second: Tensor, start: int) -> Tensor:
    """Mix styles: from ``first`` before index ``start``, from ``second`` after it.

    Args:
        first: codes for the coarse styles, (B, L, D).
        second: codes for the fine styles, (B, L, D).
        start: number of styles from ``first``.

    Returns:
        (B, L, D).
    """
    return torch.cat([first[:, :start], second[:, start:]], dim=1)


def check_size(size: int) -> int:
    """Check an image side.

    Raises:
        ValueError: if it is not a power of 2 of at least 8.
    """
    if size < 8 or size & (size - 1):
        raise ValueError(f"size must be a power of 2 of at least 8, such as 64 or 1024, got {size}")
    return size


def channels_at(side: int, multiplier: float, most: int) -> int:
    """Return the number of channels of layers with this side."""
    return min(most, int(16384 * multiplier) // side)


def layer_side(number: int) -> int:
    """Return the side of the output of layer ``number``, from 1."""
    return 4 * 2 ** (number // 2)


def _normal(shape: tuple[int, ...], like: Tensor, generator: Generator | None = None) -> Tensor:
    """Sample normal noise on the generator's device and move it to the device of ``like``."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=torch.float32, device=device).to(like)


class _Constant(nn.Module):
    """Learned constant input of the first layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, count: int) -> Tensor:
        """Repeat the constant, (count, C, 4, 4)."""
        rows = self.input.expand(count, -1, -1, -1)
        return rows.contiguous(memory_format=torch.channels_last)


class _NoiseStrength(nn.Module):
    """Learned noise strength of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class _Bias(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class _StoredNoise(nn.Module):
    """Noise maps of all layers, stored as ``noise_0`` and so on."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        for number in range(1, layers + 1):
            side = layer_side(number)
            self.register_buffer(f"noise_{number - 1}", torch.randn(1, 1, side, side))


class _StyledConv(nn.Module):
    """Modulated convolution, noise, bias and activation."""

    def __init__(self, inputs: int, outputs: int, style_dim: int, *, up: bool) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, style_dim, "up" if up else None)
        self.noise = _NoiseStrength()
        self.activate = _Bias(outputs)

    def forward(self, features: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        """Map features (B, inputs, H, W), styles (B, D) and a noise map to (B, outputs, H', W')."""
        convolved, demodulation = self.conv.convolve(features, style)
        scaled = None if noise is None else noise * self.noise.weight
        return shift_and_activate(convolved, demodulation, self.activate.bias, scaled)


class _ToRGB(nn.Module):
    """RGB layer whose output is added to the upsampled RGB of the lower resolution."""

    def __init__(self, inputs: int, style_dim: int, *, up: bool) -> None:
        super().__init__()
        if up:
            self.upsample = Filter((2, 1), gain=4, up=2)
        self.conv = ModulatedRGB(inputs, style_dim)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, features: Tensor, style: Tensor, below: Tensor | None) -> Tensor:
        """Compute RGB (B, 3, H, W) from features, styles (B, D) and lower RGB (B, 3, H/2, W/2)."""
        colors: Tensor = self.conv(features, style) + self.bias.to(features.dtype)
        return colors if below is None else colors + self.upsample(below)
