"""Camera, view and warps: known points, round trips and the reference vectors."""

import math

import pytest
import torch
from golden_vectors import arrays, relative_error

from facezoo.geometry.camera import (
    Camera,
    grid_triangles,
    inverse_warp_grid,
    resample,
    rotation_matrix,
    to_canonical,
    to_view,
    warp_grid,
)


def view_of(**numbers):
    names = ("rx", "ry", "rz", "tx", "ty", "tz")
    return torch.tensor([[numbers.get(name, 0.0) for name in names]], dtype=torch.float64)


def seen(point, **numbers):
    """Pixel of a canonical point in a view, by a camera of 65 pixels with its centre at 32."""
    posed = to_view(torch.tensor([[point]], dtype=torch.float64), view_of(**numbers))
    return Camera(65).project(posed)[0, 0, :2].tolist()


@pytest.mark.parametrize("size", [64, 128])
def test_the_field_of_view_reaches_from_the_first_pixel_to_the_last(size):
    points = Camera(size, fov_deg=10).unproject(torch.ones(1, size, size, dtype=torch.float64))[0]
    for corner, sign in ((points[0, 0], -1), (points[-1, -1], 1)):
        assert math.degrees(math.atan2(corner[0], corner[2])) == pytest.approx(sign * 5)
        assert math.degrees(math.atan2(corner[1], corner[2])) == pytest.approx(sign * 5)


def test_projecting_what_was_unprojected_gives_pixel_and_depth():
    camera, depth = Camera(16), torch.rand(2, 16, 16, dtype=torch.float64) + 0.5
    pixels = camera.project(camera.unproject(depth))
    columns = torch.arange(16.0, dtype=torch.float64)
    torch.testing.assert_close(pixels[..., 0], columns.expand(2, 16, 16))
    torch.testing.assert_close(pixels[..., 1], columns[:, None].expand(2, 16, 16))
    torch.testing.assert_close(pixels[..., 2], depth)


def test_a_rotation_is_the_product_of_three():
    for rx, ry, rz in torch.randn(5, 3, dtype=torch.float64).tolist():
        cos, sin = math.cos, math.sin
        about_x = [[1, 0, 0], [0, cos(rx), -sin(rx)], [0, sin(rx), cos(rx)]]
        about_y = [[cos(ry), 0, sin(ry)], [0, 1, 0], [-sin(ry), 0, cos(ry)]]
        about_z = [[cos(rz), -sin(rz), 0], [sin(rz), cos(rz), 0], [0, 0, 1]]
        x, y, z = (torch.tensor(m, dtype=torch.float64) for m in (about_x, about_y, about_z))
        turned = rotation_matrix(torch.tensor([[rx, ry, rz]], dtype=torch.float64))[0]
        torch.testing.assert_close(turned, z @ y @ x)


def test_each_number_of_a_view_moves_a_face_the_way_that_is_documented():
    nose = (0.0, 0.0, 0.9)  # nearer than the pivot
    assert seen(nose) == [32, 32]
    u, v = seen(nose, ry=0.1)
    assert u < 32
    assert v == pytest.approx(32)
    u, v = seen(nose, rx=0.1)
    assert u == pytest.approx(32)
    assert v > 32
    ear = (0.05, 0.0, 1.0)  # at the right, which a clockwise turn moves down
    assert seen(ear, rz=0.1)[1] > 32
    assert seen(nose, tx=0.01)[0] > 32
    assert seen(nose, ty=0.01)[1] > 32
    assert 32 < seen(ear, tz=0.5)[0] < seen(ear)[0]


def test_turning_happens_about_the_middle_of_the_depth_range():
    pivot = torch.tensor([[[0.0, 0.0, 1.0]]])
    torch.testing.assert_close(to_view(pivot, torch.tensor([[1.0, -2, 0.5, 0, 0, 0]])), pivot)


def test_the_way_back_from_a_view_undoes_it():
    points, view = torch.randn(3, 7, 3, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    assert not torch.allclose(to_view(points, view), points)
    torch.testing.assert_close(to_canonical(to_view(points, view), view), points)


def test_a_wall_that_moves_sideways_is_seen_shifted():
    camera, depth = Camera(8), torch.full((1, 8, 8), 2.0, dtype=torch.float64)
    grid = warp_grid(depth, view_of(tx=0.1), camera)
    shift = 0.1 / 2 * camera.focal / camera.center
    columns = torch.linspace(-1, 1, 8, dtype=torch.float64)
    torch.testing.assert_close(grid[0, ..., 0], columns.expand(8, 8) + shift)
    torch.testing.assert_close(grid[0, ..., 1], columns[:, None].expand(8, 8))
    back = inverse_warp_grid(depth, view_of(tx=0.1), camera)
    torch.testing.assert_close(back[0, ..., 0], columns.expand(8, 8) - shift)


def test_without_a_view_an_image_is_read_as_it_is():
    camera, images = Camera(8), torch.rand(1, 3, 8, 8)
    grid = inverse_warp_grid(torch.rand(1, 8, 8) + 1, torch.zeros(1, 6), camera)
    torch.testing.assert_close(resample(images, grid), images, atol=1e-4, rtol=0)


def test_a_grid_has_all_upper_left_triangles_first():
    # 0 1 2
    # 3 4 5
    assert grid_triangles(2, 3).tolist() == [[0, 3, 1], [1, 4, 2], [1, 3, 4], [2, 4, 5]]


def test_the_triangles_of_a_grid_cover_it_once():
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    a, b, c = torch.stack([x.flatten(), y.flatten()], -1)[grid_triangles(4, 6)].unbind(1)
    areas = torch.linalg.det(torch.stack([b - a, c - a], -1)) / 2
    assert areas.sum().abs() == 3 * 5
    assert areas.unique().numel() == 1  # all wound the same way


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Camera(1), "size must be 2 pixels or more, got 1"),
        (lambda: Camera(8, fov_deg=180), "between 0 and 180 degrees, got 180"),
        (lambda: Camera(8).unproject(torch.ones(8, 8)), r"\(B, 8, 8\), got \(8, 8\)"),
        (lambda: Camera(8).unproject(torch.ones(1, 8, 9)), r"got \(1, 8, 9\); use a Camera"),
        (lambda: to_view(torch.ones(2, 5, 3), torch.ones(1, 6)), r"got \(2, 5, 3\) and \(1, 6\)"),
        (lambda: to_canonical(torch.ones(2, 5, 3), torch.ones(2, 5)), r"and \(2, 5\)"),
        (lambda: grid_triangles(1, 5), "2 rows and 2 columns or more, got 1 and 5"),
    ],
)
def test_mismatches_raise_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_geometry_equals_the_reference_vectors():
    wanted = arrays("unsup3d_geometry")
    camera = Camera(64)
    depth = torch.from_numpy(wanted["depth"]).expand(3, -1, -1)
    view = torch.from_numpy(wanted["view"])
    for size in (64, 128):
        assert Camera(size).focal == pytest.approx(wanted[f"K_{size}"][0, 0], rel=1e-6)
        assert Camera(size).center == wanted[f"K_{size}"][0, 2]
    points = camera.unproject(depth)
    posed = to_view(points.flatten(1, 2), view).unflatten(1, (64, 64))
    back = to_canonical(points.flatten(1, 2), view).unflatten(1, (64, 64))
    grid = inverse_warp_grid(depth, view, camera)
    image = torch.from_numpy(wanted["canon_im_light1"])[None]
    results = {
        "rot_mat": rotation_matrix(view[:, :3]),
        "grid_3d": points[0],
        "warped_3d": posed,
        "inv_warped_3d": back,
        "warped_2d": warp_grid(depth, view, camera),
        "inv_warped_2d": grid,
        "resampled_align_true": resample(image, grid[1:2])[0],
    }
    for name, value in results.items():
        assert relative_error(value, wanted[name]) < 1e-4, name
