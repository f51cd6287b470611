"""Commands of latent-simclr: three parts to train, a conversion and ``facezoo fit-directions``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from facezoo.models.commands import ConvertCommand, TrainCommand
from facezoo.models.latent_simclr import StyleGANInverter, directions, train
from facezoo.models.latent_simclr.convert import convert_generator
from facezoo.models.latent_simclr.train.recipes import RECIPES


def _train(
    part: str,
    data: Path,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    smoke: bool,
    recipe: str,
    start: str | None = None,
) -> Path:
    return train.run(
        part, data, out, seed=seed, device=device, name=recipe, start=start, smoke=smoke
    )


_START = click.Option(
    ["--start"],
    metavar="CHECKPOINT",
    help="train nothing: fit edits and expression axes for this checkpoint of the recipe",
)
TRAIN_STYLEGAN2, TRAIN_FEATURE_STYLE, TRAIN_LATENT_SIMCLR = (
    TrainCommand(
        partial(_train, part),
        recipes=tuple(RECIPES),
        options=(_START,) if part == "latent-simclr" else (),
    )
    for part in train.PARTS
)
CONVERT_STYLEGAN2 = ConvertCommand(
    convert_generator,
    options=(click.Option(["--key"], metavar="NAME", help="state dict to convert, if several"),),
)


@click.command(
    epilog="With labels, a linear SVM fits one direction per column. Without, the directions are "
    "those that change the styles of the generator most."
)
@click.argument("target", metavar="TARGET", type=click.Path(path_type=Path))
@click.option(
    "--codes",
    type=click.Path(path_type=Path),
    metavar="NPY",
    help="latent codes (N, L, D), as the w_plus of encode_factors",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="CSV",
    help="table with a column per property: 1, 0 or empty",
)
@click.option(
    "--model", default="latent-simclr", help="checkpoint whose generator is used without labels"
)
@click.option(
    "--count", type=int, metavar="N", help="number of directions without labels  [default: 8]"
)
def fit_directions(
    target: Path, codes: Path | None, labels: Path | None, model: str, count: int | None
) -> None:
    """Fit directions of latent codes and write them to the .safetensors file TARGET."""
    if target.suffix != ".safetensors":
        raise ValueError(f"the target must end in .safetensors, got {target}")
    if codes is not None and labels is not None:
        if count is not None:
            raise ValueError("--count is for directions without labels; leave it out")
        stored = np.load(codes, allow_pickle=False)
        if not isinstance(stored, np.ndarray) or stored.ndim != 3:
            raise ValueError(f"{codes} must be a .npy file with one array (N, L, D)")
        rows = torch.from_numpy(stored).float()
        fitted = directions.fit_directions(rows, directions.read_labels(labels, len(rows)))
    elif codes is None and labels is None:
        generator = StyleGANInverter.from_pretrained(model).generator
        strongest, _ = directions.principal_directions(generator, 8 if count is None else count)
        fitted = {f"principal-{number}": rows for number, rows in enumerate(strongest, 1)}
    else:
        raise ValueError("--codes and --labels belong together; give both or neither")
    print(directions.save_directions(fitted, target), *fitted, sep="\n")
