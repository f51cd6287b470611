"""Process images in this process: read, find faces, align, encode, and collect rows."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from facezoo.errors import UnsupportedError
from facezoo.extraction import sources
from facezoo.extraction.resume import Block, Rows
from facezoo.extraction.videos import CONVERSION
from facezoo.extraction.writers import Layout
from facezoo.hub.tensors import digest_of
from facezoo.models.base import FaceModel, as_image_model, coordinates
from facezoo.preprocess.fingerprint import fingerprint
from facezoo.preprocess.jpeg import Photo, check_decoder
from facezoo.preprocess.pipeline import ImageBatch, ImageOptions, face_batches
from facezoo.preprocess.quality import measure
from facezoo.results import flatten_rows

STAGES = ("decode", "wait", "detect", "align", "encode", "write")
FEATURES = "encode_"


@dataclass
class Clock:
    """Time by stage; with ``exact`` a stage on a GPU ends when its kernels have ended."""

    exact: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the time inside the context."""
        start = time.perf_counter()
        yield
        if self.exact and torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - start


@dataclass(frozen=True)
class Plan:
    """A model and the stages to run on every face."""

    model: FaceModel
    names: list[str]
    """Keys of ``facezoo.models.base.STAGES``."""
    layout: Layout
    basis: tuple[torch.Tensor, torch.Tensor] | None
    """``expression_basis`` of the model for compact features; None for all numbers."""


@dataclass(frozen=True)
class Task:
    """Everything that a process needs to turn names into blocks."""

    plans: Sequence[Plan]
    options: ImageOptions
    root: Path
    """Folder that the names are relative to."""
    workers: int
    """Threads that decode, in every process."""
    chunk: int
    """Images that a process takes at a time, if there are several processes."""


def plan_for(
    model: FaceModel,
    what: str | Sequence[str],
    options: ImageOptions,
    videos: bool,
    smooth: float | None,
    compact: bool,
) -> Plan:
    """Choose the stages of a model.

    Raises:
        UnsupportedError: if the model takes meshes, or lacks one of the embeddings.
    """
    capabilities = as_image_model(model).capabilities()
    features = list(dict.fromkeys([what] if isinstance(what, str) else what))
    available = [n.removeprefix(FEATURES) for n in capabilities if n.startswith(FEATURES)]
    if missing := [name for name in features if name not in available]:
        raise UnsupportedError(
            f"{model.model_name} has no embedding {', '.join(missing)}; it has "
            f"{', '.join(available)}"
        )
    names = [f"{FEATURES}{name}" for name in features]
    classes = model.labels if "predict_expression" in capabilities else ()
    names += ["predict_expression"] if classes else []
    card = model.card.name if model.card else model.model_name
    mark = fingerprint(model.preprocessing, model.jpeg, options.detection)
    if videos:
        mark = sha256(f"{mark} {CONVERSION}".encode()).hexdigest()[: len(mark)]
    checkpoint = f"{card}@{digest_of(model)[:12]}"
    basis = model.expression_basis() if compact and "expression" in features else None
    compact = basis is not None
    layout = Layout(checkpoint, mark, tuple(features), tuple(classes), videos, smooth, compact)
    return Plan(model, names, layout, basis)


class _Reader:
    """Function that reads images by name in threads, and keeps the times of frames."""

    def __init__(self, task: Task, clock: Clock) -> None:
        self.times: dict[str, float] = {}
        self._task = task
        self._clock = clock
        self._lock = Lock()

    def __call__(self, name: str, _: int | None) -> Photo:
        start = time.perf_counter()
        try:
            pixels, moment = sources.read(self._task.root, name, self._task.plans[0].model.jpeg)
        finally:
            with self._lock:
                self._clock.seconds["decode"] += time.perf_counter() - start
        if self._task.plans[0].layout.videos:
            self.times[name] = moment
        return pixels


def process(task: Task, names: Sequence[str], clock: Clock) -> Generator[Block, None, None]:
    """Process images in this process, and yield a block per batch, in their order."""
    model = task.plans[0].model
    if model.jpeg != "pillow":
        check_decoder(model.jpeg, model.device)
    reader = _Reader(task, clock)
    for batch in face_batches(
        names,
        model.device,
        task.options,
        runtime=model.runtime,
        read=reader,
        workers=task.workers,
        serial=sources.is_frame,
        collect_errors=True,
        clock=clock,
    ):
        yield _block(batch, task, reader.times, clock)


def _block(batch: ImageBatch, task: Task, times: dict[str, float], clock: Clock) -> Block:
    """Encode the faces of a batch with every model."""
    assert batch.faces is not None
    names, faces = list(batch.sources), measure(batch.images, batch.faces)
    assert faces.sharpness is not None
    index = np.array(batch.index, np.int64)[faces.image_index.cpu().numpy()]
    scores = faces.scores.float().cpu().numpy()
    face = np.arange(len(index)) - np.searchsorted(index, index)  # rows are sorted by image
    face[np.isnan(scores)] = -1
    shared: Rows = {
        "image": index,
        "face": face.astype(np.int32),
        "box": faces.boxes.float().cpu().numpy(),
        "score": scores,
        "landmarks": faces.landmarks.float().cpu().numpy(),
        "pose_deg": faces.pose_deg.float().cpu().numpy(),
        "eye_distance_px": faces.eye_distance_px.float().cpu().numpy(),
        "sharpness": faces.sharpness.float().cpu().numpy(),
    }
    if task.plans[0].layout.videos:
        moments = [times.pop(name, np.nan) for name in names]
        shared["time"] = np.array(moments)[index]
    rows = []
    for plan in task.plans:
        results = plan.model.encode_faces(
            batch.images, faces, plan.names, task.options.batch_size, clock
        )
        features = [_column(plan, name, result) for name, result in results.items()]
        rows.append(shared | dict(features))
    return Block(
        names,
        len(batch.images) - len(np.unique(index[face >= 0])),
        [(names[n], sources.reason_of(e, task.root, names[n])) for n, e in batch.errors.items()],
        rows,
    )


def _column(plan: Plan, name: str, result: Any) -> tuple[str, NDArray[np.float32]]:
    if name == "predict_expression":
        return "probabilities", result.softmax(-1).cpu().numpy()
    rows = result if isinstance(result, torch.Tensor) else flatten_rows(result)
    if name == "encode_expression" and plan.basis is not None:
        rows = coordinates(rows, *plan.basis)
    return name.removeprefix(FEATURES), rows.cpu().numpy()
