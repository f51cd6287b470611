"""One Hub repository per checkpoint, made from card and weights; for maintainers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from facezoo.errors import WeightsCorruptedError, WeightsError, WeightsNotFoundError
from facezoo.hub.card import Hub, bundled_cards, card_named, packaged_file
from facezoo.hub.families import FAMILIES
from facezoo.hub.names import HUB_PREFIX, Source, resolve
from facezoo.hub.tensors import sha256_of
from facezoo.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class Publication:
    """What is sent, or was, for one checkpoint."""

    name: str
    """The checkpoint."""
    repo: str
    """``organization/name`` on the Hub."""
    files: dict[str, int]
    """Bytes by name in the repository."""
    commit: str | None = None
    """The full revision, which belongs in the card; None after a dry run."""
    content: dict[str, bytes | Path] = field(default_factory=dict, repr=False, compare=False)
    """What each file is made of."""


def publish(
    names: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    organization: str,
    private: bool = False,
    dry_run: bool = True,
    token: str | None = None,
    out: str | Path | None = None,
) -> list[Publication]:
    """Create or update the Hub repository of each checkpoint, one commit each.

    Everything is checked before anything is sent. Prints what is, or would be, sent, and the full
    revision to put in each card.

    Args:
        names: checkpoints or models in the package, or folders that ``save_pretrained`` or
            ``finetune`` wrote; one or several. A ``Path`` is always a folder.
        organization: of the repositories.
        private: whether repositories that are created are private.
        dry_run: whether only to show what would be sent, without any request.
        token: None for HF_TOKEN or the stored one.
        out: a folder that gets the files of each repository as well, in ``<organization>/<name>``.

    Returns:
        One entry per checkpoint, with the commit unless it was a dry run.

    Raises:
        UnknownNameError: if a checkpoint is not in the package, and no such folder.
        ValueError: if two of them have one name.
        WeightsNotFoundError: if its weights are not.
        WeightsCorruptedError: if they are not those of the card.
        WeightsError: if the repository holds other weights: those of a tag never change.
    """
    wanted = [names] if isinstance(names, str | os.PathLike) else list(names)
    prepared = [_prepare(name, organization) for name in wanted]
    _check_apart(wanted, [publication.repo for publication in prepared])
    for publication in prepared:
        print(_described(publication, dry_run))
        if out is not None:
            print(f"  written to {_write(publication, Path(out))}")
    if dry_run:
        return prepared
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="facezoo", library_version=__version__)
    done = []
    for publication in prepared:
        done.append(_send(api, publication, private))
        print(f'{publication.name}: put "revision": "{done[-1].commit}" in its card, under "hub"')
    return done


def _check_apart(names: list[str | os.PathLike[str]], repos: list[str]) -> None:
    """Refuse two checkpoints of one name, of which the second would replace the first."""
    first: dict[str, str | os.PathLike[str]] = {}
    for name, repo in zip(names, repos, strict=True):
        if repo in first:
            raise ValueError(
                f"{first[repo]} and {name} would both go to {repo}; publish one of them, or give "
                "its card another tag"
            )
        first[repo] = name


def _prepare(name: str | os.PathLike[str], organization: str) -> Publication:
    """The files of a repository, the weights checked against the card."""
    source = _source(name)
    card, weights = source.card, source.path or packaged_file(source.card)
    if not weights.is_file():
        raise WeightsNotFoundError(f"{weights} is missing; put the weights of {card.name} there")
    if (digest := sha256_of(weights)) != card.weights.sha256:
        raise WeightsCorruptedError(
            f"{weights} has SHA-256 {digest}, and the card of {card.name} says "
            f"{card.weights.sha256}; one of them is out of date"
        )
    hosted = replace(card, hub=Hub(f"{organization}/{card.name}", None, card.hub.file))
    content: dict[str, bytes | Path] = {
        "README.md": hosted.to_markdown().encode(),
        "config.json": hosted.to_json().encode(),
        card.hub.file: weights,
    }
    sizes = {
        name: len(item) if isinstance(item, bytes) else item.stat().st_size
        for name, item in content.items()
    }
    return Publication(card.name, f"{organization}/{card.name}", sizes, content=content)


def _source(name: str | os.PathLike[str]) -> Source:
    if not isinstance(name, str):
        return resolve(name)
    if name.startswith(HUB_PREFIX):
        raise ValueError(f"{name} is on the Hub already; give a checkpoint or a folder")
    packaged = name in bundled_cards() or name in FAMILIES or not Path(name).exists()
    return Source(card_named(name)) if packaged else resolve(name)


def _write(publication: Publication, out: Path) -> Path:
    """The files of a repository in a folder of its name, which ``facezoo.load`` opens."""
    folder = out / publication.repo
    folder.mkdir(parents=True, exist_ok=True)
    for name, item in publication.content.items():
        if isinstance(item, bytes):
            (folder / name).write_bytes(item)
        else:
            shutil.copyfile(item, folder / name)
    return folder


def _described(publication: Publication, dry_run: bool) -> str:
    verb = "would send" if dry_run else "sending"
    lines = [f"{publication.name}: {verb} to {publication.repo}"]
    lines += [f"  {name:<20} {size:>12,} bytes" for name, size in publication.files.items()]
    return "\n".join(lines)


def _send(api: HfApi, publication: Publication, private: bool) -> Publication:
    from huggingface_hub import CommitOperationAdd

    api.create_repo(publication.repo, private=private, exist_ok=True)
    _check_unchanged(api, publication)
    commit = api.create_commit(
        publication.repo,
        operations=[
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=item)
            for name, item in publication.content.items()
        ],
        commit_message=f"{publication.name}, published by facezoo {__version__}",
    )
    return replace(publication, commit=commit.oid)


def _check_unchanged(api: HfApi, publication: Publication) -> None:
    """Refuse to replace weights by others under the same name."""
    for name, item in publication.content.items():
        if not isinstance(item, Path):
            continue
        for there in api.get_paths_info(publication.repo, [name]):
            lfs = getattr(there, "lfs", None)
            if lfs is not None and lfs.sha256 != sha256_of(item):
                raise WeightsError(
                    f"{publication.repo} holds other weights than {item} (SHA-256 {lfs.sha256}); "
                    "the bytes of a tag never change: give the new weights a new tag"
                )
