"""Real images into StyleGAN2 and back: inversion, synthesis and editing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from facezoo.errors import UnsupportedError
from facezoo.inference import evaluating
from facezoo.models.base import FaceModel
from facezoo.models.latent_simclr.directions import check_direction
from facezoo.models.latent_simclr.feature_style import FeatureStyleEncoder
from facezoo.models.latent_simclr.iresnet import IRESNET50
from facezoo.models.latent_simclr.stylegan2 import Noise, StyleGANGenerator
from facezoo.results import Result

FEATURE_LAYER = 5
"""K, whose feature is replaced: the second layer of side 16."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""Images and targets, each (B, 3, S, S), to one number for every pair, (B,)."""


@dataclass(frozen=True, repr=False)
class Inversion(Result):
    """Codes and feature of images, from which a generator draws them.

    Attributes:
        w_plus: codes of W+, (B, L, D).
        feature: replacement for the output of layer K, (B, C, H_K, H_K).
    """

    w_plus: Tensor
    feature: Tensor

    def __len__(self) -> int:
        return len(self.w_plus)


def squared_error(images: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference of every pair of images (B, 3, S, S), (B,)."""
    return (images - targets).square().mean((1, 2, 3))


class StyleGANInverter(nn.Module):
    """A generator and the Feature-Style encoder that inverts it.

    The number of styles follows the generator. The layer K does not: it is 5 for every size, where
    the feature has side 16, so that the replaced feature is a sixteenth of the resolution at 256
    pixels and a quarter at 64. The smallest generator that has a layer after it is of 32 pixels.

    Source: Yao et al., "Feature-Style Encoder for Style-Based GAN Inversion", ECCV 2022.

    Args:
        generator: of any size from 32 pixels on.
        encoder: made for it; see ``encoder_for``.
        layer: K, from 1.

    Raises:
        ValueError: if the encoder's feature does not fit layer K.
    """

    def __init__(
        self, generator: StyleGANGenerator, encoder: FeatureStyleEncoder, layer: int = FEATURE_LAYER
    ) -> None:
        super().__init__()
        wanted = (generator.num_codes, generator.style_dim, *generator.feature_shape(layer))
        if encoder.output_shape != wanted:
            raise ValueError(
                f"the encoder gives (L, D, C, H, W) = {encoder.output_shape} and layer {layer} of "
                f"the generator wants {wanted}; build the encoder with encoder_for(generator)"
            )
        self.generator, self.encoder, self.layer = generator, encoder, layer

    @classmethod
    def from_pretrained(cls, name: str | Path = "latent-simclr") -> StyleGANInverter:
        """The inverter of a checkpoint of latent-simclr, in eval mode, on the CPU.

        Args:
            name: any name that ``FaceModel.from_pretrained`` takes.

        Raises:
            UnsupportedError: if the checkpoint is of a family without a generator.
        """
        model = FaceModel.from_pretrained(name)
        inverter = getattr(model, "inverter", None)
        if not isinstance(inverter, cls):
            raise UnsupportedError(
                f"{name} is a checkpoint of {model.model_name}, which has no StyleGAN to invert; "
                "give one of latent-simclr"
            )
        return inverter

    def encode(self, images: Tensor) -> Inversion:
        """The encoder's answer, keeping gradients.

        Args:
            images: RGB in [-1, 1], (B, 3, H, H).

        Returns:
            Codes and feature.

        Raises:
            ValueError: if the images are no such batch.
        """
        return Inversion(*self.encoder(images))

    def invert(
        self,
        images: Tensor,
        refine_steps: int = 0,
        *,
        distance: Distance = squared_error,
        code_rate: float = 0.01,
        feature_rate: float = 0.05,
    ) -> Inversion:
        """Codes and feature that give the images again, without gradients and in eval mode.

        Refinement is optimisation by Adam from the encoder's answer on. It draws nothing at random
        and treats every image by itself; the closest of all steps is kept, so it is never worse
        than the encoder's answer by the distance that it minimises.

        Args:
            images: RGB in [-1, 1], (B, 3, H, H); for refinement of the generator's size S.
            refine_steps: steps of Adam; 0 for the encoder's answer.
            distance: what refinement minimises.
            code_rate: learning rate of the codes.
            feature_rate: learning rate of the feature.

        Returns:
            Codes and feature.

        Raises:
            ValueError: if the images are no such batch, or ``refine_steps`` is negative.
        """
        if refine_steps < 0:
            raise ValueError(f"refine_steps must be 0 or more, got {refine_steps}")
        size = self.generator.size
        if refine_steps and tuple(images.shape[2:]) != (size, size):
            raise ValueError(
                f"refinement needs images of the generator's size, (B, 3, {size}, {size}), got "
                f"{tuple(images.shape)}; resize them"
            )
        with evaluating(self):
            with torch.no_grad():
                start = self.encode(images)
            if not refine_steps:
                return start
            rates = (code_rate, feature_rate)
            with torch.inference_mode(False), torch.enable_grad():
                return self._refined(images.clone(), start, refine_steps, distance, rates)

    def synthesize(
        self, w_plus: Tensor, feature: Tensor | None = None, noise: Noise | None = None
    ) -> Tensor:
        """Images of codes and of a feature, keeping gradients.

        Args:
            w_plus: (B, L, D), or codes of W, (B, D).
            feature: stands in for the output of layer K, (B, C, H_K, H_K); None for the
                generator's own.
            noise: maps of the generator; None for no noise.

        Returns:
            (B, 3, S, S), around [-1, 1] and not clamped.

        Raises:
            ValueError: if a shape does not fit.
        """
        replace = None if feature is None else {self.layer: feature}
        images: Tensor = self.generator(w_plus, noise, replace)
        return images

    def move(self, inversion: Inversion, direction: Tensor, strength: float | Tensor) -> Inversion:
        """Codes moved along a direction, and the feature moved along with them.

        The feature changes by as much as the generator's own feature at layer K does, so that
        what the direction does to the coarse layers is not lost behind the replaced feature.

        Args:
            inversion: of B images.
            direction: (D,), (1, D) or (L, D).
            strength: one for all, or (B,).

        Returns:
            The moved codes and feature, keeping gradients.

        Raises:
            ValueError: if the direction does not fit the codes.
        """
        codes = inversion.w_plus
        rows = check_direction(direction, *codes.shape[1:]).to(codes)
        amounts = torch.as_tensor(strength, device=codes.device).to(codes).reshape(-1, 1, 1)
        return self.move_by(inversion, amounts * rows)

    def move_by(self, inversion: Inversion, change: Tensor) -> Inversion:
        """Codes moved by a change (B, L, D) or (L, D), and the feature with them; see ``move``."""
        codes = inversion.w_plus
        moved = codes + change
        before, after = (self.generator.features(w, self.layer) for w in (codes, moved))
        return Inversion(moved, inversion.feature + after - before)

    def edit(
        self, images: Tensor, direction: Tensor, strength: float | Tensor, refine_steps: int = 0
    ) -> Tensor:
        """Images with one property changed; see ``invert`` and ``move``.

        Returns:
            (B, 3, S, S), keeping gradients to the direction and the strength.

        Raises:
            ValueError: if a shape does not fit.
        """
        moved = self.move(self.invert(images, refine_steps), direction, strength)
        return self.synthesize(moved.w_plus, moved.feature)

    def _refined(
        self,
        images: Tensor,
        start: Inversion,
        steps: int,
        distance: Distance,
        rates: tuple[float, float],
    ) -> Inversion:
        codes, feature = start.w_plus.clone().requires_grad_(), start.feature.clone()
        free = [codes, feature.requires_grad_()]
        groups = [{"params": [p], "lr": rate} for p, rate in zip(free, rates, strict=True)]
        optimizer = torch.optim.Adam(groups)
        best = [part.detach().clone() for part in free]
        lowest = torch.full((len(images),), torch.inf, device=images.device)
        for step in range(steps + 1):
            distances = distance(self.synthesize(codes, feature), images)
            better = distances.detach() < lowest
            lowest = torch.where(better, distances.detach(), lowest)
            for kept, part in zip(best, free, strict=True):
                kept[better] = part.detach()[better]
            if step < steps:
                optimizer.zero_grad()
                # The sum, so that an image's steps do not depend on the others of its batch; only
                # the codes and the feature get gradients, not the generator.
                distances.sum().backward(inputs=free)
                optimizer.step()
        return Inversion(*best)


def encoder_for(
    generator: StyleGANGenerator,
    *,
    layer: int = FEATURE_LAYER,
    depths: Sequence[int] = IRESNET50,
    width: int = 64,
    trunk_size: int | None = None,
) -> FeatureStyleEncoder:
    """An untrained encoder with the styles and the feature of a generator.

    Args:
        generator: what is to be inverted.
        layer: K.
        depths: residual blocks of every stage of the trunk.
        width: channels of the trunk's first stage.
        trunk_size: side to which images are resized first; None for the paper's 256 pixels, or
            twice the generator's size where that is less, so that the third stage, an eighth of
            it, is not smaller than a feature of a quarter of the size.

    Raises:
        ValueError: if the generator has no such layer.
    """
    return FeatureStyleEncoder(
        generator.num_codes,
        generator.style_dim,
        generator.feature_shape(layer),
        depths=depths,
        width=width,
        trunk_size=min(256, 2 * generator.size) if trunk_size is None else trunk_size,
    )
