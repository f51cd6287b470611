"""Face detection in images of any size, in batches, on the device of the detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.inference import exact
from facezoo.landmarks import similarity_transform
from facezoo.preprocess.alignment import align
from facezoo.preprocess.boxes import nms, paired_iou
from facezoo.preprocess.detector import Candidates, FaceDetector
from facezoo.preprocess.templates import template_points
from facezoo.preprocess.views import OVERLAP, View, as_batch, padded_shape, views_of
from facezoo.results import Faces, concatenate

# Share of a box that a box of lower score may cover before it counts as a box around that face.
_CONTAINED = 0.8
# Mean distance between the landmarks of two detections of one face, in eye distances.
_SAME_LANDMARKS = 0.5
# Largest roll and largest distance between landmarks and template, in eye distances, of a face,
# and the least eye distance, as a share of the longer side of the box.
_ROLL_DEG, _MISFIT, _LEAST_EYES = 75.0, 0.6, 0.1
# Crops of the second pass: side, distance of the eyes as a share of it, and crops per forward pass.
_CROP, _CROP_EYES, _CROPS_AT_ONCE = 64, 0.32, 64
# Pixels that each thread of the network takes at once on a CPU; more need more memory.
_PIXELS_PER_THREAD = 1 << 19
# The first pass keeps faces whose score is lower than the threshold by this.
_BELOW = 0.25
# Faces of this side in the first pass, pixels, get the mean landmarks of both passes, smaller ones
# those of the second. Large faces of this score and no more roll than this skip the second pass.
# The others are also shown upside down, where they must score lower, by the margin if their score
# in the first pass is below ``_CERTAIN``.
_LARGE, _CERTAIN, _UPRIGHT_DEG, _MARGIN = 64.0, 0.8, 15.0, 0.1
# Those of lower score, or of more roll and a score below ``_CERTAIN_TILTED``, are also shown turned
# by quarters: side of the crop, padding on each side and side of the face's box. A face whose score
# is higher by the margin when it is turned is really turned, and its landmarks are wrong.
_CERTAIN_TILTED, _TURNED_CROP, _TURNED_PAD, _TURNED_BOX, _TURNED_MARGIN = 0.9, 96, 16, 57.6, 0.2


@dataclass(frozen=True)
class DetectionConfig:
    """Scale and thresholds of detection."""

    min_face: float | None = None
    """Least side of a face to detect, pixels of the image. By default that is 16 pixels at the
    scale that ``max_side`` gives. A smaller face makes detection slower in large images."""
    score_threshold: float = 0.65
    """Least score of a face."""
    max_side: int = 640
    """Longer side of the images that the network takes, pixels. Larger images are reduced; with
    ``min_face``, tiles of this size cover them."""
    rotations: tuple[int, ...] = (0,)
    """Rotations of the image at which faces are searched, multiples of 90 degrees counterclockwise.
    A face is found at the rotation that gives it the highest score."""
    min_side: int = 96
    """Images whose longer side is smaller are enlarged to this, pixels."""
    nms_iou: float = 0.4
    """NMS IoU threshold."""
    vote_iou: float = 0.7
    """Boxes that overlap the best one by more than this IoU contribute to its position."""
    batch_size: int = 32
    """Images per forward pass; fewer on a CPU if they are large."""
    second_pass: bool = True
    """Detect small, rotated and doubtful faces again, in an aligned crop, for better landmarks and
    scores."""

    def __post_init__(self) -> None:
        if not 0 < self.score_threshold < 1:
            raise ValueError(f"score_threshold must be between 0 and 1, got {self.score_threshold}")
        if self.min_face is not None and not self.min_face >= 1:
            raise ValueError(f"min_face must be at least 1 pixel, got {self.min_face}")
        if self.max_side < 2 * OVERLAP:
            raise ValueError(f"max_side must be at least {2 * OVERLAP}, got {self.max_side}")
        if not self.rotations or any(degrees % 90 for degrees in self.rotations):
            raise ValueError(
                f"rotations must be multiples of 90 degrees, such as (0, 90, 180, 270), got "
                f"{self.rotations}"
            )

    @classmethod
    def override(
        cls,
        *,
        min_face: float | None = None,
        score_threshold: float | None = None,
        max_side: int | None = None,
        rotations: Sequence[int] | None = None,
    ) -> DetectionConfig:
        """Return the default settings with those that are not None replaced."""
        if isinstance(rotations, (int, str)):
            raise ValueError(
                f"rotations must be a list such as (0, 90, 180, 270), got {rotations!r}"
            )
        values: dict[str, Any] = {
            "min_face": min_face,
            "score_threshold": score_threshold,
            "max_side": max_side,
            "rotations": None if rotations is None else tuple(rotations),
        }
        return replace(cls(), **{k: v for k, v in values.items() if v is not None})


@torch.no_grad()
def detect(
    detector: FaceDetector, images: Sequence[Tensor], config: DetectionConfig | None = None
) -> Faces:
    """Detect every face in a list of images.

    The faces of an image do not depend on the other images, on autocast or on the default dtype.

    Args:
        detector: the network, in eval mode.
        images: uint8 RGB, each (H, W, 3), on the detector's device.
        config: scale and thresholds.

    Returns:
        Faces ordered by image, then by falling score.
    """
    config = config or DetectionConfig()
    if not images:
        return no_faces(next(detector.parameters()).device)
    device, threshold = images[0].device, config.score_threshold
    if config.second_pass:
        threshold = max(0.05, threshold - _BELOW)
    with torch.autocast(device.type, enabled=False), exact(device):
        parts = [_search(detector, images, turn, threshold, config) for turn in config.rotations]
        faces = parts[0] if len(parts) == 1 else _best_rotations(parts, config)
        if config.second_pass and len(faces.scores):
            faces = _improved(detector, images, faces, config)
    return faces if device.type == "cpu" else faces.to(device)


def no_faces(device: torch.device) -> Faces:
    """Return the faces of no image."""
    empty = torch.zeros(0, dtype=torch.float32, device=device)
    return Faces(empty.view(0, 4), empty.view(0, 5, 2), empty, empty.long())


@cache
def second_pass_points(side: int) -> Tensor:
    """Return where the second pass places the landmarks of a face in its input, (5, 2)."""
    with torch.inference_mode(False), torch.no_grad():
        points = template_points("arcface112", 112).float()
        scale = _CROP_EYES * side / (points[1] - points[0]).norm()
        return (points - points.mean(0)) * scale + (side - 1) / 2


def _improved(
    detector: FaceDetector, images: Sequence[Tensor], faces: Faces, config: DetectionConfig
) -> Faces:
    """Detect faces again in aligned crops, for their landmarks and scores.

    The score is the mean of both passes. Large upright faces of high score are not detected again;
    their score in the second pass counts as 1.
    """
    extents = [max(image.shape) for image in images]
    longest = faces.image_index.new_tensor(extents)[faces.image_index]
    sides = (faces.boxes[:, 2:] - faces.boxes[:, :2]).amax(1)
    is_large = sides * (config.max_side / longest).clamp(max=1) >= _LARGE
    roll = _template_fit(faces.landmarks)[0]
    is_upright = roll.abs() <= _UPRIGHT_DEG
    again = (~(is_large & is_upright) | (faces.scores < _CERTAIN)).nonzero()[:, 0]
    scores, landmarks = torch.ones_like(faces.scores), faces.landmarks.clone()
    if len(again):
        matrices = similarity_transform(landmarks[again], second_pass_points(_CROP))
        crops = align(images, faces.image_index[again], matrices, _CROP) / 127.5 - 1
        # Upside down, a face scores lower. A pattern, or a face that is upside down, does not.
        views = torch.cat([crops, crops.flip(2, 3)])
        seconds, points = _central_faces(detector, views, config)
        seconds, flipped = seconds.chunk(2)
        margins = (faces.scores[again] < _CERTAIN) * _MARGIN
        scores[again] = seconds.masked_fill(flipped > seconds - margins, -1.0)
        points = (points[: len(again)] - matrices[:, None, :, 2]) @ torch.linalg.inv(
            matrices[..., :2]
        ).mT
        share = 1 - is_large[again].to(landmarks)[:, None, None] / 2
        landmarks[again] = (1 - share) * landmarks[again] + share * points
    scores = (faces.scores + scores) / 2
    image_index = faces.image_index
    keep = scores > config.score_threshold
    certain = torch.where(is_upright, _CERTAIN, _CERTAIN_TILTED)
    doubts = (keep & (faces.scores < certain)).nonzero()[:, 0]
    if len(doubts):
        quarters = (roll[doubts] / 90).round().long() % 4
        keep[doubts] = ~_is_turned(detector, images, faces[doubts], quarters, config)
    order = keep.nonzero()[:, 0]
    order = order[scores[order].argsort(descending=True, stable=True)]
    order = order[image_index[order].argsort(stable=True)]
    if len(order) > 1:
        order = order[~_repeats_a_face(faces.boxes[order], landmarks[order], image_index[order])]
    return Faces(faces.boxes[order], landmarks[order], scores[order], image_index[order])


def _is_turned(
    detector: FaceDetector,
    images: Sequence[Tensor],
    faces: Faces,
    quarters: Tensor,
    config: DetectionConfig,
) -> Tensor:
    """Find the faces that score higher at another rotation than that of their landmarks.

    The crops follow the boxes, since the landmarks may be wrong. ``quarters`` are the quarter turns
    counterclockwise that turn the landmarks upright, (F,).

    Returns:
        bool, (F,).
    """
    middle = (faces.boxes[:, :2] + faces.boxes[:, 2:]) / 2
    scale = _TURNED_BOX / (faces.boxes[:, 2:] - faces.boxes[:, :2]).amax(1)
    shift = (_TURNED_CROP - 1) / 2 - scale[:, None] * middle
    unit = torch.eye(2, dtype=scale.dtype, device=scale.device)
    matrices = torch.cat([scale[:, None, None] * unit, shift[..., None]], 2)
    crops = align(images, faces.image_index, matrices, _TURNED_CROP) / 127.5 - 1
    crops = F.pad(crops, [_TURNED_PAD] * 4)
    views = torch.cat([torch.rot90(crops, turn, (2, 3)) for turn in range(4)])
    scores = _central_faces(detector, views, config)[0].view(4, -1)
    own = scores.gather(0, quarters[None])[0]
    return scores.amax(0) > own + _TURNED_MARGIN


def _central_faces(
    detector: FaceDetector, crops: Tensor, config: DetectionConfig
) -> tuple[Tensor, Tensor]:
    """Return score (F,) and landmarks (F, 5, 2) of the face in the middle of each crop."""
    parts = []
    for part in crops.split(_at_once(_CROPS_AT_ONCE, crops.shape[2:], crops.device)):
        candidates: Candidates = detector(part.contiguous(memory_format=torch.channels_last))
        boxes = candidates.boxes
        side = part.shape[-1]
        offset = (boxes[..., :2] + boxes[..., 2:] - (side - 1)).abs().amax(-1) / 2
        scores = candidates.logits.sigmoid() * (offset < side / 5)
        highest, best = scores.max(1)
        rows = torch.arange(len(part), device=part.device)
        agree = paired_iou(boxes, boxes[rows, best, None]) > config.vote_iou
        weights = scores * (agree & (scores >= highest[:, None] / 2))
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
        points = torch.einsum("fa,fapc->fpc", weights, candidates.landmarks)
        parts.append((highest.cpu(), points.cpu()))
    scores, points = map(torch.cat, zip(*parts, strict=True))
    return scores, points


def _best_rotations(rotations: Sequence[Faces], config: DetectionConfig) -> Faces:
    """Suppress the faces that have a higher score at another rotation of their image."""
    faces: Faces = concatenate(rotations)
    parts = [faces[:0]]
    for index in faces.image_index.unique().tolist():
        mine = faces[faces.image_index == index]
        mine = mine[nms(mine.boxes, mine.scores, config.nms_iou)]
        parts.append(mine[~_repeats_a_face(mine.boxes, mine.landmarks)])
    result: Faces = concatenate(parts)
    return result


def _search(
    detector: FaceDetector,
    images: Sequence[Tensor],
    degrees: int,
    threshold: float,
    config: DetectionConfig,
) -> Faces:
    """Detect the faces of rotated images, on the CPU."""
    views: dict[tuple[int, int], list[View]] = {}
    for number, image in enumerate(images):
        for view in views_of(
            image,
            number,
            degrees // 90 % 4,
            detector,
            min_side=config.min_side,
            max_side=config.max_side,
            min_face=config.min_face,
        ):
            views.setdefault(padded_shape(view, detector.multiple), []).append(view)
    parts = []
    for shape, alike in views.items():
        step = _at_once(config.batch_size, shape, images[0].device)
        for begin in range(0, len(alike), step):
            some = alike[begin : begin + step]
            parts.append(_likely(detector, some, threshold, config))
    # One copy to the host for all images: a few rows of each remain.
    boxes, points, scores, index = [torch.cat(part).cpu() for part in zip(*parts, strict=True)]
    merged = [(boxes[:0], points[:0], scores[:0], index[:0])]
    for number in index.unique().tolist():
        mine = index == number
        faces = _merge(boxes[mine], points[mine], scores[mine], threshold, config)
        merged.append((*faces, index[mine][: len(faces[0])]))
    boxes, points, scores, index = map(torch.cat, zip(*merged, strict=True))
    return Faces(boxes, points, scores, index)


def _at_once(limit: int, shape: Sequence[int], device: torch.device) -> int:
    """Return how many images (H, W) the network takes at once."""
    if device.type != "cpu":
        return limit
    pixels = _PIXELS_PER_THREAD * torch.get_num_threads()
    return max(1, min(limit, pixels // (shape[0] * shape[1])))


def _likely(
    detector: FaceDetector, views: list[View], threshold: float, config: DetectionConfig
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return boxes, landmarks, scores and image numbers of likely cells, in image pixels."""
    candidates: Candidates = detector(as_batch(views, detector.multiple))
    scores, boxes = candidates.logits.sigmoid(), candidates.boxes
    extent = (boxes[..., 2:] - boxes[..., :2]).amax(-1)
    table = boxes.new_tensor([view.numbers for view in views])  # (V, 17)
    inside = (boxes[..., :2] >= table[:, None, :2]) & (boxes[..., 2:] <= table[:, None, 2:4])
    likely = (scores > threshold / 2) & (extent >= detector.smallest_face)
    likely &= (extent <= table[:, 4:5]) & inside.all(-1)
    which, cell = likely.nonzero(as_tuple=True)
    points = torch.cat([boxes.unflatten(-1, (2, 2)), candidates.landmarks], -2)[which, cell]
    scale, offset, turn, quarters, index = table[which, None, 5:].split((2, 2, 6, 1, 1), -1)
    # Pixel centers are at whole numbers: half a pixel is added before scaling and removed after.
    points = (points + 0.5) / scale - 0.5 + offset
    turn = turn.unflatten(-1, (2, 3))
    points = (points[..., None, :] * turn[..., :2]).sum(-1) + turn[..., 2]
    low, high = points[:, :2].amin(1), points[:, :2].amax(1)
    extent, points = (high - low).amax(1), points[:, 2:]
    # A similarity without a large rotation takes the template near to the landmarks of a face, and
    # they fill a part of the box.
    roll, eyes, misfit = _template_fit(points)
    roll = (roll - 90 * quarters[:, 0, 0] + 180) % 360 - 180
    keep = (misfit <= _MISFIT * eyes) & (roll.abs() <= _ROLL_DEG) & (eyes >= _LEAST_EYES * extent)
    if config.min_face is not None:
        keep &= extent >= config.min_face
    boxes = torch.cat([low, high], 1)
    return boxes[keep], points[keep], scores[which, cell][keep], index[keep, 0, 0].long()


def _template_fit(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fit the template to landmarks (N, 5, 2): roll in degrees, eye distance, RMS error, (N,)."""
    template = template_points("arcface112", 112).to(points)
    template = template - template.mean(0)
    face = points - points.mean(1, keepdim=True)
    cosine = (face * template).sum((1, 2))
    sine = (template[:, 0] * face[..., 1] - template[:, 1] * face[..., 0]).sum(1)
    norm = template.square().sum()
    scale = torch.hypot(cosine, sine) / norm
    misfit = face.square().sum((1, 2)) - scale.square() * norm
    eyes = (template[0] - template[1]).norm() * scale
    return torch.rad2deg(torch.atan2(sine, cosine)), eyes, (misfit.clamp(min=0) / 5).sqrt()


def _merge(
    boxes: Tensor, points: Tensor, scores: Tensor, threshold: float, config: DetectionConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Reduce the cells that see one image to its faces: boxes, landmarks and scores.

    A face has the score of its best cell, and the mean box of the cells that agree with it.
    """
    best = nms(boxes, scores, config.nms_iou)
    best = best[scores[best] > threshold]
    if len(best) > 1:
        best = best[~_repeats_a_face(boxes[best], points[best])]
    weights = (paired_iou(boxes[best, None], boxes) > config.vote_iou) * scores
    weights = weights / weights.sum(1, keepdim=True)
    return weights @ boxes, torch.einsum("kn,npc->kpc", weights, points), scores[best]


def _repeats_a_face(boxes: Tensor, points: Tensor, image_index: Tensor | None = None) -> Tensor:
    """Find the faces that are one of the faces before them in the same image, bool, (N,).

    Their box contains that face, or their landmarks lie on its landmarks.
    """
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    contains = shared > _CONTAINED * (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)
    eyes = (points[:, 0] - points[:, 1]).norm(dim=-1)
    distances = (points[:, None] - points[None]).norm(dim=-1).mean(-1)
    alike = distances < _SAME_LANDMARKS * eyes[None]
    repeats = contains | alike
    if image_index is not None:
        repeats &= image_index[:, None] == image_index[None]
    return repeats.tril(-1).any(1)
