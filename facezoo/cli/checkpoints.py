"""``facezoo list``, ``info``, ``download``, ``convert``, ``export`` and ``publish``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from facezoo.cli.common import DIR, FILE, OUT, PATH, resolve
from facezoo.hub.families import COMMANDS

FORMATS = ("onnx", "torch-export", "timm")
overwrite_option = click.option("--overwrite", is_flag=True, help="replace the target")


@click.command()
@click.argument("pattern", default="*")
@click.option("--pretrained", is_flag=True, help="list checkpoints")
def list_names(pattern: str, pretrained: bool) -> int:
    """List models, or checkpoints, whose names match PATTERN, such as "*fer*"."""
    from facezoo.registry import list_models

    names = list_models(pattern, pretrained)
    for name in names:
        print(name)
    if not names:
        kind = "checkpoint" if pretrained else "model"
        print(f"facezoo: no {kind} matches {pattern!r}", file=sys.stderr)
    return 0 if names else 1


@click.command()
@click.argument("name")
@click.option("--all", "full", is_flag=True, help="print every metric and every limit in full")
@click.option("--json", "as_json", is_flag=True, help="print the card as JSON")
def info(name: str, full: bool, as_json: bool) -> None:
    """Show the card of a checkpoint, of the default checkpoint of a model, or of a folder."""
    from facezoo.registry import info as card_of

    card = card_of(name)
    print(card.to_json() if as_json else card.summary(full), end="" if as_json else "\n")


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def download(names: tuple[str, ...]) -> None:
    """Download weights for use without network.

    NAME is a model, a checkpoint or hf-hub:org/name.
    """
    from facezoo.registry import download as fetch

    for name, path in fetch(names).items():
        print(f"{name}\t{path}")


class _ConvertCommand(click.Command):
    """A command that takes the options of all conversions that families register."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Add the options of the families, each name once."""
        params = {param.name: param for param in super().get_params(ctx)}
        for spec in _conversions().values():
            params |= {option.name: option for option in spec.options if option.name not in params}
        return list(params.values())


def _conversions() -> dict[str, Any]:
    """Import the conversions that families register, by name."""
    table = {name: entry for name, entry in COMMANDS.items() if name.startswith("convert ")}
    return {name.removeprefix("convert "): resolve(entry[0]) for name, entry in table.items()}


@click.command(cls=_ConvertCommand)
@click.argument("source", metavar="SOURCE", type=PATH)
@click.argument("target", metavar="[TARGET]", type=PATH, required=False)
@click.option(
    "--model",
    type=click.Choice([n.removeprefix("convert ") for n in COMMANDS if n.startswith("convert ")]),
    help="SOURCE is a published checkpoint of this model",
)
@click.option("--key", metavar="NAME", help="state dict to convert, if SOURCE has several")
@overwrite_option
def convert(
    source: Path, target: Path | None, model: str | None, overwrite: bool, **options: Any
) -> None:
    """Convert a pickled state dict (.pth, .pt, .ckpt, .bin) to safetensors.

    TARGET is by default SOURCE with the suffix .safetensors. With --model it is a folder that load
    opens, or a file for parts of a model.
    """
    from facezoo.hub.convert import convert as convert_plain

    spec = _conversions()[model] if model else None
    own = {option.name for option in spec.options} if spec else {"key"}
    if other := next((k for k, v in options.items() if v is not None and k not in own), None):
        owner = model or "a plain state dict"
        raise ValueError(f"{owner} has no option --{other}; leave out --{other}")
    run = spec.run if spec else convert_plain
    arguments = {name: options[name] for name in own}
    print(run(source, target, overwrite=overwrite, **arguments))


@click.command(epilog="Each exported stage is compared with the model.")
@click.argument("model")
@click.option("--format", "kind", type=click.Choice(FORMATS), required=True)
@click.option(*OUT, "out", type=DIR, required=True, help="folder for the files")
@click.option(
    "--stages", metavar="NAMES", help="such as probabilities,expression  [default: all stages]"
)
def export(model: str, kind: Any, out: Path, stages: str | None) -> None:
    """Export stages of a model as ONNX, torch.export programs or timm folders.

    MODEL may be face-detector, which is exported to ONNX with its decoding.
    """
    from facezoo.export import export as write
    from facezoo.export import export_detector
    from facezoo.preprocess.detector import DETECTOR
    from facezoo.registry import load

    if model == DETECTOR:
        if kind != "onnx" or stages:
            raise click.UsageError(f"{DETECTOR} is exported by --format onnx, without --stages")
        print(*export_detector(out), sep="\n")
        return

    names = [name.strip() for name in stages.split(",")] if stages else None
    print(*write(load(model, device="cpu"), out, kind, names), sep="\n")


@click.command(epilog="Without --send it only shows what it would upload.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--organization", required=True, metavar="ORG", help="organization on the Hub")
@click.option(*OUT, "out", type=DIR, help="write the files of each repository there")
@click.option("--picture", type=FILE, help="example image for the top of the model card")
@click.option("--private", is_flag=True, help="create private repositories")
@click.option("--send", is_flag=True, help="upload")
def publish(
    names: tuple[str, ...],
    organization: str,
    out: Path | None,
    picture: Path | None,
    private: bool,
    send: bool,
) -> None:
    """Upload checkpoints to the Hugging Face Hub, one repository each.

    NAME is a checkpoint, a model or a folder that load opens.
    """
    from facezoo.hub.publish import publish as upload

    upload(
        list(names),
        organization=organization,
        private=private,
        dry_run=not send,
        out=out,
        picture=picture,
    )
