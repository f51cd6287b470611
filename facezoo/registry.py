"""What there is and how to get it: list, describe, download, load.

Listing and describing read the cards only; torch is imported by the first ``load``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facezoo.errors import LicenseError, UnsupportedError
from facezoo.hub.card import Card, bundled_cards, card_named
from facezoo.hub.families import FAMILIES, model_class

if TYPE_CHECKING:
    import torch

    from facezoo.preprocess.jpeg import JpegDecoder

_DEVICES = "give 'cuda', 'cuda:1', 'mps' or 'cpu', or None for the best there is"


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Names of models, or of their checkpoints.

    Args:
        pattern: shell-style, such as ``"*fer*"``.
        pretrained: whether to list checkpoints (``"ipd-fer.ferplus-lfw"``) instead of models.

    Returns:
        Names in alphabetical order, each of which ``load`` takes.
    """
    names: Iterable[str] = FAMILIES
    if pretrained:
        names = [name for name, card in bundled_cards().items() if card.model in FAMILIES]
    return sorted(name for name in names if fnmatchcase(name, pattern))


def info(name: str) -> Card:
    """The card of a checkpoint: licences, data, metrics, limits, input, size.

    Args:
        name: a checkpoint, or a model for its default checkpoint.

    Raises:
        UnknownNameError: if there is none; the message lists near matches.
    """
    return card_named(name, FAMILIES)


def download(names: str | Iterable[str]) -> dict[str, Path]:
    """Bring weights onto this machine without building a model, for use without network.

    Args:
        names: checkpoints, models or ``hf-hub:`` repositories; one name or several.

    Returns:
        The verified file of each name, in the package or in the Hub cache.

    Raises:
        TypeError: if one is a ``Path``: nothing on this machine is to be brought.
        UnknownNameError: if one is unknown, before anything is fetched.
        WeightsError: if one cannot be found, fetched or trusted.
    """
    from facezoo.hub.files import find
    from facezoo.hub.names import resolve

    wanted = [names] if isinstance(names, str | os.PathLike) else list(names)
    for name in wanted:
        if isinstance(name, os.PathLike):
            raise TypeError(
                "names must be checkpoints, models or 'hf-hub:' repositories, got the path "
                f"{name}, which needs no download; pass it to facezoo.load"
            )
    sources = {name: resolve(name) for name in wanted}
    return {name: find(source.card, source.path) for name, source in sources.items()}


def load(
    name: str | os.PathLike[str],
    *,
    pretrained: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    compile: bool = False,
    jpeg: JpegDecoder = "pillow",
    licenses: Sequence[str] | None = None,
    strict: bool = True,
    **overrides: Any,
) -> Any:
    """A model, ready to encode: in eval mode, on the best device.

    The name decides whether it is a ``FaceModel``, of photographs, or a ``MeshModel``.

    Args:
        name: a model (``"ipd-fer"``: its default checkpoint), a checkpoint
            (``"ipd-fer.ferplus-lfw"``), a folder or ``.safetensors`` file with its card, or a Hub
            repository (``"hf-hub:org/name@revision"``). A ``Path`` is always a folder or file,
            whatever it is called; as text, a model of that name comes first.
        pretrained: False for random weights, in the architecture of the checkpoint if there is one.
        device: None for CUDA, else MPS, else the CPU.
        dtype: None for float32, which gives the same everywhere, whatever torch's default is;
            ``torch.float64``; ``torch.bfloat16`` or ``torch.float16`` for speed, see
            docs/performance.md for what they cost.
        compile: whether the networks are compiled by ``torch.compile`` when they first run, which
            takes a minute or so, and again for the first other batch size.
        jpeg: what decodes JPEG files: ``"pillow"``, in threads, with the same pixels everywhere, or
            ``"nvjpeg"``, on the NVIDIA GPU that the model is on, with others.
        licenses: licences that are acceptable for code, weights and training data; None for any.
        strict: whether a missing or unexpected tensor is an error.
        **overrides: architecture arguments that differ from the card's.

    Raises:
        UnknownNameError: if there is no such name; the message lists near matches.
        UnsupportedError: if ``compile`` is asked of a model that has nothing to compile, or a
            ``dtype`` in which its codes would be lost, or a ``jpeg`` that the device does not do.
        LicenseError: if a licence in the card is not in ``licenses``.
        TypeError: if ``name`` is neither text nor a path.
        RuntimeError: if ``device`` does not exist on this machine, or is neither CUDA, MPS nor the
            CPU.
        ValueError: if ``dtype`` or ``jpeg`` is none of these.
        WeightsError: if the weights cannot be found, trusted or fitted.
    """
    from facezoo.hub.files import find
    from facezoo.hub.names import family_of, resolve
    from facezoo.models.pretrained import build

    target, precision = best_device(device), _precision(dtype)
    if not pretrained and isinstance(name, str) and name in FAMILIES and not _has_card(name):
        model = build(model_class(name), None, None, overrides=overrides)
        return _ready(model, target, precision, compile, jpeg)
    source = resolve(name)
    _check_licenses(source.card, licenses, pretrained)
    family = family_of(source.card)
    path = find(source.card, source.path) if pretrained else None
    model = build(family, source.card, path, strict=strict, overrides=overrides)
    return _ready(model, target, precision, compile, jpeg)


def _ready(
    model: Any, device: torch.device, dtype: torch.dtype, compile: bool, jpeg: JpegDecoder
) -> Any:
    """On a device, in a precision, and in the memory order that convolutions are fastest in."""
    import torch

    if dtype in (torch.float16, torch.bfloat16):
        model.check_reduced_precision()
    model = model.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)
    if compile:
        model.compile_networks()
    if jpeg != "pillow":
        if not hasattr(model, "set_jpeg_decoder"):
            raise UnsupportedError(
                f"{model.model_name} takes meshes and no images; leave out jpeg={jpeg!r}"
            )
        model.set_jpeg_decoder(jpeg)
    return model


def best_device(device: str | torch.device | None = None) -> torch.device:
    """The device that is asked for, checked; or CUDA, else MPS, else the CPU.

    Raises:
        RuntimeError: if the device does not exist here, or is of another kind; nothing falls back
            to the CPU unasked.
    """
    import torch

    mps = torch.backends.mps.is_available()
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise RuntimeError(f"device={str(device)!r} is no device of torch; {_DEVICES}") from error
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise RuntimeError(f"device={str(device)!r} is none that models run on; {_DEVICES}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type == "cuda" and (chosen.index or 0) >= count:
        raise RuntimeError(
            f"device={str(device)!r} was asked for, but torch sees {count} CUDA devices; install a "
            "torch built for CUDA and check the driver, or pass device=None for the best there is"
        )
    if chosen.type == "mps" and not mps:
        raise RuntimeError(f"device={str(device)!r} was asked for, but torch has no MPS here")
    return chosen


def _precision(dtype: torch.dtype | str | None) -> torch.dtype:
    import torch

    from facezoo.hub.tensors import as_dtype

    wanted = as_dtype(dtype) or torch.float32
    if wanted not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise ValueError(
            f"dtype must be float32, float64, float16 or bfloat16 for a model, got {wanted}; int8 "
            "is a form of weights on disk, see save_pretrained"
        )
    return wanted


def _has_card(model: str) -> bool:
    return any(card.model == model for card in bundled_cards().values())


def _check_licenses(card: Card, licenses: Sequence[str] | None, pretrained: bool) -> None:
    """Refuse a checkpoint of which any part has another licence; random weights are code only."""
    if licenses is None:
        return
    if isinstance(licenses, str):
        raise TypeError(
            f"licenses must be a list of names, got {licenses!r}; wanted ({licenses!r},)"
        )
    held = {"code": card.licenses.code}
    if pretrained:
        held.update(weights=card.licenses.weights, data=card.licenses.data)
    allowed = {name.lower() for name in licenses}
    refused = [f"{part}: {name}" for part, name in held.items() if name.lower() not in allowed]
    if refused:
        raise LicenseError(
            f"{card.name} is refused, since its licences are not all among "
            f"{', '.join(licenses) or 'none at all'} ({'; '.join(refused)}); allow them, or choose "
            "another checkpoint: facezoo.info(name).licenses shows each one's"
        )
