"""Where training starts: an encoder that measures distances, set rather than learnt.

The paper starts from random weights and trains 280 epochs on a large GPU. Here the shared layers
are set so that every one of the 1024 features is the (negative, squared) distance from an anchor
point to the nearest vertex, and stay so. What the features say of a face is then learnt. The
architecture is unchanged: the first layer holds hinges max(0, u·x − t), whose sums approximate |x|²
and x, the next three pass them on, and the fifth combines them to
−|x − q|² = 2 q·x − |x|² − |q|², of which the maximum over the points is wanted.

Letters: M meshes, N vertices, R rows. Coordinates are divided by the scale of the training frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from facezoo.geometry.points import jittered, some_points, without_part
from facezoo.models.adv3d.networks import FEATURES, VAE

KNOTS = (-0.05, 0.12, 0.27, 0.42, 0.57, 0.72, 0.87)
"""Where the hinges of a direction stand, as shares of the range of its coordinates."""
GAIN = 100.0
"""Times the squared distances, so that their variance is about one."""
SAMPLES = 20_000
"""Points that the approximation is fitted on."""


@torch.no_grad()
def set_shared_layers(
    vae: VAE, meshes: Tensor, spreads: tuple[float, float], draw: torch.Generator
) -> None:
    """Set the encoder's five shared layers, and their batch norms' fixed statistics.

    Args:
        vae: changed in place.
        meshes: some of the training meshes, (M, N, 3).
        spreads: smallest and largest standard deviation of the anchors about the surface of the
            mean mesh; each anchor has its own between them. Far anchors see smooth surfaces well,
            near ones detail.
        draw: of anchors and sample points.
    """
    points = meshes.flatten(0, 1)
    points = points[torch.randint(len(points), (SAMPLES,), generator=draw)]
    points = points + 0.02 * torch.randn(SAMPLES, 3, generator=draw)
    directions = _directions()
    along = points @ directions.T
    low, high = along.amin(0), along.amax(0)
    knots = torch.tensor(KNOTS).repeat(9)
    knots = torch.cat([knots, torch.tensor([0.65])])
    vae.conv1.weight[:, :, 0] = directions
    _bias(vae.conv1).copy_(-(low + (high - low) * knots))
    for number in (2, 3, 4):
        _pass_on(vae, number, draw)
    hidden = points.T[None]
    for number in (1, 2, 3, 4):
        hidden = _settle(vae, number, hidden)
    nearest = meshes.mean(0)
    chosen = torch.randint(len(nearest), (FEATURES,), generator=draw)
    closest, farthest = spreads
    reach = closest * (farthest / closest) ** torch.rand(FEATURES, 1, generator=draw)
    anchors = nearest[chosen] + reach * torch.randn(FEATURES, 3, generator=draw)
    _set_distances(vae, hidden[0].T, points, anchors)
    vae.bn5.reset_parameters()
    mean, variance = _statistics(vae.bn5)
    mean.zero_()
    variance.fill_(1 - vae.bn5.eps)  # so that it changes nothing yet


def spoil(points: Tensor, unit: float, draw: torch.Generator) -> Tensor:
    """A cloud of points as a scanner might leave it: fewer, displaced, some of it missing.

    Half of the clouds lose up to two fifths on one side.

    Args:
        points: (N, 3).
        unit: one millimetre, in the points' unit.
        draw: of everything.

    Returns:
        (N', 3) with N' between three tenths and all of what was left.
    """
    chosen, noise, missing, cut = torch.rand(4, generator=draw).tolist()
    if cut < 0.5:
        points = without_part(points, 0.4 * missing, draw)
    points = some_points(points, round(len(points) * (0.3 + 0.7 * chosen)), draw)
    return jittered(points, 0.7 * unit * noise, draw)


@torch.no_grad()
def standardise_features(vae: VAE, responses: Tensor, shift: float = 6.0) -> None:
    """Give the responses (R, 1024) mean ``shift`` and variance 1 through the last batch norm.

    The ReLU behind it then changes nothing.
    """
    mean, variance = _statistics(vae.bn5)
    mean.copy_(responses.mean(0))
    variance.copy_(responses.var(0))
    vae.bn5.bias.fill_(shift)


def _statistics(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Running mean and variance."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var


def _bias(layer: nn.Conv1d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


def _directions() -> Tensor:
    """Three axes and six diagonals, seven times each, and z once more, unit length, (64, 3)."""
    axes = torch.eye(3)
    pairs = ((0, 1), (0, 2), (1, 2))
    diagonals = [axes[i] + sign * axes[j] for i, j in pairs for sign in (1, -1)]
    nine = F.normalize(torch.stack([*axes, *diagonals]), dim=1)
    return torch.cat([nine.repeat_interleave(len(KNOTS), 0), axes[2:]])


def _pass_on(vae: VAE, number: int, draw: torch.Generator) -> None:
    """Let 64 channels through a layer as they are; the rest of its channels look anywhere."""
    layer = getattr(vae, f"conv{number}")
    outer, inner = layer.weight.shape[:2]
    layer.weight.copy_(torch.randn(outer, inner, 1, generator=draw) * math.sqrt(2 / inner))
    layer.weight[:64, :, 0] = torch.eye(64)
    layer.bias.zero_()


def _settle(vae: VAE, number: int, hidden: Tensor) -> Tensor:
    """Fix a batch norm's statistics to points (1, C, R): hinges are scaled only, others centred."""
    layer, norm = getattr(vae, f"conv{number}"), getattr(vae, f"bn{number}")
    response = layer(hidden)
    mean, variance = _statistics(norm)
    mean.zero_()
    mean[64:] = response.mean((0, 2))[64:]
    variance.copy_(response.square().mean((0, 2)))
    return F.relu(F.batch_norm(response, mean, variance))


def _set_distances(vae: VAE, hidden: Tensor, points: Tensor, anchors: Tensor) -> None:
    """Least-squares weights of the fifth layer for −|x − q|², from hidden (R, 128)."""
    inputs = torch.cat([hidden, torch.ones(len(hidden), 1)], 1).double()
    wanted = torch.cat([points, points.square().sum(1, keepdim=True)], 1).double()
    gram = inputs.T @ inputs
    ridge = 1e-7 * len(inputs) * torch.eye(len(gram), dtype=gram.dtype)
    solution = torch.linalg.solve(gram + ridge, inputs.T @ wanted)  # (129, 4)
    weight = GAIN * (2 * anchors.double() @ solution[:, :3].T - solution[:, 3])
    vae.conv5.weight[:, :, 0] = weight[:, :-1].float()
    offset = GAIN * anchors.double().square().sum(1)
    _bias(vae.conv5).copy_((weight[:, -1] - offset).float())


@dataclass(frozen=True)
class Mixtures:
    """Rows that are made of training meshes: several persons' means and one mesh's deviation.

    A person's mean, over all expressions, is known from identity labels alone, and so is what a
    mesh deviates from it. The model itself is additive, eq. (1).
    """

    persons: Tensor
    """Whose means make up the identity of a row, (R, J)."""
    weights: Tensor
    """Of these, (R, J)."""
    person: Tensor
    """Whose mesh lends its deviation, (R,)."""
    expression: Tensor
    """Which of their meshes, (R,)."""

    def of(self, values: Tensor) -> Tensor:
        """What rows have of ``values`` (P, E, D), which are additive, (R, D)."""
        means = values.mean(1)
        identity = torch.einsum("rj,rjd->rd", self.weights, means[self.persons])
        return identity + values[self.person, self.expression] - means[self.person]

    def dressed(self, person: Tensor, expression: Tensor) -> Mixtures:
        """The same identities with the deviations of other meshes, (R,) each."""
        return Mixtures(self.persons, self.weights, person, expression)

    def to(self, device: torch.device) -> Mixtures:
        """The same on a device."""
        parts = (self.persons, self.weights, self.person, self.expression)
        return Mixtures(*(part.to(device) for part in parts))

    def __len__(self) -> int:
        return len(self.weights)

    def __getitem__(self, index: Tensor | slice) -> Mixtures:
        """Some of the rows."""
        parts = (self.persons, self.weights, self.person, self.expression)
        return Mixtures(*(part[index] for part in parts))


def draw_mixtures(
    people: int, expressions: int, count: int, draw: torch.Generator, joined: int = 12
) -> Mixtures:
    """Every training mesh once as it is, then new persons in the expressions of others.

    The weights of a new person sum to one, and so do their squares, so that new persons have the
    mean and the covariance of the persons that they are made of.

    Args:
        people: P.
        expressions: E.
        count: new rows, beside the P · E meshes.
        draw: of persons, expressions and weights.
        joined: J, how many persons make a new one; at most P.

    Returns:
        R = P · E + ``count`` rows.
    """
    joined = min(joined, people)
    whole = torch.arange(people * expressions)
    alone = torch.zeros(len(whole), joined)
    alone[:, 0] = 1
    chosen = torch.rand(count, people, generator=draw).argsort(1)[:, :joined]
    direction = torch.randn(count, joined, generator=draw)
    direction = F.normalize(direction - direction.mean(1, keepdim=True), dim=1)
    weights = 1 / joined + math.sqrt(1 - 1 / joined) * direction
    lends = torch.randint(people * expressions, (count,), generator=draw)
    lends = torch.cat([whole, lends])
    return Mixtures(
        torch.cat([(whole // expressions)[:, None].expand(-1, joined), chosen]),
        torch.cat([alone, weights]),
        lends // expressions,
        lends % expressions,
    )


def ridge(inputs: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Linear regression with a penalty on the squared weights, not on the bias.

    Args:
        inputs: (R, D).
        targets: (R, L).
        penalty: added to the Gram matrix.

    Returns:
        Weights (L, D) and bias (L,), float32.
    """
    centre, mean = inputs.double().mean(0), targets.double().mean(0)
    rows = inputs.double() - centre
    gram = rows.T @ rows + penalty * torch.eye(rows.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(gram, rows.T @ (targets.double() - mean)).T
    return weight.float(), (mean - weight @ centre).float()


def batches_of(rows: int, size: int) -> Iterator[slice]:
    """Slices that cover ``rows`` in order."""
    return (slice(begin, min(begin + size, rows)) for begin in range(0, rows, size))
