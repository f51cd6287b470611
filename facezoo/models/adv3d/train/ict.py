"""Training of adv3d on ICT-3D: features, then the identity discriminator, then both networks.

Source: Gu, Pears & Sun, Sec. III-D and IV-B. docs/models/adv3d.md explains the differences: the
shared layers of the encoder are set, not trained (``encoder_init``); the other layers train in
principal coordinates (``autoencoder``); and the discriminator receives a pair as its mean and its
difference (``joint``).

Letters: P identities, E expressions, R rows, C principal axes, K scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from facezoo.data.ict import IctFaces
from facezoo.geometry.meshes import edges_of
from facezoo.models.adv3d.model import Adv3D
from facezoo.models.adv3d.networks import VAE
from facezoo.models.adv3d.train.autoencoder import (
    Autoencoder,
    Branch,
    Frame,
    Regressor,
    extended,
    principal_frame,
    ridge,
)
from facezoo.models.adv3d.train.encoder_init import (
    round_to_half,
    set_shared_layers,
    standardize_features,
)
from facezoo.models.adv3d.train.joint import Rows, train_joint
from facezoo.models.adv3d.train.mixtures import corrupt, sample_mixtures
from facezoo.models.adv3d.train.recipes import IctConfig
from facezoo.models.adv3d.train.registration_noise import registration_errors, sample_error
from facezoo.progress import progress_bar
from facezoo.training.loop import Position, Schedule, fit
from facezoo.training.optim import descend
from facezoo.training.state import generator, load_state, save_state

CHUNK = 400
"""Rows per file of saved features, the most that an interruption loses."""


def train(
    config: IctConfig,
    faces: IctFaces,
    full: IctFaces,
    out: Path,
    *,
    seed: int,
    device: torch.device,
) -> Adv3D:
    """Train the model; a call after an interruption resumes and ends at the same weights.

    Args:
        full: generator of the same meshes in full resolution, which are registered.
    """
    train_set, _ = faces.split(config.size)
    meshes = torch.from_numpy(train_set.vertices) / config.scale  # (P, E, N, 3)
    frame = principal_frame(meshes.flatten(0, 1), config.components, generator(seed, 0))
    vae = VAE(meshes.shape[2], config.identity_dim, config.expression_dim, config.hidden_dim)
    vae.eval().requires_grad_(False)
    low, high = (spread / config.scale for spread in config.anchor_spreads)
    some = meshes.flatten(0, 1)[:: max(1, meshes.shape[0] * meshes.shape[1] // 84)]
    set_shared_layers(vae, some, (low, high), generator(seed, 1))
    round_to_half(vae)  # so that features match the stored weights
    coordinates = frame.coordinates(meshes)
    sample_meshes = config.scale * meshes[::4].flatten(0, 1)
    del meshes, some
    identities, expressions = coordinates.shape[:2]
    count = config.mixtures + config.registered + config.corrupted
    rows = sample_mixtures(identities, expressions, count, generator(seed, 2))
    clean = len(rows) - config.registered - config.corrupted
    errors = torch.zeros(0, *frame.mean.shape)
    if config.registered:
        errors = registration_errors(config, faces, full, frame, out, seed) / config.scale
    coming = Inputs(rows.of(coordinates), clean, clean + config.registered, errors)
    responses = compute_features(vae.to(device), frame, coming, out, 1 / config.scale, seed)
    standardize_features(vae.cpu(), responses)
    round_to_half(vae.bn5)
    features = F.relu(vae.bn5(responses))
    torch.manual_seed(seed)  # of the free hidden units of the branches
    start = initial_branches(config, coordinates, frame)
    regressor = fit_regressor(config, features, rows.of(start.targets), start.sizes, out, seed)
    flat = extended(coordinates.flatten(0, 1)).double()
    exact = torch.linalg.lstsq(flat, start.targets.flatten(0, 1).double(), driver="gelsd").solution
    with torch.no_grad():
        scores = regressor(features[:clean])
    data = Rows(coordinates, rows[slice(clean)], scores, exact.float(), frame)
    edges = edges_of(torch.from_numpy(faces.topology.triangles))
    branches = Autoencoder(*start.branches)
    autoencoder = train_joint(config, branches, data, edges, out, seed, device)
    autoencoder.cpu().write_into(vae, regressor, frame)
    return Adv3D.from_networks(
        vae,
        config.scale,
        frame.mean * config.scale,
        torch.from_numpy(faces.topology.triangles),
        torch.from_numpy(faces.topology.landmarks),
        list(sample_meshes),  # every fourth identity suffices for the statistics of the codes
        config.scale * frame.shape_axes(),
    )


@dataclass(frozen=True)
class Inputs:
    """Rows whose features are computed: clean ones, then registered ones, then corrupted ones."""

    coordinates: Tensor
    """(R, C)."""
    clean: int
    """Number of clean rows."""
    whole: int
    """Number of clean and registered rows."""
    errors: Tensor
    """Errors of registration, (K, N, 3)."""

    def points(self, row: int, mesh: Tensor, unit: float, seed: int) -> Tensor:
        """Return the points that the encoder receives for a mesh (N, 3), (N', 3)."""
        if row < self.clean:
            return mesh
        numbers = generator(seed, row)
        if row < self.whole:
            return mesh + sample_error(self.errors, numbers).to(mesh)
        return corrupt(mesh, unit, numbers)


def compute_features(
    vae: VAE, frame: Frame, inputs: Inputs, out: Path, unit: float, seed: int, batch: int = 8
) -> Tensor:
    """Compute the responses of the shared layers for every row, saved in ``out`` by chunks.

    Args:
        vae: with its shared layers set.
        inputs: R rows.
        unit: one millimeter.
        batch: whole meshes at once.

    Returns:
        (R, 1024).
    """
    device = next(vae.parameters()).device
    mean, axes = frame.mean.to(device), frame.axes.flatten(1).to(device)
    responses = []
    starts = range(0, len(inputs.coordinates), CHUNK)
    for start in progress_bar(starts, mininterval=10, desc="features"):
        path = out / f"features-{start}.pt"
        if (state := load_state(path)) is not None:
            responses.append(state["responses"])
            continue
        part = inputs.coordinates[start : start + CHUNK].to(device)
        meshes = (part @ axes).unflatten(1, (-1, 3)) + mean
        clouds = [inputs.points(row, mesh, unit, seed) for row, mesh in enumerate(meshes, start)]
        whole = max(0, min(len(clouds), inputs.whole - start))
        batches = torch.stack(clouds[:whole]).split(batch) if whole else ()
        with torch.no_grad():
            several = [vae.responses(points) for points in batches]
            single = [vae.responses(cloud[None]) for cloud in clouds[whole:] if len(cloud)]
        responses.append(torch.cat([*several, *single]).cpu())
        save_state(path, responses=responses[-1])
    return torch.cat(responses)


@dataclass(frozen=True)
class Start:
    """Regression targets of the encoder, and the branches that start from them."""

    targets: Tensor
    """Scores of the training meshes, of variance about one, (P, E, K)."""
    sizes: Tensor
    """Size of each score in coordinates, (K,)."""
    branches: tuple[Branch, Branch]
    """Identity and expression."""


def initial_branches(config: IctConfig, mesh: Tensor, frame: Frame) -> Start:
    """Define the scores and the initial branches.

    With neutrals, the scores are principal scores of the neutral and of the expression, and the
    branches start as these. Without, they are principal scores of the mesh, and each branch starts
    with a random half: nothing defines the identity yet.

    Args:
        mesh: training meshes in coordinates, expression 0 neutral, (P, E, C).
    """
    deviation, dims = frame.deviation, (config.identity_dim, config.expression_dim)
    if config.neutrals:
        neutral = mesh[:, :1].expand_as(mesh)
        parts = (neutral, mesh - neutral)
        bases = [_whitened(p.flatten(0, 1), d) for p, d in zip(parts, dims, strict=True)]
        targets = [
            (part - mean) @ project for part, (mean, project, _) in zip(parts, bases, strict=True)
        ]
        sizes = torch.cat([back.norm(dim=0) for _, _, back in bases])
        first, second = (
            Branch(half, back / deviation[:, None], deviation)
            for half, (_, _, back) in zip(torch.eye(sum(dims)).split(dims), bases, strict=True)
        )
        with torch.no_grad():
            for branch, (mean, _, _) in zip((first, second), bases, strict=True):
                branch.out.bias.copy_(mean / deviation)
        return Start(torch.cat(targets, 2), sizes, (first, second))
    mixing = torch.zeros(len(deviation), sum(dims))
    rank = min(mixing.shape)
    random = torch.randn(sum(dims), sum(dims), generator=generator(0, len(deviation)))
    mixing[:rank] = torch.linalg.qr(random)[0][:rank]
    first, second = (Branch(half.T, half, deviation) for half in mixing.split(dims, 1))
    return Start(mesh / deviation, deviation, (first, second))


def fit_regressor(
    config: IctConfig, features: Tensor, targets: Tensor, sizes: Tensor, out: Path, seed: int
) -> Regressor:
    """Fit a ridge regression from features (R, 1024) to scores (R, K), then hidden units.

    ``sizes`` (K,) weigh the errors of the scores. The hidden units learn the residuals.
    """
    torch.manual_seed(seed)
    regressor = Regressor(*ridge(features, targets, config.penalty), config.hidden_dim)
    residuals = (targets - regressor.linear(features)).detach()
    sizes = sizes / (residuals * sizes).square().mean().sqrt()
    center = features.mean(0)  # far from 0: uncentered, one step of the weights silences all units
    hidden, correction = regressor.hidden, regressor.correction
    optimizer = torch.optim.Adam([*hidden.parameters(), *correction.parameters()], lr=1e-3)

    def step(_: Tensor, at: Position) -> dict[str, Tensor]:
        rows = torch.randint(len(features), (512,), generator=generator(seed, 4, at.step))
        corrected = correction(F.relu(hidden(features[rows] - center)))
        loss = ((corrected - residuals[rows]) * sizes).square().mean()
        descend(optimizer, loss)
        return {"loss": loss}

    schedule = Schedule(steps=config.regressor_steps, schedule="cosine", warmup=0.1)
    result = fit(regressor, [optimizer], step, schedule, None, out / "regressor", seed)
    regressor.load_state_dict(result.state)
    with torch.no_grad():
        hidden.bias.sub_(hidden.weight @ center)
    return regressor.requires_grad_(False)


def _whitened(values: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean (C,), a matrix to ``dim`` whitened principal scores (C, dim), and back."""
    mean = values.mean(0)
    _, sizes, axes = torch.linalg.svd((values - mean).double(), full_matrices=False)
    # Axes beyond the rank contain rounding errors only, which must not be scaled to variance 1.
    deviation = (sizes[:dim] / len(values) ** 0.5).clamp(
        min=1e-4 * float(sizes[0]) / len(values) ** 0.5
    )
    flat = axes[:dim].T
    unused = (0, dim - len(deviation))  # dimensions of the code without an axis stay 0
    return (
        mean,
        F.pad((flat / deviation).float(), unused),
        F.pad((flat * deviation).float(), unused),
    )
