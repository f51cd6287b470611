"""Every kind of input becomes uint8 RGB (H, W, 3), or one error that names it."""

import io
import re
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps, ImageSequence, PngImagePlugin

from facezoo.errors import ImageError
from facezoo.preprocess import images as reading
from facezoo.preprocess.images import (
    as_list,
    describe,
    orientation_note,
    read_image,
    read_images,
    read_tensors,
)


def gradient(height=12, width=20):
    """A smooth picture whose rows, columns and channels all differ."""
    rows, columns = np.mgrid[:height, :width]
    channels = [columns * 12, rows * 20, (rows + columns) * 8]
    return np.stack(channels, -1).clip(0, 255).astype(np.uint8)


def encode(image, kind="PNG", **options):
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(image, orientation):
    """Bytes of a JPEG that asks viewers to turn it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(image, "JPEG", quality=95, exif=exif)


def png(width, height, depth, colour_type, data):
    """A PNG written by hand, for headers and depths that Pillow does not write."""

    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def assert_read(source, expected):
    pixels = read_image(source)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, expected)


class Unseekable(io.RawIOBase):
    """A stream as a socket or an archive member gives it."""

    def __init__(self, data):
        self.buffer = io.BytesIO(data)

    def read(self, size=-1):
        return self.buffer.read(size)


# --- files -------------------------------------------------------------------------------------


def test_paths_bytes_and_file_objects_give_the_same_pixels(tmp_path):
    data = encode(gradient())
    path = tmp_path / "ramp.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        sources = [path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file]
        for source in [*sources, Unseekable(data)]:
            assert_read(source, gradient())


def test_a_file_object_is_left_open_and_read_from_its_start():
    file = io.BytesIO(encode(gradient()))
    file.read(20)
    assert_read(file, gradient())
    assert_read(file, gradient())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG", "TGA"])
def test_common_formats_are_read(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    image = Image.fromarray(gradient())
    data = encode(image, kind, **options)
    with Image.open(io.BytesIO(data)) as expected:
        assert_read(data, np.asarray(expected.convert("RGB")))


def test_colours_come_out_as_red_green_blue():
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    for source in (red, encode(red), Image.fromarray(red), torch.tensor(red).permute(2, 0, 1)):
        assert read_image(source)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_to_files_bytes_and_pil_images(tmp_path, orientation):
    data = turned(gradient(), orientation)
    path = tmp_path / "turned.jpg"
    path.write_bytes(data)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
        for source in (path, data, image):
            assert_read(source, expected)
    assert expected.shape == ((20, 12, 3) if orientation >= 5 else (12, 20, 3))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_orientation_is_applied_once_in_other_formats(kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(gradient(), kind, exif=exif, **options)
    assert_read(data, np.rot90(gradient(), -1))


@pytest.mark.parametrize("junk", [b"Exif\x00\x00II", b"Exif\x00\x00" + b"\xff" * 40])
def test_broken_exif_does_not_spoil_a_readable_image(junk):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of the broken EXIF
        assert read_image(encode(gradient(), "JPEG", exif=junk)).shape == (12, 20, 3)


def test_an_edit_of_an_opened_image_is_read(tmp_path):
    Image.fromarray(np.full((8, 8, 3), 200, np.uint8)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        image.paste((0, 0, 0), (0, 0, 8, 8))
        assert read_image(image).max() == 0


@pytest.mark.parametrize(("kind", "content"), [(b"gAMA", (45455, 100000)), (b"sRGB", (0,))])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_gamma_chunk_of_png_does_not_change_the_pixels(kind, content, mode):
    pixels = np.asarray(Image.fromarray(gradient()).convert(mode))
    for value in content:
        chunks = PngImagePlugin.PngInfo()
        chunks.add(kind, value.to_bytes(4 if kind == b"gAMA" else 1, "big"))
        read = read_image(encode(pixels, pnginfo=chunks))
        np.testing.assert_array_equal(read, np.broadcast_to(np.atleast_3d(pixels), read.shape))


def test_an_animated_file_gives_its_first_frame():
    frames = [Image.new("RGB", (6, 5), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert abs(read_image(data).astype(int) - [255, 0, 0]).max() <= 2, kind


def test_sixteen_bit_png_is_divided_by_257():
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = np.repeat(np.array([[[0], [0], [1], [1], [128], [255]]]), 3, -1)
    assert_read(encode(Image.fromarray(values)), expected)
    assert_read(Image.fromarray(values), expected)
    assert_read(values, expected)
    assert_read(values.astype(">u2"), expected)


def test_sixteen_bit_pgm_is_divided_by_257():
    data = b"P5 3 1 65535\n" + np.array([0, 32768, 65535], ">u2").tobytes()
    assert read_image(data)[0, :, 0].tolist() == [0, 128, 255]


def test_sixteen_bit_colour_png_keeps_its_range():
    row = np.array([65535, 0, 32768], ">u2").tobytes()
    assert read_image(png(1, 1, 16, 2, b"\0" + row))[0, 0].tolist() == [255, 0, 128]


# --- orientation -------------------------------------------------------------------------------


def tagged(image, orientation, size=None):
    """An image in memory that keeps the EXIF tag of its file, as after ``convert``."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    if size is not None:
        camera = exif.get_ifd(ExifTags.IFD.Exif)
        camera[ExifTags.Base.ExifImageWidth], camera[ExifTags.Base.ExifImageHeight] = size
    with Image.open(io.BytesIO(encode(image, "PNG", exif=exif))) as file:
        return file.convert("RGB")


UPRIGHT = gradient(20, 12)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_image_that_a_user_has_only_converted_is_oriented(orientation):
    expected = ImageOps.exif_transpose(tagged(gradient(), orientation))
    assert_read(tagged(gradient(), orientation), np.asarray(expected))


@pytest.mark.parametrize(("orientation", "quarters"), [(6, 1), (8, -1)])
@pytest.mark.parametrize("way", ["rotate", "transpose", "resize"])
def test_an_image_that_a_user_has_rotated_upright_is_not_rotated_again(orientation, quarters, way):
    stored = tagged(np.rot90(UPRIGHT, quarters).copy(), orientation)
    if way == "transpose":
        method = Image.Transpose.ROTATE_270 if quarters == 1 else Image.Transpose.ROTATE_90
        image = stored.transpose(method)
    else:
        image = stored.rotate(-90 * quarters, expand=True)
    assert image.getexif()[ExifTags.Base.Orientation] == orientation
    if way == "resize":
        assert read_image(image.resize((24, 40))).shape == (40, 24, 3)
    else:
        assert_read(image, UPRIGHT)


def test_the_sides_in_the_exif_block_decide_if_a_camera_stores_portrait_format():
    stored = np.rot90(gradient(), 1).copy()  # 12 x 20, shown as 20 x 12
    assert_read(tagged(stored, 6, (12, 20)), gradient())
    assert_read(tagged(stored, 6, (12, 20)).rotate(270, expand=True), gradient())


def test_an_error_can_mention_the_orientation_tag(tmp_path):
    (tmp_path / "a.jpg").write_bytes(turned(gradient(), 6))
    for source in (tmp_path / "a.jpg", turned(gradient(), 6), tagged(gradient(), 6)):
        assert "orientation tag 6 was applied; if its pixels were rot" in orientation_note(source)
    assert "was ignored" in orientation_note(tagged(UPRIGHT, 6))
    for source in ("missing.jpg", b"", gradient(), Image.fromarray(gradient()), None):
        assert orientation_note(source) == ""


# --- PIL images --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "La", "P", "PA", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_every_colour_mode_becomes_rgb(mode):
    via = {"La": "LA"}.get(mode)
    image = Image.fromarray(gradient())
    image = image.convert(via).convert(mode) if via else image.convert(mode)
    pixels = read_image(image)
    assert pixels.shape == (12, 20, 3)
    if mode in ("CMYK", "YCbCr", "HSV", "RGBX"):
        assert abs(pixels.astype(int) - gradient()).max() <= 12


def test_grey_is_repeated_in_all_three_channels():
    grey = gradient()[..., 0]
    for source in (grey, grey[..., None], Image.fromarray(grey), torch.tensor(grey)[None]):
        assert_read(source, np.repeat(grey[..., None], 3, -1))


def test_bilevel_images_become_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert_read(image, [[[0] * 3, [255] * 3]])


def test_alpha_is_dropped_and_not_composited():
    rgba = np.dstack([gradient(), np.zeros((12, 20), np.uint8)])
    tensor = torch.tensor(rgba).permute(2, 0, 1)
    for source in (rgba, Image.fromarray(rgba), encode(rgba), tensor):
        assert_read(source, gradient())


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 255, 255])])
def test_a_palette_with_transparency_keeps_its_colours(transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = transparency
    assert_read(image, [[[10, 20, 30], [40, 50, 60]]])
    assert_read(encode(image, transparency=transparency), [[[10, 20, 30], [40, 50, 60]]])


def test_lab_images_become_rgb():
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(Image.fromarray(gradient()), *profiles, outputMode="LAB")
    for source in (lab, encode(lab, "TIFF")):
        difference = abs(read_image(source).astype(int) - gradient())
        assert difference.mean() < 2


def test_a_float_pil_image_must_be_in_0_1():
    assert_read(Image.new("F", (2, 2), 1.0), np.full((2, 2, 3), 255))
    with pytest.raises(ImageError, match=r"must be in \[0, 1\].*200"):
        read_image(Image.new("F", (2, 2), 200.0))


def test_a_32_bit_pil_image_raises_an_error():
    with pytest.raises(ImageError, match=r"mode I.*no known range"):
        read_image(Image.new("I", (2, 2), 200))


def test_a_pil_image_is_left_as_it_was():
    image = Image.open(io.BytesIO(turned(gradient(), 6)))
    read_image(image)
    assert image.size == (20, 12)
    assert image.getexif()[ExifTags.Base.Orientation] == 6


# --- arrays and tensors ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays_in_0_1_give_back_their_bytes(dtype):
    assert_read((gradient() / 255).astype(dtype), gradient())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_float_tensors_in_0_1_give_back_their_bytes(dtype):
    tensor = (torch.tensor(gradient()).permute(2, 0, 1) / 255).to(dtype)
    assert_read(tensor.requires_grad_(), gradient())


def test_bfloat16_tensors_are_read_to_their_precision():
    tensor = (torch.tensor(gradient()).permute(2, 0, 1) / 255).bfloat16()
    assert abs(read_image(tensor).astype(int) - gradient()).max() <= 1


def test_files_with_16_bit_colour_are_cut_to_their_upper_bits_as_documented():
    values = np.array([0, 255, 511, 1000, 65535], ">u2")
    row = b"\0" + np.repeat(values, 3).tobytes()

    def part(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", len(values), 1, 16, 2, 0, 0, 0)
    parts = part(b"IHDR", head) + part(b"IDAT", zlib.compress(row)) + part(b"IEND", b"")
    photo = read_image(b"\x89PNG\r\n\x1a\n" + parts)
    assert photo[0, :, 0].tolist() == [0, 0, 1, 3, 255]


def test_uint16_tensors_are_read():
    tensor = torch.tensor(gradient().astype(np.uint16) * 257).permute(2, 0, 1)
    assert_read(tensor, gradient())


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_read():
    tensor = torch.tensor(gradient()).permute(2, 0, 1).cuda()
    assert_read(tensor, gradient())
    assert_read(tensor / 255, gradient())


def test_an_array_in_the_wanted_form_is_not_copied():
    array = gradient()
    assert np.shares_memory(read_image(array), array)


def test_read_only_and_strided_arrays_come_out_writable_and_contiguous():
    frozen = gradient()
    frozen.flags.writeable = False
    assert_read(frozen, gradient())
    assert_read(gradient()[::-1, ::2], gradient()[::-1, ::2].copy())


def test_rounding_errors_at_the_ends_of_0_1_are_forgiven():
    assert_read(np.array([[-1e-7, 1 + 1e-7]]), [[[0] * 3, [255] * 3]])


@pytest.mark.parametrize("values", [(-1.0, 1.0), (0.0, 255.0), (0.0, 1.001), (-0.01, 1.0)])
def test_float_pixels_outside_0_1_raise_an_error(values):
    array = np.array([[values[0], values[1]]], np.float32)
    for source in (array, torch.tensor(array)[None]):
        with pytest.raises(ImageError, match=r"must be in \[0, 1\], got values from"):
            read_image(source)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_float_pixels_that_are_not_finite_raise_an_error(value):
    array = np.full((3, 5), 0.5, np.float32)
    array[1, 2] = value
    for source in (array, torch.tensor(array)[None]):
        with pytest.raises(ImageError, match="NaN or infinite"):
            read_image(source)


@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "int8", "uint32", "complex64"])
def test_other_number_types_raise_an_error(dtype):
    with pytest.raises(ImageError, match=f"type {dtype} have no known range"):
        read_image(np.ones((4, 4, 3), dtype))
    with pytest.raises(ImageError, match=f"type {dtype} have no known range"):
        read_image(torch.ones(3, 4, 4).to(getattr(torch, dtype)))


def test_channels_in_the_wrong_place_raise_an_error_with_the_remedy():
    with pytest.raises(ImageError, match=r"transpose\(1, 2, 0\)"):
        read_image(np.zeros((3, 32, 32), np.uint8))
    with pytest.raises(ImageError, match=r"permute\(2, 0, 1\)"):
        read_image(torch.zeros(32, 32, 3))
    with pytest.raises(ImageError, match=r"transpose\(1, 2, 0\)"):
        read_images(np.zeros((2, 3, 32, 32), np.uint8))
    with pytest.raises(ImageError, match=r"image 0 .*permute\(2, 0, 1\)"):
        read_images(torch.zeros(2, 32, 32, 3))


@pytest.mark.parametrize("shape", [(5,), (5, 4, 2), (1, 1, 4, 4, 3), ()])
def test_shapes_that_are_not_images_raise_an_error(shape):
    with pytest.raises(ImageError, match="arrays are"):
        read_image(np.zeros(shape, np.uint8))
    with pytest.raises(ImageError, match="tensors are"):
        read_image(torch.zeros(shape))


@pytest.mark.parametrize(
    "source",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0), np.float32),
        torch.zeros(3, 0, 5),
        Image.new("RGB", (0, 5)),
        Image.new("L", (5, 0)),
    ],
)
def test_images_without_pixels_raise_an_error(source):
    with pytest.raises(ImageError, match="no pixels"):
        read_image(source)


# --- lists -------------------------------------------------------------------------------------


def test_a_mixed_list_is_read_in_order(tmp_path):
    path = tmp_path / "ramp.png"
    path.write_bytes(encode(gradient(4, 4)))
    tensor = torch.tensor(gradient(6, 6)).permute(2, 0, 1)
    sources = [path, encode(gradient(5, 5)), tensor, gradient(7, 7), Image.fromarray(gradient(8))]
    for listed in (sources, tuple(sources)):
        assert [len(image) for image in read_images(listed)] == [4, 5, 6, 7, 8]


def test_iterators_may_use_one_buffer_for_all_images():
    def frames():
        buffer = np.zeros((4, 4, 3), np.uint8)
        for value in (10, 200):
            buffer[:] = value
            yield buffer

    def tensors():
        for frame in frames():
            yield torch.from_numpy(frame).permute(2, 0, 1)

    file = io.BytesIO()
    shades = [Image.fromarray(frame.copy()) for frame in frames()]
    shades[0].save(file, "GIF", save_all=True, append_images=shades[1:])
    for images in (frames(), tensors(), ImageSequence.Iterator(Image.open(file))):
        assert [image.min() for image in read_images(images)] == [10, 200]


def test_subclasses_of_arrays_are_read_as_arrays():
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    expected = read_image(gray)
    assert np.array_equal(read_image(gray.view(type("Pixels", (np.ndarray,), {}))), expected)
    assert np.array_equal(read_image(np.ma.masked_array(gray, gray > 60)), expected)
    shares = np.ma.masked_invalid(np.where(gray > 60, np.nan, gray / 255))
    with pytest.raises(ImageError, match="holds NaN"):
        read_image(shares)


def test_columns_generators_and_arrays_of_paths_are_lists(tmp_path):
    import pandas as pd

    pa = pytest.importorskip("pyarrow")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    several = [
        pd.Series(paths, index=[5, 3]),
        (path for path in paths),
        map(Path, paths),
        dict(enumerate(paths)).values(),
        np.array(paths),
        np.array(paths, object),
        pa.array(paths),
        pa.chunked_array([paths[:1], paths[1:]]),
    ]
    for sources in several:
        assert list(map(str, as_list(sources))) == paths
    objects = np.empty(2, object)
    objects[0], objects[1] = gradient(), gradient(5, 5)
    assert [len(image) for image in read_images(objects)] == [12, 5]
    assert as_list(np.array("a.png")) == ["a.png"]
    for other in ({"a.png"}, {"path": "a.png"}, pd.DataFrame({"path": paths})):
        name = type(other).__name__
        with pytest.raises(ImageError, match=rf"type {name}; expected .* a list of these"):
            read_images(other)


def test_one_source_gives_a_list_of_one():
    (pixels,) = read_images(encode(gradient()))
    np.testing.assert_array_equal(pixels, gradient())
    assert read_images([]) == []


def test_a_batch_gives_its_images():
    arrays = np.stack([gradient(), 255 - gradient()])
    tensors = torch.tensor(arrays).permute(0, 3, 1, 2)
    for batch in (arrays, tensors, tensors / 255):
        np.testing.assert_array_equal(np.stack(read_images(batch)), arrays)
    assert len(read_images([gradient(), tensors, tensors[0]])) == 4
    assert read_images(tensors[:0]) == []


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
@pytest.mark.parametrize("dtype", [*reading.FLOATS, torch.uint8, torch.uint16])
def test_tensors_are_read_together_as_one_by_one(channels, dtype):
    batch = torch.rand(3, *channels, 5, 7)
    white = {torch.uint8: 255, torch.uint16: 65535}.get(dtype, 1)
    batch = (batch * white).int().to(dtype) if white > 1 else batch.to(dtype)
    together = read_tensors(list(batch), torch.device("cpu"))
    for photo, single in zip(together, batch, strict=True):
        assert_read(single, photo.numpy())
    mixed = read_tensors([batch[0], torch.zeros(3, 4, 4)], torch.device("cpu"))
    assert [tuple(photo.shape) for photo in mixed] == [(5, 7, 3), (4, 4, 3)]


def test_the_host_waits_once_for_a_batch(monkeypatch):
    looks = []
    aminmax = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda *given: looks.append(1) or aminmax(*given))
    read_tensors(list(torch.rand(8, 3, 4, 4)), torch.device("cpu"))
    assert len(looks) == 1


def test_the_tensor_of_a_batch_that_cannot_be_read_has_the_error():
    batch = torch.rand(3, 3, 4, 4)
    batch[1, 0, 0, 0] = 2
    images = read_tensors(list(batch), torch.device("cpu"))
    assert [isinstance(image, ImageError) for image in images] == [False, True, False]
    assert "floating-point pixels must be in [0, 1]" in str(images[1])


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(3, 4, 4).to(torch.float8_e4m3fn), "of type float8_e4m3fn have no known range"),
        (torch.zeros(3, 4, 4).to_sparse(), "is torch.sparse_coo and has no plain pixels"),
        (torch.zeros(3, 4, 4, device="meta"), "is on the meta device"),
    ],
)
def test_tensors_without_plain_pixels_raise_an_error(tensor, reason):
    with pytest.raises(ImageError, match=reason):
        read_image(tensor)
    for error in read_tensors([tensor, tensor], torch.device("cpu")):
        assert re.search(reason, str(error))


def test_a_batch_raises_an_error_where_one_image_is_wanted():
    with pytest.raises(ImageError, match=r"for a batch pass list\(batch\)"):
        read_image(torch.zeros(2, 3, 4, 4))


# --- refusals ----------------------------------------------------------------------------------


def test_a_missing_file_a_folder_and_a_text_file_are_named(tmp_path):
    text = tmp_path / "notes.jpg"
    text.write_text("not a picture")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    cases = {
        tmp_path / "missing.jpg": "no such file",
        tmp_path: "is a folder",
        text: "not an image",
        empty: "is empty",
    }
    for path, words in cases.items():
        for source in (path, str(path)):
            with pytest.raises(ImageError, match=words) as caught:
                read_images([gradient(), source])
            assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [1, 3, 20, 80, 95])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_truncated_files_raise_an_error_that_names_them(tmp_path, kind, cut):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    data = encode(noise, kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) * cut // 100])
    with pytest.raises(ImageError, match="cut") as caught:
        read_image(path)
    assert caught.value.__cause__ is not None


def test_addresses_are_not_fetched():
    for address in ("http://x.org/a.jpg", "https://x.org/a.jpg", "s3://b/a.jpg", "data:image/png;"):
        with pytest.raises(ImageError, match="download the file"):
            read_image(address)


def test_a_file_may_be_called_like_an_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("data:1.png")
    assert read_image("data:1.png").shape == (4, 4, 3)


def test_a_very_long_string_is_shortened_in_the_message():
    with pytest.raises(ImageError) as caught:
        read_image("A" * 100_000)
    assert len(str(caught.value)) < 1000


def test_a_path_with_a_zero_byte_raises_an_error():
    with pytest.raises(ImageError):
        read_image("a\0b.jpg")


def test_a_text_file_object_raises_an_error_with_the_remedy(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    with (
        (tmp_path / "a.txt").open() as file,
        pytest.raises(ImageError, match=r'open\(path, "rb"\)'),
    ):
        read_image(file)


@pytest.mark.parametrize("source", [None, 3, {"path": "a.jpg"}, [[1, 2]], iter([])])
def test_other_objects_raise_an_error_with_their_type(source):
    with pytest.raises(ImageError, match=r"type .*; expected a path|flat list"):
        read_image(source)


def test_a_pil_image_whose_file_was_closed_is_named_with_the_remedy(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(gradient()))
    with Image.open(tmp_path / "a.png") as closed:
        pass
    with (tmp_path / "a.png").open("rb") as file:
        also_closed = Image.open(file)
    for image in (closed, also_closed):
        with pytest.raises(ImageError, match=r"PIL image.*was closed before.*image\.load\(\)"):
            read_image(image)


def test_an_upload_of_a_web_framework_is_read():
    class UploadFile:
        file = io.BytesIO(encode(gradient()))
        filename = "a.png"

        async def read(self, size=-1):
            raise AssertionError

    assert_read(UploadFile(), gradient())
    UploadFile.file = None
    with pytest.raises(ImageError, match="cannot read an object of type"):
        read_image(UploadFile())


def test_a_drawing_raises_an_error_before_another_program_draws_it():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\n%%EOF\n"
    with pytest.raises(ImageError, match="drawing"):
        read_image(eps)


@pytest.mark.parametrize("side", [9_500, 14_000, 65_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_raise_an_error_by_their_header(tmp_path, side):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(side, side, 8, 2, b"\0" * 100))
    with pytest.raises(ImageError, match=r"bomb\.png.*decompression bomb.*MAX_IMAGE_PIXELS"):
        read_image(bomb)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_lowered_pixel_limit_is_kept_and_none_lifts_it(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(ImageError, match="decompression bomb"):
        read_image(encode(gradient()))
    assert_read(gradient(), gradient())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert_read(encode(gradient()), gradient())


def test_inputs_are_named_by_path_or_by_place_and_kind():
    assert describe("a/b.jpg", 3) == "'a/b.jpg'"
    assert describe(Path("a/b.jpg")) == repr(str(Path("a/b.jpg")))
    assert describe(np.zeros((4, 5)), 3) == "image 3 (numpy array of shape (4, 5), float64)"
    assert describe(torch.zeros(3, 4, 5)) == "image (tensor of shape (3, 4, 5), float32)"
    assert describe(b"abc", 0) == "image 0 (3 bytes)"
    assert describe(Image.new("L", (5, 4)), 1) == "image 1 (PIL image, mode L, 5x4)"
    assert describe(io.BytesIO(), 2) == "image 2 (BytesIO)"


# --- threads and broken bytes ------------------------------------------------------------------


def test_reading_from_several_threads_gives_the_same_pixels():
    sources = [turned(gradient(), 1 + i % 8) for i in range(8)]
    expected = [read_image(source) for source in sources]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            for got, wanted in zip(pool.map(read_image, sources), expected, strict=True):
                np.testing.assert_array_equal(got, wanted)


SEEDS = [
    turned(gradient(), 6),
    encode(gradient()),
    encode(gradient(), "GIF"),
    encode(gradient(), "TIFF", compression="tiff_lzw"),
    encode(gradient(), "WEBP"),
    encode(gradient(), "BMP"),
]


@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
    keep=st.floats(0, 1),
    junk=st.binary(max_size=8),
)
@settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
def test_mutated_files_are_read_or_raise_an_image_error(seed, edits, keep, junk):
    data = bytearray(seed)
    for place, value in edits:
        data[int(place * len(data))] = value
    data = bytes(data[: int(keep * len(data))]) + junk if keep < 0.5 else bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            pixels = read_image(data)
        except ImageError:
            return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3


def test_a_missing_file_is_named_where_the_current_folder_is_gone_too(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    with pytest.raises(ImageError, match="there is no such file"):
        read_image(tmp_path / "missing.jpg")
