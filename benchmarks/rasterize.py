"""Time the rasterization of depth maps with torch, and with PyTorch3D if it is installed.

    python benchmarks/rasterize.py [--batch 16] [--size 128] [--device cpu] [--json rasterize.json]

The meshes are one depth map of the rough shape of a face, turned by -45 to 45 degrees. Times
include the search (the triangle of each pixel) and the interpolation of three colors; gradients
are listed separately. The renderers are timed in turn. Times are wall-clock times; on a CPU,
processor times are reported too, because other work on the machine does not change them.
"""

import argparse
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch
from measuring import stamp, write

from facezoo.geometry.camera import Camera, grid_triangles, to_view
from facezoo.geometry.rasterize import has_pytorch3d, interpolate, rasterize


def depth_map(size: int) -> torch.Tensor:
    """Make a head and a nose, with the border columns of Unsup3D, (1, size, size)."""
    axis = torch.linspace(-1, 1, size)
    x, y = axis, axis[:, None]
    head = 0.11 * torch.exp(-((x / 0.55) ** 2) - (y / 0.7) ** 2)
    nose = 0.03 * torch.exp(-(((x - 0.12) / 0.15) ** 2) - ((y - 0.08) / 0.2) ** 2)
    depth = (1.05 + 0.01 * x * y - head - nose).clamp(0.9, 1.1)
    depth[:, :2] = depth[:, -2:] = 1.04
    return depth[None]


def scene(batch: int, size: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    camera = Camera(size)
    view = torch.zeros(batch, 6)
    view[:, 1] = torch.linspace(-1, 1, batch) * torch.pi / 4
    points = camera.unproject(depth_map(size)).flatten(1, 2).expand(batch, -1, -1)
    projected = camera.project(to_view(points, view)).to(device)
    colors = torch.rand(batch, size * size, 3, device=device)
    return projected, colors, grid_triangles(size, size, device)


def main(
    batch: int = 16, size: int = 128, device: str = "cpu", repeats: int = 5, pytorch3d: bool = True
) -> dict:
    place = torch.device(device)
    projected, colors, triangles = scene(batch, size, place)

    def wait() -> None:
        if place.type == "cuda":
            torch.cuda.synchronize()

    def draw(renderer: str) -> torch.Tensor:
        leaf = projected.clone().requires_grad_()
        fragments = rasterize(leaf, triangles, (size, size), renderer)
        return interpolate(fragments, colors).square().sum()

    renderers = ["torch", "pytorch3d"] if pytorch3d and has_pytorch3d() else ["torch"]
    wall, cpu = ({name: [] for name in [*renderers, "torch backward"]} for _ in range(2))
    for repeat in range(repeats + 1):
        for name in wall:
            loss = draw("torch") if name == "torch backward" else None
            wait()
            begin = time.perf_counter(), time.process_time()
            if loss is None:
                draw(name)
            else:
                loss.backward()
            wait()
            if repeat:  # warm up
                wall[name].append(time.perf_counter() - begin[0])
                cpu[name].append(time.process_time() - begin[1])
    seconds = {name: statistics.median(times) for name, times in wall.items()}
    result = {
        "batch": batch,
        "size": size,
        "triangles": len(triangles),
        "seconds": seconds,
        "cpu_seconds": {name: statistics.median(times) for name, times in cpu.items()},
    }
    if "pytorch3d" in seconds:
        clock = wall if place.type == "cuda" else cpu
        pairs = zip(clock["pytorch3d"], clock["torch"], strict=True)
        result["pytorch3d_over_torch"] = statistics.median(a / b for a, b in pairs)
    return result


def table(results: list[dict]) -> list[dict]:
    """Return a row per size and renderer, in milliseconds per batch."""
    return [
        {
            "meshes": f"{result['batch']} of {result['triangles']} triangles",
            "pixels": f"{result['size']} x {result['size']}",
            "renderer": name,
            "ms": 1000 * seconds,
            "over torch": seconds / result["cpu_seconds"]["torch"],
        }
        for result in results
        for name, seconds in result["cpu_seconds"].items()
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, nargs="+", default=[128])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = [main(options.batch, size, options.device, options.repeats) for size in options.size]
    command = shlex.join(["python", "benchmarks/rasterize.py", *sys.argv[1:]])
    tables = {"rasterize": table(results)}
    write({**stamp(command, options.device), "results": results, "tables": tables}, options.json)
