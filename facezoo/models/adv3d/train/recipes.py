"""Recipes of adv3d: loss weights, sizes and learning rates of both trainings.

Source: Gu, Pears & Sun, Sec. IV-B, and the authors' code where the paper gives no value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from facezoo.data.mesh_sets import FACESCAPE_VERTICES
from facezoo.training.run import recipe_named


@dataclass(frozen=True)
class Losses:
    """Loss weights; the comments give the symbols of the paper."""

    reconstruction: float = 5000.0
    """λ1."""
    neutral_truth: float = 1.0
    """λ6 of the authors' code, times λ1; used with known neutrals."""
    kl: float = 3e-5
    """λ2, of both codes; value of the authors' code."""
    adversarial: float = 5e-4
    """λ3; 0 trains without a discriminator."""
    consistency: float = 1e-2
    """λ4, of L_neu; value of the authors' code."""
    laplacian: float = 1e-2
    """λ5, used without neutrals as in the paper; value of the authors' code."""
    rest: float = 0.0
    """Ours, see ``rest_loss``."""
    independence: float = 0.0
    """Ours, see ``independence_loss``."""
    center: float = 0.0
    """Ours: mean square of the mean expression, which fixes the split between both parts."""


FACESCAPE = Losses()
BU3DFE = Losses(
    reconstruction=250.0, neutral_truth=0.5, adversarial=1e-3, consistency=5e-2, laplacian=10.0
)
COMA = Losses(kl=5e-7, consistency=5e-3)
"""Weights of Sec. IV-B, and of the authors' code where the paper gives none. Where both differ, the
paper's: the code has λ1 = 600 for CoMA without neutrals."""
OURS = Losses(
    reconstruction=20_000.0, adversarial=3e-2, rest=2e-2, independence=5e-2, center=20_000.0
)
"""For ICT-3D; docs/models/adv3d.md explains the differences from FaceScape's."""
OURS_WITH_NEUTRALS = replace(
    OURS, neutral_truth=3.0, kl=1e-6, adversarial=5e-4, rest=0.0, independence=0.0, center=0.0
)
"""For ICT-3D with known neutrals, which define the expressions."""


@dataclass(frozen=True)
class IctConfig:
    """Recipe of our training on ICT-3D."""

    neutrals: bool = False
    """Use the true neutral of each training identity."""
    size: str = "standard"
    """Of ICT-3D."""
    identity_dim: int = 64
    expression_dim: int = 64
    hidden_dim: int = 512
    """Hidden units of the encoder, next to its features."""
    scale: float = 573.0
    """Millimeters that become 1; value of the authors' code for FaceScape."""
    losses: Losses = OURS
    anchor_spreads: tuple[float, float] = (15.0, 150.0)
    """Smallest and largest distance of the encoder's anchors from the face, millimeters."""
    mixtures: int = 112_000
    """Rows that are mixtures of meshes, in addition to the meshes."""
    registered: int = 0
    """Further mixtures, with the errors of registration."""
    registrations: int = 280
    """Training meshes that are registered for these errors."""
    corrupted: int = 0
    """Further mixtures, with corrupted point clouds."""
    components: int = 150
    """Maximum number of principal axes of the training meshes."""
    penalty: float = 1.0
    """Of the ridge regression from features to scores."""
    regressor_steps: int = 9000
    """Training steps of the hidden units."""
    pretraining_steps: int = 200
    steps: int = 10_000
    batch_size: int = 32
    population: int = 512
    """Meshes in the average of the mean expression."""
    pair_widths: tuple[int, int, int] = (32, 64, 256)
    """Discriminator widths over points."""
    pair_head: tuple[int, int] = (256, 128)
    """Discriminator widths after pooling."""
    pair_vertices: int = 64
    """V: random vertices of a pair that the discriminator receives in each step."""
    pair_noise: tuple[float, float] = (4.0, 0.3)
    """Standard deviation of the noise on the second face of a pair, millimeters: at the start, and
    from 70 % of the joint training on."""
    lr: float = 2e-3
    decoder_lr_scale: float = 0.5
    discriminator_lr: float = 3e-4
    betas: tuple[float, float] = (0.5, 0.99)
    """Of Adam, both networks."""
    ema_decay: float = 0.99
    """Of the autoencoder's weights; the checkpoint stores the average."""
    precision: str = "float16"
    """Of the weights on disk."""


@dataclass(frozen=True)
class PaperConfig:
    """Recipe of the paper's training; the defaults are FaceScape without neutrals."""

    source: str = "facescape"
    """Data set: a key of ``facezoo.data.registered.READERS``, or ``"ict"``."""
    losses: Losses = FACESCAPE
    neutrals: bool = False
    """Use the true neutral of each training identity."""
    expression_truth: bool = False
    """With neutrals: use the true expression too, with the weight of the neutral."""
    size: str = "standard"
    """Of ICT-3D; the other sets have one size."""
    simplify_to: int | None = None
    """Approximate number of vertices to keep; None keeps all."""
    align: bool = False
    """Align meshes by landmarks."""
    scale: float = 573.0
    """Millimeters that become 1; values of the authors' code."""
    identity_dim: int = 64
    expression_dim: int = 64
    pretraining_epochs: int = 100
    pretraining_batch_size: int = 32
    epochs: int = 280
    batch_size: int = 32
    lr: float = 1e-4
    """Of Adam, both networks and the pretraining."""
    weight_decay: float = 1e-4
    """Of the autoencoder; value of the authors' code."""
    lr_decay: float = 0.7
    """Factor on the learning rates every ``lr_decay_every`` epochs."""
    lr_decay_every: int = 50
    kl_epochs: int | None = None
    """Epochs over which the KL weight falls to 0, linearly: the authors' code, for CoMA."""
    precision: str = "float16"
    """Of the weights on disk."""


_ICT = IctConfig()
_ICT_NEUTRAL = replace(
    _ICT, neutrals=True, losses=OURS_WITH_NEUTRALS, regressor_steps=30_000, steps=4000, lr=3e-4
)
_FACESCAPE = PaperConfig(simplify_to=FACESCAPE_VERTICES)
_BU3DFE = PaperConfig(
    source="bu-3dfe",
    losses=BU3DFE,
    align=True,
    scale=156.0,
    identity_dim=40,
    expression_dim=40,
    batch_size=8,
)
_COMA = PaperConfig(
    source="coma",
    losses=COMA,
    scale=260.0,
    identity_dim=4,
    expression_dim=4,
    pretraining_epochs=50,
    epochs=300,
    kl_epochs=350,
)
_NO_LAPLACIAN = replace(FACESCAPE, laplacian=0.0)
"""With neutrals there is no Laplacian term, except on BU-3DFE."""
_PAPER = {
    "facescape": _FACESCAPE,
    "facescape-neutral": replace(_FACESCAPE, neutrals=True, losses=_NO_LAPLACIAN),
    "bu-3dfe": _BU3DFE,
    "bu-3dfe-neutral": replace(_BU3DFE, neutrals=True, expression_truth=True),
    "coma": _COMA,
    "ict-paper": PaperConfig(source="ict"),
    "ict-paper-neutral": PaperConfig(source="ict", neutrals=True, losses=_NO_LAPLACIAN),
}
"""CoMA has no recipe with neutrals: its sequences contain no neutral mesh."""
RECIPES: dict[str, IctConfig | PaperConfig] = {
    "ict": _ICT,
    "ict-scans": replace(_ICT, corrupted=8000),
    "ict-registered": replace(_ICT, mixtures=84_000, registered=28_000),
    "ict-no-discriminator": replace(_ICT, losses=replace(OURS, adversarial=0.0)),
    "ict-neutral": _ICT_NEUTRAL,
    "ict-neutral-registered": replace(_ICT_NEUTRAL, mixtures=84_000, registered=28_000),
    **_PAPER,
    **{
        f"{name}-no-discriminator": replace(
            config, losses=replace(config.losses, adversarial=0.0), pretraining_epochs=0
        )
        for name, config in _PAPER.items()
    },
}
"""By name. The paper's recipes without a discriminator are the ablation of Table IV."""


def recipe(name: str) -> IctConfig | PaperConfig:
    """Look up a recipe by name.

    Raises:
        UnknownNameError: if there is no such recipe.
    """
    return recipe_named(RECIPES, name)
