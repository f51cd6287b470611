import warnings

import numpy as np
import pytest
import torch
from ict_pack import write_ict
from interrupting import interrupted
from mesh_trees import SIDE, face, write_bu3dfe, write_coma, write_facescape

from facezoo.data import registered
from facezoo.data.ict import IctFaces
from facezoo.data.mesh_sets import read_facescape
from facezoo.data.registered import from_faces, read_registered, read_rows
from facezoo.geometry.mesh_files import write_mesh


def test_facescape_is_read_with_its_neutrals(tmp_path):
    meshes = read_registered("facescape", write_facescape(tmp_path), neutrals=True)
    assert meshes.vertices.shape == (12, SIDE**2, 3)
    assert meshes.identities.bincount().tolist() == [3, 3, 3, 3]
    assert set(meshes.expressions) == {"neutral", "smile", "anger"}
    for place, (person, expression) in enumerate(
        zip(meshes.identities.tolist(), meshes.expressions, strict=True)
    ):
        number = ("neutral", "smile", "anger").index(expression)
        wanted = face(int(meshes.names[person]), number).vertices
        torch.testing.assert_close(meshes.vertices[place], wanted, atol=1e-4, rtol=0)
        truth = face(int(meshes.names[person]), 0).vertices
        torch.testing.assert_close(meshes.neutral[person], truth, atol=1e-4, rtol=0)


def test_coma_is_read_in_millimeters_without_neutrals(tmp_path):
    pytest.importorskip("trimesh")
    meshes = read_registered("coma", write_coma(tmp_path))
    assert meshes.neutral is None
    assert len(meshes.names) == 3
    assert 150 < float(meshes.vertices[..., 0].max() - meshes.vertices[..., 0].min()) < 170
    assert len(meshes.vertices) == 72 - 10


def test_bu3dfe_is_aligned_by_its_landmarks_in_both_parts(tmp_path):
    root = write_bu3dfe(tmp_path)
    apart = read_registered("bu-3dfe", root)
    middles = apart.vertices.mean(1)
    assert float((middles - middles[0]).norm(dim=1).max()) > 30
    frame = read_registered("bu-3dfe", root, align=True)
    test = read_registered("bu-3dfe", root, "test", align=True)
    assert frame.landmarks.tolist() == [0, SIDE - 1, SIDE * (SIDE - 1), SIDE**2 - 1]
    both = torch.cat([frame.vertices, test.vertices]).mean(1)
    assert float((both - both[0]).norm(dim=1).max()) < 15
    assert {"neutral 0", "happiness 3", "anger 1"} == set(frame.expressions)
    (root / "landmarks.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"landmarks\.txt; write the numbers"):
        read_registered("bu-3dfe", root, align=True)


def test_both_parts_are_simplified_alike(tmp_path):
    pytest.importorskip("fast_simplification")
    root = write_facescape(tmp_path, side=12)
    train, test = (
        read_registered("facescape", root, part, simplify_to=60) for part in ("train", "test")
    )
    assert 40 < train.vertices.shape[1] <= 70
    assert torch.equal(train.triangles, test.triangles)
    assert torch.equal(train.vertices[0, :, :2], test.vertices[0, :, :2])  # one grid in x and y
    assert int(train.triangles.max()) < train.vertices.shape[1]


def test_landmarks_stay_landmarks_when_vertices_are_dropped(tmp_path):
    rows = list(read_facescape(write_facescape(tmp_path)).rows)
    selection = torch.arange(0, SIDE**2, 2), torch.tensor([[0, 1, 2]])
    meshes = read_rows(rows, "mm", selection=selection, landmarks=torch.tensor([8, 30, 31]))
    assert meshes.landmarks.tolist() == [4, 15, 15]


def test_who_is_left_out_is_named(tmp_path):
    root = write_facescape(tmp_path)
    rows = list(read_facescape(root).rows)
    people = sorted({row.identity for row in rows})
    rows = [r for r in rows if (r.identity, r.expression) != (people[0], "neutral")]
    rows = [r for r in rows if r.identity != people[1] or r.expression == "neutral"]
    with pytest.warns(UserWarning, match="2 of 6 identities are left out: 1 .0 neutral meshes.*2"):
        meshes = read_rows(rows, "mm", neutrals=True)
    assert meshes.left_out == ("1 (0 neutral meshes)", "2 (one mesh only)")
    assert meshes.names == tuple(people[2:])
    with pytest.warns(UserWarning, match="1 of 6 identities are left out: 2"):
        assert "1" in read_rows(rows, "mm").names
    with (
        warnings.catch_warnings(),
        pytest.raises(ValueError, match="none of 1 identities is usable"),
    ):
        read_rows([row for row in rows if row.identity == people[1]], "mm")


def test_a_mesh_of_another_topology_is_named(tmp_path):
    root = write_facescape(tmp_path)
    write_mesh(root / "4/models_reg/2_smile.obj", face(4, 1, side=5))
    with pytest.raises(ValueError, match=r"2_smile\.obj has 25 vertices and .* 64; register"):
        read_rows(list(read_facescape(root).rows), "mm")


def test_ict_comes_in_the_same_form(tmp_path):
    faces = IctFaces(write_ict(tmp_path))
    part = faces.split("tiny")[1]
    meshes = from_faces(part, faces.topology)
    assert meshes.vertices.shape == (24, 144, 3)
    for place in (0, 5, 23):
        person, expression = divmod(place, 4)
        assert int(meshes.identities[place]) == person
        assert meshes.expressions[place] == part.expressions[expression]
        assert np.array_equal(meshes.vertices[place], part.vertices[person, expression])
    assert np.array_equal(meshes.neutral, part.vertices[:, 0])


def test_interrupted_reading_resumes(tmp_path, monkeypatch):
    root, cache = write_facescape(tmp_path / "set"), tmp_path / "cache"
    whole = read_registered("facescape", root)
    monkeypatch.setattr(registered, "CHUNK", 5)
    # The first mesh is read twice, in both runs.
    with interrupted(monkeypatch, "read_mesh", registered, after=8):
        read_registered("facescape", root, cache=cache)
    read, calls = registered.read_mesh, []
    monkeypatch.setattr(registered, "read_mesh", lambda *a: calls.append(1) or read(*a))
    again = read_registered("facescape", root, cache=cache)
    assert len(calls) == 1 + 7
    assert torch.equal(again.vertices, whole.vertices)


def test_a_cache_of_other_meshes_is_replaced(tmp_path):
    first, second = (write_facescape(tmp_path / name) for name in ("first", "second"))
    for path in second.rglob("*.obj"):
        write_mesh(path, face(9, 1))
    cache = tmp_path / "cache"
    read_registered("facescape", first, cache=cache)
    again = read_registered("facescape", second, cache=cache)
    assert torch.equal(again.vertices, read_registered("facescape", second).vertices)
    rows = list(read_facescape(first).rows)
    some = torch.tensor([0, 1, 8]), torch.tensor([[0, 1, 2]])
    assert read_rows(rows, "mm", selection=some, cache=cache).vertices.shape == (18, 3, 3)
    in_cm = read_rows(rows, "cm", cache=cache)
    assert torch.equal(in_cm.vertices, read_rows(rows, "cm").vertices)
