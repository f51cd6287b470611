"""Directions of W+ that change one attribute of a face."""

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
    """Hyperplane between codes with and without an attribute.

    Attributes:
        direction: unit normal that points towards the attribute, (L, D).
        offset: dot product of ``direction`` with a code on the plane.
    """

    direction: Tensor
    offset: float

    def distance(self, codes: Tensor) -> Tensor:
        """Compute signed distances (N,) of codes (N, L, D); positive with the attribute."""
        return torch.einsum("nld,ld->n", codes, self.direction) - self.offset


def check_direction(direction: Tensor, num_codes: int, style_dim: int) -> Tensor:
    """Return a direction that can be added to codes (B, L, D): (1, D) or (L, D).

    Args:
        direction: (D,) or (1, D) for the same change of every style, or (L, D).
        num_codes: number of styles L.
        style_dim: size D of a style.

    Raises:
        ValueError: if the direction has another shape.
    """
    rows = direction[None] if direction.ndim == 1 else direction
    if tuple(rows.shape) not in ((1, style_dim), (num_codes, style_dim)):
        raise ValueError(
            f"a direction must be (1, {style_dim}) or ({num_codes}, {style_dim}), got "
            f"{tuple(direction.shape)}; fit it to codes of this generator"
        )
    return rows


def load_directions(path: str | Path) -> dict[str, Tensor]:
    """Load directions by name.

    Args:
        path: ``.npy`` file with one direction, named after the file, or ``.safetensors`` file
            with several.

    Returns:
        float32, each (1, D) or (L, D).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: for another file type or a direction with more than two axes.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".npy":
        directions = {path.stem: torch.from_numpy(np.load(path, allow_pickle=False))}
    elif path.suffix == ".safetensors":
        directions = dict(read_tensors(path))
    else:
        raise ValueError(f"expected a .npy or .safetensors file, got {path}")
    for name, direction in directions.items():
        if direction.ndim not in (1, 2) or not direction.numel():
            raise ValueError(
                f"direction {name!r} of {path} must be (1, D) or (L, D), got "
                f"{tuple(direction.shape)}"
            )
    return {name: torch.atleast_2d(direction.float()) for name, direction in directions.items()}


def save_directions(directions: Mapping[str, Tensor], path: str | Path) -> Path:
    """Write directions by name as safetensors, for ``load_directions``."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return save({name: direction.float() for name, direction in directions.items()}, Path(path))


def read_labels(path: str | Path, count: int) -> dict[str, Tensor]:
    """Read attribute labels from a CSV file with one row per code.

    Args:
        path: CSV file whose header names the attributes; values are 1, 0 or empty.
        count: expected number of rows N.

    Returns:
        Labels by name, NaN for empty values, each (N,).

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: for a wrong number of rows or columns, or for another value.
    """
    with Path(path).open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if len(rows) != count:
        raise ValueError(
            f"{path} has {len(rows)} rows for {count} codes; expected one row per code"
        )
    if any(None in row for row in rows):
        raise ValueError(f"{path} has a row with more values than the header has names")
    meaning = {"1": 1.0, "0": 0.0, "": float("nan")}
    columns: dict[str, Tensor] = {}
    for name in rows[0]:
        values = [(row[name] or "").strip() for row in rows]
        if unknown := sorted(set(values) - set(meaning)):
            raise ValueError(
                f"column {name!r} of {path} has {', '.join(unknown[:3])}; expected 1, 0 or an "
                "empty value"
            )
        labels = [meaning[value] for value in values]
        columns[name] = torch.tensor(labels, dtype=torch.float32, device="cpu")
    return columns


def fit_directions(
    codes: Tensor, labels: Mapping[str, Tensor], penalty: float = 1e-3
) -> dict[str, Tensor]:
    """Fit one direction per attribute with a linear SVM.

    Args:
        codes: (N, L, D).
        labels: labels by name, 1 with the attribute, 0 without, NaN for unknown, (N,).
        penalty: SVM penalty C.

    Returns:
        Directions by name, (L, D); their length is the standard deviation of the codes.

    Raises:
        ValueError: if all labels of an attribute are equal.
    """
    directions = {}
    for name, column in labels.items():
        known = torch.isfinite(column)
        plane = fit_direction(codes[known], column[known] > 0.5, penalty)
        directions[name] = plane.direction * plane.distance(codes).std()
    return directions


def fit_direction(codes: Tensor, labels: Tensor, penalty: float = 1.0) -> Separator:
    """Fit a linear SVM that separates codes with an attribute from the rest.

    It minimizes ``|n|^2 / 2 + penalty * sum(max(0, 1 - y (n w + b))^2)`` to convergence and is
    deterministic. The offset b is not penalized.

    Source: Shen et al., "Interpreting the Latent Space of GANs for Semantic Face Editing", CVPR
    2020, Sec. 3.

    Args:
        codes: (N, L, D).
        labels: True with the attribute, (N,).
        penalty: SVM penalty C.

    Returns:
        Separating hyperplane.

    Raises:
        ValueError: if the lengths differ or all labels are equal.
    """
    if len(codes) != len(labels) or labels.ndim != 1:
        raise ValueError(f"labels must be ({len(codes)},), one per code, got {tuple(labels.shape)}")
    if bool(labels.bool().all()) or not bool(labels.bool().any()):
        raise ValueError(
            f"all {len(labels)} labels are equal; pass codes with and without the attribute"
        )
    rows = rearrange(codes.detach(), "n l d -> n (l d)").double()
    mean = rows.mean(0)  # centering does not change the plane
    normal, offset = _squared_hinge(rows - mean, labels.double() * 2 - 1, penalty)
    length = normal.norm()
    distance = float((-offset + normal @ mean) / length)
    return Separator((normal / length).view(codes.shape[1:]).to(codes.dtype), distance)


@torch.enable_grad()
def _squared_hinge(rows: Tensor, signs: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Solve the linear SVM with squared hinge loss for its normal (L D,) and offset ()."""
    # The normal lies in the span of the rows; an orthonormal basis of it leaves at most N unknowns.
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
    solution = normal.detach()
    return solution if basis is None else basis @ solution, offset.detach()


@torch.no_grad()
def principal_directions(
    generator: StyleGANGenerator, count: int, layers: range | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the directions with the largest effect on the styles, without labels.

    Source: Shen & Zhou, "Closed-Form Factorization of Latent Semantics in GANs", CVPR 2021,
    eq. (6): eigenvectors of A^T A, where A stacks the weights that map a code to its styles.

    Args:
        generator: generator to analyze.
        count: number of directions.
        layers: indices of W+ that may change; None for all.

    Returns:
        Unit directions, zero outside ``layers``, strongest first, (count, L, D), and their
        eigenvalues, (count,). The largest entry of each direction is positive.

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
    colors = enumerate([generator.to_rgb1, *generator.to_rgbs])
    readers = [*enumerate([generator.conv1, *generator.convs])]  # by their W+ index
    readers += [(2 * k + 1, color) for k, color in colors]
    used = [reader.conv.modulation.weight for index, reader in readers if index in layers]
    stacked = torch.cat(used).double()
    values, vectors = torch.linalg.eigh(stacked.T @ stacked)
    strongest = vectors.T.flip(0)[:count]
    largest = strongest.gather(1, strongest.abs().argmax(1, keepdim=True))
    strongest = strongest * largest.sign() / len(layers) ** 0.5
    directions = strongest.new_zeros(count, generator.num_codes, generator.style_dim)
    directions[:, list(layers)] = strongest[:, None]
    kind = generator.input.input.dtype
    return directions.to(kind), values.flip(0)[:count].to(kind)
