"""``facezoo train stylegan2``, then ``feature-style``, then ``latent-simclr``, in one folder."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facezoo.data.packs import check_packs, majority_labels, read_pack, yaw_column
from facezoo.data.unlabeled import (
    FERPLUS,
    PACK,
    FaceCrops,
    image_files,
    read_face_crops,
    with_ferplus,
)
from facezoo.hub.card import Card, Preprocessing
from facezoo.hub.tensors import load_into, read_tensors, save
from facezoo.models.latent_simclr.directions import fit_directions
from facezoo.models.latent_simclr.inverter import StyleGANInverter, encoder_for
from facezoo.models.latent_simclr.model import LatentSimCLR
from facezoo.models.latent_simclr.simclr import CodeEncoder
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator
from facezoo.models.latent_simclr.train.adversarial import FINAL, train_generator
from facezoo.models.latent_simclr.train.edits import expression_of, with_edits
from facezoo.models.latent_simclr.train.inversion import train_encoder
from facezoo.models.latent_simclr.train.recipes import RECIPES, Recipe
from facezoo.models.latent_simclr.train.separation import separate_from_identity
from facezoo.models.latent_simclr.train.simclr import (
    Partners,
    augmentation,
    codes_of,
    label_extremes,
    measured_labels,
    nearest_expressions,
    same_identities,
    train_contrast,
)
from facezoo.results import EXPRESSIONS
from facezoo.training.run import (
    begin_run,
    check_data,
    digest_of_files,
    recipe_named,
    shortened,
    write_checkpoint,
)

PARTS = ("stylegan2", "feature-style", "latent-simclr")
"""Parts in training order."""
ENCODER = "encoder.safetensors"
RESULT = "runs/latent-simclr/{}-seed{}/{}.safetensors"
"""Weights that the training of a recipe and seed writes."""
BY_IPD_FER = ("perceptual and identity loss by ipd-fer", "expression axes by ipd-fer")
"""Lines of a card on the other model that took part in the training."""
BY_LABELS = "identity removed by names of LFW train, with expressions of LFW and FER+ train kept"
"""Line of a card on the labels that the expression features were separated by."""
CITATION = """@inproceedings{hoock2025disentanglement,
  title = {Disentanglement Learning of Facial Expression and Appearance},
  author = {Hoock, Rafael and Br{\\"u}gge, Nele Sophie and Handels, Heinz},
  publisher = {Infinite Science Publishing},
  year = {2025}
}"""


def run(
    part: str,
    data: Path,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    name: str = "paper",
    start: str | None = None,
    smoke: bool = False,
) -> Path:
    """Train one part by a recipe; each part needs the earlier parts in the same folder.

    With ``start``, nothing is trained: changes of f and expression axes are fitted for a finished
    checkpoint of the recipe, see ``with_edits``.

    An interrupted run resumes when it is called again, and ends at the same weights.

    Args:
        part: one of ``PARTS``.
        data: folder with ``lfw.parquet``, or of images. The last part fits the directions to the
            labels in ``lfw.parquet``.
        out: folder of the runs; each has a folder ``<recipe>-seed<n>``.
        start: checkpoint of the recipe, for the last part only.
        smoke: run a few steps of small batches, as a test.

    Returns:
        Path of the generator, the encoder or the card.

    Raises:
        ValueError: for an unknown part, if the folder has a run with another recipe or other
            images, or for a ``start`` of another recipe or part.
        FileNotFoundError: if an earlier part is not finished, or ``start`` lacks ``lfw.parquet``.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    config = recipe_named(RECIPES, name)
    if smoke:
        config = shortened(config, images=8, epochs=1, batch_size=2)
    folder = out / f"{name}-seed{seed}"
    if start is not None:
        if part != PARTS[2]:
            raise ValueError(f"--start is for facezoo train {PARTS[2]} only, got it for {part}")
        return run_edits(config, name, data, start, folder, seed, device, smoke)
    if part == "stylegan2":
        if config.start is not None:
            raise ValueError(
                f"the recipe {name} keeps the generator of {config.start}; begin with facezoo "
                f"train {PARTS[1]}"
            )
        return run_generator(config, data, folder / part, seed, device)
    if part == "feature-style":
        return run_encoder(config, data, folder, seed, device)
    return run_contrast(config, name, data, folder, seed, device, smoke)


def run_generator(config: Recipe, data: Path, out: Path, seed: int, device: torch.device) -> Path:
    """Train the generator and write it; see ``run``."""
    begin_run(out, seed=seed, recipe=asdict(config.generator))
    check_data(out, digest_of_files(data, image_files(data, config.wild)))
    faces = _face_crops(config, data, device)
    return train_generator(config.generator, faces.crops, out, seed, device)


def run_encoder(config: Recipe, data: Path, folder: Path, seed: int, device: torch.device) -> Path:
    """Train the Feature-Style encoder of the generator and write it; see ``run``."""
    out = folder / PARTS[1]
    inverter, _ = starting_inverter(config, folder, seed)
    settings = asdict(config.inversion)
    if config.start is not None:
        settings["start"] = config.start
    begin_run(out, seed=seed, recipe=settings)
    earlier = () if config.start is not None else (folder / PARTS[0],)
    check_data(out, digest_of_files(data, image_files(data, config.wild)), *earlier)
    faces = _face_crops(config, data, device)
    trained = train_encoder(inverter, faces.crops, config.inversion, out, seed, device)
    return save(trained, out / ENCODER)


def run_contrast(
    config: Recipe,
    name: str,
    data: Path,
    folder: Path,
    seed: int,
    device: torch.device,
    smoke: bool = False,
) -> Path:
    """Fit the directions and train the code encoders; write weights and card; see ``run``."""
    out = folder / PARTS[2]
    parts = PARTS if config.start is None else PARTS[1:]
    inverter, base = starting_inverter(config, folder, seed)
    load_into(inverter.encoder, _finished(folder / PARTS[1] / ENCODER, PARTS[1]))
    record = begin_run(out, seed=seed, recipe=asdict(config))
    digest = digest_of_files(data, image_files(data, config.wild))
    check_data(out, digest_of_files(data, contrast_files(config, data)))
    runs = {
        part: json.loads((folder / part / "run.json").read_text(encoding="utf-8"))
        for part in parts[:-1]
    }
    commits = {part: run["commit"] for part, run in runs.items()}
    record["recipe"] = {**record["recipe"], "commits": commits}
    read = partial(contrast_faces, config, data, device)
    faces = read(model_preprocessing(config))
    codes = codes_of(inverter.encoder, faces.crops, device)
    labels = direction_labels(data, faces)
    expression = expression_of(config.inversion.features, read, device)
    directions = fit_directions(codes[0], labels)
    model = LatentSimCLR(**model_arguments(config), directions=list(directions))
    model.inverter.load_state_dict(inverter.cpu().state_dict())
    model.directions.copy_(torch.stack(list(directions.values())))
    contrast = config.contrast
    count = contrast.expression_axes
    model = with_edits(model, faces, codes[0], labels, expression, count, device)
    for what, encoder in encoders(model, seed).items():
        encoder.fit_scale(codes.flatten(0, 1))
        partners: Partners | None = None
        rows = torch.arange(len(faces.crops))
        settings = contrast
        if contrast.neighbors and what == "expression":
            partners = nearest_expressions(expression, contrast.neighbors)
        if what == "identity" and contrast.identity_epochs:
            rows = torch.tensor([row for row, name in enumerate(faces.identities) if name])
            schedule = replace(contrast.schedule, epochs=contrast.identity_epochs)
            settings = replace(contrast, schedule=schedule)
            partners = same_identities(faces.identities)
        augment = augmentation(what, model, contrast, device)
        tensors = train_contrast(
            *(encoder, codes, rows, augment, settings, out / what, seed, device), partners=partners
        )
        load_into(encoder, tensors)
    _separate(model, config, data, codes[0], faces)
    # The labels are in the pack only; earlier parts may have used a folder of images.
    others = [part for part, run in runs.items() if run.get("data", digest) != digest]
    sources = (faces.description, *(_other(part, runs[part]["data"]) for part in others))
    sources += (BY_LABELS,) * bool(contrast.identity_directions)
    return _write(
        model,
        name,
        sources,
        folder,
        record,
        tag=tag_of(faces, name),
        flags=f" --recipe {name}",
        parts=parts,
        base=base,
        smoke=smoke,
    )


def run_edits(
    config: Recipe,
    name: str,
    data: Path,
    start: str,
    out: Path,
    seed: int,
    device: torch.device,
    smoke: bool,
) -> Path:
    """Fit changes of f and expression axes for a checkpoint; write weights and card; see ``run``.

    Identity is removed from the expression features if the recipe says so and the training of the
    checkpoint did not do it. The card has the commands of the training, then this one, which
    starts from their result.
    """
    check_packs(data, PACK)
    teacher, count = config.inversion.features, config.contrast.expression_axes
    settings = {"features": teacher, "expression_axes": count}
    if directions := config.contrast.identity_directions:
        settings["identity_directions"] = directions
    record = begin_run(out / "edits", seed=seed, recipe=settings)
    check_data(out / "edits", digest_of_files(data, contrast_files(config, data)))
    model: LatentSimCLR = LatentSimCLR.from_pretrained(start)
    base = model.card
    read = partial(contrast_faces, config, data, device)
    faces = read(model_preprocessing(config))
    if base is None or base.tag != tag_of(faces, name):
        raise ValueError(f"--start needs a checkpoint of the recipe {name}, got {start}")
    model = model.float()
    codes = codes_of(model.inverter.encoder, faces.crops, device)[0]
    labels = direction_labels(data, faces)
    expression = expression_of(teacher, read, device)
    model = with_edits(model, faces, codes, labels, expression, count, device)
    training = base.training
    steps = (training.recipe.get(part, {}) for part in ("contrast", "edits"))
    if not any(step.get("identity_directions") for step in steps):
        _separate(model, config, data, codes, faces)
    sources = training.data + (BY_LABELS,) * ("identity_directions" in settings)
    commands = training.command.split(" && ")[: len(PARTS)]
    recipe = {**training.recipe, "edits": record["recipe"]}
    recipe["training_commit"] = training.recipe.get("training_commit", training.commit)
    record = {
        **record,
        "recipe": recipe,
        "hardware": training.hardware,
        "base": training.base,
    }
    return _write(
        model,
        name,
        sources,
        out,
        record,
        tag=base.tag,
        flags=f" --recipe {name} --start {RESULT.format(name, training.seed, base.name)}",
        parts=PARTS[2:],
        before=" && ".join(commands),
        smoke=smoke,
    )


def _separate(
    model: LatentSimCLR, config: Recipe, data: Path, codes: Tensor, faces: FaceCrops
) -> None:
    """Remove identity from the expression features if the recipe says so."""
    if directions := config.contrast.identity_directions:
        separate_from_identity(
            *(model.expression_encoder.cpu(), codes, faces.identities),
            annotated_expressions(config, data, len(codes)),
            directions,
        )


def _other(part: str, data: dict[str, Any]) -> str:
    return f"{part}: other images (files: {data['files']:,}, digest: {data['sha256']})"


def encoders(model: LatentSimCLR, seed: int) -> dict[str, CodeEncoder]:
    """Initialize the code encoders of a model from a seed, by feature."""
    torch.manual_seed(seed)
    fresh = LatentSimCLR(**model.architecture)
    model.expression_encoder = fresh.expression_encoder
    model.identity_encoder = fresh.identity_encoder
    return {"expression": model.expression_encoder, "identity": model.identity_encoder}


def new_inverter(config: Recipe, seed: int) -> StyleGANInverter:
    """Build the untrained generator and encoder of a recipe."""
    torch.manual_seed(seed)
    generator = StyleGANGenerator(**config.generator.architecture)
    return StyleGANInverter(generator, encoder_for(generator, **config.inversion.architecture))


def starting_inverter(
    config: Recipe, folder: Path, seed: int
) -> tuple[StyleGANInverter, Card | None]:
    """Build the inverter that training starts from, of a checkpoint or for a trained generator.

    Returns:
        The inverter, and the card of the checkpoint.
    """
    inverter = new_inverter(config, seed)
    if config.start is not None:
        start: LatentSimCLR = LatentSimCLR.from_pretrained(config.start)
        load_into(inverter, start.float().inverter.state_dict())
        return inverter, start.card
    load_into(inverter.generator, _finished(folder / PARTS[0] / FINAL, PARTS[0]))
    generator = torch.Generator().manual_seed(seed)
    inverter.encoder.mean_code.copy_(inverter.generator.mean_code(10_000, generator))
    return inverter, None


def tag_of(faces: FaceCrops, name: str) -> str:
    """Return the tag of a checkpoint: the data, then the recipe."""
    return name if name.startswith(f"{faces.tag}-") else f"{faces.tag}-{name}"


def model_arguments(config: Recipe) -> dict[str, Any]:
    """Collect the arguments of ``LatentSimCLR`` from a recipe."""
    parts = (config.generator, config.inversion, config.contrast)
    return {key: value for part in parts for key, value in part.architecture.items()}


def direction_labels(data: Path, faces: FaceCrops) -> dict[str, Tensor]:
    """Compute labels for the bundled directions: blur, skin tone, smile and yaw.

    Only images of the pack have labels; others come last, and get NaN.

    Raises:
        FileNotFoundError: if the pack with expressions and yaw is missing.
    """
    table = read_pack(data / PACK, "train")
    words = majority_labels(table)
    smile = torch.full((len(words),), float("nan"))
    smile[words == EXPRESSIONS.index("happiness")] = 1
    smile[words == EXPRESSIONS.index("neutral")] = 0
    labels = {
        **measured_labels(faces.crops[: len(words)]),
        "smile": smile,
        "yaw": label_extremes(yaw_column(table)),
    }
    unknown = torch.full((len(faces.crops) - len(words),), float("nan"))
    return {name: torch.cat([values, unknown]) for name, values in labels.items()}


def annotated_expressions(config: Recipe, data: Path, count: int) -> Tensor:
    """Return the annotated expressions of the images of the last part, -1 for unknown, (count,)."""
    first = majority_labels(read_pack(data / PACK, "train"))
    last = first[:0]
    if config.contrast.ferplus:
        last = majority_labels(read_pack(data / FERPLUS, "train"))
    unknown = torch.full((count - len(first) - len(last),), -1)
    return torch.cat([first, unknown, last])


def _face_crops(config: Recipe, data: Path, device: torch.device) -> FaceCrops:
    """Read tight crops, which the face fills."""
    return read_face_crops(data, model_preprocessing(config), device, config.wild)


def contrast_files(config: Recipe, data: Path) -> list[Path]:
    """Return the files of the images of the last part."""
    files = image_files(data, config.wild)
    return [*files, data / FERPLUS] if config.contrast.ferplus else files


def contrast_faces(
    config: Recipe, data: Path, device: torch.device, preprocessing: Preprocessing
) -> FaceCrops:
    """Read the images of the last part, aligned for a model."""
    faces = read_face_crops(data, preprocessing, device, config.wild)
    return with_ferplus(faces, data, preprocessing) if config.contrast.ferplus else faces


def model_preprocessing(config: Recipe) -> Preprocessing:
    """Return the preprocessing of a recipe's models."""
    return Preprocessing(size=config.generator.architecture["size"])


def _finished(path: Path, part: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; finish facezoo train {part} first, with the same --recipe, "
            "--seed and --out"
        )
    return read_tensors(path)


def _write(
    model: LatentSimCLR,
    name: str,
    sources: tuple[str, ...],
    out: Path,
    record: dict[str, Any],
    **about: Any,
) -> Path:
    return write_checkpoint(
        model.cpu(),
        out,
        record,
        model="latent-simclr",
        default=name == "wild-preview",
        preprocessing=model.preprocessing,
        precision="float16",
        data=tuple(dict.fromkeys((*sources, *BY_IPD_FER))),
        intended_use=(
            "Research on W+ codes of faces and on separating expression from appearance in them. "
            "Not for identifying people, for decisions about them, or for deceptive images."
        ),
        citation=CITATION,
        **about,
    )
