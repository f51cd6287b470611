"""Recipes of adv3d: loss weights, sizes and rates.

Source: Gu, Pears & Sun, Sec. IV-B, and the authors' code where the paper gives no value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


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


FACESCAPE = Losses()
BU3DFE = Losses(
    reconstruction=250.0, neutral_truth=0.5, adversarial=1e-3, consistency=5e-2, laplacian=10.0
)
COMA = Losses(kl=5e-7, consistency=5e-3)
COMA_NEUTRAL = Losses(kl=3e-3, neutral_truth=5.0, consistency=7e-3, laplacian=7e-3)
"""Loss weights of Sec. IV-B for the paper's data sets, and of the authors' code where the paper
gives none. Where both do, the paper's: the code has λ1 = 600 for CoMA without neutrals and
λ3 = 1e-5 with."""
HERE = replace(FACESCAPE, adversarial=1e-2)
"""For ICT-3D: FaceScape's, with the adversarial term twenty times as heavy, for the paper trains a
hundred times as many steps."""


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
    scale: float = 573.0
    """Millimetres that become 1; the authors' code's for FaceScape."""
    losses: Losses = HERE
    anchor_spreads: tuple[float, ...] = (35.0, 100.0)
    """Of the encoder's anchor points about the face, millimetres."""
    mixtures: int = 7800
    """Rows that are mixtures of meshes, beside the meshes themselves."""
    components: int = 150
    """Principal axes of the training meshes, at most."""
    penalty: float = 1.0
    """Of the ridge regression from features to scores."""
    pretraining_steps: int = 200
    steps: int = 6000
    batch_size: int = 16
    pair_vertices: int = 64
    """V: vertices that the discriminator sees of a pair, drawn anew in every step."""
    pair_noise: float = 1.0
    """Millimetres, standard deviation of noise on the second face of every pair: it hides that a
    decoded face has fewer degrees of freedom than a real one, which is not what is asked."""
    identity_share: float = 0.05
    """Of the reconstruction's gradient that reaches the identity branch. The sum of both branches
    must stay the mesh while identity moves from one to the other; at 1 that valley is too steep to
    follow in so few steps."""
    encoded_again: int = 4
    """Decoded identities of a batch that L_neu encodes again."""
    rate: float = 3e-3
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
ICT_NEUTRAL = TrainConfig("ict-neutral", neutrals=True)
RECIPES = {
    "ict": ICT,
    "ict-no-discriminator": replace(
        ICT, tag="ict-no-discriminator", losses=replace(HERE, adversarial=0.0)
    ),
    "ict-neutral": ICT_NEUTRAL,
}
