"""Read the frames of videos, in the order in which they are shown, with PyAV.

A frame is named ``<video>::<number>``, counted from 0. A video is always decoded forward from its
beginning, so a frame does not depend on the other frames that were read before it.
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

from facezoo.errors import ImageError, explained_import

if TYPE_CHECKING:
    import av

CONVERSION = "yuv444p"
"""Path from YUV to RGB, part of the fingerprint: chroma is enlarged first, then converted exactly.
swscale's short cut from 4:2:0 is up to 3 levels too dark."""
OPEN = 2
"""Videos that stay open between two frames."""


def frame_keys(path: str, every: int = 1) -> list[str]:
    """List the numbers of every n-th frame of a video; frames are counted without decoding.

    Raises:
        ImageError: if the file is not a video.
        ImportError: if PyAV is missing.
    """
    with _open(Path(path)) as container:
        packets = _packets(container, _stream(container))
        # A frame that an edit list cuts off is in the file, marked to be discarded.
        count = sum(1 for packet in packets if packet.size and not packet.is_discard)
    return [f"{number:08d}" for number in range(0, count, every)]


class FrameReader:
    """Reader of frames with its own positions in the videos; threads may share it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._videos: OrderedDict[tuple[Path, int, int], _Video] = OrderedDict()

    def read(self, path: Path, key: str) -> tuple[NDArray[np.uint8], float]:
        """Read a frame, upright, and the time at which it is shown.

        Frames in ascending order are read once; an earlier frame opens the video again.

        Args:
            key: one of ``frame_keys``.

        Returns:
            RGB (H, W, 3), and seconds on the clock of the video. AVI files, and videos without
            times, have the number of the frame divided by the frame rate.

        Raises:
            ImageError: if the video ends before this frame, as damaged videos do.
        """
        number, stat = int(key), path.stat()
        with self._lock:
            identity = (path, stat.st_mtime_ns, stat.st_size)
            video = self._videos.pop(identity, None)
            if video is None or video.next > number:
                video = _Video(path)
            self._videos[identity] = video
            while len(self._videos) > OPEN:
                self._videos.popitem(last=False)
            frame = video.read(number)
            if frame is None:
                raise ImageError(f"the video ends before frame {number}")
            return upright(rgb(frame), display_matrix(frame)), video.time


_shared = FrameReader()


def read_frame(path: Path, key: str) -> tuple[NDArray[np.uint8], float]:
    """Read a frame with the reader that all extractions share; see ``FrameReader.read``."""
    return _shared.read(path, key)


def rgb(frame: av.VideoFrame) -> NDArray[np.uint8]:
    """Convert a frame to RGB (H, W, 3) with the color matrix and range that it states."""
    if frame.format.chroma_width(2) < 2:  # subsampled chroma
        frame = frame.reformat(format=CONVERSION)
    return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """Return a, b, c, d of the display matrix: (x, y) is shown at (a x + c y, b x + d y)."""
    side_data: Any
    for side_data in frame.side_data:
        if side_data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d, *_ = np.frombuffer(side_data, np.int32).tolist()
            return a, b, c, d
    return None


def upright(
    pixels: NDArray[np.uint8], matrix: tuple[int, int, int, int] | None
) -> NDArray[np.uint8]:
    """Apply the nearest of the eight orientations, four of them mirrored, to (H, W, 3)."""
    if matrix is not None:
        a, b, c, d = matrix
        transposed = abs(b) > abs(a)
        x, y = (c, b) if transposed else (a, d)
        pixels = pixels.transpose(1, 0, 2) if transposed else pixels
        pixels = pixels[:: -1 if y < 0 else 1, :: -1 if x < 0 else 1]
    return np.ascontiguousarray(pixels)


class _Video:
    """An open video that is read forward."""

    def __init__(self, path: Path) -> None:
        self.next = 0
        """Number of the next frame."""
        self.time = 0.0
        """Time of the last frame that was read."""
        with _open(path) as container:
            # AVI has no presentation times: with B-frames they go back and forth.
            self._untimed = container.format.name == "avi"
            self._rate = float(_stream(container).average_rate or 1)
        self._frames = _decode(path)

    def read(self, number: int) -> av.VideoFrame | None:
        """Read up to a frame; None if the video ends before it."""
        for frame in self._frames:
            following = self.time + 1 / self._rate if self.next else 0.0
            if self._untimed:
                self.time = self.next / self._rate
            elif frame.time is None or (self.next and frame.time <= self.time):
                self.time = following
            else:
                self.time = float(frame.time)
            self.next += 1
            if self.next > number:
                return frame
        return None


def _decode(path: Path) -> Iterator[Any]:
    import av

    with _open(path) as container:
        for packet in _packets(container, _stream(container)):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:  # damaged: lose its own frames, as players do
                continue
            yield from frames


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[Any]:
    """Yield the packets of a video up to its end, or up to damage that ends it."""
    import av

    with suppress(av.error.InvalidDataError):
        yield from container.demux(stream)


def _open(path: Path) -> av.container.InputContainer:
    with explained_import(f"reading {path.name} needs PyAV: pip install 'facezoo[video]'"):
        import av
    if int(av.__version__.split(".")[0]) < 17:
        raise ImportError(
            f"PyAV {av.__version__} ignores the color matrix of videos: pip install 'av>=17'"
        )
    try:
        return av.open(str(path.absolute()))  # FFmpeg takes 12:30.mp4 for an address
    except av.error.FFmpegError as error:
        raise ImageError(f"{path} is not a video: {error}") from error


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise ImageError(f"{container.name} is not a video: it has no stream of pictures")
    return container.streams.video[0]
