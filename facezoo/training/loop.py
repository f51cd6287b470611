"""One stage of training: epochs over rows, with exact resume and a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from facezoo.training.optim import WeightAverage, descend, set_cosine_rate, set_rate
from facezoo.training.state import batches, generator, load_state, log_row, save_state


@dataclass(frozen=True)
class Schedule:
    """How long a stage goes on, and how fast."""

    epochs: int
    batch_size: int = 16
    rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = 0.02
    """Share of the stage, for the cosine."""
    average: float = 0.0
    """Decay of the moving average of the weights, which is what is kept; 0 keeps the weights."""


Losses = Callable[[Tensor, float, torch.Generator], Mapping[str, Tensor]]

LOG_EVERY = 100
"""Steps per row of the log, which holds their means."""


def fit(
    parts: nn.Module,
    schedule: Schedule,
    count: int,
    losses: Losses,
    out: Path,
    seed: int,
    save_every: float = 180.0,
) -> dict[str, Tensor]:
    """Run a stage to its end, from its saved state if there is one.

    Args:
        parts: what is trained.
        schedule: how long and how fast.
        count: N, rows to train on.
        losses: of row numbers (B,), given the share of the stage that is done and a generator of
            this step; ``"loss"`` is gone down, the others are logged.
        out: folder for ``state.pt`` and ``log.csv``.
        seed: of order and chance.
        save_every: seconds between saved states.

    Returns:
        The averaged state of ``parts`` on the CPU.

    Raises:
        ValueError: if there are too few rows for one batch.
    """
    optimizer = torch.optim.Adam(parts.parameters(), lr=schedule.rate)
    average = WeightAverage(parts, schedule.average)
    done, sums = 0, dict[str, float]()
    if saved := load_state(out / "state.pt"):
        parts.load_state_dict(saved["parts"])
        optimizer.load_state_dict(saved["optimizer"])
        average.load_state_dict(saved["average"])
        done, sums = saved["done"], saved["sums"]

    def save() -> None:
        save_state(
            out / "state.pt",
            parts=parts.state_dict(),
            optimizer=optimizer.state_dict(),
            average=average.state_dict(),
            done=done,
            sums=sums,
        )

    steps = len(batches(count, schedule.batch_size, seed, 0))
    total = steps * schedule.epochs
    bar = tqdm(initial=done, total=total, desc=out.name, mininterval=10)
    last = time.monotonic()
    parts.train()
    while done < total:
        epoch, number = divmod(done, steps)
        if number == 0 or done == bar.initial:
            order = batches(count, schedule.batch_size, seed, epoch)
        _set_rate(optimizer, schedule, done / total)
        values = losses(order[number], done / total, generator(seed, epoch, number))
        descend(optimizer, values["loss"])
        average.update(parts)
        done += 1
        bar.update()
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        if done % LOG_EVERY == 0 or done == total:
            since = (done - 1) % LOG_EVERY + 1
            means = {name: value / since for name, value in sums.items()}
            log_row(out / "log.csv", {"step": done, **means})
            bar.set_postfix(loss=f"{means['loss']:.3f}")
            sums = {}
        if time.monotonic() - last > save_every or done == total:
            save()
            last = time.monotonic()
    bar.close()
    return {key: value.cpu() for key, value in average.state.items()}


def _set_rate(optimizer: torch.optim.Optimizer, schedule: Schedule, progress: float) -> None:
    if schedule.schedule == "cosine":
        set_cosine_rate(optimizer, schedule.rate, progress, schedule.warmup)
    else:
        set_rate(optimizer, schedule.rate)
