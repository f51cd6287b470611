"""Features of faces as a scikit-learn transformer. Needs the extra ``[sklearn]``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from facezoo.errors import UnsupportedError
from facezoo.models.base import FaceModel
from facezoo.preprocess.fingerprint import fingerprint
from facezoo.preprocess.images import as_list, no_face, read_image
from facezoo.registry import load

try:
    from sklearn.base import BaseEstimator, TransformerMixin
    from sklearn.utils import Tags
    from sklearn.utils.validation import check_memory
except ImportError as error:
    raise ImportError(
        "facezoo.sklearn needs scikit-learn: pip install 'facezoo[sklearn]'"
    ) from error

WHAT = ("expression", "identity", "pose", "probabilities")


class FaceFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Photographs to features, one row each, of the largest face in each.

    It learns nothing: ``fit`` only checks the parameters, and ``transform`` may be called without
    it. Copies made by ``clone`` or in another process share or load the model by its name.

    Args:
        model: a name that ``facezoo.load`` takes; a folder that is rewritten is loaded again.
        what: ``"expression"``, ``"identity"`` or ``"pose"`` features, or ``"probabilities"``.
        aligned: whether the images are crops in the model's template already.
        on_missing: what becomes of a photograph without a face: ``"raise"`` or a row of ``"nan"``.
        batch_size: photographs that are worked on at once.
        device: where to work; None for the best there is.
        memory: a folder, or a ``joblib.Memory``, that keeps the row of every image, so that
            cross-validation encodes it once; None to keep none.
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
    ) -> None:
        self.model = model
        self.what = what
        self.aligned = aligned
        self.on_missing = on_missing
        self.batch_size = batch_size
        self.device = device
        self.memory = memory

    def fit(self, X: Any, y: Any = None) -> FaceFeatures:  # noqa: ARG002 (scikit-learn's names)
        """Check the parameters and that there are images.

        Args:
            X: photographs, as ``transform`` takes them; they are not read.
            y: ignored.

        Raises:
            ValueError: if a parameter has no such value, or there is no image.
            UnsupportedError: if the model has no such features.
        """
        self._check()
        _images(X)
        _width(self.model, self.device, self.what, _card_mark(self.model))
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Features of photographs.

        Args:
            X: a sequence of paths, bytes, PIL images, arrays or tensors; a column of paths, as a
                data frame has it; or a batch of images (N, H, W, 3).

        Returns:
            (N, D).

        Raises:
            ImageError: if an image cannot be read.
            NoFaceError: if a photograph has no face and ``on_missing`` is ``"raise"``.
            ValueError: if ``X`` is no sequence of images.
        """
        self._check()
        images = _images(X)
        memory = check_memory(self.memory)
        rows = self._encode(images) if memory.location is None else self._remembered(images, memory)
        missing = np.flatnonzero(np.isnan(rows).all(1)).tolist()
        if missing and self.on_missing == "raise":
            raise no_face(missing, images, skipping=False)
        return rows

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:  # noqa: ARG002
        """Names of the columns: ``expression_0`` and so on, or the classes.

        Raises:
            ValueError: if a parameter has no such value.
            UnsupportedError: if the model has no such features.
        """
        self._check()
        mark = _card_mark(self.model)
        width = _width(self.model, self.device, self.what, mark)
        if self.what == "probabilities":
            model = _loaded(self.model, self.device, mark)
            return np.array([f"p_{label}" for label in model.labels], object)
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
                f"on_missing must be 'raise' or 'nan', so that every image has a row, got "
                f"{self.on_missing!r}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {self.batch_size}")

    def _encode(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """Rows of all images; of NaN where there is no face."""
        model = _loaded(self.model, self.device, _card_mark(self.model))
        options: dict[str, Any] = {
            "on_missing": "nan",
            "aligned": self.aligned,
            "batch_size": self.batch_size,
        }
        if self.what == "probabilities":
            rows = model.predict_expression(images, **options).probabilities
        else:
            rows = getattr(model, f"encode_{self.what}")(images, **options)
        return rows.cpu().numpy()

    def _remembered(self, images: Sequence[Any], memory: Any) -> NDArray[np.float32]:
        """Rows from the memory, and those that it lacks encoded together and put there."""
        keep = memory.cache(_kept, ignore=["row"])
        mark = _card_mark(self.model)
        setting = _setting(self.model, self.device, self.what, self.aligned, mark)
        keys = [f"{setting}-{_digest(read_image(i, n))}" for n, i in enumerate(images)]
        fresh = [i for i, key in enumerate(keys) if not keep.check_call_in_cache(key, None)]
        if fresh:
            encoded = self._encode([images[i] for i in fresh])
            for i, row in zip(fresh, encoded, strict=True):
                keep(keys[i], row)
        return np.stack([keep(key, None) for key in keys])


def _kept(key: str, row: NDArray[np.float32] | None) -> NDArray[np.float32] | None:  # noqa: ARG001
    """What the memory stores under a key: the row that it is first called with."""
    return row


def _card_mark(name: str) -> str:
    """What tells a model's folder or file from one rewritten: a hash of its card, else empty."""
    path = Path(name)
    card = path.with_suffix(".json") if path.suffix == ".safetensors" else path / "config.json"
    return hashlib.sha256(card.read_bytes()).hexdigest() if card.is_file() else ""


@lru_cache(maxsize=4)
def _loaded(name: str, device: str | None, mark: str) -> FaceModel:  # noqa: ARG001 (of the cache)
    model = load(name, device=device)
    if not isinstance(model, FaceModel):
        raise UnsupportedError(
            f"{type(model).__name__} takes meshes, not photographs; name a model of photographs"
        )
    return model


@lru_cache(maxsize=16)
def _width(name: str, device: str | None, what: str, mark: str) -> int:
    """D; raises if the model has no such features."""
    model = _loaded(name, device, mark)
    wanted = "predict_expression" if what == "probabilities" else f"encode_{what}"
    nothing = torch.zeros(0, *model.input_shape, device=model.device)
    return int(model.run(nothing, wanted).shape[1])


@lru_cache(maxsize=16)
def _setting(name: str, device: str | None, what: str, aligned: bool, mark: str) -> str:
    """What decides a row besides the image: weights, preprocessing, and what is asked for."""
    model = _loaded(name, device, mark)
    weights = model.card.weights.sha256 if model.card else name
    return f"{weights}-{fingerprint(model.preprocessing, model.jpeg)}-{what}-{aligned}"


def _digest(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()


def _images(X: Any) -> list[Any]:
    """The images one by one."""
    if hasattr(X, "to_numpy"):  # a column, or a frame of one, of pandas or polars
        X = X.to_numpy()
    if isinstance(X, (str, bytes, os.PathLike)):
        raise ValueError(f"X must be a sequence of images, got one {type(X).__name__}; pass a list")
    if isinstance(X, np.ndarray) and X.dtype.kind in "OUST":
        if X.ndim == 2 and X.shape[1] == 1:
            X = X[:, 0]
        if X.ndim != 1:
            raise ValueError(f"X must be one column of images, got shape {X.shape}")
        X = X.tolist()
    elif isinstance(X, (np.ndarray, torch.Tensor)) and X.ndim != 4:
        raise ValueError(
            f"X must be images, a batch (N, H, W, 3) or a list, got numbers of shape "
            f"{tuple(X.shape)}"
        )
    images = as_list(X if isinstance(X, (list, tuple, np.ndarray, torch.Tensor)) else list(X))
    if not images:
        raise ValueError("X holds no image")
    return images
