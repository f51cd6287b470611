"""``from_pretrained``, ``save_pretrained`` and ``push_to_hub`` for every model.

The card decides: its architecture builds the model, its SHA-256 guards the weights, and a saved
model gets a card that is true of its weights.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from facezoo.errors import CardError, UnsupportedError, WeightsMismatchError
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
from facezoo.hub.download import LIBRARY, HubOptions
from facezoo.hub.files import find
from facezoo.hub.names import CONFIG, WEIGHTS, family_of, resolve
from facezoo.hub.tensors import as_dtype, load_into, read_tensors, restores, save, sha256_of
from facezoo.models.freezing import class_names
from facezoo.models.identity_removal import NAME, removal_in

if TYPE_CHECKING:
    from torch import dtype as Dtype

PUBLISHED = "published"
"""Tag of checkpoints that ``facezoo convert`` wrote."""


class Pretrained:
    """Loading and saving for a family; use it together with ``nn.Module``.

    The class takes its architecture as keyword arguments and keeps them in ``architecture``, so
    that ``type(model)(**model.architecture)`` builds the model again.
    """

    model_name: ClassVar[str | None] = None
    """Key of ``families.FAMILIES``; None on a base class, which loads any family."""
    architecture: dict[str, Any]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    card: Card | None = None
    """Card of the loaded checkpoint; None for random weights."""
    networks: ClassVar[tuple[str, ...]] = ()
    """Names of the modules that do nearly all of the work, for ``torch.compile``."""
    needs_float32: ClassVar[str] = ""
    """Reason why half precision would lose the features; empty if it does not."""

    def check_reduced_precision(self) -> None:
        """Raise UnsupportedError if this family's features would be lost in half precision."""
        if self.needs_float32:
            raise UnsupportedError(
                f"{self.model_name} works in float32 only: {self.needs_float32}; leave dtype out, "
                "and the model in float32"
            )

    def compile_networks(self) -> None:
        """Compile the networks with ``torch.compile`` when they first run.

        State dict, training and saving stay as they are; a copy of the model is not compiled.

        Raises:
            UnsupportedError: if this model has no such networks.
        """
        modules = dict(cast(nn.Module, self).named_modules())
        present = [modules[name] for name in self.networks if name in modules]
        if not present:
            raise UnsupportedError(
                f"{self.model_name} has no network that gains from torch.compile; load it with "
                "compile=False"
            )
        for network in present:
            network.compile()

    @classmethod
    def from_pretrained(
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
        """Load a model with its weights, in eval mode, in float32 on the CPU.

        Args:
            name_or_path: a model or checkpoint in the package, a local folder or ``.safetensors``
                file, or a Hub repository as ``org/name`` or ``hf-hub:org/name@revision``. A
                ``Path`` is always a local folder or file.
            revision: branch, tag or commit on the Hub, if the name has none.
            strict: raise an error for a missing or unexpected tensor.
            token: for a private repository; None for HF_TOKEN or the stored one.
            cache_dir: replaces the Hub cache that HF_HOME sets.
            force_download: fetch the weights from the Hub in any case.
            local_files_only: send no request to the Hub.
            **overrides: architecture arguments that differ from the card's.

        Raises:
            UnknownNameError: if there is no such name.
            UnsupportedError: if the checkpoint is of another family than this class.
            WeightsError: if the weights are missing, corrupted or of another shape.
        """
        options = HubOptions(token, cache_dir, force_download, local_files_only)
        source = resolve(name_or_path, revision=revision, options=options, bare_hub=True)
        family = family_of(source.card, cls)
        path = find(source.card, source.path, options)
        return build(family, source.card, path, strict=strict, overrides=overrides)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        card: Card | None = None,
        dtype: Dtype | str | None = None,
        push_to_hub: bool = False,
        repo_id: str | None = None,
    ) -> Path:
        """Write ``config.json`` (the card), ``model.safetensors`` and ``README.md``.

        The files appear when all are complete. An unchanged checkpoint keeps its card. Changed
        weights lose the metrics, which were measured on other weights, and get the tag ``custom``.

        Args:
            save_directory: the folder; it is created if necessary.
            card: description of the weights; its file, hash, size, precision, architecture,
                preprocessing and labels are replaced by the model's own.
            dtype: precision on disk; None for that of the checkpoint if the weights are
                unchanged, and for the model's own otherwise.
            push_to_hub: send the folder to the Hub as well.
            repo_id: ``org/name`` on the Hub, for ``push_to_hub``.

        Returns:
            The folder.

        Raises:
            UnsupportedError: if ``load`` could not open the result, as with adapters, pruning
                masks or parametrizations, or if ``dtype`` would lose the features.
            ValueError: if weights are not stored as ``dtype``, or the labels are not one different
                word per class.
        """
        if push_to_hub and repo_id is None:
            raise ValueError("push_to_hub=True needs repo_id='org/name'")
        _check_precision(self, dtype)
        _check_tensors(self)
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".partial-", dir=folder) as scratch:
            stored, same = _write_weights(self, Path(scratch) / WEIGHTS, dtype)
            new = _card_of(self, stored, same, card)
            if repo_id is not None:
                new = replace(new, hub=Hub(repo=repo_id))
            (Path(scratch) / CONFIG).write_text(new.to_json(), encoding="utf-8")
            (Path(scratch) / "README.md").write_text(new.to_markdown(), encoding="utf-8")
            for name in (WEIGHTS, CONFIG, "README.md"):
                (Path(scratch) / name).replace(folder / name)
        if push_to_hub:
            self.push_to_hub(cast(str, repo_id), card=card, dtype=dtype)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: Card | None = None,
        dtype: Dtype | str | None = None,
        commit_message: str = "Upload a facezoo model",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Send the files of ``save_pretrained`` to a Hub repository; create it if necessary.

        Args:
            repo_id: ``org/name``.
            card: as in ``save_pretrained``.
            dtype: as in ``save_pretrained``.
            commit_message: first line of the commit.
            private: create the repository as a private one.
            token: None for HF_TOKEN or the stored one.
            branch: None for ``main``.
            create_pr: open a pull request instead of committing.

        Returns:
            The address of the commit.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token, **LIBRARY)
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


class SkipInit(TorchFunctionMode):
    """Context in which new layers leave their parameters uninitialized.

    A file is about to fill them; drawing random numbers for them takes most of the building time.
    """

    INITIALIZERS = (
        Tensor.normal_,
        Tensor.uniform_,
        nn.init.normal_,
        nn.init.uniform_,
        nn.init.kaiming_uniform_,
    )

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.INITIALIZERS:
            tensor = args[0] if args else kwargs["tensor"]
            if isinstance(tensor, nn.Parameter):
                return tensor
        return func(*args, **kwargs)


def build(
    cls: Any,
    card: Card | None,
    path: Path | None,
    *,
    strict: bool = True,
    overrides: Mapping[str, Any] | None = None,
) -> Any:
    """Build a model from a card, in eval mode.

    Args:
        cls: the model's class.
        card: gives architecture, preprocessing and labels; None for the class's defaults.
        path: verified weights; None for random ones.
        strict: raise an error for a missing or unexpected tensor.
        overrides: architecture arguments that differ from the card's.

    Raises:
        TypeError: if the class does not take one of the overrides.
        CardError: if the number of labels is not the number of classes.
        WeightsMismatchError: if the weights do not fit; the message names the overrides.
    """
    overrides = overrides or {}
    # Every parameter will come from the file. The caller's default device does not matter.
    skip = SkipInit() if path is not None and strict else nullcontext()
    with torch.device("cpu"), skip:
        model = cls(**{**(card.architecture if card else {}), **overrides})
    if any(parameter.is_meta for parameter in model.parameters()):
        raise RuntimeError(
            "load cannot fill parameters on the meta device; call it outside of "
            "init_empty_weights()"
        )
    if card is None:
        return model.eval()
    size = {"size": model.preprocessing.size} if "size" in overrides and card.preprocessing else {}
    model.preprocessing = card.preprocessing and replace(card.preprocessing, **size)
    if overrides.get("num_classes", len(card.labels)) == len(card.labels):
        if len(card.labels) != len(model.labels):
            raise CardError(
                f"{card.name}: labels must be {len(model.labels)} names, one per class of the "
                f"architecture, got {len(card.labels)}"
            )
        model.labels = card.labels
    if path is not None:
        tensors = read_tensors(path)
        if (removal := removal_in(tensors)) is not None:
            model.identity_removal = removal
        try:
            load_into(model, tensors, strict=strict)
        except WeightsMismatchError as error:
            changed = {k: v for k, v in overrides.items() if card.architecture.get(k) != v}
            if not changed:
                raise
            raise _mismatch(card, changed, error) from None
        model.card = card
    return model.eval()


def _mismatch(
    card: Card, changed: Mapping[str, Any], error: WeightsMismatchError
) -> WeightsMismatchError:
    """Explain weights that do not fit because the caller changed the architecture."""
    advice = "the weights of {} are not for {}".format(
        card.name, ", ".join(f"{key}={value!r}" for key, value in changed.items())
    )
    if "num_classes" in changed:
        call = f"model.reset_classifier({changed['num_classes']})"
        advice += f"; load them without it, then call {call}"
    return WeightsMismatchError(f"{advice}. {error}")


# Saving.


def _check_precision(model: Any, dtype: Any) -> None:
    """Raise an error for a precision that a card cannot name or that loses the features."""
    dtypes = {as_dtype(dtype)} if dtype else {p.dtype for p in model.parameters()}
    if dtypes & {torch.bfloat16, torch.int8}:
        model.check_reduced_precision()
    for name in map(_name_of, dtypes):
        if name not in DTYPES:
            raise ValueError(
                f"weights are stored as one of {', '.join(DTYPES)}, got {name}; pass dtype= or "
                "convert the model first"
            )


_ADVICE = {
    "lora_": "merge the adapters first: model = peft_model.merge_and_unload()",
    "base_layer": "merge the adapters first: model = peft_model.merge_and_unload()",
    "weight_u": "remove the spectral norm first: torch.nn.utils.remove_spectral_norm(module)",
    "weight_g": "remove the weight norm first: torch.nn.utils.remove_weight_norm(module)",
    "_orig": "make the pruning permanent first: torch.nn.utils.prune.remove(module, 'weight')",
    "parametrizations": "remove the parametrizations first: "
    "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')",
    "_packed_params": "save the model before it is quantized",
}
"""Advice by a part of a tensor's name."""


def _check_tensors(model: Any) -> None:
    """Raise an error if the class would not load the model's tensors or labels again."""
    with SkipInit(), torch.random.fork_rng(devices=[]):
        fresh = type(model)(**model.architecture)
    class_names(model.labels, len(fresh.labels))
    actual, expected = (
        {name: getattr(value, "shape", None) for name, value in module.state_dict().items()}
        for module in (model, fresh)
    )
    names = [name for name in actual if not name.startswith(f"{NAME}.")]
    wrong = [name for name in names if expected.get(name, "absent") != actual[name]]
    wrong += [name for name in expected if name not in actual]
    if wrong:
        advice = (text for part, text in _ADVICE.items() if any(part in name for name in wrong))
        default = f"restore the layers of {type(model).__name__}(**model.architecture)"
        raise UnsupportedError(
            f"facezoo.load could not open this model again: {len(wrong)} tensors differ from its "
            f"architecture, such as {wrong[0]!r}; {next(advice, default)}"
        )


def _write_weights(model: Any, path: Path, dtype: Any) -> tuple[Weights, bool]:
    """Write the weights, in the checkpoint's precision if that changes nothing.

    Returns:
        The file, and whether its numbers are those of the model's checkpoint.
    """
    own = {p.dtype for p in model.parameters()}
    name = _name_of(as_dtype(dtype) or (own.pop() if len(own) == 1 else torch.float32))
    same = False
    if model.card is not None:
        save(model, path, model.card.weights.dtype)
        same = sha256_of(path) == model.card.weights.sha256 and restores(path, model)
    if same and dtype is None:
        name = model.card.weights.dtype
    else:
        save(model, path, name)
        same = same and restores(path, model)
    count = sum(p.numel() for p in model.parameters())
    return Weights(path.name, sha256_of(path), path.stat().st_size, name, count), same


def _name_of(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _card_of(model: Any, stored: Weights, same: bool, card: Card | None) -> Card:
    """Return a card that is true of the new file."""
    base: Card | None = model.card
    if card is None and base is not None:
        unchanged = (tuple(model.labels), model.preprocessing) == (base.labels, base.preprocessing)
        built = all(model.architecture.get(k, v) == v for k, v in base.architecture.items())
        card = base if same and unchanged and built else _derived(base)
    card = card or _untrained(model, stored)
    return replace(
        card,
        weights=stored,
        architecture=dict(model.architecture),
        preprocessing=model.preprocessing,
        labels=tuple(model.labels),
        default=False,
        hub=card.hub if card.weights.sha256 == stored.sha256 else Hub(repo=card.hub.repo),
    )


def _derived(base: Card) -> Card:
    training = Training(base.training.data, "", "", {}, None, "", base=base.name)
    note = (
        f"Changed in an unrecorded way after loading {base.name}, whose metrics do not hold here."
    )
    return replace(
        base, tag="custom", training=training, metrics=(), limits=(*base.limits, note), hub=Hub()
    )


def card_of_published(model: Any, source: str) -> Card:
    """Write a card for weights converted from the file ``source``, for ``save_pretrained``."""
    stored = Weights(WEIGHTS, "0" * 64, 1, "float32", 0)  # replaced when saved
    note = f"Converted from {source}; data and training are not on record here."
    return replace(_untrained(model, stored), tag=PUBLISHED, limits=(note,))


def _untrained(model: Any, stored: Weights) -> Card:
    """Write a card for random weights."""
    citations = [c.citation for c in bundled_cards().values() if c.model == model.model_name]
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
        citation=citations[0] if citations else "",
    )
