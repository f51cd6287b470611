"""Taking out of features, by a linear projection, what tells people apart."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

NAME = "identity_removal"
"""Attribute of a model that holds the removal, and the beginning of its tensors' names."""
SHUFFLES = 5
"""How often people are dealt out anew, to see how far chance alone tells them apart."""
SUPPORT = 1e-6
"""Directions whose variance is below this share of the largest count as not varying."""


class IdentityRemoval(nn.Module):
    """A projection of features off the directions that tell people apart.

    It has no parameters to train; ``remove_identity`` fits it. As ``model.identity_removal`` it is
    applied to what ``encode_expression`` gives, and saved and loaded with the model.

    Args:
        dim: D of the features.
        directions: K, how many are removed.
    """

    mean: Tensor
    """Of the features it was fitted to, (D,)."""
    read: Tensor
    """From centred features to their places along the directions, (D, K)."""
    write: Tensor
    """From these places back to features, (K, D)."""

    def __init__(self, dim: int, directions: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("read", torch.zeros(dim, directions))
        self.register_buffer("write", torch.zeros(directions, dim))

    @property
    def directions(self) -> int:
        """How many directions are removed."""
        return self.read.shape[1]

    def forward(self, features: Tensor) -> Tensor:
        """Features (F, D) without what tells people apart; rows of NaN stay rows of NaN."""
        centred = features - self.mean  # in the higher of the two precisions
        return features - centred @ self.read.to(centred.dtype) @ self.write.to(centred.dtype)

    def extra_repr(self) -> str:
        """What ``print`` shows between the brackets."""
        return f"{len(self.mean)}, directions={self.directions}"


def remove_identity(
    features: Tensor,
    identities: Tensor | Sequence[Hashable],
    *,
    keep: Tensor | None = None,
    directions: int | None = None,
    seed: int = 0,
) -> IdentityRemoval:
    """Fit a projection off the directions in which the features of different people differ most.

    The directions are Fisher's: those along which the most of the variance lies between people. The
    projection is that of LEACE (Belrose et al., "LEACE: Perfect linear concept erasure in closed
    form", 2023) for the strongest of them: orthogonal where the features are white, so that nothing
    uncorrelated with these directions is touched. LEACE itself removes every direction in which
    the means of people differ: all there are, where people outnumber dimensions.

    How many directions are strong is told by parallel analysis (Horn, 1965): as many as lie further
    between people than any direction does once the people are dealt out anew.

    Args:
        features: of training photographs, (N, D).
        identities: who is on each, numbers or names, N; people with one photograph do not count.
        keep: classes that must stay readable, such as expressions, int64, -1 where unknown, (N,):
            directions are sought only among those that are uncorrelated with these classes.
            Preserving a covariance while erasing another is after Holstege et al., "Preserving
            task-relevant information under linear concept removal", 2025.
        directions: how many to remove; None to have it told as above.
        seed: of the dealing.

    Returns:
        The removal, on the device of the features.

    Raises:
        ValueError: if shapes disagree, features are not finite, fewer than two people have two
            photographs, all rows are the same, or ``directions`` is below 0.
    """
    if directions is not None and directions < 0:
        raise ValueError(f"directions must be 0 or more, or None, got {directions}")
    features, keep = _tensor(features), None if keep is None else _tensor(keep)
    people = _numbers(identities)
    _check(features, people, keep)
    rows = features.detach().cpu().double()
    mean, there, back = _whitening(rows)
    if not there.shape[1]:
        raise ValueError("features are the same in every row; give those of different photographs")
    white = (rows - mean) @ there
    if keep is not None:
        white = white - white @ (kept := _class_axes(white, keep.cpu())) @ kept.T
    counts = people.bincount()
    several = counts[people] > 1
    white, people = white[several], people[several].unique(return_inverse=True)[1]
    shares, axes = _between(white, people)
    if directions is None:
        draw = torch.Generator().manual_seed(seed)
        dealt = [
            people[torch.randperm(len(people), generator=draw, device="cpu")]
            for _ in range(SHUFFLES)
        ]
        directions = int((shares > max(float(_between(white, d)[0][0]) for d in dealt)).sum())
    axes = axes[:, : min(directions, len(shares))]
    removal = IdentityRemoval(rows.shape[1], axes.shape[1])
    for name, value in (("mean", mean), ("read", there @ axes), ("write", axes.T @ back)):
        setattr(removal, name, value.float().contiguous())
    return removal.to(features.device)


def removal_in(tensors: Mapping[str, Any]) -> IdentityRemoval | None:
    """A removal, to be filled, for the tensors of a saved model; None if it was saved without."""
    write = tensors.get(f"{NAME}.write")
    return None if write is None else IdentityRemoval(write.shape[1], write.shape[0])


def _whitening(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), and the matrices to white coordinates (D, R) and back (R, D)."""
    mean = rows.mean(0)
    variance, axes = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
    varying = variance > SUPPORT * variance[-1]
    scale, axes = variance[varying].sqrt(), axes[:, varying]
    return mean, axes / scale, (axes * scale).T


def _class_axes(white: Tensor, classes: Tensor) -> Tensor:
    """Orthonormal directions in which the means of classes differ, (R, up to K - 1)."""
    names = classes[classes >= 0].unique()
    if not len(names):
        return white.new_zeros(white.shape[1], 0)
    means = torch.stack([white[classes == name].mean(0) for name in names])
    # One direction is the mean of all, along which the classes' means need not differ.
    _, sizes, axes = torch.linalg.svd(means - means.mean(0), full_matrices=False)
    return axes[sizes > 1e-9 * sizes[0]].T


def _between(white: Tensor, people: Tensor) -> tuple[Tensor, Tensor]:
    """Variance between people along each of their directions, falling, and these, (R, R)."""
    counts = people.bincount().double()
    sums = white.new_zeros(len(counts), white.shape[1]).index_add(0, people, white)
    means = sums / counts.sqrt()[:, None]
    shares, axes = torch.linalg.eigh(means.T @ means / len(white))
    return shares.flip(0), axes.flip(1)


def _tensor(values: Any) -> Tensor:
    """Values as a tensor, where they are: torch moves even tensors to its default device."""
    return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")


def _numbers(identities: Tensor | Sequence[Hashable]) -> Tensor:
    if isinstance(identities, Tensor):
        return identities.cpu().unique(return_inverse=True)[1]
    # Numbers of torch are equal only to themselves as keys.
    names = [name.item() if isinstance(name, Tensor) else name for name in identities]
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number[name] for name in names], device="cpu")


def _check(features: Tensor, people: Tensor, keep: Tensor | None) -> None:
    lengths = {len(features), len(people), len(people if keep is None else keep)}
    if features.ndim != 2 or people.ndim != 1 or len(lengths) > 1:
        raise ValueError(
            "remove_identity wants features (N, D), N identities and keep (N,) or None, got "
            f"{tuple(features.shape)}, {len(people)} and "
            f"{None if keep is None else tuple(keep.shape)}"
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError(
            "features hold NaN or infinity; leave out the rows where no face was found"
        )
    several = int((people.bincount() > 1).sum())
    if several < 2:
        raise ValueError(
            f"{several} people have two photographs or more; two or more are needed to see what "
            "tells them apart"
        )
