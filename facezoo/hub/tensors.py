"""Weights files: found in the package, the Hub cache or on the Hub, checked, read and written.

Nothing here is used before its SHA-256 is the one in the card, and only safetensors are read.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def refuse_pickle(path: Path) -> None:
    """Raise PickleRefusedError if ``path`` is pickled, by its name or by its first bytes."""
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
    pickled = start.startswith(PICKLE_STARTS) and start[8:] != b"{"
    if path.suffix.lower() in PICKLE_SUFFIXES or pickled:
        raise PickleRefusedError(
            f"{path} is a pickled file, which can run code when it is opened; only safetensors are "
            f"loaded. If you trust its source: facezoo convert {path} "
            f"{path.with_suffix('.safetensors').name}"
        )


def read_tensors(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file, as they are on disk.

    Raises:
        PickleRefusedError: if the file is pickled; the message names ``facezoo convert``.
        WeightsNotFoundError: if there is no such file.
        WeightsCorruptedError: if it is not a whole safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    refuse_pickle(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"no weights file {path}")
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise WeightsCorruptedError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again"
        ) from error


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], strict: bool = True) -> None:
    """Copy tensors into a module, cast to its precision; int8 is multiplied by its scales.

    Args:
        module: whose parameters and buffers are overwritten in place.
        tensors: by state-dict name.
        strict: whether a missing or unexpected tensor is an error; if not, it is a warning. A
            mis-shaped tensor is an error in any case.

    Raises:
        WeightsMismatchError: naming every missing, unexpected and mis-shaped tensor.
    """
    import torch

    scales = _scales(tensors)
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in tensors]
    unexpected = [name for name in tensors if name not in wanted and name not in scales.values()]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    named = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes}
    problems = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in named.items() if names)
    if shapes or (strict and problems):
        raise WeightsMismatchError(
            f"the tensors do not fit {type(module).__name__}: {problems}; "
            "the file was made for another architecture or another version of the model"
        )
    if problems:
        warn_once(f"loaded with strict=False: {problems}", stacklevel=2)
    with torch.no_grad():  # one by one, so that no second copy of the weights is ever whole
        for name, tensor in wanted.items():
            if name in tensors:
                tensor.copy_(_dequantised(name, tensors, scales))


def save(
    source: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    dtype: torch.dtype | str | None = None,
) -> Path:
    """Write tensors as safetensors: either the whole file or nothing appears at ``path``.

    Args:
        source: a module, or tensors by name.
        path: the file to write; it is replaced if it is there.
        dtype: precision of the floating-point tensors on disk, or None to leave each as it is.
            int8 stores tensors of two dimensions and more with one float scale per output channel
            and the others in half precision.

    Returns:
        ``path``.
    """
    import torch
    from safetensors.torch import save_file

    path = Path(path)
    tensors = source.state_dict() if isinstance(source, torch.nn.Module) else dict(source)
    stored = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    if as_dtype(dtype) == torch.int8:
        stored = _quantised(stored)
    elif dtype is not None:
        floating = {name for name, tensor in stored.items() if tensor.is_floating_point()}
        stored.update({name: stored[name].to(as_dtype(dtype)) for name in floating})
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        part.touch()
        mode = part.stat().st_mode  # what the umask gives; save_file's own is for the owner only
        save_file(_unshared(stored), part, metadata={"format": "pt"})
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def gives_exactly(path: Path, module: nn.Module) -> bool:
    """Whether loading a file would change nothing in a module: no rounding, no other value."""
    import torch

    stored = read_tensors(path)
    scales = _scales(stored)
    return all(
        name in stored
        and torch.equal(_dequantised(name, stored, scales).to(tensor.dtype), tensor.cpu())
        for name, tensor in module.state_dict().items()
    )


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A torch dtype from itself or its name, such as ``"float16"``; None stays None.

    Raises:
        ValueError: if torch has no dtype of that name.
    """
    import torch

    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype must be a torch dtype such as 'float16', got {dtype!r}")
    return found


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return _digest(file)


def digest_of(module: nn.Module) -> str:
    """SHA-256 of a module's tensors as they are now, in their precision, 64 hex digits."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# Tensors.


def _scales(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Which tensor of int8 is to be multiplied by which, ``<name>.scale``, per output channel."""
    import torch

    found = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8 and tensor.ndim and (scale := f"{name}.scale") in tensors:
            if tensors[scale].numel() != len(tensor):
                raise WeightsMismatchError(
                    f"{scale} must hold {len(tensor)} numbers, one per output channel, "
                    f"got {tensors[scale].numel()}"
                )
            found[name] = scale
    return found


def _dequantised(name: str, tensors: Mapping[str, Tensor], scales: Mapping[str, str]) -> Tensor:
    """A tensor as it is used."""
    tensor = tensors[name]
    if name not in scales:
        return tensor
    scale = tensors[scales[name]].float().reshape(-1, *[1] * (tensor.ndim - 1))
    return tensor * scale  # int8 becomes float32 on the way


def _quantised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
            # dequantised tensor quantises to the same bytes again.
            bits = (rows.abs().amax(dim=1) / 127).clamp_min(1e-30).view(torch.int32)
            scale = ((bits + 0xFF) & ~0xFF).view(torch.float32)
            stored[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(tensor.shape)
            stored[f"{name}.scale"] = scale
    return stored


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, none of which shares memory with another: safetensors wants that."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        address = tensor.untyped_storage().data_ptr()
        if address in seen or not whole or not tensor.is_contiguous():
            apart[name] = tensor.contiguous().clone()
        else:
            apart[name] = tensor
        seen.add(address)
    return apart


# Checking.


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
