"""``facezoo train latentface``: stage 1 on photographs, stage 2 on their codes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from facezoo.models.latentface.model import LatentFace
from facezoo.models.latentface.train.photographs import read_photographs
from facezoo.models.latentface.train.recipes import Recipe, recipe
from facezoo.models.latentface.train.stage1 import train_autoencoders
from facezoo.training import begin_run

STAGES = (1, 2)


def run(
    data: Path,
    out: Path,
    *,
    stage: int,
    seed: int,
    device: torch.device,
    name: str = "paper",
) -> Path:
    """Train one stage by a recipe; the second one needs the first in the same folder.

    Args:
        data: folder with ``lfw.parquet``, or with a folder of images per person.
        out: folder for the runs.
        stage: 1 or 2.
        seed: of initial weights, order and chance.
        device: where to train.
        name: of the recipe.

    Returns:
        Of stage 1 the folder with its state, of stage 2 the card.

    Raises:
        ValueError: if there is no such stage.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be 1 or 2, got {stage}")
    chosen = recipe(name)
    folder = out / f"{name}-seed{seed}" / "stage1"
    torch.manual_seed(seed)
    model = first_stage_model(chosen)
    begin_run(folder, seed=seed, recipe=_first_recipe(chosen))
    photographs = read_photographs(data, model.preprocessing)
    train_autoencoders(model, photographs, chosen.autoencoding, folder, seed, device)
    return folder


def first_stage_model(chosen: Recipe) -> LatentFace:
    """A model without diffusion, with random weights, as a recipe wants it."""
    return LatentFace(**{**chosen.architecture, "diffusion": False})


def _first_recipe(chosen: Recipe) -> dict[str, object]:
    return {"autoencoding": asdict(chosen.autoencoding), "architecture": chosen.architecture}
