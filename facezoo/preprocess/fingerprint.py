"""Fingerprint of everything that decides which pixels a network sees."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

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
        "detection": _plain(detection or DetectionConfig()),
        "revision": REVISION,
        **({} if jpeg == "pillow" else {"jpeg": jpeg}),
    }
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()[:16]


def _plain(detection: DetectionConfig) -> dict[str, Any]:
    """Convert the settings to plain values, so that equal settings have one fingerprint.

    A setting may be an integer, a float or a scalar of numpy: 20, 20.0 and ``np.int64(20)`` find
    the same faces. So do rotations by 0 and 360 degrees.
    """
    values = asdict(detection)
    face, side = values["min_face"], float(values["max_side"])
    return {
        **values,
        "min_face": None if face is None else float(face),
        "score_threshold": float(values["score_threshold"]),
        "max_side": int(side) if side.is_integer() else side,
        "rotations": list(dict.fromkeys(int(degrees) % 360 for degrees in values["rotations"])),
    }
