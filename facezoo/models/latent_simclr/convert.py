"""Published checkpoints to our modules: what architecture they have, and their tensors by name."""

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
"""The entry of our file that is no part of the generator."""
_CERTAIN = ("input.input", "style.1.weight", "convs.0.conv.weight")
"""Entries of every generator, by which its architecture is told."""
HEAD = ("bn2.", "fc.", "features.")
"""What a recogniser has behind the trunk."""


@dataclass(frozen=True)
class Published:
    """A generator as it was published.

    Attributes:
        architecture: arguments of ``StyleGANGenerator``.
        tensors: its state dict.
        mean_code: centre of W for truncation, (D,); None where the checkpoint has none.
    """

    architecture: dict[str, Any]
    tensors: dict[str, Tensor]
    mean_code: Tensor | None


def stylegan2_from(content: Mapping[str, Any], key: str = "g_ema") -> Published:
    """A StyleGAN2 generator from a checkpoint in the widespread PyTorch layout.

    Args:
        content: a state dict, or what holds one under ``key`` and perhaps ``latent_avg``.
        key: ``"g_ema"`` for the averaged generator, ``"g"`` for the one in training.

    Returns:
        Architecture, tensors and mean code.

    Raises:
        WeightsError: if there is no such generator.
    """
    tensors = content.get(key, content) if isinstance(content, Mapping) else None
    if not isinstance(tensors, Mapping) or any(name not in tensors for name in _CERTAIN):
        raise WeightsError(
            f"no StyleGAN2 generator under {key!r}: {_described(content)}; wanted is a "
            "state dict with input.input, conv1.conv.weight and so on"
        )
    mean = content.get("latent_avg")
    centre = mean.reshape(-1) if isinstance(mean, Tensor) else None
    return Published(_generator_architecture(tensors), dict(tensors), centre)


def convert_generator(
    source: Path, target: Path | None = None, *, key: str | None = None, overwrite: bool = False
) -> Path:
    """Convert a published generator to one safetensors file, its mean code included.

    Args:
        source: the pickled file.
        target: the file to write; None for ``source`` with the suffix ``.safetensors``.
        key: see ``stylegan2_from``; None for ``"g_ema"``.
        overwrite: whether ``target`` may be replaced.

    Returns:
        The file that was written, which ``load_generator`` takes.

    Raises:
        FileExistsError: if ``target`` is there and ``overwrite`` is False.
        ValueError: if ``target`` does not end in ``.safetensors``.
        WeightsError: if ``source`` holds no StyleGAN2 generator, or not a whole one.
    """
    path = source.with_suffix(".safetensors") if target is None else target
    if path.suffix != ".safetensors":
        raise ValueError(f"target must end in .safetensors, got {path}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; remove it or choose another name")
    published = stylegan2_from(read_pickle(source), key or "g_ema")
    load_into(StyleGANGenerator(**published.architecture), published.tensors)
    tensors = dict(published.tensors)
    if published.mean_code is not None:
        tensors[MEAN_CODE] = published.mean_code
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(tensors, path)


def load_generator(path: str | Path) -> tuple[StyleGANGenerator, Tensor | None]:
    """A generator from a file of ``convert_generator``, or of ``facezoo train stylegan2``.

    Returns:
        The generator in eval mode, and the centre of W for truncation, (D,), None where the file
        has none.

    Raises:
        WeightsError: if the file holds no StyleGAN2 generator.
    """
    tensors = read_tensors(path)
    centre = tensors.pop(MEAN_CODE, None)
    published = stylegan2_from(tensors)
    generator = StyleGANGenerator(**published.architecture)
    load_into(generator, published.tensors)
    return generator.eval(), centre


def _generator_architecture(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    layers = 1 + _count(tensors, r"convs\.(\d+)\.")
    size = 2 ** ((layers + 3) // 2)
    last = f"convs.{layers - 2}.conv.weight"
    # Where the last layer is as wide as the first, any larger multiplier gives the same network.
    multiplier = tensors[last].shape[1] * size / 16384
    return {
        "size": size,
        "style_dim": tensors["style.1.weight"].shape[1],
        "mapping_layers": _count(tensors, r"style\.(\d+)\.weight"),
        "channel_multiplier": int(multiplier) if multiplier.is_integer() else multiplier,
        "max_channels": tensors["input.input"].shape[1],
    }


def iresnet_from(content: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A recogniser in insightface's layout: arguments of ``IResNet`` and its state dict.

    Raises:
        WeightsError: if it is none.
    """
    if "conv1.weight" not in content or "layer1.0.prelu.weight" not in content:
        raise WeightsError(
            f"no iresnet: the keys are {_listed(content)}; wanted is a state dict with "
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
    """The part of a recogniser's state dict that ``IResNetTrunk`` has: all but its head."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(HEAD)}


def _count(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many different numbers stand in the names that match."""
    found = (re.match(pattern, name) for name in tensors)
    return len({match[1] for match in found if match})


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"the file holds one {type(content).__name__}"
    return f"the keys are {_listed(content)}"


def _listed(content: Mapping[str, Any]) -> str:
    names = list(content)
    return ", ".join(map(repr, names[:8])) + (" and more" if len(names) > 8 else "")
