"""Recipes of LatentFace: the paper's, and one that a CPU core can follow."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from facezoo.training.loop import Schedule
from facezoo.training.run import recipe_named


@dataclass(frozen=True)
class Autoencoding:
    """The first stage: eq. (5) to (9), and what keeps it from collapsing."""

    schedule: Schedule
    features: str = "ipd-fer"
    """Feature network of eq. (6): a checkpoint with an identity encoder, or a timm model."""
    feature_stage: int = 1
    """Which of its stages gives the maps; 1 is the one of a quarter of the crop's side."""
    lambda_feature: float = 1.0
    """λ_f, Sec. 3.1."""
    lambda_flip: float = 0.5
    """λ_flip, Sec. 3.1."""
    prior: float = 0.0
    """Weight at the beginning of the distance from a convex depth map (ours); it goes down to 0 in
    a straight line."""
    prior_share: float = 0.2
    """Share of the stage in which it does."""
    smoothness: float = 0.0
    """Weight of the depth maps' roughness (ours), which otherwise takes over what is texture."""
    grey: float = 0.0
    """Share of the crops that lose their colour (ours)."""


@dataclass(frozen=True)
class Disentangling:
    """The second stage: eq. (3), (4) and (10), on codes that are computed once."""

    schedule: Schedule
    frames: int = 16
    """Images that are drawn of one identity at a time, Sec. 3.1."""
    snr_limit: float | None = float("inf")
    """Largest weight of eq. (10), which has no limit; None for eq. (4), which weighs all alike."""
    others: bool = False
    """Whether the identity of a photograph is the mean code of the person's other ones (ours), in
    place of all: of two or three, its own part would be much of the mean."""


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is trained."""

    autoencoding: Autoencoding
    disentangling: Disentangling
    architecture: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``LatentFace`` that differ from its defaults."""


RECIPES = {
    "paper": Recipe(
        Autoencoding(Schedule(30), features="vgg16", feature_stage=2),
        Disentangling(Schedule(30)),
        {"size": 128, "map_size": 3},
    ),
    "compact": Recipe(
        Autoencoding(
            Schedule(15, lr=5e-4, schedule="cosine", average=0.998),
            prior=20.0,
            smoothness=3.0,
            grey=0.2,
        ),
        Disentangling(
            Schedule(60, lr=5e-4, schedule="cosine", average=0.998), snr_limit=None, others=True
        ),
        {"width": 16, "number_width": 16, "unet_width": 64},
    ),
}
"""``paper`` follows Sec. 3.1, with VGG-16's third stage for eq. (6); ``compact`` is what one CPU
core does in an hour and a half: narrow networks at 64 pixels, a larger rate that falls, and a
convex depth map to begin with."""


def recipe(name: str) -> Recipe:
    """A recipe by name.

    Raises:
        UnknownNameError: if there is no such recipe.
    """
    return recipe_named(RECIPES, name)
