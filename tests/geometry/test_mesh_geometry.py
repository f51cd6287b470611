import pytest
import torch

from facezoo.geometry.meshes import (
    Mesh,
    apply_motion,
    edges_of,
    laplacian,
    nearest_vertices,
    rigid_motion,
)


def turn(generator):
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    return rotation * torch.linalg.det(rotation).sign()


def test_a_rigid_motion_is_found_again():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    rotation, translation = (
        turn(generator),
        torch.randn(3, generator=generator, dtype=torch.float64),
    )
    found, shift = rigid_motion(points, apply_motion(points, rotation, translation))
    torch.testing.assert_close(found, rotation)
    torch.testing.assert_close(shift, translation)


def test_a_mirrored_face_is_turned_but_not_mirrored_back():
    points = torch.randn(20, 3, dtype=torch.float64)
    rotation, _ = rigid_motion(points, points * torch.tensor([-1.0, 1, 1]))
    assert torch.linalg.det(rotation) == pytest.approx(1)


def test_batches_are_aligned_each_by_itself():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64)
    turns = torch.stack([turn(generator), turn(generator)])
    shift = torch.randn(2, 3, dtype=torch.float64)
    aligned = apply_motion(points, *rigid_motion(points, apply_motion(points, turns, shift)))
    torch.testing.assert_close(aligned, apply_motion(points, turns, shift))


def test_too_few_or_unpaired_points_raise_an_error():
    with pytest.raises(ValueError, match="three or more corresponding points"):
        rigid_motion(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(5, 3\)"):
        rigid_motion(torch.zeros(4, 3), torch.zeros(5, 3))


@pytest.mark.parametrize(
    ("vertices", "triangles", "reason"),
    [
        (torch.zeros(4, 2), None, r"\(N, 3\), got \(4, 2\)"),
        (torch.zeros(0, 3), None, r"got \(0, 3\)"),
        (torch.full((4, 3), torch.inf), None, "finite"),
        (torch.zeros(4, 3), torch.zeros(1, 4, dtype=torch.long), r"\(T, 3\)"),
        (torch.zeros(4, 3), torch.zeros(1, 3), "whole numbers"),
        (torch.zeros(4, 3), torch.zeros(1, 3, dtype=torch.bool), "whole numbers"),
        (torch.zeros(4, 3), torch.tensor([[0, 1, 4]]), "there are 4"),
    ],
)
def test_invalid_meshes_raise_an_error(vertices, triangles, reason):
    with pytest.raises(ValueError, match=reason):
        Mesh(vertices, "mm", triangles)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_vertices_in_whole_numbers_become_float64(dtype):
    mesh = Mesh(torch.tensor([[0, 1, 2], [3, 4, 5]], dtype=dtype), "mm")
    assert mesh.vertices.dtype == torch.float64
    assert mesh.to_units("m").vertices[1].tolist() == [0.003, 0.004, 0.005]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.int32])
def test_triangles_of_any_integers_become_int64(dtype):
    mesh = Mesh(torch.rand(3, 3), "mm", torch.tensor([[0, 1, 2]]).to(dtype))
    assert torch.equal(mesh.triangles, torch.tensor([[0, 1, 2]]))


def test_the_nearest_vertex_is_exact_far_from_the_origin():
    generator = torch.Generator().manual_seed(0)
    vertices = 80 * torch.rand(2000, 3, generator=generator)
    points = vertices[:500] + 0.1 * torch.randn(500, 3, generator=generator)
    exact = torch.cdist(points.double(), vertices.double()).argmin(1)
    far = torch.tensor([0, 0, 3000.0]).double()
    assert torch.equal(nearest_vertices(points + far, vertices + far), exact)


def test_every_edge_is_listed_once():
    triangles = torch.tensor([[0, 1, 2], [2, 1, 3]])
    assert edges_of(triangles).tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]


def test_the_laplacian_is_a_vertex_minus_the_mean_of_its_neighbours():
    triangles = torch.tensor([[0, 1, 2], [2, 1, 3]])
    vertices = torch.randn(2, 5, 3, dtype=torch.float64)
    neighbours = {0: [1, 2], 1: [0, 2, 3], 2: [0, 1, 3], 3: [1, 2]}
    found = laplacian(vertices, edges_of(triangles))
    for vertex, others in neighbours.items():
        wanted = vertices[:, vertex] - vertices[:, others].mean(1)
        torch.testing.assert_close(found[:, vertex], wanted)
    assert not found[:, 4].any()


def test_the_laplacian_has_right_gradients():
    vertices = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    edges = edges_of(torch.tensor([[0, 1, 2], [2, 1, 3]]))
    assert torch.autograd.gradcheck(lambda points: laplacian(points, edges), vertices)
