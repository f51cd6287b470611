"""What encoding a prepared batch costs beside the bare timm backbone, in the same run.

    python benchmarks/encode.py [--batch 64] [--json encode.json]

The two are timed in turn, so that the machine's moods fall on both alike; the ratio is the median
over the pairs.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import timm
import torch

import facezoo


def main(batch: int = 64, repeats: int = 15, pretrained: bool = True) -> dict:
    model = facezoo.load("ipd-fer", device="cpu", pretrained=pretrained)
    bare = timm.create_model(model.architecture["backbone"], num_classes=0).eval()
    bare = bare.to(memory_format=torch.channels_last)
    crops = torch.randn(batch, *model.input_shape).contiguous(memory_format=torch.channels_last)
    ways = {
        "bare": lambda: bare(crops),
        "embed_expression": lambda: model.embed_expression(crops),
        "run": lambda: model.run(crops, ["encode_expression"], batch),
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
    speed = {name: batch / statistics.median(times) for name, times in seconds.items()}
    return {
        "batch": batch,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "images_per_second": speed,
        "time_over_bare": ratios,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    text = json.dumps(main(options.batch), indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
