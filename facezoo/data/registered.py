"""Registered meshes in memory, in one form for CoMA, BU-3DFE, FaceScape and ICT-3D.

A flat list of meshes with identity indices fits all four: sequences of different lengths,
identities with missing expressions, and sets without neutral meshes.

Letters: M meshes, P identities, N vertices, T triangles, K landmarks.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facezoo.data.ict import FaceSet, Topology
from facezoo.data.mesh_sets import (
    MeshRow,
    MeshSet,
    read_bu3dfe,
    read_coma,
    read_facescape,
    simplification,
)
from facezoo.errors import warn_once
from facezoo.geometry.mesh_files import read_mesh
from facezoo.geometry.meshes import Mesh, apply_motion, nearest_vertices, rigid_motion
from facezoo.progress import progress_bar
from facezoo.training.state import load_state, save_state

READERS = {"coma": read_coma, "bu-3dfe": read_bu3dfe, "facescape": read_facescape}
CHUNK = 200
"""Meshes per cache file, the most that an interruption loses."""
LANDMARKS = "landmarks.txt"
"""Next to the identity folders: numbers of vertices that expressions do not move, from 0."""


@dataclass(frozen=True)
class RegisteredMeshes:
    """Meshes of several identities in one topology."""

    vertices: Tensor
    """Millimeters, float32, (M, N, 3)."""
    identities: Tensor
    """Index of each mesh's identity in ``names``, int64, (M,)."""
    expressions: tuple[str, ...]
    """Expression, with its level if the set has levels, such as ``"anger 3"``; M."""
    names: tuple[str, ...]
    """P."""
    triangles: Tensor
    """int64, (T, 3)."""
    landmarks: Tensor
    """Vertices that are landmarks, int64, (K,); K may be 0."""
    neutral: Tensor | None
    """The neutral mesh of each identity, millimeters, (P, N, 3), or None if unknown."""
    left_out: tuple[str, ...] = ()
    """Identities without meshes here, each with the reason."""


def from_faces(faces: FaceSet, topology: Topology) -> RegisteredMeshes:
    """Convert a split of ICT-3D; expression 0 is neutral."""
    vertices = torch.from_numpy(faces.vertices)
    count, expressions = vertices.shape[:2]
    return RegisteredMeshes(
        vertices.flatten(0, 1),
        torch.arange(count).repeat_interleave(expressions),
        faces.expressions * count,
        tuple(str(identity) for identity in faces.identities),
        torch.from_numpy(topology.triangles),
        torch.from_numpy(topology.landmarks),
        vertices[:, 0],
    )


def read_registered(
    source: str,
    folder: Path,
    split: str = "train",
    *,
    neutrals: bool = False,
    simplify_to: int | None = None,
    align: bool = False,
    cache: Path | None = None,
) -> RegisteredMeshes:
    """Read every mesh of one split of a data set.

    The first neutral mesh of the training split defines simplification and alignment in both
    splits.

    Args:
        source: a key of ``READERS``.
        folder: of the data set; see its reader.
        split: ``"train"`` or ``"test"``.
        neutrals: read neutral meshes too; identities without one are left out.
        simplify_to: approximate number of vertices to keep; see ``simplification``. None for all.
        align: align every mesh to the first neutral by the vertices in ``landmarks.txt`` of
            ``folder``.
        cache: folder for the meshes of this split, so that an interrupted call resumes and the next
            call is fast. Other file names or settings are read again; remove the folder if files
            change.

    Raises:
        FileNotFoundError: if there are no such meshes, or landmarks are missing.
        ValueError: if meshes have different numbers of vertices, or too few meshes remain.
        ImportError: if a file needs trimesh, or simplification needs fast-simplification.
    """
    data = READERS[source](folder)
    landmarks = _landmarks(folder) if align else torch.zeros(0, dtype=torch.int64)
    template = _template(data) if align or simplify_to else None
    selection = simplification(template, simplify_to) if template and simplify_to else None
    return read_rows(
        data.part(split),
        data.units,
        neutrals=neutrals,
        selection=selection,
        landmarks=landmarks,
        target=template.vertices if template else None,
        cache=cache,
    )


def read_rows(
    rows: Sequence[MeshRow],
    units: str,
    *,
    neutrals: bool = False,
    selection: tuple[Tensor, Tensor] | None = None,
    landmarks: Tensor | None = None,
    target: Tensor | None = None,
    cache: Path | None = None,
) -> RegisteredMeshes:
    """Read the meshes of rows, all in one topology.

    Args:
        rows: for example a split of a ``MeshSet``.
        units: of the numbers in the files.
        neutrals: read neutral meshes too; identities without one are left out.
        selection: vertices to keep and triangles among them, from ``simplification``.
        landmarks: vertices for the alignment, (K,), as numbered in the files. If vertices are
            dropped, the nearest remaining vertex replaces each landmark.
        target: a mesh to align to, millimeters, (N, 3).
        cache: folder for the meshes, so that an interrupted call resumes; None for none.

    Raises:
        ValueError: if meshes have different numbers of vertices, or too few meshes remain.
    """
    rows, left_out = _usable(rows, neutrals)
    anchors = torch.zeros(0, dtype=torch.int64) if landmarks is None else landmarks
    first = read_mesh(rows[0].path, units)
    if first.triangles is None:
        raise ValueError(f"{rows[0].path} has no triangles; the first mesh defines them for all")
    indices, triangles = selection or (torch.arange(len(first.vertices)), first.triangles)

    def points_of(row: MeshRow) -> Tensor:
        points = read_mesh(row.path, units).to_units("mm").vertices
        if len(points) != len(first.vertices):
            raise ValueError(
                f"{row.path} has {len(points)} vertices and {rows[0].path} "
                f"{len(first.vertices)}; register the meshes to one topology first"
            )
        if len(anchors) and target is not None:
            motion = rigid_motion(points[anchors], target[anchors].to(points))
            points = apply_motion(points, *motion)
        return points[indices].float()

    settings: list[Any] = [units, *(part.tolist() for part in (indices, anchors))]
    settings.append(None if target is None else target.tolist())
    key = hashlib.sha256(repr(settings).encode()).hexdigest()
    vertices = _read_all(rows, points_of, cache, key)
    if len(anchors) and selection:
        anchors = nearest_vertices(first.vertices[anchors], first.vertices[indices])
    names = tuple(dict.fromkeys(row.identity for row in rows))
    number = {name: index for index, name in enumerate(names)}
    neutral = {row.identity: at for at, row in enumerate(rows) if row.expression == "neutral"}
    return RegisteredMeshes(
        vertices,
        torch.tensor([number[row.identity] for row in rows]),
        tuple(
            row.expression if row.level is None else f"{row.expression} {row.level}" for row in rows
        ),
        names,
        triangles,
        anchors,
        vertices[[neutral[name] for name in names]] if neutrals else None,
        left_out,
    )


def _read_all(
    rows: Sequence[MeshRow], points_of: Callable[[MeshRow], Tensor], cache: Path | None, key: str
) -> Tensor:
    """Read all rows, (M, N, 3); ``cache`` holds chunks with their key and file names."""
    chunks = []
    bar = progress_bar(total=len(rows), desc="reading meshes", mininterval=1)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        path = cache / f"{start}.pt" if cache else None
        origin = [key, *(str(row.path.resolve()) for row in part)]
        if path and (state := load_state(path)) and state.get("origin") == origin:
            chunks.append(state["vertices"])
            bar.update(len(part))
            continue
        chunk = []
        for row in part:
            chunk.append(points_of(row))
            bar.update()
        chunks.append(torch.stack(chunk))
        if path:
            save_state(path, vertices=chunks[-1], origin=origin)
    bar.close()
    return torch.cat(chunks)


def _usable(rows: Sequence[MeshRow], neutrals: bool) -> tuple[list[MeshRow], tuple[str, ...]]:
    """Drop identities without a pair of meshes or, if needed, without exactly one neutral."""
    meshes = Counter(row.identity for row in rows)
    neutral = Counter(row.identity for row in rows if row.expression == "neutral")
    reasons = {}
    for identity, count in meshes.items():
        if count < 2:
            reasons[identity] = "one mesh only"
        elif neutrals and neutral[identity] != 1:
            reasons[identity] = f"{neutral[identity]} neutral meshes"
    usable = [row for row in rows if row.identity not in reasons]
    left_out = tuple(f"{identity} ({reason})" for identity, reason in reasons.items())
    if not usable:
        raise ValueError(f"none of {len(meshes)} identities is usable: {', '.join(left_out[:5])}")
    if left_out:
        warn_once(
            f"{len(left_out)} of {len(meshes)} identities are left out: {', '.join(left_out)}",
            stacklevel=3,
        )
    return usable, left_out


def _template(data: MeshSet) -> Mesh:
    """Read the first neutral mesh of the training split, millimeters."""
    for row in data.part("train"):
        if row.expression == "neutral":
            return read_mesh(row.path, data.units).to_units("mm")
    raise ValueError("no training identity has a neutral mesh, which the alignment needs")


def _landmarks(folder: Path) -> Tensor:
    path = folder / LANDMARKS
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; write the numbers, from 0, of three or more vertices that expressions do "
            "not move, such as eye corners and the bridge of the nose"
        )
    return torch.tensor([int(word) for word in path.read_text(encoding="utf-8").split()])
