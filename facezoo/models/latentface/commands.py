"""Commands of LatentFace: ``facezoo train latentface``, ``facezoo convert --model latentface``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from facezoo.models.commands import ConvertCommand, TrainCommand
from facezoo.models.latentface import train
from facezoo.models.latentface.convert import convert_file
from facezoo.models.latentface.train.command import STAGES
from facezoo.models.latentface.train.recipes import RECIPES


def _train(data: Path, out: Path, *, recipe: str, **options: Any) -> Path:
    return train.run(data, out, name=recipe, **options)


TRAIN = TrainCommand(
    _train,
    recipes=tuple(RECIPES),
    options=(
        click.Option(
            ["--stage"],
            type=click.Choice(STAGES),
            default="1",
            help="1 trains the autoencoders, 2 the diffusion on their codes, neutral adds neutral "
            "codes to a checkpoint",
        ),
        click.Option(
            ["--start"],
            metavar="CHECKPOINT",
            help="the checkpoint for --stage neutral, or for a recipe that starts from one",
        ),
    ),
)
CONVERT = ConvertCommand(convert_file)
