"""The identity discriminator and the autoencoder, trained in turn.

Source: Gu, Pears & Sun, Sec. III-C, III-D and IV-B: pre-training of the discriminator on pairs of
meshes, then both networks together, eqs. (6) to (8).

Letters: P persons, E expressions, R rows, C principal axes, B batch, V vertices of a pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from facezoo.models.adv3d.config import TrainConfig
from facezoo.models.adv3d.coordinates import Autoencoder, Frame, Reading
from facezoo.models.adv3d.losses import (
    adversarial_loss,
    discriminator_loss,
    kl_loss,
    neutral_loss,
)
from facezoo.models.adv3d.networks import VAE, IdentityDiscriminator
from facezoo.models.adv3d.start import Mixtures
from facezoo.training import (
    WeightAverage,
    autocast,
    generator,
    load_state,
    log_row,
    save_state,
    set_cosine_rate,
)


@dataclass(frozen=True)
class Rows:
    """What training draws from."""

    coordinates: Tensor
    """Training meshes, expression 0 neutral, (P, E, C)."""
    mixtures: Mixtures
    """R rows; the first P · E are the meshes themselves."""
    features: Tensor
    """Of every row, (R, 1024)."""
    frame: Frame

    @property
    def neutral(self) -> Tensor:
        """The neutral of every mesh's person, (P, E, C)."""
        return self.coordinates[:, :1].expand_as(self.coordinates)


def fit(
    config: TrainConfig,
    autoencoder: Autoencoder,
    data: Rows,
    reading: Reading,
    vae: VAE,
    edges: Tensor,
    out: Path,
    seed: int,
    device: torch.device,
    save_every: int = 100,
) -> Autoencoder:
    """Pre-train the discriminator, then train both networks; the averaged autoencoder.

    Goes on from ``out/state.pt`` if it is there.
    """
    torch.manual_seed(seed)
    discriminator = IdentityDiscriminator().to(device)
    autoencoder.to(device)
    optimizers = {
        "autoencoder": _autoencoder_optimizer(config, autoencoder),
        "discriminator": torch.optim.Adam(
            discriminator.parameters(), lr=config.discriminator_rate, betas=config.momentum
        ),
    }
    average = WeightAverage(autoencoder, config.average)
    keep: dict[str, Any] = {
        "autoencoder": autoencoder,
        "discriminator": discriminator,
        "average": average,
        "autoencoder_optimizer": optimizers["autoencoder"],
        "discriminator_optimizer": optimizers["discriminator"],
    }
    first = 0
    if saved := load_state(out / "state.pt"):
        for name, part in keep.items():
            part.load_state_dict(saved[name])
        first = saved["step"]
    step = Step(config, autoencoder, discriminator, data, reading, vae, edges, device)
    before = config.pretraining_steps if config.losses.adversarial else 0
    for number in tqdm(range(first, before + config.steps), initial=first, mininterval=10):
        draw = generator(seed, 3, number)
        if number < before:
            numbers = step.pretrain(optimizers["discriminator"], draw)
        else:
            progress = (number - before) / config.steps
            set_cosine_rate(optimizers["autoencoder"], config.rate, progress, 0.02)
            numbers = step.train(optimizers, draw)
            average.update(autoencoder)
        if (number + 1) % save_every == 0:
            save_state(
                out / "state.pt",
                step=number + 1,
                **{name: part.state_dict() for name, part in keep.items()},
            )
            stage = "pretraining" if number < before else "joint"
            log_row(out / f"{stage}.csv", {"step": number + 1, **numbers})
    autoencoder.load_state_dict(average.state)
    return autoencoder


class Step:
    """One step of either stage; holds what every step needs and nothing that changes."""

    def __init__(
        self,
        config: TrainConfig,
        autoencoder: Autoencoder,
        discriminator: IdentityDiscriminator,
        data: Rows,
        reading: Reading,
        vae: VAE,
        edges: Tensor,
        device: torch.device,
    ) -> None:
        self.config, self.device, self.data = config, device, data
        self.autoencoder, self.discriminator, self.vae = autoencoder, discriminator, vae
        frame = data.frame
        self.frame = Frame(frame.mean.to(device), frame.axes.to(device), frame.deviation.to(device))
        self.reading = Reading(reading.weight.to(device), reading.bias.to(device))
        self.curvature = frame.roughness(edges).to(device)

    def pretrain(self, optimizer: torch.optim.Optimizer, draw: torch.Generator) -> dict[str, float]:
        """Pairs of one person from pairs of two, as many of each."""
        index = self._rows(draw)
        mixed = self.data.mixtures[index]
        mesh = mixed.of(self.data.coordinates).to(self.device)
        partner = self._partner(mixed, draw)
        stranger = partner.roll(1, 0)
        real, fake = self._judge(mesh, [partner, stranger], draw)
        loss = discriminator_loss(real, fake)
        _descend(optimizer, loss)
        right = (real.argmax(1) == 1).double().mean() + (fake.argmax(1) == 0).double().mean()
        return {"loss": loss.item(), "accuracy": right.item() / 2}

    def train(
        self, optimizers: dict[str, torch.optim.Optimizer], draw: torch.Generator
    ) -> dict[str, float]:
        """Discriminator, then autoencoder, on one batch: eqs. (7) and (8)."""
        config, weigh = self.config, self.config.losses
        index = self._rows(draw)
        mixed = self.data.mixtures[index]
        mesh = mixed.of(self.data.coordinates).to(self.device)
        scores = self.reading(self.data.features[index].to(self.device))
        noise = torch.randn(2, len(index), config.identity_dim, generator=draw).to(self.device)
        z_id, id_mean = self.autoencoder.identity.encode(scores, noise[0])
        wide = torch.randn(len(index), config.expression_dim, generator=draw).to(self.device)
        z_exp, exp_mean = self.autoencoder.expression.encode(scores, wide)
        identity = self.autoencoder.identity.decode(z_id)
        expression = self.autoencoder.expression.decode(z_exp)
        numbers: dict[str, float] = {}
        adversarial = mesh.new_zeros(())
        if weigh.adversarial:
            real, fake = self._judge(mesh, [self._partner(mixed, draw), identity.detach()], draw)
            judged = discriminator_loss(real, fake)
            _descend(optimizers["discriminator"], judged)
            numbers["discriminator"] = judged.item()
            self.discriminator.requires_grad_(False)
            (fooled,) = self._judge(mesh, [identity], draw)
            self.discriminator.requires_grad_(True)
            adversarial = adversarial_loss(fooled)
        logvars = self.autoencoder.identity.logvar, self.autoencoder.expression.logvar
        held = torch.lerp(identity.detach(), identity, config.identity_share)
        parts = {
            "reconstruction": self.frame.mean_squared(held + expression - mesh),
            "kl": kl_loss(z_id, id_mean, logvars[0].expand_as(z_id))
            + kl_loss(z_exp, exp_mean, logvars[1].expand_as(z_exp)),
            "consistency": self._consistency(identity, z_id, noise[1]),
            "adversarial": adversarial,
        }
        total = (
            weigh.reconstruction * parts["reconstruction"]
            + weigh.kl * parts["kl"]
            + weigh.consistency * parts["consistency"]
            + weigh.adversarial * parts["adversarial"]
        )
        if config.neutrals:
            truth = mixed.of(self.data.neutral).to(self.device)
            parts["neutral_truth"] = self.frame.mean_squared(identity - truth)
            total = total + weigh.reconstruction * weigh.neutral_truth * parts["neutral_truth"]
        else:
            parts["laplacian"] = self._roughness(identity)
            total = total + weigh.laplacian * parts["laplacian"]
        _descend(optimizers["autoencoder"], total)
        return numbers | {name: value.item() for name, value in parts.items()}

    def _rows(self, draw: torch.Generator) -> Tensor:
        """Rows of a batch: half of them meshes as they are, half mixtures."""
        people, expressions = self.data.coordinates.shape[:2]
        whole, half = people * expressions, self.config.batch_size // 2
        meshes = torch.randint(whole, (self.config.batch_size - half,), generator=draw)
        if len(self.data.mixtures) == whole:
            return torch.cat([meshes, torch.randint(whole, (half,), generator=draw)])
        mixed = torch.randint(whole, len(self.data.mixtures), (half,), generator=draw)
        return torch.cat([meshes, mixed])

    def _partner(self, mixed: Mixtures, draw: torch.Generator) -> Tensor:
        """The same persons in other expressions, in coordinates, (B, C)."""
        count = self.data.coordinates.shape[1]
        step = torch.randint(1, count, mixed.expressions.shape, generator=draw)
        other = (mixed.expressions + step) % count
        return mixed.of(self.data.coordinates, other).to(self.device)

    def _judge(
        self, mesh: Tensor, others: list[Tensor], draw: torch.Generator
    ) -> tuple[Tensor, ...]:
        """The discriminator on pairs of meshes (B, C) with others, on some vertices."""
        count = len(self.frame.mean)
        chosen = torch.randperm(count, generator=draw)[: self.config.pair_vertices]
        chosen = chosen.to(self.device)
        first = self.frame.offsets(mesh, chosen)
        spread = self.config.pair_noise / self.config.scale
        pairs = []
        for other in others:
            second = self.frame.offsets(other, chosen)
            noise = torch.randn(second.shape, generator=draw).to(self.device)
            pairs.append(pair_channels(self.frame.mean[chosen], first, second + spread * noise))
        with autocast(self.device):
            judged = self.discriminator(torch.cat(pairs))
        return judged.float().split(len(mesh))

    def _consistency(self, identity: Tensor, z_id: Tensor, noise: Tensor) -> Tensor:
        """L_neu, on some of the batch: the decoded identity goes through the encoder again."""
        few = self.config.encoded_again
        meshes = self.frame.offsets(identity[:few]) + self.frame.mean
        scores = self.reading(self.vae.features(meshes))
        again, _ = self.autoencoder.identity.encode(scores, noise[:few])
        return neutral_loss(z_id[:few], again)

    def _roughness(self, identity: Tensor) -> Tensor:
        """The Laplacian loss of decoded identities plus the mean face."""
        extended = torch.cat([identity, torch.ones_like(identity[:, :1])], 1)
        return ((extended @ self.curvature) * extended).sum(1).mean()


def pair_channels(mean: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """A pair of faces as the discriminator is given it: the middle and the difference.

    These are the same six numbers per vertex as the two faces side by side, in other axes: faces of
    two persons differ by a fortieth of what they have in common, and that fortieth is what counts.

    Args:
        mean: the mean face at these vertices, (V, 3).
        first: offsets of one face from it, (B, V, 3).
        second: offsets of the other, (B, V, 3).

    Returns:
        (B, V, 6), both parts about one in size.
    """
    middle = mean + (first + second) / 2
    return torch.cat([middle / 0.15, (second - first) / 0.0166], 2)


def _autoencoder_optimizer(config: TrainConfig, autoencoder: Autoencoder) -> torch.optim.Optimizer:
    branches = (autoencoder.identity, autoencoder.expression)
    encoders = [p for b in branches for p in (*b.mean.parameters(), b.logvar)]
    decoders = [p for b in branches for m in (b.hidden, b.out) for p in m.parameters()]
    groups = [
        {"params": encoders, "rate_scale": 1.0},
        {"params": decoders, "rate_scale": config.decoder_rate},
    ]
    return torch.optim.Adam(groups, lr=config.rate, betas=config.momentum)


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
