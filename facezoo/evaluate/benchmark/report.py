"""Tables of a results file in markdown, and contamination of the evaluation data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from facezoo.evaluate.packs import BY_WAY, FERPLUS, LFW, LONDON, PROTOCOLS

Row = dict[str, str]
Content = dict[str, Any]
NONE = "–"
FEATURES = {
    "expression": "expression features",
    "identity": "identity features",
    "features": "its features",
}
TITLES = {
    "overview": "Overview",
    "expression": "Expression",
    "identity": "Identity",
    "leakage": "Leakage of identity into expression features",
    "leakage_of_expression": "Leakage of expression into identity features",
    "yaw": "Accuracy by head yaw",
    "removal": "Identity removed",
    "swap": "Swap test",
    "cost": "Size and speed",
    "contamination": "Was the evaluation data in training?",
    "meshes": "Models of meshes, on ICT-3D",
}


def markdown(content: Content) -> str:
    """Format all tables with their titles."""
    parts = [f"## {title}\n\n{table_text(content, name)}" for name, title in TITLES.items()]
    return "\n\n".join(["# Benchmark", *parts]) + "\n"


def table_text(content: Content, name: str) -> str:
    """Format one table of the models whose features are all scored.

    Args:
        content: of a results file.
        name: a key of ``TABLES``.

    Raises:
        ValueError: if there is no such table.
    """
    if name not in TABLES:
        raise ValueError(f"unknown table {name!r}; expected {', '.join(TABLES)}")
    finished = {k: e for k, e in content["models"].items() if {*e["spaces"]} <= e["scores"].keys()}
    rows = list(TABLES[name](content | {"models": finished}))
    if not rows:
        return "Not measured."
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- contamination ------------------------------------------------------------------------------

DATA_NAMES = {
    FERPLUS: re.compile(r"(?<![a-z])FER(\+|[ _-]?(Plus|2013))", re.IGNORECASE),
    LFW: re.compile(r"(?<![a-z])LFW(?![a-z])|Labell?ed Faces in the Wild", re.IGNORECASE),
    LONDON: re.compile(r"(?<![a-z])London(?![a-z])", re.IGNORECASE),
}
"""Names of the data of an evaluation in texts and file names."""
SPLIT_NAMES = re.compile(r"\b(train|val|test)\b", re.IGNORECASE)
CLEAN, PART, SEEN, UNKNOWN = "no", "train split", "yes", "not stated"
INDIRECT = "indirectly"


def contamination_of(trained_on: Sequence[str] | None) -> dict[str, str]:
    """Report for each evaluation whether its images were in training, as far as cards state it.

    Args:
        trained_on: a text per data set, as in a card; None if nothing is stated.

    Returns:
        By evaluation: ``"no"`` if no text names the data set, ``"train split"`` if every text that
        names it states train and no other split, ``"indirectly"`` if only a model that the model
        learned from saw the images, else ``"yes"``.
    """
    if trained_on is None:
        return dict.fromkeys(DATA_NAMES, UNKNOWN)
    direct = [text for text in trained_on if BY_WAY not in text]
    answers = {}
    for evaluation in DATA_NAMES:
        answer = _seen(evaluation, trained_on)
        by_others = answer == SEEN and _seen(evaluation, direct) != SEEN
        answers[evaluation] = INDIRECT if by_others else answer
    return answers


def _seen(evaluation: str, trained_on: Sequence[str]) -> str:
    pattern, split = DATA_NAMES[evaluation], evaluation.split()[-1]
    splits = [
        {word.lower() for word in SPLIT_NAMES.findall(pattern.sub("", text))}
        for text in trained_on
        if pattern.search(text)
    ]
    clean = all(names == {"train"} for names in splits) and split in ("val", "test")
    return CLEAN if not splits else PART if clean else SEEN


# --- tables -----------------------------------------------------------------------------------


def overview(content: Content) -> Iterator[Row]:
    """Summarize each model; the first row is the chance level."""
    for number, (name, entry) in enumerate(content["models"].items()):
        first, last = _spaces(entry)
        expression = [entry["scores"][first]["expression"][key] for key in PROTOCOLS]
        identification = entry["scores"][first]["identity"]["identification"]
        verification = entry["scores"][last]["identity"]["verification"]
        leak = entry["scores"][last]["expression"][FERPLUS]["probe"]
        others = (verification, identification, leak)
        if number == 0:
            chances = [part["probe"]["chance"] for part in expression]
            yield _overview_row("*chance*", chances, [o["chance"] for o in others], None)
        accuracies = [part["linear"]["accuracy"] for part in expression]
        yield _overview_row(f"`{name}`", accuracies, [o["accuracy"] for o in others], entry)


def _overview_row(
    name: str, expression: list[float], others: list[float], entry: Content | None
) -> Row:
    speed = entry.get("speed") if entry else None
    return {
        "model": name,
        **{f"expression, {key}": _n(v) for key, v in zip(PROTOCOLS, expression, strict=True)},
        "same identity, LFW pairs": _n(others[0]),
        "identity from expression features": _n(others[1]),
        "expression from identity features": _n(others[2]),
        "parameters": _millions(entry["parameters"]) if entry else "",
        "images/s": _rate(speed["images_per_second"]) if speed else "",
    }


SHORT = {
    "model": "model",
    f"expression, {FERPLUS}": f"expression, {FERPLUS}",
    "same identity, LFW pairs": "same identity, LFW pairs",
    "identity from expression features": "identity from expression features, LFW",
    "London": "the same, London",
    "expression from identity features": "expression from identity features, FER+",
}
"""Columns of the short table, by column of the overview."""


def short(content: Content) -> Iterator[Row]:
    """Select a few columns of the overview, and add the leakage of identity on London."""
    scores = [entry["scores"] for entry in content["models"].values()]
    matches = [part[next(iter(part))]["identity"]["same identity"] for part in scores]
    values = [match["chance"] for match in matches[:1]] + [m["accuracy"] for m in matches]
    for row, value in zip(overview(content), values, strict=True):
        cells = row | {"London": _n(value)}
        yield {title: cells[column] for column, title in SHORT.items()}


def expression(content: Content) -> Iterator[Row]:
    """Compare a linear probe and nearest neighbors on the expression features."""
    for name, entry in content["models"].items():
        space = _spaces(entry)[0]
        for key, part in entry["scores"][space]["expression"].items():
            yield {
                "model": f"`{name}`",
                "features": FEATURES[space],
                "measured on": f"{key}, {part['images']} images",
                "linear probe: accuracy": _n(part["linear"]["accuracy"]),
                "macro-F1": _n(part["linear"]["macro-F1"]),
                "nearest neighbors: accuracy": _n(part["neighbors"]["accuracy"]),
                "macro-F1 ": _n(part["neighbors"]["macro-F1"]),
                "chance": _n(part["probe"]["chance"]),
                "control": _n(part["probe"]["control"]),
            }


IDENTITY = {
    "verification": "same identity, LFW pairs",
    "identification": "identification, LFW val",
    "same identity": "smiling to neutral, London",
}
"""Column of each identity score."""


def identity(content: Content) -> Iterator[Row]:
    """List the scores of the identity features."""
    for name, entry in content["models"].items():
        space = _spaces(entry)[1]
        part = entry["scores"][space]["identity"]
        cells = {column: _with_spread(part[key]) for key, column in IDENTITY.items()}
        yield {"model": f"`{name}`", "features": FEATURES[space], **cells}


def leakage(content: Content) -> Iterator[Row]:
    """List how well expression features predict the identity."""
    yield from _leaks(content, "expression", "identity", _identity_scores)


def leakage_of_expression(content: Content) -> Iterator[Row]:
    """List how well identity features predict the expression."""
    yield from _leaks(content, "identity", "expression", _expression_scores)


def _identity_scores(scores: Content) -> Content:
    return {column: scores["identity"][key] for key, column in IDENTITY.items()}


def _expression_scores(scores: Content) -> Content:
    return {f"expression, {key}": scores["expression"][key]["probe"] for key in PROTOCOLS}


def _leaks(
    content: Content, space: str, intended: str, scores_of: Callable[[Content], Content]
) -> Iterator[Row]:
    """Yield chance, and for each model the leak, its control and the intended features."""
    both = {k: e["scores"] for k, e in content["models"].items() if len(e["scores"]) > 1}
    for number, (name, scores) in enumerate(both.items()):
        leak, meant = scores_of(scores[space]), scores_of(scores[intended])
        if number == 0:
            chance = {key: _n(score["chance"]) for key, score in leak.items()}
            yield {"model": "*chance*", "from": "", **chance}
        cells = {key: _with_spread(score) for key, score in leak.items()}
        yield {"model": f"`{name}`", "from": FEATURES[space], **cells}
        control = {key: _n(score["control"]) for key, score in leak.items()}
        yield {"model": "", "from": "the same, shuffled labels (control)", **control}
        cells = {key: _with_spread(score) for key, score in meant.items()}
        yield {"model": "", "from": f"{FEATURES[intended]}, for comparison", **cells}


def yaw(content: Content) -> Iterator[Row]:
    """List the accuracy of the linear probe by head yaw."""
    lines = [
        (key, name, entry["scores"][_spaces(entry)[0]]["expression"][key]["yaw"])
        for key in (FERPLUS, LFW)
        for name, entry in content["models"].items()
    ]
    limits = max(([b["beyond_deg"] for b in bins] for _, _, bins in lines), key=len, default=[])
    for key, name, bins in lines:
        cells = {b["beyond_deg"]: f"{_n(b['accuracy'])} ({b['images']})" for b in bins}
        columns = {
            "any yaw" if limit is None else f"over {limit}°": cells.get(limit, NONE)
            for limit in limits
        }
        yield {"measured on": key, "model": f"`{name}`", **columns}


REMOVED = {
    "expressions kept": "without {} identity directions, expressions kept",
    "nothing kept": "without {} identity directions",
    "control": "without {} directions of permuted identities, expressions kept",
}


def removal(content: Content) -> Iterator[Row]:
    """Compare features before and after identity removal, and after a control."""
    for name, entry in content["models"].items():
        if (removed := entry.get("removal")) is None:
            continue
        lines = {"unchanged": entry["scores"][removed["space"]]} | {
            text.format(removed[key]["directions"]): removed[key] for key, text in REMOVED.items()
        }
        for text, scores in lines.items():
            part = scores["identity"]
            yield {
                "model": f"`{name}`",
                FEATURES["expression"]: text,
                IDENTITY["identification"]: _n(part["identification"]["accuracy"]),
                "chance": _n(part["identification"]["chance"]),
                IDENTITY["verification"]: _n(part["verification"]["accuracy"]),
                IDENTITY["same identity"]: _n(part["same identity"]["accuracy"]),
                **{
                    f"expression, {key}": _n(value["linear"]["accuracy"])
                    for key, value in scores["expression"].items()
                },
            }


def swap(content: Content) -> Iterator[Row]:
    """Compare swapped, decoded and real images, as judges of other families score them."""
    for name, entry in content["models"].items():
        texts = " ".join(entry["trained on"] or ())
        for judge, part in entry["swap"].items():
            family = judge.partition(".")[0]
            first = {
                "model": f"`{name}`",
                "judge": f"`{judge}`",
                "the model was trained with the judge": "yes" if family in texts else "no",
            }
            images = {"decoded face": part, "edited crop": part.get("edited")}
            for kind, scores in images.items():
                if scores:
                    yield {**first, "image": kind, **_swap_scores(scores)}


def worst(content: Content) -> Iterator[Row]:
    """Summarize the swap test by the lowest score among the judges.

    The scores of original crops are those of the judge that gave the lowest score.
    """
    for name, entry in content["models"].items():
        judges = list(entry["swap"].values())
        edited = [{**part, **part["edited"]} for part in judges if part.get("edited")]
        for kind, scores in (("edited crop", edited), ("decoded face", judges)):
            if not scores:
                continue
            row = {"model": f"`{name}`", "image": kind}
            for measure in ("identity kept", "expression taken"):
                lowest = min(scores, key=lambda part: part[measure])
                original = lowest.get(f"{measure.split()[0]}, photographs")
                row[measure] = _n(lowest[measure])
                row[f"{measure}, original crops"] = _n(original)
            yield row


def _swap_scores(scores: Mapping[str, float]) -> Row:
    return {
        "identity kept": _n(scores["identity kept"]),
        "identity kept, unswapped": _n(scores.get("identity, decoded")),
        "identity kept, original": _n(scores.get("identity, photographs")),
        "expression taken": _n(scores["expression taken"]),
        "expression taken, unswapped": _n(scores.get("expression, decoded")),
        "expression taken, original": _n(scores.get("expression, photographs")),
        "neutralized: neutral": _n(scores.get("neutral")),
        "neutralized: identity kept": _n(scores.get("identity, neutralized")),
    }


def cost(content: Content) -> Iterator[Row]:
    """List size and speed."""
    for name, entry in content["models"].items():
        if (speed := entry.get("speed")) is None:
            continue
        threads = f"{speed['threads']} thread" + ("s" if speed["threads"] > 1 else "")
        yield {
            "model": f"`{name}`",
            "input": entry["input"],
            "features": ", ".join(f"{k} {v['dim']}" for k, v in entry["scores"].items()),
            "parameters": _millions(entry["parameters"]),
            "file": f"{entry['bytes'] / 1e6:.1f} MB" if entry["bytes"] else NONE,
            "images/s": _rate(speed["images_per_second"]),
            "time / untrained network": _n(speed["times_untrained"]),
            "on": f"{speed['device']}, {threads}",
        }


def contamination(content: Content) -> Iterator[Row]:
    """List the training data by name; the model cards describe them."""
    for name, entry in content["models"].items():
        texts = entry["trained on"]
        yield {
            "model": f"`{name}`",
            **contamination_of(texts),
            "trained on": NONE if texts is None else _names_of(texts) or "nothing",
        }


def _names_of(texts: Sequence[str]) -> str:
    """Shorten training data to names: its own, then those of each model that it learned from."""
    names: dict[str, dict[str, None]] = {}
    for text in (part for whole in texts for part in whole.split("; ")):
        data, _, model = text.partition(BY_WAY)
        name = data.partition(":")[0].replace(" (deep-funneled)", "")
        names.setdefault(model, {})[name] = None
    groups = {model: ", ".join(group) for model, group in names.items()}
    return "; ".join(
        f"by way of `{model}`: {group}" if model else group for model, group in groups.items()
    )


def meshes(content: Content) -> Iterator[Row]:
    """List models of meshes, whose data and protocols differ."""
    for name, entry in content["meshes"].items():
        values = {(m["name"], m["protocol"]): m for m in entry["metrics"]}
        whole = [key for key in values if not key[1].startswith(("shuffled", "1000", "0.5", "a "))]
        yield {
            "model": f"`{name}`",
            **{f"{key[0]}, {values[key]['unit']}": _n(values[key]["value"]) for key in whole},
            "trained on": "; ".join(entry["trained on"]),
        }


TABLES: dict[str, Callable[[Content], Iterator[Row]]] = {
    table.__name__: table
    for table in (
        overview,
        short,
        expression,
        identity,
        leakage,
        leakage_of_expression,
        yaw,
        removal,
        swap,
        worst,
        cost,
        contamination,
        meshes,
    )
}


def _spaces(entry: Content) -> tuple[str, str]:
    """Return the spaces for expression and for identity; the same if there is only one."""
    spaces = list(entry["scores"])
    return spaces[0], spaces[-1]


def _n(value: float | None) -> str:
    """Format a number with three digits or one decimal: the sets are small."""
    return NONE if value is None else f"{value:.{1 if abs(value) >= 10 else 2}f}"


def _rate(value: float) -> str:
    """Format a speed with three digits: it varies between runs."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else _n(rounded)


def _with_spread(score: Content) -> str:
    spread = score["spread"]
    return _n(score["accuracy"]) + ("" if spread is None else f" ± {_n(spread)}")


def _millions(count: int | None) -> str:
    return NONE if count is None else f"{count / 1e6:.1f} M"
