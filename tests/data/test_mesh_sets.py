import sys

import pytest
import torch
from ict_pack import grid_triangles

from facezoo.data.mesh_sets import (
    MeshSet,
    _snap,
    read_bu3dfe,
    read_coma,
    read_facescape,
    simplification,
)
from facezoo.geometry.meshes import Mesh


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def grid(side=6):
    line = torch.linspace(0, 1, side)
    x, y = torch.meshgrid(line, line, indexing="ij")
    vertices = torch.stack([x, y, 0 * x], -1).flatten(0, 1)
    return Mesh(vertices, "m", torch.from_numpy(grid_triangles(side)).long())


def test_coma_tests_on_ten_of_every_hundred_frames_in_alphabetical_order(tmp_path):
    names = [f"FaceTalk_{p}_TA/{s}/{s}.{f:06d}.ply" for p in "ab" for s in "xy" for f in range(60)]
    data = read_coma(touch(tmp_path, *names))
    assert [row.path for row in data.rows] == sorted(row.path for row in data.rows)
    tested = [place for place, row in enumerate(data.rows) if row.split == "test"]
    assert tested == [p for p in range(240) if p % 100 < 10]
    assert data.units == "m"
    assert (data.rows[60].identity, data.rows[60].expression) == ("FaceTalk_a_TA", "y")


def test_bu3dfe_tests_on_the_first_ten_identities(tmp_path):
    people = [f"{sex}00{n:02d}" for sex in "FM" for n in range(1, 8)]
    names = [f"{p}/{p}_{e}WH_F3D.obj" for p in people for e in ("NE00", "HA03")]
    data = read_bu3dfe(touch(tmp_path, *names))
    assert {row.identity for row in data.part("test")} == set(people[:10])
    happy = next(row for row in data.rows if row.expression == "happiness")
    assert happy.level == 3
    assert {row.identity for row in data.part("train")} == set(people[10:])


def test_facescape_draws_its_test_identities_once(tmp_path):
    names = [f"{p}/models_reg/{n}" for p in range(1, 21) for n in ("1_neutral.obj", "2_smile.obj")]
    data = read_facescape(touch(tmp_path, *names))
    assert len(data.part("test")) == 12
    assert data.rows == read_facescape(tmp_path).rows
    assert data.rows != read_facescape(tmp_path, seed=1).rows
    assert {row.expression for row in data.rows} == {"neutral", "smile"}


@pytest.mark.parametrize("reader", [read_coma, read_bu3dfe, read_facescape])
def test_a_folder_of_something_else_raises_an_error_with_an_example(tmp_path, reader):
    with pytest.raises(FileNotFoundError, match="expected files such as"):
        reader(touch(tmp_path, "photo.jpg"))


def test_a_name_that_is_not_of_the_set_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"F0001_XX01WH_F3D\.obj is not a file of BU-3DFE"):
        read_bu3dfe(touch(tmp_path / "bu", "F0001/F0001_XX01WH_F3D.obj"))
    with pytest.raises(ValueError, match=r"smile\.obj is not a file of FaceScape"):
        read_facescape(touch(tmp_path / "fs", "1/models_reg/smile.obj"))


def test_an_empty_part_raises_an_error():
    with pytest.raises(ValueError, match="no meshes in the split 'val'"):
        MeshSet((), "mm").part("val")


def test_simplified_vertices_are_snap_to_original_ones():
    mesh = grid()
    chosen = torch.tensor([0, 5, 30, 35, 14])
    points = mesh.vertices[chosen] + 0.01
    triangles = torch.tensor([[0, 1, 4], [0, 4, 2], [4, 1, 3], [2, 4, 3], [0, 0, 1]])
    kept, corners = _snap(mesh.vertices, points, triangles)
    assert kept.tolist() == [0, 5, 14, 30, 35]
    assert corners.tolist() == [[0, 1, 2], [0, 2, 3], [2, 1, 4], [3, 2, 4]]


def test_simplification_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    with pytest.raises(ImportError, match=r"fast-simplification.*facezoo\[mesh\]"):
        simplification(grid(), 20)


def test_simplification_rejects_unsuitable_input():
    with pytest.raises(ValueError, match="must have triangles"):
        simplification(Mesh(grid().vertices, "m"), 20)
    with pytest.raises(ValueError, match="from 4 to 35, got 36"):
        simplification(grid(), 36)


def test_simplification_keeps_vertices_of_the_mesh():
    pytest.importorskip("fast_simplification")
    kept, triangles = simplification(grid(12), 60)
    assert len(kept) <= 70
    assert kept.unique().numel() == len(kept)
    assert int(triangles.max()) < len(kept)


def test_simplification_does_not_depend_on_units_or_place():
    pytest.importorskip("fast_simplification")
    line = torch.linspace(-80, 80, 40)
    x, y = torch.meshgrid(line, line, indexing="ij")
    z = 60 * (1 - (x / 110) ** 2 - (y / 140) ** 2).clamp(min=0).sqrt() + 9 * torch.sin(x / 9)
    vertices = torch.stack([x, y, z], -1).flatten(0, 1).double()
    mesh = Mesh(vertices, "mm", torch.from_numpy(grid_triangles(40)).long())
    expected, _ = simplification(mesh, 400)
    for other in (mesh.to_units("m"), Mesh(vertices + 3000, "mm", mesh.triangles)):
        kept, _ = simplification(other, 400)
        assert len(set(kept.tolist()) & set(expected.tolist())) >= 0.99 * len(expected)
    short = (vertices / 1000 + 1).float()  # converts in float64, so only the input is rounded
    kept, _ = simplification(Mesh(short, "m", mesh.triangles), 400)
    exact, _ = simplification(Mesh(short.double(), "m", mesh.triangles), 400)
    assert kept.tolist() == exact.tolist()
