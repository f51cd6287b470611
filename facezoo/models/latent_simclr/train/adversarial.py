"""Adversarial training of the StyleGAN2 generator (Karras et al. 2020, with ADA)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from facezoo.data.unlabeled import augmented
from facezoo.hub.tensors import save
from facezoo.models.latent_simclr.discriminator import StyleGANDiscriminator
from facezoo.models.latent_simclr.gan_losses import (
    discriminator_loss,
    generator_loss,
    path_length_penalty,
    path_lengths,
    r1_penalty,
    update_path_length,
)
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator, mix_codes
from facezoo.models.latent_simclr.train.ada import Strength, change
from facezoo.models.latent_simclr.train.recipes import Adversarial
from facezoo.training.loop import Position, Schedule, fit
from facezoo.training.optim import autocast, descend, fixed

EARLY, FINAL = "early.safetensors", "generator.safetensors"
"""The averaged generator after a tenth of the training, and at its end."""


def train_generator(
    config: Adversarial,
    crops: Tensor,
    out: Path,
    seed: int,
    device: torch.device,
    save_every: float = 180.0,
) -> Path:
    """Train a generator on face crops, from the saved state if there is one.

    Args:
        crops: uint8 with a margin, see ``facezoo.data.unlabeled``.
        save_every: seconds between saved states.

    Returns:
        The file of the averaged generator.

    Raises:
        ValueError: if there are fewer crops than one batch.
    """
    gan = Gan(config, crops, seed, device)
    schedule = Schedule(
        steps=config.images // config.batch_size,
        batch_size=config.batch_size,
        average=2 ** (-config.batch_size / max(1, config.half_life)),
    )
    early = replace(schedule, steps=max(1, schedule.steps // 10))
    for part, file in ((early, EARLY), (schedule, FINAL)):
        if (out / file).is_file():
            continue
        optimizers, others = [gan.generator_optimizer], {"gan": gan}
        rows = torch.arange(len(crops))
        result = fit(
            *(gan.generator, optimizers, gan.step, part, rows, out, seed),
            others=others,
            save_every=save_every,
        )
        save(result.state, out / file)
    return out / FINAL


class Gan:
    """Both networks and all that a step changes, for uint8 crops with a margin, (N, 3, H, H)."""

    def __init__(self, config: Adversarial, crops: Tensor, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.config, self.crops, self.device = config, crops, device
        generator = StyleGANGenerator(**config.architecture)
        channels = {
            key: config.architecture[key]
            for key in ("channel_multiplier", "max_channels")
            if key in config.architecture
        }
        discriminator = StyleGANDiscriminator(generator.size, **channels)
        self.generator = self._on_device(generator)
        self.discriminator = self._on_device(discriminator)
        path_every = config.path_every if config.path_weight else 0
        self.generator_optimizer = _adam(generator, config.lr, path_every)
        self.discriminator_optimizer = _adam(discriminator, config.lr, config.penalty_every)
        self.strength = Strength(max(1, config.augmentation))
        self.path_length = torch.zeros((), device=device)

    def _on_device(self, module: Any) -> Any:
        return module.train().to(self.device, memory_format=torch.channels_last)

    def step(self, rows: Tensor, at: Position) -> dict[str, float]:
        """Update both networks on a batch of crops, with the penalties that are due.

        The discriminator gets the images of the generator's update.
        """
        config, chance, losses = self.config, at.generator, dict[str, float]()
        real = augmented(self.crops[rows], chance, shift=0).to(self.device)
        if config.path_weight and at.step % config.path_every == 0:
            losses["path"] = self.regularize_paths(chance)
        fakes, losses["generator"] = self.update_generator(len(real), chance)
        real = change(real, self.strength.probability, chance)
        losses["discriminator"], logits = self.update_discriminator(real, fakes, chance)
        if config.augmentation:
            self.strength.update(logits)
        losses["augmentation"] = self.strength.probability
        if at.step % config.penalty_every == 0:
            losses["r1"] = self.penalize_gradients(real)
        return losses

    def update_generator(self, count: int, chance: Generator) -> tuple[Tensor, float]:
        """Update the generator; return its images and the loss."""
        with fixed(self.discriminator), autocast(self.device):
            codes = mixed_codes(self.generator, count, self.config.mixing, chance)
            fakes = self.generator(codes, self.generator.draw_noise(count, chance))
            logits = self.discriminator(change(fakes, self.strength.probability, chance))
            loss = generator_loss(logits)
        descend(self.generator_optimizer, loss)
        return fakes.detach(), loss.item()

    def update_discriminator(
        self, real: Tensor, fakes: Tensor, chance: Generator
    ) -> tuple[float, Tensor]:
        """Update the discriminator; return its loss and its logits of the real images."""
        with autocast(self.device):
            logits = self.discriminator(real)
            fakes = change(fakes, self.strength.probability, chance)
            loss = discriminator_loss(logits, self.discriminator(fakes))
        descend(self.discriminator_optimizer, loss)
        return loss.item(), logits

    def penalize_gradients(self, real: Tensor) -> float:
        """Update the discriminator with the R1 penalty on real images; return the penalty."""
        images = real.detach().requires_grad_()
        with autocast(self.device):
            logits = self.discriminator(images)
        penalty = r1_penalty(images, logits)
        weight = self.config.gamma / 2 * self.config.penalty_every
        descend(self.discriminator_optimizer, weight * penalty)
        return penalty.item()

    def regularize_paths(self, chance: Generator) -> float:
        """Update the generator with the path length penalty on half a batch; return the length."""
        count = max(1, self.config.batch_size // 2)
        with autocast(self.device):
            codes = mixed_codes(self.generator, count, self.config.mixing, chance)
            images = self.generator(codes, self.generator.draw_noise(count, chance))
        lengths = path_lengths(images, codes, chance)
        self.path_length = update_path_length(self.path_length, lengths)
        weight = self.config.path_weight * self.config.path_every
        descend(self.generator_optimizer, weight * path_length_penalty(lengths, self.path_length))
        return self.path_length.item()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, apart from the generator and its optimizer."""
        return {
            "discriminator": self.discriminator.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
            "probability": self.strength.probability,
            "path_length": self.path_length,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.discriminator.load_state_dict(state["discriminator"])
        self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        self.strength.probability = state["probability"]
        self.path_length = state["path_length"].to(self.device)


def mixed_codes(
    generator: StyleGANGenerator, count: int, share: float, chance: Generator
) -> Tensor:
    """Return W+ codes (B, L, D) of random z, with gradients; a share of the batches mixes two z.

    Source: Karras et al., "A Style-Based Generator Architecture for GANs", CVPR 2019, Sec. 3.1.
    """
    z = torch.randn(2 * count, generator.style_dim, generator=chance)
    w = generator.map(z.to(generator.input.input.device))
    first, second = (half[:, None].expand(-1, generator.num_codes, -1) for half in w.chunk(2))
    if torch.rand((), generator=chance) >= share:
        return first
    start = int(torch.randint(1, generator.num_codes, (), generator=chance))
    return mix_codes(first, second, start)


def _adam(module: nn.Module, lr: float, every: int) -> torch.optim.Adam:
    """Return Adam adjusted to one more step in every ``every``: Karras et al. 2020, App. B."""
    share = every / (every + 1) if every else 1.0
    return torch.optim.Adam(module.parameters(), lr=lr * share, betas=(0.0, 0.99**share))
