"""``facezoo train ipd-fer``: from data to checkpoints, by a recipe and for one or several seeds.

Source: Jiang & Deng, Sec. 3.4 and 4.2. The stages, in order: E_id (``identity.py``), which the
paper takes ready-made; a first E_exp (``expression.py``), in the compact recipe only; Algorithm 1
(``algorithm.py``) or, for the baseline, eq. (5) alone; G_dec on pairs (``decoder.py``), in the
compact recipe only.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from facezoo.hub.card import Preprocessing
from facezoo.models.ipd_fer.model import IPDFER
from facezoo.models.ipd_fer.train.algorithm import train_disentangled
from facezoo.models.ipd_fer.train.data import Rows, Sources
from facezoo.models.ipd_fer.train.expression import (
    ExpressionTraining,
    calibrate,
    narrow,
    reclassify,
    soft_labels,
)
from facezoo.models.ipd_fer.train.identity import train_identity
from facezoo.models.ipd_fer.train.recipes import SIZE, TEMPLATE, Recipe, recipe
from facezoo.models.ipd_fer.train.redecode import redecode, with_decoder
from facezoo.models.ipd_fer.train.sources import from_official, from_packs
from facezoo.results import EXPRESSIONS
from facezoo.training.processes import Processes
from facezoo.training.run import begin_run, check_data, shortened, write_checkpoint
from facezoo.training.state import load_state, save_state

CITATION = """@article{jiang2022disentangling,
  title = {Disentangling Identity and Pose for Facial Expression Recognition},
  author = {Jiang, Jing and Deng, Weihong},
  journal = {IEEE Transactions on Affective Computing},
  year = {2022}
}"""
USE = (
    "Features for research on facial expression: describing what a face shows, not what a person "
    "feels. Not for identifying people, nor for decisions about them."
)
START_SEED = 0
"""Seed of the stages before Algorithm 1, which all seeds of a run share."""
CONTINUING = ("compact", "redecode", "reclassify", "refine", "narrow")
"""Recipes whose checkpoints have the tag of the data set alone, and replace each other."""
SMOKE: dict[str, Any] = {
    "steps": 2,
    "epochs": 1,
    "batch_size": 4,
    "sizes": ((0, SIZE),),
    "batches": 2,
    "singles": (("faces_wild", 2), ("ferplus", 2)),
    "pairs": 2,
    "queue": 8,
}
"""Fields of a recipe for ``--smoke``."""


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
    """Train by a recipe, and write the weights and card of every seed.

    Args:
        data: folder with the packs, see ``from_packs``, or the root of ``dataset``.
        out: folder for the runs. Recipes with the same first stages may share it; these stages are
            then trained once.
        seeds: seeds of Algorithm 1, one checkpoint each.
        without: terms of the objective to leave out.
        dataset: a name from ``facezoo.data.official.READERS``, or None for the packs.
        fold: test fold of ``dataset``, if it has folds.
        start: checkpoint whose E_id is used, as the paper uses a ready-made one; None trains E_id,
            which needs the packs.
        stage: ``"identity"`` trains E_id only and writes no checkpoint; None trains everything.
        smoke: train every stage for one epoch of small batches, to see that it runs.

    Returns:
        Paths of the cards, ``out/<label>-seed<n>/<checkpoint>.json``.

    Raises:
        ValueError: if ``dataset`` has no ``start``, or the recipe needs the packs; if ``fold`` is
            given and the data have none; or if ``out`` holds a run of another recipe or data.
        UnsupportedError: if ``start`` is a checkpoint of another family.
    """
    chosen = recipe(name, without)
    if smoke:
        chosen = shortened(chosen, **SMOKE)
    # An unsuitable checkpoint is an error before the data are read.
    needed = start is not None or chosen.redecode or chosen.reclassify or chosen.narrow
    base = _load_start(chosen, start).card if needed else None
    with Processes.present().first_alone():  # the others map the crops that it aligns
        sources = _read_sources(chosen, data, dataset, fold, start, device, out / "crops")
    if stage == "identity":
        begin_identity(chosen, sources, out / "start", device)
        return []
    label = "-".join([name, *(f"no-{term}" for term in without)])
    # The card shows the name of a folder only; the fingerprint of its weights identifies it.
    start_name = Path(start).name if start is not None and Path(start).exists() else start
    options = {"recipe": name, "dataset": dataset, "fold": fold, "start": start_name}
    words = [w for k, v in options.items() if v is not None for w in (f"--{k}", str(v))]
    flags = f" {shlex.join(words)}" + "".join(f" --without {term}" for term in without)
    set_name = (dataset or "ferplus-lfw").replace("+", "-plus")  # tags have letters and digits
    tag = set_name + ("" if label in CONTINUING else f"-{label}")
    tag += "" if fold is None else f"-fold{fold}"
    digest = {**sources.digest, **({"start": base.weights.sha256[:12]} if base else {})}
    cards = []
    for seed in seeds:
        folder = out / f"{label}-seed{seed}"
        with Processes.present().first_alone():  # the others read what it writes
            record = begin_run(folder, seed=seed, recipe={**asdict(chosen), **options})
            check_data(folder, digest)
        model = train(chosen, sources, out / "start", folder, start, seed=seed, device=device)
        if Processes.present().first:
            cards.append(
                write_checkpoint(
                    model,
                    folder,
                    record,
                    model="ipd-fer",
                    tag=tag,
                    default=tag in ("ferplus-lfw", "ferplus-lfw-wide"),
                    flags=flags,
                    preprocessing=Preprocessing(TEMPLATE, SIZE),
                    labels=EXPRESSIONS,
                    precision=chosen.precision,
                    data=sources.descriptions,
                    intended_use=USE,
                    citation=CITATION,
                    base=base,
                    smoke=smoke,
                )
            )
    return cards


def _read_sources(
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
                f"the packs have no folds, got fold {fold}; use --fold with a --dataset that is "
                "split into folds, such as ck+"
            )
        return from_packs(data, cache)
    if start is None:
        raise ValueError(
            f"{dataset} has no teacher for E_id; give --start CHECKPOINT (such as ipd-fer), whose "
            "identity encoder is used"
        )
    if chosen.lfw_trust:
        raise ValueError(
            f"this recipe trains on the packs, got --dataset {dataset}; use the recipe paper or "
            "paper-baseline"
        )
    return from_official(dataset, data, fold, device)


class Beginning(NamedTuple):
    """Initial weights of Algorithm 1."""

    identity: dict[str, Tensor]
    """Tensors of E_id and of the removal of expression, named as in ``IPDFER``."""
    expression: dict[str, Tensor]
    """Tensors of E_exp, and of C_exp if it is trained."""
    rows: dict[str, Rows]
    """Training splits with expression labels."""


def train(
    chosen: Recipe,
    sources: Sources,
    start_folder: Path,
    out: Path,
    start: str | None = None,
    *,
    seed: int,
    device: torch.device,
) -> IPDFER:
    """Train a model by a recipe.

    After an interruption the same call resumes from the last saved state and ends at the same
    weights.

    Args:
        sources: data to train and validate on.
        start_folder: folder for the states and logs of the stages before Algorithm 1.
        start: checkpoint that replaces the first stages.
        seed: seed of Algorithm 1; the stages before it have their own.

    Returns:
        The trained model, float32, on the CPU.
    """
    if chosen.reclassify:
        return reclassify(_load_start(chosen, start), chosen, sources.train, sources.val, device)
    if chosen.narrow:
        return narrow(_load_start(chosen, start), sources.heads["lfw"], device)
    if chosen.redecode:
        return redecode(chosen, sources, _load_start(chosen, start), out, seed, device)
    beginning = begin(chosen, sources, start_folder, device, start)
    return finish(chosen, sources, beginning, out, seed=seed, device=device)


def begin(
    chosen: Recipe, sources: Sources, out: Path, device: torch.device, checkpoint: str | None = None
) -> Beginning:
    """Train the stages before Algorithm 1, with E_id from a checkpoint if there is one.

    Without a first stage for the expression, E_exp is E_id and there is no classifier yet.
    """
    start = chosen.start
    if checkpoint is None or start.expression is not None:
        _record(out, asdict(start), sources)
    if checkpoint is None:
        identity = begin_identity(chosen, sources, out, device)
    else:
        identity = {
            name: value.float() if value.is_floating_point() else value
            for name, value in _load_start(chosen, checkpoint).state_dict().items()
            if name.startswith(("identity_encoder.", "expression_removal."))
        }
    encoder = _of_encoder(identity)
    if start.expression is None:
        first = {f"expression_encoder.{k}": v for k, v in encoder.items()}
        return Beginning(identity, first, sources.train)
    networks, states = [], []
    for number in range(start.self_training.models if start.self_training else 1):
        seed = START_SEED + 1 + number
        torch.manual_seed(seed)
        first_training = ExpressionTraining(chosen, sources.train, sources.val, encoder, device)
        first_training.run(start.expression, out / f"expression-{seed}", seed)
        states.append(first_training.run(start.settle, out / f"settle-{seed}", seed))
        networks.append(first_training.parts)
    rows = dict(sources.train)
    if start.self_training is not None:
        file, faces = out / "soft-labels.pt", sources.faces["faces_wild"]
        with Processes.present().first_alone():
            if not file.is_file():
                labels = soft_labels(networks, faces, device).expression
                save_state(file, expression=labels)
        saved = load_state(file)
        assert saved is not None
        rows["faces_wild"] = replace(faces, expression=saved["expression"])
    return Beginning(identity, states[0], rows)


def begin_identity(
    chosen: Recipe, sources: Sources, out: Path, device: torch.device
) -> dict[str, Tensor]:
    """Train E_id; return its tensors and those of the removal, named as in ``IPDFER``."""
    _record(out / "identity", asdict(chosen.start.identity), sources)
    return train_identity(chosen, sources, out, START_SEED, device)


def _record(folder: Path, config: dict[str, Any], sources: Sources) -> None:
    """Record the configuration and data of first stages, or check that they are the same."""
    with Processes.present().first_alone():
        begin_run(folder, seed=START_SEED, recipe=config)
        check_data(folder, sources.digest)


def _of_encoder(identity: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "identity_encoder."
    return {k.removeprefix(prefix): v for k, v in identity.items() if k.startswith(prefix)}


def _load_start(chosen: Recipe, start: str | None) -> IPDFER:
    """Load the checkpoint that E_id comes from.

    Raises:
        ValueError: if there is none, or its encoders are not the recipe's.
    """
    if start is None:
        raise ValueError("this recipe starts from a checkpoint; give --start, such as ipd-fer")
    model: IPDFER = IPDFER.from_pretrained(start)
    expected = {"backbone": chosen.backbone, "feature_dim": chosen.feature_dim}
    if {key: model.architecture[key] for key in expected} != expected:
        raise ValueError(
            f"{start} has encoders of {model.architecture['backbone']} and "
            f"{model.architecture['feature_dim']} features; the recipe expects {expected}"
        )
    return model


def finish(
    chosen: Recipe,
    sources: Sources,
    beginning: Beginning,
    out: Path,
    *,
    seed: int,
    device: torch.device,
) -> IPDFER:
    """Run Algorithm 1 or the baseline, the calibration and the decoder's stage; see ``train``."""
    identity, first, rows = beginning
    val = sources.val
    if chosen.objective is not None:
        tensors, architecture = train_disentangled(
            chosen, rows, val, identity, first, out / "main", seed, device
        )
    else:
        torch.manual_seed(seed)
        last = ExpressionTraining(chosen, rows, val, _of_encoder(identity), device)
        last.parts.load_state_dict(first, strict=False)
        tensors = {**last.run(chosen.main, out / "main", seed), **identity}
        architecture = {
            "backbone": chosen.backbone,
            "feature_dim": chosen.feature_dim,
            "num_classes": len(EXPRESSIONS),
            "pose_backbone": None,
            "decoder_size": None,
            "removed_directions": len(identity.get("expression_removal.write", ())),
        }
    model = IPDFER(**architecture)
    model.load_state_dict(tensors)
    if chosen.calibrated:
        calibrate(model.to(device), next(iter(val.values())), device)
    if chosen.decoder is not None:
        model = with_decoder(model, chosen, sources, out, seed, device)
    return model.cpu()
