"""Mesh files: .obj here, .ply, .stl, .glb and .gltf through trimesh (extra ``[mesh]``).

The caller states the units: most formats do not record them, and many glTF files are not in meters,
as the format defines. Vertices keep the order of the file.
"""

from __future__ import annotations

import json
import struct
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from facezoo.errors import explained_import
from facezoo.geometry.meshes import Mesh, millimeters

SUFFIXES = (".obj", ".ply", ".stl", ".glb", ".gltf")
COMPRESSED = ("KHR_mesh_quantization", "KHR_draco_mesh_compression", "EXT_meshopt_compression")
FLOAT = 5126
"""The glTF code of float32."""
MAX_LOSS_MM = 0.01
"""Largest change of a coordinate by float32 that needs no float64 and no warning."""

Arrays = tuple[NDArray[Any], NDArray[np.int64]]
"""Vertices (N, 3) and triangles (T, 3)."""


def read_mesh(path: str | Path, units: str) -> Mesh:
    """Read a mesh; vertices are float64, in the order of the file.

    Polygons become fans of triangles. Colors, normals and textures are ignored. The objects of a
    file form one mesh, and glTF nodes are placed by their transforms. STL files repeat each vertex
    per triangle, so equal vertices are merged, in order of appearance.

    Args:
        path: a file with one of ``SUFFIXES``.
        units: unit of the numbers in the file, a key of ``UNITS_MM``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the format is unknown, the file is damaged or empty, or units are missing.
        ImportError: if the format needs trimesh and it is not installed.
    """
    path = Path(path)
    millimeters(units)
    suffix = _known_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"no mesh file at {path}")
    readers = {".obj": _read_obj, ".ply": _read_ply, ".stl": _read_stl}
    try:
        vertices, triangles = readers.get(suffix, _read_gltf)(path)
        if not len(vertices):
            raise ValueError("it has no vertices")
        corners = torch.from_numpy(np.array(triangles, np.int64)) if len(triangles) else None
        return Mesh(torch.from_numpy(np.array(vertices, np.float64)), units, corners)
    except (ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise ValueError(f"cannot read {path}: {error}") from error


def write_mesh(path: str | Path, mesh: Mesh) -> Path:
    """Write a mesh in its own units; the suffix selects the format.

    ``.obj`` files hold the exact numbers, and ``.ply`` files float64 where float32 loses more than
    0.01 mm, far from the origin. ``.stl`` and ``.glb`` files hold float32, and such a loss gives a
    warning. Programs read ``.glb`` files in meters: write ``mesh.to_units("m")``.

    Args:
        path: a file with one of ``SUFFIXES``, but not ``.gltf``.
        mesh: the mesh; normals and colors are not written.

    Returns:
        The path.

    Raises:
        ValueError: if the format is unknown, or ``.gltf``, whose further files have fixed names.
        ImportError: if the format needs trimesh and it is not installed.
    """
    path = Path(path)
    suffix = _known_suffix(path)
    if suffix == ".gltf":
        raise ValueError(f"cannot write {path}: a .gltf mesh is several files; write .glb instead")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensor = mesh.vertices.detach().cpu()
    vertices = (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()
    triangles = None if mesh.triangles is None else mesh.triangles.cpu().numpy()
    loss_mm = float(np.abs(vertices.astype(np.float32) - vertices).max()) * millimeters(mesh.units)
    if suffix == ".obj":
        _write_obj(path, vertices, triangles, mesh.units)
    elif suffix == ".ply" and loss_mm > MAX_LOSS_MM:
        _write_double_ply(path, vertices, triangles)
    else:
        if loss_mm > MAX_LOSS_MM:
            warnings.warn(
                f"{path}: {suffix} files hold float32, which moves vertices by up to "
                f"{loss_mm:.2g} mm so far from the origin; move the mesh near the origin, or write "
                ".obj or .ply",
                stacklevel=2,
            )
        trimesh = _trimesh(suffix)
        faces = {} if triangles is None else {"faces": triangles, "process": False}
        kind = trimesh.PointCloud if triangles is None else trimesh.Trimesh
        kind(vertices, **faces).export(path)
    return path


def _write_obj(
    path: Path, vertices: NDArray[Any], triangles: NDArray[np.int64] | None, units: str
) -> None:
    lines = [f"# units: {units}"]
    # As text, numpy writes the fewest digits that give the same number.
    lines += [f"v {x} {y} {z}" for x, y, z in vertices.astype(str).tolist()]
    corners = [] if triangles is None else (triangles + 1).tolist()
    lines += ["f {} {} {}".format(*triangle) for triangle in corners]
    path.write_text("\n".join(lines) + "\n", encoding="ascii")


def _write_double_ply(
    path: Path, vertices: NDArray[np.float64], triangles: NDArray[np.int64] | None
) -> None:
    """Write a binary PLY with float64 coordinates; trimesh writes float32."""
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(vertices)}"]
    lines += [f"property double {axis}" for axis in "xyz"]
    faces = np.empty(0 if triangles is None else len(triangles), [("n", "u1"), ("v", "<i4", 3)])
    if triangles is not None:
        faces["n"], faces["v"] = 3, triangles
        lines += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    header = "\n".join([*lines, "end_header\n"]).encode()
    path.write_bytes(header + vertices.astype("<f8").tobytes() + faces.tobytes())


def _known_suffix(path: Path) -> str:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise ValueError(f"{path} is not a mesh file; expected a 3D mesh with the suffix {known}")
    return suffix


# trimesh 5.2 misreads valid OBJ files, so a short reader of our own stays: a byte order mark loses
# the first vertex, tabs give an empty scene, and a comment after a value raises an error.
def _read_obj(path: Path) -> Arrays:
    vertices: list[list[float]] = []
    triangles: list[list[int]] = []
    text = path.read_text(encoding="utf-8-sig", errors="replace").replace("\\\n", " ")
    for number, line in enumerate(text.splitlines(), 1):
        kind, *words = line.partition("#")[0].split() or [""]
        try:
            if kind == "v":
                x, y, z = (float(word) for word in words[:3])
                vertices.append([x, y, z])
            elif kind == "f":
                corners = [_obj_index(word, len(vertices)) for word in words]
                if len(corners) < 3:
                    raise ValueError("a face needs three or more corners")
                triangles += [[corners[0], *edge] for edge in pairwise(corners[1:])]
        except ValueError as error:
            raise ValueError(f"line {number}, {line.strip()!r}: {error}") from None
    return np.array(vertices), np.array(triangles, np.int64)


def _obj_index(word: str, count: int) -> int:
    """Convert a corner such as ``7``, ``7/1/2`` or ``-1`` to a vertex index from 0."""
    index = int(word.split("/")[0])
    if index == 0:
        raise ValueError("vertices are numbered from 1")
    return index - 1 if index > 0 else count + index


def _read_ply(path: Path) -> Arrays:
    content = path.read_bytes()
    header, _, body = content.partition(b"end_header")
    lines = [line.split() for line in header.splitlines()]
    if [b"format", b"ascii"] in [line[:2] for line in lines]:
        rows = sum(int(line[2]) for line in lines if line[:1] == [b"element"])
        if len(body.splitlines()[1:]) < rows:  # trimesh returns the rows that there are
            raise ValueError(f"the header announces {rows} lines, but the file ends before")
    trimesh = _trimesh(".ply")
    mixed = None if b"ascii" in header else _mixed_polygons(lines, body.partition(b"\n")[2])
    if mixed is not None:
        return mixed
    # Without fix_texture=False trimesh splits or drops vertices that have texture coordinates.
    loaded = trimesh.load(path, process=False, fix_texture=False, skip_materials=True)
    empty = np.empty((0, 3), np.int64)
    return getattr(loaded, "vertices", empty), getattr(loaded, "faces", empty)


_PLY_TYPES = dict(
    zip(
        b"char uchar short ushort int uint float double int8 uint8 int16 uint16 int32 uint32 "
        b"float32 float64".split(),
        ["b", "B", "h", "H", "i", "I", "f", "d", "b", "B", "h", "H", "i", "I", "f", "d"],
        strict=True,
    )
)


def _mixed_polygons(header: list[list[bytes]], body: bytes) -> Arrays | None:
    """Read a binary PLY whose faces have different numbers of corners; None for any other.

    trimesh reads such faces as if all had as many corners as the first one.
    """
    order = "<" if [b"format", b"binary_little_endian"] in [line[:2] for line in header] else ">"
    elements: list[tuple[bytes, int, list[list[bytes]]]] = []
    for line in header:
        if line[:1] == [b"element"]:
            elements.append((line[1], int(line[2]), []))
        elif line[:1] == [b"property"]:
            elements[-1][2].append(line[1:])
    if [name for name, *_ in elements[:2]] != [b"vertex", b"face"]:
        return None
    (_, count, columns), (_, faces, properties) = elements[:2]
    if any(column[0] == b"list" for column in columns) or not faces:
        return None
    row = np.dtype([(name.decode(), order + _PLY_TYPES[kind]) for kind, name in columns])
    start = count * row.itemsize
    _, lengths, end = _ply_face(properties, body, start, order)
    step = end - start
    if start + faces * step <= len(body) and all(
        (np.ndarray(faces, order + kind, body, place, (step,)) == length).all()
        for place, kind, length in lengths
    ):
        return None
    polygons, place = [], start
    for _ in range(faces):
        polygon, _, place = _ply_face(properties, body, place, order)
        polygons.append(polygon)

    vertices = np.frombuffer(body, row, count)
    fans = [[p[0], *edge] for p in polygons for edge in pairwise(p[1:])]
    return np.stack([vertices[axis] for axis in "xyz"], 1), np.array(fans, np.int64)


def _ply_face(
    properties: list[list[bytes]], body: bytes, place: int, order: str
) -> tuple[tuple[int, ...], list[tuple[int, str, int]], int]:
    """Read one face of a binary PLY, which may also have colors or texture coordinates.

    Returns:
        Its corners; place, type and value of the length of each of its lists; and its end.
    """
    corners: tuple[int, ...] = ()
    lengths = []
    for *kinds, name in properties:
        length = 1
        if kinds[0] == b"list":
            kind = _PLY_TYPES[kinds[1]]
            (length,) = struct.unpack_from(order + kind, body, place)
            lengths.append((place, kind, length))
            place += struct.calcsize(order + kind)
        form = f"{order}{length}{_PLY_TYPES[kinds[-1]]}"
        if name in (b"vertex_indices", b"vertex_index"):
            corners = struct.unpack_from(form, body, place)
        place += struct.calcsize(form)
    return corners, lengths, place


def _read_stl(path: Path) -> Arrays:
    loaded = _trimesh(".stl").load(path, process=False)
    _, first, inverse = np.unique(loaded.vertices, axis=0, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))  # in order of appearance, not of size
    return loaded.vertices[np.sort(first)], rank[inverse.reshape(-1)][loaded.faces]


def _read_gltf(path: Path) -> Arrays:
    content = path.read_bytes()
    if content[:4] == b"glTF":
        content = content[20 : 20 + struct.unpack_from("<I", content, 12)[0]]
    scene = json.loads(content)
    if packed := sorted(set(COMPRESSED) & set(scene.get("extensionsUsed", ()))):
        raise ValueError(f"it uses {', '.join(packed)}; export it without compression")
    for mesh in scene.get("meshes", ()):
        for primitive in mesh["primitives"]:
            positions = scene["accessors"][primitive["attributes"]["POSITION"]]
            if "sparse" in positions or positions["componentType"] != FLOAT:
                raise ValueError("its positions are sparse or quantized; export them as floats")
    loaded = _trimesh(path.suffix).load_scene(path, process=False).to_mesh()
    return loaded.vertices, loaded.faces


def _trimesh(suffix: str) -> Any:
    with explained_import(
        f"{suffix} files need trimesh: pip install 'facezoo[mesh]', or use .obj files"
    ):
        import trimesh
    return trimesh
