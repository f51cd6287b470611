"""Algorithm 1: the alternating updates that train the whole of IPD-FER.

Source: Jiang & Deng, Sec. 3.4. Per batch: (2) E_pose, C_p, E_exp and C_exp along L_c + β1 L_cos
with everything else fixed; (3) D along L^r_exp on real crops; (4) E_pose, E_exp and G_dec along
L'_G + β2 L_confusion with D and the classifiers fixed. E_id is fixed throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.models.ipd_fer import losses
from facezoo.models.ipd_fer.model import IPDFER
from facezoo.models.ipd_fer.networks import Discriminator, Encoder, PoseEncoder
from facezoo.models.ipd_fer.train.data import Rows, embed, gather, sample_images_and_poses
from facezoo.models.ipd_fer.train.expression import ExpressionTargets, score_expression, selection
from facezoo.models.ipd_fer.train.recipes import Objective, Recipe, Stage
from facezoo.results import EXPRESSIONS
from facezoo.training.loop import Position, fit
from facezoo.training.optim import autocast, descend, layer_groups

NEUTRAL = EXPRESSIONS.index("neutral")
_AXES_CROPS = 4096  # training crops whose features give the principal axes of a narrower E_exp


@dataclass(frozen=True)
class Batch:
    """One batch on the device."""

    images: Tensor
    """Augmented, normalized crops, (B, 3, S, S)."""
    targets: Tensor
    """Probabilities of the expressions, zero where unknown, (B, K)."""
    trust: Tensor
    """Weight of each row's expression, (B,)."""
    is_neutral: Tensor
    """1[y_e = c] of eq. (1), bool, (B,)."""
    pose_classes: Tensor
    """Pose class of Table 1 or -1, (B,)."""
    poses: Tensor
    """Yaw, pitch, roll and log size, NaN where unknown, (B, 4)."""
    prior: Tensor | None = None
    """Logit adjustment, see ``expression_loss``, (K,)."""


class Disentangler:
    """The whole model in training.

    Args:
        recipe: with an objective.
        identity: tensors of E_id and of the removal of expression, named as in ``IPDFER``.
        start: tensors of E_exp and C_exp to start from, named as in ``IPDFER``; C_exp starts from
            random weights if it is not among them.
        crops: training crops with a margin, for the axes of an E_exp of lower rank, (N, C, H, H).
    """

    def __init__(
        self,
        recipe: Recipe,
        identity: Mapping[str, Tensor],
        start: Mapping[str, Tensor],
        crops: Tensor,
        device: torch.device,
    ) -> None:
        assert recipe.objective is not None
        self.objective: Objective = recipe.objective
        self.device = device
        removal = identity.get("expression_removal.write")
        model = IPDFER(
            recipe.backbone,
            recipe.feature_dim,
            len(EXPRESSIONS),
            self.objective.pose_backbone,
            self.objective.decoder_size,
            self.objective.decoder_width,
            self.objective.expression_rank,
            self.objective.pose_bottleneck,
            0 if removal is None else len(removal),
        )
        self.architecture = model.architecture
        model.load_state_dict(dict(identity), strict=False)
        self._start_expression(model, start, recipe, crops)
        self.model = _channels_last(model, device)
        self.model.identity_encoder.eval().requires_grad_(False)
        assert model.decoder is not None
        self.decoder, self.pose_classifier = model.decoder, model.pose_classifier
        self.parts = _trained_parts(model, self.objective, recipe)
        of_encoder = model.identity_encoder.state_dict()
        if "discriminator" in self.parts:
            self.parts.get_submodule("discriminator.encoder").load_state_dict(of_encoder)
        if self.objective.pose_backbone == recipe.backbone and not self.objective.pose_bottleneck:
            self.parts["pose_encoder"].load_state_dict(of_encoder)
        _channels_last(self.parts, device)

    def _start_expression(
        self, model: IPDFER, start: Mapping[str, Tensor], recipe: Recipe, crops: Tensor
    ) -> None:
        """Load the first weights of E_exp and C_exp."""
        classifier, encoder = (
            {k.removeprefix(f"{part}."): v for k, v in start.items() if k.startswith(part)}
            for part in ("expression_classifier", "expression_encoder")
        )
        if classifier:
            model.expression_classifier.load_state_dict(classifier)
        if self.objective.expression_rank is None:
            model.expression_encoder.load_state_dict(encoder)
            return
        whole = Encoder(recipe.backbone, recipe.feature_dim)
        whole.load_state_dict(encoder)
        _channels_last(whole, self.device).eval()
        pooled = embed(whole.backbone, crops[:_AXES_CROPS], self.device)
        model.expression_encoder.start_from(whole.cpu(), pooled)

    def identity(self, images: Tensor) -> Tensor:
        """Compute f_id, which is N(x) of eq. (2) too, float32, (B, D)."""
        with autocast(self.device):
            features = self.model.identity_encoder(images).float()
        removal = self.model.expression_removal
        return features if removal is None else removal(features)

    def optimizers(self, stage: Stage) -> dict[str, torch.optim.Optimizer]:
        """Return one optimizer per line of Algorithm 1; jointly, one does lines 2 and 4."""
        encoders = ["pose_encoder", "expression_encoder"]
        classify = [*encoders, "pose_classifier", "expression_classifier"]
        lines = {"2": classify, "3": ["discriminator"], "4": [*encoders, "decoder"]}
        if self.objective.joint:
            lines = {"2": [*classify, "decoder"], "3": ["discriminator"]}
        if not self.objective.discriminator:
            del lines["3"]
        return {line: self._adam(names, stage) for line, names in lines.items()}

    def _adam(self, names: Sequence[str], stage: Stage) -> torch.optim.Optimizer:
        groups = []
        for name in (name for name in names if name in self.parts):
            scale = self.objective.decoder_lr if name == "decoder" else 1.0
            groups += [{**group, "lr_scale": scale} for group in layer_groups(self.parts[name])]
        return torch.optim.AdamW(groups, stage.lr, weight_decay=stage.weight_decay)

    def update(
        self, batch: Batch, optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> Mapping[str, Tensor]:
        """Run lines 2 to 4 of Algorithm 1 on a batch; return the losses by name."""
        terms: dict[str, Tensor] = {}
        with torch.no_grad():
            identity = self.identity(batch.images)
        features = self.encode(batch.images)
        classification = self.classification(batch, identity, features, terms)
        if not self.objective.joint:
            descend(optimizers["2"], classification)
        if self.objective.discriminator:
            descend(optimizers["3"], self.discrimination(batch, terms))
        if not self.objective.joint:
            features = self.encode(batch.images)
        generation = self.generation(batch, identity, features, terms)
        if self.objective.joint:
            descend(optimizers["2"], classification + generation)
        else:
            descend(optimizers["4"], generation)
        terms["loss"] = classification + generation
        return {name: value.detach() for name, value in terms.items()}

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Compute f_exp, f_pose and the four numbers of a pose bottleneck, float32, (B, ...)."""
        with autocast(self.device):
            expression = self.parts["expression_encoder"](images).float()
            if "pose_encoder" not in self.parts:
                return expression, None, None
            encoder = self.parts["pose_encoder"]
            if isinstance(encoder, PoseEncoder):
                pose = encoder.pose(images)
                return expression, encoder.expansion(pose).float(), pose.float()
            return expression, encoder(images).float(), None

    def classification(
        self,
        batch: Batch,
        identity: Tensor,
        features: tuple[Tensor, Tensor | None, Tensor | None],
        terms: dict[str, Tensor],
    ) -> Tensor:
        """Compute L_c + β1 L_cos, line 2."""
        expression, pose, angles = features
        logits = self.parts["expression_classifier"](expression)
        terms["expression"] = losses.expression_loss(
            logits, batch.targets, batch.trust, batch.prior
        )
        terms["pose"] = expression.new_zeros(())
        if angles is not None:
            terms["pose"] = losses.pose_regression_loss(angles, batch.poses)
        elif pose is not None:
            pose_logits = self.parts["pose_classifier"](pose)
            terms["pose"] = losses.pose_loss(pose_logits, batch.pose_classes)
        terms["cos"] = losses.orthogonality_loss(identity, expression)
        total = losses.classification_loss(terms["expression"], terms["pose"])
        return total + self.objective.betas[0] * terms["cos"]

    def discrimination(self, batch: Batch, terms: dict[str, Tensor]) -> Tensor:
        """Compute L^r_exp, line 3."""
        count = self._decoded_rows(batch)
        with autocast(self.device):
            logits = self.parts["discriminator"](self._shrunk(batch.images[:count]))
        terms["discriminator"] = losses.discriminator_loss(logits, batch.targets[:count])
        return terms["discriminator"]

    def generation(
        self,
        batch: Batch,
        identity: Tensor,
        features: tuple[Tensor, Tensor | None, Tensor | None],
        terms: dict[str, Tensor],
    ) -> Tensor:
        """Compute L'_G + β2 L_confusion, line 4; D and the classifiers are fixed."""
        expression, pose, _ = features
        count = self._decoded_rows(batch)
        neutral = (identity if pose is None else identity + pose)[:count]
        real = self._shrunk(batch.images[:count])
        with autocast(self.device):
            generated = self.decoder.generate(torch.cat([neutral + expression[:count], neutral]))
        full, plain = generated.chunk(2)
        zero = expression.new_zeros(())
        terms |= {"fake_neutral": zero, "fake_expression": zero, "id": zero, "confusion": zero}
        if self.objective.discriminator:
            with autocast(self.device), _fixed(self.parts["discriminator"]) as discriminator:
                of_full, of_plain = discriminator(generated).chunk(2)
            terms["fake_neutral"] = losses.fake_neutral_loss(of_plain, NEUTRAL)
            terms["fake_expression"] = losses.fake_expression_loss(of_full, batch.targets[:count])
        if self.objective.lambdas[2]:
            of_full, of_plain = self.identity(generated).chunk(2)
            of_real = self.identity(real)
            terms["id"] = losses.identity_consistency_loss(of_full, of_plain, of_real)
        terms["recon"] = losses.reconstruction_loss(full, plain, real, batch.is_neutral[:count])
        if self.pose_classifier is not None and self.objective.betas[1]:
            weight, bias = (p.detach() for p in self.pose_classifier.parameters())
            terms["confusion"] = losses.confusion_loss(F.linear(expression, weight, bias))
        parts = (terms["fake_neutral"], terms["fake_expression"], terms["id"], terms["recon"])
        generative = losses.generative_loss(parts, self.objective.lambdas)
        return generative + self.objective.betas[1] * terms["confusion"]

    def _decoded_rows(self, batch: Batch) -> int:
        """Return the number of rows, from the first, that are decoded."""
        return max(2, round(self.objective.decoded_share * len(batch.images)))

    def _shrunk(self, images: Tensor) -> Tensor:
        """Resize real crops to the size of the decoder's."""
        size = self.objective.decoder_size
        if images.shape[-1] == size:
            return images
        small = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        return small.contiguous(memory_format=torch.channels_last)


def train_disentangled(
    recipe: Recipe,
    rows: Mapping[str, Rows],
    val: Mapping[str, Rows],
    identity: Mapping[str, Tensor],
    start: Mapping[str, Tensor],
    out: Path,
    seed: int,
    device: torch.device,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Run Algorithm 1.

    Returns:
        Tensors of the model by name, without D, of the epoch of highest score on the first
        validation split; and the model's architecture.
    """
    torch.manual_seed(seed)
    parts = list(rows.values())
    whole = Disentangler(recipe, identity, start, parts[0].crops, device)
    optimizers = whole.optimizers(recipe.main)
    labels = ExpressionTargets(recipe, rows)
    posed = whole.objective.pose_bottleneck

    def step(index: Tensor, at: Position) -> Mapping[str, Tensor]:
        images, poses = sample_images_and_poses(parts, index, at.size, at.generator, posed=posed)
        batch = Batch(
            images=images.to(device),
            targets=gather(labels.targets, index).to(device),
            trust=gather(labels.trust, index).to(device),
            is_neutral=(gather([r.labels for r in parts], index) == NEUTRAL).to(device),
            pose_classes=gather([r.poses for r in parts], index).to(device),
            poses=poses.to(device),
            prior=None if labels.prior is None else labels.prior.to(device),
        )
        return whole.update(batch, optimizers)

    def validate(network: nn.Module, at: Position) -> dict[str, float]:
        result = score_expression(network, val, device, at.size)
        first = next(iter(val.values()))
        if "pose_classifier" in whole.parts:
            result["pose_accuracy"] = _pose_accuracy(network, first, device, at.size)
        return result

    result = fit(
        whole.parts,
        list(optimizers.values()),
        step,
        recipe.main,
        labels.index,
        out,
        seed,
        validate=validate,
        select=selection(val),
    )
    state = {k: v for k, v in result.state.items() if k.split(".")[0] != "discriminator"}
    return {**state, **identity}, whole.architecture


def _channels_last(module: Any, device: torch.device) -> Any:
    return module.to(device).to(memory_format=torch.channels_last)


@contextmanager
def _fixed(network: nn.Module) -> Iterator[nn.Module]:
    """Pass gradients through a network that stays as it is, its norms included."""
    network.eval().requires_grad_(False)
    try:
        yield network
    finally:
        network.train().requires_grad_(True)


def _trained_parts(model: IPDFER, objective: Objective, recipe: Recipe) -> nn.ModuleDict:
    named = {
        "expression_encoder": model.expression_encoder,
        "expression_classifier": model.expression_classifier,
        "decoder": model.decoder,
        "pose_encoder": model.pose_encoder,
        "pose_classifier": model.pose_classifier,
    }
    parts = nn.ModuleDict({name: part for name, part in named.items() if part is not None})
    if objective.discriminator:
        parts["discriminator"] = Discriminator(
            recipe.backbone, recipe.feature_dim, len(EXPRESSIONS)
        )
    return parts


def _pose_accuracy(network: nn.Module, val: Rows, device: torch.device, size: int) -> float:
    """Return the share of correct pose classes among the rows of known pose."""
    features = embed(network.get_submodule("pose_encoder"), val.crops, device, size)
    with torch.no_grad():
        logits = network.get_submodule("pose_classifier")(features.to(device)).cpu()
    known = val.poses >= 0
    return float((logits.argmax(1)[known] == val.poses[known]).double().mean())
