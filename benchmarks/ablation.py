"""Leave terms of IPD-FER's objective out, as in Tables 8 and 9 of the paper, at a small scale.

Two rows are not in these tables: without L_recon, and with all dimensions of f_exp.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py DATA --start runs/ipd-fer/start \\
        --cache runs/ablation --json docs/results/ipd-fer.ablation.json

Each row is the recipe ``compact`` or its baseline, for one epoch of a share of the images, without
one term. DATA is the folder with the packs of ``facezoo train ipd-fer``. --start is the folder of
the first stages of such a run, which are trained there if needed. Interrupted runs resume.
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
from facezoo.models.ipd_fer.train.data import Rows, embed, read_rows
from facezoo.models.ipd_fer.train.expression import score_expression
from facezoo.models.ipd_fer.train.recipes import ABLATIONS, Recipe, recipe
from facezoo.models.ipd_fer.train.sources import from_packs
from facezoo.models.ipd_fer.train.train import SMOKE, begin, finish
from facezoo.training.run import shortened

SHARE = 3
"""Train on every third image."""
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
    """Return the recipe of a row, for one epoch, without the decoder's own stage."""
    if what == BASELINE:
        chosen = recipe("compact-baseline")
    else:
        chosen = recipe("compact", () if what == WHOLE else (what,))
    if smoke:
        chosen = shortened(chosen, **SMOKE)
    return replace(chosen, main=replace(chosen.main, epochs=1, cycles=1), decoder=None)


def every(rows: Rows, step: int) -> Rows:
    """Return every ``step``-th row."""
    return Rows(*(getattr(rows, field.name)[::step] for field in fields(Rows)))


def scores(model: IPDFER, test: Rows, people: Rows, device: torch.device) -> dict[str, float]:
    """Measure the accuracy of the classes, and of identity read from f_exp; per cent."""
    model = model.to(device, memory_format=torch.channels_last).eval()
    right = score_expression(model, {"test": test, "people": people}, device, SIZE)
    features = embed(model.expression_encoder, people.crops, device)
    reading = identity_from(features, persons_of(people))
    return {
        "FER+ test": 100 * right["test_accuracy"],
        "LFW val": 100 * right["people_accuracy"],
        "person from f_exp": 100 * reading.accuracy,
        "chance": 100 * reading.chance,
    }


def persons_of(rows: Rows) -> Tensor:
    numbers = {person: number for number, person in enumerate(sorted(set(rows.identities)))}
    return torch.tensor([numbers[person] for person in rows.identities])


def main(options: argparse.Namespace) -> dict:
    device = torch.device(options.device)
    sources = from_packs(options.data)
    # The first stages use every image.
    beginning = begin(named(WHOLE, options.smoke), sources, options.start, device)
    some = {name: every(rows, options.share) for name, rows in beginning.rows.items()}
    beginning = beginning._replace(rows=some)
    test, people = read_rows(options.data, "ferplus", "test"), sources.val["lfw"]
    table = []
    for what in options.rows:
        kept = options.cache / what / "scores.json"
        if not kept.is_file():
            chosen = named(what, options.smoke)
            kept.parent.mkdir(parents=True, exist_ok=True)
            model = finish(chosen, sources, beginning, kept.parent, seed=0, device=device)
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
    parser.add_argument("--start", type=Path, required=True, help="first stages of a training run")
    parser.add_argument("--cache", type=Path, default=Path("runs/ablation"))
    parser.add_argument(
        "--rows", nargs="+", default=[BASELINE, WHOLE, *ABLATIONS], choices=WORDS, metavar="PART"
    )
    parser.add_argument("--share", type=int, default=SHARE, help="use every n-th image")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--smoke", action="store_true", help="use small batches, to see that it runs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    given = parse()
    write(main(given), given.json)
