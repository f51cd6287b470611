"""Files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from facezoo.errors import (
    WeightsCorruptedError,
    WeightsError,
    WeightsNotFoundError,
    warn_once,
)
from facezoo.hub.card import Card, bundled_cards, packaged_file
from facezoo.hub.download import HubOptions, cache_folder, cached_file, discard, fetch

if TYPE_CHECKING:
    pass
from facezoo.hub.tensors import refuse_pickle, sha256_of


def find(card: Card, path: str | Path | None = None, options: HubOptions | None = None) -> Path:
    """A checkpoint's weights file, its SHA-256 verified.

    Looks at ``path`` only, if given; otherwise in the package, in the Hub cache, on the Hub.

    Args:
        card: what the file must be.
        path: the caller's own file.
        options: token, cache folder and the like, for the Hub.

    Returns:
        A file whose content is the one in the card.

    Raises:
        WeightsNotFoundError: if no place holds the file; ``HubOfflineError`` or
            ``HubUnreachableError`` if only the Hub could.
        WeightsCorruptedError: if a file is truncated or altered. In the package it is renamed to
            ``.corrupt`` and in the cache it is deleted, so that the next call can succeed; a file
            in a folder that cannot be written is passed over with a warning. ``path`` is left.
    """
    options = options or HubOptions()
    if path is not None:
        return _checked_own_file(card, Path(path))
    passed_over: list[str] = []
    if not options.force_download:
        for place, candidate in _places(card, options):
            problem = _problem(candidate, card) if candidate.is_file() else None
            if problem is not None:
                _retire(place, candidate, card, problem, options)
                passed_over.append(f"{candidate} ({problem})")
            elif candidate.is_file():
                _warn_of(passed_over)
                return candidate
    found = _from_hub(card, options, passed_over)
    _warn_of(passed_over)
    return found


def _problem(path: Path, card: Card) -> str | None:
    """What is wrong with a file, or None if it is the one in the card."""
    wanted = card.weights
    size = path.stat().st_size
    if size != wanted.size:
        kind = "truncated" if size < wanted.size else "altered"
        return f"{kind}: {size} bytes instead of {wanted.size}"
    digest = sha256_of(path)
    if digest != wanted.sha256:
        return f"altered: SHA-256 {digest} instead of {wanted.sha256}"
    return None


def _checked_own_file(card: Card, path: Path) -> Path:
    refuse_pickle(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"no weights file {path} for {card.name}")
    if problem := _problem(path, card):
        raise WeightsCorruptedError(
            f"{path} is not the file that the card of {card.name} describes ({problem}); copy it "
            "again, or, if you changed the weights yourself, write them with save_pretrained(), "
            "which writes a card to match"
        )
    return path


def _places(card: Card, options: HubOptions) -> Iterator[tuple[str, Path]]:
    packaged = bundled_cards().get(card.name)
    # A repository may have another version under the name of a checkpoint in the package.
    if packaged is not None and packaged.weights.sha256 == card.weights.sha256:
        yield "package", packaged_file(packaged)
    if card.hub.repo and card.hub.revision:
        cached = cached_file(card.hub.repo, card.hub.file, card.hub.revision, options)
        if cached is not None:
            yield "cache", cached


def _retire(place: str, path: Path, card: Card, problem: str, options: HubOptions) -> None:
    """Take a bad file out of use and raise; return only if the folder cannot be written."""
    if place == "cache":
        if not discard(path, cache_folder(options)):
            return
        done = "It has been deleted from the cache"
    else:
        try:
            path.replace(path.with_name(f"{path.name}.corrupt"))
        except FileNotFoundError:
            pass  # another process was first
        except OSError:
            return
        done = f"It has been renamed to {path.name}.corrupt"
    again = "call again to fetch it from the Hub" if card.hub.revision else "reinstall facezoo"
    raise WeightsCorruptedError(f"{path} is {problem}. {done}; {again}.")


def _warn_of(passed_over: list[str]) -> None:
    if passed_over:
        warn_once(
            f"passed over weights that cannot be trusted: {'; '.join(passed_over)}; the folder is "
            "read-only, so ask its owner to delete them",
            stacklevel=3,
        )


def _from_hub(card: Card, options: HubOptions, passed_over: list[str]) -> Path:
    also = f" (passed over: {'; '.join(passed_over)})" if passed_over else ""
    if not (card.hub.repo and card.hub.revision):
        if options.force_download and packaged_file(card).is_file():
            raise WeightsNotFoundError(
                f"the weights of {card.name} come with this installation ({packaged_file(card)}) "
                "and are not on the Hub (the card has no hub.revision), so force_download has "
                "nothing to fetch; leave it out"
            )
        raise WeightsNotFoundError(
            f"the weights of {card.name} are not in this installation ({packaged_file(card)}) and "
            f"not on the Hub yet (the card has no hub.revision){also}; install a released facezoo, "
            "which contains them, or load your own file by its path"
        )
    try:
        force = options.force_download or bool(passed_over)
        forced = replace(options, force_download=force)
        path, _ = fetch(card.hub.repo, card.hub.file, card.hub.revision, forced)
    except WeightsError as error:
        if not also:
            raise
        raise type(error)(f"{error}{also}") from error
    if problem := _problem(path, card):
        discard(path, cache_folder(options))
        raise WeightsCorruptedError(
            f"the Hub sent {card.hub.repo}/{card.hub.file} {problem}. It has been deleted from the "
            "cache; call again. If this stays, a proxy alters downloads or the repository has been "
            "tampered with: do not use the file."
        )
    return path
