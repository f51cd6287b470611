"""IPD-FER: expression features that are trained to hold neither identity nor pose."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from facezoo.inference import evaluating
from facezoo.landmarks import FRONTAL_PITCH_DEG, alignment_deg
from facezoo.models.base import check_shape
from facezoo.models.capabilities import constructor_arguments
from facezoo.models.decoding import DecodingModel, check_pairs, one_number
from facezoo.models.freezing import class_names
from facezoo.models.identity_removal import IdentityRemoval, basis_of
from facezoo.models.ipd_fer.networks import Decoder, Encoder, PoseEncoder, RefinedDecoder
from facezoo.preprocess.images import Images
from facezoo.preprocess.pipeline import ONE_FACE, ImageKeywords, ImageOptions
from facezoo.results import EXPRESSIONS, PosePrediction

POSES = 5
"""K_P: |yaw| of 0 to 10, 10 to 20, 20 to 30, 30 to 40 and over 40 degrees (Table 1)."""
TRANSFER = 1.2
"""Default strength of ``transfer_expression``."""


class IPDFER(DecodingModel):
    """A face as the sum of identity, pose and expression features.

    Source: Jiang & Deng, "Disentangling Identity and Pose for Facial Expression Recognition",
    Sec. 3 and Fig. 2: the encoders E_id, E_pose and E_exp, the classifiers C_p and C_exp, the
    decoder G_dec. The discriminator is used in training only. The arguments' defaults are the
    paper's, but for ``decoder_width``, of which it says nothing.

    Args:
        backbone: timm model behind E_id and E_exp.
        feature_dim: D of all three features.
        num_classes: K, number of expressions.
        pose_backbone: timm model behind E_pose; None leaves the pose branch out, as the paper does
            for CK+, whose faces are frontal.
        decoder_size: side of what the decoder makes, pixels, enlarged to the crops' where smaller;
            None leaves the decoder out.
        decoder_width: channels of the decoder's first map.
        expression_rank: dimensions that f_exp may use (ours): fewer leave less room for identity;
            None for all D.
        pose_bottleneck: let f_pose hold yaw, pitch, roll and size only (ours), see
            ``PoseEncoder``; there is no C_p then.
        removed_directions: directions of f_id that show expression and are removed (ours).
        refined_decoder: use ``RefinedDecoder`` (ours) instead of the paper's decoder.
    """

    model_name: ClassVar[str | None] = "ipd-fer"
    keeps_detail = True
    provides = (
        *("encode", "encode_expression", "encode_identity", "encode_pose", "predict_expression"),
        *("predict_pose", "reconstruct", "neutralize", "frontalize", "transfer_expression"),
    )
    networks = ("identity_encoder", "expression_encoder", "pose_encoder", "decoder")
    needs: ClassVar = {
        "encode_expression": ("expression_encoder",),
        "predict_expression": ("expression_encoder",),
        "encode_identity": ("identity_encoder",),
        "encode_pose": ("pose_encoder",),
    }

    def __init__(
        self,
        backbone: str = "resnet18",
        feature_dim: int = 512,
        num_classes: int = 8,
        pose_backbone: str | None = "resnet18",
        decoder_size: int | None = 112,
        decoder_width: int = 256,
        expression_rank: int | None = None,
        pose_bottleneck: bool = False,
        removed_directions: int = 0,
        refined_decoder: bool = False,
    ) -> None:
        super().__init__()
        num_classes = index(num_classes)  # a plain int, not one of numpy's, which no card can hold
        self.architecture = constructor_arguments(locals())
        self.num_features = feature_dim
        self.identity_encoder = Encoder(backbone, feature_dim)
        self.expression_encoder = Encoder(backbone, feature_dim, rank=expression_rank)
        self.expression_classifier = nn.Linear(feature_dim, num_classes)
        self.pose_encoder: Encoder | PoseEncoder | None = None
        self.pose_classifier = self.decoder = self.expression_removal = None
        if removed_directions:
            self.expression_removal = IdentityRemoval(feature_dim, removed_directions)
        if pose_backbone is not None and pose_bottleneck:
            self.pose_encoder = PoseEncoder(pose_backbone, feature_dim)
        elif pose_backbone is not None:
            self.pose_encoder = Encoder(pose_backbone, feature_dim)
            self.pose_classifier = nn.Linear(feature_dim, POSES)
        if decoder_size is not None:
            kind = RefinedDecoder if refined_decoder else Decoder
            self.decoder = kind(feature_dim, decoder_size, decoder_width)
        absent = {}
        if pose_backbone is None:
            absent["encode_pose"] = "it was built without a pose branch (pose_backbone=None)"
        if not isinstance(self.pose_encoder, PoseEncoder):
            absent["predict_pose"] = "it has no pose bottleneck (pose_bottleneck=False)"
        if decoder_size is None:
            reason = "it was built without a decoder (decoder_size=None)"
            names = ("reconstruct", "neutralize", "frontalize", "transfer_expression")
            absent |= dict.fromkeys(names, reason)
        self.absent = absent
        named = num_classes == len(EXPRESSIONS)
        self.labels = EXPRESSIONS if named else _numbered(num_classes)

    def embed_expression(self, images: Tensor) -> Tensor:
        """Compute the expression features f_exp (Sec. 3.1); gradients are kept.

        Args:
            images: aligned, normalized crops, (B, 3, 112, 112).

        Returns:
            (B, D).

        Raises:
            ValueError: if ``images`` has another shape.
        """
        check_shape(images, self.input_shape)
        return self.expression_encoder(images)

    def expression_basis(self) -> tuple[Tensor, Tensor] | None:
        """Return the subspace of the R = ``expression_rank`` dimensions that f_exp keeps to.

        Returns:
            Origin, (D,), and orthonormal basis, (D, R); None if f_exp fills all D dimensions.
        """
        encoder = self.expression_encoder
        if not isinstance(encoder.projection, nn.Sequential):
            return None
        with torch.no_grad(), evaluating(self):
            _, outward = encoder.projection.parameters()
            # Rows of an affine map show its offset at zero and its directions at the unit vectors.
            points = torch.cat([outward.new_zeros(1, len(outward)), outward.T])
            return basis_of(self.without_identity(encoder.norm(points)))

    def embed_identity(self, images: Tensor) -> Tensor:
        """Compute the identity features f_id (Sec. 3.1), (B, D), to be compared by cosine.

        Gradients, ``images`` and errors are those of ``embed_expression``.
        """
        check_shape(images, self.input_shape)
        features: Tensor = self.identity_encoder(images)
        return features if self.expression_removal is None else self.expression_removal(features)

    def embed_pose(self, images: Tensor) -> Tensor:
        """Compute the pose features f_pose (Sec. 3.1), (B, D); see ``embed_expression``.

        Raises:
            UnsupportedError: if this model has no pose branch.
        """
        check_shape(images, self.input_shape)
        if self.pose_encoder is None:
            self.reject("encode_pose")
        return self.pose_encoder(images)

    def estimate_pose(self, images: Tensor) -> Tensor:
        """Estimate yaw, pitch, roll (radians) and log size of the heads in crops, (B, 4).

        The angles are those of ``facezoo.landmarks.crop_pose``; gradients are kept.

        Raises:
            UnsupportedError: if this model has no pose bottleneck.
        """
        check_shape(images, self.input_shape)
        if not isinstance(self.pose_encoder, PoseEncoder):
            self.reject("predict_pose")
        return self.pose_encoder.pose(images)

    def predict_pose(self, images: Images, **options: Unpack[ImageKeywords]) -> PosePrediction:
        """Estimate the head poses of the faces in images.

        Args:
            images: one image or several.
            **options: choice and detection of the faces, as in ``encode_expression``.

        Returns:
            Yaw, pitch and roll in degrees, (F,) each, and the faces.

        Raises:
            NoFaceError: if an image has no face and ``on_missing`` is ``"raise"``.
            UnsupportedError: if this model has no pose bottleneck.
        """
        if "predict_pose" in self.absent:
            self.reject("predict_pose")
        poses, faces = self._encode(
            images, self.estimate_pose, ImageOptions(**options), measured=True
        )
        angles = torch.rad2deg(poses[:, :3])
        angles[:, 1] -= FRONTAL_PITCH_DEG
        if faces is not None:  # alignment removes the rotation of the face in the image
            angles[:, 2] -= alignment_deg(faces.landmarks).to(angles)
        yaw, pitch, roll = angles.unbind(1)
        return PosePrediction(yaw, pitch, roll, faces)

    def classify_pose(self, features: Tensor) -> Tensor:
        """Compute the logits (B, 5) of C_p (Sec. 3.2) from features (B, D).

        Raises:
            UnsupportedError: if this model has no pose branch.
        """
        if self.pose_classifier is None:
            self.reject("encode_pose")
        return self.pose_classifier(features)

    def decode(self, features: Tensor) -> Tensor:
        """Decode a sum of features with G_dec; gradients are kept.

        Args:
            features: f_id, f_id + f_pose or f_id + f_pose + f_exp (Sec. 3.1), (B, D).

        Returns:
            Crops with the normalization of the input crops, (B, 3, 112, 112).

        Raises:
            UnsupportedError: if this model has no decoder.
        """
        if self.decoder is None:
            self.reject("reconstruct")
        return self.decoder(features)

    def frontalize_crops(self, images: Tensor) -> Tensor:
        """G_dec(f_id) (Fig. 9): the frontal, neutral face, normalized, (B, 3, 112, 112)."""
        return self.decode(self.embed_identity(images))

    def neutralize_crops(self, images: Tensor) -> Tensor:
        """G_dec(f_id + f_pose) (Sec. 3.1): the neutral face in its pose, (B, 3, 112, 112)."""
        return self.decode(self._posed_identity(images))

    def reconstruct_crops(self, images: Tensor) -> Tensor:
        """G_dec(f_id + f_pose + f_exp) (Sec. 3.1): the face as it is, (B, 3, 112, 112)."""
        return self.decode(self._posed_identity(images) + self.embed_expression(images))

    def _posed_identity(self, images: Tensor) -> Tensor:
        identity = self.embed_identity(images)
        return identity if self.pose_encoder is None else identity + self.embed_pose(images)

    def transfer_expression(
        self,
        source: Images,
        target: Images,
        *,
        strength: float = TRANSFER,
        detail: bool | None = None,
        **options: Unpack[ImageKeywords],
    ) -> Tensor:
        """Give the faces of ``target`` the expression of ``source``.

        The decoder gets identity and pose of the target, and the expression of the source.

        Args:
            source: images of the expression: one, or as many faces as ``target`` has.
            target: images of the identity and the pose.
            strength: factor on the difference of the two f_exp: 0 for the target's own expression;
                more exaggerates it. A decoded face shows less than what its features ask for; at
                1.2, it is as expressive as the source (``benchmarks/transfer.py``, LFW val).
            detail: edit the crop of the target, which keeps its detail; False returns the decoded
                face; None for the model's ``keeps_detail``.
            **options: choice and detection of the faces, as in ``encode_expression``; by default
                the largest face of each image.

        Returns:
            RGB crops in [0, 1] in the model's template, (F, 3, 112, 112); none without a target
            face.

        Raises:
            ValueError: if the numbers of faces do not match, if some of several pairs lack a face
                and ``on_missing`` is "skip", or if ``strength`` is not one number.
            UnsupportedError: if this model has no decoder.
        """
        if "transfer_expression" in self.absent:
            self.reject("transfer_expression")
        amount = one_number("strength", strength)

        def of_target(crops: Tensor) -> dict[str, Tensor]:
            features = self._posed_identity(crops), self.embed_expression(crops)
            return {"crops": crops, "identity": features[0], "expression": features[1]}

        def decode(rows: dict[str, Tensor]) -> Tensor:
            own = rows["identity"] + rows["expression"]
            after = self.decode(own + rows["change"])
            if not self._edits_crops(detail):
                return self.to_unit(after)
            return self.edited(rows["crops"], self.decode(own), after)

        checked = ImageOptions(**(ONE_FACE | options))
        stages = (self.embed_expression, of_target)
        expression, targets = self._encode_pairs(source, target, stages, checked)
        check_pairs(len(expression), len(targets["identity"]))
        change = amount * (expression - targets["expression"])
        rows = {**targets, "change": change}
        return self.decode_batched(rows, decode, checked.batch_size)

    def classify_features(self, features: Tensor) -> Tensor:
        """Compute the logits (B, K) of C_exp (Sec. 3.2) from features (B, D), with gradients."""
        return self.expression_classifier(features)

    def classify_expression(self, images: Tensor) -> Tensor:
        """Compute the logits (B, K) of C_exp(E_exp(x)) (Sec. 3.2); gradients are kept."""
        return self.classify_features(self.embed_expression(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Compute ``embed_expression``, by timm's name."""
        return self.embed_expression(images)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the expression logits of prepared crops, (B, K)."""
        return self.classify_expression(images)

    timm_stages = ("probabilities", "expression", "identity", "pose")

    def as_timm(self, stage: str) -> nn.Module:
        """Return a stage as one timm model with a linear last layer and the same results.

        Everything behind the backbone is linear in eval mode: the projection, the norm and, for
        classes, C_exp. Their product is the last layer.

        Args:
            stage: ``"probabilities"``, whose logits it gives, or a name of features.

        Raises:
            UnsupportedError: if there is no such stage, or this model has no pose branch and it is
                asked for.
        """
        if stage not in self.timm_stages:
            super().as_timm(stage)  # raises
        if stage == "pose":
            if self.pose_encoder is None:
                self.reject("encode_pose")
            return self.pose_encoder.as_timm(self.architecture["pose_backbone"])
        name = self.architecture["backbone"]
        if stage == "identity":
            return self.identity_encoder.as_timm(name, self.expression_removal)
        last = self.expression_classifier if stage == "probabilities" else None
        return self.expression_encoder.as_timm(name, last)

    def get_classifier(self) -> nn.Module:
        """Return C_exp, by timm's name."""
        return self.expression_classifier

    def reset_classifier(
        self, num_classes: int | None = None, labels: Sequence[str] | None = None
    ) -> None:
        """Replace C_exp by a new one with random weights.

        Args:
            num_classes: number of classes K; None for one class per label.
            labels: names of the classes, K; None for ``class_0`` and so on.

        Raises:
            ValueError: if the numbers do not agree, there is no class, or the labels are not
                different words.
        """
        count = None if num_classes is None else index(num_classes)
        names = None if labels is None else class_names(labels, count)
        num_classes = len(names or ()) if count is None else count
        if num_classes < 1:
            raise ValueError(
                f"reset_classifier got num_classes={num_classes}; give 1 or more, or call "
                "encode_expression() for features without a classifier"
            )
        old = self.expression_classifier.weight
        self.expression_classifier = nn.Linear(
            self.num_features, num_classes, device=old.device, dtype=old.dtype
        )
        self.architecture = {**self.architecture, "num_classes": num_classes}
        self.labels = names or _numbered(num_classes)


def _numbered(num_classes: int) -> tuple[str, ...]:
    return tuple(f"class_{number}" for number in range(num_classes))
