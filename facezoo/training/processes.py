"""Processes that train together, as ``accelerate launch`` or torchrun start them."""

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

from facezoo.errors import explained_import


@dataclass(frozen=True)
class Processes:
    """This process and the number of all; without a launcher there is one."""

    rank: int = 0
    count: int = 1

    @classmethod
    def present(cls) -> Processes:
        """Return the processes of this run.

        Raises:
            ImportError: if there are several and accelerate is not installed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        state = _partial_state()
        return cls(state.process_index, state.num_processes)

    @property
    def first(self) -> bool:
        """True in the process that validates and writes."""
        return self.rank == 0

    @property
    def path(self) -> tuple[int, ...]:
        """End of the path of ``state.generator`` that gives each process its own numbers."""
        return (self.rank,) if self.rank else ()

    def share(self, batch: Tensor) -> Tensor:
        """Return this process's part of the row numbers of a batch.

        Raises:
            ValueError: if the parts cannot be equal.
        """
        if len(batch) % self.count:
            raise ValueError(
                f"a batch of {len(batch)} cannot be shared by {self.count} processes; start a "
                "number of processes that divides it"
            )
        return batch[self.rank :: self.count]

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            _partial_state().wait_for_everyone()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Let the first process finish the block before the others enter it."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def device(self) -> torch.device | None:
        """Return the device of this process; None, for the best device, if there is one process."""
        return _partial_state().device if self.count > 1 else None

    def same_buffers(self, module: nn.Module) -> None:
        """Copy the buffers of the first process, such as statistics of norms, to all."""
        if self.count > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def mean_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Average every gradient over the processes."""
        if self.count > 1:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for gradient in (p.grad for p in parameters if p.grad is not None):
                torch.distributed.all_reduce(gradient)
                gradient /= self.count


def _partial_state() -> Any:
    with explained_import("several processes need accelerate: pip install 'facezoo[train]'"):
        from accelerate import PartialState
    is_new = not torch.distributed.is_initialized()
    # The first process may write for long; the launcher ends processes that wait in vain.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
    if is_new and torch.distributed.is_initialized():
        atexit.register(_leave_group)
    return state


def _leave_group() -> None:
    """Destroy the process group, whose threads would abort the interpreter at its end."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
