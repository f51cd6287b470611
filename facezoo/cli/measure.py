"""``facezoo evaluate`` and ``benchmark``."""

from __future__ import annotations

from pathlib import Path

import click

from facezoo.cli.common import DIR, FILE, OUT, device_option

data_option = click.option(
    "--data", type=DIR, required=True, help="folder with the packs or ICT-3D"
)


@click.command()
@click.argument("name", metavar="CHECKPOINT")
@data_option
@click.option("--json", "json_path", type=FILE, help="write the numbers there too")
@click.option("--card", type=FILE, help="put the numbers into this card too")
@device_option
def evaluate(
    name: str, data: Path, json_path: Path | None, card: Path | None, device: str | None
) -> None:
    """Measure a checkpoint by the papers' protocols.

    CHECKPOINT is a name, or a folder or .safetensors file with a card.
    """
    from facezoo.evaluate import report
    from facezoo.hub.names import resolve
    from facezoo.registry import best_device

    # Outputs that cannot be written raise an error before the long measurement.
    if json_path:
        json_path.parent.mkdir(parents=True, exist_ok=True)
    if card:
        report.check_card(card, resolve(name).card)
    measured, measurements = report.measure_checkpoint(name, data, best_device(device))
    print(report.as_table(measurements))
    if json_path:
        json_path.write_text(report.as_json(measured, measurements), encoding="utf-8")
    if card:
        report.write_card(card, measured, measurements)


@click.command(
    epilog="Features are kept in --out, and each number is written when it is measured: run the "
    "same command again to resume. Numbers in the file are not measured again."
)
@click.argument("models", metavar="[MODEL]...", nargs=-1)
@data_option
@click.option(*OUT, "out", type=DIR, required=True, help="folder for features")
@click.option(
    "--json",
    "results",
    type=FILE,
    help="results to add to, with tables in a .md file  [default: benchmark.json in --out]",
)
@device_option
def benchmark(
    models: tuple[str, ...], data: Path, out: Path, results: Path | None, device: str | None
) -> None:
    """Compare checkpoints and two baselines by one set of protocols.

    MODEL is any name that load takes; the default is every bundled checkpoint.
    """
    from facezoo.evaluate.benchmark import benchmark as run

    print(run(models, data=data, out=out, results=results, device=device))
