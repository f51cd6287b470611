"""Read and write weights files (safetensors), and load them into a module with checks."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from facezoo.errors import (
    PickleRefusedError,
    WeightsCorruptedError,
    WeightsMismatchError,
    WeightsNotFoundError,
    warn_once,
)

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle", ".tar")
# Zip archives (torch.save since 1.6) and pickle protocols 2 to 5 (torch.save before).
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def reject_pickle(path: Path) -> None:
    """Raise PickleRefusedError if ``path`` is pickled, by its name or by its first bytes."""
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
    # The length in front of a safetensors header can look like a pickle; the header starts with {.
    pickled = start.startswith(PICKLE_STARTS) and start[8:] != b"{"
    if path.suffix.lower() in PICKLE_SUFFIXES or pickled:
        raise PickleRefusedError(
            f"{path} is a pickled file, which can run code when it is opened; expected "
            f"safetensors. If you trust its source: facezoo convert {path} "
            f"{path.with_suffix('.safetensors').name}"
        )


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file in their precision on disk.

    They do not depend on the file afterwards.

    Raises:
        PickleRefusedError: if the file is pickled; the message names ``facezoo convert``.
        WeightsNotFoundError: if there is no such file.
        WeightsCorruptedError: if it is not a complete safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    reject_pickle(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"no weights file {path}")
    try:
        with safe_open(path, "pt") as file:
            # What safetensors returns is a view of the file.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsCorruptedError(
            f"{path} is not a complete safetensors file ({error}); copy or download it again"
        ) from error


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], strict: bool = True) -> None:
    """Copy tensors into a module, in its precision; multiply int8 by its scales.

    Args:
        module: its parameters and buffers are overwritten in place.
        tensors: by state-dict name.
        strict: raise an error for a missing or unexpected tensor instead of a warning. A tensor
            of another shape is always an error.

    Raises:
        WeightsMismatchError: naming every missing, unexpected and mis-shaped tensor.
    """
    import torch

    scales, state = _scales(tensors), module.state_dict()
    expected = {*state, *scales.values()}
    problems = {
        "missing": [name for name in state if name not in tensors],
        "unexpected": [name for name in tensors if name not in expected],
        "mis-shaped": [
            f"{name} {tuple(tensors[name].shape)} for {tuple(tensor.shape)}"
            for name, tensor in state.items()
            if name in tensors and tensors[name].shape != tensor.shape
        ],
    }
    text = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names)
    if problems["mis-shaped"] or (strict and text):
        raise WeightsMismatchError(
            f"the tensors do not fit {type(module).__name__}: {text}; "
            "the file is of another architecture or another version of the model"
        )
    if text:
        warn_once(f"loaded with strict=False: {text}", stacklevel=2)
    with torch.no_grad():  # one by one, so that memory never holds a second copy of all weights
        for name, tensor in state.items():
            if name in tensors:
                is_quantized = name in scales
                tensor.copy_(_dequantize(name, tensors, scales) if is_quantized else tensors[name])


def save(
    source: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    dtype: torch.dtype | str | None = None,
) -> Path:
    """Write tensors as safetensors; ``path`` holds the old file or the complete new one.

    Args:
        source: a module, or tensors by name; tensors that share memory are written separately.
        path: the file to write or replace.
        dtype: precision of the floating-point tensors on disk; None for that of each.
            int8 stores tensors of two dimensions and more with one float scale per output channel
            and the others in half precision.

    Returns:
        ``path``.
    """
    import torch
    from safetensors.torch import save as serialize

    path = Path(path)
    tensors = source.state_dict() if isinstance(source, torch.nn.Module) else dict(source)
    stored = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    if as_dtype(dtype) == torch.int8:
        stored = _quantize(stored)
    elif dtype is not None:
        floating = {name for name, tensor in stored.items() if tensor.is_floating_point()}
        stored.update({name: stored[name].to(as_dtype(dtype)) for name in floating})
    apart = {k: v.clone(memory_format=torch.contiguous_format) for k, v in stored.items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        part.write_bytes(serialize(apart, {"format": "pt"}))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def restores(path: Path, module: nn.Module) -> bool:
    """Return True if loading a file would not change a module: no rounding, no other value."""
    import torch

    stored = read_tensors(path)
    scales = _scales(stored)
    return all(
        name in stored
        and torch.equal(_dequantize(name, stored, scales).to(tensor.dtype), tensor.cpu())
        for name, tensor in module.state_dict().items()
    )


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Return a torch dtype for itself or its name, such as ``"float16"``; None stays None.

    Raises:
        ValueError: if torch has no dtype of that name.
    """
    import torch

    result = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and not isinstance(result, torch.dtype):
        raise ValueError(f"unknown dtype {dtype!r}; expected a torch dtype such as 'float16'")
    return result


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def digest_of(module: nn.Module) -> str:
    """Return the SHA-256 of a module's present tensors in their precision, 64 hex digits."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# int8 on disk.


def _scales(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Map each int8 tensor that has one to the name of its scale, ``<name>.scale``."""
    import torch

    scales = {
        name: f"{name}.scale"
        for name, tensor in tensors.items()
        if tensor.dtype == torch.int8 and tensor.ndim and f"{name}.scale" in tensors
    }
    for name, scale in scales.items():
        if tensors[scale].numel() != len(tensors[name]):
            raise WeightsMismatchError(
                f"{scale} must hold {len(tensors[name])} numbers, one per output channel, "
                f"got {tensors[scale].numel()}"
            )
    return scales


def _dequantize(name: str, tensors: Mapping[str, Tensor], scales: Mapping[str, str]) -> Tensor:
    tensor = tensors[name]
    if name not in scales:
        return tensor
    scale = tensors[scales[name]].float().reshape(-1, *[1] * (tensor.ndim - 1))
    return tensor * scale  # float32


def _quantize(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch

    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            stored[name] = tensor
        elif tensor.ndim < 2 or not tensor.numel():
            stored[name] = tensor.half()
        else:
            rows = tensor.float().reshape(len(tensor), -1)
            # 16 bits of mantissa, rounded up: scale times 127 is then exact, so that a
            # dequantized tensor quantizes to the same bytes again.
            bits = (rows.abs().amax(dim=1) / 127).clamp_min(1e-30).view(torch.int32)
            scale = ((bits + 0xFF) & ~0xFF).view(torch.float32)
            stored[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(tensor.shape)
            stored[f"{name}.scale"] = scale
    return stored
