"""JPEG files decoded on an NVIDIA GPU by nvJPEG, where that is asked for.

The pixels are not exactly those of Pillow, which decodes everywhere else, so features differ a
little too and the fingerprint says which decoder it was. torchvision, through which nvJPEG is
called, has announced that its decoders will go; where they are gone, asking for them is an error.
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
"""What a JPEG file ends with; a truncated one does not."""


@dataclass(frozen=True)
class Jpeg:
    """A JPEG file that is decoded where the photograph is worked on."""

    data: bytes
    shape: tuple[int, int, int]
    """Height and width as stored, and 3."""
    orientation: int
    """Of EXIF, 1 to 8."""
    source: str | os.PathLike[str] | bytes
    index: int | None
    """Its place in a list, for the error message."""

    @property
    def nbytes(self) -> int:
        """Bytes of the photograph once it is decoded."""
        height, width, channels = self.shape
        return height * width * channels


Photo = NDArray[np.uint8] | Jpeg


def check_decoder(decoder: str, device: torch.device) -> None:
    """Refuse a decoder of JPEG files that does not work on a device.

    Raises:
        UnsupportedError: if ``"nvjpeg"`` is asked for and the device is no NVIDIA GPU, or
            torchvision cannot decode there.
        ValueError: if there is no such decoder.
    """
    if decoder not in get_args(JpegDecoder):
        raise ValueError(f"jpeg must be 'pillow' or 'nvjpeg', got {decoder!r}")
    if decoder == "pillow":
        return
    instead = "leave jpeg out, or set it to 'pillow'"
    if device.type != "cuda":
        raise UnsupportedError(
            f"jpeg='nvjpeg' decodes on NVIDIA GPUs, and the model is on {device}; {instead}"
        )
    if reason := _failure(device):
        raise UnsupportedError(f"nvJPEG does not decode on {device} ({reason}); {instead}")


def read_or_keep(source: ImageSource, index: int | None, decoder: JpegDecoder) -> Photo:
    """A photograph for ``decode``: as stored if nvJPEG can be given it, else decoded by Pillow.

    Kept are whole JPEG files of three channels, unless they say that these are not YCbCr.

    Args:
        source: anything that ``read_image`` takes; only paths and bytes are kept.
        index: its place in a list, for the error message.
        decoder: of JPEG files.

    Raises:
        ImageError: as ``read_image`` raises it; of a file that is kept, ``decode`` does.
    """
    kept = None
    if decoder == "nvjpeg" and isinstance(source, (str, os.PathLike, bytes)):
        kept = _kept(source, index)
    return read_image(source, index) if kept is None else kept


def decode(photos: Sequence[Jpeg], device: torch.device) -> list[Tensor | ImageError]:
    """Files as uint8 RGB on a device, upright, each (H, W, 3), or why one cannot be read.

    One call for all; what the GPU refuses is left to Pillow, a file at a time.
    """
    if not photos:
        return []
    try:
        pictures = _on_device([photo.data for photo in photos], device)
    except RuntimeError:
        return [_by_pillow(photo, device) for photo in photos]
    return [
        _upright(picture.permute(1, 2, 0), photo.orientation).contiguous()
        for picture, photo in zip(pictures, photos, strict=True)
    ]


def _kept(source: str | os.PathLike[str] | bytes, index: int | None) -> Jpeg | None:
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        with Image.open(io.BytesIO(data)) as image:
            check_header(image)
            whole = data.rstrip(b"\0").endswith(END)
            if image.format != "JPEG" or image.mode != "RGB" or _is_rgb(image) or not whole:
                return None
            shape = (image.height, image.width, 3)
            return Jpeg(data, shape, orientation_of(image), source, index)
    except Exception:  # what is wrong with it, read_image says
        return None


def _is_rgb(image: Image.Image) -> bool:
    """Whether the three channels of a JPEG file may be RGB as they are stored, not YCbCr."""
    names = bytes(channel[0] for channel in getattr(image, "layer", ()))
    return image.info.get("adobe_transform", 1) != 1 or names == b"RGB"


def _by_pillow(photo: Jpeg, device: torch.device) -> Tensor | ImageError:
    try:
        return torch.from_numpy(read_image(photo.source, photo.index)).to(device)
    except ImageError as error:
        return error


def _on_device(files: Sequence[bytes], device: torch.device) -> list[Tensor]:
    """Files decoded by torchvision, uint8 RGB as stored, each (3, H, W)."""
    from torchvision.io import ImageReadMode, decode_jpeg  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the bytes, which nobody writes to, and of its end
        coded = [torch.frombuffer(file, dtype=torch.uint8) for file in files]
        decoded: list[Tensor] = decode_jpeg(coded, ImageReadMode.RGB, device=device)
    return decoded


@cache
def _failure(device: torch.device) -> str:
    """Why a small picture cannot be decoded on a device; empty if it can."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG")
    try:
        _on_device([file.getvalue()], device)
    except (ImportError, RuntimeError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return ""


def _upright(picture: Tensor, orientation: int) -> Tensor:
    """(H, W, 3) turned as EXIF says it was taken; see ``reading.UPRIGHT``."""
    if orientation in (5, 6, 7, 8):
        picture = picture.transpose(0, 1)
    flipped = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
    return picture.flip(flipped[orientation]) if orientation in flipped else picture
