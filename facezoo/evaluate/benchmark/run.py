"""The benchmark itself: what is missing from a file of results is measured and put there."""

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
from torch import Tensor
from tqdm.auto import tqdm

from facezoo.evaluate.benchmark import entrants as entering
from facezoo.evaluate.benchmark.contamination import contamination
from facezoo.evaluate.benchmark.entrants import PIXELS, REFERENCES, UNTRAINED, Encode, Entrant, Own
from facezoo.evaluate.benchmark.measure import Numbers, read_out
from facezoo.evaluate.benchmark.report import markdown
from facezoo.evaluate.benchmark.splits import LFW_TRAIN, Features, Packs, features_of
from facezoo.evaluate.benchmark.swap import judged, swaps, transfer_of
from facezoo.evaluate.ict import as_metrics
from facezoo.evaluate.ict import benchmark as measure_meshes
from facezoo.hub.card import Card, bundled_cards
from facezoo.hub.names import resolve
from facezoo.models.identity_removal import remove_identity
from facezoo.preprocess.alignment import normalize
from facezoo.registry import best_device, load

FILE = "benchmark.json"
ICT = "ict_face.npz"
"""The file by which a folder is known to hold the meshes of ICT-3D."""
TIMED = 32
"""Crops in a batch whose encoding is timed."""
ROUNDS = 5

Section = tuple[Numbers, str, Callable[[], Numbers]]
"""A place, the key in it, and what gives the value."""


@dataclass(frozen=True)
class Results:
    """What stands in a file of results."""

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
    """Measure checkpoints, and representations of your own, by one set of protocols.

    Two references, ``pixels`` and ``random-network``, are always in the table. Features are kept in
    ``out``, and every number is written when it is there, so that the same call goes on after an
    interruption and measures nothing twice. Lines of other models in the file stay.

    Args:
        models: names that ``facezoo.load`` takes, one or several; none for every bundled
            checkpoint, unless ``own`` is given.
        data: folder with ``ferplus.parquet``, ``lfw.parquet``, ``lfw_pairs_val.csv`` and
            ``london_expr.parquet``; for models of meshes, with the files of ICT-3D.
        out: folder for features, and for results unless ``results`` names another file.
        own: by name, callables from crops (B, 3, 112, 112), RGB in [-1, 1], to features (B, D), or
            ``Own`` for other crops. A new name, or other features, are measured anew.
        results: the JSON file to add to; None for ``benchmark.json`` in ``out``. The tables are
            written beside it in markdown.
        device: where to run; None for the best there is.

    Returns:
        Everything that stands in the file; ``print`` shows the tables.

    Raises:
        FileNotFoundError: if the data are not there.
        UnknownNameError: if there is no such model.
        ValueError: if the file ends in ``.md``, or holds numbers measured on other data, or a
            callable gives what are no features or has the name of another line.
    """
    folder = Path(data)
    path = Path(results) if results else Path(out) / FILE
    if path.suffix == ".md":
        raise ValueError(f"{path} is where the tables go, in markdown; name a .json file")
    course = _Course(folder, Path(out), path, best_device(device))
    names = [models] if isinstance(models, str) else list(models)
    chosen = _chosen(names, own or {}, folder)
    of_meshes = {name: card for name, card in chosen.items() if entering.takes_meshes(card)}
    for name in (name for name in chosen if name not in of_meshes):
        course.measure(name, course.checkpoint)
    for name, given in (own or {}).items():
        course.measure(name, partial(entering.own, given=given, device=course.device))
    for name in (name for name in REFERENCES if not course.holds(name)):
        course.measure(name, course.reference)
    for name, card in of_meshes.items():
        course.measure_meshes(name, card)
    course.write()
    return Results(course.content, path)


def _chosen(names: list[str], own: Mapping[str, Any], data: Path) -> dict[str, Card]:
    """What to measure, every name resolved before anything is begun.

    A bundled checkpoint goes by its full name, anything else by the name that it was given.
    """
    if not names and not own:
        names = entering.photograph_checkpoints()
        if (data / ICT).is_file():
            names += entering.mesh_checkpoints()
    cards = {name: resolve(name).card for name in names}
    chosen = {c.name if n in (c.name, c.model) else n: c for n, c in cards.items()}
    if taken := [name for name in own if name in {*chosen, *REFERENCES, *bundled_cards()}]:
        raise ValueError(f"{taken[0]} is the name of another line; give your own another name")
    return chosen


class _Course:
    """One run: what it has loaded, and the file it fills."""

    def __init__(self, data: Path, out: Path, path: Path, device: torch.device) -> None:
        self.data, self.path, self.device = data, path, device
        self.cache = out / "features"
        self.content: dict[str, Any] = {"data": {}, "models": {}, "meshes": {}}
        if path.is_file():
            self.content |= _results_in(path)
        self._entrants: dict[str, Entrant] = {}
        self._features: dict[str, Features] = {}

    @cached_property
    def packs(self) -> Packs:
        packs = Packs.read(self.data)
        there = self.content["data"]
        if there and there != packs.digests():
            raise ValueError(
                f"{self.path} holds numbers of {there}, and {self.data} has {packs.digests()}; "
                "name another file for the results, since they cannot stand in one table"
            )
        return packs

    # --- who takes part

    def checkpoint(self, name: str) -> Entrant:
        if name not in self._entrants:
            self._entrants[name] = entering.checkpoint(name, load(name, device=self.device))
        return self._entrants[name]

    def reference(self, name: str) -> Entrant:
        if name not in self._entrants:
            made = entering.reference(name, self.data, self.cache, self.device)
            self._entrants[name] = made
        return self._entrants[name]

    def judges(self, entrant: Entrant) -> Iterator[str]:
        """The default checkpoints of other families, and pixels."""
        cards = bundled_cards()
        for name in entering.photograph_checkpoints():
            if cards[name].default and cards[name].model != entrant.family:
                yield name
        yield PIXELS

    def judge(self, name: str) -> Entrant:
        return self.reference(name) if name in REFERENCES else self.checkpoint(name)

    def features(self, entrant: Entrant) -> Features:
        if entrant.name not in self._features:
            self._features[entrant.name] = features_of(entrant, self.packs, self.cache)
        return self._features[entrant.name]

    # --- what is measured

    def holds(self, name: str) -> bool:
        """Whether everything of a reference is in the file, so that it need not be made."""
        entry = self.content["models"].get(name, {})
        return entry.get("key") == REFERENCES[name] and "removal" in entry

    def measure(self, name: str, make: Callable[[str], Entrant]) -> None:
        """Fill the line of one entrant as far as it is missing."""
        entrant = make(name)
        entry, about = self.content["models"].get(name), _about(entrant)
        if entry is None or entry["key"] != entrant.key:
            entry = self.content["models"][name] = about
        entry |= {key: said for key, said in about.items() if key not in ("read", "swap")}
        missing = self._missing(entrant, entry)
        if missing:  # data that lack or differ are refused before anything is written
            self.content["data"] = self.packs.digests()
        for title, (place, key, work) in missing.items():
            tqdm.write(f"{name}: {title}")
            place[key] = work()
            self.write()

    def _missing(self, entrant: Entrant, entry: Numbers) -> dict[str, Section]:
        """What has to be measured, in order: where it belongs and how it is had."""
        judges = self.judges(entrant) if transfer_of(entrant.model) is not None else ()
        every: dict[str, Section] = {
            "speed": (entry, "speed", partial(self._speed, entrant)),
            **{
                f"{space} features": (entry["read"], space, partial(self._read, entrant, space))
                for space in entrant.spaces
            },
            "identity removal": (entry, "removal", partial(self._removal, entrant)),
            **{
                f"swap judged by {judge}": (
                    entry["swap"],
                    judge,
                    partial(self._swap, entrant, judge),
                )
                for judge in judges
            },
        }
        return {title: part for title, part in every.items() if part[1] not in part[0]}

    def _read(self, entrant: Entrant, space: str) -> Numbers:
        return read_out(self.features(entrant)[space], self.packs)

    def _removal(self, entrant: Entrant) -> Numbers:
        """What is read once identity was removed, in two ways, and once nobody's directions."""
        features, view = self.features(entrant)[entrant.spaces[0]], self.packs.views[LFW_TRAIN]
        assert view.people is not None
        fitted = features[LFW_TRAIN]
        dealt = view.people[torch.randperm(len(fitted), generator=torch.Generator().manual_seed(0))]
        kept = remove_identity(fitted, view.people, keep=view.labels)
        removals = {
            "expressions kept": kept,
            "nothing kept": remove_identity(fitted, view.people),
            "control": remove_identity(fitted, dealt, keep=view.labels, directions=kept.directions),
        }
        found: Numbers = {"space": entrant.spaces[0]}
        for name, removal in removals.items():
            left = {key: removal(rows) for key, rows in features.items()}
            found[name] = {"directions": removal.directions, **read_out(left, self.packs)}
        return found

    def _swap(self, entrant: Entrant, judge: str) -> Numbers:
        other = self.judge(judge)
        fitted = features_of(other, self.packs, self.cache, [LFW_TRAIN])
        swap = swaps(entrant, self.packs)
        return judged(swap, entrant.preprocessing, other, fitted, self.packs)

    def _speed(self, entrant: Entrant) -> Numbers:
        """Prepared crops a second, in turn with the untrained network's."""
        timed = [_timed(entrant), _timed(self.reference(UNTRAINED))]
        seconds = [
            min(times) for times in zip(*([t() for t in timed] for _ in range(ROUNDS)), strict=True)
        ]
        return {
            "images_per_second": round(TIMED / seconds[0], 2),
            "times_untrained": round(seconds[0] / seconds[1], 3),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
        }

    def measure_meshes(self, name: str, card: Card) -> None:
        """Fill the line of one model of meshes, if it is missing."""
        there = self.content["meshes"].get(name)
        if there is not None and there["key"] == card.weights.sha256:
            return
        tqdm.write(f"{name}: meshes of ICT-3D")
        found = measure_meshes(load(name, device=self.device), self.data)
        command = _command(name)
        self.content["meshes"][name] = {
            "key": card.weights.sha256,
            "command": command,
            "trained on": list(card.training.data),
            "metrics": [
                asdict(m) | {"value": round(m.value, 4)} for m in as_metrics(found, command)
            ],
        }
        self.write()

    def write(self) -> None:
        """The file as a whole or not at all, and the tables beside it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        ordered = self.content | {
            key: dict(sorted(self.content[key].items())) for key in ("models", "meshes")
        }
        text = json.dumps(ordered, indent=1, ensure_ascii=False) + "\n"
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(self.path)
        self.path.with_suffix(".md").write_text(markdown(ordered), encoding="utf-8")


def _results_in(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # of JSON or of UTF-8
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no file of results of this benchmark; name another")
    return content


def _about(entrant: Entrant) -> Numbers:
    card, preprocessing = entrant.card, entrant.preprocessing
    return {
        "key": entrant.key,
        "command": _command(entrant.name) if card or entrant.name in REFERENCES else "",
        "family": entrant.family,
        "trained on": None if entrant.trained_on is None else list(entrant.trained_on),
        "contamination": contamination(entrant.trained_on),
        "parameters": entrant.parameters,
        "bytes": card.weights.size if card else None,
        "input": f"{preprocessing.template}, {preprocessing.size} px",
        "spaces": list(entrant.spaces),
        "read": {},
        "swap": {},
    }


def _command(name: str) -> str:
    named = "" if name in REFERENCES else f" {name}"
    return f"facezoo benchmark{named} --data DATA --out OUT"


def _timed(entrant: Entrant) -> Callable[[], float]:
    """A function that encodes a batch of noise and tells the seconds; it was done once before."""
    size = entrant.preprocessing.size
    noise = torch.rand(TIMED, 3, size, size, generator=torch.Generator().manual_seed(0))
    crops = normalize(255 * noise.to(entrant.device), entrant.preprocessing)

    def run() -> float:
        begin = time.perf_counter()
        found: dict[str, Tensor] = entrant.run(crops, entrant.spaces)
        for rows in found.values():
            rows.cpu()  # waits for the device
        return time.perf_counter() - begin

    run()
    return run
