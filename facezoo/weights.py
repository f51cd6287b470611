"""Weights files: found in the package, the Hub cache or on the Hub, checked, read and written.

Nothing here is used before its SHA-256 is the one in the card, and only safetensors are read.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from facezoo.card import Card, packaged_file
from facezoo.errors import (
    HubOfflineError,
    HubUnreachableError,
    PickleRefusedError,
    WeightsCorruptedError,
    WeightsError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from facezoo.version import __version__

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

T = TypeVar("T")

PICKLE_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".pkl", ".pickle", ".tar")
# Zip archives (torch.save since 1.6) and pickle protocols 2 to 5 (torch.save before).
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
COMMIT = re.compile(r"[0-9a-f]{40}")

ANSWER_TIMEOUT = 5.0
"""Seconds that the Hub has to answer, unless HF_HUB_ETAG_TIMEOUT says otherwise."""
ANSWER_GRACE = 3.0
"""Seconds on top for what that timeout does not bound: name look-ups, one try per address."""
FRUITLESS_REQUESTS = 2
"""Resumed downloads that bring not one byte more before giving up."""


@dataclass(frozen=True)
class HubOptions:
    """How to ask the Hub; what is None follows the usual HF_* environment variables."""

    token: str | bool | None = None
    cache_dir: str | Path | None = None
    force_download: bool = False
    local_files_only: bool = False


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


def fetch(repo: str, file: str, revision: str | None, options: HubOptions) -> tuple[Path, str]:
    """A file from the Hub cache or else from the Hub. Its content is not checked here.

    Args:
        repo: ``org/name``.
        file: name within the repository.
        revision: commit, branch or tag; None for ``main``. A cached commit needs no request.
        options: token, cache folder and the like.

    Returns:
        The file in the cache, and the full commit that it belongs to.

    Raises:
        HubOfflineError: if it is not cached and asking is forbidden.
        HubUnreachableError: if it is not cached and the Hub does not answer; at most about
            ``ANSWER_TIMEOUT + ANSWER_GRACE`` seconds after the call.
        WeightsNotFoundError: if the Hub has no such repository, revision or file.
        WeightsCorruptedError: if the body arrives truncated.
    """
    revision = revision or "main"
    cached = None if options.force_download else _cached(repo, file, revision, options)
    why = _offline(options)
    if cached is None and why:
        raise HubOfflineError(
            f"{repo}/{file} at {revision} is not in the cache ({cache_folder(options)}) and {why}; "
            "run facezoo.download() once with network, or copy such a cache here (HF_HOME points "
            "to it)"
        )
    if cached is None or not (why or COMMIT.fullmatch(revision)):
        try:
            _check_answer(repo, file, revision, options)
            cached = _download(repo, file, revision, options)
        except HubUnreachableError:
            if cached is None:
                raise
    return cached, cached.parent.name


def discard(path: Path, root: Path) -> bool:
    """Delete a cached file, and the blob that it links to, as far as they lie under ``root``.

    Returns:
        Whether ``path`` is gone.
    """
    link: Path | None = path
    with suppress(OSError):
        while link is not None and link.parent.resolve().is_relative_to(root.resolve()):
            target = link.parent / link.readlink() if link.is_symlink() else None
            link.unlink()
            link = target
    return not os.path.lexists(path)


def refuse_pickle(path: Path) -> None:
    """Raise PickleRefusedError if ``path`` is pickled, by its name or by its first bytes."""
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(9)
    pickled = start.startswith(PICKLE_STARTS) and start[8:] != b"{"
    if path.suffix.lower() in PICKLE_SUFFIXES or pickled:
        raise PickleRefusedError(
            f"{path} is a pickled file, which can run code when it is opened; only safetensors are "
            f"loaded. If you trust its source: facezoo convert {path} "
            f"{path.with_suffix('.safetensors').name}"
        )


def read_tensors(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """The tensors of a safetensors file, as they are on disk.

    Raises:
        PickleRefusedError: if the file is pickled; the message names ``facezoo convert``.
        WeightsNotFoundError: if there is no such file.
        WeightsCorruptedError: if it is not a whole safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    refuse_pickle(path)
    if not path.is_file():
        raise WeightsNotFoundError(f"no weights file {path}")
    try:
        return load_file(path, device=str(device))
    except SafetensorError as error:
        raise WeightsCorruptedError(
            f"{path} is not a whole safetensors file ({error}); copy or download it again"
        ) from error


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], strict: bool = True) -> None:
    """Copy tensors into a module, cast to its precision; int8 is multiplied by its scales.

    Args:
        module: whose parameters and buffers are overwritten in place.
        tensors: by state-dict name.
        strict: whether a missing or unexpected tensor is an error; if not, it is a warning. A
            mis-shaped tensor is an error in any case.

    Raises:
        WeightsMismatchError: naming every missing, unexpected and mis-shaped tensor.
    """
    given = _dequantised(tensors)
    wanted = module.state_dict()
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    shapes = [
        f"{name} {tuple(given[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in given and given[name].shape != tensor.shape
    ]
    named = {"missing": missing, "unexpected": unexpected, "mis-shaped": shapes}
    problems = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in named.items() if names)
    if shapes or (strict and problems):
        raise WeightsMismatchError(
            f"the tensors do not fit {type(module).__name__}: {problems}; "
            "the file was made for another architecture or another version of the model"
        )
    if problems:
        warnings.warn(f"loaded with strict=False: {problems}", stacklevel=2)
    module.load_state_dict(given, strict=False)  # copies once, casting on the way


def save(
    source: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    dtype: torch.dtype | str | None = None,
) -> Path:
    """Write tensors as safetensors: either the whole file or nothing appears at ``path``.

    Args:
        source: a module, or tensors by name.
        path: the file to write; it is replaced if it is there.
        dtype: precision of the floating-point tensors on disk, or None to leave each as it is.
            int8 stores tensors of two dimensions and more with one float scale per output channel
            and the others in half precision.

    Returns:
        ``path``.
    """
    import torch
    from safetensors.torch import save_file

    path = Path(path)
    tensors = source.state_dict() if isinstance(source, torch.nn.Module) else dict(source)
    stored = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    if as_dtype(dtype) == torch.int8:
        stored = _quantised(stored)
    elif dtype is not None:
        floating = {name for name, tensor in stored.items() if tensor.is_floating_point()}
        stored.update({name: stored[name].to(as_dtype(dtype)) for name in floating})
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        save_file(_unshared(stored), part, metadata={"format": "pt"})
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def gives_exactly(path: Path, module: nn.Module) -> bool:
    """Whether loading a file would change nothing in a module: no rounding, no other value."""
    import torch

    stored = _dequantised(read_tensors(path))
    return all(
        name in stored and torch.equal(stored[name].to(tensor.dtype), tensor.cpu())
        for name, tensor in module.state_dict().items()
    )


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A torch dtype from itself or its name, such as ``"float16"``; None stays None.

    Raises:
        ValueError: if torch has no dtype of that name.
    """
    import torch

    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"dtype must be a torch dtype such as 'float16', got {dtype!r}")
    return found


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return _digest(file)


# Tensors.


def _dequantised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every int8 tensor that has a ``<name>.scale`` multiplied by it, per output channel."""
    import torch

    whole = dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8 and f"{name}.scale" in tensors:
            scale = whole.pop(f"{name}.scale").float().reshape(-1, *[1] * (tensor.ndim - 1))
            if len(scale) != len(tensor):
                raise WeightsMismatchError(
                    f"{name}.scale must hold {len(tensor)} numbers, one per output channel, "
                    f"got {len(scale)}"
                )
            whole[name] = tensor.float() * scale
    return whole


def _quantised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    import torch

    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            stored[name] = tensor
        elif tensor.ndim < 2:
            stored[name] = tensor.half()
        else:
            rows = tensor.float().reshape(len(tensor), -1)
            # 16 bits of mantissa, rounded up: scale times 127 is then exact, so that a
            # dequantised tensor quantises to the same bytes again.
            bits = (rows.abs().amax(dim=1) / 127).clamp_min(1e-30).view(torch.int32)
            scale = ((bits + 0xFF) & ~0xFF).view(torch.float32)
            stored[name] = (rows / scale[:, None]).round().to(torch.int8).reshape(tensor.shape)
            stored[f"{name}.scale"] = scale
    return stored


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, none of which shares memory with another: safetensors wants that."""
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        address = tensor.untyped_storage().data_ptr()
        if address in seen or not whole or not tensor.is_contiguous():
            apart[name] = tensor.contiguous().clone()
        else:
            apart[name] = tensor
        seen.add(address)
    return apart


# Checking.


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


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
    yield "package", packaged_file(card)
    if card.hub.repo and card.hub.revision:
        cached = _cached(card.hub.repo, card.hub.file, card.hub.revision, options)
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
        warnings.warn(
            f"passed over weights that cannot be trusted: {'; '.join(passed_over)}; the folder is "
            "read-only, so ask its owner to delete them",
            stacklevel=3,
        )


# The Hub.


def _from_hub(card: Card, options: HubOptions, passed_over: list[str]) -> Path:
    also = f" (passed over: {'; '.join(passed_over)})" if passed_over else ""
    if not (card.hub.repo and card.hub.revision):
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


def _offline(options: HubOptions) -> str | None:
    from huggingface_hub import constants

    if options.local_files_only:
        return "local_files_only=True forbids asking the Hub"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE=1 forbids asking the Hub"
    return None


def cache_folder(options: HubOptions) -> Path:
    """The Hub cache: the caller's, or the one that HF_HUB_CACHE or HF_HOME sets."""
    from huggingface_hub import constants

    return Path(options.cache_dir or constants.HF_HUB_CACHE).expanduser()


def _cached(repo: str, file: str, revision: str, options: HubOptions) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo, file, cache_dir=cache_folder(options), revision=revision)
    return Path(found) if isinstance(found, str) else None


def _check_answer(repo: str, file: str, revision: str, options: HubOptions) -> None:
    """One request without retries, so that a silent Hub or an absent file is found out soon."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, file, revision=revision)
    timeout: float = constants.HF_HUB_ETAG_TIMEOUT
    if timeout == constants.DEFAULT_ETAG_TIMEOUT:
        timeout = ANSWER_TIMEOUT

    def ask() -> str | None:
        return get_hf_file_metadata(
            url,
            token=options.token,
            timeout=timeout,
            library_name="facezoo",
            library_version=__version__,
        ).commit_hash

    with _named_errors(repo, file, revision, options):
        commit = _within(timeout + ANSWER_GRACE, ask)
    if commit is None:
        raise HubUnreachableError(
            f"{constants.ENDPOINT} answered for {repo}/{file}, but not as a Hub does (no "
            "X-Repo-Commit); check HF_ENDPOINT and the proxy"
        )


def _download(repo: str, file: str, revision: str, options: HubOptions) -> Path:
    from huggingface_hub import hf_hub_download

    with _named_errors(repo, file, revision, options), _giving_up_without_progress():
        found = hf_hub_download(
            repo,
            file,
            revision=revision,
            token=options.token,
            cache_dir=options.cache_dir,
            force_download=options.force_download,
            library_name="facezoo",
            library_version=__version__,
        )
    return Path(found)


def _within(seconds: float, call: Callable[[], T]) -> T:
    """``call()``, or TimeoutError; a thread, because nothing else bounds a name look-up."""
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} seconds")
    return results[0]


class _NoProgressError(Exception):
    """A download was resumed again and again at the same byte."""


@contextmanager
def _giving_up_without_progress() -> Iterator[None]:
    """Stop huggingface_hub from resuming a broken download for ever.

    It starts its count of retries anew whenever any data arrives, so that a server or proxy which
    always cuts off at the same byte, and ignores Range, keeps it busy without end.
    """
    from huggingface_hub import get_session

    thread = threading.get_ident()
    furthest: dict[str, int] = {}
    fruitless: dict[str, int] = {}

    def count(request: Any) -> None:
        if threading.get_ident() != thread or request.method != "GET":
            return
        url = str(request.url)
        start = int((re.search(r"\d+", request.headers.get("Range", "")) or ["-1"])[0])
        if start > furthest.get(url, -2):
            furthest[url] = start
        else:
            fruitless[url] = fruitless.get(url, 0) + 1
        if fruitless.get(url, 0) >= FRUITLESS_REQUESTS:
            raise _NoProgressError(f"the connection broke off repeatedly at byte {max(start, 0)}")

    hooks = get_session().event_hooks["request"]
    hooks.append(count)
    try:
        yield
    finally:
        with suppress(ValueError):
            hooks.remove(count)


@contextmanager
def _named_errors(repo: str, file: str, revision: str, options: HubOptions) -> Iterator[None]:
    """Turn huggingface_hub's errors into ours, each with what to do."""
    from huggingface_hub import constants, errors

    what = f"{repo}/{file} at {revision}"
    try:
        yield
    except errors.RepositoryNotFoundError as error:
        raise WeightsNotFoundError(
            f"{constants.ENDPOINT} shows no repository {repo}: it does not exist, or it is private "
            "or gated; if so, ask for access on its page and log in (hf auth login, or HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsNotFoundError(
            f"the repository {repo} on the Hub has no revision {revision}; wanted a branch, a tag "
            "or a full commit of it"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(what, error.__cause__ or error) from error
    except errors.EntryNotFoundError as error:
        raise WeightsNotFoundError(
            f"the repository {repo} on the Hub has no file {file} at {revision}; upgrade facezoo "
            "if the checkpoint is one of its own, else check the repository's page"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise WeightsNotFoundError(
                f"{constants.ENDPOINT} refused {what} with status {status}; if the repository is "
                "private or gated, log in with an account that may read it (hf auth login, or "
                "HF_TOKEN), and check that the token has not expired"
            ) from error
        raise _unreachable(what, error) from error
    except _NoProgressError as error:
        raise _truncated(what, error) from error
    except (errors.HTTPError, TimeoutError, ConnectionError) as error:  # type: ignore[attr-defined]
        raise _unreachable(what, error) from error
    except (OSError, RuntimeError) as error:  # the disk's, or hf_xet's own
        if "Consistency check failed" in str(error):
            raise _truncated(what, error) from error
        raise WeightsError(
            f"{what} could not be written to the cache {cache_folder(options)} "
            f"({type(error).__name__}: {error}); make room there or make it writable, set HF_HOME "
            "to another folder, or, if the error is of hf_xet, set HF_HUB_DISABLE_XET=1"
        ) from error


def _truncated(what: str, error: BaseException) -> WeightsCorruptedError:
    reason = str(error).splitlines()[0]
    return WeightsCorruptedError(
        f"the Hub sent {what} truncated ({reason}). Nothing of it was kept; call again"
    )


def _unreachable(what: str, error: BaseException) -> HubUnreachableError:
    from huggingface_hub import constants

    reason = (str(error) or type(error).__name__).splitlines()[0]
    return HubUnreachableError(
        f"{what} is not in the cache, and the Hub at {constants.ENDPOINT} does not answer "
        f"({reason}); check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT and call again, "
        "or copy a filled cache here (HF_HOME points to it) and set HF_HUB_OFFLINE=1"
    )
