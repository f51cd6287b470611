"""What a model of meshes is: it takes meshes with units and gives codes and meshes.

Letters: M meshes, N vertices of the template, T triangles, K landmarks, D numbers of a code.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from facezoo.geometry.mesh_files import read_mesh
from facezoo.geometry.meshes import Mesh, millimetres, moved, rigid_motion
from facezoo.models.base import Model
from facezoo.results import Result

MeshSource = str | Path | Mesh | NDArray[Any] | Tensor
"""A file, a mesh with its units, or vertices (N, 3) or (M, N, 3)."""
Meshes = MeshSource | Sequence[MeshSource]

FARTHEST_MM = 150.0
"""Between the middle of a mesh and that of the template; farther is not in the training frame."""


@dataclass(frozen=True, repr=False)
class MeshEncoding(Result):
    """Every code that a model reads from a mesh."""

    expression: Tensor
    """(M, D)."""
    identity: Tensor
    """(M, D)."""


class MeshModel(Model):
    """A disentangled representation of face meshes.

    Meshes come as files, ``Mesh`` objects, arrays or tensors, or a list of these. Files and arrays
    do not tell their units, so ``units`` is wanted with them. They must lie in the frame of the
    training meshes, or be laid upon it by ``align``:

    * None: they lie there already;
    * ``"vertices"``: by the rigid motion that fits all vertices to the template's, which takes the
      template's vertices in its order;
    * ``"landmarks"``: by the rigid motion that fits ``landmarks``, the mesh's own vertices that
      correspond to ``landmark_vertices`` of the template, (K,).

    Whatever the number of its vertices, a mesh can be encoded, as a cloud of points; what is
    decoded always has the template's vertices and triangles.
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

    @abstractmethod
    def encode(
        self,
        meshes: Meshes,
        *,
        units: str | None = None,
        align: str | None = None,
        landmarks: Sequence[int] | Tensor | None = None,
        batch_size: int = 32,
    ) -> MeshEncoding:
        """Every code of meshes."""

    @abstractmethod
    def synthesize(self, identity: Tensor, expression: Tensor | None = None) -> list[Mesh]:
        """Meshes of codes (M, D), millimetres; the identity face without an expression code."""

    def prepare(
        self,
        meshes: Meshes,
        *,
        units: str | None = None,
        align: str | None = None,
        landmarks: Sequence[int] | Tensor | None = None,
    ) -> list[Tensor]:
        """Meshes as the network takes them: aligned, float32, on the device, each (N, 3) in mm.

        Raises:
            FileNotFoundError: if a file is missing.
            TypeError: if something is no mesh.
            ValueError: if units are not stated, a mesh is damaged or lies far from the training
                frame, or cannot be aligned in the way that was asked for; or if this model has no
                template, as with ``pretrained=False``.
        """
        if not bool(self.template_um.any()):
            raise ValueError(
                f"this {self.model_name} has no template to say where meshes lie, for it was built "
                "with random weights; give it one by set_template(vertices_mm, triangles, "
                "landmarks), or load a checkpoint"
            )
        prepared = []
        for index, source in enumerate(_as_list(meshes)):
            try:
                mesh = _as_mesh(source, units)
                points = mesh.to_units("mm").vertices.detach().to(self.device, torch.float32)
                points = self._aligned(points, align, landmarks)
                self._check_place(points)
            except ValueError as error:
                raise ValueError(f"mesh {index}: {error}") from None
            prepared.append(points)
        if not prepared:
            raise ValueError("meshes is empty; give one mesh or more")
        return prepared

    def _aligned(
        self, points: Tensor, align: str | None, landmarks: Sequence[int] | Tensor | None
    ) -> Tensor:
        template = self.template_mm
        if landmarks is not None and align in (None, "vertices"):
            raise ValueError(f"landmarks are for align='landmarks', got align={align!r}")
        if align is None:
            return points
        if align == "vertices":
            if len(points) != len(template):
                raise ValueError(
                    f"align='vertices' needs the template's {len(template)} vertices in its order, "
                    f"got {len(points)}; use align='landmarks', or bring the mesh into the "
                    "training frame yourself"
                )
            return moved(points, *rigid_motion(points, template))
        if align != "landmarks":
            raise ValueError(f"align must be None, 'vertices' or 'landmarks', got {align!r}")
        wanted = template[self.landmark_vertices.long()]
        if not len(wanted):
            raise ValueError("the template has no landmarks; use align='vertices'")
        if landmarks is None or len(landmarks) != len(wanted):
            raise ValueError(
                f"align='landmarks' needs landmarks: {len(wanted)} vertex numbers of the mesh, "
                f"got {'none' if landmarks is None else len(landmarks)}"
            )
        own = points[_vertex_numbers(landmarks, len(wanted), len(points)).to(points.device)]
        return moved(points, *rigid_motion(own, wanted))

    def _check_place(self, points: Tensor) -> None:
        template = self.template_mm
        distance = float((points.mean(0) - template.mean(0)).norm())
        ratio = float((points - points.mean(0)).norm(dim=1).mean()) / float(
            (template - template.mean(0)).norm(dim=1).mean()
        )
        if distance > FARTHEST_MM or not 0.4 < ratio < 2.5:
            raise ValueError(
                f"its middle lies {distance:.0f} mm from the template's and it is {ratio:.3g} "
                "times as large; check units, and align it by align='vertices' or 'landmarks'"
            )


def _vertex_numbers(landmarks: Sequence[int] | Tensor, wanted: int, count: int) -> Tensor:
    """Landmarks as int64, (K,), if they are vertices of a mesh that has ``count``."""
    numbers = torch.as_tensor(landmarks)
    said = f"landmarks must be {wanted} whole numbers from 0 to {count - 1}, vertices of the mesh"
    if numbers.ndim != 1 or numbers.is_floating_point() or numbers.dtype == torch.bool:
        raise ValueError(f"{said}; got {tuple(numbers.shape)} of {numbers.dtype}")
    if int(numbers.min()) < 0 or int(numbers.max()) >= count:
        raise ValueError(f"{said}; got {int(numbers.min())} to {int(numbers.max())}")
    return numbers.long()


def _as_list(meshes: Meshes) -> list[MeshSource]:
    """Single meshes, batches taken apart."""
    if isinstance(meshes, (str, Path, Mesh)):
        return [meshes]
    if isinstance(meshes, (np.ndarray, Tensor)):
        if meshes.ndim == 3:
            return list(meshes)
        return [meshes]
    if not isinstance(meshes, Iterable):
        raise TypeError(
            "a mesh is a file, a Mesh, or an array or tensor of vertices, (N, 3) or (M, N, 3), and "
            f"several are a list of these; got {type(meshes).__name__}"
        )
    return [one for source in meshes for one in _as_list(source)]


def _as_mesh(source: MeshSource, units: str | None) -> Mesh:
    if isinstance(source, Mesh):
        return source
    millimetres(units)
    assert units is not None
    if isinstance(source, (str, Path)):
        return read_mesh(source, units)
    if isinstance(source, np.ndarray):  # torch does not take every order of bytes and of rows
        return Mesh(torch.from_numpy(np.array(source, np.float64, order="C")), units)
    return Mesh(source.detach(), units)


def in_batches(
    points: Sequence[Tensor], size: int, work: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Results of ``work`` over meshes, of which those of one size in a row go together.

    Args:
        points: each (N, 3), N may differ.
        size: meshes at once.
        work: from (B, N, 3) to tensors of B rows.

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
