"""``facezoo train ipd-fer``: from data to checkpoints, by a recipe and for one seed or several.

Source: Jiang & Deng, Sec. 3.4 and 4.2. The rounds before the last (``start.py``) give E_id, which
the paper takes ready-made, and in the compact recipe a first E_exp; the last round is Algorithm 1
(``algorithm.py``) or, for the baseline, eq. (5) alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facezoo.hub.card import Card, Licenses, Preprocessing
from facezoo.models.ipd_fer.model import IPDFER
from facezoo.models.ipd_fer.train.algorithm import train_disentangled
from facezoo.models.ipd_fer.train.identity import train_identity
from facezoo.models.ipd_fer.train.pretraining import ExpressionRound
from facezoo.models.ipd_fer.train.recipes import SIZE, TEMPLATE, Recipe, recipe
from facezoo.models.ipd_fer.train.sources import Sources, from_official, from_packs
from facezoo.results import EXPRESSIONS
from facezoo.training.processes import Processes
from facezoo.training.run import begin_run, check_data, shortened, write_checkpoint

CITATION = """@article{jiang2022disentangling,
  title = {Disentangling Identity and Pose for Facial Expression Recognition},
  author = {Jiang, Jing and Deng, Weihong},
  journal = {IEEE Transactions on Affective Computing},
  year = {2022}
}"""
START_SEED = 0
"""Of the rounds before the last, which all seeds of a run share."""


def run(
    data: Path,
    out: Path,
    *,
    seeds: Sequence[int],
    device: torch.device,
    name: str = "paper",
    without: tuple[str, ...] = (),
    dataset: str | None = None,
    fold: int | None = None,
    start: str | None = None,
    stage: str | None = None,
    smoke: bool = False,
) -> list[Path]:
    """Train by a recipe, and write weights and card of every seed.

    Args:
        data: folder with ``ferplus.parquet``, ``lfw.parquet`` and ``lfw_pairs_val.csv``, or the
            root of ``dataset``.
        out: folder for the runs; recipes that share their first rounds may share it, and those
            rounds are then trained once.
        seeds: of the last round, one checkpoint each.
        device: where to train.
        name: of the recipe.
        without: parts of the objective to leave out.
        dataset: a name of ``facezoo.data.official.READERS``, or None for the packs.
        fold: which fold of ``dataset`` is for testing, where it has folds.
        start: the checkpoint that E_id comes from, as the paper takes its own ready-made; None
            trains it, which needs the packs.
        stage: ``"identity"`` trains the identity encoder only, and writes no checkpoint; None
            trains everything.
        smoke: whether every round is one epoch of small batches, to see that it runs.

    Returns:
        The cards' paths, ``out/<label>-seed<n>/<checkpoint>.json``.

    Raises:
        ValueError: if ``dataset`` is given and ``start`` is not, or the recipe wants LFW's labels;
            or if ``fold`` is given and the data have none; or if ``out`` holds a run of another
            recipe or other data.
        UnsupportedError: if ``start`` is a checkpoint of another family.
    """
    chosen = recipe(name, without)
    if smoke:
        small = {"steps": 2, "singles": ((2, 2), (0, 2)), "pairs": 2, "queue": 8}
        chosen = shortened(chosen, epochs=1, batch_size=4, sizes=((0, SIZE),), **small)
    # One that does not suit is refused before the data are read.
    base = None if start is None else _started(chosen, start).card
    with Processes.present().first_alone():  # the others map what it has aligned
        sources = _sources(chosen, data, dataset, fold, start, device, out / "crops")
    if stage == "identity":
        begin_identity(chosen, sources, out / "start", device)
        return []
    label = "-".join([name, *(f"no-{part}" for part in without)])
    # The card shows of a folder its name alone; that it is the same one, its weights say.
    begun = Path(start).name if start is not None and Path(start).exists() else start
    given = {"recipe": name, "dataset": dataset, "fold": fold, "start": begun}
    words = [w for k, v in given.items() if v is not None for w in (f"--{k}", str(v))]
    flags = f" {shlex.join(words)}" + "".join(f" --without {part}" for part in without)
    named = (dataset or "ferplus-lfw").replace("+", "-plus")  # tags have letters and digits alone
    tag = named + ("" if label == "compact" else f"-{label}")
    tag += "" if fold is None else f"-fold{fold}"
    begun_with = {**sources.digest, **({"start": base.weights.sha256[:12]} if base else {})}
    cards = []
    for seed in seeds:
        folder = out / f"{label}-seed{seed}"
        with Processes.present().first_alone():  # the others find what it has written
            record = begin_run(folder, seed=seed, recipe={**asdict(chosen), **given})
            check_data(folder, begun_with)
        model = train(chosen, sources, out / "start", folder, start, seed=seed, device=device)
        if Processes.present().first:
            said = sources.said
            cards.append(_write(model, chosen, said, folder, record, tag, flags, base, smoke))
    return cards


def _sources(
    chosen: Recipe,
    data: Path,
    dataset: str | None,
    fold: int | None,
    start: str | None,
    device: torch.device,
    cache: Path,
) -> Sources:
    if dataset is None:
        if fold is not None:
            raise ValueError(
                f"the packs have no folds, and fold {fold} was given; use --fold for a --dataset "
                "that is split into folds, such as ck+"
            )
        return from_packs(data, cache)
    if start is None:
        raise ValueError(
            f"{dataset} has no teacher for E_id; give --start CHECKPOINT (such as ipd-fer), whose "
            "identity encoder is used as it is"
        )
    if chosen.lfw_trust:
        raise ValueError(
            f"this recipe trains on the LFW pack too, and {dataset} stands alone; use the recipe "
            "paper or paper-baseline"
        )
    return from_official(dataset, data, fold, device)


def train(
    chosen: Recipe,
    data: Sources,
    begun: Path,
    out: Path,
    start: str | None = None,
    *,
    seed: int,
    device: torch.device,
) -> IPDFER:
    """Train a model by a recipe.

    Interrupted, the same call goes on where the last saved state stands and ends at the same
    weights.

    Args:
        chosen: the recipe.
        data: what to train and validate on.
        begun: folder for the states and logs of the rounds before the last.
        out: folder for those of the last.
        start: the checkpoint that takes the place of those rounds.
        seed: of the last round; the others have their own.
        device: where to train.

    Returns:
        The trained model, float32, on the CPU.
    """
    identity, first = (
        begin(chosen, data, begun, device) if start is None else begin_from(chosen, start)
    )
    return finish(chosen, data, identity, first, out, seed=seed, device=device)


def finish(
    chosen: Recipe,
    data: Sources,
    identity: dict[str, Tensor],
    first: dict[str, Tensor],
    out: Path,
    *,
    seed: int,
    device: torch.device,
) -> IPDFER:
    """The last round of a recipe, from what ``begin`` or ``begin_from`` gives; see ``train``."""
    rows = list(data.train.values())
    if chosen.objective is not None:
        tensors, architecture = train_disentangled(
            chosen, rows, data.val, identity, first, out / "main", seed, device
        )
        model = IPDFER(**architecture)
        model.load_state_dict(tensors)
        return model
    torch.manual_seed(seed)
    last = ExpressionRound(chosen, rows, data.val, identity, device)
    last.parts.load_state_dict(first, strict=False)
    tensors = last.run(chosen.main, out / "main", seed)
    model = IPDFER(
        chosen.backbone,
        chosen.feature_dim,
        len(EXPRESSIONS),
        pose_backbone=None,
        decoder_size=None,
    )
    model.load_state_dict(tensors | {f"identity_encoder.{k}": v for k, v in identity.items()})
    return model


def begin(
    chosen: Recipe, data: Sources, out: Path, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The rounds before the last: tensors of E_id, and of E_exp and C_exp as in ``IPDFER``.

    Without a first round for expression E_exp is E_id, and there is no classifier yet.
    """
    seed = START_SEED
    rows = list(data.train.values())
    identity = begin_identity(chosen, data, out, device)
    if chosen.start.expression is None:
        return identity, {f"expression_encoder.{k}": v for k, v in identity.items()}
    rounds = ExpressionRound(chosen, rows, data.val, identity, device)
    rounds.run(chosen.start.expression, out / "expression", seed + 1)
    return identity, rounds.run(chosen.start.settle, out / "settle", seed + 1)


def begin_identity(
    chosen: Recipe, data: Sources, out: Path, device: torch.device
) -> dict[str, Tensor]:
    """The first round alone: tensors of E_id."""
    with Processes.present().first_alone():
        begin_run(out, seed=START_SEED, recipe=asdict(chosen.start))
        check_data(out, data.digest)
    assert data.pairs is not None
    rows = [*data.train.values(), *data.faces]
    return train_identity(chosen, rows, data.val["lfw"], data.pairs, out, START_SEED, device)


def begin_from(chosen: Recipe, start: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same from a checkpoint, by a name that ``facezoo.load`` takes; E_exp starts from E_id.

    Raises:
        ValueError: if the checkpoint's encoders are not the recipe's.
    """
    model = _started(chosen, start)
    identity = {k: v.float() for k, v in model.identity_encoder.state_dict().items()}
    return identity, {f"expression_encoder.{k}": v for k, v in identity.items()}


def _started(chosen: Recipe, start: str) -> IPDFER:
    """The checkpoint that takes the place of the first rounds; see ``begin_from``."""
    model: IPDFER = IPDFER.from_pretrained(start)
    wanted = {"backbone": chosen.backbone, "feature_dim": chosen.feature_dim}
    if {key: model.architecture[key] for key in wanted} != wanted:
        raise ValueError(
            f"{start} has encoders of {model.architecture['backbone']} and "
            f"{model.architecture['feature_dim']} features, the recipe wants {wanted}"
        )
    return model


def _write(
    model: IPDFER,
    chosen: Recipe,
    said: tuple[str, ...],
    out: Path,
    record: dict[str, Any],
    tag: str,
    flags: str,
    base: Card | None,
    smoke: bool,
) -> Path:
    return write_checkpoint(
        model,
        out,
        record,
        model="ipd-fer",
        tag=tag,
        default=tag == "ferplus-lfw",
        flags=flags,
        architecture=model.architecture,
        preprocessing=Preprocessing(TEMPLATE, SIZE),
        labels=EXPRESSIONS,
        precision=chosen.precision,
        licenses=Licenses(
            code="Apache-2.0",
            weights="research-only",
            data="research-only",
        ),
        data=said,
        intended_use=(
            "Features for research on facial expression: describing what a face shows, not what a "
            "person feels. Not for identifying people, nor for decisions about them."
        ),
        citation=CITATION,
        base=base,
        smoke=smoke,
    )
