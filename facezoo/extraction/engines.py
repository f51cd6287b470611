"""Who does the work: this process, several of one start, or the actors of a Ray cluster.

An engine goes through photographs in their order and yields blocks, one per plan, also in that
order, so that what is done is always the first so many of the photographs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from facezoo.extraction.resume import Block, join
from facezoo.extraction.sources import Loaded, group, load_ahead
from facezoo.extraction.stages import Clock, Plan, work
from facezoo.preprocess.jpeg import check_decoder
from facezoo.training.processes import Processes

Blocks = Generator[list[Block], None, None]


@dataclass(frozen=True)
class Task:
    """What is asked of an engine."""

    plans: Sequence[Plan]
    root: Path
    """What the names are relative to."""
    batch_size: int
    workers: int
    """Threads that decode, in every process."""
    stretch: int
    """Photographs that a process takes at a time, where there are several."""


def alone(task: Task, names: Sequence[str], clock: Clock) -> Blocks:
    """In this process: the blocks of a batch at a time."""
    model = task.plans[0].model
    check_decoder(model.jpeg, model.device)
    ahead = 2 * task.batch_size
    loaded = load_ahead(task.root, names, workers=task.workers, ahead=ahead, jpeg=model.jpeg)
    try:
        for batch in group(_timed(loaded, clock), task.batch_size):
            yield work(batch, task.plans, clock, task.batch_size)
    finally:
        loaded.close()


def whole(task: Task, names: Sequence[str], clock: Clock) -> list[Block]:
    """In this process: one block per plan of all the names; none of no name."""
    batches = list(alone(task, names, clock))
    return [join(blocks) for blocks in zip(*batches, strict=True)]


def shared(task: Task, names: Sequence[str], clock: Clock, together: Processes) -> Blocks:
    """In the processes that ``accelerate launch`` started, each on a stretch of its own."""
    for first in range(0, len(names), task.stretch * together.count):
        begin = first + together.rank * task.stretch
        mine = whole(task, names[begin : begin + task.stretch], clock)
        yield from filter(None, together.gather(mine))


def _timed(loaded: Iterator[Loaded], clock: Clock) -> Iterator[Loaded]:
    """The same photographs, their decoding and the waiting for it counted."""
    while True:
        with clock.stage("wait"):
            photo = next(loaded, None)
        if photo is None:
            return
        clock.seconds["decode"] += photo.seconds
        yield photo
