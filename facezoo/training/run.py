"""Record the recipe, seed and data of a training run, and save its weights with a card."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from facezoo.errors import UnknownNameError, differences
from facezoo.hub.card import Card, Hub, Licenses, Preprocessing, Training, Weights
from facezoo.hub.tensors import save, sha256_of
from facezoo.progress import progress_bar
from facezoo.version import __version__

Recipe = TypeVar("Recipe")

RESEARCH_ONLY = Licenses(code="Apache-2.0", weights="research-only", data="research-only")
"""Licenses of checkpoints that were trained on images."""
REHEARSED = "Trained with --smoke for a few steps: these weights have learned nothing."
"""Limit in the card of a rehearsal."""


def recipe_named(recipes: Mapping[str, Recipe], name: str) -> Recipe:
    """Return a recipe by name.

    Raises:
        UnknownNameError: if there is no such recipe; the message lists similar names.
    """
    if name not in recipes:
        near = get_close_matches(name, recipes) or sorted(recipes)
        raise UnknownNameError(f"no recipe named {name!r}; did you mean {' or '.join(near)}?")
    return recipes[name]


def shortened(recipe: Recipe, **values: Any) -> Recipe:
    """Return a recipe with other values of some fields at any depth, such as ``epochs=1``."""
    changed: dict[str, Any] = {}
    for entry in fields(recipe):  # type: ignore[arg-type]
        value = getattr(recipe, entry.name)
        if entry.name in values and value != 0:  # a stage counts epochs or steps
            changed[entry.name] = values[entry.name]
        elif is_dataclass(value):
            changed[entry.name] = shortened(value, **values)
    return replace(recipe, **changed)  # type: ignore[type-var]


def begin_run(out: Path, *, seed: int, recipe: dict[str, Any]) -> dict[str, Any]:
    """Write the record of a new run, or return the record of the run that is resumed.

    Raises:
        ValueError: if the folder holds a run of another recipe or seed, or the recipe has a number
            that is not finite.
    """
    record = out / "run.json"
    # A card is strict JSON, so a number that it cannot hold is an error before the training.
    text = json.dumps(
        {"seed": seed, "recipe": recipe},
        allow_nan=False,
        default=lambda value: value.tolist(),  # scalars of numpy
    )
    settings = json.loads(text)
    if record.is_file():
        run: dict[str, Any] = json.loads(record.read_text())
        before = {key: run[key] for key in settings}
        if shown := differences(dict(_flat(before)), dict(_flat(settings))):
            raise ValueError(
                f"{out} holds a run of another recipe or seed ({shown}; see {record}); give "
                "another --out, or remove that folder to start again"
            )
        return run
    run = {**settings, "commit": _commit(), "hardware": _hardware()}
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(run, indent=2) + "\n")
    return run


def check_data(out: Path, data: Mapping[str, Any], *earlier: Path) -> None:
    """Add the digest of the training data to a run's record, or compare it with the record.

    Args:
        out: folder of the run, with its ``run.json``.
        data: digest of the data, such as the sizes and hashes of ``digest_of_files``.
        earlier: folders of earlier runs that must have used the same data.

    Raises:
        ValueError: if the data differ; the message names the difference.
    """
    for folder in (*earlier, out):
        record = folder / "run.json"
        run: dict[str, Any] = json.loads(record.read_text())
        if "data" in run:
            before, now = (dict(_flat({"data": dict(digest)})) for digest in (run["data"], data))
            if shown := differences(before, now):
                raise ValueError(
                    f"{folder} was begun with other data ({shown}; see {record}); give the same "
                    "--data (and --start, if any), or another --out to start again"
                )
        elif folder == out:
            record.write_text(json.dumps({**run, "data": data}, indent=2) + "\n")


def digest_of_files(root: Path, files: Sequence[Path]) -> dict[str, Any]:
    """Return the number of files and a hash of their names below ``root`` and their contents."""
    digest = hashlib.sha256()
    for file in progress_bar(files, desc="checking data", unit="file", delay=5):
        line = f"{file.relative_to(root).as_posix()} {sha256_of(file)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return {"files": len(files), "sha256": digest.hexdigest()[:12]}


def _flat(nested: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested dicts with dotted keys."""
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", entry) for inner, entry in _flat(value))
        else:
            yield key, value


def write_checkpoint(
    module: nn.Module,
    out: Path,
    run: dict[str, Any],
    *,
    model: str,
    tag: str,
    default: bool = True,
    flags: str = "",
    stages: tuple[str, ...] = ("",),
    parts: tuple[str, ...] = (),
    architecture: dict[str, Any] | None = None,
    preprocessing: Preprocessing | None = None,
    labels: tuple[str, ...] = (),
    precision: str,
    licenses: Licenses = RESEARCH_ONLY,
    data: tuple[str, ...],
    intended_use: str,
    citation: str,
    base: Card | None = None,
    before: str = "",
    smoke: bool = False,
) -> Path:
    """Write weights and card of a finished run; ``facezoo evaluate --card`` adds the metrics.

    The card's command joins one ``facezoo train`` per stage: of ``model`` with the stage's flags,
    or of each of ``parts`` if these are commands of their own. ``base`` is the checkpoint that
    training started from; its name and data enter the card. Without one, the name is that in
    ``run``, if any. The command ``before`` ran earlier. ``smoke`` marks a rehearsal.
    ``architecture`` is by default the module's own.

    Returns:
        The card's path, ``out/<model>.<tag>.json``.
    """
    weights = save(module, out / f"{model}.{tag}.safetensors", precision)
    runs = [(part, "") for part in parts] or [(model, stage) for stage in stages]
    command = " && ".join(
        f"facezoo train {part} --data DATA --out runs/{model}{flags}{stage} --seed {run['seed']}"
        + " --smoke" * smoke
        for part, stage in runs
    )
    command = " && ".join(filter(None, (before, command)))
    card = Card(
        model=model,
        tag=tag,
        default=default,
        architecture=module.architecture if architecture is None else architecture,  # type: ignore[arg-type]
        preprocessing=preprocessing,
        labels=labels,
        weights=Weights(
            file=weights.name,
            sha256=sha256_of(weights),
            size=weights.stat().st_size,
            dtype=precision,
            parameters=sum(parameter.numel() for parameter in module.parameters()),
        ),
        hub=Hub(repo=f"facezoo/{model}.{tag}"),
        licenses=licenses,
        training=Training(
            data=tuple(dict.fromkeys((*(base.training.data if base else ()), *data))),
            command=command,
            commit=run["commit"],
            recipe=run["recipe"],
            seed=run["seed"],
            hardware=run["hardware"],
            base=base.name if base else run.get("base"),
        ),
        metrics=(),
        limits=(REHEARSED,) * smoke,
        intended_use=intended_use,
        citation=citation,
    )
    path = out / f"{model}.{tag}.json"
    path.write_text(card.to_json(), encoding="utf-8")
    return path


def _commit() -> str:
    """Return the commit of this checkout, or the version if it is not a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head, changes = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "."])
        )
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"
    return head.strip() + (" with changes" if changes.strip() else "")


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}"
