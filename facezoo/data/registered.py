"""Registered meshes in memory, the same for CoMA, BU-3DFE, FaceScape and ICT-3D.

A flat list of meshes with the number of each one's person suits all four: sequences of different
lengths, persons with expressions missing, and sets without neutral meshes.

Letters: M meshes, P persons, N vertices, T triangles, K landmarks.
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
from tqdm.auto import tqdm

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
from facezoo.geometry.meshes import Mesh, moved, rigid_motion
from facezoo.training.state import load_state, save_state

READERS = {"coma": read_coma, "bu-3dfe": read_bu3dfe, "facescape": read_facescape}
CHUNK = 200
"""Meshes that an interruption of the reading costs at most."""
LANDMARKS = "landmarks.txt"
"""Beside the persons' folders: numbers of vertices that expressions do not move, from 0."""


@dataclass(frozen=True)
class RegisteredMeshes:
    """Meshes of several persons in one topology."""

    vertices: Tensor
    """Millimetres, float32, (M, N, 3)."""
    persons: Tensor
    """Place of each mesh's person in ``names``, int64, (M,)."""
    expressions: tuple[str, ...]
    """Expression, and level where there is one, such as ``"anger 3"``; M."""
    names: tuple[str, ...]
    """P."""
    triangles: Tensor
    """int64, (T, 3)."""
    landmarks: Tensor
    """Vertices that are landmarks, int64, (K,); K may be 0."""
    neutral: Tensor | None
    """The neutral mesh of each person, millimetres, (P, N, 3), or None where they are not known."""
    left_out: tuple[str, ...] = ()
    """Persons whose meshes are not among these, each with the reason."""


def from_faces(faces: FaceSet, topology: Topology) -> RegisteredMeshes:
    """A part of ICT-3D, whose expression 0 is neutral."""
    vertices = torch.from_numpy(faces.vertices)
    people, expressions = vertices.shape[:2]
    return RegisteredMeshes(
        vertices.flatten(0, 1),
        torch.arange(people).repeat_interleave(expressions),
        faces.expressions * people,
        tuple(str(person) for person in faces.persons),
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
    """Every mesh of one part of a data set.

    Meshes are simplified and aligned after the first neutral mesh of the training part, whichever
    part is read.

    Args:
        source: a key of ``READERS``.
        folder: of the data set; see its reader.
        split: ``"train"`` or ``"test"``.
        neutrals: whether neutral meshes are wanted. Persons without one are left out then.
        simplify_to: vertices to keep, about; see ``simplification``. None for all.
        align: whether to lay every mesh upon the first neutral by the vertices that
            ``landmarks.txt`` in ``folder`` names.
        cache: folder of this part, where what was read is kept, so that an interrupted call goes on
            and the next one is quick. Meshes of other names, or read in another way, are read
            anew; it must be removed when files change under their names.

    Raises:
        FileNotFoundError: if the folder holds no such meshes, or landmarks are wanted and missing.
        ValueError: if meshes differ in their numbers of vertices or too few are left.
        ImportError: if a file needs trimesh, or simplifying fast-simplification.
    """
    data = READERS[source](folder)
    landmarks = _landmarks(folder) if align else torch.zeros(0, dtype=torch.int64)
    template = _template(data) if align or simplify_to else None
    kept = simplification(template, simplify_to) if template and simplify_to else None
    return read_rows(
        data.part(split),
        data.units,
        neutrals=neutrals,
        kept=kept,
        landmarks=landmarks,
        target=template.vertices if template else None,
        cache=cache,
    )


def read_rows(
    rows: Sequence[MeshRow],
    units: str,
    *,
    neutrals: bool = False,
    kept: tuple[Tensor, Tensor] | None = None,
    landmarks: Tensor | None = None,
    target: Tensor | None = None,
    cache: Path | None = None,
) -> RegisteredMeshes:
    """Meshes of rows, all in one topology.

    Args:
        rows: such as a part of a ``MeshSet``.
        units: of the numbers in the files.
        neutrals: see ``read_registered``.
        kept: vertices to keep and triangles among them, as ``simplification`` gives them.
        landmarks: vertices by which to align, (K,), in the numbers of the files. Where vertices are
            dropped, the nearest that is kept stands for each afterwards.
        target: a mesh to align to, millimetres, (N, 3).
        cache: see ``read_registered``.

    Raises:
        ValueError: see ``read_registered``.
    """
    rows, left_out = _usable(rows, neutrals)
    anchors = torch.zeros(0, dtype=torch.int64) if landmarks is None else landmarks
    first = read_mesh(rows[0].path, units)
    if first.triangles is None:
        raise ValueError(f"{rows[0].path} has no triangles; the first mesh gives them for all")
    chosen, triangles = kept or (torch.arange(len(first.vertices)), first.triangles)

    def points_of(row: MeshRow) -> Tensor:
        points = read_mesh(row.path, units).to_units("mm").vertices
        if len(points) != len(first.vertices):
            raise ValueError(
                f"{row.path} has {len(points)} vertices and {rows[0].path} "
                f"{len(first.vertices)}; register the meshes to one topology first"
            )
        if len(anchors) and target is not None:
            points = moved(points, *rigid_motion(points[anchors], target[anchors]))
        return points[chosen]

    how: list[Any] = [units, *(part.tolist() for part in (chosen, anchors))]
    how.append(None if target is None else target.tolist())
    vertices = _read_all(rows, points_of, cache, hashlib.sha256(repr(how).encode()).hexdigest())
    if len(anchors) and kept:
        anchors = torch.cdist(first.vertices[anchors], first.vertices[chosen]).argmin(1)
    names = tuple(dict.fromkeys(row.person for row in rows))
    number = {name: place for place, name in enumerate(names)}
    neutral = {row.person: place for place, row in enumerate(rows) if row.expression == "neutral"}
    return RegisteredMeshes(
        vertices,
        torch.tensor([number[row.person] for row in rows]),
        tuple(_expression(row) for row in rows),
        names,
        triangles,
        anchors,
        vertices[[neutral[name] for name in names]] if neutrals else None,
        left_out,
    )


def _read_all(
    rows: Sequence[MeshRow], points_of: Callable[[MeshRow], Tensor], cache: Path | None, how: str
) -> Tensor:
    """Vertices of all rows, (M, N, 3), kept in ``cache`` chunk by chunk with ``how`` and names."""
    chunks = []
    bar = tqdm(total=len(rows), desc="reading meshes", mininterval=1)
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        path = cache / f"{start}.pt" if cache else None
        read = [how, *(str(row.path.resolve()) for row in part)]
        if path and (saved := load_state(path)) and saved.get("read") == read:
            chunks.append(saved["vertices"])
            bar.update(len(part))
            continue
        chunk = []
        for row in part:
            chunk.append(points_of(row))
            bar.update()
        chunks.append(torch.stack(chunk))
        if path:
            save_state(path, vertices=chunks[-1], read=read)
    bar.close()
    return torch.cat(chunks)


def _usable(rows: Sequence[MeshRow], neutrals: bool) -> tuple[list[MeshRow], tuple[str, ...]]:
    """Rows of persons who have a pair of meshes and, if wanted, a neutral; and who has not."""
    meshes = Counter(row.person for row in rows)
    at_rest = Counter(row.person for row in rows if row.expression == "neutral")
    reasons = {}
    for person, count in meshes.items():
        if count < 2:
            reasons[person] = "one mesh only"
        elif neutrals and at_rest[person] != 1:
            reasons[person] = f"{at_rest[person]} neutral meshes"
    usable = [row for row in rows if row.person not in reasons]
    left_out = tuple(f"{person} ({reason})" for person, reason in reasons.items())
    if not usable:
        raise ValueError(f"no person is left of {len(meshes)}: {', '.join(left_out[:5])}")
    if left_out:
        warn_once(
            f"{len(left_out)} of {len(meshes)} persons are left out: {', '.join(left_out)}",
            stacklevel=3,
        )
    return usable, left_out


def _expression(row: MeshRow) -> str:
    return row.expression if row.level is None else f"{row.expression} {row.level}"


def _template(data: MeshSet) -> Mesh:
    """The first neutral mesh of the training part, millimetres."""
    for row in data.part("train"):
        if row.expression == "neutral":
            return read_mesh(row.path, data.units).to_units("mm")
    raise ValueError("no training person has a neutral mesh to simplify or align the others after")


def _landmarks(folder: Path) -> Tensor:
    path = folder / LANDMARKS
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; meshes are aligned by vertices that expressions do not move, such as "
            "corners of the eyes and the bridge of the nose: write the numbers of three of them "
            "or more there, counted from 0"
        )
    return torch.tensor([int(word) for word in path.read_text(encoding="utf-8").split()])
