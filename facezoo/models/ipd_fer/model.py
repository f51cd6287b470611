"""IPD-FER: expression features that are trained to hold neither identity nor pose."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from facezoo.base import FaceModel, check_shape
from facezoo.models.ipd_fer.networks import Encoder
from facezoo.results import EXPRESSIONS


class IPDFER(FaceModel):
    """A face as the sum of identity and expression features.

    Source: Jiang & Deng, "Disentangling Identity and Pose for Facial Expression Recognition",
    Sec. 3: the identity encoder E_id, the expression encoder E_exp and the classifier C_exp.

    Args:
        backbone: timm model behind both encoders; the paper's is ResNet-18.
        feature_dim: D of f_id and f_exp; 512 in the paper.
        num_classes: K, expressions to tell apart.
    """

    model_name: ClassVar[str | None] = "ipd-fer"

    def __init__(
        self, backbone: str = "resnet18", feature_dim: int = 512, num_classes: int = 8
    ) -> None:
        super().__init__()
        self.architecture: dict[str, Any] = {
            "backbone": backbone,
            "feature_dim": feature_dim,
            "num_classes": num_classes,
        }
        self.num_features = feature_dim
        self.identity_encoder = Encoder(backbone, feature_dim)
        self.expression_encoder = Encoder(backbone, feature_dim)
        self.expression_classifier = nn.Linear(feature_dim, num_classes)
        self.labels = _default_labels(num_classes)

    def embed_expression(self, images: Tensor) -> Tensor:
        """Expression features f_exp (Sec. 3.1), keeping gradients.

        Args:
            images: aligned, normalised crops, (B, 3, 112, 112).

        Returns:
            (B, D).

        Raises:
            ValueError: if ``images`` has another shape.
        """
        check_shape(images, self.input_shape)
        features: Tensor = self.expression_encoder(images)
        return features

    def embed_identity(self, images: Tensor) -> Tensor:
        """Identity features f_id (Sec. 3.1), keeping gradients; compare them by cosine.

        Args:
            images: aligned, normalised crops, (B, 3, 112, 112).

        Returns:
            (B, D).

        Raises:
            ValueError: if ``images`` has another shape.
        """
        check_shape(images, self.input_shape)
        features: Tensor = self.identity_encoder(images)
        return features

    def classify_features(self, features: Tensor) -> Tensor:
        """Logits of C_exp (Sec. 3.2) from expression features (B, D), keeping gradients, (B, K)."""
        logits: Tensor = self.expression_classifier(features)
        return logits

    def classify_expression(self, images: Tensor) -> Tensor:
        """Logits of C_exp(E_exp(x)) (Sec. 3.2), keeping gradients, (B, K)."""
        return self.classify_features(self.embed_expression(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """timm's word for ``embed_expression``."""
        return self.embed_expression(images)

    def forward(self, images: Tensor) -> Tensor:
        """Expression logits of prepared crops, (B, K)."""
        return self.classify_expression(images)

    def reset_classifier(self, num_classes: int, labels: tuple[str, ...] | None = None) -> None:
        """Replace C_exp by a new one with random weights.

        Args:
            num_classes: K.
            labels: names of the classes, K; None for ``class_0`` and so on.

        Raises:
            ValueError: if the numbers do not agree, or there is no class.
        """
        if num_classes < 1:
            raise ValueError(
                f"reset_classifier got num_classes={num_classes}; give 1 or more, or call "
                "encode_expression() for features without a classifier"
            )
        if labels is not None and len(labels) != num_classes:
            raise ValueError(
                f"reset_classifier got num_classes={num_classes} and {len(labels)} labels; "
                "give one label per class"
            )
        old = self.expression_classifier.weight
        self.expression_classifier = nn.Linear(
            self.num_features, num_classes, device=old.device, dtype=old.dtype
        )
        self.architecture = {**self.architecture, "num_classes": num_classes}
        self.labels = labels or tuple(f"class_{index}" for index in range(num_classes))


def _default_labels(num_classes: int) -> tuple[str, ...]:
    if num_classes == len(EXPRESSIONS):
        return EXPRESSIONS
    return tuple(f"class_{index}" for index in range(num_classes))
