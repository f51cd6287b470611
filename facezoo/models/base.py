"""What every model of the zoo is: a module that takes photographs and gives features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, ClassVar, NoReturn, cast

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from facezoo.display import ShortModel
from facezoo.errors import ImageError, NoFaceError, UnsupportedError
from facezoo.hub.card import Card, Preprocessing
from facezoo.hub.families import FAMILIES, model_class
from facezoo.inference import evaluating, first_parameter
from facezoo.models.freezing import Freezable
from facezoo.models.identity_removal import NAME, IdentityRemoval
from facezoo.models.pretrained import Pretrained
from facezoo.preprocess.images import ImageSource, as_list, describe, read_ahead, read_tensors
from facezoo.preprocess.jpeg import JpegDecoder, Photo, check_decoder, read_or_keep
from facezoo.preprocess.pipeline import (
    NAMED,
    OnMissing,
    Which,
    check_options,
    find_faces,
    no_face,
    on_device,
    prepare,
    prepare_aligned,
    slices,
)
from facezoo.results import ExpressionPrediction, FaceEncoding, Faces

Images = ImageSource | Sequence[ImageSource]
Stage = Callable[[Tensor], Tensor]

CHUNK_BYTES = 256 * 2**20
"""Decoded photographs that are held at once, however large ``batch_size`` is."""

# What a model can be asked for, and the stage that it must have for it. Stages take prepared crops;
# ``classify_features`` takes the expression features of such.
CAPABILITIES = {
    "encode_expression": "embed_expression",
    "encode_identity": "embed_identity",
    "encode_pose": "embed_pose",
    "encode_factors": "embed_factors",
    "predict_expression": "classify_features",
    "reconstruct": "reconstruct_crops",
    "neutralize": "neutralize_crops",
    "frontalize": "frontalize_crops",
}


@dataclass(frozen=True)
class Options:
    """What every public method takes beside photographs; see ``FaceModel.encode_expression``."""

    faces: Which
    on_missing: OnMissing
    aligned: bool
    batch_size: int
    progress: bool


class FaceModel(ShortModel, Freezable, Pretrained):
    """A disentangled face representation.

    ``encode_*`` and ``predict_*`` take photographs, keep no gradients and batch by themselves;
    the lower-case stages (``embed_expression`` and the like) take prepared tensors and keep
    gradients. A family says what it can do by the stages that it has.

    The photographs may be anything that ``facezoo.preprocess.images.read_image`` reads: paths,
    bytes, file objects, PIL images, arrays, tensors, or a list of these. Colours are RGB.
    """

    model_name: ClassVar[str | None] = None
    architecture: dict[str, Any]
    preprocessing: Preprocessing = Preprocessing()
    labels: tuple[str, ...] = ()
    card: Card | None = None
    timm_stages: ClassVar[tuple[str, ...]] = ()
    """Stages that ``as_timm`` gives as one timm model; see ``facezoo.export``."""
    unexported: ClassVar[tuple[str, ...]] = ()
    """Capabilities that no fixed graph of operations holds, such as rasterising."""
    jpeg: JpegDecoder = "pillow"
    """What decodes JPEG files; see ``facezoo.load``."""
    absent: Mapping[str, str] = {}
    """What the family can do and this configuration of it cannot, and why."""
    identity_removal: IdentityRemoval
    """What ``encode_expression`` leaves out, where it was set; see ``facezoo.remove_identity``."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are, and where photographs are worked on."""
        return first_parameter(self).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the parameters."""
        return first_parameter(self).dtype

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a prepared crop."""
        return (3, self.preprocessing.size, self.preprocessing.size)

    def capabilities(self) -> list[str]:
        """Names of the methods that this model can be asked for."""
        return [
            name
            for name, stage in CAPABILITIES.items()
            if hasattr(self, stage) and name not in self.absent
        ]

    def decode_jpeg_by(self, decoder: JpegDecoder) -> None:
        """Choose what decodes JPEG files, see ``facezoo.load``.

        Raises:
            UnsupportedError: if it does not work on the model's device.
            ValueError: if there is no such decoder.
        """
        check_decoder(decoder, self.device)
        self.jpeg = decoder

    def encode_expression(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Expression features of the faces in photographs.

        Args:
            images: one photograph or several.
            faces: ``"largest"`` for one face per photograph, ``"all"`` for every face.
            on_missing: what becomes of a photograph without a face: ``"raise"``, ``"skip"`` or
                ``"nan"``, which keeps its place in the result.
            aligned: whether the images are crops in the model's template already.
            batch_size: photographs, and then faces, that are worked on at once.
            progress: whether to show a progress bar.

        Returns:
            float32 features on the model's device, (F, D).

        Raises:
            ImageError: if an image cannot be read.
            NoFaceError: if a photograph has no face and ``on_missing`` is ``"raise"``; all have
                been searched then, and ``missing`` holds every such index.
            UnsupportedError: if this family has no expression features.
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self._encode(images, ["encode_expression"], options)[0]["encode_expression"]

    def encode_identity(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Identity features of the faces in photographs; see ``encode_expression``."""
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self._encode(images, ["encode_identity"], options)[0]["encode_identity"]

    def encode_pose(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Pose features of the faces in photographs; see ``encode_expression``."""
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self._encode(images, ["encode_pose"], options)[0]["encode_pose"]

    def encode(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> FaceEncoding:
        """Every feature that this model reads from a face; see ``encode_expression``.

        Returns:
            Features by name, None for what this family lacks, and the faces.
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)
        wanted = [name for name in self.capabilities() if name.startswith("encode_")]
        features, found = self._encode(images, wanted, options)
        named = {name.removeprefix("encode_"): value for name, value in features.items()}
        return FaceEncoding(
            expression=named.get("expression"),
            identity=named.get("identity"),
            pose=named.get("pose"),
            faces=found,
        )

    def predict_expression(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> ExpressionPrediction:
        """Expression classes of the faces in photographs; see ``encode_expression``.

        Returns:
            Labels, probabilities and faces.
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)
        results, found = self._encode(images, ["predict_expression"], options)
        probabilities = results["predict_expression"].softmax(-1)
        return ExpressionPrediction(
            self.name_labels(probabilities), probabilities, self.labels, found
        )

    def name_labels(self, probabilities: Tensor) -> list[str | None]:
        """The most probable class of each row, None for rows of NaN."""
        known = torch.isfinite(probabilities).all(-1).tolist()
        best = probabilities.nan_to_num().argmax(-1).tolist()
        return [self.labels[b] if k else None for b, k in zip(best, known, strict=True)]

    def run(self, crops: Tensor, wanted: Sequence[str], batch_size: int = 64) -> dict[str, Tensor]:
        """Stages on prepared crops, in eval mode and batches.

        Args:
            crops: normalised, (F, 3, S, S).
            wanted: keys of ``CAPABILITIES``.
            batch_size: crops per forward pass.

        Returns:
            float32 by name: features or logits, (F, D), or normalised crops, (F, 3, S, S).

        Raises:
            UnsupportedError: if this model cannot do one of them.
            ValueError: if one is no such key, or ``batch_size`` is below 1.
        """
        check_batch_size(batch_size)
        for name in wanted:
            self._stage(name)
        parts: dict[str, list[Tensor]] = {name: [] for name in wanted}
        with torch.inference_mode(), evaluating(self):
            ready = crops.to(self.dtype)
            for batch in ready.split(batch_size) if len(ready) > batch_size else [ready]:
                for name, rows in self._run_batch(batch, wanted).items():
                    parts[name].append(rows)
        # Joined outside of inference mode, they are ordinary tensors, which can be learned from.
        return {name: torch.cat(rows) for name, rows in parts.items()}

    def _run_batch(self, batch: Tensor, wanted: Sequence[str]) -> dict[str, Tensor]:
        if not len(batch):  # a width is needed even for no faces at all
            one = self._run_batch(batch.new_zeros(1, *self.input_shape), wanted)
            return {name: rows[:0] for name, rows in one.items()}
        # Classes are read from the expression features, which are computed once for both.
        features = [name for name in wanted if name != "predict_expression"]
        if "predict_expression" in wanted and "encode_expression" not in wanted:
            features.append("encode_expression")
        results = {name: self._stage(name)(batch) for name in features}
        if "predict_expression" in wanted:
            classify = self._stage("predict_expression")
            results["predict_expression"] = classify(results["encode_expression"])
        if "encode_expression" in results:
            results["encode_expression"] = self.without_identity(results["encode_expression"])
        return {name: results[name].float() for name in wanted}

    def _stage(self, name: str) -> Stage:
        if name not in CAPABILITIES:
            raise ValueError(f"there is no {name!r} among {', '.join(CAPABILITIES)}")
        stage: Stage | None = getattr(self, CAPABILITIES[name], None)
        return stage if stage is not None and name not in self.absent else self.refuse(name)

    def without_identity(self, expression: Tensor) -> Tensor:
        """Expression features (B, D) as ``encode_expression`` gives them.

        They are what the stage gives, less identity where ``identity_removal`` is set. Classes are
        read from the features as they are before.

        Raises:
            ValueError: if the removal is for features of another width.
        """
        removal: IdentityRemoval | None = getattr(self, NAME, None)
        if removal is None:
            return expression
        if len(removal.mean) != expression.shape[-1]:
            raise ValueError(
                f"{NAME} is for {len(removal.mean)} features, and this {self.model_name} gives "
                f"{expression.shape[-1]}; fit one to features of this model by remove_identity()"
            )
        if removal.mean.device != expression.device:  # it is fitted to features from anywhere
            removal.to(expression.device)
        return removal(expression)

    def as_timm(self, stage: str) -> nn.Module:
        """A stage as one timm model with a linear last layer, which gives the same numbers.

        Args:
            stage: one of ``timm_stages``.

        Raises:
            UnsupportedError: if this family has no such stage.
        """
        raise UnsupportedError(f"{self.model_name} has no stage {stage!r} that is a timm model")

    def refuse(self, name: str) -> NoReturn:
        """Say that this model cannot do ``name``, a method of some model, and what can.

        Raises:
            UnsupportedError: always.
        """
        if name in self.absent:
            raise UnsupportedError(
                f"this {self.model_name} cannot {name}: {self.absent[name]}; load a checkpoint "
                "that has it (facezoo.info(NAME) shows the architecture)"
            )
        raise no_stage(self.model_name, name)

    def _encode(
        self, images: Images, wanted: Sequence[str], options: Options
    ) -> tuple[dict[str, Tensor], Faces | None]:
        """Results by capability, and where the faces stand, over all photographs."""
        check_options(options.faces, options.on_missing)
        for name in wanted:
            self._stage(name)
        results: list[dict[str, Tensor]] = []
        found: list[Faces] = []
        if options.aligned:
            for _, names, chunk in self._chunks(images, options):
                crops = prepare_aligned(chunk, self.preprocessing, names)
                results.append(self.run(crops, wanted, options.batch_size))
        else:
            for begin, chunk, faces in self._searched(images, options):
                results.append(self.encode_faces(chunk, faces, wanted, options.batch_size))
                found.append(_shifted(faces, begin))
        joined = {name: torch.cat([part[name] for part in results]) for name in wanted}
        return joined, None if options.aligned else _joined(found)

    def _searched(
        self, images: Images, options: Options
    ) -> Iterator[tuple[int, list[Tensor], Faces]]:
        """Photographs a batch at a time: index of the first, pixels, faces.

        After the first without a face, where that is an error, the rest is searched and not given:
        the error comes last and names all.
        """
        missing: list[int] = []
        called: list[str] = []
        for begin, names, chunk in self._chunks(images, options):
            try:
                faces = find_faces(chunk, faces=options.faces, on_missing=options.on_missing)
            except NoFaceError as error:
                missing += [begin + index for index in error.missing]
                called = [*called, *(names[index] for index in error.missing)][:NAMED]
            if not missing:
                yield begin, chunk, faces
        if missing:
            raise no_face(missing, called)

    def encode_faces(
        self, photos: Sequence[Tensor], faces: Faces, wanted: Sequence[str], batch_size: int = 64
    ) -> dict[str, Tensor]:
        """Results for faces that have been found; rows of NaN stay rows of NaN.

        Args:
            photos: uint8 RGB, each (H, W, 3), on the model's device.
            faces: faces of these photographs.
            wanted: keys of ``CAPABILITIES``.
            batch_size: faces per forward pass.

        Returns:
            float32 by name: features or logits, (F, D), or normalised crops, (F, 3, S, S).
        """
        known = torch.isfinite(faces.scores)
        found = faces if bool(known.all()) else faces[known]
        parts = [
            self.run(prepare(photos, part, self.preprocessing), wanted, batch_size)
            for part in slices(found, batch_size)
        ]
        features = {name: torch.cat([part[name] for part in parts]) for name in wanted}
        if found is faces:
            return features
        filled = {}
        for name, rows in features.items():
            filled[name] = rows.new_full((len(faces), *rows.shape[1:]), float("nan"))
            filled[name][known] = rows
        return filled

    def _chunks(
        self, images: Images, options: Options
    ) -> Iterator[tuple[int, list[str], list[Tensor]]]:
        """Photographs on the device, a batch at a time: index of the first, names, pixels."""
        sources = as_list(images)
        if not sources:
            raise ValueError("images is an empty list; give one photograph or more")
        check_batch_size(options.batch_size)
        check_decoder(self.jpeg, self.device)
        photos: list[Any] = []
        names: list[str] = []
        # Tensors are read a batch at a time, where they are.
        tensors = all(isinstance(source, Tensor) for source in sources)
        read = (
            sources
            if tensors
            else read_ahead(
                sources, 2 * options.batch_size, partial(read_or_keep, decoder=self.jpeg)
            )
        )
        bar = tqdm(read, total=len(sources), disable=not options.progress, unit="photo")
        for index, photo in enumerate(bar):
            photos.append(photo)
            names.append(describe(sources[index], index if len(sources) > 1 else None))
            full = sum(_bytes_of(photo) for photo in photos) >= CHUNK_BYTES
            if full or len(photos) == options.batch_size or index + 1 == len(sources):
                begin, device = index + 1 - len(photos), self.device
                if tensors:
                    yield begin, names, read_tensors(photos, names, device)
                else:
                    yield begin, names, _readable(on_device(photos, device))
                photos, names = [], []


def no_stage(family: str | None, name: str) -> UnsupportedError:
    """What to raise where a family has no stage for ``name``; it lists the families that have."""
    able = [f for f in FAMILIES if hasattr(model_class(f), CAPABILITIES[name])]
    return UnsupportedError(f"{family} cannot {name}; models that can: {', '.join(able) or 'none'}")


def check_shape(images: Tensor, shape: tuple[int, int, int], name: str = "images") -> None:
    """Refuse anything but a batch of prepared crops, (B, *shape)."""
    if images.ndim != 4 or tuple(images.shape[1:]) != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(
            f"{name} must be (B, {wanted}), got {tuple(images.shape)}; for photographs call "
            "encode_expression() and the like, which find and align faces"
        )


def check_batch_size(batch_size: int) -> None:
    """Refuse batches of nothing."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")


def _readable(photos: Sequence[Tensor | ImageError]) -> list[Tensor]:
    """Photographs, if all of them could be read."""
    for photo in photos:
        if isinstance(photo, ImageError):
            raise photo
    return cast("list[Tensor]", photos)


def _bytes_of(photo: Photo | Tensor) -> int:
    """Bytes of a photograph once it is read."""
    return 3 * prod(photo.shape[-2:]) if isinstance(photo, Tensor) else photo.nbytes


def _shifted(faces: Faces, begin: int) -> Faces:
    return Faces(faces.boxes, faces.landmarks, faces.scores, faces.image_index + begin)


def _joined(parts: Sequence[Faces]) -> Faces:
    return Faces(
        torch.cat([f.boxes for f in parts]),
        torch.cat([f.landmarks for f in parts]),
        torch.cat([f.scores for f in parts]),
        torch.cat([f.image_index for f in parts]),
    )
