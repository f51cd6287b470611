"""How much of the person is in the expression features, and of the expression in the person's.

Every number stands beside what needs no features (chance) and what the same procedure gives where
nothing can be read (control). A number well above both is a leak; one near them is no proof that
there is none, only that these readers do not find it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.data.packs import majority_labels, read_pack
from facezoo.evaluate.embedding import GIVEN, embed_given
from facezoo.evaluate.probes import Probe, linear_probe
from facezoo.evaluate.verification import Pairs, read_pairs, verification_accuracy
from facezoo.hub.card import Metric
from facezoo.models.base import FaceModel
from facezoo.results import EXPRESSIONS

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS = 5
"""Seeded halvings of each person's photographs, and draws of a control."""
LEAST_PHOTOS = 4
"""Photographs that a person needs to be identified, so that two can be fitted to."""
TRAINING_ROWS = 8000
"""Labelled training rows that a probe is fitted to at most, the first of the pack."""


@dataclass(frozen=True)
class Reading:
    """How well something can be read from features, with what it must be compared to."""

    accuracy: float
    """In [0, 1]; the mean, where there are several splits or folds."""
    spread: float | None
    """Population standard deviation over splits or folds; None where there is only one."""
    chance: float
    """Accuracy of always giving the answer that is most frequent in training."""
    control: float
    """Accuracy of the same procedure on shuffled labels."""
    probabilities: Tensor | None = field(default=None, repr=False, compare=False)
    """What the probe says of the told rows, (T, K); None where there are several splits or none."""

    def metrics(self, what: str, dataset: str, split: str, rule: str, command: str) -> list[Metric]:
        """The reading as rows of a card.

        Args:
            what: what is read from what, such as ``"identity from expression features"``.
            dataset: name of the data.
            split: part of it.
            rule: the protocol in words.
            command: what was typed, for the record.

        Returns:
            Metrics in per cent.
        """
        rows = {
            what: self.accuracy,
            f"{what}, standard deviation": self.spread,
            f"{what}, chance": self.chance,
            f"{what}, control": self.control,
            f"{what}, above chance": self.accuracy - self.chance,
        }
        return [
            Metric(name, 100 * value, "%", dataset, split, rule, command)
            for name, value in rows.items()
            if value is not None
        ]


def identity_from(features: Tensor, persons: Tensor, seed: int = 0) -> Reading:
    """Which of the known people a photograph shows, by a linear probe: closed-set identification.

    Half of each person's photographs, and the odd one, are fitted to, and the others told; the
    mean is over ``SPLITS`` halvings. People with fewer than ``LEAST_PHOTOS`` are left out.

    Args:
        features: (N, D).
        persons: who is on each photograph, int64, (N,).
        seed: of the halvings and of the control.

    Returns:
        The reading; its control is fitted to shuffled persons.

    Raises:
        ValueError: if fewer than two people have enough photographs.
    """
    features, persons = _with_enough_photos(features, persons)
    draw = torch.Generator().manual_seed(seed)
    outcomes = []
    for _ in range(SPLITS):
        train, test = _halves(persons, draw)
        probes = _fitted(features, persons, train, test, None, draw)
        told, lucky = (probe.probabilities for probe in probes)
        guess = persons[train].bincount().argmax()
        outcomes.append(_outcome(persons[test], told, guess, lucky))
    accuracy, chance, control = torch.tensor(outcomes, dtype=torch.double).unbind(1)
    return Reading(
        accuracy=float(accuracy.mean()),
        spread=float(accuracy.std(correction=0)),
        chance=float(chance.mean()),
        control=float(control.mean()),
    )


def expression_from(
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    test: Tensor,
    groups: Tensor | None = None,
    seed: int = 0,
) -> Reading:
    """Which expression a photograph shows, by a linear probe.

    Args:
        features: (N, D).
        labels: classes, int64, (N,).
        train: rows to fit on, (R,).
        test: rows to tell, (T,).
        groups: people, none of whom may be in both, int64, (N,); None where they are not known.
        seed: of the inner split and of the control.

    Returns:
        The reading; its control is fitted to shuffled labels.

    Raises:
        ValueError: if the rows or groups do not suit; see ``linear_probe``.
    """
    return expressions_from(features, labels, train, [test], groups, seed)[0]


def expressions_from(
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    tests: Sequence[Tensor],
    groups: Tensor | None = None,
    seed: int = 0,
) -> list[Reading]:
    """``expression_from`` for several sets of rows to tell, from one fit."""
    draw = torch.Generator().manual_seed(seed)
    probes = _fitted(features, labels, train, torch.cat([*tests]), groups, draw)
    parts = (probe.probabilities.split([len(test) for test in tests]) for probe in probes)
    guess = labels[train].bincount().argmax()
    readings = []
    for test, told, lucky in zip(tests, *parts, strict=True):
        accuracy, chance, control = _outcome(labels[test], told, guess, lucky)
        readings.append(Reading(accuracy, None, chance, control, told))
    return readings


def pairs_from(features: Tensor, files: list[str], pairs: Pairs, seed: int = 0) -> Reading:
    """Whether two photographs show one person, by the cosine of their features.

    Args:
        features: one row per file, (N, D).
        files: N file names.
        pairs: which of them to compare; half of them are of one person, so that chance is 0.5.
        seed: of the control.

    Returns:
        The reading over the folds; its control compares photographs dealt out anew.
    """
    mean, spread = verification_accuracy(features, files, pairs)
    draw = torch.Generator().manual_seed(seed)
    dealt = [features[torch.randperm(len(features), generator=draw)] for _ in range(SPLITS)]
    control = [verification_accuracy(rows, files, pairs)[0] for rows in dealt]
    return Reading(mean, spread, 0.5, sum(control) / SPLITS)


def same_person_from(neutral: Tensor, smiling: Tensor, seed: int = 0) -> Reading:
    """Who smiles, by the neutral photograph of highest cosine: same person, other expression.

    Args:
        neutral: features of one photograph per person, (P, D).
        smiling: features of another of the same people in the same order, (P, D).
        seed: of the control.

    Returns:
        The reading; its control names the neutral photographs anew.
    """
    nearest = (F.normalize(smiling, dim=1) @ F.normalize(neutral, dim=1).T).argmax(1)
    people = torch.arange(len(nearest))
    draw = torch.Generator().manual_seed(seed)
    dealt = [torch.randperm(len(nearest), generator=draw) for _ in range(SPLITS)]
    control = [float((names[nearest] == people).double().mean()) for names in dealt]
    accuracy = float((nearest == people).double().mean())
    return Reading(accuracy, None, 1 / len(nearest), sum(control) / SPLITS)


def neutral_and_smiling(labels: Tensor, people: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of everyone's neutral photograph and of the smiling one, in the order of the people.

    Args:
        labels: index in ``EXPRESSIONS``, (N,).
        people: who is on each, (N,).

    Returns:
        Two of (P,).

    Raises:
        ValueError: if not everyone is there once neutral and once smiling.
    """
    rows = [(labels == EXPRESSIONS.index(w)).nonzero()[:, 0] for w in ("neutral", "happiness")]
    neutral, smiling = (part[people[part].argsort()] for part in rows)
    names = people[neutral]
    if not len(names) or len(names.unique()) < len(names) or not names.equal(people[smiling]):
        raise ValueError(
            "everyone must be there once neutral and once smiling, got "
            f"{len(neutral)} neutral and {len(smiling)} smiling photographs of other people, or of "
            "some more than once; leave out those without both"
        )
    return neutral, smiling


def leakage(model: FaceModel, data: Path, command: str) -> list[Metric]:
    """What can be read from a model's expression and identity features that should not be there.

    The same is read from both, so that each number has the other for comparison.

    Args:
        model: the model.
        data: folder with ``ferplus.parquet``, ``lfw.parquet``, ``lfw_pairs_val.csv`` and
            ``london_expr.parquet``.
        command: what was typed, for the record.

    Returns:
        Metrics in per cent.
    """
    able = model.capabilities()
    wanted = [name for name in ("encode_expression", "encode_identity") if name in able]
    metrics = []
    for protocol in (_lfw_people, _london, _lfw_expressions, _ferplus_expressions):
        metrics += protocol(model, data, wanted, command)
    return metrics


def _lfw_people(model: FaceModel, data: Path, wanted: Sequence[str], command: str) -> list[Metric]:
    table = read_pack(data / "lfw.parquet", "val")
    files, persons = table["file"].to_pylist(), numbered(table["identity"].to_pylist())
    pairs = read_pairs(data / "lfw_pairs_val.csv")
    enough = persons.bincount()[persons.bincount() >= LEAST_PHOTOS]
    rule = (
        f"linear probe, {len(enough)} people with {LEAST_PHOTOS} photographs or more "
        f"({int(enough.sum())}), half of each fitted to, {SPLITS} splits; {GIVEN}"
    )
    pair_rule = f"ten folds of {len(pairs.same)} pairs, cosine; {GIVEN}"
    metrics = []
    for name, features in embed_given(model, table, wanted).items():
        what = _features(name)
        reading = identity_from(features, persons)
        metrics += reading.metrics(f"identity from {what}", "LFW", "val", rule, command)
        reading = pairs_from(features, files, pairs)
        metrics += reading.metrics(
            f"verification by {what}", "LFW pairs", "val", pair_rule, command
        )
    return metrics


def _london(model: FaceModel, data: Path, wanted: Sequence[str], command: str) -> list[Metric]:
    table = read_pack(data / "london_expr.parquet").sort_by("identity")
    people = numbered(table["identity"].to_pylist())
    neutral, smiling = neutral_and_smiling(majority_labels(table), people)
    rule = (
        f"the smiling photograph of each of {len(smiling)} people, nearest of their neutral "
        f"ones by cosine; {GIVEN}"
    )
    metrics = []
    for name, features in embed_given(model, table, wanted).items():
        reading = same_person_from(features[neutral], features[smiling])
        what = f"identity from {_features(name)}"
        metrics += reading.metrics(what, "Face Research Lab London Set", "all", rule, command)
    return metrics


def _lfw_expressions(
    model: FaceModel, data: Path, wanted: Sequence[str], command: str
) -> list[Metric]:
    words = ("neutral", "happiness")
    train, test = (labelled(data / "lfw.parquet", split, words) for split in ("train", "val"))
    people = numbered(train["identity"].to_pylist() + test["identity"].to_pylist())
    rule = f"linear probe, neutral against happiness, {_sizes(train, test)}; {GIVEN}"
    metrics = []
    for what, reading in _expressions(model, train, test, people, wanted):
        metrics += reading.metrics(what, "LFW", "val", rule, command)
    return metrics


def _ferplus_expressions(
    model: FaceModel, data: Path, wanted: Sequence[str], command: str
) -> list[Metric]:
    pack = data / "ferplus.parquet"
    train, test = (labelled(pack, split, EXPRESSIONS) for split in ("train", "test"))
    rule = f"linear probe, majority rule, 8 classes, {_sizes(train, test)}; {GIVEN}"
    metrics = []
    for what, reading in _expressions(model, train, test, None, wanted):
        metrics += reading.metrics(what, "FER+", "test", rule, command)
    return metrics


def _expressions(
    model: FaceModel,
    train: pa.Table,
    test: pa.Table,
    people: Tensor | None,
    wanted: Sequence[str],
) -> Iterator[tuple[str, Reading]]:
    """What is read from what, and how well, for each kind of features."""
    labels = torch.cat([majority_labels(train), majority_labels(test)])
    fitted, told = torch.arange(len(labels)).split([len(train), len(test)])
    of_train, of_test = embed_given(model, train, wanted), embed_given(model, test, wanted)
    for name in wanted:
        features = torch.cat([of_train[name], of_test[name]])
        reading = expression_from(features, labels, fitted, told, people)
        yield f"expression from {_features(name)}", reading


def _fitted(
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    test: Tensor,
    groups: Tensor | None,
    draw: torch.Generator,
) -> tuple[Probe, Probe]:
    """A linear probe, and the control: one that was fitted to shuffled labels."""
    shuffled = labels.clone()
    shuffled[train] = labels[train[torch.randperm(len(train), generator=draw)]]
    probe = linear_probe(features, labels, train, test, groups)
    return probe, linear_probe(features, shuffled, train, test, groups)


def _outcome(
    truth: Tensor, told: Tensor, guess: Tensor, lucky: Tensor
) -> tuple[float, float, float]:
    """Accuracy of probabilities (T, K), of one answer to everything, and of a control's."""
    answers = (told.argmax(1), guess, lucky.argmax(1))
    accuracy, chance, control = (float((a == truth).double().mean()) for a in answers)
    return accuracy, chance, control


def _with_enough_photos(features: Tensor, persons: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the people with enough photographs, who are numbered anew."""
    _, numbers, counts = persons.unique(return_inverse=True, return_counts=True)
    rows = counts[numbers] >= LEAST_PHOTOS
    people = int((counts >= LEAST_PHOTOS).sum())
    if people < 2:
        raise ValueError(
            f"{people} of {len(counts)} people have {LEAST_PHOTOS} photographs or more; two or "
            "more are needed to tell them apart"
        )
    return features[rows], numbers[rows].unique(return_inverse=True)[1]


def _halves(persons: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of the one and the other half of each person's photographs, drawn at random."""
    train, test = [], []
    for person in persons.unique():
        rows = (persons == person).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=draw)]
        half = (len(rows) + 1) // 2
        train.append(rows[:half])
        test.append(rows[half:])
    return torch.cat(train), torch.cat(test)


def labelled(path: Path, split: str, words: tuple[str, ...]) -> pa.Table:
    """Rows of a pack with one of these expressions; of train, the first ``TRAINING_ROWS``."""
    table = read_pack(path, split)
    known = [word in words for word in table["expression"].to_pylist()]
    table = table.filter(known)
    return table.slice(0, TRAINING_ROWS) if split == "train" else table


def numbered(names: list[str]) -> Tensor:
    """Names as numbers from 0, int64, (N,)."""
    number = {name: index for index, name in enumerate(sorted(set(names)))}
    return torch.tensor([number[name] for name in names])


def _sizes(train: pa.Table, test: pa.Table) -> str:
    return f"fitted to {len(train)} images of train, {len(test)} images"


def _features(capability: str) -> str:
    return f"{capability.removeprefix('encode_')} features"
