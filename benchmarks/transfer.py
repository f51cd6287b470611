"""Measure how strong a transferred expression is, by the strength that is passed.

    python benchmarks/transfer.py DATA [MODEL ...] [--strengths 1 1.5] [--json transfer.json]

Neutral and smiling faces of LFW val get the expression of each other. Then the model encodes the
results. *Change found* is the part of the requested change of the expression features that the
result shows: 100 % at the strength at which a transferred expression is as strong as its source. A
decoder that draws mean faces shows less at a strength of 1. DATA is the folder with
``lfw.parquet``.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from measuring import stamp, write
from torch import Tensor

import facezoo
from facezoo.data.packs import aligned_crops, read_pack
from facezoo.models.decoding import DecodingModel


def faces(data: Path, model: DecodingModel, count: int, seed: int) -> Tensor:
    """Read ``count`` neutral crops, then as many smiling ones, uint8, (2 count, 3, S, S)."""
    table = read_pack(data / "lfw.parquet", "val")
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for word in ("neutral", "happiness"):
        found = [i for i, said in enumerate(table["expression"].to_pylist()) if said == word]
        rows += [found[i] for i in torch.randperm(len(found), generator=generator)[:count]]
    preprocessing = model.preprocessing
    return aligned_crops(table.take(rows), preprocessing.template, preprocessing.size)


def change_found(
    model: DecodingModel, crops: Tensor, strength: float, options: dict[str, bool]
) -> tuple[float, float]:
    """Transfer between both halves of the crops.

    Returns:
        The share of the requested change that is found, and the mean cosine of the features of the
        results with the source's features.
    """
    targets, sources = list(crops), list(crops.roll(len(crops) // 2, 0))
    own = model.encode_expression(targets, aligned=True)
    wanted = own.roll(len(crops) // 2, 0)
    drawn = model.transfer_expression(sources, targets, aligned=True, strength=strength, **options)
    result = model.encode_expression((255 * drawn).round().byte(), aligned=True)
    change = wanted - own
    share = ((result - own) * change).sum() / change.square().sum()
    return float(share), float(F.cosine_similarity(result, wanted).mean())


def main(data: Path, names: list[str], strengths: list[float], count: int, seed: int) -> dict:
    """Measure each model, with and without its detail."""
    rows = []
    for name in names or facezoo.list_models(pretrained=True):
        model = facezoo.load(name)
        if "transfer_expression" not in model.capabilities():
            continue
        assert isinstance(model, DecodingModel)
        crops = faces(data, model, count, seed)
        for detail in (None,) if model.keeps_detail is None else (False, True):
            for strength in strengths:
                options = {} if detail is None else {"detail": detail}
                share, cosine = change_found(model, crops, strength, options)
                row = {
                    "model": f"`{name}`",
                    "image": "edited crop" if detail else "decoded face",
                    "strength": strength,
                    "change found, %": 100 * share,
                    "cosine with the source": cosine,
                }
                print(row, flush=True)
                rows.append(row)
    command = shlex.join(["python", "benchmarks/transfer.py", *sys.argv[1:]])
    return {**stamp(command), "swaps": 2 * count, "tables": {"transfer": rows}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--strengths", nargs="+", type=float, default=[1.0, 1.2, 1.4, 1.6])
    parser.add_argument("--count", type=int, default=120, help="faces of each expression")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    measured = main(options.data, options.models, options.strengths, options.count, options.seed)
    write(measured, options.json)
