"""Probes of features: logistic regression and nearest neighbors, with a setting chosen on train.

scikit-learn fits both. The setting (penalty or number of neighbors) of highest accuracy on an inner
split of the training rows is used; test rows have no part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

PENALTIES = (1.0, 0.1, 0.01, 0.001)
"""L2 penalties that a linear probe chooses from, strongest first."""
NEIGHBORS = (50, 20, 10, 5, 1)
"""Numbers of neighbors to choose from, smoothest first."""
TEMPERATURE = 0.07
"""Temperature of the neighbors' votes (Wu et al. 2018, Sec. 3.4)."""
ROUNDINGS = 10
"""Tolerance, in machine epsilons of the largest number, below which a feature is constant."""

Array = np.ndarray[Any, Any]
Fit = Callable[[Array, Array, float], Any]
"""From rows, their labels and a setting to a fitted classifier."""


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
        ImportError: if scikit-learn is not installed.
        ValueError: if features are not finite, a group is in train and test, or train is too small
            to choose a penalty.
    """

    def fit(rows: Array, classes: Array, penalty: float) -> Any:
        from sklearn.linear_model import LogisticRegression

        # Two classes share one weight vector, which splits the penalty in half.
        weight = penalty / 2 if len(np.unique(classes)) == 2 else penalty
        return LogisticRegression(C=1 / (weight * len(rows)), max_iter=5000).fit(rows, classes)

    _check(features, train, test, groups)
    return _probe(
        fit, _principal_scores(features, train), labels, train, test, groups, penalties, seed
    )


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
    (2018), Sec. 3.4. Arguments and errors are those of ``linear_probe``; ``neighbors`` are the
    numbers to choose from, at most all training rows.
    """

    def fit(rows: Array, classes: Array, count: float) -> Any:
        from sklearn.neighbors import KNeighborsClassifier

        model = KNeighborsClassifier(
            min(int(count), len(rows)),
            metric="cosine",
            weights=lambda distances: np.exp(-distances / TEMPERATURE),
        )
        return model.fit(rows, classes)

    _check(features, train, test, groups)
    return _probe(fit, features, labels, train, test, groups, neighbors, seed)


def _check(features: Tensor, train: Tensor, test: Tensor, groups: Tensor | None) -> None:
    """Raise an error if scikit-learn is missing, or features or groups cannot be used."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ImportError("probes need: pip install 'facezoo[evaluate]'") from error
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features hold NaN or infinity; leave out the rows without a face")
    if groups is not None and (shared := torch.isin(groups[train], groups[test])).any():
        raise ValueError(
            f"{int(groups[train][shared].unique().numel())} groups have rows in train and in test; "
            "put each group on one side"
        )


def _probe(
    fit: Fit,
    features: Tensor,
    labels: Tensor,
    train: Tensor,
    test: Tensor,
    groups: Tensor | None,
    settings: Sequence[float],
    seed: int,
) -> Probe:
    """Choose a setting on an inner split of train, fit it on train, and predict test."""
    rows, classes = features[train].double().numpy(), labels[train].numpy()
    setting = settings[0]
    if len(settings) > 1:
        outside = _inner_split(labels[train], None if groups is None else groups[train], seed)
        inside = ~outside
        fits = [fit(rows[inside], classes[inside], candidate) for candidate in settings]
        accuracies = [candidate.score(rows[outside], classes[outside]) for candidate in fits]
        setting = settings[accuracies.index(max(accuracies))]
    model = fit(rows, classes, setting)
    # A class that does not occur in train has probability 0.
    probabilities = torch.zeros(len(test), int(labels.max()) + 1, dtype=torch.double)
    predicted = model.predict_proba(features[test].double().numpy())
    probabilities[:, torch.from_numpy(model.classes_)] = torch.from_numpy(predicted)
    return Probe(probabilities.float(), setting)


def _principal_scores(features: Tensor, train: Tensor) -> Tensor:
    """Standardize features, and rotate them onto the principal axes of train.

    The rotation changes neither the penalty nor the minimum. It makes the fit fast, since
    directions in which train does not vary are left out. Features that vary by rounding only, such
    as the traces of a projection, count as constant: scaled up, they could be read.
    """
    rows = features[train]
    scale = rows.std(0, correction=0)
    varies = scale > ROUNDINGS * torch.finfo(features.dtype).eps * rows.abs().max()
    if not varies.any():
        return features.new_zeros(len(features), 1)
    scaled = ((features - rows.mean(0)) / scale)[:, varies].double()
    _, sizes, axes = torch.linalg.svd(scaled[train], full_matrices=False)
    return scaled @ axes[sizes > 1e-5 * sizes[0]].T


def _inner_split(labels: Tensor, groups: Tensor | None, seed: int) -> Array:
    """Mark a quarter of the training rows to choose on, bool, (R,).

    These are whole groups, or a quarter of each class and at least one row of each class with two.
    scikit-learn's stratified splits do not take classes of two or three rows.
    """
    outside = np.zeros(len(labels), dtype=bool)
    if groups is not None:
        from sklearn.model_selection import GroupShuffleSplit

        split = GroupShuffleSplit(1, test_size=0.25, random_state=seed).split(labels, None, groups)
        outside[next(split)[1]] = True
        return outside
    generator = torch.Generator().manual_seed(seed)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        count = max(len(rows) // 4, min(1, len(rows) - 1))
        outside[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return outside
