"""Pictures of results: faces with boxes, bars of classes, grids of decoded faces, feature spaces.

Needs matplotlib, which the extra ``[viz]`` brings. Every function returns a ``Picture``, a figure
that a notebook shows by itself as the last line of a cell and that ``savefig`` writes to a file; no
window is opened and no setting of matplotlib is changed.

Letters: F faces, D features, K classes, S the side of a crop in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import product
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

try:
    from matplotlib import colormaps
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError(
        "facezoo.plot.figures needs matplotlib: pip install 'facezoo[viz]'"
    ) from error

from facezoo.errors import UnsupportedError
from facezoo.models.base import FaceModel
from facezoo.models.mesh_base import MeshEncoding
from facezoo.plot.annotate import annotate
from facezoo.preprocess.alignment import prepare
from facezoo.preprocess.images import Images, as_list, read_image
from facezoo.preprocess.pipeline import find_faces, to_device
from facezoo.results import ExpressionPrediction, FaceEncoding, Faces

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 12
"""Photographs, rows of a grid, and faces of a table of cosines that are drawn."""
MOST_NAMES = 10
"""With more names than these a plot has no legend."""
_NOTHING = "there is no face to draw; see on_missing for photographs in which none is found"
_COLOUR = "#5c6bc0"
_DECODED = ("reconstruct", "neutralize", "frontalize")


class Picture(Figure):
    """A figure that notebooks show, whether or not pyplot was imported."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def show(what: Any, images: Images | None = None) -> Picture:
    """Draw a result as suits it.

    Args:
        what: a prediction (bars of its classes), an encoding (cosines between its faces, or their
            plane if they are many), faces, pictures (F, 3, S, S) or a dict of such by title (a
            grid), or features (F, D).
        images: the photographs that the result is of; given, they are drawn with boxes.

    Raises:
        TypeError: if there is no picture of such a thing.
        ValueError: if ``what`` are faces and the photographs are not given, or there is no face.
    """
    if isinstance(what, Faces) and images is None:
        raise ValueError("faces are drawn on their photographs; give these: show(faces, photos)")
    if isinstance(what, ExpressionPrediction):
        return bars(what) if images is None else faces(images, what)
    if isinstance(what, Faces):
        return faces(images, what)  # type: ignore[arg-type]
    if isinstance(what, FaceEncoding | MeshEncoding):
        if images is not None and isinstance(what, FaceEncoding) and what.faces is not None:
            return faces(images, what.faces)
        return features({"expression": what.expression, "identity": what.identity})
    if isinstance(what, Mapping):
        return grid(what)
    if isinstance(what, Tensor) and what.ndim == 4:
        return grid({"": what})
    if isinstance(what, Tensor) and what.ndim == 2:
        return features({"": what})
    raise TypeError(
        f"show draws predictions, encodings, faces, pictures (F, 3, S, S) and features (F, D), got "
        f"{type(what).__name__}; for the rest there is facezoo.plot.figures"
    )


def faces(images: Images, found: ExpressionPrediction | Faces) -> Picture:
    """Photographs with boxes, landmarks and, for a prediction, labels and bars; twelve at most.

    Args:
        images: those that ``found`` is of, in the same order.
        found: where the faces stand, with or without their expressions.
    """
    photos = as_list(images)[:MOST]
    if not photos:
        raise ValueError("images is an empty list; give one photograph or more")
    drawn = [annotate(photo, found, image_index=index) for index, photo in enumerate(photos)]
    across = min(len(drawn), 3)
    down = -(-len(drawn) // across)
    figure = _figure(4.5 * across, 4.5 * down)
    panels = list(figure.subplots(down, across, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, picture in zip(panels, drawn, strict=False):
        axes.imshow(picture)
    return figure


def bars(prediction: ExpressionPrediction) -> Picture:
    """The probabilities of each face's classes; of twelve faces at most."""
    shares = prediction.probabilities[:MOST].detach().float().cpu()
    across = min(len(shares), 3) or 1
    down = -(-len(shares) // across) or 1
    figure = _figure(3.6 * across, (0.6 + 0.24 * len(prediction.classes)) * down)
    panels = list(figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flat)
    for axes in panels[len(shares) :]:
        axes.set_axis_off()
    for index, (axes, row) in enumerate(zip(panels, shares, strict=False)):
        axes.barh(prediction.classes, row.nan_to_num().tolist(), color=_COLOUR)
        axes.set(
            title=f"{index}: {prediction.labels[index] or 'no face'}",
            xlim=(0, 1),
            xticks=[0, 0.5, 1],
        )
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.spines[["top", "right"]].set_visible(False)
    if len(shares):
        figure.axes[0].invert_yaxis()  # shared: the first class on top
    return figure


def grid(pictures: Mapping[str, Tensor]) -> Picture:
    """Pictures side by side: a column per title, a row per face; twelve rows at most.

    Args:
        pictures: RGB in [0, 1], (F, 3, S, S), or one channel, (F, 1, S, S), by title.
    """
    wrong = {
        title: tuple(p.shape)
        for title, p in pictures.items()
        if p.ndim != 4 or p.shape[1] not in (1, 3)
    }
    if wrong or len({len(column) for column in pictures.values()}) != 1:
        shapes = wrong or {title: tuple(p.shape) for title, p in pictures.items()}
        raise ValueError(f"pictures must be (F, 3, S, S), as many in each column, got {shapes}")
    down = min(MOST, len(next(iter(pictures.values()))))
    if not down:
        raise ValueError(_NOTHING)
    figure = _figure(1.8 * len(pictures), 1.8 * down + 0.3 * any(pictures))
    panels = figure.subplots(down, len(pictures), squeeze=False)
    for column, (title, rows) in enumerate(pictures.items()):
        panels[0, column].set_title(title)
        for row in range(down):
            pixels = rows[row].detach().float().clamp(0, 1).permute(1, 2, 0).cpu()
            panels[row, column].imshow(pixels.numpy())
            panels[row, column].set_axis_off()
    return figure


def parts(model: FaceModel, images: Images) -> Picture:
    """The largest face of each photograph as the model sees it, and as it decodes it.

    Args:
        model: one with a decoder.
        images: photographs; twelve are drawn at most.

    Raises:
        UnsupportedError: if the model has no decoder, or takes meshes.
    """
    photos = as_list(images)[:MOST]
    able = [name for name in _DECODED if name in model.capabilities()]
    if not able:
        model.reject("reconstruct")
    return grid(
        {"crop": crops(model, photos), **{name: getattr(model, name)(photos) for name in able}}
    )


def crops(model: FaceModel, images: Images) -> Tensor:
    """The aligned crop of each photograph's largest face, RGB in [0, 1], (F, 3, S, S).

    Raises:
        UnsupportedError: if the model takes meshes.
    """
    if not isinstance(model, FaceModel):
        raise UnsupportedError(f"{type(model).__name__} takes meshes, and has no crops to draw")
    pixels = to_device([read_image(photo) for photo in as_list(images)], model.device)
    found = find_faces(pixels, faces="largest", on_missing="raise")
    mean, std = (
        torch.tensor(values, device=model.device)[:, None, None]
        for values in (model.preprocessing.mean, model.preprocessing.std)
    )
    return (prepare(pixels, found, model.preprocessing) * std + mean).clamp(0, 1)


def features(named: Mapping[str, Tensor | None]) -> Picture:
    """Features by name: cosines between up to twelve faces, the plane of more.

    One face alone is drawn as its numbers.
    """
    known = {name: rows.detach().float().cpu() for name, rows in named.items() if rows is not None}
    if not known:
        raise ValueError("there are no features to draw")
    count = len(next(iter(known.values())))
    if not count:
        raise ValueError(_NOTHING)
    figure = _figure((4.2 if count > 1 else 6.0) * len(known), 3.6 if count > 1 else 2.0)
    panels = figure.subplots(1, len(known), squeeze=False)[0]
    for axes, (name, rows) in zip(panels, known.items(), strict=True):
        if count > MOST:
            scatter(axes, plane(rows[rows.isfinite().all(1)]), title=name)
        elif count > 1:
            _cosines(axes, rows, name)
        else:
            axes.plot(rows[0].numpy(), color=_COLOUR, linewidth=0.7)
            axes.set(title=f"{name} ({rows.shape[1]})", xticks=[])
    return figure


def embedding(
    rows: Tensor, names: Sequence[str] | None = None, *, method: str = "pca", title: str = ""
) -> Picture:
    """Features in two dimensions, coloured by name.

    Args:
        rows: features, (F, D); rows of NaN are left out.
        names: what to colour by, F; None for one colour.
        method: ``"pca"`` or ``"tsne"``, see ``plane``.
        title: above the plot.
    """
    if names is not None and len(names) != len(rows):
        raise ValueError(f"names must be one per face: {len(rows)}, got {len(names)}")
    known = torch.isfinite(rows).all(1).cpu()
    kept = None
    if names is not None:
        kept = [name for name, keep in zip(_plain(names), known.tolist(), strict=True) if keep]
    figure = _figure(6, 5)
    scatter(figure.subplots(), plane(rows[known.to(rows.device)], method), kept, title)
    return figure


def plane(rows: Tensor, method: str = "pca") -> Tensor:
    """Two coordinates per face, (F, 2).

    Args:
        rows: features, (F, D), of three faces or more.
        method: ``"pca"`` for the two principal components; ``"tsne"`` for t-SNE from a fixed start,
            which needs scikit-learn.
    """
    if len(rows) < 3:
        raise ValueError(f"a plane wants three faces or more, got {len(rows)}")
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise ValueError(f"a plane wants (F, D) with D of 2 or more, got {tuple(rows.shape)}")
    values = rows.detach().float().cpu()
    if method == "tsne":
        from sklearn.manifold import TSNE

        fitted = TSNE(perplexity=min(30.0, (len(values) - 1) / 3), random_state=0)
        return torch.from_numpy(fitted.fit_transform(values.numpy()))
    if method != "pca":
        raise ValueError(f"method must be 'pca' or 'tsne', got {method!r}")
    centred = values - values.mean(0)
    return centred @ torch.linalg.svd(centred, full_matrices=False)[2][:2].T


def scatter(
    axes: Axes, points: Tensor, names: Sequence[str] | None = None, title: str = ""
) -> None:
    """Points (F, 2) on axes, a colour per name; more than ten names get no legend."""
    told = _plain(names) if names is not None else [""] * len(points)
    kinds = sorted(set(told))
    for number, kind in enumerate(kinds):
        x, y = points.numpy()[[name == kind for name in told]].T
        shade = colormaps["turbo"]((number + 0.5) / len(kinds)) if names is not None else _COLOUR
        axes.scatter(x, y, s=12, color=shade, label=kind)
    axes.set(title=title, xticks=[], yticks=[])
    if names is not None and len(kinds) <= MOST_NAMES:
        axes.legend()


def _plain(names: Sequence[str]) -> list[str]:
    """Names as a list; numbers of a tensor would each be another name."""
    return names.tolist() if isinstance(names, Tensor) else list(names)


def _cosines(axes: Axes, rows: Tensor, name: str) -> None:
    """A table of the cosines between faces."""
    unit = torch.nn.functional.normalize(rows, dim=1)
    cosines = (unit @ unit.T).numpy()
    axes.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r")
    for row, column in product(range(len(rows)), repeat=2):
        value = cosines[row, column]
        colour = "white" if abs(value) > 0.6 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    ticks = list(range(len(rows)))
    axes.set(title=f"{name}, cosine".removeprefix(", "), xticks=ticks, yticks=ticks)


def _figure(width: float, height: float) -> Picture:
    return Picture((width, height), layout="constrained")
