"""ICT-3D: synthetic face meshes of many identities with the same twenty expressions.

The modes come from ICT-FaceKit (Li et al., "Learning Formation of Physically-Based Face
Attributes", CVPR 2020; MIT license, Copyright (c) 2020 USC Institute for Creative Technologies),
https://github.com/USC-ICT/ICT-FaceKit. A folder contains ``ict_face.npz`` (mean face, modes,
triangles, landmarks), ``ict_expressions.json`` (recipes and sampling rules) and, for the adaptive
variant, ``ict_face_adapt.npz``.

Every identity has its own random generator, so a smaller set is a prefix of a larger one.
Vertices are millimeters; +x is the subject's left, +y up, +z out of the face.
Letters: P identities, E expressions, N vertices, T triangles, K blendshapes.
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
"""Identities in each set."""


@dataclass(frozen=True)
class Topology:
    """Triangles, landmarks and mean face of all meshes of the set."""

    triangles: NDArray[np.int64]
    """(T, 3)."""
    landmarks: NDArray[np.int64]
    """Vertices of the 68 landmarks of Multi-PIE, (68,)."""
    narrow: NDArray[np.bool_]
    """Vertices in the narrow face area, (N,)."""
    mean: NDArray[np.float64]
    """The generic neutral face in millimeters, (N, 3)."""


@dataclass(frozen=True)
class FaceSet:
    """Meshes of several identities in the same expressions; expression 0 is neutral."""

    vertices: NDArray[np.float32]
    """Millimeters, (P, E, N, 3)."""
    identities: NDArray[np.int64]
    """Number of each identity, (P,)."""
    expressions: tuple[str, ...]
    """Names, E."""


class IctFaces:
    """Generator of meshes, with the modes in memory.

    Args:
        folder: with the files of the module docstring.
        adaptive: adapt each expression to the identity, which makes the data bilinear in identity
            and expression; otherwise the data are linear.
        full: generate all 9,409 vertices; otherwise the 2,300 of the benchmark.

    Raises:
        FileNotFoundError: if a file is missing; the message names the source.
    """

    def __init__(self, folder: str | Path, adaptive: bool = False, *, full: bool = False) -> None:
        folder = Path(folder)
        missing = [
            name
            for name in (FACE, RECIPES, *([ADAPT] if adaptive else []))
            if not (folder / name).is_file()
        ]
        if missing:
            raise FileNotFoundError(
                f"{folder} has no {' and no '.join(missing)}; ICT-3D is generated from the modes "
                "of https://github.com/USC-ICT/ICT-FaceKit, see docs/models/adv3d.md"
            )
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
            prefix = "" if full else "lo_"
            index = np.arange(len(face["neutral"])) if full else index
            self.index: NDArray[np.int64] = index.astype(np.int64)
            """Numbers of the vertices in the full resolution, (N,)."""
            mean = face["neutral"][index].astype(np.float64) * mm
            self._identity = face["id_modes"][:, index].astype(np.float64) * mm
            self._expression = face["exp_modes"][:, index].astype(np.float64) * mm
            self.topology = Topology(
                triangles=face[f"{prefix}faces"].astype(np.int64),
                landmarks=face[f"{prefix}landmarks"].astype(np.int64),
                narrow=index < int(face["n_narrow"]),
                mean=mean,
            )
        self._gradient: NDArray[np.float64] | None = None
        if adaptive:
            with np.load(folder / ADAPT) as adapt:
                self._gradient = adapt["lo_id_grad"].astype(np.float64)

    def coefficients(self, identity: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sample identity coefficients (100,) and blendshape weights (E, K) of one identity."""
        sampling = self.protocol["sampling"]
        generator = np.random.Generator(np.random.PCG64([sampling["seed"], identity]))
        count, shapes = self._recipes.shape
        coefficients = generator.standard_normal(len(self._identity))
        intensity = generator.uniform(0.7, 1.0, (count,))
        jitter = generator.uniform(-0.1, 0.1, (count, shapes))
        return coefficients, self._recipes * intensity[:, None] * (1 + jitter)

    def meshes(self, identities: NDArray[np.int64]) -> NDArray[np.float32]:
        """Generate identities in every expression, millimeters, (P, E, N, 3)."""
        count, vertices = len(self._recipes), len(self.topology.mean)
        out = np.empty((len(identities), count, vertices, 3), np.float32)
        for row, number in enumerate(identities):
            identity, weights = self.coefficients(int(number))
            offsets = np.tensordot(weights, self._expression, 1)
            if self._gradient is not None:
                bend = np.tensordot(identity, self._gradient, 1)
                offsets += np.einsum("vca,eva->evc", bend, offsets)
            out[row] = self.topology.mean + np.tensordot(identity, self._identity, 1) + offsets
        return out

    def split(self, size: str = "standard") -> tuple[FaceSet, FaceSet]:
        """Generate the training and the test split of a set; no identity is in both.

        Args:
            size: a key of ``SIZES``.

        Raises:
            ValueError: if there is no such size.
        """
        is_test = self._is_test(size)
        identities = np.arange(len(is_test))
        train_part, test_part = (
            FaceSet(self.meshes(part), part, self.expressions)
            for part in (identities[~is_test], identities[is_test])
        )
        return train_part, test_part

    def training_identities(self, size: str = "standard") -> NDArray[np.int64]:
        """Return the numbers of the training identities, int64, ascending, (P,); see ``split``."""
        return np.flatnonzero(~self._is_test(size))

    def _is_test(self, size: str) -> NDArray[np.bool_]:
        """Return which identities are in the test split, (P,)."""
        if size not in SIZES:
            raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
        rule = self.protocol["split"]["test_if_identity_mod_10_in"]
        return np.isin(np.arange(SIZES[size]) % 10, rule)
