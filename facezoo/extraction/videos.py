"""Frames of videos, in the order in which they are shown; read by PyAV.

A frame is named ``<video>::<number>``, counted from 0. Videos are decoded forwards only, and from
their beginning: every frame is then the same whether or not those before it were wanted, and a run
that goes on gives the rows of one that was never interrupted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from facezoo.errors import ImageError

if TYPE_CHECKING:
    import av

VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")
_OPEN = 2
"""Videos that stay open between two frames; a run is in one, or between two."""
_lock = Lock()
_videos: OrderedDict[tuple[Path, int, int], _Video] = OrderedDict()


def is_video(path: Path) -> bool:
    """Whether a file is a video by its suffix."""
    return path.suffix.lower() in VIDEOS


def frame_keys(path: Path, every: int = 1) -> list[str]:
    """Numbers of a video's frames, each ``every``-th; counted without decoding them.

    Raises:
        ImageError: if the file is no video.
        ImportError: if PyAV is missing.
    """
    with _opened(path) as container:
        packets = _packets(container, _stream(path, container))
        # What an edit list cuts off is there, but marked to be thrown away when it is decoded.
        count = sum(1 for packet in packets if packet.size and not packet.is_discard)
    return [f"{number:08d}" for number in range(0, count, every)]


def check_video(path: Path) -> None:
    """Refuse what is no video.

    Raises:
        ImageError: if the file has no stream of pictures, or none that can be opened.
        ImportError: if PyAV is missing.
    """
    with _opened(path) as container:
        _stream(path, container)


def read_frame(path: Path, key: str) -> tuple[NDArray[np.uint8], float]:
    """A frame, upright, and when it is shown.

    Frames are cheap in ascending order; an earlier one than the last opens the video again.

    Args:
        path: the video.
        key: one of ``frame_keys``.

    Returns:
        RGB (H, W, 3), and seconds on the video's own clock.

    Raises:
        ImageError: if the video ends before this frame, as damaged ones do.
    """
    number, stat = int(key), path.stat()
    with _lock:
        which = (path, stat.st_mtime_ns, stat.st_size)
        video = _videos.pop(which, None)
        if video is None or video.next > number:
            video = _Video(path)
        _videos[which] = video
        while len(_videos) > _OPEN:
            _videos.popitem(last=False)
        frame = video.at(number)
    if frame is None:
        raise ImageError(f"{str(path)!r}: the video ends before frame {number}")
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    time = number / video.rate if frame.time is None else frame.time
    return np.ascontiguousarray(pixels), float(time)


class _Video:
    """An open video that goes forwards."""

    def __init__(self, path: Path) -> None:
        self.next = 0
        """Number of the frame that comes next."""
        with _opened(path) as container:
            self.rate = float(_stream(path, container).average_rate or 1)
            """Frames per second, for videos that have no times."""
        self._frames = _decoded(path)

    def at(self, number: int) -> Any:
        """A frame that has not come yet; None if the video ends before it."""
        for frame in self._frames:
            self.next += 1
            if self.next > number:
                return frame
        return None


def _decoded(path: Path) -> Iterator[Any]:
    import av

    with _opened(path) as container:
        for packet in _packets(container, _stream(path, container)):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:  # it costs its own frames, as in a player
                continue
            yield from frames


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Any]:
    """What a video is stored as, up to its end or to where no more of it can be read."""
    import av

    with suppress(av.error.InvalidDataError):
        yield from container.demux(stream)


def _opened(path: Path) -> av.container.InputContainer:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            f"reading {path.name} needs PyAV: pip install 'facezoo[video]'"
        ) from error
    try:
        return av.open(str(path))
    except av.error.FFmpegError as error:
        raise ImageError(f"{path} is no video: {error}") from error


def _stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise ImageError(f"{path} is no video: it has no stream of pictures")
    return container.streams.video[0]
