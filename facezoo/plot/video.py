"""Write annotated videos with PyAV."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from facezoo.errors import explained_import
from facezoo.plot.annotation import VIDEO_SUFFIXES, Style, annotate
from facezoo.results import VideoFrame

CLOCK = Fraction(1, 1000)
"""Resolution of the times of frames, seconds."""
BT709 = 1


class VideoWriter:
    """An annotated video that is written frame by frame; use it in a ``with`` statement.

    The file appears, or replaces the old one, at the end of the statement. An error leaves no new
    file. An interruption from the keyboard, which is how cameras are stopped, keeps the frames so
    far as a new file, and does not replace an old one. So ``path`` may be the video that is read.

    Args:
        path: file to write: ``.mp4``, ``.mov`` or ``.mkv`` (H.264), or ``.webm`` (VP9).
        style: ``"box"``, ``"label"`` or ``"bars"``; None for bars with up to four
            faces, else labels.
        landmarks: whether to draw the five landmarks.

    Raises:
        ValueError: when the statement begins, if the file is a folder or has another suffix.
    """

    def __init__(
        self, path: str | os.PathLike[str], style: Style | None = "label", landmarks: bool = False
    ) -> None:
        with explained_import(f"writing {path} needs PyAV: pip install 'facezoo[video]'"):
            import av
        self.count = 0
        """Number of frames so far."""
        self._av: Any = av
        self._path, self._style, self._landmarks = Path(path), style, landmarks
        self._stream: Any = None
        self._last = -1

    def __enter__(self) -> VideoWriter:
        if self._path.is_dir():
            raise ValueError(f"{self._path} is a folder; pass a file, such as annotated.mp4")
        if self._path.suffix.lower() not in VIDEO_SUFFIXES:
            raise ValueError(
                f"{self._path} cannot be written as a video; expected {', '.join(VIDEO_SUFFIXES)}"
            )
        folder = self._path.parent
        folder.mkdir(parents=True, exist_ok=True)
        self._scratch = TemporaryDirectory(prefix=".partial-", dir=folder)
        self._partial = Path(self._scratch.name) / self._path.name
        try:
            self._container = self._av.open(str(self._partial), "w")
        except (ValueError, self._av.error.FFmpegError) as error:
            self._scratch.cleanup()
            raise ValueError(f"{self._path} cannot be written as a video: {error}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._scratch:
            with self._container:
                if self._stream is not None:
                    self._container.mux(self._stream.encode(None))
            stopped = kind is KeyboardInterrupt and not self._path.exists()
            if (kind is None or stopped) and self._stream is not None:
                self._partial.replace(self._path)

    def write(self, frame: VideoFrame) -> None:
        """Draw the faces of a frame, and append it at its time."""
        picture = annotate_frame(frame, style=self._style, landmarks=self._landmarks)
        if self._stream is None:
            codec = "libvpx-vp9" if self._path.suffix.lower() == ".webm" else "libx264"
            self._stream = stream = self._container.add_stream(codec, rate=30)
            stream.width, stream.height = picture.width // 2 * 2, picture.height // 2 * 2
            stream.pix_fmt, stream.codec_context.time_base = "yuv420p", CLOCK
            stream.codec_context.colorspace = stream.codec_context.color_range = BT709
        picture = picture.crop((0, 0, self._stream.width, self._stream.height))
        encoded = self._av.VideoFrame.from_image(picture)
        encoded = encoded.reformat(format="yuv420p", dst_colorspace="ITU709")
        self._last = max(self._last + 1, round(frame.time / CLOCK))
        encoded.pts, encoded.time_base = self._last, CLOCK
        self._container.mux(self._stream.encode(encoded))
        self.count += 1


def save_video(
    frames: Iterable[VideoFrame],
    path: str | os.PathLike[str],
    *,
    style: Style | None = "label",
    landmarks: bool = False,
) -> int:
    """Draw the faces of a video on its frames, and write them to a video file.

    The file has the times of the frames, and no sound. An odd row or column at the lower right is
    cut off, since codecs take even sizes. The file appears when it is complete, so it may replace
    the video that is read. An error leaves no new file; an interruption from the keyboard keeps
    the frames so far, unless they would replace a file.

    Args:
        frames: results of ``facezoo.video``.
        path: file to write: ``.mp4``, ``.mov`` or ``.mkv`` (H.264), or ``.webm`` (VP9).
        style: ``"box"``, ``"label"`` or ``"bars"``; None for bars with up to four
            faces, else labels.
        landmarks: whether to draw the five landmarks.

    Returns:
        Number of frames; 0 frames write no file.

    Raises:
        ImportError: if PyAV is missing.
        ValueError: if FFmpeg cannot write such a file, or ``path`` is a folder.

    Examples:
        >>> facezoo.plot.save_video(facezoo.video("clip.mp4", model), tmp / "annotated.mp4")
        2
    """
    with VideoWriter(path, style, landmarks) as writer:
        for frame in frames:
            writer.write(frame)
    return writer.count


def annotate_frame(
    frame: VideoFrame, *, style: Style | None = "label", landmarks: bool = False
) -> Image.Image:
    """Draw the faces of a frame with the numbers of their tracks.

    Args:
        frame: a frame of ``facezoo.video``.
        style: ``"box"``, ``"label"`` or ``"bars"``; None for bars with up to four faces, else
            labels.
        landmarks: whether to draw the five landmarks.

    Returns:
        The frame as an RGB picture.
    """
    names = [f"#{number}" for number in frame.track.tolist()]
    return annotate(
        frame.image, frame.prediction, style=style, landmarks=landmarks, names=names, scale=1
    )
