"""Measure memory and speed of extraction by the number of images, each in its own process.

    OMP_NUM_THREADS=1 python benchmarks/extraction.py --images DATA/lfw.parquet \\
        --counts 1000 20000 --kill 2 --out docs/results/extraction.lfw.json

The images are links to those of a folder or of a Parquet shard, by default to the portraits of the
examples, repeated. With --kill N the last run is also killed at N random places and resumed, and
its file is compared with that of the complete run. Resident memory is read from /proc every second
(Linux). Images and finished runs are stored in --cache; an interrupted command resumes there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

from measuring import stamp

import facezoo
from facezoo.extraction.resume import folder_of
from facezoo.extraction.run import PART_IMAGES
from facezoo.extraction.sources import list_images, read_stored, split_name

PORTRAITS = Path(__file__).parent.parent / "examples" / "portraits"
MB = 2**20
CURVE = 60
"""Points of the memory curve that are kept."""


def unpack(images: Path, folder: Path) -> list[Path]:
    """List the images of a folder, or write those of a shard to a folder."""
    names = list_images(images).names
    if images.is_dir():
        return [(images / name).resolve() for name in names]
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, name in enumerate(names):
        shard, key = split_name(name)
        files.append(folder / f"{number:07d}.jpg")
        if not files[-1].exists():
            stored = read_stored(Path(shard), key)
            files[-1].write_bytes(stored if isinstance(stored, bytes) else stored.read_bytes())
    return files


def replicate(files: list[Path], folder: Path, count: int) -> None:
    """Replace a folder by ``count`` links to some images."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, file in enumerate(islice(cycle(files), count)):
        (folder / f"{number:07d}{file.suffix}").symlink_to(file.resolve())


def watch(stop: threading.Event, samples: list[float]) -> None:
    """Append the resident memory of this process in MB every second."""
    page = os.sysconf("SC_PAGE_SIZE")
    while not stop.wait(1):
        samples.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / MB)


def measure(
    folder: Path, output: Path, model: str, device: str, overwrite: bool = True
) -> dict[str, object]:
    """Extract in this process, and return the memory and the report."""
    stop, samples = threading.Event(), list[float]()
    threading.Thread(target=watch, args=(stop, samples), daemon=True).start()
    report = facezoo.extract(
        folder, output, model=model, device=device, profile=True, overwrite=overwrite
    )
    stop.set()
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


def start(
    folder: Path, output: Path, options: argparse.Namespace, overwrite: bool
) -> subprocess.Popen[str]:
    """Start ``measure`` in another process."""
    words = [sys.executable, __file__, "--inner", str(folder), str(output)]
    words += [
        "--model",
        options.model,
        "--device",
        options.device,
        *(["--overwrite"] if overwrite else []),
    ]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, object]:
    """Wait for a process of ``start``, and return the result."""
    text, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run ended with {process.returncode}")
    result: dict[str, object] = json.loads(text.splitlines()[-1])
    return result


def interrupt(
    folder: Path, output: Path, run: dict[str, object], options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """Kill and resume the extraction of a run, compare the file, and yield the results so far."""
    generator = random.Random(options.seed)
    count, steps = int(str(run["images"])), options.kill + 1
    places = [int(generator.uniform(k + 0.2, k + 1) / steps * count) for k in range(options.kill)]
    waits = [generator.uniform(0, 3) for _ in places]
    kills = dict(run.get("kills") or {"after": []})  # type: ignore[call-overload]
    for place, wait in list(zip(places, waits, strict=True))[len(kills["after"]) :]:
        process = start(folder, output, options, overwrite=False)
        while (done := PART_IMAGES * len(list(folder_of(output).glob("*.npz")))) < place:
            if process.poll() is not None:
                raise RuntimeError(f"a run ended with {process.returncode} before it was killed")
            time.sleep(0.2)
        time.sleep(wait)
        process.kill()
        process.communicate()
        kills = kills | {"after": [*kills["after"], done]}
        yield kills
    last = result_of(start(folder, output, options, overwrite=False))
    same = all(last[key] == run[key] for key in ("rows", "sha256"))
    yield kills | {"resumed": last["resumed"], "identical": same}


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and speed of extraction.")
    parser.add_argument("--images", "--photos", type=Path, default=PORTRAITS)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 20000])
    parser.add_argument("--kill", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="seed of the places of the kills")
    parser.add_argument("--model", default="ipd-fer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/extraction"))
    parser.add_argument("--inner", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--overwrite", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner:
        print(json.dumps(measure(*options.inner, options.model, options.device, options.overwrite)))
        return
    files = unpack(options.images, options.cache / "images")
    cache = options.cache / "runs.json"
    runs = json.loads(cache.read_text()) if cache.is_file() else []

    def save() -> None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps(runs))
        print({key: value for key, value in runs[-1].items() if key != "mb"}, flush=True)
        if options.out:
            write(options.out, runs, options)

    for count in options.counts[len(runs) :]:
        folder = options.cache / str(count)
        replicate(files, folder, count)
        begin = time.perf_counter()
        run = result_of(start(folder, folder.with_suffix(".parquet"), options, overwrite=True))
        runs.append(run | {"seconds": round(time.perf_counter() - begin, 1)})
        save()
    if options.kill and "identical" not in runs[-1].get("kills", {}):
        again = options.cache / "again.parquet"
        folder = options.cache / str(options.counts[-1])
        for kills in interrupt(folder, again, runs[-1], options):
            runs[-1]["kills"] = kills
            save()


def write(out: Path, runs: list[dict[str, object]], options: argparse.Namespace) -> None:
    """Write the runs, and the tables that docs/tables.py puts into the page."""
    memory = []
    for run in runs:
        curve = run["mb"]
        assert isinstance(curve, list)
        row: dict[str, object] = {"images": run["images"], "rows": run["rows"]}
        for word, part in (("a quarter", 0.25), ("half", 0.5), ("three quarters", 0.75)):
            row[f"after {word}, MB"] = curve[int(part * (len(curve) - 1))] if curve else "-"
        memory.append(row | {"peak, MB": run["peak_mb"], "images/s": run["images_per_second"]})
    speed = runs[-1]["images_per_second_by_stage"]
    assert isinstance(speed, dict)
    stages = [{stage: value for stage, value in speed.items() if stage != "wait"}]
    results = {
        **stamp(shlex.join(["python", "benchmarks/extraction.py", *sys.argv[1:]]), options.device),
        "model": options.model,
        "device": options.device,
        "tables": {"memory": memory, "stages": stages, "kills": _kills(runs[-1])},
        "runs": runs,
    }
    out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def _kills(run: dict[str, object]) -> list[dict[str, object]]:
    kills = run.get("kills")
    if not isinstance(kills, dict) or "identical" not in kills:
        return [{"images": run["images"], "killed": "not yet"}]
    return [
        {
            "images": run["images"],
            "images on disk at each kill": ", ".join(map(str, kills["after"])),
            "images resumed by the last run": kills["resumed"],
            "same file as without kills": "yes" if kills["identical"] else "no",
        }
    ]


if __name__ == "__main__":
    main()
