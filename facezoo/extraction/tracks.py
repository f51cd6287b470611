"""Follow faces from frame to frame of a video, and smooth features along the tracks.

Tracks are computed when the rows are written to the output, in the order of the frames, so they do
not depend on how the run was interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from facezoo.extraction.resume import Rows
from facezoo.extraction.sources import is_frame, split_name
from facezoo.preprocess.boxes import iou

OVERLAP = 0.3
"""Least intersection over union of the boxes of one face in two frames."""
PATIENCE = 5
"""Frames in a row that a face may miss and stay on its track; only extracted frames count."""


@dataclass
class _Track:
    number: int
    box: NDArray[np.float32]
    frame: int
    """Number of the last frame with this face."""
    time: float
    weight: float = 0.0
    """Sum of the weights of its rows; the last row has weight 1."""
    means: dict[str, NDArray[np.float64]] = field(default_factory=dict)


class Tracker:
    """State of the tracks of the current video.

    A face joins the track whose last box overlaps its own box most. Tracks count from 0 in every
    video; rows of images, and of frames without a face, have -1.

    Args:
        smooth: time constant in seconds; None for values without smoothing. A smooth value is the
            mean of the values of its track so far, with weights that fall by a factor e per time
            constant. Time stops between frames whose times are equal or go backward.
    """

    def __init__(self, smooth: float | None) -> None:
        self._smooth = smooth
        self._video = ""
        self._frame = 0
        self._count = 0
        self._tracks: list[_Track] = []

    def follow(self, names: Sequence[str], rows: Rows, columns: Sequence[str]) -> Rows:
        """Add the column ``track`` to the rows of the next images, and smooth ``columns``."""
        videos = [split_name(name)[0] if is_frame(name) else "" for name in names]
        return self.follow_videos(videos, rows, columns)

    def follow_videos(self, videos: Sequence[str], rows: Rows, columns: Sequence[str]) -> Rows:
        """As ``follow``, with the name of the video of each image, empty for none."""
        columns = columns if self._smooth else ()
        rows = {**rows, **{name: rows[name].copy() for name in columns}}
        rows["track"] = np.full(len(rows["image"]), -1, np.int32)
        bounds = np.searchsorted(rows["image"], np.arange(len(videos) + 1))
        for place, video in enumerate(videos):
            if video != self._video:
                self._video, self._frame, self._count, self._tracks = video, 0, 0, []
            self._frame += 1
            self._tracks = [t for t in self._tracks if self._frame - t.frame <= PATIENCE + 1]
            faces = np.arange(bounds[place], bounds[place + 1])
            faces = faces[rows["face"][faces] >= 0]
            if self._video and len(faces):
                self._follow(rows, faces, columns)
        return rows

    def _follow(self, rows: Rows, faces: NDArray[Any], columns: Sequence[str]) -> None:
        for row, track in zip(faces, self._match(rows["box"][faces]), strict=True):
            time = float(rows["time"][row])
            if self._smooth:
                elapsed = max(time - track.time, 0.0) if track.weight else 0.0
                track.weight = track.weight * math.exp(-elapsed / self._smooth) + 1
            for name in columns:
                mean = track.means.get(name, np.float64(0))
                track.means[name] = mean + (rows[name][row] - mean) / track.weight
                rows[name][row] = track.means[name]
            track.frame, track.time, track.box = self._frame, time, rows["box"][row]
            rows["track"][row] = track.number

    def _match(self, boxes: NDArray[np.float32]) -> list[_Track]:
        """Return a track for each box: pairs of the largest overlap first, then new tracks."""
        matches: dict[int, _Track] = {}
        if self._tracks:
            known = np.stack([track.box for track in self._tracks])
            overlaps = iou(torch.from_numpy(boxes), torch.from_numpy(known))  # (A, B)
            for pair in overlaps.flatten().argsort(descending=True, stable=True).tolist():
                face, place = divmod(pair, len(self._tracks))
                if overlaps[face, place] < OVERLAP:
                    break
                track = self._tracks[place]
                if face not in matches and all(track is not other for other in matches.values()):
                    matches[face] = track
        for face in range(len(boxes)):
            if face not in matches:
                matches[face] = _Track(self._count, boxes[face], self._frame, math.nan)
                self._tracks.append(matches[face])
                self._count += 1
        return [matches[face] for face in range(len(boxes))]
