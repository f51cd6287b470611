"""Feature files: the rows of all parts as Parquet, CSV or NPZ, a block of rows at a time."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from facezoo.extraction.resume import Block, Parts, Rows
from facezoo.extraction.tracks import Tracked
from facezoo.results import LANDMARK_NAMES
from facezoo.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SUFFIXES = (".parquet", ".csv", ".npz")
BLOCK = 1024
"""Rows that are in memory at once, and in a row group of a Parquet file."""
BOX = ("x0", "y0", "x1", "y1")
VERSIONS = {"facezoo": __version__, "torch": str(torch.__version__), "numpy": np.__version__}
"""Of what wrote a file; rows of other versions may differ in their last digits."""
LANDMARKS = tuple(f"{name}_{axis}" for name in LANDMARK_NAMES for axis in "xy")


@dataclass(frozen=True)
class Layout:
    """What all rows of a file have in common."""

    checkpoint: str
    """Name and shortened SHA-256 of the weights."""
    fingerprint: str
    """Of the preprocessing, see ``facezoo.preprocess.pipeline.fingerprint``."""
    features: dict[str, int]
    """Widths D of the embeddings by name."""
    classes: tuple[str, ...]
    """The K expression classes; none for a model without them."""
    videos: bool = False
    """Whether rows have a time and a track, see ``facezoo.extraction.tracks.Tracked``."""
    smooth: float | None = None
    """Seconds over which embeddings and probabilities are smoothed along a track."""


def check_output(output: Path) -> None:
    """Refuse a file that could not be written, before any work is done.

    Raises:
        ValueError: if its suffix is none of ``SUFFIXES``.
        IsADirectoryError: if it is a folder.
        ImportError: if it is Parquet and pyarrow is not installed.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise ValueError(f"output must end in {', '.join(SUFFIXES)}, got {str(output)!r}")
    if output.is_dir():
        raise IsADirectoryError(f"output {str(output)!r} is a folder; name a file in it")
    if output.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"writing {output.name} needs pyarrow: pip install 'facezoo[parquet]', or write "
                ".csv or .npz"
            ) from error


class Stored(Protocol):
    """Where rows are read from: the parts of a run, as they are or tracked."""

    def blocks(self, columns: Iterable[str] | None = None) -> Iterator[Block]:
        """The stretches in order, with some columns or all."""


def stored_rows(parts: Parts, layout: Layout) -> Stored:
    """The rows of the parts, with the tracks of videos and smooth along these where wanted."""
    if not layout.videos:
        return parts
    return Tracked(parts, [*layout.features, "probabilities"], layout.smooth)


def write_table(path: Path, suffix: str, parts: Parts, layout: Layout) -> int:
    """Write every row of the parts to a file.

    Args:
        path: the file to write.
        suffix: one of ``SUFFIXES``.
        parts: where the rows are.
        layout: what they have in common.

    Returns:
        How many rows there are.
    """
    write = {".parquet": _write_parquet, ".csv": _write_csv, ".npz": _write_npz}[suffix]
    return write(path, stored_rows(parts, layout), layout)


def _stretches(parts: Stored) -> Iterator[Rows]:
    """All columns in blocks of ``BLOCK`` rows, whatever the parts' own sizes."""
    waiting: list[Rows] = []
    count = 0
    for block in parts.blocks():
        rows = {**block.rows, "file": _files(block)}
        waiting.append(rows)
        count += len(rows["photo"])
        while count >= BLOCK:
            joined = _joined(waiting)
            yield {key: value[:BLOCK] for key, value in joined.items()}
            waiting = [{key: value[BLOCK:] for key, value in joined.items()}]
            count -= BLOCK
    if count:
        yield _joined(waiting)


def _joined(rows: Sequence[Rows]) -> Rows:
    return {key: np.concatenate([part[key] for part in rows]) for key in rows[0]}


def _files(block: Block) -> NDArray[np.object_]:
    """The name of each row's photograph, (R,)."""
    return np.array([*map(printable, block.names), ""], object)[block.rows["photo"]]


def printable(name: str) -> str:
    """A file name as valid Unicode; bytes of names that are not UTF-8 become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _labels(rows: Rows, layout: Layout) -> list[str | None]:
    """The most probable class of each row, None for no face and for probabilities of NaN, R."""
    best = np.nan_to_num(rows["probabilities"]).argmax(1)
    sums = rows["probabilities"].sum(1)  # of NaN if one of a row is
    return [layout.classes[k] if s == s else None for k, s in zip(best, sums, strict=True)]


def _write_csv(path: Path, parts: Stored, layout: Layout) -> int:
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_csv_header(layout))
        for rows in _stretches(parts):
            count += len(rows["photo"])
            writer.writerows(_csv_rows(rows, layout))
    return count


def _csv_header(layout: Layout) -> list[str]:
    embeddings = [f"{name}_{d}" for name, width in layout.features.items() for d in range(width)]
    classes = [f"p_{name}" for name in layout.classes]
    label = ["label"] if classes else []
    moments = ["time", "track"] if layout.videos else []
    start = ["file", "face", *moments, *BOX, "score", *LANDMARKS]
    return [*start, *embeddings, *label, *classes, "checkpoint", "fingerprint"]


def _csv_rows(rows: Rows, layout: Layout) -> Iterator[list[Any]]:
    """Numbers as the shortest text that reads back as the same float32."""
    before = [rows["box"], rows["score"][:, None], rows["landmarks"].reshape(-1, 10)]
    before += [rows[name] for name in layout.features]
    texts = np.concatenate(before, 1).astype(str).tolist()
    labels: Sequence[str | None] = _labels(rows, layout) if layout.classes else []
    ends = rows["probabilities"].astype(str).tolist() if layout.classes else [[]] * len(texts)
    for index, (text, end) in enumerate(zip(texts, ends, strict=True)):
        label = [labels[index] or ""] if layout.classes else []
        start = [rows["file"][index], int(rows["face"][index])]
        start += [float(rows["time"][index]), int(rows["track"][index])] if layout.videos else []
        yield [*start, *text, *label, *end, layout.checkpoint, layout.fingerprint]


def parquet_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of feature files: words have dictionaries; numbers never repeat and have none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    words = [field.name for field in schema if pa.types.is_dictionary(field.type)]
    return pq.ParquetWriter(path, schema, use_dictionary=words)


def _write_parquet(path: Path, parts: Stored, layout: Layout) -> int:
    count = 0
    schema = _schema(layout)
    with parquet_writer(path, schema) as writer:
        for rows in _stretches(parts):
            count += len(rows["photo"])
            writer.write_table(_arrow(rows, layout, schema), row_group_size=BLOCK)
    return count


def _schema(layout: Layout) -> pa.Schema:
    import pyarrow as pa

    word = pa.dictionary(pa.int32(), pa.string())
    columns = [("file", pa.string()), ("face", pa.int32())]
    columns += [("time", pa.float64()), ("track", pa.int32())] if layout.videos else []
    columns += [(name, pa.float32()) for name in (*BOX, "score")]
    columns += [("landmarks", pa.list_(pa.float32(), 10))]
    columns += [(name, pa.list_(pa.float32(), width)) for name, width in layout.features.items()]
    columns += [("label", word)] if layout.classes else []
    columns += [(f"p_{name}", pa.float32()) for name in layout.classes]
    columns += [("checkpoint", word), ("fingerprint", word)]
    said = {**asdict(layout), "versions": VERSIONS}
    return pa.schema(columns, metadata={"facezoo": json.dumps(said)})


def _arrow(rows: Rows, layout: Layout, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    count = len(rows["photo"])
    columns: dict[str, Any] = {"file": rows["file"].tolist(), "face": rows["face"]}
    columns.update((name, rows[name]) for name in ("time", "track") if layout.videos)
    columns.update(zip((*BOX, "score"), (*rows["box"].T, rows["score"]), strict=True))
    for name in ("landmarks", *layout.features):
        flat = rows[name].reshape(count, -1)
        columns[name] = pa.FixedSizeListArray.from_arrays(flat.reshape(-1), flat.shape[1])
    if layout.classes:
        columns["label"] = _labels(rows, layout)
        named = zip(layout.classes, rows["probabilities"].T, strict=True)
        columns.update((f"p_{name}", column) for name, column in named)
    columns["checkpoint"] = [layout.checkpoint] * count
    columns["fingerprint"] = [layout.fingerprint] * count
    arrays = [
        # A column of a matrix is strided, and arrow wants it in one piece.
        pa.array(np.ascontiguousarray(v) if isinstance(v, np.ndarray) else v, field.type)
        for field, v in ((field, columns[field.name]) for field in schema)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


_KINDS = {"face": "<i4", "track": "<i4", "time": "<f8"}


def _write_npz(path: Path, parts: Stored, layout: Layout) -> int:
    """One array per column, written in one pass over the parts each."""
    counts, longest = [0], 1
    for block in parts.blocks(["photo"]):
        counts.append(len(block.rows["photo"]))
        longest = max([longest, *(len(printable(name)) for name in block.names)])
    count = sum(counts)
    shapes: dict[str, tuple[int, ...]] = {"face": (), "box": (4,), "score": (), "landmarks": (5, 2)}
    shapes |= {"time": (), "track": ()} if layout.videos else {}
    shapes.update((name, (width,)) for name, width in layout.features.items())
    if layout.classes:
        shapes["probabilities"] = (len(layout.classes),)
    with zipfile.ZipFile(path, "w") as archive:
        names = (_files(block) for block in parts.blocks(["photo"]))
        _member(archive, "file", f"<U{longest}", (count,), names)
        for key, shape in shapes.items():
            values = (block.rows[key] for block in parts.blocks([key]))
            _member(archive, key, _KINDS.get(key, "<f4"), (count, *shape), values)
        if layout.classes:
            width = max(map(len, layout.classes))
            words = (
                np.array([word or "" for word in _labels(block.rows, layout)], f"<U{width}")
                for block in parts.blocks(["probabilities"])
            )
            _member(archive, "label", f"<U{width}", (count,), words)
            _constant(archive, "classes", list(layout.classes))
        _constant(archive, "checkpoint", layout.checkpoint)
        _constant(archive, "fingerprint", layout.fingerprint)
        _constant(archive, "versions", [f"{name} {said}" for name, said in VERSIONS.items()])
    return count


def _constant(archive: zipfile.ZipFile, key: str, value: Any) -> None:
    array = np.array(value)
    _member(archive, key, array.dtype.str, array.shape, [array])


def _member(
    archive: zipfile.ZipFile,
    key: str,
    kind: str,
    shape: tuple[int, ...],
    pieces: Iterable[NDArray[Any]],
) -> None:
    """One array of the archive, written a piece at a time, so that it is never whole in memory."""
    info = zipfile.ZipInfo(f"{key}.npy")
    # Text is mostly padding; numbers hardly shrink.
    info.compress_type = zipfile.ZIP_DEFLATED if "U" in kind else zipfile.ZIP_STORED
    header = {"descr": kind, "fortran_order": False, "shape": shape}
    with archive.open(info, "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in pieces:
            file.write(np.ascontiguousarray(piece, np.dtype(kind)).tobytes())
