"""Convolutions that include their batch norm, addition and ReLU while a model encodes on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLES = 8
"""Numbers of each tensor that show if it was changed behind torch's back."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Watch:
    """A memory of tensors that notices if they were replaced or changed, also through ``.data``."""

    def __init__(self, tensors: Sequence[Tensor | None]) -> None:
        present = [tensor.detach() for tensor in tensors if tensor is not None]
        flat = (t.as_strided((t.numel(),), (1,)).view(INTEGERS[t.itemsize]) for t in present)
        # The views hold the memory, so that no other tensors can have its address.
        self._samples = [t.numpy()[:: max(1, len(t) // SAMPLES)] for t in flat]
        self._state = self._read(tensors)

    def unchanged(self, tensors: Sequence[Tensor | None]) -> bool:
        """Return whether these are the same tensors with the same numbers as before."""
        return self._state == self._read(tensors)

    def _read(self, tensors: Sequence[Tensor | None]) -> list[Any]:
        state: list[Any] = [t if t is None else (t.data_ptr(), t._version) for t in tensors]
        return state + [sample.tobytes() for sample in self._samples]


_FOLDED: WeakKeyDictionary[nn.Module, tuple[Watch, Tensor, Tensor | None]] = WeakKeyDictionary()
"""State of each convolution and its norm, and their common weight, packed, and bias."""


def convolve(
    x: Tensor,
    convolution: nn.Module,
    norm: nn.Module | None = None,
    *,
    add: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """Apply a convolution, its batch norm, an addition and a ReLU.

    In eval mode, without gradients and on a CPU with oneDNN this is one step, with weights that are
    folded and packed when they are first used. The results differ by rounding. Parameters, state
    dict and training are not affected. Changed weights are folded again.

    Args:
        x: maps, (B, C, H, W).
        convolution: a layer without other layers inside.
        norm: the batch norm behind it.
        add: maps to add before the ReLU, (B, D, H', W').
        relu: whether to apply a ReLU.

    Returns:
        (B, D, H', W').
    """
    if not _foldable(x, convolution, norm):
        y: Tensor = convolution(x) if norm is None else norm(convolution(x))
        y = y if add is None else y.add_(add)
        return y.relu_() if relu else y
    weight, bias = _folded(convolution, norm)
    geometry = _geometry(convolution)
    x = x.contiguous(memory_format=torch.channels_last)
    operator = torch.ops.mkldnn._convolution_pointwise
    if add is None:
        return operator(x, weight, bias, *geometry, "relu" if relu else "none", [], "")
    activation = "relu" if relu else None
    return operator.binary(x, add, weight, bias, *geometry, "add", 1.0, activation, [], "")


def _foldable(x: Tensor, convolution: Any, norm: Any) -> bool:
    """Return whether nothing but the result of these layers can be observed."""
    if torch.is_grad_enabled() or x.device.type != "cpu" or type(convolution) is not nn.Conv2d:
        return False
    # With other widths oneDNN may reorder packed weights in every call, which takes longer.
    if convolution.out_channels % 64 or type(norm) not in (nn.BatchNorm2d, type(None)):
        return False
    if norm is not None and (norm.training or norm.running_mean is None):
        return False
    return (
        not any(p._forward_hooks or p._forward_pre_hooks for p in (convolution, norm) if p)
        and type(convolution.weight) is nn.Parameter
        and x.dtype == convolution.weight.dtype
        # Inference tensors do not count their changes.
        and not (convolution.weight if norm is None else norm.running_mean).is_inference()
        and not isinstance(convolution.padding, str)
        and convolution.padding_mode == "zeros"
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and _supported(x.dtype)
    )


def _folded(convolution: Any, norm: Any) -> tuple[Tensor, Tensor | None]:
    tensors = [convolution.weight, convolution.bias]
    if norm is not None:
        tensors += [norm.weight, norm.bias, norm.running_mean, norm.running_var]
    entry = _FOLDED.get(convolution)
    if entry is None or not entry[0].unchanged(tensors):
        # Tensors from outside of inference mode serve everywhere.
        with torch.inference_mode(False), torch.no_grad():
            entry = _FOLDED[convolution] = (Watch(tensors), *_fold(convolution, norm))
    return entry[1:]


def _fold(convolution: Any, norm: Any) -> tuple[Tensor, Tensor | None]:
    """Return the packed weight and the bias of a convolution and its norm."""
    weight, bias = convolution.weight.detach(), convolution.bias
    if norm is not None:
        scale = (norm.running_var.float() + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight.float()
        shift = -norm.running_mean.float() if bias is None else bias - norm.running_mean.float()
        shift = shift * scale if norm.bias is None else shift * scale + norm.bias.float()
        weight = (weight.float() * scale[:, None, None, None]).to(weight)
        bias = shift.to(weight)
    packed = _packed(weight, *_geometry(convolution))
    return packed, None if bias is None else bias.detach()


def _geometry(layer: Any) -> tuple[Any, ...]:
    return layer.padding, layer.stride, layer.dilation, layer.groups


def _packed(weight: Tensor, *geometry: Any) -> Tensor:
    weight = weight.contiguous(memory_format=torch.channels_last)
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, [])


@cache
def _supported(dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes fused convolutions in this precision here."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    with torch.device("cpu"):
        x = torch.randn(1, 64, 8, 8, generator=generator, dtype=torch.float32).to(dtype)
        weight = torch.randn(64, 64, 3, 3, generator=generator, dtype=torch.float32).to(dtype)
        y = F.conv2d(x.float(), weight.float(), padding=1)
        expected = [y.relu(), (y + x.float()).relu()]
        try:
            operator, weight = torch.ops.mkldnn._convolution_pointwise, _packed(weight, *geometry)
            results = [
                operator(x, weight, None, *geometry, "relu", [], ""),
                operator.binary(x, x, weight, None, *geometry, "add", 1.0, "relu", [], ""),
            ]
        except (AttributeError, RuntimeError, TypeError):  # another version or build of torch
            return False
    tolerance = 1e-3 if dtype == torch.float32 else 0.3
    return all(
        torch.allclose(result.float(), value, rtol=tolerance, atol=tolerance)
        for result, value in zip(results, expected, strict=True)
    )
