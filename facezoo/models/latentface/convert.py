"""Conversion of published Unsup3D and LatentFace checkpoints.

They are dictionaries of the state dicts ``netD``, ``netA``, ``netL``, ``netV`` and ``netC``, for
LatentFace also ``netEA`` and ``netED``. Training checkpoints also hold optimizers and counters.
Only names are changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from facezoo.errors import WeightsError
from facezoo.hub.convert import read_pickle
from facezoo.hub.names import CONFIG
from facezoo.hub.tensors import load_into
from facezoo.models.latentface.model import LatentFace
from facezoo.models.pretrained import card_of_published

NETWORKS = {
    "netD": "shape_autoencoder",
    "netA": "texture_autoencoder",
    "netL": "light_encoder",
    "netV": "view_encoder",
    "netC": "confidence_network",
    "netEA": "texture_diffusion.unet",
    "netED": "shape_diffusion.unet",
}
"""Published network name to ours."""

# Layers of Unsup3D's netD and netA up to and including the code's ReLU; the decoder comes after.
ENCODER_LAYERS = 13

# Order matters: the first matching pattern wins.
_AUTOENCODER = [(r"network1\.", "encoder."), (r"network2\.", "decoder.")]
_CONFIDENCE = [(r"out_net1\.", "pixel_head."), (r"out_net2\.", "feature_head.")]
_UNET = [
    (r"time_embedding\.linear_1\.", "time_embedding.0."),
    (r"time_embedding\.linear_2\.", "time_embedding.2."),
    (r"down_blocks\.0\.resnets\.", "down."),
    (r"mid_block\.resnets\.", "middle."),
    (r"up_blocks\.0\.resnets\.", "up."),
    (r"mid_block\.attentions\.0\.group_norm\.", "attention.norm."),
    # diffusers 0.14 has the first name of each pair, later versions the second.
    (r"mid_block\.attentions\.0\.(?:query|to_q)\.", "attention.query."),
    (r"mid_block\.attentions\.0\.(?:key|to_k)\.", "attention.key."),
    (r"mid_block\.attentions\.0\.(?:value|to_v)\.", "attention.value."),
    (r"mid_block\.attentions\.0\.(?:proj_attn|to_out\.0)\.", "attention.out."),
    (r"conv_norm_out\.", "norm_out."),
]
_UNET_INNER = [(r"\.time_emb_proj\.", ".time."), (r"\.conv_shortcut\.", ".shortcut.")]


def convert_file(source: Path, target: Path | None = None, *, overwrite: bool = False) -> Path:
    """Convert a published checkpoint to a folder that ``facezoo.load`` takes.

    Args:
        source: the pickled file.
        target: the folder to write; None for ``source`` without its suffix.
        overwrite: whether a checkpoint that is there may be replaced.

    Returns:
        The folder, with weights, card and README.

    Raises:
        FileExistsError: if the folder has a checkpoint and ``overwrite`` is False.
        WeightsError: if ``source`` is not a checkpoint of Unsup3D or LatentFace at 64 pixels.
    """
    folder = source.with_suffix("") if target is None else target
    if (folder / CONFIG).exists() and not overwrite:
        raise FileExistsError(f"{folder} has a checkpoint already; remove it or choose another")
    tensors = convert_checkpoint(read_pickle(source))
    model = LatentFace(**architecture_of(tensors))
    load_into(model, tensors)
    return model.save_pretrained(folder, card=card_of_published(model, source.name))


def convert_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert a published checkpoint to one state dict of ``LatentFace``.

    Args:
        checkpoint: content of the file; entries that are not networks are ignored.

    Returns:
        Tensors by our names; ``architecture_of`` returns the matching architecture.

    Raises:
        WeightsError: if a network of the first stage is missing; the message lists the entries.
    """
    entries = checkpoint if isinstance(checkpoint, Mapping) else {}
    networks = {name: part for name, part in entries.items() if isinstance(part, Mapping)}
    missing = [name for name in ("netD", "netA", "netL", "netV") if name not in networks]
    if missing:
        raise WeightsError(
            f"not a checkpoint of Unsup3D or LatentFace: {', '.join(missing)} missing, got "
            f"{', '.join(map(repr, entries)) or type(checkpoint).__name__}; pass the file that "
            "holds all networks"
        )
    return {
        f"{ours}.{_renamed(theirs, name.removeprefix('module.'))}": tensor
        for theirs, ours in NETWORKS.items()
        if theirs in networks
        for name, tensor in networks[theirs].items()
    }


def architecture_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the arguments of ``LatentFace`` from converted tensors.

    Args:
        tensors: result of ``convert_checkpoint``.

    Returns:
        Keyword arguments, with the sampler of the published results.

    Raises:
        WeightsError: if the layers are not of a 64-pixel model.
    """
    layout = [name for name in tensors if name.startswith("light_encoder.network.")]
    if "light_encoder.network.10.weight" not in layout or len(layout) != 6:
        raise WeightsError(
            "unexpected layers in the light encoder: "
            f"{', '.join(layout) or 'none'}; expected a checkpoint for 64 x 64 images, the only "
            "published size"
        )
    ends = [f"shape_autoencoder.encoder.{layer}.weight" for layer in (0, ENCODER_LAYERS - 2)]
    if missing := [name for name in ends if name not in tensors]:
        raise WeightsError(
            f"not a checkpoint of Unsup3D or LatentFace: {', '.join(missing)} missing"
        )
    diffusion = "texture_diffusion.unet.conv_in.weight" in tensors
    unet = {"unet_width": len(tensors["texture_diffusion.unet.conv_in.bias"])} if diffusion else {}
    return {
        "size": 64,
        "width": len(tensors["shape_autoencoder.encoder.0.weight"]),
        "number_width": len(tensors["light_encoder.network.0.weight"]),
        "code_dim": len(tensors["shape_autoencoder.encoder.11.weight"]),
        "diffusion": diffusion,
        "confidence": "confidence_network.network.0.weight" in tensors,
        "map_size": 1,
        "sampler": "diffusers-0.14",
        **unet,
    }


def _renamed(network: str, name: str) -> str:
    if network in ("netL", "netV"):
        return name
    if network == "netC":
        return _replaced(name, _CONFIDENCE)
    if network in ("netEA", "netED"):
        for pattern, new in _UNET_INNER:
            name = re.sub(pattern, new, name)
        return _replaced(name, _UNET)
    layer = re.fullmatch(r"network\.(\d+)\.(\w+)", name)
    if layer is None:
        return _replaced(name, _AUTOENCODER)
    index = int(layer[1])
    if index < ENCODER_LAYERS:
        return f"encoder.{index}.{layer[2]}"
    return f"decoder.{index - ENCODER_LAYERS}.{layer[2]}"


def _replaced(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, new in rules:
        if re.match(pattern, name):
            return re.sub(f"^{pattern}", new, name)
    return name
