"""The tables of a file of results: rows of cells, and markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from facezoo.evaluate.benchmark.contamination import CLEAN, PART
from facezoo.evaluate.benchmark.measure import PROTOCOLS
from facezoo.evaluate.benchmark.splits import FERPLUS, LFW

Row = dict[str, str]
Content = dict[str, Any]
NONE = "–"
WHOSE = {
    "expression": "expression features",
    "identity": "identity features",
    "features": "its features",
}
TITLES = {
    "overview": "Overview",
    "expression": "Expression",
    "identity": "Identity",
    "leakage": "Leakage",
    "yaw": "Faces turned aside",
    "removal": "Identity removed",
    "swap": "Swap test",
    "cost": "Size and speed",
    "contamination": "Were the evaluation data in training?",
    "meshes": "Models of meshes, on ICT-3D",
}


def markdown(content: Content) -> str:
    """Every table with its title."""
    parts = [f"## {title}\n\n{table_text(content, name)}" for name, title in TITLES.items()]
    return "\n\n".join(["# Benchmark", *parts]) + "\n"


def table_text(content: Content, name: str) -> str:
    """One table as markdown, of the models whose every kind of features was read.

    Args:
        content: of a file of results.
        name: a key of ``TITLES``.

    Raises:
        ValueError: if there is no such table.
    """
    if name not in TABLES:
        raise ValueError(f"no table is named {name!r}; there are {', '.join(TABLES)}")
    finished = {k: e for k, e in content["models"].items() if {*e["spaces"]} <= e["read"].keys()}
    rows = list(TABLES[name](content | {"models": finished}))
    if not rows:
        return "Not measured."
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def overview(content: Content) -> Iterator[Row]:
    """The few numbers to begin with; chance in the first row."""
    for number, (name, entry) in enumerate(content["models"].items()):
        first, last = _spaces(entry)
        told = {key: entry["read"][first]["expression"][key] for key in PROTOCOLS}
        person = entry["read"][first]["identity"]["identification"]
        pairs = entry["read"][last]["identity"]["verification"]
        leak = entry["read"][last]["expression"][FERPLUS]["reading"]
        if number == 0:
            yield _overview_row(
                "*chance*",
                [told[key]["reading"]["chance"] for key in PROTOCOLS],
                [pairs["chance"], person["chance"], leak["chance"]],
                None,
            )
        yield _overview_row(
            f"`{name}`",
            [told[key]["linear"]["accuracy"] for key in PROTOCOLS],
            [pairs["accuracy"], person["accuracy"], leak["accuracy"]],
            entry,
        )


SHORT = (
    "model",
    f"expression, {FERPLUS}",
    "same person, LFW pairs",
    "person from expression features",
    "expression from identity features",
    "parameters",
)


def short(content: Content) -> Iterator[Row]:
    """The overview with fewer columns."""
    for row in overview(content):
        yield {key: row[key] for key in SHORT}


def _overview_row(name: str, told: list[float], others: list[float], entry: Content | None) -> Row:
    return {
        "model": name,
        **{f"expression, {key}": _n(v) for key, v in zip(PROTOCOLS, told, strict=True)},
        "same person, LFW pairs": _n(others[0]),
        "person from expression features": _n(others[1]),
        "expression from identity features": _n(others[2]),
        "parameters": _millions(entry["parameters"]) if entry else "",
        "images/s": _n(entry["speed"]["images_per_second"]) if entry and "speed" in entry else "",
        "evaluation data in training": _seen(entry["contamination"]) if entry else "",
    }


def expression(content: Content) -> Iterator[Row]:
    """A linear probe and nearest neighbours on the features that are meant for it."""
    for name, entry in content["models"].items():
        space = _spaces(entry)[0]
        for key, told in entry["read"][space]["expression"].items():
            yield {
                "model": f"`{name}`",
                "features": WHOSE[space],
                "told": f"{key}, {told['told']} images",
                "linear probe: accuracy": _n(told["linear"]["accuracy"]),
                "macro-F1": _n(told["linear"]["macro-F1"]),
                "nearest neighbours: accuracy": _n(told["neighbours"]["accuracy"]),
                "macro-F1 ": _n(told["neighbours"]["macro-F1"]),
                "chance": _n(told["reading"]["chance"]),
                "control": _n(told["reading"]["control"]),
            }


def identity(content: Content) -> Iterator[Row]:
    """Verification, identification, and the same person with another expression."""
    for name, entry in content["models"].items():
        space = _spaces(entry)[1]
        found = entry["read"][space]["identity"]
        yield {
            "model": f"`{name}`",
            "features": WHOSE[space],
            "same person, LFW pairs": _with_spread(found["verification"]),
            "who it is, LFW val": _with_spread(found["identification"]),
            "who smiles, London": _n(found["same person"]["accuracy"]),
        }


def leakage(content: Content) -> Iterator[Row]:
    """What each kind of features holds that is not its own, beside what is meant to hold it."""
    for name, entry in content["models"].items():
        if len(entry["read"]) < 2:
            continue
        read = entry["read"]
        for what, key in (
            ("who it is, LFW val", "identification"),
            ("same person, LFW pairs", "verification"),
            ("who smiles, London", "same person"),
        ):
            found = [read[space]["identity"][key] for space in ("expression", "identity")]
            yield _leak(name, what, "expression", *found)
        for key in PROTOCOLS:
            found = [read[s]["expression"][key]["reading"] for s in ("identity", "expression")]
            yield _leak(name, f"expression, {key}", "identity", *found)


def _leak(name: str, what: str, space: str, found: Content, meant: Content) -> Row:
    return {
        "model": f"`{name}`",
        "read": what,
        "from": WHOSE[space],
        "accuracy": _with_spread(found),
        "chance": _n(found["chance"]),
        "control": _n(found["control"]),
        "from the features meant for it": _with_spread(meant),
    }


def yaw(content: Content) -> Iterator[Row]:
    """Accuracy of the linear probe on faces that look ever further aside."""
    found = [
        (key, name, entry["read"][_spaces(entry)[0]]["expression"][key]["yaw"])
        for key in (FERPLUS, LFW)
        for name, entry in content["models"].items()
    ]
    limits = max(([b["beyond_deg"] for b in bins] for _, _, bins in found), key=len, default=[])
    for key, name, bins in found:
        cells = {b["beyond_deg"]: f"{_n(b['accuracy'])} ({b['images']})" for b in bins}
        yield {
            "told": key,
            "model": f"`{name}`",
            **{
                "any yaw" if limit is None else f"over {limit}°": cells.get(limit, NONE)
                for limit in limits
            },
        }


REMOVED = {
    "expressions kept": "without {} directions of people, expressions kept",
    "nothing kept": "without {} directions of people",
    "control": "without {} directions of shuffled people, expressions kept",
}


def removal(content: Content) -> Iterator[Row]:
    """Before and after identity was removed, and after as many directions of nobody were."""
    for name, entry in content["models"].items():
        if (found := entry.get("removal")) is None:
            continue
        lines = {"as they are": entry["read"][found["space"]]} | {
            said.format(found[key]["directions"]): found[key] for key, said in REMOVED.items()
        }
        for said, read in lines.items():
            who = read["identity"]
            yield {
                "model": f"`{name}`",
                WHOSE["expression"]: said,
                "who it is, LFW val": _n(who["identification"]["accuracy"]),
                "chance": _n(who["identification"]["chance"]),
                "same person, LFW pairs": _n(who["verification"]["accuracy"]),
                "who smiles, London": _n(who["same person"]["accuracy"]),
                **{
                    f"expression, {key}": _n(told["linear"]["accuracy"])
                    for key, told in read["expression"].items()
                },
            }


def swap(content: Content) -> Iterator[Row]:
    """Decoded swaps, decoded faces and photographs, as other networks see them."""
    for name, entry in content["models"].items():
        texts = " ".join(entry["trained on"] or ())
        for judge, found in entry["swap"].items():
            family = judge.partition(".")[0]  # the judge itself need not have a line
            yield {
                "model": f"`{name}`",
                "judge": f"`{judge}`",
                "the model learnt from the judge": "yes" if family in texts else "no",
                "identity kept": _n(found["identity kept"]),
                "decoded unswapped": _n(found["identity, decoded"]),
                "photographs": _n(found["identity, photographs"]),
                "expression taken": _n(found["expression taken"]),
                "decoded unswapped ": _n(found["expression, decoded"]),
                "photographs ": _n(found["expression, photographs"]),
            }


def cost(content: Content) -> Iterator[Row]:
    """What a model costs to keep and to run."""
    for name, entry in content["models"].items():
        speed = entry.get("speed")
        if speed is None:
            continue  # not measured yet
        yield {
            "model": f"`{name}`",
            "input": entry["input"],
            "features": ", ".join(f"{k} {v['dim']}" for k, v in entry["read"].items()),
            "parameters": _millions(entry["parameters"]),
            "file": f"{entry['bytes'] / 1e6:.1f} MB" if entry["bytes"] else NONE,
            "images/s": _n(speed["images_per_second"]),
            "time, of the untrained network's": _n(speed["times_untrained"]),
            "on": f"{speed['device']}, {speed['threads']} threads"
            if speed["threads"] > 1
            else f"{speed['device']}, 1 thread",
        }


def contamination(content: Content) -> Iterator[Row]:
    """What the cards say of the training data."""
    for name, entry in content["models"].items():
        texts = entry["trained on"]
        yield {
            "model": f"`{name}`",
            **entry["contamination"],
            "trained on": NONE if texts is None else "; ".join(texts) or "nothing",
        }


def meshes(content: Content) -> Iterator[Row]:
    """Models of meshes: other data, other protocols, so a table of their own."""
    for name, entry in content["meshes"].items():
        values = {(m["name"], m["protocol"]): m for m in entry["metrics"]}
        wanted = [key for key in values if not key[1].startswith(("shuffled", "1000", "0.5", "a "))]
        yield {
            "model": f"`{name}`",
            **{f"{key[0]}, {values[key]['unit']}": _n(values[key]["value"]) for key in wanted},
            "trained on": "; ".join(entry["trained on"]),
        }


TABLES: dict[str, Callable[[Content], Iterator[Row]]] = {
    "overview": overview,
    "short": short,
    "expression": expression,
    "identity": identity,
    "leakage": leakage,
    "yaw": yaw,
    "removal": removal,
    "swap": swap,
    "cost": cost,
    "contamination": contamination,
    "meshes": meshes,
}


def _spaces(entry: Content) -> tuple[str, str]:
    """The features meant for expression and for identity; one for both where there are no two."""
    found = list(entry["read"])
    return found[0], found[-1]


def _n(value: float) -> str:
    return f"{value:.2f}"


def _seen(words: dict[str, str]) -> str:
    """Whether the evaluations were in training, and of which data another split was."""
    seen = [f"{word}: {key}" for key, word in words.items() if word not in (CLEAN, PART)]
    parts = [key.split()[0] for key, word in words.items() if word == PART]
    return "; ".join(seen) or ("no" + (f" (train of {', '.join(parts)})" if parts else ""))


def _with_spread(found: Content) -> str:
    spread = found["spread"]
    return _n(found["accuracy"]) + ("" if spread is None else f" ± {_n(spread)}")


def _millions(count: int | None) -> str:
    return NONE if count is None else f"{count / 1e6:.1f} M"
