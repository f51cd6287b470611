"""The stages that every photograph goes through: find faces, align, encode."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from facezoo.errors import ImageError, UnsupportedError
from facezoo.extraction.report import STAGES
from facezoo.extraction.resume import Block, Rows
from facezoo.extraction.sources import Loaded
from facezoo.extraction.writers import Layout
from facezoo.hub.tensors import digest_of
from facezoo.models.base import FaceModel
from facezoo.preprocess.jpeg import Jpeg
from facezoo.preprocess.pipeline import Which, find_faces, fingerprint, to_device
from facezoo.results import Faces, flatten_rows


@dataclass(frozen=True)
class Plan:
    """What is asked of a model for every face."""

    model: FaceModel
    wanted: list[str]
    """Capabilities, as ``FaceModel.run`` takes them."""
    faces: Which
    on_missing: Literal["skip", "nan"]
    layout: Layout


@dataclass
class Clock:
    """Time by stage; on a GPU a stage ends when its kernels have, if that is asked for."""

    exact: bool
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside."""
        begin = time.perf_counter()
        yield
        if self.exact and torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] += time.perf_counter() - begin


def plan_for(
    model: FaceModel,
    what: Sequence[str],
    faces: Which,
    on_missing: Literal["skip", "nan"],
    videos: bool = False,
    smooth: float | None = None,
) -> Plan:
    """What to ask of the model for each face, and how wide the answers are."""
    if not isinstance(model, FaceModel):
        raise UnsupportedError(
            f"{type(model).__name__} takes meshes, not photographs; call its encode_expression() "
            "with them, or extract with a model of photographs"
        )
    able = model.capabilities()
    known = [name.removeprefix("encode_") for name in able if name.startswith("encode_")]
    features = list(dict.fromkeys([what] if isinstance(what, str) else what))
    lacking = [name for name in features if name not in known]
    if lacking:
        raise UnsupportedError(
            f"{model.model_name} has no embedding {', '.join(lacking)}; it has {', '.join(known)}"
        )
    wanted = [f"encode_{name}" for name in features]
    classes = model.labels if "predict_expression" in able else ()
    if classes:
        wanted.append("predict_expression")
    nothing = model.run(torch.zeros(0, *model.input_shape, device=model.device), wanted)
    widths = {name: flatten_rows(nothing[f"encode_{name}"]).shape[1] for name in features}
    marks = _checkpoint(model), fingerprint(model.preprocessing, model.jpeg)
    layout = Layout(*marks, widths, tuple(classes), videos, smooth)
    return Plan(model, wanted, faces, on_missing, layout)


def _checkpoint(model: FaceModel) -> str:
    """``name@sha`` of the tensors as they are now, whatever file they once came from."""
    name = model.card.name if model.card else model.model_name
    return f"{name}@{digest_of(model)[:12]}"


@torch.inference_mode()
def work(
    batch: Sequence[Loaded], plans: Sequence[Plan], clock: Clock, batch_size: int
) -> list[Block]:
    """Find the faces of a batch of decoded photographs, and each plan's block of them."""
    with clock.stage("detect"):
        batch, tensors = _moved(batch, plans[0].model.device)
        places = [index for index, photo in enumerate(batch) if photo.pixels is not None]
        found = find_faces(tensors, faces=plans[0].faces, on_missing="skip")
    return [_encode(batch, places, tensors, found, plan, clock, batch_size) for plan in plans]


def _moved(
    batch: Sequence[Loaded], device: torch.device
) -> tuple[list[Loaded], list[torch.Tensor]]:
    """The pixels of a batch on a device, and the batch, its unreadable photographs marked."""
    there = [photo.pixels for photo in batch if photo.pixels is not None]
    moved = iter(zip(there, to_device(there, device), strict=True))
    marked, tensors = [], []
    for photo in batch:
        before, pixels = (None, None) if photo.pixels is None else next(moved)
        if isinstance(pixels, ImageError):
            photo = photo.unreadable(pixels, before.source if isinstance(before, Jpeg) else "")
        elif pixels is not None:
            tensors.append(pixels)
        marked.append(photo)
    return marked, tensors


def _encode(
    batch: Sequence[Loaded],
    places: Sequence[int],
    tensors: Sequence[torch.Tensor],
    found: Faces,
    plan: Plan,
    clock: Clock,
    batch_size: int,
) -> Block:
    """Align and encode the faces of a batch, whose readable photographs are at ``places``."""
    results = plan.model.encode_faces(tensors, found, plan.wanted, batch_size, clock)
    if "predict_expression" in results:
        results["predict_expression"] = results["predict_expression"].softmax(-1)
    rows = _rows(found, {name: flatten_rows(values) for name, values in results.items()}, places)
    empty = sorted(set(places) - set(rows["photo"].tolist()))
    if plan.on_missing == "nan":
        rows = _with_gaps(rows, empty)
    if plan.layout.videos:
        rows["time"] = np.array([photo.time for photo in batch])[rows["photo"]]
    return Block(
        [photo.name for photo in batch],
        [batch[index].name for index in empty],
        [(photo.name, photo.reason) for photo in batch if photo.pixels is None],
        rows,
    )


def _rows(found: Faces, results: dict[str, torch.Tensor], places: Sequence[int]) -> Rows:
    """Columns of the faces of a batch; ``places`` are the readable photographs' in the batch."""
    readable = found.image_index.cpu().numpy()
    first = np.searchsorted(readable, readable)  # row of the first face of the same photograph
    columns = {
        "photo": np.array(places, np.int64)[readable],
        "face": (np.arange(len(readable)) - first).astype(np.int32),
        "box": found.boxes,
        "score": found.scores,
        "landmarks": found.landmarks,
    }
    names = {"predict_expression": "probabilities"}
    for name, value in results.items():
        columns[names.get(name, name.removeprefix("encode_"))] = value
    return {
        key: value.float().cpu().numpy() if isinstance(value, torch.Tensor) else value
        for key, value in columns.items()
    }


def _with_gaps(rows: Rows, empty: Sequence[int]) -> Rows:
    """A row of NaN, and face -1, for each photograph without a face."""
    photo = np.concatenate([rows["photo"], np.array(empty, np.int64)])
    order = photo.argsort(kind="stable")
    filled = {"photo": photo[order]}
    for key, value in rows.items():
        if key != "photo":
            hole = -1 if key == "face" else np.nan
            gaps = np.full((len(empty), *value.shape[1:]), hole, value.dtype)
            filled[key] = np.concatenate([value, gaps])[order]
    return filled
