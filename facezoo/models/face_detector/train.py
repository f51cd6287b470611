"""Training of the face detector."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from facezoo.data.detection import BoxRegression, LabeledImage, face_crops, labeled_images
from facezoo.data.packs import as_points, check_packs, decode, read_pack
from facezoo.evaluate.detection import TIGHT, compare
from facezoo.hub.card import Licenses, Preprocessing, card_named
from facezoo.hub.files import find
from facezoo.hub.tensors import load_into, read_tensors
from facezoo.models.face_detector.losses import Targets, detection_loss, targets_of
from facezoo.models.face_detector.scenes import CLOSE_UP_SIDES, Source, close_up, scene
from facezoo.preprocess.detection import DetectionConfig, detect
from facezoo.preprocess.detector import DETECTOR, FaceDetector, cells
from facezoo.training.loop import Position, Schedule, fit
from facezoo.training.optim import autocast, descend, layer_groups
from facezoo.training.processes import Processes
from facezoo.training.run import begin_run, check_data, digest_of_files, shortened, write_checkpoint

if TYPE_CHECKING:
    import pyarrow as pa

CPU = torch.device("cpu")
PACKS = ("lfw.parquet", "groups.parquet", "faces_wild.parquet", "negatives.parquet")
FERPLUS = "ferplus.parquet"
_SOURCES = {
    "webfaces": 0.38,
    "groups": 0.15,
    "crowds": 0.14,
    "LFW": 0.10,
    "crops": 0.15,
    "negatives": 0.08,
}
"""Share of the tiles by source; about a third of the faces wear masks. With FER+, the shares are
reduced by its share."""
_WATCHED = 80  # validation images of each kind that are measured after every epoch


@dataclass(frozen=True)
class StageConfig:
    """One of the stages of training."""

    name: str
    epochs: int
    lr: float
    full_iou: float
    """IoU from which on the target of the score is 1; below, it grows with the IoU."""
    share: float
    """Share of the cosine schedule that the stage runs."""
    close_ups: float
    """Share of the batches that show aligned faces, as the second pass of detection does."""
    fixed_norms: bool
    """Keep the statistics of the norms, which do not fit batches of close-ups."""


@dataclass(frozen=True)
class DetectorConfig:
    """The recipe of the detector."""

    width: int = 48
    boxes: StageConfig = StageConfig("boxes", 32, 3e-3, 1.0, 32 / 37, 0.0, False)
    """The score ranks boxes by how well they fit."""
    refine: StageConfig = StageConfig("refine", 6, 6e-4, 0.65, 1.0, 0.25, True)
    """Small faces, whose boxes never fit as well, get the scores of large ones; and the network
    learns to improve landmarks on aligned faces."""
    steps_per_epoch: int = 1000
    warmup: float = 0.02
    weight_decay: float = 0.02
    average: float = 0.999
    pixels: int = 2**20
    """Pixels of a batch; the number of scenes follows from their side."""
    sides: tuple[int, ...] = (128, 192, 256, 320, 448, 640)
    """Sides of the scenes, pixels; every batch has one side."""
    side_shares: tuple[float, ...] = (0.06, 0.14, 0.18, 0.22, 0.26, 0.14)
    images: int = 4000
    """Images of LFW that are used; training holds all images in memory."""
    crops: int = 10000
    """Face crops that are used."""
    ferplus: float = 0.0
    """Share of the tiles that show an image of FER+."""
    start: str | None = None
    """Checkpoint that training starts from."""


RECIPES = {
    "wild": DetectorConfig(),
    "wild-ferplus": DetectorConfig(
        boxes=StageConfig("boxes", 20, 2e-3, 1.0, 20 / 24, 0.0, False),
        refine=StageConfig("refine", 7, 5e-4, 0.65, 1.0, 0.25, True),
        images=8408,
        crops=24000,
        ferplus=0.08,
        start="face-detector.wild",
    ),
}
"""``wild`` starts from random weights. ``wild-ferplus`` trains its result further, also on the
small gray face crops of FER+."""


def run(
    data: Path,
    out: Path,
    *,
    recipe: str = "wild",
    seed: int,
    device: torch.device,
    smoke: bool = False,
) -> Path:
    """Train by a recipe and write weights and card; returns the card's path.

    With ``smoke`` training takes two small steps, to see that it runs.
    """
    config = RECIPES[recipe]
    if smoke:
        config = shortened(config, epochs=1, steps_per_epoch=2, pixels=2**16, images=20, crops=20)
    packs = (*PACKS, *([FERPLUS] if config.ferplus else []))
    check_packs(data, *packs)
    record = begin_run(out, seed=seed, recipe=asdict(config))
    check_data(out, digest_of_files(data, [data / name for name in packs]))
    detector = FaceDetector(config.width)
    detector.load_state_dict(train(config, data, out, seed=seed, device=device))
    return write_checkpoint(
        detector,
        out,
        record,
        model=DETECTOR,
        tag=recipe,
        flags="" if recipe == "wild" else f" --recipe {recipe}",
        architecture={"width": config.width},
        preprocessing=Preprocessing(),
        labels=(),
        precision="float16",
        licenses=Licenses(
            code="Apache-2.0",
            weights="research-only",
            data="research-only",
        ),
        data=(
            "groups and crowds train: 3,356 images, boxes by hand and by YuNet, marks by hand",
            f"LFW (deep-funneled) train: {config.images:,} images, boxes and landmarks by YuNet",
            f"faces_wild train: {config.crops:,} face crops, landmarks by YuNet",
            *(["FER+ train: 26,091 images, landmarks by YuNet"] if config.ferplus else []),
            "negatives: 1,000 images of objects and clothes",
        ),
        intended_use="Detecting faces and aligning them for the models of this package.",
        citation="",
        base=None if config.start is None else card_named(config.start),
        smoke=smoke,
    )


def read_sources(data: Path, config: DetectorConfig) -> list[Source]:
    """Decode all training images."""
    groups = read_pack(data / "groups.parquet", "train")
    people = read_pack(data / "lfw.parquet", "train")
    regression = BoxRegression.fit(
        torch.from_numpy(np.array(people["box"].to_pylist(), np.float32)),
        as_points(people["landmarks"].to_pylist(), 5),
    )
    crops = read_pack(data / "faces_wild.parquet", "train")
    tables = {
        name: groups.filter(np.array(groups["source"].to_pylist()) == name)
        for name in ("webfaces", "groups", "crowds")
    }
    images = {name: labeled_images(table) for name, table in tables.items()}
    images["LFW"] = labeled_images(_spread(people, config.images))
    images["negatives"] = labeled_images(read_pack(data / "negatives.parquet"))
    sources = [Source(rows, _SOURCES[name]) for name, rows in images.items() if rows]
    tight = (float(TIGHT.start), float(TIGHT.stop))
    rows = face_crops(_spread(crops, config.crops), regression)
    sources.append(Source(rows, _SOURCES["crops"], tight))
    if config.ferplus:
        sources = [replace(s, share=s.share * (1 - config.ferplus)) for s in sources]
        small = read_pack(data / FERPLUS, "train")
        small = small.filter(small["landmarks"].is_valid())
        tight = (0.0, float(decode(small["image"][0].as_py()).shape[1]))
        sources.append(Source(face_crops(small, regression), config.ferplus, tight))
    return sources


def _spread(table: pa.Table, count: int) -> pa.Table:
    """Take rows at equal distances."""
    return table.take(np.unique(np.linspace(0, len(table) - 1, count).astype(int)))


def compose(
    sources: list[Source], config: DetectorConfig, stage: StageConfig, seed: int, step: int
) -> tuple[Tensor, Targets]:
    """Compose the batch of one step, uint8 (B, 3, side, side), and its targets.

    It depends on the arguments alone, so that a thread may prepare it.
    """
    rng = np.random.default_rng([seed, step, Processes.present().rank])
    # Without close-ups no number is taken for this choice.
    if stage.close_ups and rng.random() < stage.close_ups:
        side = int(rng.choice(CLOSE_UP_SIDES))
        count = max(1, config.pixels // 4 // side**2)
        scenes = [close_up(sources, side, rng) for _ in range(count)]
    else:
        side = int(rng.choice(config.sides, p=config.side_shares))
        scenes = [scene(sources, side, rng) for _ in range(max(1, config.pixels // side**2))]
    pixels = torch.from_numpy(np.stack([pixels for pixels, _ in scenes])).permute(0, 3, 1, 2)
    return pixels, targets_of([faces for _, faces in scenes], *cells(side, side, CPU))


def train(
    config: DetectorConfig,
    data: Path,
    out: Path,
    *,
    seed: int,
    device: torch.device,
    save_every: float = 180.0,
) -> dict[str, Tensor]:
    """Train the detector; the same call resumes an interrupted run and ends at the same weights.

    Args:
        config: the recipe.
        data: folder with the packs.
        out: folder for the run's state and log.
        seed: of initial weights and scenes.
        device: where to train.
        save_every: seconds between saved states.

    Returns:
        Averaged tensors by name, float32, on the CPU.
    """
    sources = read_sources(data, config)
    groups = read_pack(data / "groups.parquet", "val")
    is_everyday = np.array(groups["source"].to_pylist()) == "webfaces"
    watched = {
        name: labeled_images(groups.filter(rows).slice(0, _WATCHED))
        for name, rows in (("everyday", is_everyday), ("groups", ~is_everyday))
    }
    torch.manual_seed(seed)
    detector = FaceDetector(config.width)
    if config.start is not None:
        load_into(detector, read_tensors(find(card_named(config.start))))
    detector = detector.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for number, stage in enumerate((config.boxes, config.refine)):
        state = _fit(
            detector, stage, config, sources, watched, out / stage.name, seed + number, save_every
        )
        detector.load_state_dict(state)
    return state


def _fit(
    detector: FaceDetector,
    stage: StageConfig,
    config: DetectorConfig,
    sources: list[Source],
    watched: dict[str, list[LabeledImage]],
    out: Path,
    seed: int,
    save_every: float,
) -> dict[str, Tensor]:
    """Train one stage; return the averaged state."""
    device = next(detector.parameters()).device
    optimizer = torch.optim.AdamW(
        layer_groups(detector), lr=stage.lr, weight_decay=config.weight_decay
    )
    schedule = Schedule(
        *(stage.epochs, 1, stage.lr, "cosine", config.warmup),
        average=config.average,
        share=stage.share,
    )
    total = stage.epochs * config.steps_per_epoch
    prepared: dict[int, Future[tuple[Tensor, Targets]]] = {}

    def step(_: Tensor, at: Position) -> dict[str, Tensor]:
        for number in range(at.step, min(at.step + 3, total)):
            if number not in prepared:
                prepared[number] = pool.submit(compose, sources, config, stage, seed, number)
        pixels, targets = prepared.pop(at.step).result()
        images = pixels.to(device).float() / 127.5 - 1  # channels_last, as they were composed
        if stage.fixed_norms:
            detector.eval()
        with autocast(device):
            candidates = detector(images)
        losses = detection_loss(candidates, targets.to(device), stage.full_iou)
        descend(optimizer, torch.stack(list(losses.values())).sum(), 10.0)
        return losses

    def validate(network: nn.Module, _: Position) -> dict[str, float]:
        assert isinstance(network, FaceDetector)
        row = {}
        for name, images in watched.items():
            result = compare(
                lambda pixels: detect(network, pixels, DetectionConfig(score_threshold=0.2)),
                images,
                marks=name == "everyday",
            )
            for percent in (1.5, 5):
                row[f"{name}_recall_{percent}"] = result.recall_at(percent / 100)[0]
            row[f"{name}_error"] = result.error()
        return row

    with ThreadPoolExecutor(1) as pool:
        rows = torch.arange(config.steps_per_epoch)
        return fit(
            *(detector, [optimizer], step, schedule, rows, out, seed),
            validate=validate,
            save_every=save_every,
        ).state
