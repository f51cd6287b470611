"""What can be read from features: a linear probe and nearest neighbours, each chosen on train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (1.0, 0.1, 0.01, 0.001)
"""L2 penalties that a linear probe chooses from, strongest first."""
NEIGHBOURS = (50, 20, 10, 5, 1)
"""Numbers of neighbours to choose from, smoothest first."""
TEMPERATURE = 0.07
"""How fast a neighbour's vote falls with its distance (Wu et al. 2018, Sec. 3.4)."""
ROUNDINGS = 10
"""How many times the rounding of the largest number is no variation."""

Predict = Callable[[Tensor, Tensor, float], Tensor]
"""From rows to fit, rows to tell and a setting to probabilities of the latter rows."""


@dataclass(frozen=True)
class Probe:
    """What a probe says of the test rows."""

    probabilities: Tensor
    """(T, K), rows sum to one."""
    setting: float
    """The penalty, or the number of neighbours, that was chosen."""

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each test row, int64, (T,)."""
        return self.probabilities.argmax(1)


def linear_probe(
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    test: Tensor,
    groups: Tensor | None = None,
    *,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> Probe:
    """Multinomial logistic regression on standardised features, fitted and chosen on train alone.

    Args:
        features: floating point, which is the precision of the fit, (N, D).
        labels: classes 0 to K - 1, int64, (N,).
        train: rows to fit on, (R,).
        test: rows to tell, (T,).
        groups: people, say, int64, (N,); none may be in train and test, and the penalty is chosen
            on groups that the candidates were not fitted on. None where rows are independent.
        penalties: L2 penalties to choose from; see ``fit_logistic``. Of equally good ones the
            first is taken.
        seed: of the inner split.

    Returns:
        Probabilities of the test rows and the chosen penalty.

    Raises:
        ValueError: if shapes disagree, features are not finite, a group is on both sides, or
            train is too small to choose on.
    """
    _check(features, labels, train, test, groups)
    classes = int(labels.max()) + 1

    def predict(fit: Tensor, rows: Tensor, penalty: float) -> Tensor:
        mean, scale = _standard(features[fit])
        weight, bias = fit_logistic((features[fit] - mean) / scale, labels[fit], classes, penalty)
        return ((features[rows] - mean) / scale @ weight + bias).softmax(1)

    penalty = _chosen(penalties, predict, labels, train, groups, seed)
    return Probe(predict(train, test, penalty), penalty)


def nearest_neighbours(
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    test: Tensor,
    groups: Tensor | None = None,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    seed: int = 0,
) -> Probe:
    """The classes of the training rows of highest cosine, weighted by exp(cosine / 0.07).

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"
    (2018), Sec. 3.4. Arguments and errors are those of ``linear_probe``; ``neighbours`` are the
    numbers to choose from, of which one larger than the training rows means all of them.
    """
    _check(features, labels, train, test, groups)
    classes = int(labels.max()) + 1
    directions = F.normalize(features, dim=1)

    def predict(fit: Tensor, rows: Tensor, count: float) -> Tensor:
        parts = []
        for part in rows.split(1024):
            cosines = directions[part] @ directions[fit].T
            nearest, place = cosines.topk(min(int(count), len(fit)), dim=1)
            votes = (nearest / TEMPERATURE).softmax(1)
            empty = votes.new_zeros(len(part), classes)
            parts.append(empty.scatter_add(1, labels[fit][place], votes))
        return torch.cat(parts)

    count = _chosen(neighbours, predict, labels, train, groups, seed)
    return Probe(predict(train, test, count), count)


def fit_logistic(
    features: Tensor, labels: Tensor, classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    """Weights and bias that minimise mean cross-entropy + penalty / 2 * sum of squared weights.

    The bias is not penalised. L-BFGS from zero, so the result depends on nothing but the input.

    Args:
        features: (N, D).
        labels: int64, (N,).
        classes: K.
        penalty: larger than 0.

    Returns:
        Weights (D, K) and bias (K,).
    """
    variance, axes = _principal_axes(features)
    # At zero weights the Hessian is variance / K + penalty along each axis. In these units it is
    # about one in every direction, so that few steps are enough; the minimum is the same.
    scale = (variance / classes + penalty).rsqrt()
    inputs = features @ (axes * scale)
    weight = torch.zeros(inputs.shape[1], classes, dtype=features.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=features.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=200,
        history_size=20,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        squared = (weight * scale[:, None]).square().sum()
        value = F.cross_entropy(inputs @ weight + bias, labels) + penalty / 2 * squared
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return (axes * scale) @ weight.detach(), bias.detach()


def inner_split(labels: Tensor, groups: Tensor | None, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to fit candidates on, and about a quarter to choose among them on.

    Args:
        labels: int64, (R,).
        groups: int64, (R,): whole groups are held out. None to hold out a quarter of each class,
            and at least one row of each that has two.
        seed: of the draw.

    Returns:
        Two sets of places in the R rows, each in rising order.

    Raises:
        ValueError: if nothing is left for one of them.
    """
    draw = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(labels), dtype=torch.bool)
    if groups is not None:
        names = groups.unique()
        count = max(1, len(names) // 4)
        held = torch.isin(groups, names[torch.randperm(len(names), generator=draw)[:count]])
    else:
        for label in labels.unique():
            rows = (labels == label).nonzero()[:, 0]
            count = max(len(rows) // 4, min(1, len(rows) - 1))
            held[rows[torch.randperm(len(rows), generator=draw)[:count]]] = True
    if bool(held.all()) or not bool(held.any()):
        what = "two groups" if groups is not None else "two rows of one class"
        raise ValueError(
            f"{len(labels)} training rows are too few to choose a setting on; give {what} or "
            "more, or a single setting"
        )
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]


def _chosen(
    settings: Sequence[float],
    predict: Predict,
    labels: Tensor,
    train: Tensor,
    groups: Tensor | None,
    seed: int,
) -> float:
    """The setting of highest accuracy on an inner split of the training rows."""
    if len(settings) == 1:
        return settings[0]
    inside = groups[train] if groups is not None else None
    fit, held = (train[places] for places in inner_split(labels[train], inside, seed))
    right = [int((predict(fit, held, s).argmax(1) == labels[held]).sum()) for s in settings]
    return settings[right.index(max(right))]


def _standard(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each feature, one for a feature that does not vary.

    What is less than some roundings of the largest number does not count as varying: a linear
    projection leaves such traces of what it removes, and scaled up they could be read.
    """
    scale = features.std(0, correction=0)
    rounding = ROUNDINGS * torch.finfo(features.dtype).eps * features.abs().max()
    return features.mean(0), torch.where(scale > rounding, scale, torch.ones_like(scale))


def _principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squares along the directions in which features lie, and these as columns, (D, P).

    A penalised minimum lies in the span of the features: other directions can be left out.
    """
    exact = features.double()
    tall = exact.shape[0] >= exact.shape[1]
    variance, axes = torch.linalg.eigh((exact.T @ exact if tall else exact @ exact.T) / len(exact))
    keep = variance > 1e-10 * variance[-1]
    variance, axes = variance[keep], axes[:, keep]
    if not tall:
        axes = exact.T @ axes / (variance * len(exact)).sqrt()
    return variance.to(features.dtype), axes.to(features.dtype)


def _check(
    features: Tensor, labels: Tensor, train: Tensor, test: Tensor, groups: Tensor | None
) -> None:
    rows = {len(features), len(labels), len(labels if groups is None else groups)}
    if features.ndim != 2 or len(rows) > 1:
        raise ValueError(
            f"a probe wants features (N, D), labels (N,) and groups (N,), got "
            f"{tuple(features.shape)}, {tuple(labels.shape)} and "
            f"{None if groups is None else tuple(groups.shape)}"
        )
    if not len(train) or not len(test):
        raise ValueError(
            f"a probe got {len(train)} training and {len(test)} test rows; give one or more of each"
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError(
            "features hold NaN or infinity; leave out the rows where no face was found"
        )
    if groups is not None and (both := torch.isin(groups[train], groups[test])).any():
        raise ValueError(
            f"{int(groups[train][both].unique().numel())} groups have rows in train and in test; "
            "put each group on one side"
        )
