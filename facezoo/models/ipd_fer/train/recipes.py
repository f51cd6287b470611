"""Recipes of IPD-FER: the paper's, and one for two CPU cores."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from facezoo.errors import UnknownNameError
from facezoo.training.loop import Schedule
from facezoo.training.run import recipe_named

SIZE, MARGIN = 112, 8
TEMPLATE = "arcface112"


@dataclass(frozen=True)
class Stage(Schedule):
    """Length, crop sides, learning rate and weight decay of one stage."""

    batch_size: int = 64
    lr: float = 1e-3
    schedule: str = "cosine"  # type: ignore[assignment]
    warmup: float = 0.05
    average: float = 0.998
    sizes: tuple[tuple[int, int], ...] = ((0, SIZE),)
    weight_decay: float = 0.05


@dataclass(frozen=True)
class IdentityWeights:
    """Weights of the losses of E_id, which are not in the paper."""

    regression: float = 1.0
    """Weight of ``teacher_loss`` on a linear map of f_id."""
    matching: float = 40.0
    """Weight of ``similarity_matching_loss``."""
    ranking: float = 0.3
    """Weight of ``similarity_ranking_loss``."""
    margin: float = 0.03
    """Weight of ``margin_loss`` over named identities."""
    same_identity: float = 0.5
    """Weight of ``same_identity_loss`` between two expressions of one identity."""


@dataclass(frozen=True)
class IdentityConfig:
    """Training of E_id, which the paper takes from face recognition on CASIA-WebFace."""

    stage: Stage = Stage(
        36, 128, 1.5e-3, warmup=0.03, average=0.999, sizes=((0, 64), (20, 96), (27, SIZE))
    )
    batches: int = 256
    """Batches per epoch."""
    singles: tuple[tuple[str, int], ...] = (("faces_wild", 72), ("ferplus", 20))
    """Images per batch without a partner, by pack."""
    pairs: int = 18
    """Pairs of images of one identity per batch, from the packs with names."""
    queue: int = 4096
    """Earlier images that each image is compared with."""
    teacher_directions: int = 3
    """Directions of the teacher's embeddings that show expression, removed from the target."""
    centering: float = 0.7
    """Share of the mean that is subtracted before cosines are compared: 1 spreads them most, and
    0 verifies best (99.2 % of the validation pairs instead of 98.6 %)."""
    weights: IdentityWeights = IdentityWeights()
    removed_directions: int = 0
    """Directions of the trained f_id that show expression, removed in closed form."""


@dataclass(frozen=True)
class SelfTraining:
    """Soft labels for images without a label, from models of the first expression stage."""

    models: int = 2
    """Models whose probabilities are averaged, each over an image and its mirror image."""
    trust: float = 0.5
    """Weight of these rows relative to FER+, times the probability of their first class."""


@dataclass(frozen=True)
class Start:
    """The stages before the last: what the paper takes ready-made, and a first E_exp."""

    identity: IdentityConfig = IdentityConfig()
    expression: Stage | None = Stage(10, lr=7e-4, sizes=((0, 64), (5, 80), (8, SIZE)))
    """First stage of E_exp and C_exp by eq. (5); None starts them from E_id, as the paper does."""
    settle: Stage = Stage(3, lr=3e-4, warmup=0.1, average=0.995)
    """Short stage at full size after ``expression``."""
    self_training: SelfTraining | None = None
    """Soft labels for the web faces, which the last stage then trains on too; None for none."""


@dataclass(frozen=True)
class Objective:
    """Equations (11) and (12): the terms next to the classifiers' cross-entropies."""

    lambdas: tuple[float, float, float, float] = (0.001, 0.001, 1.0, 10.0)
    """λ1 to λ4 of eq. (11), Sec. 4.2."""
    betas: tuple[float, float] = (0.5, 1.0)
    """β1 and β2 of eq. (12), Sec. 4.2."""
    discriminator: bool = True
    pose_backbone: str | None = "resnet18"
    pose_bottleneck: bool = False
    """Let f_pose hold yaw, pitch, roll and size only, see ``PoseEncoder``; ours."""
    decoder_size: int = 112
    decoder_width: int = 256
    joint: bool = False
    """One update per batch along the sum of the losses, instead of the two of Algorithm 1."""
    expression_rank: int | None = None
    """Dimensions that f_exp may use, see ``IPDFER``; None for all, as in the paper."""
    decoded_share: float = 1.0
    """Share of a batch that is decoded, for eqs. (1), (2) and (8) to (10)."""
    decoder_lr: float = 1.0
    """Factor on the learning rate of the decoder, which starts from random weights."""


@dataclass(frozen=True)
class DecoderConfig:
    """Training of G_dec on pairs of images with every encoder fixed; ours."""

    stage: Stage = Stage(12, 16, 1.5e-3)
    width: int = 96
    pixels: float = 1.0
    """Weight of ``pair_loss``: the generated crop against a real image of the identity."""
    swap: float = 0.3
    """Weight of ``swap_loss``: identity of one image, expression of another."""
    neutral: float = 0.1
    """Weight of eq. (9) by C_exp on neutralized crops without a real neutral image."""


@dataclass(frozen=True)
class Recipe:
    """Stages, data and losses of a checkpoint."""

    main: Stage
    objective: Objective | None = Objective()
    """None for the baseline: E_exp and C_exp by eq. (5) alone."""
    start: Start = field(default_factory=Start)
    decoder: DecoderConfig | None = None
    """Last stage, for G_dec alone; None keeps the decoder of Algorithm 1."""
    redecode: bool = False
    """Train E_pose (``main``) and G_dec of the checkpoint ``--start`` again."""
    further: bool = False
    """Before that, train its E_exp and C_exp further, by ``start.expression``."""
    reclassify: bool = False
    """Fit C_exp of the checkpoint ``--start`` again to its features; ``main`` has the steps."""
    narrow: bool = False
    """Reduce f_exp of the checkpoint ``--start`` to the directions that its C_exp reads."""
    backbone: str = "resnet18"
    feature_dim: int = 512
    soft_labels: bool = False
    """Train on the shares of the votes instead of the majority's class."""
    lfw_trust: float = 0.0
    """Weight of LFW's machine-made expression labels relative to FER+ in eq. (5); 0 leaves LFW
    out."""
    logit_adjustment: float = 0.0
    """Factor on the logarithm of the class frequencies in eq. (5); 0 for the paper's loss."""
    calibrated: bool = False
    """Fit a temperature on the validation split and fold it into C_exp."""
    precision: str = "int8"
    """Precision on disk."""


_PAPER = Stage(30, 32, 1e-4, schedule="step", weight_decay=0.0, average=0.0)
_COMPACT = Stage(15, lr=5e-4, warmup=0.1, cycles=3)
_READY_MADE = Start(expression=None)
_SMALL = Objective(
    pose_backbone="resnet10t",
    decoder_size=56,
    decoder_width=128,
    joint=True,
    expression_rank=12,
    decoded_share=0.25,
    decoder_lr=2.0,
)
_OURS = replace(_SMALL, betas=(0.5, 0.0), pose_bottleneck=True)
_OUR_START = Start(IdentityConfig(removed_directions=8), self_training=SelfTraining())
_compact = Recipe(_COMPACT, _SMALL, soft_labels=True, lfw_trust=0.3)
_wide = replace(
    _compact,
    objective=_OURS,
    start=_OUR_START,
    decoder=DecoderConfig(),
    logit_adjustment=0.5,
    calibrated=True,
)

RECIPES = {
    "paper": Recipe(_PAPER, start=_READY_MADE),
    "paper-baseline": Recipe(_PAPER, None, start=_READY_MADE),
    "compact": _compact,
    "compact-baseline": replace(_compact, objective=None),
    "wide": _wide,
    "wide-baseline": replace(_wide, objective=None, decoder=None),
    "redecode": Recipe(
        Stage(1, 48, steps=220),
        None,
        Start(IdentityConfig(removed_directions=8), None),
        DecoderConfig(Stage(1, 16, 1.5e-3, average=0.99, steps=1300)),
        redecode=True,
    ),
    "reclassify": Recipe(
        Stage(steps=60, weight_decay=3e-4),
        None,
        reclassify=True,
        soft_labels=True,
        lfw_trust=0.3,
        logit_adjustment=0.2,
        calibrated=True,
    ),
    "narrow": Recipe(Stage(), None, narrow=True),
    "refine": Recipe(
        Stage(1, 48, steps=220),
        None,
        Start(
            IdentityConfig(removed_directions=8),
            Stage(6, lr=4e-4, warmup=0.1, average=0.999, sizes=((0, 80), (4, SIZE))),
            self_training=SelfTraining(1),
        ),
        DecoderConfig(Stage(1, 16, 1.5e-3, average=0.99, steps=1300)),
        redecode=True,
        further=True,
        soft_labels=True,
        lfw_trust=0.3,
        logit_adjustment=0.5,
        calibrated=True,
    ),
}
"""``paper`` follows Sec. 4.2, with our own identity encoder.

``compact`` is what two CPU cores train in hours: votes instead of classes, LFW's labels too, small
pose encoder and decoder, f_exp in twelve dimensions, one update per batch. ``wide`` is ours beyond
the paper: web faces with soft labels, f_pose of four numbers, f_id without expression, and a
decoder trained on pairs. ``redecode``, ``reclassify`` and ``refine`` bring an older checkpoint
closer to ``wide`` in less time, and ``narrow`` makes its f_exp smaller. A baseline takes as many
updates of E_exp per epoch as the recipe of its name; the paper's own algorithm takes two.
"""

ABLATIONS = ("confusion", "cos", "id", "recon", "discriminator", "pose", "rank")
"""Terms that can be left out: the rows of Table 9, L_recon of Sec. 4.4, ID-FER of Table 8 (pose),
and ours (rank)."""


def recipe(name: str, without: tuple[str, ...] = ()) -> Recipe:
    """Return a recipe, less some of its terms.

    Args:
        name: a key of ``RECIPES``.
        without: names from ``ABLATIONS``.

    Raises:
        UnknownNameError: if there is no such recipe or term.
        ValueError: if terms are removed from a baseline, which has none.
    """
    chosen = recipe_named(RECIPES, name)
    if not without:
        return chosen
    if chosen.objective is None:
        raise ValueError(f"recipe {name!r} has no terms to leave out")
    objective = chosen.objective
    for term in without:
        objective, before = _less(objective, term), objective
        if objective == before:
            raise ValueError(f"recipe {name!r} has no term {term!r} to leave out")
    return replace(chosen, objective=objective)


def _less(objective: Objective, term: str) -> Objective:
    neutral, expression, identity, reconstruction = objective.lambdas
    cosine, confusion = objective.betas
    if term == "confusion":
        return replace(objective, betas=(cosine, 0.0))
    if term == "cos":
        return replace(objective, betas=(0.0, confusion))
    if term == "id":
        return replace(objective, lambdas=(neutral, expression, 0.0, reconstruction))
    if term == "recon":
        return replace(objective, lambdas=(neutral, expression, identity, 0.0))
    if term == "discriminator":
        return replace(objective, discriminator=False, lambdas=(0.0, 0.0, identity, reconstruction))
    if term == "pose":
        return replace(objective, pose_backbone=None, betas=(cosine, 0.0))
    if term == "rank":
        return replace(objective, expression_rank=None)
    known = ", ".join(ABLATIONS)
    raise UnknownNameError(f"unknown term {term!r}; expected one of {known}")
