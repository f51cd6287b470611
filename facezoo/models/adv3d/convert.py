"""Checkpoints of the authors' code, github.com/rmraaron/FaceExpDisentanglement, as ``Adv3D``.

Their file holds the tensors of the autoencoder alone, under the names that ``VAE`` has. The mean
training face, the triangles and the scale stand in none of their files, and have to be given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from facezoo.errors import WeightsMismatchError
from facezoo.geometry.mesh_files import read_mesh
from facezoo.geometry.meshes import Mesh
from facezoo.hub.convert import read_pickle
from facezoo.hub.names import CONFIG
from facezoo.hub.tensors import load_into
from facezoo.models.adv3d.model import Adv3D
from facezoo.models.pretrained import card_of_published

SCALES_MM = {"facescape": 573.0, "bu3dfe": 156.0, "coma": 260.0}
"""Millimetres that are 1 for the network, in the authors' code (CoMA's meshes are in metres)."""


def convert_file(
    source: Path,
    target: Path | None = None,
    *,
    template: Path,
    scale: float,
    overwrite: bool = False,
) -> Path:
    """Convert a published checkpoint to a folder that ``facezoo.load`` takes.

    Args:
        source: the pickled state dict.
        target: the folder to write; None for ``source`` without its suffix.
        template: the mean training face with triangles, in millimetres.
        scale: millimetres that are 1 for the network; see ``SCALES_MM``.
        overwrite: whether a checkpoint that is there may be replaced.

    Returns:
        The folder, with weights, card and README.

    Raises:
        FileExistsError: if the folder has a checkpoint and ``overwrite`` is False.
        WeightsMismatchError: if ``source`` is no such checkpoint, or of another template.
    """
    folder = source.with_suffix("") if target is None else target
    if (folder / CONFIG).exists() and not overwrite:
        raise FileExistsError(f"{folder} has a checkpoint already; remove it or choose another")
    model = from_published(read_pickle(source), read_mesh(template, "mm"), scale=scale)
    return model.save_pretrained(folder, card=card_of_published(model, source.name))


def from_published(
    tensors: Mapping[str, Tensor],
    template: Mesh,
    *,
    scale: float,
    landmarks: Sequence[int] = (),
) -> Adv3D:
    """A model in eval mode from a state dict in the authors' layout.

    Args:
        tensors: by name, ``conv1.weight`` and so on.
        template: the mean training face, with triangles.
        scale: millimetres that are 1 for the network; see ``SCALES_MM``.
        landmarks: vertices of the template by which meshes shall be aligned, K.

    Raises:
        WeightsMismatchError: if the tensors are not such a state dict, or of another number of
            vertices than the template.
        ValueError: if the template has no triangles, or the scale is not above 0.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be above 0 mm, got {scale}; see SCALES_MM")
    wanted = ("fc2_id.bias", "fc1_id.weight", "fc1_exp.weight")
    held = tensors if isinstance(tensors, Mapping) else {}
    if missing := [name for name in wanted if name not in held]:
        raise WeightsMismatchError(
            f"not an autoencoder of adv3d in the authors' layout: {', '.join(missing)} missing; "
            "their discriminator is not needed, and cannot be converted"
        )
    if template.triangles is None:
        raise ValueError("template must have triangles, for they are written with every mesh")
    count = len(tensors["fc2_id.bias"]) // 3
    if count != len(template.vertices):
        raise WeightsMismatchError(
            f"the tensors decode {count} vertices, and the template has {len(template.vertices)}; "
            "give the mean face that these weights were trained with"
        )
    model = Adv3D(
        num_vertices=count,
        num_triangles=len(template.triangles),
        num_landmarks=len(landmarks),
        identity_dim=tensors["fc1_id.weight"].shape[1],
        expression_dim=tensors["fc1_exp.weight"].shape[1],
        scale=scale,
    )
    load_into(model.vae, tensors)
    chosen = torch.as_tensor(list(landmarks), dtype=torch.int32)
    model.set_template(template.to_units("mm").vertices, template.triangles, chosen)
    return model.eval()
