"""Quality of generated faces: distance of distributions, diversity, copies of training images."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.errors import explained_import


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Compute the Fréchet distance of normal distributions fitted to two sets of features (FID).

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium", NIPS 2017, eq. (6). It depends on the number of rows: compare equal numbers only.

    Args:
        first: (N, D).
        second: (M, D).

    Returns:
        The distance, 0 or more.

    Raises:
        ValueError: if a side has fewer than two rows, or the widths differ.
    """
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise ValueError(
            "features must be (N, D) and (M, D) with two rows or more each, got "
            f"{tuple(first.shape)} and {tuple(second.shape)}"
        )
    means = [side.double().mean(0) for side in (first, second)]
    covariances = [side.double().T.cov() for side in (first, second)]
    # The eigenvalues of A B are those of A^(1/2) B A^(1/2), which is symmetric.
    values, vectors = torch.linalg.eigh(covariances[0])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    product = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp(min=0).sqrt().sum()
    traces = sum(c.trace() for c in covariances)
    distance = (means[0] - means[1]).square().sum() + traces - 2 * product
    return float(distance.clamp(min=0))  # rounding can make the distance of equal sets negative


@torch.no_grad()
def inception_features(images: Tensor, weights: str | Path, batch_size: int = 32) -> Tensor:
    """Compute the features of the standard FID with ``torch-fidelity``'s Inception network.

    Args:
        images: RGB in [-1, 1], (N, 3, H, W); they are rounded to 8 bits, as image files are.
        weights: torch-fidelity's file of the network, a pickle: use only one that you trust.

    Returns:
        Pooled features, (N, 2048).

    Raises:
        ImportError: if ``torch-fidelity`` is not installed.
        FileNotFoundError: if there is no such file.
    """
    with explained_import("the standard FID needs: pip install torch-fidelity"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    if not Path(weights).is_file():
        raise FileNotFoundError(f"no file {str(weights)!r} with the weights of Inception")
    network = FeatureExtractorInceptionV3("inception", ["2048"], str(weights))
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return torch.cat([network(part)[0] for part in pixels.split(batch_size)])


def diversity(features: Tensor) -> float:
    """Compute the mean of one minus the cosine over all pairs of rows (N, D); 0 if all are equal.

    Raises:
        ValueError: if there are fewer than two rows.
    """
    count = len(features)
    if count < 2:
        raise ValueError(f"diversity needs two rows or more, got {count}")
    total = F.normalize(features.double(), dim=1).sum(0).square().sum()
    return float(1 - (total - count) / (count * (count - 1)))


def nearest(queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Find the row (N, D) of highest cosine to each query (Q, D): cosine and number, (Q,)."""
    best = (F.normalize(queries, dim=1) @ F.normalize(rows, dim=1).T).max(1)
    return best.values, best.indices
