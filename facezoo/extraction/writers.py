"""Write feature files as Parquet, CSV or NPZ, a block of rows at a time, and join Parquet files."""

from __future__ import annotations

import csv
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from facezoo.errors import explained_import
from facezoo.extraction.resume import Parts, Rows, replacing
from facezoo.progress import progress_bar
from facezoo.results import BOX, LANDMARKS, POSE
from facezoo.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SUFFIXES = (".parquet", ".csv", ".npz")
BLOCK = 1024
"""Rows in memory at once, and in a row group of a Parquet file."""
QUALITY = ("eye_distance_px", "sharpness")
VERSIONS = {"facezoo": __version__, "torch": str(torch.__version__), "numpy": np.__version__}
"""Packages that decide the last digits of the rows."""
COMPARABLE = ("fingerprint", "checkpoint", "features", "classes", "videos", "smooth", "compact")
"""Fields of the metadata that are equal in files that can be joined."""


@dataclass(frozen=True)
class Layout:
    """Properties that all rows of a file share."""

    checkpoint: str
    """Name and shortened SHA-256 of the weights."""
    fingerprint: str
    """Of the preprocessing, see ``facezoo.preprocess.fingerprint.fingerprint``; with videos also of
    the conversion of their colors."""
    features: tuple[str, ...]
    """Names of the embeddings."""
    classes: tuple[str, ...]
    """The K expression classes; empty for a model without classes."""
    videos: bool = False
    """Rows have a time and a track; see ``facezoo.extraction.tracks``."""
    smooth: float | None = None
    """Time constant of the smoothing along a track, seconds."""
    compact: bool = False
    """The expression features are those of ``FaceModel.compact_expression``."""


def check_output(output: Path) -> None:
    """Check that a file can be written, before any work is done.

    Raises:
        ValueError: if its suffix is not one of ``SUFFIXES``.
        IsADirectoryError: if it is a folder.
        ImportError: if it is Parquet and pyarrow is not installed.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"output must end in {', '.join(SUFFIXES)}, got {str(output)!r}")
    if output.is_dir():
        raise IsADirectoryError(f"output {str(output)!r} is a folder; name a file in it")
    # It is imported when the file is written, since it takes 30 MB.
    if output.suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise ImportError(
            f"writing {output.name} needs pyarrow: pip install 'facezoo[parquet]', or write "
            ".csv or .npz"
        )


class Table:
    """All rows of one output of some parts, in a layout, with the tracks of videos."""

    def __init__(self, parts: Parts, output: int, layout: Layout) -> None:
        self.layout = layout
        self._parts = parts
        self._output = output

    def columns(self, *names: str) -> Iterator[Rows]:
        """Yield some columns, or all, part by part; ``file`` is the printable name of the image."""
        if not self.layout.videos:
            for images, rows in self._parts.blocks(self._output, _stored(names)):
                yield self._with_files(images, rows)
            return
        from facezoo.extraction.tracks import Tracker

        tracker = Tracker(self.layout.smooth)
        needed = _stored(dict.fromkeys([*names, "face", "box", "time"])) if names else None
        for images, rows in self._parts.blocks(self._output, needed):
            smooth = [n for n in (*self.layout.features, "probabilities") if n in rows]
            yield self._with_files(images, tracker.follow(images, rows, smooth))

    def blocks(self) -> Iterator[Rows]:
        """Yield all columns in blocks of ``BLOCK`` rows, whatever the sizes of the parts.

        A column is (R,) or (R, width), in the order of the file. The last block can be empty.
        """
        waiting: list[Rows] = []
        count = 0
        for rows in self.columns():
            waiting.append(self._flatten(rows))
            count += len(rows["face"])
            while count > BLOCK:
                joined = _concatenate(waiting)
                yield {key: value[:BLOCK] for key, value in joined.items()}
                waiting = [{key: value[BLOCK:] for key, value in joined.items()}]
                count -= BLOCK
        yield _concatenate(waiting)

    def _flatten(self, rows: Rows) -> Rows:
        layout, count = self.layout, len(rows["face"])
        columns = {"file": rows["file"], "face": rows["face"]}
        columns |= {name: rows[name] for name in ("time", "track") if layout.videos}
        columns |= {**dict(zip(BOX, rows["box"].T, strict=True)), "score": rows["score"]}
        columns["landmarks"] = rows["landmarks"].reshape(count, len(LANDMARKS))
        columns |= dict(zip(POSE, rows["pose_deg"].T, strict=True))
        columns |= {name: rows[name] for name in (*QUALITY, *layout.features)}
        if layout.classes:
            columns["label"] = np.array(self.labels(rows["probabilities"]), object)
            named = zip(layout.classes, rows["probabilities"].T, strict=True)
            columns |= {f"p_{name}": column for name, column in named}
        columns["checkpoint"] = np.full(count, layout.checkpoint, object)
        columns["fingerprint"] = np.full(count, layout.fingerprint, object)
        return columns

    def labels(self, probabilities: NDArray[np.float32]) -> list[str | None]:
        """Return the most probable class of each row, None where there are no probabilities, R."""
        best = np.nan_to_num(probabilities).argmax(1)
        known = np.logical_and.reduce(np.isfinite(probabilities), axis=1)
        return [self.layout.classes[k] if ok else None for k, ok in zip(best, known, strict=True)]

    @staticmethod
    def _with_files(images: Sequence[str], rows: Rows) -> Rows:
        return {**rows, "file": np.array([*map(printable, images), ""], object)[rows["image"]]}


def _stored(names: Iterable[str]) -> list[str] | None:
    """Return the columns of the parts that are needed for some columns; None for all."""
    return [*dict.fromkeys(["image", *names])] if names else None


def _concatenate(rows: Sequence[Rows]) -> Rows:
    if len(rows) == 1:
        return rows[0]
    return {key: np.concatenate([part[key] for part in rows]) for key in rows[0]}


def printable(name: str) -> str:
    """Return a file name as valid Unicode; bytes that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_table(path: Path, suffix: str, table: Table) -> int:
    """Write all rows of an output to a file by its suffix, and return their number."""
    return {".parquet": _write_parquet, ".csv": _write_csv, ".npz": _write_npz}[suffix](path, table)


def _write_csv(path: Path, table: Table) -> int:
    """Write numbers as the shortest texts that read back the same, and NaN as an empty field."""
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for number, columns in enumerate(table.blocks()):
            if not number:
                writer.writerow(_csv_header(columns))
            texts = []
            for value in columns.values():
                text = (value if value.dtype == object else value.astype(str)).astype(object)
                if value.dtype.kind == "f":
                    text[np.isnan(value)] = ""
                texts.append(text if text.ndim == 2 else text[:, None])
            writer.writerows(np.concatenate(texts, 1).tolist())
            count += len(columns["face"])
    return count


def _csv_header(columns: Rows) -> list[str]:
    header: list[str] = []
    for name, value in columns.items():
        vector = LANDMARKS if name == "landmarks" else map(f"{name}_{{}}".format, count())
        header += islice(vector, value.shape[1]) if value.ndim == 2 else [name]
    return header


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a writer of feature files.

    Words have dictionaries. Floating-point columns have no statistics: statistics ignore NaN, and
    some readers then skip row groups that have it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    whole = [field.name for field in schema if pa.types.is_integer(field.type)]
    return pq.ParquetWriter(
        path, schema, use_dictionary=words, write_statistics=["file", *words, *whole]
    )


def _write_parquet(path: Path, table: Table) -> int:
    import pyarrow as pa

    blocks = table.blocks()
    first = next(blocks)
    widths = {name: first[name].shape[1] for name in table.layout.features}
    metadata = {**asdict(table.layout), "features": widths, "versions": VERSIONS}
    schema = pa.schema(
        [(name, _arrow_type(name, value)) for name, value in first.items()],
        metadata={"facezoo": json.dumps(metadata)},
    )
    count = 0
    with parquet_writer(path, schema) as writer:
        for columns in chain([first], blocks):
            arrays = [_arrow(value, schema.field(name).type) for name, value in columns.items()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), row_group_size=BLOCK)
            count += len(columns["face"])
    return count


def _arrow(values: NDArray[Any], kind: pa.DataType) -> pa.Array:
    """Convert a column through its memory: ``pa.array`` would import pandas, 50 MB, if it can."""
    import pyarrow as pa

    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(
            _arrow(values.reshape(-1), kind.value_type), kind.list_size
        )
    if values.dtype != object:
        data = pa.py_buffer(np.ascontiguousarray(values))
        return pa.Array.from_buffers(kind, len(values), [None, data])
    if kind == pa.string():
        texts = [text.encode() for text in values]
        offsets = pa.py_buffer(np.cumsum([0, *map(len, texts)], dtype=np.int32))
        return pa.StringArray.from_buffers(len(texts), offsets, pa.py_buffer(b"".join(texts)))
    words = [*dict.fromkeys(word for word in values if word is not None)]
    places = {word: place for place, word in enumerate(words)}
    index = np.array([places.get(word, 0) for word in values], np.int32)
    known = np.packbits(np.array([w is not None for w in values], bool), bitorder="little")
    buffers = [pa.py_buffer(known), pa.py_buffer(index)]
    indices = pa.Array.from_buffers(pa.int32(), len(values), buffers)
    return pa.DictionaryArray.from_arrays(indices, _arrow(np.array(words, object), pa.string()))


def _arrow_type(name: str, values: NDArray[Any]) -> pa.DataType:
    import pyarrow as pa

    if values.ndim == 2:
        return pa.list_(pa.float32(), values.shape[1])
    if values.dtype == object:
        return pa.string() if name == "file" else pa.dictionary(pa.int32(), pa.string())
    return pa.from_numpy_dtype(values.dtype)


def _write_npz(path: Path, table: Table) -> int:
    """Write one array per column, each in one pass over the parts."""
    layout, rows, longest = table.layout, 0, 1
    for columns in table.columns("face"):
        rows += len(columns["face"])
        longest = max([longest, *map(len, columns["file"])])
    names = ["face", "box", "score", "landmarks", "pose_deg", *QUALITY]
    names += [
        *(["time", "track"] if layout.videos else []),
        *layout.features,
        *(["probabilities"] if layout.classes else []),
    ]
    constants = {
        "checkpoint": np.array(layout.checkpoint),
        "fingerprint": np.array(layout.fingerprint),
        "versions": np.array([f"{name} {version}" for name, version in VERSIONS.items()]),
    }
    with zipfile.ZipFile(path, "w") as archive:
        files = (c["file"].astype(f"<U{longest}") for c in table.columns("face"))
        _write_array(archive, "file", rows, files)
        for key in names:
            values = (c[key] for c in table.columns("face" if key == "track" else key))
            _write_array(archive, key, rows, values)
        if layout.classes:
            constants["classes"] = np.array(layout.classes)
            labels = (
                np.array([label or "" for label in table.labels(c["probabilities"])])
                for c in table.columns("probabilities")
            )
            dtype = constants["classes"].dtype
            _write_array(archive, "label", rows, (words.astype(dtype) for words in labels))
        for key, array in constants.items():
            _write_array(archive, key, None, iter([array]))
    return rows


def _write_array(
    archive: zipfile.ZipFile, key: str, rows: int | None, pieces: Iterator[NDArray[Any]]
) -> None:
    """Write one array piece by piece, so that it is never whole in memory.

    Args:
        key: name of the array.
        rows: rows of all pieces; None for a single piece of any shape.
        pieces: consecutive rows, one piece or more.
    """
    first = next(pieces)
    info = zipfile.ZipInfo(f"{key}.npy")
    # Text is mostly padding; numbers hardly shrink.
    info.compress_type = zipfile.ZIP_DEFLATED if first.dtype.kind == "U" else zipfile.ZIP_STORED
    shape = first.shape if rows is None else (rows, *first.shape[1:])
    header = {"descr": first.dtype.str, "fortran_order": False, "shape": shape}
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in chain([first], pieces):
            file.write(np.ascontiguousarray(piece).tobytes())


def join_files(
    files: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], overwrite: bool = False
) -> int:
    """Write the rows of several Parquet files of ``extract`` to one, a row group at a time.

    Args:
        files: in the order of their rows in the output; columns have the order of the first file.
        output: a new ``.parquet`` file; it appears complete or not at all.
        overwrite: whether to replace an existing file.

    Returns:
        The number of rows.

    Raises:
        FileExistsError: if ``output`` exists.
        ImportError: if pyarrow is missing.
        ValueError: if there is no file, a file is named twice or was not written by ``extract``,
            the files differ in checkpoint, preprocessing or columns, or ``output`` is not Parquet.
    """
    with explained_import("joining needs pyarrow: pip install 'facezoo[parquet]'"):
        import pyarrow.parquet as pq
    paths, target = [Path(file) for file in files], Path(output)
    if not paths:
        raise ValueError("no file to join; name at least one .parquet file of facezoo extract")
    if target.suffix.lower() != ".parquet":
        raise ValueError(f"joined files are Parquet: output must end in .parquet, got {target}")
    if twice := duplicates(paths):
        raise ValueError(f"{twice[0]} is named twice; its rows would be in the output twice")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists; pass --overwrite (overwrite=True) to replace it")
    layouts = {path: _read_layout(path) for path in paths}
    first = layouts[paths[0]]
    for path, layout in layouts.items():
        for key in COMPARABLE:
            if layout.get(key) != first.get(key):
                raise ValueError(
                    f"{path} has {key} {layout.get(key)!r} and {paths[0]} has {first.get(key)!r}; "
                    "their rows are not comparable. Extract both with the same model, version and "
                    "options"
                )
    metadata = {**first, "versions": _join_versions(layouts.values())}
    schema = pq.read_schema(paths[0]).with_metadata({"facezoo": json.dumps(metadata)})
    count = 0
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial, parquet_writer(partial, schema) as writer:
        for path in progress_bar(paths, desc="joining", unit="file"):
            with pq.ParquetFile(path) as table:
                for group in range(table.num_row_groups):
                    rows = table.read_row_group(group).select(schema.names)
                    writer.write_table(rows.replace_schema_metadata(schema.metadata))
                    count += len(rows)
    return count


def duplicates(paths: Sequence[Path]) -> list[Path]:
    """Return the paths that name the file of an earlier path."""
    resolved = [path.resolve() for path in paths]
    return [path for n, path in enumerate(paths) if resolved[n] in resolved[:n]]


def _read_layout(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = (pq.read_schema(path).metadata or {}).get(b"facezoo")
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from error
    if metadata is None:
        raise ValueError(f"{path} was not written by facezoo extract; only its files can be joined")
    return json.loads(metadata)


def _join_versions(layouts: Iterable[dict[str, Any]]) -> dict[str, str]:
    """List the versions of each package that wrote the files, with commas between."""
    versions: dict[str, dict[str, None]] = {}
    for layout in layouts:
        for name, version in layout.get("versions", {}).items():
            versions.setdefault(name, {})[version] = None
    return {name: ", ".join(used) for name, used in versions.items()}
