"""Card of a fine-tuned model: command line, data, scores and limits."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from facezoo.data.labeled import LabeledImages
from facezoo.finetuning.loop import Finetuning
from facezoo.hub.card import Card, Hub, Licenses, Metric, Training, Weights
from facezoo.models.base import FaceModel

_BASE = ", which training started from: "


def command_line(
    data: Any,
    out: Any,
    model: str | os.PathLike[str],
    recipe: Finetuning,
    label_column: str | None,
    classes: Sequence[str] | None,
    aligned: bool,
    seed: int,
    detection: Mapping[str, Any],
) -> str:
    """Return the command line that does the same, with paths cut to their last names."""
    words = ["facezoo", "finetune", "--model", _last(model), "--data", _last(data)]
    words += ["--out", _last(out)]
    for name, value in asdict(recipe).items():
        if value == getattr(Finetuning(), name):
            continue
        if name == "pretrained":
            words += ["--from-scratch"]
        elif name == "freeze":
            words += [word for part in value for word in ("--freeze", part)]
        else:
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    words += ["--label-column", label_column] if label_column else []
    words += ["--classes", ",".join(classes)] if classes else []
    words += ["--aligned"] if aligned else []
    for name, value in detection.items():
        text = ",".join(map(str, value)) if name == "rotations" else str(value)
        words += [f"--{name.replace('_', '-')}", text]
    return shlex.join([*words, "--seed", str(seed)])


def _last(path: Any) -> str:
    return Path(path).name if Path(path).exists() or Path(path).is_absolute() else str(path)


def _limits(
    net: FaceModel, recipe: Finetuning, metrics: Sequence[Metric], note: str
) -> tuple[str, ...]:
    """Return the limits of the fine-tuning, and those of the base checkpoint by its name."""
    scores = "; ".join(
        f"{m.name} {m.value:.2f} % ({m.protocol})" for m in metrics if m.split == "val"
    )
    limits = [f"Validation {scores}. {note}" if scores else note]
    if "reconstruct" in net.capabilities() and not recipe.probe:
        limits.append(
            "Fine-tuned for expression classes: the decoder was not trained on these features, so "
            "reconstruct and transfer_expression decode features that it does not know."
        )
    if base := net.card:
        own = f"{base.name}{_BASE}"
        earlier = base.training.base is not None
        limits += [t if earlier and _BASE in t else own + t for t in base.limits]
    return tuple(limits)


def card_of(
    net: FaceModel,
    labeled: LabeledImages,
    count: int,
    record: dict[str, Any],
    command: str,
    metrics: tuple[Metric, ...],
    note: str,
    out: Path,
    recipe: Finetuning,
) -> Card:
    """Write the card of a fine-tuned model whose last layer classifies ``labeled.classes``."""
    base = net.card
    tag = re.sub(r"[^a-z0-9]+", "-", out.resolve().name.lower()).strip("-") or "finetuned"
    data = f"{labeled.name}: {count} faces of {len(labeled.classes)} classes"
    licenses = Licenses(
        code=base.licenses.code if base else "Apache-2.0",
        weights=base.licenses.weights if base else "unspecified",
        data=f"{base.licenses.data}, and that of {labeled.name}" if base else "unspecified",
    )
    training = Training(
        data=(*(base.training.data if base else ()), data),
        command=command,
        commit=record["commit"],
        recipe=record["recipe"],
        seed=record["seed"],
        hardware=record["hardware"],
        base=base.name if base else None,
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
        training=training,
        metrics=tuple(metric for metric in metrics if metric.split == "test"),
        limits=_limits(net, recipe, metrics, note),
        intended_use=base.intended_use if base else "",
        citation=base.citation if base else "",
    )
