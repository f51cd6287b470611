"""Faces are drawn on and cut out of the images in which they were found, and no others."""

import dataclasses
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import facezoo
from facezoo.plot.annotation import annotate
from facezoo.preprocess.signatures import check_images, signatures

PORTRAIT = "examples/portraits/grace_hopper.jpg"
OTHER = "examples/portraits/eileen_collins.jpg"


@pytest.fixture(scope="module")
def image():
    return Image.open(PORTRAIT).convert("RGB")


@pytest.fixture(scope="module")
def other(image):
    """Another portrait of the same size."""
    return Image.open(OTHER).convert("RGB").resize(image.size)


@pytest.fixture(scope="module")
def faces(image, other):
    return facezoo.detect([image, PORTRAIT, other], device="cpu", batch_size=2)


def test_every_image_has_a_signature_in_its_order(faces, image, other):
    pixels = [torch.from_numpy(np.array(i)) for i in (image, image, other)]
    assert faces.signatures == signatures(pixels)
    assert faces.signatures[0][:2] == image.size
    assert len(faces.signatures[0].pixels) == 8 * 8 * 3
    assert pickle.loads(pickle.dumps(faces))[:1].to("cpu").signatures == faces.signatures


def test_faces_are_drawn_on_their_own_images(faces, image, other):
    facezoo.show(faces, [PORTRAIT, np.array(image), other])
    facezoo.show(faces[2:], [image, image, other])
    assert len(facezoo.crops([image, PORTRAIT, other], detections=faces, batch_size=1)) == 3


def test_a_copy_with_other_compression_or_small_marks_is_the_same_image(faces, image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=25)
    annotate(file.getvalue(), faces)
    marked = image.copy()
    ImageDraw.Draw(marked).rectangle((5, 5, 80, 40), fill="red")
    annotate(marked, faces)


@pytest.mark.parametrize("kind", ["other", "mirrored", "upside down"])
def test_boxes_are_not_drawn_on_another_image_of_the_same_size(faces, image, other, kind):
    wrong = {"other": other, "mirrored": image.transpose(0), "upside down": image.rotate(180)}[kind]
    with pytest.raises(ValueError, match="image 0 of the result looks different"):
        facezoo.show(faces, [wrong, image, other])
    with pytest.raises(ValueError, match=rf"image 1 of the result \({PORTRAIT}\) looks different"):
        facezoo.crops([image, wrong, other], detections=faces, batch_size=1)


@pytest.mark.parametrize("factor", [0.5, 2])
def test_a_resized_copy_is_an_error_that_says_what_to_pass(faces, image, factor):
    width, height = (round(side * factor) for side in image.size)
    message = (
        f"image 0 of the result has 512x600 pixels, and the image given for it has "
        f"{width}x{height}; pass the images of the result, in the same order and not resized"
    )
    with pytest.raises(ValueError, match=message):
        annotate(image.resize((width, height)), faces)


def test_predictions_keep_the_signatures_and_features_do_without(image, other):
    model = facezoo.load("ipd-fer", device="cpu")
    prediction = model.predict_expression(image)
    facezoo.show(prediction, image)
    with pytest.raises(ValueError, match="looks different"):
        facezoo.show(prediction, other)
    facezoo.show(model.encode(image), image)


def test_faces_without_signatures_fit_any_image(faces, other):
    free = dataclasses.replace(faces, signatures=None)
    annotate(other, free)
    check_images([torch.zeros(5, 5, 3, dtype=torch.uint8)], free)


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (8, 8)])
def test_images_of_any_size_have_signatures(size):
    (signature,) = signatures([torch.full((*size, 3), 7, dtype=torch.uint8)])
    assert signature == (size[1], size[0], bytes([7]) * 192)
    assert signatures([]) == ()
