"""Checkpoints."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facezoo.hub.card import Card
from facezoo.cli.common import _command, _refuse_given


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
    from facezoo.hub.publish import publish

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
    from facezoo.hub.convert import convert

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
