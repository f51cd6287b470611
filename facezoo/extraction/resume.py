"""What an extraction has done so far, on disk, so that nothing is lost or done twice.

Beside the output stands a folder ``<output>.parts``: ``run.json`` says what the run is, and each
``<number>.npz`` holds the rows of a stretch of the sorted photographs and says which they are, and
in what state their files were. The number is that of its first photograph. Files appear whole, by
renaming, or not at all; so whatever happens, the parts are the run as far as it came.
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
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facezoo.errors import differences

try:
    import fcntl
except ImportError:  # on Windows nothing stops two runs from writing to one output
    fcntl = None  # type: ignore[assignment]

RUN = "run.json"
PASS = "pass.json"
"""What a pass with several outputs has finished, in the parts that are removed last."""
FORMAT = 2
"""Of ``run.json`` and the parts; those of another one are refused."""
Rows = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Block:
    """Results for a stretch of photographs; R rows."""

    names: list[str]
    """Every photograph of the stretch, with or without rows."""
    without_face: list[str]
    unreadable: list[tuple[str, str]]
    """Names and reasons."""
    rows: Rows
    """Columns by name, each (R, ...); ``photo`` is the place in ``names``."""
    state: str = ""
    """Of the photographs' files when the block was put on disk, see ``Parts``."""


def join(blocks: Sequence[Block]) -> Block:
    """Consecutive blocks as one."""
    starts = np.cumsum([0, *(len(block.names) for block in blocks)])
    rows = {key: np.concatenate([block.rows[key] for block in blocks]) for key in blocks[0].rows}
    rows["photo"] = np.concatenate(
        [block.rows["photo"] + start for block, start in zip(blocks, starts, strict=False)]
    )
    return Block(
        [name for block in blocks for name in block.names],
        [name for block in blocks for name in block.without_face],
        [entry for block in blocks for entry in block.unreadable],
        rows,
    )


def without_first(block: Block, count: int) -> Block:
    """A block less its first photographs."""
    if not count:
        return block
    gone = set(block.names[:count])
    kept = block.rows["photo"] >= count
    rows = {key: value[kept] for key, value in block.rows.items()}
    rows["photo"] = rows["photo"] - count
    return Block(
        block.names[count:],
        [name for name in block.without_face if name not in gone],
        [(name, reason) for name, reason in block.unreadable if name not in gone],
        rows,
    )


class Parts:
    """The parts of one run, locked against other runs while open.

    Args:
        output: the file that the parts are for.
        settings: what decides the rows, as JSON; a run goes on only with the same.
        names: all photographs, sorted.
        overwrite: whether to drop what an earlier run left.
        state: a mark of the files of some photographs, which is another one if they have changed.

    Raises:
        FileExistsError: if the parts are of a run with other settings or photographs, or one of
            another version.
        BlockingIOError: if another process is writing to this output.
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
        self.done = 0
        """Photographs that the parts cover: the first so many of the names."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._state = state
        self._lock = _locked(self.folder / "lock", output)
        try:
            if overwrite:
                self._clear()
            self._adopt(settings)
            for block in self._found():
                self._check_names(block.names, names)
                self._check_state(block)
                self.done += len(block.names)
        except BaseException:
            self._unlock()
            raise

    def __enter__(self) -> Parts:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._unlock()

    def append(self, block: Block) -> None:
        """Put the next stretch on disk; it is there whole when this returns."""
        path = self.folder / f"{self.done:09d}.npz"
        said = {
            "names": block.names,
            "without_face": block.without_face,
            "unreadable": block.unreadable,
            "state": self._state(block.names),
        }
        text = np.frombuffer(json.dumps(said).encode(), np.uint8)
        with replacing(path) as partial, partial.open("wb") as file:
            np.savez(file, said=text, **block.rows)  # type: ignore[arg-type]
        self.paths.append(path)
        self.done += len(block.names)

    def blocks(self, columns: Iterable[str] | None = None) -> Iterator[Block]:
        """The stretches in order, read one at a time, with some columns or all.

        Raises:
            OSError: if a part is damaged.
        """
        for path in self.paths:
            try:
                yield _read(path, columns)
            except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
                raise OSError(
                    f"{path} is damaged ({error}); remove it and run the same command again"
                ) from error

    def tell_finished(self, finished: dict[str, Any]) -> None:
        """Keep, until these parts are removed, what outputs of the same pass hold."""
        with replacing(self.folder / PASS) as partial:
            partial.write_text(json.dumps(finished))

    def remove(self) -> None:
        """Remove the folder; once this has begun, no part counts any more."""
        gone = _gone(self.folder)
        shutil.rmtree(gone, ignore_errors=True)
        self.folder.replace(gone)
        shutil.rmtree(gone)
        self._unlock()

    def _adopt(self, settings: dict[str, Any]) -> None:
        """Go on with a run of the same settings, or begin one."""
        path = self.folder / RUN
        wanted = json.loads(json.dumps({"format": FORMAT, **settings}))
        if not path.is_file():
            self._clear()
            with replacing(path) as partial:
                partial.write_text(json.dumps(wanted, indent=1))
            return
        before = json.loads(path.read_text())
        if before.get("format") != FORMAT:
            raise FileExistsError(
                f"{self.folder} holds an interrupted extraction by another version of facezoo; "
                "finish it with that one, or pass --overwrite (overwrite=True) to start anew"
            )
        if shown := differences(before, wanted):
            raise FileExistsError(self._refusal(shown))

    def _found(self) -> Iterator[Block]:
        """Parts that follow on one another from the start; whatever else there is goes."""
        there = sorted(self.folder.glob("*.npz"))
        for path in there:
            try:
                block = _read(path, []) if path.stem == f"{self.done:09d}" else None
            except (OSError, zipfile.BadZipFile, ValueError, KeyError, EOFError):
                block = None
            if block is None:
                break
            self.paths.append(path)
            yield block
        for path in [*there[len(self.paths) :], *self.folder.glob("*.tmp")]:
            path.unlink()

    def _check_names(self, before: Sequence[str], names: Sequence[str]) -> None:
        now = names[self.done : self.done + len(before)]
        if list(now) == list(before):
            return
        pairs = zip(before, [*now, *[""] * len(before)], strict=False)
        old, new = next((a, b) for a, b in pairs if a != b)
        here = f"{new!r} is there now" if new else "there are fewer now"
        raise FileExistsError(self._refusal(f"other photographs: it had {old!r} where {here}"))

    def _check_state(self, block: Block) -> None:
        if block.state != self._state(block.names):
            among = f"one of those from {block.names[0]!r} to {block.names[-1]!r}"
            raise FileExistsError(self._refusal(f"changed photographs: {among} was replaced since"))

    def _refusal(self, what: str) -> str:
        return (
            f"{self.folder} holds an interrupted extraction that differs from this one ({what}); "
            "repeat its command to finish it, or pass --overwrite (overwrite=True) to start anew"
        )

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


@contextmanager
def replacing(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` at once, and only if all is well.

    It stands in the folder ``beside`` if one is given, on the same file system. After this the file
    is on disk, also if the power fails.
    """
    partial = (beside or path.parent) / f"{path.name}.tmp"
    try:
        yield partial
        _settle(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # not every system opens folders, or waits for them
        _settle(path.parent)


def _settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def folder_of(output: Path) -> Path:
    """Where the parts of an output stand."""
    return output.with_name(f"{output.name}.parts")


def _gone(folder: Path) -> Path:
    """What parts that no longer count are called until they are removed."""
    return folder.with_name(f"{folder.name}.done")


def finished_in_pass(output: Path) -> dict[str, Any]:
    """What a pass that was killed among its last steps had finished; see ``tell_finished``."""
    path = folder_of(output) / PASS
    return json.loads(path.read_text()) if in_progress(output) and path.is_file() else {}


def sweep(output: Path) -> None:
    """Remove what a kill has left of the parts of a finished output."""
    shutil.rmtree(_gone(folder_of(output)), ignore_errors=True)


def in_progress(output: Path) -> bool:
    """Whether an earlier run has left parts."""
    return (folder_of(output) / RUN).is_file()


def _read(path: Path, columns: Iterable[str] | None) -> Block:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        said = json.loads(stored["said"].tobytes())
        wanted = stored.files if columns is None else columns
        rows = {key: stored[key] for key in wanted if key != "said"}
    unreadable = [(name, reason) for name, reason in said["unreadable"]]
    return Block(said["names"], said["without_face"], unreadable, rows, said["state"])


def _locked(path: Path, output: Path) -> int | None:
    """An open lock, which goes with the process however that ends."""
    if fcntl is None:
        return None
    handle = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise BlockingIOError(f"another process is extracting to {output}") from None
    return handle
