import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from facezoo.geometry import registration
from facezoo.geometry.registration import (
    ShapeModel,
    Similarity,
    Surface,
    boundary_loops,
    fit_similarity,
    register_template,
    vertex_normals,
)


def sheet(side, shape=(0.0, 0.0)):
    """A bumpy sheet of 160 mm whose bumps have two shape parameters."""
    x, y = (part.ravel() for part in np.meshgrid(*[np.linspace(-80, 80, side)] * 2, indexing="ij"))
    z = 40 - (x**2 + 2 * y**2) / 250 + 6 * np.sin(x / 14) * np.cos(y / 17)
    z = z + 25 * np.exp(-((x - 5) ** 2 + (y + 12) ** 2) / 300)
    z = z + shape[0] * np.cos(x / 25) + shape[1] * np.sin(y / 20)
    index = np.arange(side * side).reshape(side, side)
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[:-1, 1:], index[1:, 1:]
    triangles = np.concatenate([np.stack(t, -1).reshape(-1, 3) for t in ((a, b, c), (c, b, d))])
    return np.stack([x, y, z], 1), triangles


def template(side=24):
    vertices, triangles = sheet(side)
    basis = np.stack([sheet(side, shape)[0] - vertices for shape in ((1.0, 0.0), (0.0, 1.0))])
    face = np.ones(len(vertices), bool)
    outline = np.zeros(len(vertices), bool)
    outline[boundary_loops(triangles)[0]] = True
    return ShapeModel(vertices, basis, triangles, face, outline, np.zeros((1, 2)))


def similarity(angle=0.1, scale=1.0):
    rotation = Rotation.from_rotvec(angle * np.array([0.6, 0.0, 0.8])).as_matrix()
    return Similarity(scale, rotation, np.array([4.0, -3.0, 5.0]))


def test_a_similarity_is_recovered_and_inverted():
    points = np.random.default_rng(0).normal(size=(12, 3))
    truth = similarity(2.0, 0.001)
    found = fit_similarity(points, truth.apply(points))
    assert found.scale == pytest.approx(0.001)
    assert np.allclose(found.rotation, truth.rotation)
    assert np.allclose(found.inverse(truth.apply(points)), points)
    both = truth.after(similarity())
    assert np.allclose(both.apply(points), truth.apply(similarity().apply(points)))


def test_a_mirrored_cloud_is_not_mirrored_back():
    points = np.random.default_rng(0).normal(size=(12, 3))
    found = fit_similarity(points, points * [-1, 1, 1])
    assert np.linalg.det(found.rotation) == pytest.approx(1)


def test_the_closest_point_is_that_of_a_dense_sampling():
    vertices, triangles = sheet(9)
    points = np.random.default_rng(1).uniform(-90, 90, (60, 3))
    found = Surface(vertices, triangles).closest(points)
    share = np.random.default_rng(2).dirichlet(np.ones(3), (len(triangles), 400))
    dense = np.einsum("tsc,tcx->tsx", share, vertices[triangles]).reshape(-1, 3)
    brute = np.linalg.norm(points[:, None] - dense, axis=2).min(1)
    assert np.all(found.distances < brute + 1e-9)
    assert np.median(brute - found.distances) < 0.5
    again = np.einsum("pc,pcx->px", found.weights, vertices[triangles[found.triangles]])
    assert np.allclose(again, found.points)


def test_boundary_loops_are_the_rim_and_the_holes():
    vertices, triangles = sheet(8)
    hole = triangles[~(triangles == 27).any(1)]
    rim, inner = boundary_loops(hole)
    assert len(rim) == 4 * 7
    assert set(inner) == {19, 20, 26, 28, 34, 35}
    assert boundary_loops(np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])) == []
    assert vertex_normals(vertices, triangles)[27, 2] > 0


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "with a hole"])
def test_a_template_is_registered_to_another_topology(missing):
    model, parameters = template(), (3.0, -2.0)
    vertices, triangles = sheet(57, parameters)
    if missing:
        inside = np.linalg.norm(vertices[:, :2] - [-30, 30], axis=1) < 18
        triangles = triangles[~inside[triangles].any(1)]
    pose = similarity()
    surface = Surface(pose.apply(vertices), triangles)
    fit = register_template(model, surface, Similarity(1.0, np.eye(3), np.zeros(3)))
    truth_points = sheet(24, parameters)[0]
    truth = pose.apply(truth_points)
    errors = np.linalg.norm(fit.pose.apply(fit.vertices) - truth, axis=1)
    assert errors.mean() < 0.5
    assert fit.parameters == pytest.approx(parameters, abs=0.3)
    assert fit.residuals_mm["surface"] < 0.5 < fit.residuals_mm["rigid"]
    if missing:
        near = np.linalg.norm(truth_points[:, :2] - [-30, 30], axis=1) < 12
        assert not fit.matched[near].any()


def test_displacements_follow_a_shape_outside_of_the_model():
    model = template()
    vertices, triangles = sheet(57)
    vertices[:, 2] += 5 * np.exp(-((vertices[:, 0] - 30) ** 2 + vertices[:, 1] ** 2) / 800)
    surface = Surface(vertices, triangles)
    fit = register_template(model, surface, Similarity(1.0, np.eye(3), np.zeros(3)))
    assert fit.residuals_mm["surface"] < 0.2 < fit.residuals_mm["shape"]


@pytest.mark.parametrize("kind", ["shared", "independent"])
def test_only_errors_that_neighbors_share_strengthen_the_prior(kind, monkeypatch):
    model = template()
    vertices, triangles = sheet(140, (3.0, 0.0))
    if kind == "shared":
        vertices[:, 2] += 2 * np.cos(vertices[:, 0] / 9)  # a surface that the model cannot follow
    else:
        vertices[:, 2] += np.random.default_rng(0).normal(0, 0.3, len(vertices))
    surface, start = Surface(vertices, triangles), Similarity(1.0, np.eye(3), np.zeros(3))
    with_prior = register_template(model, surface, start).parameters[0]
    monkeypatch.setattr(registration, "SHARED_ERRORS", 0.0)
    without = register_template(model, surface, start).parameters[0]
    assert without == pytest.approx(3, abs=0.3)
    if kind == "shared":
        assert with_prior < 0.9 * without
    else:
        assert with_prior > 0.95 * without


def test_the_scale_is_estimated_if_it_is_unknown():
    vertices, triangles = sheet(57)
    surface = Surface(1.08 * vertices, triangles)
    start = Similarity(1.0, np.eye(3), np.zeros(3))
    fit = register_template(template(), surface, start, free_scale=True)
    assert fit.pose.scale == pytest.approx(1.08, abs=0.05)
