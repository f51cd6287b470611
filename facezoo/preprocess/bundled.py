"""The bundled face detector, loaded once per device or runtime."""

from __future__ import annotations

from copy import deepcopy
from functools import cache

import torch

from facezoo.hub.card import card_named
from facezoo.hub.files import find
from facezoo.hub.tensors import load_into, read_tensors
from facezoo.preprocess.detector import DETECTOR, FaceDetector
from facezoo.runtimes import Runtime, use_runtime


@cache
def load_detector(device: torch.device) -> FaceDetector:
    """Load the bundled face detector; all models on a device share it.

    Raises:
        WeightsError: if its weights cannot be found or trusted.
    """
    card = card_named(DETECTOR)
    # The state of the first caller's thread must not reach later ones.
    with torch.inference_mode(False), torch.device("cpu"):
        detector = FaceDetector(**card.architecture).float()
        load_into(detector, read_tensors(find(card)))
        detector.fold_norms()
        return detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


@cache
def detector_in(runtime: Runtime) -> FaceDetector:
    """Return the bundled face detector in a runtime on the CPU."""
    detector = deepcopy(load_detector(torch.device("cpu")))
    use_runtime(detector, runtime, method="raw", free=(0, 2, 3), like=(1, 3, 256, 192))
    return detector
