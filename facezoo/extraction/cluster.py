"""Extraction on a Ray cluster: Ray Data's ``map_batches`` with actors that keep their models."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from facezoo.extraction.engines import Blocks, Task, whole
from facezoo.extraction.stages import Clock
from facezoo.registry import best_device


def on_ray(
    task: Task, names: Sequence[str], clock: Clock, device: str | torch.device | None
) -> Blocks:
    """In actors, one per GPU of the cluster or, without GPUs or for a CPU, one per CPU.

    Ray is started on this machine if it is not running. Every machine reads the photographs by
    their paths itself; the rows come back here.

    Args:
        task: its models may be on any device.
        names: photographs.
        clock: to which the actors' times are added.
        device: where actors work; None for the best that each has.

    Raises:
        ImportError: if Ray is missing.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            f"engine='ray' needs Ray Data ({error}): pip install 'facezoo[ray]'"
        ) from error
    if not ray.is_initialized():
        ray.init()
    resources = ray.cluster_resources()
    on_gpus = resources.get("GPU", 0) >= 1 and torch.device(device or "cuda").type == "cuda"
    stretches = [
        names[begin : begin + task.stretch] for begin in range(0, len(names), task.stretch)
    ]
    if not stretches:
        return
    count = int(resources.get("GPU" if on_gpus else "CPU", 1))
    dataset = ray.data.from_items(
        # Pickled, since a path need not be valid Unicode.
        [{"names": pickle.dumps(list(stretch))} for stretch in stretches],
        override_num_blocks=len(stretches),
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    done = dataset.map_batches(
        _Actor,
        batch_size=1,
        fn_constructor_args=(ray.put(_portable(task)), "cuda" if on_gpus else device),
        compute=ray.data.ActorPoolStrategy(size=max(1, min(count, len(stretches)))),
        num_gpus=1 if on_gpus else None,
        num_cpus=None if on_gpus else 1,
    )
    for row in done.iter_rows():
        blocks, seconds = pickle.loads(row["done"])
        for stage, time in seconds.items():
            clock.seconds[stage] += time
        yield blocks


def _portable(task: Task) -> Task:
    """A task that any machine can open: models on the CPU, the root from the file system's own."""
    plans = [replace(plan, model=deepcopy(plan.model).to("cpu")) for plan in task.plans]
    return replace(task, plans=plans, root=task.root.absolute())


class _Actor:
    """A process that keeps its models, and makes blocks of the stretches that it is given."""

    def __init__(self, task: Any, device: str | torch.device | None) -> None:
        import ray

        given: Task = ray.get(task)
        target = best_device(device)
        models = [plan.model.to(target) for plan in given.plans]
        plans = [replace(p, model=m) for p, m in zip(given.plans, models, strict=True)]
        self._task = replace(given, plans=plans)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        done = []
        for names in batch["names"]:
            clock = Clock(exact=False)
            blocks = whole(self._task, pickle.loads(names), clock)
            done.append(pickle.dumps((blocks, clock.seconds)))
        return {"done": done}
