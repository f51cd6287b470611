"""Reading photographs: whatever a caller holds becomes an RGB array of bytes.

Every function here can be called from several threads at once: nothing global is read but
``PIL.Image.MAX_IMAGE_PIXELS``, and nothing global is written.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, Union, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, UnidentifiedImageError
from torch import Tensor

from facezoo.errors import ImageError
from facezoo.preprocess.prefetch import DECODERS, work_ahead

ImageSource = Union[str, "os.PathLike[str]", bytes, IO[bytes], Image.Image, NDArray[Any], Tensor]


class _Pixels(Protocol):
    @property
    def nbytes(self) -> int: ...


Pixels = TypeVar("Pixels", bound=_Pixels)

CHANNELS = (1, 3, 4)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
ROUNDING = 1e-6  # float pixels may leave [0, 1] by this much, as x * std + mean does
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_images(sources: ImageSource | Sequence[ImageSource]) -> list[NDArray[np.uint8]]:
    """Read one or many photographs as RGB.

    Args:
        sources: anything that ``read_image`` takes, a list or tuple of such things, mixed, or a
            batch: a tensor (B, C, H, W) or an array (B, H, W, C). A batch inside a list counts
            as its B images, in order.

    Returns:
        One array (H, W, 3) per image, as from ``read_image``; sizes may differ.

    Raises:
        ImageError: if an input cannot be read; the message names it.
    """
    if not isinstance(sources, (list, tuple)) and not _is_batch(sources):
        return [read_image(cast(ImageSource, sources))]
    return [read_image(image, i) for i, image in enumerate(as_list(sources))]


def as_list(sources: ImageSource | Sequence[ImageSource]) -> list[ImageSource]:
    """The inputs of ``read_images`` one by one, batches taken apart, nothing read yet."""
    return list(_flatten(sources))


def read_image(source: ImageSource, index: int | None = None) -> NDArray[np.uint8]:
    """Read one photograph as RGB.

    The colour order is RGB. For an array from OpenCV, which is BGR, pass ``array[..., ::-1]``.
    EXIF orientation is applied, to files and to PIL images; alpha is dropped without compositing;
    ICC profiles are not applied; of an animated file the first frame is read.

    Args:
        source: one of

            - a path, the bytes of a file, or a file object opened in binary mode;
            - a PIL image of any mode;
            - a numpy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4);
            - a tensor (H, W), (1, H, W), (3, H, W) or (4, H, W) on any device.

            Arrays and tensors are uint8 in 0..255, uint16 in 0..65535 or floating point in
            [0, 1]. 16-bit values, of grey files too, are divided by 257 and rounded, so 65535
            becomes 255. Of files with 16-bit colour Pillow gives the upper 8 bits.
        index: its place in a list, for the error message.

    Returns:
        uint8, RGB, (H, W, 3), contiguous and writable. An array that already has this form is
        not copied: the result shares its memory.

    Raises:
        ImageError: if the input is not an image, is broken, truncated, of size zero, larger than
            ``PIL.Image.MAX_IMAGE_PIXELS``, or holds values outside those ranges.
    """
    return _read(source, index)


def read_ahead(
    sources: Sequence[ImageSource], ahead: int, read: Callable[[ImageSource, int | None], Pixels]
) -> Iterator[Pixels]:
    """Read photographs one by one, files and bytes in threads while the caller works.

    Other sources are read when their turn comes, in the caller's thread: they may be shared.

    Args:
        sources: anything that ``read_image`` takes.
        ahead: how many may be decoded before their turn.
        read: ``read_image``, or another way from a source and its place in the list to pixels.

    Yields:
        What is read of each source, in their order.

    Raises:
        ImageError: in its turn, if an input cannot be read.
    """
    if len(sources) == 1:
        yield read(sources[0], None)
        return
    if not all(isinstance(source, (str, os.PathLike, bytes)) for source in sources):
        yield from (read(source, index) for index, source in enumerate(sources))
        return
    yield from work_ahead(
        lambda index: read(sources[index], index),
        range(len(sources)),
        workers=DECODERS,
        ahead=ahead,
        size=lambda photo: photo.nbytes,
    )


def read_tensors(
    tensors: Sequence[Tensor], names: Sequence[str], device: torch.device
) -> list[Tensor]:
    """Read photographs that are tensors already, without a way through the host.

    Those of one shape, such as the images of a batch, are converted together, and the host waits
    for the range of their values once.

    Args:
        tensors: as ``read_image`` takes them.
        names: what each is called in an error.
        device: where they are wanted.

    Returns:
        uint8, RGB, each (H, W, 3), with the values that ``read_image`` gives.

    Raises:
        ImageError: if one cannot be read.
    """
    if len({(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors}) == 1:
        with suppress(ImageError):  # which of them it is, the loop below says
            for tensor in tensors:
                _check_tensor(tensor)
            return list(_bytes_of_tensors(torch.stack(list(tensors))).to(device))
    photos = []
    for tensor, name in zip(tensors, names, strict=True):
        try:
            _check_tensor(tensor)
            photos.append(_bytes_of_tensors(tensor[None])[0].to(device))
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from error.__cause__
    return photos


def describe(source: object, index: int | None = None) -> str:
    """Name an input in an error message.

    Args:
        source: any input of ``read_image``.
        index: its place in a list, if it came in one.

    Returns:
        The path where there is one; else words like "image 3 (numpy array of shape (4, 4))".
    """
    if isinstance(source, (str, os.PathLike)):
        text = str(source)
        return repr(text if len(text) <= 300 else text[:100] + "...")
    place = "image" if index is None else f"image {index}"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"{place} ({len(source)} bytes)"
    if isinstance(source, np.ndarray):
        return f"{place} (numpy array of shape {source.shape}, {source.dtype})"
    if isinstance(source, Tensor):
        dtype = str(source.dtype).removeprefix("torch.")
        return f"{place} (tensor of shape {tuple(source.shape)}, {dtype})"
    name = getattr(source, "filename", "") or getattr(source, "name", "")
    if isinstance(source, Image.Image):
        size = f"{source.width}x{source.height}"
        return f"{place} (PIL image, mode {source.mode}, {size}{f', {name}' if name else ''})"
    return f"{place} ({type(source).__name__}{f' {name!r}' if name else ''})"


def _is_batch(source: Any) -> bool:
    return isinstance(source, (np.ndarray, Tensor)) and source.ndim == 4


def _flatten(sources: Any) -> Iterator[Any]:
    for source in sources if isinstance(sources, (list, tuple)) else [sources]:
        if _is_batch(source):
            yield from source
        else:
            yield source


def _read(source: Any, index: int | None) -> NDArray[np.uint8]:
    try:
        pixels = _decode(source)
    except ImageError as error:
        raise ImageError(f"{describe(source, index)}: {error}") from error.__cause__
    return np.require(pixels, np.uint8, ["C", "W", "E"])


def _decode(source: Any) -> NDArray[np.uint8]:
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Tensor):
        return _from_tensor(source)
    if isinstance(source, Image.Image):
        return _from_pil(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(io.BytesIO(source))
    if isinstance(source, io.TextIOBase):
        raise ImageError('the file was opened as text; open it with open(path, "rb")')
    if isinstance(source, str) and re.match(r"[a-z][a-z0-9+.-]+://|data:", source, re.IGNORECASE):
        raise ImageError("addresses are not fetched; download it and pass the path or the bytes")
    if isinstance(source, (str, os.PathLike)) or hasattr(source, "read"):
        return _from_file(source)
    if isinstance(source, (list, tuple)):
        raise ImageError("one image was wanted here, got a list; pass a flat list")
    raise ImageError(
        f"cannot read an object of type {type(source).__name__}; wanted a path, bytes, a binary "
        "file, a PIL image, a numpy array (H, W, 3), a tensor (3, H, W) or a list of these"
    )


def _from_file(file: Any) -> NDArray[np.uint8]:
    try:
        with Image.open(file) as image:
            return _from_pil(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        raise ImageError(_reason(file, error)) from error


def _reason(file: Any, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"there is no such file (the current folder is {_current_folder()})"
    if isinstance(file, (str, os.PathLike)) and os.path.isdir(file):  # noqa: PTH112 (takes NUL)
        return "is a folder; pass the files in it, such as sorted(Path(folder).glob('*.jpg'))"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return _too_large(str(error))
    if isinstance(error, UnidentifiedImageError):
        return (
            "is empty, or not an image that Pillow can read (for HEIC, install pillow-heif and "
            "call pillow_heif.register_heif_opener())"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be opened ({error.strerror})"
    return f"the image is broken or truncated ({type(error).__name__}: {error})"


def _current_folder() -> str:
    try:
        return repr(str(Path.cwd()))
    except OSError:
        return "gone"


def _too_large(what: str) -> str:
    return (
        f"refused as a possible decompression bomb ({what}); if you trust it, raise "
        "PIL.Image.MAX_IMAGE_PIXELS"
    )


def _from_pil(image: Image.Image) -> NDArray[np.uint8]:
    if isinstance(image, ImageFile.ImageFile):
        check_header(image)
    try:
        image.load()
        if image.mode == "I":
            _check_16_bit(image)
        upright = _upright(image)
        if image.mode.startswith("I") or image.mode == "F":
            return _from_array(_deep(upright))
        return _bytes_of(_to_rgb(upright))
    except ImageError:
        raise
    except Exception as error:  # see _from_file
        raise ImageError(_reason(None, error)) from error


def check_header(image: ImageFile.ImageFile) -> None:
    """Refuse by what the header says, before anything is decoded."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(_too_large(f"{image.width}x{image.height} pixels, limit {limit}"))
    if image.format in ("EPS", "WMF"):  # decoding these starts other programs
        raise ImageError(f"is a drawing ({image.format}), not a photograph; export it as PNG")


def orientation_of(image: Image.Image) -> int:
    """How EXIF says that a picture was taken, 1 to 8; 1, upright, where it says nothing valid."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF says nothing about the pixels: read them as they lie
        return 1
    return orientation if isinstance(orientation, int) and orientation in UPRIGHT else 1


def _upright(image: Image.Image) -> Image.Image:
    method = UPRIGHT.get(orientation_of(image))
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":  # Pillow converts it only through a colour profile
        profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None
        return converted
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    elif "transparency" in image.info:  # straight to RGB, Pillow would warn about it
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _bytes_of(image: Image.Image) -> NDArray[np.uint8]:
    pixels = np.array(image)
    if pixels.size == 0:
        raise ImageError(f"has no pixels ({image.width}x{image.height})")
    return pixels


def _check_16_bit(image: Image.Image) -> None:
    """Mode I is 32-bit, but how all Pillows give 16-bit PGM, and older ones 16-bit PNG."""
    if image.format not in ("PPM", "PNG"):
        raise ImageError(_dtype_message("int32 (PIL's mode I)"))


def _deep(image: Image.Image) -> NDArray[Any]:
    """Grey of more than 8 bits: the modes I, I;16 and its variants, and F."""
    pixels = np.asarray(image)
    return pixels.astype(np.uint16) if image.mode == "I" else pixels


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        raise ImageError(_array_shape_message(array.shape))
    if array.size == 0:
        raise ImageError("has no pixels")
    array = _to_rgb_channels(array)
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind != "f":
        raise ImageError(_dtype_message(str(array.dtype)))
    _check_range(float(array.min()), float(array.max()))
    return np.rint(array.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)


def _from_tensor(tensor: Tensor) -> NDArray[np.uint8]:
    _check_tensor(tensor)
    return _bytes_of_tensors(tensor[None])[0].cpu().numpy()


def _check_tensor(tensor: Tensor) -> None:
    """Refuse by what is known without looking at values."""
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in CHANNELS):
        raise ImageError(_tensor_shape_message(tuple(tensor.shape)))
    if tensor.numel() == 0:
        raise ImageError("has no pixels")
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        kind = "is on the meta device" if tensor.device.type == "meta" else f"is {tensor.layout}"
        raise ImageError(f"{kind}, so its pixels are not at hand; pass a dense tensor")
    if tensor.dtype not in (*FLOATS, torch.uint8, torch.uint16):
        raise ImageError(_dtype_message(str(tensor.dtype).removeprefix("torch.")))


def _bytes_of_tensors(batch: Tensor) -> Tensor:
    """Tensors (B, H, W) or (B, C, H, W) as uint8 RGB where they are, (B, H, W, 3)."""
    batch = batch.detach()
    if batch.dtype in FLOATS:
        low, high = torch.stack(torch.aminmax(batch)).tolist()
        _check_range(low, high)
        batch = (batch.float().clamp(0, 1) * 255).round().byte()
    elif batch.dtype == torch.uint16:
        batch = ((batch.int() + 128) // 257).byte()
    if batch.ndim == 3:
        batch = batch[:, None]
    batch = batch.expand(-1, 3, -1, -1) if batch.shape[1] == 1 else batch[:, :3]
    return batch.permute(0, 2, 3, 1).contiguous()


def _to_rgb_channels(array: NDArray[Any]) -> NDArray[Any]:
    """(H, W), (H, W, 1), (H, W, 3) or (H, W, 4) to (H, W, 3)."""
    if array.ndim == 2:
        array = array[..., None]
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]


def _check_range(low: float, high: float) -> None:
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("holds NaN or infinite values; floating-point pixels must be in [0, 1]")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ImageError(
            f"floating-point pixels must be in [0, 1], got values from {low:.6g} to {high:.6g}; "
            "divide by 255, undo the normalisation, or convert to uint8"
        )


def _dtype_message(dtype: str) -> str:
    return (
        f"pixels of type {dtype} have no known white; pass uint8 (0..255), uint16 (0..65535) or "
        "floating point in [0, 1]"
    )


def _array_shape_message(shape: tuple[int, ...]) -> str:
    wanted = f"arrays are (H, W), (H, W, 3) or (H, W, 4), got {shape}; "
    if len(shape) == 3 and shape[0] in CHANNELS:
        return wanted + "this is channels first: pass array.transpose(1, 2, 0)"
    if len(shape) == 4:
        return wanted + "for a batch pass list(batch)"
    return wanted + "for arrays of paths pass array.tolist()"


def _tensor_shape_message(shape: tuple[int, ...]) -> str:
    wanted = f"tensors are (3, H, W), (4, H, W), (1, H, W) or (H, W), got {shape}; "
    if len(shape) == 3 and shape[-1] in CHANNELS:
        return wanted + "this is channels last: pass tensor.permute(2, 0, 1)"
    if len(shape) == 4:
        return wanted + "for a batch pass list(batch)"
    return wanted + "put the colours first"
