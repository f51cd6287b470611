"""Find the image files of a folder, and name the files that look like images and are skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from PIL import Image

NOT_IMAGES = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Pillow formats without pixels of their own, or that need another program."""
LIKE_IMAGES = frozenset(
    {
        *(".avif", ".avifs", ".heic", ".heif", ".hif", ".jls", ".jxl", ".jxr", ".wdp"),
        *(".bpg", ".exr", ".hdr", ".pjp", ".pjpeg", ".psb", ".svg", ".xcf"),
        *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mrw"),
        *(".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".srw", ".x3f"),
    }
)
"""Suffixes of image files that Pillow opens only with a plug-in, or not at all."""
SHOWN = 5


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that Pillow opens, with the registered plug-ins."""
    Image.init()
    openable = {*Image.OPEN, "MPO"} - NOT_IMAGES  # the JPEG plug-in opens MPO
    return frozenset(suffix for suffix, name in Image.EXTENSION.items() if name in openable)


def images_in(
    folder: str | os.PathLike[str], recursive: bool = True
) -> tuple[list[str], list[str]]:
    """List the images of a folder.

    Hidden files and folders are ignored. Links to folders are followed, each folder once.

    Args:
        folder: the folder to search.
        recursive: whether to search its subfolders.

    Returns:
        Names of images, and names of files that look like images and that Pillow cannot open; both
        relative to the folder, with forward slashes, sorted.

    Raises:
        OSError: if a folder cannot be listed.
    """
    suffixes = image_suffixes()
    interesting = suffixes | LIKE_IMAGES
    images: list[str] = []
    skipped: list[str] = []
    visited: set[str] = set()
    for inner, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        real = os.path.realpath(inner)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        below = Path(inner).relative_to(folder)
        for name in files:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path per file is slow)
            if not name.startswith(".") and suffix in interesting:
                (images if suffix in suffixes else skipped).append((below / name).as_posix())
    return sorted(images), sorted(skipped)


def skipped_message(skipped: Sequence[str]) -> str:
    """Describe the result of ``images_in`` that Pillow cannot open, for a warning or an error."""
    counts = Counter(Path(name).suffix.lower() for name in skipped)
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common(SHOWN))
    return (
        f"skipped {len(skipped):,} files that look like images and that Pillow cannot open "
        f"({kinds}), such as {skipped[0]}; for HEIC install pillow-heif and call "
        "pillow_heif.register_heif_opener(), convert others to PNG"
    )


def _raise(error: OSError) -> NoReturn:
    raise error
