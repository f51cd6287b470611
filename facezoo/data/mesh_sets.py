"""Face meshes in the official folders of CoMA, BU-3DFE and FaceScape.

Nothing is downloaded: request the sets from their makers, and pass the unpacked folder. A reader
lists every mesh with its identity, expression and split (Gu, Pears & Sun, Sec. IV-A). The meshes
are read later, by ``facezoo.geometry.mesh_files.read_mesh`` with ``units``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from facezoo.data.resampling import decimate
from facezoo.geometry.meshes import Mesh, nearest_vertices

BU3DFE_EXPRESSIONS = {
    "NE": "neutral",
    "AN": "anger",
    "DI": "disgust",
    "FE": "fear",
    "HA": "happiness",
    "SA": "sadness",
    "SU": "surprise",
}
FACESCAPE_VERTICES = 4547
"""Of the simplified meshes of Sec. IV-B."""

_BU3DFE_NAME = re.compile(r"(?P<identity>[FM]\d{4})_(?P<kind>[A-Z]{2})(?P<level>\d\d)[A-Z]{2}_F3D")
_FACESCAPE_NAME = re.compile(r"(?P<number>\d+)_(?P<expression>\w+)")


@dataclass(frozen=True)
class MeshRow:
    """One mesh of a data set."""

    path: Path
    identity: str
    expression: str
    split: str
    """``"train"`` or ``"test"``."""
    level: int | None = None
    """Intensity of the expression, if the set has levels."""


@dataclass(frozen=True)
class MeshSet:
    """The meshes of a data set, in the order of the set."""

    rows: tuple[MeshRow, ...]
    units: str
    """Of the numbers in the files."""

    def part(self, split: str) -> list[MeshRow]:
        """Select the rows of one split.

        Raises:
            ValueError: if it is empty.
        """
        rows = [row for row in self.rows if row.split == split]
        if not rows:
            known = ", ".join(sorted({row.split for row in self.rows}))
            raise ValueError(f"no meshes in the split {split!r}; expected one of {known}")
        return rows


def read_coma(root: str | Path) -> MeshSet:
    """List CoMA (Ranjan et al. 2018): 20,466 meshes of 12 identities, 12 sequences each, meters.

    The layout is ``<identity>/<sequence>/<frame>.ply``. In alphabetical order of the whole set, the
    first 10 of every 100 frames are test meshes. So both splits contain all identities.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    files = _files(root, "*/*/*.ply", "FaceTalk_170725_00137_TA/bareteeth/bareteeth.000001.ply")
    rows = (
        MeshRow(path, path.parts[-3], path.parts[-2], "test" if index % 100 < 10 else "train")
        for index, path in enumerate(files)
    )
    return MeshSet(tuple(rows), "m")


def read_bu3dfe(root: str | Path, suffix: str = ".obj") -> MeshSet:
    """List BU-3DFE (Yin et al. 2006): 2,500 meshes, 100 identities, 7 expressions, millimeters.

    The layout is ``<identity>/<identity>_<expression><level><ethnicity>_F3D``. The set is VRML
    without correspondence, so register it first and keep the names. The first 10 identities, in
    alphabetical order, are the test set.

    Args:
        suffix: of the registered meshes, ``.obj`` or ``.ply``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file name is not of the set.
    """
    example = f"F0001/F0001_AN01WH_F3D{suffix}"
    files = _files(root, f"*/*_F3D{suffix}", example)
    test = set(sorted({path.parts[-2] for path in files})[:10])
    rows = []
    for path in files:
        match = _BU3DFE_NAME.fullmatch(path.stem)
        if not match or match["kind"] not in BU3DFE_EXPRESSIONS:
            raise ValueError(f"{path} is not a file of BU-3DFE; expected names like {example}")
        identity, level = match["identity"], int(match["level"])
        split = "test" if identity in test else "train"
        rows.append(MeshRow(path, identity, BU3DFE_EXPRESSIONS[match["kind"]], split, level))
    return MeshSet(tuple(rows), "mm")


def read_facescape(root: str | Path, seed: int = 0) -> MeshSet:
    """List FaceScape's registered meshes (Yang et al. 2020): 847 identities, 20 expressions.

    The layout is ``<identity>/models_reg/<number>_<expression>.obj``. The test set is 30 % of the
    identities, sampled with ``seed``; the paper's own split is not published. As in the paper, the
    numbers in the files are taken as millimeters.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a file name is not of the set.
    """
    example = "1/models_reg/1_neutral.obj"
    files = _files(root, "*/models_reg/*.obj", example)
    names = sorted({path.parts[-3] for path in files})
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    test = {names[index] for index in order[: round(0.3 * len(names))]}
    rows = []
    for path in files:
        match = _FACESCAPE_NAME.fullmatch(path.stem)
        if not match:
            raise ValueError(f"{path} is not a file of FaceScape; expected names like {example}")
        identity = path.parts[-3]
        split = "test" if identity in test else "train"
        rows.append(MeshRow(path, identity, match["expression"], split))
    return MeshSet(tuple(rows), "mm")


def simplification(template: Mesh, vertices: int = FACESCAPE_VERTICES) -> tuple[Tensor, Tensor]:
    """Select the vertices to keep of all meshes in one topology, after Sec. IV-B.

    Quadric edge collapse simplifies one neutral mesh, in centered millimeters. Then the nearest
    original vertex replaces each remaining vertex, so correspondence stays exact. The authors'
    selection is not published.

    Args:
        template: a neutral mesh with triangles.
        vertices: approximate number of vertices to keep.

    Returns:
        Indices of these vertices, ascending, (M,), and triangles among them, (T, 3).

    Raises:
        ImportError: without trimesh and fast-simplification.
        ValueError: if the template has no triangles or too few vertices.
    """
    count = len(template.vertices)
    if template.triangles is None:
        raise ValueError("template must have triangles to be simplified")
    if not 4 <= vertices < count:
        raise ValueError(f"vertices must be from 4 to {count - 1}, got {vertices}")
    # The simplification has absolute tolerances and rounds to float32.
    precise = Mesh(template.vertices.double().cpu(), template.units)
    original = precise.to_units("mm").vertices
    original = original - original.mean(0)
    points, corners = decimate(original.numpy(), template.triangles.cpu().numpy(), vertices)
    return _snap(original, torch.from_numpy(points), torch.from_numpy(corners))


def _snap(original: Tensor, points: Tensor, triangles: Tensor) -> tuple[Tensor, Tensor]:
    """Replace points by their nearest original vertices; drop triangles that collapse."""
    indices, position = nearest_vertices(points, original).unique(return_inverse=True)
    corners = position[triangles.long()]
    first, second, third = corners.unbind(1)
    intact = (first != second) & (second != third) & (third != first)
    return indices, corners[intact]


def _files(root: str | Path, pattern: str, example: str) -> list[Path]:
    files = sorted(Path(root).glob(pattern))
    if not files:
        raise FileNotFoundError(f"no {pattern} in {root}; expected files such as {example}")
    return files
