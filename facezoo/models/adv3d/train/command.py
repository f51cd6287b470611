"""``facezoo train adv3d``: from a folder of meshes to a checkpoint, by any recipe."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facezoo.data.ict import FACE, RECIPES, IctFaces
from facezoo.data.registered import RegisteredMeshes, from_faces, read_registered
from facezoo.hub.card import Card, Licenses
from facezoo.models.adv3d.model import Adv3D
from facezoo.models.adv3d.train import ict, paper
from facezoo.models.adv3d.train.autoencoder import SHAPE_AXES, principal_frame
from facezoo.models.adv3d.train.recipes import IctConfig, PaperConfig, recipe
from facezoo.training.run import begin_run, check_data, digest_of_files, shortened, write_checkpoint
from facezoo.training.state import generator

CITATION = """@inproceedings{gu2023adversarial,
  title = {Adversarial 3D Face Disentanglement of Identity and Expression},
  author = {Gu, Yajie and Pears, Nick and Sun, Hao},
  booktitle = {IEEE International Conference on Automatic Face and Gesture Recognition},
  year = {2023}
}"""
TITLES = {
    "coma": "CoMA (Ranjan et al. 2018)",
    "bu-3dfe": "BU-3DFE (Yin et al. 2006), registered to one topology",
    "facescape": "FaceScape's registered meshes (Yang et al. 2020)",
    "ict": "ICT-3D, synthetic meshes from the modes of ICT-FaceKit",
}
RESULT = "runs/adv3d/adv3d.{}.safetensors"
"""Weights that the command of a card writes, by recipe."""
MESHES_OF_AXES = 5000
"""Most meshes that the stored principal axes are computed from."""
SMOKE = {
    "size": "tiny",
    "mixtures": 8,
    "registrations": 2,
    "regressor_steps": 2,
    "pretraining_steps": 1,
    "steps": 2,
    "pretraining_epochs": 1,
    "epochs": 1,
}
"""Values of recipe fields with ``--smoke``."""


def run(
    name: str,
    data: Path,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    start: str | None = None,
    smoke: bool = False,
) -> Path:
    """Train by a recipe and write weights and card; a call after an interruption resumes.

    With ``start``, nothing is trained: the principal axes of the training meshes are added to a
    checkpoint that has none, see ``MeshModel.set_shape_axes``. The card then has both commands.

    Args:
        name: of the recipe, a key of ``RECIPES``.
        out: folder for state, logs and result; meshes from files are saved in ``out/meshes``.
        start: checkpoint of the same recipe to which the axes are added.
        smoke: train a few steps only, to test that the recipe runs; with ``start``, take any meshes
            with the same number of vertices as the template.

    Raises:
        UnknownNameError: if there is no such recipe.
        ValueError: if ``out`` holds a run of another recipe or other data, the meshes do not fit
            together, or ``start`` is of another recipe.
        FileNotFoundError: if ``data`` does not hold the data set.
    """
    config = recipe(name)
    if smoke:
        registered = min(8, getattr(config, "registered", 0))
        config = shortened(config, **SMOKE, registered=registered)
    base: Card | None = None
    if isinstance(config, IctConfig):
        faces = IctFaces(data)
        record = begin_run(out, seed=seed, recipe=asdict(config))
        check_data(out, digest_of_files(data, [data / FACE, data / RECIPES]))
        if start is None:
            full = IctFaces(data, full=True)
            model = ict.train(config, faces, full, out, seed=seed, device=device)
        else:
            meshes = torch.from_numpy(faces.split(config.size)[0].vertices).flatten(0, 1)
            model, base = with_shape_axes(start, name, meshes, seed, check=not smoke)
        source, data_note = "ict", f"ICT-3D, {config.size} size, linear: synthetic meshes from "
        data_note += "the modes of ICT-FaceKit"
        use = "ICT-3D. Trained on synthetic meshes; not for identifying people."
    else:
        record = begin_run(out, seed=seed, recipe=asdict(config))
        registered = read_meshes(config, data, cache=out / "meshes")
        check_data(out, _digest(registered))
        if start is None:
            vae = paper.train(config, registered, out, seed=seed, device=device)
            model = Adv3D.from_networks(
                vae,
                config.scale,
                registered.vertices.mean(0),
                registered.triangles,
                registered.landmarks,
                list(registered.vertices),
                shape_axes(registered.vertices, seed),
            )
        else:
            model, base = with_shape_axes(start, name, registered.vertices, seed, check=not smoke)
        source, data_note = config.source, _describe(config, registered)
        use = "the training set. Not for identifying people, nor for decisions about them."
    license_name = "mit" if source == "ict" else "research-only"
    first = ""
    if base is not None:  # the checkpoint itself, without axes: its training comes first
        training = base.training
        first = training.command.partition(" && ")[0]
        commit = training.recipe.get("training_commit", training.commit)
        recorded = {**record["recipe"], "training_commit": commit}
        record = {**record, "recipe": recorded, "hardware": training.hardware}
    return write_checkpoint(
        model,
        out,
        record,
        model="adv3d",
        tag=name,
        default=name == "ict-neutral",
        flags=f" --recipe {name}" + (f" --start {RESULT.format(name)}" if base else ""),
        precision=config.precision,
        licenses=Licenses(code="Apache-2.0", weights=license_name, data=license_name),
        data=base.training.data if base else (data_note,),
        intended_use=(
            "Research on the shape of faces: identity and expression of meshes in the topology of "
            + use
        ),
        citation=CITATION,
        before=first,
        smoke=smoke,
    )


def with_shape_axes(
    start: str, name: str, meshes: Tensor, seed: int, *, check: bool = True
) -> tuple[Adv3D, Card]:
    """Add the principal axes of training meshes to a checkpoint.

    Args:
        start: name or path of the checkpoint.
        name: recipe it was trained by.
        meshes: its training meshes, mm, (M, N, 3).
        seed: selects the meshes that the axes are computed from.
        check: raise an error if the mean of the meshes is not the template.

    Returns:
        The model with the axes, and the card of the checkpoint.

    Raises:
        ValueError: if the checkpoint is of another recipe or other meshes.
    """
    model: Adv3D = Adv3D.from_pretrained(start)
    base = model.card
    if base is None or base.tag != name:
        raise ValueError(f"--start needs a checkpoint of the recipe {name}, got {start}")
    mean = meshes.mean(0)
    if check and (
        mean.shape != model.template_mm.shape or not mean.allclose(model.template_mm, atol=0.01)
    ):
        raise ValueError(f"the mean of these meshes is not the template of {start}")
    axes = shape_axes(meshes, seed)
    fitted = Adv3D(**{**model.architecture, "shape_axes": len(axes)})
    fitted.load_state_dict({**fitted.state_dict(), **model.cpu().state_dict(), "shape_axes": axes})
    return fitted.eval(), base


def shape_axes(meshes: Tensor, seed: int) -> Tensor:
    """Compute principal axes of meshes (M, N, 3), times their deviation, (A, N, 3)."""
    sampled = meshes[:: -(-len(meshes) // MESHES_OF_AXES)]
    return principal_frame(sampled, SHAPE_AXES, generator(seed, 0)).shape_axes()


def read_meshes(
    config: PaperConfig, data: Path, split: str = "train", cache: Path | None = None
) -> RegisteredMeshes:
    """Read one split, train or test, of a recipe's data set, prepared as for training."""
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


def _digest(meshes: RegisteredMeshes) -> dict[str, Any]:
    """Identify prepared meshes by their numbers and a hash."""
    content = hashlib.sha256(repr(meshes.identities.tolist()).encode())
    for tensor in (meshes.vertices, meshes.neutral):
        if tensor is not None:
            content.update(tensor.contiguous().numpy().data)
    return {
        "meshes": len(meshes.vertices),
        "identities": len(meshes.names),
        "sha256": content.hexdigest()[:12],
    }


def _describe(config: PaperConfig, meshes: RegisteredMeshes) -> str:
    text = (
        f"{TITLES[config.source]}: {len(meshes.vertices):,} meshes of {len(meshes.names):,} "
        f"identities, {meshes.vertices.shape[1]:,} vertices each"
    )
    if meshes.left_out:
        text += f"; left out: {', '.join(meshes.left_out)}"
    return text
