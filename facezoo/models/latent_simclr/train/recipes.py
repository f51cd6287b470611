"""Recipes of the three trainings: the papers', and those that a CPU can follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from facezoo.errors import UnknownNameError


@dataclass(frozen=True)
class Adversarial:
    """How a generator is trained: Karras et al. 2020, App. B, and ADA."""

    images: int
    """Real images that the discriminator sees."""
    batch_size: int = 32
    rate: float = 2e-3
    gamma: float = 0.1
    """Of the R1 penalty."""
    penalty_every: int = 16
    """Steps between penalties, which weigh as much more (lazy regularisation)."""
    path_weight: float = 0.0
    """Of the path length penalty; 2 in the paper."""
    path_every: int = 4
    mixing: float = 0.9
    """Share of the codes of which a part of the styles is another code's."""
    half_life: int = 10_000
    """Images in which an old weight counts half in the averaged generator."""
    augmentation: int = 0
    """Images in which the strength of the augmentation may go from 0 to 1; 0 for none."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``StyleGANGenerator``; the discriminator has the same channels."""


@dataclass(frozen=True)
class Recipe:
    """How the parts of a checkpoint are trained, one after the other."""

    generator: Adversarial


RECIPES = {
    "paper": Recipe(
        Adversarial(
            images=3_000_000,
            path_weight=2.0,
            augmentation=500_000,
            architecture={"size": 64, "style_dim": 512, "mapping_layers": 8},
        )
    ),
    "preview": Recipe(
        Adversarial(
            images=320_000,
            rate=2.5e-3,
            gamma=0.05,
            augmentation=200_000,
            architecture={
                "size": 64,
                "style_dim": 128,
                "mapping_layers": 4,
                "channel_multiplier": 0.0625,
                "max_channels": 128,
            },
        )
    ),
}
"""``paper`` has the papers' widths at 64 pixels, for a GPU; ``preview`` is what one CPU core does
in an hour and a half."""


def recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        UnknownNameError: if there is no such recipe.
    """
    if name not in RECIPES:
        near = get_close_matches(name, RECIPES) or sorted(RECIPES)
        raise UnknownNameError(f"no recipe named {name!r}; did you mean {' or '.join(near)}?")
    return RECIPES[name]
