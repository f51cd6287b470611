"""Train."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from facezoo.cli.common import _add_device, _command, _refuse_given


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
    from facezoo.training.processes import Processes

    together = Processes.present()  # each of several has a GPU of its own, which "cuda" is now
    if together.count > 1 and options.model != "ipd-fer":
        raise ValueError(
            f"{options.model} is trained by one process, and {together.count} were started; run "
            "the command without accelerate launch"
        )
    device = best_device(options.device or together.device())
    if options.model == "face-detector":
        from facezoo.models.face_detector.train import run as train_detector

        seed = _only_seed(options, "recipe", "stage", *_OF_IPD_FER)
        smoke = options.smoke
        print(train_detector(options.data, options.out, seed=seed, device=device, smoke=smoke))
        return 0
    if options.model == "adv3d":
        from facezoo.models.adv3d.train import ict, paper

        seed = _only_seed(options, "stage", *_OF_IPD_FER)
        name = options.recipe or "ict"
        run_adv3d = paper.run if name in paper.RECIPES else ict.run
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
    from facezoo.training.processes import Processes

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
    from facezoo.cli.reproduce import reproduce

    done = reproduce(
        options.name, options.data, options.out, smoke=options.smoke, device=options.device
    )
    print(done)
    return 0
