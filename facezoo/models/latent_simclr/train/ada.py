"""Adaptive discriminator augmentation (ADA).

Source: Karras et al., "Training Generative Adversarial Networks with Limited Data", NeurIPS 2020,
Sec. 3 and App. B. Implemented groups: flips, geometry and color. Shifts are not limited to whole
pixels and are applied together with the geometry.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

TARGET = 0.6
"""Target of r_t, the mean sign of the logits of real images, Sec. 3."""
SHIFT = 0.125
"""Largest shift, share of the side."""
SPREAD = 0.2
"""Standard deviation of log2 scales and of brightness; App. B."""


class Strength:
    """Augmentation probability p, adapted to the overfitting of the discriminator.

    Args:
        images: number of real images over which p can rise from 0 to 1.
        start: initial p.
    """

    def __init__(self, images: int, start: float = 0.0) -> None:
        self.images, self.probability = images, start

    def update(self, logits: Tensor) -> None:
        """Update p by the logits of a batch of real images, (B, 1)."""
        overfitting = logits.detach().sign().mean().item()
        step = len(logits) / self.images
        probability = self.probability + (step if overfitting > TARGET else -step)
        self.probability = min(1.0, max(0.0, probability))


def change(images: Tensor, probability: float, generator: Generator) -> Tensor:
    """Augment images at random; differentiable.

    Args:
        images: (B, 3, S, S), around [-1, 1].
        probability: probability of each operation.
        generator: random generator.

    Returns:
        (B, 3, S, S).
    """
    if probability == 0:
        return images
    chance = _Chance(len(images), probability, generator, images.device)
    warped = _warp(images.float(), _placement(chance))
    return _recolor(warped, chance).to(memory_format=torch.channels_last)


class _Chance:
    """Random numbers per image; neutral where an operation is skipped."""

    def __init__(
        self, count: int, probability: float, generator: Generator, device: torch.device
    ) -> None:
        self.count, self.probability, self.device = count, probability, device
        self.generator = generator

    def uniform(self, reach: float) -> Tensor:
        """Sample uniformly in [-reach, reach], or 0, (B,)."""
        return self._apply_at_random(
            torch.rand(self.count, generator=self.generator) * 2 * reach - reach
        )

    def normal(self, spread: float) -> Tensor:
        """Sample normally with standard deviation ``spread``, or 0, (B,)."""
        return self._apply_at_random(torch.randn(self.count, generator=self.generator) * spread)

    def sign(self) -> Tensor:
        """Sample -1 or 1, or 1 where skipped, (B,)."""
        flips = torch.rand(self.count, generator=self.generator) < 0.5
        return 1 - 2 * self._apply_at_random(flips.float())

    def _apply_at_random(self, values: Tensor) -> Tensor:
        changed = torch.rand(self.count, generator=self.generator) < self.probability
        return torch.where(changed, values, 0.0).to(self.device)


def _placement(chance: _Chance) -> Tensor:
    """Sample the affine transform of each image in normalized coordinates, (B, 2, 3)."""
    flip = chance.sign()
    scale = torch.exp2(chance.normal(SPREAD))
    stretch = torch.exp2(chance.normal(SPREAD))
    angle = chance.uniform(math.pi)
    shift = torch.stack([chance.uniform(2 * SHIFT), chance.uniform(2 * SHIFT)], 1)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
    sides = torch.stack([flip / (scale * stretch), stretch / scale], 1)
    return torch.cat([turned * sides[:, None], shift[..., None]], 2)


def _warp(images: Tensor, placement: Tensor) -> Tensor:
    """Warp images; pixels outside are mirrored."""
    grid = F.affine_grid(placement, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _recolor(images: Tensor, chance: _Chance) -> Tensor:
    """Change brightness, contrast, lightness, hue and saturation by one matrix, App. B."""
    gray = torch.full((3,), 1 / math.sqrt(3), device=images.device)
    along = torch.outer(gray, gray)
    whole = torch.eye(3, device=images.device)
    contrast = torch.exp2(chance.normal(0.5))[:, None, None]
    lightness = (1 - chance.sign())[:, None, None]  # 0 or 2
    saturation = torch.exp2(chance.normal(1.0))[:, None, None]
    matrix = contrast * whole
    matrix = (whole - lightness * along) @ matrix
    matrix = _rotation(chance.uniform(math.pi), gray) @ matrix
    matrix = (along + saturation * (whole - along)) @ matrix
    shift = chance.normal(SPREAD)[:, None, None, None]
    return torch.einsum("bij,bjhw->bihw", matrix, images + shift)


def _rotation(angle: Tensor, axis: Tensor) -> Tensor:
    """Compute rotations about an axis (3,) by angles (B,), Rodrigues' formula, (B, 3, 3)."""
    x, y, z = axis.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], device=axis.device)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return (
        torch.eye(3, device=axis.device) * cos + sin * cross + (1 - cos) * torch.outer(axis, axis)
    )
