"""Prefetch in threads, bounded by memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")

PREFETCH_BYTES = 64 * 2**20
"""Limit on the results that wait for their turn, bytes."""
DECODERS = min(8, os.cpu_count() or 1)
"""Default number of threads that decode images."""


def prefetch(
    work: Callable[[Item], Value],
    items: Sequence[Item],
    *,
    workers: int = DECODERS,
    ahead: int,
    size: Callable[[Value], int],
    serial: Callable[[Item], bool] | None = None,
) -> Generator[Value, None, None]:
    """Yield ``work(item)`` in the order of the items, computed ahead of time in threads.

    Args:
        work: runs in a thread; its exception is raised here in the item's turn.
        items: inputs of ``work``.
        ahead: results that may be ready or in progress beyond the current one. Fewer are, if they
            would need more than ``PREFETCH_BYTES``.
        serial: whether an item must be worked on after all earlier serial items, such as a frame of
            a video. One additional thread works on these.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    line = ThreadPoolExecutor(1, thread_name_prefix="serial")
    waiting: deque[Future[Value]] = deque()
    room, largest = min(workers, ahead), 1
    try:
        for item in items:
            threads = line if serial is not None and serial(item) else pool
            waiting.append(threads.submit(work, item))
            while len(waiting) > room:
                result = waiting.popleft().result()
                largest = max(largest, size(result))
                room = min(ahead, max(workers, PREFETCH_BYTES // largest))
                yield result
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        line.shutdown(cancel_futures=True)
