"""Progress bars of the package: on a terminal or in a notebook, and nowhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.asyncio import tqdm_asyncio
from tqdm.auto import tqdm


def progress_bar(
    iterable: Iterable[Any] | None = None, *, show: bool = True, **options: Any
) -> Any:
    """Create a progress bar that writes nothing into log files and pipes.

    Args:
        iterable: iterate over it through the bar; None to call ``update`` on the bar.
        show: False for no bar.
        **options: options of ``tqdm``, such as ``total`` and ``unit``.

    Returns:
        A bar of ``tqdm``. Its environment variables, such as ``TQDM_DISABLE``, are in force.
    """
    in_notebook = tqdm is not tqdm_asyncio
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    if not (show and (in_notebook or on_terminal)):
        options["disable"] = True
    return tqdm(iterable, **options)
