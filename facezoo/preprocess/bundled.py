"""Face detectors; the default is loaded once per device or runtime."""

from __future__ import annotations

import os
from copy import deepcopy
from functools import cache

import torch

from facezoo.errors import UnsupportedError
from facezoo.hub.files import find
from facezoo.hub.names import resolve
from facezoo.hub.tensors import load_into, read_tensors
from facezoo.preprocess.detector import DETECTOR, FaceDetector
from facezoo.runtimes import Runtime, use_runtime


@cache
def load_detector(device: torch.device) -> FaceDetector:
    """Load the default face detector; all models on a device share it.

    Raises:
        WeightsError: if its weights cannot be found or trusted.
    """
    return read_detector(DETECTOR, device)


def read_detector(name: str | os.PathLike[str], device: torch.device) -> FaceDetector:
    """Read a face detector of the package, or one of your own.

    Args:
        name: its checkpoint, or a folder or ``.safetensors`` file with a card.
        device: where it runs.

    Returns:
        The detector, for ``facezoo.preprocess.detection.detect``.

    Raises:
        UnknownNameError: if no checkpoint, file or folder has this name.
        UnsupportedError: if the checkpoint is not a face detector.
        WeightsError: if its weights cannot be found or trusted.

    Examples:
        >>> from facezoo.preprocess.bundled import read_detector
        >>> detector = read_detector("face-detector.wild-ferplus", torch.device("cpu"))
        >>> detector.training
        False
    """
    source = resolve(name)
    card = source.card
    if card.model != DETECTOR:
        raise UnsupportedError(
            f"{card.name} is a checkpoint of {card.model}; expected one of {DETECTOR}"
        )
    # The state of the first caller's thread must not reach later ones.
    with torch.inference_mode(False), torch.device("cpu"):
        detector = FaceDetector(**card.architecture).float()
        load_into(detector, read_tensors(find(card, source.path)))
        detector.fold_norms()
        return detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@cache
def detector_in(runtime: Runtime) -> FaceDetector:
    """Return the bundled face detector in a runtime on the CPU."""
    detector = deepcopy(load_detector(torch.device("cpu")))
    use_runtime(detector, runtime, method="raw", free=(0, 2, 3), like=(1, 3, 256, 192))
    return detector
