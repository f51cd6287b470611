"""Recipes of adv3d: loss weights, sizes and rates.

Source: Gu, Pears & Sun, Sec. IV-B, and the authors' code where the paper gives no value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from facezoo.training.run import recipe_named


@dataclass(frozen=True)
class Losses:
    """Loss weights, named after what they weigh; the paper's symbols stand behind."""

    reconstruction: float = 5000.0
    """λ1."""
    neutral_truth: float = 1.0
    """λ6 of the authors' code, times λ1: where neutrals are known."""
    kl: float = 3e-5
    """λ2, of both codes; the value is the authors' code's."""
    adversarial: float = 5e-4
    """λ3; 0 for no discriminator."""
    consistency: float = 1e-2
    """λ4, of L_neu; the value is the authors' code's."""
    laplacian: float = 1e-2
    """λ5; used without neutrals, as the paper says. The value is the authors' code's."""
    rest: float = 0.0
    """Ours, see ``rest_loss``."""
    independence: float = 0.0
    """Ours, see ``independence_loss``."""
    centre: float = 0.0
    """Ours: of the mean square of the mean expression, which fixes what both parts could share."""


FACESCAPE = Losses()
BU3DFE = Losses(
    reconstruction=250.0, neutral_truth=0.5, adversarial=1e-3, consistency=5e-2, laplacian=10.0
)
COMA = Losses(kl=5e-7, consistency=5e-3)
"""Loss weights of Sec. IV-B for the paper's data sets, and of the authors' code where the paper
gives none. Where both do, the paper's: the code has λ1 = 600 for CoMA without neutrals."""
HERE = Losses(
    reconstruction=20_000.0,
    adversarial=3e-2,
    rest=2e-2,
    independence=5e-2,
    centre=20_000.0,
)
"""For ICT-3D; docs/models/adv3d.md says why it is not FaceScape's."""

WITH_NEUTRALS = replace(
    HERE, neutral_truth=3.0, kl=1e-6, adversarial=5e-4, rest=0.0, independence=0.0, centre=0.0
)
"""The same where neutrals are known, which leaves nothing to find out about expressions."""


@dataclass(frozen=True)
class TrainConfig:
    """The recipe of a checkpoint."""

    tag: str
    neutrals: bool = False
    """Whether the true neutral of each training person is used."""
    size: str = "standard"
    """Of ICT-3D."""
    identity_dim: int = 64
    expression_dim: int = 64
    hidden_dim: int = 512
    """Of the encoder, beside its features."""
    scale: float = 573.0
    """Millimetres that become 1; the authors' code's for FaceScape."""
    losses: Losses = HERE
    anchor_spreads: tuple[float, float] = (15.0, 150.0)
    """Of the encoder's anchor points about the face, millimetres, smallest and largest."""
    mixtures: int = 112_000
    """Rows that are mixtures of meshes, beside the meshes themselves."""
    spoilt: int = 0
    """Rows more, mixtures of which the cloud of points is spoilt."""
    components: int = 150
    """Principal axes of the training meshes, at most."""
    penalty: float = 1.0
    """Of the ridge regression from features to scores."""
    reading_steps: int = 9000
    """Of the hidden units."""
    pretraining_steps: int = 200
    steps: int = 10_000
    batch_size: int = 32
    population: int = 512
    """Meshes that the mean expression is taken over."""
    pair_widths: tuple[int, int, int] = (32, 64, 256)
    """Of the discriminator over points."""
    pair_head: tuple[int, int] = (256, 128)
    """Of the discriminator behind them."""
    pair_vertices: int = 64
    """V: vertices that the discriminator sees of a pair, drawn anew in every step."""
    pair_noise: tuple[float, float] = (4.0, 0.3)
    """Millimetres, standard deviation of noise on the second face of every pair, at the start and
    from seven tenths of the joint training on: what the discriminator knows is coarse first."""
    rate: float = 2e-3
    decoder_rate: float = 0.5
    """Times ``rate``."""
    discriminator_rate: float = 3e-4
    momentum: tuple[float, float] = (0.5, 0.99)
    """Adam's, of both networks."""
    average: float = 0.99
    """Decay of the moving average of the autoencoder, which is what is kept."""
    precision: str = "float16"
    """On disk."""


ICT = TrainConfig("ict")
RECIPES = {
    "ict": ICT,
    "ict-scans": replace(ICT, tag="ict-scans", spoilt=8000),
    "ict-no-discriminator": replace(
        ICT, tag="ict-no-discriminator", losses=replace(HERE, adversarial=0.0)
    ),
    "ict-neutral": replace(
        ICT,
        tag="ict-neutral",
        neutrals=True,
        losses=WITH_NEUTRALS,
        reading_steps=30_000,
        steps=4000,
        rate=3e-4,
    ),
}


def recipe(name: str) -> TrainConfig:
    """A recipe by name.

    Raises:
        UnknownNameError: if there is none.
    """
    return recipe_named(RECIPES, name)
