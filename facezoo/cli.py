"""The command line: ``facezoo list | info | predict | extract | download | train | publish``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="facezoo")
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a model by its recipe")
    train.add_argument("model", choices=["ipd-fer", "face-detector"])
    train.add_argument("--data", type=Path, required=True, help="folder with the packs")
    train.add_argument("--out", type=Path, required=True, help="folder for state, log and result")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    return _train(options)


def _train(options: argparse.Namespace) -> int:
    import torch
    from safetensors.torch import save_file

    device = torch.device(options.device)
    if options.model == "face-detector":
        from facezoo.detector import train as detector

        tensors = detector.train(
            detector.DetectorConfig(), options.data, options.out, seed=options.seed, device=device
        )
    else:
        from facezoo.models.ipd_fer import train as ipd_fer

        tensors = ipd_fer.train(
            ipd_fer.TrainConfig(), options.data, options.out, seed=options.seed, device=device
        )
    save_file({k: v.contiguous() for k, v in tensors.items()}, options.out / "model.safetensors")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
