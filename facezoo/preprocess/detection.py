"""Finding faces in photographs of any sizes, in batches, on the detector's device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.inference import exact
from facezoo.preprocess.boxes import iou, suppress
from facezoo.preprocess.detector import STRIDES, Candidates, FaceDetector
from facezoo.results import Faces


@dataclass(frozen=True)
class DetectionConfig:
    """How photographs are shown to the detector and what counts as a face."""

    smallest_side: int = 64
    """Photographs whose longer side is shorter than this are enlarged to it, pixels."""
    largest_side: int = 640
    """Photographs whose longer side is longer than this are reduced to it, pixels."""
    again_above: int = 96
    """Photographs with a longer side are also shown in half size, and again, so that a face may
    fill them; pixels."""
    score: float = 0.955
    """Least score of a face."""
    smallest_face: float = 20.0
    """Least length of a face's longer side, as the detector is shown it, pixels."""
    overlap: float = 0.4
    """IoU above which the lower score of two boxes goes."""
    voters: float = 0.6
    """Boxes that overlap a kept one by more than this IoU share in its position."""
    batch_size: int = 32
    """Photographs per forward pass."""


@dataclass(frozen=True)
class _View:
    """One photograph at one scale."""

    photo: int
    pixels: Tensor
    """In [-1, 1], padded to whole strides, (3, H, W)."""
    scale: tuple[float, float]
    """View pixels per photograph pixel, x and y."""


@torch.inference_mode()
def detect(
    detector: FaceDetector, photos: Sequence[Tensor], config: DetectionConfig | None = None
) -> Faces:
    """Every face in a list of photographs.

    What is found in a photograph does not depend on the others in the list.

    Args:
        detector: the network, in eval mode.
        photos: uint8 RGB, each (H, W, 3), on the detector's device.
        config: scales and thresholds.

    Returns:
        Faces ordered by photograph, then by falling score.
    """
    config = config or DetectionConfig()
    views: dict[tuple[int, ...], list[_View]] = {}
    for index, photo in enumerate(photos):
        for view in _views(photo, index, config):
            views.setdefault(tuple(view.pixels.shape), []).append(view)
    device = next(detector.parameters()).device
    found = [_nothing(device)]
    with exact(device):
        for alike in views.values():
            for begin in range(0, len(alike), config.batch_size):
                part = alike[begin : begin + config.batch_size]
                found.append(_candidates(detector, part, config))
    # One copy to the host for all photographs: what is left are a few rows of each.
    scores, boxes, points, photo = (torch.cat(part).cpu() for part in zip(*found, strict=True))
    return _merge(scores, boxes, points, photo, config).to(device)


def _views(photo: Tensor, index: int, config: DetectionConfig) -> list[_View]:
    """A photograph at every scale that it is looked at."""
    height, width = photo.shape[:2]
    longest = max(height, width)
    pixels = photo.permute(2, 0, 1)[None].float() / 127.5 - 1
    side = min(max(longest, config.smallest_side), config.largest_side)
    views = []
    while True:
        size = [max(1, round(s * side / longest)) for s in (height, width)]
        if size != [height, width]:
            shown = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)[0]
        else:
            shown = pixels[0]
        pad = [-s % STRIDES[-1] for s in size]
        shown = F.pad(shown, (0, pad[1], 0, pad[0]))
        views.append(_View(index, shown, (size[1] / width, size[0] / height)))
        if side <= config.again_above:
            return views
        side //= 2


def _nothing(device: torch.device) -> tuple[Tensor, ...]:
    empty = torch.zeros(0, dtype=torch.float32, device=device)
    return empty, empty.view(0, 4), empty.view(0, 5, 2), empty.long()


def _candidates(
    detector: FaceDetector, views: list[_View], config: DetectionConfig
) -> tuple[Tensor, ...]:
    """Scores, boxes, landmarks in photograph pixels and photograph numbers of likely cells."""
    batch = torch.stack([view.pixels for view in views])
    said: Candidates = detector(batch.contiguous(memory_format=torch.channels_last))
    scores, boxes = said.logits.sigmoid(), said.boxes
    extent = boxes[..., 2:] - boxes[..., :2]
    likely = (scores > config.score / 2) & (extent.amax(-1) >= config.smallest_face)
    which, cell = likely.nonzero(as_tuple=True)
    scale = boxes.new_tensor([view.scale for view in views])[which]
    photo = torch.tensor([view.photo for view in views], device=batch.device)[which]
    # Pixel centres at whole numbers: half a pixel is added before scaling and taken off after.
    boxes = (boxes[which, cell] + 0.5) / scale.repeat(1, 2) - 0.5
    points = (said.landmarks[which, cell] + 0.5) / scale[:, None] - 0.5
    return scores[which, cell], boxes, points, photo


def _merge(
    scores: Tensor, boxes: Tensor, points: Tensor, photo: Tensor, config: DetectionConfig
) -> Faces:
    """One face out of the many cells that saw it: the best one's box, moved by those who agree."""
    kept = []
    for number in photo.unique().tolist():
        mine = photo == number
        score, box, point = scores[mine], boxes[mine], points[mine]
        overlaps = iou(box, box)
        best = suppress(overlaps, score, config.overlap) & (score > config.score)
        weight = (overlaps[best] > config.voters) * score
        weight = weight / weight.sum(1, keepdim=True)
        moved = torch.einsum("kn,npc->kpc", weight, point)
        order = score[best].argsort(descending=True)
        kept.append(
            Faces((weight @ box)[order], moved[order], score[best][order], photo[mine][best][order])
        )
    if not kept:
        return Faces(boxes, points, scores, photo)
    return Faces(
        torch.cat([f.boxes for f in kept]),
        torch.cat([f.landmarks for f in kept]),
        torch.cat([f.scores for f in kept]),
        torch.cat([f.image_index for f in kept]),
    )
