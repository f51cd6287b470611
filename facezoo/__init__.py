"""Disentangled face representations: expression without the person, the person without it.

Importing this imports nothing heavy; torch comes with the first model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from facezoo.version import __version__

if TYPE_CHECKING:
    from facezoo import errors, plot
    from facezoo.evaluate.benchmark import benchmark
    from facezoo.extraction import extract
    from facezoo.finetuning import finetune
    from facezoo.hub.card import Card
    from facezoo.models.base import FaceModel
    from facezoo.models.identity_removal import remove_identity
    from facezoo.models.latent_simclr.inverter import StyleGANInverter
    from facezoo.plot import show
    from facezoo.registry import download, info, list_models, load
    from facezoo.results import ExpressionPrediction, FaceEncoding, Faces

__all__ = [
    "Card",
    "ExpressionPrediction",
    "FaceEncoding",
    "FaceModel",
    "Faces",
    "StyleGANInverter",
    "__version__",
    "benchmark",
    "download",
    "errors",
    "extract",
    "finetune",
    "info",
    "list_models",
    "load",
    "plot",
    "remove_identity",
    "show",
]

_HOMES = {
    "Card": "facezoo.hub.card",
    "ExpressionPrediction": "facezoo.results",
    "FaceEncoding": "facezoo.results",
    "FaceModel": "facezoo.models.base",
    "Faces": "facezoo.results",
    "StyleGANInverter": "facezoo.models.latent_simclr.inverter",
    "benchmark": "facezoo.evaluate.benchmark",
    "download": "facezoo.registry",
    "extract": "facezoo.extraction",
    "finetune": "facezoo.finetuning",
    "info": "facezoo.registry",
    "list_models": "facezoo.registry",
    "load": "facezoo.registry",
    "show": "facezoo.plot",
    "remove_identity": "facezoo.models.identity_removal",
}
_MODULES = ("errors", "plot")


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for (PEP 562)."""
    if name in _MODULES:
        return import_module(f"facezoo.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'facezoo' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
