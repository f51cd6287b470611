"""How fast photographs become features, and what the time goes into.

    python benchmarks/pipeline.py FOLDER_OR_PARQUET [--json out.json]

Measures what ``facezoo extract`` does: decode, detect, align, encode, write. A Parquet pack must
have a column ``image`` of encoded bytes; its photographs are unpacked to a temporary folder first.
The photographs per second are those of whole runs, the median over the repeats; the shares are of
the work, where decoding counts although it runs beside the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy
import PIL
import torch

from facezoo import load
from facezoo.extraction import ExtractionReport, extract
from facezoo.extraction.inputs import list_photos
from facezoo.version import __version__


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    random = {} if options.weights == "pretrained" else {"pretrained": False}
    model = load(options.model, device=options.device, **random)
    with TemporaryDirectory() as scratch:
        folder = Path(options.source)
        if folder.suffix == ".parquet":
            folder = unpack(folder, Path(scratch) / "photos", options.limit)
        photos = list_photos(folder)
        files = [photos.root / name for name in photos.names[: options.limit]]
        output = Path(scratch) / "features.npz"
        reports = []
        for number in range(options.repeats + 1):
            report = extract(
                files,
                output,
                model=model,
                batch_size=options.batch_size,
                workers=options.workers,
                profile=True,
                overwrite=True,
                progress=False,
            )
            # The first run warms up the allocator, the file cache and the kernels' choice.
            print(f"{'warm-up' if number == 0 else f'run {number}'}: {report}")
            reports.append(report)
    result = {**summary(reports[1:]), **settings(options, str(model.device))}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", help="a folder of photographs, or a .parquet pack")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there")
    parser.add_argument("--limit", type=int, default=300, metavar="N", help="photographs")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--model", default="ipd-fer")
    parser.add_argument("--weights", choices=["pretrained", "random"], default="pretrained")
    parser.add_argument("--device")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="decoding threads")
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of torch"
    )
    return parser.parse_args()


def unpack(pack: Path, folder: Path, limit: int) -> Path:
    """Write the first photographs of a pack as files."""
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


def summary(reports: list[ExtractionReport]) -> dict[str, Any]:
    """Medians over the repeats; seconds are per photograph."""
    first = reports[0]
    speeds = sorted(report.images_per_second for report in reports)
    return {
        "photographs": first.images,
        "faces": first.rows,
        "photographs_per_second": round(median(speeds), 2),
        "slowest_and_fastest": [round(speeds[0], 2), round(speeds[-1], 2)],
        "milliseconds_per_photograph": {
            stage: round(1000 * median(r.seconds[stage] for r in reports) / first.images, 3)
            for stage in first.seconds
        },
        "share": {
            stage: round(median(r.shares()[stage] for r in reports), 4) for stage in first.shares()
        },
    }


def settings(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name() if device.startswith("cuda") else processor()
    return {
        "model": options.model,
        "weights": options.weights,
        "repeats": options.repeats,
        "batch_size": options.batch_size,
        "decoding_threads": options.workers,
        "torch_threads": torch.get_num_threads(),
        "device": device,
        "hardware": name,
        "cores": os.cpu_count(),
        "versions": {
            "facezoo": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pillow": PIL.__version__,
            "numpy": numpy.__version__,
        },
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
