"""Registration with the bundled checkpoint: its decoded faces, in other topologies and poses."""

import math
import sys
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import facezoo
from facezoo.geometry.mesh_files import write_mesh
from facezoo.geometry.meshes import Mesh, apply_motion, rigid_motion
from facezoo.models import face_finding, mesh_base
from facezoo.models.adv3d import Adv3D
from facezoo.models.mesh_base import Placed
from facezoo.models.mesh_inputs import LARGEST_RESIDUAL, corresponds

TURN = Rotation.from_euler("xyz", [90, 30, 0], degrees=True).as_matrix()


@pytest.fixture(scope="module")
def model():
    return facezoo.load("adv3d", device="cpu")


def subdivide(mesh):
    """Split every triangle into four."""
    edges = torch.cat([mesh.triangles[:, pair] for pair in ([0, 1], [1, 2], [2, 0])])
    unique, index = edges.sort(1).values.unique(dim=0, return_inverse=True)
    ab, bc, ca = (index + len(mesh.vertices)).chunk(3)
    a, b, c = mesh.triangles.unbind(1)
    corners = [(a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca)]
    triangles = torch.cat([torch.stack(part, 1) for part in corners])
    return Mesh(torch.cat([mesh.vertices, mesh.vertices[unique].mean(1)]), mesh.units, triangles)


@pytest.fixture(scope="module")
def face(model):
    """A face of the model, neither neutral nor average."""
    generator = torch.Generator().manual_seed(0)
    codes = model.code_mean + model.code_axes @ (0.6 * torch.randn(128, generator=generator))
    return model.synthesize(codes[None, :64], codes[None, 64:])[0]


@pytest.fixture(scope="module")
def scan(face):
    """The face in another topology, turned, moved, in meters."""
    dense = subdivide(face)
    turned = dense.vertices.double() @ torch.from_numpy(TURN).T + torch.tensor([300.0, -80, 900])
    return Mesh(turned / 1000, "m", dense.triangles)


@pytest.fixture(scope="module")
def registration(model, scan, tmp_path_factory):
    path = write_mesh(tmp_path_factory.mktemp("scan") / "scan.ply", scan)
    return facezoo.register(path, model="adv3d", device="cpu")


def test_pose_and_units_are_found_and_vertices_correspond(registration, face, scan):
    assert registration.units == "taken as m"
    found = registration.pose.apply(registration.vertices.double().numpy())
    error = 1000 * np.linalg.norm(found - scan.vertices[:2300].numpy(), axis=1)
    assert error.mean() < 1.0
    assert registration.coverage > 0.95
    steps = registration.residuals_mm
    assert list(steps) == ["landmarks", "rigid", "shape", "surface"]
    assert steps["rigid"] > steps["shape"] > steps["surface"]
    assert steps["surface"] < 0.4
    assert torch.equal(registration.mesh.triangles, face.triangles)


@pytest.mark.parametrize(
    ("scale_mm", "units", "expectation"),
    [
        (25.4, "inch", nullcontext()),
        (304.8, "mm", pytest.warns(UserWarning, match=r"one unit is about (29|30|31|32)\d mm")),
    ],
)
def test_a_mesh_in_another_unit_keeps_it(face, tmp_path, scale_mm, units, expectation):
    dense = subdivide(face)
    scaled = Mesh(dense.vertices / scale_mm, "mm", dense.triangles)
    path = write_mesh(tmp_path / "scan.ply", scaled)
    with expectation:
        registration = facezoo.register(path, model="adv3d", device="cpu")
    assert registration.transfer(registration.vertices).units == units
    assert registration.residuals_mm["surface"] < 0.4


def test_units_that_a_mesh_does_not_state_are_an_error(face):
    with pytest.raises(ValueError, match=r"units='m', but the mesh states 'mm'"):
        facezoo.register(face, units="m", model="adv3d", device="cpu")


def test_a_mirrored_mesh_is_an_error_that_names_the_direction_of_its_triangles(face, tmp_path):
    mirrored = Mesh(face.vertices * torch.tensor([-1.0, 1, 1]), "mm", face.triangles)
    path = write_mesh(tmp_path / "mirrored.ply", mirrored)
    with pytest.raises(ValueError, match=r"inwards|mirrored"):
        facezoo.register(path, model="adv3d", device="cpu")


@pytest.fixture(scope="module")
def encoding(model, scan):
    return model.encode(scan)


def test_a_mesh_in_another_topology_is_registered_by_default(encoding, model, face):
    direct = model.encode(face)
    for name in ("identity", "expression"):
        first, second = getattr(encoding, name), getattr(direct, name)
        assert float(torch.cosine_similarity(first, second)) > 0.9
    assert float(encoding.residual_mm) < 1.5
    assert float(model.encode(face.vertices[:-1], units="mm").residual_mm.isnan())


def test_results_are_mapped_back_to_the_vertices_of_the_mesh(registration, encoding, model, scan):
    (neutral,) = model.neutralize(scan, topology="input")
    assert neutral.units == "m"
    assert torch.equal(neutral.triangles, scan.triangles)
    expected = model.synthesize(encoding.identity)[0].vertices.double().numpy()
    pose = registration.pose
    found = 1000 * (neutral.vertices[:2300].numpy() - pose.apply(expected))
    assert np.linalg.norm(found, axis=1).mean() < 1.5
    same = registration.transfer(registration.vertices)
    torch.testing.assert_close(same.vertices, scan.vertices, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="mesh 0: topology='input' needs a registered mesh"):
        model.neutralize(registration.mesh, topology="input")


def test_a_nose_tip_over_a_hole_does_not_turn_the_face():
    reference = np.array([[-32.0, 30, 0], [32, 30, 0], [0, 0, 30], [-25, -35, 5], [25, -35, 5]])
    points = 0.1 * reference @ TURN.T
    points[2] -= 8 * TURN[:, 2]  # on the back of the head
    pose, error = face_finding._fit(reference, points)
    np.testing.assert_allclose(pose.rotation, TURN, atol=1e-8)
    assert error < 1e-8


def test_five_landmarks_replace_the_detection(model, scan, registration):
    points = model.template.landmark_points(5).double().numpy()
    moved = torch.from_numpy(registration.pose.apply(points))
    found = model.register(scan, landmarks=moved)
    distance = (found.vertices - registration.vertices).norm(dim=1).mean()
    assert float(distance) < 1.0
    with pytest.raises(ValueError, match="landmarks must be 68 or 5 points, got 4"):
        model.register(scan, landmarks=moved[:4])


def test_meshes_that_do_not_fit_are_rejected_with_the_reason(model, scan, monkeypatch):
    with pytest.raises(ValueError, match=r"in cm its face is 0\.0\d+ .* the numbers look like m"):
        model.register(Mesh(scan.vertices, "cm", scan.triangles))
    with pytest.raises(ValueError, match="no triangles"):
        model.register(Mesh(scan.vertices, "m"))
    angle = torch.linspace(0, 2 * math.pi, 40)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    tube = torch.cat([torch.cat([ring, torch.full((40, 1), z)], 1) for z in (0.0, 1.0)])
    low = torch.arange(39)
    triangles = torch.cat(
        [torch.stack([low, low + 1, low + 40], 1), torch.stack([low + 1, low + 41, low + 40], 1)]
    )
    monkeypatch.setattr(face_finding, "ROUNDS", ((128, 1.0),))
    with pytest.raises(ValueError, match=r"mesh 0: (no face was found in|a face was found, but)"):
        model.encode(Mesh(tube, "m", triangles))


def test_a_shape_that_no_face_has_is_rejected(model):
    points = model.template.landmark_points(5).double()
    wide = Mesh(model.template_mm * torch.tensor([1.5, 1.0, 1.0]), "mm", model.template.triangles)
    with pytest.raises(ValueError, match=r"the most similar face is .* \(limit 2 mm\)"):
        model.register(wide, landmarks=points * torch.tensor([1.5, 1.0, 1.0]))


def test_codes_far_from_the_training_faces_are_rejected(model, registration):
    placed = [Placed("scan.ply", registration.vertices, True, registration)]
    near = model.code_mean[None]
    model.check_codes(placed, near)
    with pytest.raises(ValueError, match=r"scan\.ply: its codes are .* outside the training data"):
        model.check_codes(placed, near + 99)
    model.check_codes([Placed("points", registration.vertices, True)], near + 99)


def test_a_warning_names_a_mesh_that_its_codes_describe_poorly(model, registration):
    one = Placed("scan.ply", registration.vertices, True, registration)
    model.warn_of_residual(one, one.points, 2.4)
    with pytest.warns(UserWarning, match=r"scan\.ply: .* is 2\.6 mm from the registered mesh"):
        model.warn_of_residual(one, one.points, 2.6)
    with pytest.warns(UserWarning, match=r"scan\.ply: the reconstruction is 2\.6 mm from the mesh"):
        model.warn_of_residual(replace(one, registration=None), one.points, 2.6)


def test_code_statistics_are_those_of_the_codes():
    model = Adv3D(4, 1, 0, identity_dim=2, expression_dim=1, code_statistics=True)
    codes = torch.randn(4000, 3) * torch.tensor([1.0, 2.0, 3.0]) + 5
    model.set_code_statistics(codes)
    distances = model.code_distances(codes)
    assert float(distances.square().mean()) == pytest.approx(1, abs=0.02)
    assert float(model.code_limit) == pytest.approx(5 * float(distances.max()), rel=1e-4)


def rotated(model, vertices, degrees, axis):
    """Rotate vertices about the center of the template."""
    turn = torch.from_numpy(Rotation.from_euler(axis, degrees, degrees=True).as_matrix()).float()
    center = model.template_mm.mean(0)
    return (vertices - center) @ turn.T + center


@pytest.mark.parametrize("axis", ["x", "y", "z"])
def test_a_small_rotation_of_a_corresponding_mesh_gets_a_warning(model, face, axis):
    model.encode(face)  # no warning, as warnings are errors here
    with pytest.warns(UserWarning, match=r"mesh 0: it is rotated by .* from its reconstruction"):
        model.encode_expression(rotated(model, face.vertices, 5, axis), units="mm")


def test_a_small_shift_of_a_corresponding_mesh_gets_a_warning(model, face):
    with pytest.warns(UserWarning, match=r"shifted by .* pass align='vertices'"):
        model.encode_identity(face.vertices + torch.tensor([0, 6.0, 0]), units="mm")


@pytest.mark.parametrize("share", [0.5, 0.9, 0.97, 1.03, 1.2])
def test_vertices_correspond_if_a_rigid_fit_brings_them_near_the_template(model, share):
    generator = torch.Generator().manual_seed(0)
    limit = LARGEST_RESIDUAL * model.template.radius
    noise = torch.randn(model.template_mm.shape, generator=generator)
    points = model.template_mm + share * limit * noise / noise.norm(dim=1).mean()
    moved = apply_motion(points, *rigid_motion(points, model.template_mm))
    error = (moved - model.template_mm).norm(dim=1).mean()
    assert bool(error < limit) == (share < 1)
    assert corresponds(points, model.template, "mesh 0") == (share < 1)


def test_alignment_by_vertices_finds_the_pose_of_the_training_faces(model, face):
    expected = model.encode(face)
    spread = model.code_axes.norm(dim=1).split(64)  # of each number of both codes
    for degrees in (0, 4, 60):
        mesh = rotated(model, face.vertices, degrees, "x") + degrees
        codes = model.encode(mesh, units="mm", align="vertices")
        for code in ("identity", "expression"):
            error = (getattr(codes, code) - getattr(expected, code)).norm()
            assert error < 0.4 * spread[code == "expression"].norm()
        assert codes.residual_mm.item() < 1.5


def test_registration_computes_with_one_thread_and_restores_their_number(model, monkeypatch):
    seen = []
    monkeypatch.setattr(
        mesh_base, "register", lambda *_, **__: seen.append(torch.get_num_threads())
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        points = model.template.landmark_points(5)
        model.register(Mesh(model.template_mm, "mm", model.template.triangles), landmarks=points)
        assert seen == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_registration_without_its_extra_names_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    with pytest.raises(ImportError, match=r"pip install 'facezoo\[mesh\]'"):
        model.register(Mesh(model.template_mm, "mm", model.template.triangles))
