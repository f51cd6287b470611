"""Align faces to a template and cut them out, batched over images of different sizes.

Pixel centers are at whole numbers. A matrix (2, 3) maps homogeneous pixels of the image to pixels
of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.errors import ImageError
from facezoo.hub.card import Preprocessing
from facezoo.landmarks import similarity_transform
from facezoo.preprocess.templates import template_points
from facezoo.results import Faces

_MAX_SAMPLES = 4  # per axis and output pixel; larger images are box-reduced first
# Samples that are processed at once: they fit a processor's cache, or fill a GPU.
_SAMPLES_ON_CPU, _SAMPLES_ELSEWHERE = 1 << 17, 1 << 22


def prepare(images: Sequence[Tensor], faces: Faces, preprocessing: Preprocessing) -> Tensor:
    """Cut faces out of their images, aligned to the template and normalized.

    Autocast and the default dtype do not change the crops.

    Args:
        images: uint8 RGB, each (H, W, 3).
        faces: faces of these images, without NaN rows.
        preprocessing: template, size and normalization.

    Returns:
        (F, 3, S, S).
    """
    target = template_points(preprocessing.template, preprocessing.size)
    with torch.autocast(faces.landmarks.device.type, enabled=False):
        matrices = similarity_transform(faces.landmarks, target)
        # Without a name for the crops, their memory is free when they are normalized.
        return normalize(
            align(images, faces.image_index, matrices, preprocessing.size), preprocessing
        )


def prepare_aligned(
    images: Sequence[Tensor], preprocessing: Preprocessing, names: Sequence[str] | None = None
) -> Tensor:
    """Resize crops that show the template already to the network's size and normalize them.

    Args:
        images: uint8 RGB, each (H, H, 3).
        preprocessing: template, size and normalization.
        names: names of the crops for an error.

    Returns:
        (F, 3, S, S).

    Raises:
        ImageError: if a crop is not square.
    """
    size = (preprocessing.size, preprocessing.size)
    crops = []
    for index, image in enumerate(images):
        if image.shape[0] != image.shape[1]:
            name = names[index] if names else f"image {index}"
            raise ImageError(
                f"{name} is {image.shape[1]} x {image.shape[0]}, but aligned=True expects "
                f"square crops in the template {preprocessing.template!r}; leave out aligned for "
                "whole images"
            )
        crop = image.permute(2, 0, 1)[None].float()
        if image.shape[0] != preprocessing.size:
            crop = F.interpolate(crop, size=size, mode="bilinear", antialias=True)
        crops.append(crop)
    return normalize(torch.cat(crops), preprocessing)


def normalize(crops: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Map pixels in [0, 255] to the network's range, (F, 3, S, S).

    From 8 crops on, the result is channels last in memory, which convolutions are faster with.
    Fewer are contiguous like the weights: to reorder the weights would cost more than it gains.
    """
    mean = crops.new_tensor(preprocessing.mean)[:, None, None]
    std = crops.new_tensor(preprocessing.std)[:, None, None]
    crops = (crops / 255).sub_(mean).div_(std)
    many = len(crops) >= 8
    return crops.contiguous(memory_format=torch.channels_last if many else torch.contiguous_format)


def align(images: Sequence[Tensor], image_index: Tensor, matrices: Tensor, size: int) -> Tensor:
    """Cut aligned crops out of images of any sizes, without aliasing.

    Each output pixel is the mean of bilinear samples spread over its footprint, at most one source
    pixel apart, so a face of 3,000 pixels shrinks as cleanly as one of 100. Pixels outside the
    image are black.

    Args:
        images: uint8 RGB, each (H, W, 3), all on one device.
        image_index: image of each crop, (F,).
        matrices: image pixels to crop pixels, similarities, (F, 2, 3).
        size: side S of the crops, pixels.

    Returns:
        Crops in [0, 255], float32, (F, 3, S, S).

    Raises:
        ValueError: if an image is not uint8 (H, W, 3).
    """
    for image in images:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"align expects uint8 images (H, W, 3), got {image.dtype} {tuple(image.shape)}"
            )
    device = images[0].device if images else matrices.device
    crops = torch.empty(len(matrices), 3, size, size, dtype=torch.float32, device=device)
    matrices, image_index = matrices.cpu().double(), image_index.cpu()
    linear = torch.linalg.inv(matrices[..., :2])
    inverse = torch.cat([linear, -linear @ matrices[..., 2:]], -1)
    # The scale of a similarity is the square root of its determinant.
    shrink = torch.linalg.det(linear).abs().sqrt()
    factors = (shrink / _MAX_SAMPLES * 2).int().where(shrink > _MAX_SAMPLES, 1).clamp(min=1)
    samples = torch.ceil(shrink / factors - 1e-6).int().clamp(min=1)
    shapes = [image.shape[1::-1] for image in images]
    limits = torch.tensor(shapes, dtype=torch.long, device="cpu").view(-1, 2)[image_index]
    parts = _parts(inverse, size, limits, factors)
    # Pixel centers are at whole numbers in the image and in its reduced part.
    inverse[..., 2] += 0.5 - parts[:, :2].to(inverse)
    inverse /= factors[:, None, None]
    inverse[..., 2] -= 0.5
    places = torch.cat([image_index[:, None], parts, factors[:, None]], 1)
    at_once = _SAMPLES_ON_CPU if device.type == "cpu" else _SAMPLES_ELSEWHERE
    for count in samples.unique().tolist():
        members = (samples == count).nonzero()[:, 0]
        for some in members.split(max(1, at_once // size**2)):
            pixels = _cut(images, places[some].tolist())
            crops[some.to(device)] = _sample(pixels, inverse[some], size, count)
    return crops


def _parts(inverse: Tensor, size: int, limits: Tensor, factors: Tensor) -> Tensor:
    """Return the parts of images that crops see: x0, y0, x1, y1, pixels, with a margin, (F, 4).

    They begin in the image at a multiple of the factor, and have a pixel of it at least.

    Args:
        inverse: crop pixels to image pixels, (F, 2, 3).
        size: side of the crops, pixels.
        limits: width and height of the image of each crop, (F, 2).
        factors: by which the parts will be reduced, (F,).
    """
    corners = inverse.new_tensor([[-1, -1, 1], [size, -1, 1], [-1, size, 1], [size, size, 1]])
    points = (corners @ inverse.transpose(1, 2)).clamp(-(2**30), 2**30)  # (F, 4, 2)
    # Samples lie within the corners; bilinear ones need a pixel more.
    low, high = points.amin(1).floor().long() - 1, points.amax(1).ceil().long() + 2
    low = low.minimum(limits - 1).clamp(min=0) // factors[:, None] * factors[:, None]
    return torch.cat([low, high.minimum(limits).maximum(low + 1)], 1)


def _cut(images: Sequence[Tensor], places: list[list[int]]) -> Tensor:
    """Return parts of images (H, W, 3) in one batch, (F, 3, H, W), black on the right and below.

    ``places`` are image, x0, y0, x1, y1 and factor of reduction of each crop.
    """
    parts = []
    for index, x0, y0, x1, y1, factor in places:
        part = images[index][y0:y1, x0:x1]
        if factor > 1:
            part = _shrink(part, factor)
        parts.append(part.permute(2, 0, 1))
    height, width = map(max, zip(*[part.shape[1:] for part in parts], strict=True))
    shape = len(parts), 3, height, width
    pixels = torch.zeros(shape, dtype=torch.float32, device=images[0].device)
    for target, part in zip(pixels, parts, strict=True):
        target[:, : part.shape[1], : part.shape[2]] = part
    return pixels


def _shrink(part: Tensor, factor: int) -> Tensor:
    """Average blocks of a part (H, W, 3), with black on the right and below."""
    pad_h, pad_w = -part.shape[0] % factor, -part.shape[1] % factor
    part = F.pad(part, (0, 0, 0, pad_w, 0, pad_h)) if pad_h or pad_w else part
    # Sums of integers, rows first, take a fraction of the time of avg_pool2d.
    rows = part[::factor].to(torch.int16 if factor <= 128 else torch.int32)
    for n in range(1, factor):
        rows += part[n::factor]
    part = rows[:, ::factor].float()
    for n in range(1, factor):
        part += rows[:, n::factor]
    return (part / factor**2).round_()


def _sample(pixels: Tensor, inverse: Tensor, size: int, samples: int) -> Tensor:
    """Average bilinear samples of parts (F, 3, H, W), (F, 3, size, size); black outside of them."""
    # grid_sample counts from -1 to 1 between the outer edges of the pixels.
    extent = inverse.new_tensor(pixels.shape[:1:-1])
    matrices = inverse * (2 / extent)[:, None]
    matrices[..., 2] += 1 / extent - 1
    scaled = matrices.float().to(pixels.device)[:, None, None]  # (F, 1, 1, 2, 3)
    steps = torch.arange(size, dtype=torch.float32, device=pixels.device)
    grid = scaled[..., 0] * steps[:, None] + (
        scaled[..., 1] * steps[:, None, None] + scaled[..., 2]
    )
    total = pixels.new_zeros(len(pixels), 3, size, size)
    for y, x in product(range(samples), repeat=2):
        shift_x, shift_y = (x + 0.5) / samples - 0.5, (y + 0.5) / samples - 0.5
        shifted = grid + (scaled[..., 0] * shift_x + scaled[..., 1] * shift_y)
        total += F.grid_sample(pixels, shifted, align_corners=False)
    return total / samples**2
