"""Distribute the work: this process, the processes of ``accelerate launch``, or a Ray cluster.

An engine yields blocks in the order of the images, so the finished images always come first.
"""

from __future__ import annotations

import pickle
from collections.abc import Generator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from facezoo.extraction.resume import Block, join
from facezoo.extraction.stages import Clock, Task, process
from facezoo.registry import best_device
from facezoo.training.processes import Processes


def with_processes(
    task: Task, names: Sequence[str], clock: Clock, together: Processes
) -> Generator[Block, None, None]:
    """Share the images among the processes of ``accelerate launch``, a chunk for each at a time."""
    for first in range(0, len(names), task.chunk * together.count):
        start = first + together.rank * task.chunk
        own = list(process(task, names[start : start + task.chunk], clock))
        yield from filter(None, together.gather(join(own) if own else None))


def with_ray(
    task: Task, names: Sequence[str], clock: Clock, device: str | torch.device | None
) -> Generator[Block, None, None]:
    """Share the images among Ray actors, one per GPU of the cluster or else one per CPU.

    Ray is started on this machine if it is not running. Every machine reads the images by their
    paths, and the rows come back to this process.

    Args:
        task: work to share; its models may be on any device.
        device: device of the actors; None for the best that each has.

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
    if not names:
        return
    if not ray.is_initialized():
        ray.init()
    resources = ray.cluster_resources()
    on_gpus = resources.get("GPU", 0) >= 1 and torch.device(device or "cuda").type == "cuda"
    count = int(resources.get("GPU" if on_gpus else "CPU", 1))
    chunks = [names[start : start + task.chunk] for start in range(0, len(names), task.chunk)]
    dataset = ray.data.from_items(
        # Pickled, since a path can be invalid Unicode.
        [{"names": pickle.dumps(list(chunk))} for chunk in chunks],
        override_num_blocks=len(chunks),
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    # Any machine can open models on the CPU and an absolute path.
    plans = [replace(plan, model=deepcopy(plan.model).to("cpu")) for plan in task.plans]
    portable = ray.put(replace(task, plans=plans, root=task.root.absolute()))
    results = dataset.map_batches(
        _Actor,
        batch_size=1,
        fn_constructor_args=(portable, "cuda" if on_gpus else device),
        compute=ray.data.ActorPoolStrategy(size=max(1, min(count, len(chunks)))),
        num_gpus=1 if on_gpus else None,
        num_cpus=None if on_gpus else 1,
    )
    for row in results.iter_rows():
        block, seconds = pickle.loads(row["results"])
        for stage, time in seconds.items():
            clock.seconds[stage] += time
        yield block


class _Actor:
    """Process that loads the models once and turns chunks of names into blocks."""

    def __init__(self, portable: Any, device: str | torch.device | None) -> None:
        import ray

        task: Task = ray.get(portable)
        target = best_device(device)
        plans = [replace(plan, model=plan.model.to(target)) for plan in task.plans]
        self._task = replace(task, plans=plans)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        results = []
        for names in batch["names"]:
            clock = Clock()
            block = join(list(process(self._task, pickle.loads(names), clock)))
            results.append(pickle.dumps((block, clock.seconds)))
        return {"results": results}
