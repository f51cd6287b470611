"""Compare face detectors: the package's own, libfacedetection and MTCNN.

    python benchmarks/detectors.py DATA [--json docs/results/detectors.json]

``yuface`` is libfacedetection in C++ by the authors of YuNet; ``facenet-pytorch`` has MTCNN. Both
run at their own thresholds if they are installed. DATA is the folder with the packs. Boxes and
landmarks of the packs come from YuNet and from hand, so that libfacedetection has an advantage.
Times are of one thread, with images whose longer side is 640 and 250 pixels.
"""

import argparse
import math
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measuring import in_turn, stamp, write
from torch import Tensor

import facezoo
from facezoo.data.detection import LabeledImage, labeled_images
from facezoo.data.packs import read_pack
from facezoo.evaluate.detection import central_faces, compare
from facezoo.results import Faces

Finder = Callable[[list[Tensor]], Faces]
CURVE_PERCENT = (0.5, 1, 1.5, 2, 3, 5, 8)
"""Shares of unexplained detections at which the curve gives the recall."""


def faces_of(rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Faces:
    """Join the boxes (n, 4), landmarks (n, 5, 2) and scores (n,) of each image."""
    columns = (np.concatenate(column).astype(np.float32) for column in zip(*rows, strict=True))
    boxes, points, scores = map(torch.from_numpy, columns)
    counts = torch.tensor([len(row[0]) for row in rows])
    return Faces(boxes, points, scores, torch.arange(len(rows)).repeat_interleave(counts))


def by_facezoo(threshold: float | None = None) -> Finder:
    return lambda images: facezoo.detect(
        [image.numpy() for image in images], "cpu", score_threshold=threshold
    )


def by_yuface(images: list[Tensor]) -> Faces:
    import yuface

    rows = []
    for image in images:
        scores, boxes, points = yuface.detect(np.ascontiguousarray(image.numpy()[:, :, ::-1]))
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        rows.append((corners, points.reshape(-1, 5, 2), scores))
    return faces_of(rows)


def by_mtcnn() -> Finder:
    from facenet_pytorch import MTCNN

    detector = MTCNN(keep_all=True)

    def find(images: list[Tensor]) -> Faces:
        rows = []
        for image in images:
            boxes, scores, points = detector.detect(image.numpy(), landmarks=True)
            nothing = np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0)
            rows.append(nothing if boxes is None else (boxes, points, scores))
        return faces_of(rows)

    return find


def finders() -> dict[str, Finder]:
    """Return the detectors that are installed."""
    installed: dict[str, Finder] = {"facezoo": by_facezoo()}
    if find_spec("yuface"):
        installed["libfacedetection"] = by_yuface
    if find_spec("facenet_pytorch"):
        installed["MTCNN"] = by_mtcnn()
    return installed


def resized(image: Tensor, side: int) -> Tensor:
    """Resize an image to a longer side."""
    height, width = image.shape[:2]
    shape = [round(s * side / max(height, width)) for s in (height, width)]
    pixels = image.permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, shape, mode="bilinear", antialias=True)[0]
    return pixels.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous()


def times(ways: dict[str, Finder], images: list[LabeledImage], repeats: int) -> dict[str, dict]:
    """Measure milliseconds per image, one image at a time, by detector and longer side."""
    result: dict[str, dict] = {name: {} for name in ways}
    for side in (640, 250):
        shown = [resized(image.pixels, side) for image in images]
        timed = in_turn(
            {
                name: lambda f=find, s=shown: [f([image]) for image in s]
                for name, find in ways.items()
            },
            repeats,
        )
        for name, seconds in timed.items():
            result[name][f"ms at {side} px"] = 1000 * min(seconds.seconds) / len(shown)
    return result


def row_of(name: str, find: Finder, sets: dict[str, list[LabeledImage]]) -> dict[str, str | float]:
    """Measure one detector on each set of images."""
    row: dict[str, str | float] = {"detector": name}
    for label, images in sets.items():
        result = compare(find, images, marks=label == "everyday")
        row[f"{label}: recall, %"] = 100 * result.recall()
        if label != "central face":
            row[f"{label}: unexplained, %"] = 100 * result.unexplained_share()
        if not math.isnan(result.error()):
            row[f"{label}: landmarks, %"] = 100 * result.error()
    return row


def curve(find: Finder, images: list[LabeledImage]) -> dict[str, float]:
    """Measure the recall at several shares of unexplained detections."""
    result = compare(find, images)
    return {f"recall at {p} %": 100 * result.recall_at(p / 100)[0] for p in CURVE_PERCENT}


def image_sets(data: Path, limit: int | None = None) -> dict[str, list[LabeledImage]]:
    """Read the validation images."""
    groups = read_pack(data / "groups.parquet", "val")
    everyday = np.array(groups["source"].to_pylist()) == "webfaces"
    people = read_pack(data / "lfw.parquet", "val")
    return {
        "everyday": labeled_images(groups.filter(everyday).slice(0, limit)),
        "groups and crowds": labeled_images(groups.filter(~everyday).slice(0, limit)),
        "LFW": labeled_images(people.slice(0, limit)),
        "central face": central_faces(people.slice(0, limit)),
    }


def main(data: Path, limit: int | None = None, repeats: int = 3) -> dict:
    torch.set_num_threads(1)
    sets = image_sets(data, limit)
    ways = finders()
    spent = times(ways, sets["everyday"][:30], repeats)
    rows, curves = [], []
    for name, find in ways.items():
        rows.append(row_of(name, find, sets) | spent[name])
        print(rows[-1], flush=True)
        loose = by_facezoo(0.4) if name == "facezoo" else find
        for label in ("everyday", "groups and crowds"):
            curves.append({"detector": name, "images": label, **curve(loose, sets[label])})
    return {
        **stamp(shlex.join(["python", "benchmarks/detectors.py", *sys.argv[1:]])),
        "images": {label: len(images) for label, images in sets.items()},
        "tables": {"detectors": rows, "curves": curves},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--limit", type=int, help="images of each set, to try the script")
    options = parser.parse_args()
    write(main(options.data, options.limit), options.json)
