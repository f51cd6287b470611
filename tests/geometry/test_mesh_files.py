import json
import sys

import numpy as np
import pytest
import torch

from facezoo.geometry.mesh_files import read_mesh, write_mesh
from facezoo.geometry.meshes import Mesh

SQUARE = """# a square of one polygon, with texture and normals
o square
v 0 0 0
v 1 0 0 0.5 0.5 0.5
v 1 1 0
v 0 1 0.25
vt 0 0
vn 0 0 1
f 1/1/1 2/1/1 3//1 4
"""


def square():
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0.25]])
    return Mesh(vertices, "m", torch.tensor([[0, 1, 2], [0, 2, 3]]))


def test_a_polygon_becomes_a_fan_of_triangles(tmp_path):
    path = tmp_path / "square.OBJ"
    path.write_text(SQUARE)
    mesh = read_mesh(path, "m")
    assert mesh.vertices.tolist() == square().vertices.tolist()
    assert mesh.triangles.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert mesh.units == "m"


def test_a_written_obj_reads_back_to_the_same_mesh(tmp_path):
    mesh = read_mesh(write_mesh(tmp_path / "new" / "square.obj", square()), "m")
    torch.testing.assert_close(mesh.vertices.float(), square().vertices)
    assert torch.equal(mesh.triangles, square().triangles)


def test_an_obj_without_polygons_is_a_cloud_of_points(tmp_path):
    path = write_mesh(tmp_path / "cloud.obj", Mesh(torch.randn(5, 3), "mm"))
    assert read_mesh(path, "mm").triangles is None


@pytest.mark.parametrize("units", [None, "inches", ""])
def test_a_file_without_units_raises_an_error(tmp_path, units):
    path = write_mesh(tmp_path / "square.obj", square())
    with pytest.raises(ValueError, match="units must be one of mm, cm, m"):
        read_mesh(path, units)


def test_units_convert(tmp_path):
    mesh = read_mesh(write_mesh(tmp_path / "square.obj", square()), "cm").to_units("mm")
    torch.testing.assert_close(mesh.vertices.float(), square().vertices * 10)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it has no vertices"),
        ("v 0 0\n", r"line 1, 'v 0 0'"),
        ("v 0 0 zero\n", "line 1"),
        ("v 0 0 0\nf 1 1 2\n", "triangles use vertices 0 to 1, but there are 1"),
        ("v 0 0 0\nf 0 1 1\n", "line 2.*numbered from 1"),
        ("v 0 0 0\nf 1 1\n", "line 2.*three or more corners"),
        ("v nan 0 0\n", "finite"),
    ],
)
def test_a_damaged_obj_is_rejected_with_its_name_and_line(tmp_path, text, reason):
    path = tmp_path / "bad.obj"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"cannot read .*bad\.obj: .*{reason}"):
        read_mesh(path, "mm")


def test_other_formats_and_missing_files_are_rejected(tmp_path):
    with pytest.raises(ValueError, match=r"photo\.jpg is not a mesh file; expected .*\.obj, \.ply"):
        read_mesh(tmp_path / "photo.jpg", "mm")
    with pytest.raises(ValueError, match=r"face\.off is not a mesh file"):
        write_mesh(tmp_path / "face.off", square())
    with pytest.raises(FileNotFoundError, match="no mesh file at"):
        read_mesh(tmp_path / "face.obj", "mm")


def test_without_trimesh_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trimesh", None)
    path = tmp_path / "face.ply"
    path.write_bytes(b"ply\n")
    with pytest.raises(ImportError, match=r"facezoo\[mesh\].*\.obj"):
        read_mesh(path, "mm")
    with pytest.raises(ImportError, match=r"facezoo\[mesh\]"):
        write_mesh(path, square())


def test_a_written_ply_reads_back_to_the_same_mesh(tmp_path):
    pytest.importorskip("trimesh")
    mesh = read_mesh(write_mesh(tmp_path / "square.ply", square()), "m")
    torch.testing.assert_close(mesh.vertices.float(), square().vertices)
    assert torch.equal(mesh.triangles, square().triangles)


PLY = """ply
format ascii 1.0
comment TextureFile face.png
element vertex 5
property float x
property float y
property float z
{vertex}element face 2
property list uchar int vertex_indices
{face}end_header
9 9 9{uv}
0 0 0{uv}
1 0 0{uv}
1 1 0{uv}
0 1 0.25{uv}
3 1 2 3{corners}
3 1 3 4{moved}
"""


def ply(**parts):
    return PLY.format_map(dict.fromkeys(("vertex", "face", "uv", "corners", "moved"), "") | parts)


@pytest.mark.parametrize(
    "parts",
    [
        {"vertex": "property float s\nproperty float t\n", "uv": " 0.5 0.25"},
        {
            "face": "property list uchar float texcoord\n",
            "corners": " 6 0 0 1 0 1 1",
            "moved": " 6 0 0.5 1 0.5 1 1",
        },
    ],
    ids=["of vertices", "of corners"],
)
def test_texture_coordinates_of_a_ply_leave_its_vertices_in_their_order(tmp_path, parts):
    pytest.importorskip("trimesh")
    path = tmp_path / "face.ply"
    path.write_text(ply(**parts))
    mesh = read_mesh(path, "mm")
    assert mesh.vertices[:, 0].tolist() == [9, 0, 1, 1, 0]
    assert mesh.triangles.tolist() == [[1, 2, 3], [1, 3, 4]]


@pytest.mark.parametrize("lines", [1, 2, 4])
def test_a_truncated_ply_is_rejected(tmp_path, lines):
    pytest.importorskip("trimesh")
    path = tmp_path / "face.ply"
    path.write_text("".join(ply().splitlines(keepends=True)[:-lines]))
    with pytest.raises(ValueError, match=r"face\.ply: the header announces 7 lines"):
        read_mesh(path, "mm")


def test_a_ply_without_vertices_is_rejected(tmp_path):
    pytest.importorskip("trimesh")
    path = tmp_path / "face.ply"
    head = ply().partition("end_header")[0]
    path.write_text(
        head.replace("vertex 5", "vertex 0").replace("face 2", "face 0") + "end_header\n"
    )
    with pytest.raises(ValueError, match=r"face\.ply: it has no vertices"):
        read_mesh(path, "mm")


MIXED = {
    "fitting length": [[0, 1, 2, 3], [4, 0, 1], [0, 1, 2, 3, 4], [1, 2, 3, 4]],
    "other length": [[0, 1, 2], [1, 2, 3, 4]],
    "quads": [[0, 1, 2, 3], [1, 2, 3, 4]],
}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("polygons", MIXED.values(), ids=MIXED.keys())
def test_polygons_of_a_binary_ply_become_triangles(tmp_path, polygons, order):
    pytest.importorskip("trimesh")
    name = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    head = ply().partition("end_header")[0].replace("ascii", name)
    head = head.replace("face 2", f"face {len(polygons)}")
    vertices = np.arange(15, dtype=order + "f4").reshape(5, 3)
    faces = b"".join(bytes([len(p)]) + np.array(p, order + "i4").tobytes() for p in polygons)
    path = tmp_path / "face.ply"
    path.write_bytes(head.encode() + b"end_header\n" + vertices.tobytes() + faces)
    mesh = read_mesh(path, "mm")
    assert mesh.vertices.tolist() == vertices.tolist()
    fans = [{p[0], *p[i : i + 2]} for p in polygons for i in range(1, len(p) - 1)]
    quads = [{p[0], p[2], p[3]} for p in polygons if len(p) == 4]
    found = [set(triangle) for triangle in mesh.triangles.tolist()]
    assert len(found) == len(fans)
    assert all(fan in found for fan in fans)
    assert all(quad in found for quad in quads)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("equal", [True, False])
def test_faces_of_a_binary_ply_may_have_colors_and_texture_coordinates(tmp_path, order, equal):
    pytest.importorskip("trimesh")
    polygons = [[0, 1, 2], [1, 2, 3]] if equal else [[0, 1, 2], [4, 0, 1, 2]]
    name = {"<": "binary_little_endian", ">": "binary_big_endian"}[order]
    head = ply().partition("end_header")[0].replace("ascii", name)
    head += "property list uchar float texcoord\nproperty uchar red\n"
    vertices = np.arange(15, dtype=order + "f4").reshape(5, 3)
    faces = b"".join(
        bytes([len(p)])
        + np.array(p, order + "i4").tobytes()
        + bytes([2 * len(p)])
        + np.zeros(2 * len(p), order + "f4").tobytes()
        + b"\xff"
        for p in polygons
    )
    path = tmp_path / "face.ply"
    path.write_bytes(head.encode() + b"end_header\n" + vertices.tobytes() + faces)
    mesh = read_mesh(path, "mm")
    assert mesh.vertices.tolist() == vertices.tolist()
    expected = polygons if equal else [[0, 1, 2], [4, 0, 1], [4, 1, 2]]
    assert mesh.triangles.tolist() == expected


def test_a_text_ply_may_have_colors_and_mixed_polygons(tmp_path):
    pytest.importorskip("trimesh")
    colors = "".join(f"property uchar {name}\n" for name in ("red", "green", "blue"))
    text = ply(vertex=colors, uv=" 255 0 7").replace("face 2", "face 3")
    path = tmp_path / "face.ply"
    path.write_text(text + "5 0 1 2 3 4\n")
    mesh = read_mesh(path, "mm")
    assert mesh.vertices[:, 0].tolist() == [9, 0, 1, 1, 0]
    triangles = [[1, 2, 3], [1, 3, 4], [0, 1, 2], [0, 2, 3], [0, 3, 4]]
    assert mesh.triangles.tolist() == triangles


OBJ_VARIANTS = {
    "byte order mark": lambda text: "\ufeff" + text,
    "comments": lambda text: text.replace("v 1 0 0", "v 1 0 0 # corner"),
    "tabs": lambda text: text.replace(" ", "\t"),
    "line ends of Windows": lambda text: text.replace("\n", "\r\n"),
    "continued lines": lambda text: text.replace("f 1 2", "f 1 \\\n2"),
    "colors": lambda text: text.replace("v 1 0 0", "v 1 0 0 0.5 0.5 0.5"),
    "several objects": lambda text: text.replace("v 1 1 0", "o lid\nusemtl skin\nv 1 1 0"),
    "seams": lambda text: text.replace("f 1 2 3 4", "vt 0 0\nvt 1 1\nf 1/1 2/1 3/1\nf 1/2 3/2 4/2"),
    "triangles": lambda text: text.replace("f 1 2 3 4", "f 1 2 3\nf 1 3 4"),
    "relative indices": lambda text: text.replace("f 1 2 3 4", "f -4 -3 -2 -1"),
}


@pytest.mark.parametrize("change", OBJ_VARIANTS.values(), ids=OBJ_VARIANTS.keys())
def test_every_valid_form_of_an_obj_gives_the_vertices_of_the_file_in_order(tmp_path, change):
    text = "v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0.25\nf 1 2 3 4\n"
    path = tmp_path / "square.obj"
    path.write_bytes(change(text).encode())
    mesh = read_mesh(path, "m")
    assert mesh.vertices.tolist() == square().vertices.tolist()
    assert mesh.triangles.tolist() == square().triangles.tolist()


@pytest.mark.parametrize("suffix", ["obj", "ply", "stl", "glb"])
def test_every_format_keeps_count_and_order_of_the_vertices(tmp_path, suffix):
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(2)
    mesh = Mesh(torch.tensor(ball.vertices).float(), "cm", torch.tensor(ball.faces))
    again = read_mesh(write_mesh(tmp_path / f"ball.{suffix}", mesh), "cm")
    if suffix == "stl":  # its vertices come in the order of the triangles
        order = np.unique(ball.faces.ravel(), return_index=True)[1].argsort()
        mesh = Mesh(mesh.vertices[order], "cm", torch.tensor(order.argsort())[mesh.triangles])
    torch.testing.assert_close(again.vertices.float(), mesh.vertices, atol=1e-5, rtol=0)
    assert torch.equal(again.triangles, mesh.triangles)


def test_a_gltf_with_its_buffers_is_read_but_not_written(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    ball = trimesh.creation.icosphere(2)
    for name, content in ball.export(file_type="gltf").items():
        (tmp_path / name).write_bytes(content)
    mesh = read_mesh(tmp_path / "model.gltf", "m")
    torch.testing.assert_close(mesh.vertices.float(), torch.tensor(ball.vertices).float())
    assert mesh.triangles.tolist() == ball.faces.tolist()
    with pytest.raises(ValueError, match=r"new\.gltf: a \.gltf mesh is several files; write \.glb"):
        write_mesh(tmp_path / "new.gltf", mesh)


def test_nodes_of_a_gltf_are_placed_by_their_transforms(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    ball, scene = trimesh.creation.icosphere(1), trimesh.Scene()
    scene.add_geometry(ball, transform=trimesh.transformations.translation_matrix([10, 0, 0]))
    scene.export(tmp_path / "ball.glb")
    mesh = read_mesh(tmp_path / "ball.glb", "m")
    shifted = torch.tensor(ball.vertices) + torch.tensor([10.0, 0, 0])
    torch.testing.assert_close(mesh.vertices, shifted, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"extensionsUsed": ["KHR_mesh_quantization"]}, "KHR_mesh_quantization"),
        ({"accessors": [{"componentType": 5123}]}, "sparse or quantized"),
        ({"accessors": [{"componentType": 5126, "sparse": {}}]}, "sparse or quantized"),
    ],
)
def test_a_compressed_gltf_is_rejected(tmp_path, change, reason):
    scene = {"meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}]} | change
    (tmp_path / "face.gltf").write_text(json.dumps(scene))
    with pytest.raises(ValueError, match=reason):
        read_mesh(tmp_path / "face.gltf", "m")


@pytest.mark.parametrize("triangles", [[[0, 1, 2], [0, 2, 3]], None])
@pytest.mark.parametrize("suffix", ["obj", "ply"])
def test_a_mesh_far_from_the_origin_is_written_in_float64(tmp_path, suffix, triangles):
    trimesh = pytest.importorskip("trimesh")
    vertices = 4e5 + torch.rand(4, 3, dtype=torch.float64)  # meters, as in surveys
    mesh = Mesh(vertices, "m", triangles and torch.tensor(triangles))
    path = write_mesh(tmp_path / f"face.{suffix}", mesh)
    again = read_mesh(path, "m")
    assert torch.equal(again.vertices, vertices)
    assert again.triangles is None if triangles is None else again.triangles.tolist() == triangles
    assert trimesh.load(path, process=False).vertices.tolist() == vertices.tolist()


@pytest.mark.parametrize("suffix", ["stl", "glb"])
def test_a_format_of_float32_warns_of_a_loss(tmp_path, suffix):
    pytest.importorskip("trimesh")
    mesh = Mesh(square().vertices.double() / 9 + 1e3, "m", square().triangles)
    with pytest.warns(UserWarning, match=r"up to 0\.0\d+ mm so far .* near the origin, or .*\.obj"):
        write_mesh(tmp_path / f"face.{suffix}", mesh)
    write_mesh(tmp_path / f"face.{suffix}", Mesh(mesh.vertices, "mm", mesh.triangles))


@pytest.mark.parametrize("suffix", ["obj", "ply"])
def test_a_mesh_in_bfloat16_is_written(tmp_path, suffix):
    pytest.importorskip("trimesh")
    vertices = torch.arange(768.0).view(256, 3).remainder(64).bfloat16()
    mesh = Mesh(vertices, "mm", torch.tensor([[0, 1, 255]], dtype=torch.uint8))
    again = read_mesh(write_mesh(tmp_path / f"face.{suffix}", mesh), "mm")
    assert torch.equal(again.vertices, vertices.double())
    assert again.triangles.tolist() == [[0, 1, 255]]
