"""Images with labeled faces: landmarks of a teacher, marks by hand, boxes from landmarks."""

import pyarrow as pa
import torch
from packs import face_at, photo_of, png

from facezoo.data.detection import BoxRegression, face_crops, labeled_image, labeled_images

POINTS = torch.tensor(face_at(20, 30, 60)["landmarks"]).view(5, 2)


def face(landmarks=POINTS, marks=None):
    flat = {"landmarks": landmarks, "marks": marks}
    return {k: None if v is None else v.flatten().tolist() for k, v in flat.items()} | {
        "box": [20.0, 30.0, 80.0, 90.0]
    }


def test_marks_replace_the_eyes_and_move_the_mouth_to_its_middle():
    marks = torch.cat([POINTS[:2] + 2, torch.zeros(1, 2), POINTS[3:].mean(0)[None] + 4])
    image = labeled_image(photo_of(), [face(marks=marks)], [])
    torch.testing.assert_close(image.landmarks[0, :2], POINTS[:2] + 2)
    torch.testing.assert_close(image.landmarks[0, 2], POINTS[2])  # the nose is the teacher's
    torch.testing.assert_close(image.landmarks[0, 3:], POINTS[3:] + 4)
    assert image.weights.tolist() == [[1] * 5]
    assert image.marked.tolist() == [True]


def test_marks_alone_give_every_landmark_but_the_nose():
    marks = torch.cat([POINTS[:3], POINTS[3:].mean(0)[None]])
    image = labeled_image(photo_of(), [face(landmarks=None, marks=marks)], [])
    assert image.weights.tolist() == [[1, 1, 0, 1, 1]]
    torch.testing.assert_close(image.landmarks[0, 3:].mean(0), marks[3])
    assert image.landmarks[0, 3, 0] < image.landmarks[0, 4, 0]


def test_a_face_without_landmarks_has_a_box_alone():
    image = labeled_image(photo_of(), [face(landmarks=None), face()], [[0, 0, 5, 5]])
    assert image.weights.sum(1).tolist() == [0, 5]
    assert image.boxes.tolist() == [[20, 30, 80, 90]] * 2
    assert image.unsure.tolist() == [[0, 0, 5, 5]]


def test_tables_without_faces_give_images_without_faces():
    pixels = photo_of((10, 10, 20)).numpy()
    (image,) = labeled_images(pa.table({"image": [png(pixels)]}))
    assert torch.equal(image.pixels, torch.from_numpy(pixels))
    assert image.boxes.shape == (0, 4)
    assert image.landmarks.shape == (0, 5, 2)
    assert image.unsure.shape == (0, 4)


def test_boxes_follow_from_landmarks_by_a_linear_map():
    generator = torch.Generator().manual_seed(0)
    shift = torch.rand(40, 1, 2, generator=generator) * 100
    scale = torch.rand(40, 1, 1, generator=generator) + 0.5
    noise = torch.randn(40, 5, 2, generator=generator)
    points = (POINTS + noise) * scale + shift
    local = points - points[:, :2].mean(1, keepdim=True)
    unit = (points[:, 0] - points[:, 1]).norm(dim=1)[:, None]
    middle = points[:, :2].mean(1)
    boxes = torch.cat([middle - unit, middle + unit + local[:, 3]], 1)
    regression = BoxRegression.fit(boxes[:30], points[:30])
    torch.testing.assert_close(regression(points[30:]), boxes[30:], atol=0.05, rtol=0)
    crops = pa.table(
        {"image": [png(photo_of().numpy())], "landmarks": [points[35].flatten().tolist()]}
    )
    (crop,) = face_crops(crops, regression)
    torch.testing.assert_close(crop.boxes, boxes[35:36], atol=0.05, rtol=0)
    torch.testing.assert_close(crop.landmarks, points[35:36])
