"""Train E_exp and C_exp by eq. (5): the first stages, the baseline, and soft labels.

Source: Jiang & Deng, Sec. 3.2. Ours are the logit adjustment, the soft labels of self-training
(Xie et al., "Self-training with Noisy Student", CVPR 2020) and the temperature (Guo et al., "On
Calibration of Modern Neural Networks", ICML 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from facezoo.data.augment import augment
from facezoo.models.ipd_fer.losses import expression_loss
from facezoo.models.ipd_fer.model import IPDFER
from facezoo.models.ipd_fer.networks import Encoder
from facezoo.models.ipd_fer.train.data import Rows, as_index, embed, gather, sample_images, targets
from facezoo.models.ipd_fer.train.recipes import SIZE, Recipe, Stage
from facezoo.results import EXPRESSIONS
from facezoo.training.loop import Position, fit
from facezoo.training.optim import autocast, descend, layer_groups

STRONG = partial(augment, blur=0.3, erase=0.3, noise=0.2, jpeg=0.2)
"""Augmentation for soft labels, which come from crops without augmentation."""


class ExpressionTraining:
    """E_exp and C_exp, their targets and their loss.

    Args:
        recipe: kind of targets, trust in other packs than the first, logit adjustment.
        rows: training split of each data set by name, FER+ or the official set first.
        encoder: tensors of the encoder that E_exp starts from.
        rank: dimensions that the features may use, see ``Encoder``.
        change: augmentation, ``augment`` or ``STRONG``.
    """

    def __init__(
        self,
        recipe: Recipe,
        rows: Mapping[str, Rows],
        val: Mapping[str, Rows],
        encoder: Mapping[str, Tensor],
        device: torch.device,
        rank: int | None = None,
        change: Callable[..., Tensor] = augment,
    ) -> None:
        self.rows, self.val, self.device = list(rows.values()), val, device
        self.change = change
        self.parts = nn.ModuleDict(
            {
                "expression_encoder": Encoder(recipe.backbone, recipe.feature_dim, rank=rank),
                "expression_classifier": nn.Linear(recipe.feature_dim, len(EXPRESSIONS)),
            }
        )
        self.parts["expression_encoder"].load_state_dict(encoder)
        self.parts.to(device).to(memory_format=torch.channels_last)
        self.labels = ExpressionTargets(recipe, rows)

    def loss(self, index: Tensor, size: int, generator: torch.Generator) -> Tensor:
        """Compute L_exp of a batch of (data set, row), (2, B)."""
        images = sample_images(self.rows, index, size, generator, self.change).to(self.device)
        with autocast(self.device):
            features = self.parts["expression_encoder"](images)
        logits = self.parts["expression_classifier"](features.float())
        return self.labels.loss(logits, index)

    def run(self, stage: Stage, out: Path, seed: int) -> dict[str, Tensor]:
        """Train one stage and return the tensors of its best epoch."""
        groups = layer_groups(self.parts)
        optimizer = torch.optim.AdamW(groups, stage.lr, weight_decay=stage.weight_decay)

        def step(index: Tensor, at: Position) -> dict[str, Tensor]:
            loss = self.loss(index, at.size, at.generator)
            descend(optimizer, loss)
            return {"loss": loss}

        result = fit(
            self.parts,
            [optimizer],
            step,
            stage,
            self.labels.index,
            out,
            seed,
            validate=lambda network, at: score_expression(network, self.val, self.device, at.size),
            select=selection(self.val),
        )
        self.parts.load_state_dict(result.state)
        return result.state


class ExpressionTargets:
    """Targets, weights and class frequencies of the rows that train C_exp.

    Args:
        recipe: kind of targets, trust in other packs than the first, logit adjustment.
        rows: training split of each data set by name, FER+ or the official set first.
    """

    def __init__(self, recipe: Recipe, rows: Mapping[str, Rows]) -> None:
        names, parts = list(rows), list(rows.values())
        self.targets = [targets(part, soft=recipe.soft_labels) for part in parts]
        self.trust = [torch.ones(len(part)) for part in self.targets]
        for number, name in enumerate(names[1:], 1):
            if name == "lfw":
                self.trust[number] *= recipe.lfw_trust
            else:  # soft labels: the surer, the weightier
                assert recipe.start.self_training is not None
                self.targets[number] = parts[number].expression
                confidence = parts[number].expression.amax(1)
                self.trust[number] = recipe.start.self_training.trust * confidence
        usable = [
            ((target.sum(1) > 0) & (trust > 0)).nonzero()[:, 0]
            for target, trust in zip(self.targets, self.trust, strict=True)
        ]
        self.index = as_index(usable)
        """(data set, row) of every row with a target and a weight, (2, N)."""
        weights = torch.cat([t[u] for t, u in zip(self.trust, usable, strict=True)])
        shares = torch.cat([t[u] for t, u in zip(self.targets, usable, strict=True)])
        frequency = (shares * weights[:, None]).sum(0) / weights.sum()
        self.prior = None
        if recipe.logit_adjustment:
            self.prior = recipe.logit_adjustment * frequency.clamp(min=1e-6).log()

    def loss(self, logits: Tensor, index: Tensor) -> Tensor:
        """Compute L_exp of (data set, row) (2, B)."""
        target, trust = gather(self.targets, index), gather(self.trust, index)
        prior = None if self.prior is None else self.prior.to(logits.device)
        return expression_loss(logits, target.to(logits.device), trust.to(logits.device), prior)


def selection(val: Mapping[str, Rows]) -> str:
    """Return the metric that selects an epoch."""
    return f"{next(iter(val))}_score"


def score_expression(
    network: nn.Module, val: Mapping[str, Rows], device: torch.device, size: int = SIZE
) -> dict[str, float]:
    """Measure C_exp(E_exp(x)) on validation splits.

    Returns:
        By name of the split: ``_accuracy``, ``_balanced`` (the mean recall of the classes), and
        their mean ``_score``.
    """
    result: dict[str, float] = {}
    for name, part in val.items():
        known = part.labels >= 0
        logits = expression_logits(network, part.crops[known], device, size)
        right = (logits.argmax(1) == part.labels[known]).double()
        classes = part.labels[known].unique()
        recalls = torch.stack([right[part.labels[known] == c].mean() for c in classes])
        accuracy, balanced = float(right.mean()), float(recalls.mean())
        result |= {f"{name}_accuracy": accuracy, f"{name}_balanced": balanced}
        result[f"{name}_score"] = (accuracy + balanced) / 2
    return result


@torch.no_grad()
def expression_logits(
    network: nn.Module,
    crops: Tensor,
    device: torch.device,
    size: int = SIZE,
    mirrored: bool = False,
) -> Tensor:
    """Compute the logits of C_exp(E_exp(x)) for crops with a margin, on the CPU, (N, K)."""
    encoder = network.get_submodule("expression_encoder")
    features = embed(encoder, crops, device, size, mirrored=mirrored)
    return network.get_submodule("expression_classifier")(features.to(device)).cpu()


def soft_labels(networks: Sequence[nn.Module], rows: Rows, device: torch.device) -> Rows:
    """Return the rows with the networks' mean probabilities, over image and mirror image."""
    total = torch.zeros(len(rows.crops), len(EXPRESSIONS))
    for network in networks:
        network.eval()
        for mirrored in (False, True):
            total += expression_logits(network, rows.crops, device, mirrored=mirrored).softmax(1)
    return replace(rows, expression=total / (2 * len(networks)))


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Fit the temperature that minimizes the cross-entropy of logits (N, K) for classes (N,)."""
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_temperature], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(logits.double() / log_temperature.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(log_temperature.detach().exp())


@torch.no_grad()
def calibrate(network: nn.Module, val: Rows, device: torch.device) -> float:
    """Fold the temperature of a validation split into the weights of C_exp, and return it."""
    known = val.labels >= 0
    logits = expression_logits(network, val.crops[known], device)
    with torch.enable_grad():
        temperature = fit_temperature(logits, val.labels[known])
    for parameter in network.get_submodule("expression_classifier").parameters():
        parameter.div_(temperature)
    return temperature


def reclassify(
    model: IPDFER,
    recipe: Recipe,
    rows: Mapping[str, Rows],
    val: Mapping[str, Rows],
    device: torch.device,
) -> IPDFER:
    """Fit C_exp again to the features of E_exp, and calibrate it; every other part stays.

    A training of E_exp and C_exp together ends with a C_exp that follows the features of its last
    batches. This one is the minimum of eq. (5) over all images, with the logit adjustment of the
    recipe and a penalty on the weights.

    Args:
        model: changed in place.
        recipe: kind of targets, logit adjustment, steps and weight decay.
        rows: training split of each data set by name, FER+ or the official set first.
        val: validation splits; the first one gives the temperature.
    """
    encoder = model.to(device).eval().embed_expression
    labels = ExpressionTargets(recipe, rows)
    parts = [embed(encoder, part.crops, device) for part in rows.values()]
    features = gather(parts, labels.index).to(device)
    classifier, spread = model.expression_classifier, features.std()
    optimizer = torch.optim.LBFGS(
        classifier.parameters(), max_iter=recipe.main.steps, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = (classifier.weight * spread).square().sum()
        loss = labels.loss(classifier(features), labels.index)
        loss = loss + recipe.main.weight_decay * penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    if recipe.calibrated:
        calibrate(model, next(iter(val.values())), device)
    return model.cpu()


@torch.no_grad()
def narrow(model: IPDFER, rows: Rows, device: torch.device) -> IPDFER:
    """Reduce f_exp to the K - 1 directions that C_exp reads; its predictions stay the same.

    What C_exp does not read becomes its linear estimate from what it reads, so that f_exp says
    nothing beyond the classes. It held identity, and no expression that a probe needs.

    Args:
        model: with an ``expression_rank`` of K - 1 or more.
        rows: images over which f_exp is estimated: in color, as those of the decoder.

    Returns:
        A model with an ``expression_rank`` of K - 1 and the other parts of ``model``; the model
        itself if this is its rank.

    Raises:
        ValueError: if f_exp fills all D dimensions, or fewer than C_exp reads.
    """
    classifier, rank = model.expression_classifier, model.architecture["expression_rank"]
    kept = len(classifier.weight) - 1
    if rank is None or rank < kept:
        raise ValueError(
            f"this recipe needs features of {kept} dimensions or more, and --start has an "
            f"expression_rank of {rank}"
        )
    if rank == kept:
        return model
    encode = model.to(device).eval().embed_expression
    features = embed(encode, rows.crops, device).double()
    mean = features.mean(0)
    _, sizes, axes = torch.linalg.svd(features - mean, full_matrices=False)
    spread, axes = sizes[:rank], axes[:rank]  # axes over directions, (rank, D)
    weight = classifier.weight.cpu().double()
    seen = (weight - weight.mean(0)) @ axes.T * spread
    directions = torch.linalg.svd(seen).Vh[:kept]
    read, write = directions / spread @ axes, (directions * spread @ axes).T
    result = IPDFER(**{**model.architecture, "expression_rank": kept})
    encoder = "expression_encoder."
    state = {name: value.cpu().double() for name, value in model.state_dict().items()}
    inward, outward = (f"{encoder}projection.{n}.weight" for n in range(2))
    norm = model.expression_encoder.norm.cpu()
    assert norm.running_var is not None
    scale = state[f"{encoder}norm.weight"] / (norm.running_var.double() + norm.eps).sqrt()
    shift = scale * state[f"{encoder}norm.running_mean"]
    offset = state[f"{encoder}norm.bias"] - shift
    state[inward] = read @ (scale[:, None] * state[outward]) @ state[inward]
    state[outward] = write / scale[:, None]
    state[f"{encoder}norm.bias"] = mean + write @ read @ (offset - mean) + shift
    result.load_state_dict(state)
    return result.eval()
