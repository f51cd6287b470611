"""The training loop: cross-entropy on augmented crops, the best epoch kept, exact resume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from facezoo.data.augment import augment, centre_crop
from facezoo.evaluate.classification import scores
from facezoo.hub.card import Preprocessing
from facezoo.models.base import FaceModel
from facezoo.preprocess.alignment import normalize
from facezoo.training.optim import autocast, descend, layer_groups, set_cosine_rate
from facezoo.training.processes import Processes
from facezoo.training.state import batches, generator, load_state, log_row, save_state

MARGIN = 8
"""Pixels around the template, so that a random shift has something to show."""


@dataclass(frozen=True)
class Finetuning:
    """How a model is fine-tuned."""

    epochs: int = 10
    batch_size: int = 32
    """Of photographs; all of them where there are fewer."""
    rate: float = 1e-3
    """Learning rate of the classifier."""
    layer_decay: float = 0.7
    """Factor on the rate per layer towards the input, see ``training.layer_groups``."""
    weight_decay: float = 0.05
    warmup: float = 0.1
    """Share of the steps."""
    smoothing: float = 0.1
    """Of the labels."""
    freeze: tuple[str, ...] = ()
    """Parts that stay as they are, see ``FaceModel.freeze``."""
    probe: bool = False
    """Whether only the classifier is trained."""
    pretrained: bool = True
    """Whether to start from the weights; False starts from random ones, for comparison."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not 0 < self.rate < math.inf:
            raise ValueError(f"rate must be above 0, got {self.rate}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}")
        for name in ("warmup", "smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be 0 or more and below 1, got {getattr(self, name)}")
        if self.probe and self.freeze:
            raise ValueError("probe trains the classifier alone; there is nothing else to freeze")


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
    """Refuse batches of one face per process where a norm needs several.

    Raises:
        ValueError: if the model could not be trained with these.
    """
    count = Processes.present().count
    model.train()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm1d) and m.training]
    model.eval()
    if recipe.batch_size // count < 2 and norms:
        raise ValueError(
            f"batch_size must be {2 * count} or more for a model with batch norms, got "
            f"{recipe.batch_size} for {count} process{'es' * (count > 1)}; or train the "
            "classifier alone (probe)"
        )


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
    """Train a model's classifier, and what is not frozen below it, in place.

    With validation examples the epoch of the highest balanced accuracy on them is kept, without
    them the last. Interrupted, the same call goes on at the epoch it was in and ends at the same
    weights, if ``out`` is given. Several processes, as ``accelerate launch`` starts them, share
    every batch and end at the same weights; the first of them validates and writes.

    Args:
        model: with as many classes as the labels have.
        train: what to train on.
        val: what chooses the epoch; None, or none, for the last.
        recipe: how.
        out: folder for ``state.pt`` and ``log.csv``; None to keep no state.
        seed: of order and augmentation.
        progress: whether to show a progress bar, if the error stream is a terminal.

    Returns:
        Loss and validation scores of every epoch of this call.

    Raises:
        ValueError: if the loss is no finite number any more.
    """
    optimizer = torch.optim.AdamW(
        layer_groups(model, recipe.layer_decay), lr=recipe.rate, weight_decay=recipe.weight_decay
    )
    begin, best, kept = 0, -math.inf, dict[str, Tensor]()
    saved = load_state(out / "state.pt") if out else None
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        begin, best, kept = saved["epoch"], saved["best"], saved["kept"]
    rows: list[dict[str, float]] = []
    together = Processes.present()
    disable = None if progress and together.first else True
    for epoch in tqdm(range(begin, recipe.epochs), desc="fine-tuning", disable=disable):
        loss = _epoch(model, optimizer, train, recipe, seed, epoch)
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} after epoch {epoch + 1} of {recipe.epochs}: the weights are "
                f"lost; begin anew with a rate below {recipe.rate:g}"
            )
        row = {"epoch": epoch + 1, "loss": loss}
        if not together.first:
            continue
        if val is not None and len(val):
            row |= scores(predict(model, val), val.labels)
        score = row.get("balanced accuracy", float(epoch))
        if score >= best:  # of equal ones the later: few photographs soon all come out right
            best = score
            kept = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
        rows.append(row)
        if out:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(out / "state.pt", **state, epoch=epoch + 1, best=best, kept=kept)
            log_row(out / "log.csv", row)
    kept, rows = together.gather((kept, rows))[0]
    model.load_state_dict(kept)
    model.eval()
    return rows


def _epoch(
    model: FaceModel,
    optimizer: torch.optim.Optimizer,
    train: Examples,
    recipe: Finetuning,
    seed: int,
    epoch: int,
) -> float:
    """One pass over the examples; the mean loss."""
    together = Processes.present()
    size = min(recipe.batch_size, len(train))
    if size == len(train) > together.count:  # all there are, but for what cannot be shared
        size -= size % together.count
    order = batches(len(train), size, seed, epoch)
    total = 0.0
    model.train()
    for step, rows in enumerate(order):
        done = (epoch * len(order) + step) / (recipe.epochs * len(order))
        set_cosine_rate(optimizer, recipe.rate, done, recipe.warmup)
        part = train[together.share(rows)]
        draw = generator(seed, epoch, step, *together.path)
        images = _augmented(part, model.preprocessing, draw)
        with autocast(model.device):
            logits = model(images.to(model.device))
        loss = F.cross_entropy(
            logits.float(), part.labels.to(model.device), label_smoothing=recipe.smoothing
        )
        descend(optimizer, loss)
        total += float(loss.detach())
    return total / len(order)


def _augmented(part: Examples, preprocessing: Preprocessing, draw: torch.Generator) -> Tensor:
    side = part.crops.shape[-1]
    zoom = (side - 2 * part.margin) / side
    images = augment(part.crops, preprocessing.size, draw, zoom=zoom)
    return normalize((images + 1) * 127.5, preprocessing)


@torch.inference_mode()
def predict(model: FaceModel, examples: Examples, batch_size: int = 64) -> Tensor:
    """Probabilities of the classes on crops without anything random, (N, K), on the CPU."""
    parts = []
    for crops in examples.crops.split(batch_size):
        images = centre_crop(crops, model.preprocessing.size, examples.margin)
        images = normalize((images + 1) * 127.5, model.preprocessing).to(model.device)
        logits = model.run(images, "predict_expression", batch_size)
        parts.append(logits.softmax(-1).cpu())
    return torch.cat(parts)
