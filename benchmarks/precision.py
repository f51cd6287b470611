"""Measure how far features in reduced precision differ from those in float32.

    python benchmarks/precision.py FOLDER [--limit 100] [--json precision.json]

FOLDER holds images. Faces are detected and aligned once. Then every feature is computed in every
precision, and compared with float32 by its cosine.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import stamp, write

import facezoo
from facezoo.errors import UnsupportedError
from facezoo.extraction.sources import list_images
from facezoo.preprocess.alignment import prepare
from facezoo.preprocess.images import read_image
from facezoo.preprocess.pipeline import to_device
from facezoo.results import flatten_rows

DTYPES = (torch.bfloat16, torch.float16)


def compare(name: str, photos: list, faces, device: str) -> list[dict]:
    """Return the rows of one checkpoint, one per precision and feature."""
    exact = facezoo.load(name, device=device)
    wanted = [f for f in exact.capabilities() if f.startswith("encode_")]
    crops = prepare(photos, faces, exact.preprocessing)
    features = exact.run(crops, wanted)
    rows = []
    for dtype in DTYPES:
        reduced = facezoo.load(name, device=device, dtype=dtype).run(crops, wanted)
        for feature in wanted:
            pair = (flatten_rows(side[feature]).double() for side in (features, reduced))
            cosine = F.cosine_similarity(*pair, dim=1)
            rows.append(
                {
                    "checkpoint": f"`{name}`",
                    "precision": str(dtype).removeprefix("torch."),
                    "feature": feature.removeprefix("encode_"),
                    "faces": len(cosine),
                    "least cosine": f"{float(cosine.min()):.5f}",
                    "median cosine": f"{float(cosine.median()):.5f}",
                }
            )
    return rows


def refused(name: str) -> bool:
    """Return True if a checkpoint cannot be loaded in reduced precision."""
    try:
        facezoo.load(name, device="cpu", dtype=DTYPES[0])
    except UnsupportedError:
        return True
    return False


def main(folder: Path, limit: int, device: str = "cpu") -> dict:
    """Measure all bundled checkpoints; list those without reduced precision."""
    listed = list_images(folder)
    read = [read_image(listed.root / name) for name in listed.names[:limit]]
    photos = to_device(read, torch.device(device))
    faces = facezoo.detect(read, device, faces="largest")
    names = facezoo.list_models(pretrained=True)
    without = [name for name in names if refused(name)]
    rows = [
        row for name in names if name not in without for row in compare(name, photos, faces, device)
    ]
    command = shlex.join(["python", "benchmarks/precision.py", *sys.argv[1:]])
    return {**stamp(command, device), "refused": without, "tables": {"precision": rows}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=100, metavar="N", help="images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    write(main(options.folder, options.limit, options.device), options.json)
