"""Errors of registration, for training: how registered meshes differ from the true ones.

Training meshes in full resolution are resampled and registered, and the differences are kept.
Training meshes with such differences have the errors that meshes in another topology will have.

Letters: K registered meshes, N vertices of the template, C principal axes.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.data import resampling
from facezoo.data.ict import IctFaces
from facezoo.geometry.meshes import Mesh
from facezoo.models.adv3d.train.autoencoder import Frame
from facezoo.models.adv3d.train.recipes import IctConfig
from facezoo.models.mesh_registration import register, shape_model
from facezoo.progress import progress_bar
from facezoo.training.state import load_state, save_state

CHANGES: tuple[resampling.Change, ...] = (
    resampling.unchanged,
    resampling.decimated(1200),
    resampling.decimated(5000),
    resampling.cut_at_the_neck,
    resampling.noisy,
    resampling.with_holes,
    resampling.front_half,
)
"""Resamplings of the meshes, in turn."""
LANDMARK_MM = 2.0
"""Standard deviation of the error of each coordinate of the landmarks; a detector's is similar."""
SAVE_EVERY = 40
"""Meshes between saved states."""


def registration_errors(
    config: IctConfig, faces: IctFaces, full: IctFaces, frame: Frame, out: Path, seed: int
) -> Tensor:
    """Register resampled training meshes; returns their differences from the truth.

    Args:
        config: the recipe; meshes that registration rejects are left out.
        faces: generator of the template's vertices.
        full: generator of the full resolution.
        out: folder of the saved state; a call after an interruption resumes.

    Returns:
        Registered minus true vertices, millimeters, (K, N, 3).

    Raises:
        ValueError: if every mesh is rejected.
    """
    model = shape_model(
        (frame.mean * config.scale).double().numpy(),
        (frame.shape_axes() * config.scale).double().numpy(),
        faces.topology.triangles,
        faces.topology.landmarks,
    )
    identities = faces.training_identities(config.size)
    path = out / "registration-errors.pt"
    state = load_state(path) or {"done": 0, "errors": []}
    errors: list[Tensor] = state["errors"]
    remaining = range(state["done"], config.registrations)
    for number in progress_bar(remaining, mininterval=10, desc="registrations"):
        generator = np.random.default_rng([seed, number])
        identity = identities[generator.integers(len(identities))]
        expression = int(generator.integers(len(faces.expressions)))
        mesh = full.meshes(np.array([identity]))[0, expression].astype(float)
        points = mesh[full.topology.landmarks]
        points = points + LANDMARK_MM * generator.standard_normal(points.shape)
        change = CHANGES[number % len(CHANGES)]
        vertices, triangles = change(mesh, full.topology.triangles, generator)
        scan = Mesh(torch.from_numpy(vertices), "mm", torch.from_numpy(triangles))
        pairs = points, model.mean[faces.topology.landmarks]
        try:
            found = register(scan, model, None, units="mm", landmarks=pairs)
        except ValueError as error:
            warnings.warn(f"mesh {number} is left out: {error}", stacklevel=2)
        else:
            errors.append(found.vertices - torch.from_numpy(mesh[faces.index]).float())
        if (number + 1) % SAVE_EVERY == 0 or number + 1 == config.registrations:
            save_state(path, done=number + 1, errors=errors)
    if not errors:
        raise ValueError("none of the training meshes could be registered")
    return torch.stack(errors)


def sample_error(errors: Tensor, generator: torch.Generator, joined: int = 4) -> Tensor:
    """Combine some errors (K, N, 3) into a new one with the same mean and covariance, (N, 3)."""
    members = torch.randperm(len(errors), generator=generator)[:joined]
    weights = F.normalize(torch.randn(len(members), generator=generator), dim=0)
    mean = errors.mean(0)
    return mean + torch.einsum("j,jnx->nx", weights, errors[members] - mean)
