"""Scenes to train the detector on: photographs turned, scaled, tiled, relit and partly covered."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from facezoo.models.face_detector.losses import Targets

CANVAS = 256
"""Side of a scene, pixels."""
SMALLEST = 18.0
"""Least side of the face that a photograph is scaled by, pixels."""


@dataclass(frozen=True)
class Photos:
    """Photographs of one size with the faces on them."""

    images: list[Tensor]
    """uint8 RGB, the whole photographs at sides H, H / 2, H / 4 and H / 8, each (N, 3, side, side).
    """
    boxes: list[Tensor]
    """Faces of each photograph, N of (G, 4)."""
    landmarks: list[Tensor]
    """Their landmarks, N of (G, 5, 2)."""
    unsure: list[Tensor]
    """Regions to leave out of account, N of (R, 4)."""


@dataclass(frozen=True)
class _Tile:
    photo: int
    scene: int
    grid: int
    """How many tiles a side of the scene has."""
    cell: int
    matrix: Tensor
    """Photograph pixels to scene pixels, (2, 3)."""


def scenes(
    photos: Photos, chosen: Tensor, extra: Tensor, generator: Generator, natural: float = 0.0
) -> tuple[Tensor, Targets]:
    """Compose one scene per chosen photograph.

    A scene is one photograph, or 2 x 2 or 3 x 3 of them; each is turned by up to 30
    degrees, sometimes mirrored, and scaled so that one of its faces takes any size from 18 pixels
    to more than its tile.

    Args:
        photos: everything there is.
        chosen: the first photograph of each scene, (B,).
        extra: photographs that fill the other tiles are drawn from these, (M,).
        generator: source of every random number.
        natural: share of the scenes that show their photograph whole and nearly as it is, so that
            small faces are as rare beside other small things as they are in photographs.

    Returns:
        Scenes in [-1, 1], (B, 3, 256, 256), and their faces.
    """
    tiles = [
        t
        for scene, photo in enumerate(chosen)
        for t in (
            [_Tile(int(photo), scene, 1, 0, _as_it_is(photos, generator))]
            if natural and _uniform(generator) < natural
            else _layout(photos, scene, int(photo), extra, generator)
        )
    ]
    images = torch.zeros(len(chosen), 3, CANVAS, CANVAS)
    for grid in {tile.grid for tile in tiles}:
        _paint(images, photos, [tile for tile in tiles if tile.grid == grid], generator)
    targets = _targets(photos, tiles, len(chosen))
    return _degrade(_occlude(images, targets, generator), generator), targets


def _uniform(generator: Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _layout(
    photos: Photos, scene: int, first: int, extra: Tensor, generator: Generator
) -> list[_Tile]:
    """Tiles of one scene, the first of them showing ``first``."""
    grid = int(torch.multinomial(torch.tensor([0.55, 0.3, 0.15]), 1, generator=generator)) + 1
    others = extra[torch.randint(len(extra), (grid * grid - 1,), generator=generator)]
    cells = torch.randperm(grid * grid, generator=generator)
    return [
        _Tile(photo, scene, grid, int(cell), _place(photos, photo, grid, int(cell), generator))
        for photo, cell in zip([first, *others.tolist()], cells, strict=True)
    ]


def _as_it_is(photos: Photos, generator: Generator) -> Tensor:
    """A similarity that shows a photograph whole, more or less, (2, 3)."""
    side = photos.images[0].shape[-1]
    scale = CANVAS / side * math.exp(_uniform(generator, -0.5, 0.35))
    angle = math.radians(_uniform(generator, -15, 15)) * (_uniform(generator) < 0.5)
    where = torch.tensor([_uniform(generator, 0.4, 0.6) for _ in range(2)]) * CANVAS
    mirror = -1.0 if _uniform(generator) < 0.5 else 1.0
    return _similarity(scale, angle, mirror, torch.full((2,), (side - 1) / 2), where)


def _similarity(scale: float, angle: float, mirror: float, centre: Tensor, where: Tensor) -> Tensor:
    """Scale, turn and perhaps mirror about ``centre``, which goes to ``where``, (2, 3)."""
    cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
    linear = torch.tensor([[cosine * mirror, -sine], [sine * mirror, cosine]])
    return torch.cat([linear, (where - linear @ centre)[:, None]], 1)


def _place(photos: Photos, photo: int, grid: int, cell: int, generator: Generator) -> Tensor:
    """A random similarity that puts a photograph into its tile, (2, 3)."""
    side, extent = photos.images[0].shape[-1], CANVAS / grid
    boxes = photos.boxes[photo]
    if len(boxes):
        box = boxes[int(torch.randint(len(boxes), (), generator=generator))]
        centre = (box[:2] + box[2:]) / 2
        face = float((box[2:] - box[:2]).prod().sqrt())
        largest = min(1.15 * extent, 3.2 * face) if grid == 1 else 0.9 * extent
        wanted = _uniform(generator, math.log(SMALLEST), math.log(max(largest, SMALLEST + 1)))
        scale = math.exp(wanted) / face
        scale = max(scale, 0.6 * extent / side)  # a photograph fills most of its tile
    else:
        centre = torch.tensor([_uniform(generator, 0.2, 0.8) * side for _ in range(2)])
        scale = extent / side * math.exp(_uniform(generator, -0.2, 0.9))
    angle = math.radians(_uniform(generator, -30, 30)) * (_uniform(generator) < 0.7)
    mirror = -1.0 if _uniform(generator) < 0.5 else 1.0
    row, column = divmod(cell, grid)
    where = torch.tensor([_uniform(generator, 0.2, 0.8) for _ in range(2)]) * extent
    where = where + torch.tensor([column, row]) * extent
    return _similarity(scale, angle, mirror, centre, where)


def _paint(images: Tensor, photos: Photos, tiles: list[_Tile], generator: Generator) -> None:
    """Sample the photographs of equally large tiles into their scenes."""
    grid = tiles[0].grid
    edges = [round(CANVAS * i / grid) for i in range(grid + 1)]
    side = photos.images[0].shape[-1]
    extent = max(b - a for a, b in pairwise(edges))
    border = "border" if _uniform(generator) < 0.5 else "zeros"
    levels: dict[int, list[_Tile]] = {}
    for tile in tiles:
        scale = float(tile.matrix[:, 0].norm())
        levels.setdefault(min(3, max(0, round(math.log2(1 / scale)))), []).append(tile)
    for level, members in levels.items():
        corners = torch.tensor([[edges[t.cell % grid], edges[t.cell // grid]] for t in members])
        inverse = torch.linalg.inv(torch.stack([t.matrix[:, :2] for t in members]))
        shift = torch.stack([t.matrix[:, 2] for t in members])
        # Output pixel -> photograph pixel, then both to [-1, 1] for affine_grid.
        middle = corners + (extent - 1) / 2
        origin = torch.einsum("tij,tj->ti", inverse, middle - shift)
        theta = torch.cat(
            [inverse * (extent / side), ((origin + 0.5) * 2 / side - 1)[..., None]], -1
        )
        source = photos.images[level][[t.photo for t in members]].float() / 127.5 - 1
        where = F.affine_grid(theta, [len(members), 3, extent, extent], align_corners=False)
        pixels = F.grid_sample(source, where, padding_mode=border, align_corners=False)
        for tile, (x, y), patch in zip(members, corners.tolist(), pixels, strict=True):
            x1, y1 = edges[tile.cell % grid + 1], edges[tile.cell // grid + 1]
            images[tile.scene, :, y:y1, x:x1] = patch[:, : y1 - y, : x1 - x]


def _targets(photos: Photos, tiles: list[_Tile], count: int) -> Targets:
    """Faces of the photographs where they ended up; those cut off or tiny are regions to ignore."""
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(count)]
    ignored: list[list[Tensor]] = [[] for _ in range(count)]
    for tile in tiles:
        row, column = divmod(tile.cell, tile.grid)
        extent = CANVAS / tile.grid
        low = torch.tensor([column, row]) * extent
        boxes = torch.cat([photos.boxes[tile.photo], photos.unsure[tile.photo]])
        if not len(boxes):
            continue
        boxes = _turned(boxes, tile.matrix)
        seen = torch.cat(
            [torch.maximum(boxes[:, :2], low), torch.minimum(boxes[:, 2:], low + extent)], 1
        )
        visible = (seen[:, 2:] - seen[:, :2]).clamp(min=0).prod(1)
        share = visible / (boxes[:, 2:] - boxes[:, :2]).prod(1)
        points = photos.landmarks[tile.photo] @ tile.matrix[:, :2].T + tile.matrix[:, 2]
        if float(torch.linalg.det(tile.matrix[:, :2])) < 0:
            points = points[:, [1, 0, 2, 4, 3]]  # mirrored: right and left change places
        for index, box in enumerate(boxes):
            side = float((box[2:] - box[:2]).prod().sqrt())
            if index < len(points) and share[index] > 0.7 and side >= 12:
                found[tile.scene].append((box, points[index]))
            elif share[index] > 0.15:
                ignored[tile.scene].append(seen[index])
    width = max(1, *(len(f) for f in found))
    depth = max(1, *(len(i) for i in ignored))
    targets = Targets(
        torch.zeros(count, width, 4),
        torch.zeros(count, width, 5, 2),
        torch.zeros(count, width, dtype=torch.bool),
        torch.zeros(count, depth, 4),
    )
    for scene, (faces, regions) in enumerate(zip(found, ignored, strict=True)):
        for slot, (box, points) in enumerate(faces):
            targets.boxes[scene, slot], targets.landmarks[scene, slot] = box, points
            targets.is_face[scene, slot] = True
        for slot, region in enumerate(regions):
            targets.ignored[scene, slot] = region
    return targets


def _turned(boxes: Tensor, matrix: Tensor) -> Tensor:
    """Upright boxes around ellipses that filled the boxes before the similarity."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 @ matrix[:, :2].T + matrix[:, 2]
    half = ((boxes[:, 2:] - boxes[:, :2]).square() @ matrix[:, :2].square().T).sqrt() / 2
    return torch.cat([middle - half, middle + half], 1)


def _occlude(images: Tensor, targets: Targets, generator: Generator) -> Tensor:
    """Cover a part of some faces with a piece of another scene or with one colour."""
    for scene, slot in targets.is_face.nonzero().tolist():
        if _uniform(generator) > 0.2:
            continue
        x0, y0, x1, y1 = targets.boxes[scene, slot].tolist()
        width, height = (
            (x1 - x0) * _uniform(generator, 0.3, 1),
            (y1 - y0) * _uniform(generator, 0.1, 0.4),
        )
        left = max(0, int(x0 + _uniform(generator) * (x1 - x0 - width)))
        top = max(0, int(y0 + _uniform(generator) * (y1 - y0 - height)))
        right, bottom = min(CANVAS, int(left + width)), min(CANVAS, int(top + height))
        if right <= left or bottom <= top:
            continue
        if _uniform(generator) < 0.5:
            patch = images[scene - 1, :, : bottom - top, : right - left].clone()
        else:
            patch = torch.rand(3, 1, 1, generator=generator) * 2 - 1
        images[scene, :, top:bottom, left:right] = patch
    return images


def _degrade(images: Tensor, generator: Generator) -> Tensor:
    """Colour casts, grey, contrast, low light, blur and noise, each on some of the scenes."""
    pixels = (images + 1) / 2

    def some(share: float) -> Tensor:
        return (torch.rand(len(pixels), generator=generator) < share).nonzero()[:, 0]

    def amount(rows: Tensor, low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(len(rows), channels, 1, 1, generator=generator)

    rows = some(0.3)
    pixels[rows] = pixels[rows] * amount(rows, 0.75, 1.25, 3)
    rows = some(0.2)
    pixels[rows] = pixels[rows].mean(1, keepdim=True).expand(-1, 3, -1, -1)
    rows = some(0.5)
    contrast, brightness = amount(rows, 0.6, 1.4), amount(rows, -0.2, 0.2)
    pixels[rows] = (pixels[rows] - 0.5) * contrast + 0.5 + brightness
    rows = some(0.15)
    pixels[rows] = pixels[rows] * amount(rows, 0.1, 0.6)  # low light
    rows = some(0.2)
    if len(rows):
        size = int(CANVAS * _uniform(generator, 0.4, 0.9))
        small = F.interpolate(pixels[rows], size=(size, size), mode="bilinear", antialias=True)
        pixels[rows] = F.interpolate(small, size=(CANVAS, CANVAS), mode="bilinear")
    rows = some(0.2)
    noise = torch.randn(len(rows), *pixels.shape[1:], generator=generator)
    pixels[rows] = pixels[rows] + noise * amount(rows, 0.0, 0.06)
    return pixels.clamp_(0, 1) * 2 - 1
