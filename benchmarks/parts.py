"""Time PointNet and the sampler of identity codes, compared with plain implementations.

    python benchmarks/parts.py [--json parts.json]

PointNet: the encoder of ``adv3d``, compared with its layers applied one after the other, with the
same weights. DDIM: identity codes of many faces at once, compared with one face at a time. The
difference between the results is reported.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import in_turn, stamp, write

import facezoo
from facezoo.results import flatten_rows


def plain_pointnet(vae, points: torch.Tensor) -> torch.Tensor:
    """Apply convolutions, batch norms and ReLUs to all points; return the maximum, (B, 1024)."""
    hidden = points.transpose(1, 2)
    for number in range(1, 6):
        layer, norm = getattr(vae, f"conv{number}"), getattr(vae, f"bn{number}")
        hidden = F.relu(norm(layer(hidden)))
    return hidden.amax(2)


def row(part: str, batch: int, ours: str, rival: str, timed: dict, difference: float) -> dict:
    return {
        "part": part,
        "batch": batch,
        f"{ours}, items/s": timed["ours"].per_second(batch),
        f"{rival}, items/s": timed["rival"].per_second(batch),
        "slowest to fastest": "; ".join(timed[way].spread(batch) for way in ("ours", "rival")),
        "times faster": timed["rival"].over(timed["ours"]),
        "relative difference": f"{difference:.1e}",
    }


def differ(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.inference_mode()
def pointnet(batch: int, repeats: int, device: str) -> dict:
    model = facezoo.load("adv3d", device=device)
    noise = torch.randn(batch, *model.template_mm.shape, device=device)
    points = (model.template_mm + noise) / model.scale
    ways = {
        "ours": lambda: model.vae.features(points),
        "rival": lambda: plain_pointnet(model.vae, points),
    }
    timed = in_turn(ways, repeats, device)
    difference = differ(ways["ours"](), ways["rival"]())
    return row("PointNet of `adv3d`", batch, "facezoo", "plain", timed, difference)


@torch.inference_mode()
def ddim(batch: int, repeats: int, device: str) -> dict:
    model = facezoo.load("latentface", device=device)
    codes = model.embed_latents(torch.rand(batch, *model.input_shape, device=device) * 2 - 1)
    ways = {
        "ours": lambda: flatten_rows(model.identity_latents(codes)),
        "rival": lambda: torch.cat(
            [flatten_rows(model.identity_latents(codes[i])) for i in range(batch)]
        ),
    }
    timed = in_turn(ways, repeats, device)
    difference = differ(ways["ours"](), ways["rival"]())
    return row("DDIM of `latentface`", batch, "facezoo", "plain", timed, difference)


def main(batches: list[int], repeats: int, device: str = "cpu") -> dict:
    torch.manual_seed(0)
    rows = [part(batch, repeats, device) for part in (pointnet, ddim) for batch in batches]
    command = shlex.join(["python", "benchmarks/parts.py", *sys.argv[1:]])
    return {**stamp(command, device), "tables": {"parts": rows}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], metavar="B")
    parser.add_argument("--repeats", type=int, default=5, metavar="N")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    write(main(options.batches, options.repeats, options.device), options.json)
