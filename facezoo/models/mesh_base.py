"""Base class for mesh models.

Letters: M meshes, N vertices of the template, T triangles, K landmarks, D dimensions of a code.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from facezoo.geometry.meshes import Mesh
from facezoo.models.base import Model
from facezoo.models.mesh_inputs import (
    Landmarks,
    Meshes,
    Template,
    align_mesh,
    as_list,
    as_mesh,
    describe,
)
from facezoo.results import Result


class MeshKeywords(TypedDict, total=False):
    """Keyword arguments of every method that takes meshes."""

    units: str | None
    align: str | None
    landmarks: Landmarks | None


@dataclass(frozen=True, repr=False)
class MeshEncoding(Result):
    """Both codes of meshes."""

    expression: Tensor
    """(M, D)."""
    identity: Tensor
    """(M, D)."""


class MeshModel(Model):
    """Disentangled representation of face meshes.

    Meshes are files, ``Mesh`` objects, arrays or tensors, or a list of these. Files and arrays do
    not record their units, so they need ``units``, ``"mm"``, ``"cm"`` or ``"m"``. Meshes must lie
    in the frame of the training meshes; ``align`` moves them there:

    * None: they lie there already;
    * ``"vertices"``: fit all vertices to the template's, which must have the same order;
    * ``"landmarks"``: fit ``landmarks`` to the template's. These are vertex numbers (K,) or
      coordinates (K, 3) of the points ``landmark_vertices`` of the template, or of five points:
      right eye, left eye, nose tip, right and left mouth corner (the subject's right).

    A mesh with any number of vertices is encoded as a point cloud. Decoded meshes always have the
    template's vertices and triangles.
    """

    preprocessing: None = None
    """There are no images to prepare."""

    template_um: Tensor
    triangles: Tensor
    landmark_vertices: Tensor

    def __init__(self, num_vertices: int, num_triangles: int, num_landmarks: int) -> None:
        super().__init__()
        # Whole micrometres, so that no precision of the weights on disk rounds them.
        self.register_buffer("template_um", torch.zeros(num_vertices, 3, dtype=torch.int32))
        self.register_buffer("triangles", torch.zeros(num_triangles, 3, dtype=torch.int32))
        self.register_buffer("landmark_vertices", torch.zeros(num_landmarks, dtype=torch.int32))

    @property
    def template_mm(self) -> Tensor:
        """The mean training face, millimetres, (N, 3)."""
        return self.template_um.to(torch.float32) / 1000

    def set_template(self, vertices_mm: Tensor, triangles: Tensor, landmarks: Tensor) -> None:
        """Fill in the mean training face (N, 3), its triangles (T, 3) and landmarks (K,)."""
        self.template_um.copy_((vertices_mm.double() * 1000).round())
        self.triangles.copy_(triangles)
        self.landmark_vertices.copy_(landmarks)

    @property
    def template(self) -> Template:
        """The mean training face with its triangles and landmarks."""
        return Template(self.template_mm, self.triangles.long(), self.landmark_vertices.long())

    @abstractmethod
    def encode(
        self, meshes: Meshes, *, batch_size: int = 32, **place: Unpack[MeshKeywords]
    ) -> MeshEncoding:
        """Encode meshes to both codes."""

    @abstractmethod
    def synthesize(self, identity: Tensor, expression: Tensor | None = None) -> list[Mesh]:
        """Decode codes (M, D) to meshes, mm; without an expression code, the identity face."""

    def prepare(
        self,
        meshes: Meshes,
        *,
        units: str | None = None,
        align: str | None = None,
        landmarks: Landmarks | None = None,
    ) -> list[Tensor]:
        """Read and align meshes for the network: float32 on the device, mm, each (N, 3).

        Raises:
            FileNotFoundError: if a file is missing.
            TypeError: if an input is not a mesh.
            ValueError: if units are missing, a mesh is damaged, lies far from the template or
                cannot be aligned as requested; or if this model has no template, as with
                ``pretrained=False``.
        """
        if not bool(self.template_um.any()):
            raise ValueError(
                f"this {self.model_name} has random weights and no template; call "
                "set_template(vertices_mm, triangles, landmarks), or load a checkpoint"
            )
        template, prepared = self.template, []
        for index, source in enumerate(as_list(meshes)):
            try:
                mesh = as_mesh(source, units)
                mesh = Mesh(mesh.vertices.to(self.device), mesh.units, mesh.triangles)
                prepared.append(align_mesh(mesh, template, align, landmarks))
            except ValueError as error:
                name = describe(source, index)
                known = name in str(error)
                raise ValueError(str(error) if known else f"{name}: {error}") from None
        if not prepared:
            raise ValueError("meshes is empty; expected one mesh or more")
        return prepared


def in_batches(
    points: Sequence[Tensor], size: int, work: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Apply ``work`` to meshes in batches; consecutive meshes of one size share a batch.

    Args:
        points: each (N, 3), N may differ.
        size: meshes per batch.
        work: function of (B, N, 3) that returns tensors of B rows.

    Raises:
        ValueError: if ``size`` is below 1.
    """
    if size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {size}")
    results: list[tuple[Tensor, ...]] = []
    waiting: list[Tensor] = []
    for index, cloud in enumerate(points):
        waiting.append(cloud)
        last = index + 1 == len(points)
        if last or len(waiting) == size or len(points[index + 1]) != len(cloud):
            results.append(work(torch.stack(waiting)))
            waiting = []
    return tuple(torch.cat(parts) for parts in zip(*results, strict=True))
