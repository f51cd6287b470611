"""What facezoo raises on purpose, apart from plain ``ValueError`` and ``TypeError``; how it warns.

Each error derives from the built-in exception that a caller would catch without knowing it.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence


class ImageError(ValueError):
    """An input could not be read as a photograph; the message names it."""


class NoFaceError(ValueError):
    """No face was found where one was wanted.

    Attributes:
        missing: indices of all inputs in which no face was found, in their order.
    """

    def __init__(self, message: str, missing: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.missing = list(missing)


class UnknownNameError(ValueError):
    """A model, checkpoint or template name that does not exist; the message lists near matches."""


class CardError(ValueError):
    """A checkpoint card is malformed; the message names the field."""


class LicenseError(PermissionError):
    """A checkpoint's licences are not among those that the caller allows."""


class UnsupportedError(TypeError):
    """A model was asked for something that it cannot do; the message names models that can."""


class WeightsError(OSError):
    """Weights could not be found, fetched, trusted or fitted to a model."""


class WeightsNotFoundError(WeightsError):
    """No place holds the weights: not the package, not the cache, not the Hub."""


class HubUnreachableError(WeightsNotFoundError):
    """The weights are only on the Hub, and the Hub did not answer."""


class HubOfflineError(WeightsNotFoundError):
    """The weights are only on the Hub, and HF_HUB_OFFLINE forbids asking it."""


class WeightsCorruptedError(WeightsError):
    """A weights file is truncated or altered: its SHA-256 is not the one in the card."""


class WeightsMismatchError(WeightsError):
    """Tensors in a file do not fit the model; the message names each of them."""


class PickleRefusedError(WeightsError):
    """A pickled file was offered where only safetensors are loaded."""


_TOLD: set[str] = set()
"""What this process was warned of already."""


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """What two sets of settings differ in, for an error; empty if in nothing."""
    differ = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return "; ".join(f"{key} was {before.get(key)!r} and is now {now.get(key)!r}" for key in differ)


def warn_once(message: str, stacklevel: int = 1) -> None:
    """Warn, unless the same was said before, so that a loop or a cell run again is not flooded.

    Args:
        message: what is said.
        stacklevel: as that of ``warnings.warn``, counted from the caller.
    """
    if message not in _TOLD:
        warnings.warn(message, stacklevel=stacklevel + 1)
        _TOLD.add(message)
