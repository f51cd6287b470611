"""Training of the face detector and its measurement on whole photographs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from facezoo.data.images import decode, read_pack
from facezoo.detector.augment import CANVAS, Photos, scenes
from facezoo.detector.boxes import area, iou
from facezoo.detector.losses import Targets, detection_loss
from facezoo.detector.model import FaceDetector, cells
from facezoo.preprocess.detection import DetectionConfig, detect
from facezoo.training import (
    WeightAverage,
    autocast,
    batches,
    decayed_and_not,
    generator,
    load_state,
    log_row,
    save_state,
    set_cosine_rate,
)

if TYPE_CHECKING:
    import pyarrow as pa

_SIDE = 250


@dataclass(frozen=True)
class DetectorConfig:
    """The recipe of the detector."""

    width: int = 64
    epochs: int = 12
    """Passes over the photographs of people; each is the first of one scene."""
    batch_size: int = 32
    rate: float = 3e-3
    warmup: float = 0.05
    weight_decay: float = 0.02
    average: float = 0.998
    scenery: float = 0.15
    """Share of the scenes' other tiles that show scenery."""


def read_photos(table: pa.Table) -> Photos:
    """Photographs with their faces, each cut to its middle square and brought to 250 pixels."""
    images = torch.empty(len(table), 3, _SIDE, _SIDE, dtype=torch.uint8)
    boxes, landmarks, unsure = [], [], []
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
        box = _tensor([f["box"] for f in found], 2)
        point = _tensor([f["landmarks"] for f in found], 5)
        region = _tensor(regions.as_py(), 2)
        for store, value in ((boxes, box), (landmarks, point), (unsure, region)):
            store.append((value - corner + 0.5) * scale - 0.5)
    return Photos(images, [b.flatten(1) for b in boxes], landmarks, [r.flatten(1) for r in unsure])


def _tensor(values: list[list[float]], points: int) -> Tensor:
    return torch.from_numpy(np.array(values, np.float32).reshape(-1, points, 2))


def join(first: Photos, second: Photos) -> Photos:
    """Two sets of photographs as one."""
    return Photos(
        torch.cat([first.images, second.images]),
        first.boxes + second.boxes,
        first.landmarks + second.landmarks,
        first.unsure + second.unsure,
    )


def train(
    config: DetectorConfig, data: Path, out: Path, *, seed: int, device: torch.device
) -> dict[str, Tensor]:
    """Train the detector; interrupted, the same call goes on and ends at the same weights.

    Args:
        config: the recipe.
        data: folder with ``lfw.parquet`` and ``backgrounds.parquet``.
        out: folder for the run's state and log.
        seed: of initial weights, order and scenes.
        device: where to train.

    Returns:
        Averaged tensors by name, float32, on the CPU.
    """
    people = read_photos(read_pack(data / "lfw.parquet", "train"))
    scenery = read_photos(read_pack(data / "backgrounds.parquet"))
    count = len(people.images)
    photos = join(people, scenery)
    # Drawing from this list shows scenery as often as the recipe says.
    times = round(config.scenery / (1 - config.scenery) * count / len(scenery.images))
    extra = torch.cat([torch.arange(count), torch.arange(count, len(photos.images)).repeat(times)])
    val = read_pack(data / "lfw.parquet", "val")
    torch.manual_seed(seed)
    detector = FaceDetector(config.width).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(
        list(decayed_and_not(detector)), lr=config.rate, weight_decay=config.weight_decay
    )
    average = WeightAverage(detector, config.average)
    begin_epoch, begin_step = 0, 0
    if saved := load_state(out / "state.pt"):
        detector.load_state_dict(saved["detector"])
        optimizer.load_state_dict(saved["optimizer"])
        average.load_state_dict(saved["average"])
        begin_epoch, begin_step = saved["position"]
    centres, bases = cells(CANVAS, CANVAS, device)
    steps = count // config.batch_size

    def save(epoch: int, step: int) -> None:
        save_state(
            out / "state.pt",
            detector=detector.state_dict(),
            optimizer=optimizer.state_dict(),
            average=average.state_dict(),
            position=[epoch, step],
        )

    for epoch in range(begin_epoch, config.epochs):
        order = batches(count, config.batch_size, seed, epoch)
        begin = begin_step if epoch == begin_epoch else 0
        detector.train()
        bar = tqdm(range(begin, steps), initial=begin, total=steps, mininterval=10)
        bar.set_description(f"detector epoch {epoch + 1}/{config.epochs}")
        total = 0.0
        for step in bar:
            progress = (epoch * steps + step) / (config.epochs * steps)
            set_cosine_rate(optimizer, config.rate, progress, config.warmup)
            draw = generator(seed, epoch, step)
            images, targets = scenes(photos, order[step], extra, draw)
            images = images.to(device, memory_format=torch.channels_last)
            with autocast(device):
                said = detector(images)
            loss = detection_loss(said, _moved(targets, device), centres, bases)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
            average.update(detector)
            total += loss.item()
            if (step + 1) % 100 == 0:
                save(epoch, step + 1)
                bar.set_postfix(loss=f"{total / (step + 1 - begin):.3f}")
        averaged = FaceDetector(config.width).to(device)
        averaged.load_state_dict(average.state)
        metrics = measure(averaged.eval(), val, device)
        mean = total / max(1, steps - begin)
        log_row(out / "log.csv", {"epoch": epoch + 1, "loss": mean, **metrics})
        tqdm.write(f"detector epoch {epoch + 1}: loss {mean:.4f}, {metrics}")
        save(epoch + 1, 0)
    return {key: value.cpu() for key, value in average.state.items()}


def _moved(targets: Targets, device: torch.device) -> Targets:
    return Targets(
        targets.boxes.to(device),
        targets.landmarks.to(device),
        targets.is_face.to(device),
        targets.ignored.to(device),
    )


def measure(
    detector: FaceDetector,
    table: pa.Table,
    device: torch.device,
    smallest: float = 24.0,
    config: DetectionConfig | None = None,
) -> dict[str, float]:
    """Detection on whole photographs whose faces are known.

    A face is found if a box overlaps it with an IoU of at least 0.5. Detections in regions that
    the pack is unsure about, and on faces smaller than ``smallest``, count neither way.

    Args:
        detector: the network, in eval mode.
        table: rows with ``image``, ``faces`` and ``unsure``.
        device: where the detector is.
        smallest: least length of a face's longer side, pixels.
        config: scales and thresholds.

    Returns:
        ``recall``; ``false_positives`` as a share of the detections that count;
        ``landmark_error``, the mean over landmarks and found faces as a share of the distance
        between the eyes; ``faces``, how many count.
    """
    found = wanted = wrong = detections = 0
    errors: list[Tensor] = []
    for begin in range(0, len(table), 64):
        part = table.slice(begin, 64)
        photos = [decode(image.as_py()).to(device) for image in part["image"]]
        seen = detect(detector, photos, config).to("cpu")
        for index, (faces, regions) in enumerate(
            zip(part["faces"].to_pylist(), part["unsure"].to_pylist(), strict=True)
        ):
            mine = seen[seen.image_index == index]
            boxes = _tensor([f["box"] for f in faces], 2).flatten(1)
            points = _tensor([f["landmarks"] for f in faces], 5)
            large = (
                (boxes[:, 2:] - boxes[:, :2]).amax(1) >= smallest if len(boxes) else boxes[:, 0] > 0
            )
            overlap = iou(boxes, mine.boxes)
            hit = (
                (overlap >= 0.5).any(1) if len(mine) else torch.zeros(len(boxes), dtype=torch.bool)
            )
            wanted, found = wanted + int(large.sum()), found + int((hit & large).sum())
            for face in (hit & large).nonzero()[:, 0]:
                match = overlap[face].argmax()
                apart = (mine.landmarks[match] - points[face]).norm(dim=-1).mean()
                errors.append(apart / (points[face, 0] - points[face, 1]).norm())
            of_large = (overlap[large] >= 0.5).any(0)
            elsewhere = _touches(
                mine.boxes, torch.cat([boxes[~large], _tensor(regions, 2).flatten(1)])
            )
            wrong += int((~of_large & ~elsewhere).sum())
            detections += int((of_large | ~elsewhere).sum())
    error = float(torch.stack(errors).mean()) if errors else float("nan")
    return {
        "recall": found / max(1, wanted),
        "false_positives": wrong / max(1, detections),
        "landmark_error": error,
        "faces": wanted,
    }


def _touches(boxes: Tensor, regions: Tensor) -> Tensor:
    """Whether the larger part of a box, or of a region, is where the two overlap, (N,)."""
    low = torch.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    smaller = torch.minimum(area(boxes)[:, None], area(regions)[None]).clamp(min=1e-6)
    return (shared / smaller > 0.5).any(1)
