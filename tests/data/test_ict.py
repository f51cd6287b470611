import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from ict_pack import EXPRESSIONS, write_ict

from facezoo.data.ict import SIZES, IctFaces
from facezoo.evaluate.meshes import score_meshes


def test_a_smaller_set_is_a_prefix_of_a_larger_one(tmp_path):
    faces = IctFaces(write_ict(tmp_path))
    few, more = faces.meshes(np.arange(2)), faces.meshes(np.arange(4))
    assert np.array_equal(few, more[:2])
    assert few.shape == (2, 4, 144, 3)
    assert few.dtype == np.float32


def test_no_identity_is_in_both_parts_of_the_split(tmp_path):
    train, test = IctFaces(write_ict(tmp_path)).split("tiny")
    assert sorted([*train.identities, *test.identities]) == list(range(SIZES["tiny"]))
    assert [p % 10 for p in test.identities] == [2, 5, 8, 2, 5, 8]
    assert train.expressions == EXPRESSIONS


def test_the_neutral_is_the_mean_face_and_the_identities_own_modes(tmp_path):
    faces = IctFaces(write_ict(tmp_path))
    stored = np.load(tmp_path / "ict_face.npz")
    weights, _ = faces.coefficients(3)
    wanted = 10 * (
        stored["neutral"].astype(float)
        + sum(w * mode.astype(float) for w, mode in zip(weights, stored["id_modes"], strict=True))
    )
    assert np.allclose(faces.meshes(np.array([3]))[0, 0], wanted, atol=1e-4)


def test_an_expression_is_linear_only_in_the_linear_variant(tmp_path):
    write_ict(tmp_path)
    persons = np.array([1, 4])

    def unit_offsets(adaptive):
        """What the third expression adds, per unit of its only blendshape."""
        faces = IctFaces(tmp_path, adaptive=adaptive)
        meshes = faces.meshes(persons).astype(float)
        weights = [faces.coefficients(int(p))[1][3, 3] for p in persons]
        return [(mesh[3] - mesh[0]) / w for mesh, w in zip(meshes, weights, strict=True)]

    first, second = unit_offsets(adaptive=False)
    assert np.abs(first - second).max() < 1e-3
    first, second = unit_offsets(adaptive=True)
    assert np.abs(first - second).max() > 0.01


def test_a_missing_file_is_named_with_its_source(tmp_path):
    write_ict(tmp_path)
    (tmp_path / "ict_face_adapt.npz").unlink()
    IctFaces(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"ict_face_adapt\.npz.*ICT-FaceKit"):
        IctFaces(tmp_path, adaptive=True)


def test_an_unknown_size_raises_an_error(tmp_path):
    with pytest.raises(ValueError, match="tiny, standard, facescape, got 'huge'"):
        IctFaces(write_ict(tmp_path)).split("huge")


@pytest.fixture
def real_folder():
    place = os.environ.get("FACEZOO_ICT")
    if not place:
        pytest.skip("FACEZOO_ICT does not name the folder of ICT-3D")
    return Path(place)


@pytest.mark.parametrize("adaptive", [False, True])
def test_real_draws_and_vertices_are_those_of_the_protocol(real_folder, adaptive):
    faces = IctFaces(real_folder, adaptive=adaptive)
    checks = json.loads((real_folder / "ict_expressions.json").read_text())["checks"]
    for person in (0, 7, 299):
        identity, weights = faces.coefficients(person)
        wanted = checks[f"identity_{person}"]
        assert np.allclose(identity[:4], wanted["z_first4"], atol=1e-9)
        assert np.isclose(identity.sum(), wanted["z_sum"], atol=1e-8)
        assert np.isclose(weights.sum(), wanted["weights_sum"], atol=1e-8)
    mesh = faces.meshes(np.array([7]))[0]
    wanted = checks["mesh_mm_lo_adaptive" if adaptive else "mesh_mm_lo"]
    for expression, index in (("neutral", 0), ("smile", 1), ("mouth_stretch", 2)):
        for vertex in (0, 1150, 2299):
            truth = wanted[f"identity7_{expression}_vertex{vertex}"]
            assert np.allclose(mesh[index, vertex], truth, atol=1e-4)
    assert np.isclose(np.abs(mesh).mean(), wanted["identity7_abs_mean"], atol=1e-4)


def test_real_metrics_of_two_trivial_methods_are_those_of_the_protocol(real_folder):
    faces = IctFaces(real_folder)
    train, test = (torch.from_numpy(part.vertices).double() for part in faces.split("tiny"))
    narrow = torch.from_numpy(faces.topology.narrow)
    checks = json.loads((real_folder / "ict_expressions.json").read_text())["checks"]
    wanted = checks["metrics_tiny_mm"]
    copied = score_meshes(test, test, test, test[:, 0], narrow)
    truth = wanted["copy_input"]
    assert copied.e_rec.mean == truth["E_rec_mean"]
    for ours, theirs in (("mean", "mean"), ("std", "std"), ("median", "median")):
        assert getattr(copied.avd_neu, ours) == pytest.approx(truth[f"AVD_neu_{theirs}"], abs=1e-4)
    assert copied.avd_neu_face == pytest.approx(truth["AVD_neu_face_mean"], abs=1e-4)
    assert copied.e_dis.mean == pytest.approx(truth["E_dis_mean"], abs=1e-4)
    assert copied.e_dis.median == pytest.approx(truth["E_dis_median"], abs=1e-4)
    mean = train.mean((0, 1)).expand_as(test)
    averaged = score_meshes(test, mean, mean, test[:, 0], narrow)
    truth = wanted["mean_of_training_meshes"]
    assert averaged.e_rec.mean == pytest.approx(truth["E_rec_mean"], abs=1e-4)
    assert averaged.e_rec.std == pytest.approx(truth["E_rec_std"], abs=1e-4)
    assert averaged.e_rec.median == pytest.approx(truth["E_rec_median"], abs=1e-4)
    assert averaged.avd_neu.mean == pytest.approx(truth["AVD_neu_mean"], abs=1e-4)
    assert averaged.e_dis.mean == pytest.approx(0, abs=1e-6)
