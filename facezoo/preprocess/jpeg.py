"""Decode JPEG files on an NVIDIA GPU by nvJPEG, as an option.

The pixels differ a little from those of Pillow, and so do the features; the fingerprint therefore
names the decoder. torchvision, which calls nvJPEG, has announced that it will remove its decoders.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from facezoo.errors import ImageError, UnsupportedError
from facezoo.preprocess.images import ImageSource, check_header, orientation_of, read_image

JpegDecoder = Literal["pillow", "nvjpeg"]
END = b"\xff\xd9"
"""Last bytes of a JPEG file that is not truncated."""
FLIPS = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
"""Axes (H, W, 3) that an EXIF orientation flips, after orientations above 4 transpose H and W."""


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file that is decoded on the device of the image."""

    data: bytes
    shape: tuple[int, int, int]
    """Height and width as stored, and 3."""
    orientation: int
    """EXIF orientation, 1 to 8."""
    source: str | os.PathLike[str] | bytes
    index: int | None
    """Its place in a list, for the error message."""

    @property
    def nbytes(self) -> int:
        """Bytes of the image once it is decoded."""
        height, width, channels = self.shape
        return height * width * channels


Photo = NDArray[np.uint8] | Jpeg


def check_decoder(decoder: str, device: torch.device) -> None:
    """Check that a decoder of JPEG files works on a device.

    Raises:
        UnsupportedError: if it is ``"nvjpeg"``, and the device is not an NVIDIA GPU or
            torchvision cannot decode there.
        ValueError: if it is unknown.
    """
    if decoder not in get_args(JpegDecoder):
        raise ValueError(f"jpeg must be 'pillow' or 'nvjpeg', got {decoder!r}")
    if decoder == "pillow":
        return
    remedy = "leave jpeg out, or set it to 'pillow'"
    if device.type != "cuda":
        raise UnsupportedError(
            f"jpeg='nvjpeg' decodes on NVIDIA GPUs, and the model is on {device}; {remedy}"
        )
    if reason := _failure(device):
        raise UnsupportedError(f"nvJPEG does not decode on {device} ({reason}); {remedy}")


def read_or_keep(source: ImageSource, index: int | None, decoder: JpegDecoder) -> Photo:
    """Read an image; for nvJPEG, keep a JPEG file encoded.

    Only complete files with three YCbCr channels are kept.

    Args:
        source: anything that ``read_image`` takes; only paths and bytes are kept.
        index: its place in a list, for the error message.

    Raises:
        ImageError: if the image cannot be read; ``decode`` returns the errors of kept files.
    """
    if decoder == "nvjpeg" and isinstance(source, (str, os.PathLike, bytes)):
        try:
            data = source if isinstance(source, bytes) else Path(source).read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                check_header(image)
                whole = image.format == "JPEG" and data.rstrip(b"\0").endswith(END)
                if whole and image.mode == "RGB" and not _is_rgb(image):
                    shape = (image.height, image.width, 3)
                    return Jpeg(data, shape, orientation_of(image), source, index)
        except Exception:  # read_image reports the error
            pass
    return read_image(source, index)


def decode(files: Sequence[Jpeg], device: torch.device) -> list[Tensor | ImageError]:
    """Decode files on a device in one call; Pillow reads what the GPU rejects.

    Returns:
        uint8 RGB, upright, each (H, W, 3), or the error of a file that cannot be read.
    """
    if not files:
        return []
    try:
        images = _on_device([file.data for file in files], device)
    except RuntimeError:
        return [_by_pillow(file, device) for file in files]
    upright: list[Tensor | ImageError] = []
    for image, file in zip(images, files, strict=True):
        pixels = image.permute(1, 2, 0)
        if file.orientation > 4:
            pixels = pixels.transpose(0, 1)
        upright.append(pixels.flip(FLIPS.get(file.orientation, ())).contiguous())
    return upright


def _is_rgb(image: Image.Image) -> bool:
    """Return whether the channels of a JPEG file may be stored as RGB instead of YCbCr."""
    names = bytes(channel[0] for channel in getattr(image, "layer", ()))
    return image.info.get("adobe_transform", 1) != 1 or names == b"RGB"


def _by_pillow(file: Jpeg, device: torch.device) -> Tensor | ImageError:
    try:
        return torch.from_numpy(read_image(file.source, file.index)).to(device)
    except ImageError as error:
        return error


def _on_device(files: Sequence[bytes], device: torch.device) -> list[Tensor]:
    """Decode files by torchvision to uint8 RGB as stored, each (3, H, W)."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about read-only bytes and the removal of decoders
        encoded = [torch.frombuffer(file, dtype=torch.uint8) for file in files]
        images: list[Tensor] = decode_jpeg(encoded, ImageReadMode.RGB, device=device)
    return images


@cache
def _failure(device: torch.device) -> str:
    """Return why a small image cannot be decoded on a device; empty if it can."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        _on_device([file.getvalue()], device)
    except (ImportError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""
