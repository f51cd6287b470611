"""List, describe, download and load models.

Listing and describing read the cards only; the first ``load`` imports torch.
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
    from facezoo.runtimes import Runtime


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """List the names of models, or of their checkpoints.

    Args:
        pattern: shell-style, such as ``"*fer*"``.
        pretrained: list checkpoints (``"ipd-fer.ferplus-lfw"``) instead of models.

    Returns:
        Names in alphabetical order, for ``load``.

    Examples:
        >>> facezoo.list_models()
        ['adv3d', 'ipd-fer', 'latent-simclr', 'latentface']
        >>> facezoo.list_models("*fer*", pretrained=True)
        ['ipd-fer.ferplus-lfw']
    """
    names: Iterable[str] = FAMILIES
    if pretrained:
        names = [name for name, card in bundled_cards().items() if card.model in FAMILIES]
    return sorted(name for name in names if fnmatchcase(name, pattern))


def info(name: str | os.PathLike[str]) -> Card:
    """Return the card of a checkpoint: licenses, data, metrics, limits, input, size.

    Args:
        name: a checkpoint, a model for its default checkpoint, or a folder, file or ``hf-hub:``
            repository, as ``load`` takes it.

    Raises:
        UnknownNameError: if there is no such name; the message lists near matches.
        WeightsError: if a folder or repository has no card.

    Examples:
        >>> facezoo.info("ipd-fer").licenses.code
        'Apache-2.0'
    """
    cards = bundled_cards()
    if name in {*FAMILIES, *cards, *(card.model for card in cards.values())}:
        return card_named(str(name), FAMILIES)
    from facezoo.hub.names import resolve  # imports torch

    return resolve(name).card


def download(names: str | Iterable[str]) -> dict[str, Path]:
    """Fetch weights without building a model, for use without network.

    Args:
        names: checkpoints, models or ``hf-hub:`` repositories; one name or several.

    Returns:
        The verified file of each name, in the package or in the Hub cache.

    Raises:
        UnknownNameError: if a name is unknown, before the first download.
        WeightsError: if weights are missing, unreachable or corrupted.

    Examples:
        >>> facezoo.download("adv3d")["adv3d"].name
        'adv3d.ict-neutral.safetensors'
    """
    from facezoo.hub.files import find
    from facezoo.hub.names import resolve

    sources = {name: resolve(name) for name in ([names] if isinstance(names, str) else names)}
    return {name: find(source.card, source.path) for name, source in sources.items()}


def load(
    name: str | os.PathLike[str],
    *,
    pretrained: bool = True,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str | None = None,
    compile: bool = False,
    jpeg: JpegDecoder = "pillow",
    runtime: Runtime = "torch",
    licenses: Sequence[str] | None = None,
    strict: bool = True,
    **overrides: Any,
) -> Any:
    """Load a model that is ready to encode: in eval mode, on the best device.

    The name decides if the result is a ``FaceModel``, for images, or a ``MeshModel``.

    Args:
        name: a model (``"ipd-fer"``: its default checkpoint), a checkpoint
            (``"ipd-fer.ferplus-lfw"``), a folder or ``.safetensors`` file with its card, or a Hub
            repository (``"hf-hub:org/name@revision"``). A ``Path`` is always a local folder or
            file; as text, a model of that name comes first.
        pretrained: False for random weights, in the architecture of the checkpoint if there is one.
        device: None for CUDA, else MPS, else the CPU.
        dtype: None for float32, whatever torch's default is; ``torch.float64``;
            ``torch.bfloat16`` or ``torch.float16`` for speed at a small loss of precision.
        compile: compile the networks by ``torch.compile`` when they first run. This takes about a
            minute, and again for the first other batch size.
        jpeg: decoder of JPEG files: ``"pillow"``, in threads, with the same pixels everywhere, or
            ``"nvjpeg"``, on the NVIDIA GPU of the model, with slightly different pixels.
        runtime: what computes the networks of images and the face detector: ``"torch"``,
            ``"onnxruntime"`` in float32, or ``"openvino"`` in float32 or bfloat16. The others run
            on the CPU and need the extra of their name. They prepare the networks when these are
            first used, compare them with PyTorch, and keep them in ``~/.cache/facezoo``.
        licenses: acceptable licenses of code, weights and training data; None for any.
        strict: raise an error for a missing or unexpected tensor.
        **overrides: architecture arguments that differ from the card's.

    Raises:
        UnknownNameError: if there is no such name; the message lists near matches.
        UnsupportedError: if the model cannot be compiled, or loses its features in ``dtype``, or
            the device cannot decode by ``jpeg``, or the runtime cannot compute it.
        ImportError: if the runtime is missing.
        LicenseError: if a license in the card is not in ``licenses``.
        RuntimeError: if ``device`` does not exist on this machine.
        ValueError: if ``dtype``, ``jpeg`` or ``runtime`` is unknown.
        WeightsError: if the weights are missing, corrupted or of another shape.

    Examples:
        >>> model = facezoo.load("ipd-fer", device="cpu")
        >>> model.predict_expression("grace_hopper.jpg").labels
        ['neutral']
    """
    import torch

    from facezoo.hub.files import find
    from facezoo.hub.names import family_of, resolve
    from facezoo.hub.tensors import as_dtype
    from facezoo.models.pretrained import build

    if runtime != "torch":
        device = device or "cpu"
        if compile:
            raise ValueError("compile=True is for runtime='torch'; leave one of them out")
    target, precision = best_device(device), as_dtype(dtype) or torch.float32
    if precision not in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        raise ValueError(
            f"unknown dtype {dtype!r} for a model; expected float32, float64, float16 or bfloat16 "
            "(int8 is a form of weights on disk, see save_pretrained)"
        )
    has_card = name not in FAMILIES or any(c.model == name for c in bundled_cards().values())
    if pretrained or has_card:
        source = resolve(name)
        _check_licenses(source.card, licenses, pretrained)
        family = family_of(source.card)
        path = find(source.card, source.path) if pretrained else None
        model = build(family, source.card, path, strict=strict, overrides=overrides)
    else:
        model = build(model_class(str(name)), None, None, overrides=overrides)
    if precision in (torch.float16, torch.bfloat16):
        model.check_reduced_precision()
    # Parameters stay contiguous: safetensors and torch.nn.utils expect that.
    model = model.to(device=target, dtype=precision)
    if compile:
        model.compile_networks()
    if jpeg != "pillow":
        if not hasattr(model, "set_jpeg_decoder"):
            raise UnsupportedError(
                f"{model.model_name} takes meshes and no images; leave out jpeg={jpeg!r}"
            )
        model.set_jpeg_decoder(jpeg)
    if runtime != "torch":
        if not hasattr(model, "set_runtime"):
            raise UnsupportedError(
                f"{model.model_name} takes meshes and runs in PyTorch; leave out "
                f"runtime={runtime!r}"
            )
        model.set_runtime(runtime)
    return model


def best_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device of that name, or CUDA, else MPS, else the CPU.

    Raises:
        RuntimeError: if the device does not exist on this machine, or is of another kind.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if device is None:
        return torch.device("cuda" if count else "mps" if mps else "cpu")
    expected = "expected 'cpu', 'cuda', 'cuda:1', 'mps' or None for the best one"
    try:
        result = torch.device(device)
    except RuntimeError as error:
        raise RuntimeError(f"unknown device {str(device)!r}; {expected}") from error
    if result.type not in ("cpu", "cuda", "mps"):
        raise RuntimeError(f"models do not run on device {str(device)!r}; {expected}")
    if result.type == "cuda" and (result.index or 0) >= count:
        raise RuntimeError(
            f"there is no device {str(device)!r}: torch sees {count} CUDA devices; install a torch "
            "built for CUDA and check the driver, or leave device out"
        )
    if result.type == "mps" and not mps:
        raise RuntimeError("there is no device 'mps': torch has no MPS here; leave device out")
    return result


def _check_licenses(card: Card, licenses: Sequence[str] | None, pretrained: bool) -> None:
    """Raise LicenseError if a license is not acceptable; random weights need that of the code."""
    if licenses is None:
        return
    if isinstance(licenses, str):
        raise TypeError(f"licenses must be a list of names, got {licenses!r}; pass ({licenses!r},)")
    parts = {"code": card.licenses.code}
    if pretrained:
        parts.update(weights=card.licenses.weights, data=card.licenses.data)
    allowed = {name.lower() for name in licenses}
    if wrong := [f"{part}: {name}" for part, name in parts.items() if name.lower() not in allowed]:
        raise LicenseError(
            f"{card.name} has licenses that are not among {', '.join(licenses) or 'none at all'} "
            f"({'; '.join(wrong)}); allow them, or choose another checkpoint: "
            "facezoo.info(name).licenses shows each one's"
        )
