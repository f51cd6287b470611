"""The networks of IPD-FER (Sec. 3.1, Sec. 4.2): today the encoders."""

from __future__ import annotations

import timm
from torch import Tensor, nn


class Encoder(nn.Module):
    """An aligned face crop to one feature vector: E_id and E_exp of Fig. 2.

    The paper's encoders are ResNet-18s with 512-d outputs; any timm backbone serves. The batch
    norm behind the pooled feature, as in ArcFace, centres it, so that cosines use their full range.

    Args:
        backbone: name of a timm model.
        feature_dim: D; a linear map is added where the backbone's own width differs.
    """

    def __init__(self, backbone: str = "resnet18", feature_dim: int = 512) -> None:
        super().__init__()
        self.backbone = timm.create_model(backbone, pretrained=False, num_classes=0)
        width: int = self.backbone.num_features  # type: ignore[assignment]
        self.projection = nn.Identity() if width == feature_dim else nn.Linear(width, feature_dim)
        self.norm = nn.BatchNorm1d(feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of normalised crops (B, 3, H, W)."""
        pooled = self.projection(self.backbone(images))
        return self.norm(pooled.to(self.norm.weight.dtype))
