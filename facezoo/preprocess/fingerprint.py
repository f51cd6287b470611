"""Fingerprint of everything that decides which pixels a network sees."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict

from facezoo.hub.card import Preprocessing, card_named
from facezoo.preprocess.detection import DetectionConfig
from facezoo.preprocess.detector import DETECTOR
from facezoo.preprocess.jpeg import JpegDecoder
from facezoo.preprocess.templates import template_points

REVISION = 1
"""Increase this whenever reading, detection or alignment change pixels by more than rounding."""


def fingerprint(
    preprocessing: Preprocessing,
    jpeg: JpegDecoder = "pillow",
    detection: DetectionConfig | None = None,
) -> str:
    """Hash everything that decides which pixels a network sees.

    Features are comparable only if they come from the same checkpoint and the same fingerprint.

    Args:
        preprocessing: template, size and normalization.
        jpeg: decoder of JPEG files.
        detection: settings of the detector; None for the default.

    Returns:
        16 hexadecimal digits of a SHA-256 over the settings, the template's points, the detector's
        weights and thresholds, and the revision of this code.
    """
    everything = {
        "preprocessing": asdict(preprocessing),
        "template": template_points(preprocessing.template, preprocessing.size).tolist(),
        "detector": card_named(DETECTOR).weights.sha256,
        "detection": asdict(detection or DetectionConfig()),
        "revision": REVISION,
        **({} if jpeg == "pillow" else {"jpeg": jpeg}),
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]
