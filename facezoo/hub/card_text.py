"""Cards as text: the screen of ``facezoo info`` and the README of a Hub repository."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from textwrap import fill, shorten
from typing import Any

WIDTH = 96
HEADLINES, LIMITS = 5, 9
"""Metrics and limits in a summary."""
SUMMARIES = {
    "adv3d": "Identity and expression of 3D face meshes, each in a code of its own.",
    "face-detector": "Boxes and five landmarks of faces, for all models of this package.",
    "ipd-fer": "Expression features of face images, apart from identity and pose.",
    "latent-simclr": "Expression and identity features of StyleGAN2 codes, with the generator.",
    "latentface": "Faces in 3D: depth, albedo, light and view; identity apart from expression.",
}
"""One line about each family, for its cards."""
# Preferred metrics of a summary; the others follow in the order of the card.
FIRST = (
    *("accuracy", "balanced accuracy", "identity from expression features"),
    *("expression from identity features", "verification by identity features"),
    *("E_rec", "AVD_neu", "rank-1 from z_exp", "expression from z_id", "expression"),
)
# Names that end like this describe another metric.
DERIVED = (", chance", ", control", ", above chance", "deviation", "deviation over folds")

# Identifiers that the Hub accepts as `license`; any other license is `other` with a name.
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


def summary(card: Any, full: bool = False) -> str:
    """Return the text of ``Card.summary``."""
    weights, use = card.weights, card.intended_use or "not stated"
    rows = [
        ("what", SUMMARIES.get(card.model, card.model)),
        ("use", use if full else shorten(use, WIDTH - 12, placeholder=" ...")),
        ("size", f"{weights.parameters / 1e6:.1f} M parameters, {_size(card)}"),
        ("input", _input(card)),
        ("classes", ", ".join(card.labels)),
        ("licenses", "; ".join(f"{k} {v}" for k, v in _licenses(card).items())),
        ("trained on", ", ".join(card.training.data) or "nothing"),
    ]
    if full:
        place = "in the package only"
        if card.hub.repo and card.hub.revision:  # a card without revision is not on the Hub yet
            place = f"{card.hub.repo} at {card.hub.revision[:12]}"
        rows += [
            ("command", card.training.command or "not recorded"),
            ("sha256", weights.sha256),
            ("hub", place),
        ]
    lines = [f"{card.name}{' (default)' if card.default else ''}"]
    lines += [_wrapped(f"  {name:<11}", text) for name, text in rows if text]
    lines += ["", "metrics" if card.metrics else "metrics: none measured"]
    lines += _metrics(card.metrics if full else _headlines(card.metrics))
    lines += ["", "limits" if card.limits else "limits: none on record"]
    for limit in card.limits if full else card.limits[:LIMITS]:
        text = limit if full else shorten(limit, WIDTH - 4, placeholder=" ...")
        lines.append(_wrapped("  - ", text))
    if not full:
        more = max(0, len(card.limits) - LIMITS)
        lines += [f"  - and {more} more"] * (more > 0)
        lines += ["", f"everything: facezoo info {card.name} --all"]
    return "\n".join(lines)


def _size(card: Any) -> str:
    return f"{card.weights.size / 1e6:.1f} MB in {card.weights.dtype}"


def _input(card: Any) -> str:
    if card.preprocessing is None:
        return "face meshes or point clouds, with units"
    size = card.preprocessing.size
    return (
        f"face images, aligned to crops of {size} x {size} pixels ({card.preprocessing.template})"
    )


def _licenses(card: Any) -> dict[str, str]:
    licenses = card.licenses
    return {"code": licenses.code, "weights": licenses.weights, "data": licenses.data}


def _wrapped(begin: str, text: str) -> str:
    return fill(text, WIDTH, initial_indent=begin, subsequent_indent=" " * len(begin))


def _headlines(metrics: Sequence[Any]) -> list[Any]:
    """Choose up to ``HEADLINES`` metrics of different names and values."""
    ranks = {name: rank for rank, name in enumerate(FIRST)}
    main = [metric for metric in metrics if not metric.name.endswith(DERIVED)]
    chosen: list[Any] = []
    for metric in sorted(main, key=lambda metric: ranks.get(metric.name, len(ranks))):
        if all(metric.name != m.name and metric.value != m.value for m in chosen):
            chosen.append(metric)
    return chosen[:HEADLINES]


def _value(metric: Any) -> str:
    unit = metric.unit if metric.unit in ("", "%") else f" {metric.unit}"
    return f"{metric.value:.4g}{unit}"


def _metrics(metrics: Sequence[Any]) -> Iterator[str]:
    """List metrics, each name once, with one line per protocol below it."""
    for name in dict.fromkeys(metric.name for metric in metrics):
        yield f"  {name}"
        for metric in metrics:
            if metric.name == name:
                place = " ".join(filter(None, (metric.dataset, metric.split)))
                yield _wrapped(f"    {_value(metric):<12}", f"{place}: {metric.protocol}")


def readme(card: Any, picture: str | None = None) -> str:
    """Return the text of ``Card.to_markdown``."""
    source = f"hf-hub:{card.hub.repo}" if card.hub.repo else "path/to/this/folder"
    training, weights = card.training, card.weights
    facts = {
        "data": ", ".join(training.data) or "none",
        "started from": training.base,
        "command": f"`{training.command}`" if training.command else None,
        "commit": training.commit,
        "seed": training.seed,
        "hardware": training.hardware,
    }
    history = [f"- {key}: {value}" for key, value in facts.items() if value not in (None, "")]
    if training.recipe:
        recipe = json.dumps(training.recipe, indent=2, ensure_ascii=False)
        history += ["", "```json", recipe, "```"]
    classes = f"\n- classes: {', '.join(card.labels)}" if card.labels else ""
    sections = {
        "Limits": "\n".join(f"- {limit}" for limit in card.limits) or "None on record.",
        "Intended use": card.intended_use,
        "How to use": "```console\npip install facezoo\n```\n\n"
        f"```python\n{_snippet(card, source)}\n```",
        "Evaluation": _table(_headlines(card.metrics)) if card.metrics else "None measured.",
        "Model": f"- input: {_input(card)}{classes}\n- size: {weights.parameters} parameters, "
        f"{_size(card)}, SHA-256 `{weights.sha256}`",
        "Licenses": "\n".join(f"- {name}: {value}" for name, value in _licenses(card).items()),
        "Training": "\n".join(history),
        "All measurements": _table(card.metrics) if len(card.metrics) > HEADLINES else "",
        "Citation": f"```bibtex\n{card.citation}\n```" if card.citation else "",
    }
    image = f"![Example of {card.name}]({picture})\n\n" if picture else ""
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    what = SUMMARIES.get(card.model, "")
    return f"---\n{_metadata(card, picture)}\n---\n\n# {card.name}\n\n{what}\n\n{image}{body}\n"


def _snippet(card: Any, source: str) -> str:
    """Return a few lines of Python that use the checkpoint."""
    if card.model == "face-detector":
        return 'import facezoo\n\nfaces = facezoo.detect("portrait.jpg")\nprint(faces.to_frame())'
    lines = ["import facezoo", "", f'model = facezoo.load("{source}")']
    if card.preprocessing is None:
        lines.append('codes = model.encode("face.ply", units="mm")')
    elif card.labels:
        lines.append('print(model.predict_expression("portrait.jpg").to_frame())')
    else:
        lines.append('features = model.encode("portrait.jpg")')
    return "\n".join(lines)


def _table(metrics: Sequence[Any]) -> str:
    rows = ["| metric | value | data set | split | protocol | command |", "|---" * 6 + "|"]
    rows += [
        f"| {m.name} | {_value(m)} | {m.dataset} | {m.split} | {m.protocol} | `{m.command}` |"
        for m in metrics
    ]
    return "\n".join(rows)


def _metadata(card: Any, picture: str | None) -> str:
    """Write the YAML header of the README; ``model-index`` has scores on test splits only."""
    from huggingface_hub import EvalResult, ModelCardData

    license_name = card.licenses.weights
    known = license_name.lower() in HUB_LICENSES
    task = "image-classification" if card.labels else "image-feature-extraction"
    if card.model == "face-detector":
        task = "object-detection"
    scores = _headlines([metric for metric in card.metrics if metric.split == "test"])
    results = [
        EvalResult(
            task_type=task,
            dataset_type=_slug(metric.dataset),
            dataset_name=metric.dataset,
            dataset_split=metric.split,
            metric_type=_slug(metric.name),
            metric_name=f"{metric.name}, {metric.unit}; {metric.protocol}",
            metric_value=metric.value,
        )
        for metric in scores
    ]
    data = ModelCardData(
        library_name="facezoo",
        license=license_name.lower() if known else "other",
        license_name=None if known else license_name,
        pipeline_tag=None if card.preprocessing is None else task,
        tags=["facezoo", card.model, "face", "disentanglement"],
        widget=[{"src": picture, "example_title": "example"}] if picture else None,
        model_name=card.name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().strip()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
