"""Files from the Hugging Face Hub: through its cache, with bounded waiting and named errors."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from facezoo.errors import (
    HubOfflineError,
    HubUnreachableError,
    WeightsCorruptedError,
    WeightsError,
    WeightsNotFoundError,
)
from facezoo.version import __version__

T = TypeVar("T")

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
    cached = None if options.force_download else cached_file(repo, file, revision, options)
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


def cached_file(repo: str, file: str, revision: str, options: HubOptions) -> Path | None:
    """The file in the cache, or None; no request."""
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
