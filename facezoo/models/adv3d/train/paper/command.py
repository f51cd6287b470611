"""``facezoo train adv3d`` with the paper's own recipes: from a folder of meshes to a checkpoint."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from facezoo.data.ict import IctFaces
from facezoo.data.registered import RegisteredMeshes, from_faces, read_registered
from facezoo.hub.card import Licenses
from facezoo.models.adv3d.model import Adv3D
from facezoo.models.adv3d.networks import VAE
from facezoo.models.adv3d.train.ict import CITATION
from facezoo.models.adv3d.train.paper.recipes import PaperConfig, recipe
from facezoo.models.adv3d.train.paper.train import train
from facezoo.training.run import begin_run, check_data, shortened, write_checkpoint

TITLES = {
    "coma": "CoMA (Ranjan et al. 2018)",
    "bu-3dfe": "BU-3DFE (Yin et al. 2006), registered to one topology",
    "facescape": "FaceScape's registered meshes (Yang et al. 2020)",
    "ict": "ICT-3D, synthetic meshes from the modes of ICT-FaceKit",
}


def run(
    name: str, data: Path, out: Path, *, seed: int, device: torch.device, smoke: bool = False
) -> Path:
    """Train by one of the paper's recipes and write weights and card.

    Interrupted, the same call goes on where the last saved state stands and ends at the same
    weights. Meshes from files are read once and kept in ``out/meshes``.

    Args:
        name: of the recipe, a key of ``RECIPES``.
        data: folder of the recipe's data set.
        out: folder for the run's state, logs and result.
        seed: of initial weights, order and chance.
        device: where to train.
        smoke: whether to take one epoch of each stage, to see that the recipe runs.

    Returns:
        The card's path.

    Raises:
        ValueError: if there is no such recipe, ``out`` holds another run, or the meshes do not fit
            together.
        FileNotFoundError: if ``data`` holds no such data set.
    """
    config = recipe(name)
    if smoke:
        config = shortened(config, size="tiny", pretraining_epochs=1, epochs=1)
    record = begin_run(out, seed=seed, recipe=asdict(config))
    meshes = read(config, data, cache=out / "meshes")
    check_data(out, digest(meshes))
    model = as_model(config, train(config, meshes, out, seed=seed, device=device), meshes)
    weights = "mit" if config.source == "ict" else "research-only"
    return write_checkpoint(
        model,
        out,
        record,
        model="adv3d",
        tag=name,
        default=False,
        flags=f" --recipe {name}",
        architecture=model.architecture,
        preprocessing=None,
        labels=(),
        precision=config.precision,
        licenses=Licenses(code="Apache-2.0", weights=weights, data=weights),
        data=(said(config, meshes),),
        intended_use=(
            "Research on the shape of faces: identity and expression of meshes in the topology of "
            "the training set. Not for identifying people, nor for decisions about them."
        ),
        citation=CITATION,
        smoke=smoke,
    )


def read(
    config: PaperConfig, data: Path, split: str = "train", cache: Path | None = None
) -> RegisteredMeshes:
    """Meshes of one part of a recipe's data set, prepared as for training.

    Args:
        config: the recipe.
        data: folder of the data set.
        split: ``"train"`` or ``"test"``.
        cache: see ``read_registered``.
    """
    if config.source == "ict":
        faces = IctFaces(data)
        parts = dict(zip(("train", "test"), faces.split(config.size), strict=True))
        return from_faces(parts[split], faces.topology)
    return read_registered(
        config.source,
        data,
        split,
        neutrals=config.neutrals,
        simplify_to=config.simplify_to,
        align=config.align,
        cache=cache,
    )


def as_model(config: PaperConfig, vae: VAE, meshes: RegisteredMeshes) -> Adv3D:
    """The model of a trained autoencoder, with the mean training mesh as its template."""
    model = Adv3D(
        num_vertices=vae.num_vertices,
        num_triangles=len(meshes.triangles),
        num_landmarks=len(meshes.landmarks),
        identity_dim=config.identity_dim,
        expression_dim=config.expression_dim,
        scale=config.scale,
    )
    model.vae.load_state_dict(vae.state_dict())
    model.set_template(meshes.vertices.mean(0), meshes.triangles, meshes.landmarks)
    return model.eval()


def digest(meshes: RegisteredMeshes) -> dict[str, Any]:
    """What tells meshes from others, as they are prepared for training."""
    content = hashlib.sha256(repr(meshes.persons.tolist()).encode())
    for tensor in (meshes.vertices, meshes.neutral):
        if tensor is not None:
            content.update(tensor.contiguous().numpy().data)
    return {
        "meshes": len(meshes.vertices),
        "persons": len(meshes.names),
        "sha256": content.hexdigest()[:12],
    }


def said(config: PaperConfig, meshes: RegisteredMeshes) -> str:
    """What was trained on, and who was left out."""
    text = (
        f"{TITLES[config.source]}: {len(meshes.vertices):,} meshes of {len(meshes.names):,} "
        f"persons, {meshes.vertices.shape[1]:,} vertices each"
    )
    if meshes.left_out:
        text += f"; left out: {', '.join(meshes.left_out)}"
    return text
