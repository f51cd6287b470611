"""Checkpoint cards: what is known about a set of weights, readable without torch.

A card is one JSON file: ``checkpoints/<model>.<tag>.json`` in the package, ``config.json`` in a
saved folder or a Hub repository. The README of a repository is written from it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from facezoo.errors import CardError, UnknownNameError

SCHEMA = 1
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
DTYPES = ("float32", "float16", "bfloat16", "int8")

# Field types that the parser checks: the type, a test of the value, the expected value in words.
Slug = Annotated[
    str, re.compile(r"[a-z0-9]+(-[a-z0-9]+)*").fullmatch, "lower-case letters, digits and hyphens"
]
WeightsName = Annotated[
    str,
    re.compile(r"\w[\w.-]*\.safetensors").fullmatch,
    "a plain file name that ends in .safetensors",
]
Sha256 = Annotated[str, re.compile(r"[0-9a-f]{64}").fullmatch, "64 lower-case hex digits"]
Commit = Annotated[str, re.compile(r"[0-9a-f]{40}").fullmatch, "a full commit of 40 hex digits"]
Repo = Annotated[str, re.compile(r"[\w.-]+/[\w.-]+").fullmatch, "'organization/name'"]
Dtype = Annotated[str, DTYPES.__contains__, f"one of {', '.join(DTYPES)}"]
Resampling = Annotated[str, "bilinear-box".__eq__, "'bilinear-box'"]
Count = Annotated[int, lambda value: value > 0, "a whole number above 0"]
Scale = Annotated[float, lambda value: value > 0, "a number above 0"]


def optional() -> Any:
    """Declare a field that a card may lack; it reads as None and None is not written."""
    return field(default=None, metadata={"optional": True})


@dataclass(frozen=True)
class Preprocessing:
    """The way from an image to a network's input; stored with the weights."""

    template: str = "arcface112"
    """Name of the alignment template, a key of ``facezoo.preprocess.templates.TEMPLATES``."""
    size: Count = 112
    """Side of the square crop, pixels."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per RGB channel, for values in [0, 1]."""
    std: tuple[Scale, Scale, Scale] = (0.5, 0.5, 0.5)
    """Per RGB channel, for values in [0, 1]."""
    resampling: Resampling = "bilinear-box"
    """Bilinear samples, box-averaged where the crop shrinks."""


@dataclass(frozen=True)
class Weights:
    """The weights file, to the byte."""

    file: WeightsName
    """Name in the package or in a saved folder."""
    sha256: Sha256
    size: Count
    """Bytes."""
    dtype: Dtype
    """Precision on disk, one of ``DTYPES``; int8 has one scale per output channel."""
    parameters: int
    """Number of learned numbers; buffers do not count."""


@dataclass(frozen=True)
class Hub:
    """The place of the weights on the Hugging Face Hub."""

    repo: Repo | None = None
    """``org/name``; None for weights that are in no repository."""
    revision: Commit | None = None
    """A full commit, so that a cached file needs no request; None before the upload."""
    file: WeightsName = "model.safetensors"


@dataclass(frozen=True)
class Licenses:
    """The licenses of the code, the weights and the training data."""

    code: str
    weights: str
    data: str


@dataclass(frozen=True)
class Training:
    """The training data, and the command that repeats the training."""

    data: tuple[str, ...]
    command: str
    commit: str
    recipe: dict[str, Any]
    seed: int | None
    hardware: str
    base: str | None = optional()
    """The checkpoint that training started from, if any."""


@dataclass(frozen=True)
class Metric:
    """One number, with the command that prints it again."""

    name: str
    value: float
    unit: str
    dataset: str
    split: str
    protocol: str
    command: str


@dataclass(frozen=True)
class Verification:
    """Threshold for ``facezoo.verify``, chosen on validation pairs."""

    threshold: float
    """Cosine between identity features; pairs above it count as the same identity."""
    false_match_rate: float
    """Share of pairs of two identities above the threshold, in [0, 1]."""
    false_non_match_rate: float
    """Share of pairs of one identity that are not above the threshold, in [0, 1]."""
    dataset: str
    protocol: str


@dataclass(frozen=True, repr=False)
class Card:
    """The card of a checkpoint.

    Examples:
        >>> card = facezoo.info("adv3d")
        >>> card.name, card.licenses.weights
        ('adv3d.ict-neutral', 'mit')
    """

    model: Slug
    """The family, a key of ``families.FAMILIES``, or ``face-detector``."""
    tag: Slug
    """The part of the name after the dot, such as ``ict``."""
    default: bool
    """True if the bare model name means this checkpoint."""
    architecture: dict[str, Any]
    """Keyword arguments of the model's class."""
    preprocessing: Preprocessing | None
    """None for a mesh model, which takes no image."""
    labels: tuple[str, ...]
    """Expression classes in the order of the logits; empty for a model without classes."""
    weights: Weights
    """Name, hash, size and precision of the weights file."""
    hub: Hub
    """The place of the weights on the Hugging Face Hub."""
    licenses: Licenses
    """Licenses of the code, the weights and the training data."""
    training: Training
    """The training data, and the command that repeats the training."""
    metrics: tuple[Metric, ...]
    """Measured numbers, each with the command that prints it again."""
    limits: tuple[str, ...]
    """Known weaknesses, one sentence or more each."""
    intended_use: str
    """Purpose of the checkpoint, and uses that it is not meant for."""
    citation: str
    """The paper, as BibTeX."""
    verification: Verification | None = field(default=None, metadata={"optional": True})
    """None for a checkpoint without identity features, or before it is measured."""

    @property
    def name(self) -> str:
        """``model.tag``, the name that ``facezoo.load`` takes."""
        return f"{self.model}.{self.tag}"

    @classmethod
    def load(cls, path: str | Path) -> Card:
        """Read a card from a JSON file.

        Raises:
            CardError: if the file is not JSON, or a field is unknown, missing or malformed.
            OSError: if the file cannot be read.
        """
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        try:
            mapping = json.loads(text)
            json.dumps(mapping, allow_nan=False)  # Python reads NaN and 1e999, JSON has neither
        except (ValueError, RecursionError) as error:
            raise CardError(f"{path}: not a card: {error}; expected a JSON object") from error
        return cls.parse(mapping, source=str(path))

    @classmethod
    def parse(cls, mapping: Any, *, source: str = "card") -> Card:
        """Build a card from parsed JSON; every field must be present and of its type.

        Args:
            mapping: the JSON object.
            source: origin of the object, for messages.

        Raises:
            CardError: if a field is unknown, missing or malformed; the message names it.
        """
        try:
            if not isinstance(mapping, dict):
                raise CardError(f"expected a JSON object, got {type(mapping).__name__}")
            values = dict(mapping)
            if (schema := values.pop("schema", None)) != SCHEMA:
                raise CardError(
                    f"schema must be {SCHEMA}, got {schema!r}; "
                    "a card of a newer schema needs a newer facezoo"
                )
            card: Card = _parse_fields(cls, values, "")
        except CardError as error:
            raise CardError(f"{source}: {error}") from None
        return card

    def to_json(self) -> str:
        """Write the card as JSON text; ``Card.parse`` reads it back to an equal card.

        Scalars and arrays of numpy and torch become plain numbers and lists.
        """
        mapping = {"schema": SCHEMA, **_mapping(self)}
        text = json.dumps(
            mapping,
            indent=2,
            ensure_ascii=False,
            allow_nan=False,
            default=lambda value: value.tolist(),
        )
        return text + "\n"

    def to_markdown(self, picture: str | None = None) -> str:
        """Write the README of the Hub repository: metadata, then the card in sections.

        Args:
            picture: file name in the repository of an example image; None for none.
        """
        from facezoo.hub import card_text

        return card_text.readme(self, picture)

    def summary(self, full: bool = False) -> str:
        """Describe the checkpoint in one screen of text.

        Args:
            full: print every metric, every limit in full, and the origin of the weights.
        """
        from facezoo.hub import card_text

        return card_text.summary(self, full)

    def __repr__(self) -> str:
        return self.summary()

    __str__ = __repr__


def bundled_cards() -> dict[str, Card]:
    """Return the cards in the package by checkpoint name, in alphabetical order.

    Raises:
        CardError: if a card is malformed.
    """
    return dict(_cards_in(CHECKPOINTS))


def packaged_file(card: Card) -> Path:
    """Return the path of a checkpoint's weights in the package; the file may be missing."""
    return CHECKPOINTS / card.weights.file


def card_named(name: str, models: Iterable[str] = ()) -> Card:
    """Find the bundled card of a checkpoint, or of a model's default checkpoint.

    Args:
        name: ``"ipd-fer.ferplus-lfw"`` or ``"ipd-fer"``.
        models: existing models, with or without a checkpoint; for the message.

    Raises:
        UnknownNameError: if there is no such card; the message lists near matches.
    """
    cards = bundled_cards()
    if name in cards:
        return cards[name]
    candidates = [card for card in cards.values() if card.model == name]
    if candidates:
        return next((card for card in candidates if card.default), candidates[0])
    if name in models:
        raise UnknownNameError(
            f"the model {name!r} has no checkpoint yet; "
            f"facezoo.load({name!r}, pretrained=False) builds it with random weights"
        )
    names = sorted({*cards, *models, *(card.model for card in cards.values())})
    near = " or ".join(get_close_matches(name, names) or names)
    raise UnknownNameError(f"no model or checkpoint named {name!r}; did you mean {near}?")


@lru_cache(maxsize=8)
def _cards_in(folder: Path) -> dict[str, Card]:
    cards = (Card.load(path) for path in sorted(folder.glob("*.json")))
    return {card.name: card for card in cards}


# Parsing. The dataclasses above are the schema.


@lru_cache
def _schema(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Return the type of each field, and whether a card may lack it."""
    types = get_type_hints(kind, include_extras=True)
    return {f.name: (types[f.name], "optional" in f.metadata) for f in fields(kind)}


def _parse_fields(kind: Any, mapping: dict[str, Any], where: str) -> Any:
    schema, prefix = _schema(kind), f"{where}." if where else ""
    if unknown := [prefix + key for key in mapping if key not in schema]:
        raise CardError(f"unknown field {', '.join(unknown)}; expected {', '.join(schema)}")
    missing = [prefix + key for key in schema if key not in mapping and not schema[key][1]]
    if missing:
        raise CardError(f"missing field {', '.join(missing)}")
    values = {key: _parse(schema[key][0], value, prefix + key) for key, value in mapping.items()}
    return kind(**values)


def _parse(kind: Any, value: Any, where: str) -> Any:
    """Return ``value`` as the type ``kind``; raise CardError naming ``where`` if it is not."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        base, check, expected = args
        parsed = _parse(base, value, where)
        if not check(parsed):
            raise CardError(f"{where} must be {expected}, got {value!r}")
        return parsed
    if origin in (Union, UnionType):
        return None if value is None else _parse(args[0], value, where)
    if is_dataclass(kind) and isinstance(value, dict):
        return _parse_fields(kind, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = args[:1] * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            items = enumerate(zip(kinds, value, strict=True))
            return tuple(_parse(item, entry, f"{where}[{i}]") for i, (item, entry) in items)
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if type(value) is (origin or kind):
        if origin is dict:
            try:
                json.dumps(value, allow_nan=False)
            except ValueError:
                raise CardError(f"{where} must hold finite numbers only, got {value}") from None
        return value
    names = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}
    expected = f"a list of {len(args)}" if origin is tuple and args[-1] is not ... else "a list"
    kinds_in_words = names.get(kind, expected if origin is tuple else "a JSON object")
    raise CardError(f"{where} must be {kinds_in_words}, got {value!r}")


def _mapping(value: Any) -> Any:
    """Convert dataclasses to dicts; leave out optional fields that are None."""
    if is_dataclass(value):
        schema: Any = _schema(type(value))  # type: ignore[arg-type]
        items = ((name, getattr(value, name), rare) for name, (_, rare) in schema.items())
        return {name: _mapping(item) for name, item, rare in items if item is not None or not rare}
    return [_mapping(item) for item in value] if isinstance(value, tuple) else value
