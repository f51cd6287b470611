"""Recipes of LatentFace: the paper's, and one for a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from facezoo.training.loop import Schedule
from facezoo.training.run import recipe_named


@dataclass(frozen=True)
class Autoencoding:
    """Settings of the first stage: eq. (5) to (9), and priors against collapse."""

    schedule: Schedule
    features: str = "ipd-fer"
    """Feature network of eq. (6): a checkpoint with an identity encoder, or a timm model."""
    feature_stage: int = 1
    """Stage of the network that returns the maps; stage 1 has a quarter of the crop's side."""
    lambda_feature: float = 1.0
    """λ_f, Sec. 3.1."""
    lambda_flip: float = 0.5
    """λ_flip, Sec. 3.1."""
    prior: float = 0.0
    """Initial weight of the distance from a convex depth map (ours); it decays linearly to 0."""
    prior_share: float = 0.2
    """Share of the stage over which it decays."""
    smoothness: float = 0.0
    """Weight of the depth roughness (ours); without it the depth explains texture."""
    grey: float = 0.0
    """Share of crops that are converted to gray (ours)."""


@dataclass(frozen=True)
class Disentangling:
    """Settings of the second stage: eq. (3), (4) and (10), on precomputed codes."""

    schedule: Schedule
    frames: int = 16
    """Images sampled per identity, Sec. 3.1."""
    snr_limit: float | None = float("inf")
    """Largest weight of eq. (10), which has no limit; None for eq. (4) without weights."""
    others: bool = False
    """Average only the other images of an identity (ours). With two or three images, an image's own
    code would dominate the mean."""


@dataclass(frozen=True)
class Recipe:
    """Settings of both stages."""

    autoencoding: Autoencoding
    disentangling: Disentangling
    architecture: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``LatentFace`` that differ from its defaults."""
    expression_directions: int = 3
    """Directions of the codes that show expression, for stage ``neutral`` (ours)."""


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
"""``paper`` follows Sec. 3.1, with VGG-16's third stage for eq. (6). ``compact`` takes 1.5 hours
on a CPU core: narrow networks at 64 pixels, a larger, decaying learning rate, a convex prior."""


def recipe(name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        UnknownNameError: if the name is unknown.
    """
    return recipe_named(RECIPES, name)
