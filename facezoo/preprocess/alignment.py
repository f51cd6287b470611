"""Similarity alignment of faces, batched over photographs of different sizes.

Pixel centres stand at whole numbers. A matrix (2, 3) maps homogeneous pixels of the photograph to
pixels of the crop.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import ceil

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

_MAX_SAMPLES = 4  # per axis and output pixel; photographs larger than that are box-reduced first
_FRAME = 2  # pixels of black around a photograph: both columns of a sample may lie outside
# Samples that are worked on at once: what a processor's cache holds, and what fills a GPU.
_SAMPLES_ON_CPU, _SAMPLES_ELSEWHERE = 1 << 17, 1 << 22


def similarity_transform(source: Tensor, target: Tensor) -> Tensor:
    """Least-squares similarity from one set of points to another.

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
            "similarity_transform wants source (F, P, 2) and target (P, 2) or (F, P, 2), got "
            f"{tuple(source.shape)} and {tuple(target.shape)}"
        )
    # In double precision, which not every device has, and too little work to need one.
    x = source.detach().cpu().double()
    y = target.detach().cpu().double().expand_as(x)
    if not bool(torch.isfinite(x).all() & torch.isfinite(y).all()):
        raise ValueError(
            "similarity_transform got points that are NaN or infinite; drop them first"
        )
    x_mean, y_mean = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    x_centred, y_centred = x - x_mean, y - y_mean
    spread = x_centred.square().sum((1, 2))
    if bool((spread <= 1e-12).any()):
        raise ValueError("similarity_transform got points that all coincide; scale is undefined")
    # In the plane the rotation that maximises the correlation has a closed form: no SVD needed.
    a = (x_centred * y_centred).sum((1, 2))
    b = (x_centred[..., 0] * y_centred[..., 1] - x_centred[..., 1] * y_centred[..., 0]).sum(1)
    cosine, sine = a / spread, b / spread  # both times the scale
    linear = torch.stack(
        [torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], dim=-2
    )
    shift = y_mean[:, 0] - torch.einsum("fij,fj->fi", linear, x_mean[:, 0])
    return torch.cat([linear, shift[..., None]], -1).to(source)


def invert(matrices: Tensor) -> Tensor:
    """Inverse of affine matrices, (F, 2, 3)."""
    linear = torch.linalg.inv(matrices[..., :2])
    return torch.cat([linear, -linear @ matrices[..., 2:]], -1)


def align(images: Sequence[Tensor], image_index: Tensor, matrices: Tensor, size: int) -> Tensor:
    """Cut aligned crops out of photographs of any sizes, without aliasing.

    Each output pixel is the mean of bilinear samples spread over its footprint, at most one source
    pixel apart, so a face of 3,000 pixels shrinks as cleanly as one of 100. Outside the photograph
    is black. All crops are sampled by one gather from the photographs' pixels laid end to end.

    Args:
        images: photographs, uint8 RGB, each (H, W, 3), all on one device.
        image_index: which photograph each crop is cut from, (F,).
        matrices: photograph pixels to crop pixels, similarities, (F, 2, 3).
        size: side S of the crops, pixels.

    Returns:
        Crops in [0, 255], float32, (F, 3, S, S).

    Raises:
        ValueError: if a photograph is not uint8 (H, W, 3).
    """
    for image in images:
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"align wants uint8 photographs (H, W, 3), got {image.dtype} {tuple(image.shape)}"
            )
    device = images[0].device if images else matrices.device
    crops = torch.empty(len(matrices), 3, size, size, dtype=torch.float32, device=device)
    inverse = invert(matrices.cpu().double())
    # The scale of a similarity is the square root of its determinant.
    shrink = torch.linalg.det(inverse[..., :2]).abs().sqrt().tolist()
    groups: dict[int, list[int]] = {}
    reduced: list[tuple[Tensor, Tensor]] = []
    for face, (index, ratio) in enumerate(zip(image_index.tolist(), shrink, strict=True)):
        factor = max(1, int(ratio / _MAX_SAMPLES * 2)) if ratio > _MAX_SAMPLES else 1
        photo, matrix = _reduce(images[index], inverse[face], factor)
        reduced.append((photo, matrix))
        groups.setdefault(max(1, ceil(ratio / factor - 1e-6)), []).append(face)
    for samples, members in groups.items():
        crops[members] = _gather([reduced[m] for m in members], size, samples)
    return crops


def _reduce(image: Tensor, inverse: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Shrink a photograph by whole blocks and carry a crop-to-photograph matrix along."""
    if factor == 1:
        return image, inverse
    pixels = rearrange(image, "h w c -> 1 c h w").float()
    pad_h, pad_w = -pixels.shape[2] % factor, -pixels.shape[3] % factor
    pixels = F.avg_pool2d(F.pad(pixels, (0, pad_w, 0, pad_h)), factor)
    scaled = inverse.clone() / factor
    scaled[:, 2] += 0.5 / factor - 0.5  # pixel centres at whole numbers in both
    return rearrange(pixels[0], "c h w -> h w c").round().to(torch.uint8), scaled


def _gather(crops: list[tuple[Tensor, Tensor]], size: int, samples: int) -> Tensor:
    """Bilinear samples of many photographs at once, averaged to (F, 3, size, size)."""
    device = crops[0][0].device
    flat, places = _end_to_end(list({id(photo): photo for photo, _ in crops}.values()))
    out = torch.empty(len(crops), 3, size, size, dtype=torch.float32, device=device)
    at_once = _SAMPLES_ON_CPU if device.type == "cpu" else _SAMPLES_ELSEWHERE
    step = max(1, at_once // (size * samples) ** 2)
    for begin in range(0, len(crops), step):
        part = crops[begin : begin + step]
        matrices = torch.stack([m for _, m in part]).float().to(device)
        extents = torch.tensor(
            [[places[id(p)], p.shape[0], p.shape[1]] for p, _ in part],
            dtype=torch.int32,
            device=device,
        )
        grid = torch.arange(size * samples, dtype=torch.float32, device=device)
        grid = (grid + 0.5) / samples - 0.5
        x = matrices[:, 0, 0, None, None] * grid + matrices[:, 0, 1, None, None] * grid[:, None]
        y = matrices[:, 1, 0, None, None] * grid + matrices[:, 1, 1, None, None] * grid[:, None]
        x, y = x + matrices[:, 0, 2, None, None], y + matrices[:, 1, 2, None, None]
        sampled = _bilinear(flat, x, y, *extents.T[:, :, None, None])
        sampled = rearrange(sampled, "c f h w -> f c h w")
        out[begin : begin + step] = F.avg_pool2d(sampled, samples) if samples > 1 else sampled
    return out


def _end_to_end(photos: list[Tensor]) -> tuple[Tensor, dict[int, int]]:
    """Photographs in black frames of two pixels, laid one behind the other.

    Returns:
        Their pixels, the four bytes of each in one int32, (P,), and where each one's pixel (0, 0)
        stands, by its id.
    """
    frame = 2 * _FRAME
    areas = [(photo.shape[0] + frame) * (photo.shape[1] + frame) for photo in photos]
    pixels = torch.zeros(sum(areas), 4, dtype=torch.uint8, device=photos[0].device)
    places = {}
    for photo, area, begin in zip(photos, areas, accumulate(areas, initial=0), strict=False):
        height, width = photo.shape[:2]
        framed = pixels[begin : begin + area].view(height + frame, width + frame, 4)
        framed[_FRAME:-_FRAME, _FRAME:-_FRAME, :3] = photo
        places[id(photo)] = begin + _FRAME * (width + frame) + _FRAME
    return pixels.view(torch.int32)[:, 0], places


def _bilinear(
    flat: Tensor, x: Tensor, y: Tensor, start: Tensor, height: Tensor, width: Tensor
) -> Tensor:
    """Bilinear look-up at x, y (F, H, W) in what ``_end_to_end`` gives; black outside.

    Returns:
        Channels first, so that the innermost loop is a long one, (3, F, H, W).
    """
    x0, y0 = x.floor(), y.floor()
    fraction_x, fraction_y = x - x0, y - y0
    # Outside a photograph every sample falls on its frame, wherever it would be.
    column = torch.minimum(x0.clamp_(min=-_FRAME).int(), width)
    row = torch.minimum(y0.clamp_(min=-_FRAME).int(), height)
    line = width + 2 * _FRAME
    corner = start + row * line + column

    def at(index: Tensor) -> Tensor:
        found = flat.index_select(0, index.flatten()).view(torch.uint8)
        planes = rearrange(found.view(*index.shape, 4), "f h w c -> c f h w")
        return planes[:3].to(torch.float32, memory_format=torch.contiguous_format)

    top = torch.lerp(at(corner), at(corner + 1), fraction_x)
    corner += line
    bottom = torch.lerp(at(corner), at(corner + 1), fraction_x)
    return torch.lerp(top, bottom, fraction_y)
