"""The benchmark: measure what a results file lacks, and write it there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from facezoo.evaluate.benchmark import encoders
from facezoo.evaluate.benchmark.encoders import (
    BASELINES,
    PIXELS,
    UNTRAINED,
    Encode,
    Entry,
    Features,
    Own,
    features_of,
)
from facezoo.evaluate.benchmark.report import contamination_of, markdown
from facezoo.evaluate.benchmark.scores import Numbers, score_features
from facezoo.evaluate.benchmark.swap import EDITS, judge_swaps, swaps, transfer_of
from facezoo.evaluate.ict import as_metrics
from facezoo.evaluate.ict import benchmark as measure_meshes
from facezoo.evaluate.packs import LFW_TRAIN, Packs
from facezoo.hub.card import Card, bundled_cards
from facezoo.hub.names import resolve
from facezoo.models.identity_removal import remove_identity
from facezoo.preprocess.alignment import normalize
from facezoo.registry import best_device, load

FILE = "benchmark.json"
ICT = "ict_face.npz"
"""File that a folder with the meshes of ICT-3D has."""
TIMED = 32
"""Crops in a timed batch."""
ROUNDS = 5

Section = tuple[Numbers, str, Callable[[], Numbers]]
"""A dictionary, the key in it, and the function that measures the value."""


@dataclass(frozen=True)
class Results:
    """Content of a results file."""

    content: dict[str, Any]
    path: Path

    def __str__(self) -> str:
        return markdown(self.content)

    def _repr_markdown_(self) -> str:
        return str(self)


def benchmark(
    models: str | Iterable[str] = (),
    *,
    data: str | Path,
    out: str | Path,
    own: Mapping[str, Own | Encode] | None = None,
    results: str | Path | None = None,
    device: str | torch.device | None = None,
) -> Results:
    """Measure checkpoints and encoders of your own by one set of protocols.

    Two baselines, ``pixels`` and ``random-network``, are always in the tables. Features are kept in
    ``out`` and every number is written when it is measured, so the same call resumes an interrupted
    run. Lines of other models in the file stay.

    Args:
        models: names that ``facezoo.load`` takes, one or several; empty for every bundled
            checkpoint, unless ``own`` is there.
        data: folder with ``ferplus.parquet``, ``lfw.parquet``, ``lfw_pairs_val.csv`` and
            ``london_expr.parquet``; for models of meshes, with the files of ICT-3D.
        out: folder for features, and for results unless ``results`` names another file.
        own: by name, callables from crops (B, 3, 112, 112), RGB in [-1, 1], to features (B, D), or
            ``Own`` for other crops. New names and changed features are measured.
        results: JSON file to add to; None for ``benchmark.json`` in ``out``. The tables are written
            next to it in markdown.
        device: where to run; None for the best available.

    Returns:
        The content of the file; ``print`` shows the tables.

    Raises:
        FileNotFoundError: if data are missing.
        UnknownNameError: if there is no such model.
        ValueError: if the file ends in ``.md`` or holds numbers of other data, or a callable
            returns no features or has the name of another line.

    Examples:
        >>> report = facezoo.benchmark("ipd-fer", data="DATA", out="runs")  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    path = Path(results) if results else Path(out) / FILE
    if path.suffix == ".md":
        raise ValueError(f"the tables are written to {path}; name a .json file for the results")
    run = _Run(Path(data), Path(out), path, best_device(device))
    cards = _select([models] if isinstance(models, str) else list(models), own or {}, Path(data))
    meshes = {name: card for name, card in cards.items() if encoders.takes_meshes(card)}
    for name in (name for name in cards if name not in meshes):
        run.measure(run.checkpoint(name))
    for name, encoder in (own or {}).items():
        run.measure(encoders.own(name, encoder, run.device))
    for name in (name for name in BASELINES if not run.is_complete(name)):
        run.measure(run.baseline(name))
    for name, card in meshes.items():
        run.measure_meshes(name, card)
    run.write()
    return Results(run.content, path)


def _select(names: list[str], own: Mapping[str, Any], data: Path) -> dict[str, Card]:
    """Resolve all names before anything is measured; bundled checkpoints get their full name."""
    if not names and not own:
        names = encoders.bundled_checkpoints(meshes=False)
        if (data / ICT).is_file():
            names += encoders.bundled_checkpoints(meshes=True)
    by_name = {name: resolve(name).card for name in names}
    cards = {c.name if n in (c.name, c.model) else n: c for n, c in by_name.items()}
    if taken := [name for name in own if name in {*cards, *BASELINES, *bundled_cards()}]:
        raise ValueError(f"{taken[0]} is the name of another line; choose another name")
    return cards


class _Run:
    """One run: the entries it has loaded, and the file it fills."""

    def __init__(self, data: Path, out: Path, path: Path, device: torch.device) -> None:
        self.data, self.path, self.device = data, path, device
        self.cache = out / "features"
        self.content: dict[str, Any] = {"data": {}, "models": {}, "meshes": {}}
        if path.is_file():
            self.content |= _read_results(path)
        self._entries: dict[str, Entry] = {}
        self._features: dict[str, Features] = {}

    @cached_property
    def packs(self) -> Packs:
        packs = Packs.read(self.data)
        old, new = self.content["data"], packs.description()
        if old and old != new:
            raise ValueError(
                f"{self.path} holds numbers of {old}, and {self.data} has {new}; name another "
                "file for the results"
            )
        return packs

    # --- entries

    def checkpoint(self, name: str) -> Entry:
        if name not in self._entries:
            self._entries[name] = encoders.checkpoint(name, load(name, device=self.device))
        return self._entries[name]

    def baseline(self, name: str) -> Entry:
        if name not in self._entries:
            entry = encoders.baseline(name, self.data, self.cache, self.device)
            self._entries[name] = entry
        return self._entries[name]

    def judges(self, entry: Entry) -> Iterator[str]:
        """Name the default checkpoints of other families, and pixels."""
        cards = bundled_cards()
        for name in encoders.bundled_checkpoints(meshes=False):
            if cards[name].default and cards[name].model != entry.family:
                yield name
        yield PIXELS

    def features(self, entry: Entry) -> Features:
        if entry.name not in self._features:
            self._features[entry.name] = features_of(entry, self.packs, self.cache)
        return self._features[entry.name]

    # --- measurements

    def is_complete(self, name: str) -> bool:
        """Return True if the file has all numbers of a baseline."""
        line = self.content["models"].get(name, {})
        return line.get("key") == BASELINES[name] and "removal" in line

    def measure(self, entry: Entry) -> None:
        """Measure what the line of an entry lacks."""
        line, about = self.content["models"].get(entry.name), _describe(entry)
        if line is None or line["key"] != entry.key:
            line = self.content["models"][entry.name] = about
        line |= {key: value for key, value in about.items() if key not in ("scores", "swap")}
        missing = self._missing(entry, line)
        if missing:  # wrong data raise an error before anything is written
            self.content["data"] = self.packs.description()
        for title, (place, key, work) in missing.items():
            print(f"{entry.name}: {title}", flush=True)
            place[key] = work()
            self.write()

    def _missing(self, entry: Entry, line: Numbers) -> dict[str, Section]:
        """List what has to be measured, in order."""
        sections: dict[str, Section] = {"speed": (line, "speed", partial(self._speed, entry))}
        for space in entry.spaces:
            work = partial(self._scores, entry, space)
            sections[f"{space} features"] = (line["scores"], space, work)
        sections["identity removal"] = (line, "removal", partial(self._removal, entry))
        for judge in self.judges(entry) if transfer_of(entry.model) is not None else ():
            work = partial(self._swap, entry, judge)
            sections[f"swap judged by {judge}"] = (line["swap"], judge, work)
        return {title: part for title, part in sections.items() if part[1] not in part[0]}

    def _scores(self, entry: Entry, space: str) -> Numbers:
        return score_features(self.features(entry)[space], self.packs)

    def _removal(self, entry: Entry) -> Numbers:
        """Score features after identity removal, in two ways, and after a control."""
        features, split = self.features(entry)[entry.spaces[0]], self.packs.splits[LFW_TRAIN]
        train, identities = features[LFW_TRAIN], split.identities
        assert identities is not None
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        first = remove_identity(train, identities, keep=split.labels)
        removals = {
            "expressions kept": first,
            "nothing kept": remove_identity(train, identities),
            "control": remove_identity(
                train, identities[order], keep=split.labels, directions=first.directions
            ),
        }
        numbers: Numbers = {"space": entry.spaces[0]}
        for name, removal in removals.items():
            rest = {key: removal(rows) for key, rows in features.items()}
            scores = score_features(rest, self.packs)
            numbers[name] = {"directions": removal.directions, **scores}
        return numbers

    def _swap(self, entry: Entry, judge: str) -> Numbers:
        other = self.baseline(judge) if judge in BASELINES else self.checkpoint(judge)
        features = features_of(other, self.packs, self.cache, [LFW_TRAIN])
        assert entry.model is not None

        def scores(detail: bool) -> Numbers:
            swap = swaps(entry, self.packs, detail=detail)
            return judge_swaps(swap, entry.preprocessing, other, features, self.packs)

        numbers = scores(False)
        if entry.model.keeps_detail is not None:
            edited = scores(True)
            numbers["edited"] = {key: edited[key] for key in EDITS if key in edited}
        return numbers

    def _speed(self, entry: Entry) -> Numbers:
        """Time prepared crops, in turn with the untrained network."""
        encode = [_timed(entry), _timed(self.baseline(UNTRAINED))]
        rounds = [[run() for run in encode] for _ in range(ROUNDS)]
        seconds, untrained = map(min, zip(*rounds, strict=True))
        return {
            "images_per_second": round(TIMED / seconds, 2),
            "times_untrained": round(seconds / untrained, 3),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
        }

    def measure_meshes(self, name: str, card: Card) -> None:
        """Measure a model of meshes, if its line is missing."""
        line = self.content["meshes"].get(name)
        if line is not None and line["key"] == card.weights.sha256:
            return
        print(f"{name}: meshes of ICT-3D", flush=True)
        command = _command(name)
        metrics = as_metrics(measure_meshes(load(name, device=self.device), self.data), command)
        self.content["meshes"][name] = {
            "key": card.weights.sha256,
            "command": command,
            "trained on": list(card.training.data),
            "metrics": [asdict(m) | {"value": round(m.value, 4)} for m in metrics],
        }
        self.write()

    def write(self) -> None:
        """Write the file in one step, and the tables next to it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        ordered = self.content | {
            key: dict(sorted(self.content[key].items())) for key in ("models", "meshes")
        }
        text = json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(self.path)
        self.path.with_suffix(".md").write_text(markdown(ordered), encoding="utf-8")


def _read_results(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # not JSON, or not UTF-8
        content = None
    if not isinstance(content, dict) or any(
        "scores" not in line for line in content.get("models", {}).values()
    ):
        raise ValueError(f"{path} is not a results file of this version; name another file")
    return content


def _describe(entry: Entry) -> Numbers:
    card, preprocessing = entry.card, entry.preprocessing
    return {
        "key": entry.key,
        "command": _command(entry.name) if card or entry.name in BASELINES else "",
        "family": entry.family,
        "trained on": None if entry.trained_on is None else list(entry.trained_on),
        "contamination": contamination_of(entry.trained_on),
        "parameters": entry.parameters,
        "bytes": card.weights.size if card else None,
        "input": f"{preprocessing.template}, {preprocessing.size} px",
        "spaces": list(entry.spaces),
        "scores": {},
        "swap": {},
    }


def _command(name: str) -> str:
    model = "" if name in BASELINES else f" {name}"
    return f"facezoo benchmark{model} --data DATA --out OUT"


def _timed(entry: Entry) -> Callable[[], float]:
    """Return a function that encodes a batch of noise and returns the seconds, after a warm-up."""
    size = entry.preprocessing.size
    noise = torch.rand(TIMED, 3, size, size, generator=torch.Generator().manual_seed(0))
    crops = normalize(255 * noise.to(entry.device), entry.preprocessing)

    def run() -> float:
        begin = time.perf_counter()
        for rows in entry.run(crops, entry.spaces).values():
            rows.cpu()  # waits for the device
        return time.perf_counter() - begin

    run()
    return run
