"""The command line: ``facezoo list | info | predict | extract | download | train | ...``.

Every command imports what it needs when it runs, so that listing needs no torch.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facezoo.errors import ImageError, UnsupportedError
from facezoo.version import __version__

if TYPE_CHECKING:
    from facezoo.base import FaceModel
    from facezoo.card import Card
    from facezoo.results import ExpressionPrediction

CODES = "Exit codes: 0 fine, 1 an error, 2 wrong usage, 130 interrupted."
FAULTS = (OSError, ValueError, RuntimeError, ImportError, UnsupportedError)
"""What callers and machines do wrong; anything else is a bug of ours, and shows its traceback."""

Handler = Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: without the program's name; None for those of the process.

    Returns:
        The exit code: 0 fine, 1 an error, 130 interrupted. Wrong usage exits with 2.
    """
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not suit its encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code: int = options.handler(options)
        print(end="", flush=True)  # there may be no output, and then nothing to flush
        return code
    except KeyboardInterrupt:
        hint = ""
        if options.command == "extract":
            without = " without --overwrite" if options.overwrite else ""
            hint = f"; run the same command again{without} to continue"
        print(f"facezoo: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except FAULTS as error:
        if options.debug:
            raise
        lines = [line.strip() for line in str(error).splitlines()]
        reason = " ".join(filter(None, lines)) or type(error).__name__
        print(f"facezoo: error: {reason}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="facezoo", description="Disentangled face representations.", epilog=CODES
    )
    parser.add_argument("--version", action="version", version=f"facezoo {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_add_list, _add_info, _add_predict, _add_extract, _add_download):
        add(commands)
    for add in (_add_train, _add_finetune, _add_evaluate, _add_publish, _add_convert, _add_export):
        add(commands)
    for add in (_add_join, _add_reproduce, _add_fit_directions, _add_benchmark):
        add(commands)
    return parser


def _command(commands: Any, name: str, handler: Handler, text: str, more: str = "") -> Any:
    command = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", epilog=f"{more} {CODES}"
    )
    # Given here or before the command; SUPPRESS keeps this one from undoing that one.
    command.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
    )
    command.set_defaults(handler=handler)
    return command


def _add_device(command: Any) -> None:
    command.add_argument(
        "--device", metavar="D", help="cpu, cuda, cuda:1, mps (default: the best there is)"
    )


def _add_list(commands: Any) -> None:
    command = _command(commands, "list", _list, "list models, or checkpoints")
    command.add_argument("pattern", nargs="?", default="*", help="such as '*fer*'")
    command.add_argument("--pretrained", action="store_true", help="list checkpoints")


def _list(options: argparse.Namespace) -> int:
    from facezoo.registry import list_models

    names = list_models(options.pattern, options.pretrained)
    for name in names:
        print(name)
    if not names:
        what = "checkpoint" if options.pretrained else "model"
        print(f"facezoo: no {what} matches {options.pattern!r}", file=sys.stderr)
    return 0 if names else 1


def _add_info(commands: Any) -> None:
    command = _command(commands, "info", _info, "show what is known about a checkpoint")
    command.add_argument("name", help="a checkpoint, or a model for its default one")
    command.add_argument("--json", action="store_true", help="print the card itself")


def _info(options: argparse.Namespace) -> int:
    from facezoo.registry import info

    card = info(options.name)
    print(card.to_json() if options.json else _card_text(card), end="" if options.json else "\n")
    return 0


def _card_text(card: Card) -> str:
    """A card for reading: its summary, then what to use it for and where it comes from."""
    place = "in the package only"
    if card.hub.repo and card.hub.revision:  # without the latter it is not there yet
        place = f"{card.hub.repo} at {card.hub.revision[:12]}"
    lines = [
        repr(card),
        f"  classes   {', '.join(card.labels) or 'none'}",
        f"  use       {card.intended_use or 'not stated'}",
        f"  command   {card.training.command or 'not recorded'}",
        f"  sha256    {card.weights.sha256}",
        f"  hub       {place}",
    ]
    return "\n".join(lines)


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
        from facezoo.annotate import picture_paths

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
    from facezoo.preprocess.reading import read_image

    pixels = read_image(file)
    prediction = model.predict_expression(pixels, faces=faces, on_missing="skip")
    if picture is not None and len(prediction):
        from facezoo.annotate import annotate

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


def _say(text: str) -> None:
    """Print a text that may hold file names that are not UTF-8."""
    print(text.encode("utf-8", "backslashreplace").decode())


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
    from facezoo.training import Processes

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


def _add_download(commands: Any) -> None:
    text = "bring weights onto this machine, for use without network"
    command = _command(commands, "download", _download, text)
    command.add_argument(
        "names", nargs="+", metavar="NAME", help="a model, checkpoint or hf-hub:org/name"
    )


def _download(options: argparse.Namespace) -> int:
    from facezoo.registry import download

    for name, path in download(options.names).items():
        print(f"{name}\t{path}")
    return 0


def _add_train(commands: Any) -> None:
    more = "Interrupted, the same command goes on where it was."
    command = _command(commands, "train", _train, "train a model by its recipe", more)
    command.add_argument("model", choices=_TRAINED)
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help=_DATA)
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for state, log, weights and card"
    )
    command.add_argument("--seed", type=int, nargs="+", default=[0], metavar="N")
    command.add_argument("--recipe", metavar="NAME", help=_RECIPES)
    command.add_argument("--stage", type=int, choices=[1, 2], help="of latentface; 1 comes first")
    command.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="PART",
        help="leave a part of the objective out; may be given again",
    )
    command.add_argument(
        "--dataset", metavar="NAME", help="DIR is a data set in its official layout, such as raf-db"
    )
    command.add_argument("--fold", type=int, metavar="N", help="the fold left for testing, for ck+")
    command.add_argument("--start", metavar="CHECKPOINT", help="take the identity encoder from it")
    command.add_argument(
        "--smoke", action="store_true", help="one epoch of small batches, to see that it runs"
    )
    _add_device(command)


_SIMCLR = ("stylegan2", "feature-style", "latent-simclr")
"""Parts of latent-simclr, in the order in which they are trained."""
_TRAINED = ("adv3d", "ipd-fer", "latentface", *_SIMCLR, "face-detector")
_DATA = "with the packs, or for adv3d with the files of ICT-3D or of the recipe's meshes"
_RECIPES = (
    "of ipd-fer: paper, paper-baseline, compact or compact-baseline; of latentface: paper or "
    "compact (default: paper); of stylegan2, feature-style and latent-simclr, which are trained "
    "one after the other into the same --out: paper or preview (default: paper); of adv3d: ict, "
    "ict-neutral, ict-scans or ict-no-discriminator (default: ict), and the paper's own: "
    "facescape, facescape-neutral, bu-3dfe, bu-3dfe-neutral, coma, ict-paper or "
    "ict-paper-neutral, each with -no-discriminator too"
)
_OF_IPD_FER = ("without", "dataset", "fold", "start")


def _train(options: argparse.Namespace) -> int:
    from facezoo.registry import best_device
    from facezoo.training import Processes

    together = Processes.present()  # each of several has a GPU of its own, which "cuda" is now
    if together.count > 1 and options.model != "ipd-fer":
        raise ValueError(
            f"{options.model} is trained by one process, and {together.count} were started; run "
            "the command without accelerate launch"
        )
    device = best_device(options.device or together.device())
    if options.model == "face-detector":
        from facezoo.detector.train import run as train_detector

        seed = _only_seed(options, "recipe", "stage", *_OF_IPD_FER)
        smoke = options.smoke
        print(train_detector(options.data, options.out, seed=seed, device=device, smoke=smoke))
        return 0
    if options.model == "adv3d":
        from facezoo.models.adv3d import paper, train

        seed = _only_seed(options, "stage", *_OF_IPD_FER)
        name = options.recipe or "ict"
        run_adv3d = paper.run if name in paper.RECIPES else train.run
        smoke = options.smoke
        print(run_adv3d(name, options.data, options.out, seed=seed, device=device, smoke=smoke))
        return 0
    if options.model == "latentface":
        from facezoo.models.latentface.train import run as train_latentface

        seed = _only_seed(options, *_OF_IPD_FER)
        stage, name = options.stage or 1, options.recipe or "paper"
        print(
            train_latentface(
                options.data,
                options.out,
                stage=stage,
                seed=seed,
                device=device,
                name=name,
                smoke=options.smoke,
            )
        )
        return 0
    if options.model in _SIMCLR:
        from facezoo.models.latent_simclr.train import run as train_part

        seed = _only_seed(options, "stage", *_OF_IPD_FER)
        name, smoke, part = options.recipe or "paper", options.smoke, options.model
        out, data = options.out, options.data
        print(train_part(part, data, out, seed=seed, device=device, name=name, smoke=smoke))
        return 0
    _refuse_given(options, "stage")
    from facezoo.models.ipd_fer.train import run

    cards = run(
        options.data,
        options.out,
        seeds=options.seed,
        device=device,
        name=options.recipe or "paper",
        without=tuple(options.without),
        dataset=options.dataset,
        fold=options.fold,
        start=options.start,
        smoke=options.smoke,
    )
    print(*cards, sep="\n")
    return 0


def _only_seed(options: argparse.Namespace, *others: str) -> int:
    """The seed of a model that trains one at a time and knows nothing of the ``others``."""
    _refuse_given(options, *others)
    if len(options.seed) > 1:
        raise ValueError(f"{options.model} trains one seed at a time; leave out several seeds")
    seed: int = options.seed[0]
    return seed


def _refuse_given(options: argparse.Namespace, *names: str) -> None:
    """Refuse options that mean nothing to the model, rather than leave them unheeded."""
    given = [name for name in names if getattr(options, name) not in (None, [])]
    if given:
        who = options.model or "a plain state dict"
        raise ValueError(f"{who} knows no --{given[0]}; leave out --{given[0]}")


_NUMBERS = {
    "epochs": (int, "passes over the data (default: 10)"),
    "batch_size": (int, "photographs per step (default: 32)"),
    "rate": (float, "learning rate of the classifier (default: 0.001)"),
    "layer_decay": (float, "factor on the rate per layer towards the input (default: 0.7)"),
    "weight_decay": (float, "default: 0.05"),
    "warmup": (float, "share of the steps (default: 0.1)"),
    "smoothing": (float, "of the labels (default: 0.1)"),
}
"""Fields of ``facezoo.finetuning.Finetuning``, which is not imported to build the parser."""


def _add_finetune(commands: Any) -> None:
    more = "Interrupted, the same command goes on where it was."
    text = "train a checkpoint further on photographs and classes of your own"
    command = _command(commands, "finetune", _finetune, text, more)
    command.add_argument("--model", default="ipd-fer", help="default: %(default)s")
    command.add_argument(
        "--data",
        type=Path,
        required=True,
        help="a folder with a folder of photographs per class, or a .csv or .parquet file",
    )
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a folder that load opens"
    )
    command.add_argument("--label-column", metavar="NAME", help="of a table (default: label, ...)")
    command.add_argument("--classes", metavar="NAMES", help="only these, with commas between")
    command.add_argument("--aligned", action="store_true", help="the images are aligned crops")
    for name, (kind, help_text) in _NUMBERS.items():
        flag = f"--{name.replace('_', '-')}"
        command.add_argument(flag, type=kind, metavar="N", help=help_text)
    command.add_argument(
        "--freeze",
        action="append",
        default=[],
        metavar="PART",
        help="keep a part as it is, such as expression_encoder.backbone.layer1; may be repeated",
    )
    command.add_argument("--probe", action="store_true", help="train the classifier alone")
    command.add_argument("--from-scratch", action="store_true", help="from random weights")
    command.add_argument("--seed", type=int, default=0, metavar="N")
    _add_device(command)


def _finetune(options: argparse.Namespace) -> int:
    from facezoo.finetuning import Finetuning, finetune
    from facezoo.training import Processes

    given = {name: getattr(options, name) for name in _NUMBERS}
    recipe = Finetuning(
        **{name: value for name, value in given.items() if value is not None},
        freeze=tuple(options.freeze),
        probe=options.probe,
        pretrained=not options.from_scratch,
    )
    done = finetune(
        options.data,
        options.out,
        model=options.model,
        recipe=recipe,
        label_column=options.label_column,
        classes=[w.strip() for w in options.classes.split(",")] if options.classes else None,
        aligned=options.aligned,
        seed=options.seed,
        device=options.device,
    )
    if Processes.present().first:
        print(done)
    return 0


def _add_evaluate(commands: Any) -> None:
    text = "measure a checkpoint by the protocols that suit it"
    command = _command(commands, "evaluate", _evaluate, text)
    command.add_argument("name", help="a checkpoint, or a folder or .safetensors file with a card")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help=_DATA)
    command.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers there")
    command.add_argument(
        "--card", type=Path, metavar="FILE", help="also put the numbers into this card"
    )
    _add_device(command)


def _evaluate(options: argparse.Namespace) -> int:
    from facezoo.evaluate import report
    from facezoo.pretrained import resolve
    from facezoo.registry import best_device

    # Whatever could not be written is told now, not when all is measured.
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
    if options.card:
        report.check_card(options.card, resolve(options.name).card)
    card, metrics = report.measure_checkpoint(
        options.name, options.data, best_device(options.device)
    )
    print(report.as_table(metrics))
    if options.json:
        options.json.write_text(report.as_json(card, metrics), encoding="utf-8")
    if options.card:
        report.write_card(options.card, card, metrics)
    return 0


def _add_publish(commands: Any) -> None:
    more = "Without --send it only shows what would be sent."
    text = "send checkpoints to the Hugging Face Hub, one repository each"
    command = _command(commands, "publish", _publish, text, more)
    command.add_argument(
        "names", nargs="+", metavar="NAME", help="a checkpoint, a model or a folder that load opens"
    )
    command.add_argument("--organization", required=True, metavar="ORG")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="write the files of each repository there as well"
    )
    command.add_argument("--private", action="store_true", help="make new repositories private")
    command.add_argument("--send", action="store_true", help="really send")


def _publish(options: argparse.Namespace) -> int:
    from facezoo.publish import publish

    publish(
        options.names,
        organization=options.organization,
        private=options.private,
        dry_run=not options.send,
        out=options.out,
    )
    return 0


def _add_convert(commands: Any) -> None:
    text = "convert a pickled state dict (.pth, .pt, .ckpt, .bin) to safetensors"
    command = _command(commands, "convert", _convert, text)
    command.add_argument("source", type=Path)
    command.add_argument(
        "target", nargs="?", type=Path, help="default: the source with the suffix .safetensors"
    )
    command.add_argument(
        "--model",
        choices=["adv3d", "latentface", "stylegan2"],
        help="SOURCE is a published checkpoint of this model; TARGET becomes a folder to load, of "
        "stylegan2 a file",
    )
    command.add_argument(
        "--template", type=Path, metavar="MESH", help="of adv3d: the mean face, in millimetres"
    )
    command.add_argument(
        "--scale", type=float, metavar="MM", help="of adv3d: millimetres that are 1 to the network"
    )
    command.add_argument("--key", help="which entry to take, where there are several state dicts")
    command.add_argument("--overwrite", action="store_true", help="replace the target")


def _convert(options: argparse.Namespace) -> int:
    if options.model == "adv3d":
        from facezoo.models.adv3d.convert import convert_file as convert_adv3d

        _refuse_given(options, "key")
        if options.template is None or options.scale is None:
            raise ValueError(
                "adv3d needs --template MESH, the mean face in millimetres, and --scale MM: both "
                "stand in none of the published files (FaceScape 573, BU-3DFE 156, CoMA 260)"
            )
        print(
            convert_adv3d(
                options.source,
                options.target,
                template=options.template,
                scale=options.scale,
                overwrite=options.overwrite,
            )
        )
        return 0
    _refuse_given(options, "template", "scale")
    if options.model == "stylegan2":
        from facezoo.models.latent_simclr.convert import convert_generator

        key, overwrite = options.key, options.overwrite
        print(convert_generator(options.source, options.target, key=key, overwrite=overwrite))
        return 0
    if options.model == "latentface":
        from facezoo.models.latentface.convert import convert_file

        _refuse_given(options, "key")
        print(convert_file(options.source, options.target, overwrite=options.overwrite))
        return 0
    from facezoo.convert import convert

    print(convert(options.source, options.target, key=options.key, overwrite=options.overwrite))
    return 0


def _add_export(commands: Any) -> None:
    more = "Every stage is compared with the model before it counts."
    text = "write stages of a model as ONNX, torch.export programs or timm folders"
    command = _command(commands, "export", _export, text, more)
    command.add_argument("model", help="any name that load takes")
    command.add_argument("--format", choices=["onnx", "torch-export", "timm"], required=True)
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument(
        "--stages", metavar="NAMES", help="such as probabilities,expression (default: all)"
    )


def _export(options: argparse.Namespace) -> int:
    from facezoo.export import export
    from facezoo.registry import load

    stages = [name.strip() for name in options.stages.split(",")] if options.stages else None
    model = load(options.model, device="cpu")
    print(*export(model, options.out, options.format, stages), sep="\n")
    return 0


def _add_fit_directions(commands: Any) -> None:
    more = (
        "With labels, by a linear SVM for every column; without, the directions to which the "
        "styles of the model's generator answer most."
    )
    text = "fit directions of a StyleGAN's codes, for sliders and edits"
    command = _command(commands, "fit-directions", _fit_directions, text, more)
    command.add_argument("target", type=Path, help="a .safetensors file to write")
    command.add_argument(
        "--codes", type=Path, metavar="NPY", help="(N, L, D), as encode_factors gives w_plus"
    )
    command.add_argument(
        "--labels", type=Path, metavar="CSV", help="a column per property: 1, 0 or nothing"
    )
    command.add_argument("--model", default="latent-simclr", help="whose generator, without labels")
    command.add_argument("--count", type=int, help="directions without labels (default: 8)")


def _fit_directions(options: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from facezoo.models.latent_simclr import StyleGANInverter, directions

    if (options.codes is None) != (options.labels is None):
        raise ValueError("--codes and --labels belong together; give both or neither")
    if options.target.suffix != ".safetensors":
        raise ValueError(f"the target must end in .safetensors, got {options.target}")
    if options.codes is None:
        generator = StyleGANInverter.from_pretrained(options.model).generator
        count = 8 if options.count is None else options.count
        strongest, _ = directions.principal_directions(generator, count)
        found = {f"principal-{number}": rows for number, rows in enumerate(strongest, 1)}
    else:
        _refuse_given(options, "count")
        stored = np.load(options.codes, allow_pickle=False)
        if not isinstance(stored, np.ndarray):
            raise ValueError(f"{options.codes} must be a .npy file, which holds one array")
        codes = torch.from_numpy(stored).float()
        if codes.ndim != 3:
            raise ValueError(f"{options.codes} must be (N, L, D), got {tuple(codes.shape)}")
        labels = directions.read_labels(options.labels, len(codes))
        found = directions.fit_directions(codes, labels)
    print(directions.save_directions(found, options.target), *found, sep="\n")
    return 0


def _add_reproduce(commands: Any) -> None:
    more = "Interrupted, the same command goes on where it was, but --smoke wants a new --out."
    text = "train a checkpoint again by the command in its card"
    command = _command(commands, "reproduce", _reproduce, text, more)
    command.add_argument("name", metavar="CHECKPOINT", help="a bundled one, or a model")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="DATA of the card")
    command.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="for state, log, weights and card"
    )
    command.add_argument(
        "--smoke", action="store_true", help="on a few images, to see that the recipe runs"
    )
    _add_device(command)


def _reproduce(options: argparse.Namespace) -> int:
    from facezoo.reproduce import reproduce

    done = reproduce(
        options.name, options.data, options.out, smoke=options.smoke, device=options.device
    )
    print(done)
    return 0


def _add_benchmark(commands: Any) -> None:
    more = (
        "Features are kept in --out and numbers in the file as they come: interrupted, the same "
        "command goes on, and what is in the file is not measured again."
    )
    text = "compare checkpoints by one set of protocols, beside two references"
    command = _command(commands, "benchmark", _benchmark, text, more)
    command.add_argument(
        "models", nargs="*", metavar="MODEL", help="any name that load takes (default: all)"
    )
    command.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="with the packs; ICT-3D for meshes"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="for features")
    command.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="results to add to, with tables beside it as .md (default: benchmark.json in --out)",
    )
    _add_device(command)


def _benchmark(options: argparse.Namespace) -> int:
    from facezoo.benchmarking import benchmark

    done = benchmark(
        options.models,
        data=options.data,
        out=options.out,
        results=options.json,
        device=options.device,
    )
    print(done)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
