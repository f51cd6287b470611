"""Normals and shading: planes, slopes, a sphere and the reference vectors."""

import math

import pytest
import torch
from golden_vectors import arrays, relative_error

from facezoo.geometry.camera import Camera
from facezoo.geometry.shading import Light, grid_normals, shade, shading


def light(ambient=0.0, diffuse=1.0, x=0.0, y=0.0):
    return Light.from_parameters(torch.tensor([[2 * ambient - 1, 2 * diffuse - 1, x, y]]))


def slope(rate):
    """A plane whose depth falls towards +x at ``rate``, as points."""
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(6.0), indexing="ij")
    return torch.stack([x, y, 10 - rate * x], -1)[None]


def test_a_wall_has_normals_away_from_the_camera():
    normals = grid_normals(Camera(8).unproject(torch.full((2, 8, 8), 1.5)))
    wanted = torch.tensor([0.0, 0.0, 1.0]).expand(2, 8, 8, 3)
    torch.testing.assert_close(normals, wanted, atol=1e-3, rtol=0)


def test_the_normal_of_a_slope_is_perpendicular_to_it():
    normals = grid_normals(slope(0.5))[0, 1:-1, 1:-1]
    wanted = torch.tensor([0.5, 0, 1]) / math.hypot(0.5, 1)
    torch.testing.assert_close(normals, wanted.expand_as(normals), atol=1e-6, rtol=0)


def test_the_outermost_ring_faces_the_camera():
    normals = grid_normals(slope(0.5))[0]
    inside = torch.zeros(5, 6, dtype=torch.bool)
    inside[1:-1, 1:-1] = True
    assert (normals[~inside] == torch.tensor([0.0, 0.0, 1.0])).all()


def test_normals_of_a_sphere_are_its_radii():
    camera, centre = Camera(65), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    rays = camera.unproject(torch.ones(1, 65, 65, dtype=torch.float64))
    square, half = rays.square().sum(-1), rays[..., 2]
    depth = (half - (half**2 - square * (1 - 0.2**2)).sqrt()) / square  # the nearer crossing
    points = camera.unproject(depth)
    radii = (centre - points) / 0.2
    normals = grid_normals(points)[:, 1:-1, 1:-1]
    torch.testing.assert_close(normals, radii[:, 1:-1, 1:-1], atol=6e-3, rtol=0)


def test_the_four_numbers_of_a_light():
    given = Light.from_parameters(torch.tensor([[-1.0, 0, 3, 4], [1.0, 0.5, 0, 0]]))
    assert given.ambient.tolist() == [0, 1]
    assert given.diffuse.tolist() == [0.5, 0.75]
    torch.testing.assert_close(given.direction[0], torch.tensor([3.0, 4, 1]) / math.sqrt(26))
    assert given.direction[1].tolist() == [0, 0, 1]


def test_shading_is_ambient_plus_diffuse_times_the_cosine():
    normals = torch.nn.functional.normalize(torch.randn(1, 3, 4, 3), dim=-1)
    lit = light(0.3, 0.6, 0.5, -0.2)
    direction = [0.5, -0.2, 1]
    length = math.sqrt(sum(d * d for d in direction))
    for row in range(3):
        for column in range(4):
            normal = normals[0, row, column].tolist()
            cosine = sum(n * d for n, d in zip(normal, direction, strict=True)) / length
            wanted = 0.3 + 0.6 * max(0.0, cosine)
            assert shading(normals, lit)[0, row, column].item() == pytest.approx(wanted, abs=1e-5)


def test_light_travelling_right_brightens_slopes_that_come_nearer_to_the_right():
    rising, falling = (shading(grid_normals(slope(r)), light(x=1.0)) for r in (0.5, -0.5))
    assert (rising[0, 1:-1, 1:-1] > falling[0, 1:-1, 1:-1]).all()


def test_full_light_shows_the_albedo_and_none_shows_black():
    albedo = torch.rand(1, 3, 2, 2) * 2 - 1
    torch.testing.assert_close(shade(albedo, torch.ones(1, 2, 2)), albedo)
    torch.testing.assert_close(shade(albedo, torch.zeros(1, 2, 2)), -torch.ones(1, 3, 2, 2))
    torch.testing.assert_close(
        shade(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 0.5)), torch.full((1, 3, 2, 2), -0.5)
    )


def test_shading_has_the_right_gradients():
    def brightness(points, parameters):
        return shading(grid_normals(points), Light.from_parameters(parameters))

    points = slope(0.4).double() + 0.1 * torch.rand(1, 5, 6, 3, dtype=torch.float64)
    parameters = torch.tensor([[0.1, 0.2, 0.3, -0.4]], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        brightness, (points.requires_grad_(), parameters.requires_grad_())
    )


def test_a_light_of_other_numbers_raises_an_error():
    with pytest.raises(ValueError, match=r"\(B, 4\), ambient, diffuse, dx, dy, got \(4,\)"):
        Light.from_parameters(torch.zeros(4))


def test_shading_equals_the_reference_vectors():
    wanted = arrays("unsup3d_geometry")
    depth = torch.from_numpy(wanted["depth"])[None]
    normals = grid_normals(Camera(64).unproject(depth))
    given = Light.from_parameters(torch.from_numpy(wanted["light_raw"]))
    brightness = shading(normals.expand(3, -1, -1, -1), given)
    results = {
        "normal": normals[0],
        "light_ambient": given.ambient,
        "light_diffuse": given.diffuse,
        "light_direction": given.direction,
        "shading": brightness,
    }
    for name, value in results.items():
        assert relative_error(value, wanted[name]) < 1e-4, name
    lengths = normals[0, 1:-1, 1:-1].norm(dim=-1)
    assert lengths.min().item() == pytest.approx(wanted["normal_length_range"][0], abs=1e-5)
