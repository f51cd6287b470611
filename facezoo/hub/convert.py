"""Pickled checkpoints to safetensors: the one place where a pickle is opened.

``weights_only=True`` lets torch build tensors and plain containers and nothing else, since 2.6:
before, a crafted file could run code all the same (CVE-2025-32434).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facezoo.errors import PickleRefusedError, WeightsError, WeightsNotFoundError
from facezoo.hub.tensors import save

if TYPE_CHECKING:
    from torch import Tensor

# What nn.DataParallel puts before every name.
PARALLEL = "module."
# The first in which weights_only=True runs no code.
SAFE_TORCH = "2.6"


def convert(
    source: str | Path,
    target: str | Path | None = None,
    *,
    key: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert a pickled state dict to safetensors, names and precision unchanged.

    Only the ``module.`` that ``nn.DataParallel`` puts before every name is taken off. Tensors that
    share memory are written apart.

    Args:
        source: a ``.pth``, ``.pt``, ``.ckpt`` or ``.bin`` file that torch wrote.
        target: the file to write; None for ``source`` with the suffix ``.safetensors``.
        key: which entry of the file to take, where it holds several state dicts.
        overwrite: whether ``target`` may be replaced.

    Returns:
        The file that was written.

    Raises:
        PickleRefusedError: if the file holds more than tensors and plain containers, or torch is
            too old to be safe.
        WeightsNotFoundError: if there is no such file.
        WeightsError: if no state dict, or more than one, is found; the message lists the keys.
            If a tensor is sparse or quantised; the message names it.
        FileExistsError: if ``target`` is there and ``overwrite`` is False.
        ValueError: if ``target`` does not end in ``.safetensors``.
    """
    source = Path(source)
    if not source.is_file():
        raise WeightsNotFoundError(f"no file {source}")
    target = source.with_suffix(".safetensors") if target is None else Path(target)
    if target.suffix != ".safetensors":
        raise ValueError(f"target must end in .safetensors, got {target}")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already; remove it or choose another name")
    tensors = _state_dict(read_pickle(source), source, key)
    if all(name.startswith(PARALLEL) for name in tensors):
        tensors = {name.removeprefix(PARALLEL): tensor for name, tensor in tensors.items()}
    _check_storable(tensors, source)
    target.parent.mkdir(parents=True, exist_ok=True)
    return save(tensors, target)


def read_pickle(path: Path) -> Any:
    """What a file that ``torch.save`` wrote holds, as long as that is tensors and plain containers.

    Raises:
        PickleRefusedError: if it holds more, or torch is too old to be safe.
        WeightsError: if it is no such file, or damaged.
    """
    import torch

    if not path.is_file():
        raise WeightsNotFoundError(f"no file {path}")
    if torch.torch_version.TorchVersion(torch.__version__) < SAFE_TORCH:
        raise PickleRefusedError(
            f"{path} is not opened by torch {torch.__version__}, in which a crafted file can run "
            f"code even so (CVE-2025-32434); convert it where torch is {SAFE_TORCH} or newer"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PickleRefusedError(
            f"{path} is damaged or holds more than tensors, so that opening it could run code; it "
            "is refused. Have its author save model.state_dict() alone, or do so yourself where "
            f"you trust it ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:  # torch looks at little before it trusts it
        if getattr(error, "filename", None) is not None:
            raise  # it cannot be opened at all
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{path} is not a file that torch.save wrote, or is damaged ({reason}); copy or "
            "download it again"
        ) from error


def _state_dict(content: Any, path: Path, key: str | None) -> dict[str, Tensor]:
    """The one state dict in a file, or an error that lists what there is."""
    if key is not None:
        if not isinstance(content, dict) or not _is_state_dict(content.get(key)):
            raise WeightsError(f"{path} has no state dict under {key!r}; {_described(content)}")
        return content[key]
    if _is_state_dict(content):
        return content
    inner = content if isinstance(content, dict) else {}
    found = [name for name, value in inner.items() if _is_state_dict(value)]
    if len(found) == 1 and not any(_is_tensor(value) for value in inner.values()):
        return inner[found[0]]
    if not found:
        raise WeightsError(f"{path} holds no state dict; {_described(content)}")
    raise WeightsError(
        f"{path} holds several sets of tensors, and facezoo does not guess which is meant: "
        f"{_described(content)}; name one of {', '.join(map(repr, found))} as the key"
    )


def _check_storable(tensors: dict[str, Tensor], path: Path) -> None:
    """Refuse kinds of tensors that safetensors has not."""
    import torch

    for name, tensor in tensors.items():
        dense = tensor.layout is torch.strided
        if not dense or tensor.is_quantized:
            kind = str(tensor.dtype if dense else tensor.layout).removeprefix("torch.")
            raise WeightsError(
                f"{path} holds {name!r} as {kind}, which safetensors cannot store; save the state "
                "dict again with dense tensors that are not quantised (.to_dense(), .dequantize())"
            )


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _is_state_dict(value: Any) -> bool:
    """Whether it is a filled dict of tensors by name, as ``nn.Module.state_dict`` makes it."""
    return (
        isinstance(value, dict)
        and len(value) > 0
        and all(isinstance(name, str) and _is_tensor(item) for name, item in value.items())
    )


def _described(content: Any) -> str:
    if not isinstance(content, dict):
        return f"it holds one {type(content).__name__}"
    kinds = (f"{name!r} ({type(value).__name__})" for name, value in content.items())
    return f"its keys are {', '.join(kinds)}"
