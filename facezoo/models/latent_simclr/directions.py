"""Directions of W+ along which one property of a face changes."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from facezoo.hub.tensors import read_tensors, save
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator


@dataclass(frozen=True)
class Separator:
    """A hyperplane between codes that have a property and codes that have not.

    Attributes:
        direction: its unit normal, which points to where the property is, (L, D).
        offset: what the product of a code with the direction is on the plane.
    """

    direction: Tensor
    offset: float

    def distance(self, codes: Tensor) -> Tensor:
        """Signed distances of codes (N, L, D) from the plane, (N,); positive with the property."""
        return torch.einsum("nld,ld->n", codes, self.direction) - self.offset


def check_direction(direction: Tensor, num_codes: int, style_dim: int) -> Tensor:
    """A direction that can be added to codes (B, L, D), (1, D) or (L, D).

    Args:
        direction: (D,), (1, D) for the same change of every style, or (L, D).
        num_codes: L of the codes.
        style_dim: D of the codes.

    Raises:
        ValueError: if the direction has another shape.
    """
    rows = direction[None] if direction.ndim == 1 else direction
    if tuple(rows.shape) not in ((1, style_dim), (num_codes, style_dim)):
        raise ValueError(
            f"a direction must be (1, {style_dim}) or ({num_codes}, {style_dim}), got "
            f"{tuple(direction.shape)}; one that was made for another generator does not fit"
        )
    return rows


def load_directions(path: str | Path) -> dict[str, Tensor]:
    """Directions by name.

    Args:
        path: a ``.npy`` file with one direction, which is named after the file, or a
            ``.safetensors`` file with any number.

    Returns:
        float32, each (1, D) or (L, D).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of another kind, or a direction is not of one or two axes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path} with directions")
    if path.suffix == ".npy":
        found = {path.stem: torch.from_numpy(np.load(path, allow_pickle=False))}
    elif path.suffix == ".safetensors":
        found = dict(read_tensors(path))
    else:
        raise ValueError(f"directions are read from .npy and .safetensors files, got {path}")
    for name, direction in found.items():
        if direction.ndim not in (1, 2) or not direction.numel():
            raise ValueError(
                f"direction {name!r} of {path} must be (1, D) or (L, D), got "
                f"{tuple(direction.shape)}"
            )
    return {name: torch.atleast_2d(direction.float()) for name, direction in found.items()}


def save_directions(directions: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write directions by name as safetensors, which ``load_directions`` reads."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return save({name: direction.float() for name, direction in directions.items()}, Path(path))


def read_labels(path: str | Path, count: int) -> dict[str, Tensor]:
    """Columns of a CSV file with a row per code: 1 where a property is, 0 where not, or nothing.

    Args:
        path: a ``.csv`` file whose first row names the properties.
        count: N, codes that are labelled.

    Returns:
        By name, NaN where there is nothing, (N,).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if there are not N rows, or one has more values than there are names, or a value
            is none of 1, 0 and nothing.
    """
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != count:
        raise ValueError(f"{path} has {len(rows)} rows and there are {count} codes; give as many")
    if any(None in row for row in rows):
        raise ValueError(f"{path} has a row with more values than names; give one value per column")
    meaning = {"1": 1.0, "0": 0.0, "": float("nan")}
    columns: dict[str, Tensor] = {}
    for name in rows[0]:
        values = [(row[name] or "").strip() for row in rows]
        if strange := sorted(set(values) - set(meaning)):
            raise ValueError(
                f"column {name!r} of {path} has {', '.join(strange[:3])}; wanted are 1, 0 or "
                "nothing"
            )
        columns[name] = torch.tensor([meaning[value] for value in values])
    return columns


def fit_directions(
    codes: Tensor, labels: Mapping[str, Tensor], penalty: float = 1e-3
) -> dict[str, Tensor]:
    """Directions by linear SVMs, as long as codes spread along them; see ``fit_direction``.

    Args:
        codes: (N, L, D).
        labels: by name, 1 where the property is, 0 where it is not, NaN where that is unknown or in
            between, (N,).
        penalty: C.

    Returns:
        By name, (L, D); adding one is a standard deviation of the codes.

    Raises:
        ValueError: if a property is never there, or never absent.
    """
    found = {}
    for name, column in labels.items():
        known = torch.isfinite(column)
        plane = fit_direction(codes[known], column[known] > 0.5, penalty)
        found[name] = plane.direction * plane.distance(codes).std()
    return found


def fit_direction(codes: Tensor, labels: Tensor, penalty: float = 1.0) -> Separator:
    """The direction in which codes with a property are told from those without: a linear SVM.

    Source: Shen et al., "Interpreting the Latent Space of GANs for Semantic Face Editing", CVPR
    2020, Sec. 3. Minimises ``|n|^2 / 2 + penalty * sum(max(0, 1 - y (n w + b))^2)`` to convergence
    and is deterministic. The offset b is not penalised.

    Args:
        codes: (N, L, D).
        labels: True where the property is, (N,).
        penalty: C, the price of a code on the wrong side.

    Returns:
        The separating plane.

    Raises:
        ValueError: if the numbers differ, or only one kind of code is there.
    """
    if len(codes) != len(labels) or labels.ndim != 1:
        raise ValueError(
            f"labels must be one for every code, ({len(codes)},), got {tuple(labels.shape)}"
        )
    if bool(labels.bool().all()) or not bool(labels.bool().any()):
        raise ValueError(f"all {len(labels)} labels are the same; give codes of both kinds")
    rows = rearrange(codes.detach(), "n l d -> n (l d)").double()
    mean = rows.mean(0)  # the plane is the same wherever the origin lies
    normal, offset = _squared_hinge(rows - mean, labels.double() * 2 - 1, penalty)
    length = normal.norm()
    place = float((-offset + normal @ mean) / length)
    return Separator((normal / length).view(codes.shape[1:]).to(codes.dtype), place)


@torch.enable_grad()
def _squared_hinge(rows: Tensor, signs: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Normal (L D,) and offset () of the linear SVM with squared hinge loss."""
    # The normal is a combination of rows. With an orthonormal basis of their span as coordinates
    # the problem has no more unknowns than there are codes.
    basis = torch.linalg.qr(rows.T).Q if len(rows) < rows.shape[1] else None
    points = rows if basis is None else rows @ basis
    normal = points.new_zeros(points.shape[1], requires_grad=True)
    offset = points.new_zeros((), requires_grad=True)
    solver = torch.optim.LBFGS(
        [normal, offset],
        max_iter=1000,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        slack = (1 - signs * (points @ normal + offset)).clamp(min=0)
        value = normal.square().sum() / 2 + penalty * slack.square().sum()
        value.backward()
        return value

    solver.step(loss)
    found = normal.detach()
    return found if basis is None else basis @ found, offset.detach()


@torch.no_grad()
def principal_directions(
    generator: StyleGANGenerator, count: int, layers: range | None = None
) -> tuple[Tensor, Tensor]:
    """Directions to which the styles of chosen codes answer most, without any label.

    Source: Shen & Zhou, "Closed-Form Factorization of Latent Semantics in GANs", CVPR 2021,
    eq. (6): eigenvectors of A^T A, where A stacks the weights that map a code to its styles.

    Args:
        generator: whose style weights are read.
        count: number of directions.
        layers: indices of W+ that may change; None for all of them.

    Returns:
        Unit directions, zero outside ``layers``, the strongest first, (count, L, D), and their
        eigenvalues, (count,). Signs are such that the largest entry of each is positive.

    Raises:
        ValueError: if ``count`` is more than D, or a layer is not an index of W+.
    """
    layers = range(generator.num_codes) if layers is None else layers
    if not len(layers) or min(layers) < 0 or max(layers) >= generator.num_codes:
        raise ValueError(
            f"layers must be indices of W+, 0 to {generator.num_codes - 1}, got {layers}"
        )
    if not 1 <= count <= generator.style_dim:
        raise ValueError(f"count must be 1 to {generator.style_dim}, got {count}")
    used = [weight for index, weight in _style_weights(generator) if index in layers]
    stacked = torch.cat(used).double()
    values, vectors = torch.linalg.eigh(stacked.T @ stacked)
    strongest = vectors.T.flip(0)[:count]
    largest = strongest.gather(1, strongest.abs().argmax(1, keepdim=True))
    strongest = strongest * largest.sign() / len(layers) ** 0.5
    directions = strongest.new_zeros(count, generator.num_codes, generator.style_dim)
    directions[:, list(layers)] = strongest[:, None]
    kind = generator.input.input.dtype
    return directions.to(kind), values.flip(0)[:count].to(kind)


def _style_weights(generator: StyleGANGenerator) -> list[tuple[int, Tensor]]:
    """Index of W+ and weight (channels, D) of every map that reads it."""
    layers = [generator.conv1, *generator.convs]
    colours = [generator.to_rgb1, *generator.to_rgbs]
    readers = [*enumerate(layers), *((2 * k + 1, rgb) for k, rgb in enumerate(colours))]
    return [(index, reader.conv.modulation.weight) for index, reader in readers]
