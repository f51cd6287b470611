"""Measure."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from facezoo.cli.common import _add_device, _command, _refuse_given
from facezoo.cli.train import _DATA


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
    from facezoo.hub.names import resolve
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
    from facezoo.evaluate.benchmark import benchmark

    done = benchmark(
        options.models,
        data=options.data,
        out=options.out,
        results=options.json,
        device=options.device,
    )
    print(done)
    return 0
