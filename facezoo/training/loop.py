"""The training loop of every model: exact resume, log, learning rate, EMA and best epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from facezoo.progress import progress_bar
from facezoo.training.optim import set_lr
from facezoo.training.processes import Processes
from facezoo.training.state import batches, generator, load_state, log_row, save_state

LOG_EVERY = 100
"""Steps per log row in a stage that counts steps; a stage that counts epochs logs every epoch."""


@dataclass(frozen=True)
class Schedule:
    """Length, batch size, learning rate and EMA of one stage of training."""

    epochs: int = 0
    batch_size: int = 16
    lr: float = 1e-4
    """Highest learning rate, for the optimizer that the family creates."""
    schedule: Literal["constant", "cosine", "linear", "step"] = "constant"
    warmup: float = 0.02
    """Share of a cycle in which the learning rate rises from 0 (cosine and linear)."""
    cycles: int = 1
    """Number of cycles with a warm-up each; 2 or more are warm restarts."""
    gamma: float = 0.1
    """Factor on the learning rate after every ``step_epochs`` epochs (step)."""
    step_epochs: int = 10
    average: float = 0.0
    """Decay of the EMA of the weights, which is the result of the stage; 0 for no EMA."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Crop side from an epoch on: ((0, 64), (4, 112)) is four epochs at 64 px, then 112 px."""
    steps: int = 0
    """Number of steps, for a stage that does not count epochs."""
    share: float = 1.0
    """Share of the schedule that the stage runs, for one that another stage continues."""

    def lr_factor(self, progress: float, epoch: int) -> float:
        """Return the factor on the learning rate after a share ``progress`` of the stage."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "step":
            return float(self.gamma ** (epoch // self.step_epochs))
        cycle = self.cycles * progress % 1.0
        if cycle < self.warmup:
            return cycle / self.warmup
        after = (cycle - self.warmup) / (1 - self.warmup)
        if self.schedule == "linear":
            return 1.0 - after
        return 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * after))

    def size(self, epoch: int) -> int:
        """Return the crop side in an epoch; 0 without ``sizes``."""
        return max(((0, 0), *(size for size in self.sizes if size[0] <= epoch)))[1]


class Position(NamedTuple):
    """Place of a step in its stage."""

    step: int
    """Steps before this one."""
    epoch: int
    batch: int
    """Steps before this one in the epoch."""
    progress: float
    """Share of the stage that is complete, in [0, 1)."""
    size: int
    """Crop side, see ``Schedule.sizes``."""
    generator: torch.Generator
    """Random numbers of this step and process, the same when the stage is resumed."""


class Result(NamedTuple):
    """Weights and log of a finished stage."""

    state: dict[str, Tensor]
    """State of ``parts`` on the CPU, averaged by the EMA: the best epoch's, or the last."""
    rows: list[dict[str, float]]
    """Log rows that this call wrote."""


Step = Callable[[Tensor, Position], Mapping[str, Tensor | float]]
Validate = Callable[[nn.Module, Position], Mapping[str, float]]


def fit(
    parts: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    step: Step,
    schedule: Schedule,
    rows: Tensor | None,
    out: Path | None,
    seed: int,
    *,
    validate: Validate | None = None,
    select: str | None = None,
    others: Mapping[str, Any] | None = None,
    save_every: float = 180.0,
    progress: bool = True,
) -> Result:
    """Train one stage to its end, from its saved state if there is one.

    Call it again after an interruption: the weights at the end are the same. Several processes
    share every batch; the first one validates and writes, and all return the same state.

    Args:
        parts: networks to train; the EMA, the best epoch and the result are theirs.
        optimizers: their learning rates follow the schedule. The learning rate at this call is
            the highest one; a parameter group may scale it by ``"lr_scale"``.
        step: updates the weights with a batch of ``rows``; returns losses for the log.
        rows: training examples along the last dimension, such as row numbers (N,) or pairs of
            data set and row (2, N); None if ``step`` samples its own.
        out: folder for ``state.pt`` and ``log.csv``; None to write nothing.
        seed: seed of the order and of every step's random numbers, torch's global ones included.
        validate: returns metrics of the averaged weights after an epoch.
        select: metric whose highest value selects the epoch among those at the last crop side;
            None for the last epoch.
        others: objects with ``state_dict`` and ``load_state_dict`` that a step changes too, by
            name, such as the second network of a GAN and its optimizer. They are saved; their
            learning rates are not scheduled.
        save_every: seconds between saved states.
        progress: show a progress bar, on a terminal or in a notebook.

    Raises:
        ValueError: if the rows are fewer than one batch, the schedule never reaches its last crop
            side, or a loss is not finite.
    """
    stage = _Stage(parts, optimizers, others or {}, schedule, rows, out, seed)
    stage.load()
    last_save = time.monotonic()
    with progress_bar(
        desc=out.name if out else "training",
        initial=stage.done,
        total=stage.total,
        mininterval=10,
        show=progress and stage.together.first,
    ) as bar:
        for batch, at in stage.batches():
            stage.add(step(batch, at))
            bar.update()
            if stage.is_row_complete():
                stage.end_row(at, validate, select)
                bar.set_postfix(stage.log[-1:] and stage.log[-1])
            if time.monotonic() - last_save > save_every or stage.done == stage.total:
                stage.save()
                last_save = time.monotonic()
    return stage.result()


class _Stage:
    """Everything that a stage changes, and the position that it has reached."""

    def __init__(
        self,
        parts: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        others: Mapping[str, Any],
        schedule: Schedule,
        rows: Tensor | None,
        out: Path | None,
        seed: int,
    ) -> None:
        from timm.utils.model_ema import ModelEmaV3

        if schedule.sizes and schedule.sizes[-1][0] >= schedule.epochs:
            raise ValueError(
                f"the last crop side of {schedule.sizes} never comes in {schedule.epochs} epochs"
            )
        self.parts, self.optimizers, self.others = parts, optimizers, others
        self.schedule, self.rows, self.out, self.seed = schedule, rows, out, seed
        self.together = Processes.present()
        self.ema = ModelEmaV3(parts) if schedule.average else None
        self.averaged: nn.Module = self.ema.module if self.ema else parts
        self.per_epoch = len(self._order(0))
        self.total = schedule.steps or schedule.epochs * self.per_epoch
        self.done = 0
        self.sums: dict[str, float] = {}
        self.best_score, self.best_state = -math.inf, dict[str, Tensor]()
        self.log: list[dict[str, float]] = []

    def _order(self, epoch: int) -> list[Tensor]:
        if self.rows is None:
            return [torch.empty(0)] * self.schedule.steps
        return batches(self.rows.shape[-1], self.schedule.batch_size, self.seed, epoch)

    def load(self) -> None:
        """Restore the saved state, if there is one."""
        saved = load_state(self.out / "state.pt") if self.out else None
        if saved is None:
            return
        self.parts.load_state_dict(saved["parts"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for name, part in self.others.items():
            part.load_state_dict(saved["others"][name])
        if self.ema:
            self.averaged.load_state_dict(saved["average"])
        self.done, self.sums = saved["done"], saved["sums"]
        self.best_score, self.best_state = saved["best_score"], saved["best_state"]

    def save(self) -> None:
        """Write the state, in the first process."""
        if self.out and self.together.first:
            save_state(
                self.out / "state.pt",
                parts=self.parts.state_dict(),
                optimizers=[optimizer.state_dict() for optimizer in self.optimizers],
                others={name: part.state_dict() for name, part in self.others.items()},
                average=self.averaged.state_dict() if self.ema else None,
                done=self.done,
                sums=self.sums,
                best_score=self.best_score,
                best_state=self.best_state,
            )

    def batches(self) -> Iterator[tuple[Tensor, Position]]:
        """Yield this process's share of every remaining batch; set learning rates and seeds."""
        order: list[Tensor] = []
        while self.done < self.total:
            epoch, batch = divmod(self.done, self.per_epoch)
            if batch == 0 or not order:
                order = self._order(epoch)
                self.parts.train()
            progress = self.done / self.total
            scheduled = self.schedule.share * progress
            set_lr(self.optimizers, self.schedule.lr_factor(scheduled, epoch))
            torch.manual_seed(generator(self.seed, epoch, batch, 1).initial_seed())
            chance = generator(self.seed, epoch, batch, *self.together.path)
            place = self.done, epoch, batch, progress, self.schedule.size(epoch), chance
            rows = order[batch]
            if self.rows is not None:
                rows = self.rows[..., self.together.share(rows)]
            yield rows, Position(*place)

    def add(self, losses: Mapping[str, Tensor | float]) -> None:
        """Count a step: update the EMA and the sums of the log."""
        for name, loss in losses.items():
            value = float(loss.detach() if isinstance(loss, Tensor) else loss)
            if not math.isfinite(value):
                raise ValueError(
                    f"{name} is {value} at step {self.done + 1} of {self.total}: the weights are "
                    "lost; start again in another folder with a lower learning rate"
                )
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.done += 1
        for part in (self.parts, *self.others.values()):
            if isinstance(part, nn.Module):
                self.together.same_buffers(part)
        if self.ema:
            # The decay warms up, so that the first weights do not dominate a short stage.
            self.ema.decay = min(self.schedule.average, (1 + self.done) / (10 + self.done))
            self.ema.update(self.parts)

    def is_row_complete(self) -> bool:
        """Return True after an epoch, or after ``LOG_EVERY`` steps where steps are counted."""
        every = LOG_EVERY if self.schedule.steps else self.per_epoch
        return self.done % every == 0 or self.done == self.total

    def end_row(self, at: Position, validate: Validate | None, select: str | None) -> None:
        """Log the mean losses, validate, and keep the state of the best epoch."""
        every = LOG_EVERY if self.schedule.steps else self.per_epoch
        steps = (self.done - 1) % every + 1
        row: dict[str, float] = {"step": self.done}
        if not self.schedule.steps:
            row = {"epoch": at.epoch + 1}
        if self.schedule.sizes:
            row["size"] = at.size
        row |= {name: value / steps for name, value in self.sums.items()}
        self.sums = {}
        if not self.together.first:
            return
        if validate:
            with torch.no_grad():
                row |= validate(self.averaged.eval(), at)
            self.parts.train()
        if self.out:
            log_row(self.out / "log.csv", row)
        self.log.append(row)
        is_last_size = at.size == self.schedule.size(self.schedule.epochs)
        if select and is_last_size and row[select] > self.best_score:
            self.best_score, self.best_state = row[select], _copy(self.averaged)

    def result(self) -> Result:
        """Return the state of the stage, which is the first process's in all of them."""
        state = self.best_state or _copy(self.averaged)
        return Result(*self.together.gather((state, self.log) if self.together.first else None)[0])


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
