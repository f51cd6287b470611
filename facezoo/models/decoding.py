"""Models that make faces: what comes back is crops in the model's template."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from facezoo.inference import evaluating
from facezoo.models.base import FaceModel, Images, Options, check_batch_size
from facezoo.preprocess.images import as_list
from facezoo.preprocess.pipeline import OnMissing, Which
from facezoo.results import Faces


class DecodingModel(FaceModel):
    """A face representation with a way back to pixels.

    Pictures come back as RGB crops in [0, 1] in the template that the faces were aligned to, so
    ``encode_*`` and ``predict_*`` take them with ``aligned=True``.
    """

    def reconstruct(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """The faces of photographs as the features describe them.

        Args:
            images: one photograph or several.
            faces: ``"largest"`` for one face per photograph, ``"all"`` for every face.
            on_missing: what becomes of a photograph without a face: ``"raise"``, ``"skip"`` or
                ``"nan"``.
            aligned: whether the images are crops in the model's template already.
            batch_size: photographs, and then faces, that are worked on at once.
            progress: whether to show a progress bar.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).

        Raises:
            ImageError: if an image cannot be read.
            NoFaceError: if a photograph has no face and ``on_missing`` is ``"raise"``.
            UnsupportedError: if this model has no decoder.
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self._crops(images, "reconstruct", options)

    def neutralize(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """The faces without their expression; see ``reconstruct``."""
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self._crops(images, "neutralize", options)

    def frontalize(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """The faces seen from the front; see ``reconstruct``."""
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self._crops(images, "frontalize", options)

    def to_unit(self, crops: Tensor) -> Tensor:
        """Normalised crops (F, 3, S, S) as RGB in [0, 1]."""
        mean, std = (
            crops.new_tensor(values)[:, None, None]
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        return (crops * std + mean).clamp(0, 1)

    def made(self, rows: Tensor, batch_size: int, make: Callable[[Tensor], Tensor]) -> Tensor:
        """What ``make`` makes of faces, in batches; rows with a NaN become rows of NaN.

        Args:
            rows: one for every face, (F, ...).
            batch_size: faces that are worked on at once.
            make: of some rows, in the model's precision.

        Returns:
            float32, (F, ...).

        Raises:
            ValueError: if ``batch_size`` is below 1.
        """
        check_batch_size(batch_size)
        known = torch.isfinite(rows.flatten(1)).all(-1)
        # A width is needed even for no faces at all.
        some = rows[known] if bool(known.any()) else rows.new_zeros(1, *rows.shape[1:])
        with evaluating(self):
            made = torch.cat([make(part).float() for part in some.to(self.dtype).split(batch_size)])
        filled = made.new_full((len(rows), *made.shape[1:]), float("nan"))
        filled[known] = made[: int(known.sum())]
        return filled

    def _crops(self, images: Images, name: str, options: Options) -> Tensor:
        return self.to_unit(self._encode(images, [name], options)[0][name])


def check_pairs(sources: int, targets: int) -> None:
    """Refuse numbers of faces of which no pairs can be made.

    Raises:
        ValueError: unless there is one source face, or as many as there are target faces.
    """
    if sources not in (1, targets):
        none = "no face was found in the source; " if not sources else ""
        raise ValueError(
            f"transfer_expression got {sources} source faces and {targets} target faces; {none}"
            "give one source, or as many as there are targets"
        )


def check_places(source: Images, target: Images, *found: Faces | None) -> None:
    """Refuse several pairs of which some lack a face: who belongs to whom cannot be told any more.

    Args:
        source: photographs of which one stands for all targets, or each for its own.
        target: photographs.
        *found: the faces of both; None for crops that came aligned.

    Raises:
        ValueError: if there are several sources, and photographs of either side were left out.
    """
    for images, faces in zip((source, target), found, strict=True):
        given = len(as_list(images))
        with_face = given if faces is None else len(faces.image_index.unique())
        if len(as_list(source)) > 1 and 0 < with_face < given:
            raise ValueError(
                f"{given - with_face} of {given} photographs without a face were skipped, and the "
                'others would be paired with the wrong ones; pass on_missing="nan", which keeps '
                "the place of each"
            )
