"""LatentFace on photographs: what each method gives, and that they agree with the stages."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import facezoo
from facezoo.errors import NoFaceError
from facezoo.models.latentface import LatentFace

PORTRAITS = sorted((Path(__file__).parents[2] / "examples" / "portraits").glob("*.jpg"))
SMALL = {"width": 8, "number_width": 4, "code_dim": 12, "unet_width": 16, "code_limit": 50.0}


@pytest.fixture
def model():
    return LatentFace(**SMALL).eval()


@pytest.fixture
def crops():
    """Aligned crops in [0, 1] whose numbers survive the way through 8 bits."""
    return torch.randint(0, 256, (3, 3, 64, 64)) / 255


@pytest.fixture
def batch(crops):
    return crops * 2 - 1


def test_encode_gives_everything_and_agrees_with_the_stages(model, crops, batch):
    encoding = model.encode(list(crops), aligned=True, batch_size=2)
    latents = model.embed_latents(batch)
    for name in ("texture", "shape", "light", "view"):
        torch.testing.assert_close(
            getattr(encoding, name), getattr(latents, name), atol=1e-4, rtol=1e-4
        )
    torch.testing.assert_close(encoding.pose, encoding.view)
    for name in ("identity", "expression"):
        alone = getattr(model, f"encode_{name}")(list(crops), aligned=True)
        torch.testing.assert_close(getattr(encoding, name), alone, atol=1e-3, rtol=1e-3)


def test_encode_without_a_second_stage_has_no_identity(crops):
    model = LatentFace(**SMALL, diffusion=False).eval()
    encoding = model.encode(list(crops), aligned=True)
    assert encoding.identity is None
    assert encoding.expression is None
    assert encoding.texture.shape == (3, 12)


def test_factors_are_drawn_as_the_reconstruction(model, crops):
    factors = model.encode_factors(list(crops), aligned=True)
    assert len(factors) == 3
    drawn = model.to_unit(model.draw(factors).image)
    torch.testing.assert_close(drawn, model.reconstruct(list(crops), aligned=True))
    assert drawn.requires_grad
    torch.testing.assert_close(model.draw(factors[1:]).depth, model.draw(factors).depth[1:])


def test_maps_have_the_documented_shapes_and_ranges(model, crops):
    depth = model.depth(list(crops), aligned=True, batch_size=2)
    assert depth.shape == (3, 64, 64)
    assert 0.9 <= depth.min() < depth.max() <= 1.1
    normals = model.normals(list(crops), aligned=True)
    assert normals.shape == (3, 64, 64, 3)
    assert 0.99 < normals.norm(dim=-1).min() <= normals.norm(dim=-1).max() <= 1.001
    albedo = model.albedo(list(crops), aligned=True)
    assert albedo.shape == (3, 3, 64, 64)
    assert 0 <= albedo.min() < albedo.max() <= 1


def test_light_from_the_left_brightens_what_looks_to_the_left(model, crops):
    left, right = (
        model.relight(list(crops), torch.tensor([-1.0, 1.0, dx, 0.0]), detail=False, aligned=True)
        for dx in (0.9, -0.9)
    )
    assert left.shape == (3, 3, 64, 64)
    assert not torch.allclose(left, right, atol=0.01)
    for light in ([-1, 1, 0.9, 0], np.array([-1, 1, 0.9, 0])):
        assert torch.equal(model.relight(list(crops), light, detail=False, aligned=True), left)
    own = model.encode(crops[0], aligned=True).light[0]
    same = model.relight(crops[0], own, detail=False, aligned=True)
    torch.testing.assert_close(same, model.reconstruct(crops[0], aligned=True))
    off = torch.tensor([-1.0, -1.0, 0.0, 0.0])
    dark = model.relight(list(crops), off, detail=False, aligned=True)
    assert dark.max() <= 0.5  # black, and grey beside the face
    with pytest.raises(ValueError, match=r"light must be \(4,\)"):
        model.relight(list(crops), torch.zeros(3, 4), aligned=True)
    for number in (float("nan"), float("inf"), 30, -1.01):
        with pytest.raises(ValueError, match=r"light must be four numbers in \[-1, 1\], got"):
            model.relight(list(crops), [0.0, 1.0, number, 0.0], aligned=True)


def test_a_relit_crop_keeps_its_detail_and_takes_the_light():
    model = facezoo.load("latentface", device="cpu")
    image = "examples/portraits/eileen_collins.jpg"
    crop = facezoo.plot.crops(model, image)
    code = model.encode(image)
    torch.testing.assert_close(model.relight(image, code.light[0]), crop, atol=5e-3, rtol=0)
    recognizer = facezoo.load("ipd-fer", device="cpu")
    place = (slice(None), slice(None), slice(24, 48), slice(16, 48))  # the face, without hair

    def from_left(images):
        brightness = images[place].mean((1, 2))
        return float(brightness[:, :16].mean() / brightness[:, 16:].mean())

    def similarity(images):
        large = F.interpolate(images, size=(250, 250), mode="bicubic")
        features = recognizer.encode_identity(large.clamp(0, 1))
        return float(F.cosine_similarity(features, recognizer.encode_identity(image)))

    light = (-0.5, 1.0, 0.8, 0.0)
    kept, drawn = model.relight(image, light), model.relight(image, light, detail=False)
    assert from_left(kept) > 1.2 * from_left(crop)
    assert similarity(kept) > similarity(drawn) + 0.2


def test_a_face_that_is_not_turned_is_the_frontal_one(model, crops):
    frontal = model.frontalize(list(crops), aligned=True)
    torch.testing.assert_close(model.rotate(list(crops), 0.0, aligned=True), frontal)
    left, right = (model.rotate(list(crops), yaw, aligned=True) for yaw in (0.4, -0.4))
    assert not torch.allclose(left, frontal)
    assert not torch.allclose(left, right)
    assert not torch.allclose(model.rotate(list(crops), 0.0, 0.3, aligned=True), frontal)


def test_angles_in_degrees_and_other_wrong_angles_raise_an_error(model, crops):
    with pytest.raises(ValueError, match=r"yaw is in radians.*got 30; .*math.radians\(30\)"):
        model.rotate(crops[0], 30, aligned=True)
    for pitch in (float("nan"), [0.1, 0.2], torch.tensor([0.1, 0.2]), "0.1"):
        with pytest.raises(ValueError, match="pitch must be one finite number"):
            model.rotate(crops[0], 0.0, pitch, aligned=True)


def test_a_mesh_is_the_depth_map_seen_from_the_front(model, crops):
    meshes = model.to_mesh(list(crops), aligned=True)
    depth, albedo = (getattr(model, n)(list(crops), aligned=True) for n in ("depth", "albedo"))
    assert len(meshes) == 3
    mesh = meshes[1]
    torch.testing.assert_close(mesh.vertices[:, 2].view(64, 60), 1 - depth[1, :, 2:-2])
    torch.testing.assert_close(mesh.colors.view(64, 60, 3), albedo[1, :, :, 2:-2].permute(1, 2, 0))
    across, up = mesh.vertices[:, 0].view(64, 60), mesh.vertices[:, 1].view(64, 60)
    assert (across[:, -1] > across[:, 0]).all()
    assert (up[0] > up[-1]).all()
    a, b, c = mesh.vertices[mesh.triangles].unbind(1)
    towards = torch.linalg.cross(b - a, c - a)[:, 2]
    assert (towards > 0).float().mean() > 0.8  # some of a random depth map turn away
    with pytest.raises(ValueError, match="cannot return a mesh of NaN"):
        model.to_mesh(list(crops), aligned=True, on_missing="nan")


def test_images_without_a_face_keep_their_row_or_have_none(model):
    empty = torch.zeros(3, 64, 64, dtype=torch.uint8)
    both = [empty, PORTRAITS[0]]
    depth = model.depth(both, on_missing="nan")
    assert depth.isnan().flatten(1).all(1).tolist() == [True, False]
    assert model.depth(both, on_missing="skip").shape == (1, 64, 64)
    assert model.depth([empty], on_missing="skip").shape == (0, 64, 64)
    assert model.to_mesh([empty], on_missing="skip") == []
    with pytest.raises(NoFaceError, match='"skip" to leave them out, or aligned=True'):
        model.to_mesh([empty])
    assert model.encode([empty], on_missing="skip").identity.shape == (0, 24)
    assert model.encode(both, on_missing="nan").identity.isnan().all(1).tolist() == [True, False]


def test_methods_work_in_half_precision(model, crops):
    model = model.to(torch.bfloat16)
    encoding = model.encode(list(crops), aligned=True)
    assert encoding.identity.dtype == torch.float32
    assert torch.isfinite(encoding.identity).all()
    assert torch.isfinite(model.depth(list(crops), aligned=True)).all()
