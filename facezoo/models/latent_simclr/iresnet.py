"""Residual network of ArcFace in insightface's layout.

Source: Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", CVPR 2019,
Sec. 3.1. State dicts have insightface's names, so published recognizers load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IRESNET18 = (2, 2, 2, 2)
IRESNET34 = (3, 4, 6, 3)
IRESNET50 = (3, 4, 14, 3)
IRESNET100 = (3, 13, 30, 3)


class PReLU(nn.PReLU):
    """PReLU that is several times faster than PyTorch's on CPUs in channels_last."""

    def forward(self, features: Tensor) -> Tensor:
        """Apply the activation to features, (B, C, H, W)."""
        slopes = self.weight.to(features.dtype)[:, None, None]
        return torch.addcmul(F.relu(features), slopes, features.clamp(max=0))


class IResNetTrunk(nn.Module):
    """Trunk of four stages; each halves the resolution.

    Args:
        depths: residual blocks per stage.
        width: channels of the first stage; each stage doubles them.
    """

    def __init__(self, depths: Sequence[int] = IRESNET50, width: int = 64) -> None:
        super().__init__()
        self.widths = [width * 2**k for k in range(4)]
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.prelu = PReLU(width)
        before = [width, *self.widths]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            _stage(a, b, n) for a, b, n in zip(before, self.widths, depths, strict=False)
        )

    def stages(self, images: Tensor) -> list[Tensor]:
        """Compute the outputs of the four stages; gradients are kept.

        Args:
            images: RGB in [-1, 1], (B, 3, H, W).

        Returns:
            Output of stage s (from 1): (B, width 2^(s-1), H / 2^s, W / 2^s), rounded up.
        """
        features = self.prelu(self.bn1(self.conv1(images)))
        outputs = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = stage(features)
            outputs.append(features)
        return outputs


class IResNet(IResNetTrunk):
    """Face recognizer: the trunk with ArcFace's head; embeddings are compared by cosine.

    Args:
        depths: residual blocks per stage.
        width: channels of the first stage.
        num_features: embedding size D.
        size: image side, pixels.
    """

    def __init__(
        self,
        depths: Sequence[int] = IRESNET50,
        width: int = 64,
        num_features: int = 512,
        size: int = 112,
    ) -> None:
        super().__init__(depths, width)
        last = self.widths[-1]
        side = -(-size // 16)
        self.bn2 = nn.BatchNorm2d(last)
        self.fc = nn.Linear(last * side**2, num_features)
        self.features = nn.BatchNorm1d(num_features)
        self.features.weight.requires_grad_(False)  # fixed at 1 in training
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        """Compute embeddings before normalization; gradients are kept.

        Args:
            images: aligned RGB in [-1, 1], (B, 3, S, S).

        Returns:
            (B, D).

        Raises:
            ValueError: if the images have another size.
        """
        if tuple(images.shape[-2:]) != (self.size, self.size):
            raise ValueError(
                f"images must be (B, 3, {self.size}, {self.size}), got {tuple(images.shape)}; "
                "align or resize them, or call stages() for any size"
            )
        features = self.bn2(self.stages(images)[-1])
        return self.features(self.fc(features.flatten(1)))  # in the order C, H, W


class _Block(nn.Module):
    """Residual block with a normalized input and no activation after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        residual = self.prelu(self.bn2(self.conv1(self.bn1(features))))
        residual = self.bn3(self.conv2(residual))
        shortcut: Tensor = features if self.downsample is None else self.downsample(features)
        return residual + shortcut


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    others = [_Block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(_Block(inputs, outputs, 2), *others)
