"""Conversion of checkpoints of the authors' code, github.com/rmraaron/FaceExpDisentanglement.

Their file contains only the tensors of the autoencoder, with the names of ``VAE``. The mean
training face, its triangles and the scale are not in their files, so the caller passes them.
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
from facezoo.models.adv3d.networks import VAE
from facezoo.models.pretrained import card_of_published

SCALES_MM = {"facescape": 573.0, "bu3dfe": 156.0, "coma": 260.0}
"""Millimeters that are 1 for the network, in the authors' code (CoMA's meshes are in meters)."""


def convert_file(
    source: Path,
    target: Path | None = None,
    *,
    template: Path,
    scale: float,
    overwrite: bool = False,
) -> Path:
    """Convert a published checkpoint to a folder for ``facezoo.load``.

    Args:
        source: the pickled state dict.
        target: the folder to write; None for ``source`` without its suffix.
        template: the mean training face with triangles, in millimeters.
        scale: millimeters that are 1 for the network: 573 for FaceScape, 156 for BU-3DFE, 260 for
            CoMA.
        overwrite: replace an existing checkpoint.

    Returns:
        The folder, with weights, card and README.

    Raises:
        FileExistsError: if the folder has a checkpoint and ``overwrite`` is False.
        WeightsMismatchError: if ``source`` is not such a checkpoint, or has another template.
    """
    folder = source.with_suffix("") if target is None else target
    if (folder / CONFIG).exists() and not overwrite:
        raise FileExistsError(f"{folder} already has a checkpoint; remove it or use another folder")
    model = from_published(read_pickle(source), read_mesh(template, "mm"), scale=scale)
    return model.save_pretrained(folder, card=card_of_published(model, source.name))


def from_published(
    tensors: Mapping[str, Tensor], template: Mesh, *, scale: float, landmarks: Sequence[int] = ()
) -> Adv3D:
    """Build a model in eval mode from a state dict in the authors' layout.

    Args:
        tensors: by name, ``conv1.weight`` and so on.
        template: the mean training face, with triangles.
        scale: millimeters that are 1 for the network, such as those in ``SCALES_MM``.
        landmarks: vertices of the template for the alignment of meshes, K.

    Raises:
        WeightsMismatchError: if the tensors are not such a state dict, or have another number of
            vertices than the template.
        ValueError: if the template has no triangles, or the scale is not above 0.
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be above 0 mm, got {scale}; see SCALES_MM")
    required = ("fc2_id.bias", "fc1_id.weight", "fc1_exp.weight")
    names = tensors if isinstance(tensors, Mapping) else {}
    if missing := [name for name in required if name not in names]:
        raise WeightsMismatchError(
            f"not an autoencoder of adv3d in the authors' layout: {', '.join(missing)} missing; "
            "convert the autoencoder, not the discriminator"
        )
    if template.triangles is None:
        raise ValueError("template must have triangles, because decoded meshes use them")
    count = len(tensors["fc2_id.bias"]) // 3
    if count != len(template.vertices):
        raise WeightsMismatchError(
            f"the tensors decode {count} vertices, and the template has {len(template.vertices)}; "
            "use the mean face of the training of these weights"
        )
    dims = (tensors[f"fc1_{part}.weight"].shape[1] for part in ("id", "exp"))
    vae = VAE(count, *dims)
    load_into(vae, tensors)
    numbers = torch.as_tensor(list(landmarks), dtype=torch.int32)
    mean_face = template.to_units("mm").vertices
    return Adv3D.from_networks(vae, scale, mean_face, template.triangles, numbers)
