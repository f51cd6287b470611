"""Measure the features, decoded images and parts of LatentFace, compared with baselines.

    python benchmarks/latentface.py latentface --data DATA [--part features] [--json FILE]

Five tables: probes on the features (Tables 1 and 2 of the paper, at small scale); the same for a
perfect diffusion model; reconstruction; identity in the frontal view; and how identity depends on
the noise of the sampler. Crops are aligned by the landmarks of the packs. Tables are added to the
file if it is of the same weights.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

import facezoo
from facezoo.data.packs import aligned_crops, majority_labels, read_pack, yaw_column
from facezoo.evaluate.metrics import scores
from facezoo.evaluate.probes import linear_probe
from facezoo.evaluate.report import write_tables
from facezoo.evaluate.verification import learned_accuracy, read_pairs, verification_accuracy
from facezoo.geometry.shading import Light, shade, shading
from facezoo.models.latentface.latents import Latents
from facezoo.models.latentface.model import LatentFace
from facezoo.models.latentface.networks import AutoEncoder
from facezoo.results import EXPRESSIONS

FITTED = 8000
"""Largest number of training rows of a probe, as in ``facezoo.evaluate.leakage``."""
COMPONENTS = 512
OFTEN = 5
"""Least number of images of an identity, to use the mean of the others as target."""
TURNED_DEG = 15.0
SEEDS = 8
PARTS = ("texture", "shape")
PACKS = (("ferplus", "train"), ("ferplus", "test"), ("lfw", "train"), ("lfw", "val"))
SAID = {"ferplus": "FER+", "lfw": "LFW"}

Features = Callable[[Latents, Latents, Tensor], tuple[Tensor, Tensor]]
"""Function from latents, identity codes and crops to expression and identity features, (N, D)
each."""


@dataclass(frozen=True)
class Pack:
    """Rows of a pack, aligned for the model."""

    crops: Tensor
    """In [-1, 1], (N, 3, S, S)."""
    labels: Tensor
    files: list[str]
    persons: list[str]
    yaw_deg: Tensor


def read(data: Path, name: str, split: str, model: LatentFace) -> Pack:
    table = read_pack(data / f"{name}.parquet", split)
    if name == "ferplus":
        known = (majority_labels(table) >= 0).nonzero()[:, 0]
        table = table.take((known[:FITTED] if split == "train" else known).tolist())
    size, template = model.preprocessing.size, model.preprocessing.template
    return Pack(
        aligned_crops(table, template, size).float() / 127.5 - 1,
        majority_labels(table),
        table["file"].to_pylist(),
        table["identity"].to_pylist() if "identity" in table.column_names else [],
        yaw_column(table),
    )


# --- what can be read from the features -----------------------------------------------------------


def factors(model: LatentFace, crops: Tensor) -> Latents:
    return model.run(crops, "encode_factors", 128)


@torch.inference_mode()
def identities(model: LatentFace, latents: Latents) -> Latents:
    return model.in_batches(model.identity_latents, latents, 512)


def codes(latents: Latents) -> Tensor:
    return torch.cat([latents.texture, latents.shape], 1)


def taken_apart(latents: Latents, identity: Latents, parts=PARTS) -> tuple[Tensor, Tensor]:
    """Return γ_exp and Z_id; parts outside ``parts`` stay whole in both."""
    whose = [getattr(identity if part in parts else latents, part) for part in PARTS]
    rest = [
        getattr(latents, part) - (who if part in parts else 0)
        for part, who in zip(PARTS, whose, strict=True)
    ]
    return torch.cat(rest, 1), torch.cat(whose, 1)


def of_others(every: Tensor, persons: list[str], often: int = 2) -> tuple[Tensor, Tensor]:
    """Return the mean code of each identity's other images, and the rows with enough images."""
    people = {name: index for index, name in enumerate(sorted(set(persons)))}
    numbers = torch.tensor([people[name] for name in persons])
    counts = numbers.bincount()[numbers]
    sums = torch.zeros(len(people), every.shape[1]).index_add(0, numbers, every)
    rows = (counts >= often).nonzero()[:, 0]
    return (sums[numbers[rows]] - every[rows]) / (counts[rows, None] - 1), rows


class EncoderBased:
    """Encoder of identity codes from the image, the alternative to diffusion in Table 2.

    The encoders are those of the autoencoders; the paper's is a ResNet.
    """

    def __init__(self, model: LatentFace, train: Pack, steps: int, batch: int = 32) -> None:
        torch.manual_seed(0)
        options = {key: model.architecture[key] for key in ("size", "width", "code_dim")}
        self.encoders = [AutoEncoder(1, **options) for _ in PARTS]
        targets, rows = of_others(codes(factors(model, train.crops)), train.persons)
        learned = [p for encoder in self.encoders for p in encoder.encoder.parameters()]
        optimizer = torch.optim.Adam(learned, lr=5e-4)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        draw = torch.Generator().manual_seed(0)
        for _ in tqdm(range(steps), desc="encoder-based", mininterval=10):
            chosen = torch.randint(len(rows), (batch,), generator=draw)
            images = train.crops[rows[chosen]]
            images = images.flip(-1) if torch.rand((), generator=draw) < 0.5 else images
            loss = F.mse_loss(self(images), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()

    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([encoder.encode(images) for encoder in self.encoders], 1)

    @torch.inference_mode()
    def identities(self, latents: Latents, crops: Tensor) -> Latents:
        found = torch.cat([self(part) for part in crops.split(256)])
        texture, shape = found.split(latents.texture.shape[1], 1)
        return replace(latents, texture=texture, shape=shape)


def principal(train: Tensor) -> Callable[[Tensor], Tensor]:
    """Project pixels of crops on the principal axes of the training crops."""
    flat = train.flatten(1)
    torch.manual_seed(0)
    axes = torch.pca_lowrank(flat - flat.mean(0), COMPONENTS, center=False)[2]
    return lambda crops: (crops.flatten(1) - flat.mean(0)) @ axes


def variants(model: LatentFace, train: Pack, steps: int) -> dict[str, Features]:
    torch.manual_seed(0)
    untrained = LatentFace(**model.architecture).eval()
    encoder, pixels = EncoderBased(model, train, steps), principal(train.crops)

    return {
        "pixels, 512 principal components": lambda _z, _i, crops: (pixels(crops),) * 2,
        "random network, codes": lambda _z, _i, crops: (codes(factors(untrained, crops)),) * 2,
        "no RDM: the codes whole": lambda z, _i, _crops: (codes(z),) * 2,
        "encoder-based": lambda z, _i, crops: taken_apart(z, encoder.identities(z, crops)),
        "RDM only on texture": lambda z, i, _crops: taken_apart(z, i, ("texture",)),
        "RDM only on shape": lambda z, i, _crops: taken_apart(z, i, ("shape",)),
        "RDM (this checkpoint)": lambda z, i, _crops: taken_apart(z, i),
    }


def features_table(model: LatentFace, data: Path, steps: int) -> list[dict]:
    """Return a row per variant: expression by linear probe, verification by identity features."""
    packs = {(name, split): read(data, name, split, model) for name, split in PACKS}
    pairs = read_pairs(data / "lfw_pairs_val.csv")
    latents = {key: factors(model, pack.crops) for key, pack in packs.items()}
    whose = {key: identities(model, z) for key, z in latents.items()}
    val = packs["lfw", "val"]
    rows = []
    for variant, features in variants(model, packs["lfw", "train"], steps).items():
        found = {k: features(latents[k], whose[k], packs[k].crops) for k in packs}
        row: dict = {"features": variant}
        for name, split in (("ferplus", "test"), ("lfw", "val")):
            both = [(name, "train"), (name, split)]
            words = ("neutral", "happiness") if name == "lfw" else EXPRESSIONS
            scores = probed([found[k][0] for k in both], [packs[k].labels for k in both], words)
            row |= {f"{SAID[name]} {split}, {k}": v for k, v in scores.items()}
        identity = found["lfw", "val"][1]
        for name, measure in (("cosine", verification_accuracy), ("learned", learned_accuracy)):
            mean, spread = measure(identity, val.files, pairs)
            row[f"LFW pairs, {name}"] = f"{100 * mean:.2f} ± {100 * spread:.2f}"
        print(json.dumps(row, ensure_ascii=False), flush=True)
        rows.append(row)
    return rows


def targets_table(model: LatentFace, data: Path) -> list[dict]:
    """Measure expression in codes minus the target of a perfect diffusion model, on LFW.

    The targets are the mean codes of the other images of an identity, and the same after
    subtracting the mean of the expression class from each image.
    """
    packs = [read(data, "lfw", split, model) for split in ("train", "val")]
    latents = [factors(model, pack.crops) for pack in packs]
    whole = [codes(z) for z in latents]
    classes = packs[0].labels.unique()
    shifts = torch.zeros(len(EXPRESSIONS), whole[0].shape[1])
    for label in classes[classes >= 0].tolist():
        shifts[label] = whole[0][packs[0].labels == label].mean(0) - whole[0].mean(0)
    freed = [
        z - shifts[pack.labels.clamp(min=0)] * (pack.labels >= 0)[:, None]
        for z, pack in zip(whole, packs, strict=True)
    ]
    rows = [of_others(z, pack.persons, OFTEN)[1] for z, pack in zip(whole, packs, strict=True)]

    def less_others(every: list[Tensor]) -> list[Tensor]:
        return [
            z[kept] - of_others(other, pack.persons, OFTEN)[0]
            for z, other, pack, kept in zip(whole, every, packs, rows, strict=True)
        ]

    features = {
        "the codes whole": [z[kept] for z, kept in zip(whole, rows, strict=True)],
        "less the mean of the person's other photographs": less_others(whole),
        "the same, each photograph's code less its class's mean": less_others(freed),
    }
    labels = [pack.labels[kept] for pack, kept in zip(packs, rows, strict=True)]
    counts = {"photographs of train": len(rows[0]), "photographs of val": len(rows[1])}
    words = ("neutral", "happiness")
    return [
        {"codes": name, **counts, **{f"LFW val, {k}": v for k, v in scores.items()}}
        for name, scores in ((n, probed(f, labels, words)) for n, f in features.items())
    ]


def probed(features: list[Tensor], labels: list[Tensor], words) -> dict[str, float]:
    """Train a linear probe on the first pack; return the scores on the second, in percent."""
    wanted = torch.tensor([EXPRESSIONS.index(word) for word in words])
    kept = [torch.isin(each, wanted).nonzero()[:, 0][:FITTED] for each in labels]
    features = [f[rows] for f, rows in zip(features, kept, strict=True)]
    labels = [each[rows] for each, rows in zip(labels, kept, strict=True)]
    every = torch.cat(labels).unique(return_inverse=True)[1]
    fitted, tested = torch.arange(len(every)).split([len(each) for each in labels])
    predicted = linear_probe(torch.cat(features), every, fitted, tested).predicted
    values = scores(predicted, every[tested])
    return {"accuracy": 100 * values["accuracy"], "F1": 100 * values["macro-F1"]}


# --- pictures -------------------------------------------------------------------------------------


@torch.inference_mode()
def reconstruction_table(model: LatentFace, crops: Tensor) -> list[dict]:
    """Measure the error of drawn faces inside the face, also with other depth maps."""
    latents = factors(model, crops)
    parts = [latents[i : i + 128] for i in range(0, len(latents), 128)]
    mean = torch.cat([model.decode_depth(z) for z in parts]).mean(0)
    shapes: dict[str, Callable[[Tensor], Tensor]] = {
        "own depth": lambda depth: depth,
        "mean depth of all faces": lambda depth: mean.expand_as(depth),
        "flat": lambda depth: torch.full_like(depth, float(mean.mean())),
    }
    rows = []
    for name, shape in shapes.items():
        for lit in (True, False) if name == "flat" else (True,):
            errors, count = torch.zeros(2), 0.0
            for z, images in zip(parts, crops.split(128), strict=True):
                depth, albedo = model.decode_depth(z), model.decode_albedo(z)
                light = Light.from_parameters(z.light)
                if not lit:  # the shading of the true shape, on a plane
                    albedo = shade(albedo, shading(model.renderer.normals(depth), light))
                    light = Light.from_parameters(torch.tensor([[1.0, -1, 0, 0]]).expand(len(z), 4))
                drawn = model.renderer.render(shape(depth), albedo, light, z.view)
                away = (drawn.image - images) / 2 * drawn.mask
                errors += torch.stack([away.abs().sum(), away.square().sum()])
                count += 3 * float(drawn.mask.sum())
            said = name if lit else "flat, shaded as by its own depth"
            rows.append(
                {
                    "depth": said,
                    "mean absolute error": float(errors[0] / count),
                    "root mean square error": float((errors[1] / count).sqrt()),
                }
            )
    return rows


@torch.inference_mode()
def frontal_table(model: LatentFace, recogniser, pack: Pack) -> list[dict]:
    """Measure the cosine between E_id of each crop and of its frontal view."""
    frontal = torch.cat([model.frontalize_crops(part) for part in pack.crops.split(128)])
    drawn = torch.cat([model(part) for part in pack.crops.split(128)]).clamp(-1, 1)
    pictures = {
        "frontal view": frontal.clamp(-1, 1),
        "reconstruction": drawn,
        "mean of the reconstruction and its mirror image": (drawn + drawn.flip(-1)) / 2,
        "mean of the crop and its mirror image": (pack.crops + pack.crops.flip(-1)) / 2,
    }
    own = known(recogniser, pack.crops)
    turned = pack.yaw_deg.abs() > TURNED_DEG
    rows = []
    for name, images in pictures.items():
        theirs = known(recogniser, images)
        same = F.cosine_similarity(own, theirs)
        other = F.cosine_similarity(own, theirs.roll(len(own) // 2, 0))
        rows.append(
            {
                "picture": name,
                "cosine": float(same.mean()),
                f"cosine beyond {TURNED_DEG:.0f} degrees of yaw": float(same[turned].mean()),
                "cosine with another's": float(other.mean()),
                "share nearest to its own crop": 100
                * float((nearest(theirs, own) == torch.arange(len(own))).float().mean()),
            }
        )
    return rows


def nearest(pictures: Tensor, own: Tensor) -> Tensor:
    return (F.normalize(pictures, dim=1) @ F.normalize(own, dim=1).T).argmax(1)


def known(recogniser, crops: Tensor) -> Tensor:
    """Compute E_id of loose crops; their middle is the recognizer's template."""
    side = recogniser.preprocessing.size
    theta = torch.tensor([[[1 / 1.5, 0, 0], [0, 1 / 1.5, 0]]]).expand(len(crops), 2, 3)
    grid = F.affine_grid(theta, [len(crops), 3, side, side], align_corners=False)
    tight = F.grid_sample(crops, grid, align_corners=False, padding_mode="border")
    return recogniser.run(tight, "encode_identity")


@torch.inference_mode()
def spread_table(model: LatentFace, crops: Tensor) -> list[dict]:
    """Compare the variation of identity over noise with the variation over faces."""
    latents = factors(model, crops)
    drawn = []
    for seed in range(SEEDS):
        noises = torch.randn(
            2, model.architecture["code_dim"], generator=torch.Generator().manual_seed(seed)
        )
        given = [noise.expand_as(latents.texture) for noise in noises]
        drawn.append(codes(model.identity_latents(latents, *given)))
    every = torch.stack(drawn)
    fixed = codes(identities(model, latents))
    cosine = F.cosine_similarity(every, fixed[None], dim=-1)
    return [
        {
            "seeds": SEEDS,
            "standard deviation over seeds": float(every.std(0).mean()),
            "standard deviation over faces": float(every.std(1).mean()),
            "cosine with the fixed seed's": float(cosine.mean()),
        }
    ]


def pictures_tables(model: LatentFace, data: Path) -> dict[str, list[dict]]:
    val = read(data, "lfw", "val", model)
    return {
        "reconstruction": reconstruction_table(model, val.crops),
        "frontal": frontal_table(model, facezoo.load("ipd-fer", device="cpu"), val),
        "spread": spread_table(model, val.crops),
    }


def main(name: str, data: Path, part: str, steps: int) -> dict:
    model = facezoo.load(name, device="cpu")
    tables = pictures_tables(model, data) if part in ("pictures", "all") else {}
    if part in ("features", "all"):
        tables["features"] = features_table(model, data, steps)
    if part in ("targets", "all"):
        tables["targets"] = targets_table(model, data)
    return {"checkpoint": model.card.name, "sha256": model.card.weights.sha256, "tables": tables}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a checkpoint of latentface")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--part", choices=["features", "targets", "pictures", "all"], default="all")
    parser.add_argument("--steps", type=int, default=1000, help="of the encoder-based variant")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = main(options.name, options.data, options.part, options.steps)
    print(json.dumps(found, indent=2, ensure_ascii=False))
    if options.json:
        write_tables(options.json, found)
