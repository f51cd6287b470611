"""A scikit-learn transformer from images to features. Needs the extra ``[sklearn]``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from facezoo.errors import explained_import
from facezoo.hub.names import card_hash
from facezoo.models.base import FaceModel, as_image_model
from facezoo.preprocess.detection import DetectionConfig
from facezoo.preprocess.fingerprint import fingerprint
from facezoo.preprocess.images import as_list, no_face, read_image
from facezoo.preprocess.pipeline import DETECTION
from facezoo.registry import load

with explained_import("facezoo.sklearn needs scikit-learn: pip install 'facezoo[sklearn]'"):
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.utils import Tags
    from sklearn.utils.validation import check_memory

WHAT = ("expression", "identity", "pose", "probabilities")


class FaceFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Transformer from images to the features of the largest face in each, one row per image.

    ``fit`` only checks the parameters; ``transform`` needs no ``fit``. Copies by ``clone`` or in
    another process load the model by its name.

    Args:
        model: a name that ``facezoo.load`` takes; a folder that changes is loaded again.
        what: ``"expression"``, ``"identity"`` or ``"pose"`` features, or ``"probabilities"``.
        aligned: whether the images are crops in the model's template already.
        on_missing: ``"raise"`` an error for an image without a face, or give a row of ``"nan"``.
        batch_size: images that are processed at once.
        device: device of the model; None for the best one.
        min_face: least side of a face, pixels; None for the default of ``DetectionConfig``, as for
            the next three.
        score_threshold: least score of a face, in [0, 1].
        max_side: longer side of the images that the detector takes, pixels.
        rotations: rotations of the image at which faces are searched, multiples of 90 degrees.
        memory: a folder or a ``joblib.Memory`` that stores the row of every image, so that
            cross-validation encodes an image once; None for no cache.

    Examples:
        >>> from facezoo.sklearn import FaceFeatures
        >>> FaceFeatures("ipd-fer", what="expression").fit_transform(["grace_hopper.jpg"]).shape
        (1, 512)
    """

    def __init__(
        self,
        model: str = "ipd-fer",
        what: str = "expression",
        *,
        aligned: bool = False,
        on_missing: str = "raise",
        batch_size: int = 64,
        device: str | None = None,
        memory: Any = None,
        min_face: float | None = None,
        score_threshold: float | None = None,
        max_side: int | None = None,
        rotations: Sequence[int] | None = None,
    ) -> None:
        self.model = model
        self.what = what
        self.aligned = aligned
        self.on_missing = on_missing
        self.batch_size = batch_size
        self.device = device
        self.memory = memory
        self.min_face = min_face
        self.score_threshold = score_threshold
        self.max_side = max_side
        self.rotations = rotations

    def fit(self, X: Any, y: Any = None) -> FaceFeatures:  # noqa: ARG002 (scikit-learn's names)
        """Check the parameters and that there are images.

        Args:
            X: images, as for ``transform``; they are not read.
            y: ignored.

        Raises:
            ValueError: if a parameter has no such value, or there is no image.
            UnsupportedError: if the model has no such features.
        """
        if isinstance(X, Iterator):
            raise ValueError("X must be a sequence of images, got a generator; pass list(X)")
        _images(X)
        self.get_feature_names_out()
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Compute the features of images.

        Args:
            X: paths, bytes, PIL images, arrays or tensors in a list or in a column of a data frame;
                or a batch of images (N, H, W, 3).

        Returns:
            (N, D).

        Raises:
            ImageError: if an image cannot be read.
            NoFaceError: if an image has no face and ``on_missing`` is ``"raise"``.
            ValueError: if ``X`` is not a sequence of images.
        """
        self._check()
        images = _images(X)
        memory = self.memory
        memory = check_memory(os.fspath(memory) if isinstance(memory, os.PathLike) else memory)
        rows = self._encode(images) if memory.location is None else self._cached(images, memory)
        missing = np.flatnonzero(np.isnan(rows).all(1)).tolist()
        if missing and self.on_missing == "raise":
            raise no_face(missing, images, ("nan", "aligned"))
        return rows

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:  # noqa: ARG002
        """Return the names of the columns: ``expression_0`` and so on, or the classes.

        Raises:
            ValueError: if a parameter has no such value.
            UnsupportedError: if the model has no such features.
        """
        self._check()
        model = self._model()
        if self.what == "probabilities":
            model.stage("predict_expression")
            return np.array([f"p_{label}" for label in model.labels], object)
        crops = torch.zeros(0, *model.input_shape, dtype=torch.float32, device=model.device)
        width = model.run(crops, f"encode_{self.what}").shape[1]
        return np.array([f"{self.what}_{index}" for index in range(width)], object)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []
        return tags

    def _check(self) -> None:
        if not isinstance(self.model, (str, os.PathLike)):
            raise ValueError(
                "model must be a name or a folder, so that copies in other processes can load it, "
                f"got {type(self.model).__name__}; write yours with save_pretrained() and name its "
                "folder"
            )
        if self.what not in WHAT:
            raise ValueError(f"what must be one of {', '.join(WHAT)}, got {self.what!r}")
        if self.on_missing not in ("raise", "nan"):
            raise ValueError(
                "on_missing must be 'raise' or 'nan', so that every image has a row, got "
                f"{self.on_missing!r}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size}")
        DetectionConfig.override(**self._detection())

    def _detection(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in DETECTION}

    def _model(self) -> FaceModel:
        return _load(self.model, self.device, card_hash(self.model))

    def _encode(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """Compute the rows of all images; NaN where there is no face."""
        encode = "predict_expression" if self.what == "probabilities" else f"encode_{self.what}"
        result = getattr(self._model(), encode)(
            images,
            faces="largest",
            on_missing="nan",
            aligned=self.aligned,
            batch_size=self.batch_size,
            **self._detection(),
        )
        rows: torch.Tensor = result.probabilities if self.what == "probabilities" else result
        return rows.cpu().numpy()

    def _cached(self, images: Sequence[Any], memory: Any) -> NDArray[np.float32]:
        """Return rows from the cache, after the images that it lacks are encoded together.

        Rows that are damaged count as missing. joblib replaces them by what ``_row`` returns: None.
        """
        cached, model = memory.cache(_row, ignore=["row"]), self._model()
        weights = model.card.weights.sha256 if model.card else self.model
        mark = fingerprint(
            model.preprocessing, model.jpeg, DetectionConfig.override(**self._detection())
        )
        keys = []
        for index, image in enumerate(images):
            pixels = read_image(image, index)
            digest = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
            keys.append(f"{weights}-{mark}-{self.what}-{self.aligned}-{digest}")
        stored = cached.check_call_in_cache
        rows: list[Any] = [cached(key, None) if stored(key, None) else None for key in keys]
        new = [i for i, row in enumerate(rows) if row is None]
        if new:
            for i, row in zip(new, self._encode([images[i] for i in new]), strict=True):
                if cached(keys[i], row) is None:  # it was damaged
                    cached.call(keys[i], row)
                rows[i] = row
        return np.stack(rows)


def _row(key: str, row: NDArray[np.float32] | None) -> NDArray[np.float32] | None:  # noqa: ARG001
    """Return the row that the cache stores under a key."""
    return row


@lru_cache(maxsize=4)
def _load(name: str, device: str | None, _: str) -> FaceModel:
    return as_image_model(load(name, device=device))


def _images(X: Any) -> list[Any]:
    """List the images one by one."""
    X = X.to_numpy() if hasattr(X, "to_numpy") else X  # a column, or a data frame of one
    if isinstance(X, (str, bytes, os.PathLike)):
        raise ValueError(f"X must be a sequence of images, got one {type(X).__name__}; pass a list")
    if isinstance(X, np.ndarray) and X.dtype.kind in "OUST":
        if X.ndim not in (1, 2) or (X.ndim == 2 and X.shape[1] != 1):
            raise ValueError(f"X must be one column of images, got shape {X.shape}")
        X = X.ravel().tolist()
    elif isinstance(X, (np.ndarray, torch.Tensor)) and X.ndim != 4:
        raise ValueError(
            "X must be images, a batch (N, H, W, 3) or a list, got numbers of shape "
            f"{tuple(X.shape)}"
        )
    images = as_list(X)
    if not images:
        raise ValueError("X has no image")
    return images
