"""The StyleGAN2 generator.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020. State
dicts have the names and shapes of the widespread PyTorch layout, so that published generators load.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from einops import repeat
from torch import Generator, Tensor, nn

from facezoo.models.latent_simclr.layers import (
    EqualLinear,
    Filter,
    PixelNorm,
    shift_and_activate,
)
from facezoo.models.latent_simclr.modulation import ModulatedConv2d, ModulatedRGB

Noise = Sequence[Tensor]
"""One map for every layer, (1, 1, H, W) or (B, 1, H, W)."""


@dataclass(frozen=True)
class Synthesis:
    """What a generator gave.

    Attributes:
        images: (B, 3, S, S), around [-1, 1] and not clamped.
        features: outputs of the layers that were asked for, by number, (B, C, H, H).
    """

    images: Tensor
    features: dict[int, Tensor]


class StyleGANGenerator(nn.Module):
    """The generator of StyleGAN2 with skip connections to the colours, Sec. 4.1.

    Its layers are numbered from 1: layer k is the k-th styled convolution, and reads code k - 1 of
    W+ (counted from 0). Colours are read after layers 1, 3, 5 and so on, with code k. A generator
    of size S has L = 2 log2(S) - 2 codes and L - 1 layers; layer k has side 4 * 2 ** (k // 2).

    Args:
        size: side S of the images, a power of 2 from 8 on, pixels.
        style_dim: D of z, w and every code of W+.
        mapping_layers: depth of the mapping network.
        channel_multiplier: factor on the channels, which are this times 16384 divided by the side
            of the layer; 2 in the paper's large configuration.
        max_channels: most channels of a layer.

    Raises:
        ValueError: if the size is not a power of 2, or smaller than 8.
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
        colours = [_ToRGB(width, style_dim, up=k > 0) for k, width in enumerate(self.channels[::2])]
        self.conv1, self.to_rgb1 = layers[0], colours[0]
        self.convs, self.to_rgbs = nn.ModuleList(layers[1:]), nn.ModuleList(colours[1:])
        self.noises = _StoredNoise(self.num_layers)

    def map(self, z: Tensor, psi: float = 1.0, centre: Tensor | None = None) -> Tensor:
        """Codes of W from normal noise, drawn towards their centre by the truncation trick.

        Args:
            z: (B, D).
            psi: 1 leaves codes as they are, 0 gives the centre itself.
            centre: mean of W, as ``mean_code`` gives it, (D,) or (1, D); needed where psi is not 1.

        Returns:
            w, (B, D).

        Raises:
            ValueError: if psi is not 1 and there is no centre.
        """
        codes: Tensor = self.style(z)
        if psi == 1:
            return codes
        if centre is None:
            raise ValueError(
                f"psi={psi} draws codes towards the centre of W and none was given; pass "
                "centre=generator.mean_code(10_000)"
            )
        return centre + psi * (codes - centre)

    @torch.no_grad()
    def mean_code(self, count: int, generator: Generator | None = None) -> Tensor:
        """Mean of the codes of ``count`` random z, (D,)."""
        total = torch.zeros(self.style_dim, device=self.input.input.device)
        for begin in range(0, count, 4096):
            rows = min(4096, count - begin)
            z = _normal((rows, self.style_dim), self.input.input, generator)
            total += self.style(z).float().sum(0)
        return (total / count).to(self.input.input.dtype)

    def stored_noise(self) -> list[Tensor]:
        """The noise maps that are part of the checkpoint, one for every layer, (1, 1, H, H)."""
        return [getattr(self.noises, f"noise_{k}") for k in range(self.num_layers)]

    def draw_noise(self, count: int, generator: Generator | None = None) -> list[Tensor]:
        """Random noise maps, one for every layer, (count, 1, H, H)."""
        sides = [layer_side(k) for k in range(1, self.num_layers + 1)]
        return [_normal((count, 1, s, s), self.input.input, generator) for s in sides]

    def forward(
        self,
        codes: Tensor,
        noise: Noise | None = None,
        replace: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Images of codes, (B, 3, S, S); see ``synthesize``."""
        return self.synthesize(codes, noise, replace).images

    def synthesize(
        self,
        codes: Tensor,
        noise: Noise | None = None,
        replace: Mapping[int, Tensor] | None = None,
        read: Collection[int] = (),
    ) -> Synthesis:
        """Images of codes, and the features behind them, keeping gradients.

        Args:
            codes: of W, (B, D), or of W+, (B, L, D).
            noise: ``stored_noise()``, ``draw_noise(B)`` or maps of your own; None for no noise.
            replace: features that stand in for the outputs of layers, by the layer's number.
            read: numbers of the layers whose outputs are wanted.

        Returns:
            Images and features.

        Raises:
            ValueError: if a shape or a layer's number does not fit the generator.
        """
        self._check_layers(read)
        features = {}
        for number, feature, colours in self._layers(codes, noise, replace or {}):
            images = colours
            if number in read:
                features[number] = feature
        return Synthesis(images, features)

    def features(self, codes: Tensor, layer: int, noise: Noise | None = None) -> Tensor:
        """Output of one layer, (B, C, H, H); what comes after it is not computed.

        Raises:
            ValueError: if a shape or the layer's number does not fit the generator.
        """
        self._check_layers([layer])
        for number, feature, _ in self._layers(codes, noise, {}):
            if number == layer:
                return feature
        raise AssertionError

    def feature_shape(self, layer: int) -> tuple[int, int, int]:
        """Channels, height and width of what a layer gives.

        Raises:
            ValueError: if there is no such layer.
        """
        self._check_layers([layer])
        return self.channels[layer - 1], layer_side(layer), layer_side(layer)

    def _layers(
        self, codes: Tensor, noise: Noise | None, replace: Mapping[int, Tensor]
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Number, output and the colours so far, layer by layer."""
        w_plus = self._as_w_plus(codes)
        self._check_replaced(replace, len(w_plus))
        if noise is not None and len(noise) != self.num_layers:
            raise ValueError(
                f"noise must hold {self.num_layers} maps, one for every layer, got {len(noise)}; "
                "draw_noise() gives such maps"
            )
        feature: Tensor = self.input(len(w_plus))
        colours: Tensor | None = None
        for number, layer in enumerate([self.conv1, *self.convs], 1):
            if number in replace:
                feature = replace[number].contiguous(memory_format=torch.channels_last)
            else:
                map_ = None if noise is None else noise[number - 1]
                feature = layer(feature, w_plus[:, number - 1], map_)
            if number % 2:
                to_rgb = self.to_rgb1 if number == 1 else self.to_rgbs[number // 2 - 1]
                colours = to_rgb(feature, w_plus[:, number], colours)
            assert colours is not None
            yield number, feature, colours

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
            wanted = (count, *self.feature_shape(number))
            if tuple(feature.shape) != wanted:
                raise ValueError(
                    f"the feature that replaces layer {number} must be {wanted}, got "
                    f"{tuple(feature.shape)}"
                )


def mix_codes(first: Tensor, second: Tensor, start: int) -> Tensor:
    """Codes of W+ with the styles of one before ``start`` and of another from there on.

    Args:
        first: coarse styles, (B, L, D).
        second: fine styles, (B, L, D).
        start: number of styles that come from ``first``.

    Returns:
        (B, L, D).
    """
    return torch.cat([first[:, :start], second[:, start:]], dim=1)


def check_size(size: int) -> int:
    """The side of the images, if StyleGAN2 can have it.

    Raises:
        ValueError: if it is not a power of 2, or smaller than 8.
    """
    if size < 8 or size & (size - 1):
        raise ValueError(f"size must be a power of 2 from 8 on, such as 64 or 1024, got {size}")
    return size


def channels_at(side: int, multiplier: float, most: int) -> int:
    """Channels of layers whose features have this side."""
    return min(most, int(16384 * multiplier) // side)


def layer_side(number: int) -> int:
    """Height and width of what layer ``number``, counted from 1, gives."""
    return 4 * 2 ** (number // 2)


def _normal(shape: tuple[int, ...], like: Tensor, generator: Generator | None = None) -> Tensor:
    """Normal noise of a generator's own device, moved to where it is needed."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device).to(like)


class _Constant(nn.Module):
    """The learnt input of the first layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, count: int) -> Tensor:
        """(count, C, 4, 4)."""
        rows = self.input.expand(count, -1, -1, -1)
        return rows.contiguous(memory_format=torch.channels_last)


class _NoiseStrength(nn.Module):
    """The learnt strength of a layer's noise."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class _Bias(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))


class _StoredNoise(nn.Module):
    """One noise map for every layer, stored as ``noise_0`` and so on."""

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
        """(B, outputs, H', W') of features (B, inputs, H, W), styles (B, D) and a noise map."""
        convolved, demodulation = self.conv.convolve(features, style)
        scaled = None if noise is None else noise * self.noise.weight
        return shift_and_activate(convolved, demodulation, self.activate.bias, scaled)


class _ToRGB(nn.Module):
    """Colours of a feature, added to those of the resolution below."""

    def __init__(self, inputs: int, style_dim: int, *, up: bool) -> None:
        super().__init__()
        if up:
            self.upsample = Filter((2, 1), gain=4, up=2)
        self.conv = ModulatedRGB(inputs, style_dim)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, features: Tensor, style: Tensor, below: Tensor | None) -> Tensor:
        """(B, 3, H, W) of features (B, C, H, W), styles (B, D) and colours (B, 3, H/2, W/2)."""
        colours: Tensor = self.conv(features, style) + self.bias.to(features.dtype)
        return colours if below is None else colours + self.upsample(below)
