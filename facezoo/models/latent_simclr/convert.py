"""Conversion of published StyleGAN2 generators and iresnet face recognizers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from facezoo.errors import WeightsError
from facezoo.hub.convert import read_pickle
from facezoo.hub.tensors import load_into, read_tensors, save
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator

MEAN_CODE = "mean_code"
"""Name of the mean code in our files."""
_CERTAIN = ("input.input", "style.1.weight", "convs.0.conv.weight")
"""Entries that every generator has."""
HEAD = ("bn2.", "fc.", "features.")
"""Prefixes of the head of a face recognizer."""


@dataclass(frozen=True)
class Published:
    """Published generator.

    Attributes:
        architecture: arguments of ``StyleGANGenerator``.
        tensors: its state dict.
        mean_code: center of W for truncation, (D,), or None.
    """

    architecture: dict[str, Any]
    tensors: dict[str, Tensor]
    mean_code: Tensor | None


def stylegan2_from(content: Mapping[str, Any], key: str = "g_ema") -> Published:
    """Read a StyleGAN2 generator from a checkpoint in rosinality's layout.

    Args:
        content: state dict, or a dictionary with one under ``key`` and optionally ``latent_avg``.
        key: ``"g_ema"`` for the EMA generator, ``"g"`` for the training one.

    Returns:
        Architecture, tensors and mean code.

    Raises:
        WeightsError: if ``content`` has no generator under ``key``.
    """
    tensors = content.get(key, content) if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping) or any(name not in tensors for name in _CERTAIN):
        raise WeightsError(
            f"no StyleGAN2 generator under {key!r}: {_described(content)}; expected a "
            "state dict with input.input, conv1.conv.weight and so on"
        )
    mean = content.get("latent_avg")
    center = mean.reshape(-1) if isinstance(mean, Tensor) else None
    return Published(_generator_architecture(tensors), dict(tensors), center)


def convert_generator(
    source: Path, target: Path | None = None, *, key: str | None = None, overwrite: bool = False
) -> Path:
    """Convert a published generator and its mean code to one safetensors file.

    Args:
        source: the pickled file.
        target: output file; None for ``source`` with the suffix ``.safetensors``.
        key: ``"g_ema"`` for the EMA generator, ``"g"`` for the training one; None for ``"g_ema"``.
        overwrite: replace ``target`` if it exists.

    Returns:
        Path of the written file, for ``load_generator``.

    Raises:
        FileExistsError: if ``target`` exists and ``overwrite`` is False.
        ValueError: if ``target`` does not end in ``.safetensors``.
        WeightsError: if ``source`` has no complete StyleGAN2 generator.
    """
    path = source.with_suffix(".safetensors") if target is None else target
    if path.suffix != ".safetensors":
        raise ValueError(f"target must end in .safetensors, got {path}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; remove it or choose another name")
    published = stylegan2_from(read_pickle(source), key or "g_ema")
    load_into(StyleGANGenerator(**published.architecture), published.tensors)
    tensors = dict(published.tensors)
    if published.mean_code is not None:
        tensors[MEAN_CODE] = published.mean_code
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(tensors, path)


def load_generator(path: str | Path) -> tuple[StyleGANGenerator, Tensor | None]:
    """Load a generator written by ``convert_generator`` or ``facezoo train stylegan2``.

    Returns:
        Generator in eval mode, and the center of W for truncation, (D,), or None.

    Raises:
        WeightsError: if the file has no StyleGAN2 generator.
    """
    tensors = read_tensors(path)
    center = tensors.pop(MEAN_CODE, None)
    published = stylegan2_from(tensors)
    generator = StyleGANGenerator(**published.architecture)
    load_into(generator, published.tensors)
    return generator.eval(), center


def _generator_architecture(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    layers = 1 + _count(tensors, r"convs\.(\d+)\.")
    size = 2 ** ((layers + 3) // 2)
    last = f"convs.{layers - 2}.conv.weight"
    # If the last layer is as wide as the first, larger multipliers give the same network.
    multiplier = tensors[last].shape[1] * size / 16384
    return {
        "size": size,
        "style_dim": tensors["style.1.weight"].shape[1],
        "mapping_layers": _count(tensors, r"style\.(\d+)\.weight"),
        "channel_multiplier": int(multiplier) if multiplier.is_integer() else multiplier,
        "max_channels": tensors["input.input"].shape[1],
    }


def iresnet_from(content: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a face recognizer in insightface's layout.

    Returns:
        Arguments of ``IResNet`` and its state dict.

    Raises:
        WeightsError: if ``content`` is not an iresnet.
    """
    if "conv1.weight" not in content or "layer1.0.prelu.weight" not in content:
        raise WeightsError(
            f"not an iresnet: the keys are {_listed(content)}; expected a state dict with "
            "conv1.weight, layer1.0.prelu.weight and so on"
        )
    tensors = dict(content)
    architecture: dict[str, Any] = {
        "depths": tuple(_count(tensors, rf"layer{s}\.(\d+)\.bn1\.weight") for s in range(1, 5)),
        "width": tensors["conv1.weight"].shape[0],
    }
    if "fc.weight" in tensors:
        features, flat = tensors["fc.weight"].shape
        pixels = flat // tensors["bn2.weight"].shape[0]
        architecture |= {"num_features": features, "size": 16 * round(pixels**0.5)}
    return architecture, tensors


def trunk_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of ``IResNetTrunk``: all but the head of a recognizer."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD)}


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """Count the different numbers in matching names."""
    matches = (re.match(pattern, name) for name in tensors)
    return len({match[1] for match in matches if match})


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"the file holds a {type(content).__name__}"
    return f"the keys are {_listed(content)}"


def _listed(content: Mapping[str, Any]) -> str:
    names = list(content)
    return ", ".join(map(repr, names[:8])) + (" and more" if len(names) > 8 else "")
