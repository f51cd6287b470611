"""Random changes to aligned crops that keep identity and expression."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


def augment(
    canvases: Tensor,
    size: int,
    generator: Generator,
    *,
    zoom: float = 1.0,
    rotation_deg: float = 10.0,
    scaling: float = 0.08,
    shift: float = 0.04,
    color: float = 0.3,
    gray: float = 0.2,
    blur: float = 0.2,
    erase: float = 0.25,
    patch: float = 0.0,
    noise: float = 0.0,
    jpeg: float = 0.0,
    theta: Tensor | None = None,
) -> Tensor:
    """Shift, turn, scale, mirror, relight, blur and partly cover crops; crop and normalize them.

    Args:
        canvases: crops with a margin around the template, uint8, (B, 1 or 3, H, H).
        size: side S of the result, pixels.
        zoom: the template's share of the canvas side; a crop without changes is the template.
        rotation_deg: largest rotation; angles are uniform.
        scaling: standard deviation of the logarithm of the scale, cut at two.
        shift: largest shift as a share of the crop's side.
        color: brightness and contrast vary by up to this factor, channel gains by a quarter of it.
        gray: share of the crops that lose their color.
        blur: share of the crops that are reduced and enlarged again.
        erase: share of the crops in which a rectangle is covered by one gray.
        patch: share of the crops in which a rectangle is covered by a part of another crop.
        noise: share of the crops that get Gaussian noise.
        theta: similarities from ``random_similarity`` to use, (B, 2, 3); None draws them.
        jpeg: share of the crops that are quantized as JPEG does; needs a side divisible by 8.

    Returns:
        Normalized to [-1, 1], (B, 3, S, S).
    """
    count = len(canvases)
    chance = _Chance(generator, count)
    if theta is None:
        theta = random_similarity(count, generator, zoom, rotation_deg, scaling, shift)
    channels = canvases.shape[1]
    grid = F.affine_grid(theta, [count, channels, size, size], align_corners=False)
    images = F.grid_sample(canvases.float() / 255, grid, padding_mode="border", align_corners=False)
    images = _blur(images, chance.uniform() < blur, chance).expand(-1, 3, -1, -1)
    if channels == 3:
        pale = images.mean(1, keepdim=True)
        images = torch.where((chance.uniform() < gray)[:, None, None, None], pale, images)
        gains = 1 + color / 4 * (2 * torch.rand(count, 3, generator=generator) - 1)
        images = images * gains[:, :, None, None]
    mean = images.mean((1, 2, 3), keepdim=True)
    contrast, brightness = (
        1 + color * chance.uniform(-1, 1)[:, None, None, None] for _ in range(2)
    )
    images = ((images - mean) * contrast + mean * brightness).clamp(0, 1) * 2 - 1
    if patch:
        images = _cover(images, images.roll(1, 0), chance.uniform() < patch, chance)
    gray_fill = torch.randn(count, 1, 1, 1, generator=generator) * 0.5
    images = _cover(images, gray_fill, chance.uniform() < erase, chance)
    if noise:
        images = _noise(images, chance.uniform() < noise, chance, generator)
    return _jpeg(images, chance.uniform() < jpeg, chance) if jpeg else images


def random_similarity(
    count: int,
    generator: Generator,
    zoom: float = 1.0,
    rotation_deg: float = 10.0,
    scaling: float = 0.08,
    shift: float = 0.04,
) -> Tensor:
    """Sample rotations, scales, shifts and mirrorings of the crops of ``augment``.

    Returns:
        Matrices from the result to the canvas, both with coordinates in [-1, 1], (B, 2, 3).
    """
    chance = _Chance(generator, count)
    angle = chance.uniform(-1, 1) * math.radians(rotation_deg)
    scale = zoom * torch.exp(scaling * chance.normal().clamp(-2, 2))
    mirror = torch.where(chance.uniform() < 0.5, -1.0, 1.0)
    cosine, sine = scale * torch.cos(angle), scale * torch.sin(angle)
    x, y = (chance.uniform(-1, 1) * 2 * shift * zoom for _ in range(2))
    return torch.stack(
        [torch.stack([cosine * mirror, -sine, x], -1), torch.stack([sine * mirror, cosine, y], -1)],
        dim=1,
    )


def move_landmarks(landmarks: Tensor, theta: Tensor, canvas: int, size: int) -> Tensor:
    """Return the places of landmarks after ``augment``.

    The subject's left and right change places in mirrored crops.

    Args:
        landmarks: five points in pixels of the canvas, (B, 5, 2).
        theta: matrices of ``random_similarity``, (B, 2, 3).
        canvas: side of the canvas, pixels.
        size: side of the result, pixels.

    Returns:
        Pixels of the result, (B, 5, 2).
    """
    places = (landmarks + 0.5) / canvas * 2 - 1 - theta[:, None, :, 2]
    moved = torch.linalg.solve(theta[:, :, :2], places.mT).mT
    mirrored = torch.linalg.det(theta[:, :, :2]) < 0
    moved = torch.where(mirrored[:, None, None], moved[:, [1, 0, 2, 4, 3]], moved)
    return (moved + 1) / 2 * size - 0.5


def center_crop(canvases: Tensor, size: int, margin: int) -> Tensor:
    """Crop the template without augmentation, normalized to [-1, 1], (B, 3, S, S)."""
    crops = canvases[..., margin:-margin, margin:-margin] if margin else canvases
    crops = crops.float() / 127.5 - 1
    if crops.shape[-1] != size:
        crops = F.interpolate(crops, size=(size, size), mode="bilinear", antialias=True)
    return crops.expand(-1, 3, -1, -1)


class _Chance:
    """Random numbers, one per row of a batch."""

    def __init__(self, generator: Generator, count: int) -> None:
        self.generator = generator
        self.count = count

    def uniform(self, low: float = 0, high: float = 1) -> Tensor:
        return low + (high - low) * torch.rand(self.count, generator=self.generator)

    def normal(self) -> Tensor:
        return torch.randn(self.count, generator=self.generator)


def _blur(images: Tensor, mask: Tensor, chance: _Chance) -> Tensor:
    """Reduce the masked rows to between a quarter and two thirds and enlarge them again."""
    rows = mask.nonzero()[:, 0]
    if not len(rows):
        return images
    size = images.shape[-1]
    small = int(size * float(chance.uniform(0.25, 0.67)[0]))
    reduced = F.interpolate(images[rows], size=(small, small), mode="bilinear", antialias=True)
    blurred = F.interpolate(reduced, size=(size, size), mode="bilinear")
    return images.index_copy(0, rows, blurred)


def _cover(images: Tensor, fill: Tensor, mask: Tensor, chance: _Chance) -> Tensor:
    """Cover a random rectangle of the masked rows with the same part of ``fill``."""
    size = images.shape[-1]
    height, width = (chance.uniform(0.1, 0.4) for _ in range(2))
    top, left = chance.uniform() * (1 - height), chance.uniform() * (1 - width)
    position = (torch.arange(size) + 0.5) / size
    rows = (position >= top[:, None]) & (position < (top + height)[:, None])
    columns = (position >= left[:, None]) & (position < (left + width)[:, None])
    hidden = rows[:, None, :, None] & columns[:, None, None, :] & mask[:, None, None, None]
    return torch.where(hidden, fill, images)


def _noise(images: Tensor, mask: Tensor, chance: _Chance, generator: Generator) -> Tensor:
    """Add Gaussian noise of up to a tenth of the range to the masked rows."""
    rows = mask.nonzero()[:, 0]
    if not len(rows):
        return images
    strength = chance.uniform(0.02, 0.2)[rows, None, None, None]
    grain = torch.randn(images[rows].shape, generator=generator) * strength
    return images.index_copy(0, rows, (images[rows] + grain).clamp(-1, 1))


def _jpeg(images: Tensor, mask: Tensor, chance: _Chance) -> Tensor:
    """Round the cosine coefficients of 8x8 blocks of the masked rows, as JPEG does.

    The step of a coefficient grows with its frequency; colors are not subsampled.
    """
    rows = mask.nonzero()[:, 0]
    if not len(rows):
        return images
    count, channels, height, width = images[rows].shape
    blocks = images[rows].reshape(count, channels, height // 8, 8, width // 8, 8)
    frequency = torch.arange(8.0)
    basis = torch.cos((2 * frequency + 1) * frequency[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    step = chance.uniform(0.02, 0.12)[rows, None, None, None, None, None]
    step = step * (1 + frequency[:, None, None] + frequency)  # (n, 1, 1, 8, 1, 8)
    coefficients = torch.einsum("ui,ncyixj,vj->ncyuxv", basis, blocks, basis)
    rounded = (coefficients / step).round() * step
    blocks = torch.einsum("ui,ncyuxv,vj->ncyixj", basis, rounded, basis)
    return images.index_copy(0, rows, blocks.reshape(count, channels, height, width).clamp(-1, 1))
