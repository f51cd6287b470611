"""Reading and writing meshes: Wavefront OBJ here, PLY through trimesh (extra ``[mesh]``).

Neither format says what its numbers mean, so whoever reads states the units.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facezoo.geometry.meshes import Mesh, millimetres

SUFFIXES = (".obj", ".ply")


def read_mesh(path: str | Path, units: str) -> Mesh:
    """A mesh from a file, its vertices in the order of the file.

    Args:
        path: an ``.obj`` or ``.ply`` file. Polygons are cut into fans of triangles; colours,
            normals and texture are passed over.
        units: what the numbers mean, ``"mm"``, ``"cm"`` or ``"m"``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind, is damaged or empty, or ``units`` is not one of these.
        ImportError: if a PLY file is read without trimesh.
    """
    path = Path(path)
    millimetres(units)
    _check_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mesh at {path}")
    return _read_obj(path, units) if path.suffix.lower() == ".obj" else _read_ply(path, units)


def write_mesh(path: str | Path, mesh: Mesh) -> Path:
    """Write a mesh as ``.obj`` or ``.ply``, in its own units; returns the path.

    Raises:
        ValueError: if the suffix is another.
        ImportError: if a PLY file is written without trimesh.
    """
    path = Path(path)
    _check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".ply":
        _write_ply(path, mesh)
        return path
    lines = [f"# units: {mesh.units}"]
    lines += ["v {:.6f} {:.6f} {:.6f}".format(*vertex) for vertex in mesh.vertices.tolist()]
    if mesh.triangles is not None:
        corners = (mesh.triangles.long() + 1).tolist()
        lines += ["f {} {} {}".format(*triangle) for triangle in corners]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")
    return path


def _check_suffix(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} must end in {' or '.join(SUFFIXES)}")


def _read_obj(path: Path, units: str) -> Mesh:
    vertices: list[list[float]] = []
    triangles: list[list[int]] = []
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    for number, line in enumerate(text.splitlines()):
        kind, *values = line.partition("#")[0].split() or [""]
        try:
            if kind == "v":
                vertices.append([float(value) for value in values[:3]])
                if len(values) < 3:
                    raise ValueError("three numbers are wanted")
            elif kind == "f":
                corners = [_corner(value, len(vertices)) for value in values]
                if len(corners) < 3:
                    raise ValueError("three corners are wanted")
                triangles += [
                    [corners[0], second, third] for second, third in pairwise(corners[1:])
                ]
        except ValueError as error:
            raise ValueError(f"{path}, line {number + 1}: {line.strip()!r}: {error}") from None
    if not vertices:
        raise ValueError(f"{path} holds no vertices")
    corners_of = torch.tensor(triangles) if triangles else None
    try:
        return Mesh(torch.tensor(vertices), units, corners_of)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _corner(text: str, count: int) -> int:
    """Vertex of a corner such as ``7``, ``7/1/2`` or ``-1``, counted from 0."""
    number = int(text.split("/")[0])
    if number == 0:
        raise ValueError("vertices are counted from 1")
    return number - 1 if number > 0 else count + number


def _read_ply(path: Path, units: str) -> Mesh:
    trimesh = _trimesh("reading")
    try:
        _check_length(path.read_bytes())
        # Else vertices would be put in another order where there are texture coordinates.
        loaded = trimesh.load(path, process=False, fix_texture=False, skip_materials=True)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read: it is damaged, or a binary file with polygons of different "
            f"numbers of corners, which are to be saved as triangles ({error})"
        ) from error
    if not len(getattr(loaded, "vertices", ())):
        raise ValueError(f"{path} holds no vertices")
    vertices = torch.from_numpy(np.array(loaded.vertices, dtype=np.float32))
    corners = np.array(getattr(loaded, "faces", np.empty((0, 3))), dtype=np.int64)
    try:
        return Mesh(vertices, units, torch.from_numpy(corners) if len(corners) else None)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _check_length(content: bytes) -> None:
    """Refuse an ASCII PLY file that ends early, of which trimesh gives what there is."""
    head, _, body = content.partition(b"end_header")
    words = [line.split() for line in head.splitlines()]
    stated = sum(int(line[2]) for line in words if line[:1] == [b"element"])
    found = len(body.splitlines()[1:])
    if [b"format", b"ascii"] in [line[:2] for line in words] and found < stated:
        raise ValueError(f"{stated} lines are stated, and there are {found}")


def _write_ply(path: Path, mesh: Mesh) -> None:
    trimesh = _trimesh("writing")
    vertices = mesh.vertices.detach().cpu().float().numpy()
    if mesh.triangles is None:
        trimesh.PointCloud(vertices).export(path)
    else:
        faces = mesh.triangles.cpu().numpy()
        trimesh.Trimesh(vertices, faces, process=False).export(path)


def _trimesh(what: str) -> Any:
    try:
        import trimesh
    except ImportError as error:
        raise ImportError(
            f"{what} PLY files needs trimesh: pip install 'facezoo[mesh]', or use .obj files"
        ) from error
    return trimesh
