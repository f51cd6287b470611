"""Commands of adv3d: ``facezoo train adv3d`` and ``facezoo convert --model adv3d``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from facezoo.models.adv3d.train.recipes import RECIPES
from facezoo.models.commands import ConvertCommand, TrainCommand


def _train(data: Path, out: Path, *, recipe: str, **options: Any) -> Path:
    from facezoo.models.adv3d.train import command

    return command.run(recipe, data, out, **options)


def _convert(
    source: Path,
    target: Path | None,
    *,
    template: Path | None,
    scale: float | None,
    overwrite: bool,
) -> Path:
    from facezoo.models.adv3d.convert import convert_file

    if template is None or scale is None:
        raise ValueError(
            "adv3d needs --template MESH, the mean face in millimeters, and --scale MM; the "
            "published files hold neither (FaceScape 573, BU-3DFE 156, CoMA 260)"
        )
    return convert_file(source, target, template=template, scale=scale, overwrite=overwrite)


TRAIN = TrainCommand(
    _train,
    recipes=tuple(RECIPES),
    options=(
        click.Option(
            ["--start"],
            metavar="CHECKPOINT",
            help="add the principal axes of the training meshes, for registration, to a checkpoint "
            "of the recipe; train nothing",
        ),
    ),
    data="folder with the files of ICT-3D, or of the data set of the recipe",
)
CONVERT = ConvertCommand(
    _convert,
    options=(
        click.Option(
            ["--template"],
            type=click.Path(path_type=Path),
            metavar="MESH",
            help="adv3d: mean face of the training set, in millimeters",
        ),
        click.Option(
            ["--scale"],
            type=float,
            metavar="MM",
            help="adv3d: millimeters that are 1 for the network",
        ),
    ),
)
