"""Baselines of the paper's Table 1: "CNN" and "CNN + augmentations"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.models.latent_simclr.augment import augment_codes
from facezoo.models.latent_simclr.simclr import CodeEncoder
from facezoo.training.loop import Position, Schedule, fit
from facezoo.training.optim import descend


def train_classifier(
    encoder: CodeEncoder,
    codes: Tensor,
    labels: Tensor,
    schedule: Schedule,
    out: Path,
    seed: int,
    *,
    directions: Sequence[Tensor] | None = None,
    strength: float = 1.0,
) -> nn.Sequential:
    """Train a code encoder with a linear classifier.

    Args:
        encoder: untrained base encoder whose scale was fitted to the codes.
        codes: codes, (N, L, D).
        labels: classes 0 to K - 1, int64, (N,).
        seed: seed of the linear layer, order and random numbers.
        directions: slider directions of the augmentation; None for no augmentation.

    Returns:
        Network from codes (B, L, D) to logits (B, K), in eval mode.
    """
    torch.manual_seed(seed)
    network = nn.Sequential(encoder, nn.Linear(encoder.num_features, int(labels.max()) + 1))

    optimizer = torch.optim.Adam(network.parameters(), lr=schedule.lr)

    def step(rows: Tensor, at: Position) -> dict[str, Tensor]:
        batch = codes[rows]
        if directions is not None:
            batch = augment_codes(batch, codes, list(directions), at.generator, strength=strength)
        loss = F.cross_entropy(network(batch), labels[rows])
        descend(optimizer, loss)
        return {"loss": loss}

    result = fit(network, [optimizer], step, schedule, torch.arange(len(codes)), out, seed)
    network.load_state_dict(result.state)
    return network.eval()
