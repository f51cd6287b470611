"""Base class of mesh models.

Letters: M meshes, N vertices of the template, T triangles, K landmarks, D dimensions of a code.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import TypedDict, Unpack

from facezoo.geometry.meshes import Mesh, apply_motion, millimeters, rigid_motion
from facezoo.geometry.registration import Array, ShapeModel
from facezoo.models.capabilities import Model
from facezoo.models.face_finding import template_landmarks
from facezoo.models.mesh_inputs import (
    Landmarks,
    Meshes,
    MeshSource,
    Template,
    align_mesh,
    as_list,
    as_mesh,
    corresponds,
    describe,
    is_file,
    is_moved,
    landmark_positions,
    pose_difference,
    warn_of_gaps,
)
from facezoo.models.mesh_registration import Registration, one_thread, register, shape_model
from facezoo.results import FaceTable, feature_columns

WARN_RESIDUAL_MM = 2.5
"""Reconstruction error above which a mesh gets a warning."""
WARN_OWN_ROTATION_DEG, WARN_OWN_SHIFT_MM = 0.8, 1.0
"""Pose relative to the reconstruction above which a mesh gets a warning. Faces of the code
distribution stay below both; of faces rotated by 4 degrees or moved by 5 mm, most are above one."""
MAX_MOVED_MM = 30.0
"""Distance from the reconstruction that a pose near the template's cannot cause alone."""
POSE_STEPS = 12
"""Fits of a mesh to its reconstruction for ``align="vertices"``."""


class MeshKeywords(TypedDict, total=False):
    """Keyword arguments of every method that takes meshes."""

    units: str | None
    align: str | None
    landmarks: Landmarks | None


@dataclass(frozen=True, repr=False, eq=False)
class MeshEncoding(FaceTable):
    """Both codes of meshes.

    Examples:
        >>> encoding = model.encode(["head.ply", "other.ply"])  # doctest: +SKIP
        >>> encoding.to_frame().to_csv("codes.csv", index=False)  # doctest: +SKIP
    """

    expression: Tensor
    """(M, D)."""
    identity: Tensor
    """(M, D)."""
    residual_mm: Tensor | None = None
    """Mean distance between each mesh and its reconstruction, (M,); NaN without correspondence."""

    def __len__(self) -> int:
        return len(self.expression)

    def _columns(self) -> dict[str, Any]:
        codes = feature_columns({"expression": self.expression, "identity": self.identity})
        if self.residual_mm is None:
            return codes
        return {"residual_mm": self.numpy()["residual_mm"], **codes}


@dataclass(frozen=True)
class Placed:
    """A mesh in the frame of the template."""

    name: str
    """For errors."""
    points: Tensor
    """Millimeters, (N, 3)."""
    corresponds: bool
    """True if the points are the template's vertices, in order."""
    registration: Registration | None = None


class MeshModel(Model):
    """Disentangled representation of face meshes.

    Meshes are files, ``Mesh`` objects, arrays or tensors, or a list of these. Arrays and most files
    do not record their units, so they need ``units``, such as ``"mm"``. ``align`` moves meshes into
    the frame of the template:

    * ``"auto"``, the default: a mesh in another topology is registered, see ``register``; then
      ``units`` may be left out. A mesh with the template's number of vertices, and a point cloud,
      must lie in the frame already. The template's vertices in another pose get a warning;
    * None: every mesh lies there already; another topology is a point cloud;
    * ``"vertices"``: fit all vertices to the template's, which must have the same order, and then
      to the reconstruction of the mesh;
    * ``"landmarks"``: fit ``landmarks`` to the template's. These are vertex numbers (K,) or
      coordinates (K, 3) of the points ``landmark_vertices`` of the template, or of five points:
      right eye, left eye, nose tip, right and left mouth corner (the subject's right).

    Decoded meshes have the template's vertices and triangles, in millimeters.
    """

    preprocessing: None = None
    """There are no images to prepare."""

    template_um: Tensor
    triangles: Tensor
    landmark_vertices: Tensor
    code_mean: Tensor
    code_axes: Tensor
    code_limit: Tensor
    shape_axes: Tensor

    def __init__(
        self,
        num_vertices: int,
        num_triangles: int,
        num_landmarks: int,
        code_dims: int = 0,
        shape_axes: int = 0,
    ) -> None:
        super().__init__()
        # Whole micrometers, so that no precision of the weights on disk rounds them.
        self.register_buffer("template_um", torch.zeros(num_vertices, 3, dtype=torch.int32))
        self.register_buffer("triangles", torch.zeros(num_triangles, 3, dtype=torch.int32))
        self.register_buffer("landmark_vertices", torch.zeros(num_landmarks, dtype=torch.int32))
        # Distribution of the codes of the training meshes: mean, axes times deviation, and the
        # largest accepted distance in deviations. All are empty without statistics.
        self.register_buffer("code_mean", torch.zeros(code_dims), persistent=code_dims > 0)
        self.register_buffer(
            "code_axes", torch.zeros(code_dims, code_dims), persistent=code_dims > 0
        )
        self.register_buffer("code_limit", torch.zeros(min(1, code_dims)), persistent=code_dims > 0)
        # Principal axes of the training meshes times their deviation, mm, for registration.
        self.register_buffer(
            "shape_axes", torch.zeros(shape_axes, num_vertices, 3), persistent=shape_axes > 0
        )
        self._shape_model: tuple[ShapeModel, Array | None] | None = None

    @property
    def template_mm(self) -> Tensor:
        """The mean training face, millimeters, (N, 3)."""
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

    def set_code_statistics(self, codes: Tensor) -> None:
        """Store mean, covariance and limit of the codes of the training meshes (M, D).

        Deviations are at least a tenth of the mean one, so that noise in an unused dimension does
        not count. The limit is five times the largest distance of a training mesh.
        """
        mean = codes.double().mean(0)
        values, axes = torch.linalg.eigh(torch.cov(codes.double().T))
        deviations = values.clamp(min=0.01 * float(values.mean())).sqrt()
        self.code_mean.copy_(mean)
        self.code_axes.copy_(axes * deviations)
        self.code_limit.fill_(5 * float(self.code_distances(codes).max()))

    def set_shape_axes(self, axes: Tensor) -> None:
        """Store principal axes of the training meshes, times their deviation, mm, (A, N, 3)."""
        self.shape_axes.copy_(axes)
        self._shape_model = None

    def code_distances(self, codes: Tensor) -> Tensor:
        """Compute the Mahalanobis distance of codes (M, D), per root dimension, (M,)."""
        offsets = (codes.double() - self.code_mean.double()).T
        scores = torch.linalg.solve(self.code_axes.double(), offsets)
        return scores.norm(dim=0) / len(self.code_mean) ** 0.5

    def check_codes(self, placed: Sequence[Placed], codes: Tensor) -> None:
        """Reject registered meshes whose codes are far from the training codes.

        Raises:
            ValueError: naming the mesh.
        """
        if not len(self.code_limit) or not any(one.registration for one in placed):
            return
        limit = float(self.code_limit)
        for one, distance in zip(placed, self.code_distances(codes).tolist(), strict=True):
            if one.registration and distance > limit:
                raise ValueError(
                    f"{one.name}: its codes are {distance:.1f} standard deviations from the "
                    f"training faces (limit {limit:.1f}): this shape is outside the training data"
                )

    def warn_of_residual(self, one: Placed, reconstruction: Tensor, error_mm: float) -> None:
        """Warn of a mesh whose reconstruction (N, 3) is far from it or has another pose.

        Reconstructions follow shape and expression of a mesh, and its pose only in part.
        """
        if not one.registration:
            if not len(self.code_limit):
                return  # random weights
            angle, shift = pose_difference(one.points, reconstruction)
            moved = angle > WARN_OWN_ROTATION_DEG or shift > WARN_OWN_SHIFT_MM
            if (moved or error_mm > WARN_RESIDUAL_MM) and is_moved(one.points, self.template):
                return  # it has a warning already
            if moved and error_mm < MAX_MOVED_MM:
                warnings.warn(
                    f"{one.name}: it is rotated by {angle:.1f} degrees and shifted by {shift:.1f} "
                    "mm from its reconstruction, so it may not have the pose of the training "
                    "faces, which changes its codes; pass align='vertices'",
                    stacklevel=5,
                )
                return
        if error_mm > WARN_RESIDUAL_MM:
            kind = "registered mesh" if one.registration else "mesh"
            warnings.warn(
                f"{one.name}: the reconstruction is {error_mm:.1f} mm from the {kind} (expected up "
                f"to {WARN_RESIDUAL_MM:g} mm); the codes describe it poorly",
                stacklevel=5,
            )

    def register(
        self, mesh: MeshSource, *, units: str | None = None, landmarks: Landmarks | None = None
    ) -> Registration:
        """Register the template to a mesh in any topology, pose and unit.

        Args:
            mesh: a file or a ``Mesh``, with triangles.
            units: unit of the file; None finds it by the size of the face. A ``Mesh`` states its
                own.
            landmarks: the 68 landmarks of the template, or 5, as vertex numbers (K,) or
                coordinates (K, 3); they replace the face detector.

        Raises:
            FileNotFoundError: if the file is missing.
            ImportError: without the extra ``[mesh]``.
            ValueError: if no face is found, the mesh does not fit the template, or ``units`` are
                not those of a ``Mesh``.
        """
        self._check_template()
        stated = mesh.units if isinstance(mesh, Mesh) else units
        if units not in (None, stated):
            raise ValueError(
                f"units={units!r}, but the mesh states {stated!r}; omit units, or convert the mesh "
                f"with mesh.to_units({units!r})"
            )
        return self._register(as_mesh(mesh, stated or "mm"), stated, landmarks)

    def _register(
        self, mesh: Mesh, stated: str | None, landmarks: Landmarks | None
    ) -> Registration:
        with one_thread():
            if self._shape_model is None:
                self._shape_model = self._build_shape_model(), None
            model, reference = self._shape_model
            pairs = None
            if landmarks is not None:
                own = landmark_positions(mesh, landmarks).cpu().numpy()
                pairs = own, self.template.landmark_points(len(own)).double().cpu().numpy()
            elif reference is None:
                reference = template_landmarks(model.mean, model.triangles)
                self._shape_model = model, reference
            return register(mesh, model, reference, units=stated, landmarks=pairs)

    @abstractmethod
    def decode_samples(self, codes: Tensor) -> Tensor:
        """Decode joint codes (M, D) to meshes in mm, (M, N, 3)."""

    @abstractmethod
    def reconstruct_points(self, points: Tensor) -> Tensor:
        """Encode and decode vertices in the frame of the template, mm, (M, N, 3)."""

    @torch.no_grad()
    def _settle(self, placed: list[Placed]) -> list[Placed]:
        """Move meshes on the template to the pose of the training faces.

        The fit to the template also rotates by what is shape or expression, such as an open mouth.
        A reconstruction follows shape and expression, but the pose only in part. So repeated fits
        to it, each applied twice, end near the pose of the training faces.
        """
        start = points = torch.stack([one.points for one in placed])
        for _ in range(POSE_STEPS):
            target = self.reconstruct_points(points).double()
            motion = rigid_motion(points.double(), target)
            points = apply_motion(apply_motion(points.double(), *motion), *motion).to(start)
        before, after = (
            (p - self.reconstruct_points(p)).norm(dim=-1).mean(1) for p in (start, points)
        )
        points = torch.where((after < before)[:, None, None], points, start)
        return [replace(one, points=p) for one, p in zip(placed, points, strict=True)]

    def _build_shape_model(self) -> ShapeModel:
        """Build the shape model of registration, from stored axes or from decoded samples."""
        template = self.template
        if len(self.shape_axes):
            mean, basis = template.vertices, self.shape_axes
        else:
            mean, basis = self._decoded_shapes()
        return shape_model(
            mean.double().cpu().numpy(),
            basis.double().cpu().numpy(),
            template.triangles.cpu().numpy(),
            template.landmarks.cpu().numpy(),
        )

    def _decoded_shapes(self, samples: int = 600) -> tuple[Tensor, Tensor]:
        """Fit mean (N, 3) and axes (D, N, 3) to decoded samples of the code distribution."""
        size = len(self.code_mean)
        if not size:
            return self.template.vertices, self.template.vertices.new_zeros(
                0, *self.template.vertices.shape
            )
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(samples, size, generator=generator, dtype=torch.float64, device="cpu")
        codes = self.code_mean.double().cpu() + scores @ self.code_axes.double().cpu().T
        shapes = self.decode_samples(codes.to(self.code_mean)).double().cpu()
        inputs = torch.cat([scores.new_ones(samples, 1), scores], 1)
        weights = torch.linalg.lstsq(inputs, shapes.flatten(1), driver="gelsd").solution
        return weights[0].unflatten(0, (-1, 3)), weights[1:].unflatten(1, (-1, 3))

    def _check_template(self) -> None:
        if not bool(self.template_um.any()):
            raise ValueError(
                f"this {self.model_name} has random weights and no template; call "
                "set_template(vertices_mm, triangles, landmarks), or load a checkpoint"
            )

    def prepare(self, meshes: Meshes, **place: Unpack[MeshKeywords]) -> list[Tensor]:
        """Read and align meshes for the network: float32 on the device, mm, each (N, 3).

        Raises:
            FileNotFoundError: if a file is missing.
            TypeError: if an input is not a mesh.
            ValueError: if units are missing, a mesh is damaged, lies far from the template or
                cannot be aligned as requested; or if this model has no template, as with
                ``pretrained=False``.
        """
        return [one.points for one in self._place(meshes, **place)]

    def _place(
        self,
        meshes: Meshes,
        *,
        units: str | None = None,
        align: str | None = "auto",
        landmarks: Landmarks | None = None,
    ) -> list[Placed]:
        self._check_template()
        template, placed = self.template, []
        for index, source in enumerate(as_list(meshes)):
            name = describe(source, index)
            try:
                placed.append(self._place_one(name, source, template, units, align, landmarks))
            except ValueError as error:
                known = name in str(error)
                raise ValueError(str(error) if known else f"{name}: {error}") from None
        if not placed:
            raise ValueError("meshes is empty; expected one mesh or more")
        return self._settle(placed) if align == "vertices" and len(self.code_limit) else placed

    def _place_one(
        self,
        name: str,
        source: MeshSource,
        template: Template,
        units: str | None,
        align: str | None,
        landmarks: Landmarks | None,
    ) -> Placed:
        automatic = align == "auto"
        mesh = as_mesh(source, units or "mm" if automatic and is_file(source) else units)
        count = len(mesh.vertices)
        if automatic and count != len(template.vertices) and mesh.triangles is not None:
            registration = self._register(mesh, units if is_file(source) else mesh.units, landmarks)
            return Placed(name, registration.vertices.to(self.device), True, registration)
        if not isinstance(source, Mesh):
            millimeters(units)
        if mesh.vertices.device != template.vertices.device:
            mesh = Mesh(mesh.vertices.to(self.device), mesh.units, mesh.triangles)
        points = align_mesh(mesh, template, None if automatic else align, landmarks)
        corresponding = corresponds(points, template, name)
        if not corresponding:
            warn_of_gaps(points, template, name)
        return Placed(name, points, corresponding)


def in_topology(topology: str, placed: Sequence[Placed], faces: list[Mesh]) -> list[Mesh]:
    """Return decoded faces in the topology of the template or of the input.

    Raises:
        ValueError: if the topology is unknown, or a mesh was not registered.
    """
    if topology == "template":
        return faces
    if topology != "input":
        raise ValueError(f"topology must be 'template' or 'input', got {topology!r}")
    results = []
    for one, face in zip(placed, faces, strict=True):
        if one.registration is None:
            raise ValueError(f"{one.name}: topology='input' needs a registered mesh, align='auto'")
        results.append(one.registration.transfer(face.vertices))
    return results


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
