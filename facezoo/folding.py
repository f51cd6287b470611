"""Faster layers while a model encodes on a CPU, such as convolutions that include a batch norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd import forward_ad

WHOLE = 4096
"""Size up to which all numbers of a tensor are compared, to notice changes that torch does not
count. In larger tensors, two numbers of each row are, at evenly spread columns: a changed channel
changes at least one of them."""
SETTINGS = ("eps", "stride", "padding", "dilation", "groups", "padding_mode")
"""Attributes of layers that change what they compute."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
Built = TypeVar("Built")
Step = Callable[[Tensor], Tensor]


class Watch:
    """A memory of tensors that notices if they were replaced or changed.

    A change through ``.data`` or a numpy view is noticed in every small tensor and in every row and
    column of a weight, see ``WHOLE``; a change of a few numbers of a large weight may be missed.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        # The views hold the memory, so that no other tensors can have its address.
        flat = [t.detach().as_strided((t.numel(),), (1,)) for t in tensors]
        self._views = [t.view(INTEGERS[t.itemsize]).numpy() for t in flat]
        self._places = [_places(t) for t in tensors]
        self._state = self._read(tensors)

    def unchanged(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether these are the same tensors with the same numbers as before."""
        return self._state == self._read(tensors)

    def _read(self, tensors: Sequence[Tensor]) -> list[Any]:
        state: list[Any] = [(t.data_ptr(), t._version) for t in tensors]
        pairs = zip(self._views, self._places, strict=True)
        return state + [(v if p is None else v.take(p)).tobytes() for v, p in pairs]


def _places(tensor: Tensor) -> NDArray[np.int64] | None:
    """Return the flat indices of the numbers to compare, None for all."""
    if tensor.ndim < 2 or tensor.numel() <= WHOLE:
        return None
    rows, columns = len(tensor), tensor.numel() // len(tensor)
    point = np.arange(2 * rows)
    golden = (5**0.5 - 1) / 2  # multiples of it, modulo 1, are evenly spread
    indices: NDArray[np.int64] = point % rows * columns + (point * golden % 1 * columns).astype(int)
    return indices


_FUSED: WeakKeyDictionary[nn.Module, tuple[Any, Watch, Any]] = WeakKeyDictionary()
"""Layers, their settings and weights of each network, and what was built of them."""


def convolve(
    x: Tensor,
    convolution: nn.Module,
    norm: nn.Module | None = None,
    *,
    add: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """Apply a convolution, its batch norm, an addition and a ReLU to maps (B, C, H, W)."""
    y: Tensor = convolution(x) if norm is None else norm(convolution(x))
    y = y if add is None else y.add_(add)
    return y.relu_() if relu else y


def fused(network: nn.Module, x: Tensor, build: Callable[[], Built]) -> Built | None:
    """Return what ``build`` makes of a network with ``fuse``, if nothing but its result matters.

    This is in eval mode, without gradients of any kind, hooks, replaced methods and tracing, and on
    a CPU with oneDNN. Weights, state dict and training are not affected. A network with a changed
    layer or weight is built again, see ``Watch``.

    Returns:
        The result of ``build``; None if the layers must run one by one.
    """
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    if traced or torch.is_grad_enabled() or x.device.type != "cpu" or _observed():
        return None
    modules, settings = [network], list[Any]()
    for module in modules:  # which grows
        own = module.__dict__
        if module.training or module._forward_hooks or module._forward_pre_hooks:
            return None
        if "forward" in own and module is not network:
            return None
        settings += map(own.get, SETTINGS)
        for child in module._modules.values():
            if child is not None:
                modules.append(child)
    weights, buffers = _tensors_of(modules)
    # Inference tensors do not count their changes.
    if weights[0].dtype != x.dtype or weights[0].is_inference() or torch.is_autocast_enabled("cpu"):
        return None
    tensors = weights + buffers
    layers = modules[1:], settings
    entry = _FUSED.get(network)
    if entry is None or entry[0] != layers or not entry[1].unchanged(tensors):
        kinds = {(type(w), w.dtype) for w in weights}
        places = {(t.device.type, t.is_inference()) for t in tensors}
        if kinds != {(nn.Parameter, x.dtype)} or places != {("cpu", False)}:
            return None
        if not _supported(x.dtype):
            return None
        # Tensors from outside of inference mode serve everywhere.
        with torch.inference_mode(False), torch.no_grad():
            del weights, buffers, tensors  # ``build`` may free them
            built = build()
            weights, buffers = _tensors_of(modules)
            entry = _FUSED[network] = (layers, Watch(weights + buffers), built)
    return entry[2]


def _observed() -> bool:
    """Return whether hooks of all modules or a transform of torch.func look at the layers."""
    observers = nn.modules.module._global_forward_hooks, nn.modules.module._global_forward_pre_hooks
    transformed = torch._C._functorch.peek_interpreter_stack() is not None
    return any(observers) or transformed or forward_ad._current_level >= 0


def _tensors_of(modules: Sequence[nn.Module]) -> tuple[list[Any], list[Any]]:
    """Return the parameters and the buffers that modules have themselves, without None."""
    weights, buffers = list[Any](), list[Any]()
    for module in modules:
        for weight in module._parameters.values():
            if weight is not None:
                weights.append(weight)
        for buffer in module._buffers.values():
            if buffer is not None:
                buffers.append(buffer)
    return weights, buffers


def fuse(
    convolution: Any, norm: Any, *, relu: bool = True, add: bool = False, free: bool = False
) -> Callable[..., Tensor]:
    """Return ``convolve`` for these layers, as one step with a folded and packed weight.

    The results differ by rounding. Layers of other classes run one by one. So do convolutions whose
    width is not a multiple of 64: oneDNN may reorder their weights in every call.

    Args:
        convolution: the convolution.
        norm: the batch norm behind it.
        relu: whether to apply a ReLU.
        add: whether to add maps before the ReLU.
        free: whether to free the weight of the convolution, which runs only as a fused step then.

    Returns:
        A function of maps (B, C, H, W), channels last in memory, and of the maps to add.
    """
    plain = type(convolution) is nn.Conv2d and type(norm) is nn.BatchNorm2d
    if (
        not plain
        or convolution.out_channels % 64
        or isinstance(convolution.padding, str)
        or convolution.padding_mode != "zeros"
        or norm.running_mean is None
        or norm.weight is None
    ):
        return lambda x, other=None: convolve(x, convolution, norm, add=other, relu=relu)
    scale = (norm.running_var.float() + norm.eps).rsqrt() * norm.weight.float()
    shift = 0 if convolution.bias is None else convolution.bias.float()
    bias = ((shift - norm.running_mean.float()) * scale + norm.bias.float()).to(convolution.weight)
    weight = (convolution.weight.float() * scale[:, None, None, None]).to(bias)
    if free:
        convolution.weight = None
    geometry = convolution.padding, convolution.stride, convolution.dilation, convolution.groups
    options = dict(zip(("padding", "stride", "dilation", "groups"), geometry, strict=True))
    options |= {"W": _packed(weight, *geometry), "B": bias}
    operator, activation = torch.ops.mkldnn._convolution_pointwise, "relu" if relu else None
    if add:
        last: dict[str, Any] = {
            "unary_attr": activation,
            "unary_scalars": [],
            "unary_algorithm": "",
        }
        return partial(operator.binary, binary_attr="add", alpha=1.0, **options, **last)
    return partial(operator, attr=activation or "none", scalars=[], algorithm="", **options)


def fuse_linear(weight: Tensor, bias: Tensor | None, rows: int) -> Step:
    """Return a linear layer of oneDNN with a packed weight, for functions that ``fused`` builds.

    Args:
        weight: (C2, C1).
        bias: (C2,), or None.
        rows: the usual number of points.

    Returns:
        A function of points (N, C1).
    """
    operator = torch.ops.mkldnn._linear_pointwise
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)
    return lambda points: operator(points, packed, bias, "none", [], "")


def _packed(weight: Tensor, *geometry: Any) -> Tensor:
    weight = weight.contiguous(memory_format=torch.channels_last)
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, [])


@cache
def _supported(dtype: torch.dtype) -> bool:
    """Return whether oneDNN computes fused layers in this precision here."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    with torch.device("cpu"):
        x = torch.randn(1, 64, 8, 8, generator=generator, dtype=torch.float32).to(dtype)
        weight = torch.randn(64, 64, 3, 3, generator=generator, dtype=torch.float32).to(dtype)
        y = F.conv2d(x.float(), weight.float(), padding=1)
        points, matrix = x[0].flatten(1).T.contiguous(), weight[:, :, 1, 1].contiguous()
        z = F.linear(points.float(), matrix.float())
        expected = [y.relu(), (y + x.float()).relu(), z]
        try:
            operator, weight = torch.ops.mkldnn._convolution_pointwise, _packed(weight, *geometry)
            results = [
                operator(x, weight, None, *geometry, "relu", [], ""),
                operator.binary(x, x, weight, None, *geometry, "add", 1.0, "relu", [], ""),
                fuse_linear(matrix, None, len(points))(points),
            ]
        except (AttributeError, RuntimeError, TypeError):  # another version or build of torch
            return False
    tolerance = 1e-3 if dtype == torch.float32 else 0.3
    return all(
        torch.allclose(result.float(), value, rtol=tolerance, atol=tolerance)
        for result, value in zip(results, expected, strict=True)
    )
