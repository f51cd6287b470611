"""Scores of disentangled meshes: distances in millimeters, and accuracies from the codes.

Letters: P identities, E expressions, N vertices, D dimensions of a code. Standard deviations are
population ones. Meshes are not aligned before measuring.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.evaluate.probes import linear_probe
from facezoo.evaluate.verification import ten_fold_accuracy


@dataclass(frozen=True)
class Summary:
    """Statistics of a distance over meshes, or of a deviation over identities, in mm."""

    mean: float
    std: float
    median: float


@dataclass(frozen=True)
class MeshScores:
    """Distances of disentangled meshes, in mm."""

    e_rec: Summary
    """Distance from the mesh to its reconstruction, eq. (9)."""
    e_rec_face: float
    """``e_rec`` in the narrow face area, mean."""
    avd_neu: Summary
    """Distance from the true neutral to the predicted identity."""
    avd_neu_face: float
    """``avd_neu`` in the narrow face area, mean."""
    e_dis: Summary
    """Deviation of the distance from the mean prediction of an identity, eq. (10)."""
    spread: float
    """Root mean square distance from the mean prediction of an identity, mean over identities.
    ``e_dis`` is the deviation of that distance about its mean, so it understates a uniform one."""

    def to_dict(self) -> dict[str, float]:
        """Flatten to one dict, names joined by ``_``."""
        flat: dict[str, float] = {}
        for name, value in asdict(self).items():
            if isinstance(value, dict):
                flat.update({f"{name}_{part}": number for part, number in value.items()})
            else:
                flat[name] = value
        return flat


def vertex_distance(first: Tensor, second: Tensor) -> Tensor:
    """Compute the distance of corresponding vertices (..., N, 3), (..., N)."""
    return torch.linalg.vector_norm(first - second, dim=-1)


def identity_deviation(identity: Tensor) -> tuple[Tensor, Tensor]:
    """Compute E_dis, eq. (10), and the spread of each identity.

    Args:
        identity: predicted identity meshes, mm, (P, E, N, 3).

    Returns:
        Standard deviation, and root mean square, of the distances from the mean prediction of an
        identity, over all expressions and vertices, (P,) each.
    """
    distance = vertex_distance(identity, identity.mean(1, keepdim=True)).flatten(1)
    return distance.std(1, correction=0), distance.square().mean(1).sqrt()


def score_meshes(
    meshes: Tensor, identity: Tensor, reconstruction: Tensor, neutral: Tensor, narrow: Tensor
) -> MeshScores:
    """Compute all distances.

    Args:
        meshes: the test meshes, mm, (P, E, N, 3).
        identity: predicted identity of each, mm, (P, E, N, 3).
        reconstruction: of each, mm, (P, E, N, 3).
        neutral: true neutral of each identity, mm, (P, N, 3).
        narrow: vertices of the narrow face area, bool, (N,).

    Raises:
        ValueError: if the shapes differ.
    """
    if not meshes.shape == identity.shape == reconstruction.shape or meshes.ndim != 4:
        raise ValueError(
            "meshes, identity and reconstruction must all be (P, E, N, 3), got "
            f"{tuple(meshes.shape)}, {tuple(identity.shape)} and {tuple(reconstruction.shape)}"
        )
    rebuilt = vertex_distance(meshes, reconstruction)
    neutralized = vertex_distance(neutral[:, None], identity)
    deviation, spread = identity_deviation(identity)
    return MeshScores(
        e_rec=summary(rebuilt.mean(-1)),
        e_rec_face=float(rebuilt[..., narrow].mean()),
        avd_neu=summary(neutralized.mean(-1)),
        avd_neu_face=float(neutralized[..., narrow].mean()),
        e_dis=summary(deviation),
        spread=float(spread.mean()),
    )


def summary(values: Tensor) -> Summary:
    """Compute mean, population standard deviation and median."""
    flat = values.double().flatten()
    return Summary(float(flat.mean()), float(flat.std(correction=0)), float(flat.quantile(0.5)))


def rank_one(gallery: Tensor, probes: Tensor, identities: Tensor) -> float:
    """Compute the share of probes whose nearest gallery code, by cosine, has the same identity.

    Args:
        gallery: one code per identity, in order, (P, D).
        probes: (M, D).
        identities: identity of each probe, (M,).

    Returns:
        In [0, 1].
    """
    similarity = F.normalize(probes, dim=-1) @ F.normalize(gallery, dim=-1).T
    return float((similarity.argmax(1) == identities).double().mean())


def mesh_verification(codes: Tensor, folds: int = 10, seed: int = 0) -> tuple[float, float]:
    """Compute the ten-fold verification accuracy of the cosine between codes of two meshes.

    Each identity is in one fold only. A fold has equal numbers of pairs of one identity and of two,
    and the two meshes of a pair have different expressions.

    Args:
        codes: (P, E, D).
        folds: number of folds.
        seed: of the pairs.

    Returns:
        Mean and standard deviation over the folds, in [0, 1].

    Raises:
        ValueError: if a fold has fewer than two identities.
    """
    count, expressions = codes.shape[:2]
    if count < 2 * folds:
        raise ValueError(f"{folds} folds need {2 * folds} or more identities, got {count}")
    generator = torch.Generator().manual_seed(seed)
    fold_of = torch.randperm(count, generator=generator) % folds
    units = F.normalize(codes, dim=-1)
    similarity, same, fold = [], [], []
    for number in range(folds):
        members = (fold_of == number).nonzero()[:, 0]
        first = members.repeat_interleave(expressions)
        step = torch.randint(1, expressions, (len(first),), generator=generator)
        expression = torch.arange(expressions).repeat(len(members))
        other_expression = (expression + step) % expressions
        shift = torch.randint(1, len(members), (len(first),), generator=generator)
        member = torch.arange(len(members)).repeat_interleave(expressions)
        second = members[(member + shift) % len(members)]
        for other, truth in ((first, True), (second, False)):
            pairs = units[first, expression] * units[other, other_expression]
            similarity.append(pairs.sum(-1))
            same.append(torch.full((len(first),), truth))
            fold.append(torch.full((len(first),), number))
    return ten_fold_accuracy(torch.cat(similarity), torch.cat(same), torch.cat(fold))


def expression_accuracy(train: Tensor, test: Tensor) -> float:
    """Compute the accuracy of a linear expression probe on codes of unseen identities.

    Args:
        train: codes of training identities, (P, E, D).
        test: codes of other identities, (Q, E, D).

    Returns:
        In [0, 1]; 1 / E is chance.
    """
    expressions = train.shape[1]
    identities = torch.arange(len(train) + len(test)).repeat_interleave(expressions)
    labels = torch.arange(expressions).repeat(len(train) + len(test))
    codes = torch.cat([train.flatten(0, 1), test.flatten(0, 1)]).double()
    border = len(train) * expressions
    rows = torch.arange(len(codes))
    probe = linear_probe(codes, labels, rows[:border], rows[border:], identities)
    return float((probe.predicted == labels[border:]).double().mean())


def identity_recognition(codes: Tensor) -> float:
    """Compute the rank-1 recognition of every expressive mesh among the neutral ones.

    Args:
        codes: expression 0 is the gallery, (P, E, D).

    Returns:
        In [0, 1]; 1 / P is chance.
    """
    identities = torch.arange(len(codes)).repeat_interleave(codes.shape[1] - 1)
    return rank_one(codes[:, 0], codes[:, 1:].flatten(0, 1), identities)
