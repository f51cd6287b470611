"""One round of training: epochs over examples, with exact resume and the best epoch kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from facezoo.models.ipd_fer.train.recipes import StageConfig
from facezoo.training.optim import WeightAverage, decayed_and_not, set_cosine_rate, set_rate
from facezoo.training.processes import Processes
from facezoo.training.state import batches, generator, load_state, log_row, save_state

Step = Callable[[Tensor, int, torch.Generator], Mapping[str, Tensor]]
Validate = Callable[[nn.Module, int], dict[str, float]]


def fit(
    parts: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    config: StageConfig,
    order_of: Callable[[int], list[Tensor]],
    step: Step,
    validate: Validate,
    select: str | None,
    out: Path,
    seed: int,
    save_every: int = 200,
) -> dict[str, Tensor]:
    """Run a round to its end, from its saved state if there is one.

    Args:
        parts: what is trained.
        optimizers: those that ``step`` moves; their rates are set before every step.
        config: the round's recipe.
        order_of: gives the batches of an epoch, each (data set, row), (2, B); all epochs have as
            many.
        step: updates the parts by a batch, given (data set, row) (2, B), crop side and generator;
            returns the losses by name.
        validate: metrics of the averaged weights after an epoch, at that epoch's crop side.
        select: the metric whose highest value picks one of the epochs at the last crop side; None
            keeps the last epoch.
        out: folder for ``state.pt`` and ``log.csv``.
        seed: of order and augmentation.
        save_every: steps between saved states.

    Returns:
        The kept averaged state of ``parts`` on the CPU.

    Raises:
        ValueError: if the last crop side is never reached.
    """
    if config.sizes[-1][0] >= config.epochs:
        raise ValueError(
            f"the last crop side of {config.sizes} never comes in {config.epochs} epochs"
        )
    together = Processes.present()
    average = WeightAverage(parts, config.average)
    position, best_score, kept = [0, 0], float("-inf"), dict[str, Tensor]()
    totals: dict[str, float] = {}
    if saved := load_state(out / "state.pt"):
        parts.load_state_dict(saved["parts"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        average.load_state_dict(saved["average"])
        position, totals = saved["position"], saved.get("totals", {})
        best_score, kept = saved["best"]["score"], saved["best"]["state"]

    def save(epoch: int, batch: int) -> None:
        together.same_buffers(parts)  # as all processes of a resumed run have them
        if not together.first:
            return
        save_state(
            out / "state.pt",
            parts=parts.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in optimizers],
            average=average.state_dict(),
            position=[epoch, batch],
            totals=totals,
            best={"score": best_score, "state": kept},
        )

    averaged = deepcopy(parts)
    for epoch in range(position[0], config.epochs):
        size = max((start, side) for start, side in config.sizes if start <= epoch)[1]
        order = order_of(epoch)
        steps = len(order)
        begin = position[1] if epoch == position[0] else 0
        parts.train()
        bar = tqdm(range(begin, steps), initial=begin, total=steps, mininterval=10)
        bar.set_description(f"{out.name} epoch {epoch + 1}/{config.epochs} at {size} px")
        for number in bar:
            _set_rates(
                optimizers, config, epoch, (epoch * steps + number) / (config.epochs * steps)
            )
            draw = generator(seed, epoch, number, *together.path)
            share = together.share(torch.arange(order[number].shape[1]))
            losses = step(order[number][:, share], size, draw)
            average.update(parts)
            for name, loss in losses.items():
                totals[name] = totals.get(name, 0.0) + float(loss)
            if (number + 1) % save_every == 0:
                save(epoch, number + 1)
                bar.set_postfix(loss=f"{totals['loss'] / (number + 1):.3f}")
        if together.first:
            averaged.load_state_dict(average.state)
            metrics = validate(averaged.eval(), size)
            means = {name: value / steps for name, value in totals.items()}
            log_row(out / "log.csv", {"epoch": epoch + 1, "size": size, **means, **metrics})
            tqdm.write(f"{out.name} epoch {epoch + 1}: loss {means.get('loss', 0):.4f}, {metrics}")
            score = metrics[select] if select else float(epoch)
            if score > best_score and size == config.sizes[-1][1]:
                best_score, kept = score, {k: v.clone() for k, v in average.state.items()}
        totals = {}
        save(epoch + 1, 0)
    together.wait()
    if not together.first:  # what the first process kept
        kept = (load_state(out / "state.pt") or {})["best"]["state"]
    return {key: value.cpu() for key, value in kept.items()}


def shuffled(index: Tensor, config: StageConfig, seed: int) -> Callable[[int], list[Tensor]]:
    """Give the batches of each epoch from examples (data set, row), (2, N), in random order."""
    count, size = index.shape[1], config.batch_size
    return lambda epoch: [index[:, rows] for rows in batches(count, size, seed, epoch)]


def adam(parts: nn.Module, config: StageConfig) -> torch.optim.AdamW:
    """The optimiser of a round: Adam, with decoupled weight decay where the recipe has one."""
    return torch.optim.AdamW(
        list(decayed_and_not(parts)), lr=config.rate, weight_decay=config.weight_decay, fused=True
    )


def _set_rates(
    optimizers: Sequence[torch.optim.Optimizer], config: StageConfig, epoch: int, progress: float
) -> None:
    for optimizer in optimizers:
        if config.schedule == "cosine":
            set_cosine_rate(optimizer, config.rate, config.cycles * progress % 1.0, config.warmup)
        else:
            set_rate(optimizer, config.rate * 0.1 ** (epoch // 10))
