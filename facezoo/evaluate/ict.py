"""ICT-3D benchmark: a mesh model on unseen identities.

Corrupted inputs are generated from the test meshes: points in random order, 1,000 points, 0.5 mm of
noise, or a quarter of the face cut off by a plane. The expression probe is always fitted on clean
training meshes.

Letters: P identities, E expressions, N vertices, L latent dimensions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from facezoo.data.ict import IctFaces
from facezoo.evaluate.meshes import (
    MeshScores,
    expression_accuracy,
    identity_recognition,
    mesh_verification,
    score_meshes,
)
from facezoo.geometry.meshes import add_noise, cut_off, some_points
from facezoo.hub.card import Metric
from facezoo.models.mesh_base import MeshModel, in_batches

NOISE_MM = 0.5
POINTS = 1000
MISSING = 0.25
"""Share of the vertices that the plane cuts off."""

Corruption = Callable[[Tensor, torch.Generator], Tensor]

CORRUPTIONS: dict[str, Corruption] = {
    "shuffled": lambda points, generator: some_points(points, len(points), generator),
    f"{POINTS} points": lambda points, generator: some_points(points, POINTS, generator),
    f"{NOISE_MM} mm noise": lambda points, generator: add_noise(points, NOISE_MM, generator),
    "a quarter missing": lambda points, generator: cut_off(points, MISSING, generator),
}


@dataclass(frozen=True)
class Predictions:
    """Output of a model for P identities times E expressions."""

    identity: Tensor
    """z_id, (P, E, L)."""
    expression: Tensor
    """z_exp, (P, E, L)."""
    faces: Tensor
    """Reconstructions, mm, (P, E, N, 3)."""
    neutrals: Tensor
    """Identity faces, mm, (P, E, N, 3)."""


@torch.no_grad()
def predict(model: MeshModel, meshes: Tensor, corrupt: Corruption | None = None) -> Predictions:
    """Encode and decode meshes (P, E, N, 3) in mm, optionally corrupted with a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    clouds: Sequence[Tensor] = list(meshes.flatten(0, 1))
    if corrupt is not None:
        clouds = [corrupt(cloud, generator) for cloud in clouds]

    def work(batch: Tensor) -> tuple[Tensor, ...]:
        encoding = model.encode(batch, units="mm")
        codes = encoding.identity, encoding.expression
        neutral = torch.stack([m.vertices for m in model.synthesize(codes[0])])
        face = torch.stack([m.vertices for m in model.synthesize(*codes)])
        return tuple(part.cpu() for part in (*codes, face, neutral))

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* lack a part of the face")  # as the corruptions do
        parts = in_batches(clouds, 32, work)
    return Predictions(*(part.unflatten(0, meshes.shape[:2]) for part in parts))


@dataclass(frozen=True)
class CodeScores:
    """Accuracies from the codes, in [0, 1]."""

    recognition: float
    """Rank-1 of expressive meshes among neutral ones, from z_id."""
    verification: float
    """From z_id."""
    expression: float
    """Linear probe on z_exp, unseen identities."""
    expression_from_identity: float
    """The same from z_id: leakage."""
    recognition_from_expression: float
    """Rank-1 from z_exp: leakage."""


def score_codes(train: Predictions, test: Predictions) -> CodeScores:
    """Score the codes of the test identities; fewer than 20 give fewer folds."""
    folds = min(10, len(test.identity) // 2)
    return CodeScores(
        recognition=identity_recognition(test.identity),
        verification=mesh_verification(test.identity, folds)[0],
        expression=expression_accuracy(train.expression, test.expression),
        expression_from_identity=expression_accuracy(train.identity, test.identity),
        recognition_from_expression=identity_recognition(test.expression),
    )


@dataclass(frozen=True)
class Benchmark:
    """All scores on ICT-3D."""

    meshes: MeshScores
    codes: CodeScores
    corrupted: dict[str, tuple[MeshScores, CodeScores]]
    """By the names of ``CORRUPTIONS``."""


def benchmark(model: MeshModel, folder: str | Path, size: str = "standard") -> Benchmark:
    """Measure a model; the probe is fitted on every fifth training identity.

    Args:
        model: in the topology of ICT-3D.
        folder: with the files of ICT-3D.
        size: a key of ``facezoo.data.ict.SIZES``.
    """
    faces = IctFaces(folder)
    train_set, test_set = faces.split(size)
    narrow = torch.from_numpy(faces.topology.narrow)
    meshes = torch.from_numpy(test_set.vertices)
    train = predict(model, torch.from_numpy(train_set.vertices[::5]))

    def score(corrupt: Corruption | None) -> tuple[MeshScores, CodeScores]:
        test = predict(model, meshes, corrupt)
        scores = score_meshes(meshes, test.neutrals, test.faces, meshes[:, 0], narrow)
        return scores, score_codes(train, test)

    clean = score(None)
    return Benchmark(*clean, {name: score(corrupt) for name, corrupt in CORRUPTIONS.items()})


def as_metrics(result: Benchmark, command: str) -> list[Metric]:
    """Convert a benchmark to the metrics of a card."""
    shape = result.meshes
    rows = [
        ("E_rec", shape.e_rec.mean, "mm", "eq. (9), mean over meshes"),
        ("E_rec face", shape.e_rec_face, "mm", "narrow face area"),
        ("AVD_neu", shape.avd_neu.mean, "mm", "mean over meshes"),
        ("AVD_neu face", shape.avd_neu_face, "mm", "narrow face area"),
        ("E_dis", shape.e_dis.mean, "mm", "eq. (10), mean over persons"),
        ("spread", shape.spread, "mm", "root mean square, mean over persons"),
        *_code_rows(result.codes, "unseen persons"),
    ]
    for name, (meshes, codes) in result.corrupted.items():
        rows.append(("AVD_neu", meshes.avd_neu.mean, "mm", name))
        rows += [row for row in _code_rows(codes, name) if row[0] in ("rank-1", "expression")]
    return [
        Metric(name, value, unit, "ICT-3D standard", "test", protocol, command)
        for name, value, unit, protocol in rows
    ]


def _code_rows(codes: CodeScores, protocol: str) -> list[tuple[str, float, str, str]]:
    return [
        ("rank-1", 100 * codes.recognition, "%", protocol),
        ("verification", 100 * codes.verification, "%", protocol),
        ("expression", 100 * codes.expression, "%", protocol),
        ("expression from z_id", 100 * codes.expression_from_identity, "%", protocol),
        ("rank-1 from z_exp", 100 * codes.recognition_from_expression, "%", protocol),
    ]
