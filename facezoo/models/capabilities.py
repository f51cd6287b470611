"""Capabilities of the models of all families."""

from __future__ import annotations

from typing import Any

from facezoo.hub.families import FAMILIES, model_class

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
