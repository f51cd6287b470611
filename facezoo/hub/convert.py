"""Convert pickled checkpoints to safetensors; no other module opens a pickle.

``weights_only=True`` lets torch build tensors and plain containers and nothing else. Before torch
2.6 a crafted file could run code in spite of it (CVE-2025-32434).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facezoo.errors import PickleRefusedError, WeightsError, WeightsNotFoundError
from facezoo.hub.tensors import save

if TYPE_CHECKING:
    from torch import Tensor

PARALLEL = "module."
"""Prefix that ``nn.DataParallel`` adds to every name."""
SAFE_TORCH = "2.6"
"""First version in which ``weights_only=True`` runs no code."""


def convert(
    source: str | Path,
    target: str | Path | None = None,
    *,
    key: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a pickled state dict to safetensors; names and precision stay.

    The prefix of ``nn.DataParallel`` is removed. Tensors that share memory are written separately.

    Args:
        source: a ``.pth``, ``.pt``, ``.ckpt`` or ``.bin`` file that torch wrote.
        target: the file to write; None for ``source`` with the suffix ``.safetensors``.
        key: entry of the file to take, if it holds several state dicts.
        overwrite: replace ``target`` if it exists.

    Raises:
        PickleRefusedError: if the file holds more than tensors and plain containers, or torch is
            too old to be safe.
        WeightsNotFoundError: if there is no such file.
        WeightsError: if the file holds no state dict, or several (the message lists the keys), or
            a sparse or quantized tensor.
        FileExistsError: if ``target`` exists and ``overwrite`` is False.
        ValueError: if ``target`` does not end in ``.safetensors``.
    """
    source = Path(source)
    target = source.with_suffix(".safetensors") if target is None else Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"target must end in .safetensors, got {target}")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already; remove it or choose another name")
    tensors = _state_dict(read_pickle(source), source, key)
    if all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): tensor for name, tensor in tensors.items()}
    _check_storable(tensors, source)
    target.parent.mkdir(parents=True, exist_ok=True)
    return save(tensors, target)


def read_pickle(path: Path) -> Any:
    """Read a file that ``torch.save`` wrote, if it holds tensors and plain containers only.

    Raises:
        PickleRefusedError: if it holds more, or torch is too old to be safe.
        WeightsNotFoundError: if there is no such file.
        WeightsError: if ``torch.save`` did not write it, or it is damaged.
    """
    import torch

    if not path.is_file():
        raise WeightsNotFoundError(f"no file {path}")
    if torch.torch_version.TorchVersion(torch.__version__) < SAFE_TORCH:
        raise PickleRefusedError(
            f"torch {torch.__version__} cannot open {path} safely (CVE-2025-32434); convert it "
            f"with torch {SAFE_TORCH} or newer"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PickleRefusedError(
            f"{path} is damaged or holds more than tensors, so that opening it could run code. "
            "Save model.state_dict() alone where you trust the file "
            f"({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # torch raises errors of many types for damaged files
        if getattr(error, "filename", None) is not None:
            raise  # the file cannot be opened at all
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path} is damaged or torch.save did not write it ({reason}); copy or download it "
            "again"
        ) from error


def _state_dict(content: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    """Return the only state dict in a file."""
    if key is None and _is_state_dict(content):
        return content
    entries = content if isinstance(content, dict) else {}
    candidates = [name for name, value in entries.items() if _is_state_dict(value)]
    if key in candidates:
        return entries[key]
    if isinstance(content, dict):
        kinds = (f"{name!r} ({type(value).__name__})" for name, value in content.items())
        contents = f"its keys are {', '.join(kinds)}"
    else:
        contents = f"it holds one {type(content).__name__}"
    if key is not None:
        raise WeightsError(f"{path} has no state dict under {key!r}; {contents}")
    if not candidates:
        raise WeightsError(f"{path} holds no state dict; {contents}")
    if len(candidates) == 1 and not any(hasattr(value, "layout") for value in entries.values()):
        return entries[candidates[0]]
    raise WeightsError(
        f"{path} holds several sets of tensors: {contents}; name one of "
        f"{', '.join(map(repr, candidates))} as the key"
    )


def _check_storable(tensors: dict[str, Tensor], path: Path) -> None:
    """Raise WeightsError for tensors that safetensors cannot hold."""
    import torch

    for name, tensor in tensors.items():
        dense = tensor.layout is torch.strided
        if not dense or tensor.is_quantized:
            kind = str(tensor.dtype if dense else tensor.layout).removeprefix("torch.")
            raise WeightsError(
                f"{path} holds {name!r} as {kind}, which safetensors cannot store; save the state "
                "dict with dense tensors that are not quantized (.to_dense(), .dequantize())"
            )


def _is_state_dict(value: Any) -> bool:
    """Return True for a non-empty dict of tensors by name."""
    import torch

    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )
