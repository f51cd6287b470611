"""How good generated faces are: distance of distributions, variety, and copies."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of two normal distributions fitted to features: FID, of any network's.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
    Equilibrium", NIPS 2017, eq. (6). It depends on the number of rows; compare equal numbers only.

    Args:
        first: (N, D).
        second: (M, D).

    Returns:
        Squared distance of the means, plus what the covariances differ by; 0 for equal ones.

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
    return float((means[0] - means[1]).square().sum() + traces - 2 * product)


@torch.no_grad()
def inception_features(images: Tensor, weights: str | Path, batch_size: int = 32) -> Tensor:
    """What the standard FID compares: pooled features of ``torch-fidelity``'s Inception network.

    Args:
        images: RGB in [-1, 1], (N, 3, H, W); they are rounded to 8 bits, as images on disk are.
        weights: torch-fidelity's file of the network, a pickle: one that you trust.
        batch_size: images at a time.

    Returns:
        (N, 2048).

    Raises:
        ImportError: if ``torch-fidelity`` is not installed.
        FileNotFoundError: if there is no such file.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise ImportError("the standard FID needs it: pip install torch-fidelity") from error
    if not Path(weights).is_file():
        raise FileNotFoundError(f"no file {str(weights)!r} with the weights of Inception")
    network = FeatureExtractorInceptionV3("inception", ["2048"], str(weights))
    parts = []
    for part in images.split(batch_size):
        pixels = ((part.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        parts.append(network(pixels)[0])
    return torch.cat(parts)


def diversity(features: Tensor) -> float:
    """Mean of one minus the cosine over all pairs of rows (N, D); 0 if all faces are one.

    Raises:
        ValueError: if there are fewer than two rows.
    """
    if len(features) < 2:
        raise ValueError(f"diversity needs two rows or more, got {len(features)}")
    total = F.normalize(features.double(), dim=1).sum(0).square().sum()
    count = len(features)
    return float(1 - (total - count) / (count * (count - 1)))


def nearest(queries: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The most similar row of each query by cosine: similarities and row numbers, (Q,) each.

    Args:
        queries: (Q, D).
        rows: (N, D).
    """
    found = (F.normalize(queries, dim=1) @ F.normalize(rows, dim=1).T).max(1)
    return found.values, found.indices
