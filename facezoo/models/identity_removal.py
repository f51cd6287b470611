"""Linear projections of features: erase identity, and find the subspace of features."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from facezoo.results import as_array

NAME = "identity_removal"
"""Attribute of a model that holds the projection, and prefix of its tensors' names."""
PERMUTATIONS = 5
"""Label permutations used to estimate the chance level."""
SUPPORT = 1e-6
"""Directions with a variance below this share of the largest count as constant."""


class IdentityRemoval(nn.Module):
    """A projection of features off the directions in which identities differ.

    It has no trainable parameters; ``remove_identity`` fits it. As ``model.identity_removal`` it is
    applied to the output of ``encode_expression``, and saved and loaded with the model.

    Args:
        dim: D of the features.
        directions: K, number of directions to remove.
    """

    mean: Tensor
    """Mean of the features it was fitted to, (D,)."""
    read: Tensor
    """From centered features to their coordinates along the directions, (D, K)."""
    write: Tensor
    """From these coordinates back to features, (K, D)."""

    def __init__(self, dim: int, directions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("read", torch.zeros(dim, directions))
        self.register_buffer("write", torch.zeros(directions, dim))

    @property
    def directions(self) -> int:
        """Number of directions that are removed."""
        return self.read.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        """Remove identity from features (F, D); rows of NaN stay rows of NaN.

        Raises:
            ValueError: if the features have another width.
        """
        if len(self.mean) != features.shape[-1]:
            raise ValueError(
                f"{NAME} expects {len(self.mean)} features, got {features.shape[-1]}; fit one to "
                "features of this model by remove_identity()"
            )
        centered = features - self.mean  # in the higher of the two precisions
        return features - centered @ self.read.to(centered.dtype) @ self.write.to(centered.dtype)

    def extra_repr(self) -> str:
        """Return the arguments for ``print``."""
        return f"{len(self.mean)}, directions={self.directions}"


def remove_identity(
    features: Tensor,
    identities: Tensor | Sequence[Hashable],
    *,
    keep: Tensor | Sequence[int | str | None] | None = None,
    directions: int | None = None,
    seed: int = 0,
) -> IdentityRemoval:
    """Fit a projection off the directions in which the features of identities differ most.

    The directions are Fisher's, with the largest share of variance between identities. The
    projection is that of LEACE (Belrose et al., "LEACE: Perfect linear concept erasure in closed
    form", 2023) for the strongest of them. It is orthogonal in whitened coordinates, so everything
    that is uncorrelated with these directions is unchanged. LEACE itself removes every direction in
    which the means of identities differ: all of them, if there are more identities than dimensions.

    Parallel analysis (Horn, 1965) chooses the number of directions: those whose between-identity
    variance exceeds the maximum under permuted identities.

    Args:
        features: features of training images, (N, D).
        identities: identity of each image, numbers or names, N; None, NaN or NA for unknown.
            Identities with one image are ignored.
        keep: classes to preserve, such as expressions, N: whole numbers, -1 for unknown; or names,
            None for unknown, as in ``prediction.labels``. Only directions that are uncorrelated
            with these classes are removed. Preserving a covariance while erasing another follows
            Holstege et al., "Preserving task-relevant information under linear concept removal",
            2025.
        directions: number of directions to remove; None to choose it as above.
        seed: seed of the permutations.

    Returns:
        The projection, on the device of the features.

    Raises:
        ValueError: if shapes disagree, features are not finite, fewer than two identities have two
            images, all rows are the same, or ``directions`` is below 0.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> identities = torch.arange(50).repeat_interleave(6)
        >>> features = torch.randn(300, 32, generator=generator)
        >>> features[:, :3] += 3 * torch.randn(50, 3, generator=generator)[identities]
        >>> removal = facezoo.remove_identity(features, identities)
        >>> removal(features).shape
        torch.Size([300, 32])
    """
    if directions is not None and directions < 0:
        raise ValueError(f"directions must be 0 or more, or None, got {directions}")
    features, classes = _tensor(features), None if keep is None else _classes(keep)
    labels = _numbers(identities)
    _check(features, labels, classes)
    rows = features.detach().cpu().double()
    mean, whiten, unwhiten = _whitening(rows)
    if not whiten.shape[1]:
        raise ValueError("features are the same in every row; pass those of different images")
    white = (rows - mean) @ whiten
    if classes is not None:
        axes = _class_axes(white, classes.cpu())
        white = white - white @ axes @ axes.T
    several = labels.bincount()[labels] > 1
    white, labels = white[several], labels[several].unique(return_inverse=True)[1]
    shares, axes = _between(white, labels)
    if directions is None:
        generator = torch.Generator().manual_seed(seed)
        orders = [
            torch.randperm(len(labels), generator=generator, device="cpu")
            for _ in range(PERMUTATIONS)
        ]
        chance = max(float(_between(white, labels[order])[0][0]) for order in orders)
        directions = int((shares > chance).sum())
    axes = axes[:, : min(directions, len(shares))]
    removal = IdentityRemoval(rows.shape[1], axes.shape[1])
    for name, value in (("mean", mean), ("read", whiten @ axes), ("write", axes.T @ unwhiten)):
        setattr(removal, name, value.float().contiguous())
    return removal.to(features.device)


def removal_in(tensors: Mapping[str, Any]) -> IdentityRemoval | None:
    """Build an empty projection for the tensors of a saved model; None if it has none."""
    write = tensors.get(f"{NAME}.write")
    return None if write is None else IdentityRemoval(write.shape[1], write.shape[0])


def _whitening(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean (D,), and the matrices to whitened coordinates (D, R) and back (R, D)."""
    mean = rows.mean(0)
    variance, axes = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    varying = variance > SUPPORT * variance[-1]
    scale, axes = variance[varying].sqrt(), axes[:, varying]
    return mean, axes / scale, (axes * scale).T


def _class_axes(white: Tensor, classes: Tensor) -> Tensor:
    """Return orthonormal directions in which the class means differ, (R, up to K - 1)."""
    names = classes[classes >= 0].unique()
    if not len(names):
        return white.new_zeros(white.shape[1], 0)
    means = torch.stack([white[classes == name].mean(0) for name in names])
    # One direction is the mean of all, along which the class means need not differ.
    _, sizes, axes = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    return axes[sizes > 1e-9 * sizes[0]].T


def _between(white: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the variance between identities along their directions, falling, and these, (R, R)."""
    counts = labels.bincount().double()
    sums = white.new_zeros(len(counts), white.shape[1]).index_add(0, labels, white)
    means = sums / counts.sqrt()[:, None]
    shares, axes = torch.linalg.eigh(means.T @ means / len(white))
    return shares.flip(0), axes.flip(1)


def _tensor(values: Any) -> Tensor:
    """Convert values to a tensor on their device; torch would use its default device."""
    values = as_array(values)
    return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")


def _numbers(identities: Tensor | Sequence[Hashable]) -> Tensor:
    if isinstance(identities, Tensor):
        return identities.cpu().unique(return_inverse=True)[1]
    # As keys, numbers of torch are equal only to themselves.
    names = [name.item() if isinstance(name, Tensor) else name for name in identities]
    # Unknown identities differ from each other.
    names = [object() if _is_unknown(name) else name for name in names]
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names], device="cpu")


def _is_unknown(name: Hashable) -> bool:
    try:
        return name is None or bool(name != name)  # NaN
    except TypeError:  # pandas.NA
        return True


def _classes(keep: Tensor | Sequence[int | str | None]) -> Tensor:
    """Number the names of classes, -1 for None; numbers stay."""
    if isinstance(keep, Tensor):
        return keep
    if not any(isinstance(name, str) for name in keep):
        gaps = any(number is None for number in keep)
        return _tensor([-1 if number is None else number for number in keep] if gaps else keep)
    numbers = _numbers(keep)
    unknown = torch.tensor([not isinstance(name, str) for name in keep], device="cpu")
    return numbers.masked_fill(unknown, -1)


def _check(features: Tensor, labels: Tensor, keep: Tensor | None) -> None:
    lengths = {len(features), len(labels), len(labels if keep is None else keep)}
    if features.ndim != 2 or labels.ndim != 1 or len(lengths) > 1:
        raise ValueError(
            "remove_identity expects features (N, D), N identities and keep (N,) or None, got "
            f"{tuple(features.shape)}, {len(labels)} and "
            f"{None if keep is None else tuple(keep.shape)}"
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features hold NaN or infinity; leave out the rows without a face")
    several = int((labels.bincount() > 1).sum())
    if several < 2:
        raise ValueError(
            f"{several} identities have two images or more; at least two are needed to see how "
            "identities differ"
        )


def basis_of(points: Tensor) -> tuple[Tensor, Tensor] | None:
    """Find the subspace of an affine map from its values at zero and at the unit vectors.

    Args:
        points: (1 + K, D).

    Returns:
        Origin, (D,), and orthonormal basis, (D, R), float64; None if it is the whole space, or if
        a number is not finite.
    """
    points = points.double().cpu()
    if not points.isfinite().all():
        return None
    vectors, sizes, _ = torch.linalg.svd((points[1:] - points[0]).T, full_matrices=False)
    basis = vectors[:, sizes > 1e-6 * sizes[0]]
    if basis.shape[0] == basis.shape[1]:
        return None
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    return points[0], basis * largest.sign()
