"""Compare faces by identity: similarities, and whether two images show one identity."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from facezoo.preprocess.images import Images, ImageSource
from facezoo.preprocess.pipeline import ImageKeywords
from facezoo.registry import load

if TYPE_CHECKING:
    from facezoo.models.base import FaceModel

_DEFAULT = "ipd-fer"


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

    def __bool__(self) -> bool:
        return self.same


def similarity(
    images_a: Images,
    images_b: Images,
    model: str | FaceModel = _DEFAULT,
    **options: Unpack[ImageKeywords],
) -> Tensor:
    """Compute the cosine between the identity features of every two faces.

    Args:
        images_a: one image or several.
        images_b: one image or several.
        model: a checkpoint or model with identity features.
        **options: see ``encode_expression``.

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
    model: str | FaceModel = _DEFAULT,
    *,
    threshold: float | None = None,
    **options: Unpack[ImageKeywords],
) -> Match:
    """Decide if two images show the same identity.

    Compare the largest face of each. Use it for research: errors are common, and rates on other
    images than those of the card can be much higher.

    Args:
        a: an image.
        b: another image.
        model: a checkpoint or model with identity features.
        threshold: least similarity of one identity; None for the one in the checkpoint's card.
        **options: see ``encode_expression``.

    Returns:
        Decision, similarity, threshold and the false-match rate of the threshold; true or false
        like its decision.

    Raises:
        ImageError: if an image cannot be read.
        NoFaceError: if an image has no face.
        UnsupportedError: if the model has no identity features.
        ValueError: if ``threshold`` is None and the card has none.

    Examples:
        >>> facezoo.verify("grace_hopper.jpg", "eileen_collins.jpg").same
        False
    """
    network, rate = _model(model), None
    if threshold is None:
        verification = network.card.verification if network.card else None
        if verification is None:
            raise ValueError(
                f"the card of this {network.model_name} has no verification threshold; give "
                "threshold=, or measure one with facezoo evaluate --card"
            )
        threshold, rate = verification.threshold, verification.false_match_rate
    value = float(similarity([a], [b], network, **options))
    return Match(value > threshold, value, threshold, rate)


def _model(model: str | FaceModel) -> Any:
    return _loaded(model) if isinstance(model, str) else model


@lru_cache(maxsize=1)
def _loaded(name: str) -> Any:
    return load(name)
