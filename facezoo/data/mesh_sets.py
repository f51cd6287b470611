"""Face meshes in the folders that their makers hand out: CoMA, BU-3DFE and FaceScape.

Nothing is downloaded: the sets are asked for from their makers, and a reader is given the folder
where they were unpacked. It lists every mesh with its person, expression and part of the split of
Gu, Pears & Sun, Sec. IV-A, and reads none; ``facezoo.geometry.mesh_files.read_mesh`` does, with
``units``.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from facezoo.geometry.meshes import Mesh

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

_BU3DFE_NAME = re.compile(r"(?P<person>[FM]\d{4})_(?P<kind>[A-Z]{2})(?P<level>\d\d)[A-Z]{2}_F3D")
_FACESCAPE_NAME = re.compile(r"(?P<number>\d+)_(?P<expression>\w+)")


@dataclass(frozen=True)
class MeshRow:
    """One mesh of a data set."""

    path: Path
    person: str
    expression: str
    split: str
    """``"train"`` or ``"test"``."""
    level: int | None = None
    """Intensity of the expression, where the set has such."""


@dataclass(frozen=True)
class MeshSet:
    """The meshes of a data set, in the order of its split."""

    rows: tuple[MeshRow, ...]
    units: str
    """Of the numbers in the files."""

    def part(self, split: str) -> list[MeshRow]:
        """Rows of one part.

        Raises:
            ValueError: if it has none.
        """
        found = [row for row in self.rows if row.split == split]
        if not found:
            known = ", ".join(sorted({row.split for row in self.rows}))
            raise ValueError(f"no meshes in the part {split!r}; there are {known}")
        return found


def read_coma(root: str | Path) -> MeshSet:
    """CoMA (Ranjan et al. 2018): 20,466 meshes of 12 persons in 12 sequences each, metres.

    The layout is ``<person>/<sequence>/<frame>.ply``. Of every 100 frames, in alphabetical order of
    the whole set, the first 10 are test meshes; so both parts hold all persons.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    files = _files(root, "*/*/*.ply", "FaceTalk_170725_00137_TA/bareteeth/bareteeth.000001.ply")
    rows = (
        MeshRow(path, path.parts[-3], path.parts[-2], "test" if place % 100 < 10 else "train")
        for place, path in enumerate(files)
    )
    return MeshSet(tuple(rows), "m")


def read_bu3dfe(root: str | Path, suffix: str = ".obj") -> MeshSet:
    """BU-3DFE (Yin et al. 2006): 2,500 meshes of 100 persons in 7 expressions, millimetres.

    The layout is ``<person>/<person>_<expression><level><ethnicity>_F3D``. The set comes as VRML
    and without correspondence; listed is what a registration made of it, under the same names.
    The first 10 persons, in alphabetical order, are the test set.

    Args:
        root: the folder.
        suffix: of the registered meshes, ``.obj`` or ``.ply``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a name is not of the set.
    """
    files = _files(root, f"*/*_F3D{suffix}", f"F0001/F0001_AN01WH_F3D{suffix}")
    people = sorted({path.parts[-2] for path in files})
    held_out = set(people[:10])
    rows = []
    for path in files:
        match = _BU3DFE_NAME.fullmatch(path.stem)
        if not match or match["kind"] not in BU3DFE_EXPRESSIONS:
            raise ValueError(f"{path} is no name of BU-3DFE; wanted F0001/F0001_AN01WH_F3D{suffix}")
        rows.append(
            MeshRow(
                path,
                match["person"],
                BU3DFE_EXPRESSIONS[match["kind"]],
                "test" if match["person"] in held_out else "train",
                int(match["level"]),
            )
        )
    return MeshSet(tuple(rows), "mm")


def read_facescape(root: str | Path, seed: int = 0) -> MeshSet:
    """FaceScape's registered meshes (Yang et al. 2020): 847 persons in 20 expressions.

    The layout is ``<person>/models_reg/<number>_<expression>.obj``. Of the persons 30 % are test
    persons, drawn with ``seed``: the paper's own draw cannot be made again. Its tables take the
    numbers in the files for millimetres, and so does this.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a name is not of the set.
    """
    files = _files(root, "*/models_reg/*.obj", "1/models_reg/1_neutral.obj")
    people = sorted({path.parts[-3] for path in files})
    order = torch.randperm(len(people), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = {people[place] for place in order[: round(0.3 * len(people))]}
    rows = []
    for path in files:
        match = _FACESCAPE_NAME.fullmatch(path.stem)
        if not match:
            raise ValueError(f"{path} is no name of FaceScape; wanted 1/models_reg/1_neutral.obj")
        person = path.parts[-3]
        split = "test" if person in held_out else "train"
        rows.append(MeshRow(path, person, match["expression"], split))
    return MeshSet(tuple(rows), "mm")


def neutral_of(rows: list[MeshRow]) -> dict[str, MeshRow]:
    """The neutral mesh of each person.

    Raises:
        ValueError: if a person has none or several.
    """
    neutrals = [row for row in rows if row.expression == "neutral"]
    counts = Counter(row.person for row in neutrals)
    wrong = sorted({row.person for row in rows} - {p for p, count in counts.items() if count == 1})
    if wrong:
        raise ValueError(
            f"{len(wrong)} persons have no neutral mesh or several, {wrong[0]} first; take them out"
        )
    return {row.person: row for row in neutrals}


def simplification(template: Mesh, vertices: int = FACESCAPE_VERTICES) -> tuple[Tensor, Tensor]:
    """Which vertices to keep of all meshes in one topology, after Sec. IV-B.

    Quadric edge collapse on one neutral mesh, then the nearest original vertex for each that is
    left, so that correspondence stays exact. The index that the authors used is not published.

    Args:
        template: a neutral mesh with triangles.
        vertices: how many to keep, about.

    Returns:
        Indices of the kept vertices, ascending, (M,), M at most about ``vertices``, and triangles
        among them, (T, 3).

    Raises:
        ImportError: without trimesh and fast-simplification.
        ValueError: if the template has no triangles or too few vertices.
    """
    count = len(template.vertices)
    if template.triangles is None:
        raise ValueError("template must have triangles to be simplified")
    if not 4 <= vertices < count:
        raise ValueError(f"vertices must be from 4 to {count - 1}, got {vertices}")
    try:
        import fast_simplification
    except ImportError as error:
        raise ImportError(
            "simplifying meshes needs fast-simplification: pip install 'facezoo[mesh]'"
        ) from error
    points, corners = fast_simplification.simplify(
        template.vertices.cpu().numpy(),
        template.triangles.int().cpu().numpy(),
        target_reduction=1 - vertices / count,
    )
    return _snapped(template.vertices.cpu(), torch.from_numpy(points), torch.from_numpy(corners))


def _snapped(original: Tensor, points: Tensor, triangles: Tensor) -> tuple[Tensor, Tensor]:
    """Nearest original vertices, each once, and the triangles that keep three corners."""
    nearest = torch.cat(
        [torch.cdist(part, original).argmin(1) for part in points.float().split(512)]
    )
    kept, place = nearest.unique(return_inverse=True)
    corners = place[triangles.long()]
    first, second, third = corners.unbind(1)
    whole = (first != second) & (second != third) & (third != first)
    return kept, corners[whole]


def _files(root: str | Path, pattern: str, example: str) -> list[Path]:
    files = sorted(Path(root).glob(pattern))
    if not files:
        raise FileNotFoundError(f"{root} holds no {pattern}; wanted files such as {example}")
    return files
