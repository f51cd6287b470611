"""Images of a folder: which files are found, and which are skipped and named."""

import os

import pytest
from PIL import Image

from facezoo.data.labeled import read_labeled
from facezoo.preprocess.folders import image_suffixes, images_in, skipped_message
from facezoo.preprocess.images import read_image

FORMATS = {
    "JPG": "JPEG",
    "mpo": "MPO",
    "j2k": "JPEG2000",
    "tga": "TGA",
    "avif": "AVIF",
    "tiff": "TIFF",
    "dib": "DIB",
    "apng": "PNG",
    "sgi": "SGI",
    "qoi": "QOI",
}


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_format_that_pillow_opens_is_found_and_read(tmp_path, suffix):
    if f".{suffix}".lower() not in image_suffixes():
        pytest.skip(f"this Pillow does not open .{suffix}")
    Image.new("RGB", (32, 24), (200, 100, 50)).save(tmp_path / f"a.{suffix}", FORMATS[suffix])
    assert images_in(tmp_path) == ([f"a.{suffix}"], [])
    assert read_image(tmp_path / f"a.{suffix}").shape == (24, 32, 3)


def test_a_plug_in_adds_its_suffix(tmp_path, monkeypatch):
    touch(tmp_path, "a.heic", "b.png")
    assert images_in(tmp_path) == (["b.png"], ["a.heic"])
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    monkeypatch.setitem(Image.OPEN, "HEIF", Image.OPEN["PNG"])
    assert images_in(tmp_path) == (["a.heic", "b.png"], [])


def test_files_that_are_not_images_are_neither_found_nor_named(tmp_path):
    touch(tmp_path, "a.txt", "b.h5", "c.eps", "d.mp4", ".hidden.png", ".cache/e.png", "f")
    assert images_in(tmp_path) == ([], [])


def test_skipped_files_are_counted_and_named(tmp_path):
    touch(tmp_path, "1.HEIC", "2.heic", "deep/3.dng", "4.png")
    images, skipped = images_in(tmp_path)
    assert images == ["4.png"]
    assert "skipped 3 files" in skipped_message(skipped)
    assert "(2 .heic, 1 .dng), such as 1.HEIC; for HEIC install" in skipped_message(skipped)


def test_links_to_folders_are_followed_and_each_folder_is_searched_once(tmp_path):
    touch(tmp_path, "elsewhere/1.png", "images/a/2.png")
    (tmp_path / "images/linked").symlink_to("../elsewhere")
    (tmp_path / "images/a/up").symlink_to("..")
    (tmp_path / "elsewhere/back").symlink_to("../images")
    assert images_in(tmp_path / "images")[0] == ["a/2.png", "linked/1.png"]
    assert images_in(tmp_path / "images", recursive=False)[0] == []


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    touch(tmp_path, "closed/1.png")

    def scandir(path=".", scandir=os.scandir):
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="closed"):
        images_in(tmp_path)


def test_labeled_folders_take_every_format_and_name_what_is_skipped(tmp_path):
    for word in ("calm", "cross"):
        for split in ("train", "val"):
            folder = tmp_path / split / word
            folder.mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(folder / "1.jpg")
            Image.new("RGB", (16, 16)).save(folder / "2.tga")
    assert len(read_labeled(tmp_path)) == 8
    touch(tmp_path, "train/calm/3.heic")
    with pytest.warns(UserWarning, match=r"skipped 1 files .*such as train/calm/3\.heic"):
        assert len(read_labeled(tmp_path)) == 8
