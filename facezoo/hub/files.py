"""Find the weights file of a card in the package, the cache or on the Hub; verify its SHA-256."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from facezoo.errors import WeightsCorruptedError, WeightsError, WeightsNotFoundError, warn_once
from facezoo.hub.card import Card, bundled_cards, packaged_file
from facezoo.hub.download import HubOptions, cached_file, fetch
from facezoo.hub.tensors import reject_pickle, sha256_of


def find(card: Card, path: str | Path | None = None, options: HubOptions | None = None) -> Path:
    """Return a checkpoint's weights file with the SHA-256 in the card.

    Look at ``path`` only, if it is set; else in the package, in the Hub cache, on the Hub. A
    corrupted file in the package or in the cache gives a warning, and the Hub is asked instead.

    Args:
        path: the caller's own file.
        options: token, cache folder and the like, for the Hub.

    Raises:
        WeightsNotFoundError: if no place holds the file; ``HubOfflineError`` or
            ``HubUnreachableError`` if only the Hub could.
        WeightsCorruptedError: if the file is truncated or altered and the Hub cannot replace it.
    """
    options = options or HubOptions()
    if path is not None:
        return _own_file(card, Path(path))
    problems: list[str] = []
    for candidate in [] if options.force_download else _candidates(card, options):
        if (problem := _problem(candidate, card)) is None:
            return candidate
        problems.append(problem)
    force = options.force_download or problems != []
    try:
        file = _from_hub(card, replace(options, force_download=force))
    except WeightsError as error:
        if not problems:
            raise
        text = "; ".join(problems)
        raise WeightsCorruptedError(f"{text}. The Hub cannot replace it: {error}") from error
    if problems:
        warn_once(f"{'; '.join(problems)}; fetched it again from the Hub", stacklevel=2)
    return file


def _own_file(card: Card, path: Path) -> Path:
    reject_pickle(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"no weights file {path} for {card.name}")
    if problem := _problem(path, card):
        raise WeightsCorruptedError(
            f"{problem}; copy it again or, if you changed the weights, write them with "
            "save_pretrained(), which writes a new card"
        )
    return path


def _candidates(card: Card, options: HubOptions) -> list[Path]:
    """List the existing files in the package and in the cache that should be the card's."""
    files: list[Path | None] = []
    packaged = bundled_cards().get(card.name)
    # A repository may hold another version of a checkpoint that is in the package.
    if packaged is not None and packaged.weights.sha256 == card.weights.sha256:
        files.append(packaged_file(packaged))
    if card.hub.repo and card.hub.revision:
        files.append(cached_file(card.hub.repo, card.hub.file, card.hub.revision, options))
    return [file for file in files if file is not None and file.is_file()]


def _problem(path: Path, card: Card) -> str | None:
    """Describe the difference between a file and the card; None if there is none."""
    expected, size = card.weights, path.stat().st_size
    if size != expected.size:
        kind = "truncated" if size < expected.size else "altered"
        return f"{path} is {kind}: {size} bytes instead of the {expected.size} of {card.name}"
    if (digest := sha256_of(path)) != expected.sha256:
        return f"{path} is altered: SHA-256 {digest} instead of {expected.sha256} of {card.name}"
    return None


def _from_hub(card: Card, options: HubOptions) -> Path:
    if not (card.hub.repo and card.hub.revision):
        raise WeightsNotFoundError(
            f"the weights of {card.name} are not on the Hub (the card has no hub.revision): leave "
            f"out force_download to use {packaged_file(card)}, reinstall facezoo if that file is "
            "missing, or load your own file by its path"
        )
    path, _ = fetch(card.hub.repo, card.hub.file, card.hub.revision, options)
    if problem := _problem(path, card):
        raise WeightsCorruptedError(
            f"the Hub sent another file: {problem}. Call again; if the error stays, a proxy alters "
            "downloads or the repository was tampered with: do not use the file"
        )
    return path
