"""The rasteriser: against brute force in float64, known scenes, its rules, and its gradients."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import pytest
import torch
from golden_vectors import arrays

from facezoo.geometry.camera import Camera, grid_triangles, to_view
from facezoo.geometry.rasterize import has_pytorch3d, interpolate, rasterize

ONE = torch.tensor([[0, 1, 2]])


def brute_force(projected, triangles, size):
    """One mesh, every triangle at every pixel, strictly inside: triangle and depth as arrays."""
    owner, nearest = -np.ones(size, dtype=int), np.full(size, np.inf)
    for index, corners in enumerate(np.float64(projected)[triangles]):
        (ax, ay, az), (bx, by, bz), (cx, cy, cz) = corners
        area = (bx - ax) * (cy - ay) - (cx - ax) * (by - ay)
        for v in range(size[0]):
            for u in range(size[1]):
                a = ((bx - u) * (cy - v) - (cx - u) * (by - v)) / area
                b = ((cx - u) * (ay - v) - (ax - u) * (cy - v)) / area
                c = 1 - a - b
                depth = 1 / (a / az + b / bz + c / cz)
                if min(a, b, c) > 0 and depth < nearest[v, u]:
                    owner[v, u], nearest[v, u] = index, depth
    return owner, np.where(owner >= 0, nearest, 0)


def posed_bump(size, dtype=torch.float32, **turn):
    """A depth map with a high nose, posed: projected vertices and triangles."""
    axis = torch.linspace(-1, 1, size, dtype=dtype)
    depth = 1.05 - 0.15 * torch.exp(-8 * (axis**2 + axis[:, None] ** 2))
    view = torch.zeros(1, 6, dtype=dtype)
    view[0, 0], view[0, 1] = turn.get("pitch", 0.0), turn.get("yaw", 0.0)
    camera = Camera(size)
    points = camera.unproject(depth[None]).flatten(1, 2)
    return camera.project(to_view(points, view)), grid_triangles(size, size)


def scattered(count=20, dtype=torch.float32):
    """Triangles of all sizes that overlap."""
    triangles = torch.arange(3 * count).view(count, 3)
    projected = torch.rand(1, 3 * count, 3, dtype=dtype) * torch.tensor([16, 13, 1]).to(dtype)
    return projected + torch.tensor([-2.0, -2.0, 0.5]).to(dtype), triangles


def test_scattered_triangles_are_drawn_as_brute_force_draws_them():
    projected, triangles = scattered()
    fragments = rasterize(projected, triangles, (9, 12))
    owner, depth = brute_force(projected[0].numpy(), triangles.numpy(), (9, 12))
    assert len(np.unique(owner)) > 8
    assert (fragments.triangle[0].numpy() == owner).all()
    np.testing.assert_allclose(fragments.depth[0].numpy(), depth, atol=1e-5)


@pytest.mark.parametrize("yaw", [-0.79, 0.79])
def test_a_face_that_hides_a_part_of_itself_is_drawn_as_brute_force_draws_it(yaw):
    projected, triangles = posed_bump(20, yaw=yaw, pitch=0.13)
    fragments = rasterize(projected, triangles, (20, 20))
    owner, depth = brute_force(projected[0].numpy(), triangles.numpy(), (20, 20))
    a, b, c = projected[0, triangles, :2].unbind(1)
    winding = torch.linalg.det(torch.stack([b - a, c - a], -1)).sign()
    assert 0 < (winding > 0).sum() < len(triangles)  # some are seen from behind, so it does hide
    assert (fragments.triangle[0].numpy() == owner).all()
    np.testing.assert_allclose(fragments.depth[0].numpy(), depth, atol=1e-5)


@pytest.mark.parametrize("size", [9, 64, 128])
def test_an_unrotated_depth_map_is_reproduced_in_full(size):
    depth = 0.9 + 0.2 * torch.rand(2, size, size)
    camera = Camera(size)
    projected = camera.project(camera.unproject(depth).flatten(1, 2))
    fragments = rasterize(projected, grid_triangles(size, size), (size, size))
    assert fragments.mask.all()
    torch.testing.assert_close(fragments.depth, depth, atol=5e-5, rtol=0)
    colours = torch.rand(2, size * size, 3)
    drawn = interpolate(fragments, colours).flatten(1, 2)
    torch.testing.assert_close(drawn, colours, atol=5e-4, rtol=0)


def test_a_cube_shows_its_front():
    corners = torch.tensor([[x, y, z] for z in (2.0, 3) for y in (-1.0, 1) for x in (-1.0, 1)])
    quads = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
    triangles = torch.tensor([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    camera = Camera(33, fov_deg=90)  # the front reaches from 8 to 24, the back from 10.7 to 21.3
    fragments = rasterize(camera.project(corners[None]), triangles, (33, 33))
    wanted = torch.zeros(33, 33, dtype=torch.bool)
    wanted[8:25, 8:25] = True
    assert (fragments.mask[0] == wanted).all()
    assert (fragments.triangle[0][wanted] < 2).all()
    torch.testing.assert_close(fragments.depth[0], 2.0 * wanted)


def test_interpolation_is_right_in_perspective():
    corners = torch.tensor([[-1.0, -1, 1.5], [2, -1, 4], [-0.5, 2, 3]])
    camera = Camera(21, fov_deg=70)
    fragments = rasterize(camera.project(corners[None]), ONE, (21, 21))
    points = interpolate(fragments, corners[None])[0]
    normal = torch.linalg.cross(corners[1] - corners[0], corners[2] - corners[0])
    rays = camera.unproject(torch.ones(1, 21, 21))[0]
    crossing = rays * ((corners[0] @ normal) / (rays @ normal))[..., None]
    covered = fragments.mask[0]
    assert covered.sum() > 20
    torch.testing.assert_close(points[covered], crossing[covered], atol=1e-5, rtol=0)
    torch.testing.assert_close(fragments.depth[0][covered], crossing[covered][:, 2])


def test_among_equal_depths_the_lowest_index_wins():
    projected = torch.tensor([[[1.0, 1, 1], [6, 1, 1], [1, 6, 1]]])
    triangles = torch.tensor([[2, 1, 0], [0, 1, 2], [1, 2, 0]])
    fragments = rasterize(projected, triangles, (8, 8))
    assert fragments.triangle[fragments.mask].unique().tolist() == [0]


def test_edges_and_corners_belong_to_a_triangle():
    projected = torch.tensor([[[1.0, 1, 1], [4, 1, 1], [1, 4, 1]]])
    mask = rasterize(projected, ONE, (6, 6)).mask[0]
    wanted = [[r >= 1 and c >= 1 and r + c <= 5 for c in range(6)] for r in range(6)]
    assert mask.tolist() == wanted


def test_a_pixel_is_covered_up_to_the_tolerance_near_an_edge():
    def covers(beside):
        corners = torch.tensor([[[1 + beside, -3, 1], [1 + beside, 5, 1], [9, 1, 1]]])
        return bool(rasterize(corners.double(), ONE, (3, 3)).mask[0, 1, 1])

    assert covers(0.9e-4)
    assert not covers(1.1e-4)


def test_weights_near_an_edge_stay_in_the_triangle():
    projected = torch.tensor([[[1.00005, 0.5, 1], [1.00005, 1.5, 1], [1.0003, 1, 9]]])
    fragments = rasterize(projected.double(), ONE, (3, 3))
    assert fragments.mask[0].nonzero().tolist() == [[1, 1]]
    weights = fragments.weights[0, 1, 1]
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.5, 0], dtype=torch.float64))
    assert fragments.depth[0, 1, 1].item() == pytest.approx(1)


@pytest.mark.parametrize(
    "corners",
    [
        [[1.0, 1, 1], [3, 3, 1], [5, 5, 1]],
        [[1.0, 1, 1], [6, 1, -1], [1, 6, 1]],
        [[1.0, 1, 0], [6, 1, 1], [1, 6, 1]],
        [[float("nan"), 1, 1], [6, 1, 1], [1, 6, 1]],
        [[1.0, float("inf"), 1], [6, 1, 1], [1, 6, 1]],
        [[1.0, float("-inf"), 1], [6, float("inf"), 1], [1, 6, 1]],
        [[1.0, 1, float("nan")], [6, 1, 1], [1, 6, 1]],
        [[-9.0, -9, 1], [-2, -9, 1], [-9, -2, 1]],
        [[1e30, 1, 1], [2e30, 1, 1], [1e30, 6, 1]],
    ],
    ids=["edge-on", "behind", "at the camera", "nan", "inf", "infs", "nan z", "left", "far right"],
)
def test_what_cannot_be_seen_covers_nothing_and_harms_nothing(corners):
    good = torch.tensor([[2.0, 2, 5], [4, 2, 5], [2, 4, 5]])
    projected = torch.cat([torch.tensor(corners), good])[None].requires_grad_()
    triangles = torch.tensor([[0, 1, 2], [3, 4, 5]])
    fragments = rasterize(projected, triangles, (8, 8))
    assert fragments.triangle.unique().tolist() == [-1, 1]
    (fragments.depth.sum() + fragments.weights.square().sum()).backward()
    assert torch.isfinite(projected.grad).all()


def test_a_triangle_larger_than_the_image_fills_it():
    projected = torch.tensor([[[-900.0, -900, 1], [2000, -900, 1], [-900, 2000, 1]]])
    fragments = rasterize(projected, ONE, (5, 7))
    assert fragments.mask.all()
    assert fragments.depth.shape == (1, 5, 7)


def test_pixels_without_a_triangle_hold_zeros():
    projected = torch.tensor([[[1.0, 1, 3], [2, 1, 3], [1, 2, 3]]])
    fragments = rasterize(projected, ONE, (5, 5))
    empty = ~fragments.mask
    assert (fragments.triangle[empty] == -1).all()
    assert not fragments.weights[empty].any()
    assert not fragments.depth[empty].any()
    assert not interpolate(fragments, torch.ones(1, 3, 2))[empty].any()


def test_no_triangles_give_an_empty_image():
    fragments = rasterize(torch.rand(2, 3, 3), torch.empty(0, 3, dtype=torch.int64), (4, 4))
    assert not fragments.mask.any()
    assert fragments.depth.shape == (2, 4, 4)


def test_each_mesh_of_a_batch_is_drawn_as_if_it_were_alone():
    meshes = [posed_bump(16, yaw=yaw)[0] for yaw in (0.0, 0.5, -0.7)]
    triangles = grid_triangles(16, 16)
    together = rasterize(torch.cat(meshes), triangles, (16, 16))
    for index, mesh in enumerate(meshes):
        alone = rasterize(mesh, triangles, (16, 16))
        assert torch.equal(alone.triangle[0], together.triangle[index])
        assert torch.equal(alone.depth[0], together.depth[index])


def test_large_triangles_by_the_thousand_are_drawn_in_parts_with_the_same_result(monkeypatch):
    projected, triangles = scattered(60)
    doubled = torch.cat([triangles, triangles])  # every depth twice
    whole = rasterize(projected.expand(2, -1, -1), doubled, (9, 12))
    assert whole.triangle.max() < 60
    monkeypatch.setattr("facezoo.geometry.rasterize.MAX_PAIRS", 100)
    parts = rasterize(projected.expand(2, -1, -1), doubled, (9, 12))
    assert torch.equal(parts.triangle, whole.triangle)
    assert torch.equal(parts.depth, whole.depth)


def test_gradients_are_right_in_float64():
    projected, triangles = posed_bump(7, torch.float64, yaw=0.4, pitch=0.2)
    colours = torch.rand(1, 49, 2, dtype=torch.float64)

    def draw(projected, colours):
        fragments = rasterize(projected, triangles, (7, 7))
        return interpolate(fragments, colours), fragments.depth

    assert draw(projected, colours)[1].count_nonzero() > 20
    assert torch.autograd.gradcheck(draw, (projected.requires_grad_(), colours.requires_grad_()))


def test_gradients_reach_depth_and_view_through_the_camera():
    camera, triangles = Camera(6), grid_triangles(6, 6)
    colours = torch.rand(1, 36, 1, dtype=torch.float64)

    def draw(depth, view):
        points = camera.unproject(depth).flatten(1, 2)
        fragments = rasterize(camera.project(to_view(points, view)), triangles, (6, 6))
        return interpolate(fragments, colours)

    depth = 1 + 0.02 * torch.rand(1, 6, 6, dtype=torch.float64)
    view = torch.tensor([[0.1, 0.3, -0.1, 0.003, 0.002, 0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(draw, (depth.requires_grad_(), view.requires_grad_()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projected": torch.ones(3, 3)}, r"\(B, N, 3\), got \(3, 3\)"),
        ({"triangles": ONE.int()}, r"\(F, 3\) of int64, got \(1, 3\) of torch.int32"),
        ({"triangles": torch.tensor([[0, 1, 3]])}, "vertices 0 to 2, got 0 to 3"),
        ({"triangles": torch.tensor([[-1, 1, 2]])}, "vertices 0 to 2, got -1 to 2"),
        ({"size": (0, 4)}, "1 pixel or more each way"),
        ({"renderer": "opengl"}, "'auto', 'torch' or 'pytorch3d', got 'opengl'"),
    ],
)
def test_mismatches_raise_an_error(change, message):
    arguments = {"projected": torch.ones(1, 3, 3), "triangles": ONE, "size": (4, 4), **change}
    with pytest.raises(ValueError, match=message):
        rasterize(**arguments)


def test_attributes_of_another_batch_raise_an_error():
    fragments = rasterize(torch.rand(2, 3, 3), ONE, (4, 4))
    with pytest.raises(ValueError, match=r"\(2, N, C\), got \(1, 3, 1\); repeat"):
        interpolate(fragments, torch.rand(1, 3, 1))


def test_pytorch3d_is_asked_for_by_name_only():
    projected, triangles = posed_bump(8, yaw=0.3)
    auto, own = (rasterize(projected, triangles, (8, 8), name) for name in ("auto", "torch"))
    assert torch.equal(auto.triangle, own.triangle)
    if not has_pytorch3d():
        with pytest.raises(ImportError, match="renderer='torch' gives the same"):
            rasterize(projected, triangles, (8, 8), "pytorch3d")


@pytest.mark.parametrize("yaw", [0.3, -0.78])
def test_pytorch3d_draws_the_same(yaw):
    pytest.importorskip("pytorch3d")
    projected, triangles = posed_bump(32, yaw=yaw, pitch=0.1)
    projected = torch.cat([projected, projected.flip(0) + torch.tensor([0.3, 0.2, 0.0])])
    ours, theirs = (rasterize(projected, triangles, (32, 32), r) for r in ("torch", "pytorch3d"))
    assert (ours.triangle == theirs.triangle).float().mean() > 0.995
    both = ours.mask & theirs.mask
    torch.testing.assert_close(ours.depth[both], theirs.depth[both], atol=1e-4, rtol=0)


def test_pytorch3d_is_given_its_own_coordinates(monkeypatch):
    """A stand-in with its documented conventions: x left, y up, [-1, 1] from border to border."""

    def rasterize_meshes(meshes, image_size, blur_radius, faces_per_pixel, perspective_correct):
        assert (blur_radius, faces_per_pixel, perspective_correct) == (0, 1, True)
        vertices, triangles = meshes
        owners = []
        for index, mesh in enumerate(vertices):
            columns = (1 - mesh[:, :2]) * image_size / 2 - 0.5
            flat = torch.cat([columns, mesh[:, 2:]], -1).numpy()
            owner, _ = brute_force(flat, triangles[index].numpy(), (image_size, image_size))
            owners.append(np.where(owner >= 0, owner + index * len(triangles[0]), -1))
        return (torch.from_numpy(np.stack(owners))[..., None],)

    names = ["pytorch3d", "pytorch3d.renderer", "pytorch3d.renderer.mesh"]
    names += ["pytorch3d.structures", "pytorch3d.renderer.mesh.rasterize_meshes"]
    modules = {name: ModuleType(name) for name in names}
    modules[names[3]].Meshes = lambda vertices, triangles: (vertices, triangles)
    modules[names[4]].rasterize_meshes = rasterize_meshes
    for name, module in modules.items():
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    one, triangles = posed_bump(12, yaw=0.4, pitch=-0.2)
    projected = torch.cat([one, posed_bump(12)[0]])
    ours, theirs = (rasterize(projected, triangles, (12, 12), r) for r in ("torch", "pytorch3d"))
    assert torch.equal(ours.triangle[0], theirs.triangle[0])
    torch.testing.assert_close(ours.depth[0], theirs.depth[0])
    inside = theirs.mask[1]  # the first row and column are lost to the nudge
    assert inside[1:, 1:].all()
    torch.testing.assert_close(ours.depth[1][inside], theirs.depth[1][inside])


@pytest.mark.gpu
def test_a_gpu_draws_the_same():
    projected, triangles = posed_bump(64, yaw=0.6)
    here = rasterize(projected, triangles, (64, 64))
    there = rasterize(projected.cuda(), triangles.cuda(), (64, 64))
    assert (here.triangle == there.triangle.cpu()).float().mean() > 0.999
    torch.testing.assert_close(here.depth, there.depth.cpu(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (64, "frontal"),
        (64, "yaw30"),
        (64, "yaw45"),
        (64, "generic"),
        (128, "yaw30"),
        (128, "yaw45"),
    ],
)
def test_renders_equal_the_reference_vectors(size, name):
    wanted = arrays("pytorch3d_raster")
    camera, triangles = Camera(size), torch.from_numpy(np.int64(wanted[f"faces_{size}"]))
    assert torch.equal(triangles, grid_triangles(size, size))
    projected = camera.project(torch.from_numpy(wanted[f"verts_{size}_{name}"])[None])
    row = wanted["view_names"].tolist().index(name)
    projected[..., :2] += torch.from_numpy(wanted["principal_point_offset"][row])
    fragments = rasterize(projected, triangles, (size, size))

    owner = wanted[f"face_{size}_{name}"]
    stable = np.unpackbits(wanted[f"stable_{size}_{name}"]).reshape(size, size).astype(bool)
    same = fragments.triangle[0].numpy() == owner
    assert same[stable].all()
    assert same[owner >= 0].mean() >= 0.999
    covered = (owner >= 0) & fragments.mask[0].numpy()
    assert covered.sum() == (owner >= 0).sum()
    depth = np.abs(fragments.depth[0].numpy() - wanted[f"zbuf_{size}_{name}"])
    assert depth[covered].max() < 1e-4

    colours = torch.from_numpy(wanted[f"colours_{size}"])[None]
    image = interpolate(fragments, colours)[0].numpy()
    step = slice(None, None, size // 64)
    difference = np.abs(image[step, step] - wanted[f"rgb_{size}_{name}"])
    assert difference[(covered & stable)[step, step]].max() < 1e-4
