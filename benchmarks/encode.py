"""Measure the speed of ``encode`` on a prepared batch, compared with the bare timm backbone.

    python benchmarks/encode.py [--batch 1 64] [--dtype float32 bfloat16] [--json encode.json]

Both are timed in the same run. A roofline gives the best that the device could do: the operations
of one image, over the speed of a matrix product or a wide convolution (the faster one) in the same
precision.
"""

import argparse
import shlex
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from measuring import in_turn, stamp, write
from torch import nn

import facezoo

SIDE = 2048
"""Rows and columns of the matrices whose product measures the speed of the device."""
FEW = 64
"""Crops per measurement; smaller batches run more often."""


def measure(
    batch: int,
    dtype: torch.dtype,
    repeats: int = 9,
    pretrained: bool = True,
    device: str = "cpu",
    compiled: bool = False,
) -> dict:
    """Measure images per second of each alternative, relative to the bare backbone."""
    options = {"device": device, "dtype": dtype, "pretrained": pretrained}
    model = facezoo.load("ipd-fer", **options)
    bare = timm.create_model(model.architecture["backbone"], num_classes=0).eval()
    bare = bare.to(device, dtype, memory_format=torch.channels_last)
    crops = torch.randn(batch, *model.input_shape, device=device, dtype=dtype)
    crops = crops.contiguous(memory_format=torch.channels_last)
    ways = {
        "bare": lambda: bare(crops),
        "encode": lambda: model.run(crops, "encode_expression", batch),
        "predict": lambda: model.run(crops, "predict_expression", batch),
    }
    if compiled:
        fast = facezoo.load("ipd-fer", compile=True, **options)
        ways["compiled"] = lambda: fast.run(crops, "encode_expression", batch)
    with torch.inference_mode():
        timed = in_turn(ways, repeats * max(1, FEW // batch), device, warm_up=2)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        **{f"{name}, images/s": timed[name].per_second(batch) for name in ways},
        "encode, slowest to fastest": timed["encode"].spread(batch),
        "encode over bare, speed": 1 / timed["encode"].over(timed["bare"]),
        "predict over bare, speed": 1 / timed["predict"].over(timed["bare"]),
        **(
            {"compiled over bare, speed": 1 / timed["compiled"].over(timed["bare"])}
            if compiled
            else {}
        ),
    }


def needs(backbone: str, size: int = 112) -> dict[str, float]:
    """Count the operations of one image, and the bytes of activations and weights in float32."""
    network = timm.create_model(backbone, num_classes=0).eval()
    counted = {"operations": 0, "activations": 3 * size * size}

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        weight = module.weight
        counted["operations"] += 2 * output[0].numel() * weight[0].numel()
        counted["activations"] += inputs[0][0].numel() + output[0].numel()

    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, size, size))
    weights = sum(parameter.numel() for parameter in network.parameters())
    return {
        "operations": counted["operations"],
        "activation_bytes": 4 * counted["activations"],
        "weight_bytes": 4 * weights,
    }


def limits(dtype: torch.dtype, device: str = "cpu", side: int = SIDE, repeats: int = 5) -> dict:
    """Measure the best operations per second of a large layer, and bytes per second of a copy."""
    left = torch.randn(side, side, device=device, dtype=dtype)
    right = torch.randn(side, side, device=device, dtype=dtype)
    wide = side // 4
    maps = torch.randn(8, wide, 28, 28, device=device, dtype=dtype)
    kernels = torch.randn(wide, wide, 3, 3, device=device, dtype=dtype)
    maps, kernels = (t.contiguous(memory_format=torch.channels_last) for t in (maps, kernels))
    ways = {
        "product": lambda: left @ right,
        "convolution": lambda: F.conv2d(maps, kernels, padding=1),
        "copy": lambda: left.clone(),
    }
    needed = {"product": 2 * side**3, "convolution": 2 * 9 * wide * maps.numel()}
    with torch.inference_mode():
        timed = in_turn(ways, repeats, device)
    moved = 2 * left.numel() * left.element_size()
    return {
        "operations/s": max(needed[name] / min(timed[name].seconds) for name in needed),
        "bytes/s": moved / min(timed["copy"].seconds),
    }


def roofline(runs: list[dict], device: str = "cpu", side: int = SIDE) -> list[dict]:
    """Compare the largest batch with the bounds of the device."""
    need = needs("resnet18")
    rows = []
    for dtype in dict.fromkeys(run["dtype"] for run in runs):
        precision = getattr(torch, dtype)
        can = limits(precision, device, side)
        best = max((run for run in runs if run["dtype"] == dtype), key=lambda run: run["batch"])
        per_byte = precision.itemsize / 4
        traffic = need["activation_bytes"] + need["weight_bytes"] / best["batch"]
        compute = can["operations/s"] / need["operations"]
        memory = can["bytes/s"] / (per_byte * traffic)
        rows.append(
            {
                "dtype": dtype,
                "GFLOP per image": need["operations"] / 1e9,
                "MB of activations": per_byte * need["activation_bytes"] / 1e6,
                "MB of weights": per_byte * need["weight_bytes"] / 1e6,
                "one large layer, GFLOP/s": can["operations/s"] / 1e9,
                "copy, GB/s": can["bytes/s"] / 1e9,
                "bound by arithmetic, images/s": compute,
                "bound by memory, images/s": memory,
                "reached, images/s": best["encode, images/s"],
                "share": best["encode, images/s"] / min(compute, memory),
            }
        )
    return rows


def main(batches: list[int], dtypes: list[str], **options) -> dict:
    """Measure every batch size in every precision."""
    device, side = options.get("device", "cpu"), options.pop("side", SIDE)
    runs = [measure(b, getattr(torch, d), **options) for d in dtypes for b in batches]
    command = shlex.join(["python", "benchmarks/encode.py", *sys.argv[1:]])
    tables = {"encode": runs, "roofline": roofline(runs, device, side)}
    return {**stamp(command, device), "tables": tables}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16, 64, 256])
    parser.add_argument(
        "--dtype", nargs="+", choices=["float32", "bfloat16", "float16"], default=["float32"]
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--compile", action="store_true", help="also time the compiled model")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    result = main(
        given.batch,
        given.dtype,
        repeats=given.repeats,
        device=given.device,
        compiled=given.compile,
    )
    write(result, given.json)
