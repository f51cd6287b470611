"""What encoding a prepared batch costs beside the bare timm backbone, in the same run.

    python benchmarks/encode.py [--batch 1 64] [--dtype float32 bfloat16] [--json encode.json]

All are timed in turn, so that the machine's moods fall on all alike; a ratio is the median over the
rounds.
"""

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import timm
import torch

import facezoo


def measure(batch: int, dtype: torch.dtype, repeats: int = 15, pretrained: bool = True) -> dict:
    """Images per second of each way, and its time over that of the bare backbone."""
    model = facezoo.load("ipd-fer", device="cpu", pretrained=pretrained).to(dtype)
    bare = timm.create_model(model.architecture["backbone"], num_classes=0).eval()
    bare = bare.to(dtype, memory_format=torch.channels_last)
    crops = torch.randn(batch, *model.input_shape, dtype=dtype)
    crops = crops.contiguous(memory_format=torch.channels_last)
    ways = {
        "bare": lambda: bare(crops),
        "embed_expression": lambda: model.embed_expression(crops),
        "encode": lambda: model.run(crops, ["encode_expression"], batch),
        "predict": lambda: model.run(crops, ["predict_expression"], batch),
    }
    seconds = {name: [] for name in ways}
    with torch.inference_mode():
        for repeat in range(repeats + 2):
            for name, way in ways.items():
                begin = time.perf_counter()
                way()
                if repeat >= 2:
                    seconds[name].append(time.perf_counter() - begin)
    ratios = {
        name: statistics.median(a / b for a, b in zip(times, seconds["bare"], strict=True))
        for name, times in seconds.items()
    }
    return {
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "images_per_second": {n: batch / statistics.median(t) for n, t in seconds.items()},
        "time_over_bare": ratios,
    }


def main(batches: list[int], dtypes: list[str], repeats: int = 15, pretrained: bool = True) -> dict:
    """Every batch size in every precision, with what they ran on."""
    runs = [measure(b, getattr(torch, d), repeats, pretrained) for d in dtypes for b in batches]
    return {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "runs": runs,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--dtype", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    text = json.dumps(main(options.batch, options.dtype), indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
