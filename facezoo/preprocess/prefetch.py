"""Work that threads do ahead of the one who wants the results."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD_BYTES = 256 * 2**20
"""Results that may wait, together."""
DECODERS = min(8, os.cpu_count() or 1)
"""Threads that decode photographs where the caller does not say how many."""


def work_ahead(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int,
    ahead: int,
    size: Callable[[Result], int],
    in_turn: Callable[[Item], bool] | None = None,
) -> Generator[Result, None, None]:
    """Results of ``work`` in the order of the items, computed in threads ahead of time.

    Args:
        work: called in a thread with each item; what it raises is raised here, in its turn.
        items: what there is to work on.
        workers: threads.
        ahead: how many results may be ready, or on their way, beyond the one that is handed out;
            fewer where they are so large that they would need more than ``AHEAD_BYTES``.
        size: bytes that a result holds.
        in_turn: whether an item must wait for the ones before it that must, too, such as frames
            of a video; a thread beside the others works on these. None where no item must.

    Yields:
        One result per item.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    line = ThreadPoolExecutor(1, thread_name_prefix="in-turn")
    waiting: deque[Future[Result]] = deque()
    room, largest = min(workers, ahead), 1
    try:
        for item in items:
            threads = line if in_turn is not None and in_turn(item) else pool
            waiting.append(threads.submit(work, item))
            while len(waiting) > room:
                result = waiting.popleft().result()
                largest = max(largest, size(result))
                room = min(ahead, max(workers, AHEAD_BYTES // largest))
                yield result
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        line.shutdown(cancel_futures=True)
