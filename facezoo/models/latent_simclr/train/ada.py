"""Adaptive discriminator augmentation: changes that only the discriminator sees.

Source: Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020,
Sec. 3 and App. B. Of its groups, these are here: flips, geometry, colours. Shifts are not of whole
pixels, as there, but of any length, and are read from the image together with the geometry.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

TARGET = 0.6
"""Share of real images with a positive logit, less those with a negative one: r_t of Sec. 3."""
SHIFT = 0.125
"""Largest shift, share of the side."""
SPREAD = 0.2
"""Of the logarithms (base 2) of scales, and of brightness; App. B."""


class Strength:
    """The probability p with which every change is made, led by how well D knows the real images.

    Args:
        images: real images that it takes p to go from 0 to 1.
        start: p at the beginning.
    """

    def __init__(self, images: int, start: float = 0.0) -> None:
        self.images, self.probability = images, start

    def update(self, logits: Tensor) -> None:
        """Move p by what D said of a batch of real images, (B, 1)."""
        known = logits.detach().sign().mean().item()
        step = len(logits) / self.images
        moved = self.probability + (step if known > TARGET else -step)
        self.probability = min(1.0, max(0.0, moved))


def change(images: Tensor, probability: float, draw: Generator) -> Tensor:
    """Images, each changed at random; differentiable.

    Args:
        images: (B, 3, S, S), around [-1, 1].
        probability: of every single change.
        draw: chance.

    Returns:
        (B, 3, S, S).
    """
    if probability == 0:
        return images
    chance = _Chance(len(images), probability, draw, images.device)
    placed = _sampled(images.float(), _placement(chance))
    return _coloured(placed, chance).to(memory_format=torch.channels_last)


class _Chance:
    """Numbers for every image of a batch, which are neutral where no change is made."""

    def __init__(
        self, count: int, probability: float, draw: Generator, device: torch.device
    ) -> None:
        self.count, self.probability, self.draw, self.device = count, probability, draw, device

    def uniform(self, reach: float) -> Tensor:
        """Within plus or minus ``reach``, or 0, (B,)."""
        return self._kept(torch.rand(self.count, generator=self.draw) * 2 * reach - reach)

    def normal(self, spread: float) -> Tensor:
        """Normal with a standard deviation, or 0, (B,)."""
        return self._kept(torch.randn(self.count, generator=self.draw) * spread)

    def sign(self) -> Tensor:
        """Minus one for half of those that are changed, or 1, (B,)."""
        flips = torch.rand(self.count, generator=self.draw) < 0.5
        return 1 - 2 * self._kept(flips.float())

    def _kept(self, values: Tensor) -> Tensor:
        changed = torch.rand(self.count, generator=self.draw) < self.probability
        return torch.where(changed, values, 0.0).to(self.device)


def _placement(chance: _Chance) -> Tensor:
    """Where each image is read: rows of x and y in the square of side 2, (B, 2, 3)."""
    flip = chance.sign()
    scale = torch.exp2(chance.normal(SPREAD))
    stretch = torch.exp2(chance.normal(SPREAD))
    angle = chance.uniform(math.pi)
    shift = torch.stack([chance.uniform(2 * SHIFT), chance.uniform(2 * SHIFT)], 1)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    sides = torch.stack([flip / (scale * stretch), stretch / scale], 1)
    return torch.cat([turned * sides[:, None], shift[..., None]], 2)


def _sampled(images: Tensor, placement: Tensor) -> Tensor:
    """Images read through a grid; beyond the border they are mirrored."""
    grid = F.affine_grid(placement, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _coloured(images: Tensor, chance: _Chance) -> Tensor:
    """Brightness, contrast, inverted lightness, hue and saturation, as one matrix, App. B."""
    grey = torch.full((3,), 1 / math.sqrt(3), device=images.device)
    along = torch.outer(grey, grey)
    whole = torch.eye(3, device=images.device)
    contrast = torch.exp2(chance.normal(0.5))[:, None, None]
    lightness = (1 - chance.sign())[:, None, None]  # 0 or 2
    saturation = torch.exp2(chance.normal(1.0))[:, None, None]
    matrix = contrast * whole
    matrix = (whole - lightness * along) @ matrix
    matrix = _turned(chance.uniform(math.pi), grey) @ matrix
    matrix = (along + saturation * (whole - along)) @ matrix
    shift = chance.normal(SPREAD)[:, None, None, None]
    return torch.einsum("bij,bjhw->bihw", matrix, images + shift)


def _turned(angle: Tensor, axis: Tensor) -> Tensor:
    """Rotations about an axis (3,) by angles (B,), Rodrigues' formula, (B, 3, 3)."""
    x, y, z = axis.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], device=axis.device)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return (
        torch.eye(3, device=axis.device) * cos + sin * cross + (1 - cos) * torch.outer(axis, axis)
    )
