"""Compare a linear probe, ``--probe``, fine-tuning and training from scratch on LFW.

    OMP_NUM_THREADS=1 python benchmarks/finetune.py DATA --out docs/results/finetune.lfw.json

DATA holds lfw.parquet. The classes are neutral and happiness, whose labels are reliable, with 10,
100 and all training images per class. Validation identities are tested after the last epoch, so
nothing is chosen on them. Crops and finished runs are stored in --cache, and the same command
resumes an interrupted run.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from functools import cache as cache_results
from pathlib import Path

import torch
from torch import Tensor

import facezoo
from facezoo.data.packs import aligned_crops, read_pack
from facezoo.evaluate.metrics import scores
from facezoo.evaluate.probes import linear_probe
from facezoo.finetuning import Finetuning, fit, predict
from facezoo.finetuning.loop import MARGIN, Examples
from facezoo.hub.tensors import read_tensors, save

CLASSES = ("neutral", "happiness")
MODEL = "ipd-fer"
# Training from scratch gets twice the epochs and the full rate in every layer.
RECIPES = {
    "10": (Finetuning(epochs=30, batch_size=10), 3),
    "100": (Finetuning(epochs=8, batch_size=25), 3),
    "all": (Finetuning(epochs=1, batch_size=64), 3),
}
"""Fine-tuning recipe and number of seeds by labels per class."""

PROBED = {"linear probe": "encode_expression"}
CLASSIFIER = "`--probe`"
TRAINED = (CLASSIFIER, "fine-tuned", "from scratch")


def probes_of(per_class: str, seeds: int) -> int:
    """Number of probes; one for all labels, because nothing else is random."""
    return len(PROBED) * (1 if per_class == "all" else seeds)


def recipe_of(arm: str, tuned: Finetuning) -> Finetuning:
    """Return the recipe of an arm."""
    values = asdict(tuned) | {"probe": arm == CLASSIFIER}
    if arm == "from scratch":
        values |= {"epochs": 2 * tuned.epochs, "layer_decay": 1.0, "pretrained": False}
    return Finetuning(**values)


def crops_of(data: Path, split: str, cache: Path) -> Examples:
    """Return aligned crops of the two classes, cached."""
    path = cache / f"{split}.safetensors"
    if not path.is_file():
        table = read_pack(data / "lfw.parquet", split)
        words = table["expression"].to_pylist()
        rows = [row for row, word in enumerate(words) if word in CLASSES]
        labels = torch.tensor([CLASSES.index(words[row]) for row in rows])
        crops = aligned_crops(table.take(rows), "arcface112", 112, MARGIN)
        save({"crops": crops, "labels": labels}, path)
    stored = read_tensors(path)
    return Examples(stored["crops"], stored["labels"])


def drawn(labels: Tensor, per_class: str, seed: int) -> Tensor:
    """Select rows of some images of each class, or of all."""
    if per_class == "all":
        return torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return torch.cat([order[labels[order] == k][: int(per_class)] for k in range(len(CLASSES))])


@torch.inference_mode()
def features_of(part: Examples, model: facezoo.FaceModel, what: str) -> Tensor:
    from facezoo.data.augment import center_crop

    parts = part.crops.split(128)
    crops = (center_crop(crops, model.preprocessing.size, MARGIN) for crops in parts)
    return torch.cat([model.run(batch, what) for batch in crops])


def probe(part: Examples, val: Examples, features: dict[str, Tensor], rows: Tensor) -> Tensor:
    """Predict the validation faces with a linear probe on the features of the rows."""
    joined = torch.cat([features["train"][rows], features["val"]])
    labels = torch.cat([part.labels[rows], val.labels])
    fitted, told = torch.arange(len(rows)), torch.arange(len(rows), len(joined))
    return linear_probe(joined, labels, fitted, told).probabilities


def trained(arm: str, tuned: Finetuning, part: Examples, val: Examples, seed: int) -> Tensor:
    recipe = recipe_of(arm, tuned)
    torch.manual_seed(seed)
    model = facezoo.load(MODEL, pretrained=recipe.pretrained, device="cpu")
    model.reset_classifier(labels=CLASSES)
    fit(model, part, None, recipe, seed=seed)
    return predict(model, val)


def measure(data: Path, out: Path, cache: Path, smoke: bool) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    train, val = crops_of(data, "train", cache), crops_of(data, "val", cache)
    recipes = {"10": (Finetuning(epochs=1), 1)} if smoke else RECIPES
    kept = cache / "runs.json"
    runs = json.loads(kept.read_text()) if kept.is_file() else []
    done = {(run["arm"], run["labels_per_class"], run["seed"]) for run in runs}
    model = facezoo.load(MODEL, device="cpu")

    @cache_results
    def features(what: str) -> dict[str, Tensor]:
        return {"train": features_of(train, model, what), "val": features_of(val, model, what)}

    arms = {**PROBED, **dict.fromkeys(TRAINED)}
    for per_class, (tuned, seeds) in recipes.items():
        for seed in range(seeds):
            rows = drawn(train.labels, per_class, seed)
            for arm, what in arms.items():
                same_rows = what and per_class == "all" and seed  # probes have no seed
                if same_rows or (arm, per_class, seed) in done:
                    continue
                begin = time.perf_counter()
                told = (
                    probe(train, val, features(what), rows)
                    if what
                    else trained(arm, tuned, train[rows], val, seed)
                )
                run = {"arm": arm, "labels_per_class": per_class, "seed": seed, "images": len(rows)}
                run |= {name: round(100 * v, 3) for name, v in scores(told, val.labels).items()}
                run["seconds"] = round(time.perf_counter() - begin, 1)
                runs.append(run)
                kept.write_text(json.dumps(runs))
                print(run, flush=True)
                write(out, runs, model, recipes, len(val))
    write(out, runs, model, recipes, len(val))


def write(
    out: Path,
    runs: list[dict[str, object]],
    model: facezoo.FaceModel,
    recipes: dict[str, tuple[Finetuning, int]],
    count: int,
) -> None:
    """Return the finished runs in the format of docs/tables.py."""
    said = {
        "what": "neutral against happiness on the validation people of LFW, balanced accuracy in %",
        "checkpoint": model.card.name,
        "command": f"python benchmarks/finetune.py DATA --out docs/results/{out.name}",
        "validation_images": count,
        "classes": CLASSES,
        "recipes": {
            per_class: {arm: asdict(recipe_of(arm, tuned)) for arm in TRAINED}
            for per_class, (tuned, _) in recipes.items()
        },
        "threads": torch.get_num_threads(),
        "wanted": sum(
            seeds * len(TRAINED) + probes_of(size, seeds) for size, (_, seeds) in recipes.items()
        ),
        "runs": runs,
    }
    out.write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--smoke", action="store_true", help="one small run per arm")
    options = parser.parse_args()
    measure(options.data, options.out, options.cache, options.smoke)


if __name__ == "__main__":
    main()
