"""A frozen network whose maps a loss compares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from facezoo.hub.families import FAMILIES
from facezoo.models.base import FaceModel

ENCODER = "identity_encoder.backbone"
"""Where a model of the zoo has the timm backbone of its identity encoder."""


class FeatureMaps(nn.Module):
    """Maps of some stages of a frozen network, of images in [-1, 1] at their own scale.

    Args:
        name: a checkpoint of the zoo that has an identity encoder, such as ``"ipd-fer"``, or else a
            timm model, whose pretrained weights timm fetches.
        stages: which of timm's feature maps, from 0.

    Raises:
        RuntimeError: if timm knows no model of that name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, stages: Sequence[int]) -> None:
        super().__init__()
        self.stages = list(stages)
        self.backbone: Any
        self.backbone, *statistics = _backbone(name)
        for key, values in zip(("mean", "std"), statistics, strict=True):
            self.register_buffer(key, torch.tensor(values)[:, None, None], persistent=False)
        self.eval().requires_grad_(False)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of every stage, (B, C, H', W'), of images (B, 3, H, W)."""
        normal = (images / 2 + 0.5 - self.mean) / self.std
        maps: list[Tensor] = self.backbone.forward_intermediates(
            normal, indices=self.stages, stop_early=True, intermediates_only=True
        )
        return maps


def _backbone(name: str) -> tuple[nn.Module, tuple[float, ...], tuple[float, ...]]:
    """A network, and mean and deviation of the colours that it wants, of values in [0, 1]."""
    if name.partition(".")[0] in FAMILIES:
        model = FaceModel.from_pretrained(name)
        return model.get_submodule(ENCODER), model.preprocessing.mean, model.preprocessing.std
    network: Any = timm.create_model(name, pretrained=True)
    return network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
