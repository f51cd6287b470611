"""``facezoo predict``, ``verify``, ``extract`` and ``join``."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facezoo.cli.common import (
    FILE,
    OUT,
    PATH,
    detection_options,
    device_option,
    resumable,
    runtime_option,
)
from facezoo.errors import ImageError, NoFaceError

if TYPE_CHECKING:
    from facezoo.models.base import FaceModel
    from facezoo.results import ExpressionPrediction

faces_option = click.option("--faces", type=click.Choice(["all", "largest"]), default="all")


@click.command(
    epilog="An image without a face is an error only if no image has one. Files that cannot be "
    "read or saved are reported on the error stream, and the exit code is 1."
)
@click.argument("sources", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--model", default="ipd-fer", help="any name that load takes")
@faces_option
@click.option(
    "--on-missing",
    type=click.Choice(["skip", "raise"]),
    default="skip",
    help="if no face is found, continue or stop with an error",
)
@detection_options
@device_option
@runtime_option
@click.option("--json", "as_json", is_flag=True, help="print JSON")
@click.option("--csv", "as_csv", is_flag=True, help="print a CSV table with a row per face")
@click.option(
    "--save",
    type=PATH,
    help="annotated image (.png, .jpg) or video (.mp4), or a folder for several; several faces "
    "have their numbers, and small images are enlarged",
)
def predict(
    sources: tuple[str, ...],
    model: str,
    faces: Any,
    on_missing: Any,
    device: str | None,
    runtime: Any,
    as_json: bool,
    as_csv: bool,
    save: Path | None,
    **detection: Any,
) -> int:
    """Predict the expression of each face in images, videos, folders or patterns ("*.jpg")."""
    from facezoo.extraction.sources import is_video
    from facezoo.plot.annotation import picture_paths
    from facezoo.registry import load

    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    files = list(_image_files(sources))
    videos = {file for file in files if is_video(str(file))}
    pictures = picture_paths(files, save, videos) if save else {}
    loaded = load(model, device=device, runtime=runtime)
    entries: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    columns: list[str] = []
    unsaved = False
    for file in files:
        draw = pictures.get(file)
        try:
            if file in videos:
                results = _predict_video(file, loaded, draw, faces=faces, **detection)
            else:
                results = _predict_image(
                    file, loaded, draw, faces=faces, on_missing=on_missing, **detection
                )
            for name, prediction, places in results:
                found = [a | b for a, b in zip(places, _faces(prediction), strict=True)]
                entries.append({"file": name, "faces": found})
                for place, row in zip(places, prediction.to_dict(), strict=True):
                    del row["image_index"]
                    row["file"] = name
                    table.append({"file": name, "face": row["face"], **place, **row})
                if as_csv and not found and file not in videos:
                    print(f"facezoo: no face found in {name}", file=sys.stderr)
                columns = columns or list(prediction._columns())
                if not as_json and not as_csv and (found or file not in videos):
                    print(_prediction_text(entries[-1]))
        except ImageError as error:
            print(f"facezoo: error: {error}", file=sys.stderr)
            entries.append({"file": str(file), "error": str(error)})
        except SavingError as error:
            print(f"facezoo: error: {error}", file=sys.stderr)
            unsaved = True
    if as_json:
        print(json.dumps(entries, indent=2))
    if as_csv and columns:
        of_videos = [name for name in ("time", "track") if any(name in row for row in table)]
        names = ["file", "face", *of_videos, *columns[columns.index("face") + 1 :]]
        writer = csv.DictWriter(sys.stdout, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    unreadable = any("error" in entry for entry in entries)
    return 1 if unreadable or unsaved or not table else 0


@click.command(
    epilog="For research only: errors are common, and rates on other images can be much higher."
)
@click.argument("first", metavar="IMAGE_A")
@click.argument("second", metavar="IMAGE_B")
@click.option("--model", default="ipd-fer", help="any name that load takes")
@click.option("--threshold", type=float, help="least similarity  [default: the one in the card]")
@detection_options
@device_option
@runtime_option
@click.option("--json", "as_json", is_flag=True, help="print JSON")
def verify(
    first: str,
    second: str,
    model: str,
    threshold: float | None,
    device: str | None,
    runtime: Any,
    as_json: bool,
    **detection: Any,
) -> None:
    """Decide if the largest faces of two images show the same identity."""
    from facezoo.comparison import verify as compare
    from facezoo.registry import load

    network = load(model, device=device, runtime=runtime)
    match = compare(first, second, network, threshold=threshold, **detection)
    if as_json:
        print(json.dumps(asdict(match), indent=2))
        return
    words = ("same identity", "above") if match.same else ("different identities", "not above")
    print(f"{words[0]}: similarity {match.similarity:.3f} is {words[1]} {match.threshold:.3f}")
    if match.false_match_rate is not None and match.false_non_match_rate is not None:
        print(
            f"with this threshold, {match.false_match_rate:.1%} of the validation pairs of two "
            f"identities count as the same, and {match.false_non_match_rate:.1%} of the pairs of "
            "one identity as different"
        )


def _image_files(sources: tuple[str, ...]) -> Iterator[Path]:
    """List files: folders are searched for images, and patterns are expanded."""
    from facezoo.extraction.sources import expand, list_images

    for source in sources:
        path = Path(source)
        if path.is_dir():
            yield from (path / name for name in list_images(path).names)
        else:
            yield from map(Path, expand(source))


Result = tuple[str, "ExpressionPrediction", list[dict[str, Any]]]
"""Name of an image or frame, its prediction, and time and track of each face of a frame."""


class SavingError(Exception):
    """An annotated image or video could not be written; the other files do not need it."""


@contextmanager
def _saving(picture: Path) -> Iterator[None]:
    """Raise errors of drawing and writing as a ``SavingError`` that names the file."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SavingError(f"{picture} is not written: {error}") from error


def _predict_image(
    file: Path, loaded: FaceModel, picture: Path | None, **options: Any
) -> Iterator[Result]:
    """Predict an image, then write the annotated image if ``picture`` is set."""
    from facezoo.plot.annotation import annotate, numbers_of

    try:
        prediction = loaded.predict_expression(file, **options)
    except NoFaceError as error:
        raise NoFaceError(
            f"no face found in {file}; pass --on-missing skip to continue, or a smaller --min-face",
            error.missing,
        ) from error
    yield str(file), prediction, [{} for _ in prediction.labels]
    if picture and len(prediction):
        with _saving(picture):
            picture.parent.mkdir(parents=True, exist_ok=True)
            annotate(file, prediction, names=numbers_of(prediction)).save(picture, quality=92)
    elif picture:
        print(f"facezoo: no face in {file}, {picture} is not written", file=sys.stderr)


def _predict_video(
    file: Path, loaded: FaceModel, picture: Path | None, **options: Any
) -> Iterator[Result]:
    """Predict the frames of a video, and write the annotated video if ``picture`` is set."""
    from facezoo.extraction.frames import video
    from facezoo.plot.video import VideoWriter

    with ExitStack() as stack:
        writer = None
        if picture:
            with _saving(picture):
                writer = stack.enter_context(VideoWriter(picture))
        for frame in video(file, loaded, **options):
            if picture and writer:
                with _saving(picture):
                    writer.write(frame)
            places = [{"time": frame.time, "track": track} for track in frame.track.tolist()]
            yield f"{file}::{frame.number:08d}", frame.prediction, places


def _faces(prediction: ExpressionPrediction) -> list[dict[str, Any]]:
    """Convert a prediction to plain values for JSON."""
    from facezoo.results import BOX, POSE

    faces = prediction.faces
    assert faces is not None
    rows = zip(prediction.to_dict(), faces.landmarks.tolist(), strict=True)
    return [
        {
            "label": row["label"],
            "probabilities": {name: row[f"p_{name}"] for name in prediction.classes},
            "box": [row[edge] for edge in BOX],
            "landmarks": landmarks,
            **{name: row[name] for name in ("score", *POSE, "eye_distance_px", "sharpness")},
        }
        for row, landmarks in rows
    ]


def _prediction_text(entry: dict[str, Any]) -> str:
    lines = [entry["file"] + ("" if entry["faces"] else ": no face found")]
    for index, face in enumerate(entry["faces"]):
        box = " ".join(f"{value:.0f}" for value in face["box"])
        name = f"track {face['track']}" if "track" in face else f"face {index}"
        lines.append(f"  {name}: {face['label']}  box {box}  score {face['score']:.2f}")
        ranked = sorted(face["probabilities"].items(), key=lambda item: -item[1])
        lines.append("    " + "  ".join(f"{name} {value:.3f}" for name, value in ranked))
    return "\n".join(lines)


@click.command(
    epilog="Run the same command again to resume an interrupted run. Unreadable files are listed "
    "at the end; they are an error only with --strict."
)
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(*OUT, "output", type=FILE, required=True, help="a .parquet, .csv or .npz file")
@click.option(
    "--model",
    "models",
    multiple=True,
    default=["ipd-fer"],
    help="repeat it to write one file per model, NAME.<model>.SUFFIX",
)
@click.option(
    "--what",
    default="expression,identity",
    metavar="NAMES",
    help="features to write, with commas between",
)
@faces_option
@click.option(
    "--on-missing",
    type=click.Choice(["skip", "nan"]),
    default="skip",
    help="if no face is found, write no row or a row of NaN",
)
@detection_options
@device_option
@runtime_option
@click.option(
    "--jpeg",
    type=click.Choice(["pillow", "nvjpeg"]),
    help="decoder of JPEG files; nvjpeg needs an NVIDIA GPU, its pixels differ  [default: pillow]",
)
@click.option("--batch-size", type=int, default=32, help="images per batch")
@click.option("--workers", type=int, default=2, help="decoding threads")
@click.option("--every", type=int, default=1, metavar="N", help="take every N-th frame of a video")
@click.option("--smooth", type=float, metavar="SECONDS", help="average features along face tracks")
@click.option(
    "--compact/--no-compact",
    default=None,
    help="write only the numbers of expression features that vary  [default: for CSV]",
)
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    help="run on this machine or on a Ray cluster",
)
@click.option("--strict", is_flag=True, help="exit with 1 if any file is unreadable")
@click.option("--profile", is_flag=True, help="print the share of each stage in the run time")
@click.option("--no-recursive", is_flag=True, help="do not search subfolders")
@click.option("--overwrite", is_flag=True, help="replace the output and start again")
def extract(
    sources: tuple[str, ...],
    output: Path,
    models: tuple[str, ...],
    what: str,
    strict: bool,
    no_recursive: bool,
    overwrite: bool,
    profile: bool,
    **options: Any,
) -> int:
    """Write the features of all faces to a file.

    A SOURCE is a folder, image, video, pattern, .txt list, or shard (.parquet, .tar).
    """
    from facezoo.extraction import extract_each
    from facezoo.training.processes import Processes

    with resumable("--overwrite" if overwrite else ""):
        reports = extract_each(
            sources,
            _outputs(output, models),
            what=[name.strip() for name in what.split(",") if name.strip()],
            recursive=not no_recursive,
            overwrite=overwrite,
            profile=profile,
            **options,
        )
    if not Processes.present().first:
        return 0
    print(*reports, sep="\n")
    if profile:
        print(reports[0].profile())
    for name, reason in reports[0].unreadable:
        print(f"facezoo: unreadable: {name}: {reason}", file=sys.stderr)
    return 1 if reports[0].none_readable or (strict and reports[0].unreadable) else 0


def _outputs(
    output: Path, models: tuple[str, ...]
) -> dict[str | os.PathLike[str], str | FaceModel]:
    """Name one output file per model."""
    if len(models) == 1:
        return {output: models[0]}
    outputs: dict[str | os.PathLike[str], str | FaceModel] = {}
    for name in models:
        short = Path(name).name if Path(name).exists() else name
        word = re.sub(r"[^\w.-]+", "-", short).strip("-")
        outputs[output.with_name(f"{output.stem}.{word}{output.suffix}")] = name
    if len(outputs) < len(models):
        raise ValueError("two models would write to the same file; rename one of them")
    return outputs


@click.command(epilog="Files of different checkpoints or preprocessing raise an error.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option(*OUT, "output", type=FILE, required=True, help="a .parquet file")
@click.option("--overwrite", is_flag=True, help="replace the output")
def join(files: tuple[str, ...], output: Path, overwrite: bool) -> None:
    """Join several .parquet files of extract into one."""
    from facezoo.extraction import join_files

    count = join_files(list(files), output, overwrite)
    print(f"{output}: {count} rows from {len(files)} files")
