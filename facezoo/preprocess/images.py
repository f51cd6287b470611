"""Read images: files, bytes, PIL images, arrays and tensors become uint8 RGB arrays.

All functions may run in several threads at once. They read ``PIL.Image.MAX_IMAGE_PIXELS`` and
write nothing global.
"""

from __future__ import annotations

import inspect
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Union

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from facezoo.errors import ImageError, NoFaceError

ImageSource = Union[str, "os.PathLike[str]", bytes, IO[bytes], Image.Image, NDArray[Any], Tensor]
Images = ImageSource | Iterable[ImageSource]

CHANNELS = (1, 3, 4)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NAMED = 5
"""Number of images without a face that an error names."""
REMEDIES = {
    "skip": 'on_missing="skip" to leave them out',
    "nan": 'on_missing="nan" to keep their place',
    "aligned": "aligned=True if they are aligned crops already",
}
"""Options for images without a face, and their effect."""
URL = re.compile(r"[a-z][a-z0-9+.-]+://|data:(\w+/[\w.+-]+)?[;,]", re.IGNORECASE)
"""Start of a URL; a file may be called data:1.jpg."""
ROUNDING = 1e-6
"""Float pixels may leave [0, 1] by this much, as ``x * std + mean`` does."""


def read_images(sources: Images) -> list[NDArray[np.uint8]]:
    """Read one or several images as RGB.

    Args:
        sources: one image or several: paths, bytes, PIL images, arrays or tensors.

    Returns:
        One array (H, W, 3) per image, as from ``read_image``; sizes may differ.

    Raises:
        ImageError: if an input cannot be read; the message names it.
    """
    images = as_list(sources)
    single = len(images) == 1 and images[0] is sources
    return [read_image(image, None if single else i) for i, image in enumerate(images)]


def as_list(sources: Images) -> list[ImageSource]:
    """List single images without reading them.

    Args:
        sources: anything that ``read_image`` takes; a list, column (pandas), generator or other
            ordered iterable of such things, mixed; or a batch: a tensor (B, C, H, W) or an array
            (B, H, W, C). A batch inside a list counts as its B images.
    """
    if isinstance(sources, np.ndarray) and sources.dtype.kind in "OU":  # arrays of paths or images
        sources = sources.ravel().tolist()
    if hasattr(sources, "to_pylist"):  # arrays of pyarrow
        sources = sources.to_pylist()
    is_iterator = isinstance(sources, Iterator)
    if isinstance(sources, (str, bytes, bytearray, memoryview, np.ndarray, Tensor, Mapping, Set)):
        images: list[Any] = [sources]
    elif isinstance(sources, Iterable) and not {"read", "columns"}.intersection(dir(sources)):
        images = [_kept(image) for image in sources] if is_iterator else list(sources)
    else:
        images = [sources]
    if any(isinstance(image, (np.ndarray, Tensor)) and image.ndim == 4 for image in images):
        batches = [i if getattr(i, "ndim", 0) == 4 else [i] for i in images]
        images = [image for batch in batches for image in batch]
    return images


def _kept(source: Any) -> Any:
    """Copy what an iterator may change before the next image: a buffer, or a frame of a file."""
    if isinstance(source, np.ndarray):
        return source.copy()
    if isinstance(source, Tensor):
        return source.clone()
    if isinstance(source, Image.Image) and getattr(source, "is_animated", False):
        return source.copy()
    return source


def read_image(source: ImageSource, index: int | None = None) -> NDArray[np.uint8]:
    """Read one image as RGB.

    The color order is RGB. For an array from OpenCV, which is BGR, pass ``array[..., ::-1]``.
    The EXIF orientation is applied to files and to PIL images, see ``orientation_of``. Alpha is
    dropped without compositing. ICC profiles are not applied. The first frame of an animated file
    is read.

    Args:
        source: one of

            - a path, the bytes of a file, or a file object opened in binary mode, also inside an
              upload of FastAPI or Starlette;
            - a PIL image of any mode;
            - a numpy array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4);
            - a tensor (H, W), (1, H, W), (3, H, W) or (4, H, W) on any device.

            Arrays and tensors are uint8 in 0..255, uint16 in 0..65535 or floating point in
            [0, 1]. 16-bit values, also of gray files, are divided by 257 and rounded, so 65535
            becomes 255. Pillow reads the upper 8 bits of files with 16-bit colors.
        index: its place in a list, for the error message.

    Returns:
        uint8, RGB, (H, W, 3), contiguous and writable. An array that already has this form is
        not copied: the result shares its memory.

    Raises:
        ImageError: if the input is not an image, is broken, truncated, of size zero, larger than
            ``PIL.Image.MAX_IMAGE_PIXELS``, or holds values outside those ranges.
    """
    try:
        pixels = _decode(source)
    except ImageError as error:
        raise ImageError(f"{describe(source, index)}: {error}") from error.__cause__
    return np.require(pixels, np.uint8, ["C", "W", "E"])


def read_tensors(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor | ImageError]:
    """Read images that are tensors, without copying them to the host.

    Tensors of one shape, such as the images of a batch, are converted together, with one wait for
    the range of their values.

    Args:
        tensors: as ``read_image`` takes them.

    Returns:
        uint8, RGB, each (H, W, 3), with the values of ``read_image``; or the reason, without the
        image's name, why one cannot be read.
    """
    if len({(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors}) == 1:
        with suppress(ImageError):  # the loop below finds the broken one
            _check_tensor(tensors[0])
            return list(_bytes_of_tensors(torch.stack(list(tensors))).to(device))
    images: list[Tensor | ImageError] = []
    for tensor in tensors:
        try:
            _check_tensor(tensor)
            images.append(_bytes_of_tensors(tensor[None])[0].to(device))
        except ImageError as error:
            images.append(error)
    return images


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


def file_name(source: object) -> str | None:
    """Return the name of the file that an input comes from; None if it has none."""
    if isinstance(source, (str, os.PathLike)):
        return os.fsdecode(source)
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return name if isinstance(name, str) and name else None


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8, that must be applied to the pixels of a PIL image.

    Pillow keeps the tag on images that a user has rotated already. Tags 5 to 8 swap the sides, and
    cameras store such images in landscape format, or with the sides that EXIF records. An image in
    memory whose sides are swapped already is therefore upright, and its tag is ignored.
    """
    try:
        exif = image.getexif()
        tag = exif.get(ExifTags.Base.Orientation, 1)
        if tag not in range(2, 9):
            return 1
        if tag < 5 or isinstance(image, ImageFile.ImageFile) or image.width == image.height:
            return int(tag)
        camera = exif.get_ifd(ExifTags.IFD.Exif)
        width = camera.get(ExifTags.Base.ExifImageWidth, 1)
        height = camera.get(ExifTags.Base.ExifImageHeight, 0)
        return int(tag) if (image.width > image.height) == (width > height) else 1
    except Exception:  # a broken EXIF block does not affect the pixels
        return 1


def orientation_note(source: object) -> str:
    """Mention the EXIF orientation tag of an input of ``read_image`` in an error, if it has one."""
    try:
        if isinstance(source, (str, os.PathLike, bytes)):
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
                return orientation_note(image)
        tag = source.getexif().get(ExifTags.Base.Orientation, 1)  # type: ignore[attr-defined]
    except Exception:  # the note only adds to another error
        return ""
    if not isinstance(source, Image.Image) or tag not in range(2, 9):
        return ""
    use = "applied" if orientation_of(source) != 1 else "ignored, as its sides look swapped"
    return (
        f"its EXIF orientation tag {tag} was {use}; if its pixels were rotated or mirrored after "
        "it was taken, delete the tag or pass an array"
    )


def no_face(
    missing: Sequence[int], sources: Sequence[Any], remedies: Iterable[str] = REMEDIES
) -> NoFaceError:
    """Build the error for images without a face.

    Args:
        missing: indices of these images.
        sources: all images.
        remedies: keys of ``REMEDIES`` that the called function takes.
    """
    shown = missing[:NAMED]
    several = len(sources) > 1
    called = [describe(sources[i], i if several else None) for i in shown]
    more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    notes = [note for index in shown if (note := orientation_note(sources[index]))]
    advice = ", or ".join(REMEDIES[name] for name in remedies)
    return NoFaceError(
        f"no face found in {', '.join(called)}{more}; pass {advice}"
        f"{f'; {notes[0]}' if notes else ''}",
        missing,
    )


def _decode(source: Any) -> NDArray[np.uint8]:
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Tensor):
        _check_tensor(source)
        return _bytes_of_tensors(source[None])[0].cpu().numpy()
    if isinstance(source, Image.Image):
        return _from_pil(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _from_file(io.BytesIO(source))
    if isinstance(source, str) and URL.match(source):
        raise ImageError("URLs are not fetched; download the file and pass its path or bytes")
    if inspect.iscoroutinefunction(getattr(source, "read", None)):  # an upload of Starlette
        source = getattr(source, "file", None)
    if isinstance(source, io.TextIOBase):
        raise ImageError('the file was opened as text; open it with open(path, "rb")')
    if isinstance(source, (str, os.PathLike)) or hasattr(source, "read"):
        return _from_file(source)
    if isinstance(source, (list, tuple)):
        raise ImageError("expected one image, got a list; pass a flat list")
    raise ImageError(
        f"cannot read an object of type {type(source).__name__}; expected a path, bytes, a binary "
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
        with suppress(OSError):  # the current folder may be gone
            return f"there is no such file (the current folder is {str(Path.cwd())!r})"
        return "there is no such file, and the current folder is gone"
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


def _too_large(details: str) -> str:
    return (
        f"rejected as a possible decompression bomb ({details}); if you trust it, raise "
        "PIL.Image.MAX_IMAGE_PIXELS"
    )


def _from_pil(image: Image.Image) -> NDArray[np.uint8]:
    try:
        if isinstance(image, ImageFile.ImageFile):
            check_header(image)
        image.load()
        # Mode I holds 32 bits, but Pillow uses it for 16-bit PGM, and older ones for 16-bit PNG.
        if image.mode == "I" and image.format not in ("PPM", "PNG"):
            raise ImageError(_dtype_message("int32 (PIL's mode I)"))
        sixteen_bit = image.mode == "I"
        if orientation_of(image) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            gray = np.asarray(image)
            return _from_array(gray.astype(np.uint16) if sixteen_bit else gray)
        pixels = np.array(image if image.mode == "RGB" else _to_rgb(image))
        if pixels.size == 0:
            raise ImageError(f"has no pixels ({image.width}x{image.height})")
        return pixels
    except ImageError:
        raise
    except Exception as error:  # see _from_file
        file = getattr(image, "fp", image)
        if file is None or getattr(file, "closed", False):
            raise ImageError(
                "the file of this PIL image was closed before its pixels were read; call "
                "image.load() before closing it, or pass the path"
            ) from error
        raise ImageError(_reason(None, error)) from error


def check_header(image: ImageFile.ImageFile) -> None:
    """Reject an image by its header, before anything is decoded."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(_too_large(f"{image.width}x{image.height} pixels, limit {limit}"))
    if image.format in ("EPS", "WMF"):  # decoding these starts other programs
        raise ImageError(f"is a drawing ({image.format}), not an image of pixels; export it as PNG")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "LAB":  # Pillow converts it only through a color profile
        profiles = (ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"))
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None
        return converted
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    elif "transparency" in image.info:  # Pillow would warn when it converts this straight to RGB
        image = image.convert("RGBA")
    return image.convert("RGB")


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    array = np.asarray(array)  # subclasses may hide NaN, or keep two dimensions
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in CHANNELS):
        raise ImageError(_array_shape_message(array.shape))
    if array.size == 0:
        raise ImageError("has no pixels")
    array = array[..., None] if array.ndim == 2 else array
    array = np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if array.dtype.kind != "f":
        raise ImageError(_dtype_message(str(array.dtype)))
    check_range(float(array.min()), float(array.max()))
    return np.rint(array.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)


def _check_tensor(tensor: Tensor) -> None:
    """Reject a tensor by everything but its values."""
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in CHANNELS):
        raise ImageError(_tensor_shape_message(tuple(tensor.shape)))
    if tensor.numel() == 0:
        raise ImageError("has no pixels")
    if tensor.layout != torch.strided or tensor.device.type == "meta":
        kind = "is on the meta device" if tensor.device.type == "meta" else f"is {tensor.layout}"
        raise ImageError(f"{kind} and has no plain pixels; pass a dense tensor")
    if tensor.dtype not in (*FLOATS, torch.uint8, torch.uint16):
        raise ImageError(_dtype_message(str(tensor.dtype).removeprefix("torch.")))


def _bytes_of_tensors(batch: Tensor) -> Tensor:
    """Convert tensors (B, H, W) or (B, C, H, W) to uint8 RGB (B, H, W, 3) on their device."""
    batch = batch.detach()
    if batch.dtype in FLOATS:
        low, high = torch.stack(torch.aminmax(batch)).tolist()
        check_range(low, high)
        batch = (batch.float().clamp(0, 1) * 255).round().byte()
    elif batch.dtype == torch.uint16:
        batch = ((batch.int() + 128) // 257).byte()
    if batch.ndim == 3:
        batch = batch[:, None]
    batch = batch.expand(-1, 3, -1, -1) if batch.shape[1] == 1 else batch[:, :3]
    return batch.permute(0, 2, 3, 1).contiguous()


def check_range(low: float, high: float) -> None:
    """Raise ImageError if the least or greatest pixel is not in [0, 1], up to ``ROUNDING``."""
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("holds NaN or infinite values; floating-point pixels must be in [0, 1]")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ImageError(
            f"floating-point pixels must be in [0, 1], got values from {low:.6g} to {high:.6g}; "
            "divide by 255, undo the normalization, or convert to uint8"
        )


def _dtype_message(dtype: str) -> str:
    return (
        f"pixels of type {dtype} have no known range; pass uint8 (0..255), uint16 (0..65535) or "
        "floating point in [0, 1]"
    )


def _array_shape_message(shape: tuple[int, ...]) -> str:
    remedy = "for arrays of paths pass array.tolist()"
    if len(shape) == 3 and shape[0] in CHANNELS:
        remedy = "this is channels first: pass array.transpose(1, 2, 0)"
    if len(shape) == 4:
        remedy = "for a batch pass list(batch)"
    return f"arrays are (H, W), (H, W, 3) or (H, W, 4), got {shape}; {remedy}"


def _tensor_shape_message(shape: tuple[int, ...]) -> str:
    remedy = "put the colors first"
    if len(shape) == 3 and shape[-1] in CHANNELS:
        remedy = "this is channels last: pass tensor.permute(2, 0, 1)"
    if len(shape) == 4:
        remedy = "for a batch pass list(batch)"
    return f"tensors are (3, H, W), (4, H, W), (1, H, W) or (H, W), got {shape}; {remedy}"
