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


def test_corners_may_be_counted_from_the_end(tmp_path):
    path = tmp_path / "square.obj"
    path.write_text(SQUARE.replace("f 1/1/1 2/1/1 3//1 4", "f -4 -3 -2"))
    assert read_mesh(path, "m").triangles.tolist() == [[0, 1, 2]]


def test_a_written_obj_reads_back_to_the_same_mesh(tmp_path):
    mesh = read_mesh(write_mesh(tmp_path / "new" / "square.obj", square()), "m")
    torch.testing.assert_close(mesh.vertices, square().vertices)
    assert torch.equal(mesh.triangles, square().triangles)


def test_an_obj_without_polygons_is_a_cloud_of_points(tmp_path):
    path = write_mesh(tmp_path / "cloud.obj", Mesh(torch.randn(5, 3), "mm"))
    assert read_mesh(path, "mm").triangles is None


@pytest.mark.parametrize("units", [None, "inches", ""])
def test_units_are_stated_or_the_file_is_refused(tmp_path, units):
    path = write_mesh(tmp_path / "square.obj", square())
    with pytest.raises(ValueError, match="units must be one of mm, cm, m"):
        read_mesh(path, units)


def test_units_convert(tmp_path):
    mesh = read_mesh(write_mesh(tmp_path / "square.obj", square()), "cm").to_units("mm")
    torch.testing.assert_close(mesh.vertices, square().vertices * 10)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "holds no vertices"),
        ("v 0 0\n", r"line 1: 'v 0 0': three numbers"),
        ("v 0 0 zero\n", "line 1"),
        ("v 0 0 0\nf 1 1 2\n", "triangles name vertices 0 to 1, and there are 1"),
        ("v 0 0 0\nf 0 1 1\n", "line 2.*counted from 1"),
        ("v 0 0 0\nf 1 1\n", "line 2.*three corners"),
        ("v nan 0 0\n", "finite"),
    ],
)
def test_a_damaged_obj_is_refused_with_its_name_and_place(tmp_path, text, reason):
    path = tmp_path / "bad.obj"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"bad\.obj.*{reason}"):
        read_mesh(path, "mm")


def test_other_kinds_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.obj or \.ply"):
        read_mesh(tmp_path / "face.stl", "mm")
    with pytest.raises(ValueError, match=r"must end in \.obj or \.ply"):
        write_mesh(tmp_path / "face.stl", square())
    with pytest.raises(FileNotFoundError, match="no mesh at"):
        read_mesh(tmp_path / "face.obj", "mm")


def test_ply_without_trimesh_says_what_to_install(tmp_path, monkeypatch):
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
    torch.testing.assert_close(mesh.vertices, square().vertices)
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
def test_a_ply_that_was_cut_off_is_refused(tmp_path, lines):
    pytest.importorskip("trimesh")
    path = tmp_path / "face.ply"
    path.write_text("".join(ply().splitlines(keepends=True)[:-lines]))
    with pytest.raises(ValueError, match=r"face\.ply cannot be read.*lines"):
        read_mesh(path, "mm")


def test_a_ply_without_vertices_is_refused(tmp_path):
    pytest.importorskip("trimesh")
    path = tmp_path / "face.ply"
    head = ply().partition("end_header")[0]
    path.write_text(
        head.replace("vertex 5", "vertex 0").replace("face 2", "face 0") + "end_header\n"
    )
    with pytest.raises(ValueError, match=r"face\.ply holds no vertices"):
        read_mesh(path, "mm")


def test_a_binary_ply_of_triangles_and_quads_is_refused_and_the_reason_is_said(tmp_path):
    pytest.importorskip("trimesh")
    path = tmp_path / "face.ply"
    head = ply().partition("end_header")[0].replace("ascii", "binary_little_endian")
    faces = b"".join(
        bytes([len(corners)]) + np.array(corners, "<i4").tobytes()
        for corners in ([1, 2, 3], [1, 2, 3, 4])
    )
    path.write_bytes(head.encode() + b"end_header\n" + np.zeros((5, 3), "<f4").tobytes() + faces)
    with pytest.raises(ValueError, match=r"different numbers of corners.*as triangles"):
        read_mesh(path, "mm")


def test_a_byte_order_mark_and_comments_behind_values_are_no_part_of_an_obj(tmp_path):
    path = tmp_path / "square.obj"
    text = "v 0 0 0 # left eye\nv 1 0 0\nv 1 1 0#\nf 1 2 3 # lid\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    mesh = read_mesh(path, "mm")
    assert mesh.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert mesh.triangles.tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("suffix", ["obj", "ply"])
def test_a_mesh_of_few_bits_is_written(tmp_path, suffix):
    pytest.importorskip("trimesh")
    vertices = torch.arange(768.0).view(256, 3).remainder(64).bfloat16()
    mesh = Mesh(vertices, "mm", torch.tensor([[0, 1, 255]], dtype=torch.uint8))
    again = read_mesh(write_mesh(tmp_path / f"face.{suffix}", mesh), "mm")
    assert torch.equal(again.vertices, vertices.float())
    assert again.triangles.tolist() == [[0, 1, 255]]
