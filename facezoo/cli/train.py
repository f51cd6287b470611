"""``facezoo train``, ``finetune`` and ``reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facezoo.cli.common import (
    DIR,
    OUT,
    PATH,
    LazyGroup,
    detection_options,
    device_option,
    resolve,
    resumable,
)
from facezoo.hub.families import COMMANDS

if TYPE_CHECKING:
    from facezoo.models.commands import TrainCommand

RESUMES = "Run the same command again to resume an interrupted training."
smoke_option = click.option("--smoke", is_flag=True, help="take a few steps to check that it runs")


class _SeedsCommand(click.Command):
    """A command that takes ``--seed 0 1 2`` as well as ``--seed 0 --seed 1 --seed 2``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words: list[str] = []
        for word in args:
            another_seed = len(words) > 1 and words[-2] == "--seed" and word.isdigit()
            words += ["--seed", word] if another_seed else [word]
        return super().parse_args(ctx, words)


def _train_command(name: str, address: str) -> click.Command:
    """Make ``facezoo train NAME`` of what the family registers."""
    spec: TrainCommand = resolve(address)

    def run(
        data: Path, out: Path, seed: tuple[int, ...], device: str | None, **options: Any
    ) -> int:
        from facezoo.registry import best_device
        from facezoo.training.processes import Processes

        processes = Processes.present()
        if processes.count > 1 and not spec.several_processes:
            raise ValueError(
                f"{name} trains in one process, but {processes.count} were started; run the "
                "command without accelerate launch"
            )
        if len(seed) > 1 and not spec.several_seeds:
            raise ValueError(f"{name} trains one seed at a time, got {len(seed)}; give one --seed")
        seeds = {"seeds": list(seed)} if spec.several_seeds else {"seed": seed[0]}
        place = best_device(device or processes.device())
        paths = spec.run(data, out, device=place, **seeds, **options)
        print(*([paths] if isinstance(paths, Path) else paths), sep="\n")
        return 0

    recipe = click.Choice(spec.recipes)
    several = "one checkpoint per seed, such as --seed 0 1 2" if spec.several_seeds else None
    params: list[click.Parameter] = [
        click.Option(["--data"], type=DIR, required=True, help=spec.data),
        click.Option([*OUT, "out"], type=DIR, required=True, help="folder for state, log and card"),
        *(
            [click.Option(["--recipe"], type=recipe, default=recipe.choices[0])]
            if spec.recipes
            else []
        ),
        *spec.options,
        click.Option(["--seed"], type=int, multiple=True, default=[0], help=several),
    ]
    text = COMMANDS[f"train {name}"][1]
    command = _SeedsCommand(name, params=params, callback=run, help=text, epilog=RESUMES)
    return device_option(smoke_option(command))


@click.group(cls=LazyGroup)
def train() -> None:
    """Train a model by its recipe."""


train.table = {
    name.removeprefix("train "): entry
    for name, entry in COMMANDS.items()
    if name.startswith("train ")
}
train.load = _train_command


@click.command(epilog=RESUMES)
@click.option("--model", default="ipd-fer", help="checkpoint to start from")
@click.option(
    "--data", type=PATH, required=True, help="a folder per class, or a .csv or .parquet table"
)
@click.option(*OUT, "out", type=DIR, required=True, help="folder that load opens")
@click.option("--label-column", metavar="NAME", help="column of a table  [default: label, ...]")
@click.option("--classes", metavar="NAMES", help="use these classes only, such as calm,amused")
@click.option("--aligned", is_flag=True, help="the images are aligned face crops")
@click.option("--epochs", type=int, help="epochs  [default: 10, more for few images]")
@click.option("--batch-size", type=int, help="images per step  [default: 10 to 32]")
@click.option("--rate", type=float, help="learning rate of the head  [default: 0.001]")
@click.option("--layer-decay", type=float, help="learning rate factor per layer  [default: 0.7]")
@click.option("--weight-decay", type=float, help="weight decay  [default: 0.05]")
@click.option("--warmup", type=float, help="warm-up share of the steps  [default: 0.1]")
@click.option("--smoothing", type=float, help="label smoothing  [default: 0.1]")
@click.option(
    "--freeze",
    multiple=True,
    metavar="PART",
    help="freeze a part, such as expression_encoder.backbone.layer1; repeatable",
)
@click.option("--probe", is_flag=True, help="train the classification head alone")
@click.option("--from-scratch", is_flag=True, help="start from random weights")
@click.option("--seed", type=int, default=0)
@detection_options
@device_option
def finetune(
    model: str,
    data: Path,
    out: Path,
    label_column: str | None,
    classes: str | None,
    aligned: bool,
    seed: int,
    device: str | None,
    from_scratch: bool,
    **options: Any,
) -> None:
    """Fine-tune a checkpoint on your own images and classes."""
    from facezoo.finetuning import Finetuning
    from facezoo.finetuning import finetune as run
    from facezoo.preprocess.pipeline import DETECTION
    from facezoo.training.processes import Processes

    detection = {name: options.pop(name) for name in DETECTION}
    overrides = {name: value for name, value in options.items() if value is not None}
    with resumable():
        result = run(
            data,
            out,
            model=model,
            recipe=Finetuning(**overrides, pretrained=not from_scratch),
            label_column=label_column,
            classes=[name.strip() for name in classes.split(",")] if classes else None,
            aligned=aligned,
            seed=seed,
            device=device,
            **detection,
        )
    if Processes.present().first:
        print(result)


@click.command(epilog=f"{RESUMES} --smoke needs a new --out each time.")
@click.argument("name", metavar="CHECKPOINT")
@click.option("--data", type=DIR, required=True, help="DATA in the card's command")
@click.option(*OUT, "out", type=DIR, required=True, help="folder for state, log and card")
@smoke_option
@device_option
def reproduce(name: str, data: Path, out: Path, smoke: bool, device: str | None) -> None:
    """Train CHECKPOINT again by the command in its card."""
    from facezoo.cli.reproduce import reproduce as run

    print(run(name, data, out, smoke=smoke, device=device))
