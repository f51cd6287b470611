"""The renderer of LatentFace: from outputs of the networks to images."""

import math

import pytest
import torch
from golden_vectors import arrays, relative_error

from facezoo.geometry.camera import Camera, inverse_warp_grid, resample
from facezoo.geometry.shading import Light, shade, shading
from facezoo.models.latentface.renderer import FaceRenderer, depth_from_output, view_from_output

SIZE = 32
RENDERER = FaceRenderer(SIZE)
LIT = Light.from_parameters(torch.tensor([[0.2, 0.4, 0.3, -0.2]]))


def head(size=SIZE, dtype=torch.float32):
    axis = torch.linspace(-1, 1, size, dtype=dtype)
    return (1.05 - 0.1 * torch.exp(-3 * (axis**2 + axis[:, None] ** 2)))[None]


def smooth_albedo(size=SIZE):
    axis = torch.linspace(-1, 1, size)
    x, y = axis.expand(size, size), axis[:, None].expand(size, size)
    return torch.stack([x, y, torch.sin(3 * x * y)])[None] * 0.8


def view(**numbers):
    names = ("rx", "ry", "rz", "tx", "ty", "tz")
    return torch.tensor([[numbers.get(name, 0.0) for name in names]])


def test_depth_is_centred_squeezed_and_has_fixed_border_columns():
    output = torch.randn(2, 1, 8, 10)
    depth = depth_from_output(output)
    assert depth.shape == (2, 8, 10)
    for image in range(2):
        mean = output[image, 0].mean().item()
        for row in range(8):
            for column in range(10):
                wanted = 1 + 0.1 * math.tanh(output[image, 0, row, column].item() - mean)
                wanted = 1.04 if column in (0, 1, 8, 9) else wanted
                assert depth[image, row, column].item() == pytest.approx(wanted, abs=1e-6)


def test_a_view_is_scaled_to_60_degrees_and_a_tenth():
    scaled = view_from_output(torch.tensor([[1.0, -1, 0.5, 1, -0.5, 1]]))
    sixty = math.radians(60)
    torch.testing.assert_close(scaled, torch.tensor([[sixty, -sixty, sixty / 2, 0.1, -0.05, 0]]))


def test_the_canonical_view_shows_the_shaded_albedo():
    depth, albedo = head(), smooth_albedo()
    drawn = RENDERER.render(depth, albedo, LIT, view())
    assert drawn.mask.shape == (1, 1, SIZE, SIZE)
    assert drawn.mask.all()
    lit = shade(albedo, shading(RENDERER.normals(depth), LIT))
    torch.testing.assert_close(drawn.image, lit, atol=1e-4, rtol=0)
    torch.testing.assert_close(drawn.depth, depth, atol=1e-4, rtol=0)


def test_a_turned_face_agrees_with_reading_the_canonical_image_through_its_depth():
    depth, albedo = head(64), smooth_albedo(64)
    turned = view(rx=0.1, ry=0.3, rz=-0.1, tx=0.004)
    drawn = FaceRenderer(64).render(depth, albedo, LIT, turned)
    assert 0.3 < drawn.mask.float().mean() < 1
    lit = shade(albedo, shading(FaceRenderer(64).normals(depth), LIT))
    grid = inverse_warp_grid(drawn.depth.where(drawn.mask[:, 0], 1), turned, Camera(64))
    read = resample(lit, grid)
    inside = drawn.mask & (grid.abs() < 0.95).all(-1)[:, None]
    difference = ((drawn.image - read).abs() * inside).sum() / inside.sum() / 3
    assert difference < 2e-3


def test_beside_the_face_image_and_depth_are_0():
    drawn = RENDERER.render(head(), smooth_albedo(), LIT, view(tx=0.08))
    beside = ~drawn.mask[:, 0]
    assert beside[0, :, 0].all()
    assert not drawn.image[:, :, beside[0]].any()
    assert not drawn.depth[beside].any()


def test_a_mirrored_face_in_the_mirrored_view_and_light_is_the_mirrored_image():
    light = Light.from_parameters(torch.tensor([[0.2, 0.4, 0.3, -0.2]]))
    mirrored = Light.from_parameters(torch.tensor([[0.2, 0.4, -0.3, -0.2]]))
    depth = head() + 0.01 * smooth_albedo()[:, 0]
    one = RENDERER.render(depth, smooth_albedo(), light, view(rx=0.1, ry=0.25, tx=0.01))
    other = RENDERER.render(
        depth.flip(-1), smooth_albedo().flip(-1), mirrored, view(rx=0.1, ry=-0.25, tx=-0.01)
    )
    # The two halves of a grid's cells are split along the other diagonal, so it is nearly so.
    both = one.mask & other.mask.flip(-1)
    assert (one.mask != other.mask.flip(-1)).float().mean() < 0.01
    assert ((one.image - other.image.flip(-1)).abs() * both).max() < 0.05


def test_gradients_reach_every_input_and_are_full_precision_under_autocast():
    given = [head(), smooth_albedo(), torch.tensor([[0.2, 0.4, 0.3, -0.2]]), view(ry=0.3)]
    given = [tensor.clone().requires_grad_() for tensor in given]
    depth, albedo, light, pose = given
    plain = RENDERER.render(depth, albedo, Light.from_parameters(light), pose)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        drawn = RENDERER.render(depth, albedo, Light.from_parameters(light), pose)
    assert torch.equal(drawn.image, plain.image)
    drawn.image.square().sum().backward()
    for tensor in given:
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


def test_rendering_has_the_right_gradients():
    renderer = FaceRenderer(6)

    def draw(depth, albedo, light, pose):
        return renderer.render(depth, albedo, Light.from_parameters(light), pose).image

    inputs = (
        head(6, torch.float64) + 0.005 * torch.rand(1, 6, 6, dtype=torch.float64),
        torch.rand(1, 3, 6, 6, dtype=torch.float64),
        torch.tensor([[0.2, 0.4, 0.3, -0.2]], dtype=torch.float64),
        torch.tensor([[0.1, 0.2, -0.1, 0.003, 0.002, 0.01]], dtype=torch.float64),
    )
    assert torch.autograd.gradcheck(draw, tuple(tensor.requires_grad_() for tensor in inputs))


def test_the_lit_texture_equals_the_reference_vectors():
    wanted = arrays("unsup3d_geometry")
    random = torch.from_numpy(wanted["canon_im_light1"])
    brightness = torch.from_numpy(wanted["shading"][1])
    albedo = ((random + 1) / 2 / brightness - 0.5) * 2
    depth = torch.from_numpy(wanted["depth"])[None]
    light = Light.from_parameters(torch.from_numpy(wanted["light_raw"][1:2]))
    drawn = FaceRenderer(64).render(depth, albedo[None], light, view())
    assert relative_error(drawn.image[0], wanted["canon_im_light1"]) < 1e-4
