"""Feature maps of a frozen network, for perceptual losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facezoo.hub.families import FAMILIES
from facezoo.models.base import FaceModel

ENCODER = "identity_encoder"
"""Name of the encoder of a model of the zoo whose timm backbone is used by default."""


class FeatureMaps(nn.Module):
    """Feature maps of some stages of a frozen network, for images in [-1, 1] of any size.

    Args:
        name: a checkpoint with an identity encoder, such as ``"ipd-fer"``, or a timm model, whose
            pretrained weights timm fetches.
        stages: indices of timm's feature maps.
        encoder: name of the encoder, for a checkpoint.

    Raises:
        RuntimeError: if timm has no model of that name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, stages: Sequence[int], encoder: str = ENCODER) -> None:
        super().__init__()
        self.stages = list(stages)
        self.backbone: Any
        self.backbone, *statistics = _backbone(name, encoder)
        for key, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(key, torch.tensor(values)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the maps of every stage, (B, C, H', W'), for images (B, 3, H, W)."""
        normalized = (images / 2 + 0.5 - self.mean) / self.std
        return self.backbone.forward_intermediates(
            normalized, indices=self.stages, stop_early=True, intermediates_only=True
        )


def _backbone(name: str, encoder: str) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """Return a network with the mean and deviation of its input colors, for values in [0, 1]."""
    if name.partition(".")[0] in FAMILIES:
        model = FaceModel.from_pretrained(name)
        return (
            model.get_submodule(f"{encoder}.backbone"),
            model.preprocessing.mean,
            model.preprocessing.std,
        )
    import timm

    network: Any = timm.create_model(name, pretrained=True)
    return network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
