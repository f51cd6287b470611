"""latent-simclr: faces as codes of StyleGAN2, and what SimCLR makes of the codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor

from facezoo.errors import UnknownNameError
from facezoo.hub.card import Preprocessing
from facezoo.models.base import Images, Options, check_shape
from facezoo.models.decoding import DecodingModel, check_pairs, check_places
from facezoo.models.latent_simclr.augment import appearance_layers
from facezoo.models.latent_simclr.directions import check_direction
from facezoo.models.latent_simclr.inverter import Inversion, StyleGANInverter, encoder_for
from facezoo.models.latent_simclr.simclr import CodeEncoder
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator, mix_codes
from facezoo.preprocess.pipeline import OnMissing, Which

CROPS = "crops"
"""Asked of ``run`` for the prepared crops themselves."""


class LatentSimCLR(DecodingModel):
    """A StyleGAN2 generator, the Feature-Style encoder that inverts it, and SimCLR on the codes.

    Source: Hoock, Brügge & Handels, "Disentanglement Learning of Facial Expression and Appearance",
    Sec. II. The identity encoder is ours: the same, with views that keep the appearance.

    Args:
        size: side of the crops and of the generator's images, pixels.
        style_dim: D of a code.
        mapping_layers: depth of the generator's mapping network.
        channel_multiplier: see ``StyleGANGenerator``.
        max_channels: see ``StyleGANGenerator``.
        depths: residual blocks of every stage of the inversion's trunk.
        width: channels of the trunk's first stage.
        trunk_size: side to which crops are resized for the trunk; None for ``encoder_for``'s.
        code_width: channels of the code encoders.
        num_features: width of h.
        directions: names of the directions that are part of the weights.
    """

    model_name: ClassVar[str | None] = "latent-simclr"
    networks = (
        *("inverter.encoder.trunk.layer1", "inverter.encoder.trunk.layer2"),
        *("inverter.encoder.trunk.layer3", "inverter.encoder.trunk.layer4"),
        *("expression_encoder", "identity_encoder"),
    )
    unexported = ("reconstruct",)
    directions: Tensor

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
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "size": size,
            "style_dim": style_dim,
            "mapping_layers": mapping_layers,
            "channel_multiplier": channel_multiplier,
            "max_channels": max_channels,
            "depths": list(depths),
            "width": width,
            "trunk_size": trunk_size,
            "code_width": code_width,
            "num_features": num_features,
            "directions": list(directions),
        }
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

    # --- stages: tensors in, tensors out, keeping gradients ---------------------------------------

    def embed_codes(self, images: Tensor) -> Tensor:
        """w in W+ of prepared crops (B, 3, S, S), (B, L, D)."""
        check_shape(images, self.input_shape)
        codes: Tensor = self.inverter.encoder.encode_codes(images)
        return codes

    def embed_expression(self, images: Tensor) -> Tensor:
        """h of the codes of prepared crops (Sec. II.III), (B, num_features)."""
        features: Tensor = self.expression_encoder(self.embed_codes(images))
        return features

    def embed_identity(self, images: Tensor) -> Tensor:
        """h by the encoder whose views keep the appearance (ours), (B, num_features)."""
        features: Tensor = self.identity_encoder(self.embed_codes(images))
        return features

    def embed_factors(self, images: Tensor) -> Tensor:
        """w and f of prepared crops in one row per face, see ``Inversion.packed``."""
        check_shape(images, self.input_shape)
        return self.inverter.encode(images).packed()

    def reconstruct_crops(self, images: Tensor) -> Tensor:
        """Crops drawn again from w and f, normalised, (B, 3, S, S)."""
        return self._drawn(self.embed_factors(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """timm's word for ``embed_expression``."""
        return self.embed_expression(images)

    def forward(self, images: Tensor) -> Tensor:
        """``embed_expression``."""
        return self.embed_expression(images)

    # --- photographs or codes in ------------------------------------------------------------------

    def encode_expression(
        self,
        images: Images | None = None,
        *,
        w_plus: Tensor | None = None,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Expression features h of photographs, or of codes.

        Args:
            images: one photograph or several; see ``FaceModel.encode_expression``.
            w_plus: codes in place of photographs, (F, L, D).
            faces: see there, as the others.
            on_missing: see there.
            aligned: see there.
            batch_size: photographs, faces or codes that are worked on at once.
            progress: whether to show a progress bar.

        Returns:
            (F, num_features).

        Raises:
            ValueError: if not exactly one of photographs and codes is given.
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self._features(images, w_plus, "encode_expression", options)

    def encode_identity(
        self,
        images: Images | None = None,
        *,
        w_plus: Tensor | None = None,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Identity features of photographs, or of codes; see ``encode_expression``."""
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self._features(images, w_plus, "encode_identity", options)

    def encode_factors(
        self,
        images: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Inversion:
        """Codes of W+ and feature of the faces in photographs; see ``encode_expression``."""
        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self._unpacked(self._rows(images, options).clone())

    def invert(
        self,
        images: Images,
        refine_steps: int = 0,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Inversion:
        """``encode_factors``, refined by optimisation; see ``StyleGANInverter.invert``.

        Args:
            images: one photograph or several; see ``FaceModel.encode_expression``.
            refine_steps: steps of Adam on the codes and the feature; 0 for the encoder's answer.
            faces: see there, as the others.
            on_missing: see there.
            aligned: see there.
            batch_size: photographs, and then faces, that are worked on at once.
            progress: whether to show a progress bar.

        Returns:
            Codes and feature.

        Raises:
            ValueError: if ``refine_steps`` is negative.
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)
        crops = self._encode(images, [CROPS], options)[0][CROPS]

        def refined(part: Tensor) -> Tensor:
            return self.inverter.invert(part, refine_steps).packed()

        return self._unpacked(self.made(crops, batch_size, refined).clone())

    @torch.no_grad()
    def synthesize(self, inversion: Inversion, batch_size: int = 64) -> Tensor:
        """Pictures of codes and features: RGB in [0, 1], (F, 3, S, S)."""
        return self.to_unit(self.made(inversion.packed(), batch_size, self._drawn))

    @torch.no_grad()
    def sample(self, count: int, *, psi: float = 0.7, generator: Generator | None = None) -> Tensor:
        """Faces of people who do not exist.

        Args:
            count: how many.
            psi: truncation: 1 for the whole variety, 0 for the mean face.
            generator: of the codes; None for torch's own.

        Returns:
            RGB in [0, 1], (count, 3, S, S).
        """
        maker = self.inverter.generator
        device = generator.device if generator is not None else None
        z = torch.randn(count, maker.style_dim, generator=generator, device=device)
        codes = maker.map(z.to(self.directions), psi, self.inverter.encoder.mean_code)
        return self.to_unit(maker(codes, maker.stored_noise()).float())

    @torch.no_grad()
    def edit(
        self,
        images: Images,
        direction: str | Tensor,
        strength: float,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """The faces of photographs with one property changed; see ``reconstruct``.

        Args:
            images: one photograph or several; see ``FaceModel.encode_expression``.
            direction: one of ``architecture["directions"]``, or your own, (1, D) or (L, D).
            strength: how far; 1 is a standard deviation of real faces for the model's own.
            faces: see there, as the others.
            on_missing: see there.
            aligned: see there.
            batch_size: photographs, and then faces, that are worked on at once.
            progress: whether to show a progress bar.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).

        Raises:
            UnknownNameError: if the model has no direction of that name.
            ValueError: if a direction of your own has another shape, or ``strength`` is not one
                number.
        """
        change, amount = self.direction(direction), _one_number(strength)

        def moved(rows: Tensor) -> Tensor:
            inversion = self.inverter.move(self._unpacked(rows), change.to(rows), amount)
            return self._drawn(inversion.packed())

        options = Options(faces, on_missing, aligned, batch_size, progress)
        return self.to_unit(self.made(self._rows(images, options), batch_size, moved))

    @torch.no_grad()
    def mix_styles(
        self,
        images: Images,
        appearance: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """The faces of photographs with the appearance styles of others: style mixing, Sec. II.III.

        Args:
            images: what keeps pose, shape and expression, F faces.
            appearance: what the other styles come from, F faces.
            faces: see ``FaceModel.encode_expression``, as the others.
            on_missing: see there.
            aligned: see there.
            batch_size: photographs, and then faces, that are worked on at once.
            progress: whether to show a progress bar.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).

        Raises:
            ValueError: if the numbers of faces differ, or some of several pairs lack a face and
                ``on_missing`` is "skip".
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)
        rows = self._rows_of_pairs(images, appearance, options)
        if len(rows[0]) != len(rows[1]):
            raise ValueError(
                f"mix_styles wants as many faces on both sides, got {len(rows[0])} and "
                f"{len(rows[1])}; give one photograph of appearance for each"
            )
        return self._mixed(rows[0], rows[1], batch_size)

    @torch.no_grad()
    def transfer_expression(
        self,
        source: Images,
        target: Images,
        *,
        faces: Which = "largest",
        on_missing: OnMissing = "raise",
        aligned: bool = False,
        batch_size: int = 64,
        progress: bool = False,
    ) -> Tensor:
        """Style mixing as the paper has it: coarse styles for expression, fine for the person.

        With this generator the coarse styles hold much more than the expression; see the page of
        the model for how little of the target is left.

        Args:
            source: photographs whose expression is taken: one, or as many faces as ``target`` has.
            target: photographs whose appearance is taken.
            faces: see ``FaceModel.encode_expression``, as all that follow.
            on_missing: see there.
            aligned: see there.
            batch_size: photographs, and then faces, that are worked on at once.
            progress: whether to show a progress bar.

        Returns:
            RGB crops in [0, 1], (F, 3, S, S).

        Raises:
            ValueError: if the numbers of faces do not go together, such as no source face for
                some targets, or if some of several pairs lack a face and ``on_missing`` is "skip".
                Without a target face there is no row.
        """
        options = Options(faces, on_missing, aligned, batch_size, progress)
        given, kept = self._rows_of_pairs(source, target, options)
        check_pairs(len(given), len(kept))
        return self._mixed(given.expand(len(kept), -1), kept, batch_size)

    def direction(self, name: str | Tensor) -> Tensor:
        """A direction of the model by name, or one of the caller's own, checked, (1 or L, D).

        Raises:
            UnknownNameError: if the model has none of that name.
            ValueError: if it has another shape.
        """
        if not isinstance(name, str):
            return check_direction(torch.as_tensor(name), *self.directions.shape[1:])
        names = self.architecture["directions"]
        if name not in names:
            there = ", ".join(names) or "none"
            raise UnknownNameError(
                f"no direction named {name!r} in this model; there are: {there}; fit one of your "
                "own with fit_direction and give it as a tensor"
            )
        return self.directions[names.index(name)]

    # --- inside -----------------------------------------------------------------------------------

    def _stage(self, name: str) -> Callable[[Tensor], Tensor]:
        return _same if name == CROPS else super()._stage(name)

    def _features(
        self, images: Images | None, w_plus: Tensor | None, name: str, options: Options
    ) -> Tensor:
        if (images is None) == (w_plus is None):
            both = "neither" if images is None else "both"
            raise ValueError(f"{name} wants photographs or w_plus=codes, got {both}")
        if w_plus is None:
            assert images is not None
            return self._encode(images, [name], options)[0][name]
        codes, size = torch.as_tensor(w_plus, device=self.device), options.batch_size
        with torch.no_grad():
            if name == "encode_identity":
                return self.made(codes, size, self.identity_encoder)
            return self.without_identity(self.made(codes, size, self.expression_encoder))

    def _rows(self, images: Images, options: Options) -> Tensor:
        return self._encode(images, ["encode_factors"], options)[0]["encode_factors"]

    def _rows_of_pairs(
        self, source: Images, target: Images, options: Options
    ) -> tuple[Tensor, Tensor]:
        """``_rows`` of both sides, which must go together."""
        (given, of_source), (kept, of_target) = (
            self._encode(images, ["encode_factors"], options) for images in (source, target)
        )
        check_places(source, target, of_source, of_target)
        return given["encode_factors"], kept["encode_factors"]

    def _mixed(self, coarse: Tensor, fine: Tensor, batch_size: int) -> Tensor:
        """Pictures of the coarse styles of some faces and the fine ones of others."""
        width = coarse.shape[1]
        start = appearance_layers(self.inverter.generator.num_codes).start

        def mixed(pair: Tensor) -> Tensor:
            kept, other = (self._unpacked(side) for side in pair.split(width, 1))
            change = mix_codes(kept.w_plus, other.w_plus, start) - kept.w_plus
            return self._drawn(self.inverter.move_by(kept, change).packed())

        return self.to_unit(self.made(torch.cat([coarse, fine], 1), batch_size, mixed))

    def _unpacked(self, rows: Tensor) -> Inversion:
        generator = self.inverter.generator
        feature = generator.feature_shape(self.inverter.layer)
        codes = (generator.num_codes, generator.style_dim)
        w_plus, f = rows.split([math.prod(codes), math.prod(feature)], 1)
        return Inversion(w_plus.unflatten(1, codes), f.unflatten(1, feature))

    def _drawn(self, rows: Tensor) -> Tensor:
        inversion = self._unpacked(rows)
        return self.inverter.synthesize(inversion.w_plus, inversion.feature)


def _same(crops: Tensor) -> Tensor:
    return crops


def _one_number(strength: float) -> float:
    """One strength for all faces; several would fall on the faces of each batch anew.

    Raises:
        ValueError: if it is no number, or several.
    """
    try:
        return float(strength)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"strength must be one number for all faces, got {strength!r}; call edit() once for "
            "each strength"
        ) from None
