"""The ICT-3D benchmark: a model of meshes on persons that it has not seen.

Scans that are not in correspondence are made from the test meshes: points in random order, 1,000 of
them, with 0.5 mm of noise, or with a quarter of the face cut off by a plane. The probe that tells
the expression is fitted on whole, clean training meshes in every case.
"""

from __future__ import annotations

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
from facezoo.geometry.points import jittered, some_points, without_part
from facezoo.hub.card import Metric
from facezoo.models.mesh_base import MeshModel, in_batches

NOISE_MM = 0.5
POINTS = 1000
MISSING = 0.25
"""Share of the vertices that the plane cuts off."""

Spoil = Callable[[Tensor, torch.Generator], Tensor]


def shuffled(points: Tensor, draw: torch.Generator) -> Tensor:
    """The points (N, 3) in random order."""
    return some_points(points, len(points), draw)


def subsampled(points: Tensor, draw: torch.Generator) -> Tensor:
    """``POINTS`` of the points, in random order, or all if there are fewer."""
    return some_points(points, POINTS, draw)


def noisy(points: Tensor, draw: torch.Generator) -> Tensor:
    """Every coordinate with Gaussian noise of ``NOISE_MM``."""
    return jittered(points, NOISE_MM, draw)


def cut(points: Tensor, draw: torch.Generator) -> Tensor:
    """Without the quarter that lies farthest in a random direction."""
    return without_part(points, MISSING, draw)


SPOILS: dict[str, Spoil] = {
    "shuffled": shuffled,
    f"{POINTS} points": subsampled,
    f"{NOISE_MM} mm noise": noisy,
    "a quarter missing": cut,
}


@dataclass(frozen=True)
class Predictions:
    """What a model says of meshes, P persons times E expressions."""

    identity: Tensor
    """z_id, (P, E, L)."""
    expression: Tensor
    """z_exp, (P, E, L)."""
    faces: Tensor
    """Reconstructions, mm, (P, E, N, 3)."""
    neutrals: Tensor
    """Identity faces, mm, (P, E, N, 3)."""


@torch.no_grad()
def predict(model: MeshModel, meshes: Tensor, spoil: Spoil | None = None) -> Predictions:
    """Codes and decoded faces of meshes (P, E, N, 3) in mm, spoilt with a fixed seed if at all."""
    people, expressions = meshes.shape[:2]
    draw = torch.Generator().manual_seed(0)
    clouds: Sequence[Tensor] = list(meshes.flatten(0, 1))
    if spoil is not None:
        clouds = [spoil(cloud, draw) for cloud in clouds]

    def work(batch: Tensor) -> tuple[Tensor, ...]:
        encoding = model.encode(batch, units="mm")
        codes = encoding.identity, encoding.expression
        neutral = torch.stack([m.vertices for m in model.synthesize(codes[0])])
        face = torch.stack([m.vertices for m in model.synthesize(*codes)])
        return tuple(part.cpu() for part in (*codes, face, neutral))

    parts = in_batches(clouds, 32, work)
    return Predictions(*(part.unflatten(0, (people, expressions)) for part in parts))


@dataclass(frozen=True)
class CodeScores:
    """What the codes hold, in [0, 1]."""

    recognition: float
    """Rank-1, expressive meshes among neutral ones, from z_id."""
    verification: float
    """From z_id."""
    expression: float
    """Of unseen persons, a linear probe on z_exp."""
    expression_from_identity: float
    """The same from z_id: leakage."""
    recognition_from_expression: float
    """Rank-1 from z_exp: leakage."""


def score_codes(train: Predictions, test: Predictions) -> CodeScores:
    """What can be read from the codes of the test persons; fewer than 20 make fewer folds."""
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
    """Everything that is measured on ICT-3D."""

    meshes: MeshScores
    codes: CodeScores
    spoilt: dict[str, tuple[MeshScores, CodeScores]]
    """By the names of ``SPOILS``."""


def benchmark(model: MeshModel, folder: str | Path, size: str = "standard") -> Benchmark:
    """Measure a model; the probe sees every fifth training person.

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

    def scored(spoil: Spoil | None) -> tuple[MeshScores, CodeScores]:
        found = predict(model, meshes, spoil)
        told = score_meshes(meshes, found.neutrals, found.faces, meshes[:, 0], narrow)
        return told, score_codes(train, found)

    whole = scored(None)
    return Benchmark(*whole, {name: scored(spoil) for name, spoil in SPOILS.items()})


def as_metrics(result: Benchmark, command: str) -> list[Metric]:
    """A benchmark as the metrics of a card."""
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
    for name, (meshes, codes) in result.spoilt.items():
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
