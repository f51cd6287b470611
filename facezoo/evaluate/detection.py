"""Face detection against photographs whose faces are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from facezoo.data.packs import as_points, decode
from facezoo.preprocess.boxes import area, iou
from facezoo.preprocess.detection import DetectionConfig, detect
from facezoo.preprocess.detector import FaceDetector
from facezoo.results import Faces

if TYPE_CHECKING:
    import pyarrow as pa


def measure(
    detector: FaceDetector,
    table: pa.Table,
    device: torch.device,
    smallest: float = 24.0,
    config: DetectionConfig | None = None,
) -> dict[str, float]:
    """Detection on whole photographs whose faces are known.

    A face is found if a box overlaps it with an IoU of at least 0.5. Detections in regions that
    the pack is unsure about, and on faces smaller than ``smallest``, count neither way.

    Args:
        detector: the network, in eval mode.
        table: rows with ``image``, ``faces`` and ``unsure``.
        device: where the detector is.
        smallest: least length of a face's longer side, pixels.
        config: scales and thresholds.

    Returns:
        See ``measure_finder``.
    """
    return measure_finder(lambda photos: detect(detector, photos, config), table, device, smallest)


def measure_finder(
    find: Callable[[list[Tensor]], Faces],
    table: pa.Table,
    device: torch.device,
    smallest: float = 24.0,
) -> dict[str, float]:
    """The same of anything that finds faces.

    Args:
        find: from photographs, uint8 (H, W, 3), to every face in them.
        table: see ``measure``.
        device: where ``find`` wants the photographs.
        smallest: see ``measure``.

    Returns:
        ``recall``; ``false_positives`` as a share of the detections that count;
        ``landmark_error`` and ``landmark_median``, the mean over the landmarks of a found face as a
        share of the distance between its eyes, averaged over faces in the two ways; ``faces``,
        how many count.
    """
    tally = torch.zeros(4, dtype=torch.long)
    errors: list[Tensor] = []
    for begin in range(0, len(table), 64):
        part = table.slice(begin, 64)
        photos = [decode(image.as_py()).to(device) for image in part["image"]]
        seen = find(photos).to("cpu")
        rows = zip(part["faces"].to_pylist(), part["unsure"].to_pylist(), strict=True)
        for index, (faces, regions) in enumerate(rows):
            counted, apart = _compare(
                seen[seen.image_index == index],
                as_points([face["box"] for face in faces], 2).flatten(1),
                as_points([face["landmarks"] for face in faces], 5),
                as_points(regions, 2).flatten(1),
                smallest,
            )
            tally += counted
            errors.append(apart)
    wanted, found, detections, wrong = tally.tolist()
    return {
        "recall": found / max(1, wanted),
        "false_positives": wrong / max(1, detections),
        "landmark_error": float(torch.cat(errors).nanmean()) if found else float("nan"),
        "landmark_median": float(torch.cat(errors).nanmedian()) if found else float("nan"),
        "faces": wanted,
    }


def central_alone(table: pa.Table) -> pa.Table:
    """The same photographs, in which only the face of ``box`` and ``landmarks`` is looked for.

    The others become regions that count neither way.

    Args:
        table: rows with ``box`` and ``landmarks`` of one face beside ``faces`` and ``unsure``.

    Returns:
        The table with ``faces`` and ``unsure`` replaced.
    """
    import pyarrow as pa

    wanted, apart = [], []
    columns = ("box", "landmarks", "faces", "unsure")
    for box, points, faces, regions in zip(*(table[c].to_pylist() for c in columns), strict=True):
        wanted.append([{"box": box, "landmarks": points}])
        apart.append(regions + [face["box"] for face in faces if face["box"] != box])
    for name, column in (("faces", wanted), ("unsure", apart)):
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(column))
    return table


def _compare(
    seen: Faces, boxes: Tensor, points: Tensor, regions: Tensor, smallest: float
) -> tuple[Tensor, Tensor]:
    """One photograph: faces wanted, faces found, detections, wrong ones; landmark errors."""
    large = (boxes[:, 2:] - boxes[:, :2]).amax(1) >= smallest
    overlap = iou(boxes, seen.boxes)
    hit = (overlap >= 0.5).any(1) & large
    of_large = (overlap[large] >= 0.5).any(0)
    elsewhere = _touches(seen.boxes, torch.cat([boxes[~large], regions]))
    errors = []
    for face in hit.nonzero()[:, 0]:
        match = seen.landmarks[overlap[face].argmax()]
        between_eyes = (points[face, 0] - points[face, 1]).norm()
        errors.append((match - points[face]).norm(dim=-1).mean() / between_eyes)
    counts = [large.sum(), hit.sum(), (of_large | ~elsewhere).sum(), (~of_large & ~elsewhere).sum()]
    return torch.stack(counts), torch.stack(errors) if errors else torch.zeros(0)


def _touches(boxes: Tensor, regions: Tensor) -> Tensor:
    """Whether the larger part of a box, or of a region, is where the two overlap, (N,)."""
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    smaller = torch.minimum(area(boxes)[:, None], area(regions)[None]).clamp(min=1e-6)
    return (shared / smaller > 0.5).any(1)
