"""ICT-3D: synthetic face meshes of many persons with the same twenty expressions.

The modes come from ICT-FaceKit (Li et al., "Learning Formation of Physically-Based Face
Attributes", CVPR 2020; MIT licence, Copyright (c) 2020 USC Institute for Creative Technologies),
which https://github.com/USC-ICT/ICT-FaceKit offers. A folder holds ``ict_face.npz`` (mean face,
modes, triangles, landmarks), ``ict_expressions.json`` (recipes and sampling rules) and, for the
adaptive variant, ``ict_face_adapt.npz``.

Every person has a random generator of their own, so that a smaller set is a prefix of a larger one.
Vertices are millimetres; +x is the subject's left, +y up, +z out of the face.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FACE, RECIPES, ADAPT = "ict_face.npz", "ict_expressions.json", "ict_face_adapt.npz"
SIZES = {"tiny": 20, "standard": 300, "facescape": 847}
"""Persons in each set."""


@dataclass(frozen=True)
class Topology:
    """What all meshes of the set share."""

    triangles: NDArray[np.int64]
    """(T, 3)."""
    landmarks: NDArray[np.int64]
    """Vertices of the 68 landmarks of Multi-PIE, (68,)."""
    narrow: NDArray[np.bool_]
    """Which vertices lie in the narrow face area, (N,)."""
    mean: NDArray[np.float64]
    """The generic neutral face in millimetres, (N, 3)."""


@dataclass(frozen=True)
class FaceSet:
    """Meshes of several persons in the same expressions; expression 0 is neutral."""

    vertices: NDArray[np.float32]
    """Millimetres, (P, E, N, 3)."""
    persons: NDArray[np.int64]
    """Number of each person, (P,)."""
    expressions: tuple[str, ...]
    """Names, E."""


class IctFaces:
    """The generator, with its modes in memory.

    Args:
        folder: with the files that the module names.
        adaptive: whether an expression bends to the face that makes it, which makes the data
            bilinear in identity and expression; otherwise they are linear.

    Raises:
        FileNotFoundError: if a file is missing; the message says where to get it.
    """

    def __init__(self, folder: str | Path, adaptive: bool = False) -> None:
        folder = Path(folder)
        check_folder(folder, adaptive)
        self.protocol: dict[str, Any] = json.loads((folder / RECIPES).read_text(encoding="utf-8"))
        names = self.protocol["blendshapes"]
        self.expressions = tuple(entry["name"] for entry in self.protocol["expressions"])
        self._recipes: NDArray[np.float64] = np.array(
            [
                [entry["weights"].get(name, 0.0) for name in names]
                for entry in self.protocol["expressions"]
            ]
        )
        with np.load(folder / FACE) as face:
            index, mm = face["lo_index"], float(face["mm_per_unit"])
            mean = face["neutral"][index].astype(np.float64) * mm
            self._identity = face["id_modes"][:, index].astype(np.float64) * mm
            self._expression = face["exp_modes"][:, index].astype(np.float64) * mm
            self.topology = Topology(
                triangles=face["lo_faces"].astype(np.int64),
                landmarks=face["lo_landmarks"].astype(np.int64),
                narrow=index < int(face["n_narrow"]),
                mean=mean,
            )
        self._gradient: NDArray[np.float64] | None = None
        if adaptive:
            with np.load(folder / ADAPT) as adapt:
                self._gradient = adapt["lo_id_grad"].astype(np.float64)

    def coefficients(self, person: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Identity coefficients (100,) and blendshape weights (E, K) of one person."""
        sampling = self.protocol["sampling"]
        draw = np.random.Generator(np.random.PCG64([sampling["seed"], person]))
        count, shapes = self._recipes.shape
        identity = draw.standard_normal(len(self._identity))
        intensity = draw.uniform(0.7, 1.0, (count,))
        jitter = draw.uniform(-0.1, 0.1, (count, shapes))
        return identity, self._recipes * intensity[:, None] * (1 + jitter)

    def meshes(self, persons: NDArray[np.int64]) -> NDArray[np.float32]:
        """Meshes of persons in every expression, millimetres, (P, E, N, 3)."""
        count, vertices = len(self._recipes), len(self.topology.mean)
        out = np.empty((len(persons), count, vertices, 3), np.float32)
        for row, person in enumerate(persons):
            identity, weights = self.coefficients(int(person))
            offsets = np.tensordot(weights, self._expression, 1)
            if self._gradient is not None:
                bend = np.tensordot(identity, self._gradient, 1)
                offsets += np.einsum("vca,eva->evc", bend, offsets)
            out[row] = self.topology.mean + np.tensordot(identity, self._identity, 1) + offsets
        return out

    def split(self, size: str = "standard") -> tuple[FaceSet, FaceSet]:
        """Training and test persons of a set, of which no person is in both.

        Args:
            size: a key of ``SIZES``.

        Raises:
            ValueError: if there is no such size.
        """
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
        persons = np.arange(SIZES[size])
        test = np.isin(persons % 10, self.protocol["split"]["test_if_identity_mod_10_in"])
        train, held_out = (
            FaceSet(self.meshes(chosen), chosen, self.expressions)
            for chosen in (persons[~test], persons[test])
        )
        return train, held_out


def check_folder(folder: Path, adaptive: bool = False) -> None:
    """Refuse a folder that lacks a file, before anything is begun.

    Raises:
        FileNotFoundError: naming the files that are missing.
    """
    wanted = [FACE, RECIPES, *([ADAPT] if adaptive else [])]
    missing = [name for name in wanted if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} has no {' and no '.join(missing)}; ICT-3D is made from the modes of "
            "https://github.com/USC-ICT/ICT-FaceKit, see docs/models/adv3d.md"
        )
