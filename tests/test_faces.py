"""Detection and aligned crops in one call."""

import numpy as np
import pytest
import torch
from packs import FACE, photo_of, use_square_detector

import facezoo
from facezoo.errors import NoFaceError
from facezoo.hub.card import Preprocessing
from facezoo.preprocess import pipeline
from facezoo.preprocess.alignment import prepare

ONE, TWO, NONE = photo_of((30, 50, 60)), photo_of((20, 20, 40), (100, 100, 64)), photo_of()


@pytest.fixture(autouse=True)
def _squares(monkeypatch):
    use_square_detector(monkeypatch)


def test_detect_returns_every_face_and_the_place_of_its_image():
    faces = facezoo.detect([NONE.numpy(), TWO.numpy(), ONE.numpy()], device="cpu", batch_size=2)
    assert faces.image_index.tolist() == [1, 1, 2]
    assert faces.boxes[2].tolist() == pytest.approx([29.5, 49.5, 89.5, 109.5], abs=1)


def test_detect_takes_one_image_and_no_image():
    assert len(facezoo.detect(ONE.numpy(), device="cpu")) == 1
    assert len(facezoo.detect([], device="cpu")) == 0


def test_options_of_the_detector_reach_it():
    options = {"device": "cpu", "min_face": 50, "faces": "all"}
    assert len(facezoo.detect(TWO.numpy(), **options)) == 1
    assert len(facezoo.crops(TWO.numpy(), **options)) == 1
    with pytest.raises(NoFaceError):
        facezoo.detect([ONE.numpy(), NONE.numpy()], device="cpu", on_missing="raise")


@pytest.mark.parametrize(("template", "size"), [("arcface112", 112), ("ffhq", 96)])
def test_crops_are_the_pixels_that_a_model_sees(template, size):
    images = [ONE, TWO]
    crops = facezoo.crops([i.numpy() for i in images], template, size, device="cpu")
    assert crops.dtype == torch.uint8
    assert crops.shape == (3, 3, size, size)
    preprocessing = Preprocessing(template=template, size=size, mean=(0,) * 3, std=(1,) * 3)
    expected = prepare(images, facezoo.detect([i.numpy() for i in images], "cpu"), preprocessing)
    assert (crops - expected * 255).abs().max() <= 0.51


def test_the_size_of_crops_is_a_whole_number():
    crops = facezoo.crops(ONE.numpy(), size=np.int64(40), device="cpu")
    assert torch.equal(crops, facezoo.crops(ONE.numpy(), size=40, device="cpu"))
    for size in (0, -3, 40.5):
        with pytest.raises(ValueError, match="size must be a whole number of pixels"):
            facezoo.crops(ONE.numpy(), size=size, device="cpu")


def test_crops_of_known_faces_need_no_detection(monkeypatch):
    images = [NONE.numpy(), TWO.numpy(), ONE.numpy()]
    faces = facezoo.detect(images, device="cpu")
    expected = facezoo.crops(images, device="cpu", faces="all", on_missing="skip")
    monkeypatch.setattr(pipeline, "load_detector", lambda device: None)
    crops = facezoo.crops(images, detections=faces, device="cpu", batch_size=1)
    assert torch.equal(crops, expected)


def test_crops_of_detections_have_their_order():
    images = [TWO.numpy(), ONE.numpy(), TWO.numpy(), ONE.numpy()]
    faces = facezoo.detect(images, device="cpu")
    expected = facezoo.crops(images, detections=faces, device="cpu")
    order = torch.tensor([5, 0, 3, 2, 4, 1])
    for batch_size in (1, 3, 64):
        options = {"device": "cpu", "batch_size": batch_size}
        assert torch.equal(
            facezoo.crops(images, detections=faces[order], **options), expected[order]
        )


def test_detections_are_neither_dropped_nor_chosen_again():
    images = [ONE.numpy(), NONE.numpy()]
    faces = facezoo.detect(images, device="cpu", on_missing="nan")
    assert len(faces) == 2
    with pytest.raises(NoFaceError, match="no face found in image 1"):
        facezoo.crops(images, detections=faces, device="cpu")
    with pytest.raises(ValueError, match="a face of image 1, got only 1 image;"):
        facezoo.crops(images[:1], detections=faces, device="cpu")
    left = facezoo.crops(images, detections=faces, device="cpu", on_missing="skip")
    assert len(left) == 1
    with pytest.raises(TypeError, match="detections must be Faces, got list"):
        facezoo.crops(images, detections=[faces], device="cpu")
    with pytest.raises(ValueError, match=r"^faces, min_face: these options choose faces"):
        facezoo.crops(images, detections=faces, faces="largest", min_face=20)


def test_images_without_a_face_raise_or_have_no_crop():
    with pytest.raises(NoFaceError, match=r'pass on_missing="skip" to leave them out$'):
        facezoo.crops([ONE.numpy(), NONE.numpy()], device="cpu")
    with pytest.raises(NoFaceError, match='"skip" to leave them out, or on_missing="nan" to keep'):
        facezoo.detect(NONE.numpy(), device="cpu", on_missing="raise")
    assert facezoo.crops(NONE.numpy(), device="cpu", on_missing="skip").shape == (0, 3, 112, 112)
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        facezoo.crops(ONE.numpy(), device="cpu", on_missing="nan")


def test_landmarks_of_a_crop_are_in_the_template():
    faces = facezoo.detect(ONE.numpy(), device="cpu")
    crop = facezoo.crops(ONE.numpy(), device="cpu", detections=faces)[0]
    # The square of 60 pixels fills the 112 pixels of the template.
    scale = (faces.landmarks[0, 0] - faces.landmarks[0, 1]).norm() / (FACE[0] - FACE[1]).norm()
    assert float(scale) == pytest.approx(60 / 112, abs=0.01)
    assert crop[:, 56, 56].tolist() == [255] * 3
