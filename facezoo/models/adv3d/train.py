"""Training of adv3d on ICT-3D: features, then the identity discriminator, then both networks.

Source: Gu, Pears & Sun, Sec. III-D and IV-B. What differs, and why, is in docs/models/adv3d.md: the
encoder's shared layers are set rather than learnt (``start``), the rest trains in principal
coordinates (``coordinates``), and the discriminator is given a pair as its middle and its
difference (``joint``).

Letters: P persons, E expressions, R rows, C principal axes.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from facezoo.card import Licenses, Preprocessing
from facezoo.data.ict import IctFaces
from facezoo.geometry.laplacian import edges_of
from facezoo.models.adv3d.config import ICT, TrainConfig
from facezoo.models.adv3d.coordinates import Autoencoder, Branch, Frame, Reading, principal_frame
from facezoo.models.adv3d.joint import Rows, fit
from facezoo.models.adv3d.model import Adv3D
from facezoo.models.adv3d.networks import VAE
from facezoo.models.adv3d.start import (
    batches_of,
    draw_mixtures,
    ridge,
    set_shared_layers,
    standardise_features,
)
from facezoo.training import begin_run, generator, load_state, save_state, write_checkpoint

CITATION = """@inproceedings{gu2023adversarial,
  title = {Adversarial 3D Face Disentanglement of Identity and Expression},
  author = {Gu, Yajie and Pears, Nick and Sun, Hao},
  booktitle = {IEEE International Conference on Automatic Face and Gesture Recognition},
  year = {2023}
}"""


def run(
    data: Path, out: Path, *, seed: int, device: torch.device, config: TrainConfig = ICT
) -> Path:
    """Train by a recipe and write weights and card; returns the card's path.

    Args:
        data: folder with the files of ICT-3D.
        out: folder for the run's state, log and result.
        seed: of everything random.
        device: where to train.
        config: the recipe, such as one of ``RECIPES``.
    """
    faces = IctFaces(data)
    record = begin_run(out, seed=seed, recipe=asdict(config))
    model = train(config, faces, out, seed=seed, device=device)
    return write_checkpoint(
        model,
        out,
        record,
        model="adv3d",
        tag=config.tag,
        architecture=model.architecture,
        preprocessing=Preprocessing(),
        labels=(),
        precision=config.precision,
        licenses=Licenses(code="Apache-2.0", weights="mit", data="mit"),
        data=(
            f"ICT-3D, {config.size} size, linear: synthetic meshes from the modes of ICT-FaceKit",
        ),
        intended_use=(
            "Research on the shape of faces: identity and expression of meshes in the topology of "
            "ICT-3D. Trained on synthetic meshes without noise; not for identifying people."
        ),
        citation=CITATION,
    )


def train(
    config: TrainConfig, faces: IctFaces, out: Path, *, seed: int, device: torch.device
) -> Adv3D:
    """Train the model; interrupted, the same call goes on and ends at the same weights."""
    train_set, _ = faces.split(config.size)
    meshes = torch.from_numpy(train_set.vertices) / config.scale  # (P, E, N, 3)
    frame = principal_frame(meshes.flatten(0, 1), config.components, generator(seed, 0))
    vae = VAE(meshes.shape[2], config.identity_dim, config.expression_dim)
    vae.eval().requires_grad_(False)
    spreads = tuple(spread / config.scale for spread in config.anchor_spreads)
    some = meshes.flatten(0, 1)[:: max(1, meshes.shape[0] * meshes.shape[1] // 84)]
    set_shared_layers(vae, some, spreads, generator(seed, 1))
    _round(vae)  # so that what is stored is what the features were made with
    coordinates = frame.coordinates(meshes)
    del meshes, some
    people, expressions = coordinates.shape[:2]
    rows = draw_mixtures(people, expressions, config.mixtures, generator(seed, 2))
    responses = compute_features(vae.to(device), frame, rows.of(coordinates), out)
    standardise_features(vae.cpu(), responses)
    _round(vae.bn5)
    features = F.relu(vae.bn5(responses))
    data = Rows(coordinates, rows, features, frame)
    torch.manual_seed(seed)  # of the hidden units that the branches have to spare
    reading, autoencoder = begin(config, data)
    edges = edges_of(torch.from_numpy(faces.topology.triangles))
    vae.to(device)
    kept = fit(config, autoencoder, data, reading, vae, edges, out, seed, device)
    kept.cpu().write_into(vae.cpu(), reading, frame)
    model = Adv3D(
        num_vertices=vae.num_vertices,
        num_triangles=len(faces.topology.triangles),
        num_landmarks=len(faces.topology.landmarks),
        identity_dim=config.identity_dim,
        expression_dim=config.expression_dim,
        scale=config.scale,
    )
    model.vae.load_state_dict(vae.state_dict())
    model.set_template(
        frame.mean * config.scale,
        torch.from_numpy(faces.topology.triangles),
        torch.from_numpy(faces.topology.landmarks),
    )
    return model.eval()


def compute_features(
    vae: VAE, frame: Frame, coordinates: Tensor, out: Path, chunk: int = 400, batch: int = 8
) -> Tensor:
    """Responses of the shared layers for every row, kept in ``out/features.pt`` chunk by chunk."""
    path = out / "features.pt"
    saved = load_state(path)
    done: list[Tensor] = [saved["features"]] if saved else []
    begin_at = len(done[0]) if done else 0
    device = next(vae.parameters()).device
    mean, axes = frame.mean.to(device), frame.axes.flatten(1).to(device)
    for part in tqdm(list(batches_of(len(coordinates), chunk)), mininterval=10, desc="features"):
        if part.stop <= begin_at:
            continue
        meshes = (coordinates[part].to(device) @ axes).unflatten(1, (-1, 3)) + mean
        with torch.no_grad():
            responses = torch.cat([vae.responses(few) for few in meshes.split(batch)])
        done.append(responses.cpu())
        save_state(path, features=torch.cat(done))
    return torch.cat(done)


def begin(config: TrainConfig, data: Rows) -> tuple[Reading, Autoencoder]:
    """Scores by ridge regression, and branches that start from them.

    With neutrals the scores are principal scores of the neutral and of the rest, and the branches
    start as these. Without, they are principal scores of the mesh, of which each branch starts
    with a random half: nothing says yet what is identity.
    """
    deviation = data.frame.deviation
    mesh, count = data.coordinates, len(deviation)
    if config.neutrals:
        parts = [data.neutral, mesh - data.neutral]
        dims = [config.identity_dim, config.expression_dim]
        bases = [_whitened(p.flatten(0, 1), d) for p, d in zip(parts, dims, strict=True)]
        targets = [
            (data.mixtures.of(part) - middle) @ project
            for part, (middle, project, _) in zip(parts, bases, strict=True)
        ]
        reading = Reading(*ridge(data.features, torch.cat(targets, 1), config.penalty))
        eye = torch.eye(sum(dims))
        branches = [
            Branch(half, back / deviation[:, None], deviation)
            for half, (_, _, back) in zip(eye.split(dims), bases, strict=True)
        ]
        with torch.no_grad():
            for branch, (middle, _, _) in zip(branches, bases, strict=True):
                branch.out.bias.copy_(middle / deviation)
        return reading, Autoencoder(*branches)
    scores = data.mixtures.of(mesh) / deviation
    reading = Reading(*ridge(data.features, scores, config.penalty))
    dim = config.identity_dim + config.expression_dim
    kept = min(dim, count)
    mixing = torch.zeros(count, dim)
    draw = generator(0, count)
    mixing[:kept] = torch.linalg.qr(torch.randn(dim, dim, generator=draw))[0][:kept]
    halves = mixing.split([config.identity_dim, config.expression_dim], 1)
    return reading, Autoencoder(*(Branch(half.T, half, deviation) for half in halves))


def _whitened(values: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), matrix to the first ``dim`` principal scores of variance 1 (C, dim), and back."""
    middle = values.mean(0)
    _, sizes, axes = torch.linalg.svd((values - middle).double(), full_matrices=False)
    # Axes beyond the rank carry rounding only, which nothing may blow up to variance 1.
    deviation = (sizes[:dim] / len(values) ** 0.5).clamp(
        min=1e-4 * float(sizes[0]) / len(values) ** 0.5
    )
    flat = axes[:dim].T
    return middle, (flat / deviation).float(), (flat * deviation).float()


@torch.no_grad()
def _round(layer: torch.nn.Module) -> None:
    """Round a layer to half precision, in which it will be stored."""
    for value in layer.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half().float())
