"""``facezoo.register``: fit the template of a mesh model to any mesh of a face."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from facezoo.registry import load

if TYPE_CHECKING:
    from facezoo.geometry.meshes import Mesh
    from facezoo.models.mesh_inputs import Landmarks
    from facezoo.models.mesh_registration import Registration


def register(
    mesh: str | Path | Mesh,
    *,
    units: str | None = None,
    landmarks: Landmarks | None = None,
    model: str = "adv3d",
    device: str | None = None,
) -> Registration:
    """Register the template of a mesh model to a mesh in any topology, pose and unit.

    Args:
        mesh: a file or a ``Mesh``, with triangles.
        units: unit of the numbers in the file; None finds it by the size of the face. A ``Mesh``
            states its own.
        landmarks: the 68 landmarks or 5 points as vertex numbers (K,) or coordinates (K, 3); they
            replace the face detector.
        model: name of a mesh model, or a path.
        device: where to load the model.

    Returns:
        Corresponding vertices, the transform, the unit and the distance after each step.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if no face is found, or the mesh does not fit the template.

    Examples:
        >>> registration = facezoo.register("head.glb")  # doctest: +SKIP
        >>> registration.units  # doctest: +SKIP
        'taken as m'
    """
    return load(model, device=device).register(mesh, units=units, landmarks=landmarks)
