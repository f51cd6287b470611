"""Extract features: check the arguments, run an engine, store parts, and write the outputs."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from operator import index
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from facezoo.errors import ImageError
from facezoo.extraction.resume import Block, Parts, check_free, join, replacing
from facezoo.extraction.sources import ImageList, Source, files_of, list_images, state_of
from facezoo.extraction.stages import Clock, Plan, Task, plan_for, process
from facezoo.extraction.writers import Table, check_output, duplicates, write_table
from facezoo.models.base import FaceModel
from facezoo.preprocess.folders import skipped_message
from facezoo.preprocess.jpeg import JpegDecoder
from facezoo.preprocess.pipeline import ImageOptions, Which
from facezoo.progress import progress_bar
from facezoo.registry import best_device, load
from facezoo.runtimes import Runtime
from facezoo.training.processes import Processes

Engine = Literal["local", "ray"]
PART_IMAGES = 512
"""A part is written to disk when it covers this many images,"""
PART_ROWS = 4096
"""or has this many rows. A kill costs the work since the last part."""


@dataclass(frozen=True)
class ExtractionReport:
    """Counts and times of an extraction."""

    output: Path
    rows: int
    images: int
    """All images, with and without faces, readable and unreadable."""
    without_face: int
    unreadable: list[tuple[str, str]]
    """Names and reasons."""
    skipped: tuple[str, ...]
    """Files in folders that look like images and that Pillow cannot open."""
    resumed: int
    """Images of an earlier, interrupted run."""
    seconds: dict[str, float]
    """Time of this run by stage. ``decode`` is the sum over threads that run next to the other
    stages; in ``wait`` these wait for it."""
    images_per_second: float
    """Images of this run over its time, without the loading of the model."""

    @property
    def none_readable(self) -> bool:
        """True if there are images and all are unreadable."""
        return self.images > 0 and len(self.unreadable) == self.images

    def shares(self) -> dict[str, float]:
        """Return the share of each stage of the work of this run, in [0, 1], without waiting."""
        busy = {stage: time for stage, time in self.seconds.items() if stage != "wait"}
        total = sum(busy.values()) or 1.0
        return {stage: time / total for stage, time in busy.items()}

    def profile(self) -> str:
        """Return the stages as lines of text."""
        shares = self.shares().items()
        lines = [f"  {name:7} {self.seconds[name]:9.2f} s {share:6.1%}" for name, share in shares]
        wait = self.seconds["wait"]
        return "\n".join([*lines, f"  wait    {wait:9.2f} s for decoding, which runs in threads"])

    def __repr__(self) -> str:
        resumed = f", {self.resumed} of them by an earlier run" if self.resumed else ""
        skipped = f", {len(self.skipped)} files skipped" if self.skipped else ""
        return (
            f"{self.output}: {self.rows} rows from {self.images} images{resumed}; "
            f"{self.without_face} without a face, {len(self.unreadable)} unreadable{skipped}; "
            f"{self.images_per_second:.1f} images/s"
        )


def extract(
    source: Source | Iterable[Source],
    output: str | os.PathLike[str],
    *,
    model: str | FaceModel = "ipd-fer",
    what: str | Sequence[str] = ("expression", "identity"),
    faces: Which = "all",
    on_missing: Literal["skip", "nan"] = "skip",
    device: str | torch.device | None = None,
    jpeg: JpegDecoder | None = None,
    runtime: Runtime | None = None,
    min_face: float | None = None,
    score_threshold: float | None = None,
    max_side: int | None = None,
    rotations: Sequence[int] | None = None,
    batch_size: int = 32,
    workers: int = 2,
    every: int = 1,
    smooth: float | None = None,
    compact: bool | None = None,
    engine: Engine = "local",
    strict: bool = False,
    profile: bool = False,
    recursive: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> ExtractionReport:
    """Write the features of every face in many images to a file.

    Memory use is constant, apart from the list of names, and interrupted runs resume: finished
    images are in the folder ``<output>.parts`` until the file is complete, and the same call ends
    at the same file. The folder and the file need disk space at the same time for a moment.

    Args:
        source: a folder, whose images are named relative to it; or a file, a pattern such as
            ``"images/**/*.jpg"``, a ``.txt`` file with a path per line, a ``.parquet`` or ``.tar``
            shard, a video, or several of all these, named as given.
        output: a ``.parquet``, ``.csv`` or ``.npz`` file. Rows are sorted by file, then by the
            index of the face in its image. Columns: file, face, for videos time and track, box,
            score, landmarks, head pose and quality as in ``Faces``, the features, label,
            probabilities, checkpoint, fingerprint.
        model: a name that ``facezoo.load`` takes, or a model.
        what: features to write: ``"expression"``, ``"identity"``, ``"pose"`` and others that the
            model has. Labels and probabilities are written if it has classes.
        faces: ``"all"``, or ``"largest"`` for one face per image.
        on_missing: ``"skip"`` for no row for an image without a face, ``"nan"`` for a row of NaN
            with face -1. Unreadable files never have a row.
        device: device of the model; None for the best one, or for the device of a loaded model.
        jpeg: decoder of JPEG files, ``"pillow"`` or ``"nvjpeg"``; None for that of the model.
        runtime: what computes networks and detector: ``"torch"``, ``"onnxruntime"`` or
            ``"openvino"``; None for that of the model. A model that is passed keeps this setting,
            as well as ``device`` and ``jpeg``.
        min_face: smallest side of a face, pixels; None for 16 pixels in an image of ``max_side``.
        score_threshold: smallest score of a face.
        max_side: longest side of an image that the detector sees at once, pixels.
        rotations: rotations of the image at which faces are searched, multiples of 90 degrees. A
            face is found at the rotation that gives it the highest score.
        batch_size: images that are processed at once.
        workers: threads that decode.
        every: take every n-th frame of a video, from the first on.
        smooth: average features and probabilities along the track of a face in a video, with this
            time constant in seconds; None for no smoothing.
        compact: write expression features as ``FaceModel.compact_expression`` returns them; None
            for CSV only.
        engine: ``"local"`` for this process, or for all processes of ``accelerate launch``;
            ``"ray"`` for the actors of a Ray cluster. The rows are the same.
        strict: whether unreadable files are an error, raised when the output is complete.
        profile: measure exact times of the stages, which waits for a GPU after each stage.
        recursive: whether to search subfolders.
        overwrite: whether to replace the output and drop an interrupted run.
        progress: whether to show a progress bar, on a terminal or in a notebook.

    Raises:
        FileNotFoundError: if a path does not exist.
        FileExistsError: if the output exists, or the interrupted run had other options or images.
        ImageError: if ``strict`` and a file is unreadable.
        ImportError: if pyarrow, PyAV, Ray, accelerate or the runtime is needed and missing.
        UnsupportedError: if the model lacks one of ``what`` or takes meshes, or the device does not
            support ``jpeg`` or ``runtime``.
        ValueError: if there are no images, the output is one of them, or an option has no such
            value.

    Examples:
        >>> report = facezoo.extract(".", tmp / "features.parquet", progress=False)
        >>> report.rows
        2
    """
    options = {k: v for k, v in locals().items() if k not in ("source", "output", "model")}
    return extract_each(source, {output: model}, **options)[0]


def extract_each(
    source: Source | Iterable[Source],
    outputs: Mapping[str | os.PathLike[str], str | FaceModel],
    *,
    what: str | Sequence[str] = ("expression", "identity"),
    faces: Which = "all",
    on_missing: Literal["skip", "nan"] = "skip",
    device: str | torch.device | None = None,
    jpeg: JpegDecoder | None = None,
    runtime: Runtime | None = None,
    min_face: float | None = None,
    score_threshold: float | None = None,
    max_side: int | None = None,
    rotations: Sequence[int] | None = None,
    batch_size: int = 32,
    workers: int = 2,
    every: int = 1,
    smooth: float | None = None,
    compact: bool | None = None,
    engine: Engine = "local",
    strict: bool = False,
    profile: bool = False,
    recursive: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> list[ExtractionReport]:
    """Extract with several models at once: images are decoded and faces are found once.

    Each output is the file that ``extract`` writes with its model alone.

    Args:
        source: a folder, file, pattern, list, shard or video, or several, as in ``extract``.
        outputs: model of each output file; all models run on the device of the first.
        what: features to write, such as ``"expression"``; every model needs them. All other options
            are those of ``extract``.

    Returns:
        A report per output; their times are those of the whole run.

    Raises:
        ValueError: if there is no output, or one is named twice; further errors as ``extract``.
    """
    targets = [Path(output) for output in outputs]
    if not targets:
        raise ValueError("no output was named; give at least one file and its model")
    if twice := duplicates(targets):
        raise ValueError(f"the output {twice[0]} is named twice; give each model its own file")
    for target in targets:
        check_output(target)
    options = ImageOptions(
        faces,
        on_missing,
        batch_size=batch_size,
        min_face=min_face,
        score_threshold=score_threshold,
        max_side=max_side,
        rotations=rotations,
    )
    if options.on_missing == "raise":
        raise ValueError("on_missing must be 'skip' or 'nan' here, got 'raise'")
    if engine not in get_args(Engine):
        raise ValueError(f"engine must be 'local' or 'ray', got {engine!r}")
    for name, value in (("workers", workers), ("every", every)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if smooth is not None and not smooth > 0:
        raise ValueError(f"smooth must be above 0 seconds, or None, got {smooth}")
    every, smooth = index(every), None if smooth is None else float(smooth)
    together = Processes.present()
    if together.first and not overwrite:
        check_free(targets)
    images = list_images(source, recursive, every)
    if (every > 1 or smooth is not None) and not images.videos:
        raise ValueError("every and smooth are for videos, and there is no video; leave them out")
    _check_separate(targets, images)
    if runtime not in (None, "torch"):
        device = device or "cpu"
    models = _load(outputs.values(), device or together.device(), jpeg, runtime)
    plans = [
        plan_for(
            *(model, what, options, images.videos, smooth),
            compact=target.suffix.lower() == ".csv" if compact is None else compact,
        )
        for model, target in zip(models, targets, strict=True)
    ]
    # Models that were loaded by name are for this call only.
    own = [p for p, model in zip(plans, outputs.values(), strict=True) if p.model is not model]
    if engine == "local":
        for plan in own:
            plan.model.reduce_to(plan.names)
    settings = _settings(targets, plans, options, images)
    mark = sha256(repr([settings, images.names]).encode("utf-8", "surrogateescape")).hexdigest()
    if len(set(together.gather(mark))) > 1:
        raise ValueError(
            "the processes have different images, models or options; start all with the same "
            "arguments, and they share the work"
        )
    if images.skipped and together.first:
        warnings.warn(skipped_message(images.skipped), stacklevel=2)
    clock = Clock(exact=profile)
    task = Task(plans, options, images.root, workers, PART_IMAGES)

    def blocks(names: Sequence[str]) -> Generator[Block, None, None]:
        try:
            if engine == "local" and together.count == 1:
                yield from process(task, names, clock)
                return
            from facezoo.extraction import engines

            if engine == "ray":
                yield from engines.with_ray(task, names, clock, device)
            else:
                yield from engines.with_processes(task, names, clock, together)
        finally:  # the outputs are written without the networks
            for plan in own:
                plan.model.reduce_to(())

    reports: list[ExtractionReport] = []
    if together.first:
        state = partial(state_of, images.root)
        with closing(Parts(targets[0], settings, images.names, overwrite, state)) as parts:
            reports = _write(targets, plans, images, parts, clock, blocks, together, progress)
    else:
        (done, *_) = together.gather(None)
        for _ in blocks(images.names[done:]):
            pass
    (reports, *_) = together.gather(reports)
    if together.first and reports[0].none_readable:
        name, reason = reports[0].unreadable[0]
        warnings.warn(
            f"none of the {reports[0].images:,} images can be read; {name}: {reason}", stacklevel=2
        )
    if strict and (unreadable := reports[0].unreadable):
        shown = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:5])
        written = ", ".join(map(str, targets))
        raise ImageError(f"{len(unreadable)} files are unreadable ({written} is complete): {shown}")
    return reports


def _write(
    targets: Sequence[Path],
    plans: Sequence[Plan],
    images: ImageList,
    parts: Parts,
    clock: Clock,
    blocks: Callable[[Sequence[str]], Generator[Block, None, None]],
    together: Processes,
    progress: bool,
) -> list[ExtractionReport]:
    """Complete the parts, and write the outputs."""
    start, resumed = time.perf_counter(), parts.images
    together.gather(resumed)
    with closing(blocks(images.names[resumed:])) as results:
        _fill(parts, results, len(images.names), clock, progress)
    rows = []
    for n, (target, plan) in enumerate(zip(targets, plans, strict=True)):
        target.parent.mkdir(parents=True, exist_ok=True)
        with clock.stage("write"), replacing(target, parts.folder) as temporary:
            table = Table(parts, n, plan.layout)
            rows.append(write_table(temporary, target.suffix.lower(), table))
    parts.remove()
    speed = (parts.images - resumed) / (time.perf_counter() - start)
    counts = parts.images, parts.without_face, parts.unreadable, images.skipped, resumed
    return [
        ExtractionReport(target, count, *counts, clock.seconds, speed)
        for target, count in zip(targets, rows, strict=True)
    ]


def _fill(parts: Parts, blocks: Iterator[Block], count: int, clock: Clock, progress: bool) -> None:
    """Store the blocks of an engine in parts."""
    done = parts.images
    pending: list[Block] = []

    def flush() -> None:
        nonlocal done
        # After an interrupt the part of these blocks can be complete already.
        if pending and parts.images == done:
            with clock.stage("write"):
                parts.append(join(pending))
        done = parts.images
        pending.clear()

    shown = progress and count > 1
    options: dict[str, Any] = {"initial": done, "total": count, "desc": "images", "unit": "image"}
    bar: Any = progress_bar(**options) if shown else nullcontext()
    with bar:
        try:
            for block in blocks:
                pending.append(block)
                if shown:
                    bar.update(len(block.names))
                rows = sum(len(waiting.rows[0]["face"]) for waiting in pending)
                if rows >= PART_ROWS or sum(len(b.names) for b in pending) >= PART_IMAGES:
                    flush()
        finally:  # also after Ctrl-C or an error
            flush()


def _check_separate(targets: Sequence[Path], images: ImageList) -> None:
    """Reject an output that would replace a file that is read, such as a shard."""
    suffixes = tuple(target.suffix for target in targets)
    files = (name for name in files_of(images.names) if name.endswith(suffixes))
    inputs = {(images.root / name).resolve() for name in files}
    for target in targets:
        if target.resolve() in inputs:
            raise ValueError(f"the output {target} is one of the inputs; name another file")


def _load(
    models: Iterable[str | FaceModel],
    device: str | torch.device | None,
    jpeg: JpegDecoder | None,
    runtime: Runtime | None,
) -> list[FaceModel]:
    """Load models by name, all on the device of the first, with one decoder of JPEG files."""
    loaded: list[Any] = []
    for model in models:
        if not isinstance(model, (str, os.PathLike)):
            loaded.append(model if device is None else model.to(best_device(device)))
        else:
            loaded.append(load(model, device=device))
        device = loaded[0].device
    with_images = [model for model in loaded if isinstance(model, FaceModel)]  # others raise later
    if jpeg:
        for model in with_images:
            model.set_jpeg_decoder(jpeg)
    if runtime:
        for model in with_images:
            model.set_runtime(runtime)
    decoders = sorted({model.jpeg for model in with_images})
    if len(decoders) > 1:
        raise ValueError(
            f"the models decode JPEG files with {' and '.join(decoders)}; pass jpeg, or load them "
            "with the same decoder"
        )
    return loaded


def _settings(
    targets: Sequence[Path], plans: Sequence[Plan], options: ImageOptions, images: ImageList
) -> dict[str, Any]:
    """Return everything that decides the rows of the images, apart from the images."""
    root = images.root.resolve()
    absolute = all(map(os.path.isabs, images.names))
    settings = {
        "root": root.anchor if absolute else str(root),
        "faces": options.faces,
        "on_missing": options.on_missing,
    }
    for target, plan in zip(targets, plans, strict=True):
        prefix = f"{target.resolve()}: " if len(targets) > 1 else ""
        settings |= {f"{prefix}{key}": value for key, value in asdict(plan.layout).items()}
    return settings
