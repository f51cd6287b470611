"""Checkpoint cards: everything that is known about a set of weights, read without torch.

A card is JSON. The same one stands in the package (``checkpoints/<model>.<tag>.json``), is the
``config.json`` of the repository on the Hub and of a saved folder, and makes the README there.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from facezoo.errors import CardError, UnknownNameError

SCHEMA = 1
CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
DTYPES = ("float32", "float16", "bfloat16", "int8")

# Identifiers that the Hub accepts as `license`; anything else has to be `other` with a name.
# https://huggingface.co/docs/hub/repositories-licenses
# fmt: off
HUB_LICENSES = frozenset((
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "bsl-1.0",
    "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0",
    "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0",
    "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cdla-permissive-1.0", "cdla-permissive-2.0", "cdla-sharing-1.0", "c-uda", "agpl-3.0",
    "gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "mpl-2.0", "epl-1.0", "epl-2.0", "eupl-1.1",
    "eupl-1.2", "isc", "ms-pl", "odc-by", "odbl", "openrail", "openrail++", "osl-3.0", "pddl",
    "unlicense", "wtfpl", "zlib",
))
# fmt: on


@dataclass(frozen=True)
class Preprocessing:
    """How a photograph becomes a network's input; stored with the weights."""

    template: str = "arcface112"
    """Name of the alignment template, see ``facezoo.preprocess.templates``."""
    size: int = 112
    """Side of the square crop, pixels."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per RGB channel, of values in [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Per RGB channel, of values in [0, 1]."""
    resampling: str = "bilinear-box"
    """The only resampling there is: bilinear samples, box-averaged where the crop shrinks."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise CardError(f"preprocessing.size must be 1 pixel or more, got {self.size}")
        if min(self.std) <= 0:
            raise CardError(f"preprocessing.std must be above 0, got {self.std}")
        if self.resampling != "bilinear-box":
            raise CardError(
                f"preprocessing.resampling must be 'bilinear-box', got {self.resampling!r}"
            )


@dataclass(frozen=True)
class Weights:
    """The weights file: what it must be, to the byte."""

    file: str
    """Name in the package or in a saved folder."""
    sha256: str
    size: int
    """Bytes."""
    dtype: str
    """Precision on disk, one of ``DTYPES``; int8 stands for one scale per output channel."""
    parameters: int
    """How many numbers the model has to learn; buffers are not counted."""

    def __post_init__(self) -> None:
        _check_file("weights.file", self.file)
        _check_pattern("weights.sha256", self.sha256, r"[0-9a-f]{64}", "64 lower-case hex digits")
        if self.size <= 0:
            raise CardError(f"weights.size must be a number of bytes above 0, got {self.size}")
        if self.dtype not in DTYPES:
            raise CardError(f"weights.dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")


@dataclass(frozen=True)
class Hub:
    """Where the weights stand on the Hugging Face Hub."""

    repo: str | None = None
    """``org/name``; None for weights that are in no repository."""
    revision: str | None = None
    """A full commit, so that a cached file needs no request; None while it is not on the Hub."""
    file: str = "model.safetensors"

    def __post_init__(self) -> None:
        if self.repo is not None:
            _check_pattern("hub.repo", self.repo, r"[\w.-]+/[\w.-]+", "'organization/name'")
        if self.revision is not None:
            wanted = "a full commit of 40 lower-case hex digits, or null"
            _check_pattern("hub.revision", self.revision, r"[0-9a-f]{40}", wanted)
        _check_file("hub.file", self.file)


@dataclass(frozen=True)
class Licenses:
    """Three questions with three answers: may I use the code, the weights, the training data?"""

    code: str
    weights: str
    data: str


@dataclass(frozen=True)
class Training:
    """What the weights were trained on, and how to do it again."""

    data: tuple[str, ...]
    command: str
    commit: str
    recipe: dict[str, Any]
    seed: int | None
    hardware: str
    base: str | None = field(default=None, metadata={"optional": True})
    """The checkpoint that training started from, if from one."""


@dataclass(frozen=True)
class Metric:
    """One number, with everything needed to print it again."""

    name: str
    value: float
    unit: str
    dataset: str
    split: str
    protocol: str
    command: str


@dataclass(frozen=True, repr=False)
class Card:
    """A checkpoint's card."""

    model: str
    """The family, a key of ``families.FAMILIES``, or ``face-detector``."""
    tag: str
    default: bool
    """Whether the bare model name means this checkpoint."""
    architecture: dict[str, Any]
    """Keyword arguments of the model's class."""
    preprocessing: Preprocessing | None
    """None for a model of meshes, which takes no photograph."""
    labels: tuple[str, ...]
    """Expression classes in the order of the logits; empty for a model without classes."""
    weights: Weights
    hub: Hub
    licenses: Licenses
    training: Training
    metrics: tuple[Metric, ...]
    limits: tuple[str, ...]
    intended_use: str
    citation: str

    def __post_init__(self) -> None:
        for key in ("model", "tag"):
            wanted = "lower-case letters, digits and hyphens"
            _check_pattern(key, getattr(self, key), r"[a-z0-9]+(-[a-z0-9]+)*", wanted)

    @property
    def name(self) -> str:
        """``model.tag``, by which ``facezoo.load`` knows the checkpoint."""
        return f"{self.model}.{self.tag}"

    @classmethod
    def load(cls, path: str | Path) -> Card:
        """Read a card.

        Raises:
            CardError: if the file is not JSON, or a field is unknown, missing or malformed.
            OSError: if the file cannot be read.
        """
        text = Path(path).read_text(encoding="utf-8", errors="replace")
        try:
            mapping = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise CardError(f"{path}: not a card: {error}; wanted a JSON object") from error
        return cls.parse(mapping, source=str(path))

    @classmethod
    def parse(cls, mapping: Any, *, source: str = "card") -> Card:
        """Build a card from parsed JSON, strictly.

        Args:
            mapping: the JSON object.
            source: where it came from, for messages.

        Raises:
            CardError: if a field is unknown, missing or malformed; the message names it.
        """
        try:
            if not isinstance(mapping, dict):
                raise CardError(f"the card must be a JSON object, got {_kind_of(mapping)}")
            if mapping.get("schema") != SCHEMA:
                raise CardError(
                    f"schema must be {SCHEMA}, got {mapping.get('schema')!r}; "
                    "a card of a newer schema needs a newer facezoo"
                )
            rest = {key: value for key, value in mapping.items() if key != "schema"}
            return _parse_dataclass(cls, rest, "")
        except CardError as error:
            raise CardError(f"{source}: {error}") from None

    def to_json(self) -> str:
        """The card as JSON text; ``Card.parse`` reads it back to an equal card."""
        mapping = {"schema": SCHEMA, **asdict(self)}
        if self.training.base is None:
            del mapping["training"]["base"]
        return json.dumps(mapping, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The README of the Hub repository: metadata, then what a reader wants to know."""
        return _markdown(self)

    def __repr__(self) -> str:
        megabytes = self.weights.size / 1e6
        lines = [
            f"{self.name}{' (default)' if self.default else ''}",
            f"  size      {self.weights.parameters / 1e6:.1f} M parameters, {megabytes:.1f} MB"
            f" in {self.weights.dtype}",
            f"  input     {_input_line(self.preprocessing)}",
            f"  licences  code {self.licenses.code}; weights {self.licenses.weights};"
            f" data {self.licenses.data}",
            f"  trained   on {', '.join(self.training.data) or 'nothing'}",
            *(f"  metric    {_metric_line(metric)}" for metric in self.metrics),
            *([] if self.metrics else ["  metric    none measured"]),
            *(f"  limit     {limit}" for limit in self.limits),
        ]
        return "\n".join(lines)

    __str__ = __repr__


def bundled_cards() -> dict[str, Card]:
    """The cards in the package by checkpoint name, in alphabetical order.

    Raises:
        CardError: if one is malformed, misnamed, or two are the default of one model.
    """
    return dict(_cards_in(CHECKPOINTS))


def packaged_file(card: Card) -> Path:
    """Where the package would hold a checkpoint's weights; the file need not be there."""
    return CHECKPOINTS / card.weights.file


def card_named(name: str, models: Iterable[str] = ()) -> Card:
    """The bundled card of a checkpoint, or of a model's default checkpoint.

    Args:
        name: ``"ipd-fer.ferplus-lfw"`` or ``"ipd-fer"``.
        models: models that exist, with or without a checkpoint; for the message.

    Raises:
        UnknownNameError: if there is none; the message lists near matches.
    """
    cards = bundled_cards()
    if name in cards:
        return cards[name]
    of_model = [card for card in cards.values() if card.model == name]
    defaults = [card for card in of_model if card.default] or of_model[:1]
    if defaults:
        return defaults[0]
    if name in models:
        raise UnknownNameError(
            f"the model {name!r} has no checkpoint yet; "
            f"facezoo.load({name!r}, pretrained=False) builds it with random weights"
        )
    known = sorted({*cards, *models, *(card.model for card in cards.values())})
    near = get_close_matches(name, known) or known
    hint = f"did you mean {' or '.join(near)}?" if near else "this installation holds no card"
    raise UnknownNameError(f"no model or checkpoint named {name!r}; {hint}")


@lru_cache(maxsize=8)
def _cards_in(folder: Path) -> dict[str, Card]:
    cards: dict[str, Card] = {}
    defaults: dict[str, str] = {}
    for path in sorted(folder.glob("*.json")):
        card = Card.load(path)
        if path.stem != card.name:
            raise CardError(f"{path}: the file must be named {card.name}.json after model and tag")
        if card.weights.file != f"{card.name}.safetensors":
            wanted = f"{card.name}.safetensors, got {card.weights.file}"
            raise CardError(f"{path}: weights.file must be {wanted}")
        if card.default and defaults.setdefault(card.model, card.name) != card.name:
            other = defaults[card.model]
            raise CardError(f"{path}: default must be false, since {other} is the default already")
        cards[card.name] = card
    return cards


# Parsing. The dataclasses above are the schema: every field must be there and of its type.


def _parse_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise CardError(f"{where} must be a JSON object, got {_kind_of(value)}")
    prefix = f"{where}." if where else ""
    known = {item.name: item for item in fields(kind)}
    unknown = [f"{prefix}{key}" for key in value if key not in known]
    if unknown:
        raise CardError(f"unknown field {', '.join(unknown)}; wanted {', '.join(known)}")
    hints = get_type_hints(kind)
    missing = [
        f"{prefix}{key} ({_kind_name(hints[key])})"
        for key, item in known.items()
        if key not in value and not item.metadata.get("optional")
    ]
    if missing:
        raise CardError(f"missing field {', '.join(missing)}")
    return kind(**{key: _parse(hints[key], item, prefix + key) for key, item in value.items()})


def _parse(kind: Any, value: Any, where: str) -> Any:
    """``value`` as the type ``kind``, or a CardError naming ``where``."""
    if is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return None if value is None else _parse(args[0], value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (args[0],) * len(value) if args[1] is Ellipsis else args
        if len(kinds) == len(value):
            items = enumerate(zip(kinds, value, strict=True))
            return tuple(_parse(item, entry, f"{where}[{i}]") for i, (item, entry) in items)
    if origin is dict and isinstance(value, dict):
        return value
    if kind is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if kind in (str, int, bool) and type(value) is kind:
        return value
    raise CardError(f"{where} must be {_kind_name(kind)}, got {value!r}")


def _kind_name(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return f"{_kind_name(args[0])} or null"
    if origin is tuple and args[1] is Ellipsis:
        return f"a list, each {_kind_name(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)}, each {_kind_name(args[0])}"
    names = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}
    return names.get(kind, "a JSON object")


def _kind_of(value: Any) -> str:
    names = {list: "a list", dict: "a JSON object", str: "text", type(None): "null"}
    return names.get(type(value), repr(value))


def _finite(text: str) -> float:
    """A number that can be written again; Python reads 1e999 as infinity."""
    return float(text) if math.isfinite(float(text)) else _refuse_constant(text)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON knows")


def _check_pattern(where: str, value: str, pattern: str, wanted: str) -> None:
    if not re.fullmatch(pattern, value):
        raise CardError(f"{where} must be {wanted}, got {value!r}")


def _check_file(where: str, name: str) -> None:
    wanted = "a plain file name ending in .safetensors"
    _check_pattern(where, name, r"\w[\w.-]*\.safetensors", wanted)


# The README.


def _input_line(preprocessing: Preprocessing | None) -> str:
    if preprocessing is None:
        return "meshes or points, with units"
    return f"{preprocessing.template}, {preprocessing.size} px"


def _input_text(preprocessing: Preprocessing | None) -> str:
    if preprocessing is None:
        return "Face meshes or clouds of points with stated units, aligned to the model's template."
    return (
        f"RGB face crops of {preprocessing.size} pixels, aligned to the "
        f"`{preprocessing.template}` template."
    )


def _metric_line(metric: Metric) -> str:
    unit = metric.unit if metric.unit in ("", "%") else f" {metric.unit}"
    where = " ".join(part for part in (metric.dataset, metric.split) if part)
    return f"{metric.name} {metric.value:g}{unit} ({where})"


def _metadata(card: Card) -> str:
    """The YAML header of the README, as the Hub wants it."""
    from huggingface_hub import EvalResult, ModelCardData

    known = card.licenses.weights.lower()
    task = "image-classification" if card.labels else "image-feature-extraction"
    if card.model == "face-detector":
        task = "object-detection"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=re.sub(r"[^a-z0-9]+", "-", metric.dataset.lower()).strip("-"),
            dataset_name=metric.dataset,
            dataset_split=metric.split,
            metric_type=re.sub(r"[^a-z0-9]+", "-", metric.name.lower()).strip("-"),
            metric_name=f"{metric.name}, {metric.unit}" if metric.unit else metric.name,
            metric_value=metric.value,
        )
        for metric in card.metrics
    ]
    return ModelCardData(
        library_name="facezoo",
        license=known if known in HUB_LICENSES else "other",
        license_name=None if known in HUB_LICENSES else card.licenses.weights,
        pipeline_tag=task,
        tags=["facezoo", card.model, "face", "disentanglement"],
        model_name=card.name if results else None,
        eval_results=results or None,
    ).to_yaml()


def _markdown(card: Card) -> str:
    source = f"hf-hub:{card.hub.repo}" if card.hub.repo else "path/to/this/folder"
    metrics = [
        "| metric | value | dataset | split | protocol | command |",
        "|---|---|---|---|---|---|",
        *(
            f"| {m.name} | {m.value:g} {m.unit} | {m.dataset} | {m.split} | {m.protocol} "
            f"| `{m.command}` |"
            for m in card.metrics
        ),
    ]
    training = {
        "data": ", ".join(card.training.data) or "none",
        "started from": card.training.base,
        "command": f"`{card.training.command}`" if card.training.command else None,
        "commit": card.training.commit,
        "seed": card.training.seed,
        "hardware": card.training.hardware,
    }
    facts = [f"- {key}: {value}" for key, value in training.items() if value not in (None, "")]
    recipe = json.dumps(card.training.recipe, indent=2, ensure_ascii=False)
    sections = {
        "Use": f'```python\nimport facezoo\n\nmodel = facezoo.load("{source}")\n```',
        "Intended use": card.intended_use,
        "Limits": "\n".join(f"- {limit}" for limit in card.limits) or "None on record.",
        "Metrics": "\n".join(metrics) if card.metrics else "None measured.",
        "Training": "\n".join(facts)
        + (f"\n\n```json\n{recipe}\n```" if card.training.recipe else ""),
        "Licences": f"- code: {card.licenses.code}\n- weights: {card.licenses.weights}\n"
        f"- training data: {card.licenses.data}",
        "Input": _input_text(card.preprocessing)
        + (f" Classes: {', '.join(card.labels)}." if card.labels else ""),
        "Weights": f"{card.weights.parameters} parameters in {card.weights.dtype}, "
        f"{card.weights.size} bytes, SHA-256 `{card.weights.sha256}`.",
        "Citation": f"```bibtex\n{card.citation}\n```" if card.citation else "",
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return f"---\n{_metadata(card).strip()}\n---\n\n# {card.name}\n\n{body}\n"
