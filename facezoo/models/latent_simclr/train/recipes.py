"""Recipes of the three trainings: the papers', and one for a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from facezoo.training.loop import Schedule


@dataclass(frozen=True)
class Adversarial:
    """Settings of the generator: Karras et al. 2020, App. B, and ADA."""

    images: int
    """Number of real images shown to the discriminator."""
    batch_size: int = 32
    lr: float = 2e-3
    gamma: float = 0.1
    """Weight of the R1 penalty."""
    penalty_every: int = 16
    """Steps between penalties (lazy regularization)."""
    path_weight: float = 0.0
    """Weight of the path length penalty; 2 in the paper."""
    path_every: int = 4
    mixing: float = 0.9
    """Share of batches with mixed styles."""
    half_life: int = 10_000
    """Half-life of the EMA generator, images."""
    augmentation: int = 0
    """Images over which the ADA probability can rise from 0 to 1; 0 turns ADA off."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``StyleGANGenerator``; the discriminator has the same channels."""


@dataclass(frozen=True)
class Inverting:
    """Settings of the Feature-Style encoder."""

    schedule: Schedule
    features: str = "ipd-fer"
    """Network of the perceptual and the identity loss: a checkpoint with an identity encoder."""
    perceptual_stages: tuple[int, ...] = (1, 2)
    identity_stages: tuple[int, ...] = (3, 4)
    scales: int = 2
    """Number of scales of the perceptual loss: full size, half size and so on."""
    lambda_perceptual: float = 0.2
    lambda_identity: float = 0.1
    lambda_feature: float = 0.01
    grey: float = 0.2
    """Share of crops that are converted to gray."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Arguments of ``encoder_for`` that differ from its defaults."""


@dataclass(frozen=True)
class Contrasting:
    """Settings of the code encoders: Sec. II.III."""

    schedule: Schedule
    temperature: float = 0.5
    strength: float = 1.0
    """Slider range, in standard deviations of the codes."""
    expression_sliders: tuple[str, ...] = ("blur", "skin_tone", "yaw")
    """Sliders of the expression encoder's views; yaw is ours."""
    identity_sliders: tuple[str, ...] = ("blur", "yaw", "smile")
    """Sliders of the identity encoder's views."""
    mixing: bool = True
    """Views also replace styles by those of random faces, as in the paper."""
    linear_head: bool = False
    """The projection head is linear."""
    neighbors: int = 0
    """Ours: the views for expression are of two images. The second is one of this many with the
    nearest expression features. 0 for one image, as in the paper."""
    identity_epochs: int = 0
    """Ours: epochs of the identity encoder, whose views are of two images of an identity. 0 for one
    image, and the epochs of the expression encoder."""
    exchange: bool = False
    """Ours: views for identity get the expression of a random face, by the expression axes."""
    ferplus: bool = False
    """Codes and axes are also fitted to images of ``ferplus.parquet``."""
    expression_axes: int = 7
    """Number of coordinates of ``ExpressionAxes`` (ours); features of ipd-fer vary in 7."""
    identity_directions: int = 0
    """Ours: number of directions of identity that are removed from the expression features."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """``code_width`` and ``num_features`` of ``LatentSimCLR``."""


@dataclass(frozen=True)
class Recipe:
    """Settings of the three parts of a checkpoint."""

    generator: Adversarial
    inversion: Inverting
    contrast: Contrasting
    start: str | None = None
    """Checkpoint whose generator is kept and whose inverter is trained further."""
    wild: bool = False
    """Images of ``faces_wild.parquet`` are added, see ``read_face_crops``."""


PREVIEW = Recipe(
    Adversarial(
        images=320_000,
        lr=2.5e-3,
        gamma=0.05,
        augmentation=200_000,
        architecture={
            "size": 64,
            "style_dim": 128,
            "mapping_layers": 4,
            "channel_multiplier": 0.0625,
            "max_channels": 128,
        },
    ),
    Inverting(
        Schedule(6, batch_size=32, lr=1e-3, schedule="cosine", average=0.998),
        identity_stages=(3,),
        scales=1,
        architecture={"depths": (1, 2, 2, 2), "width": 24, "trunk_size": 64},
    ),
    Contrasting(
        Schedule(40, batch_size=512, lr=1e-3, schedule="cosine", average=0.99),
        temperature=1.0,
        architecture={"code_width": 128, "num_features": 256},
    ),
)

RECIPES = {
    "paper": Recipe(
        Adversarial(
            images=3_000_000,
            path_weight=2.0,
            augmentation=500_000,
            architecture={"size": 64, "style_dim": 512, "mapping_layers": 8},
        ),
        Inverting(Schedule(60, lr=1e-4), scales=3),
        Contrasting(Schedule(200, batch_size=512, lr=1e-3, schedule="cosine")),
    ),
    "preview": PREVIEW,
    "wild-preview": replace(
        PREVIEW,
        inversion=replace(
            PREVIEW.inversion,
            schedule=Schedule(12, batch_size=32, lr=8e-4, schedule="cosine", average=0.998),
        ),
        contrast=Contrasting(
            Schedule(10, batch_size=512, lr=1e-3, schedule="cosine", average=0.99),
            temperature=0.35,
            mixing=False,
            linear_head=True,
            neighbors=20,
            identity_epochs=30,
            exchange=True,
            ferplus=True,
            identity_directions=24,
            architecture={"code_width": 128, "num_features": 64},
        ),
        start="latent-simclr.wild-preview",
        wild=True,
    ),
}
"""``paper`` has the papers' widths at 64 pixels; ``preview`` takes 1.5 hours on a CPU core.
``wild-preview`` trains the included checkpoint further on more faces, without its generator."""
