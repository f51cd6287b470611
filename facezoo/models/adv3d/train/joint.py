"""The identity discriminator and the autoencoder, trained in turn.

Source: Gu, Pears & Sun, Sec. III-C, III-D and IV-B: pre-training of the discriminator on pairs of
meshes, then both networks together, eqs. (6) to (8).

Letters: P persons, E expressions, R rows, C principal axes, K scores, B batch, V vertices of a
pair, L numbers of a code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from facezoo.models.adv3d.losses import (
    adversarial_loss,
    discriminator_loss,
    independence_loss,
    kl_loss,
    neutral_loss,
    rest_loss,
)
from facezoo.models.adv3d.networks import IdentityDiscriminator
from facezoo.models.adv3d.train.coordinates import Autoencoder, Frame
from facezoo.models.adv3d.train.encoder_init import Mixtures
from facezoo.models.adv3d.train.recipes import TrainConfig
from facezoo.training.optim import WeightAverage, autocast, descend, set_cosine_rate
from facezoo.training.state import generator, load_state, log_row, save_state


@dataclass(frozen=True)
class Rows:
    """What training draws from."""

    coordinates: Tensor
    """Training meshes, expression 0 neutral, (P, E, C)."""
    mixtures: Mixtures
    """R rows; the first P · E are the meshes themselves."""
    scores: Tensor
    """What the encoder reads from every row, (R, K)."""
    exact: Tensor
    """The same scores from coordinates and 1, without the encoder's errors, (C + 1, K)."""
    frame: Frame

    @property
    def neutral(self) -> Tensor:
        """The neutral of every mesh's person, (P, E, C)."""
        return self.coordinates[:, :1].expand_as(self.coordinates)

    def to(self, device: torch.device) -> Rows:
        """The same on a device."""
        return Rows(
            self.coordinates.to(device),
            self.mixtures.to(device),
            self.scores.to(device),
            self.exact.to(device),
            self.frame.to(device),
        )


def fit(
    config: TrainConfig,
    autoencoder: Autoencoder,
    data: Rows,
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
    discriminator = IdentityDiscriminator(shared=config.pair_widths, head=config.pair_head)
    autoencoder.to(device)
    discriminator.to(device)
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
    curvature = data.frame.roughness(edges).to(device)
    step = Step(config, autoencoder, discriminator, data.to(device), curvature)
    before = config.pretraining_steps if config.losses.adversarial else 0
    bar = tqdm(range(first, before + config.steps), initial=first, mininterval=10, desc="joint")
    for number in bar:
        draw = generator(seed, 3, number)
        if number < before:
            numbers = step.pretrain(optimizers["discriminator"], draw)
        else:
            progress = (number - before) / config.steps
            set_cosine_rate(optimizers["autoencoder"], config.rate, progress, 0.02)
            numbers = step.train(optimizers, progress, draw)
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
        curvature: Tensor,
    ) -> None:
        self.config, self.data, self.frame = config, data, data.frame
        self.autoencoder, self.discriminator = autoencoder, discriminator
        self.curvature = curvature
        self.covariance = torch.cov(data.scores.T)
        self.device = curvature.device

    def pretrain(self, optimizer: torch.optim.Optimizer, draw: torch.Generator) -> dict[str, float]:
        """Pairs of one person from pairs of two, as many of each."""
        mixed = self.data.mixtures[self._rows(draw)]
        mesh, partner = mixed.of(self.data.coordinates), self._partner(mixed, draw)
        noise = self.config.pair_noise[0]
        real, fake = self._judge(mesh, [partner, partner.roll(1, 0)], noise, draw)
        loss = discriminator_loss(real, fake)
        descend(optimizer, loss)
        right = (real.argmax(1) == 1).double().mean() + (fake.argmax(1) == 0).double().mean()
        return {"loss": loss.item(), "accuracy": right.item() / 2}

    def train(
        self, optimizers: dict[str, torch.optim.Optimizer], progress: float, draw: torch.Generator
    ) -> dict[str, float]:
        """Discriminator, then autoencoder, on one batch: eqs. (7) and (8)."""
        config, weigh = self.config, self.config.losses
        index = self._rows(draw)
        mixed, scores = self.data.mixtures[index], self.data.scores[index]
        mesh = mixed.of(self.data.coordinates)
        noises = [self._noise((len(index), dim), draw) for dim in self._dims()]
        z_id, id_mean = self.autoencoder.identity.encode(scores, noises[0])
        z_exp, exp_mean = self.autoencoder.expression.encode(scores, noises[1])
        identity = self.autoencoder.identity.decode(z_id)
        expression = self.autoencoder.expression.decode(z_exp)
        branches = self.autoencoder.identity, self.autoencoder.expression
        logvars = [branch.logvar.expand(len(index), -1) for branch in branches]
        parts = {
            "reconstruction": self.frame.mean_squared(identity + expression - mesh),
            "kl": kl_loss(z_id, id_mean, logvars[0]) + kl_loss(z_exp, exp_mean, logvars[1]),
            **self._again(identity, z_id, draw),
            **self._population(draw),
        }
        weights = {"consistency": weigh.consistency, "rest": weigh.rest, "kl": weigh.kl}
        weights |= {"independence": weigh.independence, "centre": weigh.centre}
        weights["reconstruction"] = weigh.reconstruction
        numbers: dict[str, float] = {}
        if weigh.adversarial:
            # The identity face wears the expression of the batch's next mesh, so that both kinds
            # of pairs differ in expression alike.
            dressed = identity + expression.roll(1, 0)
            spread = self._spread(progress)
            partner = self._partner(mixed, draw)
            real, fake = self._judge(mesh, [partner, dressed.detach()], spread, draw)
            judged = discriminator_loss(real, fake)
            descend(optimizers["discriminator"], judged)
            numbers["discriminator"] = judged.item()
            self.discriminator.requires_grad_(False)
            (fooled,) = self._judge(mesh, [dressed], spread, draw)
            self.discriminator.requires_grad_(True)
            parts["adversarial"] = adversarial_loss(fooled)
            weights["adversarial"] = weigh.adversarial
        if config.neutrals:
            truth = mixed.of(self.data.neutral)
            parts["neutral_truth"] = self.frame.mean_squared(identity - truth)
            weights["neutral_truth"] = weigh.reconstruction * weigh.neutral_truth
        else:
            parts["laplacian"] = self._roughness(identity)
            weights["laplacian"] = weigh.laplacian
        total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        descend(optimizers["autoencoder"], total)
        return numbers | {name: value.item() for name, value in parts.items()}

    def _dims(self) -> tuple[int, int]:
        return self.config.identity_dim, self.config.expression_dim

    def _noise(self, shape: Sequence[int], draw: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=draw).to(self.device)

    def _spread(self, progress: float) -> float:
        """Noise of pairs in mm: linearly down to its last value in seven tenths of the training."""
        begin, end = self.config.pair_noise
        return end + (begin - end) * max(0.0, 1 - progress / 0.7)

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
        """The same identities in the expressions of other meshes, in coordinates, (B, C).

        Meshes of the set itself stay with their own person.
        """
        people, count = self.data.coordinates.shape[:2]
        step = torch.randint(1, count, (len(mixed),), generator=draw).to(self.device)
        other = torch.randint(people, (len(mixed),), generator=draw).to(self.device)
        own = mixed.weights[:, 0] == 1
        person = torch.where(own, mixed.person, other)
        expression = (mixed.expression + step) % count
        return mixed.dressed(person, expression).of(self.data.coordinates)

    def _judge(
        self, mesh: Tensor, others: list[Tensor], spread: float, draw: torch.Generator
    ) -> tuple[Tensor, ...]:
        """The discriminator on pairs of meshes (B, C) with others, on some vertices.

        The others get noise of ``spread`` mm.
        """
        count = len(self.frame.mean)
        chosen = torch.randperm(count, generator=draw)[: self.config.pair_vertices]
        chosen = chosen.to(self.device)
        first = self.frame.offsets(mesh, chosen)
        pairs = []
        for other in others:
            second = self.frame.offsets(other, chosen)
            second = second + spread / self.config.scale * self._noise(second.shape, draw)
            pairs.append(pair_channels(self.frame.mean[chosen], first, second))
        with autocast(self.device):
            judged = self.discriminator(torch.cat(pairs))
        return judged.float().split(len(mesh))

    def _again(self, identity: Tensor, z_id: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
        """L_neu and ``rest``: decoded identities are encoded again, without the encoder's error."""
        scores = extended(identity) @ self.data.exact
        noise = self._noise(z_id.shape, draw)
        again, _ = self.autoencoder.identity.encode(scores, noise)
        at_rest = self.autoencoder.expression.mean(scores)
        return {"consistency": neutral_loss(z_id, again), "rest": rest_loss(at_rest)}

    def _population(self, draw: torch.Generator) -> dict[str, Tensor]:
        """What is asked of many meshes together: independent codes, no expression on average."""
        rows = len(self.data.scores)
        index = torch.randint(rows, (self.config.population,), generator=draw)
        identity, expression = self.autoencoder.identity, self.autoencoder.expression
        codes = expression.mean(self.data.scores[index])
        mean = expression.decode(codes).mean(0, keepdim=True)
        weights = identity.mean.weight, expression.mean.weight
        return {
            "independence": independence_loss(*weights, self.covariance),
            "centre": self.frame.mean_squared(mean),
        }

    def _roughness(self, identity: Tensor) -> Tensor:
        """The Laplacian loss of decoded identities plus the mean face."""
        coordinates = extended(identity)
        return ((coordinates @ self.curvature) * coordinates).sum(1).mean()


def extended(coordinates: Tensor) -> Tensor:
    """Coordinates (B, C) and a column of ones, (B, C + 1)."""
    return torch.cat([coordinates, torch.ones_like(coordinates[:, :1])], 1)


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
