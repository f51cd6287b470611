"""Measure how fast images become features, compared with a manually written pipeline.

    python benchmarks/pipeline.py FOLDER_OR_PARQUET [--yunet FILE.onnx] [--json pipeline.json]

In the manual pipelines, OpenCV reads a file, a detector finds the face and its landmarks, a
similarity and warpAffine crop it, and the bare timm backbone encodes it. Installed detectors are
used: OpenCV's YuNet (pass its file), ``yuface`` (libfacedetection in C++ by YuNet's authors) and
the MTCNN of ``facenet-pytorch``. One more pipeline gets the landmarks at no cost, as an upper
bound. All process the largest face of each image, in batches and one image at a time.

A Parquet pack must have a column ``image`` of encoded bytes, which are written to a temporary
folder first. The shares of the stages are wall-clock times of ``facezoo extract``.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import timm
import torch
from measuring import in_turn, stamp, write

import facezoo
from facezoo.errors import UnsupportedError
from facezoo.extraction import extract
from facezoo.extraction.sources import list_images
from facezoo.preprocess.templates import template_points

Pictures = list[np.ndarray]
"""Images, BGR."""
Points = Callable[[Pictures, list[str]], list[np.ndarray | None]]
"""Function from images and their names to five landmarks (5, 2) of the largest face of each."""


class ByHand:
    """A pipeline written without facezoo."""

    def __init__(self, backbone: str, points: Points, device: str) -> None:
        network = timm.create_model(backbone, num_classes=0).eval()
        self.network = network.to(device, memory_format=torch.channels_last)
        self.points, self.device = points, device
        self.target = template_points("arcface112", 112).numpy().astype(np.float32)

    @torch.inference_mode()
    def __call__(self, files: list[str], batch_size: int) -> torch.Tensor:
        parts = []
        for begin in range(0, len(files), batch_size):
            some = files[begin : begin + batch_size]
            pictures = [cv2.imread(file) for file in some]
            found = self.points(pictures, some)
            crops = np.stack([self.crop(*pair) for pair in zip(pictures, found, strict=True)])
            pixels = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2)
            parts.append(self.network(pixels.float() / 127.5 - 1))
            parts[-1][[points is None for points in found]] = float("nan")
        return torch.cat(parts)

    def crop(self, picture: np.ndarray, points: np.ndarray | None) -> np.ndarray:
        """Crop a face; without a face, return black and NaN."""
        if points is None:
            return np.zeros((112, 112, 3), np.uint8)
        matrix, _ = cv2.estimateAffinePartial2D(points.astype(np.float32), self.target)
        return cv2.cvtColor(cv2.warpAffine(picture, matrix, (112, 112)), cv2.COLOR_BGR2RGB)


def by_yunet(model: Path) -> Points:
    """Detect with OpenCV's YuNet."""
    detector = cv2.FaceDetectorYN.create(str(model), "", (320, 320))

    def points(picture: np.ndarray) -> np.ndarray | None:
        detector.setInputSize(picture.shape[1::-1])
        _, faces = detector.detect(picture)
        if faces is None:
            return None
        return max(faces, key=lambda face: face[2] * face[3])[4:14].reshape(5, 2)

    return lambda pictures, _: [points(picture) for picture in pictures]


def by_yuface(pictures: Pictures, _: list[str]) -> list[np.ndarray | None]:
    """Detect with libfacedetection, faces with a score of 0.5 or more."""
    import yuface

    def points(picture: np.ndarray) -> np.ndarray | None:
        _, boxes, landmarks = yuface.detect(picture)
        if not len(boxes):
            return None
        return landmarks[boxes[:, 2:].prod(1, dtype=np.int64).argmax()].reshape(5, 2)

    return [points(picture) for picture in pictures]


def by_mtcnn(device: str) -> Points:
    """Detect with facenet-pytorch's MTCNN; images of one size are processed together."""
    from facenet_pytorch import MTCNN

    detector = MTCNN(device=device)  # the first face is the largest

    def points(pictures: Pictures, _: list[str]) -> list[np.ndarray | None]:
        several = [np.ascontiguousarray(picture[:, :, ::-1]) for picture in pictures]
        if len({picture.shape for picture in several}) == 1:
            found = detector.detect(np.stack(several), landmarks=True)[2]
        else:
            found = [detector.detect(picture, landmarks=True)[2] for picture in several]
        return [None if marks is None else marks[0] for marks in found]

    return points


def given(files: list[str]) -> Points:
    """Return stored landmarks, at no cost."""
    faces = facezoo.detect(files, "cpu", faces="largest", on_missing="nan")
    known = {
        file: None if np.isnan(points).any() else points
        for file, points in zip(files, faces.landmarks.numpy(), strict=True)
    }
    return lambda _, names: [known[name] for name in names]


def rivals(files: list[str], options: argparse.Namespace) -> dict[str, Points]:
    """Return the installed detectors."""
    found: dict[str, Points] = {"by hand, landmarks given": given(files)}
    if options.yunet:
        found["by hand, OpenCV's YuNet"] = by_yunet(options.yunet)
    if find_spec("yuface"):
        found["by hand, libfacedetection"] = by_yuface
    if find_spec("facenet_pytorch"):
        found["by hand, MTCNN"] = by_mtcnn(options.device)
    return found


def compare(files: list[str], options: argparse.Namespace) -> list[dict]:
    """Measure images per second of every pipeline, and milliseconds of a single image."""
    loaded = {
        "facezoo": facezoo.load(options.model, device=options.device),
        "facezoo, bfloat16": facezoo.load(
            options.model, device=options.device, dtype=torch.bfloat16
        ),
    }
    with suppress(UnsupportedError):  # on other devices, or without torchvision support
        loaded["facezoo, bfloat16, nvJPEG"] = facezoo.load(
            options.model, device=options.device, dtype=torch.bfloat16, jpeg="nvjpeg"
        )
    for runtime in options.runtimes:
        loaded[f"facezoo, {runtime}"] = facezoo.load(options.model, runtime=runtime)
        with suppress(UnsupportedError):
            loaded[f"facezoo, {runtime}, bfloat16"] = facezoo.load(
                options.model, runtime=runtime, dtype=torch.bfloat16
            )
    ways = {
        n: lambda f, b, m=m: m.encode_expression(f, batch_size=b, faces="largest", on_missing="nan")
        for n, m in loaded.items()
    } | {n: ByHand("resnet18", p, options.device) for n, p in rivals(files, options).items()}
    many = in_turn(
        {n: lambda w=w: w(files, options.batch_size) for n, w in ways.items()},
        options.repeats,
        options.device,
    )
    few = files[: max(1, len(files) // 8)]
    ones = in_turn(
        {n: lambda w=w: [w([file], 1) for file in few] for n, w in ways.items()},
        options.repeats,
        options.device,
    )
    return [
        {
            "way": n,
            "faces found": int(ways[n](files, options.batch_size).isfinite().all(1).sum()),
            "photographs/s": many[n].per_second(len(files)),
            "slowest to fastest": many[n].spread(len(files)),
            "facezoo's speed over it": many[n].over(many["facezoo"]),
            "one alone, ms": 1000 / ones[n].per_second(len(few)),
            "one alone, facezoo's speed over it": ones[n].over(ones["facezoo"]),
        }
        for n in ways
    ]


def stages(files: list[str], scratch: Path, options: argparse.Namespace) -> list[dict]:
    """Measure milliseconds and shares of the stages of an extraction."""
    model = facezoo.load(options.model, device=options.device)
    reports = [
        extract(
            files,
            scratch / "features.npz",
            model=model,
            what=("expression",),
            faces="largest",
            batch_size=options.batch_size,
            profile=True,
            overwrite=True,
            progress=False,
        )
        for _ in range(options.repeats + 1)
    ][1:]
    return [
        {
            "stage": stage,
            "ms per photograph": 1000 * median(r.seconds[stage] for r in reports) / len(files),
            "share": f"{100 * median(r.shares()[stage] for r in reports):.0f} %",
        }
        for stage in reports[0].shares()
    ]


def unpack(pack: Path, folder: Path, limit: int) -> Path:
    """Write the first images of a pack as files."""
    import pyarrow.parquet as pq

    folder.mkdir()
    images = (
        image.as_py()
        for batch in pq.ParquetFile(pack).iter_batches(256, columns=["image"])
        for image in batch["image"]
    )
    for number, image in zip(range(limit), images, strict=False):
        (folder / f"{number:06d}.jpg").write_bytes(image)
    return folder


def main(options: argparse.Namespace) -> dict:
    """Return both tables."""
    cv2.setNumThreads(torch.get_num_threads())
    with TemporaryDirectory() as scratch:
        folder = options.source
        if folder.suffix == ".parquet":
            folder = unpack(folder, Path(scratch) / "photos", options.limit)
        photos = list_images(folder)
        files = [str(photos.root / name) for name in photos.names[: options.limit]]
        height, width = cv2.imread(files[0]).shape[:2]
        tables = {
            "pipeline": compare(files, options),
            "stages": stages(files, Path(scratch), options),
        }
    command = shlex.join(["python", "benchmarks/pipeline.py", *sys.argv[1:]])
    said = {"photographs": len(files), "size": f"{width} x {height}", "batch": options.batch_size}
    return {**stamp(command, options.device), **said, "tables": tables}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", type=Path, help="a folder of images, or a .parquet pack")
    parser.add_argument("--yunet", type=Path, metavar="FILE", help="YuNet's .onnx file")
    parser.add_argument("--limit", type=int, default=128, metavar="N", help="images")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--model", default="ipd-fer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--runtimes", nargs="*", default=[], metavar="NAME", help="also in these")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the numbers")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    given_options = parse()
    write(main(given_options), given_options.json)
