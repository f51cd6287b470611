"""Eval mode and full float32 precision while a model encodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

_LOCK = Lock()
_USERS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Number of current users of each module that is in eval mode only for a while."""
_RESTORE: list[Callable[[], None]] = []
"""The function that restores the TF32 settings, once per current user of ``exact``."""


def evaluating(module: nn.Module) -> AbstractContextManager[None]:
    """Put a module into eval mode and compute exactly; restore its training mode afterwards.

    Several threads may use a module or parts of it: the last one to leave restores the mode. A part
    deep inside that alone is in training mode, as for Monte Carlo dropout, stays in it.
    """
    if _USERS or module.training or True in {child.training for child in module.children()}:
        return _restoring(module)
    return _exact_for(module)


def _exact_for(module: nn.Module) -> AbstractContextManager[None]:
    # Without CUDA no parameter is on a GPU, and looking for one costs time.
    on_cuda = torch.cuda.is_initialized()
    return exact(next(module.parameters()).device) if on_cuda else nullcontext()


@contextmanager
def _restoring(module: nn.Module) -> Iterator[None]:
    with _LOCK:
        parts = [part for part in module.modules() if part.training or part in _USERS]
        for part in parts:
            part.training = False
            _USERS[part] = _USERS.get(part, 0) + 1
    try:
        with _exact_for(module):
            yield
    finally:
        with _LOCK:
            for part in parts:
                _USERS[part] -= 1
                if not _USERS[part]:
                    del _USERS[part]
                    part.training = True


def exact(device: torch.device) -> AbstractContextManager[None]:
    """Compute float32 in full on an NVIDIA GPU, without TF32, which rounds to 10 bits.

    torch allows TF32 in convolutions by default, and features would then depend on the GPU. The
    settings are global to the process; the last of several threads to leave restores them.
    """
    return _without_tf32() if device.type == "cuda" else nullcontext()


@contextmanager
def _without_tf32() -> Iterator[None]:
    with _LOCK:
        _RESTORE.append(_RESTORE[0] if _RESTORE else _disable_tf32())
    try:
        yield
    finally:
        with _LOCK:
            restore = _RESTORE.pop()
            if not _RESTORE:
                restore()


def _disable_tf32() -> Callable[[], None]:
    """Switch TF32 off; return the function that restores the settings."""
    backends: Any = torch.backends
    try:
        convolutions = backends.cudnn.allow_tf32
        products = torch.get_float32_matmul_precision()
    except RuntimeError:  # the process uses torch's newer settings, and the older are not readable
        operators = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
        before = [operator.fp32_precision for operator in operators]

        def restore() -> None:
            for operator, precision in zip(operators, before, strict=True):
                operator.fp32_precision = precision

        for operator in operators:
            operator.fp32_precision = "ieee"
        return restore

    def set_both(allow: bool, precision: str) -> None:
        if backends.cudnn.allow_tf32 != allow:
            backends.cudnn.allow_tf32 = allow
        if torch.get_float32_matmul_precision() != precision:
            torch.set_float32_matmul_precision(precision)

    set_both(False, "highest")
    return lambda: set_both(convolutions, products)
