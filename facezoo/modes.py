"""Training and eval mode of modules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """A module in eval mode for a while; what was in training mode is in it again afterwards.

    Only modules in training mode are touched, for walking through all of them costs time too.
    """
    in_training = _in_training(module)
    if in_training:
        module.eval()
    try:
        yield
    finally:
        for part in in_training:
            part.training = True


def _in_training(module: nn.Module) -> list[nn.Module]:
    """Parts in training mode. ``modules()`` is several times slower, a share of one small face."""
    found, left = [], [module]
    while left:
        part = left.pop()
        if part.training:
            found.append(part)
        left.extend(child for child in part._modules.values() if child is not None)
    return found
