"""Model families by name: where each class lives, imported when the first one is built."""

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
    """The class of a model family.

    Args:
        name: a key of ``FAMILIES``, such as ``"ipd-fer"``.

    Returns:
        A subclass of ``facezoo.FaceModel``.

    Raises:
        UnknownNameError: if there is no such family; the message lists near matches.
    """
    if name not in FAMILIES:
        near = get_close_matches(name, FAMILIES) or sorted(FAMILIES)
        raise UnknownNameError(f"no model named {name!r}; did you mean {' or '.join(near)}?")
    module, cls = FAMILIES[name]
    return getattr(import_module(module), cls)
