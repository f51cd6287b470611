"""Fine-tune a checkpoint on labeled images, and save the result as a folder to load."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facezoo.data.crops import cut_faces, errors_of, read_pair, warn_unreadable
from facezoo.data.labeled import LabeledImages, read_labeled
from facezoo.errors import ImageError, UnsupportedError, warn_once
from facezoo.evaluate.metrics import SCORES, confusion, predicted_classes
from facezoo.finetuning.card import card_of, command_line
from facezoo.finetuning.loop import (
    MARGIN,
    MIN_VALIDATION,
    Examples,
    Finetuning,
    check_batch,
    fit,
    freeze_parts,
    predict,
    selects_epoch,
)
from facezoo.finetuning.plan import draw_confusion, plan
from facezoo.hub.card import Metric
from facezoo.hub.tensors import read_tensors, save
from facezoo.models.base import FaceModel, Stage
from facezoo.models.identity_removal import NAME
from facezoo.preprocess.alignment import prepare_aligned
from facezoo.preprocess.detection import DetectionConfig
from facezoo.preprocess.fingerprint import fingerprint
from facezoo.preprocess.pipeline import DETECTION, ImageOptions, read_batches
from facezoo.registry import load
from facezoo.training.processes import Processes
from facezoo.training.run import begin_run

CONFUSION = "confusion.png"
STATE = "training"
"""Folder in the output with what only a resumed run needs."""


@dataclass(frozen=True)
class Finetuned:
    """Result of a fine-tuning."""

    folder: Path
    """With ``config.json``, ``model.safetensors`` and ``README.md``; ``facezoo.load`` opens it."""
    classes: tuple[str, ...]
    metrics: tuple[Metric, ...]
    """Scores on the validation and the test split; only those on the test split are in the card."""
    note: str = ""
    """Reading of the scores, or the reason for having none."""

    def __repr__(self) -> str:
        lines = [f"{self.folder}: {len(self.classes)} classes: {', '.join(self.classes)}"]
        lines += [
            f"  {m.split:5} {m.name:18} {m.value:6.2f} {m.unit} ({m.protocol})"
            for m in self.metrics
        ]
        return "\n".join([*lines, *([f"  {self.note}"] if self.note else [])])


@torch.inference_mode(False)
@torch.enable_grad()
@torch.random.fork_rng(devices=[])
def finetune(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] = "ipd-fer",
    recipe: Finetuning | None = None,
    label_column: str | None = None,
    classes: Sequence[str | int] | None = None,
    aligned: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    min_face: float | None = None,
    score_threshold: float | None = None,
    max_side: int | None = None,
    rotations: Sequence[int] | None = None,
) -> Finetuned:
    """Train a checkpoint further on labeled images.

    Faces are detected and cropped once; the crops stay in memory and in ``out``, about 50 kB each.
    Call it again after an interruption: it resumes. Several processes, as ``accelerate launch``
    starts them, share every batch; their number must divide the batch size.

    The plan is printed before the training. ``out`` also gets a picture of the confusion matrix on
    the test split, else on the validation split.

    Without a validation split in the data, a fifth of the images validates, stratified by class
    and separated by identity. If these are fewer than 50 faces, all images train, and no
    validation score is reported.

    Args:
        data: a folder of class folders, or a ``.csv`` or ``.parquet`` file with columns of images
            and labels. Images that cannot be read or have no face are left out with a warning.
        out: folder for the result.
        model: name or folder that ``facezoo.load`` takes, of a model with expression classes. If
            its expression features are trained, its ``identity_removal`` is left out with a
            warning.
        recipe: recipe; None for the defaults. Settings that are None suit the number of images.
        label_column: column of a table; None to look for the usual names.
        classes: names or whole numbers of the classes to use, in this order; None for all in the
            data.
        aligned: the images are crops in the model's template.
        seed: seed of the new classifier, order and augmentation.
        device: where to train; None for the best device.
        min_face: least side of a face, pixels; None for the default of ``DetectionConfig``, as for
            the next three.
        score_threshold: least score of a face, in [0, 1].
        max_side: longer side of the images that the detector takes, pixels.
        rotations: rotations of the image at which faces are searched, multiples of 90 degrees.

    Returns:
        The folder and the scores.

    Raises:
        ValueError: if the data has fewer than two classes, or a class without a training image,
            ``out`` holds a run of another recipe, seed, data or checkpoint, or the recipe freezes
            the classifier.
        FileNotFoundError: if ``data`` or an image does not exist.
        ImageError: if no image can be read, or one is not square and ``aligned`` is True.
        NoFaceError: if no image has a face.
        UnknownNameError: if there is no such model.
        UnsupportedError: if the model has no classifier, takes meshes, or is not a name or folder.

    Examples:
        >>> result = facezoo.finetune("images", "my-model")  # doctest: +SKIP
        >>> model = facezoo.load("my-model")  # doctest: +SKIP
    """
    target, together = Path(out), Processes.present()
    options = ImageOptions(
        min_face=min_face, score_threshold=score_threshold, max_side=max_side, rotations=rotations
    )
    detection = {name: v for name in DETECTION if (v := getattr(options, name)) is not None}
    labeled = read_labeled(data, label_column=label_column, classes=classes, exclude=out)
    images = labeled.rows("train")
    _check_classes(labeled, labeled.labels[images])
    recipe = (recipe or Finetuning()).for_images(len(images))
    net = _network(model, recipe, labeled, seed, device or together.device())
    check_batch(net, recipe)
    start = net.card.name if net.card else str(model)
    settings = {
        **asdict(recipe),
        "model": start,
        "weights": net.card.weights.sha256[:12] if net.card else None,
        "data": _digest(labeled),
        "aligned": aligned,
        **detection,
    }
    with together.first_alone():  # the other processes read the crops that the first one wrote
        record = begin_run(target / STATE, seed=seed, recipe=settings)
        examples, rows = _examples(
            labeled, settings["data"], net, target / STATE, aligned, detection
        )
    parts = {name: _part(examples, rows, labeled.rows(name)) for name in ("train", "val", "test")}
    note = _validation_note(labeled, parts["val"], len(parts["test"]))
    if not selects_epoch(parts["val"]):
        if "val" not in labeled.splits:
            parts["train"] = _part(examples, rows, labeled.rows("train", "val"))
        del parts["val"]
    _check_classes(labeled, parts["train"].labels)
    _warn_of_classes_without_scores(labeled, parts)
    if together.first:
        print(plan(net, parts, recipe, start), flush=True)
    fit(net, parts["train"], parts.get("val"), recipe, target / STATE, seed=seed)
    command = command_line(
        *(data, out, model, recipe, label_column),
        *(None if classes is None else labeled.classes, aligned, seed, detection),
    )
    counts = {
        split: confusion(predicted_classes(predict(net, part)), part.labels, len(net.labels))
        for split, part in parts.items()
        if split != "train" and len(part)
    }
    metrics = tuple(
        metric
        for split in counts
        for metric in _metrics(counts[split], labeled.name, split, command)
    )
    card = card_of(
        net, labeled, len(parts["train"]), record, command, metrics, note, target, recipe
    )
    if together.first:
        net.save_pretrained(target, card=card)
        if counts:
            split = list(counts)[-1]  # test, else val
            title = f"{split}: {len(parts[split])} faces, true classes in rows"
            draw_confusion(counts[split], net.labels, title, target / CONFUSION)
            with (target / "README.md").open("a", encoding="utf-8") as file:
                file.write(f"\n## Confusion matrix\n\n![{title}]({CONFUSION})\n")
    together.wait()
    return Finetuned(target, labeled.classes, metrics, note)


def _validation_note(labeled: LabeledImages, val: Examples, tested: int) -> str:
    advice = "" if tested else "; measure on a test split"
    if selects_epoch(val):
        return (
            f"The epoch was selected on the {len(val)} validation faces, so scores on them are "
            f"optimistic{advice}."
        )
    used = "all images were trained on" if "val" not in labeled.splits else "the last epoch stays"
    return (
        f"No validation score: {len(val)} validation faces are too few ({MIN_VALIDATION} or more "
        f"are needed), so {used}{advice}."
    )


def _network(
    name: str | os.PathLike[str],
    recipe: Finetuning,
    labeled: LabeledImages,
    seed: int,
    device: str | torch.device | None,
) -> FaceModel:
    if not isinstance(name, (str, os.PathLike)):
        raise UnsupportedError(
            "model must be a name or a folder, so that the card can name the start of training, "
            f"got {type(name).__name__}; save yours with save_pretrained() and pass its folder"
        )
    torch.manual_seed(seed)
    net = load(name, pretrained=recipe.pretrained, device=device)
    if not isinstance(net, FaceModel):
        raise UnsupportedError(
            f"{name} takes meshes, and fine-tuning needs images with classes; give a model that "
            "predicts expressions, such as ipd-fer"
        )
    net.reset_classifier(labels=labeled.classes)
    freeze_parts(net, recipe)
    if not all(p.requires_grad for p in net.get_classifier().parameters()):
        raise ValueError(
            "freeze must leave out the classifier, which is new and must be trained, got "
            f"{', '.join(recipe.freeze)}; to train the classifier alone, use probe"
        )
    stage: Stage = net.embed_expression
    crop = torch.zeros(1, *net.input_shape, device=net.device)
    if hasattr(net, NAME) and stage(crop).requires_grad:
        delattr(net, NAME)
        warn_once(
            f"the {NAME} of {name} is left out: it was fitted to expression features, and these "
            "change in training; fit one to the new features with remove_identity()"
        )
    return net


def _digest(labeled: LabeledImages) -> dict[str, Any]:
    """Return hashes of the rows and of the image files: a resumed run must have the same."""
    counts = torch.bincount(labeled.labels, minlength=len(labeled.classes)).tolist()
    points = None if labeled.landmarks is None else labeled.landmarks.tolist()
    columns = labeled.files, labeled.labels.tolist(), labeled.splits, labeled.identities, points
    contents = sha256()
    for image in labeled.images:
        try:
            data = image if isinstance(image, bytes) else Path(str(image)).read_bytes()
        except OSError:  # it is left out
            data = b""
        contents.update(sha256(data).digest())
    return {
        "name": labeled.name,
        "classes": dict(zip(labeled.classes, counts, strict=True)),
        "rows": sha256(json.dumps(columns).encode()).hexdigest()[:12],
        "images": contents.hexdigest()[:12],
    }


def _examples(
    labeled: LabeledImages,
    digest: Mapping[str, Any],
    net: FaceModel,
    folder: Path,
    aligned: bool,
    detection: Mapping[str, Any],
) -> tuple[Examples, Tensor]:
    """Return the crops of all images, cached in ``folder``, and the data row of each crop."""
    cache, key = folder / "crops.safetensors", folder / "crops.json"
    config = DetectionConfig.override(**detection)
    requested = {"fingerprint": fingerprint(net.preprocessing, detection=config), "data": digest}
    if key.is_file() and cache.is_file() and json.loads(key.read_text()) == requested:
        stored = read_tensors(cache)
        crops, rows = stored["crops"], stored["rows"]
    else:
        crops, rows = _crop(labeled, net, aligned, detection)
        save({"crops": crops, "rows": rows}, cache)
        key.write_text(json.dumps(requested))
    return Examples(crops, labeled.labels[rows], 0 if aligned else MARGIN), rows


def _crop(
    labeled: LabeledImages, net: FaceModel, aligned: bool, detection: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    preprocessing = net.preprocessing
    names = [f"{labeled.name}, {file}" for file in labeled.files]
    if not aligned:
        crops = cut_faces(
            labeled.name,
            labeled.images,
            labeled.landmarks,
            template=preprocessing.template,
            size=preprocessing.size,
            margin=MARGIN,
            device=net.device,
            names=names,
            detection=detection,
            skip_unreadable=True,
        )
        return crops.images, crops.rows
    plain = replace(preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    sources = list(zip(labeled.images, names, strict=True))
    parts, rows, errors = list[Tensor](), list[int](), dict[int, ImageError]()
    for batch in read_batches(
        sources, torch.device("cpu"), read=read_pair, collect_errors=True, progress=True
    ):
        errors |= errors_of(batch)
        if readable := [batch.first + place for place in batch.index]:
            parts.append(prepare_aligned(batch.images, plain, [names[row] for row in readable]))
            rows += readable
    warn_unreadable(labeled.name, errors, len(sources))
    return (torch.cat(parts) * 255).round().to(torch.uint8), torch.tensor(rows)


def _part(examples: Examples, rows: Tensor, requested: Tensor) -> Examples:
    return examples[torch.isin(rows, requested).nonzero()[:, 0]]


def _check_classes(labeled: LabeledImages, train: Tensor) -> None:
    counts = torch.bincount(train, minlength=len(labeled.classes)).tolist()
    empty = [word for word, count in zip(labeled.classes, counts, strict=True) if not count]
    if empty:
        raise ValueError(
            f"{labeled.name} has no training image with a face for the class {empty[0]!r}; add "
            "some, or list the classes to use"
        )


def _warn_of_classes_without_scores(labeled: LabeledImages, parts: Mapping[str, Examples]) -> None:
    for name in ("val", "test"):
        labels = parts[name].labels.tolist() if name in parts else []
        missing = [word for row, word in enumerate(labeled.classes) if row not in labels]
        if labels and missing:
            warn_once(
                f"{labeled.name} has no {name} face of the classes {', '.join(missing)}; its "
                f"{name} scores are of the other classes only, so add images of these"
            )


def _metrics(counts: Tensor, name: str, split: str, command: str) -> list[Metric]:
    samples = _sample_confusions(counts)
    present, total = int((counts.sum(1) > 0).sum()), len(counts)
    classes = f"{total} classes" if present == total else f"{present} of {total} classes"
    metrics = []
    for key, score in SCORES.items():
        value = score(counts)
        sampled = np.array([score(sample) for sample in samples])
        low, high = np.quantile(sampled, (0.025, 0.975))
        protocol = (
            f"{int(counts.sum())} faces, {classes}, 95 % interval "
            f"{100 * min(low, value):.1f} to {100 * max(high, value):.1f}"
        )
        metrics.append(Metric(key, round(100 * value, 4), "%", name, split, protocol, command))
    return metrics


def _sample_confusions(counts: Tensor, samples: int = 1000) -> Tensor:
    """Sample confusion matrices that agree with the observed one, for intervals of its scores.

    Each row comes from its Dirichlet posterior; the prior adds one face per class, spread over
    the columns. Unlike a bootstrap this gives an interval when every face is right.
    """
    totals = counts.sum(1, keepdim=True).double()
    prior = 1 / counts.shape[1]
    gamma = np.random.default_rng(0).standard_gamma(
        counts.double().numpy() + prior, (samples, *counts.shape)
    )
    return torch.from_numpy(gamma / gamma.sum(2, keepdims=True)) * totals
