"""Model families by name; the class is imported when the first model is built."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import Any

from facezoo.errors import UnknownNameError

FAMILIES = {
    "adv3d": ("facezoo.models.adv3d", "Adv3D"),
    "ipd-fer": ("facezoo.models.ipd_fer", "IPDFER"),
    "latent-simclr": ("facezoo.models.latent_simclr", "LatentSimCLR"),
    "latentface": ("facezoo.models.latentface", "LatentFace"),
}


def model_class(name: str) -> Any:
    """Return the class of a model family.

    Args:
        name: a key of ``FAMILIES``, such as ``"ipd-fer"``.

    Returns:
        A subclass of ``FaceModel`` or ``MeshModel``.

    Raises:
        UnknownNameError: if there is no such family; the message lists near matches.
    """
    if name not in FAMILIES:
        near = get_close_matches(name, FAMILIES) or sorted(FAMILIES)
        raise UnknownNameError(f"no model named {name!r}; did you mean {' or '.join(near)}?")
    module, cls = FAMILIES[name]
    return getattr(import_module(module), cls)


COMMANDS = {
    "train adv3d": (
        "facezoo.models.adv3d.commands:TRAIN",
        "Train identity and expression of 3D face meshes.",
    ),
    "train face-detector": (
        "facezoo.models.face_detector.commands:TRAIN",
        "Train the face detector.",
    ),
    "train ipd-fer": (
        "facezoo.models.ipd_fer.commands:TRAIN",
        "Train expression features apart from identity and pose.",
    ),
    "train latentface": (
        "facezoo.models.latentface.commands:TRAIN",
        "Train autoencoders (1), the diffusion on their codes (2), or neutral codes.",
    ),
    "train stylegan2": (
        "facezoo.models.latent_simclr.commands:TRAIN_STYLEGAN2",
        "Train the generator, the first of three parts of latent-simclr.",
    ),
    "train feature-style": (
        "facezoo.models.latent_simclr.commands:TRAIN_FEATURE_STYLE",
        "Train the encoder of images, the second part of latent-simclr.",
    ),
    "train latent-simclr": (
        "facezoo.models.latent_simclr.commands:TRAIN_LATENT_SIMCLR",
        "Train the encoder of latent codes, the last part of latent-simclr.",
    ),
    "convert adv3d": (
        "facezoo.models.adv3d.commands:CONVERT",
        "Published VAE of 3D faces to a folder that load opens.",
    ),
    "convert latentface": (
        "facezoo.models.latentface.commands:CONVERT",
        "Published LatentFace checkpoint to a folder that load opens.",
    ),
    "convert stylegan2": (
        "facezoo.models.latent_simclr.commands:CONVERT_STYLEGAN2",
        "Published StyleGAN2 checkpoint to a .safetensors file.",
    ),
    "fit-directions": (
        "facezoo.models.latent_simclr.commands:fit_directions",
        "Fit directions of latent codes, for edits.",
    ),
}
"""Commands of the families: module and object that define each, and one line of help.

The table imports nothing, so that ``facezoo --help`` is fast. ``facezoo.models.commands`` has the
classes of the objects; ``fit-directions`` is a plain click command.
"""
