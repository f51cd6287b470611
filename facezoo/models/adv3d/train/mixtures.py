"""Training rows for ICT-3D: mixtures of identities, and corrupted point clouds.

Letters: P identities, E expressions, R rows, J identities in a mixture, D values of a mesh.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.geometry.meshes import add_noise, cut_off, some_points


@dataclass(frozen=True)
class Mixtures:
    """Rows that combine the mean faces of several identities and the deviation of one mesh.

    The mean of an identity over all expressions needs identity labels only, and so does the
    deviation of a mesh from it. The model itself is additive, eq. (1).
    """

    identities: Tensor
    """Identities whose means form the identity of a row, (R, J)."""
    weights: Tensor
    """Weights of these, (R, J)."""
    identity: Tensor
    """Identity of the mesh that gives the deviation, (R,)."""
    expression: Tensor
    """Expression of that mesh, (R,)."""

    def of(self, values: Tensor) -> Tensor:
        """Combine additive values of meshes (P, E, D) into rows (R, D)."""
        means = values.mean(1)
        identity = torch.einsum("rj,rjd->rd", self.weights, means[self.identities])
        return identity + values[self.identity, self.expression] - means[self.identity]

    def with_expressions(self, identity: Tensor, expression: Tensor) -> Mixtures:
        """Return the same identities with the deviations of other meshes, (R,) each."""
        return Mixtures(self.identities, self.weights, identity, expression)

    def to(self, device: torch.device) -> Mixtures:
        """Move to a device."""
        parts = (self.identities, self.weights, self.identity, self.expression)
        return Mixtures(*(part.to(device) for part in parts))

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, index: Tensor | slice) -> Mixtures:
        """Select rows."""
        parts = (self.identities, self.weights, self.identity, self.expression)
        return Mixtures(*(part[index] for part in parts))


def sample_mixtures(
    identities: int, expressions: int, count: int, generator: torch.Generator, joined: int = 12
) -> Mixtures:
    """Return every training mesh once, then new identities with the expressions of others.

    The weights of a new identity sum to one, and so do their squares. So new identities have the
    mean and the covariance of the training identities.

    Args:
        identities: P.
        expressions: E.
        count: new rows, in addition to the P · E meshes.
        joined: J, identities in a mixture; at most P.

    Returns:
        R = P · E + ``count`` rows.
    """
    joined = min(joined, identities)
    meshes = torch.arange(identities * expressions)
    alone = torch.zeros(len(meshes), joined)
    alone[:, 0] = 1
    members = torch.rand(count, identities, generator=generator).argsort(1)[:, :joined]
    direction = torch.randn(count, joined, generator=generator)
    direction = F.normalize(direction - direction.mean(1, keepdim=True), dim=1)
    weights = 1 / joined + math.sqrt(1 - 1 / joined) * direction
    donors = torch.randint(identities * expressions, (count,), generator=generator)
    donors = torch.cat([meshes, donors])
    return Mixtures(
        torch.cat([(meshes // expressions)[:, None].expand(-1, joined), members]),
        torch.cat([alone, weights]),
        donors // expressions,
        donors % expressions,
    )


def corrupt(points: Tensor, unit: float, generator: torch.Generator) -> Tensor:
    """Corrupt a point cloud like a scanner: fewer points, noise, and a missing side.

    Half of the clouds lose up to 40 % on one side.

    Args:
        points: (N, 3).
        unit: one millimeter, in the units of the points.

    Returns:
        (N', 3), between 30 % and all of the remaining points.
    """
    count, noise, missing, cut = torch.rand(4, generator=generator).tolist()
    if cut < 0.5:
        points = cut_off(points, 0.4 * missing, generator)
    points = some_points(points, round(len(points) * (0.3 + 0.7 * count)), generator)
    return add_noise(points, 0.7 * unit * noise, generator)
