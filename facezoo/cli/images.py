"""Images."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facezoo.errors import ImageError

if TYPE_CHECKING:
    from facezoo.models.base import FaceModel
    from facezoo.results import ExpressionPrediction
from facezoo.cli.common import _add_device, _command, _say


def _add_predict(commands: Any) -> None:
    more = (
        "A photograph without a face says so and is no error, unless no photograph has one. "
        "Unreadable files are told on the error stream, and the exit code is 1."
    )
    text = "tell the expression of every face in photographs"
    command = _command(commands, "predict", _predict, text, more)
    command.add_argument("files", nargs="+", type=Path, metavar="PHOTO")
    command.add_argument("--model", default="ipd-fer", help="default: %(default)s")
    command.add_argument("--faces", choices=["all", "largest"], default="all")
    _add_device(command)
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument(
        "--save",
        type=Path,
        metavar="OUT",
        help="write annotated pictures: a .png or .jpg file for one photograph, else a folder",
    )


def _predict(options: argparse.Namespace) -> int:
    from facezoo.registry import load

    files: list[Path] = options.files
    pictures = {}
    if options.save:
        from facezoo.plot.annotate import picture_paths

        pictures = picture_paths(files, options.save)
    model = load(options.model, device=options.device)
    told: list[dict[str, Any]] = []
    for file in files:
        try:
            entry = _predict_one(model, file, options.faces, pictures.get(file))
        except ImageError as error:
            entry = {"file": str(file), "error": str(error)}
            print(f"facezoo: error: {error}", file=sys.stderr)
        told.append(entry)
        if not options.json and "faces" in entry:
            _say(_prediction_text(entry))
    if options.json:
        print(json.dumps(told, indent=2))
    unreadable = any("error" in entry for entry in told)
    return 1 if unreadable or not any(entry.get("faces") for entry in told) else 0


def _predict_one(model: FaceModel, file: Path, faces: Any, picture: Path | None) -> dict[str, Any]:
    """One photograph's faces as plain values; the annotated picture is written if it has any."""
    from facezoo.preprocess.images import read_image

    pixels = read_image(file)
    prediction = model.predict_expression(pixels, faces=faces, on_missing="skip")
    if picture is not None and len(prediction):
        from facezoo.plot.annotate import annotate

        picture.parent.mkdir(parents=True, exist_ok=True)
        annotate(pixels, prediction).save(picture, quality=92)
    elif picture is not None:
        print(f"facezoo: no face in {file}, so nothing was drawn to {picture}", file=sys.stderr)
    return {"file": str(file), "faces": _faces_of(prediction)}


def _faces_of(prediction: ExpressionPrediction) -> list[dict[str, Any]]:
    faces = prediction.faces
    assert faces is not None
    columns = (faces.boxes, faces.landmarks, faces.scores, prediction.probabilities)
    return [
        {
            "label": label,
            "probabilities": dict(zip(prediction.classes, probabilities, strict=True)),
            "box": box,
            "landmarks": landmarks,
            "score": score,
        }
        for label, box, landmarks, score, probabilities in zip(
            prediction.labels, *(column.tolist() for column in columns), strict=True
        )
    ]


def _prediction_text(entry: dict[str, Any]) -> str:
    lines = [entry["file"] + ("" if entry["faces"] else ": no face found")]
    for index, face in enumerate(entry["faces"]):
        box = " ".join(f"{value:.0f}" for value in face["box"])
        lines.append(f"  face {index}: {face['label']}  box {box}  score {face['score']:.2f}")
        ranked = sorted(face["probabilities"].items(), key=lambda item: -item[1])
        lines.append("    " + "  ".join(f"{name} {value:.3f}" for name, value in ranked))
    return "\n".join(lines)


def _add_extract(commands: Any) -> None:
    more = (
        "Interrupted, the same command without --overwrite goes on where it was. Unreadable files "
        "are listed at the end, and are an error only with --strict."
    )
    text = "write the features of every face in many photographs to a file"
    command = _command(commands, "extract", _extract, text, more)
    command.add_argument(
        "source",
        nargs="+",
        metavar="SOURCE",
        help="a folder, photograph, video, pattern, .txt list, or shard (.parquet, .tar)",
    )
    command.add_argument(
        "-o", "--output", required=True, metavar="FILE", help="a .parquet, .csv or .npz file"
    )
    command.add_argument(
        "--model",
        action="append",
        help="may be given again: FILE then becomes one file per model, NAME.<model>.SUFFIX "
        "(default: ipd-fer)",
    )
    command.add_argument(
        "--what",
        default="expression,identity",
        metavar="NAMES",
        help="embeddings to write, with commas between (default: %(default)s)",
    )
    command.add_argument("--faces", choices=["all", "largest"], default="all")
    command.add_argument(
        "--on-missing",
        choices=["skip", "nan"],
        default="skip",
        help="no row for a photograph without a face, or one of NaN (default: skip)",
    )
    _add_device(command)
    command.add_argument(
        "--jpeg",
        choices=["pillow", "nvjpeg"],
        help="what decodes JPEG files; nvjpeg on NVIDIA GPUs, its pixels differ (default: pillow)",
    )
    command.add_argument("--batch-size", type=int, default=32, metavar="N")
    command.add_argument("--workers", type=int, default=2, metavar="N", help="decoding threads")
    command.add_argument(
        "--every", type=int, default=1, metavar="N", help="of videos, every N-th frame"
    )
    command.add_argument(
        "--smooth",
        type=float,
        metavar="SECONDS",
        help="of videos, average features along the track of a face over this time",
    )
    command.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="where to work: here, or on a Ray cluster (default: %(default)s)",
    )
    command.add_argument("--strict", action="store_true", help="exit with 1 for unreadable files")
    command.add_argument("--profile", action="store_true", help="show the share of each stage")
    command.add_argument("--no-recursive", action="store_true", help="not the folders in folders")
    command.add_argument("--overwrite", action="store_true", help="replace the output; start anew")


def _extract(options: argparse.Namespace) -> int:
    from facezoo.extraction import extract_each
    from facezoo.training.processes import Processes

    reports = extract_each(
        options.source,
        _outputs(Path(options.output), options.model or ["ipd-fer"]),
        what=[name.strip() for name in options.what.split(",") if name.strip()],
        faces=options.faces,
        on_missing=options.on_missing,
        device=options.device,
        jpeg=options.jpeg,
        batch_size=options.batch_size,
        workers=options.workers,
        every=options.every,
        smooth=options.smooth,
        engine=options.engine,
        profile=options.profile,
        recursive=not options.no_recursive,
        overwrite=options.overwrite,
    )
    if not Processes.present().first:  # they all have the same to say
        return 0
    report = reports[0]
    print(*reports, sep="\n")
    if options.profile:
        print(report.profile())
    for name, reason in report.unreadable:
        print(f"facezoo: unreadable: {name}: {reason}", file=sys.stderr)
    return 1 if options.strict and report.unreadable else 0


def _outputs(output: Path, models: list[str]) -> dict[str | os.PathLike[str], str | FaceModel]:
    """Which model's rows go to which file."""
    if len(models) == 1:
        return {output: models[0]}
    outputs: dict[str | os.PathLike[str], str | FaceModel] = {}
    for name in models:
        short = Path(name).name if Path(name).exists() else name
        word = re.sub(r"[^\w.-]+", "-", short).strip("-")
        outputs[output.with_name(f"{output.stem}.{word}{output.suffix}")] = name
    if len(outputs) < len(models):
        raise ValueError("two of the models have one name, and their rows would go to one file")
    return outputs


def _add_join(commands: Any) -> None:
    more = "Files of different checkpoints or preprocessing are refused."
    text = "put several .parquet files of extract into one"
    command = _command(commands, "join", _join, text, more)
    command.add_argument("files", nargs="+", metavar="FILE")
    command.add_argument("-o", "--output", required=True, metavar="FILE", help="a .parquet file")
    command.add_argument("--overwrite", action="store_true", help="replace the output")


def _join(options: argparse.Namespace) -> int:
    from facezoo.extraction import join_files

    count = join_files(options.files, options.output, options.overwrite)
    print(f"{options.output}: {count} rows from {len(options.files)} files")
    return 0
