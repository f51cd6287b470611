"""How other face detectors do by the protocol that the package's own is measured by.

    python benchmarks/detectors.py DATA [--json docs/results/detectors.json]

Beside the package's own stand those that are installed: ``yuface``, libfacedetection in C++ by the
authors of YuNet, and the MTCNN of ``facenet-pytorch``, both as they come. The truth is YuNet's own
boxes and landmarks (see the data's README), so that libfacedetection is a judge in its own cause;
MTCNN is not. DATA is the folder with lfw.parquet; its validation photographs are looked at.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from measuring import stamp, write
from torch import Tensor

from facezoo.data.packs import read_pack
from facezoo.evaluate.detection import central_alone, measure_finder
from facezoo.preprocess.pipeline import find_faces
from facezoo.results import Faces

Finder = Callable[[list[Tensor]], Faces]


def faces_of(found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Faces:
    """Boxes (n, 4) as corners, landmarks (n, 5, 2) and scores (n,) of each photograph."""
    columns = (np.concatenate(column).astype(np.float32) for column in zip(*found, strict=True))
    boxes, points, scores = map(torch.from_numpy, columns)
    counts = torch.tensor([len(photo[0]) for photo in found])
    return Faces(boxes, points, scores, torch.arange(len(found)).repeat_interleave(counts))


def by_yuface(photos: list[Tensor]) -> Faces:
    import yuface

    found = []
    for photo in photos:
        scores, boxes, points = yuface.detect(np.ascontiguousarray(photo.numpy()[:, :, ::-1]))
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        found.append((corners, points.reshape(-1, 5, 2), scores))
    return faces_of(found)


def by_mtcnn() -> Finder:
    from facenet_pytorch import MTCNN

    detector = MTCNN(keep_all=True)

    def find(photos: list[Tensor]) -> Faces:
        found = []
        for photo in photos:
            boxes, scores, points = detector.detect(photo.numpy(), landmarks=True)
            nothing = np.zeros((0, 4)), np.zeros((0, 5, 2)), np.zeros(0)
            found.append(nothing if boxes is None else (boxes, points, scores))
        return faces_of(found)

    return find


def finders() -> dict[str, Finder]:
    """Those that are at hand."""
    found: dict[str, Finder] = {
        "facezoo": lambda photos: find_faces(photos, faces="all", on_missing="skip")
    }
    if find_spec("yuface"):
        found["libfacedetection"] = by_yuface
    if find_spec("facenet_pytorch"):
        found["MTCNN"] = by_mtcnn()
    return found


def row_of(name: str, find: Finder, table: pa.Table) -> dict[str, str | float]:
    """One detector's numbers, over all faces and over the one nearest the middle."""
    seen: list[Faces] = []

    def watched(photos: list[Tensor]) -> Faces:
        seen.append(find(photos))
        return seen[-1]

    begin = time.process_time()
    scores = measure_finder(watched, table, torch.device("cpu"))
    spent = time.process_time() - begin
    again = iter(seen)
    central = measure_finder(lambda _: next(again), central_alone(table), torch.device("cpu"))
    return {
        "detector": name,
        "recall, %": 100 * scores["recall"],
        "false positives, %": 100 * scores["false_positives"],
        "landmarks, mean %": 100 * scores["landmark_error"],
        "landmarks, median %": 100 * scores["landmark_median"],
        "central face: recall, %": 100 * central["recall"],
        "its landmarks, mean %": 100 * central["landmark_error"],
        "ms per photograph": 1000 * spent / len(table),
    }


def teacher_spread(table: pa.Table) -> float:
    """How far the teacher's own runs disagree on the face nearest the middle, as a mean share of
    the distance between its eyes."""
    points = np.array(table["landmarks"].to_pylist()).reshape(-1, 5, 2)
    eyes = np.linalg.norm(points[:, 0] - points[:, 1], axis=1)
    return float((table["landmark_spread"].to_numpy() / eyes).mean())


def teacher_recall(table: pa.Table, every: pa.Table, smallest: float = 24.0) -> float:
    """The share of the faces that one of the teacher's runs sees, at most.

    A face's score is the mean of its scores in four runs, 0 where a run misses it, and two runs
    see it at least. So the least score of all is that of two runs at the runs' threshold, and a
    face was seen by as many runs as this threshold fits into the sum of its scores, or by fewer.

    Args:
        table: rows with ``faces``.
        every: the rows that the threshold is told from.
        smallest: least length of a face's longer side, pixels.
    """
    threshold = min(face["score"] for row in every["faces"].to_pylist() for face in row) * 4 / 2
    faces = [face for row in table["faces"].to_pylist() for face in row]
    boxes = np.array([face["box"] for face in faces])
    large = (boxes[:, 2:] - boxes[:, :2]).max(1) >= smallest
    scores = np.array([face["score"] for face in faces])[large]
    return float((scores * 4 / threshold + 1e-6).astype(int).clip(2, 4).mean() / 4)


def main(data: Path) -> dict:
    table = read_pack(data / "lfw.parquet", "val")
    rows = []
    for name, find in finders().items():
        rows.append(row_of(name, find, table))
        print(rows[-1], flush=True)
    command = shlex.join(["python", "benchmarks/detectors.py", *sys.argv[1:]])
    return {
        **stamp(command),
        "photographs": len(table),
        "teacher's runs apart, mean %": 100 * teacher_spread(table),
        "one run of the teacher, recall at most, %": 100
        * teacher_recall(table, read_pack(data / "lfw.parquet")),
        "tables": {"detectors": rows},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    write(main(options.data), options.json)
