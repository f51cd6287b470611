"""Remove identity from the expression features of a code encoder, in its last layer; ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from facezoo.models.identity_removal import IdentityRemoval, remove_identity
from facezoo.models.latent_simclr.simclr import CodeEncoder


@torch.no_grad()
def separate_from_identity(
    encoder: CodeEncoder,
    codes: Tensor,
    identities: Sequence[str],
    expressions: Tensor,
    directions: int,
) -> None:
    """Change the last layer so that the features no longer vary along directions of identity.

    Args:
        encoder: trained encoder, changed in place.
        codes: codes of images, (N, L, D).
        identities: name of each image, N; empty if unknown.
        expressions: classes, whose means are kept, -1 for unknown, int64, (N,).
        directions: number of directions to remove, see ``remove_identity``.
    """
    encoder.eval()
    features = torch.cat([encoder(part) for part in codes.split(1024)])
    names = [name or None for name in identities]
    known = (expressions >= 0) | torch.tensor([name is not None for name in names])
    removal = remove_identity(
        features[known],
        [name for name, is_known in zip(names, known.tolist(), strict=True) if is_known],
        keep=expressions[known],
        directions=directions,
    )
    _project(encoder, removal, features)


def _project(encoder: CodeEncoder, removal: IdentityRemoval, features: Tensor) -> None:
    """Apply a projection in the last linear layer and its batch normalization.

    Mean and variance of the normalization become those of the projected features, so that both
    of its modes agree.
    """
    linear, norm = encoder.mapping
    assert isinstance(linear, nn.Linear)
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = norm.bias - scale * norm.running_mean
    moves = removal.read @ removal.write  # features lose (features - mean) @ moves
    weight = scale[:, None] * linear.weight
    weight, bias = weight - moves.T @ weight, bias - bias @ moves + removal.mean @ moves
    projected = removal(features)
    linear.weight.copy_(weight)
    norm.running_mean.copy_(projected.mean(0) - bias)
    norm.running_var.copy_(projected.var(0))
    norm.weight.copy_((norm.running_var + norm.eps).sqrt())
    norm.bias.copy_(projected.mean(0))
