"""The rounds before the last: E_id from a teacher, then a first E_exp and C_exp.

Source: Jiang & Deng, Sec. 4.2, where E_id comes ready-made from face recognition and E_exp starts
from it. Here E_id learns from the embeddings of a teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from facezoo.models.ipd_fer.losses import expression_loss
from facezoo.models.ipd_fer.networks import Encoder
from facezoo.models.ipd_fer.train.dataset import Rows, embed, gather, numbered, pick, targets
from facezoo.models.ipd_fer.train.recipes import Recipe, StageConfig
from facezoo.models.ipd_fer.train.rounds import Validate, adam, fit, shuffled
from facezoo.results import EXPRESSIONS
from facezoo.training.optim import autocast, descend


class ExpressionRound:
    """E_exp and C_exp by eq. (5): the first rounds, and the baseline's last.

    Args:
        recipe: targets, and how far LFW's labels are trusted.
        rows: the training split of each data set, FER+ or its like first.
        val: the validation splits, named ``val_names``.
        encoder: tensors of the encoder that E_exp starts from.
        device: where to train.
    """

    def __init__(
        self,
        recipe: Recipe,
        rows: Sequence[Rows],
        val: dict[str, Rows],
        encoder: dict[str, Tensor],
        device: torch.device,
    ) -> None:
        self.rows, self.val, self.device = rows, val, device
        self.parts = nn.ModuleDict(
            {
                "expression_encoder": Encoder(recipe.backbone, recipe.feature_dim),
                "expression_classifier": nn.Linear(recipe.feature_dim, len(EXPRESSIONS)),
            }
        ).to(device)
        self.parts["expression_encoder"].load_state_dict(encoder)
        self.targets = [targets(r, soft=recipe.soft_labels) for r in rows]
        self.trust = torch.tensor([1.0, recipe.lfw_trust])
        usable = [(t.sum(1) > 0).nonzero()[:, 0] for t in self.targets]
        self.index = numbered(usable if recipe.lfw_trust else usable[:1])

    def loss(self, chosen: Tensor, size: int, draw: torch.Generator) -> Tensor:
        """L_exp of a batch of (data set, row), (2, B)."""
        picked = pick(self.rows, chosen, size, draw)
        with autocast(self.device):
            features = self.parts["expression_encoder"](picked.to(self.device))
        logits = self.parts["expression_classifier"](features)
        aims = gather(self.targets, chosen).to(self.device)
        return expression_loss(logits, aims, self.trust[chosen[0]].to(self.device))

    def validate(self, network: nn.Module, size: int) -> dict[str, float]:
        """Share of right classes on each validation split, on labelled rows."""
        return expression_accuracy(network, self.val, self.device, size)

    def run(self, config: StageConfig, out: Path, seed: int) -> dict[str, Tensor]:
        """One round; the epoch of highest accuracy on FER+ validation stays, and is returned."""
        select = next(f"{name}_accuracy" for name in self.val)
        state = _round(self.parts, config, self.index, self.loss, self.validate, select, out, seed)
        self.parts.load_state_dict(state)
        return state


def expression_accuracy(
    network: nn.Module, val: dict[str, Rows], device: torch.device, size: int
) -> dict[str, float]:
    """Share of right classes of C_exp(E_exp(x)) on validation splits, by ``<name>_accuracy``."""
    result = {}
    for name, part in val.items():
        encoder = network.get_submodule("expression_encoder")
        features = embed(encoder, part.crops, device, size)
        with torch.no_grad():
            logits = network.get_submodule("expression_classifier")(features.to(device)).cpu()
        known = part.labels >= 0
        right = logits.argmax(1)[known] == part.labels[known]
        result[f"{name}_accuracy"] = float(right.double().mean())
    return result


def _round(
    parts: nn.Module,
    config: StageConfig,
    index: Tensor,
    loss: Callable[[Tensor, int, torch.Generator], Tensor],
    validate: Validate,
    select: str | None,
    out: Path,
    seed: int,
) -> dict[str, Tensor]:
    """A round with one optimiser and one loss."""
    parts.to(memory_format=torch.channels_last)
    optimizer = adam(parts, config)

    def step(chosen: Tensor, size: int, draw: torch.Generator) -> dict[str, Tensor]:
        value = loss(chosen, size, draw)
        descend(optimizer, value)
        return {"loss": value.detach()}

    order = shuffled(index, config, seed)
    return fit(parts, [optimizer], config, order, step, validate, select, out, seed)
