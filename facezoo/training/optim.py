"""Optim."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from facezoo.training.processes import Processes


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 autocast on the devices that have it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type != "mps")


def set_cosine_rate(
    optimizer: torch.optim.Optimizer, peak: float, progress: float, warmup: float
) -> None:
    """Linear warm-up, then half a cosine down to one per cent of ``peak``.

    Args:
        optimizer: its groups may carry ``"rate_scale"``, a factor on ``peak``.
        peak: learning rate at the end of the warm-up.
        progress: share of the run that is done, in [0, 1].
        warmup: share of the run that is warm-up.
    """
    if progress < warmup:
        factor = progress / warmup
    else:
        factor = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup)))
    set_rate(optimizer, peak * factor)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times the group's ``"rate_scale"`` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimiser down the gradient of a loss, over all processes' shares."""
    optimizer.zero_grad()
    loss.backward()
    Processes.present().mean_gradients(optimizer)
    optimizer.step()


class WeightAverage:
    """Exponential moving average of a module's floating-point state, buffers included.

    The decay warms up as (1 + n) / (10 + n), so that short runs are not dominated by the start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present state."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"updates": self.updates, "state": self.state}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.updates = saved["updates"]
        for key, value in saved["state"].items():
            self.state[key].copy_(value)


def decayed_and_not(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Parameter groups for an optimiser: weight decay on matrices only, not on norms and biases."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    yield {"params": [p for p in parameters if p.ndim > 1]}
    yield {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}


def layer_groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls with the distance from the output.

    Every timm backbone in the module counts its own layers, the last of which is trained at
    ``decay`` times the full rate, the one before at ``decay**2`` times, and so on; what is outside
    of backbones is trained at the full rate. Norms and biases are not decayed.

    Source: Clark et al., "ELECTRA" (2020), Sec. 3.1, layer-wise learning rates.

    Args:
        module: of which parameters without gradients are left out.
        decay: factor per layer, in (0, 1]; 1 gives every layer the full rate.

    Returns:
        Groups for an optimiser, with ``"rate_scale"`` for ``set_cosine_rate`` and ``set_rate``.

    Raises:
        ValueError: if ``decay`` is outside of (0, 1].
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layer decay must be above 0 and at most 1, got {decay}")
    depths = _distances(module)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = depths.get(name, 0), parameter.ndim > 1
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "rate_scale": decay**depth}
        | ({} if is_matrix else {"weight_decay": 0.0})
        for (depth, is_matrix), parameters in groups.items()
    ]


def _distances(module: nn.Module) -> dict[str, int]:
    """How many layers before the end of its timm backbone a parameter is, from 1; by name."""
    from timm.models import group_parameters

    depths: dict[str, int] = {}
    for prefix, part in module.named_modules():
        if hasattr(part, "group_matcher"):
            layers = group_parameters(part, part.group_matcher(coarse=False), reverse=True)
            last = max(layers.values(), default=0)
            start = f"{prefix}." if prefix else ""
            depths |= {f"{start}{name}": last + 1 - layer for name, layer in layers.items()}
    return depths
