"""The extraction itself: decode, detect, align, encode, write."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from facezoo.base import FaceModel
from facezoo.errors import ImageError, UnsupportedError
from facezoo.extraction.inputs import Loaded, Photos, Source, group, list_photos, load_ahead
from facezoo.extraction.parts import (
    Block,
    Parts,
    Rows,
    in_progress,
    join,
    replacing,
    without_first,
)
from facezoo.extraction.report import STAGES, ExtractionReport
from facezoo.extraction.tables import Layout, check_output, write_table
from facezoo.preprocess.pipeline import (
    Which,
    check_options,
    find_faces,
    fingerprint,
    prepare,
    to_device,
)
from facezoo.registry import best_device, load
from facezoo.results import Faces

PART_PHOTOS = 512
"""A part is put on disk when it covers this many photographs,"""
PART_ROWS = 4096
"""or has this many rows. A kill costs the work since the last part."""
FACES_AT_ONCE = 256
"""Faces that are cut out together, so that a photograph of a crowd fits into memory."""


@dataclass(frozen=True)
class _Plan:
    model: FaceModel
    wanted: list[str]
    """Capabilities, as ``FaceModel.run`` takes them."""
    faces: Which
    on_missing: Literal["skip", "nan"]
    layout: Layout


@dataclass(frozen=True)
class _Job:
    """A checkpoint and where its rows go."""

    target: Path
    plan: _Plan
    parts: Parts
    resumed: int


@dataclass
class _Clock:
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


def extract(
    source: Source | Iterable[Source],
    output: str | os.PathLike[str],
    *,
    model: str | FaceModel = "ipd-fer",
    what: Sequence[str] = ("expression", "identity"),
    faces: Which = "all",
    on_missing: Literal["skip", "nan"] = "skip",
    device: str | torch.device | None = None,
    batch_size: int = 32,
    workers: int = 2,
    strict: bool = False,
    profile: bool = False,
    recursive: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> ExtractionReport:
    """Write the features of every face in many photographs to a file.

    Memory does not grow with the number of photographs, but for the list of their names. What is
    done stands in the folder ``<output>.parts`` until the file is complete; interrupted in any
    way, the same call goes on there and ends at the same file. That folder and the file need disk
    space at the same time for a moment.

    Args:
        source: a folder, whose photographs are named relative to it; or a file, a pattern such as
            ``"photos/**/*.jpg"``, a ``.txt`` file with a path per line, a ``.parquet`` or ``.tar``
            shard, or several of all these, named as given.
        output: a ``.parquet``, ``.csv`` or ``.npz`` file. Rows are sorted by file, then by the
            index of the face in its photograph, and have: file, face, box, score, landmarks, the
            embeddings, label, probabilities, checkpoint, fingerprint.
        model: a name that ``facezoo.load`` takes, or a model.
        what: embeddings to write: ``"expression"``, ``"identity"``, ``"pose"``, as far as the
            model has them. Labels and probabilities are there whenever it has classes.
        faces: ``"all"`` or ``"largest"``, one per photograph.
        on_missing: ``"skip"`` for no row where no face is found, ``"nan"`` for a row of NaN with
            face -1. Unreadable files never have a row.
        device: where to work; None for the best there is, or for where the given model is.
        batch_size: photographs that are worked on at once.
        workers: threads that decode.
        strict: whether unreadable files are an error, raised when the output is complete.
        profile: whether to measure the stages exactly on a GPU too, which slows it down a little.
        recursive: whether to search folders in folders.
        overwrite: whether to replace the output and drop what an interrupted run left.
        progress: whether to show a progress bar, if the error stream is a terminal.

    Raises:
        FileNotFoundError: if a path does not exist.
        FileExistsError: if the output is there, or the interrupted run was not this one.
        ImageError: if ``strict`` and a file is unreadable.
        ImportError: if the output is Parquet and pyarrow is missing.
        UnsupportedError: if the model lacks one of ``what``, or takes no photographs.
        ValueError: if there are no photographs, or an argument has no such value.
    """
    (report,) = extract_each(
        source,
        {output: model},
        what=what,
        faces=faces,
        on_missing=on_missing,
        device=device,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
        profile=profile,
        recursive=recursive,
        overwrite=overwrite,
        progress=progress,
    )
    return report


def extract_each(
    source: Source | Iterable[Source],
    outputs: Mapping[str | os.PathLike[str], str | FaceModel],
    *,
    what: Sequence[str] = ("expression", "identity"),
    faces: Which = "all",
    on_missing: Literal["skip", "nan"] = "skip",
    device: str | torch.device | None = None,
    batch_size: int = 32,
    workers: int = 2,
    strict: bool = False,
    profile: bool = False,
    recursive: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> list[ExtractionReport]:
    """``extract`` with several checkpoints in one pass: photographs decoded, faces found once.

    Each file is the one that ``extract`` writes with that model alone.

    Args:
        source: as ``extract`` takes it.
        outputs: the model of each output file; all work on the device of the first.
        what: as the others, those of ``extract``; every model must have the embeddings.

    Returns:
        A report per output; their times are those of the whole pass.

    Raises:
        ValueError: if there is no output, or one of the errors of ``extract``.
    """
    targets = [Path(output) for output in outputs]
    if not targets:
        raise ValueError("no output was named; give at least one file and its model")
    for target in targets:
        _check_arguments(target, faces, on_missing, batch_size, workers)
        if target.exists() and not overwrite and not in_progress(target):
            raise FileExistsError(
                f"{target} is there already, and complete; pass --overwrite (overwrite=True) to "
                "make it again"
            )
    photos = list_photos(source, recursive)
    models = _on_one_device(outputs.values(), device)
    plans = [_plan(model, what, faces, on_missing) for model in models]
    clock = _Clock(exact=profile)
    begin = time.perf_counter()
    reports = []
    with ExitStack() as stack:
        jobs = []
        for target, plan in zip(targets, plans, strict=True):
            parts = stack.enter_context(Parts(target, _settings(plan), photos.names, overwrite))
            jobs.append(_Job(target, plan, parts, parts.done))
        _fill(jobs, photos, clock, batch_size, workers, progress)
        for job in jobs:
            with clock.stage("write"), replacing(job.target, beside=job.parts.folder) as partial:
                suffix = job.target.suffix.lower()
                rows = write_table(partial, suffix, job.parts, job.plan.layout)
            missing, unreadable = _failures(job.parts)
            reports.append((job, rows, missing, unreadable))
        for job in jobs:
            job.parts.remove()
    elapsed = time.perf_counter() - begin
    done = [
        ExtractionReport(
            job.target,
            rows,
            len(photos.names),
            missing,
            unreadable,
            job.resumed,
            clock.seconds,
            (len(photos.names) - job.resumed) / elapsed,
        )
        for job, rows, missing, unreadable in reports
    ]
    if strict and (unreadable := done[0].unreadable):
        shown = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:5])
        written = ", ".join(map(str, targets))
        raise ImageError(f"{len(unreadable)} files are unreadable ({written} is complete): {shown}")
    return done


def _check_arguments(
    target: Path, faces: str, on_missing: str, batch_size: int, workers: int
) -> None:
    check_output(target)
    check_options(faces, on_missing)
    if on_missing == "raise":
        raise ValueError("on_missing must be 'skip' or 'nan' here, got 'raise'")
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")


def _ready(model: str | FaceModel, device: str | torch.device | None) -> FaceModel:
    if isinstance(model, FaceModel):
        return model if device is None else model.to(best_device(device))
    return load(model, device=device)


def _on_one_device(
    models: Iterable[str | FaceModel], device: str | torch.device | None
) -> list[FaceModel]:
    """Models, loaded if they are names, on the device of the first."""
    ready = []
    for model in models:
        ready.append(_ready(model, device))
        device = ready[0].device
    return ready


def _plan(
    model: FaceModel, what: Sequence[str], faces: Which, on_missing: Literal["skip", "nan"]
) -> _Plan:
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
    widths = {name: nothing[f"encode_{name}"].shape[1] for name in features}
    layout = Layout(_checkpoint(model), fingerprint(model.preprocessing), widths, tuple(classes))
    return _Plan(model, wanted, faces, on_missing, layout)


def _checkpoint(model: FaceModel) -> str:
    """``name@sha`` of the tensors as they are now, whatever file they once came from."""
    name = model.card.name if model.card else model.model_name
    return f"{name}@{_digest(model)[:12]}"


def _digest(model: FaceModel) -> str:
    """SHA-256 of a model's tensors as they are now, in their precision."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _settings(plan: _Plan) -> dict[str, Any]:
    """Everything that decides the rows."""
    return {
        **asdict(plan.layout),
        "tensors": _digest(plan.model)[:16],
        "faces": plan.faces,
        "on_missing": plan.on_missing,
    }


def _fill(
    jobs: Sequence[_Job],
    photos: Photos,
    clock: _Clock,
    batch_size: int,
    workers: int,
    progress: bool,
) -> None:
    """Work through the photographs that some job's parts do not cover yet."""
    done = min(job.parts.done for job in jobs)
    names = photos.names[done:]
    loaded = load_ahead(photos.root, names, workers=workers, ahead=2 * batch_size)
    batches = group(_timed(loaded, clock), batch_size)
    bar = tqdm(
        initial=done,
        total=len(photos.names),
        unit="photo",
        disable=None if progress else True,
    )
    pending: list[list[Block]] = []
    plans = [job.plan for job in jobs]
    try:
        with bar:
            for batch in batches:
                pending.append(_work(batch, plans, clock, batch_size))
                bar.update(len(batch))
                if _is_enough([blocks[0] for blocks in pending]):
                    with clock.stage("write"):
                        done = _append(jobs, pending, done)
                    pending = []
    finally:
        loaded.close()
        # Also after Ctrl-C or an error: what is done need not be done again. If the signal came
        # while a part was being written, that part may stand already.
        if pending:
            with clock.stage("write"):
                _append(jobs, pending, done)


def _append(jobs: Sequence[_Job], pending: Sequence[Sequence[Block]], done: int) -> int:
    """Put blocks, which begin at photograph ``done``, into parts that lack them; where they end."""
    end = done + sum(len(blocks[0].names) for blocks in pending)
    for job, blocks in zip(jobs, zip(*pending, strict=True), strict=True):
        if job.parts.done < end:  # a kill between two jobs leaves one of them ahead
            job.parts.append(without_first(join(blocks), job.parts.done - done))
    return end


def _timed(loaded: Iterator[Loaded], clock: _Clock) -> Iterator[Loaded]:
    """The same photographs, their decoding and the waiting for it counted."""
    while True:
        with clock.stage("wait"):
            photo = next(loaded, None)
        if photo is None:
            return
        clock.seconds["decode"] += photo.seconds
        yield photo


def _is_enough(pending: Sequence[Block]) -> bool:
    photos = sum(len(block.names) for block in pending)
    return photos >= PART_PHOTOS or sum(len(b.rows["face"]) for b in pending) >= PART_ROWS


@torch.inference_mode()
def _work(
    batch: Sequence[Loaded], plans: Sequence[_Plan], clock: _Clock, batch_size: int
) -> list[Block]:
    """Find the faces of a batch of decoded photographs, and each plan's block of them."""
    places = [index for index, photo in enumerate(batch) if photo.pixels is not None]
    pixels = [photo.pixels for photo in batch if photo.pixels is not None]
    with clock.stage("detect"):
        tensors = to_device(pixels, plans[0].model.device)
        found = find_faces(tensors, faces=plans[0].faces, on_missing="skip")
    return [_encode(batch, places, tensors, found, plan, clock, batch_size) for plan in plans]


def _encode(
    batch: Sequence[Loaded],
    places: Sequence[int],
    tensors: Sequence[torch.Tensor],
    found: Faces,
    plan: _Plan,
    clock: _Clock,
    batch_size: int,
) -> Block:
    """Align and encode the faces of a batch, whose readable photographs are at ``places``."""
    results: dict[str, list[torch.Tensor]] = {name: [] for name in plan.wanted}
    for begin in range(0, max(1, len(found)), FACES_AT_ONCE):
        part = found[begin : begin + FACES_AT_ONCE]
        with clock.stage("align"):
            crops = torch.zeros(0, *plan.model.input_shape, device=plan.model.device)
            if len(part):
                crops = prepare(tensors, part, plan.model.preprocessing)
        with clock.stage("encode"):
            for name, values in plan.model.run(crops, plan.wanted, batch_size).items():
                is_logits = name == "predict_expression"
                results[name].append(values.softmax(-1) if is_logits else values)
    rows = _rows(found, {name: torch.cat(values) for name, values in results.items()}, places)
    empty = sorted(set(places) - set(rows["photo"].tolist()))
    if plan.on_missing == "nan":
        rows = _with_gaps(rows, empty)
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


def _failures(parts: Parts) -> tuple[int, list[tuple[str, str]]]:
    """How many photographs have no face, and which are unreadable, in all parts."""
    missing, unreadable = 0, []
    for block in parts.blocks([]):
        missing += len(block.without_face)
        unreadable += block.unreadable
    return missing, unreadable
