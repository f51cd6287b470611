"""Training of the paper: the identity discriminator first, then both networks alternately.

Source: Gu, Pears & Sun, Sec. III-C, III-D and IV-B, and the authors' code where the paper leaves
details open. One of these is not in the paper: the discriminator has batch norm and dropout in the
pretraining and not afterwards, with the same weights.

Everything is float32: bfloat16 autocast moves vertices by up to 0.56 mm at FaceScape's scale.

Letters: B batch, N vertices, M meshes, L latent dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.data.registered import RegisteredMeshes
from facezoo.geometry.meshes import edges_of
from facezoo.models.adv3d.losses import (
    SAME,
    adversarial_loss,
    discriminator_loss,
    kl_loss,
    laplacian_loss,
    neutral_loss,
    reconstruction_loss,
)
from facezoo.models.adv3d.networks import VAE, IdentityDiscriminator, sample
from facezoo.models.adv3d.train.recipes import PaperConfig
from facezoo.training.loop import Position, Schedule, fit
from facezoo.training.optim import descend, fixed


def pretrain(
    config: PaperConfig,
    meshes: RegisteredMeshes,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    save_every: float = 180.0,
) -> IdentityDiscriminator:
    """Train the discriminator on pairs; half of them are of one identity. See ``train``."""
    torch.manual_seed(seed)
    discriminator = IdentityDiscriminator(use_norm=True).to(device)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=config.lr)
    sampler = PairSampler(meshes.identities)

    def step(rows: Tensor, at: Position) -> Mapping[str, Tensor]:
        same = torch.rand(len(rows), generator=at.generator) < 0.5
        others = sampler.sample(rows, same, at.generator)
        pairs = torch.cat([meshes.vertices[rows], meshes.vertices[others]], 2) / config.scale
        judged, target = discriminator(pairs.to(device)), same.to(device)
        loss = F.nll_loss(judged, target.long())
        descend(optimizer, loss)
        correct = (judged.argmax(1) == SAME) == target
        return {"discriminator": loss, "accuracy": correct.float().mean()}

    schedule = Schedule(config.pretraining_epochs, config.pretraining_batch_size)
    rows = torch.arange(len(meshes.vertices))
    result = fit(
        discriminator,
        [optimizer],
        step,
        schedule,
        rows,
        out / "pretraining",
        seed,
        save_every=save_every,
    )
    discriminator.load_state_dict(result.state)
    return discriminator


def train(
    config: PaperConfig,
    meshes: RegisteredMeshes,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    save_every: float = 180.0,
) -> VAE:
    """Train both stages; a call after an interruption resumes and ends at the same weights.

    Args:
        meshes: the training part, with neutrals if the recipe uses them.
        save_every: seconds between saved states.

    Raises:
        ValueError: if there are too few meshes or identities, or if neutrals are missing.
    """
    if config.neutrals and meshes.neutral is None:
        raise ValueError("this recipe needs neutral meshes, but the data set has none")
    judge = IdentityDiscriminator().to(device)
    if config.losses.adversarial:
        pretrained = pretrain(config, meshes, out, seed=seed, device=device, save_every=save_every)
        judge.load_state_dict(pretrained.state_dict())
    torch.manual_seed(seed)
    vae = VAE(meshes.vertices.shape[1], config.identity_dim, config.expression_dim).to(device)
    optimizer = torch.optim.Adam(vae.parameters(), config.lr, weight_decay=config.weight_decay)
    judge_optimizer = torch.optim.Adam(judge.parameters(), config.lr)
    joint = Joint(config, vae, judge, meshes, device)
    result = fit(
        vae,
        [optimizer, judge_optimizer],
        lambda rows, at: joint.step(optimizer, judge_optimizer, rows, at),
        Schedule(
            config.epochs,
            config.batch_size,
            schedule="step",
            gamma=config.lr_decay,
            step_epochs=config.lr_decay_every,
        ),
        torch.arange(len(meshes.vertices)),
        out / "joint",
        seed,
        others={"discriminator": judge},
        save_every=save_every,
    )
    vae.load_state_dict(result.state)
    return vae.eval()


@dataclass(frozen=True)
class Batch:
    """Meshes divided by the scale, (B, N, 3) each."""

    mesh: Tensor
    partner: Tensor
    """Another mesh of the same identity."""
    neutral: Tensor | None


@dataclass(frozen=True)
class Face:
    """Output of the autoencoder."""

    z_id: Tensor
    """(B, L)."""
    kl: Tensor
    """Of both codes, a scalar."""
    identity: Tensor
    """Offsets from the mean face, (B, N, 3)."""
    expression: Tensor
    """Offsets, (B, N, 3)."""


class PairSampler:
    """Sampler of a second mesh for each mesh: of the same identity, or of another.

    Args:
        identities: identity index of each mesh, (M,).

    Raises:
        ValueError: if there are fewer than two identities, or one has a single mesh.
    """

    def __init__(self, identities: Tensor) -> None:
        self.identities = identities
        self.order = identities.argsort(stable=True)
        self.rank = self.order.argsort()
        self.count = identities.bincount()
        self.start = self.count.cumsum(0) - self.count
        present = self.count[self.count > 0]
        if len(present) < 2 or int(present.min()) < 2:
            raise ValueError(
                "pairs need two or more identities with two or more meshes each; got "
                f"{len(present)} identities, and one has {int(present.min())}"
            )

    def sample(self, rows: Tensor, same: Tensor, generator: torch.Generator) -> Tensor:
        """Sample a partner for each row, uniformly.

        The authors' code samples among all meshes of the identity, so a mesh can be its own
        partner. Here it cannot.

        Args:
            rows: (B,).
            same: True for a partner of the same identity, bool, (B,).

        Returns:
            Rows of the partners, (B,).
        """
        count, start = self.count[self.identities[rows]], self.start[self.identities[rows]]
        total = len(self.identities)
        choices = torch.where(same, count - 1, total - count)
        chance = torch.rand(len(rows), generator=generator, dtype=torch.float64)
        step = (chance * choices).long()
        mates = start + (self.rank[rows] - start + 1 + step) % count
        others = (start + count + step) % total
        return self.order[torch.where(same, mates, others)]


class Joint:
    """One step of the joint training, with its data; ``vae`` must be in training mode."""

    def __init__(
        self,
        config: PaperConfig,
        vae: VAE,
        judge: IdentityDiscriminator,
        meshes: RegisteredMeshes,
        device: torch.device,
    ) -> None:
        self.config, self.vae, self.judge, self.device = config, vae, judge, device
        self.meshes, self.sampler = meshes, PairSampler(meshes.identities)
        self.mean = (meshes.vertices.mean(0) / config.scale).to(device)
        self.edges = edges_of(meshes.triangles).to(device)

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        judge_optimizer: torch.optim.Optimizer,
        rows: Tensor,
        at: Position,
    ) -> Mapping[str, Tensor]:
        """Train the discriminator, then the autoencoder; returns every loss."""
        batch = self.batch(rows, at.generator)
        face = self.forward(batch.mesh, at.generator)
        values = {}
        if self.config.losses.adversarial:
            values["discriminator"] = self.discriminator_loss(batch, face)
            descend(judge_optimizer, values["discriminator"])
        parts = self.losses(batch, face, at.generator)
        weights = self.weights(at.epoch)
        descend(optimizer, torch.stack([weights[k] * v for k, v in parts.items()]).sum())
        return {**values, **parts}

    def batch(self, rows: Tensor, generator: torch.Generator) -> Batch:
        """Collect meshes of rows (B,) with partners and, if used, neutrals."""
        same = torch.ones(len(rows), dtype=torch.bool)
        others = self.sampler.sample(rows, same, generator)
        neutral = None
        if self.config.neutrals:
            assert self.meshes.neutral is not None
            neutral = self._scaled(self.meshes.neutral[self.meshes.identities[rows]])
        mesh, partner = (self._scaled(self.meshes.vertices[index]) for index in (rows, others))
        return Batch(mesh, partner, neutral)

    def _scaled(self, vertices: Tensor) -> Tensor:
        return vertices.to(self.device) / self.config.scale

    def forward(self, mesh: Tensor, generator: torch.Generator) -> Face:
        """Apply the autoencoder with sampled codes, identity first, to meshes (B, N, 3)."""
        codes = self.vae.distributions(self.vae.features(mesh))
        z, kl = {}, []
        for part in ("id", "exp"):
            mean, logvar = codes[f"{part}_mean"], codes[f"{part}_logvar"]
            z[part] = self._sample(mean, logvar, generator)
            kl.append(kl_loss(z[part], mean, logvar))
        identity = self.vae.decode_identity(z["id"])
        return Face(z["id"], kl[0] + kl[1], identity, self.vae.decode_expression(z["exp"]))

    def _sample(self, mean: Tensor, logvar: Tensor, generator: torch.Generator) -> Tensor:
        return sample(mean, logvar, torch.randn(mean.shape, generator=generator).to(self.device))

    def discriminator_loss(self, batch: Batch, face: Face) -> Tensor:
        """Compute eq. (8), without gradients to the autoencoder."""
        decoded = face.identity.detach() + self.mean
        firsts = torch.cat([batch.mesh, batch.mesh])
        judged = self.judge(torch.cat([firsts, torch.cat([batch.partner, decoded])], 2))
        return discriminator_loss(*judged.split(len(batch.mesh)))

    def losses(self, batch: Batch, face: Face, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the autoencoder's losses of eq. (7), unweighted."""
        decoded = face.identity + self.mean
        offsets = batch.mesh - self.mean
        again = self.vae.distributions(self.vae.features(decoded))
        z_again = self._sample(again["id_mean"], again["id_logvar"], generator)
        parts = {
            "reconstruction": reconstruction_loss(face.identity + face.expression, offsets),
            "kl": face.kl,
            "consistency": neutral_loss(face.z_id, z_again),
        }
        if self.config.losses.adversarial:
            with fixed(self.judge):
                judged = self.judge(torch.cat([batch.mesh, decoded], 2))
            parts["adversarial"] = adversarial_loss(judged)
        if self.config.losses.laplacian:
            parts["laplacian"] = laplacian_loss(decoded, self.edges)
        if batch.neutral is not None:
            truth = batch.neutral - self.mean
            parts["neutral_truth"] = reconstruction_loss(face.identity, truth)
            if self.config.expression_truth:
                parts["expression_truth"] = reconstruction_loss(face.expression, offsets - truth)
        return parts

    def weights(self, epoch: int) -> dict[str, float]:
        """Return the weights of the losses in an epoch."""
        weigh, until = self.config.losses, self.config.kl_epochs
        truth = weigh.reconstruction * weigh.neutral_truth
        return {
            "reconstruction": weigh.reconstruction,
            "kl": weigh.kl * (1 - epoch / until if until else 1.0),
            "consistency": weigh.consistency,
            "adversarial": weigh.adversarial,
            "laplacian": weigh.laplacian,
            "neutral_truth": truth,
            "expression_truth": truth,
        }
