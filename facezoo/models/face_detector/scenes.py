"""Scenes to train the detector on: photographs scaled, rotated, tiled, relit and partly covered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.random import Generator
from PIL import Image

from facezoo.data.detection import LabeledImage
from facezoo.landmarks import similarity_transform
from facezoo.models.face_detector.losses import Annotation
from facezoo.preprocess.detection import second_pass_points

SMALLEST = 13.0
"""Least length of the longer side of a face, pixels; smaller ones are left out of the loss."""
_TEACHER = 0.5  # weight of landmarks by a teacher, next to 1 for marks set by hand
_GRAY = 127  # the padding of detection
CLOSE_UP_SIDES = (64, 128)
"""Sides of close-ups, pixels."""
_MIRRORED = [1, 0, 2, 4, 3]  # right and left of a mirrored face change places


@dataclass(frozen=True)
class Source:
    """Images of one kind."""

    images: Sequence[LabeledImage]
    share: float
    """Share of the tiles that show such an image."""
    tight: tuple[float, float] | None = None
    """For crops that show one face: begin and end of the square that the face fills, pixels."""


def scene(sources: Sequence[Source], side: int, rng: Generator) -> tuple[np.ndarray, Annotation]:
    """Compose one scene of 1, 4 or 9 tiles.

    A tile shows an image nearly whole, or one of its faces at any size. Few tiles are rotated by
    more than 20 degrees; faces of tiles that lie sideways or upside down are no faces.

    Returns:
        Pixels, uint8 (side, side, 3), and the faces.
    """
    grids = [0.75, 0.25, 0.0] if side < 256 else [0.6, 0.3, 0.1] if side < 400 else [0.4, 0.4, 0.2]
    grid = int(rng.choice(3, p=grids)) + 1
    canvas = np.full((side, side, 3), _GRAY, np.uint8)
    edges = [round(side * i / grid) for i in range(grid + 1)]
    shares = np.array([source.share for source in sources])
    parts = []
    for row in range(grid):
        for column in range(grid):
            source = sources[int(rng.choice(len(sources), p=shares / shares.sum()))]
            x, y = edges[column], edges[row]
            width, height = edges[column + 1] - x, edges[row + 1] - y
            if grid == 1 and rng.random() < 0.25:  # an image that fills a part of the input
                width, height = (round(side * share) for share in rng.uniform(0.5, 1, 2))
            pixels, faces = _tile(source, width, height, rng)
            canvas[y : y + height, x : x + width] = pixels
            offset = np.array([x, y], np.float32)
            parts.append((faces[0] + np.tile(offset, 2), faces[1] + offset, *faces[2:3]))
            parts[-1] += (faces[3] + np.tile(offset, 2),)
    boxes, points, weights, ignored = (
        np.concatenate(column).astype(np.float32) for column in zip(*parts, strict=True)
    )
    for box in boxes[rng.random(len(boxes)) < 0.12]:
        _cover(canvas, box, rng)
    return canvas, Annotation(*map(torch.from_numpy, (boxes, points, weights, ignored)))


def close_up(sources: Sequence[Source], side: int, rng: Generator) -> tuple[np.ndarray, Annotation]:
    """Show one face nearly as the second pass of detection does: large, upright and centered."""
    shares = np.array([source.share for source in sources])
    while True:
        source = sources[int(rng.choice(len(sources), p=shares / shares.sum()))]
        image = source.images[int(rng.integers(len(source.images)))]
        known = image.weights.all(1).nonzero()[:, 0].tolist()
        if known:
            break
    points = image.landmarks[known[int(rng.integers(len(known)))]].numpy()
    matrix = similarity_transform(torch.from_numpy(points)[None], second_pass_points(side))[
        0
    ].numpy()
    scale = float(np.hypot(*matrix[:, 0])) * math.exp(rng.normal(0, 0.12))
    angle = math.atan2(-matrix[1, 0], matrix[0, 0]) + math.radians(rng.normal(0, 7))
    place = np.full(2, (side - 1) / 2) + rng.normal(0, 0.04 * side, 2)
    view = image, scale, points.mean(0), place, angle, False
    pixels, faces = _shown(*view, side, side, rng)
    return pixels, Annotation(*(torch.from_numpy(part.astype(np.float32)) for part in faces))


def _tile(
    source: Source, width: int, height: int, rng: Generator
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return pixels (height, width, 3) and boxes, landmarks, weights and ignored regions."""
    image = source.images[int(rng.integers(len(source.images)))]
    angle, is_sideways = _angle(rng)
    scale, center, place = _placement(image, source.tight, width, height, rng)
    return _shown(image, scale, center, place, angle, is_sideways, width, height, rng)


def _shown(
    image: LabeledImage,
    scale: float,
    center: np.ndarray,
    place: np.ndarray,
    angle: float,
    is_sideways: bool,
    width: int,
    height: int,
    rng: Generator,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Show an image so that ``center`` is at ``place``, perhaps mirrored; see ``_tile``."""
    mirror = rng.random() < 0.5
    pixels = _painted(image.pixels.numpy(), scale, center, place, angle, width, height, rng)
    cosine, sine = math.cos(angle), math.sin(angle)
    matrix = scale * np.array([[cosine, sine], [-sine, cosine]])
    boxes = torch.cat([image.boxes, image.unsure]).numpy()
    middle = ((boxes[:, :2] + boxes[:, 2:]) / 2 - center) @ matrix.T + place
    # The box around the ellipse that filled the box before.
    half = np.sqrt(((boxes[:, 2:] - boxes[:, :2]) ** 2) @ (matrix**2).T) / 2
    points = (image.landmarks.numpy() - center) @ matrix.T + place
    weights = image.weights.numpy() * np.where(image.marked.numpy()[:, None], 1.0, _TEACHER)
    if mirror:
        pixels = pixels[:, ::-1]
        middle[:, 0] = width - 1 - middle[:, 0]
        points[..., 0] = width - 1 - points[..., 0]
        points, weights = points[:, _MIRRORED], weights[:, _MIRRORED]
    boxes = np.concatenate([middle - half, middle + half], 1)
    limits = np.array([width, height, width, height]) - 0.5
    seen = boxes.clip(-0.5, limits)
    visible = (seen[:, 2:] - seen[:, :2]).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
    is_face = (visible > 0.5) & ((boxes[:, 2:] - boxes[:, :2]).max(1) >= SMALLEST)
    is_face[len(points) :] = False
    ignored = seen[~is_face & (visible > 0.1)]
    if is_sideways:
        is_face[:] = False
    is_face = is_face[: len(points)]
    return _degraded(pixels, rng), (
        boxes[: len(points)][is_face],
        points[is_face],
        weights[is_face],
        ignored,
    )


def _angle(rng: Generator) -> tuple[float, bool]:
    """Sample a rotation, radians; True if the faces in it are too far from upright to be found."""
    kind = rng.random()
    if kind < 0.05:
        return math.radians(rng.choice([90.0, 180.0, 270.0]) + rng.uniform(-15, 15)), True
    largest = 48 if kind < 0.15 else 20 if kind < 0.4 else 0
    return math.radians(rng.uniform(-largest, largest)), False


def _placement(
    image: LabeledImage,
    tight: tuple[float, float] | None,
    width: int,
    height: int,
    rng: Generator,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Sample a scale, a point of the image, and its place in the tile."""
    rows, columns = image.pixels.shape[:2]
    fit = min(width / columns, height / rows)
    share = rng.random()
    if tight is not None and share < 0.6:
        scale = min(width, height) / (tight[1] - tight[0]) * math.exp(rng.uniform(-0.1, 0.1))
        center = np.full(2, sum(tight) / 2 - 0.5) + rng.normal(0, 3, 2)
        return scale, center, np.array([width - 1, height - 1]) / 2
    if share < 0.5 or not len(image.boxes):
        scale = fit * math.exp(rng.uniform(-0.1, 0.8))
        room = (np.array([columns, rows]) - np.array([width, height]) / scale) / 2
        shift = rng.uniform(-1, 1, 2) * np.maximum(room, 0)
        center = np.array([columns - 1, rows - 1]) / 2 + shift
        return scale, center, np.array([width - 1, height - 1]) / 2
    box = image.boxes[int(rng.integers(len(image.boxes)))].numpy()
    side = math.sqrt(float((box[2:] - box[:2]).prod()))
    largest = min(1.1 * min(width, height), 3 * side)
    size = math.exp(rng.uniform(math.log(SMALLEST), math.log(max(largest, SMALLEST + 1))))
    scale = max(size / side, 0.85 * fit)
    place = rng.uniform(0.15, 0.85, 2) * np.array([width, height])
    return scale, (box[:2] + box[2:]) / 2, place


def _painted(
    pixels: np.ndarray,
    scale: float,
    center: np.ndarray,
    place: np.ndarray,
    angle: float,
    width: int,
    height: int,
    rng: Generator,
) -> np.ndarray:
    """Show an image so that ``center`` is at ``place``, rotated counterclockwise around it."""
    fill = _GRAY if rng.random() < 0.5 else int(rng.integers(256))
    if angle == 0:
        return _window(pixels, scale, center - place / scale, width, height, fill)
    # An upright window around the rotated tile; its middle is the tile's middle.
    cosine, sine = math.cos(angle), math.sin(angle)
    offset = np.array([(width - 1) / 2, (height - 1) / 2]) - place
    middle = center + np.array([[cosine, -sine], [sine, cosine]]) @ offset / scale
    wide = math.ceil(width * abs(cosine) + height * abs(sine)) + 2
    high = math.ceil(width * abs(sine) + height * abs(cosine)) + 2
    corner = middle - np.array([(wide - 1) / 2, (high - 1) / 2]) / scale
    upright = Image.fromarray(_window(pixels, scale, corner, wide, high, fill))
    # PIL wants the map from tile to window; its pixel centers are at halves.
    x = wide / 2 - cosine * width / 2 + sine * height / 2
    y = high / 2 - sine * width / 2 - cosine * height / 2
    rotated = upright.transform(
        (width, height),
        Image.Transform.AFFINE,
        (cosine, -sine, x, sine, cosine, y),
        Image.Resampling.BILINEAR,
        fillcolor=(fill, fill, fill),
    )
    return np.asarray(rotated)


def _window(
    pixels: np.ndarray, scale: float, corner: np.ndarray, width: int, height: int, fill: int
) -> np.ndarray:
    """Resize the part of an image whose first pixel center is at ``corner``."""
    rows, columns = pixels.shape[:2]
    left, top = (corner + 0.5) - 0.5 / scale  # edges, with pixel edges at whole numbers
    # Whole pixels of the window that the image covers.
    x0, y0 = max(0, math.ceil(-left * scale)), max(0, math.ceil(-top * scale))
    x1 = min(width, math.floor((columns - left) * scale))
    y1 = min(height, math.floor((rows - top) * scale))
    window = np.full((height, width, 3), fill, np.uint8)
    if x1 <= x0 or y1 <= y0:
        return window
    box = (left + x0 / scale, top + y0 / scale, left + x1 / scale, top + y1 / scale)
    # Copy what is needed alone, with a border for the filter.
    border = math.ceil(2 / min(scale, 1)) + 1
    first = max(0, int(box[0]) - border), max(0, int(box[1]) - border)
    last = min(columns, math.ceil(box[2]) + border), min(rows, math.ceil(box[3]) + border)
    part = Image.fromarray(np.ascontiguousarray(pixels[first[1] : last[1], first[0] : last[0]]))
    local = (
        max(0.0, box[0] - first[0]),
        max(0.0, box[1] - first[1]),
        min(part.width, box[2] - first[0]),
        min(part.height, box[3] - first[1]),
    )
    shown = part.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=local)
    window[y0:y1, x0:x1] = np.asarray(shown)
    return window


def _degraded(pixels: np.ndarray, rng: Generator) -> np.ndarray:
    """Change color and light; sometimes remove color and detail, or add noise."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    size, chance = image.size, rng.random(5)
    if chance[0] < 0.2:
        image = image.convert("L").convert("RGB")
    if chance[1] < 0.25:
        share = rng.uniform(0.25, 0.8)
        small = (max(1, round(size[0] * share)), max(1, round(size[1] * share)))
        image = image.resize(small, Image.Resampling.BILINEAR)
        image = image.resize(size, Image.Resampling.BILINEAR)
    if chance[2] < 0.6:
        gain = rng.uniform(0.6, 1.4) * (rng.uniform(0.85, 1.15, 3) if chance[3] < 0.5 else 1.0)
        shift, power = rng.uniform(-40, 40), math.exp(rng.uniform(-0.4, 0.4))
        levels = 255 * (np.arange(256) / 255) ** power
        table = (levels - 127.5) * np.broadcast_to(gain, 3)[:, None] + 127.5 + shift
        image = image.point(table.clip(0, 255).round().astype(int).flatten().tolist())
    result = np.asarray(image)
    if chance[4] < 0.1:
        noise = rng.integers(-24, 25, result.shape, np.int16)
        result = (result + noise).clip(0, 255).astype(np.uint8)
    return result


def _cover(canvas: np.ndarray, box: np.ndarray, rng: Generator) -> None:
    """Cover a part of a face with another part of the scene or with one color."""
    extent = box[2:] - box[:2]
    width, height = np.maximum(1, extent * rng.uniform([0.3, 0.1], [1.0, 0.4])).astype(int)
    x, y = np.maximum(0, box[:2] + rng.random(2) * (extent - (width, height))).astype(int)
    place = canvas[y : y + height, x : x + width]
    if rng.random() < 0.5:
        place[:] = rng.integers(0, 256, 3)
    else:
        room = np.array(canvas.shape[:2])[::-1] - np.array(place.shape[:2])[::-1]
        left, top = rng.integers(0, room + 1)
        place[:] = canvas[top : top + place.shape[0], left : left + place.shape[1]].copy()
