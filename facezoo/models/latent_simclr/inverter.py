"""Inversion of real images into StyleGAN2, synthesis and editing."""

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
"""Layer K whose output is replaced: the second layer of side 16."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""Function of images and targets, each (B, 3, S, S), that returns a distance per pair, (B,)."""


@dataclass(frozen=True, repr=False, eq=False)
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
    """Compute the mean squared error of each pair of images (B, 3, S, S), (B,)."""
    return (images - targets).square().mean((1, 2, 3))


class StyleGANInverter(nn.Module):
    """Generator and the Feature-Style encoder that inverts it.

    The number of styles depends on the generator. Layer K is 5 for every size: its feature has side
    16, a sixteenth of the resolution at 256 pixels and a quarter at 64.

    Source: Yao et al., "Feature-Style Encoder for Style-Based GAN Inversion", ECCV 2022.

    Args:
        generator: generator of at least 32 pixels.
        encoder: its encoder, see ``encoder_for``.
        layer: layer number K, from 1.

    Raises:
        ValueError: if the encoder's feature does not fit layer K.

    Examples:
        >>> inverter = facezoo.StyleGANInverter.from_pretrained("latent-simclr")
        >>> inverter.invert(torch.zeros(1, 3, 64, 64)).w_plus.shape
        torch.Size([1, 10, 128])
    """

    def __init__(
        self, generator: StyleGANGenerator, encoder: FeatureStyleEncoder, layer: int = FEATURE_LAYER
    ) -> None:
        super().__init__()
        expected = (generator.num_codes, generator.style_dim, *generator.feature_shape(layer))
        if encoder.output_shape != expected:
            raise ValueError(
                f"the encoder returns (L, D, C, H, W) = {encoder.output_shape}, but layer {layer} "
                f"of the generator expects {expected}; build it with encoder_for(generator)"
            )
        self.generator, self.encoder, self.layer = generator, encoder, layer

    @classmethod
    def from_pretrained(cls, name: str | Path = "latent-simclr") -> StyleGANInverter:
        """Load the inverter of a latent-simclr checkpoint, in eval mode, on the CPU.

        Args:
            name: name of a checkpoint, or path of its folder or file.

        Returns:
            The inverter.

        Raises:
            UnsupportedError: if the family of the checkpoint has no generator.
        """
        model = FaceModel.from_pretrained(name)
        inverter = getattr(model, "inverter", None)
        if not isinstance(inverter, cls):
            raise UnsupportedError(
                f"{name} is a checkpoint of {model.model_name}, which has no StyleGAN to invert; "
                "pass a checkpoint of latent-simclr"
            )
        return inverter

    def encode(self, images: Tensor) -> Inversion:
        """Run the encoder; gradients are kept.

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
        code_lr: float = 0.01,
        feature_lr: float = 0.05,
    ) -> Inversion:
        """Compute codes and feature that reconstruct images, without gradients, in eval mode.

        Refinement runs Adam from the encoder's output. It is deterministic and independent of the
        other images in the batch. It returns the best step, so the distance never gets worse.

        Args:
            images: RGB in [-1, 1], (B, 3, H, H); for refinement of the generator's size S.
            refine_steps: steps of Adam; 0 for the encoder's output.
            distance: distance to minimize.
            code_lr: learning rate of the codes.
            feature_lr: learning rate of the feature.

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
                f"refinement expects images of the generator's size, (B, 3, {size}, {size}), got "
                f"{tuple(images.shape)}; resize them"
            )
        with evaluating(self):
            with torch.no_grad():
                start = self.encode(images)
            if not refine_steps:
                return start
            lrs = (code_lr, feature_lr)
            with torch.inference_mode(False), torch.enable_grad():
                return self._refined(images.clone(), start, refine_steps, distance, lrs)

    def synthesize(
        self, w_plus: Tensor, feature: Tensor | None = None, noise: Noise | None = None
    ) -> Tensor:
        """Generate images from codes and a feature; gradients are kept.

        Args:
            w_plus: codes of W+, (B, L, D), or of W, (B, D).
            feature: replacement of the output of layer K, (B, C, H_K, H_K); None for the
                generator's own.
            noise: noise maps of the generator; None for no noise.

        Returns:
            (B, 3, S, S), around [-1, 1] and not clamped.

        Raises:
            ValueError: if a shape does not fit.
        """
        replace = None if feature is None else {self.layer: feature}
        return self.generator(w_plus, noise, replace)

    def move(
        self,
        inversion: Inversion,
        direction: Tensor,
        strength: float | Tensor,
        feature: Tensor | None = None,
    ) -> Inversion:
        """Move codes along a direction, and the feature with them.

        Without ``feature``, the feature changes as the generator's own feature at layer K does.
        If it did not change, it would hide the effect of the direction on the coarse layers.

        Args:
            inversion: codes and feature of B images.
            direction: (D,), (1, D) or (L, D).
            strength: one number, or (B,).
            feature: change of the feature for a strength of 1, (C, H_K, H_K).

        Returns:
            New codes and feature; gradients are kept.

        Raises:
            ValueError: if the direction does not fit the codes.
        """
        codes = inversion.w_plus
        rows = check_direction(direction, *codes.shape[1:]).to(codes)
        amounts = torch.as_tensor(strength, device=codes.device).to(codes).reshape(-1, 1, 1)
        if feature is None:
            return self.move_by(inversion, amounts * rows)
        change = amounts[..., None] * feature.to(codes)
        return Inversion(codes + amounts * rows, inversion.feature + change)

    def move_by(self, inversion: Inversion, change: Tensor) -> Inversion:
        """Add a change (B, L, D) or (L, D) to the codes, and move the feature as ``move`` does."""
        codes = inversion.w_plus
        moved = codes + change
        before, after = (self.generator.features(w, self.layer) for w in (codes, moved))
        return Inversion(moved, inversion.feature + after - before)

    def edit(
        self, images: Tensor, direction: Tensor, strength: float | Tensor, refine_steps: int = 0
    ) -> Tensor:
        """Invert images, move their codes along a direction, and generate them again.

        Args:
            images: RGB in [-1, 1], (B, 3, S, S).
            direction: (D,), (1, D) or (L, D).
            strength: factor on the direction: one number, or (B,).
            refine_steps: steps of Adam of the inversion; 0 for the encoder's output.

        Returns:
            Images, around [-1, 1], (B, 3, S, S); gradients to the direction and the strength are
            kept.

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
        lrs: tuple[float, float],
    ) -> Inversion:
        codes, feature = start.w_plus.clone().requires_grad_(), start.feature.clone()
        free = [codes, feature.requires_grad_()]
        groups = [{"params": [p], "lr": lr} for p, lr in zip(free, lrs, strict=True)]
        optimizer = torch.optim.Adam(groups)
        best = [part.detach().clone() for part in free]
        lowest = images.new_full((len(images),), torch.inf)
        for step in range(steps + 1):
            distances = distance(self.synthesize(codes, feature), images)
            better = distances.detach() < lowest
            lowest = torch.where(better, distances.detach(), lowest)
            for saved, part in zip(best, free, strict=True):
                saved[better] = part.detach()[better]
            if step < steps:
                optimizer.zero_grad()
                # With a sum, the steps of an image do not depend on the rest of the batch. Only
                # codes and feature get gradients.
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
    """Build an untrained encoder for a generator.

    Args:
        generator: generator to invert.
        layer: layer number K.
        depths: residual blocks per stage of the trunk.
        width: channels of the trunk's first stage.
        trunk_size: side to which images are resized, pixels; None for the smaller of the paper's
            256 and twice the generator's size.

    Raises:
        ValueError: if the generator does not have this layer.
    """
    return FeatureStyleEncoder(
        generator.num_codes,
        generator.style_dim,
        generator.feature_shape(layer),
        depths=depths,
        width=width,
        trunk_size=min(256, 2 * generator.size) if trunk_size is None else trunk_size,
    )
