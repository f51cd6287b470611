"""Memory and speed of extraction by the number of photographs, each in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/extraction.py --photos DATA/lfw.parquet \\
        --counts 1000 20000 --kill 2 --out docs/results/extraction.lfw.json

The photographs are links to those of a folder or of a Parquet shard, by default to the portraits of
the examples, round and round. With --kill N the largest run is also killed at random N times,
resumed, and its file compared with the whole one. Resident memory is read from /proc every second
(Linux).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from itertools import cycle, islice
from pathlib import Path

import torch

import facezoo
from facezoo.extraction.inputs import list_photos
from facezoo.extraction.shards import read_stored, split_name

PORTRAITS = Path(__file__).parent.parent / "examples" / "portraits"
MB = 2**20
CURVE = 60
"""Points of the memory curve that are kept."""


def unpacked(photos: Path, folder: Path) -> list[Path]:
    """The photographs of a folder, or those of a shard written to a folder."""
    found = list_photos(photos)
    if photos.is_dir():
        return [(photos / name).resolve() for name in found.names]
    folder.mkdir()
    files = []
    for number, name in enumerate(found.names):
        shard, key = split_name(name) or (name, "")
        files.append(folder / f"{number:07d}.jpg")
        files[-1].write_bytes(read_stored(Path(shard), key))
    return files


def replicate(files: list[Path], folder: Path, count: int) -> None:
    """Fill a folder with so many names of some photographs."""
    folder.mkdir()
    for number, file in enumerate(islice(cycle(files), count)):
        (folder / f"{number:07d}{file.suffix}").symlink_to(file)


def watch(over: threading.Event, samples: list[float]) -> None:
    """Append this process's resident memory in MB every second, until it is over."""
    page = os.sysconf("SC_PAGE_SIZE")
    while not over.wait(1):
        samples.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / MB)


def measure(folder: Path, output: Path, model: str, device: str) -> dict[str, object]:
    """Extract in this process; its memory and the report."""
    over, samples = threading.Event(), list[float]()
    threading.Thread(target=watch, args=(over, samples), daemon=True).start()
    report = facezoo.extract(folder, output, model=model, device=device, profile=True)
    over.set()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB
    step = max(1, len(samples) // CURVE)
    return {
        "images": report.images,
        "rows": report.rows,
        "resumed": report.resumed,
        "peak_mb": round(peak, 1),
        "mb_every_seconds": step,
        "mb": [round(sample, 1) for sample in samples[::step]],
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
        files = unpacked(options.photos, Path(scratch, "photos"))
        for count in options.counts:
            folder = Path(scratch, str(count))
            replicate(files, folder, count)
            begin = time.perf_counter()
            run = result_of(in_process(folder, Path(scratch, f"{count}.parquet"), options))
            runs.append(run | {"seconds": round(time.perf_counter() - begin, 1)})
            print(runs[-1], flush=True)
        if options.kill:
            runs[-1]["kills"] = interrupted(
                folder, Path(scratch, "again.parquet"), runs[-1], options
            )
            print(runs[-1]["kills"], flush=True)
    if options.out:
        write(options.out, runs, options)


def interrupted(
    folder: Path, output: Path, whole: dict[str, object], options: argparse.Namespace
) -> dict[str, object]:
    """The same extraction, killed at random times and resumed, beside the whole one."""
    draw = random.Random(options.seed)
    share = float(str(whole["seconds"])) / (options.kill + 1)
    after: list[float] = []
    while len(after) < options.kill:
        seconds = draw.uniform(0.5, 1) * share
        if killed(folder, output, options, seconds):
            after.append(round(seconds, 1))
        else:  # it was faster than the first time
            output.unlink()
            after.clear()
    last = result_of(in_process(folder, output, options))
    same = {key: last[key] == whole[key] for key in ("rows", "sha256")}
    return {"after_seconds": after, "resumed": last["resumed"], "identical": all(same.values())}


def write(out: Path, runs: list[dict[str, object]], options: argparse.Namespace) -> None:
    """The runs, and the tables of them that docs/tables.py puts into the page."""
    memory = []
    for run in runs:
        curve = run["mb"]
        assert isinstance(curve, list)
        row: dict[str, object] = {"photographs": run["images"], "rows": run["rows"]}
        for word, part in (("a quarter", 0.25), ("half", 0.5), ("three quarters", 0.75)):
            row[f"after {word}, MB"] = curve[int(part * (len(curve) - 1))] if curve else "-"
        memory.append(row | {"peak, MB": run["peak_mb"], "photographs/s": run["images_per_second"]})
    speed = runs[-1]["images_per_second_by_stage"]
    assert isinstance(speed, dict)
    stages = [{stage: value for stage, value in speed.items() if stage != "wait"}]
    said = {
        "command": "python benchmarks/extraction.py " + " ".join(_words(options)),
        "model": options.model,
        "device": options.device,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "tables": {"memory": memory, "stages": stages},
        "runs": runs,
    }
    out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def _words(options: argparse.Namespace) -> list[str]:
    counts = map(str, options.counts)
    return ["--photos", options.photos.name, "--counts", *counts, "--kill", str(options.kill)]


if __name__ == "__main__":
    main()
