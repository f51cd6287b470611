"""From labelled photographs to a folder that ``facezoo.load`` opens."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facezoo.data.crops import cut_faces, read_named
from facezoo.data.labelled import LabelledImages, read_labelled
from facezoo.errors import UnsupportedError, warn_once
from facezoo.evaluate.classification import scores
from facezoo.finetuning.loop import MARGIN, Examples, Finetuning, check_batch, fit, predict
from facezoo.hub.card import Card, Hub, Licenses, Metric, Training, Weights
from facezoo.hub.tensors import read_tensors, save
from facezoo.models.base import FaceModel, Stage
from facezoo.models.identity_removal import NAME
from facezoo.preprocess.alignment import prepare_aligned
from facezoo.preprocess.images import describe
from facezoo.preprocess.pipeline import fingerprint, to_device
from facezoo.registry import load
from facezoo.training.processes import Processes
from facezoo.training.run import begin_run

STATE = "training"
"""Folder in the output for what only a resumed run needs."""
_STARTED = ", which training started from: "
CHOSEN_ON = "; the epoch was chosen on these images"


@dataclass(frozen=True)
class Finetuned:
    """What a fine-tuning gave."""

    folder: Path
    """With ``config.json``, ``model.safetensors`` and ``README.md``; ``facezoo.load`` opens it."""
    classes: tuple[str, ...]
    metrics: tuple[Metric, ...]
    """On the validation photographs and, where there are some, on those for testing."""

    def __repr__(self) -> str:
        lines = [f"{self.folder}: {len(self.classes)} classes: {', '.join(self.classes)}"]
        lines += [f"  {m.split:5} {m.name:18} {m.value:6.2f} {m.unit}" for m in self.metrics]
        return "\n".join(lines)


def finetune(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str = "ipd-fer",
    recipe: Finetuning | None = None,
    label_column: str | None = None,
    classes: Sequence[str] | None = None,
    aligned: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> Finetuned:
    """Train a checkpoint further on labelled photographs.

    The faces are found and cut out once, and their crops are kept in memory and in ``out``, some
    50 kB each. Interrupted, the same call goes on at the epoch it was in. Several processes, as
    ``accelerate launch`` starts them, share every batch, which their number must divide.

    Args:
        data: a folder of class folders, a ``.csv`` or a ``.parquet`` file, as ``read_labelled``
            takes them. Photographs without a face are left out with a warning.
        out: folder for the result; a run of another recipe, seed, data or checkpoint in it is
            refused.
        model: a name that ``facezoo.load`` takes, with expression classes. Its ``identity_removal``
            is left out, with a warning, if its expression features are trained.
        recipe: how to train; None for the defaults.
        label_column: of a table; None to look for the usual names.
        classes: which classes, in this order; None for all of the data.
        aligned: whether the photographs are crops in the model's template already.
        seed: of the new classifier, order and augmentation.
        device: where to work; None for the best there is.

    Returns:
        The folder and what was measured.

    Raises:
        ValueError: if the data has fewer than two classes, a class without a training photograph,
            or ``out`` holds another run.
        NoFaceError: if no photograph has a face.
        UnsupportedError: if the model has no classifier, or is one of meshes.
    """
    recipe, target, together = recipe or Finetuning(), Path(out), Processes.present()
    labelled = read_labelled(data, label_column=label_column, classes=classes)
    _check(labelled, labelled.labels[labelled.rows("train")])
    net = _network(model, recipe, labelled, seed, device or together.device())
    check_batch(net, recipe)
    said = {
        **asdict(recipe),
        "model": net.card.name if net.card else model,
        "weights": net.card.weights.sha256[:12] if net.card else None,
        "data": _digest(labelled),
        "aligned": aligned,
    }
    with together.first_alone():  # the others find what it has written
        record = begin_run(target / STATE, seed=seed, recipe=said)
        examples, rows = _examples(labelled, said["data"], net, target / STATE, aligned)
    parts = {split: _part(examples, rows, labelled.rows(split)) for split in _splits(labelled)}
    _check(labelled, parts["train"].labels)
    fit(net, parts["train"], parts["val"], recipe, target / STATE, seed=seed)
    command = _command(data, out, model, recipe, label_column, classes, aligned, seed)
    metrics = tuple(
        metric
        for split in ("val", "test")
        if split in parts and len(parts[split])
        for metric in _metrics(net, parts[split], labelled.name, split, command)
    )
    card = _card(net, labelled, len(parts["train"]), record, command, metrics, target, recipe)
    if together.first:
        net.save_pretrained(target, card=card)
    together.wait()
    return Finetuned(target, labelled.classes, metrics)


def _network(
    name: str,
    recipe: Finetuning,
    labelled: LabelledImages,
    seed: int,
    device: str | torch.device | None,
) -> FaceModel:
    torch.manual_seed(seed)
    net = load(name, pretrained=recipe.pretrained, device=device)
    if not isinstance(net, FaceModel):
        raise UnsupportedError(
            f"{name} takes meshes, and fine-tuning is on photographs with classes; give a model "
            "that predicts expressions, such as ipd-fer"
        )
    net.reset_classifier(labels=labelled.classes)
    if recipe.probe:
        net.freeze()
    elif recipe.freeze:
        net.freeze(*recipe.freeze)
    if hasattr(net, NAME) and _trains_features(net):
        delattr(net, NAME)
        warn_once(
            f"the {NAME} of {name} is left out: it was fitted to expression features, and these "
            "change in training; fit one to the new ones by remove_identity()"
        )
    return net


def _trains_features(net: FaceModel) -> bool:
    """Whether expression features depend on parameters that are trained."""
    stage: Stage = net.embed_expression
    with torch.enable_grad():
        return stage(torch.zeros(1, *net.input_shape, device=net.device)).requires_grad


def _splits(labelled: LabelledImages) -> list[str]:
    return ["train", "val", *(["test"] if "test" in labelled.splits else [])]


def _digest(labelled: LabelledImages) -> dict[str, Any]:
    """What tells this data from other data: a resumed run must have the same.

    ``rows`` is a hash of what is said of the photographs, ``photographs`` one of their files.
    """
    counts = torch.bincount(labelled.labels, minlength=len(labelled.classes)).tolist()
    points = None if labelled.landmarks is None else labelled.landmarks.tolist()
    columns = labelled.files, labelled.labels.tolist(), labelled.splits, labelled.persons, points
    photographs = sha256()
    for image in labelled.images:
        data = image if isinstance(image, bytes) else Path(str(image)).read_bytes()
        photographs.update(sha256(data).digest())
    return {
        "name": labelled.name,
        "classes": dict(zip(labelled.classes, counts, strict=True)),
        "rows": sha256(json.dumps(columns).encode()).hexdigest()[:12],
        "photographs": photographs.hexdigest()[:12],
    }


def _examples(
    labelled: LabelledImages, digest: Mapping[str, Any], net: FaceModel, folder: Path, aligned: bool
) -> tuple[Examples, Tensor]:
    """Crops of all photographs, cut once, and the row of the data that each of them shows."""
    cache, key = folder / "crops.safetensors", folder / "crops.json"
    wanted = {"fingerprint": fingerprint(net.preprocessing), "data": digest}
    if key.is_file() and cache.is_file() and json.loads(key.read_text()) == wanted:
        stored = read_tensors(cache)
        crops, rows = stored["crops"], stored["rows"]
    else:
        crops, rows = _cut(labelled, net, aligned)
        save({"crops": crops, "rows": rows}, cache)
        key.write_text(json.dumps(wanted))
    return Examples(crops, labelled.labels[rows], 0 if aligned else MARGIN), rows


def _cut(labelled: LabelledImages, net: FaceModel, aligned: bool) -> tuple[Tensor, Tensor]:
    preprocessing = net.preprocessing
    names = [f"{labelled.name}, {file}" for file in labelled.files]
    if not aligned:
        found = cut_faces(
            labelled.name,
            labelled.images,
            labelled.landmarks,
            template=preprocessing.template,
            size=preprocessing.size,
            margin=MARGIN,
            device=net.device,
            names=names,
        )
        return found.images, found.rows
    plain = replace(preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    crops = []
    for image, name in zip(labelled.images, names, strict=True):
        photo = to_device([read_named(image, name)], torch.device("cpu"))
        crops.append(prepare_aligned(photo, plain, [describe(name)]))
    whole = (torch.cat(crops) * 255).round().to(torch.uint8)
    return whole, torch.arange(len(whole))


def _part(examples: Examples, rows: Tensor, wanted: Tensor) -> Examples:
    return examples[torch.isin(rows, wanted).nonzero()[:, 0]]


def _check(labelled: LabelledImages, train: Tensor) -> None:
    """Refuse a class without one of the labels to train on."""
    counts = torch.bincount(train, minlength=len(labelled.classes)).tolist()
    empty = [word for word, count in zip(labelled.classes, counts, strict=True) if not count]
    if empty:
        raise ValueError(
            f"{labelled.name} has no photograph with a face to train on for the class "
            f"{empty[0]!r}; add some, or name the classes to keep"
        )


def _metrics(net: FaceModel, part: Examples, name: str, split: str, command: str) -> list[Metric]:
    protocol = f"{len(part)} faces, {len(net.labels)} classes" + (CHOSEN_ON * (split == "val"))
    values = scores(predict(net, part), part.labels)
    return [
        Metric(key, round(100 * value, 4), "%", name, split, protocol, command)
        for key, value in values.items()
    ]


def _command(
    data: Any,
    out: Any,
    model: str,
    recipe: Finetuning,
    label_column: str | None,
    classes: Sequence[str] | None,
    aligned: bool,
    seed: int,
) -> str:
    """The command line that does the same, its data and output by their last names only."""
    words = ["facezoo", "finetune", "--model", _last(model), "--data", _last(data)]
    words += ["--out", _last(out)]
    for name, value in asdict(recipe).items():
        if value != getattr(Finetuning(), name):
            words += _flag(name, value)
    words += ["--label-column", label_column] if label_column else []
    words += ["--classes", ",".join(classes)] if classes else []
    words += ["--aligned"] if aligned else []
    return shlex.join([*words, "--seed", str(seed)])


def _flag(name: str, value: Any) -> list[str]:
    if name == "pretrained":
        return ["--from-scratch"]
    if name == "freeze":
        return [word for part in value for word in ("--freeze", part)]
    return [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]


def _last(path: Any) -> str:
    """A path as a card may show it: without the folders of this machine."""
    return Path(path).name if Path(path).exists() or Path(path).is_absolute() else str(path)


def _limits_before(base: Card) -> list[str]:
    """Limits of the checkpoint that was trained further, as its own: they were found on it."""
    own = f"{base.name}{_STARTED}"
    earlier = base.training.base is not None
    return [t if earlier and _STARTED in t else own + t for t in base.limits]


def _card(
    net: FaceModel,
    labelled: LabelledImages,
    count: int,
    record: dict[str, Any],
    command: str,
    metrics: tuple[Metric, ...],
    out: Path,
    recipe: Finetuning,
) -> Card:
    base = net.card
    limits = _limits_before(base) if base else []
    if "reconstruct" in net.capabilities() and not recipe.probe:
        limits.append(
            "Fine-tuned for expression classes: the decoder was not trained on these features, so "
            "reconstruct and transfer_expression show another model's idea of them."
        )
    tag = re.sub(r"[^a-z0-9]+", "-", out.resolve().name.lower()).strip("-") or "finetuned"
    said = f"{labelled.name}: {count} faces of {len(labelled.classes)} classes"
    licenses = Licenses(
        code=base.licenses.code if base else "Apache-2.0",
        weights=base.licenses.weights if base else "unspecified",
        data=f"{base.licenses.data}, and that of {labelled.name}" if base else "unspecified",
    )
    return Card(
        model=str(net.model_name),
        tag=tag,
        default=False,
        architecture=dict(net.architecture),
        preprocessing=net.preprocessing,
        labels=net.labels,
        weights=Weights("model.safetensors", "0" * 64, 1, "float32", 0),  # replaced when saved
        hub=Hub(),
        licenses=licenses,
        training=Training(
            data=(*(base.training.data if base else ()), said),
            command=command,
            commit=record["commit"],
            recipe=record["recipe"],
            seed=record["seed"],
            hardware=record["hardware"],
            base=base.name if base else None,
        ),
        metrics=metrics,
        limits=tuple(limits),
        intended_use=base.intended_use if base else "",
        citation=base.citation if base else "",
    )
