"""``facezoo train latentface``: stage 1 on photographs, stage 2 on their codes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from facezoo.data.photographs import Photographs, photograph_files, read_photographs
from facezoo.hub.card import Licenses
from facezoo.hub.tensors import load_into, read_tensors, save
from facezoo.models.latentface.model import LatentFace
from facezoo.models.latentface.train.recipes import Recipe, recipe
from facezoo.models.latentface.train.stage1 import train_autoencoders
from facezoo.models.latentface.train.stage2 import (
    by_person,
    codes_of,
    equalise,
    train_diffusion,
)
from facezoo.training.run import (
    begin_run,
    check_data,
    digest_of_files,
    shortened,
    write_checkpoint,
)

AUTOENCODERS = "autoencoders.safetensors"
"""What stage 1 leaves for stage 2, in float32."""
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
    stage: int,
    seed: int,
    device: torch.device,
    name: str = "paper",
    smoke: bool = False,
) -> Path:
    """Train one stage by a recipe; the second one needs the first in the same folder.

    Interrupted, the same call goes on where the last saved state stands and ends at the same
    weights.

    Args:
        data: see ``read_photographs``.
        out: folder for the runs, which go into ``<recipe>-seed<n>``.
        stage: 1 or 2.
        seed: of initial weights, order and chance.
        device: where to train.
        name: of the recipe.
        smoke: whether a stage is one epoch of small batches, to see that it runs.

    Returns:
        What was written: the autoencoders of stage 1, or the card of stage 2.

    Raises:
        ValueError: if there is no such stage, or the run was begun with another recipe or other
            photographs.
        FileNotFoundError: if stage 2 finds no finished stage 1.
    """
    if stage not in (1, 2):
        raise ValueError(f"stage must be 1 or 2, got {stage}")
    chosen = recipe(name)
    if smoke:
        chosen = shortened(chosen, epochs=1, batch_size=2)
    folder = out / f"{name}-seed{seed}"
    if stage == 1:
        return run_stage1(chosen, data, folder / "stage1", seed, device)
    tensors = folder / "stage1" / AUTOENCODERS
    if not tensors.is_file():
        raise FileNotFoundError(
            f"no {tensors}; run stage 1 to its end first, with the same --recipe, --seed and --out"
        )
    return run_stage2(chosen, name, data, read_tensors(tensors), folder, seed, device, smoke)


def run_stage1(chosen: Recipe, data: Path, out: Path, seed: int, device: torch.device) -> Path:
    """Train the autoencoders, and write them; see ``run``."""
    said = {"autoencoding": asdict(chosen.autoencoding), "architecture": chosen.architecture}
    begin_run(out, seed=seed, recipe=said)
    check_data(out, digest_of_files(data, photograph_files(data)))
    torch.manual_seed(seed)
    model = LatentFace(**{**chosen.architecture, "diffusion": False})
    photographs = read_photographs(data, model.preprocessing, device)
    tensors = train_autoencoders(model, photographs, chosen.autoencoding, out, seed, device)
    return save(tensors, out / AUTOENCODERS)


def run_stage2(
    chosen: Recipe,
    name: str,
    data: Path,
    autoencoders: dict[str, Tensor],
    out: Path,
    seed: int,
    device: torch.device,
    smoke: bool = False,
) -> Path:
    """Train the diffusion on the codes of finished autoencoders, and write weights and card."""
    record = begin_run(out / "stage2", seed=seed, recipe=asdict(chosen))
    check_data(out / "stage2", digest_of_files(data, photograph_files(data)), out / "stage1")
    # The stages may have been trained at different commits.
    begun = json.loads((out / "stage1" / "run.json").read_text(encoding="utf-8"))
    record["recipe"] = {**record["recipe"], "autoencoding_commit": begun["commit"]}
    first = LatentFace(**{**chosen.architecture, "diffusion": False})
    load_into(first, autoencoders)
    photographs = read_photographs(data, first.preprocessing, device)
    persons = prepare_codes(first, photographs, device)
    limit = float(torch.cat([codes.mean(0) for codes in persons]).max())
    torch.manual_seed(seed)
    model = LatentFace(**{**chosen.architecture, "code_limit": limit})
    tensors = train_diffusion(model, persons, chosen.disentangling, out / "stage2", seed, device)
    model.load_state_dict({**first.state_dict(), **tensors})
    said = (photographs.said, f"feature loss by {chosen.autoencoding.features}")
    return _write(model, name, photographs.tag, said, out, record, smoke)


def prepare_codes(
    model: LatentFace, photographs: Photographs, device: torch.device
) -> list[Tensor]:
    """Codes of every person, after the autoencoders' scales were set; see ``equalise``."""
    codes = codes_of(model, photographs.crops, device)
    model.cpu()
    for number, autoencoder in enumerate((model.texture_autoencoder, model.shape_autoencoder)):
        codes[:, :, number] *= equalise(autoencoder, codes[:, 0, number])
    return by_person(codes, photographs)


def _write(
    model: LatentFace,
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
        model="latentface",
        tag=tag + ("" if name == "compact" else f"-{name}"),
        default=name == "compact",
        flags=f" --recipe {name}",
        stages=(" --stage 1", " --stage 2"),
        architecture=model.architecture,
        preprocessing=model.preprocessing,
        labels=(),
        precision="float16",
        licenses=Licenses(code="Apache-2.0", weights="research-only", data="research-only"),
        data=said,
        intended_use=(
            "Research on how faces come apart into shape, colours, light and view, and into who is "
            "shown and what the face does. Not for identifying people, nor for decisions about "
            "them."
        ),
        citation=CITATION,
        smoke=smoke,
    )
