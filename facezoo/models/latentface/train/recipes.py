"""Recipes of LatentFace: the paper's, and one for a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from facezoo.training.loop import Schedule


@dataclass(frozen=True)
class Autoencoding:
    """Settings of the first stage: eq. (5) to (9), and priors against collapse."""

    schedule: Schedule
    features: str = "ipd-fer"
    """Feature network of eq. (6): a checkpoint with an identity encoder, or a timm model."""
    feature_stages: tuple[int, ...] = (1,)
    """Stages of the network that return the maps; stage 1 has a quarter of the crop's side. The
    loss is averaged over them."""
    lambda_expression: float = 0.0
    """Weight of the distance of maps of the expression encoder of ``features`` (ours). That encoder
    was trained with labels, so the codes are then not learned without supervision."""
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
    weighted: bool = True
    """Weight the steps by eq. (10), without a limit; False for eq. (4)."""
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
    wild: bool = False
    """Stage 1 also learns from ``faces_wild.parquet``, see ``read_face_crops``."""
    start: str | None = None
    """Checkpoint whose networks both stages start from, of the same architecture (ours)."""
    neutral: bool = False
    """Stage 2 ends with stage ``neutral``, whose codes are then part of the checkpoint (ours)."""
    expression_directions: int = 3
    """Directions of the codes that show expression, for stage ``neutral`` (ours)."""


COMPACT = {"width": 16, "number_width": 16, "unet_width": 64}
RECIPES = {
    "paper": Recipe(
        Autoencoding(Schedule(30), features="vgg16", feature_stages=(2,)),
        Disentangling(Schedule(30)),
        {"size": 128, "map_size": 3},
    ),
    "wild": Recipe(
        Autoencoding(
            Schedule(7, lr=4e-4, schedule="cosine", average=0.998),
            feature_stages=(1, 2, 3),
            lambda_expression=4.0,
            smoothness=3.0,
            grey=0.2,
        ),
        Disentangling(
            Schedule(20, lr=3e-4, schedule="cosine", average=0.998), weighted=False, others=True
        ),
        COMPACT,
        wild=True,
        expression_directions=5,
        start="latentface.lfw",
        neutral=True,
    ),
    "compact": Recipe(
        Autoencoding(
            Schedule(15, lr=5e-4, schedule="cosine", average=0.998),
            prior=20.0,
            smoothness=3.0,
            grey=0.2,
        ),
        Disentangling(
            Schedule(60, lr=5e-4, schedule="cosine", average=0.998), weighted=False, others=True
        ),
        COMPACT,
    ),
}
"""``paper`` follows Sec. 3.1, with VGG-16's third stage for eq. (6). ``compact`` takes 1.5 hours
on a CPU core: narrow networks at 64 pixels, a larger, decaying learning rate, a convex prior.
``wild`` trains the networks of ``compact`` further, on more faces and with more feature maps."""
