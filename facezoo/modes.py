"""Training and eval mode of modules, and how exactly a GPU computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in eval mode, and exact, for a while; what was in training mode is in it afterwards.

    Only modules in training mode are touched; see ``_in_training`` for which are looked at. Where
    several threads use a module at once, the last to leave puts it back.
    """
    held = _hold(module)
    try:
        # Without CUDA no parameter can be on a GPU, and to ask one costs time.
        on_cuda = torch.cuda.is_initialized()
        with exact(first_parameter(module).device) if on_cuda else nullcontext():
            yield
    finally:
        if held:
            _release(module)


@dataclass
class _Held:
    """A module that is in eval mode for a while."""

    in_training: list[nn.Module]
    """Its parts that are to be in training mode afterwards."""
    users: int = 1


_HELD: WeakKeyDictionary[nn.Module, _Held] = WeakKeyDictionary()
_LOCK = Lock()


def _hold(module: nn.Module) -> bool:
    """Put a module into eval mode; whether that is to be undone."""
    with _LOCK:
        if _HELD and module in _HELD:
            _HELD[module].users += 1
            return True
        in_training = _in_training(module)
        if in_training:
            module.eval()
            _HELD[module] = _Held(in_training)
        return bool(in_training)


def _release(module: nn.Module) -> None:
    with _LOCK:
        _HELD[module].users -= 1
        if not _HELD[module].users:
            for part in _HELD.pop(module).in_training:
                part.training = True


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """float32 in full on an NVIDIA GPU, for a while: without TF32, which rounds to 10 bits.

    torch allows TF32 in convolutions unless told otherwise, and features would then depend on the
    GPU. Other devices have no such mode, and nothing is done. The settings are the process's own,
    and are as before when the last of all that are inside at once, in several threads, has left.
    """
    if device.type != "cuda":
        yield
        return
    with _LOCK:
        if not _EXACT.users:
            _EXACT.settings.enter_context(_without_tf32())
        _EXACT.users += 1
    try:
        yield
    finally:
        with _LOCK:
            _EXACT.users -= 1
            if not _EXACT.users:
                _EXACT.settings.close()


class _Exact:
    """How many are in ``exact`` at the moment, and the settings that are then put back."""

    def __init__(self) -> None:
        self.users = 0
        self.settings = ExitStack()


_EXACT = _Exact()


@contextmanager
def _without_tf32() -> Iterator[None]:
    try:
        convolutions, products = _allowed()
    except RuntimeError:  # torch's newer settings are in use, and the older cannot be read
        with _operators_exact():
            yield
        return
    try:
        _allow(False, "highest")
        yield
    finally:
        _allow(convolutions, products)


def _allowed() -> tuple[bool, str]:
    """Whether convolutions may use TF32, and how exact products are."""
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


def _allow(convolutions: bool, products: str) -> None:
    """Set what ``_allowed`` tells; what is so already is left alone."""
    if torch.backends.cudnn.allow_tf32 != convolutions:
        torch.backends.cudnn.allow_tf32 = convolutions
    if torch.get_float32_matmul_precision() != products:
        torch.set_float32_matmul_precision(products)


@contextmanager
def _operators_exact() -> Iterator[None]:
    backends: Any = torch.backends  # typed as if these settings were not there
    operators = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul)
    before = [operator.fp32_precision for operator in operators]
    try:
        for operator in operators:
            operator.fp32_precision = "ieee"
        yield
    finally:
        for operator, precision in zip(operators, before, strict=True):
            operator.fp32_precision = precision


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
