"""Measurements of face detectors: recall, unexplained detections, landmarks, sizes, rotations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from facezoo.data.detection import LabeledImage, labeled_image, labeled_images
from facezoo.data.packs import as_points, decode, read_pack
from facezoo.hub.card import Metric
from facezoo.preprocess.boxes import area, iou
from facezoo.results import Faces

if TYPE_CHECKING:
    import pyarrow as pa

Finder = Callable[[list[Tensor]], Faces]
"""Any detector: images, uint8 (H, W, 3), to all faces in them."""

SIDES = tuple(range(40, 641, 8))
"""Sides of the tight crops, pixels."""
ROTATIONS_DEG = (-45, -30, -15, 15, 30, 45)
LARGE_ROTATIONS_DEG = tuple(range(75, 286, 42))
"""Rotations at which a face needs the option ``rotations``: 75, 117, 159, 201, 243 and 285."""
TIGHT = slice(33, 117)
"""Part of a crop of ``faces_wild`` that the face fills."""
_AT_ONCE = 32
# Largest landmark error of a tight or rotated face that counts as detected, in eye distances.
_NEAR = 0.25
# Least IoU of a detection with a rotated face that it is about.
_ON_FACE = 0.3


@dataclass(frozen=True)
class Comparison:
    """Detections in a set of images next to the N faces that they show."""

    scores: Tensor
    """Score of the best detection of each face, 0 where there is none, (N,)."""
    errors: Tensor
    """Landmark error of each face in eye distances, NaN where it is unknown, (N,)."""
    sizes: Tensor
    """Longer side of each face, pixels, (N,)."""
    hits: Tensor
    """Scores of the detections of a face, (D,)."""
    unexplained: Tensor
    """Scores of the detections that touch neither a face nor an unsure region, (U,)."""

    def recall(self, threshold: float = 0.0, sizes: tuple[float, float] = (0, math.inf)) -> float:
        """Share of the faces, perhaps of a range of sizes, that score above a threshold."""
        rows = (self.sizes >= sizes[0]) & (self.sizes < sizes[1])
        return float((self.scores[rows] > threshold).float().mean())

    def unexplained_share(self, threshold: float = 0.0) -> float:
        """Share of the detections above a threshold that are unexplained."""
        wrong = int((self.unexplained > threshold).sum())
        return wrong / max(1, wrong + int((self.hits > threshold).sum()))

    def error(self) -> float:
        """Mean landmark error of the detected faces, NaN if none is known."""
        return float(self.errors.nanmean())

    def recall_at(self, share: float) -> tuple[float, float]:
        """Return the best recall with at most this share unexplained, and its threshold."""
        thresholds = torch.cat([torch.zeros(1), self.unexplained.sort().values]).tolist()
        allowed = [t for t in thresholds if self.unexplained_share(t) <= share]
        return self.recall(min(allowed)), min(allowed)


def compare(
    find: Finder, images: Sequence[LabeledImage], min_face: float = 20.0, marks: bool = False
) -> Comparison:
    """Compare the detections in images with their faces.

    A face is detected if a box overlaps it with an IoU of at least 0.5. Smaller faces, and
    detections that lie mostly on them or on an unsure region, are ignored.

    Args:
        min_face: least length of a face's longer side, pixels.
        marks: compare eyes and the middle of the mouth with marks set by hand, rather than five
            landmarks with those of the pack.
    """
    found = _detected(find, images)
    parts = [_compare(faces, image, min_face, marks) for image, faces in found]
    return Comparison(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _detected(find: Finder, images: Sequence[LabeledImage]) -> Iterator[tuple[LabeledImage, Faces]]:
    """Yield each image with the faces that are detected in it."""
    for begin in range(0, len(images), _AT_ONCE):
        batch = images[begin : begin + _AT_ONCE]
        faces = find([image.pixels for image in batch]).to("cpu")
        for index, image in enumerate(batch):
            yield image, faces[faces.image_index == index]


def _compare(
    faces: Faces, image: LabeledImage, min_face: float, marks: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    sizes = (image.boxes[:, 2:] - image.boxes[:, :2]).amax(1)
    large = sizes >= min_face
    overlap = iou(image.boxes, faces.boxes)  # (G, D)
    on_face = (overlap[large] >= 0.5).any(0)
    ignored = torch.cat([image.boxes[~large], image.unsure])
    unexplained = ~on_face & ~_lies_on(faces.boxes, ignored)
    scores, errors = torch.zeros(len(sizes)), torch.full((len(sizes),), math.nan)
    for face in ((overlap >= 0.5).any(1) & large).nonzero()[:, 0].tolist():
        best = int(torch.where(overlap[face] >= 0.5, faces.scores, -1.0).argmax())
        scores[face] = faces.scores[best]
        if bool(image.marked[face]) if marks else bool(image.weights[face].all()):
            errors[face] = _landmark_error(faces.landmarks[best], image.landmarks[face], marks)
    return (
        scores[large],
        errors[large],
        sizes[large],
        faces.scores[on_face],
        faces.scores[unexplained],
    )


def _landmark_error(points: Tensor, truth: Tensor, marks: bool) -> Tensor:
    """Mean distance of landmarks (5, 2), or of eyes and mouth, in eye distances."""
    unit = (truth[0] - truth[1]).norm()
    if marks:
        points, truth = (torch.cat([p[:2], p[3:].mean(0)[None]]) for p in (points, truth))
    return (points - truth).norm(dim=-1).mean() / unit


def _lies_on(boxes: Tensor, regions: Tensor) -> Tensor:
    """Find boxes that share more than half of the smaller area with a region, bool, (N,)."""
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    smaller = torch.minimum(area(boxes)[:, None], area(regions)[None]).clamp(min=1e-6)
    return (shared / smaller > 0.5).any(1)


def central_faces(table: pa.Table) -> list[LabeledImage]:
    """Decode rows of LFW; only the face of ``box`` counts, and the others are unsure regions."""
    images = []
    for row in table.select(["image", "box", "landmarks", "faces", "unsure"]).to_pylist():
        others = [face["box"] for face in row["faces"] if face["box"] != row["box"]]
        images.append(labeled_image(decode(row["image"]), [row], row["unsure"] + others))
    return images


def rotate(image: LabeledImage, degrees: float) -> LabeledImage:
    """Rotate an image and its faces counterclockwise; unsure regions are dropped."""
    source = Image.fromarray(image.pixels.numpy())
    turned = source.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    angle = math.radians(degrees)
    matrix = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    before, after = ((torch.tensor(size) - 1) / 2 for size in (source.size, turned.size))
    middle = ((image.boxes[:, :2] + image.boxes[:, 2:]) / 2 - before) @ matrix.T + after
    # The box around the ellipse that filled the box before.
    half = ((image.boxes[:, 2:] - image.boxes[:, :2]).square() @ matrix.square().T).sqrt() / 2
    return replace(
        image,
        pixels=torch.from_numpy(np.array(turned)),
        boxes=torch.cat([middle - half, middle + half], 1),
        landmarks=(image.landmarks - before) @ matrix.T + after,
        unsure=torch.zeros(0, 4),
    )


def rotated_faces(
    find: Finder, images: Sequence[LabeledImage], degrees: float
) -> tuple[float, float]:
    """Measure the only face of each image after a rotation.

    Returns:
        Share of the faces with landmarks nearer than a quarter of the eye distance, and the mean
        error of these.
    """
    found = _detected(find, [rotate(image, degrees) for image in images])
    near = torch.tensor([_nearest_error(faces, image.landmarks[0]) for image, faces in found])
    return float((near < _NEAR).float().mean()), float(near[near < _NEAR].mean())


def misplaced_faces(find: Finder, images: Sequence[LabeledImage], degrees: float) -> float:
    """Measure detections of the only face of each image with wrong landmarks, after a rotation.

    Returns:
        Share of the images with a detection whose box overlaps that of the face with an IoU of at
        least 0.3, and whose landmarks are a quarter of the eye distance off or more.
    """
    count = 0
    for image, faces in _detected(find, [rotate(image, degrees) for image in images]):
        on_face = faces.landmarks[iou(faces.boxes, image.boxes)[:, 0] >= _ON_FACE]
        errors = [float(_landmark_error(p, image.landmarks[0], False)) for p in on_face]
        count += any(error >= _NEAR for error in errors)
    return count / len(images)


def _nearest_error(faces: Faces, truth: Tensor) -> float:
    """Return the least landmark error of the detections in an image, infinite without any."""
    errors = (float(_landmark_error(p, truth, False)) for p in faces.landmarks)
    return min(errors, default=math.inf)


def tight_crops(find: Finder, table: pa.Table, sides: Iterable[int] = SIDES) -> dict[int, float]:
    """Measure the share of tight face crops with a face, by the side of the crop.

    Args:
        table: rows of ``faces_wild``.
        sides: sides that the crops are resized to, pixels.

    Returns:
        Share of the crops in which the landmarks are nearer than a quarter of the eye distance.
    """
    crops = torch.stack([decode(image.as_py()) for image in table["image"]])[:, TIGHT, TIGHT]
    pixels = crops.permute(0, 3, 1, 2).float()
    extent = crops.shape[1]
    truth = as_points(table["landmarks"].to_pylist(), 5) - TIGHT.start
    shares = {}
    for side in sides:
        points = list((truth + 0.5) * side / extent - 0.5)
        errors: list[float] = []
        for begin in range(0, len(crops), _AT_ONCE):
            part = F.interpolate(
                pixels[begin : begin + _AT_ONCE], (side, side), mode="bilinear", antialias=True
            )
            images = list(part.round().clamp(0, 255).byte().permute(0, 2, 3, 1))
            faces = find(images).to("cpu")
            for index, truth_of_one in enumerate(points[begin : begin + _AT_ONCE]):
                mine = faces[faces.image_index == index]
                errors.append(_nearest_error(mine, truth_of_one))
        shares[side] = float((torch.tensor(errors) < _NEAR).float().mean())
    return shares


def share_with_face(find: Finder, table: pa.Table) -> float:
    """Measure the share of the images of a table in which a face is detected."""
    count = 0
    for begin in range(0, len(table), 8 * _AT_ONCE):
        images = [decode(image.as_py()) for image in table["image"][begin : begin + 8 * _AT_ONCE]]
        count += len(find(images).image_index.unique())
    return count / len(table)


_FACES = "{} images, {} faces of {:.0f} px or more; detected at IoU 0.5; unsure regions are ignored"


def detection(find: Finder, data: Path, command: str, crops: int = 150) -> list[Metric]:
    """Measure a detector on everyday images, groups, portraits, tight crops and rotations.

    Args:
        command: command that prints the metrics.
        crops: number of tight crops and of rotated images.
    """
    metrics: list[Metric] = []

    def add(name: str, value: float, dataset: str, split: str, protocol: str) -> None:
        if not math.isnan(value):
            metrics.append(Metric(name, 100 * value, "%", dataset, split, protocol, command))

    def add_comparison(dataset: str, images: Sequence[LabeledImage], marks: bool) -> Comparison:
        result = compare(find, images, marks=marks)
        protocol = _FACES.format(len(images), len(result.scores), 20)
        add("recall", result.recall(), dataset, "val", protocol)
        add("unexplained detections", result.unexplained_share(), dataset, "val", protocol)
        truth = "marks by hand of eyes and mouth" if marks else "five landmarks of the pack"
        add("landmark error over the eye distance", result.error(), dataset, "val", truth)
        return result

    groups = read_pack(data / "groups.parquet", "val")
    everyday = np.array(groups["source"].to_pylist()) == "webfaces"
    results = [
        add_comparison("everyday images", labeled_images(groups.filter(everyday)), True),
        add_comparison("groups and crowds", labeled_images(groups.filter(~everyday)), False),
    ]
    both = Comparison(
        *(torch.cat(c) for c in zip(*(vars(r).values() for r in results), strict=True))
    )
    for low, high in ((20, 32), (32, 64), (64, math.inf)):
        sizes = f"faces of {low} px or more" + (f", below {high} px" if high < math.inf else "")
        add("recall", both.recall(sizes=(low, high)), "groups", "val", sizes)
    people = read_pack(data / "lfw.parquet", "val")
    add_comparison("LFW", labeled_images(people), False)
    central = central_faces(people)
    result = compare(find, central)
    add("recall", result.recall(), "LFW", "val", "the face nearest the middle of each image")
    yaw = torch.tensor(people["yaw"].to_pylist()).abs()
    for low, high in ((0, 15), (15, 30), (30, 90)):
        rows = (yaw >= low) & (yaw < high)
        name = f"the face nearest the middle, yaw of {low} to {high} degrees"
        add("recall", float((result.scores[rows] > 0).float().mean()), "LFW", "val", name)
        add(
            "landmark error over the eye distance",
            float(result.errors[rows].nanmean()),
            "LFW",
            "val",
            name,
        )
    for degrees in ROTATIONS_DEG:
        share, error = rotated_faces(find, central[:crops], degrees)
        name = f"the face nearest the middle of {crops} images rotated by {degrees} degrees"
        add("recall", share, "LFW", "val", name)
        add("landmark error over the eye distance", error, "LFW", "val", name)
    wrong = [misplaced_faces(find, central[:crops], degrees) for degrees in LARGE_ROTATIONS_DEG]
    name = f"{crops} images rotated by {', '.join(map(str, LARGE_ROTATIONS_DEG))} degrees"
    add("faces with landmarks in wrong places", sum(wrong) / len(wrong), "LFW", "val", name)
    wild = read_pack(data / "faces_wild.parquet", "val").slice(0, crops)
    shares = tight_crops(find, wild)
    name = f"{len(wild)} tight crops at {len(shares)} sides of {SIDES[0]} to {SIDES[-1]} px"
    add("recall, mean over sides", sum(shares.values()) / len(shares), "faces_wild", "val", name)
    add("recall, least of all sides", min(shares.values()), "faces_wild", "val", name)
    ferplus = read_pack(data / "ferplus.parquet", "test")
    name = f"{len(ferplus)} images of 48 px"
    add("images with a face", share_with_face(find, ferplus), "FER+", "test", name)
    return metrics
