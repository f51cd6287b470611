"""JPEG files that are decoded where the photograph is worked on.

The GPU's decoder is stood in for by torchvision's on the CPU, which is called in the same way; what
only a GPU can tell carries its marker.
"""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

import facezoo
from facezoo.errors import ImageError, UnsupportedError
from facezoo.extraction import extract, run, stages
from facezoo.models import base
from facezoo.models.base import FaceModel
from facezoo.preprocess import jpeg
from facezoo.preprocess.fingerprint import fingerprint
from facezoo.preprocess.images import read_image
from facezoo.preprocess.jpeg import Jpeg, check_decoder, decode, read_or_keep
from facezoo.preprocess.pipeline import to_device

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
PORTRAITS = sorted(Path("examples/portraits").glob("*.jpg"))


def picture(height=40, width=56):
    """A smooth picture whose rows, columns and channels all differ."""
    rows, columns = np.mgrid[:height, :width]
    channels = [columns * 4, rows * 6, (rows + columns) * 2]
    return Image.fromarray(np.stack(channels, -1).clip(0, 255).astype(np.uint8))


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(picture(), quality=95, exif=exif)


def stored(*, colours="YCbCr"):
    """A JPEG of three channels whose Adobe marker says what they are."""
    data = encode(picture(), quality=95)
    transform = {"RGB": 0, "YCbCr": 1}[colours]
    marker = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    return data[:2] + marker + data[2:]


def unquantised(data):
    """A JPEG whose header is sound, and which no decoder can read: its tables are missing."""
    return data.replace(b"\xff\xdb", b"\xff\xef")


def named(names):
    """A JPEG whose three channels have other names than usual."""
    data = bytearray(encode(picture(), quality=95))
    frame, scan = data.index(b"\xff\xc0") + 10, data.index(b"\xff\xda") + 5
    for number, name in enumerate(names):
        data[frame + 3 * number] = data[scan + 2 * number] = name
    return bytes(data)


def keep(data):
    return read_or_keep(data, None, "nvjpeg")


@pytest.fixture
def any_device(monkeypatch):
    """No questions asked about the device."""
    monkeypatch.setattr(jpeg, "_failure", lambda device: "")
    for module in (stages, jpeg, base):
        monkeypatch.setattr(module, "check_decoder", lambda decoder, device: None)


@pytest.mark.parametrize(
    "data", [encode(picture()), encode(picture(), progressive=True), stored(), named(b"YUV")]
)
def test_a_whole_jpeg_of_three_channels_is_kept_as_it_is_stored(data):
    kept = keep(data)
    assert isinstance(kept, Jpeg)
    assert kept.data == data
    assert kept.shape == (40, 56, 3)
    assert kept.nbytes == 40 * 56 * 3


@pytest.mark.parametrize(
    "data",
    [
        encode(picture(), "PNG"),
        encode(picture().convert("L")),
        encode(picture().convert("CMYK")),
        stored(colours="RGB"),
        named(b"RGB"),
        picture(),
        np.asarray(picture()),
    ],
)
def test_anything_else_is_read_by_pillow(data):
    assert np.array_equal(keep(data), read_image(data))


def test_with_pillow_nothing_is_kept():
    data = encode(picture())
    assert np.array_equal(read_or_keep(data, None, "pillow"), read_image(data))


@pytest.mark.parametrize("data", [encode(picture())[:-300], b"", b"\xff\xd8\xff\xd9"])
def test_a_broken_file_is_the_error_that_it_is_elsewhere(data):
    with pytest.raises(ImageError) as here:
        keep(data)
    with pytest.raises(ImageError) as there:
        read_image(data)
    assert str(here.value) == str(there.value)


def test_a_possible_decompression_bomb_is_not_kept(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="decompression bomb"):
        keep(encode(picture()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decoded_files_are_upright_as_in_other_libraries(orientation):
    data = turned(orientation)
    (decoded,) = decode([keep(data)], CPU)
    expected = read_image(data)
    assert decoded.shape == expected.shape
    assert decoded.is_contiguous()
    assert np.abs(decoded.numpy().astype(int) - expected).max() <= 2


def test_arrays_and_files_come_back_in_their_order():
    sizes = [(40, 56), (24, 32), (16, 48), (33, 21)]
    files = [encode(picture(*size), "PNG" if n % 2 else "JPEG") for n, size in enumerate(sizes)]
    moved = to_device([keep(file) for file in files], CPU)
    assert [tuple(photo.shape[:2]) for photo in moved] == sizes


def test_pillow_decodes_what_the_gpu_cannot(monkeypatch, tmp_path):
    def refuse(files, device):
        raise RuntimeError("nvjpegDecode failed: 6")

    monkeypatch.setattr(jpeg, "_on_device", refuse)
    path = tmp_path / "a.jpg"
    path.write_bytes(turned(6))
    broken = tmp_path / "b.jpg"
    broken.write_bytes(unquantised(encode(picture())))
    good, bad = decode([read_or_keep(path, 0, "nvjpeg"), read_or_keep(broken, 1, "nvjpeg")], CPU)
    assert np.array_equal(good.numpy(), read_image(path))
    assert isinstance(bad, ImageError)
    assert str(broken) in str(bad)


def test_a_decoder_that_does_not_work_raises_an_error(monkeypatch):
    check_decoder("pillow", CPU)
    with pytest.raises(ValueError, match="jpeg must be 'pillow' or 'nvjpeg', got 'turbo'"):
        check_decoder("turbo", CPU)
    with pytest.raises(UnsupportedError, match="on NVIDIA GPUs, and the model is on cpu; leave"):
        check_decoder("nvjpeg", CPU)
    jpeg._failure.cache_clear()

    def refuse(files, device):
        raise RuntimeError("nvjpegCreate failed: 1\nand more")

    monkeypatch.setattr(jpeg, "_on_device", refuse)
    with pytest.raises(UnsupportedError, match=r"cuda \(RuntimeError: nvjpegCreate failed: 1\);"):
        check_decoder("nvjpeg", CUDA)
    jpeg._failure.cache_clear()
    monkeypatch.setattr(jpeg, "_on_device", lambda files, device: [])
    check_decoder("nvjpeg", CUDA)
    jpeg._failure.cache_clear()


def test_load_rejects_nvjpeg_without_a_gpu_and_for_mesh_models():
    with pytest.raises(UnsupportedError, match="jpeg='nvjpeg' decodes on NVIDIA GPUs"):
        facezoo.load("ipd-fer", device="cpu", jpeg="nvjpeg")
    with pytest.raises(UnsupportedError, match="takes meshes and no images"):
        facezoo.load("adv3d", device="cpu", jpeg="nvjpeg")


def test_the_fingerprint_depends_on_the_decoder():
    plain = fingerprint(FaceModel.preprocessing)
    assert fingerprint(FaceModel.preprocessing, "pillow") == plain
    assert fingerprint(FaceModel.preprocessing, "nvjpeg") != plain


def test_features_of_files_decoded_on_the_device_are_those_of_files_decoded_before(any_device):
    model = facezoo.load("ipd-fer", device="cpu")
    expected = model.encode_expression(PORTRAITS)
    model.set_jpeg_decoder("nvjpeg")
    found = model.encode_expression(PORTRAITS)
    assert torch.cosine_similarity(found, expected).min() > 0.999


def test_a_broken_file_among_those_decoded_on_the_device_is_named(any_device, tmp_path):
    model = facezoo.load("ipd-fer", device="cpu", jpeg="nvjpeg")
    broken = tmp_path / "b.jpg"
    broken.write_bytes(unquantised(PORTRAITS[0].read_bytes()))
    with pytest.raises(ImageError, match=r"b\.jpg"):
        model.encode_expression([PORTRAITS[0], broken])


def test_extraction_decodes_on_the_device_and_lists_what_it_cannot_read(any_device, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in PORTRAITS:
        (photos / path.name).write_bytes(path.read_bytes())
    data = PORTRAITS[0].read_bytes()
    (photos / "broken.jpg").write_bytes(unquantised(data))
    (photos / "truncated.jpg").write_bytes(data[:-400])
    before = extract(photos, tmp_path / "a.npz", device="cpu", progress=False)
    report = extract(photos, tmp_path / "b.npz", device="cpu", jpeg="nvjpeg", progress=False)
    assert sorted(name for name, _ in report.unreadable) == ["broken.jpg", "truncated.jpg"]
    assert report.unreadable == before.unreadable
    with np.load(tmp_path / "a.npz") as first, np.load(tmp_path / "b.npz") as second:
        expected, found = dict(first), dict(second)
    assert found["file"].tolist() == expected["file"].tolist()
    assert found["fingerprint"] != expected["fingerprint"]
    assert np.abs(found["box"] - expected["box"]).max() < 1


def test_models_of_one_pass_share_a_decoder(any_device, tmp_path):
    models = [facezoo.load("ipd-fer", device="cpu", jpeg=name) for name in ("pillow", "nvjpeg")]
    outputs = {tmp_path / f"{n}.npz": model for n, model in enumerate(models)}
    with pytest.raises(ValueError, match="decode JPEG files with nvjpeg and pillow; pass jpeg"):
        run.extract_each(PORTRAITS, outputs, progress=False)


def test_extraction_rejects_nvjpeg_without_a_gpu(tmp_path):
    with pytest.raises(UnsupportedError, match="jpeg='nvjpeg' decodes on NVIDIA GPUs"):
        extract(PORTRAITS, tmp_path / "a.npz", device="cpu", jpeg="nvjpeg", progress=False)


@pytest.mark.gpu
def test_nvjpeg_gives_nearly_the_pixels_of_pillow():
    check_decoder("nvjpeg", CUDA)
    decoded = decode([read_or_keep(path, None, "nvjpeg") for path in PORTRAITS], CUDA)
    for path, photo in zip(PORTRAITS, decoded, strict=True):
        assert photo.is_cuda
        difference = np.abs(photo.cpu().numpy().astype(int) - read_image(path))
        assert difference.mean() < 2
