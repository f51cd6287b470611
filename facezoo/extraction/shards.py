"""Photographs that stand in shards: Parquet tables and tar files in the layout of WebDataset.

A photograph in a shard is named ``<shard>::<key>``. The key of a tar file is the member's name;
that of a table is its ``file`` (or ``path``) where these tell the rows apart, else the number of
the row. Where a shard is broken, its own name, without a key, stands for what cannot be read.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from facezoo.errors import ImageError
from facezoo.extraction.videos import is_video
from facezoo.preprocess.folders import image_suffixes

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SHARDS = (".parquet", ".tar")
MARK = "::"
_GROUPS = 2
"""Row groups of tables whose images are kept in memory."""
_MORE = "it is damaged there, or several in one; unpack it with tar -i and pack it anew"
_NOTHING = (0, 0)
"""The place in a tar file of a link that leads out of it."""
_lock = Lock()


@dataclass(frozen=True)
class _Index:
    places: dict[str, tuple[int, int]]
    """Offset and size in a tar file, row group and row in a table."""
    damage: str = ""
    """Why the shard, or what follows the places, cannot be read; else empty."""


def is_shard(path: Path) -> bool:
    """Whether a file is a shard by its suffix."""
    return path.suffix.lower() in SHARDS


def split_name(name: str) -> tuple[str, str] | None:
    """Shard or video, and key, of a photograph's name; None for one that is a file of its own."""
    shard, mark, key = name.partition(MARK)
    path = Path(shard)
    return (shard, key) if mark and (is_shard(path) or is_video(path)) else None


def keys_of(path: Path) -> list[str]:
    """Keys of a shard's photographs, in the order in which they stand in it.

    Raises:
        ImportError: if it is a table and pyarrow is missing.
        ValueError: if it is a table without a column ``image``.
    """
    return list(_index(path).places)


def damage_of(path: Path) -> str:
    """Why a shard, or its end, cannot be read; else empty."""
    return _index(path).damage


def read_stored(path: Path, key: str) -> bytes:
    """The bytes of a photograph's file.

    Raises:
        ImageError: if its row group is damaged.
        OSError: if the shard cannot be read, or has no such key any more.
    """
    place = _index(path).places.get(key)
    if place is None:
        raise OSError(f"{path} no longer holds {key!r}; it has changed since it was listed")
    if path.suffix.lower() == ".tar":
        offset, size = place
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    group, row = place
    with _lock:  # one thread reads a row group, the others wait for it rather than read it too
        images = _images(path, _stamp(path), group)
    if isinstance(images, str):
        raise ImageError(f"{str(path)!r}: {images}")
    return images[row].as_py() or b""


def _stamp(path: Path) -> tuple[int, int]:
    """What tells a file from one that replaced it."""
    stat = os.stat(path)  # noqa: PTH116
    return stat.st_mtime_ns, stat.st_size


def _index(path: Path) -> _Index:
    with _lock:
        return _indexed(path, _stamp(path))


@lru_cache(maxsize=4)
def _indexed(path: Path, _: tuple[int, int]) -> _Index:
    """Where each photograph stands."""
    if path.suffix.lower() == ".tar":
        return _tar_places(path)
    try:
        table = _opened(path)
    except ImageError as error:
        return _Index({}, str(error))
    with table:
        _image_column(table)
        counts = [table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)]
        places = [(group, row) for group, count in enumerate(counts) for row in range(count)]
        return _Index(dict(zip(_row_keys(table, len(places)), places, strict=True)))


def _tar_places(path: Path) -> _Index:
    places: dict[str, tuple[int, int]] = {}
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    damage = ""
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                if member.isfile():
                    files[name] = (member.offset_data, member.size)
                    links.pop(name, None)
                elif member.islnk() or member.issym():
                    links[name] = _target(member)
                else:
                    continue
                if os.path.splitext(member.name)[1].lower() in image_suffixes():  # noqa: PTH122
                    places[member.name] = _NOTHING
            end = archive.offset
    except tarfile.TarError as error:
        what = "is cut off" if places else "is no uncompressed tar file"
        damage = f"{path} {what}: {error}"
    for name in places:
        places[name] = files.get(_followed(posixpath.normpath(name), links), _NOTHING)
    if damage:
        return _Index(places, damage)
    with path.open("rb") as file:
        file.seek(end)
        while block := file.read(tarfile.RECORDSIZE):
            if block.strip(b"\0"):
                return _Index(places, f"{path} goes on where it ends, at byte {end}: {_MORE}")
    return _Index(places)


def _target(link: tarfile.TarInfo) -> str:
    """The member that a link stands for: by its name, or of a symbolic link from where that is."""
    folder = "" if link.islnk() else posixpath.dirname(link.name)
    return posixpath.normpath(posixpath.join(folder, link.linkname))


def _followed(name: str, links: Mapping[str, str]) -> str:
    """Where a name leads to by links, of which none is taken twice."""
    seen = set()
    while name in links and name not in seen:
        seen.add(name)
        name = links[name]
    return name


def _opened(path: Path) -> pq.ParquetFile:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(
            f"reading {path.name} needs pyarrow: pip install 'facezoo[parquet]'"
        ) from error
    try:
        return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise ImageError(f"{path} is no Parquet file: {error}") from error


def _image_column(table: pq.ParquetFile) -> str:
    """The column of encoded bytes: ``image``, or ``image.bytes`` as the datasets library has it."""
    import pyarrow as pa

    schema = table.schema_arrow
    kind = schema.field("image").type if "image" in schema.names else None
    if kind is not None and pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return "image.bytes"
    if kind is None or not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ValueError(
            f"a shard needs a column 'image' with the bytes of image files, got {schema.names}"
        )
    return "image"


def _row_keys(table: pq.ParquetFile, count: int) -> Sequence[str]:
    import pyarrow as pa

    for name in ("file", "path"):
        if name in table.schema_arrow.names:
            try:
                words = table.read([name])[name].to_pylist()
            except (OSError, pa.ArrowException):  # damaged: the numbers are left
                continue
            if all(isinstance(word, str) for word in words) and len(set(words)) == count:
                return words
    return [f"{row:08d}" for row in range(count)]


@lru_cache(maxsize=_GROUPS)
def _images(path: Path, _: tuple[int, int], group: int) -> Any:
    """The encoded images of a row group, or why it cannot be read, which is found out but once."""
    import pyarrow as pa

    with _opened(path) as table:
        name = _image_column(table)
        try:
            column = table.read_row_group(group, columns=[name])["image"].combine_chunks()
        except (OSError, pa.ArrowException) as error:
            return f"row group {group} is damaged: {error}"
        return column.field("bytes") if name == "image.bytes" else column
