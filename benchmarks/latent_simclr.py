"""Measure the generator, inversion and features of latent-simclr, compared with baselines.

    python benchmarks/latent_simclr.py latent-simclr --data DATA --early FILE [--json FILE]

Tables: the generator, also after a tenth of its training; inversion by w+, with f, and refined;
edits along the directions; transferred expressions; expression and leakage by an SVM on raw codes
and on h, and by the two CNNs of the paper; the identity features. Crops are aligned by the
landmarks of the packs. FILE of ``--early`` is what
``facezoo train stylegan2`` writes after a tenth of the training. Tables are added to the JSON file
if its networks are the same.
"""

import argparse
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.feature import hog
from skimage.metrics import structural_similarity
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor, nn
from tqdm.auto import tqdm

import facezoo
from facezoo.data.packs import aligned_crops, majority_labels, read_pack
from facezoo.evaluate.generation import (
    diversity,
    frechet_distance,
    inception_features,
    nearest,
)
from facezoo.evaluate.leakage import identity_from
from facezoo.evaluate.metrics import scores
from facezoo.evaluate.report import write_tables
from facezoo.evaluate.verification import read_pairs, verification_accuracy
from facezoo.hub.tensors import digest_of, load_into, read_tensors
from facezoo.models.latent_simclr.model import COLOR, LOCAL, LatentSimCLR
from facezoo.models.latent_simclr.simclr import CodeEncoder
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator
from facezoo.models.latent_simclr.train.simclr import face_middles
from facezoo.models.latent_simclr.train.supervised import train_classifier
from facezoo.results import EXPRESSIONS
from facezoo.training.loop import Schedule

FITTED = 8000
"""Largest number of training rows of FER+."""
SAMPLES, LOOKED_AT, REFINED = 4000, 64, 128
"""Images for the distances; samples compared with the training images; images with refined
inversion."""
SEEDS = 3
PAPERS = Schedule(15, batch_size=128, lr=1e-3, schedule="cosine")
"""Seeds of the two CNNs."""
REFINE_STEPS = 100
EDITED, STRENGTHS = 256, (-4, -3, -2, 2, 3, 4)
"""Images that are edited, and strengths."""
TRANSFERS = (1.5, 2.0, 2.5, 3.0)
"""Strengths of transferred expressions."""
SEEN = {"blur": math.log(1.25), "skin_tone": 10.0, "yaw": 5.0}
"""Least change: sharpness by a quarter, 10 of 255 gray values, 5 degrees."""


@dataclass(frozen=True)
class Pack:
    """Rows of a pack, aligned for the model."""

    crops: Tensor
    """In [-1, 1], (N, 3, S, S)."""
    codes: Tensor
    """(N, L, D)."""
    labels: Tensor
    files: list[str]
    persons: Tensor


def read(data: Path, name: str, split: str, model: LatentSimCLR) -> Pack:
    table = read_pack(data / f"{name}.parquet", None if name == "london_expr" else split)
    if name == "ferplus":
        known = (majority_labels(table) >= 0).nonzero()[:, 0]
        table = table.take((known[:FITTED] if split == "train" else known).tolist())
    settings = model.preprocessing
    crops = aligned_crops(table, settings.template, settings.size).float() / 127.5 - 1
    named = table["identity" if "identity" in table.column_names else "file"].to_pylist()
    numbers = {person: number for number, person in enumerate(sorted(set(named)))}
    return Pack(
        crops,
        codes_of(model, crops),
        majority_labels(table),
        table["file"].to_pylist(),
        torch.tensor([numbers[person] for person in named]),
    )


@torch.inference_mode()
def codes_of(model: LatentSimCLR, crops: Tensor) -> Tensor:
    return torch.cat([model.embed_codes(part) for part in crops.split(256)]).clone()


# --- the generator --------------------------------------------------------------------------------


class Recognizer:
    """Compute E_id of crops of any size, in its template."""

    def __init__(self) -> None:
        self.model = facezoo.load("ipd-fer", device="cpu")

    def __call__(self, crops: Tensor) -> Tensor:
        side = self.model.preprocessing.size
        parts = []
        for part in tqdm(crops.split(256), desc="identities", mininterval=10):
            large = F.interpolate(part.clamp(-1, 1), size=(side, side), mode="bilinear")
            parts.append(self.model.run(large, "encode_identity"))
        return torch.cat(parts)


@torch.inference_mode()
def samples(generator: StyleGANGenerator, count: int, psi: float = 1.0) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    center = generator.mean_code(10_000, draw)
    z = torch.randn(count, generator.style_dim, generator=draw)
    noise = generator.stored_noise()
    return torch.cat([generator(generator.map(p, psi, center), noise) for p in z.split(256)])


def generator_table(
    model: LatentSimCLR, early: Path, real: Tensor, know: Recognizer, inception: Path | None
) -> list[dict]:
    """Measure distance, diversity and copies of generators, and of half of the real crops."""
    generator = model.inverter.generator
    young = StyleGANGenerator(
        generator.size,
        **{
            key: model.architecture[key]
            for key in ("style_dim", "mapping_layers", "channel_multiplier", "max_channels")
        },
    ).eval()
    load_into(young, read_tensors(early))
    whose = know(real)
    order = torch.randperm(len(whose), generator=torch.Generator().manual_seed(0))
    half = whose[order]
    kinds = {
        "this checkpoint": samples(generator, SAMPLES),
        "this checkpoint, psi 0.7": samples(generator, SAMPLES, 0.7),
        "after a tenth of the training": samples(young, SAMPLES),
        "real crops, the other half": real[order[:SAMPLES]],
    }
    rows = []
    for name, images in kinds.items():
        features = know(images)
        others = half[SAMPLES : 2 * SAMPLES] if name.startswith("real") else whose[:SAMPLES]
        among = half[SAMPLES:] if name.startswith("real") else whose
        variety = diversity(features)
        cosines, _ = nearest(features[:LOOKED_AT], among)
        rows.append(
            {
                "images": name,
                "FID, identity features": frechet_distance(features, others),
                **standard(images, real, order, name.startswith("real"), inception),
                "diversity": variety,
                "share of the real crops' diversity, %": 100 * variety / diversity(whose),
                "nearest training image, mean cosine": float(cosines.mean()),
                "nearest training image, largest cosine": float(cosines.max()),
            }
        )
    return rows


def standard(
    images: Tensor, real: Tensor, order: Tensor, halves: bool, inception: Path | None
) -> dict[str, float]:
    """Compute the FID of Inception features, if its weights are given."""
    if inception is None:
        return {}
    others = real[order[SAMPLES : 2 * SAMPLES]] if halves else real[:SAMPLES]
    sides = (inception_features(side, inception) for side in (images, others))
    return {"FID": frechet_distance(*sides)}


# --- inversion ------------------------------------------------------------------------------------


def quality(drawn: Tensor, crops: Tensor, know: Recognizer) -> dict[str, float]:
    drawn = drawn.clamp(-1, 1)
    error = (drawn - crops).square().mean((1, 2, 3))
    ours, theirs = (side.permute(0, 2, 3, 1).numpy() for side in (drawn, crops))
    similar = [
        structural_similarity(a, b, channel_axis=2, data_range=2.0)
        for a, b in zip(ours, theirs, strict=True)
    ]
    cosine = F.cosine_similarity(know(drawn), know(crops))
    return {
        "PSNR, dB": float((10 * torch.log10(4 / error)).mean()),
        "SSIM": float(sum(similar) / len(similar)),
        "identity cosine": float(cosine.mean()),
    }


def inversion_table(model: LatentSimCLR, crops: Tensor, know: Recognizer) -> list[dict]:
    """Measure the reconstruction of images of unseen identities."""
    inverter = model.inverter
    with torch.inference_mode():
        parts = [inverter.encode(part) for part in crops.split(128)]
        plain = torch.cat([inverter.synthesize(part.w_plus) for part in parts])
        both = torch.cat([inverter.synthesize(part.w_plus, part.feature) for part in parts])
    some = crops[:REFINED]
    refined = [
        inverter.invert(part, REFINE_STEPS) for part in tqdm(some.split(32), desc="refining")
    ]
    with torch.inference_mode():
        fine = torch.cat([inverter.synthesize(part.w_plus, part.feature) for part in refined])
    pictures = {
        "w+": (plain, crops),
        "w+ and f": (both, crops),
        f"w+, first {REFINED}": (plain[:REFINED], some),
        f"w+ and f, first {REFINED}": (both[:REFINED], some),
        f"w+ and f, {REFINE_STEPS} steps, first {REFINED}": (fine, some),
        "another's crop": (crops.roll(len(crops) // 2, 0), crops),
    }
    return [
        {"drawn from": name, "photographs": len(wanted), **quality(drawn, wanted, know)}
        for name, (drawn, wanted) in pictures.items()
    ]


# --- edits ------


class Smiles:
    """Judge smiles by gradients of the pixels; fitted to real crops, no network takes part."""

    def __init__(self, pack: Pack) -> None:
        rows, _, happy = with_labels(pack, ("neutral", "happiness"))
        self.machine = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000))
        self.machine.fit(self.gradients(pack.crops[rows]), happy.numpy())

    @staticmethod
    def gradients(crops: Tensor) -> np.ndarray:
        gray = crops.clamp(-1, 1).mean(1).numpy()
        return np.stack([hog(image, pixels_per_cell=(8, 8)) for image in gray])

    def __call__(self, crops: Tensor) -> Tensor:
        return torch.from_numpy(self.machine.decision_function(self.gradients(crops)))


def blur(crops: Tensor) -> Tensor:
    """Compute minus the logarithm of the deviation of the Laplacian."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]
    return -F.conv2d(crops.mean(1, keepdim=True), kernel).flatten(1).std(1).log()


def darkness(crops: Tensor) -> Tensor:
    """Compute minus the mean gray value of the middle of the face, of 255."""
    return -face_middles(crops).mean((1, 2)) * 127.5


def yaw(crops: Tensor) -> Tensor:
    """Compute the yaw from landmarks of the detector, degrees; NaN without a face."""
    large = F.interpolate(crops.clamp(-1, 1), scale_factor=4, mode="bicubic", antialias=True)
    images = list(((large.clamp(-1, 1) + 1) * 127.5).byte())
    found = facezoo.detect(images, faces="largest", on_missing="nan")
    return found.pose_deg[:, 0]


def edits_table(model: LatentSimCLR, train: Pack, val: Pack, know: Recognizer) -> list[dict]:
    """Measure how often an edit changes what it should, and what remains of the identity.

    A smile counts as changed if the judge calls the face smiling or not, as wanted. Of the other
    directions, the measure must move by the least change of ``SEEN``. The cosine compares the
    result with the crop.
    """
    smiles, crops = Smiles(train), val.crops[:EDITED]
    measures = {"smile": smiles, "blur": blur, "skin_tone": darkness, "yaw": yaw}
    unit = list((crops + 1) / 2)
    whose = know(crops)
    kept = {True: "edited crop", False: "generated"}
    kinds = [(n, d) for n in model.architecture["directions"] for d in (True, False)]
    kinds = [(n, d) for n, d in kinds if not d or n in COLOR + LOCAL]
    rows = []
    for name, detail in kinds:
        measure = measures[name]
        start = measure(model.edit(unit, name, 0, detail=detail, aligned=True) * 2 - 1)
        for strength in STRENGTHS:
            after = model.edit(unit, name, strength, detail=detail, aligned=True) * 2 - 1
            end, sign = measure(after), 1 if strength > 0 else -1
            if name == "smile":
                concerned = sign * start < 0
                changed = sign * end > 0
            else:
                concerned = start.isfinite()
                changed = sign * (end - start) >= SEEN[name]
            cosine = F.cosine_similarity(know(after), whose)
            rows.append(
                {
                    "direction": name,
                    "image": kept[detail],
                    "strength": strength,
                    "faces": int(concerned.sum()),
                    "changed as wanted, %": 100 * float(changed[concerned].double().mean()),
                    "identity cosine": float(cosine[concerned].mean()),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def transfers_table(model: LatentSimCLR, train: Pack, val: Pack, know: Recognizer) -> list[dict]:
    """Exchange expressions between neutral and smiling faces, by strength.

    *Smile taken* and *neutral taken* are the shares of the results that the judge of smiles calls
    so. The first row has the real sources. The cosine compares the result with the target's crop.
    """
    smiles = Smiles(train)
    rows, _, happy = with_labels(val, ("neutral", "happiness"))
    sides = [rows[happy == label][: EDITED // 2] for label in (0, 1)]
    count = min(map(len, sides))
    crops = torch.cat([val.crops[side[:count]] for side in sides])
    targets, sources = list((crops + 1) / 2), list((crops.roll(count, 0) + 1) / 2)
    whose = know(crops)
    kinds = [("real source", None, 0.0)]
    kinds += [
        (kind, detail, strength)
        for kind, detail in (("edited crop", True), ("generated", False))
        for strength in TRANSFERS
    ]
    table = []
    for kind, detail, strength in kinds:
        after = torch.stack(sources)
        if detail is not None:
            options = {"strength": strength, "detail": detail, "aligned": True}
            after = model.transfer_expression(sources, targets, **options)
        after = after * 2 - 1
        smiling = smiles(after) > 0
        table.append(
            {
                "image": kind,
                "strength": "–" if detail is None else strength,
                "faces": 2 * count,
                "smile taken, %": 100 * float(smiling[:count].double().mean()),
                "neutral taken, %": 100 * float((~smiling[count:]).double().mean()),
                "identity cosine": float(F.cosine_similarity(know(after), whose).mean()),
            }
        )
        print(json.dumps(table[-1]), flush=True)
    return table


# --- features -------------------------------------------------------------------------------------


def by_svm(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    machine = make_pipeline(StandardScaler(), SVC())
    machine.fit(train.flatten(1).numpy(), labels.numpy())
    return torch.from_numpy(machine.predict(test.flatten(1).numpy()))


def scored(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    values = scores(predicted, truth)
    return {"accuracy": 100 * values["accuracy"], "F1": 100 * values["macro-F1"]}


def with_labels(pack: Pack, words) -> tuple[Tensor, Tensor, Tensor]:
    """Select rows with one of the labels, and their class indices."""
    wanted = [EXPRESSIONS.index(word) for word in words]
    rows = torch.isin(pack.labels, torch.tensor(wanted)).nonzero()[:, 0]
    numbers = torch.tensor([wanted.index(int(label)) for label in pack.labels[rows]])
    return rows, pack.codes[rows], numbers


class CNN:
    """Train a CNN of the paper with one seed; return its classifier and its h."""

    def __init__(
        self, model: LatentSimCLR, codes: Tensor, labels: Tensor, seed: int, sliders
    ) -> None:
        torch.manual_seed(seed)
        settings = model.architecture
        encoder = CodeEncoder(*codes.shape[1:], settings["code_width"], settings["num_features"])
        encoder.fit_scale(codes)
        with tempfile.TemporaryDirectory() as out:
            self.network = train_classifier(
                encoder, codes, labels, PAPERS, Path(out), seed, directions=sliders
            )

    @torch.inference_mode()
    def predict(self, codes: Tensor) -> Tensor:
        return self.network(codes).argmax(1)

    @torch.inference_mode()
    def features(self, codes: Tensor) -> Tensor:
        return self.network[0](codes)


def expression_table(model: LatentSimCLR, packs: dict) -> list[dict]:
    """Return a row per method and task, with the identification accuracy on LFW val."""
    tasks = {
        "LFW val": (("lfw", "train"), ("lfw", "val"), ("neutral", "happiness")),
        "London": (("lfw", "train"), ("london_expr", ""), ("neutral", "happiness")),
        "FER+ test": (("ferplus", "train"), ("ferplus", "test"), EXPRESSIONS),
    }
    people = packs["lfw", "val"]
    names = model.card.training.recipe["contrast"]["expression_sliders"]
    sliders = [model.direction(name) for name in names]
    kinds = {
        "raw W+ code, SVM": lambda codes: codes.flatten(1),
        "SimCLR h, SVM": lambda codes: model.encode_expression(w_plus=codes),
        "mirrored SimCLR h (identity), SVM": lambda codes: model.encode_identity(w_plus=codes),
    }
    rows = []
    for task, (fitted, tested, words) in tasks.items():
        _, codes, labels = with_labels(packs[fitted], words)
        _, test, truth = with_labels(packs[tested], words)
        for name, take in kinds.items():
            found = scored(by_svm(take(codes), labels, take(test)), truth)
            whose = identification(take(people.codes), people)
            said = {"task": task, "method": name, "seeds": 1}
            rows.append({**said, **found, **whose, "accuracy, spread": None})
            print(json.dumps(rows[-1]), flush=True)
        for name, given in {"CNN": None, "CNN + augmentations": sliders}.items():
            outcomes = []
            for seed in range(SEEDS):
                cnn = CNN(model, codes, labels, seed, given)
                outcome = scored(cnn.predict(test), truth)
                outcomes.append({**outcome, **identification(cnn.features(people.codes), people)})
            mean = {key: sum(o[key] for o in outcomes) / SEEDS for key in outcomes[0]}
            spread = torch.tensor([o["accuracy"] for o in outcomes]).std().item()
            rows.append(
                {"task": task, "method": name, "seeds": SEEDS, **mean, "accuracy, spread": spread}
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def identification(features: Tensor, people: Pack) -> dict[str, float]:
    reading = identity_from(features.float(), people.persons)
    return {
        "identification": 100 * reading.accuracy,
        "identification, above chance": 100 * (reading.accuracy - reading.chance),
    }


def identity_table(model: LatentSimCLR, people: Pack, data: Path) -> list[dict]:
    """Measure verification by identity features, expression features and raw codes."""
    pairs = read_pairs(data / "lfw_pairs_val.csv")
    kinds = {
        "raw W+ code": people.codes.flatten(1) - people.codes.flatten(1).mean(0),
        "identity h (ours)": model.encode_identity(w_plus=people.codes),
        "expression h": model.encode_expression(w_plus=people.codes),
    }
    rows = []
    for name, features in kinds.items():
        mean, spread = verification_accuracy(features, people.files, pairs)
        rows.append(
            {
                "features": name,
                "LFW pairs": 100 * mean,
                "spread over folds": 100 * spread,
                **identification(features, people),
            }
        )
    return rows


def main(options: argparse.Namespace) -> dict:
    model = facezoo.load(options.name, device="cpu")
    know = Recognizer()
    keys = [("lfw", "train"), ("lfw", "val")]
    if "expression" in options.parts:
        keys += [("london_expr", ""), ("ferplus", "train"), ("ferplus", "test")]
    packs = {key: read(options.data, *key, model) for key in keys}
    train, val = packs["lfw", "train"], packs["lfw", "val"]
    tables = {}
    if "generator" in options.parts:
        tables["generator"] = generator_table(
            model, options.early, train.crops, know, options.inception
        )
    if "inversion" in options.parts:
        tables["inversion"] = inversion_table(model, val.crops, know)
    if "edits" in options.parts:
        tables["edits"] = edits_table(model, train, val, know)
    if "transfers" in options.parts:
        tables["transfers"] = transfers_table(model, train, val, know)
    if "expression" in options.parts:
        tables["expression"] = expression_table(model, packs)
    if "identity" in options.parts:
        tables["identity"] = identity_table(model, val, options.data)
    # Directions and axes do not change the tables of the networks.
    networks = (model.inverter, model.expression_encoder, model.identity_encoder)
    digest = digest_of(nn.ModuleList(networks).half())
    return {"checkpoint": model.card.name, "sha256": digest, "tables": tables}


PARTS = ("generator", "inversion", "edits", "transfers", "expression", "identity")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="a checkpoint of latent-simclr")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--early", type=Path, help="early.safetensors of the generator's training")
    parser.add_argument(
        "--inception", type=Path, help="torch-fidelity's weights, for the standard FID"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if "generator" in options.parts and options.early is None:
        parser.error("the generator's table needs --early")
    found = main(options)
    print(json.dumps(found, indent=2, ensure_ascii=False))
    if options.json:
        write_tables(options.json, found)
