"""Names."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facezoo.errors import (
    CardError,
    UnknownNameError,
    UnsupportedError,
    WeightsNotFoundError,
)
from facezoo.hub import download as hub
from facezoo.hub import tensors as files
from facezoo.hub.card import (
    Card,
    Hub,
    bundled_cards,
    card_named,
)
from facezoo.hub.download import HubOptions
from facezoo.hub.families import FAMILIES, model_class

if TYPE_CHECKING:
    pass


HUB_PREFIX = "hf-hub:"


CONFIG = "config.json"


WEIGHTS = "model.safetensors"


HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Source:
    """What a name stands for: a card, and the caller's own weights file if it was a path."""

    card: Card
    path: Path | None = None


def resolve(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    options: HubOptions | None = None,
    bare_hub: bool = False,
) -> Source:
    """What a name stands for. Asks the Hub only for Hub repositories, and only for the card.

    Text that names something in the package comes before a file or folder of that name here;
    ``./name`` is the latter, and so is a ``Path`` of any name.

    Args:
        name: see ``facezoo.load``.
        revision: branch, tag or commit on the Hub.
        options: token, cache folder and the like, for the Hub.
        bare_hub: whether ``org/name`` is a Hub repository without the prefix.

    Raises:
        TypeError: if it is neither text nor a path.
        UnknownNameError: if it is none of the names, and no such path.
        PickleRefusedError: if it is a pickled file.
        CardError: if the card is missing or malformed.
        WeightsNotFoundError: if the Hub cannot give the card.
    """
    options = options or HubOptions()
    if isinstance(name, os.PathLike):
        files.refuse_pickle(Path(name))
        return _here(Path(name), revision)
    if not isinstance(name, str):
        raise TypeError(
            f"a model is named by text or a path, got {type(name).__name__}; "
            "facezoo.list_models() lists the names"
        )
    if not name.startswith(HUB_PREFIX):
        if name in bundled_cards() or name in FAMILIES:
            return Source(_pinned(card_named(name, FAMILIES), revision))
        files.refuse_pickle(Path(name))
        if (name and Path(name).exists()) or name.endswith(".safetensors"):
            return _here(Path(name), revision)
    match = HUB_NAME.fullmatch(name.removeprefix(HUB_PREFIX))
    if match and (bare_hub or name.startswith(HUB_PREFIX)):
        if None not in (revision, match["revision"]) and revision != match["revision"]:
            raise ValueError(
                f"{name} names the revision {match['revision']!r}, got revision={revision!r} as "
                "well; leave one of them out"
            )
        return _hosted(match["repo"], revision or match["revision"], options)
    if match or name.startswith(HUB_PREFIX):
        raise UnknownNameError(
            f"no file or folder {name!r} here; a repository on the Hub is named "
            "'hf-hub:org/name' or 'hf-hub:org/name@revision'"
        )
    return Source(card_named(name, FAMILIES))  # raises, listing near matches


def family_of(card: Card, cls: type[Any] | None = None) -> Any:
    """The class that a card's weights are for.

    Args:
        card: the checkpoint's card.
        cls: the class that was asked to load it, if one was.

    Raises:
        UnsupportedError: if ``cls`` is of another family.
        UnknownNameError: if this facezoo has no such family.
    """
    wanted = getattr(cls, "model_name", None)
    if wanted is None:
        return model_class(card.model)
    if wanted != card.model:
        raise UnsupportedError(
            f"{card.name} is a checkpoint of {card.model!r}, and {cls.__name__} is "  # type: ignore[union-attr]
            f"{wanted!r}; load it with facezoo.load() or FaceModel.from_pretrained()"
        )
    return cls


def _pinned(card: Card, revision: str | None) -> Card:
    if revision is not None:
        raise ValueError(
            f"{card.name} is pinned by its card, so revision={revision!r} cannot be chosen; for "
            f"another revision load 'hf-hub:{card.hub.repo}@{revision}'"
        )
    return card


def _here(path: Path, revision: str | None) -> Source:
    if revision is not None:
        raise ValueError(
            f"{path} is on this machine and has no revisions, got revision={revision!r}; "
            "leave it out, or name the repository as 'hf-hub:org/name'"
        )
    return _local(path)


def _local(path: Path) -> Source:
    """A folder as ``save_pretrained`` or a training run writes it, or a file with a card beside."""
    if path.is_dir():
        if not (path / CONFIG).is_file():
            return _local(_only_weights(path))
        card = Card.load(path / CONFIG)
        named = [path / card.hub.file, path / card.weights.file]
        return Source(card, next((file for file in named if file.is_file()), path / WEIGHTS))
    if not path.is_file():
        known = str(path) in bundled_cards() or str(path) in FAMILIES
        hint = f"; for the model of that name pass the text {str(path)!r}" if known else ""
        raise WeightsNotFoundError(f"no weights file or folder {path}{hint}")
    beside = [path.with_name(f"{path.stem}.json"), path.with_name(CONFIG)]
    for candidate in beside:
        if candidate.is_file():
            return Source(Card.load(candidate), path)
    raise CardError(
        f"{path} has no card beside it (looked for {beside[0].name} and {CONFIG}), so its "
        "architecture is unknown; build the model with facezoo.load(name, pretrained=False) and "
        "load the tensors with facezoo.hub.tensors.load_into(), then call save_pretrained()"
    )


def _only_weights(folder: Path) -> Path:
    """The weights file of a folder without ``config.json``, such as a training run's.

    Raises:
        PickleRefusedError: if there are pickled files only.
        WeightsNotFoundError: if there is no weights file, or more than one.
    """
    found = sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if not found:
        for file in sorted(folder.iterdir()):
            files.refuse_pickle(file)
    names = ", ".join(file.name for file in found) or "none"
    raise WeightsNotFoundError(
        f"the folder {folder} has no {CONFIG}, which save_pretrained() writes, and not one "
        f".safetensors file but {names}; name a .safetensors file with its card beside it"
    )


def _hosted(repo: str, revision: str | None, options: HubOptions) -> Source:
    """A Hub repository: its card, with the commit that the card came from."""
    path, commit = hub.fetch(repo, CONFIG, revision, options)
    try:
        card = Card.load(path)
    except CardError as error:
        hub.discard(path, hub.cache_folder(options))
        raise CardError(
            f"the {CONFIG} of {repo} at {commit} is not a facezoo card ({error}); only "
            "repositories that save_pretrained() or push_to_hub() filled can be loaded"
        ) from error
    return Source(replace(card, hub=Hub(repo, commit, card.hub.file)))
