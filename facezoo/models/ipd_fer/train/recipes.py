"""Recipes of IPD-FER: the paper's, and one that a CPU can follow."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from facezoo.errors import UnknownNameError
from facezoo.training.run import recipe_named

SIZE, MARGIN = 112, 8
TEMPLATE = "arcface112"


@dataclass(frozen=True)
class StageConfig:
    """How one round of training goes."""

    epochs: int
    sizes: tuple[tuple[int, int], ...] = ((0, SIZE),)
    """Crop side from an epoch on: ((0, 64), (4, 112)) is four epochs at 64 px, then 112 px."""
    batch_size: int = 64
    rate: float = 1e-3
    schedule: Literal["cosine", "tenth"] = "cosine"
    """Half a cosine after the warm-up, or a tenth of the rate after every ten epochs."""
    warmup: float = 0.05
    """Share of a cycle, for the cosine."""
    cycles: int = 1
    """How often the cosine starts anew, warm-up included (warm restarts)."""
    weight_decay: float = 0.05
    average: float = 0.998
    """Decay of the moving average of the weights, which is what is kept; 0 keeps the weights."""


@dataclass(frozen=True)
class IdentityWeights:
    """Weights of the losses of the identity encoder, which are not in the paper."""

    regression: float = 1.0
    """Of ``teacher_loss``, on a linear map of f_id."""
    matching: float = 40.0
    """Of ``similarity_matching_loss``."""
    ranking: float = 0.3
    """Of ``similarity_ranking_loss``."""
    margin: float = 0.03
    """Of ``margin_loss`` over named identities."""
    same_identity: float = 0.5
    """Of ``same_identity_loss`` between two expressions of one identity."""


@dataclass(frozen=True)
class IdentityConfig:
    """Training of the identity encoder, which the paper takes ready-made."""

    round: StageConfig = StageConfig(
        36, ((0, 64), (20, 96), (27, 112)), 128, 1.5e-3, warmup=0.03, average=0.999
    )
    steps: int = 256
    """Batches per epoch."""
    singles: tuple[tuple[int, int], ...] = ((2, 72), (0, 20))
    """Images per batch without a partner, by pack: faces_wild, FER+."""
    pairs: int = 18
    """Pairs of images of one identity per batch."""
    queue: int = 4096
    """Earlier images that each image is compared with."""
    erased_directions: int = 3
    """Directions of the teacher's embeddings that show expression, removed from the target."""
    centering: float = 0.7
    """Share of the mean that is subtracted before cosines are compared: 1 spreads them most, and
    0 verifies best (99.2 % of the validation pairs instead of 98.6 %)."""
    weights: IdentityWeights = IdentityWeights()


@dataclass(frozen=True)
class Start:
    """The rounds before the last: what the paper takes ready-made, and a first E_exp."""

    identity: IdentityConfig = IdentityConfig()
    expression: StageConfig | None = StageConfig(10, ((0, 64), (5, 80), (8, 112)), rate=7e-4)
    """A first round for E_exp and C_exp by eq. (5); None starts them from E_id, as the paper."""
    settle: StageConfig = StageConfig(3, rate=3e-4, warmup=0.1, average=0.995)
    """A second one, which the step to full size leaves wanting; goes with ``expression``."""


@dataclass(frozen=True)
class Objective:
    """Equations (11) and (12): what there is beside the classifiers' cross-entropies."""

    lambdas: tuple[float, float, float, float] = (0.001, 0.001, 1.0, 10.0)
    """λ1 to λ4 of eq. (11), Sec. 4.2."""
    betas: tuple[float, float] = (0.5, 1.0)
    """β1 and β2 of eq. (12), Sec. 4.2."""
    discriminator: bool = True
    pose_backbone: str | None = "resnet18"
    decoder_size: int = 112
    decoder_width: int = 256
    joint: bool = False
    """One step of E_pose and E_exp per batch, along the sum of what Algorithm 1 takes in two."""
    expression_rank: int | None = None
    """Dimensions that f_exp may use, see ``IPDFER``; None for all, as the paper."""
    pictured: float = 1.0
    """Share of a batch whose pictures are made, for eqs. (1), (2) and (8) to (10)."""
    decoder_rate: float = 1.0
    """Factor on the learning rate of the decoder, which starts from nothing."""


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is trained, from the first round to the last."""

    main: StageConfig
    objective: Objective | None = Objective()
    """None for the baseline: E_exp and C_exp by eq. (5) alone."""
    start: Start = field(default_factory=Start)
    backbone: str = "resnet18"
    feature_dim: int = 512
    soft_labels: bool = False
    """Whether the targets are the shares of the votes instead of the majority's class."""
    lfw_trust: float = 0.0
    """Weight of LFW's machine-made expression labels beside FER+ in eq. (5); eqs. (1), (8) and (10)
    take them in full. 0 leaves LFW out."""
    precision: str = "int8"
    """On disk."""


_PAPER = StageConfig(30, batch_size=32, rate=1e-4, schedule="tenth", weight_decay=0.0, average=0.0)
_COMPACT = StageConfig(15, rate=5e-4, warmup=0.1, cycles=3)
_SMALL = Objective(
    pose_backbone="resnet10t",
    decoder_size=56,
    decoder_width=128,
    joint=True,
    expression_rank=12,
    pictured=0.25,
    decoder_rate=2.0,
)

RECIPES = {
    "paper": Recipe(_PAPER, start=Start(expression=None)),
    "paper-baseline": Recipe(_PAPER, None, start=Start(expression=None)),
    "compact": Recipe(_COMPACT, _SMALL, soft_labels=True, lfw_trust=0.3),
    "compact-baseline": Recipe(_COMPACT, None, soft_labels=True, lfw_trust=0.3),
}
"""``paper`` follows Sec. 4.2, with our own identity encoder; ``compact`` is what two CPU cores do
in hours: a shorter last round on vote distributions and LFW beside, small pose encoder and decoder,
f_exp in twelve dimensions, one update per batch, pictures of a quarter of it. A baseline takes as
many steps of E_exp per epoch as ``compact`` does; the paper's own algorithm takes two."""

ABLATIONS = ("confusion", "cos", "id", "recon", "discriminator", "pose", "rank")
"""What can be left out: the rows of Table 9, L_recon, which Sec. 4.4 names and Table 9 has no row
of, ID-FER of Table 8 (pose), and what is ours (rank)."""


def recipe(name: str, without: tuple[str, ...] = ()) -> Recipe:
    """A recipe by name, less some of its parts.

    Args:
        name: a key of ``RECIPES``.
        without: of ``ABLATIONS``.

    Raises:
        UnknownNameError: if there is no such recipe or part.
        ValueError: if parts are taken from a baseline, which has none.
    """
    chosen = recipe_named(RECIPES, name)
    if not without:
        return chosen
    if chosen.objective is None:
        raise ValueError(f"recipe {name!r} is a baseline, there is nothing to leave out of it")
    objective = chosen.objective
    for part in without:
        objective = _less(objective, part)
    return replace(chosen, objective=objective)


def _less(objective: Objective, part: str) -> Objective:
    """An objective without one of its parts."""
    neutral, expression, identity, reconstruction = objective.lambdas
    cosine, confusion = objective.betas
    if part == "confusion":
        return replace(objective, betas=(cosine, 0.0))
    if part == "cos":
        return replace(objective, betas=(0.0, confusion))
    if part == "id":
        return replace(objective, lambdas=(neutral, expression, 0.0, reconstruction))
    if part == "recon":
        return replace(objective, lambdas=(neutral, expression, identity, 0.0))
    if part == "discriminator":
        return replace(objective, discriminator=False, lambdas=(0.0, 0.0, identity, reconstruction))
    if part == "pose":
        return replace(objective, pose_backbone=None, betas=(cosine, 0.0))
    if part == "rank":
        return replace(objective, expression_rank=None)
    known = ", ".join(ABLATIONS)
    raise UnknownNameError(f"nothing named {part!r} to leave out; there are {known}")
