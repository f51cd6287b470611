"""Run the training command of a card again, or rehearse it on a few images."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from facezoo.errors import CardError
from facezoo.hub.card import Card
from facezoo.registry import info

_COMMITS = ("autoencoding_commit", "commits", "training_commit")
"""Entries of a recipe that name commits; they differ in every training."""


@dataclass(frozen=True)
class Reproduction:
    """Result of a card's command."""

    card: Path
    """Card of the new weights."""
    smoke: bool
    same_weights: bool
    """True if the new weights equal those of the checkpoint byte for byte."""

    def __str__(self) -> str:
        if self.smoke:
            return f"{self.card}: the recipe runs; its weights are not trained"
        relation = "equal to" if self.same_weights else "different from"
        return f"{self.card}: trained; its weights are {relation} the checkpoint's"


def reproduce(
    name: str, data: str | Path, out: str | Path, *, smoke: bool = False, device: str | None = None
) -> Reproduction:
    """Run the command in the card of a checkpoint.

    Args:
        name: a bundled checkpoint, or a model for its default checkpoint.
        data: folder that replaces DATA in the command.
        out: folder that replaces the one after ``--out``, also in paths of files below it.
        smoke: train one epoch of small batches on a few rows, to check that the recipe still gives
            a model of the same architecture.
        device: where to train; None for the best available.

    Returns:
        The path of the new card, and whether its weights are the same.

    Raises:
        CardError: if the card's command does not train, or gives another model.
        FileNotFoundError: if ``data`` is not a folder or lacks what the recipe needs.
        FileExistsError: if ``smoke`` and ``out`` is not empty.
        UnknownNameError: if there is no such checkpoint.
        RuntimeError: if the command fails; it reports why on the error stream.
    """
    card, out = info(name), Path(out)
    if smoke and out.is_dir() and any(out.iterdir()):
        raise FileExistsError(
            f"{out} is not empty, so earlier results could be mistaken for those of the recipe; "
            "give --smoke (smoke=True) a new --out, or remove that folder"
        )
    with tempfile.TemporaryDirectory(prefix="facezoo-") as scratch:
        folder = Path(data)
        if smoke:
            from facezoo.data.cut import cut_packs

            folder = Path(scratch) / "data"
            cut_packs(Path(data), folder)
        for words in commands(card, folder, out):
            _run(words + ["--smoke"] * smoke + (["--device", device] if device else []))
    return _compare(card, out, smoke)


def commands(card: Card, data: Path, out: Path) -> list[list[str]]:
    """Split the command of a card into runs of ``facezoo``; ``&&`` joins them in the card.

    Raises:
        CardError: if one of them does not train.
    """
    runs = []
    for text in card.training.command.split("&&"):
        words = shlex.split(text)
        if words[:2] != ["facezoo", "train"] or "--out" not in words[:-1]:
            raise CardError(
                f"{card.name}: the card's command is {text.strip()!r}; only 'facezoo train ... "
                "--out ...' can be run again"
            )
        folder = words[words.index("--out") + 1]
        inside = [word for word in words if f"{word}/".startswith(f"{folder}/")]
        moved = {word: str(out / word[len(folder) + 1 :]) for word in inside}
        runs.append([{"DATA": str(data), **moved}.get(word, word) for word in words[1:]])
    return runs


def _run(words: list[str]) -> None:
    """Run ``facezoo`` in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "facezoo", *words], check=False)
    if done.returncode:
        text = shlex.join(["facezoo", *words])
        raise RuntimeError(f"{text} ended with {done.returncode}; see its output above")


def _compare(card: Card, out: Path, smoke: bool) -> Reproduction:
    """Compare the new card with the old one."""
    paths = [*out.rglob(f"{card.name}.json"), *out.glob("config.json")]
    if not paths:
        raise CardError(f"the command of {card.name} wrote no card of that name below {out}")
    cards = [(path, Card.load(path)) for path in paths]
    # The folder may hold runs of other seeds.
    path, new = next((c for c in cards if c[1].training.seed == card.training.seed), cards[0])
    old_parts, new_parts = _comparable(card, smoke), _comparable(new, smoke)
    if differ := [key for key in old_parts if old_parts[key] != new_parts[key]]:
        raise CardError(
            f"{path} differs from {card.name} in {', '.join(differ)}: the recipe of that name has "
            f"changed; the card names the commit that trained it ({card.training.commit})"
        )
    return Reproduction(path, smoke, new.weights.sha256 == card.weights.sha256)


def _comparable(card: Card, smoke: bool) -> dict[str, object]:
    """Select what the same recipe gives again; fractions may have been fitted to the data."""
    recipe = {k: v for k, v in card.training.recipe.items() if k not in _COMMITS}
    return {
        "architecture": {k: v for k, v in card.architecture.items() if not isinstance(v, float)},
        "preprocessing": card.preprocessing,
        "labels": card.labels,
        "training.recipe": None if smoke else recipe,
    }
