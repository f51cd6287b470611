"""Pairs of meshes for the identity discriminator. M meshes, B batch."""

from __future__ import annotations

import torch
from torch import Tensor


class Partners:
    """Draws a second mesh for each of some: of the same person, or of another.

    Args:
        persons: number of each mesh's person, (M,).

    Raises:
        ValueError: if there is one person only, or one with one mesh only.
    """

    def __init__(self, persons: Tensor) -> None:
        self.persons = persons
        self.order = persons.argsort(stable=True)
        self.place = self.order.argsort()
        self.count = persons.bincount()
        self.start = self.count.cumsum(0) - self.count
        present = self.count[self.count > 0]
        if len(present) < 2 or int(present.min()) < 2:
            raise ValueError(
                "pairs need two persons or more, each with two meshes or more; got "
                f"{len(present)} persons, of whom one has {int(present.min())}"
            )

    def draw(self, rows: Tensor, same: Tensor, draw: torch.Generator) -> Tensor:
        """Rows of the partners.

        The authors' code draws among all meshes of the person, so that a mesh may be its own
        partner; here it never is.

        Args:
            rows: (B,).
            same: whether the partner is of the same person, bool, (B,).
            draw: of the partners.

        Returns:
            (B,), every mesh that may be the partner being as likely as the others.
        """
        count, start = self.count[self.persons[rows]], self.start[self.persons[rows]]
        total = len(self.persons)
        choices = torch.where(same, count - 1, total - count)
        chance = torch.rand(len(rows), generator=draw, dtype=torch.float64)
        chosen = (chance * choices).long()
        mates = start + (self.place[rows] - start + 1 + chosen) % count
        others = (start + count + chosen) % total
        return self.order[torch.where(same, mates, others)]
