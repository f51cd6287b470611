"""Identity discriminator and autoencoder on ICT-3D, trained alternately.

Source: Gu, Pears & Sun, Sec. III-C, III-D and IV-B: pretraining of the discriminator on pairs of
meshes, then both networks together, eqs. (6) to (8).

Letters: P identities, E expressions, R rows, C principal axes, K scores, B batch, V vertices of a
pair, L latent dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from facezoo.models.adv3d.losses import (
    adversarial_loss,
    discriminator_loss,
    independence_loss,
    kl_loss,
    neutral_loss,
    rest_loss,
)
from facezoo.models.adv3d.networks import IdentityDiscriminator
from facezoo.models.adv3d.train.autoencoder import Autoencoder, Frame, extended
from facezoo.models.adv3d.train.mixtures import Mixtures
from facezoo.models.adv3d.train.recipes import IctConfig
from facezoo.training.loop import Position, Schedule, fit
from facezoo.training.optim import autocast, descend, fixed
from facezoo.training.state import generator


@dataclass(frozen=True)
class Rows:
    """Training data of the joint stage."""

    coordinates: Tensor
    """Training meshes, expression 0 neutral, (P, E, C)."""
    mixtures: Mixtures
    """R rows; the first P · E are the meshes."""
    scores: Tensor
    """Scores that the encoder reads from each row, (R, K)."""
    exact: Tensor
    """Linear map from coordinates and 1 to the scores, without encoder errors, (C + 1, K)."""
    frame: Frame

    def to(self, device: torch.device) -> Rows:
        """Move to a device."""
        return Rows(
            self.coordinates.to(device),
            self.mixtures.to(device),
            self.scores.to(device),
            self.exact.to(device),
            self.frame.to(device),
        )


def train_joint(
    config: IctConfig,
    autoencoder: Autoencoder,
    data: Rows,
    edges: Tensor,
    out: Path,
    seed: int,
    device: torch.device,
    save_every: float = 180.0,
) -> Autoencoder:
    """Pretrain the discriminator, then train both networks; returns the EMA autoencoder."""
    torch.manual_seed(seed)
    discriminator = IdentityDiscriminator(shared=config.pair_widths, head=config.pair_head)
    autoencoder.to(device)
    discriminator.to(device)
    optimizer = _autoencoder_optimizer(config, autoencoder)
    judge_optimizer = torch.optim.Adam(
        discriminator.parameters(), lr=config.discriminator_lr, betas=config.betas
    )
    curvature = data.frame.roughness(edges).to(device)
    joint = Joint(config, autoencoder, discriminator, data.to(device), curvature)
    pretraining_steps = config.pretraining_steps if config.losses.adversarial else 0
    if pretraining_steps:
        fit(
            discriminator,
            [judge_optimizer],
            lambda _, at: joint.pretrain(judge_optimizer, generator(seed, 3, at.step)),
            Schedule(steps=pretraining_steps, schedule="constant"),
            None,
            out / "pretraining",
            seed,
            save_every=save_every,
        )

    def step(_: Tensor, at: Position) -> dict[str, float]:
        random = generator(seed, 3, pretraining_steps + at.step)
        return joint.train(optimizer, judge_optimizer, at.progress, random)

    result = fit(
        autoencoder,
        [optimizer],
        step,
        Schedule(steps=config.steps, schedule="cosine", warmup=0.02, average=config.ema_decay),
        None,
        out / "joint",
        seed,
        others={"discriminator": discriminator, "discriminator_optimizer": judge_optimizer},
        save_every=save_every,
    )
    autoencoder.load_state_dict(result.state)
    return autoencoder


class Joint:
    """Steps of both stages, with the data that they share."""

    def __init__(
        self,
        config: IctConfig,
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

    def pretrain(
        self, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> dict[str, float]:
        """Train the discriminator on pairs of one identity and of two, in equal numbers."""
        rows = self.data.mixtures[self._rows(generator)]
        mesh, partner = rows.of(self.data.coordinates), self._partner(rows, generator)
        noise_mm = self.config.pair_noise[0]
        real, fake = self._judge(mesh, [partner, partner.roll(1, 0)], noise_mm, generator)
        loss = discriminator_loss(real, fake)
        descend(optimizer, loss)
        correct = (real.argmax(1) == 1).double().mean() + (fake.argmax(1) == 0).double().mean()
        return {"loss": loss.item(), "accuracy": correct.item() / 2}

    def train(
        self,
        optimizer: torch.optim.Optimizer,
        judge_optimizer: torch.optim.Optimizer,
        progress: float,
        generator: torch.Generator,
    ) -> dict[str, float]:
        """Train the discriminator, then the autoencoder, on one batch: eqs. (7) and (8)."""
        config, weigh = self.config, self.config.losses
        index = self._rows(generator)
        rows, scores = self.data.mixtures[index], self.data.scores[index]
        mesh = rows.of(self.data.coordinates)
        branches = self.autoencoder.identity, self.autoencoder.expression
        dims = config.identity_dim, config.expression_dim
        noises = [self._noise((len(index), dim), generator) for dim in dims]
        (z_id, id_mean), (z_exp, exp_mean) = (
            branch.encode(scores, noise) for branch, noise in zip(branches, noises, strict=True)
        )
        identity, expression = branches[0].decode(z_id), branches[1].decode(z_exp)
        logvars = [branch.logvar.expand(len(index), -1) for branch in branches]
        # The order of the calls fixes the random numbers, so it must not change.
        parts = {
            "reconstruction": self.frame.mean_squared(identity + expression - mesh),
            "kl": kl_loss(z_id, id_mean, logvars[0]) + kl_loss(z_exp, exp_mean, logvars[1]),
            **self._encode_again(identity, z_id, generator),
            **self._population(generator),
        }
        weights = {"consistency": weigh.consistency, "rest": weigh.rest, "kl": weigh.kl}
        weights |= {"independence": weigh.independence, "center": weigh.center}
        weights["reconstruction"] = weigh.reconstruction
        values: dict[str, float] = {}
        if weigh.adversarial:
            # The identity face gets the expression of the next mesh of the batch, so that both
            # kinds of pairs differ in expression.
            expressive = identity + expression.roll(1, 0)
            start, end = config.pair_noise  # falls linearly until 70 % of the training
            noise_mm = end + (start - end) * max(0.0, 1 - progress / 0.7)
            partner = self._partner(rows, generator)
            judged = self._judge(mesh, [partner, expressive.detach()], noise_mm, generator)
            discriminator = discriminator_loss(*judged)
            descend(judge_optimizer, discriminator)
            values["discriminator"] = discriminator.item()
            with fixed(self.discriminator):
                (fake,) = self._judge(mesh, [expressive], noise_mm, generator)
            parts["adversarial"] = adversarial_loss(fake)
            weights["adversarial"] = weigh.adversarial
        if config.neutrals:
            neutrals = self.data.coordinates[:, :1].expand_as(self.data.coordinates)
            truth = rows.of(neutrals)
            parts["neutral_truth"] = self.frame.mean_squared(identity - truth)
            weights["neutral_truth"] = weigh.reconstruction * weigh.neutral_truth
        else:
            coordinates = extended(identity)
            curved = coordinates @ self.curvature
            parts["laplacian"] = (curved * coordinates).sum(1).mean()
            weights["laplacian"] = weigh.laplacian
        total = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        descend(optimizer, total)
        return values | {name: value.item() for name, value in parts.items()}

    def _noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator).to(self.device)

    def _rows(self, generator: torch.Generator) -> Tensor:
        """Sample the rows of a batch: half of them meshes, half mixtures."""
        identities, expressions = self.data.coordinates.shape[:2]
        count, half = identities * expressions, self.config.batch_size // 2
        meshes = torch.randint(count, (self.config.batch_size - half,), generator=generator)
        if len(self.data.mixtures) == count:
            return torch.cat([meshes, torch.randint(count, (half,), generator=generator)])
        mixed = torch.randint(count, len(self.data.mixtures), (half,), generator=generator)
        return torch.cat([meshes, mixed])

    def _partner(self, rows: Mixtures, generator: torch.Generator) -> Tensor:
        """Return the same identities with the expressions of other meshes, coordinates (B, C).

        Rows that are training meshes keep the expressions of their own identity.
        """
        identities, expressions = self.data.coordinates.shape[:2]
        step = torch.randint(1, expressions, (len(rows),), generator=generator).to(self.device)
        other = torch.randint(identities, (len(rows),), generator=generator).to(self.device)
        identity = torch.where(rows.weights[:, 0] == 1, rows.identity, other)
        expression = (rows.expression + step) % expressions
        return rows.with_expressions(identity, expression).of(self.data.coordinates)

    def _judge(
        self, mesh: Tensor, others: list[Tensor], noise_mm: float, generator: torch.Generator
    ) -> tuple[Tensor, ...]:
        """Apply the discriminator to pairs of meshes (B, C) and noisy others, on some vertices."""
        count = len(self.frame.mean)
        vertices = torch.randperm(count, generator=generator)[: self.config.pair_vertices]
        vertices = vertices.to(self.device)
        first = self.frame.offsets(mesh, vertices)
        pairs = []
        for other in others:
            second = self.frame.offsets(other, vertices)
            noise = self._noise(second.shape, generator)
            second = second + noise_mm / self.config.scale * noise
            pairs.append(pair_channels(self.frame.mean[vertices], first, second))
        with autocast(self.device):
            judged = self.discriminator(torch.cat(pairs))
        return judged.float().split(len(mesh))

    def _encode_again(
        self, identity: Tensor, z_id: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute L_neu and ``rest`` from decoded identities, without the encoder's error."""
        scores = extended(identity) @ self.data.exact
        noise = self._noise(z_id.shape, generator)
        again, _ = self.autoencoder.identity.encode(scores, noise)
        at_rest = self.autoencoder.expression.mean(scores)
        return {"consistency": neutral_loss(z_id, again), "rest": rest_loss(at_rest)}

    def _population(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the losses over many meshes: independent codes, zero mean expression."""
        count = len(self.data.scores)
        index = torch.randint(count, (self.config.population,), generator=generator)
        identity, expression = self.autoencoder.identity, self.autoencoder.expression
        codes = expression.mean(self.data.scores[index])
        mean = expression.decode(codes).mean(0, keepdim=True)
        weights = identity.mean.weight, expression.mean.weight
        return {
            "independence": independence_loss(*weights, self.covariance),
            "center": self.frame.mean_squared(mean),
        }


def pair_channels(mean: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Express a pair of faces as its mean and its difference, for the discriminator.

    These are the six numbers per vertex of both faces, in other axes. Faces of two identities
    differ by a fortieth of their common part, and that fortieth matters.

    Args:
        mean: the mean face at these vertices, (V, 3).
        first: offsets of one face from it, (B, V, 3).
        second: offsets of the other, (B, V, 3).

    Returns:
        (B, V, 6), both parts about one in size.
    """
    middle = mean + (first + second) / 2
    return torch.cat([middle / 0.15, (second - first) / 0.0166], 2)


def _autoencoder_optimizer(config: IctConfig, autoencoder: Autoencoder) -> torch.optim.Optimizer:
    branches = (autoencoder.identity, autoencoder.expression)
    encoders = [p for b in branches for p in (*b.mean.parameters(), b.logvar)]
    decoders = [p for b in branches for m in (b.hidden, b.out) for p in m.parameters()]
    groups = [
        {"params": encoders, "lr_scale": 1.0},
        {"params": decoders, "lr_scale": config.decoder_lr_scale},
    ]
    return torch.optim.Adam(groups, lr=config.lr, betas=config.betas)
