"""Memory and speed of extraction by the number of photographs, each in a process of its own.

    OMP_NUM_THREADS=1 python benchmarks/extraction.py --photos DATA/lfw.parquet \\
        --counts 1000 20000 --kill 2 --out docs/results/extraction.lfw.json

The photographs are links to those of a folder or of a Parquet shard, by default to the portraits of
the examples, round and round. With --kill N the last run is also killed at N random places, resumed
and its file compared with that of the whole run. Resident memory is read from /proc every second
(Linux). Photographs and finished runs are kept in --cache; interrupted, the same command goes on
there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import torch

import facezoo
from facezoo.extraction.resume import folder_of
from facezoo.extraction.run import PART_PHOTOS
from facezoo.extraction.shards import read_stored, split_name
from facezoo.extraction.sources import list_photos

PORTRAITS = Path(__file__).parent.parent / "examples" / "portraits"
MB = 2**20
CURVE = 60
"""Points of the memory curve that are kept."""


def unpacked(photos: Path, folder: Path) -> list[Path]:
    """The photographs of a folder, or those of a shard written to a folder."""
    found = list_photos(photos)
    if photos.is_dir():
        return [(photos / name).resolve() for name in found.names]
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, name in enumerate(found.names):
        shard, key = split_name(name) or (name, "")
        files.append(folder / f"{number:07d}.jpg")
        if not files[-1].exists():
            files[-1].write_bytes(read_stored(Path(shard), key))
    return files


def replicate(files: list[Path], folder: Path, count: int) -> None:
    """Fill a folder anew with so many names of some photographs."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number, file in enumerate(islice(cycle(files), count)):
        (folder / f"{number:07d}{file.suffix}").symlink_to(file.resolve())


def watch(over: threading.Event, samples: list[float]) -> None:
    """Append this process's resident memory in MB every second, until it is over."""
    page = os.sysconf("SC_PAGE_SIZE")
    while not over.wait(1):
        samples.append(int(Path("/proc/self/statm").read_text().split()[1]) * page / MB)


def measure(
    folder: Path, output: Path, model: str, device: str, anew: bool = True
) -> dict[str, object]:
    """Extract in this process, from the beginning or not; its memory and the report."""
    over, samples = threading.Event(), list[float]()
    threading.Thread(target=watch, args=(over, samples), daemon=True).start()
    report = facezoo.extract(
        folder, output, model=model, device=device, profile=True, overwrite=anew
    )
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


def in_process(
    folder: Path, output: Path, options: argparse.Namespace, anew: bool
) -> subprocess.Popen[str]:
    words = [sys.executable, __file__, "--inner", str(folder), str(output)]
    words += ["--model", options.model, "--device", options.device, *(["--anew"] if anew else [])]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, object]:
    text, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run ended with {process.returncode}")
    said: dict[str, object] = json.loads(text.splitlines()[-1])
    return said


def interrupted(
    folder: Path, output: Path, run: dict[str, object], options: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """The extraction of a run, killed and resumed, beside the whole one; what is known so far."""
    draw = random.Random(options.seed)
    count, steps = int(str(run["images"])), options.kill + 1
    places = [int(draw.uniform(k + 0.2, k + 1) / steps * count) for k in range(options.kill)]
    waits = [draw.uniform(0, 3) for _ in places]
    said = dict(run.get("kills") or {"after": []})  # type: ignore[call-overload]
    for place, wait in list(zip(places, waits, strict=True))[len(said["after"]) :]:
        process = in_process(folder, output, options, anew=False)
        while (done := PART_PHOTOS * len(list(folder_of(output).glob("*.npz")))) < place:
            if process.poll() is not None:
                raise RuntimeError(f"a run ended with {process.returncode} before it was killed")
            time.sleep(0.2)
        time.sleep(wait)
        process.kill()
        process.communicate()
        said = said | {"after": [*said["after"], done]}
        yield said
    last = result_of(in_process(folder, output, options, anew=False))
    same = all(last[key] == run[key] for key in ("rows", "sha256"))
    yield said | {"resumed": last["resumed"], "identical": same}


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and speed of extraction.")
    parser.add_argument("--photos", type=Path, default=PORTRAITS)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 20000])
    parser.add_argument("--kill", type=int, default=0, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of the places of the kills")
    parser.add_argument("--model", default="ipd-fer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("runs/extraction"))
    parser.add_argument("--inner", type=Path, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--anew", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner:
        print(json.dumps(measure(*options.inner, options.model, options.device, options.anew)))
        return
    files = unpacked(options.photos, options.cache / "photos")
    kept = options.cache / "runs.json"
    runs = json.loads(kept.read_text()) if kept.is_file() else []

    def keep() -> None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(runs))
        print({key: value for key, value in runs[-1].items() if key != "mb"}, flush=True)
        if options.out:
            write(options.out, runs, options)

    for count in options.counts[len(runs) :]:
        folder = options.cache / str(count)
        replicate(files, folder, count)
        begin = time.perf_counter()
        run = result_of(in_process(folder, folder.with_suffix(".parquet"), options, anew=True))
        runs.append(run | {"seconds": round(time.perf_counter() - begin, 1)})
        keep()
    if options.kill and "identical" not in runs[-1].get("kills", {}):
        again = options.cache / "again.parquet"
        folder = options.cache / str(options.counts[-1])
        for said in interrupted(folder, again, runs[-1], options):
            runs[-1]["kills"] = said
            keep()


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
        "tables": {"memory": memory, "stages": stages, "kills": _kills(runs[-1])},
        "runs": runs,
    }
    out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def _kills(run: dict[str, object]) -> list[dict[str, object]]:
    kills = run.get("kills")
    if not isinstance(kills, dict) or "identical" not in kills:
        return [{"photographs": run["images"], "killed": "not yet"}]
    return [
        {
            "photographs": run["images"],
            "killed when so many were on disk": ", ".join(map(str, kills["after"])),
            "the last run went on at": kills["resumed"],
            "same file as without": "yes" if kills["identical"] else "no",
        }
    ]


def _words(options: argparse.Namespace) -> list[str]:
    counts = map(str, options.counts)
    return ["--photos", options.photos.name, "--counts", *counts, "--kill", str(options.kill)]


if __name__ == "__main__":
    main()
