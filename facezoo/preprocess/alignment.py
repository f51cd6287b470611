"""Align faces to a template and cut them out, batched over images of different sizes.

Pixel centers are at whole numbers. A matrix (2, 3) maps homogeneous pixels of the image to pixels
of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import ceil

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from facezoo.errors import ImageError
from facezoo.hub.card import Preprocessing
from facezoo.preprocess.templates import template_points
from facezoo.results import Faces

_MAX_SAMPLES = 4  # per axis and output pixel; larger images are box-reduced first
_FRAME = 2  # pixels of black around an image: both columns of a sample may lie outside
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
        crops = align(images, faces.image_index, matrices, preprocessing.size)
        return normalize(crops, preprocessing)


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
    normalized = (crops / 255 - mean) / std
    many = len(crops) >= 8
    return normalized.contiguous(
        memory_format=torch.channels_last if many else torch.contiguous_format
    )


def similarity_transform(source: Tensor, target: Tensor) -> Tensor:
    """Fit the least-squares similarity from one set of points to another.

    Rotation, uniform scale and translation, never a reflection. Source: Umeyama, "Least-squares
    estimation of transformation parameters between two point patterns", PAMI 1991, eq. (40)-(43).

    Args:
        source: points x, y, (F, P, 2).
        target: points x, y, (P, 2) or (F, P, 2).

    Returns:
        Matrices, the dtype of ``source``, (F, 2, 3).

    Raises:
        ValueError: on other shapes, points that are not finite, or points that all coincide.
    """
    if source.ndim != 3 or source.shape[-1] != 2 or target.shape[-2:] != source.shape[-2:]:
        raise ValueError(
            "similarity_transform expects source (F, P, 2) and target (P, 2) or (F, P, 2), got "
            f"{tuple(source.shape)} and {tuple(target.shape)}"
        )
    # Some devices have no double precision, and the work is too small to need a device.
    x = source.detach().cpu().double()
    y = target.detach().cpu().double().expand_as(x)
    if not bool(torch.isfinite(x).all() & torch.isfinite(y).all()):
        raise ValueError(
            "similarity_transform got points that are NaN or infinite; drop them first"
        )
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    x_centered, y_centered = x - x_mean, y - y_mean
    spread = x_centered.square().sum((1, 2))
    if bool((spread <= 1e-12).any()):
        raise ValueError("similarity_transform got points that all coincide; scale is undefined")
    # In the plane the rotation that maximizes the correlation has a closed form without an SVD.
    a = (x_centered * y_centered).sum((1, 2))
    b = (x_centered[..., 0] * y_centered[..., 1] - x_centered[..., 1] * y_centered[..., 0]).sum(1)
    cosine, sine = a / spread, b / spread  # both times the scale
    linear = torch.stack(
        [torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], dim=-2
    )
    shift = y_mean[:, 0] - torch.einsum("fij,fj->fi", linear, x_mean[:, 0])
    return torch.cat([linear, shift[..., None]], -1).to(source)


def align(images: Sequence[Tensor], image_index: Tensor, matrices: Tensor, size: int) -> Tensor:
    """Cut aligned crops out of images of any sizes, without aliasing.

    Each output pixel is the mean of bilinear samples spread over its footprint, at most one source
    pixel apart, so a face of 3,000 pixels shrinks as cleanly as one of 100. Pixels outside the
    image are black. One gather samples all crops from the pixels of all images.

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
    matrices = matrices.cpu().double()
    linear = torch.linalg.inv(matrices[..., :2])
    inverse = torch.cat([linear, -linear @ matrices[..., 2:]], -1)
    # The scale of a similarity is the square root of its determinant.
    shrink = torch.linalg.det(linear).abs().sqrt().tolist()
    groups: dict[int, list[int]] = {}
    reduced: list[tuple[Tensor, Tensor]] = []
    for face, (index, ratio) in enumerate(zip(image_index.tolist(), shrink, strict=True)):
        factor = max(1, int(ratio / _MAX_SAMPLES * 2)) if ratio > _MAX_SAMPLES else 1
        source = images[index], inverse[face]
        reduced.append(source if factor == 1 else _reduce(*source, factor))
        groups.setdefault(max(1, ceil(ratio / factor - 1e-6)), []).append(face)
    for samples, members in groups.items():
        crops[members] = _gather([reduced[m] for m in members], size, samples)
    return crops


def _reduce(image: Tensor, inverse: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Shrink an image by whole blocks and adapt its crop-to-image matrix."""
    pixels = rearrange(image, "h w c -> 1 c h w").float()
    pad_h, pad_w = -pixels.shape[2] % factor, -pixels.shape[3] % factor
    pixels = F.avg_pool2d(F.pad(pixels, (0, pad_w, 0, pad_h)), factor)
    scaled = inverse.clone() / factor
    scaled[:, 2] += 0.5 / factor - 0.5  # pixel centers at whole numbers in both
    return rearrange(pixels[0], "c h w -> h w c").round().to(torch.uint8), scaled


def _gather(crops: list[tuple[Tensor, Tensor]], size: int, samples: int) -> Tensor:
    """Average bilinear samples of many images at once to (F, 3, size, size)."""
    device = crops[0][0].device
    flat, offsets = _concatenate([image for image, _ in crops])
    out = torch.empty(len(crops), 3, size, size, dtype=torch.float32, device=device)
    at_once = _SAMPLES_ON_CPU if device.type == "cpu" else _SAMPLES_ELSEWHERE
    step = max(1, at_once // (size * samples) ** 2)
    grid = torch.arange(size * samples, dtype=torch.float32, device=device)
    grid = (grid + 0.5) / samples - 0.5
    for begin in range(0, len(crops), step):
        part = crops[begin : begin + step]
        matrices = torch.stack([m for _, m in part]).float().to(device)[..., None, None]
        extents = torch.tensor(
            [[offsets[id(p)], p.shape[0], p.shape[1]] for p, _ in part],
            dtype=torch.int32,
            device=device,
        )
        x = matrices[:, 0, 0] * grid + matrices[:, 0, 1] * grid[:, None] + matrices[:, 0, 2]
        y = matrices[:, 1, 0] * grid + matrices[:, 1, 1] * grid[:, None] + matrices[:, 1, 2]
        sampled = _bilinear(flat, x, y, *extents.T[:, :, None, None])
        sampled = rearrange(sampled, "c f h w -> f c h w")
        out[begin : begin + step] = F.avg_pool2d(sampled, samples) if samples > 1 else sampled
    return out


def _concatenate(images: list[Tensor]) -> tuple[Tensor, dict[int, int]]:
    """Concatenate the pixels of images in black frames of two pixels.

    Returns:
        The pixels, the four bytes of each in one int32, (P,), and the position of each image's
        pixel (0, 0), by its id.
    """
    frame = 2 * _FRAME
    images = list({id(image): image for image in images}.values())
    areas = [(image.shape[0] + frame) * (image.shape[1] + frame) for image in images]
    pixels = torch.zeros(sum(areas), 4, dtype=torch.uint8, device=images[0].device)
    offsets = {}
    for image, area, begin in zip(images, areas, accumulate(areas, initial=0), strict=False):
        height, width = image.shape[:2]
        framed = pixels[begin : begin + area].view(height + frame, width + frame, 4)
        framed[_FRAME:-_FRAME, _FRAME:-_FRAME, :3] = image
        offsets[id(image)] = begin + _FRAME * (width + frame) + _FRAME
    return pixels.view(torch.int32)[:, 0], offsets


def _bilinear(
    flat: Tensor, x: Tensor, y: Tensor, start: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """Sample the result of ``_concatenate`` bilinearly at x, y (F, H, W); black outside.

    Returns:
        Channels first, so that the innermost loop is a long one, (3, F, H, W).
    """
    x0, y0 = x.floor(), y.floor()
    fraction_x, fraction_y = x - x0, y - y0
    # Samples outside an image fall on its frame, however far away they are.
    column = torch.minimum(x0.clamp_(min=-_FRAME).int(), width)
    row = torch.minimum(y0.clamp_(min=-_FRAME).int(), height)
    line = width + 2 * _FRAME
    corner = start + row * line + column

    def at(index: Tensor) -> Tensor:
        pixels = flat.index_select(0, index.flatten()).view(torch.uint8)
        planes = rearrange(pixels.view(*index.shape, 4), "f h w c -> c f h w")
        return planes[:3].to(torch.float32, memory_format=torch.contiguous_format)

    top = torch.lerp(at(corner), at(corner + 1), fraction_x)
    corner += line
    bottom = torch.lerp(at(corner), at(corner + 1), fraction_x)
    return torch.lerp(top, bottom, fraction_y)
