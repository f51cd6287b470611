"""``from_pretrained``, ``save_pretrained`` and ``push_to_hub``, which every model has.

The Hub mixin's own versions load without complaint when a layer is missing, fall back to pickles
and know nothing of cards. Here the card decides: its architecture builds the model, its SHA-256
guards the weights, and what is saved carries a card that is true of what is saved.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, cast

from huggingface_hub import HfApi, PyTorchModelHubMixin

from facezoo.errors import (
    CardError,
    UnsupportedError,
    WeightsMismatchError,
)
from facezoo.hub import files
from facezoo.hub import tensors as weights_io
from facezoo.hub.card import (
    DTYPES,
    Card,
    Hub,
    Licenses,
    Preprocessing,
    Training,
    Weights,
    bundled_cards,
)
from facezoo.hub.download import HubOptions
from facezoo.hub.names import CONFIG, WEIGHTS, family_of, resolve
from facezoo.version import __version__

if TYPE_CHECKING:
    from torch import nn

PUBLISHED = "published"
"""Tag of checkpoints that ``facezoo convert`` wrote."""


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
    from facezoo.models.identity_removal import removal_in
    from facezoo.models.skip_init import Undrawn  # torch is not needed to find and fetch weights

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
        tensors = weights_io.read_tensors(path)
        if (removal := removal_in(tensors)) is not None:
            model.identity_removal = removal
        with _blaming_overrides(card, overrides):
            weights_io.load_into(model, tensors, strict=strict)
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


# Saving.


def _check_precision(model: Any, dtype: Any) -> None:
    """Refuse what a card could not say, or what is lost, before an older file is overwritten."""
    import torch

    given = [p.dtype for p in model.parameters()] if dtype is None else [dtype]
    wanted = {weights_io.as_dtype(name) for name in given}
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
    name = str(weights_io.as_dtype(dtype) or (own.pop() if len(own) == 1 else torch.float32))
    name = name.removeprefix("torch.")
    stored = model.card.weights.dtype if model.card else name
    digest = weights_io.sha256_of(weights_io.save(model, path, stored))
    same = model.card is not None and digest == model.card.weights.sha256
    if stored != name:
        same = same and weights_io.gives_exactly(path, model)
        if dtype is not None or not same:
            stored = name
            digest = weights_io.sha256_of(weights_io.save(model, path, stored))
            same = same and weights_io.gives_exactly(path, model)
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
