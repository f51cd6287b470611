"""Compare faces by identity: similarities, verification and clusters."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from facezoo.errors import NoFaceError, explained_import
from facezoo.hub.card import Card, Verification
from facezoo.hub.names import card_hash, resolve
from facezoo.models.base import as_image_model
from facezoo.preprocess.images import Images, ImageSource, describe
from facezoo.preprocess.pipeline import ImageKeywords
from facezoo.registry import load
from facezoo.results import as_array

if TYPE_CHECKING:
    from facezoo.models.base import FaceModel

_DEFAULT = "ipd-fer"
_PAIR: ImageKeywords = {"faces": "largest", "on_missing": "raise"}
"""Options of a decision about two images."""


@dataclass(frozen=True)
class Match:
    """Decision for two images."""

    same: bool
    """True if the similarity is above the threshold."""
    similarity: float
    """Cosine between the identity features, in [-1, 1]."""
    threshold: float
    false_match_rate: float | None
    """Share of validation pairs of two identities above the threshold; None for a threshold of
    your own."""
    false_non_match_rate: float | None = None
    """Share of validation pairs of one identity that are not above the threshold; None likewise."""

    def __bool__(self) -> bool:
        return self.same


def similarity(
    images_a: Images,
    images_b: Images,
    model: str | os.PathLike[str] | FaceModel = _DEFAULT,
    **options: Unpack[ImageKeywords],
) -> Tensor:
    """Compute the cosine between the identity features of every two faces.

    Args:
        images_a: one image or several.
        images_b: one image or several.
        model: a checkpoint, its folder, or a model with identity features.
        **options: choice and detection of the faces, as in ``FaceModel.encode_expression``.

    Returns:
        float32, (A, B); NaN for images without a face if ``on_missing`` is "nan".

    Raises:
        ImageError: if an image cannot be read.
        NoFaceError: if an image has no face and ``on_missing`` is "raise".
        UnsupportedError: if the model has no identity features.

    Examples:
        >>> facezoo.similarity("grace_hopper.jpg", "eileen_collins.jpg").shape
        torch.Size([1, 1])
    """
    network = _model(model)
    first, second = (
        F.normalize(network.encode_identity(images, **options), dim=-1)
        for images in (images_a, images_b)
    )
    return first @ second.T


def verify(
    a: ImageSource,
    b: ImageSource,
    model: str | os.PathLike[str] | FaceModel = _DEFAULT,
    *,
    threshold: float | None = None,
    **options: Unpack[ImageKeywords],
) -> Match:
    """Decide if two images show the same identity.

    Compare the largest face of each image. Use it for research: errors are common, and rates on
    other images than those of the card can be much higher.

    Args:
        a: an image.
        b: another image.
        model: a checkpoint, its folder, or a model with identity features.
        threshold: least similarity of one identity; None for the one in the checkpoint's card.
        **options: detection of the faces, as in ``FaceModel.encode_expression``. ``faces`` is
            ``"largest"`` and ``on_missing`` is ``"raise"``: a decision needs one face per image.

    Returns:
        Decision, similarity, threshold and the false-match rate of the threshold; true or false
        like its decision.

    Raises:
        ImageError: if an image cannot be read.
        NoFaceError: if an image has no face.
        UnsupportedError: if the model has no identity features.
        ValueError: if ``threshold`` is None and the card has none, if it is not a cosine, or if
            ``faces`` or ``on_missing`` has another value.

    Examples:
        >>> facezoo.verify("grace_hopper.jpg", "eileen_collins.jpg").same
        False
    """
    for name, value in _PAIR.items():
        if options.get(name, value) != value:
            raise ValueError(
                f"verify compares one face of each image: {name} must be {value!r}, got "
                f"{options[name]!r}; for several faces, or images without a face, call similarity()"  # type: ignore[literal-required]
            )
    network = _model(model)
    rates: tuple[float | None, float | None] = (None, None)
    if threshold is None:
        measured = _verification(network.card, network.model_name)
        threshold = measured.threshold
        rates = measured.false_match_rate, measured.false_non_match_rate
    threshold = _number(threshold)
    features = []
    for image in (a, b):
        try:
            features.append(network.encode_identity([image], **(options | _PAIR)))
        except NoFaceError as error:
            raise NoFaceError(
                f"no face found in {describe(image)}; verify needs one in each image: try a "
                "smaller min_face, a lower score_threshold or other rotations",
                error.missing,
            ) from error
    if len(features[0]) != 1 or len(features[1]) != 1:
        raise ValueError("verify compares two images, got a batch of several; pass one at a time")
    cosine = float(F.cosine_similarity(*features).clamp(-1, 1))  # rounding can exceed 1
    return Match(cosine > threshold, cosine, threshold, *rates)


def cluster(
    features: Tensor | NDArray[Any],
    *,
    threshold: float | None = None,
    model: str | os.PathLike[str] | FaceModel = _DEFAULT,
    method: Literal["average", "hdbscan"] = "average",
) -> Tensor:
    """Group faces by identity. Needs the extra ``[sklearn]``.

    Memory and time grow with the square of the number of faces: use it for up to about 20,000.

    Args:
        features: identity features of ``encode_identity``, (N, D), a data frame of them too; rows
            of NaN are left out.
        threshold: least mean cosine between two groups that are merged; None for the verification
            threshold in the card of ``model``. ``"hdbscan"`` has none.
        model: checkpoint, folder or model that computed the features; only its card is read.
        method: ``"average"`` for agglomerative clustering with average linkage, which gives every
            face a group; ``"hdbscan"`` for groups of two or more faces in dense regions (Campello
            et al. 2013), without a threshold.

    Returns:
        Number of each face's group, the largest group first; -1 for rows of NaN, and for faces in
        no group of ``"hdbscan"``; int64, (N,).

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: if ``features`` is not (N, D), ``method`` is unknown, ``threshold`` is not a
            cosine, or the card has no threshold and none is given.

    Examples:
        >>> features = model.encode_identity(["eileen_collins.jpg", "grace_hopper.jpg"])
        >>> facezoo.cluster(features)
        tensor([0, 1])
    """
    if method not in ("average", "hdbscan"):
        raise ValueError(f"method must be 'average' or 'hdbscan', got {method!r}")
    rows = _rows(features)
    with explained_import("cluster needs scikit-learn: pip install 'facezoo[sklearn]'"):
        from scipy.cluster.hierarchy import fcluster, linkage
        from scipy.spatial.distance import squareform
        from sklearn.cluster import HDBSCAN
    known = torch.isfinite(rows).all(1)
    result = torch.full((len(rows),), -1, dtype=torch.int64, device="cpu")
    unit = F.normalize(rows[known], dim=1)
    if method == "hdbscan":
        groups = HDBSCAN(2, copy=True).fit_predict(unit) if len(unit) > 1 else -np.ones(len(unit))
    else:
        if threshold is None:
            threshold = _verification(*_card(model)).threshold
        threshold = _number(threshold)
        distances = squareform(
            (1 - unit @ unit.T).clamp(min=0).fill_diagonal_(0).numpy(), checks=False
        )
        groups = np.arange(len(unit))
        if len(unit) > 1:
            groups = fcluster(linkage(distances, "average"), 1 - threshold, "distance")
    names, places, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sizes[names < 0] = 0  # no group
    ranks = np.argsort(np.argsort(-sizes, kind="stable"))
    result[known] = torch.from_numpy(np.where(names < 0, -1, ranks)[places])
    return result


def _rows(features: Any) -> Tensor:
    """Convert features to a float32 tensor (N, D) on the CPU; see ``cluster``."""
    try:
        rows = torch.as_tensor(as_array(features), device="cpu").detach().float()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"features must be numbers (N, D), such as those of encode_identity, got "
            f"{type(features).__name__}"
        ) from error
    if rows.ndim != 2:
        raise ValueError(f"features must be (N, D), got {tuple(rows.shape)}")
    return rows


def _verification(card: Card | None, name: str) -> Verification:
    if card is None or card.verification is None:
        raise ValueError(
            f"the card of this {name} has no verification threshold; give "
            "threshold=, or measure one with facezoo evaluate --card"
        )
    return card.verification


def _number(threshold: float) -> float:
    """Convert a threshold to a plain number.

    Raises:
        ValueError: if it is not between -1 and 1.
    """
    number = float(threshold)
    if not -1 <= number <= 1:
        raise ValueError(f"threshold must be a cosine from -1 to 1, got {number:g}")
    return number


def _model(model: str | os.PathLike[str] | FaceModel) -> Any:
    if isinstance(model, (str, os.PathLike)):
        model = _loaded(Path(model) if isinstance(model, os.PathLike) else model, card_hash(model))
    return as_image_model(model)


@lru_cache(maxsize=1)
def _loaded(name: str | Path, _: str) -> Any:
    return load(name)


def _card(model: str | os.PathLike[str] | FaceModel) -> tuple[Card | None, str]:
    """Return the card of a model, and its name for messages."""
    if isinstance(model, (str, os.PathLike)):
        return resolve(model).card, os.fspath(model)
    return model.card, str(model.model_name)
