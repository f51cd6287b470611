"""Memory of the process."""

from __future__ import annotations

import ctypes
import sys


def return_unused() -> None:
    """Return freed memory to the system; the allocator of Linux (glibc) keeps it otherwise."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
