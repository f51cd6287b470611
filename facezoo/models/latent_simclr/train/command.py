"""``facezoo train stylegan2``, then ``feature-style``, then ``latent-simclr``, in one folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from facezoo.card import Preprocessing
from facezoo.data.photographs import read_photographs
from facezoo.models.latent_simclr.train.adversarial import train_generator
from facezoo.models.latent_simclr.train.recipes import Recipe, recipe
from facezoo.training import begin_run, shortened

PREPROCESSING = Preprocessing(size=64)
"""Tight crops, in which a face fills the picture."""


def run(
    part: str,
    data: Path,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    name: str = "paper",
    smoke: bool = False,
) -> Path:
    """Train one part by a recipe; each needs those before it in the same folder.

    Interrupted, the same call goes on where the last saved state stands and ends at the same
    weights.

    Args:
        part: ``"stylegan2"``.
        data: see ``read_photographs``.
        out: folder for the runs, which go into ``<recipe>-seed<n>``.
        seed: of initial weights, order and chance.
        device: where to train.
        name: of the recipe.
        smoke: whether a part is a few steps of small batches, to see that it runs.

    Returns:
        What was written.
    """
    chosen = recipe(name)
    if smoke:
        chosen = shortened(chosen, images=8, batch_size=2)
    folder = out / f"{name}-seed{seed}"
    return run_generator(chosen, data, folder / "stylegan2", seed, device)


def run_generator(chosen: Recipe, data: Path, out: Path, seed: int, device: torch.device) -> Path:
    """Train the generator, and write it; see ``run``."""
    begin_run(out, seed=seed, recipe=asdict(chosen.generator))
    photographs = read_photographs(data, PREPROCESSING, device)
    return train_generator(chosen.generator, photographs.crops, out, seed, device)
