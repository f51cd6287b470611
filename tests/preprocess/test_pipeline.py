"""From photographs to prepared crops: choice of faces, missing faces, alignment, fingerprint."""

import io
import pickle
import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from packs import FACE, edges_of, photo_of, use_square_detector
from PIL import ExifTags, Image

import facezoo
from facezoo.errors import ImageError, NoFaceError
from facezoo.hub.card import Preprocessing
from facezoo.preprocess import bundled, pipeline, prefetch
from facezoo.preprocess.alignment import normalize, prepare, prepare_aligned
from facezoo.preprocess.bundled import load_detector
from facezoo.preprocess.detection import DetectionConfig, detect
from facezoo.preprocess.detector import FaceDetector
from facezoo.preprocess.images import read_image
from facezoo.preprocess.pipeline import (
    ImageOptions,
    cut_batches,
    face_batches,
    read_batches,
    to_device,
)
from facezoo.results import Faces

CPU = torch.device("cpu")
PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
TWO = photo_of((10, 10, 40, 255), (100, 100, 80, 200))
"""A small face that is sure, and a large one that is less so."""
ONE, NONE = photo_of((30, 50, 60)), photo_of()


@pytest.fixture(autouse=True)
def _squares_are_faces(monkeypatch):
    use_square_detector(monkeypatch)


@pytest.fixture
def detector_card(monkeypatch):
    """A card in place of the bundled detector's."""
    card = SimpleNamespace(
        name="face-detector.tiny",
        model="face-detector",
        weights=SimpleNamespace(sha256="a" * 64),
        architecture={"width": 8},
    )
    monkeypatch.setattr(bundled, "resolve", lambda name: SimpleNamespace(card=card, path=None))
    return card


def find_faces(images, on_missing="raise", **options):
    arrays = [image.numpy() for image in images]
    return facezoo.detect(arrays, CPU, on_missing=on_missing, **options)


def left_edges(faces):
    return [None if box.isnan().all() else round(float(box[0]) + 0.5) for box in faces.boxes]


def test_the_largest_face_of_each_image_is_found():
    faces = find_faces([TWO, ONE, TWO], faces="largest")
    assert faces.image_index.tolist() == [0, 1, 2]
    assert left_edges(faces) == [100, 30, 100]
    torch.testing.assert_close(faces.boxes[1], torch.tensor(edges_of(30, 50, 60)))


def test_an_unknown_option_is_named_with_the_nearest_one():
    with pytest.raises(TypeError, match=r"unknown option .face.; did you mean faces or min_face"):
        ImageOptions(face="largest")
    with pytest.raises(TypeError, match="did you mean faces, on_missing, aligned"):
        ImageOptions(xyz=1)
    options = ImageOptions(faces="largest")
    assert pickle.loads(pickle.dumps(options)) == options


def test_all_faces_are_found_by_falling_score():
    faces = find_faces([ONE, TWO], faces="all")
    assert faces.image_index.tolist() == [0, 1, 1]
    assert left_edges(faces) == [30, 10, 100]


def test_images_without_a_face_are_all_listed():
    with pytest.raises(NoFaceError, match=r"in image 1 \(.*, image 3 \(.*; pass on_missing") as e:
        find_faces([ONE, NONE, TWO, NONE])
    assert e.value.missing == [1, 3]


def test_many_images_without_a_face_are_counted():
    with pytest.raises(NoFaceError, match=r"image 0 .*image 4 .* and 2 more; pass") as caught:
        find_faces([NONE] * 7 + [ONE])
    assert caught.value.missing == list(range(7))


@pytest.mark.parametrize("which", ["largest", "all"])
def test_skipping_leaves_out_images_without_a_face(which):
    faces = find_faces([NONE, ONE, NONE, ONE], faces=which, on_missing="skip")
    assert faces.image_index.tolist() == [1, 3]


def test_nan_rows_hold_the_place_of_images_without_a_face():
    faces = find_faces([NONE, ONE, NONE], on_missing="nan")
    assert faces.image_index.tolist() == [0, 1, 2]
    assert left_edges(faces) == [None, 30, None]
    for tensor in (faces.boxes, faces.landmarks, faces.scores):
        assert torch.isnan(tensor[[0, 2]]).all()
        assert torch.isfinite(tensor[1]).all()


def test_nan_rows_keep_their_order_among_all_faces():
    faces = find_faces([TWO, NONE, ONE], faces="all", on_missing="nan")
    assert faces.image_index.tolist() == [0, 0, 1, 2]
    assert left_edges(faces) == [10, 100, None, 30]


@pytest.mark.parametrize(("on_missing", "rows"), [("skip", 0), ("nan", 2)])
def test_no_face_anywhere_does_not_lose_the_batch(on_missing, rows):
    faces = find_faces([NONE, NONE], on_missing=on_missing)
    assert len(faces) == rows
    assert faces.landmarks.shape == (rows, 5, 2)
    assert faces.image_index.dtype == torch.int64


def test_no_images_have_no_faces():
    faces = find_faces([])
    assert len(faces) == 0
    assert faces.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faces": "biggest"}, "faces must be 'largest' or 'all', got 'biggest'"),
        ({"on_missing": "ignore"}, "on_missing must be 'raise', 'skip' or 'nan', got 'ignore'"),
    ],
)
def test_options_that_do_not_exist_raise_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        find_faces([ONE], **options)


def test_settings_reach_the_detector():
    dim = photo_of((30, 50, 60, 140))
    assert len(find_faces([dim])) == 1
    assert len(find_faces([dim], on_missing="skip", score_threshold=0.99)) == 0


def face_in_template(shift):
    """A face whose landmarks stand in the template, moved by whole pixels."""
    one = torch.ones(1)
    return Faces(torch.zeros(1, 4), (FACE + shift)[None], one, torch.zeros(1).long())


def test_a_prepared_crop_is_what_the_template_covers_normalised():
    photo = torch.randint(0, 256, (160, 150, 3), dtype=torch.uint8)
    crops = prepare([photo], face_in_template(20), Preprocessing())
    assert crops.shape == (1, 3, 112, 112)
    wanted = photo[20:132, 20:132].permute(2, 0, 1)[None].float() / 127.5 - 1
    torch.testing.assert_close(crops, wanted, atol=1e-2, rtol=0)


def test_every_face_is_cut_from_its_own_image():
    faces = find_faces([TWO, ONE], faces="all")
    crops = prepare([TWO, ONE], faces, PLAIN)
    middles = crops[:, 0, 60, 56] * 255
    torch.testing.assert_close(middles, torch.tensor([255.0, 200.0, 255.0]), atol=1.0, rtol=0)


def test_no_faces_give_no_crops_of_the_right_shape():
    crops = prepare([NONE], find_faces([NONE], on_missing="skip"), Preprocessing(size=64))
    assert crops.shape == (0, 3, 64, 64)


def test_normalisation_is_per_channel():
    settings = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    crops = normalize(torch.full((2, 3, 4, 4), 51.0), settings)
    wanted = torch.tensor([0.2, 0.0, -0.5])[:, None, None].expand(2, 3, 4, 4)
    torch.testing.assert_close(crops, wanted, atol=1e-6, rtol=0)
    assert crops.is_contiguous(), "as the weights of the models are"
    many = normalize(torch.zeros(8, 3, 4, 4), settings)
    assert many.is_contiguous(memory_format=torch.channels_last), "which is faster for many"


def test_aligned_crops_of_the_right_size_keep_their_pixels():
    crop = torch.randint(0, 256, (112, 112, 3), dtype=torch.uint8)
    prepared = prepare_aligned([crop, crop], PLAIN)
    torch.testing.assert_close(prepared[1], crop.permute(2, 0, 1) / 255)


def test_aligned_crops_of_other_sizes_are_resized_without_aliasing():
    lines = torch.zeros(448, 448, 3, dtype=torch.uint8)
    lines[:, ::2] = 255
    crops = prepare_aligned([lines, torch.full((20, 20, 3), 128, dtype=torch.uint8)], PLAIN)
    assert crops.shape == (2, 3, 112, 112)
    assert (crops[..., 2:-2] - 0.5).abs().max() < 0.01


def test_aligned_crops_that_are_not_square_raise_an_error_by_name():
    square, wide = torch.zeros(8, 8, 3).byte(), torch.zeros(8, 9, 3).byte()
    with pytest.raises(ImageError, match=r"image 1 is 9 x 8, .*square crops .*'arcface112'"):
        prepare_aligned([square, wide], Preprocessing())


def test_decoded_images_become_tensors_without_a_change():
    photo = ONE.numpy().copy()
    (tensor,) = to_device([photo], CPU)
    assert torch.equal(tensor, ONE)


def test_the_detector_is_loaded_once_and_in_eval_mode(detector_card, monkeypatch):
    loads = []
    weights = FaceDetector(8).state_dict()
    monkeypatch.setattr(bundled, "find", lambda card, path: card)
    monkeypatch.setattr(bundled, "read_tensors", lambda path: loads.append(path) or weights)
    load_detector.cache_clear()
    try:
        first = load_detector(CPU)
        assert load_detector(torch.device("cpu")) is first
        assert len(loads) == 1
        assert not first.training
        assert len(detect(first, [ONE])) == 0
    finally:
        load_detector.cache_clear()  # later tests must not meet this one


# Batches.


def encoded(image):
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "PNG")
    return file.getvalue()


FILES = [encoded(image) for image in (ONE, NONE, TWO, ONE)]


def test_batches_hold_consecutive_images_of_any_kind():
    sources = [FILES[0], ONE.numpy(), ONE.permute(2, 0, 1), ONE.permute(2, 0, 1) / 255, FILES[2]]
    batches = list(read_batches(sources, CPU, batch_size=2))
    assert [batch.first for batch in batches] == [0, 2, 4]
    assert [len(batch.images) for batch in batches] == [2, 2, 1]
    images = [image for batch in batches for image in batch.images]
    for image, expected in zip(images, [ONE, ONE, ONE, ONE, TWO], strict=True):
        assert torch.equal(image, expected)
    assert batches[1].sources[0] is sources[2]


def test_the_first_image_that_cannot_be_read_is_an_error_that_names_it():
    batches = read_batches([FILES[0], b"nothing", FILES[0]], CPU, batch_size=1)
    next(batches)
    with pytest.raises(ImageError, match=r"image 1 \(7 bytes\)"):
        next(batches)
    with pytest.raises(ImageError, match=r"^image 1 \(tensor .*\): floating-point pixels"):
        list(read_batches([torch.rand(3, 4, 4), torch.full((3, 4, 4), 2.0)], CPU))


def test_errors_can_be_collected():
    sources = [b"", FILES[0], torch.zeros(3, 0, 4), FILES[2]]
    (batch,) = read_batches(sources, CPU, collect_errors=True)
    assert batch.index == [1, 3]
    assert torch.equal(batch.images[1], TWO)
    assert list(batch.errors) == [0, 2]
    assert "image 2 (tensor of shape (3, 0, 4)" in str(batch.errors[2])
    (batch,) = face_batches(sources, CPU, ImageOptions("largest", "nan"), collect_errors=True)
    assert batch.faces.image_index.tolist() == [0, 1]


def test_files_are_read_in_threads_and_a_single_one_is_not():
    threads = []

    def read(source, index):
        threads.append(threading.current_thread().name)
        return read_image(source, index)

    list(read_batches(FILES, CPU, read=read))
    assert all(name.startswith("decode") for name in threads)
    threads.clear()
    list(read_batches(FILES[:1], CPU, read=read))
    assert threads == [threading.current_thread().name]


def test_serial_sources_are_read_in_order_by_one_thread():
    order = []

    def read(source, index):
        order.append((source, threading.current_thread().name))
        time.sleep(0.002 * (source % 3))
        return np.zeros((4, 4, 3), np.uint8)

    list(read_batches(range(9), CPU, read=read, workers=4, serial=lambda source: source % 2 == 0))
    serial = [(source, name) for source, name in order if source % 2 == 0]
    assert [source for source, _ in serial] == [0, 2, 4, 6, 8]
    assert {name for _, name in serial} == {"serial_0"}


def test_prefetch_and_batches_are_bounded_by_bytes(monkeypatch):
    started = []

    def read(source, index):
        started.append(source)
        return np.zeros((1000, 1000, 3), np.uint8)

    monkeypatch.setattr(pipeline, "BATCH_BYTES", 6_000_000)
    monkeypatch.setattr(prefetch, "PREFETCH_BYTES", 9_000_000)
    batches = read_batches(range(50), CPU, read=read, workers=2, batch_size=64)
    for count, batch in enumerate(batches, 1):
        assert len(batch.images) == 2
        time.sleep(0.005)
        assert len(started) <= 2 * count + 4
        if count == 10:
            break
    batches.close()
    time.sleep(0.02)
    assert len(started) < 30


@pytest.mark.parametrize("sources", [FILES, [np.zeros((8, 8, 3), np.uint8)] * 3])
def test_the_progress_bar_counts_every_image(sources, monkeypatch):
    bar = Mock()
    monkeypatch.setattr(pipeline, "progress_bar", Mock(return_value=bar))
    list(pipeline.read_batches(sources, CPU, batch_size=2, progress=True))
    assert bar.update.call_count == len(sources)
    bar.close.assert_called_once_with()


def test_face_batches_name_every_image_without_a_face_after_the_search():
    batches = face_batches([*FILES, *FILES], CPU, ImageOptions(batch_size=2))
    with pytest.raises(NoFaceError, match=r"image 1 .* image 5 ") as caught:
        next(batches)
    assert caught.value.missing == [1, 5]
    batches = face_batches(FILES, CPU, ImageOptions(faces="all", on_missing="skip", batch_size=3))
    assert [batch.faces.image_index.tolist() for batch in batches] == [[0, 2, 2], [0]]


def test_the_error_mentions_an_orientation_tag():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    file = io.BytesIO()
    Image.fromarray(NONE.numpy()).save(file, "PNG", exif=exif)
    with pytest.raises(NoFaceError, match="EXIF orientation tag 3 was applied; if its pixels"):
        list(face_batches([file.getvalue()], CPU, ImageOptions()))


def test_a_clock_measures_every_stage():
    stages = []

    class Clock:
        def stage(self, name):
            stages.append(name)
            return nullcontext()

    (batch,) = face_batches(FILES[:1], CPU, ImageOptions(), clock=Clock())
    list(cut_batches(batch.images, batch.faces, PLAIN, clock=Clock()))
    assert stages == ["wait", "detect", "align"]


def test_settings_of_the_detector_are_options():
    options = ImageOptions(min_face=12, rotations=[0, 90])
    assert options.detection == DetectionConfig(min_face=12, rotations=(0, 90))
    dim = [encoded(photo_of((30, 50, 60, 140)))]
    assert len(next(face_batches(dim, CPU, ImageOptions())).faces) == 1
    strict = ImageOptions(on_missing="skip", score_threshold=0.99)
    assert len(next(face_batches(dim, CPU, strict)).faces) == 0
    with pytest.raises(ValueError, match="score_threshold must be between 0 and 1"):
        ImageOptions(score_threshold=2)


@pytest.mark.gpu
def test_images_of_many_sizes_reach_a_gpu_unchanged():
    photos = [np.full((3 + n, 5, 3), n, np.uint8) for n in range(6)]
    moved = to_device(photos, torch.device("cuda"))
    assert all(photo.is_cuda for photo in moved)
    assert all(
        np.array_equal(there.cpu().numpy(), here) for there, here in zip(moved, photos, strict=True)
    )
    assert to_device([], torch.device("cuda")) == []
