"""Iterate over the results of each frame of a video or of a camera."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import Unpack

from facezoo.errors import explained_import
from facezoo.extraction import sources
from facezoo.extraction.tracks import Tracker
from facezoo.extraction.videos import FrameReader
from facezoo.models.base import FaceModel, as_image_model
from facezoo.preprocess.pipeline import ImageBatch, ImageKeywords, ImageOptions, face_batches
from facezoo.preprocess.quality import measure
from facezoo.registry import load
from facezoo.results import ExpressionPrediction, VideoFrame

BATCH = 16
"""Frames of a file that are processed at once."""


def video(
    source: str | os.PathLike[str] | int,
    model: str | os.PathLike[str] | FaceModel = "ipd-fer",
    *,
    every: int = 1,
    smooth: float | None = None,
    device: str | torch.device | None = None,
    **options: Unpack[ImageKeywords],
) -> Iterator[VideoFrame]:
    """Iterate over the frames of a video or camera, with faces, expressions and tracks.

    Memory use is constant. Frames that cannot be decoded are left out.

    Args:
        source: a video file (extra ``[video]``), or the number of a camera, from 0 (extra
            ``[live]``).
        model: a name that ``facezoo.load`` takes, or a model with expression classes.
        every: take every n-th frame, from the first on.
        smooth: average probabilities along the track of a face, with this time constant in
            seconds, see ``facezoo.extraction.tracks``; None for no smoothing.
        device: device of a model that is loaded by name; None for the best one.
        **options: settings of the detector and others, see
            ``facezoo.preprocess.pipeline.ImageOptions``. All faces are taken by default.

    Yields:
        A result per frame, also for frames without a face.

    Raises:
        ImageError: if the file is not a video.
        ImportError: if PyAV or OpenCV is missing.
        OSError: if the camera or the file cannot be opened.
        UnsupportedError: if the model has no expression classes, or takes meshes.
        ValueError: if an option has no such value, the file is not named like a video, or a pattern
            matches several.

    Examples:
        >>> for frame in facezoo.video("clip.mp4", model):
        ...     print(frame.number, frame.time, frame.track.tolist(), frame.prediction.labels)
        0 0.0 [0] ['happiness']
        1 0.5 [0] ['happiness']
    """
    if every < 1 or (smooth is not None and not smooth > 0):
        raise ValueError(
            f"every must be 1 or more and smooth above 0 seconds, got {every} and {smooth}"
        )
    if "on_missing" in options or "aligned" in options:
        raise ValueError("a video has no options on_missing and aligned; leave them out")
    one = isinstance(source, int)
    defaults: ImageKeywords = {"faces": "all", "batch_size": 1 if one else BATCH}
    settings = ImageOptions(**{**defaults, **options, "on_missing": "skip"})  # type: ignore[arg-type]
    network = as_image_model(
        load(model, device=device) if isinstance(model, (str, os.PathLike)) else model
    )
    network.stage("predict_expression")
    if isinstance(source, int):
        return _results(
            _camera_batches(source, network, settings, every), network, smooth, settings.batch_size
        )
    path = os.fspath(source)
    if not sources.is_video(path):
        raise ValueError(f"{path} is not named like a video, such as clip.mp4")
    if len(files := sources.expand(path)) > 1:
        raise ValueError(
            f"{path} matches {len(files)} videos, and a track belongs to one; call video() for "
            "each, or facezoo.extract() for all"
        )
    names = sources.list_images(Path(path), every=every).names
    return _results(_file_batches(names, network, settings), network, smooth, settings.batch_size)


Batches = Iterator[tuple[ImageBatch, list[int], list[float]]]
"""Batches of frames with faces, and number and time of each frame."""


def _file_batches(names: list[str], network: FaceModel, settings: ImageOptions) -> Batches:
    times: dict[str, float] = {}
    reader = FrameReader()  # its own, so that several videos can be read in step

    def read(name: str, _: int | None) -> NDArray[np.uint8]:
        path, key = sources.split_name(name)
        pixels, times[name] = reader.read(Path(path), key)
        return pixels

    batches = face_batches(
        names,
        network.device,
        settings,
        read=read,
        workers=1,
        serial=sources.is_frame,
        collect_errors=True,
        runtime=network.runtime,
    )
    for batch in batches:
        frames = [batch.sources[place] for place in batch.index]
        numbers = [int(sources.split_name(name)[1] or 0) for name in frames]
        yield batch, numbers, [times.pop(name) for name in frames]


def _camera_batches(camera: int, network: FaceModel, settings: ImageOptions, every: int) -> Batches:
    numbered = enumerate(_camera_frames(camera))
    for number, (moment, pixels) in islice(numbered, 0, None, every):
        for batch in face_batches([pixels], network.device, settings, runtime=network.runtime):
            yield batch, [number], [moment]


def _camera_frames(camera: int) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Yield seconds since the first frame, and RGB (H, W, 3), until the camera ends."""
    with explained_import("a camera needs OpenCV: pip install 'facezoo[live]'"):
        import cv2
    capture = cv2.VideoCapture(camera)
    if not capture.isOpened():
        raise OSError(
            f"camera {camera} cannot be opened; connect one, allow access to it, or try another "
            "number"
        )
    start = time.monotonic()
    try:
        while True:
            known, pixels = capture.read()
            if not known:
                return
            yield time.monotonic() - start, np.ascontiguousarray(pixels[..., ::-1])
    finally:
        capture.release()


def _results(
    batches: Batches, network: FaceModel, smooth: float | None, batch_size: int
) -> Iterator[VideoFrame]:
    """Predict, follow the faces, and split batches into frames."""
    tracker = Tracker(smooth)
    for batch, numbers, times in batches:
        assert batch.faces is not None
        stage = "predict_expression"
        logits = network.encode_faces(batch.images, batch.faces, stage, batch_size)
        faces = measure(batch.images, batch.faces).to("cpu")
        rows = {
            "image": faces.image_index.numpy(),
            "face": np.zeros(len(faces), np.int32),
            "box": faces.boxes.float().numpy(),
            "time": np.array(times)[faces.image_index.numpy()],
            "probabilities": logits.softmax(-1).cpu().numpy(),
        }
        rows = tracker.follow_videos(["video"] * len(numbers), rows, ["probabilities"])
        probabilities, track = (torch.from_numpy(rows[k]) for k in ("probabilities", "track"))
        for place, (number, moment) in enumerate(zip(numbers, times, strict=True)):
            own = faces.image_index == place
            found = replace(faces[own], image_index=faces.image_index[own] * 0)
            labels = network.name_labels(probabilities[own])
            prediction = ExpressionPrediction(labels, probabilities[own], network.labels, found)
            image = batch.images[place].cpu().numpy()
            yield VideoFrame(number, moment, image, found, prediction, track[own].long())
