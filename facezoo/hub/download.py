"""Download a file from the Hugging Face Hub: with a cache, retries and clear errors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facezoo.errors import (
    HubOfflineError,
    HubUnreachableError,
    WeightsCorruptedError,
    WeightsError,
    WeightsNotFoundError,
)
from facezoo.version import __version__

COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT = 5.0
"""Seconds until the Hub counts as unreachable, unless HF_HUB_ETAG_TIMEOUT is set."""
RESTARTS = 2
"""Number of times that a broken download may start from the beginning."""
LIBRARY: dict[str, Any] = {"library_name": "facezoo", "library_version": __version__}


@dataclass(frozen=True)
class HubOptions:
    """Settings of a request; None follows the usual HF_* environment variables."""

    token: str | bool | None = None
    cache_dir: str | Path | None = None
    force_download: bool = False
    local_files_only: bool = False


def fetch(repo: str, file: str, revision: str | None, options: HubOptions) -> tuple[Path, str]:
    """Return a file from the Hub cache or from the Hub. The content is not checked here.

    Args:
        repo: ``org/name``.
        revision: commit, branch or tag; None for ``main``. A cached commit needs no request.
        options: token, cache folder and the like.

    Returns:
        The file in the cache, and its full commit.

    Raises:
        HubOfflineError: if it is not cached and requests are forbidden.
        HubUnreachableError: if it is not cached and the Hub does not answer in ``TIMEOUT`` seconds.
        WeightsNotFoundError: if the Hub has no such repository, revision or file.
        WeightsCorruptedError: if the file arrives truncated.
        WeightsError: if the file cannot be written to the cache.
    """
    from huggingface_hub import constants

    revision = revision or "main"
    cached = None if options.force_download else cached_file(repo, file, revision, options)
    offline = constants.HF_HUB_OFFLINE or options.local_files_only
    if cached is None and offline:
        cache = options.cache_dir or constants.HF_HUB_CACHE
        raise HubOfflineError(
            f"{repo}/{file} at {revision} is not in the cache {cache}, and HF_HUB_OFFLINE or "
            "local_files_only forbids a request; run facezoo.download() once with a network, or "
            "copy a cache here and set HF_HOME"
        )
    if cached is None or not (offline or COMMIT.fullmatch(revision)):
        try:
            with _named_errors(repo, file, revision):
                cached = _download(repo, file, revision, options)
        except HubUnreachableError:
            if cached is None:
                raise
    return cached, cached.parent.name


def cached_file(repo: str, file: str, revision: str, options: HubOptions) -> Path | None:
    """Return a file in the cache, or None; without a request."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repo, file, cache_dir=options.cache_dir, revision=revision)
    return Path(path) if isinstance(path, str) else None


def _download(repo: str, file: str, revision: str, options: HubOptions) -> Path:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils.tqdm import tqdm

    timeout: float = constants.HF_HUB_ETAG_TIMEOUT
    if timeout == constants.DEFAULT_ETAG_TIMEOUT:
        timeout = TIMEOUT
    # One request without retries: hf_hub_download repeats a failed one for minutes.
    url = hf_hub_url(repo, file, revision=revision)
    metadata = get_hf_file_metadata(url, token=options.token, timeout=timeout, **LIBRARY)
    if metadata.commit_hash is None:
        raise ConnectionError("the answer has no X-Repo-Commit, so it is not from a Hub")
    restarts = 0

    class Progress(tqdm):
        """Progress bar that ends a download which always breaks off at the same byte.

        huggingface_hub tries without end if a server breaks off and ignores the Range header.
        It moves the bar back at every start from the beginning.
        """

        def update(self, n: float | None = 1) -> Any:
            nonlocal restarts
            restarts += n is not None and n < 0
            if restarts >= RESTARTS:
                raise ConnectionError("the connection breaks off at the same byte every time")
            return super().update(n)

    path = hf_hub_download(
        repo,
        file,
        revision=revision,
        token=options.token,
        cache_dir=options.cache_dir,
        force_download=options.force_download,
        etag_timeout=timeout,
        tqdm_class=Progress,
        **LIBRARY,
    )
    return Path(path)


@contextmanager
def _named_errors(repo: str, file: str, revision: str) -> Iterator[None]:
    """Turn the errors of huggingface_hub into ours, each with an advice."""
    from huggingface_hub import constants, errors

    hub, name = constants.ENDPOINT, f"{repo}/{file} at {revision}"
    network: Any = (errors.HTTPError, ConnectionError, errors.LocalEntryNotFoundError)  # type: ignore[attr-defined]
    try:
        yield
    except errors.RepositoryNotFoundError as error:
        raise WeightsNotFoundError(
            f"{hub} shows no repository {repo}: it does not exist, or it is private or gated; ask "
            "for access on its page and log in (hf auth login, or HF_TOKEN)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsNotFoundError(
            f"the repository {repo} has no revision {revision}; expected a branch, a tag or a full "
            "commit"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise WeightsNotFoundError(
            f"the repository {repo} has no file {file} at {revision}; upgrade facezoo if the "
            "checkpoint is one of its own"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status not in (401, 403, 404):
            raise _unreachable(name, error) from error
        raise WeightsNotFoundError(
            f"{hub} answered {status} for {name}; if the repository is private or gated, log in "
            "with an account that may read it (hf auth login, or HF_TOKEN)"
        ) from error
    except (*network, errors.FileMetadataError) as error:
        raise _unreachable(name, error.__cause__ or error) from error
    except (OSError, RuntimeError) as error:  # of the disk, or of hf_xet
        if "Consistency check failed" in str(error):
            raise WeightsCorruptedError(
                f"the Hub sent {name} truncated ({str(error).splitlines()[0]}); call again"
            ) from error
        raise WeightsError(
            f"{name} could not be written to the cache ({type(error).__name__}: {error}); make "
            "room or make it writable, set HF_HOME to another folder, or, if the error is of "
            "hf_xet, set HF_HUB_DISABLE_XET=1"
        ) from error


def _unreachable(name: str, error: BaseException) -> HubUnreachableError:
    from huggingface_hub import constants

    reason = (str(error) or type(error).__name__).splitlines()[0]
    return HubUnreachableError(
        f"{name} is not in the cache and did not come from the Hub at {constants.ENDPOINT} "
        f"({reason}); check the network, the proxy (HTTPS_PROXY) and HF_ENDPOINT, or copy a filled "
        "cache here (HF_HOME) and set HF_HUB_OFFLINE=1"
    )
