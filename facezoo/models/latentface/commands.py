"""Commands of LatentFace: ``facezoo train latentface``, ``facezoo convert --model latentface``."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from facezoo.models.commands import ConvertCommand, TrainCommand
from facezoo.models.latentface import train
from facezoo.models.latentface.convert import convert_file
from facezoo.models.latentface.train.recipes import RECIPES


def _train(
    data: Path, out: Path, *, seed: int, device: torch.device, smoke: bool, recipe: str, stage: str
) -> Path:
    return train.run(
        data, out, stage=int(stage), seed=seed, device=device, name=recipe, smoke=smoke
    )


TRAIN = TrainCommand(
    _train,
    recipes=tuple(RECIPES),
    options=(
        click.Option(
            ["--stage"],
            type=click.Choice(["1", "2"]),
            default="1",
            help="1 trains the autoencoders, 2 the diffusion on their codes",
        ),
    ),
)
CONVERT = ConvertCommand(convert_file)
