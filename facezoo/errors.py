"""Errors of facezoo, apart from plain ``ValueError`` and ``TypeError``, and its warnings.

Each error derives from the built-in exception that a caller would catch without knowing it.

Examples:
    >>> try:
    ...     facezoo.load("resnet")
    ... except facezoo.errors.UnknownNameError as error:
    ...     print(type(error).__name__)
    UnknownNameError
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager


class ImageError(ValueError):
    """An input could not be read as an image; the message names it."""


class NoFaceError(ValueError):
    """No face was found in an image.

    Attributes:
        missing: indices of all inputs without a face, in their order.
    """

    def __init__(self, message: str, missing: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.missing = list(missing)


class UnknownNameError(ValueError):
    """A model, checkpoint or template name that does not exist; the message lists near matches."""


class CardError(ValueError):
    """A checkpoint card is malformed; the message names the field."""


class LicenseError(PermissionError):
    """The licenses of a checkpoint are not among those that the caller allows."""


class UnsupportedError(TypeError):
    """A model does not support a method; the message names models that do."""


class MissingMethodError(UnsupportedError, AttributeError):
    """A model has no method of this name, which other models have."""


class WeightsError(OSError):
    """Weights could not be found, downloaded, verified or loaded into a model."""


class WeightsNotFoundError(WeightsError):
    """Neither the package nor the cache nor the Hub holds the weights."""


class HubUnreachableError(WeightsNotFoundError):
    """The weights are only on the Hub, and the Hub does not answer."""


class HubOfflineError(WeightsNotFoundError):
    """The weights are only on the Hub, and HF_HUB_OFFLINE is set."""


class WeightsCorruptedError(WeightsError):
    """A weights file is truncated or altered: its SHA-256 differs from the one in the card."""


class WeightsMismatchError(WeightsError):
    """Tensors in a file do not fit the model; the message names each of them."""


class PickleRefusedError(WeightsError):
    """A pickled file was given where only safetensors are loaded."""


_WARNED: set[str] = set()
"""Messages of the warnings of this process so far."""


@contextmanager
def explained_import(message: str) -> Iterator[None]:
    """Replace the message of a failed import, with the command that installs the package."""
    try:
        yield
    except ImportError as error:
        raise ImportError(message) from error


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Describe how two sets of settings differ, for an error; empty if they are equal."""
    differ = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in differ)


def warn_once(message: str, stacklevel: int = 1) -> None:
    """Warn, unless this process has issued the same warning already.

    Args:
        message: the text of the warning.
        stacklevel: as in ``warnings.warn``, counted from the caller.
    """
    if message not in _WARNED:
        warnings.warn(message, stacklevel=stacklevel + 1)
        _WARNED.add(message)
