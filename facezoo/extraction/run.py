"""The extraction itself: decode, detect, align, encode, write."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from tqdm.auto import tqdm

from facezoo.errors import ImageError
from facezoo.extraction.cluster import on_ray
from facezoo.extraction.engines import Blocks, Task, alone, shared
from facezoo.extraction.passes import check_free, finished_before, tell
from facezoo.extraction.report import ExtractionReport
from facezoo.extraction.resume import Block, Parts, join, replacing, sweep, without_first
from facezoo.extraction.sources import Photos, Source, files_of, list_photos, state_of
from facezoo.extraction.stages import Clock, Plan, plan_for
from facezoo.extraction.writers import Layout, check_output, write_table
from facezoo.hub.tensors import digest_of
from facezoo.models.base import FaceModel
from facezoo.preprocess.jpeg import JpegDecoder
from facezoo.preprocess.pipeline import ImageOptions, Which
from facezoo.registry import best_device, load
from facezoo.training.processes import Processes

Engine = Literal["local", "ray"]
PART_PHOTOS = 512
"""A part is put on disk when it covers this many photographs,"""
PART_ROWS = 4096
"""or has this many rows. A kill costs the work since the last part."""


@dataclass(frozen=True)
class _Job:
    """A checkpoint and where its rows go."""

    target: Path
    place: int
    """Of its block among those that an engine yields."""
    layout: Layout
    parts: Parts
    resumed: int


def extract(
    source: Source | Iterable[Source],
    output: str | os.PathLike[str],
    *,
    model: str | FaceModel = "ipd-fer",
    what: Sequence[str] = ("expression", "identity"),
    faces: Which = "all",
    on_missing: Literal["skip", "nan"] = "skip",
    device: str | torch.device | None = None,
    jpeg: JpegDecoder | None = None,
    batch_size: int = 32,
    workers: int = 2,
    every: int = 1,
    smooth: float | None = None,
    engine: Engine = "local",
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
            shard, a video, or several of all these, named as given.
        output: a ``.parquet``, ``.csv`` or ``.npz`` file. Rows are sorted by file, then by the
            index of the face in its photograph, and have: file, face, of videos time and track,
            box, score, landmarks, the embeddings, label, probabilities, checkpoint, fingerprint.
        model: a name that ``facezoo.load`` takes, or a model.
        what: embeddings to write: ``"expression"``, ``"identity"``, ``"pose"``, as far as the
            model has them. Labels and probabilities are there whenever it has classes.
        faces: ``"all"`` or ``"largest"``, one per photograph.
        on_missing: ``"skip"`` for no row where no face is found, ``"nan"`` for a row of NaN with
            face -1. Unreadable files never have a row.
        device: where to work; None for the best there is, or for where the given model is.
        jpeg: what decodes JPEG files, see ``facezoo.load``; None for Pillow, or for what the given
            model has.
        batch_size: photographs that are worked on at once.
        workers: threads that decode.
        every: of videos, the first of each so many frames is taken.
        smooth: of videos, seconds over which embeddings and probabilities are averaged along the
            track of a face, see ``facezoo.extraction.tracks``; None for values as they are.
        engine: ``"local"`` for this process, or for all of those that ``accelerate launch``
            started; ``"ray"`` for the actors of a Ray cluster, one per GPU or else per CPU. The
            rows are the same.
        strict: whether unreadable files are an error, raised when the output is complete.
        profile: whether to measure the stages exactly on a GPU too, which slows it down a little.
        recursive: whether to search folders in folders.
        overwrite: whether to replace the output and drop what an interrupted run left.
        progress: whether to show a progress bar, if the error stream is a terminal.

    Raises:
        FileNotFoundError: if a path does not exist.
        FileExistsError: if the output is there, or the interrupted run was not this one, or its
            photographs have changed.
        ImageError: if ``strict`` and a file is unreadable.
        ImportError: if the output is Parquet and pyarrow is missing, or what videos, Ray or several
            processes need.
        UnsupportedError: if the model lacks one of ``what``, or takes no photographs, or the
            device does not do ``jpeg``.
        ValueError: if there are no photographs, or the output is one of them or their shard, or an
            argument has no such value, or ``every`` or ``smooth`` is given and there is no video.
    """
    (report,) = extract_each(
        source,
        {output: model},
        what=what,
        faces=faces,
        on_missing=on_missing,
        device=device,
        jpeg=jpeg,
        batch_size=batch_size,
        workers=workers,
        every=every,
        smooth=smooth,
        engine=engine,
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
    jpeg: JpegDecoder | None = None,
    batch_size: int = 32,
    workers: int = 2,
    every: int = 1,
    smooth: float | None = None,
    engine: Engine = "local",
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
        ValueError: if there is no output, or one is named twice, or one of the errors of
            ``extract``.
    """
    targets = [Path(output) for output in outputs]
    if not targets:
        raise ValueError("no output was named; give at least one file and its model")
    resolved = [target.resolve() for target in targets]
    if twice := [t for t, real in zip(targets, resolved, strict=True) if resolved.count(real) > 1]:
        raise ValueError(f"the output {twice[-1]} is named twice; give each model its own file")
    together = Processes.present()
    for target in targets:
        _check_arguments(target, faces, on_missing, engine)
    if together.first and not overwrite:
        check_free(targets)
    _check_numbers(batch_size=batch_size, workers=workers, every=every)
    photos = list_photos(source, recursive, every)
    _check_not_read(targets, photos)
    _check_videos(photos, every, smooth)
    models = _on_one_device(outputs.values(), device or together.device())
    _agree_on_jpeg(models, jpeg)
    plans = [plan_for(model, what, faces, on_missing, photos.videos, smooth) for model in models]
    _check_same(together, [photos.names, [_settings(plan) for plan in plans]])
    clock = Clock(exact=profile)
    task = Task(plans, photos.root, batch_size, workers, PART_PHOTOS)

    def blocks(done: int) -> Blocks:
        rest = photos.names[done:]
        if engine == "ray":
            return on_ray(task, rest, clock, device)
        return (
            shared(task, rest, clock, together) if together.count > 1 else alone(task, rest, clock)
        )

    if together.first:
        reports = _written(targets, plans, photos, clock, blocks, together, overwrite, progress)
    else:
        (done, *_) = together.gather(None)
        for _ in blocks(done):
            pass
        reports = []
    (reports, *_) = together.gather(reports)
    if strict and (unreadable := reports[0].unreadable):
        shown = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:5])
        written = ", ".join(map(str, targets))
        raise ImageError(f"{len(unreadable)} files are unreadable ({written} is complete): {shown}")
    return reports


def _written(
    targets: Sequence[Path],
    plans: Sequence[Plan],
    photos: Photos,
    clock: Clock,
    blocks: Callable[[int], Blocks],
    together: Processes,
    overwrite: bool,
    progress: bool,
) -> list[ExtractionReport]:
    """Put what an engine yields into parts, and these into files; ``blocks`` starts one."""
    begin = time.perf_counter()
    root = {"root": _root_of(photos)}
    runs = {t: _settings(plan) | root for t, plan in zip(targets, plans, strict=True)}
    reports = {} if overwrite else finished_before(runs, photos.names)

    def now(names: Sequence[str]) -> str:
        return state_of(photos.root, names)

    with ExitStack() as stack:
        jobs = []
        for place, target in enumerate(targets):
            if target not in reports:
                opened = Parts(target, runs[target], photos.names, overwrite, now)
                parts = stack.enter_context(opened)
                jobs.append(_Job(target, place, plans[place].layout, parts, parts.done))
        done = min(job.resumed for job in jobs)
        together.gather(done)
        with closing(blocks(done)) as engine:
            _fill(jobs, engine, done, len(photos.names), clock, progress)
        for job in jobs:
            with clock.stage("write"), replacing(job.target, beside=job.parts.folder) as partial:
                suffix = job.target.suffix.lower()
                rows = write_table(partial, suffix, job.parts, job.layout)
            count, failures = job.parts.done, _failures(job.parts)
            reports[job.target] = ExtractionReport(
                job.target, rows, count, *failures, job.resumed, clock.seconds, 0.0
            )
        if len(targets) > 1:
            jobs[-1].parts.tell_finished(tell([*reports.values()], runs, photos.names))
        for job in jobs:
            job.parts.remove()
    for target in targets:
        sweep(target)
    elapsed = time.perf_counter() - begin
    return [
        replace(
            reports[target],
            seconds=clock.seconds,
            images_per_second=(reports[target].images - reports[target].resumed) / elapsed,
        )
        for target in targets
    ]


def _check_arguments(target: Path, faces: str, on_missing: str, engine: str) -> None:
    check_output(target)
    ImageOptions(faces, on_missing)
    if on_missing == "raise":
        raise ValueError("on_missing must be 'skip' or 'nan' here, got 'raise'")
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be 'local' or 'ray', got {engine!r}")


def _check_numbers(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")


def _check_not_read(targets: Sequence[Path], photos: Photos) -> None:
    """Refuse to put features in the place of what they are of, such as a shard."""
    suffixes = tuple({target.suffix for target in targets})
    read = {(photos.root / f).resolve() for f in files_of(photos.names) if f.endswith(suffixes)}
    for target in targets:
        if target.resolve() in read:
            raise ValueError(
                f"the output {target} is among what is to be read, and would take its place; name "
                "another file"
            )


def _check_videos(photos: Photos, every: int, smooth: float | None) -> None:
    """Refuse options of videos where there are none, rather than leave them unheeded."""
    if smooth is not None and not smooth > 0:
        raise ValueError(f"smooth must be above 0 seconds, or None, got {smooth}")
    for name, given in (("every", every > 1), ("smooth", smooth is not None)):
        if given and not photos.videos:
            raise ValueError(f"{name} is about videos, and there is none; leave it out")


def _check_same(together: Processes, given: object) -> None:
    """Processes that share the work must agree on what it is."""
    mark = sha256(repr(given).encode("utf-8", "surrogateescape")).hexdigest()
    if len(set(together.gather(mark))) > 1:
        raise ValueError(
            "the processes of this start were given different photographs, models or options; give "
            "all the same, and they share the work"
        )


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


def _agree_on_jpeg(models: Sequence[FaceModel], jpeg: JpegDecoder | None) -> None:
    """Have all models of a pass, in which a photograph is decoded once, use one decoder."""
    of_photos = [model for model in models if isinstance(model, FaceModel)]  # others are refused
    if jpeg is not None:
        for model in of_photos:
            model.set_jpeg_decoder(jpeg)
    decoders = sorted({model.jpeg for model in of_photos})
    if len(decoders) > 1:
        raise ValueError(
            f"the models of one pass decode JPEG files by {' and '.join(decoders)}; give jpeg, or "
            "load them alike"
        )


def _root_of(photos: Photos) -> str:
    """The folder that the names belong to; that of the file system if all of them are absolute."""
    root = photos.root.resolve()
    return root.anchor if all(map(os.path.isabs, photos.names)) else str(root)


def _settings(plan: Plan) -> dict[str, Any]:
    """Everything that decides the rows of given photographs."""
    return {
        **asdict(plan.layout),
        "tensors": digest_of(plan.model)[:16],
        "faces": plan.faces,
        "on_missing": plan.on_missing,
    }


def _fill(
    jobs: Sequence[_Job], blocks: Blocks, done: int, count: int, clock: Clock, progress: bool
) -> None:
    """Put the blocks of an engine, from the photograph ``done`` of ``count`` on, into parts."""
    bar = tqdm(initial=done, total=count, unit="photo", disable=None if progress else True)
    pending: list[list[Block]] = []
    try:
        with bar:
            for made in blocks:
                pending.append(made)
                bar.update(len(made[0].names))
                if _is_enough([entry[0] for entry in pending]):
                    with clock.stage("write"):
                        done = _append(jobs, pending, done)
                    pending = []
    finally:
        # Also after Ctrl-C or an error: what is done need not be done again. If the signal came
        # while a part was being written, that part may stand already.
        if pending:
            with clock.stage("write"):
                _append(jobs, pending, done)


def _append(jobs: Sequence[_Job], pending: Sequence[Sequence[Block]], done: int) -> int:
    """Put blocks, which begin at photograph ``done``, into parts that lack them; where they end."""
    end = done + sum(len(blocks[0].names) for blocks in pending)
    for job in jobs:
        if job.parts.done < end:  # a kill between two jobs leaves one of them ahead
            blocks = [made[job.place] for made in pending]
            job.parts.append(without_first(join(blocks), job.parts.done - done))
    return end


def _is_enough(pending: Sequence[Block]) -> bool:
    photos = sum(len(block.names) for block in pending)
    return photos >= PART_PHOTOS or sum(len(b.rows["face"]) for b in pending) >= PART_ROWS


def _failures(parts: Parts) -> tuple[int, list[tuple[str, str]]]:
    """How many photographs have no face, and which are unreadable, in all parts."""
    missing, unreadable = 0, []
    for block in parts.blocks([]):
        missing += len(block.without_face)
        unreadable += block.unreadable
    return missing, unreadable
