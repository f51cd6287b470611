"""Entries of the benchmark: checkpoints, encoders of your own, and two baselines."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from facezoo.data.packs import aligned_crops, read_pack
from facezoo.evaluate.embedding import embed_aligned
from facezoo.evaluate.packs import BY_WAY, SPLITS, Packs
from facezoo.hub.card import Card, Preprocessing, bundled_cards
from facezoo.hub.families import FAMILIES, model_class
from facezoo.hub.tensors import read_tensors, save, sha256_of
from facezoo.models.base import FaceModel
from facezoo.models.mesh_base import MeshModel
from facezoo.models.pretrained import PUBLISHED
from facezoo.preprocess.alignment import normalize
from facezoo.registry import info

BOTH = ("expression", "identity")
"""Spaces of an encoder with separate features."""
ONE = ("features",)
"""The space of an encoder with one feature per face, which is used for both."""
PIXELS, UNTRAINED = "pixels", "random-network"
COMPONENTS = 256
PIXEL_SIDE = 32
BACKBONE = "resnet18"
BASELINES = {
    PIXELS: f"{COMPONENTS}-components-of-{PIXEL_SIDE}-pixels",
    UNTRAINED: f"{BACKBONE}-seed-0",
}
"""Key of each baseline. Unlike its features, the key is the same on every machine."""

Features = dict[str, dict[str, Tensor]]
"""By space and split, (N, D)."""
Encode = Callable[[Tensor], Tensor | dict[str, Tensor]]
"""From normalized crops (B, 3, S, S) to features (B, D), or to features for each of ``BOTH``."""


@dataclass(frozen=True)
class Own:
    """An encoder of faces from outside this package."""

    encode: Encode
    """From normalized crops (B, 3, S, S) to features (B, D), or ``{"expression": (B, D),
    "identity": (B, D)}``; called in inference mode."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """Preparation of the crops."""
    trained_on: tuple[str, ...] | None = None
    """Training data, a text per data set as in a card; None if unknown."""


@dataclass(frozen=True)
class Entry:
    """One line of the benchmark, an ``evaluate.embedding.Encoder``."""

    name: str
    key: str
    """Hexadecimal; changes whenever the features change."""
    spaces: tuple[str, ...]
    """``BOTH``, one of them, or ``ONE``."""
    preprocessing: Preprocessing
    device: torch.device
    encode: Encode
    trained_on: tuple[str, ...] | None
    parameters: int | None = None
    model: FaceModel | None = None
    card: Card | None = None

    @torch.inference_mode()
    def run(self, crops: Tensor, names: Sequence[str], batch_size: int = 64) -> dict[str, Tensor]:
        """Compute features by space, float32, of normalized crops (F, 3, S, S)."""
        parts = [_by_space(self.encode(batch)) for batch in crops.split(batch_size)]
        return {name: torch.cat([part[name].float() for part in parts]) for name in names}

    @property
    def family(self) -> str:
        """Name of the model family, or the name of the entry if there is none."""
        return self.card.model if self.card else self.name


def _by_space(features: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    return {ONE[0]: features} if isinstance(features, Tensor) else features


def bundled_checkpoints(*, meshes: bool) -> list[str]:
    """List the bundled checkpoints of models of meshes, or of images."""
    cards = bundled_cards().items()
    return [n for n, card in cards if card.model in FAMILIES and takes_meshes(card) == meshes]


def takes_meshes(card: Card) -> bool:
    """Return True for a checkpoint of a model of meshes."""
    return issubclass(model_class(card.model), MeshModel)


def checkpoint(name: str, model: FaceModel) -> Entry:
    """Make an entry of a loaded checkpoint.

    Args:
        model: with its card; a model with one of the two features enters with that one.

    Raises:
        ValueError: if it has neither expression nor identity features.
    """
    spaces = [space for space in BOTH if f"encode_{space}" in model.capabilities()]
    if not spaces:
        raise ValueError(
            f"{name} has neither expression nor identity features; leave it out of the benchmark"
        )

    def encode(crops: Tensor) -> dict[str, Tensor]:
        results = model.run(crops, [f"encode_{space}" for space in spaces])
        return {space: results[f"encode_{space}"] for space in spaces}

    card = model.card
    return Entry(
        name=name,
        key=card.weights.sha256 if card else _digest_of(model.state_dict().values()),
        spaces=tuple(spaces),
        preprocessing=model.preprocessing,
        device=model.device,
        encode=encode,
        trained_on=training_data(card) if card and card.tag != PUBLISHED else None,
        parameters=card.weights.parameters if card else sum(p.numel() for p in model.parameters()),
        model=model,
        card=card,
    )


def own(name: str, encoder: Own | Encode, device: torch.device) -> Entry:
    """Make an entry of a callable; its key depends on its features of fixed noise.

    Raises:
        ValueError: if it returns neither features (B, D) nor a dictionary of the two.
    """
    encoder = encoder if isinstance(encoder, Own) else Own(encoder)
    module = encoder.encode if isinstance(encoder.encode, nn.Module) else None
    if module is not None:
        module.eval().to(device)
    size = encoder.preprocessing.size
    noise = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        parts = _by_space(encoder.encode(normalize(255 * noise.to(device), encoder.preprocessing)))
    if set(parts) not in ({*BOTH}, {*ONE}) or any(
        not isinstance(p, Tensor) or p.ndim != 2 or len(p) != len(noise) for p in parts.values()
    ):
        shapes = {k: tuple(getattr(p, "shape", ())) for k, p in parts.items()}
        raise ValueError(
            f"{name} must return features (B, D), or a dictionary of them for expression and "
            f"identity, got {shapes} for 4 crops"
        )
    return Entry(
        name=name,
        key=_digest_of([*parts.values()], encoder.preprocessing.template),
        spaces=tuple(space for space in (*BOTH, *ONE) if space in parts),
        preprocessing=encoder.preprocessing,
        device=device,
        encode=encoder.encode,
        trained_on=encoder.trained_on,
        parameters=sum(p.numel() for p in module.parameters()) if module else None,
    )


def training_data(card: Card) -> tuple[str, ...]:
    """List the training data of a card and of the checkpoints that it was trained with."""
    texts: dict[str, None] = {}
    _collect(card, "", texts, set())
    return tuple(texts)


def _collect(card: Card, through: str, texts: dict[str, None], seen: set[str]) -> None:
    seen.add(card.model)
    cards, base = bundled_cards(), card.training.base or ""
    # A card has the data of a base of its own model, which may not be included any more.
    own_texts = [*card.training.data, *([] if base.startswith(f"{card.model}.") else [base])]
    texts |= dict.fromkeys(f"{text}{through}" for text in own_texts if text and text not in cards)
    for model in dict.fromkeys(card.model for card in cards.values()):
        if model not in seen and any(model in text for text in own_texts):
            _collect(info(model), f"{BY_WAY}{model}", texts, seen)


# --- features ----------------------------------------------------------------------------------


def features_of(
    entry: Entry, packs: Packs, cache: Path, splits: Iterable[str] = SPLITS
) -> Features:
    """Compute the features of splits, or read them from the folder ``cache``, a file per split."""
    folder = cache / re.sub(r"[^\w.-]+", "-", f"{entry.name}-{entry.key[:12]}")
    folder.mkdir(parents=True, exist_ok=True)
    features: Features = {space: {} for space in entry.spaces}
    for key in splits:
        split = packs.splits[key]
        path = folder / f"{re.sub(r'[^a-z]+', '-', key.lower())}-{split.digest[:12]}.safetensors"
        if not path.is_file():
            save(embed_aligned(entry, split.table, entry.spaces), path)
        for space, rows in read_tensors(path).items():
            features[space][key] = rows
    return features


# --- baselines ------------------------------------------------------------------------------------


def baseline(name: str, data: Path, cache: Path, device: torch.device) -> Entry:
    """Make one of ``BASELINES``, which are not trained for faces.

    Args:
        name: ``"pixels"``: principal components of small crops, fitted to the training images of
            LFW without labels; or ``"random-network"``: an untrained network of timm.
        data: folder with ``lfw.parquet``.
        cache: folder that keeps the components, by a hash of the images.
    """
    if name == UNTRAINED:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = timm.create_model(BACKBONE, pretrained=False, num_classes=0)
        return replace(own(name, Own(network, trained_on=()), device), key=BASELINES[name])
    path = cache / f"{BASELINES[name]}-{sha256_of(data / 'lfw.parquet')[:12]}.safetensors"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        save(_principal_axes(data / "lfw.parquet"), path)
    tensors = {key: value.to(device) for key, value in read_tensors(path).items()}

    def encode(crops: Tensor) -> Tensor:
        return (crops.flatten(1) - tensors["mean"]) @ tensors["axes"]

    trained_on = ("LFW train: principal components of the pixels, no labels",)
    entry = own(name, Own(encode, Preprocessing(size=PIXEL_SIDE), trained_on), device)
    return replace(entry, key=BASELINES[name])


def _principal_axes(pack: Path) -> dict[str, Tensor]:
    """Compute the mean (P,) and strongest directions (P, C) of the pixels of training crops."""
    preprocessing = Preprocessing(size=PIXEL_SIDE)
    crops = aligned_crops(read_pack(pack, "train"), preprocessing.template, PIXEL_SIDE)
    flat = normalize(crops.float(), preprocessing).flatten(1)
    mean = flat.mean(0)
    axes = torch.linalg.eigh((flat - mean).T @ (flat - mean))[1]
    return {"mean": mean, "axes": axes.flip(1)[:, :COMPONENTS].contiguous()}


def _digest_of(tensors: Iterable[Tensor], template: str = "") -> str:
    digest = hashlib.sha256(template.encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
