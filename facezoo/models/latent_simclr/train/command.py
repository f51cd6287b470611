"""``facezoo train stylegan2``, then ``feature-style``, then ``latent-simclr``, in one folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facezoo.data.packs import majority_labels, read_pack, yaw_column
from facezoo.data.photographs import PACK, Photographs, photograph_files, read_photographs
from facezoo.hub.card import Licenses, Preprocessing
from facezoo.hub.tensors import load_into, read_tensors, save
from facezoo.models.latent_simclr.directions import fit_directions
from facezoo.models.latent_simclr.inverter import StyleGANInverter, encoder_for
from facezoo.models.latent_simclr.model import LatentSimCLR
from facezoo.models.latent_simclr.simclr import CodeEncoder
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator
from facezoo.models.latent_simclr.train.adversarial import FINAL, train_generator
from facezoo.models.latent_simclr.train.inversion import train_encoder
from facezoo.models.latent_simclr.train.recipes import Recipe, recipe
from facezoo.models.latent_simclr.train.simclr import (
    codes_of,
    ends,
    measured_labels,
    train_contrast,
    views,
)
from facezoo.results import EXPRESSIONS
from facezoo.training.run import (
    begin_run,
    check_data,
    digest_of_files,
    shortened,
    write_checkpoint,
)

PARTS = ("stylegan2", "feature-style", "latent-simclr")
"""In the order in which they are trained."""
ENCODER = "encoder.safetensors"
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
    smoke: bool = False,
) -> Path:
    """Train one part by a recipe; each needs those before it in the same folder.

    Interrupted, the same call goes on where the last saved state stands and ends at the same
    weights.

    Args:
        part: one of ``PARTS``.
        data: see ``read_photographs``; the last part needs ``lfw.parquet``, whose labels the
            directions are fitted to, whatever photographs those before it had.
        out: folder for the runs, which go into ``<recipe>-seed<n>``.
        seed: of initial weights, order and chance.
        device: where to train.
        name: of the recipe.
        smoke: whether a part is a few steps of small batches, to see that it runs.

    Returns:
        What was written: the generator, the encoder, or the card.

    Raises:
        ValueError: if there is no such part, or the run was begun with another recipe or other
            photographs.
        FileNotFoundError: if a part before it is not finished.
    """
    if part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    chosen = recipe(name)
    if smoke:
        chosen = shortened(chosen, images=8, epochs=1, batch_size=2)
    folder = out / f"{name}-seed{seed}"
    if part == "stylegan2":
        return run_generator(chosen, data, folder / part, seed, device)
    if part == "feature-style":
        return run_encoder(chosen, data, folder, seed, device)
    return run_contrast(chosen, name, data, folder, seed, device, smoke)


def run_generator(chosen: Recipe, data: Path, out: Path, seed: int, device: torch.device) -> Path:
    """Train the generator, and write it; see ``run``."""
    begin_run(out, seed=seed, recipe=asdict(chosen.generator))
    check_data(out, digest_of_files(data, photograph_files(data)))
    photographs = _photographs(chosen, data, device)
    return train_generator(chosen.generator, photographs.crops, out, seed, device)


def run_encoder(chosen: Recipe, data: Path, folder: Path, seed: int, device: torch.device) -> Path:
    """Train the Feature-Style encoder for a finished generator, and write it; see ``run``."""
    out = folder / PARTS[1]
    tensors = _finished(folder / PARTS[0] / FINAL, PARTS[0])
    begin_run(out, seed=seed, recipe=asdict(chosen.inversion))
    check_data(out, digest_of_files(data, photograph_files(data)), folder / PARTS[0])
    inverter = new_inverter(chosen, seed)
    load_into(inverter.generator, tensors)
    draw = torch.Generator().manual_seed(seed)
    inverter.encoder.mean_code.copy_(inverter.generator.mean_code(10_000, draw))
    photographs = _photographs(chosen, data, device)
    trained = train_encoder(inverter, photographs.crops, chosen.inversion, out, seed, device)
    return save(trained, out / ENCODER)


def run_contrast(
    chosen: Recipe,
    name: str,
    data: Path,
    folder: Path,
    seed: int,
    device: torch.device,
    smoke: bool = False,
) -> Path:
    """Fit the directions, train the code encoders, and write weights and card; see ``run``."""
    out = folder / PARTS[2]
    inverter = new_inverter(chosen, seed)
    load_into(inverter.generator, _finished(folder / PARTS[0] / FINAL, PARTS[0]))
    load_into(inverter.encoder, _finished(folder / PARTS[1] / ENCODER, PARTS[1]))
    record = begin_run(out, seed=seed, recipe=asdict(chosen))
    digest = digest_of_files(data, photograph_files(data))
    check_data(out, digest)
    begun = {
        part: json.loads((folder / part / "run.json").read_text(encoding="utf-8"))
        for part in PARTS[:2]
    }
    commits = {part: run["commit"] for part, run in begun.items()}
    record["recipe"] = {**record["recipe"], "commits": commits}
    photographs = _photographs(chosen, data, device)
    codes = codes_of(inverter.encoder, photographs.crops, device)
    labels = direction_labels(data, photographs)
    directions = fit_directions(codes[0], labels)
    model = LatentSimCLR(**model_arguments(chosen), directions=list(directions))
    model.inverter.load_state_dict(inverter.cpu().state_dict())
    model.directions.copy_(torch.stack(list(directions.values())))
    config = chosen.contrast
    for what, encoder in encoders(model, seed).items():
        sliders = config.expression_sliders if what == "expression" else config.identity_sliders
        chosen_directions = {name: directions[name] for name in sliders}
        layers = views(what, codes.shape[2])
        encoder.fit_scale(codes.flatten(0, 1))
        tensors = train_contrast(
            encoder, codes, chosen_directions, config, layers, out / what, seed, device
        )
        load_into(encoder, tensors)
    # The labels are in the pack alone; those before may have had a folder of images.
    others = [part for part, run in begun.items() if run.get("data", digest) != digest]
    said = (photographs.said, *(_other(part, begun[part]["data"]) for part in others))
    return _write(model, name, photographs.tag, said, folder, record, smoke)


def _other(part: str, data: dict[str, Any]) -> str:
    return f"{part}: other photographs (files: {data['files']:,}, digest: {data['sha256']})"


def encoders(model: LatentSimCLR, seed: int) -> dict[str, CodeEncoder]:
    """The code encoders of a model by what they encode, with weights drawn anew from a seed."""
    torch.manual_seed(seed)
    fresh = LatentSimCLR(**model.architecture)
    model.expression_encoder = fresh.expression_encoder
    model.identity_encoder = fresh.identity_encoder
    return {"expression": model.expression_encoder, "identity": model.identity_encoder}


def new_inverter(chosen: Recipe, seed: int) -> StyleGANInverter:
    """An untrained generator and encoder, as the recipe has them."""
    torch.manual_seed(seed)
    generator = StyleGANGenerator(**chosen.generator.architecture)
    return StyleGANInverter(generator, encoder_for(generator, **chosen.inversion.architecture))


def model_arguments(chosen: Recipe) -> dict[str, Any]:
    """Arguments of ``LatentSimCLR`` that a recipe has."""
    parts = (chosen.generator, chosen.inversion, chosen.contrast)
    return {key: value for part in parts for key, value in part.architecture.items()}


def direction_labels(data: Path, photographs: Photographs) -> dict[str, Tensor]:
    """Labels of the bundled directions: blur and skin tone, smile and yaw; see ``fit_directions``.

    Raises:
        FileNotFoundError: if there is no pack with expressions and yaw.
    """
    table = read_pack(data / PACK, "train")
    words = majority_labels(table)
    smile = torch.full((len(words),), float("nan"))
    smile[words == EXPRESSIONS.index("happiness")] = 1
    smile[words == EXPRESSIONS.index("neutral")] = 0
    found = measured_labels(photographs.crops)
    return {**found, "smile": smile, "yaw": ends(yaw_column(table))}


def _photographs(chosen: Recipe, data: Path, device: torch.device) -> Photographs:
    """In tight crops, in which a face fills the picture."""
    preprocessing = Preprocessing(size=chosen.generator.architecture["size"])
    return read_photographs(data, preprocessing, device)


def _finished(path: Path, part: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"no {path}; run facezoo train {part} to its end first, with the same --recipe, --seed "
            "and --out"
        )
    return read_tensors(path)


def _write(
    model: LatentSimCLR,
    name: str,
    tag: str,
    said: tuple[str, ...],
    out: Path,
    record: dict[str, Any],
    smoke: bool,
) -> Path:
    return write_checkpoint(
        model.cpu(),
        out,
        record,
        model="latent-simclr",
        tag=f"{tag}-{name}",
        default=name == "preview",
        flags=f" --recipe {name}",
        parts=PARTS,
        architecture=model.architecture,
        preprocessing=model.preprocessing,
        labels=(),
        precision="float16",
        licenses=Licenses(code="Apache-2.0", weights="research-only", data="research-only"),
        data=(*said, "perceptual and identity loss by ipd-fer"),
        intended_use=(
            "Research on what codes of a generator say about faces, and on how expression comes "
            "apart from appearance in them. Not for identifying people, nor for decisions about "
            "them, nor for pictures that pass for photographs."
        ),
        citation=CITATION,
        smoke=smoke,
    )
