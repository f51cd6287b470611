"""latent-simclr: W+ codes of faces, and SimCLR features of the codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor
from typing_extensions import Unpack

from facezoo.errors import UnknownNameError
from facezoo.hub.card import Preprocessing
from facezoo.models.base import check_shape
from facezoo.models.capabilities import constructor_arguments
from facezoo.models.decoding import DecodingModel, check_face_counts, check_pairs, one_number
from facezoo.models.latent_simclr.augment import appearance_layers
from facezoo.models.latent_simclr.directions import check_direction
from facezoo.models.latent_simclr.expression import ExpressionAxes
from facezoo.models.latent_simclr.inverter import Inversion, StyleGANInverter, encoder_for
from facezoo.models.latent_simclr.simclr import CodeEncoder
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator, mix_codes
from facezoo.preprocess.images import Images
from facezoo.preprocess.pipeline import ONE_FACE, ImageKeywords, ImageOptions

TRANSFER = 2.5
"""Default strength of ``transfer_expression``."""
COLOR, LOCAL = ("skin_tone",), ("smile",)
"""Directions that change colors only, and a part of the face only; crops keep their detail."""
LACKS_AXES = "it has no expression axes (expression_axes=0); mix_styles works without"


class LatentSimCLR(DecodingModel):
    """StyleGAN2 generator, the Feature-Style encoder that inverts it, and SimCLR on the codes.

    Source: Hoock, Brügge & Handels, "Disentanglement Learning of Facial Expression and Appearance",
    Sec. II. The identity encoder is ours: the same network with views that keep the appearance.

    Args:
        size: side of the crops and of the generator's images, pixels.
        style_dim: size D of a style.
        mapping_layers: depth of the generator's mapping network.
        channel_multiplier: a layer of the generator has this times 16384 / side channels.
        max_channels: largest number of channels of a layer of the generator.
        depths: residual blocks per stage of the inversion's trunk.
        width: channels of the trunk's first stage.
        trunk_size: side to which crops are resized for the trunk; None for ``encoder_for``'s.
        code_width: channels of the code encoders.
        num_features: size of h.
        directions: names of the directions that the weights include.
        feature_directions: the weights include a change of f for each direction (ours); without,
            edits change f as the generator's own feature changes.
        expression_axes: number of coordinates of ``ExpressionAxes``, by which
            ``transfer_expression`` moves a face (ours); 0 for none.
    """

    model_name: ClassVar[str | None] = "latent-simclr"
    provides = (
        *("encode", "encode_expression", "encode_identity", "encode_factors", "reconstruct"),
        *("transfer_expression", "invert", "synthesize", "sample", "edit", "mix_styles"),
    )
    networks = (
        *("inverter.encoder.trunk.layer1", "inverter.encoder.trunk.layer2"),
        *("inverter.encoder.trunk.layer3", "inverter.encoder.trunk.layer4"),
        *("expression_encoder", "identity_encoder"),
    )
    unexported = ("reconstruct",)
    keeps_detail = True
    directions: Tensor
    feature_directions: Tensor | None

    def __init__(
        self,
        size: int = 64,
        style_dim: int = 512,
        mapping_layers: int = 8,
        channel_multiplier: float = 2,
        max_channels: int = 512,
        depths: Sequence[int] = (3, 4, 14, 3),
        width: int = 64,
        trunk_size: int | None = None,
        code_width: int = 256,
        num_features: int = 512,
        directions: Sequence[str] = (),
        feature_directions: bool = False,
        expression_axes: int = 0,
    ) -> None:
        super().__init__()
        depths, directions = list(depths), list(directions)
        self.architecture = constructor_arguments(locals())
        self.preprocessing = Preprocessing(size=size)
        self.num_features = num_features
        generator = StyleGANGenerator(
            size, style_dim, mapping_layers, channel_multiplier, max_channels
        )
        encoder = encoder_for(generator, depths=depths, width=width, trunk_size=trunk_size)
        self.inverter = StyleGANInverter(generator, encoder)
        codes = (generator.num_codes, style_dim)
        self.expression_encoder = CodeEncoder(*codes, code_width, num_features)
        self.identity_encoder = CodeEncoder(*codes, code_width, num_features)
        self.register_buffer("directions", torch.zeros(len(directions), *codes))
        shape = generator.feature_shape(self.inverter.layer)
        moved = torch.zeros(len(directions), *shape) if feature_directions else None
        self.register_buffer("feature_directions", moved)
        self.expression_axes = (
            ExpressionAxes(expression_axes, *codes, shape) if expression_axes else None
        )
        if not expression_axes:
            self.absent = {"transfer_expression": LACKS_AXES}

    # --- stages on tensors; gradients are kept ----------------------------------------------------

    def embed_codes(self, images: Tensor) -> Tensor:
        """Compute w in W+, (B, L, D), of prepared crops, (B, 3, S, S)."""
        check_shape(images, self.input_shape)
        return self.inverter.encoder.encode_codes(images)

    def embed_expression(self, images: Tensor) -> Tensor:
        """Compute h of prepared crops (Sec. II.III), (B, num_features)."""
        return self.expression_encoder(self.embed_codes(images))

    def embed_identity(self, images: Tensor) -> Tensor:
        """Compute the identity features of prepared crops (ours), (B, num_features)."""
        return self.identity_encoder(self.embed_codes(images))

    def embed_factors(self, images: Tensor) -> Inversion:
        """Compute w and f of prepared crops (B, 3, S, S)."""
        check_shape(images, self.input_shape)
        return self.inverter.encode(images)

    def reconstruct_crops(self, images: Tensor) -> Tensor:
        """Reconstruct crops from w and f, normalized, (B, 3, S, S)."""
        return self._generate(self.embed_factors(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return ``embed_expression``, under timm's name."""
        return self.embed_expression(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return ``embed_expression``."""
        return self.embed_expression(images)

    # --- images or codes in -----------------------------------------------------------------------

    def encode_expression(
        self,
        images: Images | None = None,
        *,
        w_plus: Tensor | None = None,
        compact: bool = False,  # noqa: ARG002 (the features fill all their dimensions)
        **options: Unpack[ImageKeywords],
    ) -> Tensor:
        """Compute the expression features h of the faces in images, or of codes.

        Args:
            images: one image or several.
            w_plus: codes in place of images, (F, L, D).
            compact: without effect, because the features fill all their dimensions.
            **options: choice and detection of the faces, as in ``FaceModel.encode_expression``.

        Returns:
            float32 features on the model's device, (F, num_features).

        Raises:
            ValueError: unless exactly one of ``images`` and ``w_plus`` is given.
        """
        return self._features(images, w_plus, "encode_expression", ImageOptions(**options))

    def encode_identity(
        self,
        images: Images | None = None,
        *,
        w_plus: Tensor | None = None,
        **options: Unpack[ImageKeywords],
    ) -> Tensor:
        """Compute the identity features of the faces in images, or of codes.

        Args:
            images: one image or several.
            w_plus: codes in place of images, (F, L, D).
            **options: choice and detection of the faces, as in ``FaceModel.encode_expression``.

        Returns:
            float32 features on the model's device, (F, num_features).

        Raises:
            ValueError: unless exactly one of ``images`` and ``w_plus`` is given.
        """
        return self._features(images, w_plus, "encode_identity", ImageOptions(**options))

    def encode_factors(self, images: Images, **options: Unpack[ImageKeywords]) -> Inversion:
        """Compute the codes of W+ and the feature map f of the faces in images.

        Args:
            images: one image or several.
            **options: choice and detection of the faces, as in ``FaceModel.encode_expression``.

        Returns:
            Codes ``w_plus``, (F, L, D), and ``feature``, (F, C, H, H).
        """
        return self._encode(images, self.embed_factors, ImageOptions(**options))[0]

    def invert(
        self, images: Images, refine_steps: int = 0, **options: Unpack[ImageKeywords]
    ) -> Inversion:
        """Compute codes and feature as ``encode_factors``, and refine them by optimization.

        The result is the best step, so the squared error of the pixels never gets larger.

        Args:
            images: one image or several.
            refine_steps: steps of Adam on the codes and the feature; 0 for the encoder's output.
            **options: choice and detection of the faces, as in ``FaceModel.encode_expression``.

        Returns:
            Codes ``w_plus``, (F, L, D), and ``feature``, (F, C, H, H).

        Raises:
            ValueError: if ``refine_steps`` is negative.
        """

        def refine(crops: Tensor) -> Inversion:
            return self.inverter.invert(crops, refine_steps)

        return self._encode(images, refine, ImageOptions(**options))[0]

    def synthesize(self, inversion: Inversion, batch_size: int = 64) -> Tensor:
        """Generate RGB images in [0, 1], (F, 3, S, S), from codes and features."""
        return self.to_unit(self.decode_batched(inversion, self._generate, batch_size))

    @torch.no_grad()
    def sample(self, count: int, *, psi: float = 0.7, generator: Generator | None = None) -> Tensor:
        """Generate faces of identities that do not exist.

        Args:
            count: number of faces.
            psi: truncation: 1 for the full variety, 0 for the mean face.
            generator: random generator; None for torch's global one.

        Returns:
            RGB in [0, 1], (count, 3, S, S).
        """
        gan = self.inverter.generator
        device = generator.device if generator is not None else "cpu"
        shape = (count, gan.style_dim)
        z = torch.randn(shape, generator=generator, dtype=torch.float32, device=device)
        codes = gan.map(z.to(self.directions), psi, self.inverter.encoder.mean_code)
        return self.to_unit(gan(codes, gan.stored_noise()).float())

    def edit(
        self,
        images: Images | Inversion,
        direction: str | Tensor,
        strength: float,
        *,
        detail: bool | None = None,
        **options: Unpack[ImageKeywords],
    ) -> Tensor:
        """Change one attribute of the faces in images.

        Args:
            images: one image or several, or their codes, as ``invert`` returns them.
            direction: one of ``architecture["directions"]``, or your own, (1, D) or (L, D).
            strength: size of the change; 1 is a standard deviation of real faces for the model's
                own directions.
            detail: apply what the generator changes to the crops, which keeps their detail, see
                ``facezoo.models.detail``; False returns the generated faces. None for True if
                ``images`` are not codes and the direction is ``"smile"`` or ``"skin_tone"``.
            **options: choice and detection of the faces, as in ``FaceModel.encode_expression``.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).

        Raises:
            UnknownNameError: if the model has no direction of that name.
            ValueError: if a direction of your own has another shape, ``strength`` is not one
                number, or codes are edited with ``detail=True``.
        """
        change, amount = self.direction(direction), one_number("strength", strength)
        checked, feature = ImageOptions(**options), None
        if isinstance(direction, str) and self.feature_directions is not None:
            feature = self.feature_directions[self.architecture["directions"].index(direction)]

        def moved(face: Inversion) -> Tensor:
            return self._generate(self.inverter.move(face, change, amount, feature))

        if isinstance(images, Inversion):
            check_codes(detail)
            return self.to_unit(self.decode_batched(images, moved, checked.batch_size))
        name = direction if isinstance(direction, str) else ""
        keeps = name in COLOR + LOCAL if detail is None else detail

        def edit_crops(crops: Tensor) -> Tensor:
            face = self.embed_factors(crops)
            after = moved(face)
            if not keeps:
                return self.to_unit(after)
            return self.edited(crops, self._generate(face), after, everywhere=name in COLOR)

        return self._encode(images, edit_crops, checked)[0]

    def mix_styles(
        self, images: Images, appearance: Images, **options: Unpack[ImageKeywords]
    ) -> Tensor:
        """Mix styles: faces with the appearance of other faces, Sec. II.III.

        Args:
            images: images of pose, shape and expression, F faces.
            appearance: images of the other styles, F faces.
            **options: choice and detection of the faces, as in ``FaceModel.encode_expression``; by
                default the largest face of each image.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).

        Raises:
            ValueError: if the numbers of faces differ, or some of several pairs lack a face and
                ``on_missing`` is "skip".
        """
        checked = ImageOptions(**(ONE_FACE | options))
        stages = (self.embed_factors, self.embed_factors)
        coarse, fine = self._encode_pairs(images, appearance, stages, checked)
        if len(coarse) != len(fine):
            raise ValueError(
                f"mix_styles expects as many faces on both sides, got {len(coarse)} and "
                f"{len(fine)}; pass one image of appearance for each face"
            )
        return self._mix(coarse, fine, checked.batch_size)

    def transfer_expression(
        self,
        source: Images,
        target: Images | Inversion,
        *,
        strength: float = TRANSFER,
        detail: bool | None = None,
        **options: Unpack[ImageKeywords],
    ) -> Tensor:
        """Give the faces of ``target`` the expression of ``source``; ours.

        Codes and feature of the target move along ``ExpressionAxes``, by the difference of both
        faces' coordinates. The style mixing of the paper is ``mix_styles``.

        Args:
            source: images of the expression: one, or as many faces as ``target`` has.
            target: images of the appearance, or their codes, as ``invert`` returns them.
            strength: factor on the difference. The codes show less expression than the faces do;
                at the default, about as many results as real faces are classified as smiling, and
                fewer as neutral (``benchmarks/latent_simclr.py``, LFW val).
            detail: edit the crop of the target, which keeps its detail; False returns the generated
                face; None for True if ``target`` are not codes.
            **options: choice and detection of the faces, as in ``FaceModel.encode_expression``; by
                default the largest face of each image.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S); none without a target face.

        Raises:
            ValueError: if the numbers of faces do not match, if some of several pairs lack a face
                and ``on_missing`` is "skip", if ``strength`` is not one number, or if codes are
                edited with ``detail=True``.
            UnsupportedError: if the checkpoint has no axes.
        """
        axes, amount = self.expression_axes, one_number("strength", strength)
        if axes is None:
            self.reject("transfer_expression")
        checked = ImageOptions(**(ONE_FACE | options))

        def of_target(crops: Tensor) -> dict[str, Any]:
            return {"crops": crops, "face": self.embed_factors(crops)}

        if isinstance(target, Inversion):
            check_codes(detail)
            codes, counts = self._encode_counted(source, self.embed_codes, checked)
            check_face_counts(counts, [1] * len(target))
            targets, keeps = {"face": target}, False
        else:
            stages = (self.embed_codes, of_target)
            codes, targets = self._encode_pairs(source, target, stages, checked)
            keeps = self._edits_crops(detail)
        check_pairs(len(codes), len(targets["face"]))

        def transfer(rows: dict[str, Any]) -> Tensor:
            face = rows["face"]
            change = axes.change(amount * axes.coordinates(rows["source"] - face.w_plus))
            moved = Inversion(face.w_plus + change.w_plus, face.feature + change.feature)
            after = self._generate(moved)
            if not keeps:
                return self.to_unit(after)
            return self.edited(rows["crops"], self._generate(face), after)

        sources = codes.expand(len(targets["face"]), *codes.shape[1:])
        return self.decode_batched({"source": sources, **targets}, transfer, checked.batch_size)

    def direction(self, name: str | Tensor) -> Tensor:
        """Return a direction of the model by name, or check a custom one, (1 or L, D).

        Raises:
            UnknownNameError: if the model has no direction of that name.
            ValueError: if a custom direction has another shape.
        """
        if not isinstance(name, str):
            return check_direction(
                torch.as_tensor(name, device=self.device), *self.directions.shape[1:]
            )
        names = self.architecture["directions"]
        if name not in names:
            available = ", ".join(names) or "none"
            raise UnknownNameError(
                f"no direction named {name!r} in this model; available: {available}; pass a "
                "tensor for a direction of your own, see fit_direction"
            )
        return self.directions[names.index(name)]

    # --- private ----------------------------------------------------------------------------------

    def _features(
        self, images: Images | None, w_plus: Tensor | None, name: str, options: ImageOptions
    ) -> Tensor:
        if (images is None) == (w_plus is None):
            both = "neither" if images is None else "both"
            raise ValueError(f"{name} expects images or w_plus=codes, got {both}")
        features: Tensor
        if w_plus is None:
            assert images is not None
            features = self._encode(images, self.stage(name), options)[0]
            return features
        encoder = self.identity_encoder if name == "encode_identity" else self.expression_encoder
        codes = torch.as_tensor(w_plus, device=self.device)
        features = self.decode_batched(codes, encoder, options.batch_size)
        return features if name == "encode_identity" else self.without_identity(features)

    def _mix(self, coarse: Inversion, fine: Inversion, batch_size: int) -> Tensor:
        """Generate faces with the coarse styles of ``coarse`` and the fine styles of ``fine``."""
        start = appearance_layers(self.inverter.generator.num_codes).start

        def mixed(pair: dict[str, Inversion]) -> Tensor:
            codes = pair["coarse"].w_plus
            change = mix_codes(codes, pair["fine"].w_plus, start) - codes
            return self._generate(self.inverter.move_by(pair["coarse"], change))

        pairs = {"coarse": coarse, "fine": fine}
        return self.to_unit(self.decode_batched(pairs, mixed, batch_size))

    def _generate(self, inversion: Inversion) -> Tensor:
        return self.inverter.synthesize(inversion.w_plus, inversion.feature)


def check_codes(detail: bool | None) -> None:
    """Check that codes, which have no crop, are not to keep its detail."""
    if detail:
        raise ValueError("detail=True needs the images, got codes; pass images, or detail=False")
