"""Memory and speed of extraction by the number of photographs, each in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/extraction.py --counts 1000 20000 --out extraction.json

The photographs are links to a few, by default the portraits of the examples. With --kill N the
largest run is also killed at random N times, resumed, and its file compared with the whole one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import torch

import facezoo
from facezoo.preprocess.reading import SUFFIXES

PORTRAITS = Path(__file__).parent.parent / "examples" / "portraits"
MB = 2**20


def replicate(photos: Path, folder: Path, count: int) -> None:
    """Fill a folder with so many names of the photographs of another."""
    files = sorted(path for path in photos.iterdir() if path.suffix.lower() in SUFFIXES)
    folder.mkdir()
    for number, file in enumerate(islice(cycle(files), count)):
        (folder / f"{number:07d}{file.suffix}").symlink_to(file.resolve())


def measure(folder: Path, output: Path, model: str, device: str) -> dict[str, object]:
    """Extract in this process; its peak memory and the report."""
    report = facezoo.extract(folder, output, model=model, device=device, profile=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    return {
        "images": report.images,
        "rows": report.rows,
        "peak_mb": round(peak, 1),
        "images_per_second": round(report.images_per_second, 2),
        "images_per_second_by_stage": {
            stage: round((report.images - report.resumed) / seconds, 1)
            for stage, seconds in report.seconds.items()
            if seconds
        },
        "sha256": hashlib.sha256(output.read_bytes()).hexdigest(),
    }


def in_process(folder: Path, output: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    words = [sys.executable, __file__, "--inner", str(folder), str(output)]
    words += ["--model", options.model, "--device", options.device]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, object]:
    text, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run ended with {process.returncode}")
    said: dict[str, object] = json.loads(text.splitlines()[-1])
    return said


def killed(folder: Path, output: Path, options: argparse.Namespace, seconds: float) -> bool:
    """Start a run and kill it after some time; whether it was still running then."""
    process = in_process(folder, output, options)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and speed of extraction.")
    parser.add_argument("--photos", type=Path, default=PORTRAITS)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 20000])
    parser.add_argument("--kill", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("--model", default="ipd-fer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--inner", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner:
        print(json.dumps(measure(*options.inner, options.model, options.device)))
        return
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        for count in options.counts:
            folder = Path(scratch, str(count))
            replicate(options.photos, folder, count)
            begin = time.perf_counter()
            run = result_of(in_process(folder, Path(scratch, f"{count}.parquet"), options))
            runs.append(run | {"seconds": round(time.perf_counter() - begin, 1)})
            print(runs[-1], flush=True)
        if options.kill:
            draw, again = random.Random(options.seed), Path(scratch, "again.parquet")
            share = float(runs[-1]["seconds"]) / (options.kill + 1)
            kills = 0
            while kills < options.kill:
                if killed(folder, again, options, draw.uniform(0.5, 1) * share):
                    kills += 1
                else:  # it was faster than the first time
                    again.unlink()
            same = result_of(in_process(folder, again, options))["sha256"] == runs[-1]["sha256"]
            runs[-1] |= {"kills": kills, "identical_after_kills": same}
            print(runs[-1], flush=True)
    said = {"model": options.model, "device": options.device, "torch": str(torch.__version__)}
    if options.out:
        said |= {"threads": torch.get_num_threads(), "runs": runs}
        options.out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
