"""What every training loop needs: exact resume, a log, an average of the weights, a schedule."""

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
from tqdm.auto import tqdm

from facezoo.errors import UnknownNameError, differences
from facezoo.hub.card import Card, Hub, Licenses, Preprocessing, Training, Weights
from facezoo.hub.tensors import save, sha256_of
from facezoo.version import __version__

Recipe = TypeVar("Recipe")

REHEARSED = "Rehearsed with --smoke on few steps: these weights have learnt nothing."
"""What the card of a rehearsal says."""


def recipe_named(recipes: Mapping[str, Recipe], name: str) -> Recipe:
    """A recipe by name.

    Raises:
        UnknownNameError: if there is no such recipe; the message lists near matches.
    """
    if name not in recipes:
        near = get_close_matches(name, recipes) or sorted(recipes)
        raise UnknownNameError(f"no recipe named {name!r}; did you mean {' or '.join(near)}?")
    return recipes[name]


def shortened(recipe: Recipe, **values: Any) -> Recipe:
    """A recipe with some of its fields set, at any depth; to rehearse it in a few steps.

    Args:
        recipe: a dataclass, which may hold others.
        values: of fields by name, such as ``epochs=1``.

    Returns:
        A copy in which every field of these names has that value.
    """
    changed: dict[str, Any] = {}
    for entry in fields(recipe):  # type: ignore[arg-type]
        value = getattr(recipe, entry.name)
        if entry.name in values:
            changed[entry.name] = values[entry.name]
        elif is_dataclass(value):
            changed[entry.name] = shortened(value, **values)
    return replace(recipe, **changed)  # type: ignore[type-var]


def begin_run(out: Path, *, seed: int, recipe: dict[str, Any]) -> dict[str, Any]:
    """Record where a run came from, or read the record of the run that is being resumed.

    Raises:
        ValueError: if the folder holds a run of another recipe or seed.
    """
    record = out / "run.json"
    wanted = json.loads(json.dumps({"seed": seed, "recipe": recipe}))
    if record.is_file():
        run: dict[str, Any] = json.loads(record.read_text())
        before, now = (dict(_flat({key: said[key] for key in wanted})) for said in (run, wanted))
        if shown := differences(before, now):
            raise ValueError(
                f"{out} holds a run of another recipe or seed ({shown}; see {record}); give "
                "another --out, or remove that folder to begin anew"
            )
        return run
    run = {**wanted, "commit": _commit(), "hardware": _hardware()}
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(run, indent=2) + "\n")
    return run


def check_data(out: Path, data: Mapping[str, Any], *parts: Path) -> None:
    """Record what a run is trained on, or refuse other data than those it was begun with.

    Args:
        out: folder of the run, which ``begin_run`` has begun.
        data: what tells these data from others, see ``digest_of_files``.
        parts: folders of runs that came before, whose data must be the same.

    Raises:
        ValueError: if the data are others; the message says in what.
    """
    for folder in (*parts, out):
        record = folder / "run.json"
        run: dict[str, Any] = json.loads(record.read_text())
        if "data" in run:
            said = ({f"data.{key}": value for key, value in d.items()} for d in (run["data"], data))
            if shown := differences(*said):
                raise ValueError(
                    f"{folder} was begun with other data ({shown}; see {record}); give the same "
                    "again (--data, and --start if there is one), or another --out to begin anew"
                )
        elif folder == out:
            record.write_text(json.dumps({**run, "data": data}, indent=2) + "\n")


def digest_of_files(root: Path, files: Sequence[Path]) -> dict[str, Any]:
    """What tells files from others: how many, and a hash of names below ``root`` and contents."""
    digest = hashlib.sha256()
    for file in tqdm(files, desc="checking data", unit="file", delay=5):
        line = f"{file.relative_to(root).as_posix()} {sha256_of(file)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return {"files": len(files), "sha256": digest.hexdigest()[:12]}


def _flat(said: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of nested dicts, by the keys that lead to them."""
    for key, value in said.items():
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
    architecture: dict[str, Any],
    preprocessing: Preprocessing | None,
    labels: tuple[str, ...],
    precision: str,
    licenses: Licenses,
    data: tuple[str, ...],
    intended_use: str,
    citation: str,
    base: Card | None = None,
    smoke: bool = False,
) -> Path:
    """Write weights and card of a finished run; ``facezoo evaluate --card`` adds the metrics.

    The card's command is one ``facezoo train`` for every stage, in order: of ``model`` with the
    stage's own flags, or of the ``parts`` where these are commands of their own. Of ``base``, the
    checkpoint that training started from, it has the name and, before ``data``, the data. A
    rehearsal, ``smoke``, says that it is one.

    Returns:
        The card's path, ``out/<model>.<tag>.json``.
    """
    weights = save(module, out / f"{model}.{tag}.safetensors", precision)
    count = sum(parameter.numel() for parameter in module.parameters())
    size, digest = weights.stat().st_size, sha256_of(weights)
    runs = [(part, "") for part in parts] or [(model, stage) for stage in stages]
    command = " && ".join(
        f"facezoo train {part} --data DATA --out runs/{model}{flags}{stage} --seed {run['seed']}"
        + " --smoke" * smoke
        for part, stage in runs
    )
    training = Training(
        data=(*(base.training.data if base else ()), *data),
        command=command,
        commit=run["commit"],
        recipe=run["recipe"],
        seed=run["seed"],
        hardware=run["hardware"],
        base=base.name if base else None,
    )
    card = Card(
        model=model,
        tag=tag,
        default=default,
        architecture=architecture,
        preprocessing=preprocessing,
        labels=labels,
        weights=Weights(weights.name, digest, size, precision, count),
        hub=Hub(repo=f"facezoo/{model}.{tag}"),
        licenses=licenses,
        training=training,
        metrics=(),
        limits=(REHEARSED,) * smoke,
        intended_use=intended_use,
        citation=citation,
    )
    path = out / f"{model}.{tag}.json"
    path.write_text(card.to_json(), encoding="utf-8")
    return path


def _commit() -> str:
    """The commit of this checkout, or the version where there is none."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"
    return head.stdout.strip() + (" with changes" if changes.stdout.strip() else "")


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}, bfloat16 autocast"
