"""Store the rows of an unfinished run, so that an interrupted run resumes without losing a row.

The folder ``<output>.parts`` is next to the output, or to the first output of several. ``run.json``
has the settings of the run. Each ``<number>.npz`` has the rows of some consecutive images, their
names and the state of their files; its number is that of its first image. Files are written under
another name and renamed, so the parts are always a valid prefix of the run.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facezoo.errors import differences

try:
    import fcntl
except ImportError:  # on Windows two runs can write to one output
    fcntl = None  # type: ignore[assignment]

RUN = "run.json"
FORMAT = 4
"""Version of ``run.json`` and the parts; those of other versions are rejected."""
DAMAGE = (zipfile.BadZipFile, ValueError, KeyError, EOFError)
Rows = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Block:
    """Results of some consecutive images; R rows."""

    names: list[str]
    """All images, with or without rows."""
    without_face: int
    unreadable: list[tuple[str, str]]
    """Names and reasons."""
    rows: list[Rows]
    """Columns by name, each (R, ...), for each output; ``image`` is the index in ``names``."""


def join(blocks: Sequence[Block]) -> Block:
    """Concatenate consecutive blocks."""
    if len(blocks) == 1:
        return blocks[0]
    offsets = np.cumsum([0, *(len(block.names) for block in blocks)])
    rows = []
    for parts in zip(*(block.rows for block in blocks), strict=True):
        rows.append({key: np.concatenate([part[key] for part in parts]) for key in parts[0]})
        index = [part["image"] + first for part, first in zip(parts, offsets, strict=False)]
        rows[-1]["image"] = np.concatenate(index)
    return Block(
        [name for block in blocks for name in block.names],
        sum(block.without_face for block in blocks),
        [entry for block in blocks for entry in block.unreadable],
        rows,
    )


class Parts:
    """The parts of one run, locked against other runs until ``close``.

    Args:
        settings: everything that decides the rows, as JSON; a run resumes only with the same.
        overwrite: whether to drop the parts of an earlier run.
        state: function of names that returns a mark of their files, see ``sources.state_of``.

    Raises:
        FileExistsError: if the parts have other settings or images, or are of another version.
        BlockingIOError: if another process writes to this output.
    """

    def __init__(
        self,
        output: Path,
        settings: dict[str, Any],
        names: Sequence[str],
        overwrite: bool,
        state: Callable[[Sequence[str]], str],
    ) -> None:
        self.folder = folder_of(output)
        self.paths: list[Path] = []
        self.images = 0
        """Images in the parts: the first ones of all names."""
        self.without_face = 0
        self.unreadable: list[tuple[str, str]] = []
        self._state = state
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.folder / "lock", output)
        try:
            self._open(json.loads(json.dumps({"format": FORMAT, **settings})), overwrite)
            self._find(names)
        except BaseException:
            self.close()
            raise

    def append(self, block: Block) -> None:
        """Write the next images to disk."""
        path = self.folder / f"{self.images:09d}.npz"
        header = {
            "names": block.names,
            "without_face": block.without_face,
            "unreadable": block.unreadable,
            "state": self._state(block.names),
        }
        columns = {f"{n}.{key}": v for n, rows in enumerate(block.rows) for key, v in rows.items()}
        text = np.frombuffer(json.dumps(header).encode(), np.uint8)
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, header=text, **columns)  # type: ignore[arg-type]
        self._count(path, header)

    def blocks(
        self, output: int, columns: Iterable[str] | None = None
    ) -> Iterator[tuple[list[str], Rows]]:
        """Yield names and rows of one output, part by part, with some columns or all.

        Raises:
            OSError: if a part is damaged.
        """
        start = f"{output}."
        for path in self.paths:
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    names = json.loads(stored["header"].tobytes())["names"]
                    keys = [
                        key.removeprefix(start) for key in stored.files if key.startswith(start)
                    ]
                    rows = {key: stored[f"{start}{key}"] for key in columns or keys}
            except DAMAGE as error:
                raise OSError(
                    f"{path} is damaged ({error}); remove it and run the same command again"
                ) from error
            yield names, rows

    def remove(self) -> None:
        """Remove the parts; the settings go first, since without them no part counts."""
        (self.folder / RUN).unlink()
        shutil.rmtree(self.folder)

    def close(self) -> None:
        """Release the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _open(self, settings: dict[str, Any], overwrite: bool) -> None:
        """Check the settings of an earlier run, or start a new one."""
        path = self.folder / RUN
        if overwrite or not path.is_file():
            for file in self.folder.iterdir():
                if file.name != "lock":
                    file.unlink()
            with replacing(path) as partial:
                partial.write_text(json.dumps(settings, indent=1))
            return
        before = json.loads(path.read_text())
        if before.get("format") != FORMAT:
            raise FileExistsError(
                f"{self.folder} has an interrupted extraction of another version of facezoo; "
                "finish it with that version, or pass --overwrite (overwrite=True) to start again"
            )
        if text := differences(before, settings):
            raise self._mismatch(text)

    def _find(self, names: Sequence[str]) -> None:
        """Check the parts that follow one another from the start, and remove all other files."""
        files = sorted(self.folder.glob("*.npz"))
        for path in files:
            if path.stem != f"{self.images:09d}":
                break
            try:
                with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                    header = json.loads(stored["header"].tobytes())
            except (OSError, *DAMAGE):
                break
            before = header["names"]
            now = names[self.images : self.images + len(before)]
            if before != now:
                pairs = zip(before, [*now, *[""] * len(before)], strict=False)
                old, new = next((a, b) for a, b in pairs if a != b)
                raise self._mismatch(f"other images: it had {old!r}, now {new!r}")
            if header["state"] != self._state(before):
                raise self._mismatch(
                    f"an image from {before[0]!r} to {before[-1]!r} was replaced since"
                )
            self._count(path, header)
        for path in [*files[len(self.paths) :], *self.folder.glob("*.tmp")]:
            path.unlink()

    def _count(self, path: Path, header: dict[str, Any]) -> None:
        self.paths.append(path)
        self.images += len(header["names"])
        self.without_face += header["without_face"]
        self.unreadable += [(name, reason) for name, reason in header["unreadable"]]

    def _mismatch(self, text: str) -> FileExistsError:
        return FileExistsError(
            f"{self.folder} has an interrupted extraction that differs from this one ({text}); "
            "repeat its command to finish it, or pass --overwrite (overwrite=True) to start again"
        )


def folder_of(output: Path) -> Path:
    """Return the folder of the parts of an output."""
    return output.with_name(f"{output.name}.parts")


def check_free(outputs: Sequence[Path]) -> None:
    """Raise FileExistsError if an output exists, unless an interrupted run is there to resume."""
    existing = [output for output in outputs if output.exists()]
    if existing and not (folder_of(outputs[0]) / RUN).is_file():
        raise FileExistsError(
            f"{existing[0]} exists and is complete; pass --overwrite (overwrite=True) to replace it"
        )


@contextmanager
def replacing(path: Path, folder: Path | None = None) -> Iterator[Path]:
    """Give a temporary file that replaces ``path`` at the end, on disk, if there was no error.

    It is in ``folder``, on the same file system; None for that of ``path``.
    """
    partial = (folder or path.parent) / f"{path.name}.tmp"
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every system opens folders
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _lock(path: Path, output: Path) -> int | None:
    """Open a lock that ends with the process."""
    if fcntl is None:
        return None
    handle = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BlockingIOError(f"another process is extracting to {output}") from None
    return handle
