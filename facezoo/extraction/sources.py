"""Which photographs there are, and their pixels, decoded ahead of the one who wants them."""

from __future__ import annotations

import glob
import math
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import groupby
from pathlib import Path

from facezoo.errors import ImageError
from facezoo.extraction.shards import MARK, damage_of, is_shard, keys_of, read_stored, split_name
from facezoo.extraction.videos import check_video, frame_keys, is_video, read_frame
from facezoo.preprocess.folders import images_in
from facezoo.preprocess.jpeg import JpegDecoder, Photo, read_or_keep
from facezoo.preprocess.prefetch import prefetch

BATCH_BYTES = 256 * 2**20
"""A batch is closed early when its pixels need as much as this."""

Source = str | os.PathLike[str]


@dataclass(frozen=True)
class Photos:
    """Photographs by name, in sorted order; those of a shard or video in its order."""

    root: Path
    """What the names are relative to."""
    names: list[str]
    videos: bool = False
    """Whether frames of videos are among them."""


@dataclass(frozen=True)
class Loaded:
    """One photograph, or why there is none."""

    name: str
    pixels: Photo | None
    """RGB, (H, W, 3), or a JPEG file that the GPU is to decode."""
    reason: str
    """Why it is unreadable, else empty."""
    seconds: float
    """Time that decoding took."""
    time: float = math.nan
    """When a frame of a video is shown, in seconds; NaN for a photograph."""

    def unreadable(self, error: ImageError, path: object) -> Loaded:
        """The same without pixels, and why; ``path`` is what the error may call it."""
        reason = str(error).removeprefix(f"{str(path)!r}: ").removeprefix(f"{path} ")
        return replace(self, pixels=None, reason=reason)


def list_photos(
    source: Source | Iterable[Source], recursive: bool = True, every: int = 1
) -> Photos:
    """Find photographs.

    Args:
        source: a folder, whose photographs are named relative to it; or a file, a pattern or a
            shard, or several of all these, named as they are given. Folders are searched for the
            usual suffixes, in links to folders too, and hidden files and folders in them are passed
            over; a file is taken whatever its name. A pattern has ``*``, ``?``, ``[...]`` or
            ``**``. A ``.txt`` file has a path or pattern per line, relative to its own folder. A
            shard is a ``.parquet`` or ``.tar`` file, see ``facezoo.extraction.shards``, and a video
            has one of the suffixes of ``facezoo.extraction.videos``; those inside folders are not
            opened.
        recursive: whether to search folders in folders.
        every: of a video, the first of each so many frames is taken.

    Returns:
        Each photograph once, sorted by name, shards and videos by theirs. One of these that is
        broken has an entry of its own name, which will be unreadable, after what can be read of it.

    Raises:
        FileNotFoundError: if a path does not exist.
        PermissionError: if a folder cannot be listed.
        ImportError: if a shard is a table and pyarrow is missing, or a video and PyAV is.
        ImageError: if there is nothing but broken shards and videos.
        ValueError: if there is no photograph at all, or a table has no column ``image``.
    """
    given = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    only = Path(given[0]) if len(given) == 1 else None
    given = [path for entry in given for path in _expanded(os.fspath(entry))]
    root = only if only and only.is_dir() else Path()
    names: list[str] = []
    for path in map(Path, given):
        if path.is_dir():
            inside, _ = images_in(path, recursive)
            names += inside if path == only else [(path / name).as_posix() for name in inside]
        elif path.exists():
            names.append(str(path))
        else:
            raise FileNotFoundError(f"no such file or folder: {str(path)!r}")
    if not names:
        where = ", ".join(repr(str(path)) for path in given[:3]) or "an empty list"
        raise ValueError(
            f"no photographs in {where}; folders are searched for the files that Pillow opens, and videos "
            "and shards are taken by name or by a pattern such as 'folder/*.mp4'"
        )
    plain = root != Path()
    named = [[name] if plain else _names_of(name, every) for name in sorted(set(names))]
    flat = [name for entry in named for name in entry]
    if flat and not plain and all(_is_container(Path(name)) for name in flat):
        raise ImageError(_damage(Path(flat[0])))
    if not flat:
        raise ValueError(f"no photographs in the shards {', '.join(sorted(set(names)))}")
    videos = not plain and any(is_video(Path(name)) for name in names)
    return Photos(root, flat, videos)


def _names_of(name: str, every: int) -> list[str]:
    """The photographs of a shard, the frames of a video, or the file itself.

    Of a shard or video that is broken the file itself comes last, to be found unreadable.
    """
    path = Path(name)
    if not _is_container(path):
        return [name]
    if is_shard(path):
        keys, broken = keys_of(path), bool(damage_of(path))
    else:
        broken = bool(_damage(path))
        keys = [] if broken else frame_keys(path, every)
    return [*(f"{name}{MARK}{key}" for key in keys), *([name] if broken else [])]


def _is_container(path: Path) -> bool:
    return is_shard(path) or is_video(path)


def _damage(path: Path) -> str:
    """Why a shard, its end, or a video cannot be read; else empty."""
    if is_shard(path):
        return damage_of(path)
    try:
        check_video(path)
    except ImageError as error:
        return str(error)
    return ""


def _expanded(given: str) -> list[str]:
    """The paths that a pattern or the lines of a ``.txt`` file stand for, or the path itself.

    Raises:
        FileNotFoundError: if nothing matches a pattern, or the name is empty.
        OSError: if a folder on the way of a pattern cannot be listed.
    """
    if not given:  # which Path would take for the current folder
        raise FileNotFoundError("an empty name was given; name a folder or file, '.' for this one")
    path = Path(given)
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
        inside = [_beside(path, line.strip()) for line in lines if line.strip()]
        return [name for line in inside for name in _expanded(line)]
    if path.exists() or not glob.has_magic(given):
        return [given]
    _check_listable(given)
    found = sorted(glob.glob(given, recursive=True))  # noqa: PTH207 (it takes absolute patterns)
    if "**" in given:
        found = _out_of_circles(found, given)
    if not found:
        raise FileNotFoundError(f"nothing matches the pattern {given!r}")
    return found


def _beside(path: Path, line: str) -> str:
    """The path or pattern in a line of a list; the list's own folder is no part of a pattern."""
    beside = path.parent / line
    if beside.exists() or not glob.has_magic(line):
        return str(beside)
    return str(Path(glob.escape(str(path.parent))) / line)


def _out_of_circles(paths: Sequence[str], pattern: str) -> list[str]:
    """Those of the matches to which no link leads by way of a folder that it leads back to."""
    named = Path(f"{pattern[: pattern.index('**')]}x").parent  # circles within it are wanted
    begin = len(named.parts) - named.is_absolute()

    def circular(folder: Path) -> bool:
        ways = [*reversed(folder.parents), folder][begin:]
        stats = [way.stat() for way in ways]
        return len({(stat.st_dev, stat.st_ino) for stat in stats}) < len(ways)

    known: dict[str, bool] = {}
    kept = []
    for path in paths:
        folder = path if os.path.isdir(path) else os.path.dirname(path)  # noqa: PTH112, PTH120
        if folder not in known:
            known[folder] = circular(Path(folder))
        if not known[folder]:
            kept.append(path)
    return kept


def _check_listable(pattern: str) -> None:
    """Refuse folders on the way of a pattern that cannot be listed, which glob takes for empty."""
    above, name = os.path.split(pattern)
    if above != pattern and glob.has_magic(above):
        _check_listable(above)
    if glob.has_magic(name):
        way = os.path.join(pattern if name == "**" else above, "")  # noqa: PTH118 (as glob has it)
        for folder in glob.glob(way, recursive=True) if way else ["."]:  # noqa: PTH207
            os.scandir(folder).close()


def files_of(names: Iterable[str]) -> Iterator[str]:
    """The files that hold photographs, each once; of those in a shard or video, that file."""
    files = (stored[0] if (stored := split_name(name)) else name for name in names)
    return (file for file, _ in groupby(files))


def state_of(root: Path, names: Iterable[str]) -> str:
    """A mark of size and time of change of the files that hold photographs.

    Args:
        root: what the names are relative to.
        names: photographs; of those in a shard or video, that file counts.

    Returns:
        The same text only where the files are the same; one that is gone has a mark, too.
    """
    mark = sha256()
    for file in files_of(names):
        try:
            stat = os.stat(os.path.join(root, file))  # noqa: PTH116, PTH118 (a Path per file is slow)
            mark.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
        except OSError:
            mark.update(b"gone\n")
    return mark.hexdigest()[:16]


def load_ahead(
    root: Path, names: Sequence[str], *, workers: int, ahead: int, jpeg: JpegDecoder = "pillow"
) -> Generator[Loaded, None, None]:
    """Decode photographs in threads while the caller works on earlier ones.

    Args:
        root: what the names are relative to.
        names: photographs.
        workers: threads.
        ahead: see ``prefetch``.
        jpeg: what decodes JPEG files; those for a GPU are read and not decoded.

    Yields:
        One entry per name, in their order.
    """
    return prefetch(
        partial(_load, root, jpeg),
        names,
        workers=workers,
        ahead=ahead,
        size=_size,
        serial=_of_video,
    )


def _of_video(name: str) -> bool:
    """Whether a name is that of a frame; a video is decoded in order."""
    stored = split_name(name)
    return stored is not None and is_video(Path(stored[0]))


def group(loaded: Iterable[Loaded], size: int) -> Iterator[list[Loaded]]:
    """Batches of ``size``, or fewer where the photographs are very large."""
    batch: list[Loaded] = []
    held = 0
    for photo in loaded:
        batch.append(photo)
        held += _size(photo)
        if len(batch) == size or held >= BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _size(loaded: Loaded) -> int:
    """Bytes that a photograph holds in memory."""
    return 0 if loaded.pixels is None else loaded.pixels.nbytes


def _load(root: Path, jpeg: JpegDecoder, name: str) -> Loaded:
    begin = time.perf_counter()
    path, shown = root / name, math.nan
    pixels: Photo | None = None
    error: ImageError | None = None
    try:
        stored = split_name(name)
        if stored is None:
            if root == Path() and _is_container(path):
                raise ImageError(_damage(path) or f"{path} has changed since it was listed")
            pixels = read_or_keep(path, None, jpeg)
        elif is_video(Path(stored[0])):
            path = root / stored[0]
            pixels, shown = read_frame(path, stored[1])
        else:
            path = root / stored[0]
            pixels = read_or_keep(read_stored(path, stored[1]), None, jpeg)
    except ImageError as caught:
        error = caught
    loaded = Loaded(name, pixels, "", time.perf_counter() - begin, shown)
    return loaded if error is None else loaded.unreadable(error, path)
