"""Head pose from five landmarks, against heads projected at known angles, and pose classes."""

import numpy as np
import pytest
import torch
from packs import FACE

from facezoo.landmarks import (
    ARCFACE_112,
    CENTER,
    FOCAL,
    FRONTAL_PITCH_DEG,
    HEAD,
    SHIFT,
    crop_pose,
    head_pose,
    pose_labels,
    yaw_deg,
)
from facezoo.preprocess.templates import template_points


def head_at(yaw, pitch=0.0, x=0.0, y=-35.0, depth=2900.0, roll=0.0):
    """Where the camera sees the generic head, turned to the image's right; pixels, (5, 2)."""
    a, b, c = np.deg2rad(yaw), np.deg2rad(pitch), np.deg2rad(roll)
    # A head that looks along -z looks along (sin a, 0, -cos a) after this turn.
    turn = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    tilt = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    placed = np.array(HEAD) @ (turn @ nod @ tilt).T + [x, y, depth]
    return torch.from_numpy(FOCAL * placed[:, :2] / placed[:, 2:] + CENTER)


@pytest.mark.parametrize("yaw", [-60, -30, -10, 0, 10, 30, 60])
@pytest.mark.parametrize("pitch", [-15, 0, 15])
@pytest.mark.parametrize("roll", [-20, 0, 5])
def test_a_head_seen_by_the_camera_gives_its_angles_back(yaw, pitch, roll):
    pose = crop_pose(head_at(yaw, pitch, roll=roll)[None] - SHIFT)[0]
    assert torch.rad2deg(pose[:3]).tolist() == pytest.approx([yaw, -pitch, roll], abs=1e-3)


def test_a_nearer_head_is_larger_by_its_depth():
    near, far = crop_pose(torch.stack([head_at(5, depth=2000.0), head_at(5, depth=4000.0)]) - SHIFT)
    assert float(near[3] - far[3]) == pytest.approx(np.log(2), abs=1e-4)
    assert abs(float(crop_pose(FACE[None])[0, 3])) < 0.1


def test_a_face_that_looks_up_has_positive_pitch():
    straight, turned = head_at(0), head_at(0, -15)
    assert turned[2, 1] < straight[2, 1]  # the nose tip moves up in the image
    assert float(crop_pose(turned[None] - SHIFT)[0, 1]) > 0.2


def test_a_head_that_tilts_clockwise_in_the_image_has_positive_roll():
    points = head_at(0, roll=10)
    assert points[1, 1] > points[0, 1]  # the eye on the image's right is lower
    assert float(crop_pose(points[None] - SHIFT)[0, 2]) > 0.1


def test_poses_of_unknown_landmarks_are_unknown():
    poses = crop_pose(torch.stack([FACE, torch.full((5, 2), float("nan"))]))
    assert poses.isnan().all(1).tolist() == [False, True]
    assert crop_pose(torch.zeros(0, 5, 2)).shape == (0, 4)


def test_angles_in_an_image_include_its_rotation():
    points = head_at(20, -8)
    cosine, sine = np.cos(np.deg2rad(75)), np.sin(np.deg2rad(75))
    turned = 3 * points @ torch.tensor([[cosine, -sine], [sine, cosine]]).T + 500
    yaw, pitch, roll = head_pose(torch.stack([points, turned])).T
    assert float(yaw[0]) == pytest.approx(20, abs=1.5)
    assert float(pitch[0]) == pytest.approx(8 - FRONTAL_PITCH_DEG, abs=3)
    assert [float(a[1] - a[0]) for a in (yaw, pitch, roll)] == pytest.approx([0, 0, 75], abs=1e-2)


@pytest.mark.parametrize("angle", [-40, -20, 0, 20, 40])
def test_alignment_changes_the_yaw_of_a_turned_head_little(angle):
    # It enlarges a turned head, so that the camera sees it from slightly nearer than it was.
    assert abs(float(yaw_deg(head_at(angle)[None])) - angle) < 1.5


def test_a_face_that_looks_to_the_images_right_has_positive_yaw():
    points = head_at(25.0)
    eyes_middle = points[:2].mean(0)
    assert points[2, 0] > eyes_middle[0]
    assert float(yaw_deg(points[None])) > 20


def test_mirroring_changes_the_sign():
    # Up to the template, which is not quite symmetric about the camera.
    points = head_at(17.0, 8.0)
    mirrored = (torch.tensor([160.0, 0]) + points * torch.tensor([-1.0, 1]))[[1, 0, 2, 4, 3]]
    left, right = yaw_deg(torch.stack([points, mirrored])).tolist()
    assert left == pytest.approx(-right, abs=0.2)


def test_place_size_and_roll_in_the_image_do_not_matter():
    points = head_at(22.0)
    cosine, sine = np.cos(0.7), np.sin(0.7)
    roll = torch.tensor([[cosine, -sine], [sine, cosine]])
    moved = 7.3 * points @ roll.T + torch.tensor([900.0, -40.0])
    once, again = yaw_deg(torch.stack([points, moved])).tolist()
    assert once == pytest.approx(again, abs=1e-3)


def test_the_template_itself_is_nearly_frontal():
    assert abs(float(yaw_deg(FACE[None]))) < 2


def test_rows_with_unknown_landmarks_have_no_yaw_and_do_not_disturb_the_others():
    points = torch.stack([head_at(5.0), head_at(30.0)])
    with_gap = torch.cat([points[:1], torch.full((1, 5, 2), float("nan")), points[1:]])
    found = yaw_deg(with_gap)
    assert found.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(found[[0, 2]], yaw_deg(points))


def test_no_rows_give_no_angles():
    assert yaw_deg(torch.zeros(0, 5, 2)).shape == (0,)


@pytest.mark.parametrize("shape", [(5, 2), (1, 68, 2), (1, 5, 3)])
def test_landmarks_of_another_shape_raise_an_error(shape):
    with pytest.raises(ValueError, match=r"landmarks must be \(N, 5, 2\), got"):
        yaw_deg(torch.zeros(shape))


def test_pose_classes_end_at_10_20_30_and_40_degrees_either_way():
    yaw = torch.tensor([0.0, -9.9, 10.0, 10.1, -20.1, 30.0, 39.9, -40.1, 88.0, float("nan")])
    assert pose_labels(yaw).tolist() == [0, 0, 0, 1, 2, 2, 3, 4, 4, -1]
    assert pose_labels(yaw).dtype == torch.int64


def test_the_template_of_arcface_is_the_one_that_crops_are_aligned_to():
    points = torch.tensor(ARCFACE_112, dtype=torch.float64)
    torch.testing.assert_close(template_points("arcface112", 112), points, rtol=0, atol=1e-12)
