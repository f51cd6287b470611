"""What fine-tuning needs of a model: a new classifier, and parts that stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from facezoo.errors import UnsupportedError


class Freezable(nn.Module):
    """A module whose classifier can be replaced and whose parts can be frozen by name."""

    frozen: tuple[str, ...] = ()
    """Names of the submodules that are frozen."""

    def get_classifier(self) -> nn.Module:
        """timm's word for the last layer, which ``freeze()`` leaves out.

        Raises:
            UnsupportedError: if the model has none.
        """
        raise UnsupportedError(f"{type(self).__name__} has no classifier; name the parts to freeze")

    def reset_classifier(
        self,
        num_classes: int | None = None,  # noqa: ARG002 (what families with classes take)
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
        """Keep parts as they are: no gradients, and norms that do not follow the batches.

        Frozen parts stay in eval mode when the model is put in training mode. They are no part of
        what ``save_pretrained`` writes.

        Args:
            *names: submodules, such as ``"identity_encoder"`` or
                ``"expression_encoder.backbone.layer1"``; none for everything but the classifier.

        Raises:
            ValueError: if there is no such submodule; the message lists those of the first level.
            UnsupportedError: if no name is given and the model has no classifier.
        """
        modules = dict(self.named_modules())
        known = [name for name in modules if name]
        if unknown := [name for name in names if name not in known]:
            first = ", ".join(name for name, _ in self.named_children())
            raise ValueError(f"no part is named {unknown[0]!r}; there are {first} and their parts")
        chosen = names or self._all_but_classifier()
        self.frozen = tuple(dict.fromkeys((*self.frozen, *chosen)))
        for name in chosen:
            modules[name].requires_grad_(False)
        self.train(self.training)

    def unfreeze(self) -> None:
        """Let everything be trained again."""
        self.frozen = ()
        self.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Any:
        """Training or eval mode, as in ``nn.Module``; frozen parts stay in eval mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def _all_but_classifier(self) -> tuple[str, ...]:
        classifier = self.get_classifier()
        return tuple(name for name, part in self.named_children() if part is not classifier)
