"""Processes."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Processes:
    """The processes that work together: in training, each on its share of every batch.

    They are what ``accelerate launch`` (or torchrun) starts; without it there is one.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def present(cls) -> Processes:
        """Those of this run.

        Raises:
            ImportError: if there are several and accelerate is not installed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        state = _partial_state()
        return cls(state.process_index, state.num_processes)

    @property
    def first(self) -> bool:
        """Whether this process is the one that validates and writes."""
        return self.rank == 0

    @property
    def path(self) -> tuple[int, ...]:
        """What tells this process's random numbers from the first one's."""
        return (self.rank,) if self.rank else ()

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch's row numbers.

        Raises:
            ValueError: if the batch cannot be shared evenly, which would weigh rows unevenly.
        """
        if len(batch) % self.count:
            raise ValueError(
                f"a batch of {len(batch)} cannot be shared by {self.count} processes; start a "
                "number of processes that divides it"
            )
        return batch[self.rank :: self.count]

    def wait(self) -> None:
        """Go on when every process is here."""
        if self.count > 1:
            _partial_state().wait_for_everyone()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process is through the block when the others enter it."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; each process gets them when all have come here."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def device(self) -> torch.device | None:
        """Where this process works; None, for the best there is, if it is alone."""
        if self.count == 1:
            return None
        device: torch.device = _partial_state().device
        return device

    def same_buffers(self, module: nn.Module) -> None:
        """Give every process the buffers of the first one, such as the statistics of norms."""
        if self.count > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def mean_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.count == 1:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.count


def _partial_state() -> Any:
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError(
            "several processes need accelerate: pip install 'facezoo[train]'"
        ) from error
    begun = torch.distributed.is_initialized()
    # One process may write for long while the others wait; the launcher ends those left behind.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
    if not begun and torch.distributed.is_initialized():
        atexit.register(_leave_group)
    return state


def _leave_group() -> None:
    """End what the processes speak by: its threads, outliving the interpreter, would abort it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
