"""Training a checkpoint again by the command in its card, or rehearsing that on a few images."""

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

_COMMITS = ("autoencoding_commit", "commits")
"""Entries of recipes of several parts; those of new weights are others."""


@dataclass(frozen=True)
class Reproduction:
    """What came out of a card's command."""

    card: Path
    """Of the new weights."""
    smoke: bool
    same_weights: bool
    """Whether the new weights are those of the checkpoint, to the byte."""

    def __str__(self) -> str:
        if self.smoke:
            return f"{self.card}: the recipe runs; its weights have learnt nothing"
        same = (
            "the checkpoint's, to the byte" if self.same_weights else "other than the checkpoint's"
        )
        return f"{self.card}: trained; its weights are {same}"


def reproduce(
    name: str, data: str | Path, out: str | Path, *, smoke: bool = False, device: str | None = None
) -> Reproduction:
    """Run the command in the card of a checkpoint.

    Args:
        name: a bundled checkpoint, or a model for its default checkpoint.
        data: takes the place of DATA in the command.
        out: a folder, takes the place of what follows ``--out``.
        smoke: whether to take a few rows of the data and train one epoch of small batches, to see
            that the recipe still runs and gives a model of the same architecture.
        device: where to train; None for the best there is.

    Returns:
        Where the new card is, and whether its weights are the same.

    Raises:
        CardError: if the command in the card is none that trains, or gives another model.
        FileNotFoundError: if ``data`` is no folder or has not what the recipe needs.
        FileExistsError: if ``smoke`` and ``out`` holds anything, such as an earlier rehearsal.
        UnknownNameError: if there is no such checkpoint.
        RuntimeError: if the command fails; what it said stands on the error stream.
    """
    card = info(name)
    if smoke and Path(out).is_dir() and any(Path(out).iterdir()):
        raise FileExistsError(
            f"{out} is not empty, so that what stands there could pass for what the recipe gives; "
            "give --smoke (smoke=True) a new --out, or remove that folder"
        )
    with tempfile.TemporaryDirectory(prefix="facezoo-") as scratch:
        folder = Path(data)
        if smoke:
            from facezoo.data.cut import cut_packs

            cut_packs(folder, Path(scratch) / "data")
            folder = Path(scratch) / "data"
        for words in commands(card, folder, Path(out)):
            extra = ["--smoke"] * smoke + (["--device", device] if device else [])
            _run([*words, *extra])
    return _judged(card, Path(out), smoke)


def commands(card: Card, data: Path, out: Path) -> list[list[str]]:
    """The words of the commands in a card, one after another, after ``facezoo``.

    Commands are joined by ``&&`` where one needs what another wrote.

    Raises:
        CardError: if one of them is none that trains.
    """
    found = []
    for text in card.training.command.split("&&"):
        words = shlex.split(text)
        if words[:2] != ["facezoo", "train"] or "--out" not in words[:-1]:
            raise CardError(
                f"{card.name}: the card's command is {text.strip()!r}; only 'facezoo train ... "
                "--out ...' can be run again"
            )
        words = [str(data) if word == "DATA" else word for word in words[1:]]
        words[words.index("--out") + 1] = str(out)
        found.append(words)
    return found


def _run(words: list[str]) -> None:
    """In a process of its own, as it was run for the card."""
    done = subprocess.run([sys.executable, "-m", "facezoo", *words], check=False)
    if done.returncode:
        text = shlex.join(["facezoo", *words])
        raise RuntimeError(f"{text} ended with {done.returncode}; what it said stands above")


def _kept(card: Card) -> dict[str, object]:
    """What a rehearsed recipe must give as it stands in the card.

    Of the architecture only what shapes layers: fractions may have been fitted to the data.
    """
    shaping = {k: v for k, v in card.architecture.items() if not isinstance(v, float)}
    return {
        "architecture": shaping,
        "preprocessing": card.preprocessing,
        "labels": card.labels,
    }


def _settings(card: Card) -> dict[str, object]:
    """A card's recipe without the commits that parts of it were trained at."""
    return {k: v for k, v in card.training.recipe.items() if k not in _COMMITS}


def _judged(card: Card, out: Path, smoke: bool) -> Reproduction:
    paths = [*out.rglob(f"{card.name}.json"), *out.glob("config.json")]
    if not paths:
        raise CardError(f"the command of {card.name} wrote no card of that name below {out}")
    cards = [(path, Card.load(path)) for path in paths]
    # There may be runs of other seeds beside the one that was wanted.
    path, new = next((c for c in cards if c[1].training.seed == card.training.seed), cards[0])
    differ = [key for key, value in _kept(card).items() if _kept(new)[key] != value]
    if not smoke and _settings(new) != _settings(card):
        differ.append("training.recipe")
    if differ:
        raise CardError(
            f"{path} differs from {card.name} in {', '.join(differ)}: the recipe of that "
            f"name is another now; the card names the commit it was ({card.training.commit})"
        )
    return Reproduction(path, smoke, new.weights.sha256 == card.weights.sha256)
