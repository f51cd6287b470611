"""Replaceable classifiers and frozen parts, for fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from facezoo.errors import UnsupportedError


def class_names(labels: Sequence[str], count: int | None = None) -> tuple[str, ...]:
    """Return the names of classes as plain text, from a list, an array or a column.

    Args:
        labels: one name per class.
        count: number of classes; None for any.

    Raises:
        ValueError: if they are one text, not all text, not all different, or not ``count``.
    """
    names = list(labels)
    words = {name for name in names if isinstance(name, str)}
    if isinstance(labels, str) or len(words) < len(names):
        raise ValueError(
            f"labels must be different words, one per class, got {labels!r}; for classes that are "
            "numbers pass [str(number) for number in labels]"
        )
    if count is not None and len(names) != count:
        raise ValueError(
            f"labels must be {count} words, one per class, got {len(names)}: {labels!r}; for "
            "another number of classes, call reset_classifier(labels=labels)"
        )
    return tuple(map(str, names))


class Freezable(nn.Module):
    """A module with a replaceable classifier whose parts can be frozen by name."""

    frozen: tuple[str, ...] = ()
    """Names of the frozen submodules."""

    def get_classifier(self) -> nn.Module:
        """Return the last layer, which ``freeze()`` leaves trainable; the name is timm's.

        Raises:
            UnsupportedError: if the model has no classifier.
        """
        raise UnsupportedError(f"{type(self).__name__} has no classifier; name the parts to freeze")

    def reset_classifier(
        self,
        num_classes: int | None = None,  # noqa: ARG002 (families with classes use it)
        labels: Sequence[str] | None = None,  # noqa: ARG002
    ) -> None:
        """Replace the last layer by a new one with random weights.

        Args:
            num_classes: K; None for one class per label.
            labels: names of the classes, K; None to number them.

        Raises:
            UnsupportedError: if the model has no classifier.
        """
        raise UnsupportedError(f"{type(self).__name__} has no classifier to replace")

    def freeze(self, *names: str) -> None:
        """Stop gradients for parts, and keep their norms in eval mode during training.

        This model's ``train`` keeps them so. If another module holds a frozen part, call the part's
        ``eval`` after ``train`` of that module.

        ``save_pretrained`` does not store which parts are frozen.

        Args:
            *names: submodules, such as ``"identity_encoder"`` or
                ``"expression_encoder.backbone.layer1"``; none for everything but the classifier.

        Raises:
            ValueError: if there is no such submodule; the message lists the top-level ones.
            UnsupportedError: if there is no name and the model has no classifier.
        """
        modules = dict(self.named_modules())
        if unknown := [name for name in names if name not in list(modules)[1:]]:
            top = ", ".join(name for name, _ in self.named_children())
            raise ValueError(f"no part is named {unknown[0]!r}; expected {top} or a part of these")
        if not names:
            classifier = self.get_classifier()
            names = tuple(n for n, part in self.named_children() if part is not classifier)
        self.frozen = tuple(dict.fromkeys((*self.frozen, *names)))
        for name in names:
            modules[name].requires_grad_(False)
        self.train(self.training)

    def unfreeze(self) -> None:
        """Make all parameters trainable again."""
        self.frozen = ()
        self.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Any:
        """Set training or eval mode, as in ``nn.Module``; frozen parts stay in eval mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self
