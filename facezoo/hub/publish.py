"""Publish checkpoints as repositories on the Hugging Face Hub; for maintainers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from typing import TYPE_CHECKING

from facezoo.errors import WeightsError
from facezoo.hub.card import Hub, packaged_file
from facezoo.hub.files import find
from facezoo.hub.names import CONFIG, HUB_PREFIX, resolve
from facezoo.hub.tensors import sha256_of
from facezoo.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PLACEHOLDER = "OWNER"
"""Stands for the owner of the repository in ``pyproject.toml``."""


@dataclass(frozen=True)
class Publication:
    """The content of one checkpoint's repository."""

    name: str
    """The checkpoint."""
    repo: str
    """``organization/name`` on the Hub."""
    files: dict[str, int]
    """Bytes by name in the repository."""
    commit: str | None = None
    """The full revision, to be put into the card; None after a dry run."""
    content: dict[str, bytes | Path] = field(default_factory=dict, repr=False, compare=False)
    """Text, or the path of a file, by name in the repository."""


def publish(
    names: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    organization: str,
    private: bool = False,
    dry_run: bool = True,
    token: str | None = None,
    out: str | Path | None = None,
    picture: str | os.PathLike[str] | None = None,
) -> list[Publication]:
    """Create or update the Hub repository of each checkpoint, one commit each.

    All checkpoints are checked before the first upload. The files, and the revision to put into
    each card, are printed.

    Args:
        names: checkpoints or models in the package, or folders that ``save_pretrained`` or
            ``finetune`` wrote; one or several. A ``Path`` is always a folder.
        organization: owner of the repositories.
        private: create repositories as private ones.
        dry_run: print the files only, without any request.
        token: None for HF_TOKEN or the stored one.
        out: a folder for a copy of each repository, in ``<organization>/<name>``.
        picture: an example image for the top of each model card and the Hub's widget.

    Returns:
        One entry per checkpoint, with the commit unless it was a dry run.

    Raises:
        UnknownNameError: if there is no such checkpoint in the package, and no such folder.
        FileNotFoundError: if there is no such picture.
        ValueError: if two checkpoints have the same name, a model card has metadata that the Hub
            rejects, or ``dry_run`` is False and the package's URLs have the placeholder
            ``PLACEHOLDER``.
        WeightsNotFoundError: if the weights are missing.
        WeightsCorruptedError: if the weights are not those of the card.
        WeightsError: if the repository holds other weights; those of a tag never change.
    """
    listed = [names] if isinstance(names, str | os.PathLike) else list(names)
    image = None if picture is None else Path(picture)
    publications = [_prepare(name, organization, image) for name in listed]
    repos = [publication.repo for publication in publications]
    if twice := [repo for repo in repos if repos.count(repo) > 1]:
        raise ValueError(
            f"two of the checkpoints would both go to {twice[0]}; publish one of them, or give "
            "its card another tag"
        )
    placeholders = [url for url in project_urls() if PLACEHOLDER in url]
    if placeholders and not dry_run:
        raise ValueError(
            f"the package still has the placeholder {PLACEHOLDER} in {placeholders[0]}; replace it "
            "in [project.urls] of pyproject.toml, and install the package again"
        )
    for publication in publications:
        verb = "would send" if dry_run else "sending"
        print(f"{publication.name}: {verb} to {publication.repo}")
        for name, size in publication.files.items():
            print(f"  {name:<20} {size:>12,} bytes")
        if out is not None:
            print(f"  written to {_write(publication, Path(out))}")
    if dry_run:
        if placeholders:
            print(f"before sending, replace {PLACEHOLDER} in [project.urls] of pyproject.toml")
        return publications
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="facezoo", library_version=__version__)
    results = []
    for publication in publications:
        results.append(_send(api, publication, private))
        commit = results[-1].commit
        print(f'{publication.name}: put "revision": "{commit}" in its card, under "hub"')
    return results


def project_urls() -> list[str]:
    """Return the addresses in the metadata of the installed package; none if it is not."""
    try:
        entries = metadata("facezoo").get_all("Project-URL") or []
    except PackageNotFoundError:
        return []
    return [entry.split(", ")[-1] for entry in entries]


def _prepare(name: str | os.PathLike[str], organization: str, picture: Path | None) -> Publication:
    """Collect the files of a repository; check the weights against the card."""
    from huggingface_hub import ModelCard

    if str(name).startswith(HUB_PREFIX):
        raise ValueError(f"{name} is on the Hub already; pass a checkpoint or a folder")
    source = resolve(name)
    card, weights = source.card, find(source.card, source.path or packaged_file(source.card))
    hosted = replace(card, hub=Hub(f"{organization}/{card.name}", None, card.hub.file))
    shown = None if picture is None else f"example{picture.suffix.lower()}"
    readme = hosted.to_markdown(shown)
    ModelCard(readme)  # raises ValueError for metadata that the Hub rejects
    content: dict[str, bytes | Path] = {
        "README.md": readme.encode(),
        CONFIG: hosted.to_json().encode(),
        card.hub.file: weights,
        **({shown: picture.read_bytes()} if shown and picture else {}),
    }
    sizes = {
        name: len(item) if isinstance(item, bytes) else item.stat().st_size
        for name, item in content.items()
    }
    return Publication(card.name, f"{organization}/{card.name}", sizes, content=content)


def _write(publication: Publication, out: Path) -> Path:
    """Write the files of a repository to a folder of its name, which ``facezoo.load`` opens."""
    folder = out / publication.repo
    folder.mkdir(parents=True, exist_ok=True)
    for name, item in publication.content.items():
        if isinstance(item, bytes):
            (folder / name).write_bytes(item)
        else:
            shutil.copyfile(item, folder / name)
    return folder


def _send(api: HfApi, publication: Publication, private: bool) -> Publication:
    from huggingface_hub import CommitOperationAdd

    repo = publication.repo
    api.create_repo(repo, private=private, exist_ok=True)
    for name, item in publication.content.items():
        if not isinstance(item, Path):
            continue
        for entry in api.get_paths_info(repo, [name]):
            lfs = getattr(entry, "lfs", None)
            if lfs is not None and lfs.sha256 != sha256_of(item):
                raise WeightsError(
                    f"{repo} holds other weights than {item} (SHA-256 {lfs.sha256}); the bytes of "
                    "a tag never change: give the new weights a new tag"
                )
    commit = api.create_commit(
        repo,
        operations=[
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=item)
            for name, item in publication.content.items()
        ],
        commit_message=f"Publish {publication.name} with facezoo {__version__}",
    )
    return replace(publication, commit=commit.oid)
