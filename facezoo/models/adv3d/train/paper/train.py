"""Pre-training of the identity discriminator, then both networks in turn.

Source: Gu, Pears & Sun, Sec. III-C, III-D and IV-B, and the authors' code where the paper leaves
things open. Among these is one that is not in the paper: batch norm and dropout of the
discriminator are on in the pre-training and off from then on, with the same weights, so that
layers go without the norm behind which they were trained.

Everything is float32: bfloat16 autocast would move vertices by up to 0.56 mm at FaceScape's scale.

Letters: B batch, N vertices, E edges, L numbers of a code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from facezoo.data.registered import RegisteredMeshes
from facezoo.geometry.laplacian import edges_of
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
from facezoo.models.adv3d.train.paper.partners import Partners
from facezoo.models.adv3d.train.paper.recipes import PaperConfig
from facezoo.training.optim import descend, set_rate
from facezoo.training.state import batches, generator, load_state, log_row, save_state

Step = Callable[[int, Tensor, torch.Generator], Mapping[str, Tensor]]


def pretrain(
    config: PaperConfig,
    meshes: RegisteredMeshes,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    save_every: float = 180.0,
) -> IdentityDiscriminator:
    """Train the discriminator on pairs, of which half are of one person; see ``train``."""
    torch.manual_seed(seed)
    discriminator = IdentityDiscriminator(use_norm=True).to(device)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=config.rate)
    partners = Partners(meshes.persons)

    def step(_: int, rows: Tensor, draw: torch.Generator) -> Mapping[str, Tensor]:
        same = torch.rand(len(rows), generator=draw) < 0.5
        others = partners.draw(rows, same, draw)
        pairs = torch.cat([meshes.vertices[rows], meshes.vertices[others]], 2) / config.scale
        judged, wanted = discriminator(pairs.to(device)), same.to(device)
        loss = torch.nn.functional.nll_loss(judged, wanted.long())
        descend(optimizer, loss)
        right = (judged.argmax(1) == SAME) == wanted
        return {"discriminator": loss, "accuracy": right.float().mean()}

    parts = {"discriminator": discriminator, "optimizer": optimizer}
    size, epochs = config.pretraining_batch_size, config.pretraining_epochs
    fit(parts, len(meshes.vertices), size, epochs, step, out / "pretraining", seed, save_every)
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
    """Both stages; interrupted, the same call goes on and ends at the same weights.

    Args:
        config: the recipe.
        meshes: the training part, with neutrals if the recipe uses them.
        out: folder for the states and logs.
        seed: of initial weights, order and chance.
        device: where to train.
        save_every: seconds between saved states of either stage.

    Raises:
        ValueError: if there are too few meshes or persons, or no neutrals where they are wanted.
    """
    if config.neutrals and meshes.neutral is None:
        raise ValueError("this recipe needs neutral meshes, and these meshes come without")
    judge = IdentityDiscriminator().to(device)
    if config.losses.adversarial:
        knows = pretrain(config, meshes, out, seed=seed, device=device, save_every=save_every)
        judge.load_state_dict(knows.state_dict())
    torch.manual_seed(seed)
    vae = VAE(meshes.vertices.shape[1], config.identity_dim, config.expression_dim).to(device)
    optimizers = {
        "vae": torch.optim.Adam(vae.parameters(), weight_decay=config.weight_decay),
        "judge": torch.optim.Adam(judge.parameters()),
    }
    joint = Joint(config, vae, judge, meshes, device)

    def step(epoch: int, rows: Tensor, draw: torch.Generator) -> Mapping[str, Tensor]:
        for optimizer in optimizers.values():
            set_rate(optimizer, config.rate * config.decay ** (epoch // config.decay_every))
        return joint.step(optimizers, epoch, rows, draw)

    parts: dict[str, Any] = {"vae": vae, "judge": judge}
    parts |= {f"{name}_optimizer": optimizer for name, optimizer in optimizers.items()}
    count, size = len(meshes.vertices), config.batch_size
    fit(parts, count, size, config.epochs, step, out / "joint", seed, save_every)
    return vae.eval()


@dataclass(frozen=True)
class Batch:
    """Meshes as the networks take them, divided by the scale, (B, N, 3) each."""

    mesh: Tensor
    partner: Tensor
    """Another mesh of the same person."""
    neutral: Tensor | None


@dataclass(frozen=True)
class Face:
    """What the autoencoder makes of meshes."""

    z_id: Tensor
    """(B, L)."""
    kl: Tensor
    """Of both codes together, a scalar."""
    identity: Tensor
    """Offsets from the mean face, (B, N, 3)."""
    expression: Tensor
    """Offsets, (B, N, 3)."""


class Joint:
    """One step of the joint training; holds what every step needs.

    Args:
        config: the recipe.
        vae: in training mode.
        judge: the discriminator.
        meshes: the training part.
        device: of the networks.
    """

    def __init__(
        self,
        config: PaperConfig,
        vae: VAE,
        judge: IdentityDiscriminator,
        meshes: RegisteredMeshes,
        device: torch.device,
    ) -> None:
        self.config, self.vae, self.judge, self.device = config, vae, judge, device
        self.meshes, self.partners = meshes, Partners(meshes.persons)
        self.mean = (meshes.vertices.mean(0) / config.scale).to(device)
        self.edges = edges_of(meshes.triangles).to(device)

    def step(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer],
        epoch: int,
        rows: Tensor,
        draw: torch.Generator,
    ) -> Mapping[str, Tensor]:
        """A step of the discriminator, then one of the autoencoder; what each loss was."""
        batch = self.batch(rows, draw)
        face = self.forward(batch.mesh, draw)
        shown = {}
        if self.config.losses.adversarial:
            shown["discriminator"] = self.judged(batch, face)
            descend(optimizers["judge"], shown["discriminator"])
        parts = self.losses(batch, face, draw)
        weights = self.weights(epoch)
        descend(optimizers["vae"], torch.stack([weights[k] * v for k, v in parts.items()]).sum())
        return {**shown, **parts}

    def batch(self, rows: Tensor, draw: torch.Generator) -> Batch:
        """Meshes of rows (B,) with partners and, if wanted, neutrals."""
        others = self.partners.draw(rows, torch.ones(len(rows), dtype=torch.bool), draw)
        neutral = None
        if self.config.neutrals:
            assert self.meshes.neutral is not None
            neutral = self._scaled(self.meshes.neutral[self.meshes.persons[rows]])
        mesh, partner = (self._scaled(self.meshes.vertices[chosen]) for chosen in (rows, others))
        return Batch(mesh, partner, neutral)

    def _scaled(self, vertices: Tensor) -> Tensor:
        return vertices.to(self.device) / self.config.scale

    def forward(self, mesh: Tensor, draw: torch.Generator) -> Face:
        """The autoencoder with sampled codes, identity first, of meshes (B, N, 3)."""
        codes = self.vae.distributions(self.vae.features(mesh))
        z, kl = {}, []
        for part in ("id", "exp"):
            mean, logvar = codes[f"{part}_mean"], codes[f"{part}_logvar"]
            z[part] = self._sample(mean, logvar, draw)
            kl.append(kl_loss(z[part], mean, logvar))
        identity = self.vae.decode_identity(z["id"])
        return Face(z["id"], kl[0] + kl[1], identity, self.vae.decode_expression(z["exp"]))

    def _sample(self, mean: Tensor, logvar: Tensor, draw: torch.Generator) -> Tensor:
        return sample(mean, logvar, torch.randn(mean.shape, generator=draw).to(self.device))

    def judged(self, batch: Batch, face: Face) -> Tensor:
        """The discriminator's loss, eq. (8); nothing of it reaches the autoencoder."""
        decoded = face.identity.detach() + self.mean
        firsts = torch.cat([batch.mesh, batch.mesh])
        judged = self.judge(torch.cat([firsts, torch.cat([batch.partner, decoded])], 2))
        return discriminator_loss(*judged.split(len(batch.mesh)))

    def losses(self, batch: Batch, face: Face, draw: torch.Generator) -> dict[str, Tensor]:
        """The autoencoder's losses, eq. (7), before they are weighed."""
        decoded = face.identity + self.mean
        offsets = batch.mesh - self.mean
        again = self.vae.distributions(self.vae.features(decoded))
        z_again = self._sample(again["id_mean"], again["id_logvar"], draw)
        parts = {
            "reconstruction": reconstruction_loss(face.identity + face.expression, offsets),
            "kl": face.kl,
            "consistency": neutral_loss(face.z_id, z_again),
        }
        if self.config.losses.adversarial:
            self.judge.requires_grad_(False)
            parts["adversarial"] = adversarial_loss(self.judge(torch.cat([batch.mesh, decoded], 2)))
            self.judge.requires_grad_(True)
        if self.config.losses.laplacian:
            parts["laplacian"] = laplacian_loss(decoded, self.edges)
        if batch.neutral is not None:
            truth = batch.neutral - self.mean
            parts["neutral_truth"] = reconstruction_loss(face.identity, truth)
            if self.config.expression_truth:
                parts["expression_truth"] = reconstruction_loss(face.expression, offsets - truth)
        return parts

    def weights(self, epoch: int) -> dict[str, float]:
        """What the losses weigh in an epoch."""
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


def fit(
    parts: Mapping[str, Any],
    count: int,
    size: int,
    epochs: int,
    step: Step,
    stage: Path,
    seed: int,
    save_every: float,
) -> None:
    """Run a stage to its end, from its saved state if there is one.

    Args:
        parts: networks and optimisers, changed in place and kept in ``<stage>.pt``.
        count: rows to train on.
        size: of a batch.
        epochs: how many; the means of each go into ``<stage>.csv``.
        step: from the epoch, row numbers (B,) and a generator of this step to values to log.
        stage: path without suffix.
        seed: of order and chance.
        save_every: seconds between saved states.
    """
    state, log = stage.with_suffix(".pt"), stage.with_suffix(".csv")
    done, sums = 0, dict[str, float]()
    if saved := load_state(state):
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        done, sums = saved["done"], saved["sums"]
    steps = len(batches(count, size, seed, 0))
    if log.is_file():
        # Rows of epochs that ended after the state was saved will be written again.
        log.write_text("".join(log.read_text().splitlines(keepends=True)[: 1 + done // steps]))
    bar = tqdm(initial=done, total=steps * epochs, desc=stage.name, mininterval=10)
    last = time.monotonic()
    while done < steps * epochs:
        epoch, place = divmod(done, steps)
        rows = batches(count, size, seed, epoch)[place]
        torch.manual_seed(generator(seed, epoch, place, 1).initial_seed())  # of dropout
        for name, value in step(epoch, rows, generator(seed, epoch, place)).items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        done += 1
        bar.update()
        if done % steps == 0:
            means = {name: value / steps for name, value in sums.items()}
            log_row(log, {"epoch": epoch + 1, **means})
            bar.set_postfix(epoch=epoch + 1)
            sums = {}
        if time.monotonic() - last > save_every or done == steps * epochs:
            now = {name: part.state_dict() for name, part in parts.items()}
            save_state(state, done=done, sums=sums, **now)
            last = time.monotonic()
    bar.close()
