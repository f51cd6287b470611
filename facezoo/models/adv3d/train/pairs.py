"""Pairs of meshes for the identity discriminator. M meshes, B batch."""

from __future__ import annotations

import torch
from torch import Tensor


class PairSampler:
    """Sampler of a second mesh for each mesh: of the same identity, or of another.

    Args:
        identities: identity index of each mesh, (M,).

    Raises:
        ValueError: if there are fewer than two identities, or one has a single mesh.
    """

    def __init__(self, identities: Tensor) -> None:
        self.identities = identities
        self.order = identities.argsort(stable=True)
        self.rank = self.order.argsort()
        self.count = identities.bincount()
        self.start = self.count.cumsum(0) - self.count
        present = self.count[self.count > 0]
        if len(present) < 2 or int(present.min()) < 2:
            raise ValueError(
                "pairs need two or more identities with two or more meshes each; got "
                f"{len(present)} identities, and one has {int(present.min())}"
            )

    def sample(self, rows: Tensor, same: Tensor, generator: torch.Generator) -> Tensor:
        """Sample a partner for each row, uniformly.

        The authors' code samples among all meshes of the identity, so a mesh can be its own
        partner. Here it cannot.

        Args:
            rows: (B,).
            same: True for a partner of the same identity, bool, (B,).

        Returns:
            Rows of the partners, (B,).
        """
        count, start = self.count[self.identities[rows]], self.start[self.identities[rows]]
        total = len(self.identities)
        choices = torch.where(same, count - 1, total - count)
        chance = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        step = (chance * choices).long()
        mates = start + (self.rank[rows] - start + 1 + step) % count
        others = (start + count + step) % total
        return self.order[torch.where(same, mates, others)]
