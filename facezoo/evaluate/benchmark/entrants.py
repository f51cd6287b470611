"""What takes part in the benchmark: checkpoints, networks of your own, and two references."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from facezoo.data.packs import aligned_crops, read_pack
from facezoo.hub.card import Card, Preprocessing, bundled_cards
from facezoo.hub.families import FAMILIES, model_class
from facezoo.hub.tensors import read_tensors, save, sha256_of
from facezoo.models.base import FaceModel
from facezoo.models.mesh_base import MeshModel
from facezoo.models.pretrained import PUBLISHED
from facezoo.preprocess.alignment import normalize
from facezoo.registry import info

BOTH = ("expression", "identity")
"""Spaces of a model that takes faces apart."""
ONE = ("features",)
"""The space of what gives one row per face, which stands for both."""
PIXELS, UNTRAINED = "pixels", "random-network"
COMPONENTS = 256
PIXEL_SIDE = 32
BACKBONE = "resnet18"
REFERENCES = {
    PIXELS: f"{COMPONENTS}-components-of-{PIXEL_SIDE}-pixels",
    UNTRAINED: f"{BACKBONE}-seed-0",
}
"""The key of each, which does not depend on the machine as what it gives does."""

Encode = Callable[[Tensor], Tensor | dict[str, Tensor]]
"""From normalised crops (B, 3, S, S) to features (B, D), or to such for each of ``BOTH``."""


@dataclass(frozen=True)
class Own:
    """A representation of faces that is none of this package's checkpoints."""

    encode: Encode
    """From normalised crops (B, 3, S, S) to features (B, D), or ``{"expression": (B, D),
    "identity": (B, D)}``; called in inference mode."""
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    """How the crops are prepared."""
    trained_on: tuple[str, ...] | None = None
    """The data it has learnt from, a text each, as in a card; None where that is not known."""


@dataclass(frozen=True)
class Entrant:
    """One line of the benchmark: what it is and how its features are had."""

    name: str
    key: str
    """Changes whenever the features would, hexadecimal."""
    spaces: tuple[str, ...]
    """``BOTH`` or ``ONE``."""
    preprocessing: Preprocessing
    device: torch.device
    encode: Encode
    trained_on: tuple[str, ...] | None
    parameters: int | None = None
    model: FaceModel | None = None
    card: Card | None = None

    @torch.inference_mode()
    def run(self, crops: Tensor, wanted: Sequence[str], batch_size: int = 64) -> dict[str, Tensor]:
        """Features by space, float32, of normalised crops (F, 3, S, S); see ``Encoder``."""
        parts = [self._named(self.encode(batch)) for batch in crops.split(batch_size)]
        return {name: torch.cat([part[name].float() for part in parts]) for name in wanted}

    def _named(self, given: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        return {ONE[0]: given} if isinstance(given, Tensor) else given

    @property
    def family(self) -> str:
        """Name of the model family, or its own name where there is none."""
        return self.card.model if self.card else self.name


def photograph_checkpoints() -> list[str]:
    """Bundled checkpoints of the families that read expression and identity from photographs."""
    return [name for name, card in bundled_cards().items() if _reads_photographs(card)]


def mesh_checkpoints() -> list[str]:
    """Bundled checkpoints of the families that take meshes."""
    cards = bundled_cards().items()
    return [n for n, card in cards if card.model in FAMILIES and takes_meshes(card)]


def takes_meshes(card: Card) -> bool:
    """Whether a checkpoint is one of meshes."""
    return issubclass(model_class(card.model), MeshModel)


def _reads_photographs(card: Card) -> bool:
    return card.model in FAMILIES and not takes_meshes(card)


def checkpoint(name: str, model: FaceModel) -> Entrant:
    """A loaded checkpoint as an entrant.

    Args:
        name: what it is called in the tables.
        model: with its card; a model that gives one of the two features enters with that one.

    Raises:
        ValueError: if it gives neither expression nor identity features.
    """
    able = [space for space in BOTH if f"encode_{space}" in model.capabilities()]
    if not able:
        raise ValueError(
            f"{name} gives neither expression nor identity features; leave it out of the benchmark"
        )

    def encode(crops: Tensor) -> dict[str, Tensor]:
        found = model.run(crops, [f"encode_{space}" for space in able])
        return {space: found[f"encode_{space}"] for space in able}

    card = model.card
    return Entrant(
        name=name,
        key=card.weights.sha256 if card else _digest_of(model.state_dict().values()),
        spaces=tuple(able),
        preprocessing=model.preprocessing,
        device=model.device,
        encode=encode,
        trained_on=learnt_from(card) if card and card.tag != PUBLISHED else None,
        parameters=card.weights.parameters if card else sum(p.numel() for p in model.parameters()),
        model=model,
        card=card,
    )


def own(name: str, given: Own | Encode, device: torch.device) -> Entrant:
    """A callable as an entrant; its key is made of what it gives for fixed noise, and its template.

    Raises:
        ValueError: if it gives neither features (B, D) nor a dictionary of the two.
    """
    given = given if isinstance(given, Own) else Own(given)
    if isinstance(given.encode, nn.Module):
        given.encode.eval().to(device)
    size = given.preprocessing.size
    noise = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found = given.encode(normalize(255 * noise.to(device), given.preprocessing))
    parts = found if isinstance(found, dict) else {ONE[0]: found}
    if set(parts) not in ({*BOTH}, {*ONE}) or any(
        not isinstance(p, Tensor) or p.ndim != 2 or len(p) != len(noise) for p in parts.values()
    ):
        shapes = {k: tuple(getattr(p, "shape", ())) for k, p in parts.items()}
        raise ValueError(
            f"{name} must give features (B, D), or a dictionary of such for expression and "
            f"identity, got {shapes} for 4 crops"
        )
    module = given.encode if isinstance(given.encode, nn.Module) else None
    return Entrant(
        name=name,
        key=_digest_of([*parts.values()], given.preprocessing.template),
        spaces=tuple(space for space in (*BOTH, *ONE) if space in parts),
        preprocessing=given.preprocessing,
        device=device,
        encode=given.encode,
        trained_on=given.trained_on,
        parameters=sum(p.numel() for p in module.parameters()) if module else None,
    )


def learnt_from(card: Card) -> tuple[str, ...]:
    """The data in a card, and those of the checkpoints that it names as teachers or beginnings."""
    found: dict[str, None] = {}
    _collect(card, "", found, set())
    return tuple(found)


def _collect(card: Card, by: str, found: dict[str, None], seen: set[str]) -> None:
    seen.add(card.model)
    texts = [*card.training.data, *filter(None, [card.training.base])]
    found |= dict.fromkeys(f"{text}{by}" for text in texts)
    known = {c.model: c for c in bundled_cards().values() if c.model not in seen}
    for other in known.values():
        named = any(other.model in text for text in texts)
        if named and other.model not in seen:
            _collect(info(other.model), f", by way of {other.model}", found, seen)


# --- references -----------------------------------------------------------------------------------


def reference(name: str, data: Path, cache: Path, device: torch.device) -> Entrant:
    """One of ``REFERENCES``: what needs no learning, so that the other numbers mean something.

    Args:
        name: ``"pixels"``: the principal components of small crops, fitted to the training
            photographs of LFW without labels; or ``"random-network"``: as it comes from timm,
            seeded and untrained.
        data: folder with ``lfw.parquet``.
        cache: folder that keeps the components, by a hash of the photographs.
        device: where to run.
    """
    if name == UNTRAINED:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = timm.create_model(BACKBONE, pretrained=False, num_classes=0)
        return replace(own(name, Own(network, trained_on=()), device), key=REFERENCES[name])
    path = cache / f"{REFERENCES[name]}-{sha256_of(data / 'lfw.parquet')[:12]}.safetensors"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        save(_principal_axes(data / "lfw.parquet"), path)
    tensors = {key: value.to(device) for key, value in read_tensors(path).items()}

    def encode(crops: Tensor) -> Tensor:
        return (crops.flatten(1) - tensors["mean"]) @ tensors["axes"]

    said = ("LFW train: principal components of the pixels, no labels",)
    entrant = own(name, Own(encode, Preprocessing(size=PIXEL_SIDE), said), device)
    return replace(entrant, key=REFERENCES[name])


def _principal_axes(pack: Path) -> dict[str, Tensor]:
    """Mean (P,) and strongest directions (P, C) of the pixels of a pack's training crops."""
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
