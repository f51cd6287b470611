"""Find the card of a checkpoint by its name: in the package, in a folder or on the Hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from facezoo.errors import CardError, UnknownNameError, UnsupportedError, WeightsNotFoundError
from facezoo.hub.card import Card, Hub, bundled_cards, card_named
from facezoo.hub.download import HubOptions, fetch
from facezoo.hub.families import FAMILIES, model_class
from facezoo.hub.tensors import PICKLE_SUFFIXES, reject_pickle

HUB_PREFIX = "hf-hub:"
HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
CONFIG = "config.json"
"""Name of the card in a folder or repository."""
WEIGHTS = "model.safetensors"
"""Name of the weights in a folder or repository."""


@dataclass(frozen=True)
class Source:
    """A card, and the weights file if the name was a path."""

    card: Card
    path: Path | None = None


def card_hash(name: str | os.PathLike[str]) -> str:
    """Hash the cards at a path, which change with the weights; empty for another name."""
    path = Path(name)
    if path.is_dir():
        cards = sorted(path.glob("*.json"))
    else:
        cards = [path.with_suffix(".json"), path.with_name(CONFIG)] if path.is_file() else []
    contents = sha256()
    for card in cards:
        contents.update(card.read_bytes() if card.is_file() else b"")
    return contents.hexdigest() if cards else ""


def resolve(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    options: HubOptions | None = None,
    bare_hub: bool = False,
) -> Source:
    """Find the card of a name; only names of Hub repositories need a request.

    A name in the package comes before a file or folder of that name in the current folder. For
    the latter, pass ``./name`` or a ``Path``.

    Args:
        name: model, checkpoint, folder, file or Hub repository, as ``facezoo.load`` takes it.
        revision: branch, tag or commit on the Hub.
        options: token, cache folder and the like, for the Hub.
        bare_hub: accept ``org/name`` without the prefix as a Hub repository.

    Raises:
        UnknownNameError: if there is no such name or path.
        PickleRefusedError: if it is a pickled file.
        CardError: if the card is missing or malformed.
        WeightsNotFoundError: if the Hub cannot give the card.
        ValueError: if there is a revision for a name that has none.
    """
    path, text = Path(name), str(name)
    is_text = isinstance(name, str)
    hub = HUB_NAME.fullmatch(text.removeprefix(HUB_PREFIX)) if is_text else None
    packaged = is_text and (text in bundled_cards() or text in FAMILIES)
    local = not is_text or (text != "" and path.exists()) or path.suffix in _LOCAL_SUFFIXES
    if packaged or (local and not text.startswith(HUB_PREFIX)):
        if revision is not None:
            raise ValueError(
                f"{name} has no revisions, got revision={revision!r}; leave it out, or name a "
                "repository as 'hf-hub:org/name'"
            )
        return Source(card_named(text, FAMILIES)) if packaged else _in_folder(path)
    if hub is None and not text.startswith(HUB_PREFIX):
        return Source(card_named(text, FAMILIES))  # raises an error that lists near matches
    if hub is None or not (bare_hub or text.startswith(HUB_PREFIX)):
        raise UnknownNameError(
            f"no file or folder {text!r} here; a repository on the Hub is named "
            "'hf-hub:org/name' or 'hf-hub:org/name@revision'"
        )
    if revision and hub["revision"] and revision != hub["revision"]:
        raise ValueError(f"{name} names a revision already, got revision={revision!r} as well")
    return _on_hub(hub["repo"], revision or hub["revision"], options or HubOptions())


def family_of(card: Card, cls: type[Any] | None = None) -> Any:
    """Return the class that loads a card's weights.

    Args:
        cls: the class that was asked to load it, if any.

    Raises:
        UnsupportedError: if ``cls`` is of another family.
        UnknownNameError: if this facezoo has no such family.
    """
    family = getattr(cls, "model_name", None)
    if family is None:
        return model_class(card.model)
    if family != card.model:
        raise UnsupportedError(
            f"{card.name} is a checkpoint of {card.model!r}, not of {family!r}; "
            "load it with facezoo.load() or FaceModel.from_pretrained()"
        )
    return cls


_LOCAL_SUFFIXES = (".safetensors", *PICKLE_SUFFIXES)


def _in_folder(path: Path) -> Source:
    """Find the card of a weights file, or of a folder that holds one."""
    if path.is_dir() and (path / CONFIG).is_file():
        card = Card.load(path / CONFIG)
        candidates = [path / card.hub.file, path / card.weights.file]
        return Source(card, next((file for file in candidates if file.is_file()), path / WEIGHTS))
    if path.is_dir():  # of a training run
        return _in_folder(_only_weights(path))
    reject_pickle(path)
    if not path.is_file():
        hint = f"; for the model of that name pass the text {str(path)!r}"
        known = str(path) in bundled_cards() or str(path) in FAMILIES
        raise WeightsNotFoundError(f"no weights file or folder {path}{hint if known else ''}")
    candidates = [path.with_name(f"{path.stem}.json"), path.with_name(CONFIG)]
    for candidate in candidates:
        if candidate.is_file():
            return Source(Card.load(candidate), path)
    raise CardError(
        f"{path} has no card: expected {candidates[0].name} or {CONFIG} in the same folder. Build "
        "the model with facezoo.load(name, pretrained=False), load the tensors with "
        "facezoo.hub.tensors.load_into() and call save_pretrained()"
    )


def _only_weights(folder: Path) -> Path:
    """Return the only weights file of a folder."""
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if not files:
        for file in sorted(folder.iterdir()):
            reject_pickle(file)
    names = ", ".join(file.name for file in files) or "none"
    raise WeightsNotFoundError(
        f"the folder {folder} has no {CONFIG}, as save_pretrained() writes it, and not one "
        f".safetensors file but {names}; pass the path of a .safetensors file that has a card"
    )


def _on_hub(repo: str, revision: str | None, options: HubOptions) -> Source:
    """Read the card of a Hub repository; add the commit that it came from."""
    path, commit = fetch(repo, CONFIG, revision, options)
    try:
        card = Card.load(path)
    except CardError as error:
        raise CardError(
            f"the {CONFIG} of {repo} at {commit} is not a facezoo card ({error}); facezoo loads "
            "repositories that save_pretrained() or push_to_hub() wrote"
        ) from error
    return Source(replace(card, hub=Hub(repo, commit, card.hub.file)))
