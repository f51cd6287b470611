"""Base class of image models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from facezoo.errors import UnsupportedError
from facezoo.hub.card import Preprocessing
from facezoo.inference import evaluating
from facezoo.memory import return_unused
from facezoo.models.capabilities import STAGES, Model
from facezoo.models.freezing import Freezable
from facezoo.models.identity_removal import NAME, IdentityRemoval
from facezoo.models.resnet import ResNet
from facezoo.preprocess.alignment import prepare_aligned
from facezoo.preprocess.images import Images, as_list, describe
from facezoo.preprocess.jpeg import JpegDecoder, check_decoder
from facezoo.preprocess.pipeline import (
    Clock,
    ImageKeywords,
    ImageOptions,
    OnMissing,
    Which,
    cut_batches,
    face_batches,
    faces_of,
    join_faces,
    read_batches,
)
from facezoo.results import (
    ExpressionPrediction,
    FaceEncoding,
    Faces,
    concatenate,
    fill_rows,
    map_tensors,
    tensors_in,
)
from facezoo.runtimes import Runtime, check_runtime, use_runtime

Stage = Callable[[Tensor], Any]
"""A function of prepared crops (B, 3, S, S); it returns a tensor, a result or a dict of these."""


class FaceModel(Freezable, Model):
    """Base class of all models of images. Create one with ``facezoo.load``.

    ``encode_*`` and ``predict_*`` take images: paths, bytes, file objects, PIL images, arrays,
    tensors, or several of these. Colors are RGB. They find the faces, work in batches and return no
    gradients. ``stage`` returns functions of prepared crops that keep gradients.

    Examples:
        >>> model = facezoo.load("ipd-fer")
        >>> model.encode("grace_hopper.jpg").expression.shape
        torch.Size([1, 512])
    """

    preprocessing: Preprocessing = Preprocessing()
    timm_stages: ClassVar[tuple[str, ...]] = ()
    """Stages that ``as_timm`` returns as one timm model; see ``facezoo.export``."""
    unexported: ClassVar[tuple[str, ...]] = ()
    """Capabilities with a stage that cannot be exported as a fixed graph, such as rasterization."""
    needs: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Names in ``networks`` that a stage needs, see ``reduce_to``; other stages need all."""
    jpeg: JpegDecoder = "pillow"
    """Decoder of JPEG files: ``"pillow"`` or ``"nvjpeg"``."""
    runtime: Runtime = "torch"
    """Runtime of networks and detector: ``"torch"``, ``"onnxruntime"`` or ``"openvino"``."""
    identity_removal: IdentityRemoval
    """Projection after ``encode_expression``, if set; see ``facezoo.remove_identity``."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of a prepared crop."""
        return (3, self.preprocessing.size, self.preprocessing.size)

    def set_jpeg_decoder(self, decoder: JpegDecoder) -> None:
        """Choose the decoder of JPEG files: ``"pillow"``, or ``"nvjpeg"`` on an NVIDIA GPU.

        Raises:
            UnsupportedError: if it does not work on the model's device.
            ValueError: if it does not exist.
        """
        check_decoder(decoder, self.device)
        self.jpeg = decoder

    def set_runtime(self, runtime: Runtime) -> None:
        """Choose what computes networks and detector: torch, or onnxruntime or openvino on the CPU.

        Raises:
            ImportError: if the runtime is missing.
            UnsupportedError: if it does not support the model's device or precision.
            ValueError: if it does not exist.
        """
        check_runtime(runtime, self.device, self.dtype)
        for name, module in self.named_modules():
            if name in self.networks:
                use_runtime(module, runtime)
        self.runtime = runtime

    def encode_expression(
        self,
        images: Images,
        *,
        faces: Which = "all",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
        min_face: float | None = None,
        score_threshold: float | None = None,
        max_side: int | None = None,
        rotations: Sequence[int] | None = None,
        compact: bool = False,
    ) -> Tensor:
        """Compute the expression features of the faces in images.

        Args:
            images: one image or several.
            faces: ``"all"`` for every face, ``"largest"`` for one face per image.
            on_missing: what to do with an image without a face: ``"raise"``, ``"skip"`` or
                ``"nan"``, which keeps its place in the result.
            aligned: whether the images are crops in the model's template already.
            batch_size: number of images, and then of faces, that are processed at once.
            progress: whether to show a progress bar, on a terminal or in a notebook.
            min_face: smallest side of a face to detect, pixels; None for 16 pixels in an image of
                ``max_side``.
            score_threshold: smallest score of a face; None for the detector's default.
            max_side: longer side to which images are reduced for detection; None for 640 pixels.
            rotations: rotations to try, in degrees, such as ``(0, 90, 180, 270)``, for images that
                may be turned; None for upright images only.
            compact: return the R numbers of ``compact_expression`` in place of the D features.

        Returns:
            float32 features on the model's device, (F, D) or (F, R).

        Raises:
            ImageError: if an image cannot be read.
            NoFaceError: if an image has no face and ``on_missing`` is ``"raise"``. All images are
                searched before, and ``missing`` holds every such index.
            UnsupportedError: if this model has no expression features.

        Examples:
            >>> model.encode_expression(["eileen_collins.jpg", "grace_hopper.jpg"]).shape
            torch.Size([2, 512])
        """
        options = ImageOptions(
            faces,
            on_missing,
            aligned,
            batch_size,
            progress,
            min_face,
            score_threshold,
            max_side,
            rotations,
        )
        features: Tensor = self._encode(images, self.stage("encode_expression"), options)[0]
        return self.compact_expression(features) if compact else features

    def expression_basis(self) -> tuple[Tensor, Tensor] | None:
        """Return the subspace that the expression features keep to; None if it is the whole space.

        Returns:
            Origin, (D,), and orthonormal basis, (D, R).
        """
        return None

    def compact_expression(self, features: Tensor) -> Tensor:
        """Reduce expression features to the numbers that vary, without loss.

        These are the coordinates of the features in ``expression_basis``: the same up to a rotation
        and a shift. So Euclidean distances and linear classifiers stay the same; cosines do not.

        Args:
            features: of ``encode_expression``, (F, D).

        Returns:
            (F, R); the features themselves if they have no such basis.

        Examples:
            >>> features = model.encode_expression("eileen_collins.jpg")
            >>> model.compact_expression(features).shape
            torch.Size([1, 7])
        """
        space = self.expression_basis()
        return features if space is None else coordinates(features, *space)

    def encode_identity(self, images: Images, **options: Unpack[ImageKeywords]) -> Tensor:
        """Compute identity features of the faces in images, float32, (F, D); compare by cosine.

        Options and errors are those of ``encode_expression``.
        """
        stage = self.stage("encode_identity")
        return cast(Tensor, self._encode(images, stage, ImageOptions(**options))[0])

    def encode_pose(self, images: Images, **options: Unpack[ImageKeywords]) -> Tensor:
        """Compute pose features of the faces in images, float32, (F, D).

        Options and errors are those of ``encode_expression``.
        """
        stage = self.stage("encode_pose")
        return cast(Tensor, self._encode(images, stage, ImageOptions(**options))[0])

    def encode(
        self, images: Images, *, compact: bool = False, **options: Unpack[ImageKeywords]
    ) -> FaceEncoding:
        """Compute all features of the faces in images; options are those of ``encode_expression``.

        Returns:
            Expression, identity and pose features, (F, D) each or None, and the faces.
        """
        names = ["encode_expression", "encode_identity", "encode_pose"]
        able = [name for name in names if name in self.capabilities()]
        features, faces = self._encode(
            images, self.stage(able), ImageOptions(**options), measured=True
        )
        expression, identity, pose = (features.get(name) for name in names)
        if compact and expression is not None:
            expression = self.compact_expression(expression)
        return FaceEncoding(expression=expression, identity=identity, pose=pose, faces=faces)

    def predict_expression(
        self, images: Images, **options: Unpack[ImageKeywords]
    ) -> ExpressionPrediction:
        """Classify the faces in images; options and errors are those of ``encode_expression``.

        Returns:
            F labels, probabilities (F, K) and the faces.

        Examples:
            >>> model.predict_expression("grace_hopper.jpg").labels
            ['neutral']
        """
        stage = self.stage("predict_expression")
        logits, faces = self._encode(images, stage, ImageOptions(**options), measured=True)
        probabilities = logits.softmax(-1)
        labels = self.name_labels(probabilities)
        return ExpressionPrediction(labels, probabilities, self.labels, faces)

    def name_labels(self, probabilities: Tensor) -> list[str | None]:
        """Name the most probable class of each row, None for rows of NaN.

        Raises:
            ValueError: if there are not as many probabilities as labels.
        """
        if probabilities.shape[-1] != len(self.labels):
            raise ValueError(
                f"the classifier has {probabilities.shape[-1]} outputs, and the model has "
                f"{len(self.labels)} labels; replace it by reset_classifier(labels=[...])"
            )
        known = torch.isfinite(probabilities).all(-1).tolist()
        best = probabilities.nan_to_num().argmax(-1).tolist()
        return [self.labels[b] if k else None for b, k in zip(best, known, strict=True)]

    def stage(self, names: str | Sequence[str]) -> Stage:
        """Return the function of prepared crops behind capabilities.

        Args:
            names: ``"encode_expression"``, ``"encode_identity"``, ``"encode_pose"``,
                ``"encode_factors"``, ``"predict_expression"``, ``"reconstruct"``,
                ``"neutralize"`` or ``"frontalize"``: one, or several that share their computation.

        Returns:
            A function that returns features or logits (B, D), normalized crops (B, 3, S, S) or a
            result; a dict of these by name for several names. The expression features are those of
            ``encode_expression``, without identity if ``identity_removal`` is set; classes are
            predicted from the features before that.

        Raises:
            UnsupportedError: if this model lacks one of them.
            ValueError: if a name is not such a key.
        """
        requested = [names] if isinstance(names, str) else list(names)
        for name in requested:
            if name not in STAGES:
                raise ValueError(f"unknown stage {name!r}; expected one of {', '.join(STAGES)}")
            if name not in self.provides or name in self.absent:
                self.reject(name)

        def stage(crops: Tensor) -> Any:
            results, features = {}, None
            for name in requested:
                if name not in ("encode_expression", "predict_expression"):
                    results[name] = getattr(self, STAGES[name])(crops)
                    continue
                features = self.embed_expression(crops) if features is None else features
                last = "without_identity" if name == "encode_expression" else STAGES[name]
                results[name] = getattr(self, last)(features)
            return results[names] if isinstance(names, str) else results

        return stage

    def reduce_to(self, names: Sequence[str]) -> None:
        """Free the memory that some stages do not need, before many images are encoded.

        The model can only run these stages afterwards. It cannot be saved, moved or trained.
        A family without ``needs`` stays as it is.

        Args:
            names: names of ``stage``; none frees all networks.
        """
        if not self.needs:
            return
        needed = {network for name in names for network in self.needs.get(name, self.networks)}
        for name in self.networks:
            if name not in needed:
                setattr(self, name, None)
        if names and self.runtime == "torch":
            for module in self.modules():
                if isinstance(module, ResNet):
                    module.frees_weights = True
            # Fuse the networks now, before images use the memory.
            self.run(self._weight().new_zeros(1, *self.input_shape), names)
        return_unused()

    def run(self, crops: Tensor, names: str | Sequence[str], batch_size: int = 64) -> Any:
        """Run stages on prepared crops, in eval mode and batches, without gradients.

        Args:
            crops: normalized, (F, 3, S, S).
            names: one or several names of ``stage``, such as ``"encode_expression"``.
            batch_size: crops per forward pass.

        Returns:
            float32 features or logits (F, D), or crops (F, 3, S, S); a dict for several names.

        Raises:
            UnsupportedError: if this model lacks one of them.
            ValueError: if a name is not such a key, or ``batch_size`` is below 1.
        """
        return self.in_batches(self.stage(names), crops, batch_size)

    def encode_faces(
        self,
        images: Sequence[Tensor],
        faces: Faces,
        names: str | Sequence[str] | Stage,
        batch_size: int = 64,
        clock: Clock | None = None,
    ) -> Any:
        """Run stages on detected faces; rows of NaN stay rows of NaN.

        Args:
            images: uint8 RGB, each (H, W, 3), on the model's device.
            faces: faces of these images.
            names: keys of ``STAGES``, one or several, or a function of prepared crops.
            batch_size: faces per forward pass.
            clock: measures the time of alignment and encoding.

        Returns:
            As ``run``, one row per face.
        """
        timed = clock.stage if clock else nullcontext
        stage = names if callable(names) else self.stage(names)
        known = torch.isfinite(faces.scores)
        complete = bool(known.all())
        parts = []
        found = faces if complete else faces[known]
        for crops in cut_batches(images, found, self.preprocessing, batch_size, clock):
            with timed("encode"):
                parts.append(self.in_batches(stage, crops, batch_size))
        result = concatenate(parts)
        return result if complete else fill_rows(result, known)

    def in_batches(self, function: Stage, rows: Any, batch_size: int) -> Any:
        """Apply a function to rows in batches, in eval mode and without gradients.

        Args:
            function: takes some rows in the precision and on the device of the weights.
            rows: tensor or result with one row per face, F rows.
            batch_size: rows per call.

        Returns:
            float32 result of the function for all rows.

        Raises:
            ValueError: if ``batch_size`` is below 1, or the weights are on the meta device.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        weight, count = self._weight(), len(tensors_in(rows)[0])
        if not count:  # the shape of the result is needed even without rows
            row = map_tensors(lambda tensor: tensor.new_zeros(1, *tensor.shape[1:]), rows)
            return map_tensors(lambda tensor: tensor[:0], self.in_batches(function, row, 1))
        parts = []
        with torch.inference_mode(), evaluating(self):
            for begin in range(0, count, batch_size):
                part = map_tensors(lambda t: t[begin : begin + batch_size].to(weight), rows)  # noqa: B023
                parts.append(map_tensors(Tensor.float, function(part)))
        # Tensors that are made outside of inference mode can be learned from.
        return concatenate(parts) if len(parts) > 1 else map_tensors(Tensor.clone, parts[0])

    def without_identity(self, expression: Tensor) -> Tensor:
        """Apply ``identity_removal``, if it is set, to expression features (B, D).

        Raises:
            ValueError: if the removal is for features of another width.
        """
        removal: Any = self._modules.get(NAME)
        if removal is None:
            return expression
        if removal.mean.device != expression.device:  # it may be fitted on another device
            removal.to(expression.device)
        return removal(expression)

    def as_timm(self, stage: str) -> nn.Module:
        """Return a stage as one timm model with a linear last layer and the same outputs.

        Args:
            stage: one of ``timm_stages``.

        Raises:
            UnsupportedError: if this family has no such stage.
        """
        raise UnsupportedError(f"{self.model_name} has no stage {stage!r} that is a timm model")

    def _encode(
        self, images: Images, stage: Stage, options: ImageOptions, *, measured: bool = False
    ) -> tuple[Any, Faces | None]:
        """Apply a function of prepared crops to the faces of images.

        Args:
            images: one image or several.
            stage: the function.
            options: of the pipeline of images.
            measured: whether to return the faces, with their sharpness.

        Returns:
            float32 result with one row per face, and the faces; None for aligned crops, or if they
            are not ``measured``.
        """
        sources, device = as_list(images), self._weight().device
        if not sources:
            raise ValueError("images is empty; pass one image or more")
        if self.jpeg != "pillow":
            check_decoder(self.jpeg, device)
        results: list[Any] = []
        faces: list[Faces] = []
        if options.aligned:
            size, progress = options.batch_size, options.progress
            for batch in read_batches(
                sources, device, batch_size=size, jpeg=self.jpeg, progress=progress
            ):
                numbers = [batch.first + i if len(sources) > 1 else None for i in batch.index]
                names = [describe(s, i) for s, i in zip(batch.sources, numbers, strict=True)]
                crops = prepare_aligned(batch.images, self.preprocessing, names)
                results.append(self.in_batches(stage, crops, size))
            return concatenate(results), None
        for batch in face_batches(sources, device, options, jpeg=self.jpeg, runtime=self.runtime):
            assert batch.faces is not None
            results.append(self.encode_faces(batch.images, batch.faces, stage, options.batch_size))
            if measured:
                faces.append(faces_of(batch))
        return concatenate(results), join_faces(faces, sources) if measured else None


def coordinates(features: Tensor, origin: Tensor, basis: Tensor) -> Tensor:
    """Compute the coordinates (F, R) of features (F, D) by an origin (D,) and a basis (D, R)."""
    return (features - origin.to(features)) @ basis.to(features)


def as_image_model(model: object) -> FaceModel:
    """Return the model; raise an ``UnsupportedError`` if it does not take images."""
    if isinstance(model, FaceModel):
        return model
    kind = "takes meshes, not images" if hasattr(model, "capabilities") else "is not a model"
    name = type(model).__name__
    raise UnsupportedError(f"{name} {kind}; pass a model of images, such as ipd-fer")


def check_shape(images: Tensor, shape: tuple[int, int, int], name: str = "images") -> None:
    """Reject anything but a batch of prepared crops, (B, *shape)."""
    if isinstance(images, Tensor) and images.ndim == 4 and tuple(images.shape[1:]) == shape:
        if images.is_floating_point():
            return
        kind = f"{images.dtype}; expected normalized floating point"
    else:
        kind = str(tuple(images.shape)) if isinstance(images, Tensor) else type(images).__name__
    raise ValueError(
        f"{name} must be (B, {', '.join(map(str, shape))}), got {kind}; for image files, "
        "arrays and whole images call encode_expression() and the like, which find and align faces"
    )
