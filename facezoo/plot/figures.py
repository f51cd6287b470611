"""Figures of results: boxes on images, bars of classes, grids of decoded faces, feature spaces.

Needs matplotlib, from the extra ``[viz]``. Every function returns a ``Picture``: a figure that a
notebook shows as the last line of a cell, and that ``savefig`` writes to a file. No window opens,
and no setting of matplotlib changes.

Letters: F faces, D features, K classes, S side of a crop in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from facezoo.errors import explained_import
from facezoo.faces import unit_crops
from facezoo.models.base import FaceModel, as_image_model
from facezoo.models.mesh_base import MeshEncoding
from facezoo.plot.annotation import Style, annotate
from facezoo.preprocess.images import Images, as_list, check_range
from facezoo.preprocess.pipeline import ImageKeywords, ImageOptions
from facezoo.results import ExpressionPrediction, FaceEncoding, Faces, VideoFrame

with explained_import("facezoo.plot.figures needs matplotlib: pip install 'facezoo[viz]'"):
    from matplotlib.figure import Figure

    from facezoo.plot.panels import as_names, colors_of, draw_cosines

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 12
"""Limit on the images, the rows of a grid, and the faces of a table of cosines in a figure."""
MOST_NAMES = 10
"""Limit on the names in a legend; with more there is no legend."""
NO_FACE = "there is no face to draw; see on_missing for images without a face"
COLOR = "#5c6bc0"
DECODED = ("reconstruct", "neutralize", "frontalize")


class Picture(Figure):
    """A figure that notebooks show, with or without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def show(result: Any, images: Images | None = None) -> Picture:
    """Draw a result.

    Args:
        result: a prediction (bars of its classes), an encoding (cosines between its faces, or their
            plane if there are many), faces, images or a dict of images by title (a grid, see
            ``grid``), or features (F, D).
        images: the images of the result, all of them, to draw its boxes on.

    Raises:
        TypeError: if no figure exists for such a result.
        ValueError: if the result has faces only and ``images`` is missing, if the faces are not in
            these images, or if there is no face.

    Examples:
        >>> prediction = model.predict_expression("grace_hopper.jpg")
        >>> facezoo.show(prediction, "grace_hopper.jpg").savefig(tmp / "prediction.png")
    """
    if isinstance(result, Faces) and images is None:
        raise ValueError("faces are drawn on their images; pass them: show(faces, images)")
    if isinstance(result, ExpressionPrediction):
        return bars(result) if images is None else faces(images, result)
    if isinstance(result, Faces):
        return faces(images, result)  # type: ignore[arg-type]
    if isinstance(result, FaceEncoding | MeshEncoding):
        if images is not None and isinstance(result, FaceEncoding) and result.faces is not None:
            return faces(images, result.faces)
        return features({"expression": result.expression, "identity": result.identity})
    if isinstance(result, Mapping):
        return grid(result)
    if isinstance(result, Tensor) and result.ndim in (3, 4):
        return grid({"": result})
    if isinstance(result, Tensor) and result.ndim == 2:
        return features({"": result})
    raise TypeError(
        f"show draws predictions, encodings, faces, pictures (F, 3, S, S) and features (F, D), got "
        f"{type(result).__name__}; for other figures see facezoo.plot.figures"
    )


def faces(
    images: Images,
    result: ExpressionPrediction | Faces,
    *,
    style: Style | None = None,
    landmarks: bool = False,
) -> Picture:
    """Draw images with boxes and, for a prediction, labels; twelve images at most.

    Args:
        images: all images of ``result``, in the same order.
        result: faces, with or without their expressions.
        style: ``"box"``, ``"label"`` or ``"bars"``; None for bars with up to four
            faces, else labels.
        landmarks: whether to draw the five landmarks.

    Raises:
        ValueError: if there is no image, or the faces are not in these images.

    Examples:
        >>> faces = facezoo.detect("grace_hopper.jpg")
        >>> figure = facezoo.plot.faces("grace_hopper.jpg", faces)
    """
    sources = as_list(images)
    if not sources:
        raise ValueError("images is an empty list; pass one image or more")
    found = result.faces if isinstance(result, ExpressionPrediction) else result
    needed = 1 + int(found.image_index.max()) if found is not None and len(found) else 0
    if needed > len(sources):
        raise ValueError(
            f"the result has faces of {needed} images or more, and images has {len(sources)}; pass "
            "all images of the result"
        )
    pictures = [
        annotate(source, result, image_index=n, style=style, landmarks=landmarks)
        for n, source in enumerate(sources[:MOST])
    ]
    columns = min(len(pictures), 3)
    rows = -(-len(pictures) // columns)
    figure = _figure(4.5 * columns, 4.5 * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, picture in zip(panels, pictures, strict=False):
        axes.imshow(picture)
    return figure


def bars(prediction: ExpressionPrediction) -> Picture:
    """Draw the probabilities of the classes of each face; twelve faces at most.

    Raises:
        ValueError: if the prediction has no face.

    Examples:
        >>> figure = facezoo.plot.bars(model.predict_expression("grace_hopper.jpg"))
    """
    probabilities = prediction.probabilities[:MOST].detach().float().cpu()
    if not len(probabilities):
        raise ValueError(NO_FACE)
    columns = min(len(probabilities), 3)
    rows = -(-len(probabilities) // columns)
    figure = _figure(3.6 * columns, (0.6 + 0.24 * len(prediction.classes)) * rows)
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes in panels[len(probabilities) :]:
        axes.set_axis_off()
    for index, (axes, row) in enumerate(zip(panels, probabilities, strict=False)):
        axes.barh(
            prediction.classes, row.nan_to_num().tolist(), color=colors_of(prediction.classes)
        )
        title = f"{index}: {prediction.labels[index] or 'no face'}"
        axes.set(title=title, xlim=(0, 1), xticks=[0, 0.5, 1])
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()  # shared by all panels: the first class is on top
    return figure


def timeline(frames: Iterable[VideoFrame] | Any) -> Picture:
    """Draw the expression probabilities of each track of a video over time, as stacked areas.

    The twelve longest tracks are drawn at most. A track that was lost for a while has a gap.

    Args:
        frames: results of ``facezoo.video``, or a table of one video by ``facezoo.extract``: a
            data frame of pandas or polars, or a table of pyarrow.

    Raises:
        ValueError: if there is no face, or the table has no columns ``time``, ``track`` and
            ``p_<class>``.

    Examples:
        >>> frames = facezoo.video("clip.mp4", model, smooth=0.5)
        >>> facezoo.plot.timeline(frames).savefig(tmp / "timeline.png")
    """
    table: Any = frames
    names = getattr(table, "column_names", getattr(table, "columns", None))
    if names is not None:
        columns = {str(name): list(table[name]) for name in names}
    else:
        rows = [row for frame in frames for row in frame.to_dict()]
        columns = {name: [row[name] for row in rows] for name in rows[0]} if rows else {}
        if not rows:
            raise ValueError(NO_FACE)
    classes = [name for name in columns if name.startswith("p_")]
    if not classes or not {"time", "track"} <= set(columns):
        raise ValueError(
            "a timeline needs columns time, track and p_<class>; pass the results of "
            f"facezoo.video, or the features of a video, got the columns {', '.join(columns)}"
        )
    times, track, *shares = (
        np.array([_number(value) for value in columns[name]])
        for name in ("time", "track", *classes)
    )
    words = [name.removeprefix("p_") for name in classes]
    numbers, lengths = np.unique(track[track >= 0], return_counts=True)
    numbers = np.sort(numbers[np.argsort(-lengths, kind="stable")][:MOST])
    if not len(numbers):
        raise ValueError(NO_FACE)
    figure = _figure(9, 0.6 + 1.3 * len(numbers))
    step = np.median(np.diff(np.unique(times))) if len(np.unique(times)) > 1 else 1.0
    panels = figure.subplots(len(numbers), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
    for axes, number in zip(panels, numbers, strict=True):
        own = track == number
        breaks = np.flatnonzero(np.diff(times[own]) > 1.5 * step) + 1
        for part in np.split(np.flatnonzero(own), breaks):
            moments = np.append(times[part], times[part[-1]] + step)
            values = [np.append(share[part], share[part[-1]]) for share in shares]
            areas = axes.stackplot(moments, values, colors=colors_of(words), step="post")
        axes.set(ylabel=f"#{number:.0f}", ylim=(0, 1), yticks=[0, 1], yticklabels=["0", "100%"])
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set(xlabel="time, seconds", xlim=(times.min(), times.max() + step))
    figure.legend(areas, words, loc="outside right upper", reverse=True)
    return figure


def _number(value: Any) -> float:
    """Convert an entry of a table; one without a value is None, NA or a scalar of pyarrow."""
    try:
        return float(value)
    except TypeError:
        return math.nan


def grid(pictures: Mapping[str, Tensor] | None = None, **columns: Tensor) -> Picture:
    """Draw images side by side: a column per title, a row per face; twelve rows at most.

    Args:
        pictures: by title, each RGB in [0, 1] or uint8, (F, 3, S, S), or one channel of any range
            such as depth, (F, S, S) or (F, 1, S, S), from black (least) to white (greatest value).
        **columns: more of these by name, such as ``grid(crop=crops, depth=model.depth(images))``.

    Raises:
        ValueError: if a shape differs from these, numbers of faces differ, no column has a face,
            or RGB is outside of [0, 1].

    Examples:
        >>> figure = facezoo.plot.grid(crop=facezoo.plot.crops(model, "grace_hopper.jpg"))
    """
    named = {**(pictures or {}), **columns}
    shapes = {title: tuple(p.shape) for title, p in named.items()}
    named = {title: p[:, None] if p.ndim == 3 else p for title, p in named.items()}
    wrong = [title for title, p in named.items() if p.ndim != 4 or p.shape[1] not in (1, 3)]
    if wrong or len({len(column) for column in named.values()}) != 1:
        raise ValueError(
            f"pictures must be (F, 3, S, S) or (F, S, S), as many in each column, got {shapes}"
        )
    rows = min(MOST, len(next(iter(named.values()))))
    if not rows:
        raise ValueError(NO_FACE)
    figure = _figure(1.8 * len(named), 1.8 * rows + 0.3 * any(named))
    panels = figure.subplots(rows, len(named), squeeze=False)
    for column, (title, values) in enumerate(named.items()):
        panels[0, column].set_title(title)
        shown = values[:rows].detach().float().cpu() / (255 if values.dtype == torch.uint8 else 1)
        known = shown[shown.isfinite()]
        limits = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        if shown.shape[1] == 3:
            check_range(*limits)
        for axes, pixels in zip(panels[:, column], shown, strict=True):
            axes.set_axis_off()
            if not pixels.isfinite().any():  # an image without a face
                continue
            if len(pixels) == 1:
                axes.imshow(pixels[0].numpy(), "gray", vmin=limits[0], vmax=limits[1])
            else:
                axes.imshow(pixels.clamp(0, 1).permute(1, 2, 0).numpy())
    return figure


def parts(model: FaceModel, images: Images, **options: Unpack[ImageKeywords]) -> Picture:
    """Draw the faces in images, and the pictures that the model decodes from them.

    Args:
        model: a model with a decoder.
        images: images; twelve are drawn at most.
        **options: see ``crops``. With ``on_missing="nan"``, rows without a face are blank.

    Raises:
        NoFaceError: if an image has no face and ``on_missing`` is ``"raise"``.
        UnsupportedError: if the model has no decoder, or takes meshes.

    Examples:
        >>> figure = facezoo.plot.parts(model, "grace_hopper.jpg")
    """
    sources = as_list(images)[:MOST]
    decoders = [name for name in DECODED if name in model.capabilities()]
    if not decoders:
        model.reject("reconstruct")
    pictures = {"crop": crops(model, sources, **options)}
    return grid(pictures | {name: getattr(model, name)(sources, **options) for name in decoders})


def crops(model: FaceModel, images: Images, **options: Unpack[ImageKeywords]) -> Tensor:
    """Cut out the faces in images, in the template of a model.

    Args:
        model: a model of images.
        images: one image or several.
        **options: choice and detection of the faces, as in ``FaceModel.encode_expression``.

    Returns:
        RGB in [0, 1], (F, 3, S, S); NaN for an image without a face if ``on_missing`` is ``"nan"``.

    Raises:
        NoFaceError: if an image has no face and ``on_missing`` is ``"raise"``.
        UnsupportedError: if the model takes meshes.

    Examples:
        >>> facezoo.plot.crops(model, "grace_hopper.jpg").shape
        torch.Size([1, 3, 112, 112])
    """
    preprocessing = as_image_model(model).preprocessing
    return unit_crops(images, preprocessing, model.device, ImageOptions(**options))


def features(named: Mapping[str, Tensor | None]) -> Picture:
    """Draw features by name: cosines between up to twelve faces, or the plane of more.

    A single face is drawn as its numbers.

    Raises:
        ValueError: if there are no features, or no faces.

    Examples:
        >>> figure = facezoo.plot.features({"identity": torch.randn(5, 32)})
    """
    known = {name: rows.detach().float().cpu() for name, rows in named.items() if rows is not None}
    if not known:
        raise ValueError("there are no features to draw")
    count = len(next(iter(known.values())))
    if not count:
        raise ValueError(NO_FACE)
    figure = _figure((4.2 if count > 1 else 6.0) * len(known), 3.6 if count > 1 else 2.0)
    panels = figure.subplots(1, len(known), squeeze=False)[0]
    for axes, (name, rows) in zip(panels, known.items(), strict=True):
        if count > MOST:
            scatter(axes, plane(rows[rows.isfinite().all(1)]), title=name)
        elif count > 1:
            draw_cosines(axes, rows, name)
        else:
            axes.plot(rows[0].numpy(), color=COLOR, linewidth=0.7)
            axes.set(title=f"{name} ({rows.shape[1]})", xticks=[])
    return figure


def embedding(
    rows: Tensor, names: Sequence[str] | None = None, *, method: str = "pca", title: str = ""
) -> Picture:
    """Draw features in two dimensions, colored by name.

    Args:
        rows: features, (F, D); rows of NaN are left out.
        names: a name per face, F; None for one color.
        method: ``"pca"`` for two principal components, or ``"tsne"``, which needs scikit-learn.
        title: title of the plot.

    Raises:
        ValueError: if the numbers of rows and names differ, there are fewer than three faces, or
            ``method`` has another value.

    Examples:
        >>> figure = facezoo.plot.embedding(torch.randn(20, 32), names=["a", "b"] * 10)
    """
    if names is not None and len(names) != len(rows):
        raise ValueError(f"names must be one per face: {len(rows)}, got {len(names)}")
    known = torch.isfinite(rows).all(1)
    if names is not None:
        names = [name for name, ok in zip(as_names(names), known.tolist(), strict=True) if ok]
    figure = _figure(6, 5)
    scatter(figure.subplots(), plane(rows[known], method), names, title)
    return figure


def plane(rows: Tensor, method: str = "pca") -> Tensor:
    """Project features to two coordinates per face, (F, 2).

    Args:
        rows: features, (F, D), of three faces or more.
        method: ``"pca"`` for the two principal components; ``"tsne"`` for t-SNE with a fixed seed,
            which needs scikit-learn.

    Raises:
        ImportError: if ``method`` is ``"tsne"`` and scikit-learn is not installed.
        ValueError: if there are fewer than three faces, or ``method`` has another value.

    Examples:
        >>> facezoo.plot.plane(torch.randn(20, 32)).shape
        torch.Size([20, 2])
    """
    if rows.ndim != 2 or len(rows) < 3 or rows.shape[1] < 2:
        raise ValueError(
            "a plane needs three faces or more, (F, D) with D of 2 or more, got "
            f"{tuple(rows.shape)}"
        )
    values = rows.detach().float().cpu()
    if method == "tsne":
        from sklearn.manifold import TSNE

        projection = TSNE(perplexity=min(30.0, (len(values) - 1) / 3), random_state=0)
        return torch.from_numpy(projection.fit_transform(values.numpy()))
    if method != "pca":
        raise ValueError(f"method must be 'pca' or 'tsne', got {method!r}")
    centered = values - values.mean(0)
    return centered @ torch.linalg.svd(centered, full_matrices=False)[2][:2].T


def scatter(
    axes: Axes, points: Tensor, names: Sequence[str] | None = None, title: str = ""
) -> None:
    """Draw points (F, 2) on axes, a color per name; more than ten names have no legend.

    Examples:
        >>> axes = facezoo.plot.Picture().subplots()
        >>> facezoo.plot.scatter(axes, torch.randn(20, 2), names=["a", "b"] * 10)
    """
    labels = as_names(names) if names is not None else [""] * len(points)
    kinds = sorted(set(labels))
    colors = colors_of(kinds)
    for number, kind in enumerate(kinds):
        x, y = points.numpy()[[label == kind for label in labels]].T
        color = colors[number] if names is not None else COLOR
        axes.scatter(x, y, s=12, color=color, label=kind)
    axes.set(title=title, xticks=[], yticks=[])
    if names is not None and len(kinds) <= MOST_NAMES:
        axes.legend()


def _figure(width: float, height: float) -> Picture:
    return Picture((width, height), layout="constrained")
