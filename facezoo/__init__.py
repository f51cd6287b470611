"""Disentangled face representations: expression without the person, the person without it.

Importing this imports nothing heavy; torch comes with the first model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, overload

from facezoo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    import torch

    from facezoo import errors, plot
    from facezoo.comparison import cluster, similarity, verify
    from facezoo.evaluate.benchmark import benchmark
    from facezoo.extraction import extract
    from facezoo.extraction.frames import video
    from facezoo.faces import crops, detect
    from facezoo.finetuning import finetune
    from facezoo.hub.card import Card
    from facezoo.models.adv3d import Adv3D
    from facezoo.models.base import FaceModel
    from facezoo.models.identity_removal import remove_identity
    from facezoo.models.ipd_fer import IPDFER
    from facezoo.models.latent_simclr import LatentSimCLR
    from facezoo.models.latent_simclr.inverter import StyleGANInverter
    from facezoo.models.latentface import LatentFace
    from facezoo.plot import show
    from facezoo.preprocess.jpeg import JpegDecoder
    from facezoo.registration import register
    from facezoo.registry import download, info, list_models
    from facezoo.results import ExpressionPrediction, FaceEncoding, Faces
    from facezoo.runtimes import Runtime

    # One overload per family with its checkpoints: editors complete the methods of load("ipd-fer").
    @overload
    def load(name: Literal["adv3d", "adv3d.ict", "adv3d.ict-neutral"], **options: Any) -> Adv3D: ...
    @overload
    def load(name: Literal["ipd-fer", "ipd-fer.ferplus-lfw"], **options: Any) -> IPDFER: ...
    @overload
    def load(
        name: Literal["latent-simclr", "latent-simclr.wild-preview"], **options: Any
    ) -> LatentSimCLR: ...
    @overload
    def load(
        name: Literal["latentface", "latentface.lfw", "latentface.wild"], **options: Any
    ) -> LatentFace: ...
    @overload
    def load(
        name: str | PathLike[str],
        *,
        pretrained: bool = True,
        device: str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        compile: bool = False,
        jpeg: JpegDecoder = "pillow",
        runtime: Runtime = "torch",
        licenses: Sequence[str] | None = None,
        strict: bool = True,
        **overrides: Any,
    ) -> Any: ...
    def load(name: Any, **options: Any) -> Any:
        """Load a model that is ready to encode: in eval mode, on the best device."""


__all__ = [
    "Card",
    "ExpressionPrediction",
    "FaceEncoding",
    "FaceModel",
    "Faces",
    "StyleGANInverter",
    "__version__",
    "benchmark",
    "cluster",
    "crops",
    "detect",
    "download",
    "errors",
    "extract",
    "finetune",
    "info",
    "list_models",
    "load",
    "plot",
    "register",
    "remove_identity",
    "show",
    "similarity",
    "verify",
    "video",
]

_HOMES = {
    "Card": "facezoo.hub.card",
    "ExpressionPrediction": "facezoo.results",
    "FaceEncoding": "facezoo.results",
    "FaceModel": "facezoo.models.base",
    "Faces": "facezoo.results",
    "StyleGANInverter": "facezoo.models.latent_simclr.inverter",
    "benchmark": "facezoo.evaluate.benchmark",
    "cluster": "facezoo.comparison",
    "crops": "facezoo.faces",
    "detect": "facezoo.faces",
    "download": "facezoo.registry",
    "extract": "facezoo.extraction",
    "finetune": "facezoo.finetuning",
    "info": "facezoo.registry",
    "list_models": "facezoo.registry",
    "load": "facezoo.registry",
    "register": "facezoo.registration",
    "show": "facezoo.plot",
    "similarity": "facezoo.comparison",
    "verify": "facezoo.comparison",
    "video": "facezoo.extraction.frames",
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
