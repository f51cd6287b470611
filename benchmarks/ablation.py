"""What the parts of IPD-FER's objective do, as in Tables 8 and 9 of the paper, at a small scale.

Beside their rows there are two more: without L_recon, and with all dimensions of f_exp.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py DATA --start runs/ipd-fer/start \\
        --cache runs/ablation --json docs/results/ipd-fer.ablation.json

The recipe ``compact`` and its baseline, for one epoch of a share of the photographs, with one part
less each. DATA holds the packs that ``facezoo train ipd-fer`` wants, --start the first rounds of
such a run, which are trained there if they are not. Interrupted, the same command goes on.
"""

import argparse
import json
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path

import torch
from measuring import stamp, write
from torch import Tensor

from facezoo.evaluate.leakage import identity_from
from facezoo.models.ipd_fer.model import IPDFER
from facezoo.models.ipd_fer.train.command import begin, finish
from facezoo.models.ipd_fer.train.dataset import Rows, embed, read_rows
from facezoo.models.ipd_fer.train.pretraining import expression_accuracy
from facezoo.models.ipd_fer.train.recipes import ABLATIONS, Recipe, recipe
from facezoo.models.ipd_fer.train.sources import from_packs
from facezoo.training.run import shortened

SHARE = 3
"""Every which photograph is trained on."""
SIZE = 112
BASELINE, WHOLE = "baseline", "whole"
WORDS = {
    BASELINE: "baseline: eq. (5) alone",
    WHOLE: "whole",
    "confusion": "without the confusion of poses, eq. (4)",
    "cos": "without L_cos, eq. (3)",
    "id": "without L_id, eq. (2)",
    "recon": "without L_recon, eq. (1)",
    "discriminator": "without D, eqs. (8) to (10)",
    "pose": "without E_pose (ID-FER)",
    "rank": "with all 512 dimensions of f_exp",
}


def named(what: str, smoke: bool) -> Recipe:
    """The recipe of a row, for one epoch."""
    if what == BASELINE:
        chosen = recipe("compact-baseline")
    else:
        chosen = recipe("compact", () if what == WHOLE else (what,))
    if smoke:
        return shortened(chosen, epochs=1, batch_size=4, sizes=((0, SIZE),))
    return replace(chosen, main=replace(chosen.main, epochs=1, cycles=1))


def every(rows: Rows, step: int) -> Rows:
    """Every ``step``-th of the rows."""
    return Rows(*(getattr(rows, field.name)[::step] for field in fields(Rows)))


def scores(model: IPDFER, test: Rows, people: Rows, device: torch.device) -> dict[str, float]:
    """How well the eight classes are told, and the person from f_exp; per cent."""
    model = model.to(device, memory_format=torch.channels_last).eval()
    right = expression_accuracy(model, {"test": test, "people": people}, device, SIZE)
    features = embed(model.expression_encoder, people.crops, device)
    reading = identity_from(features, persons_of(people))
    return {
        "FER+ test": 100 * right["test_accuracy"],
        "LFW val": 100 * right["people_accuracy"],
        "person from f_exp": 100 * reading.accuracy,
        "chance": 100 * reading.chance,
    }


def persons_of(rows: Rows) -> Tensor:
    numbers = {person: number for number, person in enumerate(sorted(set(rows.persons)))}
    return torch.tensor([numbers[person] for person in rows.persons])


def main(options: argparse.Namespace) -> dict:
    device = torch.device(options.device)
    sources = from_packs(options.data)
    # The first rounds are those of every photograph.
    begun = begin(named(WHOLE, options.smoke), sources, options.start, device)
    some = {name: every(rows, options.share) for name, rows in sources.train.items()}
    brief = replace(sources, train=some)
    test, people = read_rows(options.data, "ferplus", "test"), sources.val["lfw"]
    table = []
    for what in options.rows:
        kept = options.cache / what / "scores.json"
        if not kept.is_file():
            chosen = named(what, options.smoke)
            kept.parent.mkdir(parents=True, exist_ok=True)
            model = finish(chosen, brief, *begun, kept.parent, seed=0, device=device)
            kept.write_text(json.dumps(scores(model, test, people, device)))
        table.append({"objective": WORDS[what], **json.loads(kept.read_text())})
        print(table[-1], flush=True)
    command = shlex.join(["python", "benchmarks/ablation.py", *sys.argv[1:]])
    count = sum(len(rows.files) for rows in some.values())
    said = {"photographs": count, "epochs": 1, "seed": 0}
    return {**stamp(command, options.device), **said, "tables": {"ablation": table}}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--start", type=Path, required=True, help="first rounds of a training run")
    parser.add_argument("--cache", type=Path, default=Path("runs/ablation"))
    parser.add_argument(
        "--rows", nargs="+", default=[BASELINE, WHOLE, *ABLATIONS], choices=WORDS, metavar="PART"
    )
    parser.add_argument("--share", type=int, default=SHARE, help="every which photograph is used")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="small batches, to see that it runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    given = parse()
    write(main(given), given.json)
