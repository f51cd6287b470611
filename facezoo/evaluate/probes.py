"""Probes of features: logistic regression and nearest neighbors, with a setting chosen on train.

The setting (penalty or number of neighbors) of highest accuracy on an inner split of the training
rows is used; test rows have no part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.errors import explained_import

PENALTIES = (1.0, 0.1, 0.01, 0.001)
"""L2 penalties that a linear probe chooses from, strongest first."""
NEIGHBORS = (50, 20, 10, 5, 1)
"""Numbers of neighbors to choose from, smoothest first."""
TEMPERATURE = 0.07
"""Temperature of the neighbors' votes (Wu et al. 2018, Sec. 3.4)."""
ROUNDINGS = 10
"""Tolerance, in machine epsilons of the largest number, below which a feature is constant."""

Predict = Callable[[Tensor, Tensor, float], Tensor]
"""From rows to fit, rows to predict and a setting to probabilities of the latter rows."""


@dataclass(frozen=True)
class Probe:
    """Predictions of a probe for the test rows."""

    probabilities: Tensor
    """float32, (T, K), rows sum to one."""
    setting: float
    """The penalty or number of neighbors."""

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
    """Fit multinomial logistic regression on standardized features.

    The objective is the mean cross-entropy + penalty / 2 * the sum of squared weights. The bias is
    not penalized.

    Args:
        features: (N, D).
        labels: classes 0 to K - 1, int64, (N,).
        train: rows to fit, (R,).
        test: rows to predict, (T,).
        groups: int64, such as identities, (N,); no group may be in train and test, and the penalty
            is chosen on groups outside the fit. None if rows are independent.
        penalties: L2 penalties to choose from; the first of equally good ones is used.
        seed: seed of the inner split.

    Returns:
        Probabilities of the test rows and the penalty.

    Raises:
        ValueError: if features are not finite, a group is in train and test, or train is too small
            to choose a penalty.
    """
    _check(features, train, test, groups)
    classes = int(labels.max()) + 1

    def predict(fit: Tensor, rows: Tensor, penalty: float) -> Tensor:
        mean, scale = _standardization(features[fit])
        weight, bias = fit_logistic((features[fit] - mean) / scale, labels[fit], classes, penalty)
        return ((features[rows] - mean) / scale @ weight + bias).softmax(1)

    penalty = _choose(penalties, predict, labels, train, groups, seed)
    return Probe(predict(train, test, penalty).float(), penalty)


def nearest_neighbors(
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    test: Tensor,
    groups: Tensor | None = None,
    *,
    neighbors: Sequence[int] = NEIGHBORS,
    seed: int = 0,
) -> Probe:
    """Predict by the training rows of highest cosine, weighted by exp(cosine / 0.07).

    Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"
    (2018), Sec. 3.4.

    Args:
        features: (N, D).
        labels: classes 0 to K - 1, int64, (N,).
        train: rows with known classes, (R,).
        test: rows to predict, (T,).
        groups: int64, such as identities, (N,); no group may be in train and test. None if rows are
            independent.
        neighbors: numbers of neighbors to choose from, at most all training rows.
        seed: seed of the inner split.

    Returns:
        Probabilities of the test rows and the number of neighbors.

    Raises:
        ImportError: if the extra ``[evaluate]`` is missing.
        ValueError: if features are not finite, a group is in train and test, or train is too small
            to choose a number.
    """
    with explained_import("nearest_neighbors needs: pip install 'facezoo[evaluate]'"):
        from sklearn.neighbors import KNeighborsClassifier
    _check(features, train, test, groups)

    def predict(fit: Tensor, rows: Tensor, count: float) -> Tensor:
        model = KNeighborsClassifier(
            min(int(count), len(fit)),
            metric="cosine",
            weights=lambda distances: np.exp(-distances / TEMPERATURE),
        )
        model.fit(features[fit].double().numpy(), labels[fit].numpy())
        # A class that does not occur among the rows to fit has probability 0.
        probabilities = torch.zeros(len(rows), int(labels.max()) + 1, dtype=torch.double)
        predicted = model.predict_proba(features[rows].double().numpy())
        probabilities[:, torch.from_numpy(model.classes_)] = torch.from_numpy(predicted)
        return probabilities

    count = _choose(neighbors, predict, labels, train, groups, seed)
    return Probe(predict(train, test, count).float(), count)


def fit_logistic(
    features: Tensor, labels: Tensor, classes: int, penalty: float
) -> tuple[Tensor, Tensor]:
    """Minimize the mean cross-entropy + penalty / 2 * the sum of squared weights.

    L-BFGS starts from zero on preconditioned principal axes, so the result is deterministic.
    scikit-learn's solver needs thousands of steps on features of low rank with many classes.

    Args:
        features: (N, D).
        labels: int64, (N,).
        classes: number of classes K.
        penalty: L2 penalty above 0; the bias is not penalized.

    Returns:
        Weights (D, K) and bias (K,).
    """
    variance, axes = _principal_axes(features)
    # At zero weights the Hessian is variance / K + penalty along each axis. In these units it is
    # about one in every direction, so few steps are enough; the minimum is the same.
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


def _choose(
    settings: Sequence[float],
    predict: Predict,
    labels: Tensor,
    train: Tensor,
    groups: Tensor | None,
    seed: int,
) -> float:
    """Return the setting of highest accuracy on an inner split of the training rows."""
    if len(settings) == 1:
        return settings[0]
    outside = _inner_split(labels[train], None if groups is None else groups[train], seed)
    fit, rows = train[~outside], train[outside]
    correct = [int((predict(fit, rows, s).argmax(1) == labels[rows]).sum()) for s in settings]
    return settings[correct.index(max(correct))]


def _standardization(features: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation of each feature, 1 for a constant feature.

    Features that vary by rounding only, such as the traces of a projection, count as constant:
    scaled up, they could be read.
    """
    scale = features.std(0, correction=0)
    rounding = ROUNDINGS * torch.finfo(features.dtype).eps * features.abs().max()
    return features.mean(0), torch.where(scale > rounding, scale, torch.ones_like(scale))


def _principal_axes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Compute mean squares along the principal axes, (P,), and the axes as columns, (D, P).

    The minimum lies in the span of the features, so other directions are left out.
    """
    exact = features.double()
    tall = exact.shape[0] >= exact.shape[1]
    variance, axes = torch.linalg.eigh((exact.T @ exact if tall else exact @ exact.T) / len(exact))
    large = variance > 1e-10 * variance[-1]
    variance, axes = variance[large], axes[:, large]
    if not tall:
        axes = exact.T @ axes / (variance * len(exact)).sqrt()
    return variance.to(features.dtype), axes.to(features.dtype)


def _check(features: Tensor, train: Tensor, test: Tensor, groups: Tensor | None) -> None:
    """Raise an error if features are not finite or a group is in train and in test."""
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features hold NaN or infinity; leave out the rows without a face")
    if groups is not None and (shared := torch.isin(groups[train], groups[test])).any():
        raise ValueError(
            f"{int(groups[train][shared].unique().numel())} groups have rows in train and in test; "
            "put each group on one side"
        )


def _inner_split(labels: Tensor, groups: Tensor | None, seed: int) -> Tensor:
    """Mark about a quarter of the training rows to choose on, bool, (R,).

    These are whole groups, or a quarter of each class and at least one row of each class with two.

    Raises:
        ValueError: if no row is left on one side.
    """
    generator = torch.Generator().manual_seed(seed)
    outside = torch.zeros(len(labels), dtype=torch.bool)
    if groups is not None:
        names = groups.unique()
        count = max(1, len(names) // 4)
        outside = torch.isin(groups, names[torch.randperm(len(names), generator=generator)[:count]])
    else:
        for label in labels.unique():
            rows = (labels == label).nonzero()[:, 0]
            count = max(len(rows) // 4, min(1, len(rows) - 1))
            outside[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    if bool(outside.all()) or not bool(outside.any()):
        needed = "two groups" if groups is not None else "two rows of one class"
        raise ValueError(
            f"{len(labels)} training rows are too few to choose a setting on; pass {needed} or "
            "more, or a single setting"
        )
    return outside
