"""Optimizers: precision, learning rates, update steps and parameter groups."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facezoo.training.processes import Processes


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where that is faster: on GPUs, and on CPUs as ``_is_fast_on_cpu``."""
    fast = _is_fast_on_cpu() if device.type == "cpu" else device.type != "mps"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=fast)


@cache
def _is_fast_on_cpu() -> bool:
    """Return whether bfloat16 is faster than float32: with AMX, or with AVX512-bf16 of AMD.

    With AVX512-bf16 alone it was slower on a Xeon and faster on an EPYC; docs/measurements/speed.md
    has the rates.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", None)  # not in torch 2.4
    supported = capabilities() if capabilities else {}
    if supported.get("amx_bf16"):
        return True
    return bool(supported.get("avx512_bf16")) and not _is_intel()


def _is_intel() -> bool:
    info = Path("/proc/cpuinfo")
    return "Intel" in (info.read_text() if info.is_file() else platform.processor())


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float | None = None) -> None:
    """Take one optimizer step along the gradient of a loss, averaged over all processes.

    The gradient is clipped to the norm ``max_norm``, if that is set.
    """
    optimizer.zero_grad()
    loss.backward()
    Processes.present().mean_gradients(optimizer)
    if max_norm is not None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


@contextmanager
def fixed(module: nn.Module) -> Iterator[nn.Module]:
    """Pass gradients through a module without computing those of its parameters."""
    module.requires_grad_(False)
    try:
        yield module
    finally:
        module.requires_grad_(True)


def set_lr(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Set every learning rate to its first value times ``factor`` and the group's ``"lr_scale"``.

    The names of the keys are those of PyTorch's and timm's schedulers.
    """
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        highest = group.setdefault("initial_lr", group["lr"])
        group["lr"] = highest * factor * group.get("lr_scale", 1.0)


def layer_groups(module: nn.Module, decay: float = 1.0) -> list[dict[str, Any]]:
    """Return parameter groups with weight decay on matrices only and smaller rates at the input.

    Every timm backbone in the module counts its own layers: the last one is trained at ``decay``
    times the full learning rate, the one before at ``decay**2`` times, and so on; all other
    parameters are trained at the full rate. Norms, biases and the parameters that a backbone lists
    in ``no_weight_decay()``, such as position embeddings, have no weight decay.

    Source: Clark et al., "ELECTRA" (2020), Sec. 3.1, layer-wise learning rates.

    Args:
        module: parameters that need no gradient are left out.
        decay: factor per layer, in (0, 1]; 1 gives every layer the full learning rate.

    Returns:
        Groups for an optimizer, with ``"lr_scale"`` for ``set_lr`` and for timm's schedulers.

    Raises:
        ValueError: if ``decay`` is outside of (0, 1].
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay per layer must be above 0 and at most 1, got {decay}")
    depths = _backbone_layers(module) if decay < 1 else {}
    exempt = {
        _joined(prefix, name)
        for prefix, part in module.named_modules()
        if hasattr(part, "no_weight_decay")
        for name in part.no_weight_decay()
    }
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not any(fnmatch(name, pattern) for pattern in exempt)
            groups.setdefault((depths.get(name, 0), decays), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": decay**depth} | ({} if decays else {"weight_decay": 0.0})
        for (depth, decays), parameters in groups.items()
    ]


def _backbone_layers(module: nn.Module) -> dict[str, int]:
    """Return each parameter's number of layers before the end of its timm backbone, from 1."""
    from timm.models import group_parameters

    depths: dict[str, int] = {}
    for prefix, part in module.named_modules():
        if hasattr(part, "group_matcher"):
            layers = group_parameters(part, part.group_matcher(coarse=False), reverse=True)
            last = max(layers.values(), default=0)
            depths |= {_joined(prefix, name): last + 1 - layer for name, layer in layers.items()}
    return depths


def _joined(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
