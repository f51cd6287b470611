"""Every error that facezoo raises on purpose, apart from plain ``ValueError`` and ``TypeError``.

Each one derives from the built-in exception that a caller would catch without knowing this module.
"""

from __future__ import annotations

from collections.abc import Sequence


class ImageError(ValueError):
    """An input could not be read as a photograph; the message names it."""


class NoFaceError(ValueError):
    """No face was found where one was wanted.

    Attributes:
        missing: indices of the inputs in which no face was found.
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
