"""Faces followed from frame to frame of a video, and features made smooth along that.

This is done when the parts are put together, frame by frame in the order of the video, so it is
the same however the parts came about.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facezoo.extraction.resume import Block, Parts, Rows
from facezoo.extraction.shards import split_name
from facezoo.extraction.videos import is_video

OVERLAP = 0.3
"""Boxes of one face in neighbouring frames share this much of their union, or more."""
PATIENCE = 5
"""Frames, of those that are taken, for which a face may be away and still go on its track."""
_NEEDED = ("photo", "face", "box", "time")


@dataclass
class _Track:
    number: int
    box: NDArray[np.float32]
    seen: int
    """The frame of the box."""
    time: float
    weight: float = 0.0
    """The sum of the weights of its rows so far, the last of which has 1."""
    means: dict[str, NDArray[np.float64]] = field(default_factory=dict)


class Tracked:
    """The parts of a run on videos, read with a column ``track``, and smoothed if that is wanted.

    A face goes on the track whose last box overlaps its own most. Tracks count from 0 in every
    video; rows of photographs, and of frames without a face, have -1.

    Args:
        parts: whose rows have ``time``.
        smooth: columns to smooth: each value becomes the mean of those of its track so far, their
            weights falling by a factor e per ``seconds``. No time passes between frames whose
            times are equal or go backwards.
        seconds: None for values as they are.
    """

    def __init__(self, parts: Parts, smooth: Iterable[str], seconds: float | None) -> None:
        self._parts = parts
        self._smooth = tuple(smooth) if seconds else ()
        self._seconds = seconds or 0.0

    def blocks(self, columns: Iterable[str] | None = None) -> Iterator[Block]:
        """The stretches in order, with some columns or all; see ``Parts.blocks``."""
        wanted = None if columns is None else set(columns)
        stored = None if wanted is None else (wanted | set(_NEEDED)) - {"track"}
        following = _Following(self._seconds)
        for block in self._parts.blocks(stored):
            smooth = [name for name in self._smooth if name in block.rows]
            rows = following.rows(block, smooth)
            kept = rows if wanted is None else {key: rows[key] for key in rows if key in wanted}
            yield Block(block.names, block.without_face, block.unreadable, kept)


class _Following:
    """The tracks of the video at hand, from one block to the next."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._video: str | None = None
        self._frame = 0
        self._count = 0
        self._tracks: list[_Track] = []

    def rows(self, block: Block, smooth: Sequence[str]) -> Rows:
        rows = dict(block.rows)
        rows["track"] = np.full(len(rows["photo"]), -1, np.int32)
        rows |= {name: rows[name].copy() for name in smooth}
        bounds = np.searchsorted(rows["photo"], np.arange(len(block.names) + 1))
        for place, name in enumerate(block.names):
            self._turn_to(name)
            inside = np.arange(bounds[place], bounds[place + 1])
            faces = inside[rows["face"][inside] >= 0]
            if self._video is not None and len(faces):
                self._follow(rows, faces, smooth)
        return rows

    def _turn_to(self, name: str) -> None:
        """Count a frame, from a new start where another video begins; in a shard there is none."""
        stored = split_name(name)
        video = stored[0] if stored and is_video(Path(stored[0])) else None
        if video != self._video:
            self._video, self._frame, self._count, self._tracks = video, 0, 0, []
        self._frame += 1
        self._tracks = [t for t in self._tracks if self._frame - t.seen <= PATIENCE + 1]

    def _follow(self, rows: Rows, faces: NDArray[Any], smooth: Sequence[str]) -> None:
        for row, track in zip(faces, self._matched(rows["box"][faces]), strict=True):
            time = float(rows["time"][row])
            if smooth:
                passed = max(time - track.time, 0.0) if track.weight else 0.0
                track.weight = track.weight * math.exp(-passed / self._seconds) + 1
            for name in smooth:
                before = track.means.get(name, np.float64(0))
                track.means[name] = before + (rows[name][row] - before) / track.weight
                rows[name][row] = track.means[name]
            track.seen, track.time = self._frame, time
            track.box = rows["box"][row]
            rows["track"][row] = track.number

    def _matched(self, boxes: NDArray[np.float32]) -> list[_Track]:
        """A track for each box: pairs of the largest overlap first, then new tracks."""
        found: dict[int, _Track] = {}
        if self._tracks:
            overlaps = _overlaps(boxes, np.stack([track.box for track in self._tracks]))
            for pair in np.argsort(-overlaps, axis=None, kind="stable"):
                face, place = divmod(int(pair), len(self._tracks))
                if overlaps[face, place] < OVERLAP:
                    break
                track = self._tracks[place]
                if face not in found and all(track is not other for other in found.values()):
                    found[face] = track
        for face in range(len(boxes)):
            if face not in found:
                found[face] = _Track(self._count, boxes[face], self._frame, math.nan)
                self._tracks.append(found[face])
                self._count += 1
        return [found[face] for face in range(len(boxes))]


def _overlaps(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """Intersection over union of xyxy boxes, (A, 4) and (B, 4): (A, B)."""
    a, b = one[:, None].astype(np.float64), other[None].astype(np.float64)
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    shared = sides.clip(0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).prod(-1) for box in (a, b)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)
