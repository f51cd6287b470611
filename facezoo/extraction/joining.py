"""Feature files of one model put together, such as those of the shards of a data set."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from facezoo.extraction.resume import replacing
from facezoo.extraction.writers import parquet_writer

_SAME = ("fingerprint", "checkpoint", "features", "classes", "videos", "smooth")
"""What rows must share to be comparable, see ``facezoo.extraction.writers.Layout``."""


def join_files(
    files: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], overwrite: bool = False
) -> int:
    """Write the rows of several Parquet files of ``extract`` to one, a row group at a time.

    Args:
        files: in the order in which their rows are to stand; columns have that of the first.
        output: a new ``.parquet`` file; it appears whole or not at all.
        overwrite: whether to replace it if it is there.

    Returns:
        How many rows it has.

    Raises:
        FileExistsError: if ``output`` is there already.
        ImportError: if pyarrow is missing.
        ValueError: if there is no file, one is named twice or is not from ``extract``, they differ
            in checkpoint or in the fingerprint of the preprocessing, or ``output`` is no
            ``.parquet`` file.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError("joining needs pyarrow: pip install 'facezoo[parquet]'") from error
    paths, target = [Path(file) for file in files], Path(output)
    if not paths:
        raise ValueError("no file to join; name at least one .parquet file of facezoo extract")
    if target.suffix.lower() != ".parquet":
        raise ValueError(f"joined files are Parquet: output must end in .parquet, got {target}")
    resolved = [path.resolve() for path in paths]
    if twice := [
        path for path, real in zip(paths, resolved, strict=True) if resolved.count(real) > 1
    ]:
        raise ValueError(f"{twice[-1]} is named twice; its rows would be there twice")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already; pass --overwrite (overwrite=True)")
    layouts = {path: _layout_of(path) for path in paths}
    _check_same(layouts)
    count = 0
    said = {**layouts[paths[0]], "versions": _versions(list(layouts.values()))}
    schema = pq.read_schema(paths[0]).with_metadata({"facezoo": json.dumps(said)})
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as partial, parquet_writer(partial, schema) as writer:
        for path in tqdm(paths, unit="file", disable=None):
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group).select(schema.names)
                    writer.write_table(rows.replace_schema_metadata(schema.metadata))
                    count += len(rows)
    return count


def _layout_of(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        said = (pq.read_schema(path).metadata or {}).get(b"facezoo")
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file: {error}") from error
    if said is None:
        raise ValueError(f"{path} was not written by facezoo extract; only its files can be joined")
    layout: dict[str, Any] = json.loads(said)
    return layout


def _versions(layouts: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Of each package that wrote the files, the version, or all with commas between."""
    every = [layout.get("versions", {}) for layout in layouts]
    names = dict.fromkeys(name for versions in every for name in versions)
    return {
        name: ", ".join(dict.fromkeys(said[name] for said in every if name in said))
        for name in names
    }


def _check_same(layouts: dict[Path, dict[str, Any]]) -> None:
    (first, wanted), *others = layouts.items()
    for path, layout in others:
        for key in _SAME:
            if layout.get(key) != wanted.get(key):
                raise ValueError(
                    f"{path} has {key} {layout.get(key)!r} and {first} has {wanted.get(key)!r}; "
                    "their rows do not fit. Extract both with the same model, version and options"
                )
