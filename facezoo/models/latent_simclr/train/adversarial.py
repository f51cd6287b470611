"""The generator against the discriminator: StyleGAN2's training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor
from tqdm.auto import tqdm

from facezoo.data.photographs import augmented
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
from facezoo.training.optim import WeightAverage, autocast, descend
from facezoo.training.state import batches, generator, load_state, log_row, save_state

EARLY, FINAL = "early.safetensors", "generator.safetensors"
"""The averaged generator after a tenth of the training, and at its end."""
LOG_EVERY = 100
"""Steps per row of the log, which holds their means."""


def train_generator(
    config: Adversarial,
    crops: Tensor,
    out: Path,
    seed: int,
    device: torch.device,
    save_every: float = 180.0,
) -> Path:
    """Train a generator on photographs, from the saved state if there is one.

    Args:
        config: how.
        crops: uint8 with a margin, see ``facezoo.data.photographs``.
        out: folder for state, log and generators.
        seed: of weights, order and chance.
        device: where to train.
        save_every: seconds between saved states.

    Returns:
        The file of the averaged generator.

    Raises:
        ValueError: if there are too few photographs for one batch.
    """
    game = Game(config, seed, device)
    done = game.resume(out)
    per_epoch = len(batches(len(crops), config.batch_size, seed, 0))
    total = config.images // config.batch_size
    sums: dict[str, list[float]] = {}
    bar = tqdm(initial=done, total=total, desc=out.name, mininterval=10)
    last = time.monotonic()
    while done < total:
        epoch, number = divmod(done, per_epoch)
        if number == 0 or done == bar.initial:
            order = batches(len(crops), config.batch_size, seed, epoch)
        draw = generator(seed, epoch, number)
        real = augmented(crops[order[number]], draw, shift=0).to(device)
        for name, value in game.step(real, done, draw).items():
            sums.setdefault(name, []).append(value)
        done += 1
        bar.update()
        if done % LOG_EVERY == 0 or done == total:
            means = {name: sum(values) / len(values) for name, values in sums.items()}
            log_row(out / "log.csv", {"images": done * config.batch_size, **means})
            bar.set_postfix({name: f"{value:.2f}" for name, value in means.items()})
            sums = {}
        if done == max(1, total // 10):
            save(game.average.state, out / EARLY)
        # Rows of the log are whole, so a state is kept only where one ends.
        if not sums and (time.monotonic() - last > save_every or done == total):
            game.keep(out, done)
            last = time.monotonic()
    bar.close()
    return save({name: t.cpu() for name, t in game.average.state.items()}, out / FINAL)


class Game:
    """The two networks, their optimisers, and what else a step changes.

    Args:
        config: how to train.
        seed: of the weights.
        device: where to train.
    """

    def __init__(self, config: Adversarial, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.config, self.device = config, device
        made = StyleGANGenerator(**config.architecture)
        channels = {
            key: config.architecture[key]
            for key in ("channel_multiplier", "max_channels")
            if key in config.architecture
        }
        judge = StyleGANDiscriminator(made.size, **channels)
        self.maker, self.judge = self._placed(made), self._placed(judge)
        self.average = WeightAverage(
            self.maker, 2 ** (-config.batch_size / max(1, config.half_life))
        )
        self.makers_steps = _adam(
            self.maker, config.rate, config.path_every if config.path_weight else 0
        )
        self.judges_steps = _adam(self.judge, config.rate, config.penalty_every)
        self.strength = Strength(max(1, config.augmentation))
        self.path_length = torch.zeros((), device=device)

    def step(self, real: Tensor, number: int, draw: Generator) -> dict[str, float]:
        """One step of both networks, and the penalties that are due.

        The discriminator sees the images that the generator's step has made.

        Args:
            real: images, (B, 3, S, S).
            number: of the step, from 0.
            draw: chance.

        Returns:
            What to log.
        """
        config = self.config
        said = {}
        if config.path_weight and number % config.path_every == 0:
            said["path"] = self._shorten_paths(draw)
        fakes, said["generator"] = self._deceive(len(real), draw)
        self.average.update(self.maker)
        seen = change(real, self.strength.probability, draw)
        said["discriminator"], logits = self._tell_apart(seen, fakes, draw)
        if config.augmentation:
            self.strength.update(logits)
        said["augmentation"] = self.strength.probability
        if number % config.penalty_every == 0:
            said["r1"] = self._flatten(seen)
        return said

    def resume(self, out: Path) -> int:
        """Go on from a saved state, and return how many steps it had seen."""
        saved = load_state(out / "state.pt")
        if saved is None:
            return 0
        for name, part in self._parts().items():
            part.load_state_dict(saved[name])
        self.strength.probability = saved["probability"]
        self.path_length = saved["path_length"].to(self.device)
        done: int = saved["done"]
        return done

    def keep(self, out: Path, done: int) -> None:
        """Save everything that ``resume`` needs."""
        save_state(
            out / "state.pt",
            done=done,
            probability=self.strength.probability,
            path_length=self.path_length,
            **{name: part.state_dict() for name, part in self._parts().items()},
        )

    def _parts(self) -> dict[str, Any]:
        names = ("maker", "judge", "average", "makers_steps", "judges_steps")
        return {name: getattr(self, name) for name in names}

    def _placed(self, module: Any) -> Any:
        return module.train().to(self.device, memory_format=torch.channels_last)

    def _deceive(self, count: int, draw: Generator) -> tuple[Tensor, float]:
        """The generator's step, and the images that it made."""
        self.judge.requires_grad_(False)
        with autocast(self.device):
            codes = mixed_codes(self.maker, count, self.config.mixing, draw)
            fakes = self.maker(codes, self.maker.draw_noise(count, draw))
            loss = generator_loss(self.judge(change(fakes, self.strength.probability, draw)))
        descend(self.makers_steps, loss)
        self.judge.requires_grad_(True)
        return fakes.detach(), loss.item()

    def _tell_apart(self, seen: Tensor, fakes: Tensor, draw: Generator) -> tuple[float, Tensor]:
        """The discriminator's step, and its logits of the real images."""
        with autocast(self.device):
            logits = self.judge(seen)
            loss = discriminator_loss(
                logits, self.judge(change(fakes, self.strength.probability, draw))
            )
        descend(self.judges_steps, loss)
        return loss.item(), logits

    def _flatten(self, seen: Tensor) -> float:
        """The R1 penalty on the real images."""
        images = seen.detach().requires_grad_()
        with autocast(self.device):
            logits = self.judge(images)
        penalty = r1_penalty(images, logits)
        weight = self.config.gamma / 2 * self.config.penalty_every
        descend(self.judges_steps, weight * penalty)
        return penalty.item()

    def _shorten_paths(self, draw: Generator) -> float:
        """The path length penalty, on half a batch."""
        count = max(1, self.config.batch_size // 2)
        with autocast(self.device):
            codes = mixed_codes(self.maker, count, self.config.mixing, draw)
            images = self.maker(codes, self.maker.draw_noise(count, draw))
        lengths = path_lengths(images, codes, draw)
        self.path_length = update_path_length(self.path_length, lengths)
        weight = self.config.path_weight * self.config.path_every
        loss = weight * path_length_penalty(lengths, self.path_length)
        descend(self.makers_steps, loss)
        return self.path_length.item()


def mixed_codes(maker: StyleGANGenerator, count: int, share: float, draw: Generator) -> Tensor:
    """Codes of W+ of random z, some with the last styles of another: style mixing.

    Source: Karras et al., "A Style-Based Generator Architecture for GANs", CVPR 2019, Sec. 3.1.

    Returns:
        (B, L, D), keeping gradients.
    """
    z = torch.randn(2 * count, maker.style_dim, generator=draw).to(maker.input.input.device)
    first, second = (
        half[:, None].expand(-1, maker.num_codes, -1) for half in maker.map(z).chunk(2)
    )
    if torch.rand((), generator=draw) >= share:
        return first
    start = int(torch.randint(1, maker.num_codes, (), generator=draw))
    return mix_codes(first, second, start)


def _adam(module: Any, rate: float, every: int) -> torch.optim.Adam:
    """Adam, adjusted to one more step in every ``every``: Karras et al. 2020, App. B."""
    share = every / (every + 1) if every else 1.0
    return torch.optim.Adam(module.parameters(), lr=rate * share, betas=(0.0, 0.99**share))
