"""Training of adv3d on ICT-3D: features, then the identity discriminator, then both networks.

Source: Gu, Pears & Sun, Sec. III-D and IV-B. What differs, and why, is in docs/models/adv3d.md: the
encoder's shared layers are set rather than learnt (``start``), the rest trains in principal
coordinates (``coordinates``), and the discriminator is given a pair as its middle and its
difference (``joint``).

Letters: P persons, E expressions, R rows, C principal axes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from facezoo.data.ict import FACE, RECIPES, IctFaces
from facezoo.geometry.laplacian import edges_of
from facezoo.hub.card import Licenses
from facezoo.models.adv3d.model import Adv3D
from facezoo.models.adv3d.networks import VAE
from facezoo.models.adv3d.train.coordinates import (
    Autoencoder,
    Branch,
    Frame,
    Reading,
    principal_frame,
)
from facezoo.models.adv3d.train.encoder_init import (
    batches_of,
    draw_mixtures,
    ridge,
    set_shared_layers,
    spoil,
    standardise_features,
)
from facezoo.models.adv3d.train.joint import Rows, extended, fit
from facezoo.models.adv3d.train.recipes import TrainConfig, recipe
from facezoo.training.optim import descend, set_cosine_rate
from facezoo.training.run import begin_run, check_data, digest_of_files, shortened, write_checkpoint
from facezoo.training.state import generator, load_state, save_state

CITATION = """@inproceedings{gu2023adversarial,
  title = {Adversarial 3D Face Disentanglement of Identity and Expression},
  author = {Gu, Yajie and Pears, Nick and Sun, Hao},
  booktitle = {IEEE International Conference on Automatic Face and Gesture Recognition},
  year = {2023}
}"""


def run(
    name: str, data: Path, out: Path, *, seed: int, device: torch.device, smoke: bool = False
) -> Path:
    """Train by a recipe and write weights and card; returns the card's path.

    Args:
        name: of the recipe, a key of ``RECIPES``.
        data: folder with the files of ICT-3D.
        out: folder for the run's state, log and result.
        seed: of everything random.
        device: where to train.
        smoke: whether to take a few meshes and steps, to see that the recipe runs.

    Raises:
        UnknownNameError: if there is no such recipe.
        ValueError: if ``out`` holds a run of another recipe or other data.
    """
    config = recipe(name)
    if smoke:
        config = shortened(
            config, size="tiny", mixtures=8, reading_steps=2, pretraining_steps=1, steps=2
        )
    faces = IctFaces(data)
    record = begin_run(out, seed=seed, recipe=asdict(config))
    check_data(out, digest_of_files(data, [data / FACE, data / RECIPES]))
    model = train(config, faces, out, seed=seed, device=device)
    return write_checkpoint(
        model,
        out,
        record,
        model="adv3d",
        tag=config.tag,
        default=name == "ict",
        flags=f" --recipe {name}",
        architecture=model.architecture,
        preprocessing=None,
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
        smoke=smoke,
    )


def train(
    config: TrainConfig, faces: IctFaces, out: Path, *, seed: int, device: torch.device
) -> Adv3D:
    """Train the model; interrupted, the same call goes on and ends at the same weights."""
    train_set, _ = faces.split(config.size)
    meshes = torch.from_numpy(train_set.vertices) / config.scale  # (P, E, N, 3)
    frame = principal_frame(meshes.flatten(0, 1), config.components, generator(seed, 0))
    vae = VAE(meshes.shape[2], config.identity_dim, config.expression_dim, config.hidden_dim)
    vae.eval().requires_grad_(False)
    low, high = (spread / config.scale for spread in config.anchor_spreads)
    some = meshes.flatten(0, 1)[:: max(1, meshes.shape[0] * meshes.shape[1] // 84)]
    set_shared_layers(vae, some, (low, high), generator(seed, 1))
    _round(vae)  # so that what is stored is what the features were made with
    coordinates = frame.coordinates(meshes)
    del meshes, some
    people, expressions = coordinates.shape[:2]
    rows = draw_mixtures(people, expressions, config.mixtures + config.spoilt, generator(seed, 2))
    whole = len(rows) - config.spoilt
    unit = 1 / config.scale
    responses = compute_features(
        vae.to(device), frame, rows.of(coordinates), out, whole, unit, seed
    )
    standardise_features(vae.cpu(), responses)
    _round(vae.bn5)
    features = F.relu(vae.bn5(responses))
    torch.manual_seed(seed)  # of hidden units, which the branches have to spare
    start = begin(config, coordinates, frame)
    reading = fit_reading(config, features, rows.of(start.targets), start.sizes, out, seed)
    flat = extended(coordinates.flatten(0, 1)).double()
    exact = torch.linalg.lstsq(flat, start.targets.flatten(0, 1).double(), driver="gelsd").solution
    with torch.no_grad():
        scores = reading(features[:whole])
    data = Rows(coordinates, rows[slice(whole)], scores, exact.float(), frame)
    edges = edges_of(torch.from_numpy(faces.topology.triangles))
    kept = fit(config, Autoencoder(*start.branches), data, edges, out, seed, device)
    kept.cpu().write_into(vae, reading, frame)
    model = Adv3D(
        num_vertices=vae.num_vertices,
        num_triangles=len(faces.topology.triangles),
        num_landmarks=len(faces.topology.landmarks),
        identity_dim=config.identity_dim,
        expression_dim=config.expression_dim,
        scale=config.scale,
        hidden_dim=config.hidden_dim,
    )
    model.vae.load_state_dict(vae.state_dict())
    model.set_template(
        frame.mean * config.scale,
        torch.from_numpy(faces.topology.triangles),
        torch.from_numpy(faces.topology.landmarks),
    )
    return model.eval()


def compute_features(
    vae: VAE,
    frame: Frame,
    coordinates: Tensor,
    out: Path,
    whole: int,
    unit: float,
    seed: int,
    chunk: int = 400,
    batch: int = 8,
) -> Tensor:
    """Responses of the shared layers for every row, kept in ``out`` chunk by chunk.

    Args:
        vae: with its shared layers set.
        frame: of the coordinates.
        coordinates: (R, C).
        out: folder.
        whole: how many rows, the first ones, are whole meshes; the others are spoilt.
        unit: one millimetre.
        seed: of the spoiling.
        chunk: rows in a file; what an interruption costs.
        batch: whole meshes at once.

    Returns:
        (R, 1024).
    """
    device = next(vae.parameters()).device
    mean, axes = frame.mean.to(device), frame.axes.flatten(1).to(device)
    responses = []
    for part in tqdm(list(batches_of(len(coordinates), chunk)), mininterval=10, desc="features"):
        path = out / f"features-{part.start}.pt"
        if (saved := load_state(path)) is not None:
            responses.append(saved["responses"])
            continue
        meshes = (coordinates[part].to(device) @ axes).unflatten(1, (-1, 3)) + mean
        clouds = [
            spoil(mesh, unit, generator(seed, row))[None]
            for row, mesh in enumerate(meshes, part.start)
            if row >= whole
        ]
        several = meshes[: len(meshes) - len(clouds)].split(batch)
        with torch.no_grad():
            found = torch.cat([vae.responses(few) for few in (*several, *clouds) if len(few)])
        responses.append(found.cpu())
        save_state(path, responses=responses[-1])
    return torch.cat(responses)


@dataclass(frozen=True)
class Start:
    """What the encoder is to read, and branches that start from it."""

    targets: Tensor
    """Scores of the training meshes, of variance about one, (P, E, K)."""
    sizes: Tensor
    """What one of each score is in coordinates, (K,)."""
    branches: tuple[Branch, Branch]
    """Of identity and of expression."""


def begin(config: TrainConfig, mesh: Tensor, frame: Frame) -> Start:
    """Scores that are to be read, and where the branches start.

    With neutrals the scores are principal scores of the neutral and of the rest, and the branches
    start as these. Without, they are principal scores of the mesh, of which each branch starts
    with a random half: nothing says yet what is identity.

    Args:
        config: the recipe.
        mesh: training meshes in coordinates, expression 0 neutral, (P, E, C).
        frame: of the coordinates.
    """
    deviation, dims = frame.deviation, (config.identity_dim, config.expression_dim)
    if config.neutrals:
        neutral = mesh[:, :1].expand_as(mesh)
        parts = (neutral, mesh - neutral)
        bases = [_whitened(p.flatten(0, 1), d) for p, d in zip(parts, dims, strict=True)]
        targets = [
            (part - middle) @ project
            for part, (middle, project, _) in zip(parts, bases, strict=True)
        ]
        sizes = torch.cat([back.norm(dim=0) for _, _, back in bases])
        first, second = (
            Branch(half, back / deviation[:, None], deviation)
            for half, (_, _, back) in zip(torch.eye(sum(dims)).split(dims), bases, strict=True)
        )
        with torch.no_grad():
            for branch, (middle, _, _) in zip((first, second), bases, strict=True):
                branch.out.bias.copy_(middle / deviation)
        return Start(torch.cat(targets, 2), sizes, (first, second))
    mixing = torch.zeros(len(deviation), sum(dims))
    kept = min(mixing.shape)
    draw = generator(0, len(deviation))
    mixing[:kept] = torch.linalg.qr(torch.randn(sum(dims), sum(dims), generator=draw))[0][:kept]
    first, second = (Branch(half.T, half, deviation) for half in mixing.split(dims, 1))
    return Start(mesh / deviation, deviation, (first, second))


def fit_reading(
    config: TrainConfig, features: Tensor, targets: Tensor, sizes: Tensor, out: Path, seed: int
) -> Reading:
    """Ridge regression from features to scores, then hidden units that mend what it leaves.

    Args:
        config: the recipe.
        features: (R, 1024).
        targets: (R, K).
        sizes: weight of an error in each score, (K,).
        out: folder, where the result is kept.
        seed: of the hidden units and batches.
    """
    torch.manual_seed(seed)
    reading = Reading(*ridge(features, targets, config.penalty), config.hidden_dim)
    if saved := load_state(out / "reading.pt"):
        reading.load_state_dict(saved["reading"])
        return reading.requires_grad_(False)
    left = (targets - reading.linear(features)).detach()
    sizes = sizes / (left * sizes).square().mean().sqrt()
    centre = features.mean(0)  # far from 0, where a step of the weights would silence every unit
    trained = [*reading.hidden.parameters(), *reading.mend.parameters()]
    optimizer = torch.optim.Adam(trained)
    for step in tqdm(range(config.reading_steps), mininterval=10, desc="reading"):
        set_cosine_rate(optimizer, 1e-3, step / config.reading_steps, 0.1)
        rows = torch.randint(len(features), (512,), generator=generator(seed, 4, step))
        mended = reading.mend(F.relu(reading.hidden(features[rows] - centre)))
        descend(optimizer, ((mended - left[rows]) * sizes).square().mean())
    with torch.no_grad():
        reading.hidden.bias.sub_(reading.hidden.weight @ centre)
    save_state(out / "reading.pt", reading=reading.state_dict())
    return reading.requires_grad_(False)


def _whitened(values: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (C,), matrix to the first ``dim`` principal scores of variance 1 (C, dim), and back."""
    middle = values.mean(0)
    _, sizes, axes = torch.linalg.svd((values - middle).double(), full_matrices=False)
    # Axes beyond the rank carry rounding only, which nothing may blow up to variance 1.
    deviation = (sizes[:dim] / len(values) ** 0.5).clamp(
        min=1e-4 * float(sizes[0]) / len(values) ** 0.5
    )
    flat = axes[:dim].T
    spare = (0, dim - len(deviation))  # numbers of the code for which there are no axes stay silent
    return (
        middle,
        F.pad((flat / deviation).float(), spare),
        F.pad((flat * deviation).float(), spare),
    )


@torch.no_grad()
def _round(layer: torch.nn.Module) -> None:
    """Round a layer to half precision, in which it will be stored."""
    for value in layer.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half().float())
