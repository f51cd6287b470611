"""Time several alternatives in turn, and record the hardware and versions.

On a GPU and with several threads, times are wall-clock times and need an idle machine. With one
thread on a CPU they are processor times, which other work on the machine changes little.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch

PACKAGES = (
    *("torch", "timm", "numpy", "pillow"),
    *("opencv-python-headless", "pytorch3d", "yuface", "facenet-pytorch"),
    *("onnxruntime", "openvino"),
)


@dataclass
class Timed:
    """Seconds of one alternative, one entry per repeat."""

    seconds: list[float] = field(default_factory=list)

    def per_second(self, count: int = 1) -> float:
        return count / median(self.seconds)

    def spread(self, count: int = 1) -> str:
        """Return the slowest and fastest repeat, in items per second."""
        return f"{count / max(self.seconds):.1f} to {count / min(self.seconds):.1f}"

    def over(self, other: "Timed") -> float:
        """Return the ratio of the fastest repeats; other work only adds to a time."""
        return min(self.seconds) / min(other.seconds)


def in_turn(
    ways: Mapping[str, Callable[[], object]], repeats: int, device: str = "cpu", warm_up: int = 1
) -> dict[str, Timed]:
    """Time several alternatives in turn, so that disturbances affect all."""
    timed = {name: Timed() for name in ways}
    gpu = device.startswith("cuda")
    clock = time.perf_counter if gpu or torch.get_num_threads() > 1 else time.process_time
    for repeat in range(repeats + warm_up):
        for name, way in ways.items():
            begin = clock()
            way()
            if gpu:
                torch.cuda.synchronize()
            if repeat >= warm_up:
                timed[name].seconds.append(clock() - begin)
    return timed


def _portable(word: str) -> str:
    """Keep the name of an absolute path only, which another machine does not have."""
    option, equals, path = word.rpartition("=")
    return f"{option}{equals}{Path(path).name}" if Path(path).is_absolute() else word


def stamp(command: str, device: str = "cpu") -> dict[str, object]:
    """Record command, date, commit, hardware and versions of a run."""
    return {
        "command": shlex.join(map(_portable, shlex.split(command))),
        "date": date.today().isoformat(),
        "commit": _commit(),
        "hardware": torch.cuda.get_device_name() if device.startswith("cuda") else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "versions": {"python": platform.python_version(), **_versions()},
    }


def processor() -> str:
    """Return the name of the processor and its vector instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = found.get("flags", "").split()
    units = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    name = found.get("model name") or platform.processor() or platform.machine()
    return " ".join([name, *([f"({', '.join(units)})"] if units else [])])


def write(content: Mapping[str, object], path: Path | None) -> None:
    """Print results, and write them as JSON if a path is given."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    print(text)
    if path:
        path.write_text(text + "\n", encoding="utf-8")


def run_on_packs(measure: Callable[[Path, str], Mapping[str, object]], description: str) -> None:
    """Run a measurement of one checkpoint on the packs, with the options of the command line."""
    parser = argparse.ArgumentParser(description=description.split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="ipd-fer")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    write(measure(options.data, options.model), options.json)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """Return the current commit, marked ``-dirty`` if files differ from it."""
    here = Path(__file__).parent
    said = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(said, cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
