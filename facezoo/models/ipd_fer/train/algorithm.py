"""Algorithm 1: the alternating updates that train the whole of IPD-FER.

Source: Jiang & Deng, Sec. 3.4. Per batch: (2) E_pose, C_p, E_exp and C_exp along L_c + β1 L_cos
with everything else fixed; (3) D along L^r_exp on real crops; (4) E_pose, E_exp and G_dec along
L'_G + β2 L_confusion with D and the classifiers fixed. E_id never moves.
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
from facezoo.models.ipd_fer.networks import Discriminator, Encoder
from facezoo.models.ipd_fer.train.dataset import Rows, embed, gather, numbered, pick, targets
from facezoo.models.ipd_fer.train.pretraining import expression_accuracy
from facezoo.models.ipd_fer.train.recipes import Objective, Recipe, StageConfig
from facezoo.models.ipd_fer.train.rounds import fit, shuffled
from facezoo.results import EXPRESSIONS
from facezoo.training.optim import autocast, decayed_and_not, descend

NEUTRAL = EXPRESSIONS.index("neutral")
_SEEN = 4096  # training crops whose features give the principal axes of a narrower E_exp


@dataclass(frozen=True)
class Batch:
    """One batch on the device."""

    images: Tensor
    """Augmented, normalised crops, (B, 3, S, S)."""
    targets: Tensor
    """Probabilities of the expressions, (B, K)."""
    trust: Tensor
    """Weight of each row's expression, (B,)."""
    is_neutral: Tensor
    """1[y_e = c] of eq. (1), bool, (B,)."""
    poses: Tensor
    """Pose class or -1, (B,)."""


class Disentangler:
    """The whole model in training.

    Args:
        recipe: with an objective.
        identity: tensors of E_id, which stays as it is, also as N of eq. (2).
        start: tensors of E_exp and C_exp to start from, named as in ``IPDFER``; without a
            classifier's, that one starts at random.
        crops: training crops with a margin, for the axes of an E_exp of lower rank, (N, C, H, H).
        device: where to train.
    """

    def __init__(
        self,
        recipe: Recipe,
        identity: dict[str, Tensor],
        start: dict[str, Tensor],
        crops: Tensor,
        device: torch.device,
    ) -> None:
        assert recipe.objective is not None
        self.objective: Objective = recipe.objective
        model = IPDFER(
            recipe.backbone,
            recipe.feature_dim,
            len(EXPRESSIONS),
            self.objective.pose_backbone,
            self.objective.decoder_size,
            self.objective.decoder_width,
            self.objective.expression_rank,
        )
        self.architecture = model.architecture
        self.device = device
        self._begin(model, start, recipe, crops)
        self.identity = model.identity_encoder
        self.identity.load_state_dict(identity)
        _channels_last(self.identity, device).eval().requires_grad_(False)
        assert model.decoder is not None
        self.decoder, self.pose_classifier = model.decoder, model.pose_classifier
        self.parts = _parts(model, self.objective, recipe)
        if "discriminator" in self.parts:
            self.parts.get_submodule("discriminator.encoder").load_state_dict(identity)
        if self.objective.pose_backbone == recipe.backbone:
            self.parts["pose_encoder"].load_state_dict(identity)
        _channels_last(self.parts, device)

    def _begin(
        self, model: IPDFER, start: dict[str, Tensor], recipe: Recipe, crops: Tensor
    ) -> None:
        """Give E_exp and C_exp of the model the weights to start from."""
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
        pooled = embed(whole.backbone, crops[:_SEEN], self.device)
        model.expression_encoder.start_from(whole.cpu(), pooled)

    def optimizers(self, config: StageConfig) -> dict[str, torch.optim.Optimizer]:
        """One for each update of Algorithm 1, by line; jointly, one does lines 2 and 4."""
        encoders = ["pose_encoder", "expression_encoder"]
        classify = [*encoders, "pose_classifier", "expression_classifier"]
        lines = {"2": classify, "3": ["discriminator"], "4": [*encoders, "decoder"]}
        if self.objective.joint:
            lines = {"2": [*classify, "decoder"], "3": ["discriminator"]}
        if not self.objective.discriminator:
            del lines["3"]
        return {line: self._adam(names, config) for line, names in lines.items()}

    def _adam(self, names: Sequence[str], config: StageConfig) -> torch.optim.Optimizer:
        groups = []
        for name in (name for name in names if name in self.parts):
            for group in decayed_and_not(self.parts[name]):
                scale = self.objective.decoder_rate if name == "decoder" else 1.0
                groups.append({"weight_decay": config.weight_decay, **group, "rate_scale": scale})
        return torch.optim.AdamW(groups, config.rate)

    def update(
        self, batch: Batch, optimizers: Mapping[str, torch.optim.Optimizer]
    ) -> Mapping[str, Tensor]:
        """Lines 2 to 4 of Algorithm 1 on a batch; the losses by name."""
        told: dict[str, Tensor] = {}
        with torch.no_grad(), autocast(self.device):
            identity = self.identity(batch.images).float()
        features = self.encode(batch.images)
        classification = self.classification(batch, identity, features, told)
        if not self.objective.joint:
            descend(optimizers["2"], classification)
        if self.objective.discriminator:
            descend(optimizers["3"], self.discrimination(batch, told))
        if not self.objective.joint:
            features = self.encode(batch.images)
        generation = self.generation(batch, identity, features, told)
        if self.objective.joint:
            descend(optimizers["2"], classification + generation)
        else:
            descend(optimizers["4"], generation)
        told["loss"] = classification + generation
        return {name: value.detach() for name, value in told.items()}

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """f_exp and f_pose of crops (B, 3, S, S), float32, (B, D)."""
        with autocast(self.device):
            expression = self.parts["expression_encoder"](images)
            if "pose_encoder" not in self.parts:
                return expression.float(), None
            return expression.float(), self.parts["pose_encoder"](images).float()

    def classification(
        self,
        batch: Batch,
        identity: Tensor,
        features: tuple[Tensor, Tensor | None],
        told: dict[str, Tensor],
    ) -> Tensor:
        """L_c + β1 L_cos, line 2."""
        expression, pose = features
        logits = self.parts["expression_classifier"](expression)
        told["expression"] = losses.expression_loss(logits, batch.targets, batch.trust)
        told["pose"] = expression.new_zeros(())
        if pose is not None:
            told["pose"] = losses.pose_loss(self.parts["pose_classifier"](pose), batch.poses)
        told["cos"] = losses.orthogonality_loss(identity, expression)
        total = losses.classification_loss(told["expression"], told["pose"])
        return total + self.objective.betas[0] * told["cos"]

    def discrimination(self, batch: Batch, told: dict[str, Tensor]) -> Tensor:
        """L^r_exp, line 3."""
        count = self._pictured(batch)
        with autocast(self.device):
            logits = self.parts["discriminator"](self._shrunk(batch.images[:count]))
        told["discriminator"] = losses.discriminator_loss(logits, batch.targets[:count])
        return told["discriminator"]

    def generation(
        self,
        batch: Batch,
        identity: Tensor,
        features: tuple[Tensor, Tensor | None],
        told: dict[str, Tensor],
    ) -> Tensor:
        """L'_G + β2 L_confusion, line 4; D and the classifiers are fixed."""
        expression, pose = features
        count = self._pictured(batch)
        neutral = (identity if pose is None else identity + pose)[:count]
        real = self._shrunk(batch.images[:count])
        with autocast(self.device):
            made = self.decoder.generate(torch.cat([neutral + expression[:count], neutral]))
        full, plain = made.chunk(2)
        zero = expression.new_zeros(())
        told |= {"fake_neutral": zero, "fake_expression": zero, "id": zero, "confusion": zero}
        if self.objective.discriminator:
            with autocast(self.device), _fixed(self.parts["discriminator"]) as discriminator:
                of_full, of_plain = discriminator(made).chunk(2)
            told["fake_neutral"] = losses.fake_neutral_loss(of_plain, NEUTRAL)
            told["fake_expression"] = losses.fake_expression_loss(of_full, batch.targets[:count])
        if self.objective.lambdas[2]:
            with autocast(self.device):
                of_full, of_plain = self.identity(made).chunk(2)
                of_real = self.identity(real).float()
            told["id"] = losses.identity_consistency_loss(of_full, of_plain, of_real)
        told["recon"] = losses.reconstruction_loss(full, plain, real, batch.is_neutral[:count])
        if pose is not None and self.objective.betas[1]:
            classifier = self.pose_classifier
            assert classifier is not None
            fixed = F.linear(expression, classifier.weight.detach(), classifier.bias.detach())
            told["confusion"] = losses.confusion_loss(fixed)
        terms = (told["fake_neutral"], told["fake_expression"], told["id"], told["recon"])
        generative = losses.generative_loss(terms, self.objective.lambdas)
        return generative + self.objective.betas[1] * told["confusion"]

    def _pictured(self, batch: Batch) -> int:
        """How many rows, from the first, are decoded."""
        return max(2, round(self.objective.pictured * len(batch.images)))

    def _shrunk(self, images: Tensor) -> Tensor:
        """Real crops at the size that the decoder makes."""
        size = self.objective.decoder_size
        if images.shape[-1] == size:
            return images
        small = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        return small.contiguous(memory_format=torch.channels_last)


def train_disentangled(
    recipe: Recipe,
    rows: Sequence[Rows],
    val: dict[str, Rows],
    identity: dict[str, Tensor],
    start: dict[str, Tensor],
    out: Path,
    seed: int,
    device: torch.device,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The last round by Algorithm 1.

    Returns:
        Tensors of the model by name, E_id included and D left out, of the epoch of highest accuracy
        on the first validation split; and the model's architecture.
    """
    torch.manual_seed(seed)
    whole = Disentangler(recipe, identity, start, rows[0].crops, device)
    optimizers = whole.optimizers(recipe.main)
    aims = [targets(r, soft=recipe.soft_labels) for r in rows]
    usable = [(t.sum(1) > 0).nonzero()[:, 0] for t in aims]
    index = numbered(usable if recipe.lfw_trust else usable[:1])
    trust = torch.tensor([1.0, recipe.lfw_trust])

    def step(chosen: Tensor, size: int, draw: torch.Generator) -> Mapping[str, Tensor]:
        batch = Batch(
            images=pick(rows, chosen, size, draw).to(device),
            targets=gather(aims, chosen).to(device),
            trust=trust[chosen[0]].to(device),
            is_neutral=(gather([r.labels for r in rows], chosen) == NEUTRAL).to(device),
            poses=gather([r.poses for r in rows], chosen).to(device),
        )
        return whole.update(batch, optimizers)

    def validate(network: nn.Module, size: int) -> dict[str, float]:
        result = expression_accuracy(network, val, device, size)
        if "pose_encoder" in whole.parts:
            result["pose_accuracy"] = _pose_accuracy(
                network, next(iter(val.values())), device, size
            )
        return result

    select = next(f"{name}_accuracy" for name in val)
    state = fit(
        whole.parts,
        list(optimizers.values()),
        recipe.main,
        shuffled(index, recipe.main, seed),
        step,
        validate,
        select,
        out,
        seed,
    )
    kept = {k: v for k, v in state.items() if k.split(".")[0] != "discriminator"}
    return kept | {f"identity_encoder.{k}": v for k, v in identity.items()}, whole.architecture


def _channels_last(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on the device, its convolutions laid out as they are fastest."""
    return module.to(device).to(memory_format=torch.channels_last)


@contextmanager
def _fixed(network: nn.Module) -> Iterator[nn.Module]:
    """A network that gradients pass through and that does not change, its norms included."""
    network.eval().requires_grad_(False)
    try:
        yield network
    finally:
        network.train().requires_grad_(True)


def _parts(model: IPDFER, objective: Objective, recipe: Recipe) -> nn.ModuleDict:
    """Everything that moves."""
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
    """Share of right pose classes among the rows of known pose."""
    features = embed(network.get_submodule("pose_encoder"), val.crops, device, size)
    with torch.no_grad():
        logits = network.get_submodule("pose_classifier")(features.to(device)).cpu()
    known = val.poses >= 0
    return float((logits.argmax(1)[known] == val.poses[known]).double().mean())
