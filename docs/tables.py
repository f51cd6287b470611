"""Write numbers of cards and results into the README and the pages of this folder.

    python docs/tables.py            rewrites the regions between markers
    python docs/tables.py --check    exits with 1 if a page is out of date

A region lies between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->``. NAME is one of

    models                      checkpoints for the README
    card-<model>                everything about the checkpoints of a model
    numbers-<model>             the headline numbers of a model
    comparison-<checkpoint>     a checkpoint compared with its baseline
    finetuning                  balanced accuracy by labels per class
    removal                     effect of ``facezoo.remove_identity`` on each model
    benchmark-<table>           a table of ``facezoo benchmark``
    results-<file>.<table>      a table that a script of ``benchmarks`` wrote
    stamp-<file>                date, hardware and command of such a file
    training-data               training data of every checkpoint, as the cards record it

A number in a sentence lies between ``<!-- value PATH -->`` and ``<!-- end -->``; see ``value``.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from facezoo.evaluate.benchmark.report import table_text
from facezoo.evaluate.embedding import ALIGNED, DETECTED
from facezoo.evaluate.metrics import compare
from facezoo.hub.card import Card, Metric, Training, bundled_cards
from facezoo.hub.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
HEADLINES = ("accuracy", "balanced accuracy")
"""Metrics that the README shows; the model's page shows all."""
REGION = re.compile(
    r"<!-- (?P<name>[\w.-]+):begin -->\n(?P<text>.*?)<!-- (?P=name):end -->", re.DOTALL
)
VALUE = re.compile(r"<!-- value (?P<path>.+?) -->[^<]*<!-- end -->")
SCORES = "benchmark:models/{}/scores/{}/"
PROBE = "expression/FER+ test/probe"
NUMBERS = {
    "Expression, 8 classes (FER+ test), %": ("expression", PROBE),
    "Same identity or not (LFW pairs), %": ("identity", "identity/verification"),
    "Leakage: identity from expression features (LFW val), %": (
        "expression",
        "identity/identification",
    ),
    "Leakage: expression from identity features (FER+ test), %": ("identity", PROBE),
    "The same by nearest neighbors instead of a linear probe, %": (
        "identity",
        "expression/FER+ test/neighbors",
    ),
}
"""Features and place in a results file by title, for models of images."""
RENAMED = {
    "less the mean of the person's other photographs": "minus the mean code of the identity's "
    "other images",
    "the same, each photograph's code less its class's mean": "the same, after subtracting the "
    "mean code of each expression",
    "RDM (this checkpoint)": "RDM: `latentface.lfw`",
    "person": "identity",
    "photograph": "image",
    "picture": "image",
    "unexplained, %": "false detections, %",
    "killed when so many were on disk": "images on disk at each kill",
    "the last run went on at": "images resumed by the last run",
    "same file as without": "same file as without kills",
    "facezoo's speed over it": "speed of facezoo relative to it",
    "one alone": "one image",
    "by hand, landmarks given": "OpenCV + ResNet-18, landmarks given",
    "by hand, ": "OpenCV + ResNet-18, ",
    "validation people": "validation identities",
    "cosine with the fixed seed's": "cosine with the code of the fixed noise",
    "synthesis, new weights": "synthesis, 512 channels, random weights",
}
"""Words of older results files, and the field's words."""
HEADERS = {
    "way": "pipeline",
    "slowest to fastest": "images/s, slowest to fastest",
    "E_rec": "reconstruction (E_rec)",
    "E_rec face": "reconstruction, face",
    "AVD_neu": "neutral face (AVD_neu)",
    "AVD_neu face": "neutral face, face",
    "E_dis": "differences (E_dis)",
    "rank-1": "identity found (rank-1)",
}
"""Names of columns in results files, and plain ones."""
HIDDEN = re.compile(
    r"(?<!^pipeline: )slowest to fastest|: relative difference$|over bare(, speed)?$|speed over it$"
    r"|: times faster$|above chance$|^stages: share$"
)
"""Columns of results files that pages leave out, as ``table: column``.

Ratios compare the fastest repeats, so they differ from those of the medians next to them.
"""
PROTOCOL = "[protocol](../reference/metrics.md)"
"""Header of a column; ``extra.css`` makes room below a header with a link."""
CROPS = (
    " *Whole images*: faces found by the detector. All other values: crops by the data set's "
    "landmarks."
)
PLAIN = {
    "photograph": "image",
    "people": "identities",
    "persons": "identities",
}
"""Words of the cards' protocols, and the field's words."""
MESH_NUMBERS = {
    "E_rec": "Distance of the reconstruction from the input, mm",
    "AVD_neu": "Distance of the neutral face from the true one, mm",
    "AVD_neu face": "The same on the face area, mm",
    "E_dis": "Differences between the neutral faces of one identity, mm",
    "rank-1": "Identity found with the identity code, %",
    "rank-1 from z_exp": "Leakage: identity found with the expression code, %",
    "expression": "Expression found with the expression code, 20 classes, %",
    "expression from z_id": "Leakage: expression found with the identity code, %",
}
MESH_CHANCE = {
    "rank-1": 100 / 90,
    "rank-1 from z_exp": 100 / 90,
    "expression": 100 / 20,
    "expression from z_id": 100 / 20,
}
"""Chance level in percent, of 90 identities and 20 expressions of the test set of ICT-3D."""


def pages(root: Path = ROOT) -> list[Path]:
    """The README and every page of the documentation."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def regenerated(text: str, cards: Sequence[Card]) -> str:
    """Return a page with its regions and values written again; the rest is unchanged.

    Raises:
        ValueError: if the name of a region is unknown.
    """
    text = VALUE.sub(lambda match: _valued(match["path"]), text)
    return REGION.sub(lambda match: _region(match["name"], cards), text)


def value(path: str, results: Path = ROOT / "docs" / "results") -> float:
    """Read one number of ``docs/results``.

    Args:
        path: ``file:key/key/...``. ``@ipd-fer`` is the default checkpoint of a model, and
            ``[name=E_rec & protocol=shuffled]`` the first row of a list with these values. With
            ``*`` in ``file``, the mean over these files. The key ``lowest`` is the entry with the
            lowest number. In a text such as ``1.17 ± 0.16``, the key ``±`` is the number after it.
        results: the folder.
    """
    file, _, keys = path.partition(":")
    files = sorted(results.glob(f"{file}.json"))
    if not files:
        raise FileNotFoundError(f"{results / file}.json, for the value {path!r}")
    return statistics.mean(_number_at(one, keys) for one in files)


def _number_at(file: Path, keys: str) -> float:
    """Read a number of one file; a whole number stays an ``int``."""
    parts = re.split(r"(?<=\])/|/(?!s(?:/|$))", keys)  # but not the unit of "images/s"
    return _within(json.loads(file.read_text(encoding="utf-8")), parts)


def _within(found: Any, keys: Sequence[str]) -> float:
    for number, key in enumerate(keys, 1):
        if key == "lowest":
            return min(_within(entry, keys[number:]) for entry in found.values())
        if isinstance(found, list):
            wanted = dict(part.split("=") for part in key.strip("[]").split(" & "))
            rows = [r for r in found if all(str(r[c]) == v for c, v in wanted.items())]
            if not rows:
                raise LookupError(f"no row {key} among {len(found)} rows")
            found = rows[0]
        elif key.startswith("@"):
            found = found[_default(key[1:])]
        elif isinstance(found, str):
            found = found.partition(f" {key} ")[2]
        else:
            found = found[key]
    if isinstance(found, str):
        found = found.split()[0]
        return int(found) if found.isdecimal() else float(found)
    return found if isinstance(found, int) else float(found)


def numbers_text(model: str) -> str:
    """Format the headline numbers of a model next to a baseline."""
    entries = json.loads((ROOT / "docs/results/benchmark.json").read_text(encoding="utf-8"))
    if model == "adv3d":
        header = ["measure", "`adv3d.ict-neutral`", "`adv3d.ict`", "copy of the input", "chance"]
        rows = [
            [
                title,
                *(
                    _short(value(f"benchmark:meshes/adv3d.{tag}/metrics/[name={name}]/value"))
                    for tag in ("ict-neutral", "ict")
                ),
                _short(value(f"ict:tables/faces/[method=copy of the input]/{name}"))
                if name not in MESH_CHANCE
                else "–",
                _short(MESH_CHANCE[name]) if name in MESH_CHANCE else "–",
            ]
            for name, title in MESH_NUMBERS.items()
        ]
        return _table(header, rows) + _earlier(entries["meshes"])
    header = ["measure", f"`{model}`", "pixels (baseline)", "chance"]
    rows = []
    for title, (space, place) in NUMBERS.items():
        mine = SCORES.format(f"@{model}", space) + place
        theirs = SCORES.format("pixels", "features") + place
        chance = mine.replace("/neighbors", "/probe")
        row = (f"{mine}/accuracy", f"{theirs}/accuracy", f"{chance}/chance")
        rows.append([title, *(_short(value(path)) for path in row)])
    name = _default(model)
    return _table(header, rows) + _earlier({name: entries["models"][name]})


def _valued(path: str) -> str:
    return f"<!-- value {path} -->{_short(value(path))}<!-- end -->"


def _short(number: float) -> str:
    if isinstance(number, int):
        return f"{number:,}"
    digits = 2 if abs(number) < 10 else 1
    return f"{number:.{digits}f}" if abs(number) < 100 else f"{number:.0f}"


def _default(model: str) -> str:
    return next(
        card.name for card in bundled_cards().values() if card.model == model and card.default
    )


def stale(root: Path = ROOT) -> list[Path]:
    """Pages of which a region differs from the cards."""
    cards = list(bundled_cards().values())
    texts = {page: page.read_text(encoding="utf-8") for page in pages(root)}
    return [page for page, text in texts.items() if regenerated(text, cards) != text]


def models_table(cards: Iterable[Card]) -> str:
    """The checkpoints that ``facezoo.load`` takes, and their accuracies in two settings."""
    of_models = [card for card in cards if card.model in FAMILIES]
    if not of_models:
        return "No checkpoint is in the package yet."
    rows = [
        [f"`{card.name}`", _parameters(card), _bytes(card), card.licenses.weights]
        for card in of_models
    ]
    table = _table(["checkpoint", "parameters", "file", "license of the weights"], rows)
    return f"{table}\n\n{_accuracies(of_models)}"


def card_text(cards: Iterable[Card], model: str) -> str:
    """Everything about the checkpoints of one model."""
    mine = [card for card in cards if card.model == model]
    return "\n\n".join(map(_card_text, mine)) or f"No checkpoint of `{model}` is in the package."


def _region(name: str, cards: Sequence[Card]) -> str:
    if name == "models":
        text = models_table(cards)
    elif name.startswith("numbers-"):
        text = numbers_text(name.removeprefix("numbers-"))
    elif name.startswith("card-"):
        text = card_text(cards, name.removeprefix("card-"))
    elif name.startswith("comparison-"):
        text = comparison_text(name.removeprefix("comparison-"))
    elif name.startswith("results-"):
        text = results_text(*name.removeprefix("results-").rsplit(".", 1))
    elif name.startswith("benchmark-"):
        text = benchmark_text(name.removeprefix("benchmark-"))
    elif name.startswith("stamp-"):
        text = stamp_text(name.removeprefix("stamp-"))
    elif name == "removal":
        text = removal_text()
    elif name == "training-data":
        text = training_data_text(cards)
    elif name == "finetuning":
        text = finetuning_text(ROOT / "docs" / "results" / "finetune.lfw.json")
    else:
        raise ValueError(
            f"no region is named {name!r}; expected models, finetuning, removal, training-data, "
            "card-<model>, numbers-<model>, comparison-<checkpoint>, benchmark-<table>, "
            "results-<file>.<table> or stamp-<file>"
        )
    return f"<!-- {name}:begin -->\n{text}\n<!-- {name}:end -->"


def training_data_text(cards: Iterable[Card]) -> str:
    """The training data of every checkpoint, a line per data set."""
    rows = []
    for card in cards:
        texts = [part for text in card.training.data for part in text.split("; ")]
        lines = dict.fromkeys(_renamed(text, PLAIN) for text in texts)
        rows.append([f"`{card.name}`", "<br>".join(lines)])
    return _table(["weights", "trained on"], rows)


def removal_text(results: Path = ROOT / "docs" / "results") -> str:
    """Compare the features of each model before and after identity removal."""
    content = json.loads((results / "benchmark.json").read_text(encoding="utf-8"))
    rows = []
    for name, entry in content["models"].items():
        removed = entry["removal"]
        before = entry["scores"][removed["space"]]
        after, control, bare = (
            removed[key] for key in ("expressions kept", "control", "nothing kept")
        )
        leaks = [part["identity"]["identification"] for part in (before, after, control)]
        uses = [
            part["expression"]["LFW val"]["linear"]["accuracy"] for part in (before, after, bare)
        ]
        found = [f"{leak['accuracy']:.1f} ± {leak['spread']:.1f}" for leak in leaks]
        rows.append([f"`{name}`", str(after["directions"]), *found, *map(_short, uses)])
    header = [
        "features",
        "directions removed",
        "identity before",
        "identity after",
        "identity, random removal",
        "expression before",
        "expression after",
        "expression after, without `keep=`",
    ]
    return _table(header, rows)


def comparison_text(checkpoint: str, results: Path = ROOT / "docs" / "results") -> str:
    """Compare a checkpoint with its baseline on given crops, with a paired test."""
    of_method = _read(results / f"{checkpoint}.json")
    baselines = [_read(path) for path in sorted(results.glob(f"{checkpoint}-*baseline*.json"))]
    values = of_method["values"]
    rows = []
    for key, value in values.items():
        theirs = [baseline["values"][key] for baseline in baselines if key in baseline["values"]]
        name, dataset, protocol, unit = key
        if not theirs or "identity features" in name or _part(name)[1]:
            continue  # E_id is the same in both
        numbers = [f"{n} {unit}" for n in (_mean_and_spread(theirs), f"{value:.2f}")]
        chance = values.get((f"{name}, chance", dataset, protocol, unit))
        numbers.append("–" if chance is None else f"{chance:.2f} {unit}")
        rows.append(
            [name, dataset, *numbers, _renamed(protocol.removesuffix(f"; {ALIGNED}"), PLAIN)]
        )
    count = f"baseline, {len(baselines)} seed" + ("s" if len(baselines) > 1 else "")
    table = _table(["metric", "data", count, checkpoint, "chance", PROTOCOL], rows)
    tests = [
        f"- against {Path(baseline['file']).stem}: {compare(baseline['right'], of_method['right'])}"
        for baseline in baselines
    ]
    said = "Difference in accuracy on FER+ test, percentage points, paired:"
    return "\n\n".join([table, said, "\n".join(tests)])


def results_text(file: str, table: str, results: Path = ROOT / "docs" / "results") -> str:
    """A table that a script wrote: a list of rows by column, numbers with three digits or more."""
    path = results / f"{file}.json"
    if not path.is_file():
        return "Not measured."
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = content["tables"].get(table)
    if not rows:
        return "Not measured."
    columns = [column for column in rows[0] if not HIDDEN.search(f"{table}: {column}")]
    grouped = [column for column in columns if ": " in column]
    plain = [column for column in columns if column not in grouped]
    tables = [_measures(plain[0], grouped, rows)] if grouped else []
    texts = [_column(column, [row[column] for row in rows]) for column in plain]
    cells = [[_renamed(cell) for cell in row] for row in zip(*texts, strict=True)]
    tables.append(_table([_renamed(HEADERS.get(column, column)) for column in plain], cells))
    return "\n\n".join(tables)


def _measures(key: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """Format columns named ``images: measure`` as a column of images and one per measure."""
    names = [column.split(": ", 1) for column in columns]
    images = dict.fromkeys(name for name, _ in names)
    measures = list(dict.fromkeys(measure for _, measure in names))
    cells = [
        [name, row[key], *(_one_decimal(row.get(f"{name}: {measure}")) for measure in measures)]
        for name in images
        for row in rows
    ]
    return _table(["images", key, *map(_renamed, measures)], cells)


def _one_decimal(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _column(name: str, values: Sequence[Any]) -> list[str]:
    """Format a column; recalls and milliseconds with one decimal."""
    one = re.match(r"recall at|ms at", name)
    return [_one_decimal(v) if one and isinstance(v, float) else _cell(v) for v in values]


def _renamed(text: str, words: Mapping[str, str] = RENAMED) -> str:
    for old, new in words.items():
        text = text if new in text else text.replace(old, new)
    return text


def benchmark_text(table: str, results: Path = ROOT / "docs" / "results") -> str:
    """A table of ``facezoo benchmark``."""
    content = json.loads((results / "benchmark.json").read_text(encoding="utf-8"))
    group = content["meshes" if table == "meshes" else "models"]
    remark = _earlier(group) if table in ("overview", "short", "meshes") else ""
    return table_text(content, table) + remark


def _earlier(entries: dict[str, Any]) -> str:
    """Name the checkpoints whose weights changed after the benchmark."""
    cards = bundled_cards()
    names = [n for n, e in entries.items() if n in cards and cards[n].weights.sha256 != e["key"]]
    text = ", ".join(f"`{name}`" for name in names)
    return f"\n\nMeasured with earlier weights: {text}." if names else ""


def stamp_text(file: str, results: Path = ROOT / "docs" / "results") -> str:
    """When, on what and by which command the numbers of a file were measured."""
    content = json.loads((results / f"{file}.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {number}" for name, number in content["versions"].items())
    threads = f"{content['threads']} thread" + ("s" if content["threads"] > 1 else "")
    return (
        f"Measured {content['date']} at commit {content['commit']} on {content['hardware']}, "
        f"{threads} of {content['cores']} cores, load {content['load']}; {versions}; "
        f"by `{content['command']}`."
    )


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"


def finetuning_text(path: Path) -> str:
    """Balanced accuracy by labels per class, from what benchmarks/finetune.py wrote."""
    if not path.is_file():
        return "Not measured."
    content = json.loads(path.read_text(encoding="utf-8"))
    runs = content["runs"]
    arms = list(dict.fromkeys(run["arm"] for run in runs))
    sizes = list(dict.fromkeys(run["labels_per_class"] for run in runs))
    rows, header = [], ["labels per class"]
    seeds: set[int] = set()
    for size in sizes:
        found = [run for run in runs if run["labels_per_class"] == size]
        row = [f"{size} ({found[0]['images']} images)"]
        for arm in arms:
            values = [run["balanced accuracy"] for run in found if run["arm"] == arm]
            seeds.update([len(values)] if len(values) > 1 else [])
            row.append(_mean_and_spread(values, 1) if values else "not run")
        rows.append(row)
    title = _renamed(f"{content['what']}, {content['validation_images']} images")
    title = title[0].upper() + title[1:]
    table = _table([*header, *arms], rows)
    printed = f"Printed by `{content['command']}`"
    if (lacking := content.get("wanted", len(runs)) - len(runs)) > 0:
        printed += f"; {lacking} of {content['wanted']} runs are missing"
    spread = f"mean ± standard deviation of {' or '.join(map(str, sorted(seeds)))} seeds"
    return f"{title}; {spread}.\n\n{table}\n\n{printed}."


def _read(path: Path) -> dict[str, Any]:
    """A file of results: values by what they are, and which images were right."""
    content = json.loads(path.read_text(encoding="utf-8"))
    values = {
        (m["name"], f"{m['dataset']} {m['split']}", m["protocol"], m["unit"]): m["value"]
        for m in content["metrics"]
        if not m["protocol"].endswith(DETECTED)
    }
    right = torch.tensor([mark == "1" for mark in content["confusion"]["right"]])
    return {"file": path.name, "values": values, "right": right}


def _mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _accuracies(cards: Sequence[Card]) -> str:
    """One row per data set and rule, the two ways of finding the faces side by side."""
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for card in cards:
        for metric in card.metrics:
            rule, _, how = metric.protocol.rpartition("; ")
            if metric.name in HEADLINES and how in (ALIGNED, DETECTED):
                where = f"{metric.dataset} {metric.split}: {rule}"
                found.setdefault((card.name, where, metric.name), {})[how] = _value(metric)
    if not found:
        return "Accuracy: none measured."
    rows = [
        [f"`{name}`", where, metric_name, values.get(ALIGNED, ""), values.get(DETECTED, "")]
        for (name, where, metric_name), values in found.items()
    ]
    return _table(["checkpoint", "measured on", "metric", ALIGNED, DETECTED], rows)


def _card_text(card: Card) -> str:
    training = card.training
    facts = {
        "weights": f"{_parameters(card)} parameters, {_bytes(card)} in {card.weights.dtype}",
        "input": _input(card) if card.model in FAMILIES else "",
        "classes": ", ".join(card.labels),
        "licenses": f"code {card.licenses.code}; weights {card.licenses.weights}; "
        f"training data {card.licenses.data}",
        "trained on": "; ".join(training.data),
        "trained by": f"`{training.command}`" if training.command else "",
        "at commit": _commits(training),
        "on hardware": training.hardware,
        "intended use": card.intended_use,
    }
    lines = [f"- {key}: {text}" for key, text in facts.items() if text]
    limits = [f"- {limit}" for limit in card.limits] or ["None on record."]
    parts = ["\n".join(lines), "Limits:\n\n" + "\n".join(limits), _metrics_text(card.metrics)]
    return f"### {card.name}\n\n" + folded("Model card", "\n\n".join(parts))


def _commits(training: Training) -> str:
    """Name the commit of the last command, and of the first where a card has two."""
    first = {"autoencoding_commit", "training_commit"} & training.recipe.keys()
    earlier = "".join(f"; of the first command: {training.recipe[key]}" for key in first)
    return training.commit + earlier


def _metrics_text(metrics: Sequence[Metric]) -> str:
    if not metrics:
        return "Metrics: none measured."
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(m.command for m in metrics))
    groups = _groups(metrics)
    plain = [parts for parts in groups if "chance" not in parts]
    probes = [parts for parts in groups if "chance" in parts]
    text = (
        f"Metrics, printed by {commands}.{CROPS if any('whole images' in g for g in plain) else ''}"
    )
    parts = [text, _group_table(plain)]
    if probes:
        parts += ["Probes, compared with chance:", _group_table(probes)]
    return "\n\n".join(parts)


def _groups(metrics: Sequence[Metric]) -> list[dict[str, str]]:
    """Join a metric with its spread, chance, control and value on whole images, by column."""
    groups: dict[tuple[str, str, str], dict[str, str]] = {}
    for metric in metrics:
        rule, _, how = metric.protocol.rpartition("; ")
        rule, how = (rule, how) if how in (ALIGNED, DETECTED) else (metric.protocol, "")
        name, part = _part(metric.name)
        data = f"{metric.dataset} {metric.split}"
        cells = groups.setdefault((name, data, rule), {"metric": name, "data": data})
        column = "whole images" if how == DETECTED else "value"
        if part == "spread":
            value, _, unit = cells[column].partition(" ")
            cells[column] = f"{value} ± {_number(metric)} {unit}"
        else:
            cells[part or column] = _value(metric)
        cells["protocol"] = _renamed(rule, PLAIN)
    return list(groups.values())


def _part(name: str) -> tuple[str, str]:
    """Split the name of a metric into that of its value and what it adds to it."""
    if name == "standard deviation over folds":
        return "accuracy", "spread"
    value, _, part = name.rpartition(", ")
    if part == "standard deviation":
        return value, "spread"
    return (value, part) if part in ("chance", "control", "above chance") else (name, "")


def _group_table(groups: Sequence[dict[str, str]]) -> str:
    """Format groups of metrics with the columns that occur."""
    order = ["metric", "data", "value", "whole images", "chance", "control", "above chance"]
    header = [column for column in order if any(column in parts for parts in groups)]
    rows = [[parts.get(column, "") for column in [*header, "protocol"]] for parts in groups]
    return _table([*header, PROTOCOL], rows)


def folded(title: str, text: str) -> str:
    """Fold a part of a page; both GitHub and the site show it as a line to click on."""
    return f"<details markdown>\n<summary>{title}</summary>\n\n{text}\n\n</details>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _value(metric: Metric) -> str:
    return f"{_number(metric)} {metric.unit}".strip()


def _number(metric: Metric) -> str:
    return f"{metric.value:.{2 if metric.unit == '%' else 3}f}"


def _input(card: Card) -> str:
    if card.preprocessing is None:
        return "meshes or points, with units"
    size, template = card.preprocessing.size, card.preprocessing.template
    return f"crops of {size} x {size} pixels, template `{template}`"


def _parameters(card: Card) -> str:
    return f"{card.weights.parameters / 1e6:.1f} M"


def _bytes(card: Card) -> str:
    return f"{card.weights.size / 1e6:.1f} MB"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the pages, or print the outdated ones."""
    parser = argparse.ArgumentParser(description="Write the cards' numbers into the pages.")
    parser.add_argument("--check", action="store_true", help="only say which pages differ")
    options = parser.parse_args(arguments)
    cards = list(bundled_cards().values())
    differing = stale()
    for page in differing:
        print(page.relative_to(ROOT))
        if not options.check:
            text = regenerated(page.read_text(encoding="utf-8"), cards)
            page.write_text(text, encoding="utf-8")
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
