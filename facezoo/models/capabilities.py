"""Capabilities of all models, and the base class that lists those of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import torch
from torch import nn

from facezoo.display import model_line, model_rows, table, titled
from facezoo.errors import MissingMethodError, UnsupportedError
from facezoo.hub.card import Card
from facezoo.hub.families import FAMILIES, model_class
from facezoo.models.pretrained import Pretrained

STAGES = {
    "encode_expression": "embed_expression",
    "encode_identity": "embed_identity",
    "encode_pose": "embed_pose",
    "encode_factors": "embed_factors",
    "predict_expression": "classify_features",
    "reconstruct": "reconstruct_crops",
    "neutralize": "neutralize_crops",
    "frontalize": "frontalize_crops",
}
"""Method on prepared crops behind a capability; ``classify_features`` takes expression features."""

CAPABILITIES = (
    *("encode", *STAGES, "predict_pose", "transfer_expression", "interpolate"),
    *("depth", "normals", "albedo"),
    *("relight", "rotate", "to_mesh", "invert", "synthesize", "sample", "edit", "mix_styles"),
)
"""Capabilities of all families; a model without one raises an error that names models with it."""


class Model(nn.Module, Pretrained):
    """Base of the models of images and of meshes."""

    model_name: ClassVar[str | None] = None
    provides: ClassVar[tuple[str, ...]] = ()
    """All methods of ``CAPABILITIES`` that the family has."""
    absent: Mapping[str, str] = {}
    """Capabilities of the family that this configuration lacks, with the reason."""
    keeps_detail: ClassVar[bool | None] = None
    """Default of ``detail`` in ``neutralize`` and ``transfer_expression``; None if they lack it."""
    architecture: dict[str, Any]
    labels: tuple[str, ...] = ()
    card: Card | None = None

    @property
    def device(self) -> torch.device:
        """Device of the parameters, which also prepares the inputs."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters."""
        return next(self.parameters()).dtype

    def capabilities(self) -> list[str]:
        """List the methods that this model supports."""
        return [name for name in self.provides if name not in self.absent]

    def reject(self, name: str) -> NoReturn:
        """Raise the error for a capability that this model lacks.

        Raises:
            UnsupportedError: always; it names models that have the capability.
        """
        raise UnsupportedError(explain_missing(self, name))

    def _weight(self) -> nn.Parameter:
        """Return the first parameter.

        Raises:
            ValueError: if it is on the meta device, which holds no numbers.
        """
        weight = next(self.parameters())
        if weight.is_meta:
            raise ValueError(
                f"the weights of this {self.model_name} are on the meta device; load them with "
                "facezoo.load(), or remove offloading by accelerate.hooks.remove_hook_from_module("
                "model, recurse=True)"
            )
        return weight

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in CAPABILITIES:
                raise MissingMethodError(explain_missing(self, name)) from None
            raise

    def __repr__(self) -> str:
        return f"{type(self).__name__}({model_line(self)})"

    def _repr_html_(self) -> str:
        return titled(self, table([], model_rows(self).items()))


def constructor_arguments(variables: Mapping[str, Any], leave_out: str = "") -> dict[str, Any]:
    """Return the arguments of a constructor from its first ``locals()``, for ``architecture``."""
    return {k: v for k, v in variables.items() if k not in ("self", "__class__", leave_out)}


def explain_missing(model: Any, name: str) -> str:
    """Explain why a model lacks a capability, and name models that have it."""
    if name in model.absent:
        return (
            f"this {model.model_name} does not support {name}(): {model.absent[name]}; load a "
            "checkpoint that has it (facezoo.info(NAME) shows the architecture)"
        )
    able = [family for family in FAMILIES if name in model_class(family).provides]
    return (
        f"{model.model_name} does not support {name}(); models that do: {', '.join(able) or 'none'}"
    )
