"""Training on labeled face crops: cross-entropy on augmented crops."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.data.augment import augment, center_crop
from facezoo.evaluate.metrics import scores
from facezoo.hub.card import Preprocessing
from facezoo.models.base import FaceModel
from facezoo.preprocess.alignment import normalize
from facezoo.training import loop
from facezoo.training.loop import Position, Schedule
from facezoo.training.optim import autocast, descend, layer_groups
from facezoo.training.processes import Processes

MARGIN = 8
"""Pixels around the template, for random shifts."""
MIN_STEPS = 64
"""Fewer steps leave a new classifier near its random weights."""
MIN_VALIDATION = 50
"""Fewest validation faces that select an epoch: on fewer, a score is mostly chance."""


@dataclass(frozen=True)
class Finetuning:
    """Recipe of fine-tuning."""

    epochs: int | None = None
    """None for 10, or more for few images, so that there are at least 64 steps."""
    batch_size: int | None = None
    """Images per step, all of them if there are fewer; None for an eighth of them, at least 10 and
    at most 32."""
    rate: float = 1e-3
    """Learning rate of the classifier."""
    layer_decay: float = 0.7
    """Factor on the learning rate per layer toward the input: 1 for the same rate everywhere."""
    weight_decay: float = 0.05
    """Of AdamW; it pulls the parameters towards 0."""
    warmup: float = 0.1
    """Share of the steps."""
    smoothing: float = 0.1
    """Label smoothing."""
    freeze: tuple[str, ...] = ()
    """Names of submodules that are not trained, such as ``"identity_encoder"``; never the
    classifier."""
    probe: bool = False
    """Train the classifier alone."""
    pretrained: bool = True
    """Start from the weights of the checkpoint; False starts from random ones, for comparison."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.generic):  # of a search over values
                object.__setattr__(self, field.name, value.item())
        if isinstance(self.freeze, str):
            object.__setattr__(self, "freeze", (self.freeze,))
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and int(value) != value:
                raise ValueError(f"{name} must be a whole number, got {value}")
        bounds = {
            "epochs": (self.epochs is None or self.epochs >= 1, "1 or more"),
            "batch_size": (self.batch_size is None or self.batch_size >= 1, "1 or more"),
            "rate": (0 < self.rate < math.inf, "above 0"),
            "layer_decay": (0 < self.layer_decay <= 1, "above 0 and at most 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "warmup": (0 <= self.warmup < 1, "0 or more and below 1"),
            "smoothing": (0 <= self.smoothing < 1, "0 or more and below 1"),
        }
        for name, (is_valid, expected) in bounds.items():
            if not is_valid:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)}")
        if self.probe and self.freeze:
            raise ValueError("probe trains the classifier alone; there is nothing else to freeze")

    def for_images(self, count: int) -> Finetuning:
        """Choose the settings that are None for a number of training images."""
        size, processes = self.batch_size, Processes.present().count
        if size is None:
            size = min(32, max(10, count // 8))
            size += -size % processes
        steps = math.ceil(count / size) or 1
        epochs = self.epochs or max(10, math.ceil(MIN_STEPS / steps))
        return replace(self, epochs=epochs, batch_size=size)


@dataclass(frozen=True)
class Examples:
    """Aligned crops with classes; the N rows agree."""

    crops: Tensor
    """uint8, with ``margin`` pixels around the template, (N, 3, H, H)."""
    labels: Tensor
    """int64, (N,)."""
    margin: int = MARGIN

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Tensor) -> Examples:
        return Examples(self.crops[rows], self.labels[rows], self.margin)


def check_batch(model: FaceModel, recipe: Finetuning) -> None:
    """Raise an error for batches of one face per process if a batch norm is trained."""
    count = Processes.present().count
    model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d) and m.training]
    model.eval()
    assert recipe.batch_size is not None
    if recipe.batch_size // count < 2 and norms:
        raise ValueError(
            f"batch_size must be {2 * count} or more for a model with batch norms, got "
            f"{recipe.batch_size} for {count} process{'es' * (count > 1)}; increase it, or train "
            "the classifier alone (probe)"
        )


def freeze_parts(model: FaceModel, recipe: Finetuning) -> None:
    """Freeze what a recipe does not train."""
    if recipe.probe:
        model.freeze()
    elif recipe.freeze:
        model.freeze(*recipe.freeze)


def selects_epoch(val: Examples | None) -> bool:
    """Return True if the validation split is large enough to select the epoch."""
    return val is not None and len(val) >= MIN_VALIDATION


@torch.random.fork_rng(devices=[])
@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    model: FaceModel,
    train: Examples,
    val: Examples | None,
    recipe: Finetuning,
    out: Path | None = None,
    *,
    seed: int = 0,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train a model's classifier and the parts below it that are not frozen, in place.

    The parts that the recipe does not train (``probe``, ``freeze``) are frozen first.

    The result is the epoch of the highest balanced accuracy on ``MIN_VALIDATION`` or more
    validation faces, else the last epoch. Several processes share every batch, and a call after an
    interruption resumes.

    Args:
        model: model with as many classes as the labels have.
        val: validation split; None or an empty one for no validation.
        out: folder for ``state.pt`` and ``log.csv``; None to write nothing.
        progress: show a progress bar, on a terminal or in a notebook.

    Returns:
        Loss and validation scores of every epoch of this call.

    Raises:
        ValueError: if the loss is not finite.
    """
    freeze_parts(model, recipe)
    optimizer = torch.optim.AdamW(
        layer_groups(model, recipe.layer_decay), lr=recipe.rate, weight_decay=recipe.weight_decay
    )

    def step(rows: Tensor, at: Position) -> dict[str, Tensor]:
        batch = train[rows]
        images = augmented(batch, model.preprocessing, at.generator)
        with autocast(model.device):
            logits = model(images.to(model.device))
        loss = F.cross_entropy(
            logits.float(), batch.labels.to(model.device), label_smoothing=recipe.smoothing
        )
        descend(optimizer, loss)
        return {"loss": loss}

    def validate(network: nn.Module, _: Position) -> dict[str, float]:
        assert isinstance(network, FaceModel)
        assert val is not None
        return scores(predict(network, val), val.labels)

    count, recipe = Processes.present().count, recipe.for_images(len(train))
    assert recipe.epochs is not None
    assert recipe.batch_size is not None
    size = min(recipe.batch_size, len(train))
    if size == len(train) > count:  # all images, apart from a rest that cannot be shared
        size -= size % count
    schedule = Schedule(recipe.epochs, size, recipe.rate, schedule="cosine", warmup=recipe.warmup)
    state, rows = loop.fit(
        *(model, [optimizer], step, schedule, torch.arange(len(train)), out, seed),
        validate=validate if val is not None and len(val) else None,
        select="balanced accuracy" if selects_epoch(val) else None,
        progress=progress,
    )
    model.load_state_dict(state)
    model.eval()
    return rows


def augmented(batch: Examples, preprocessing: Preprocessing, generator: torch.Generator) -> Tensor:
    """Return augmented and normalized crops, (B, 3, S, S)."""
    side = batch.crops.shape[-1]
    zoom = (side - 2 * batch.margin) / side
    images = augment(batch.crops, preprocessing.size, generator, zoom=zoom)
    return normalize((images + 1) * 127.5, preprocessing)


@torch.inference_mode()
def predict(model: FaceModel, examples: Examples, batch_size: int = 64) -> Tensor:
    """Return class probabilities of crops without augmentation, (N, K), on the CPU."""
    parts = []
    for crops in examples.crops.split(batch_size):
        images = center_crop(crops, model.preprocessing.size, examples.margin)
        images = normalize((images + 1) * 127.5, model.preprocessing).to(model.device)
        logits = model.run(images, "predict_expression", batch_size)
        parts.append(logits.softmax(-1).cpu())
    return torch.cat(parts)
