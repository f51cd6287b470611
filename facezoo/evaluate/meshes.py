"""How well identity and expression of meshes are told apart, in millimetres.

Letters: P persons, E expressions of each, N vertices. Standard deviations are population ones.
Nothing is aligned before it is measured.
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
    """A distance over meshes, or a deviation over persons, in mm."""

    mean: float
    std: float
    median: float


@dataclass(frozen=True)
class MeshScores:
    """The columns of a table of disentanglement, in mm."""

    e_rec: Summary
    """Distance from the mesh to its reconstruction, eq. (9)."""
    e_rec_face: float
    """The same in the narrow face area, mean."""
    avd_neu: Summary
    """Distance from the true neutral to the predicted identity."""
    avd_neu_face: float
    """The same in the narrow face area, mean."""
    e_dis: Summary
    """How much the distance from a person's mean prediction varies, eq. (10)."""
    spread: float
    """Root mean square distance from a person's mean prediction, mean over persons: ``e_dis``
    takes the deviation of that distance about its own mean, and understates an even wobble."""

    def to_dict(self) -> dict[str, float]:
        """One flat dict, names joined by ``_``."""
        flat: dict[str, float] = {}
        for name, value in asdict(self).items():
            if isinstance(value, dict):
                flat.update({f"{name}_{part}": number for part, number in value.items()})
            else:
                flat[name] = value
        return flat


def vertex_distance(first: Tensor, second: Tensor) -> Tensor:
    """Distance of corresponding vertices, (..., N), from two (..., N, 3)."""
    return torch.linalg.vector_norm(first - second, dim=-1)


def identity_deviation(identity: Tensor) -> tuple[Tensor, Tensor]:
    """E_dis, eq. (10), and spread of each person.

    Args:
        identity: predicted identity meshes, mm, (P, E, N, 3).

    Returns:
        Two of (P,): the standard deviation of the distances from the person's mean prediction over
        all expressions and vertices taken together, and their root mean square.
    """
    distance = vertex_distance(identity, identity.mean(1, keepdim=True)).flatten(1)
    return distance.std(1, correction=0), distance.square().mean(1).sqrt()


def score_meshes(
    meshes: Tensor, identity: Tensor, reconstruction: Tensor, neutral: Tensor, narrow: Tensor
) -> MeshScores:
    """Every column of the table.

    Args:
        meshes: the test meshes, mm, (P, E, N, 3).
        identity: predicted identity of each, mm, (P, E, N, 3).
        reconstruction: of each, mm, (P, E, N, 3).
        neutral: true neutral of each person, mm, (P, N, 3).
        narrow: which vertices are of the narrow face area, bool, (N,).

    Raises:
        ValueError: if the shapes disagree.
    """
    if not meshes.shape == identity.shape == reconstruction.shape or meshes.ndim != 4:
        raise ValueError(
            "meshes, identity and reconstruction must be three of (P, E, N, 3), got "
            f"{tuple(meshes.shape)}, {tuple(identity.shape)} and {tuple(reconstruction.shape)}"
        )
    rebuilt = vertex_distance(meshes, reconstruction)
    neutralised = vertex_distance(neutral[:, None], identity)
    deviation, spread = identity_deviation(identity)
    return MeshScores(
        e_rec=summary(rebuilt.mean(-1)),
        e_rec_face=float(rebuilt[..., narrow].mean()),
        avd_neu=summary(neutralised.mean(-1)),
        avd_neu_face=float(neutralised[..., narrow].mean()),
        e_dis=summary(deviation),
        spread=float(spread.mean()),
    )


def summary(values: Tensor) -> Summary:
    """Mean, population standard deviation and median; of an even count the middle two's mean."""
    flat = values.double().flatten()
    return Summary(float(flat.mean()), float(flat.std(correction=0)), float(flat.quantile(0.5)))


def rank_one(gallery: Tensor, probes: Tensor, persons: Tensor) -> float:
    """Share of probes whose nearest gallery code, by cosine, is of the same person.

    Args:
        gallery: one code per person, person 0 first, (P, D).
        probes: (M, D).
        persons: person of each probe, (M,).

    Returns:
        In [0, 1].
    """
    similarity = F.normalize(probes, dim=-1) @ F.normalize(gallery, dim=-1).T
    return float((similarity.argmax(1) == persons).double().mean())


def mesh_verification(codes: Tensor, folds: int = 10, seed: int = 0) -> tuple[float, float]:
    """Ten-fold accuracy of the cosine between codes of two meshes: one person or two?

    Persons are shared out to the folds, so that no person is in two. Within a fold there are as
    many pairs of two persons as of one, and the two meshes of a pair show different expressions.

    Args:
        codes: (P, E, D).
        folds: how many.
        seed: of the choice of pairs.

    Returns:
        Mean and standard deviation over the folds, in [0, 1].

    Raises:
        ValueError: if a fold would have fewer than two persons.
    """
    count, expressions = codes.shape[:2]
    if count < 2 * folds:
        raise ValueError(f"{folds} folds need {2 * folds} persons or more, got {count}")
    draw = torch.Generator().manual_seed(seed)
    fold_of = torch.randperm(count, generator=draw) % folds
    units = F.normalize(codes, dim=-1)
    similarity, same, fold = [], [], []
    for number in range(folds):
        members = (fold_of == number).nonzero()[:, 0]
        first = members.repeat_interleave(expressions)
        step = torch.randint(1, expressions, (len(first),), generator=draw)
        here = torch.arange(expressions).repeat(len(members))
        there = (here + step) % expressions
        shift = torch.randint(1, len(members), (len(first),), generator=draw)
        place = torch.arange(len(members)).repeat_interleave(expressions)
        second = members[(place + shift) % len(members)]
        for other, truth in ((first, True), (second, False)):
            similarity.append((units[first, here] * units[other, there]).sum(-1))
            same.append(torch.full((len(first),), truth))
            fold.append(torch.full((len(first),), number))
    return ten_fold_accuracy(torch.cat(similarity), torch.cat(same), torch.cat(fold))


def expression_accuracy(train: Tensor, test: Tensor) -> float:
    """Accuracy of a linear probe that tells the expression from codes of unseen persons.

    Args:
        train: codes of training persons, (P, E, D).
        test: codes of other persons, (Q, E, D).

    Returns:
        In [0, 1]; 1 / E is chance.
    """
    expressions = train.shape[1]
    people = torch.arange(len(train) + len(test)).repeat_interleave(expressions)
    labels = torch.arange(expressions).repeat(len(train) + len(test))
    codes = torch.cat([train.flatten(0, 1), test.flatten(0, 1)]).double()
    border = len(train) * expressions
    rows = torch.arange(len(codes))
    probe = linear_probe(codes, labels, rows[:border], rows[border:], people)
    return float((probe.predicted == labels[border:]).double().mean())


def identity_recognition(codes: Tensor) -> float:
    """Rank-1 recognition of every expressive mesh among the neutral ones.

    Args:
        codes: expression 0 is the gallery, (P, E, D).

    Returns:
        In [0, 1]; 1 / P is chance.
    """
    persons = torch.arange(len(codes)).repeat_interleave(codes.shape[1] - 1)
    return rank_one(codes[:, 0], codes[:, 1:].flatten(0, 1), persons)
