"""Meshes as files: what is written is what was there, and faces the viewer."""

import numpy as np
import pytest
import torch
from PIL import Image

from facezoo.geometry.textured_mesh import TexturedMesh


@pytest.fixture
def mesh():
    """Two triangles over a picture of 2 rows and 3 columns."""
    return TexturedMesh(
        vertices=torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.5], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
        triangles=torch.tensor([[0, 1, 2], [2, 1, 3]]),
        pixels=torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0], [2.0, 1.0]]),
        texture=torch.arange(18.0).view(3, 2, 3) / 17,
    )


def lines(path, word):
    found = [line.split()[1:] for line in path.read_text().splitlines()]
    heads = [line.split()[0] for line in path.read_text().splitlines()]
    return [values for head, values in zip(heads, found, strict=True) if head == word]


def test_an_obj_names_its_material_and_the_texture_is_the_image(mesh, tmp_path):
    path = mesh.save(tmp_path / "new" / "face.obj")
    assert lines(path, "mtllib") == [["face.mtl"]]
    assert lines(path.with_suffix(".mtl"), "map_Kd") == [["face_texture.png"]]
    with Image.open(path.with_name("face_texture.png")) as picture:
        pixels = np.asarray(picture)
    wanted = (mesh.texture.permute(1, 2, 0) * 255).round().numpy()
    np.testing.assert_array_equal(pixels, wanted)
    vertices = np.array(lines(path, "v"), float)
    np.testing.assert_allclose(vertices, mesh.vertices)
    assert lines(path, "f") == [["1/1", "2/2", "3/3"], ["3/3", "2/2", "4/4"]]
    # Texture coordinates count from the lower left corner of the picture, pixels are squares.
    np.testing.assert_allclose(np.array(lines(path, "vt"), float)[3], [2.5 / 3, 0.25], atol=1e-6)


def test_the_image_that_a_mesh_is_named_after_stays_as_it_is(mesh, tmp_path):
    photo = tmp_path / "portrait.png"
    Image.new("RGB", (9, 7), "red").save(photo)
    before = photo.read_bytes()
    mesh.save(photo.with_suffix(".obj"))
    assert photo.read_bytes() == before


def test_a_ply_has_the_color_of_every_vertex(mesh, tmp_path):
    text = mesh.save(tmp_path / "face.ply").read_text().splitlines()
    assert text[0] == "ply"
    body = text[text.index("end_header") + 1 :]
    assert len(body) == 4 + 2
    last = [float(value) for value in body[3].split()]
    np.testing.assert_allclose(last[:3], mesh.vertices[3])
    np.testing.assert_allclose(last[3:], (mesh.texture[:, 1, 2] * 255).round())
    assert body[-1] == "3 2 1 3"


def test_suffixes_may_be_in_capitals(mesh, tmp_path):
    assert mesh.save(tmp_path / "FACE.PLY").read_text().startswith("ply\n")
    assert mesh.save(tmp_path / "FACE.OBJ").read_text().startswith("mtllib FACE.mtl\n")


def test_another_suffix_raises_an_error(mesh, tmp_path):
    with pytest.raises(ValueError, match=r"cannot save as 'face\.stl'; expected \.obj or \.ply"):
        mesh.save(tmp_path / "face.stl")
