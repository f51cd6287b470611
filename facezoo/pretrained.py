"""``from_pretrained``, ``save_pretrained`` and ``push_to_hub``, which every model has.

The Hub mixin's own versions load without complaint when a layer is missing, fall back to pickles
and know nothing of cards. Here the card decides: its architecture builds the model, its SHA-256
guards the weights, and what is saved carries a card that is true of what is saved.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, cast

from huggingface_hub import HfApi, PyTorchModelHubMixin

from facezoo import hub
from facezoo import weights as files
from facezoo.card import (
    DTYPES,
    Card,
    Hub,
    Licenses,
    Preprocessing,
    Training,
    Weights,
    bundled_cards,
    card_named,
)
from facezoo.errors import (
    CardError,
    UnknownNameError,
    UnsupportedError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from facezoo.families import FAMILIES, model_class
from facezoo.hub import HubOptions
from facezoo.version import __version__

if TYPE_CHECKING:
    from torch import nn

HUB_PREFIX = "hf-hub:"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PUBLISHED = "published"
"""Tag of checkpoints that ``facezoo convert`` wrote."""
HUB_NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")


@dataclass(frozen=True)
class Source:
    """What a name stands for: a card, and the caller's own weights file if it was a path."""

    card: Card
    path: Path | None = None


class Pretrained(PyTorchModelHubMixin, library_name="facezoo"):
    """Mixed into every model, beside ``nn.Module``.

    A class says which family it is by ``model_name``, takes the architecture as keyword arguments
    and keeps them in ``architecture``, as they would have to be given to build the model again.
    """

    model_name: ClassVar[str | None] = None
    """Key of ``families.FAMILIES``; None on a base class, which loads any family."""
    architecture: dict[str, Any]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    card: Card | None = None
    """The card of the checkpoint that was loaded; None for random weights."""

    networks: ClassVar[tuple[str, ...]] = ()
    """Modules by name that hold nearly all of the work, and are called as modules."""

    needs_float32: ClassVar[str] = ""
    """Why features would be lost in half precision; empty where they are not."""

    def check_reduced_precision(self) -> None:
        """Refuse half precision where this family's features would be lost in it.

        Raises:
            UnsupportedError: saying why.
        """
        if self.needs_float32:
            raise UnsupportedError(
                f"{self.model_name} works in float32 only: {self.needs_float32}; leave dtype out, "
                "and the model in float32"
            )

    def compile_networks(self) -> None:
        """Have the networks compiled by ``torch.compile`` when they first run.

        State dict, training and saving stay as they are; a copy of the model is not compiled.

        Raises:
            UnsupportedError: if this model has no such networks.
        """
        modules = dict(cast("nn.Module", self).named_modules())
        present = [modules[name] for name in self.networks if name in modules]
        if not present:
            raise UnsupportedError(
                f"{self.model_name} has no network that torch.compile is worth; load it with "
                "compile=False"
            )
        for network in present:
            network.compile()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        strict: bool = True,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Any:
        """A model with its weights, in eval mode, in float32 on the CPU.

        Args:
            name_or_path: a model or checkpoint in the package, a local folder or ``.safetensors``
                file, or a Hub repository as ``org/name`` or ``hf-hub:org/name@revision``. A
                ``Path`` is always a folder or file here, whatever it is called.
            revision: branch, tag or commit on the Hub, if the name has none.
            strict: whether a missing or unexpected tensor is an error.
            token: for a private repository; None for HF_TOKEN or the stored one.
            cache_dir: instead of the Hub cache that HF_HOME sets.
            force_download: whether to fetch from the Hub in any case.
            local_files_only: whether to forbid asking the Hub.
            **overrides: architecture arguments that differ from the card's.

        Raises:
            UnknownNameError: if ``name_or_path`` is none of the above.
            UnsupportedError: if the checkpoint is of another family than this class.
            WeightsError: if the weights cannot be found, trusted or fitted.
        """
        options = HubOptions(token, cache_dir, force_download, local_files_only)
        source = resolve(name_or_path, revision=revision, options=options, bare_hub=True)
        family = family_of(source.card, cls)
        path = files.find(source.card, source.path, options)
        return build(family, source.card, path, strict=strict, overrides=overrides)

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        card: Card | None = None,
        dtype: Any = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
    ) -> Path:
        """Write ``config.json`` (the card), ``model.safetensors`` and ``README.md``.

        They appear together when all are written, so that a checkpoint that was there stays whole
        until then.

        An unchanged checkpoint keeps its card. Changed weights keep what is still true of it:
        metrics were measured on other weights and are dropped, and the tag becomes ``custom``.

        Args:
            save_directory: the folder, made if need be.
            card: what to say about the weights instead; its file, hash, size, precision,
                architecture, preprocessing and labels are replaced by the model's own.
            dtype: precision on disk; None for that of the checkpoint if the weights are
                unchanged, and for the model's own otherwise.
            push_to_hub: whether to send the folder to the Hub as well.
            repo_id: ``org/name`` on the Hub, wanted by ``push_to_hub``.

        Returns:
            The folder.

        Raises:
            UnsupportedError: if features would be lost in ``dtype``, as those of adv3d are in
                bfloat16 and int8.
            ValueError: if weights are not stored as ``dtype``.
        """
        if push_to_hub and repo_id is None:
            raise ValueError("push_to_hub=True needs repo_id='org/name'")
        _check_precision(self, dtype)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
            stored, same = _write_weights(self, Path(scratch) / WEIGHTS, dtype)
            written = _card_of(self, stored, same, card)
            if repo_id is not None:
                written = replace(written, hub=Hub(repo=repo_id))
            (Path(scratch) / CONFIG).write_text(written.to_json(), encoding="utf-8")
            (Path(scratch) / "README.md").write_text(written.to_markdown(), encoding="utf-8")
            for name in (WEIGHTS, CONFIG, "README.md"):
                (Path(scratch) / name).replace(folder / name)
        if push_to_hub:
            self.push_to_hub(cast(str, repo_id), card=card, dtype=dtype)
        return folder

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        card: Card | None = None,
        dtype: Any = None,
        commit_message: str = "Upload a facezoo model",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Send to a Hub repository what ``save_pretrained`` writes; it is created if need be.

        Args:
            repo_id: ``org/name``.
            card: as in ``save_pretrained``.
            dtype: as in ``save_pretrained``.
            commit_message: first line of the commit.
            private: whether a repository that is created is private.
            token: None for HF_TOKEN or the stored one.
            branch: None for ``main``.
            create_pr: whether to open a pull request instead of committing.

        Returns:
            The address of the commit.
        """
        api = HfApi(token=token, library_name="facezoo", library_version=__version__)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card, dtype=dtype, repo_id=repo_id)
            api.create_repo(repo_id, private=private, exist_ok=True)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=branch,
                create_pr=create_pr,
            ).commit_url


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


def build(
    cls: Any,
    card: Card | None,
    path: Path | None,
    *,
    strict: bool = True,
    overrides: dict[str, Any] | None = None,
) -> Any:
    """A model from a card, in eval mode.

    Args:
        cls: the model's class.
        card: whose architecture, preprocessing and labels it gets; None for the class's defaults.
        path: weights that have been verified; None for random ones.
        strict: whether a missing or unexpected tensor is an error.
        overrides: architecture arguments that differ from the card's.

    Raises:
        TypeError: if the class does not take one of the overrides.
        CardError: if the card has more or fewer labels than the architecture has classes.
        WeightsMismatchError: if the weights do not fit; the message says so of overrides.
    """
    from facezoo.removal import removal_in
    from facezoo.undrawn import Undrawn  # torch is not needed to find and fetch weights

    overrides = overrides or {}
    architecture = {**(card.architecture if card else {}), **overrides}
    _check_arguments(cls, architecture)
    # Every parameter is about to come from the file, or its absence to be an error.
    with Undrawn() if path is not None and strict else nullcontext():
        model = cls(**architecture)
    if card is not None:
        size = getattr(model.preprocessing, "size", None)
        model.preprocessing = card.preprocessing
        if model.preprocessing is not None and "size" in overrides:
            model.preprocessing = replace(model.preprocessing, size=size)
        if overrides.get("num_classes", len(card.labels)) == len(card.labels):
            if len(card.labels) != len(model.labels):
                raise CardError(
                    f"{card.name}: labels must be {len(model.labels)} names, one per class of the "
                    f"architecture, got {len(card.labels)}"
                )
            model.labels = card.labels
    if card is not None and path is not None:
        tensors = files.read_tensors(path)
        if (removal := removal_in(tensors)) is not None:
            model.identity_removal = removal
        with _blaming_overrides(card, overrides):
            files.load_into(model, tensors, strict=strict)
        model.card = card
    return model.eval()


def _check_arguments(cls: Any, architecture: dict[str, Any]) -> None:
    parameters = inspect.signature(cls.__init__).parameters
    if any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values()):
        return
    unknown = sorted(set(architecture) - set(parameters))
    if unknown:
        known = ", ".join(name for name in parameters if name != "self")
        raise TypeError(f"{cls.__name__} takes no {', '.join(unknown)}; it takes {known or 'none'}")


@contextmanager
def _blaming_overrides(card: Card, overrides: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except WeightsMismatchError as error:
        changed = {k: v for k, v in overrides.items() if card.architecture.get(k) != v}
        if not changed:
            raise
        asked = ", ".join(f"{key}={value!r}" for key, value in changed.items())
        advice = f"the weights of {card.name} are not for {asked}"
        if "num_classes" in changed:
            advice += (
                "; load them without it, then call "
                f"model.reset_classifier({changed['num_classes']})"
            )
        raise WeightsMismatchError(f"{advice}. In detail: {error}") from None


# Names.


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
        "load the tensors with facezoo.weights.load_into(), then call save_pretrained()"
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


# Saving.


def _check_precision(model: Any, dtype: Any) -> None:
    """Refuse what a card could not say, or what is lost, before an older file is overwritten."""
    import torch

    given = [p.dtype for p in model.parameters()] if dtype is None else [dtype]
    wanted = {files.as_dtype(name) for name in given}
    if wanted & {torch.bfloat16, torch.int8}:
        model.check_reduced_precision()
    for name in (str(name).removeprefix("torch.") for name in wanted):
        if name not in DTYPES:
            raise ValueError(
                f"weights are stored as one of {', '.join(DTYPES)}, got {name}; pass dtype= or "
                "convert the model first"
            )


def _write_weights(model: Any, path: Path, dtype: Any) -> tuple[Weights, bool]:
    """Write the weights, in the checkpoint's precision if that changes nothing and none is named.

    Returns:
        What was written, and whether its numbers are those of the model's checkpoint.
    """
    import torch

    own = {p.dtype for p in model.parameters()} or {torch.float32}
    name = str(files.as_dtype(dtype) or (own.pop() if len(own) == 1 else torch.float32))
    name = name.removeprefix("torch.")
    stored = model.card.weights.dtype if model.card else name
    digest = files.sha256_of(files.save(model, path, stored))
    same = model.card is not None and digest == model.card.weights.sha256
    if stored != name:
        same = same and files.gives_exactly(path, model)
        if dtype is not None or not same:
            stored = name
            digest = files.sha256_of(files.save(model, path, stored))
            same = same and files.gives_exactly(path, model)
    count = sum(p.numel() for p in model.parameters())
    return Weights(path.name, digest, path.stat().st_size, stored, count), same


def _card_of(model: Any, stored: Weights, same: bool, given: Card | None) -> Card:
    """A card that is true of the weights that were just written, the checkpoint's or others."""
    base: Card | None = model.card
    if given is not None:
        card = given
    elif base is None:
        card = _untrained(model, stored)
    elif same and _means_the_same(model, base):
        card = base
    else:
        card = _derived(base)
    return replace(
        card,
        weights=stored,
        architecture=dict(model.architecture),
        preprocessing=model.preprocessing,
        labels=tuple(model.labels),
        default=False,
        hub=card.hub if card.weights.sha256 == stored.sha256 else Hub(repo=card.hub.repo),
    )


def _means_the_same(model: Any, base: Card) -> bool:
    same = (tuple(model.labels), model.preprocessing) == (base.labels, base.preprocessing)
    built = base.architecture.items()
    return same and all(model.architecture.get(name, value) == value for name, value in built)


def _derived(base: Card) -> Card:
    training = Training(base.training.data, "", "", {}, None, "", base=base.name)
    note = (
        f"Changed in an unrecorded way after loading {base.name}, whose metrics do not hold here."
    )
    return replace(
        base, tag="custom", training=training, metrics=(), limits=(*base.limits, note), hub=Hub()
    )


def card_of_published(model: Any, source: str) -> Card:
    """For weights that were published in another layout and converted; for ``save_pretrained``.

    Args:
        model: with the weights.
        source: name of the file that they came from.
    """
    stored = Weights(WEIGHTS, "0" * 64, 1, "float32", 0)  # replaced when saved
    said = f"Converted from {source}: what it was trained on, and how, is not on record here."
    return replace(_untrained(model, stored), tag=PUBLISHED, limits=(said,))


def _untrained(model: Any, stored: Weights) -> Card:
    """For a model that was built with random weights, which nobody has told of a training."""
    cards: Sequence[Card] = [c for c in bundled_cards().values() if c.model == model.model_name]
    return Card(
        model=model.model_name,
        tag="untrained",
        default=False,
        architecture={},
        preprocessing=model.preprocessing,
        labels=(),
        weights=stored,
        hub=Hub(),
        licenses=Licenses("Apache-2.0", "unspecified", "unspecified"),
        training=Training((), "", "", {}, None, ""),
        metrics=(),
        limits=("Built with pretrained=False: no training of these weights is on record.",),
        intended_use="",
        citation=cards[0].citation if cards else "",
    )
