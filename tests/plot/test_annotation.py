"""Faces and labels drawn on images."""

import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import facezoo
from facezoo.plot.annotation import annotate, picture_paths
from facezoo.results import EXPRESSIONS, ExpressionPrediction, Faces

annotating = sys.modules[annotate.__module__]
LANDMARKS = torch.tensor([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])


def faces_at(*boxes, image_index=None):
    """Make faces in boxes, all of image 0 by default."""
    box = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    points = box[:, None, :2] + LANDMARKS * (box[:, None, 2:] - box[:, None, :2])
    index = torch.tensor(image_index or [0] * len(box))
    return Faces(box, points, torch.full((len(box),), 0.9), index)


def prediction_of(faces):
    probabilities = torch.rand(len(faces), 8).softmax(-1)
    labels = [EXPRESSIONS[k] for k in probabilities.argmax(-1).tolist()]
    return ExpressionPrediction(labels, probabilities, EXPRESSIONS, faces)


def changed(before, after):
    """Return where pixels differ, (H, W)."""
    return (np.asarray(before) != np.asarray(after)).any(-1)


def test_a_box_is_drawn_where_the_face_is_and_the_input_stays_as_it_was():
    photo = np.full((600, 800, 3), 120, np.uint8)
    picture = annotate(photo, prediction_of(faces_at([100, 150, 300, 400])))
    assert picture.size == (800, 600)
    assert picture.mode == "RGB"
    assert (photo == 120).all()
    drawn = changed(photo, picture)
    assert drawn[150:401, 100].all()
    assert drawn[150, 100:301].all()
    assert not drawn[250, 160]  # the right eye
    with_points = annotate(photo, prediction_of(faces_at([100, 150, 300, 400])), landmarks=True)
    assert changed(photo, with_points)[250, 160]
    assert not drawn[:100].any()


@pytest.mark.parametrize("size", [(1, 1), (24, 32), (250, 250), (3000, 2000), (40, 4000)])
def test_any_size_of_image_can_be_drawn_on(size):
    width, height = size
    box = [width * 0.2, height * 0.2, width * 0.7, height * 0.8]
    picture = annotate(Image.new("RGB", size), prediction_of(faces_at(box)))
    factor = picture.width // width
    assert picture.size == (width * factor, height * factor)
    assert max(picture.size) >= 480
    assert np.asarray(picture).any()


def panels_of(picture, faces, **options):
    """Return the boxes of the texts that ``annotate`` draws."""
    return [place for _, place in texts_of(picture, faces, **options)]


def texts_of(picture, faces, **options):
    """Return the texts that ``annotate`` draws, without bars, and their boxes."""
    texts, draw = [], annotating._draw_panel
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotating, "_draw_panel", lambda *a: texts.append((a[2], a[-1])) or draw(*a))
        annotate(picture, prediction_of(faces), scale=1, **options)
    return texts


def overlap(a, b):
    return min(a[2], b[2]) - max(a[0], b[0]) > 0 and min(a[3], b[3]) - max(a[1], b[1]) > 0


@pytest.mark.parametrize("style", ["label", "bars"])
@pytest.mark.parametrize(("count", "side"), [(1, 300), (4, 200), (40, 60), (150, 40)])
def test_text_covers_neither_faces_nor_other_text_and_stays_inside(style, count, side):
    generator = torch.Generator().manual_seed(count)
    corners = torch.rand(count, 2, generator=generator) * (1000 - side)
    boxes = torch.cat([corners, corners + side], 1).tolist()
    places = panels_of(Image.new("RGB", (1000, 1000)), faces_at(*boxes), style=style)
    assert len(places) > count / 3
    for n, place in enumerate(places):
        assert min(place[:2]) >= 0
        assert max(place[2:]) <= 1000
        assert not any(overlap(place, other) for other in [*boxes, *places[:n]])


def test_text_grows_with_the_face():
    boxes = [[100, 100, 170, 170], [400, 100, 540, 240], [700, 300, 980, 580]]
    places = panels_of(Image.new("RGB", (1200, 1000)), faces_at(*boxes), style="label")
    heights = [bottom - top for _, top, _, bottom in places]
    assert heights[0] > 1.5 * heights[1] >= 1.5 * heights[2]  # the largest face comes first


def test_a_face_that_fills_the_image_has_its_label_at_the_lower_edge():
    picture = annotate(Image.new("RGB", (500, 500)), prediction_of(faces_at([0, 0, 499, 499])))
    rows = changed(Image.new("RGB", (500, 500)), picture)[:, 20:480].any(1).nonzero()[0]
    assert (rows[rows > 10] > 440).all()


def test_each_style_draws_more_than_the_one_before():
    photo, faces = Image.new("RGB", (500, 500)), prediction_of(faces_at([100, 100, 300, 300]))
    drawn = [
        changed(photo, annotate(photo, faces, style=s)).sum() for s in ("box", "label", "bars")
    ]
    assert 0 < drawn[0] < drawn[1] < drawn[2]
    with pytest.raises(ValueError, match="'box', 'label', 'bars' or None, got 'dots'"):
        annotate(photo, faces, style="dots")


def test_names_are_taken_in_order_and_are_one_per_face():
    photo = Image.new("RGB", (300, 300))
    faces = faces_at([20, 20, 80, 80], [200, 200, 280, 280])
    names = pd.Series(["first", "second"], index=[1, 0])
    assert annotate(photo, faces, names=names) == annotate(photo, faces, names=["first", "second"])
    with pytest.raises(ValueError, match="one per face, 2, got 1"):
        annotate(photo, faces, names=["first"])


def test_names_are_drawn_also_for_faces_without_a_prediction():
    photo, faces = Image.new("RGB", (500, 500)), faces_at([100, 100, 300, 300])
    plain, named = annotate(photo, faces), annotate(photo, faces, names=["left"])
    assert changed(plain, named).any()


def test_faces_of_other_images_and_rows_of_nan_are_left_out():
    photo = Image.new("RGB", (500, 500))
    nan = float("nan")
    faces = faces_at([10, 10, 60, 60], [nan] * 4, image_index=[0, 1])
    assert not changed(photo, annotate(photo, prediction_of(faces), image_index=1, scale=1)).any()
    assert changed(photo, annotate(photo, prediction_of(faces), image_index=0, scale=1)).any()


def test_the_name_of_every_face_is_drawn_even_if_its_label_finds_no_place():
    corners = torch.rand(150, 2, generator=torch.Generator().manual_seed(0)) * 760
    faces = faces_at(*torch.cat([corners, corners + 40], 1).tolist())
    names = [str(number) for number in range(150)]
    texts = texts_of(Image.new("RGB", (800, 800)), faces, names=names)
    assert sorted((title.split()[0] for title, _ in texts), key=int) == names
    assert any(title in names for title, _ in texts)  # without a label
    assert all(min(place[:2]) >= 0 and max(place[2:]) <= 800 for _, place in texts)


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ([-50, -50, 700, 700], [0, 0, 499, 499]),
        ([100, 300, 300, 800], [100, 300, 300, 499]),  # the center is below
        ([450, 100, 700, 400], [450, 100, 499, 400]),
        ([-300, -400, 40, 90], [0, 0, 40, 90]),
    ],
)
def test_a_box_that_leaves_the_image_is_drawn_up_to_the_border(box, inside):
    photo = Image.new("RGB", (500, 500), "#963")
    for result in (faces_at(box), prediction_of(faces_at(box))):
        drawn = changed(photo, annotate(photo, result, landmarks=True))
        left, top, right, bottom = inside
        assert drawn[top : bottom + 1, [left, right]].all()
        assert drawn[[top, bottom], left : right + 1].all()


@pytest.mark.parametrize("box", [[100, 300, 300, 800], [450, -200, 1400, 900], [497, 0, 900, 499]])
def test_the_label_of_a_face_at_the_border_is_inside_the_picture(box):
    (place,) = panels_of(Image.new("RGB", (500, 500)), faces_at(box))
    assert min(place[:2]) >= 0
    assert max(place[2:]) <= 500


def test_every_detected_face_that_the_border_cuts_is_drawn_on_its_image():
    portrait = Image.open("examples/portraits/grace_hopper.jpg").convert("RGB")
    x0, y0, x1, y1 = facezoo.detect(portrait, device="cpu").boxes[0].tolist()
    images = [
        portrait.crop((0, 0, portrait.width, round(y0 + share * (y1 - y0))))
        for share in (0.4, 0.45, 0.5)
    ]
    faces = facezoo.detect(images, device="cpu")
    assert faces.image_index.tolist() == [0, 1, 2]
    assert ((faces.boxes[:, 1] + faces.boxes[:, 3]) / 2).tolist()[0] > images[0].height
    for index, image in enumerate(images):
        picture = annotate(image, faces, image_index=index, scale=1)
        assert changed(image, picture)[-1, round(x0) + 5 : round(x1) - 5].all()
    facezoo.show(faces, images)


def test_the_image_of_another_result_is_an_error_if_a_face_does_not_touch_it():
    faces = faces_at([400, 100, 480, 180])
    annotate(Image.new("RGB", (500, 500)), faces)
    annotate(Image.new("RGB", (410, 500)), faces)
    with pytest.raises(ValueError, match=r"at x 440, y 140 lies outside image 0 of 320x240 pixels"):
        annotate(Image.new("RGB", (320, 240)), faces)


def test_an_image_that_the_result_does_not_have_is_an_error():
    pixels = np.zeros((80, 80, 3), np.uint8)
    signed = facezoo.detect([pixels, pixels], device="cpu")
    named = replace(faces_at([10, 10, 60, 60]), files=("a.png", "b.png"))
    for result in (signed, named):
        annotate(pixels, result, image_index=1)
        with pytest.raises(ValueError, match="image 5 is not one of the 2 images of the result"):
            annotate(pixels, result, image_index=5)
    for result in (signed, named, faces_at([10, 10, 60, 60])):
        with pytest.raises(ValueError, match="image -1 is not one of the"):
            annotate(pixels, result, image_index=-1)


def test_a_prediction_of_aligned_crops_cannot_be_drawn():
    prediction = ExpressionPrediction(["neutral"], torch.ones(1, 1), ("neutral",), None)
    with pytest.raises(ValueError, match="without aligned=True"):
        annotate(Image.new("RGB", (112, 112)), prediction)


def test_images_of_several_images_go_into_a_folder_under_different_names(tmp_path):
    files = [Path("a/x.jpg"), Path("b/x.jpg"), Path("c/y.tiff")]
    paths = picture_paths(files, tmp_path / "out")
    assert [paths[f].name for f in files] == ["x.jpg", "x-2.jpg", "y.png"]


def test_one_image_can_be_saved_to_a_file_or_into_a_folder(tmp_path):
    file = Path("x.jpg")
    assert picture_paths([file], tmp_path / "y.png")[file] == tmp_path / "y.png"
    assert picture_paths([file], tmp_path)[file] == tmp_path / "x.jpg"


@pytest.mark.parametrize("out", ["y.gif", "y.txt"])
def test_a_image_of_another_kind_raises_an_error(tmp_path, out):
    with pytest.raises(ValueError, match=r"\.png"):
        picture_paths([Path("x.jpg")], tmp_path / out)


def test_a_file_for_several_images_raises_an_error(tmp_path):
    with pytest.raises(ValueError, match="folder"):
        picture_paths([Path("x.jpg"), Path("y.jpg")], tmp_path / "out.png")


def test_a_image_never_overwrites_a_image(tmp_path):
    with pytest.raises(ValueError, match="overwrite"):
        picture_paths([tmp_path / "x.jpg"], tmp_path)


def test_images_of_many_images_of_one_name_are_named_apart_everywhere(tmp_path):
    names = ("face.jpg", "Face.JPG", "face-2.jpg")
    files = [Path(f"{folder}/{name}") for folder in range(600) for name in names]
    start = time.perf_counter()
    paths = picture_paths(files, tmp_path / "out")
    assert time.perf_counter() - start < 2
    # As file systems that know no case would tell them apart.
    assert len({str(path).casefold() for path in paths.values()}) == len(files)
    assert paths[Path("0/face.jpg")].name == "face.jpg"
    assert paths[Path("0/Face.JPG")].name == "Face-2.JPG"
