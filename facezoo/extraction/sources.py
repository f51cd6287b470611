"""Find images in folders, patterns, lists, shards and videos, and read them by name.

An image in a shard is named ``<shard>::<key>``. The key is the name of the member of a tar file;
in a Parquet table it is the value of the column ``file`` or ``path`` if that is unique, else the
number of the row. A frame of a video is named ``<video>::<number>``. A broken shard or video has
one more entry, its own name without a key, for the part that cannot be read.
"""

from __future__ import annotations

import glob
import math
import os
import posixpath
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from facezoo.errors import ImageError, explained_import
from facezoo.extraction.videos import frame_keys, read_frame
from facezoo.preprocess.folders import image_suffixes, images_in, skipped_message
from facezoo.preprocess.images import read_image
from facezoo.preprocess.jpeg import JpegDecoder, Photo, read_or_keep

if TYPE_CHECKING:
    import pyarrow.parquet as pq

Source = str | os.PathLike[str]
VIDEOS = (
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
SHARDS = (".parquet", ".tar")
SEPARATOR = "::"
OUTSIDE = (0, 0)
"""Offset and size of a link in a tar file that leads out of it."""
_lock = Lock()


@dataclass(frozen=True)
class ImageList:
    """Images by name, sorted; those of a shard or video in its own order."""

    root: Path
    """The folder that the names are relative to."""
    names: list[str]
    videos: bool = False
    """True if the list holds frames of videos."""
    skipped: tuple[str, ...] = ()
    """Files in the folders that look like images and that Pillow cannot open."""


def list_images(
    source: Source | Iterable[Source], recursive: bool = True, every: int = 1
) -> ImageList:
    """List the images of a source.

    Args:
        source: a folder, whose images are named relative to it; or a file, a pattern or a shard, or
            several of all these, named as given. Folders are searched for the formats that Pillow
            opens; a file is taken whatever its name. A pattern has ``*``, ``?``, ``[...]`` or
            ``**``, which does not follow links. A ``.txt`` file has a path or pattern per line,
            relative to its own folder. Videos and shards are taken by name or pattern only.
        recursive: whether to search subfolders.
        every: take every n-th frame of a video, from the first on.

    Raises:
        FileNotFoundError: if a path does not exist.
        PermissionError: if a folder cannot be listed.
        ImportError: if a table needs pyarrow or a video needs PyAV, and it is missing.
        ImageError: if there are only broken shards and videos.
        ValueError: if there is no image, or a table has no column ``image``.
    """
    entries = [source] if isinstance(source, (str, os.PathLike)) else list(source)
    root = Path(entries[0]) if len(entries) == 1 and entries[0] else None
    root = root if root and root.is_dir() else None
    files: set[str] = set()
    skipped: list[str] = []
    paths = [path for entry in entries for path in expand(os.fspath(entry))]
    for path in map(Path, paths):
        if path.is_dir():
            inside = images_in(path, recursive)
            images, others = inside if root else ([str(path / n) for n in part] for part in inside)
            files.update(images)
            skipped += others
        elif path.exists():
            files.add(str(path))
        else:
            raise FileNotFoundError(f"no such file or folder: {str(path)!r}")
    if not files:
        where = ", ".join(map(repr, paths[:3])) or "an empty list"
        if skipped:
            raise ValueError(f"no images in {where}; {skipped_message(skipped)}")
        raise ValueError(
            f"no images in {where}; folders are searched for files that Pillow opens, and videos "
            "and shards are taken by name or by a pattern such as 'folder/*.mp4'"
        )
    if root:
        return ImageList(root, sorted(files), skipped=tuple(skipped))
    listed = [_contents(name, every) for name in sorted(files)]
    names = [name for inside, _ in listed for name in inside]
    if not names:
        raise ValueError(f"no images in the shards {', '.join(sorted(files))}")
    if all(damage for _, damage in listed) and len(names) == len(files):
        raise ImageError(listed[0][1])
    return ImageList(Path(), names, any(map(is_video, files)), tuple(skipped))


def _contents(name: str, every: int) -> tuple[list[str], str]:
    """List the images of a shard, the frames of a video, or the file itself; and any damage."""
    if not _is_container(name):
        return [name], ""
    keys, damage = _keys(name, every)
    names = [f"{name}{SEPARATOR}{key}" for key in keys]
    return [*names, *([name] if damage else [])], damage


def _keys(name: str, every: int = 1) -> tuple[Sequence[str], str]:
    """List the keys of a shard or video, and describe what is damaged in it."""
    if not is_video(name):
        index = _index(name)
        return list(index.places), index.damage
    try:
        return frame_keys(name, every), ""
    except ImageError as error:
        return [], str(error)


def is_video(name: str) -> bool:
    """Return whether a file is a video, by its suffix."""
    return name.lower().endswith(VIDEOS)


def _is_container(name: str) -> bool:
    return name.lower().endswith((*SHARDS, *VIDEOS))


def split_name(name: str) -> tuple[str, str]:
    """Split a name into the shard or video and the key; the key of a plain file is empty."""
    end = name.find(SEPARATOR)
    while end >= 0:  # folders and files may have the separator in their names
        if _is_container(name[:end]):
            return name[:end], name[end + len(SEPARATOR) :]
        end = name.find(SEPARATOR, end + 1)
    return name, ""


def is_frame(name: str) -> bool:
    """Return whether a name is that of a frame; the frames of a video are read in order."""
    container, key = split_name(name)
    return bool(key) and is_video(container)


def expand(entry: str) -> list[str]:
    """Return the files that a pattern or the lines of a ``.txt`` file name, or the path itself."""
    if not entry:  # Path would take it for the current folder
        raise FileNotFoundError("the name of a source is empty; '.' is the current folder")
    path = Path(entry)
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").split("\n")
        return [
            file
            for line in map(str.strip, lines)
            if line
            for file in expand(_in_folder(path.parent, line))
        ]
    if path.exists() or not glob.has_magic(entry):
        return [entry]
    unique: dict[tuple[str, str], str] = {}  # links lead to a folder by several names
    for file in sorted(glob.glob(entry, recursive=True), key=lambda f: (f.count(os.sep), f)):  # noqa: PTH207 (absolute patterns)
        folder, name = os.path.split(file)
        if file:
            unique.setdefault((os.path.realpath(folder), name), file)
    if not unique:
        raise FileNotFoundError(f"no file matches the pattern {entry!r}")
    return list(unique.values())


def _in_folder(folder: Path, line: str) -> str:
    """Return a line of a list as a path or pattern; the name of the folder is not a pattern."""
    path = folder / line
    is_pattern = glob.has_magic(line) and not path.exists()
    return str(Path(glob.escape(str(folder))) / line if is_pattern else path)


def files_of(names: Iterable[str]) -> Iterator[str]:
    """Yield the files that hold images, each once: plain files, shards and videos."""
    return (file for file, _ in groupby(split_name(name)[0] for name in names))


def state_of(root: Path, names: Iterable[str]) -> str:
    """Hash the sizes and modification times of the files that hold images."""
    state = sha256()
    for file in files_of(names):
        try:
            stat = os.stat(os.path.join(root, file))  # noqa: PTH116, PTH118 (a Path per file is slow)
            state.update(f"{stat.st_size} {stat.st_mtime_ns}\n".encode())
        except OSError:
            state.update(b"gone\n")
    return state.hexdigest()[:16]


def read(root: Path, name: str, jpeg: JpegDecoder = "pillow") -> tuple[Photo, float]:
    """Read an image by name.

    Args:
        root: the folder that the name is relative to.
        name: one of ``ImageList.names``.
        jpeg: decoder of JPEG files; those for a GPU are read and not decoded.

    Returns:
        Pixels, RGB (H, W, 3), or a JPEG file; and the time of a frame in seconds, NaN for an image.

    Raises:
        ImageError: if it cannot be read.
    """
    container, key = split_name(name)
    path = root / container
    if key and is_video(container):
        return read_frame(path, key)
    if not key and _is_container(name):
        raise ImageError(_keys(name)[1] or "has changed since it was listed")
    file = read_stored(path, key) if key else path
    return read_image(file) if jpeg == "pillow" else read_or_keep(file, None, jpeg), math.nan


def reason_of(error: ImageError, root: Path, name: str) -> str:
    """Return the message of an error of ``read`` without the name of the file."""
    path = root / split_name(name)[0]
    return str(error).removeprefix(f"{str(path)!r}: ").removeprefix(f"{path} ")


@dataclass(frozen=True)
class _Index:
    """Places of the images in a shard."""

    places: dict[str, tuple[int, int]]
    """Offset and size in a tar file, row group and row in a table, by key."""
    damage: str = ""
    """Description of the part that cannot be read; empty if all can."""


def read_stored(path: Path, key: str) -> bytes | Path:
    """Read the file of an image in a shard, or return its path if a table has only that.

    Raises:
        ImageError: if its row group is damaged.
        OSError: if the shard cannot be read, or does not have the key any more.
    """
    place = _index(str(path)).places.get(key)
    if place is None:
        raise OSError(f"{path} has no image {key!r} any more; it has changed since it was listed")
    if path.suffix.lower() == ".tar":
        offset, size = place
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    group, row = place
    with _lock:  # one thread reads a row group, and the others wait for it
        images = _row_group(str(path), _stamp(path), group)
    if isinstance(images, str):
        raise ImageError(images)
    value = images[row].as_py()
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not isinstance(value, str):
        return value or b""
    named = path.parent / value
    if not named.is_file():
        raise ImageError(
            f"there is no such file: {named}; paths in {path.name} are relative to its folder"
        )
    return named


def _stamp(path: str | Path) -> tuple[int, int]:
    stat = os.stat(path)  # noqa: PTH116
    return stat.st_mtime_ns, stat.st_size


def _index(path: str) -> _Index:
    with _lock:
        return _read_index(path, _stamp(path))


@lru_cache(maxsize=4)
def _read_index(path: str, _: tuple[int, int]) -> _Index:
    if path.lower().endswith(".tar"):
        return _tar_index(Path(path))
    try:
        table = _open_table(path)
    except ImageError as error:
        return _Index({}, str(error))
    with table:
        _check_column(table)
        counts = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
        places = [(group, row) for group, count in enumerate(counts) for row in range(count)]
        return _Index(dict(zip(_row_keys(table, len(places)), places, strict=True)))


def _tar_index(path: Path) -> _Index:
    images: list[str] = []
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    damage = ""
    suffixes = image_suffixes()
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                if member.isfile():
                    files[name] = (member.offset_data, member.size)
                    links.pop(name, None)
                elif member.islnk() or member.issym():
                    folder = "" if member.islnk() else posixpath.dirname(member.name)
                    links[name] = posixpath.normpath(posixpath.join(folder, member.linkname))
                else:
                    continue
                if posixpath.splitext(name)[1].lower() in suffixes:
                    images.append(member.name)
            end = archive.offset
        with path.open("rb") as file:  # tarfile takes a damaged header for the end
            file.seek(end)
            blocks = iter(lambda: file.read(tarfile.RECORDSIZE), b"")
            if any(block.strip(b"\0") for block in blocks):
                damage = (
                    f"{path} has more data after its end at byte {end}: it is damaged, or several "
                    "tar files in one; unpack it with tar -i and pack it again"
                )
    except tarfile.TarError as error:
        damage = f"{path} {'is cut off' if images else 'is not an uncompressed tar file'}: {error}"
    places = {name: files.get(_target(name, links), OUTSIDE) for name in images}
    return _Index(places, damage)


def _target(name: str, links: Mapping[str, str]) -> str:
    """Follow the links from a member of a tar file, each once."""
    name, followed = posixpath.normpath(name), set[str]()
    while name in links and name not in followed:
        followed.add(name)
        name = links[name]
    return name


def _open_table(path: str) -> pq.ParquetFile:
    with explained_import(f"reading {path} needs pyarrow: pip install 'facezoo[parquet]'"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise ImageError(f"{path} is not a Parquet file: {error}") from error


def _check_column(table: pq.ParquetFile) -> None:
    """Check that images are bytes, paths, or structs of these as of the datasets library."""
    names = table.schema_arrow.names
    kind = str(table.schema_arrow.field("image").type) if "image" in names else ""
    words = kind.removeprefix("dictionary<values=")
    if not words.removeprefix("large_").startswith(
        ("binary", "string", "struct<bytes", "struct<path")
    ):
        raise ValueError(
            "a shard needs a column 'image' with the bytes or paths of image files, got "
            f"{f'a column of {kind}' if kind else names}"
        )


def _row_keys(table: pq.ParquetFile, count: int) -> Sequence[str]:
    import pyarrow as pa

    for name in ("file", "path"):
        if name not in table.schema_arrow.names:
            continue
        try:
            words = table.read([name])[name].to_pylist()
        except (OSError, pa.ArrowException):  # damaged: use the numbers of the rows
            continue
        if all(isinstance(word, str) for word in words) and len(set(words)) == count:
            return words
    return [f"{row:08d}" for row in range(count)]


@lru_cache(maxsize=2)
def _row_group(path: str, _: tuple[int, int], group: int) -> Any:
    """Read the images of a row group, or describe its damage; the two last ones are in memory."""
    import pyarrow as pa

    with _open_table(path) as table:
        try:
            return table.read_row_group(group, columns=["image"])["image"].combine_chunks()
        except (OSError, pa.ArrowException) as error:
            return f"row group {group} is damaged: {error}"
