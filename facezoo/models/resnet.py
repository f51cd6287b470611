"""Small ResNets with timm's tensor names; they load without timm, which takes seconds to import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facezoo.folding import convolve, fuse, fused

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet10t": (1, 1, 1, 1)}
"""Blocks per stage of the networks that this module builds."""
WIDTHS = (64, 128, 256, 512)
EARLY, IMAGES_PER_THREAD = 3, 8
"""While encoding, the stem and the stages 1 and 2, whose maps are the largest, take 8 images per
thread at once."""
Step = Callable[..., Tensor]


class ResNet(nn.Module):
    """ResNet-18 or ResNet-10-T without a classifier, equal to timm's model of that name.

    Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. ResNet-10-T has
    the deep stem and the pooled shortcuts of He et al., "Bag of Tricks", CVPR 2019, Fig. 2.

    Args:
        name: key of ``DEPTHS``.
    """

    num_features = head_hidden_size = WIDTHS[-1]
    frees_weights = False
    """Free the weight of a convolution once it is fused, so that it is in memory only once. The
    network can only encode on a CPU then."""

    def __init__(self, name: str) -> None:
        super().__init__()
        tiered = name == "resnet10t"
        self.conv1 = _deep_stem() if tiered else nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inward = 64
        for number, (width, depth) in enumerate(zip(WIDTHS, DEPTHS[name], strict=True), 1):
            stride = 1 if number == 1 else 2
            blocks = [_Block(inward, width, stride, tiered)]
            blocks += [_Block(width, width, 1, tiered) for _ in range(1, depth)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            inward = width
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        for part in self.modules():
            if isinstance(part, _Block):
                nn.init.zeros_(part.bn2.weight)

    def forward_intermediates(
        self,
        images: Tensor,
        indices: Sequence[int] = range(5),
        stop_early: bool = True,
        intermediates_only: bool = True,
    ) -> list[Tensor]:
        """Compute the maps of the stem (0) and of stages (1 to 4), by timm's name."""
        if not (stop_early and intermediates_only):
            raise ValueError("this ResNet returns the intermediate maps only; leave the flags out")
        run = fused(self, images, self._fused)
        if run is not None:
            return run(images, indices)
        x, maps = images, []
        for index, stage in enumerate([self._stem, *self._layers()][: max(indices) + 1]):
            x = stage(self.maxpool(x) if index == 1 else x)
            if index in indices:
                maps.append(x)
        return maps

    def _stem(self, images: Tensor) -> Tensor:
        return convolve(images, self.conv1, self.bn1)

    def _layers(self) -> list[Any]:
        return [self.get_submodule(f"layer{number}") for number in range(1, 5)]

    def _fused(self) -> Callable[[Tensor, Sequence[int]], list[Tensor]]:
        """Return the computation of ``forward_intermediates`` with fused convolutions."""
        *before, last = self.conv1 if isinstance(self.conv1, nn.Sequential) else [self.conv1]
        free, layers = self.frees_weights, self._layers()
        # The last weights are the largest. They come first, so that the others fit into the memory
        # that these freed.
        blocks = [block for layer in layers for block in layer]
        steps = {block: block.fused(free) for block in reversed(blocks)}
        stages = [[steps[block] for block in layer] for layer in layers]
        stem, pool = [*before, fuse(last, self.bn1, free=free)], self.maxpool

        def advance(x: Tensor, begin: int, end: int) -> Tensor:
            """Apply the stages from ``begin`` to before ``end``; stage 0 is the stem."""
            for index in range(begin, end):
                if index == 0:
                    for step in stem:
                        x = step(x)
                    continue
                x = pool(x) if index == 1 else x
                for conv1, conv2, downsample in stages[index - 1]:
                    shortcut = x
                    for step in downsample:
                        shortcut = step(shortcut)
                    x = conv2(conv1(x), shortcut)
            return x

        def run(images: Tensor, indices: Sequence[int]) -> list[Tensor]:
            x, maps = images.contiguous(memory_format=torch.channels_last), []
            done = min(EARLY, *indices)
            parts = x.split(IMAGES_PER_THREAD * torch.get_num_threads()) if done else [x]
            if len(parts) > 1:
                x = torch.cat([advance(part, 0, done) for part in parts])
            else:
                done = 0
            for index in sorted({*indices}):
                x, done = advance(x, done, index + 1), index + 1
                maps.append(x)
            return maps

        return run

    def forward(self, images: Tensor) -> Tensor:
        """Compute the pooled features (B, 512) of images (B, 3, H, W)."""
        return self.forward_intermediates(images, [4])[0].mean((2, 3))

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns of the layers for learning rates per layer, by timm's name."""
        layer = r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"
        return {"stem": "^conv1|bn1", "blocks": layer}


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut; ``pooled`` shortcuts average before they convolve."""

    def __init__(self, inward: int, outward: int, stride: int, pooled: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inward, outward, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outward)
        self.conv2 = nn.Conv2d(outward, outward, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outward)
        self.downsample: nn.Sequential | None = None
        if stride > 1:
            pool = [nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)] if pooled else []
            convolution = nn.Conv2d(inward, outward, 1, 1 if pooled else stride, bias=False)
            self.downsample = nn.Sequential(*pool, convolution, nn.BatchNorm2d(outward))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return convolve(convolve(x, self.conv1, self.bn1), self.conv2, self.bn2, add=shortcut)

    def fused(self, free: bool) -> tuple[Step, Step, list[Step]]:
        """Return both convolutions and the shortcut as fused steps; the second one adds."""
        shortcut: list[Step] = [] if self.downsample is None else [*self.downsample]
        shortcut[-2:] = [fuse(*shortcut[-2:], relu=False, free=free)] if shortcut else []
        first = fuse(self.conv1, self.bn1, free=free)
        return first, fuse(self.conv2, self.bn2, add=True, free=free), shortcut


def _deep_stem() -> nn.Sequential:
    widths = (3, 24, 32, 64)
    layers: list[nn.Module] = []
    for index in range(3):
        stride = 2 if index == 0 else 1
        layers.append(nn.Conv2d(widths[index], widths[index + 1], 3, stride, 1, bias=False))
        if index < 2:
            layers += [nn.BatchNorm2d(widths[index + 1]), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
