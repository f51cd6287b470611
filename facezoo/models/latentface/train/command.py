"""``facezoo train latentface``: stages 1 and 2 of the paper, then neutral codes (ours)."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facezoo.data.packs import check_packs
from facezoo.data.unlabeled import FaceCrops, image_files, read_face_crops
from facezoo.hub.card import Card
from facezoo.hub.tensors import load_into, read_tensors, save
from facezoo.models.latentface.model import LatentFace
from facezoo.models.latentface.train.neutral import PACKS, with_neutral_codes
from facezoo.models.latentface.train.recipes import RECIPES, Recipe
from facezoo.models.latentface.train.stage1 import train_autoencoders
from facezoo.models.latentface.train.stage2 import (
    codes_of,
    equalize,
    group_by_identity,
    train_diffusion,
)
from facezoo.training.run import (
    begin_run,
    check_data,
    digest_of_files,
    recipe_named,
    shortened,
    write_checkpoint,
)

STAGES = ("1", "2", "neutral")
AUTOENCODERS = "autoencoders.safetensors"
"""Output of stage 1 for stage 2, float32."""
EXPRESSION_LABELS = "expressions of LFW train and FER+ train"
CITATION = """@article{he2023unsupervised,
  title = {Unsupervised Disentangling of Facial Representations with 3D-aware Latent Diffusion Models},
  author = {He, Ruian and Xing, Zhen and Tan, Weimin and Yan, Bo},
  journal = {arXiv preprint arXiv:2309.08273},
  year = {2023}
}"""  # noqa: E501


def run(
    data: Path,
    out: Path,
    *,
    stage: str,
    seed: int,
    device: torch.device,
    name: str = "paper",
    start: str | None = None,
    smoke: bool = False,
) -> Path:
    """Train one stage by a recipe; stage 2 needs stage 1 in the same folder.

    Stage ``neutral`` adds neutral codes to a finished checkpoint, see ``with_neutral_codes``.

    An interrupted run resumes when it is called again, and ends at the same weights.

    Args:
        data: see ``read_face_crops``.
        out: folder of the runs; each has a folder ``<recipe>-seed<n>``.
        stage: "1", "2" or "neutral".
        start: checkpoint that stage ``neutral`` starts from. For a recipe that starts from a
            checkpoint, ``start`` may name another one; stages 1 and 2 must then have the same.
        smoke: run one epoch of small batches, as a test.

    Returns:
        Path of the autoencoders of stage 1, or of the card of the other stages.

    Raises:
        ValueError: for an unknown stage, a ``start`` that is missing or has no use, or if the
            folder has a run with another recipe or other images.
        FileNotFoundError: if stage 1 is not finished, or a pack of the recipe is missing.
    """
    if stage not in STAGES:
        raise ValueError(f"stage must be one of {', '.join(STAGES)}, got {stage}")
    config = recipe_named(RECIPES, name)
    if stage == "neutral":
        if start is None:
            raise ValueError("--stage neutral needs --start, the checkpoint to which it adds codes")
    elif start is not None:
        config = starting_from(config, name, start)
    if smoke:
        config = shortened(config, epochs=1, batch_size=2)
    if config.neutral:  # its labels are read after all training
        check_packs(data, *PACKS)
    folder = out / f"{name}-seed{seed}"
    if stage == "neutral":
        assert start is not None
        return run_neutral(config, data, start, folder / "neutral", seed, device, smoke)
    if stage == "1":
        return run_stage1(config, data, folder / "stage1", seed, device)
    tensors = folder / "stage1" / AUTOENCODERS
    if not tensors.is_file():
        raise FileNotFoundError(
            f"{tensors} does not exist; finish stage 1 first, with the same --recipe, --seed and "
            "--out"
        )
    return run_stage2(config, name, data, read_tensors(tensors), folder, seed, device, smoke)


def starting_from(config: Recipe, name: str, start: str) -> Recipe:
    """Let a recipe start from another checkpoint of the same architecture.

    Raises:
        ValueError: if the recipe starts from random weights.
    """
    if config.start is None:
        raise ValueError(f"--start has no use here: the recipe {name} starts from random weights")
    return replace(config, start=start)


def load_start(model: LatentFace, config: Recipe) -> Card | None:
    """Copy the networks of the checkpoint that a recipe starts from; return its card."""
    if config.start is None:
        return None
    start: LatentFace = LatentFace.from_pretrained(config.start)
    tensors = start.float().state_dict()
    load_into(model, {name: tensors[name] for name in model.state_dict()})
    return start.card


def run_stage1(config: Recipe, data: Path, out: Path, seed: int, device: torch.device) -> Path:
    """Train the autoencoders and write them; see ``run``."""
    settings = {
        "autoencoding": asdict(config.autoencoding),
        "architecture": config.architecture,
        "start": config.start,
    }
    begin_run(out, seed=seed, recipe=settings)
    check_data(out, digest_of_files(data, image_files(data, config.wild)))
    torch.manual_seed(seed)
    model = LatentFace(**{**config.architecture, "diffusion": False})
    load_start(model, config)
    faces = read_face_crops(data, model.preprocessing, device, config.wild)
    tensors = train_autoencoders(model, faces, config.autoencoding, out, seed, device)
    return save(tensors, out / AUTOENCODERS)


def run_stage2(
    config: Recipe,
    name: str,
    data: Path,
    autoencoders: dict[str, Tensor],
    out: Path,
    seed: int,
    device: torch.device,
    smoke: bool = False,
) -> Path:
    """Train the diffusion on the codes of the autoencoders; write weights and card."""
    stage1 = json.loads((out / "stage1" / "run.json").read_text(encoding="utf-8"))
    if (earlier := stage1["recipe"].get("start", config.start)) != config.start:
        raise ValueError(
            f"stage 1 of {out} started from {earlier or 'random weights'}, stage 2 would start "
            f"from {config.start}; give both stages the same --start"
        )
    record = begin_run(out / "stage2", seed=seed, recipe=asdict(config))
    files = image_files(data, config.wild)
    check_data(out / "stage2", digest_of_files(data, files), out / "stage1")
    # The stages may have been trained at different commits.
    record["recipe"] = {**record["recipe"], "autoencoding_commit": stage1["commit"]}
    first = LatentFace(**{**config.architecture, "diffusion": False})
    load_into(first, autoencoders)
    faces = read_face_crops(data, first.preprocessing, device, config.wild)
    persons = prepare_codes(first, faces, device)
    limit = float(torch.cat([codes.mean(0) for codes in persons]).max())
    torch.manual_seed(seed)
    model = LatentFace(**{**config.architecture, "code_limit": limit})
    base = load_start(model, config)
    tensors = train_diffusion(model, persons, config.disentangling, out / "stage2", seed, device)
    model.load_state_dict({**first.state_dict(), **tensors})
    sources: tuple[str, ...] = (
        faces.description,
        f"feature loss by {config.autoencoding.features}",
    )
    flags = f" --recipe {name}"
    if base is not None and config.start != RECIPES[name].start:
        flags += f" --start {base.name}"
    tag = faces.tag if name in ("compact", faces.tag) else f"{faces.tag}-{name}"
    if config.neutral:
        model = with_neutral_codes(model, data, config.expression_directions, device)
        sources = (*sources, EXPRESSION_LABELS)
    return _write(
        model,
        tag,
        out,
        record,
        flags=flags,
        stages=(" --stage 1", " --stage 2"),
        data=sources,
        base=base,
        smoke=smoke,
    )


def run_neutral(
    config: Recipe, data: Path, start: str, out: Path, seed: int, device: torch.device, smoke: bool
) -> Path:
    """Add neutral codes to a checkpoint; write weights and card."""
    settings = {"expression_directions": config.expression_directions}
    record = begin_run(out, seed=seed, recipe=settings)
    check_data(out, digest_of_files(data, [data / name for name in PACKS]))
    model: LatentFace = LatentFace.from_pretrained(start)
    base = model.card
    assert base is not None
    fitted = with_neutral_codes(model.float(), data, config.expression_directions, device)
    flags, labels = f" --stage neutral --start {base.name}", (EXPRESSION_LABELS,)
    tag = f"{base.tag}-neutral"
    return _write(fitted, tag, out, record, flags=flags, data=labels, base=base, smoke=smoke)


def prepare_codes(model: LatentFace, faces: FaceCrops, device: torch.device) -> list[Tensor]:
    """Compute the codes of each identity and standardize the autoencoders; see ``equalize``."""
    codes = codes_of(model, faces.crops, device)
    model.cpu()
    for number, autoencoder in enumerate((model.texture_autoencoder, model.shape_autoencoder)):
        codes[:, :, number] *= equalize(autoencoder, codes[:, 0, number])
    return group_by_identity(codes, faces)


def _write(model: LatentFace, tag: str, out: Path, record: dict[str, Any], **about: Any) -> Path:
    return write_checkpoint(
        model.cpu(),
        out,
        record,
        model="latentface",
        tag=tag,
        default=tag == "wild",
        preprocessing=model.preprocessing,
        precision="float16",
        intended_use=(
            "Research on the factors of faces: shape, color, light and view, identity and "
            "expression. Not for identifying people, nor for decisions about them."
        ),
        citation=CITATION,
        **about,
    )
