"""Training of the face detector and its measurement on whole photographs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from facezoo.data.detection import LabeledImage, labeled_images
from facezoo.data.packs import as_points, check_packs, decode, read_pack
from facezoo.evaluate.detection import compare
from facezoo.hub.card import Licenses, Preprocessing
from facezoo.models.face_detector.losses import Targets, detection_loss
from facezoo.models.face_detector.scenes import CANVAS, Photos, scenes
from facezoo.preprocess.detection import detect
from facezoo.preprocess.detector import FaceDetector, cells
from facezoo.training.loop import Position, Schedule, fit
from facezoo.training.optim import autocast, layer_groups
from facezoo.training.run import begin_run, check_data, digest_of_files, shortened, write_checkpoint

if TYPE_CHECKING:
    import pyarrow as pa

_SIDE = 250
_WATCHED = 400  # validation photographs that are looked at after every epoch


@dataclass(frozen=True)
class StageConfig:
    """One of the stages of training."""

    name: str
    epochs: int
    """Passes over the photographs; each is the first of one scene."""
    rate: float
    natural: float
    """Share of the scenes that show a photograph nearly as it is."""


@dataclass(frozen=True)
class DetectorConfig:
    """The recipe of the detector."""

    width: int = 64
    tiled: StageConfig = StageConfig("tiled", epochs=28, rate=3e-3, natural=0.0)
    """Scenes of many sizes, begun by the photographs of people."""
    natural: StageConfig = StageConfig("natural", epochs=5, rate=1e-3, natural=0.7)
    """Scenes with the clutter of real photographs, begun by scenery too."""
    batch_size: int = 32
    warmup: float = 0.05
    weight_decay: float = 0.02
    average: float = 0.998
    scenery: float = 0.15
    """Share of the scenes' other tiles that show scenery."""


def run(data: Path, out: Path, *, seed: int, device: torch.device, smoke: bool = False) -> Path:
    """Train by the default recipe and write weights and card; returns the card's path.

    With ``smoke`` every stage is one epoch of small batches, to see that it runs.
    """
    config = DetectorConfig()
    if smoke:
        config = shortened(config, epochs=1, batch_size=4)
    packs = ("lfw.parquet", "backgrounds.parquet")
    check_packs(data, *packs)
    record = begin_run(out, seed=seed, recipe=asdict(config))
    check_data(out, digest_of_files(data, [data / name for name in packs]))
    detector = FaceDetector(config.width)
    detector.load_state_dict(train(config, data, out, seed=seed, device=device))
    return write_checkpoint(
        detector,
        out,
        record,
        model="face-detector",
        tag="lfw",
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
            "LFW (deep-funneled) train: 8,408 photographs, boxes and landmarks by YuNet",
            "backgrounds: 500 photographs of ImageNet classes, boxes and landmarks by YuNet",
        ),
        intended_use="Finding faces and aligning them for the models of this package.",
        citation="",
        smoke=smoke,
    )


def read_photos(table: pa.Table) -> Photos:
    """Photographs with their faces, each cut to its middle square and brought to 250 pixels."""
    images = torch.empty(len(table), 3, _SIDE, _SIDE, dtype=torch.uint8)
    boxes: list[Tensor] = []
    landmarks: list[Tensor] = []
    unsure: list[Tensor] = []
    rows = zip(*(table[c] for c in ("image", "faces", "unsure")), strict=True)
    for index, (image, faces, regions) in enumerate(tqdm(rows, total=len(table), desc="reading")):
        pixels = decode(image.as_py())
        height, width = pixels.shape[:2]
        scale = _SIDE / min(height, width)
        corner = torch.tensor([width - min(height, width), height - min(height, width)]) // 2
        x, y = corner.tolist()
        square = pixels[y : y + min(height, width), x : x + min(height, width)]
        square = square.permute(2, 0, 1)[None]
        if square.shape[-1] != _SIDE:
            square = F.interpolate(
                square.float(), size=(_SIDE, _SIDE), mode="bilinear", antialias=True
            )
        images[index] = square[0].round().to(torch.uint8)
        found = faces.as_py()
        box = as_points([f["box"] for f in found], 2)
        point = as_points([f["landmarks"] for f in found], 5)
        region = as_points(regions.as_py(), 2)
        for store, value in ((boxes, box), (landmarks, point), (unsure, region)):
            store.append((value - corner + 0.5) * scale - 0.5)
    sizes = [images, *(_shrunk(images, _SIDE >> level) for level in (1, 2, 3))]
    return Photos(sizes, [b.flatten(1) for b in boxes], landmarks, [r.flatten(1) for r in unsure])


def _shrunk(images: Tensor, side: int) -> Tensor:
    """All photographs at another size, uint8, (N, 3, side, side)."""
    small = images.new_empty(len(images), 3, side, side)
    for begin in range(0, len(images), 256):
        pixels = images[begin : begin + 256].float()
        resized = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
        small[begin : begin + 256] = resized.round().to(torch.uint8)
    return small


def join(first: Photos, second: Photos) -> Photos:
    """Two sets of photographs as one."""
    return Photos(
        [torch.cat(pair) for pair in zip(first.images, second.images, strict=True)],
        first.boxes + second.boxes,
        first.landmarks + second.landmarks,
        first.unsure + second.unsure,
    )


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
        data: folder with ``lfw.parquet`` and ``backgrounds.parquet``.
        out: folder for the run's state and log.
        seed: of initial weights, order and scenes.
        device: where to train.
        save_every: seconds between saved states.

    Returns:
        Averaged tensors by name, float32, on the CPU.
    """
    people = read_photos(read_pack(data / "lfw.parquet", "train"))
    scenery = read_photos(read_pack(data / "backgrounds.parquet"))
    count, total = len(people.boxes), len(people.boxes) + len(scenery.boxes)
    # Drawing from this list shows scenery as often as the recipe says.
    times = round(config.scenery / (1 - config.scenery) * count / len(scenery.boxes))
    extra = torch.cat([torch.arange(count), torch.arange(count, total).repeat(times)])
    source = _Source(join(people, scenery), extra)
    val = labeled_images(read_pack(data / "lfw.parquet", "val").slice(0, _WATCHED))
    torch.manual_seed(seed)
    detector = FaceDetector(config.width).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    stages = ((config.tiled, torch.arange(count)), (config.natural, extra))
    for number, (stage, rows) in enumerate(stages):
        state = _fit(
            detector, stage, config, source, rows, val, out / stage.name, seed + number, save_every
        )
        detector.load_state_dict(state)
    return state


@dataclass(frozen=True)
class _Source:
    photos: Photos
    extra: Tensor
    """Photographs that fill the tiles of a scene, and how often each counts, (M,)."""


def _fit(
    detector: FaceDetector,
    stage: StageConfig,
    config: DetectorConfig,
    source: _Source,
    rows: Tensor,
    val: list[LabeledImage],
    out: Path,
    seed: int,
    save_every: float,
) -> dict[str, Tensor]:
    """Train one stage; return the averaged state."""
    device = next(detector.parameters()).device
    optimizer = torch.optim.AdamW(
        layer_groups(detector), lr=stage.rate, weight_decay=config.weight_decay
    )
    centers, bases = cells(CANVAS, CANVAS, device)
    schedule = Schedule(
        stage.epochs,
        config.batch_size,
        stage.rate,
        "cosine",
        config.warmup,
        average=config.average,
    )

    def step(batch: Tensor, at: Position) -> dict[str, Tensor]:
        images, targets = scenes(source.photos, batch, source.extra, at.generator, stage.natural)
        images = images.to(device, memory_format=torch.channels_last)
        with autocast(device):
            outputs = detector(images)
        loss = detection_loss(outputs, _moved(targets, device), centers, bases)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        return {"loss": loss}

    def validate(network: nn.Module, _: Position) -> dict[str, float]:
        assert isinstance(network, FaceDetector)
        result = compare(partial(detect, network), val)
        return {"recall": result.recall(), "landmark_error": result.error()}

    return fit(
        *(detector, [optimizer], step, schedule, rows, out, seed),
        validate=validate,
        save_every=save_every,
    ).state


def _moved(targets: Targets, device: torch.device) -> Targets:
    return Targets(
        targets.boxes.to(device),
        targets.landmarks.to(device),
        targets.is_face.to(device),
        targets.ignored.to(device),
    )
