"""Draw figures of results, and faces on images.

Names are imported on first use, so that drawing on images and videos needs no matplotlib.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facezoo.plot.annotation import annotate
    from facezoo.plot.figures import (
        MOST,
        Picture,
        bars,
        crops,
        embedding,
        faces,
        features,
        grid,
        parts,
        plane,
        scatter,
        show,
        timeline,
    )
    from facezoo.plot.video import save_video

__all__ = [
    "MOST",
    "Picture",
    "annotate",
    "bars",
    "crops",
    "embedding",
    "faces",
    "features",
    "grid",
    "parts",
    "plane",
    "save_video",
    "scatter",
    "show",
    "timeline",
]

_HOMES = {"annotate": "annotation", "save_video": "video"}
"""Modules of the names that are not in ``figures``."""


def __getattr__(name: str) -> Any:
    """Import ``name`` on first use (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module 'facezoo.plot' has no attribute {name!r}")
    home = _HOMES.get(name, "figures")
    return getattr(import_module(f"facezoo.plot.{home}"), name)
