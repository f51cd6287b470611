"""Training and eval mode of modules, and how exactly a GPU computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in eval mode, and exact, for a while; what was in training mode is in it afterwards.

    Only modules in training mode are touched; see ``_in_training`` for which are looked at. Where
    several threads use a module or parts of it at once, the last to leave puts these back.
    """
    held = _hold(module)
    try:
        # Without CUDA no parameter can be on a GPU, and to ask one costs time.
        on_cuda = torch.cuda.is_initialized()
        with exact(first_parameter(module).device) if on_cuda else nullcontext():
            yield
    finally:
        if held:
            _release(held)


_HELD: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Modules that are in eval mode for a while, and how many users each has."""
_LOCK = Lock()


def _hold(module: nn.Module) -> list[nn.Module]:
    """Put a module into eval mode; the parts that are to be in training mode afterwards."""
    with _LOCK:
        held = _in_training(module)
        if held:
            module.eval()
        if _HELD:  # by others, who may have the whole or a part of it
            held += [part for part in module.modules() if part in _HELD]
        for part in held:
            _HELD[part] = _HELD.get(part, 0) + 1
        return held


def _release(held: list[nn.Module]) -> None:
    with _LOCK:
        for part in held:
            _HELD[part] -= 1
            if not _HELD[part]:
                del _HELD[part]
                part.training = True


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """float32 in full on an NVIDIA GPU, for a while: without TF32, which rounds to 10 bits.

    torch allows TF32 in convolutions unless told otherwise, and features would then depend on the
    GPU. Other devices have no such mode, and nothing is done. The settings are the process's own,
    and are as before when the last of several threads leaves.
    """
    if device.type != "cuda":
        yield
        return
    with _LOCK:
        _UNDO.append(_UNDO[0] if _UNDO else _be_exact())
    try:
        yield
    finally:
        with _LOCK:
            undo = _UNDO.pop()
            if not _UNDO:
                undo()


_UNDO: list[Callable[[], None]] = []
"""What puts the settings back, as often as there are users of ``exact``."""


def _be_exact() -> Callable[[], None]:
    """Switch TF32 off; what puts the settings back."""
    try:
        before = _allowed()
    except RuntimeError:  # torch's newer settings are in use, and the older cannot be read
        return _operators_exact()
    _allow(False, "highest")
    return partial(_allow, *before)


def _allowed() -> tuple[bool, str]:
    """Whether convolutions may use TF32, and how exact products are."""
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


def _allow(convolutions: bool, products: str) -> None:
    """Set what ``_allowed`` tells; what is so already is left alone."""
    if torch.backends.cudnn.allow_tf32 != convolutions:
        torch.backends.cudnn.allow_tf32 = convolutions
    if torch.get_float32_matmul_precision() != products:
        torch.set_float32_matmul_precision(products)


def _operators_exact() -> Callable[[], None]:
    backends: Any = torch.backends  # typed as if these settings were not there
    operators = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    before = [operator.fp32_precision for operator in operators]

    def undo() -> None:
        for operator, precision in zip(operators, before, strict=True):
            operator.fp32_precision = precision

    for operator in operators:
        operator.fp32_precision = "ieee"
    return undo


def first_parameter(module: nn.Module) -> nn.Parameter:
    """What ``next(module.parameters())`` gives, without its bookkeeping.

    That would be a hundredth of the time of one small face, every time.

    Raises:
        StopIteration: if there is none, as ``next`` does.
    """
    if (found := _first(module)) is None:
        raise StopIteration(f"{type(module).__name__} has no parameters")
    return found


def _first(module: nn.Module) -> nn.Parameter | None:
    for parameter in module._parameters.values():
        if parameter is not None:
            return parameter
    found = (_first(child) for child in module._modules.values() if child is not None)
    return next((parameter for parameter in found if parameter is not None), None)


def _in_training(module: nn.Module) -> list[nn.Module]:
    """Parts in training mode; none if the module and its children are not.

    To walk through all parts every time would be a twentieth of the time of one small face. A part
    deep inside that alone was put into training mode, as for Monte Carlo dropout, stays in it.
    """
    if not (module.training or any(child.training for child in module.children())):
        return []
    return [part for part in module.modules() if part.training]
