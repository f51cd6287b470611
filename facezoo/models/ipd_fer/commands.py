"""Command of IPD-FER: ``facezoo train ipd-fer``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from facezoo.data.official import READERS
from facezoo.models.commands import TrainCommand
from facezoo.models.ipd_fer import train
from facezoo.models.ipd_fer.train.recipes import ABLATIONS, RECIPES


def _train(data: Path, out: Path, *, recipe: str, **options: Any) -> list[Path]:
    return train.run(data, out, name=recipe, **options)


TRAIN = TrainCommand(
    _train,
    recipes=tuple(RECIPES),
    options=(
        click.Option(
            ["--without"],
            multiple=True,
            type=click.Choice(ABLATIONS),
            help="leave this term out of the objective; repeatable",
        ),
        click.Option(
            ["--dataset"],
            type=click.Choice(list(READERS)),
            help="read --data as this data set in its official layout",
        ),
        click.Option(
            ["--fold"],
            type=int,
            metavar="N",
            help="test fold of a data set with folds, such as ck+",
        ),
        click.Option(
            ["--stage"],
            type=click.Choice(["identity"]),
            help="train this part only, without a checkpoint (default: all parts)",
        ),
        click.Option(
            ["--start"], metavar="CHECKPOINT", help="use the identity encoder of this checkpoint"
        ),
    ),
    several_seeds=True,
    several_processes=True,
)
