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
        size: side of the crops, pixels, for backbones that are built for one size.
    """

    def __init__(self, backbone: str = "resnet18", feature_dim: int = 512, size: int = 112) -> None:
        super().__init__()
        self.backbone = _backbone(backbone, size)
        # What comes out without a classifier; wider than num_features where a head has a layer.
        width: int = self.backbone.head_hidden_size  # type: ignore[assignment]
        self.projection = nn.Identity() if width == feature_dim else nn.Linear(width, feature_dim)
        self.norm = nn.BatchNorm1d(feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Features (B, D) of normalised crops (B, 3, H, W)."""
        pooled = self.projection(self.backbone(images))
        return self.norm(pooled.to(self.norm.weight.dtype))


def _backbone(name: str, size: int) -> nn.Module:
    """A timm model without its classifier; transformers are told the size of their input."""
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, img_size=size)
    except TypeError:  # convolutional networks take any size and no such argument
        return timm.create_model(name, pretrained=False, num_classes=0)
