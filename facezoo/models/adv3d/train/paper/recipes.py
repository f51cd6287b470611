"""The paper's own recipes of adv3d, for its data sets and for ICT-3D.

Source: Gu, Pears & Sun, Sec. IV-B, and the authors' code where the paper gives no value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from facezoo.data.mesh_sets import FACESCAPE_VERTICES
from facezoo.models.adv3d.train.recipes import BU3DFE, COMA, FACESCAPE, Losses


@dataclass(frozen=True)
class PaperConfig:
    """One recipe; the defaults are FaceScape's without neutrals."""

    source: str = "facescape"
    """Of the meshes: a key of ``facezoo.data.registered.READERS``, or ``"ict"``."""
    losses: Losses = FACESCAPE
    neutrals: bool = False
    """Whether the true neutral of each training person is used."""
    expression_truth: bool = False
    """Whether, with neutrals, the true expression is used too; weighs as the neutral does."""
    size: str = "standard"
    """Of ICT-3D; the other sets have one size."""
    simplify_to: int | None = None
    """Vertices that are kept, about; None for all."""
    align: bool = False
    """Whether meshes are aligned by landmarks."""
    scale: float = 573.0
    """Millimetres that become 1, after the authors' code."""
    identity_dim: int = 64
    expression_dim: int = 64
    pretraining_epochs: int = 100
    pretraining_batch_size: int = 32
    epochs: int = 280
    batch_size: int = 32
    rate: float = 1e-4
    """Adam's, of both networks and of the pre-training."""
    weight_decay: float = 1e-4
    """Of the autoencoder; the authors' code's."""
    decay: float = 0.7
    """Times the rates, every ``decay_every`` epochs."""
    decay_every: int = 50
    kl_epochs: int | None = None
    """Epochs in which the KL terms would fall to nothing, linearly: the authors' code, for CoMA."""
    precision: str = "float16"
    """On disk."""


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
_ICT = PaperConfig(source="ict")
_ROUGH = replace(FACESCAPE, laplacian=0.0)
"""With neutrals there is no Laplacian term, except on BU-3DFE."""
_BOTH = {
    "facescape": _FACESCAPE,
    "facescape-neutral": replace(_FACESCAPE, neutrals=True, losses=_ROUGH),
    "bu-3dfe": _BU3DFE,
    "bu-3dfe-neutral": replace(_BU3DFE, neutrals=True, expression_truth=True),
    "coma": _COMA,
    "ict-paper": _ICT,
    "ict-paper-neutral": replace(_ICT, neutrals=True, losses=_ROUGH),
}
RECIPES = _BOTH | {
    f"{name}-no-discriminator": replace(
        chosen, losses=replace(chosen.losses, adversarial=0.0), pretraining_epochs=0
    )
    for name, chosen in _BOTH.items()
}
"""By name; those without discriminator are the ablation of Table IV. CoMA has none with neutrals:
its sequences hold no neutral mesh, and the paper does not say what took the place."""


def recipe(name: str) -> PaperConfig:
    """A recipe by its name.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe named {name!r}; there are {', '.join(RECIPES)}")
    return RECIPES[name]
