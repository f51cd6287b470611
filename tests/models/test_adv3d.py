from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ict_pack import grid_triangles

from facezoo.errors import UnsupportedError
from facezoo.geometry.mesh_files import write_mesh
from facezoo.geometry.meshes import Mesh
from facezoo.models.adv3d import Adv3D
from facezoo.models.mesh_inputs import landmark_positions

SIDE = 8
COUNT = SIDE * SIDE


@pytest.fixture
def model():
    line = torch.linspace(-80, 80, SIDE)
    x, y = torch.meshgrid(line, line, indexing="ij")
    template = torch.stack([x, y, 100 - (x**2 + 2 * y**2) / 200 + x / 9], -1).flatten(0, 1)
    triangles = torch.from_numpy(grid_triangles(SIDE))
    model = Adv3D(COUNT, len(triangles), 5, identity_dim=6, expression_dim=4)
    model.set_template(template, triangles, torch.tensor([0, 7, 27, 56, 63]))
    return model.eval()


@pytest.fixture
def meshes(model):
    return model.template_mm + 3 * torch.randn(3, COUNT, 3)


def test_codes_have_a_row_per_mesh_and_do_not_depend_on_the_batch(model, meshes):
    together = model.encode(meshes, units="mm")
    assert together.identity.shape == (3, 6)
    assert together.expression.shape == (3, 4)
    apart = model.encode_identity(list(meshes), units="mm", batch_size=1)
    torch.testing.assert_close(apart, together.identity)
    expression = model.encode_expression(meshes.numpy(), units="mm")
    torch.testing.assert_close(expression, together.expression)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_codes_convert_to_a_table_with_a_row_per_mesh(model, meshes, library):
    codes = model.encode(meshes, units="mm")
    frame = codes.to_frame(library)
    assert len(frame) == len(codes) == 3
    assert list(frame.columns)[:2] == ["residual_mm", "expression_0"]
    assert list(frame.columns)[-2:] == ["identity_4", "identity_5"]
    assert frame["expression_3"].to_list() == codes.expression[:, 3].tolist()
    assert codes.to_dict()[2]["identity_5"] == codes.identity[2, 5].item()
    assert "residual_mm" not in replace(codes, residual_mm=None).to_dict()[0]


def test_codes_are_moved_and_given_as_arrays_like_any_result(model, meshes):
    codes = model.encode(meshes, units="mm")
    assert codes.to("cpu").identity.equal(codes.identity)
    arrays = codes.numpy()
    assert {name: array.shape for name, array in arrays.items()} == {
        "expression": (3, 4),
        "identity": (3, 6),
        "residual_mm": (3,),
    }


def test_missing_units_raise_an_error(model, meshes):
    with pytest.raises(ValueError, match=r"mesh 0: units must be one of mm, .* got None"):
        model.encode_identity(meshes)
    in_metres = model.encode_identity(meshes / 1000, units="m")
    torch.testing.assert_close(
        in_metres, model.encode_identity(meshes, units="mm"), rtol=1e-3, atol=1e-4
    )


def test_a_mesh_in_the_wrong_units_or_place_raises_an_error(model, meshes):
    with pytest.raises(ValueError, match="times as large as the template; check units"):
        model.encode_identity(meshes, units="m")
    with pytest.raises(ValueError, match="mesh 1: its center is"):
        model.encode_identity([meshes[0], meshes[1] + 500], units="mm")


def test_files_arrays_and_meshes_give_the_same_codes(model, meshes, tmp_path):
    mesh = Mesh(meshes[0], "mm", model.triangles.long())
    path = write_mesh(tmp_path / "face.obj", mesh.to_units("cm"))
    from_file = model.encode_identity(path, units="cm")
    from_mesh = model.encode_identity(mesh)
    torch.testing.assert_close(from_file, from_mesh, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("align", ["vertices", "landmarks"])
def test_a_turned_and_moved_mesh_is_laid_upon_the_template(model, align):
    angle = torch.tensor(0.7)
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0], [0, 0, 1]])
    elsewhere = model.template_mm @ turn.T + torch.tensor([400.0, -20, 90])
    landmarks = model.landmark_vertices if align == "landmarks" else None
    found = model.encode_identity(elsewhere, units="mm", align=align, landmarks=landmarks)
    wanted = model.encode_identity(model.template_mm, units="mm")
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-3)


def test_a_scan_of_another_topology_is_encoded_as_points_and_decoded_in_the_templates(
    model, meshes
):
    scan = meshes[0][torch.randperm(COUNT)[:40]]
    assert model.encode_expression([meshes[0], scan], units="mm").shape == (2, 4)
    (neutral,) = model.neutralize(scan, units="mm")
    assert neutral.vertices.shape == (COUNT, 3)
    with pytest.raises(ValueError, match="template's 64 vertices in its order, got 40"):
        model.neutralize(scan, units="mm", align="vertices")


def test_points_of_a_part_of_the_face_get_a_warning(model, meshes):
    part = meshes[0][meshes[0][:, 0] > 0]
    with pytest.warns(
        UserWarning, match=r"mesh 1: the template is \d+ mm.*lack a part of the face"
    ):
        model.encode_expression([meshes[0], part], units="mm")


@pytest.mark.parametrize(
    ("align", "landmarks", "reason"),
    [
        ("landmarks", None, "needs landmarks=.*got none"),
        ("landmarks", [1, 2], "got 2"),
        ("eyes", None, "'vertices' or 'landmarks', got 'eyes'"),
    ],
)
def test_alignment_that_cannot_be_done_raises_an_error(model, meshes, align, landmarks, reason):
    with pytest.raises(ValueError, match=reason):
        model.encode_identity(meshes, units="mm", align=align, landmarks=landmarks)


def test_double_precision_encodes_and_edits(model, meshes):
    double = deepcopy(model).double()
    codes = double.encode(meshes, units="mm", align=None)
    assert codes.identity.dtype == torch.float32
    expected = model.encode(meshes, units="mm", align=None)
    torch.testing.assert_close(codes.identity, expected.identity, rtol=1e-3, atol=1e-3)
    assert len(double.neutralize(meshes, units="mm", align=None)) == len(meshes)


def test_nothing_to_encode_raises_an_error(model):
    with pytest.raises(ValueError, match="meshes is empty"):
        model.encode([], units="mm")
    with pytest.raises(ValueError, match="batch_size must be 1 or more"):
        model.encode(model.template_mm, units="mm", batch_size=0)
    with pytest.raises(ValueError, match=r"\(B, N, 3\) in millimeters"):
        model(torch.zeros(4, 3))


def test_samples_follow_the_generator_and_the_posterior(model, meshes):
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return model.encode_identity(meshes, units="mm", sample=True, generator=generator)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    in_ones = model.encode_identity(
        meshes, units="mm", sample=True, generator=torch.Generator().manual_seed(1), batch_size=1
    )
    torch.testing.assert_close(in_ones, draw(1))
    many = torch.stack([draw(seed) for seed in range(400)])
    codes = model.vae.distributions(model.embed(meshes))
    deviation = (codes["id_logvar"] / 2).exp()
    assert ((many.mean(0) - codes["id_mean"]).abs() < 0.25 * deviation).all()
    assert (many.std(0) / deviation - 1).abs().max() < 0.25


def test_a_face_is_the_sum_of_its_identity_and_its_expression(model, meshes):
    face, identity, expression = model(meshes)
    torch.testing.assert_close(face, identity + expression)
    rebuilt = model.reconstruct(meshes, units="mm")
    neutral = model.neutralize(meshes, units="mm")
    for row in range(3):
        torch.testing.assert_close(rebuilt[row].vertices, face[row], atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(neutral[row].vertices, identity[row], atol=1e-3, rtol=1e-4)
    assert rebuilt[0].units == "mm"
    assert torch.equal(rebuilt[0].triangles, model.triangles.long())


def test_codes_and_meshes_can_be_learned_from(model, meshes):
    codes = model.encode(meshes, units="mm")
    (mesh,) = model.synthesize(codes.identity[:1], codes.expression[:1])
    given = (codes.identity, codes.expression, mesh.vertices)
    assert not any(tensor.is_inference() for tensor in given)


def test_transfer_takes_the_identity_of_one_and_the_expression_of_the_other(model, meshes):
    codes = model.encode(meshes, units="mm")
    moved = model.transfer_expression(meshes[0], meshes[1:], units="mm")
    wanted = model.synthesize(codes.identity[1:], codes.expression[:1].expand(2, -1))
    for one, other in zip(moved, wanted, strict=True):
        torch.testing.assert_close(one.vertices, other.vertices, rtol=1e-5, atol=1e-3)
    with pytest.raises(ValueError, match="got 2 for 3"):
        model.transfer_expression(meshes[:2], meshes, units="mm")


@pytest.mark.parametrize("what", ["expression", "identity"])
def test_interpolation_moves_one_code_from_end_to_end(model, meshes, what):
    frames = model.interpolate(meshes[0], meshes[1], 3, what=what, units="mm")
    codes = model.encode(meshes, units="mm")
    ends = {"identity": codes.identity[:1], "expression": codes.expression[:1]}
    (first,) = model.synthesize(**ends)
    (last,) = model.synthesize(**{**ends, what: getattr(codes, what)[1:2]})
    torch.testing.assert_close(frames[0].vertices, first.vertices, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(frames[-1].vertices, last.vertices, rtol=1e-5, atol=1e-3)
    assert not torch.equal(frames[1].vertices, frames[0].vertices)


def test_codes_of_no_mesh_raise_an_error(model, meshes):
    codes = model.encode(meshes, units="mm")
    for wrong in (codes.identity[0], codes.expression):
        with pytest.raises(ValueError, match=r"identity must be codes \(M, 6\), got"):
            model.synthesize(wrong)
    with pytest.raises(ValueError, match=r"expression must be codes \(M, 4\), got \(3, 6\)"):
        model.synthesize(codes.identity, codes.identity)
    with pytest.raises(
        ValueError, match="the same number of codes, or one of them one code; got 3"
    ):
        model.synthesize(codes.identity, codes.expression[:2])
    arrays = codes.numpy()
    made = model.synthesize(arrays["identity"], arrays["expression"][:1])
    wanted = model.synthesize(codes.identity, codes.expression[:1])
    assert torch.equal(made[2].vertices, wanted[2].vertices)


def test_interpolation_rejects_unsuitable_input(model, meshes):
    with pytest.raises(ValueError, match="2 or more"):
        model.interpolate(meshes[0], meshes[1], 1, units="mm")
    with pytest.raises(ValueError, match="'expression' or 'identity', got 'pose'"):
        model.interpolate(meshes[0], meshes[1], 3, what="pose", units="mm")
    with pytest.raises(ValueError, match="one mesh for each end"):
        model.interpolate(meshes, meshes[1], 3, units="mm")


def test_encoding_keeps_the_training_mode_and_stages_keep_gradients(model, meshes):
    model.train()
    with torch.no_grad():
        before = model.vae.bn5.running_mean.clone()
    model.encode(meshes, units="mm")
    assert model.training
    assert model.vae.bn5.training
    assert torch.equal(model.vae.bn5.running_mean, before)
    model.eval()
    points = meshes.clone().requires_grad_()
    model.embed_expression(points).sum().backward()
    assert points.grad.abs().sum() > 0


def test_methods_that_mesh_models_lack_raise_an_error_that_names_other_models(model, meshes):
    able = ["encode", "encode_expression", "encode_identity", "reconstruct", "neutralize"]
    assert model.capabilities() == [*able, "transfer_expression", "interpolate", "synthesize"]
    with pytest.raises(UnsupportedError, match=r"adv3d does not support predict_expr.*ipd-fer"):
        model.predict_expression(meshes)
    for name in ("encode_pose", "encode_factors", "frontalize"):
        with pytest.raises(
            UnsupportedError, match=rf"adv3d does not support {name}\(\); .*latentface"
        ):
            getattr(model, name)(meshes)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_template_survives_any_precision_on_disk(model, tmp_path, dtype):
    from facezoo.hub.tensors import load_into, read_tensors, save

    path = save(model, tmp_path / "model.safetensors", dtype)
    again = Adv3D(**model.architecture)
    load_into(again, read_tensors(path))
    assert torch.equal(again.template_um, model.template_um)
    assert (again.template_mm - model.template_mm).abs().max() == 0
    assert np.array_equal(again.triangles, model.triangles)


def test_a_model_without_a_template_raises_an_error(meshes):
    bare = Adv3D(COUNT, 98, 5)
    with pytest.raises(ValueError, match=r"adv3d has random weights and no template.*set_template"):
        bare.encode(meshes, units="mm")
    assert bare.embed_identity(meshes).shape == (3, 64)


@pytest.mark.parametrize(
    ("landmarks", "reason"),
    [
        ([0, 7, 27, 56, 64], r"numbers from 0 to 63.*got 0 to 64"),
        ([0, 7, 27, 56, -1], r"numbers from 0 to 63.*got -1 to 56"),
        (torch.tensor([0.4, 7, 27, 56, 63]), r"vertex numbers.*torch\.float32"),
        (torch.zeros(5, 2, dtype=torch.int64), r"vertex numbers.*\(5, 2\)"),
    ],
)
def test_landmarks_are_numbers_of_vertices_that_the_mesh_has(model, meshes, landmarks, reason):
    with pytest.raises(
        ValueError, match=f"mesh 0: landmarks must be vertex {reason.removeprefix('vertex ')}"
    ):
        model.encode(meshes, units="mm", align="landmarks", landmarks=landmarks)


@pytest.mark.parametrize("align", [None, "vertices"])
def test_landmarks_that_would_not_be_used_raise_an_error(model, meshes, align):
    with pytest.raises(ValueError, match=f"landmarks need align='landmarks', got align={align!r}"):
        model.encode(meshes, units="mm", align=align, landmarks=model.landmark_vertices)


def test_a_template_without_landmarks_is_not_aligned_to_by_any(meshes):
    plain = Adv3D(COUNT, 1, 0)
    plain.set_template(meshes[0], torch.tensor([[0, 1, 2]]), torch.zeros(0))
    with pytest.raises(ValueError, match="template has no landmarks; use align='vertices'"):
        plain.encode(meshes, units="mm", align="landmarks", landmarks=plain.landmark_vertices)


@pytest.mark.parametrize(
    "changed",
    [
        lambda array: array[:, ::-1].copy()[:, ::-1],
        lambda array: array.astype(">f4"),
        lambda array: np.broadcast_to(array, array.shape),
        lambda array: array.astype(np.longdouble),
    ],
    ids=["backwards", "of the other byte order", "read-only", "of extended precision"],
)
def test_arrays_of_any_layout_are_read(model, meshes, changed):
    wanted = model.encode_identity(meshes[0], units="mm")
    found = model.encode_identity(changed(meshes[0].numpy()), units="mm")
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [np.int64, np.uint32, ">i4"])
def test_a_mesh_takes_arrays_as_other_libraries_have_them(model, meshes, dtype):
    wanted = model.encode_identity(meshes[0], units="mm")
    triangles = np.asarray(model.triangles.numpy(), dtype)
    mesh = Mesh(meshes[0].numpy(), "mm", triangles)
    assert torch.equal(mesh.triangles, model.triangles.long())
    assert torch.equal(model.encode_identity(mesh), wanted)
    with pytest.raises(ValueError, match="triangles must be whole numbers, got float64"):
        Mesh(meshes[0].numpy(), "mm", triangles.astype(np.float64))


def test_a_mesh_of_another_library_raises_an_error_with_what_to_pass(model, meshes):
    other = SimpleNamespace(vertices=meshes[0].numpy(), faces=model.triangles.numpy())
    for method in (model.encode, model.register):
        with pytest.raises(TypeError, match=r"got SimpleNamespace; pass Mesh\(mesh\.vertices"):
            method(other)


def test_a_mesh_that_is_being_learned_is_encoded_without_its_gradients(model, meshes):
    learned = Mesh(meshes[0].clone().requires_grad_(), "mm")
    assert torch.equal(model.encode_identity(learned), model.encode_identity(meshes[0], units="mm"))


@pytest.mark.parametrize("what", [None, object(), [[0.0, 0.0, 0.0]], b"face.obj"])
def test_the_error_names_an_invalid_mesh(model, what):
    with pytest.raises(
        TypeError, match=r"expected a mesh file, .* got (NoneType|object|float|int)"
    ):
        model.encode(what, units="mm")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mesh_model_in_half_precision_raises_an_error(model, meshes, dtype):
    model.to(dtype)
    with pytest.raises(UnsupportedError, match="adv3d works in float32 only"):
        model.encode(meshes, units="mm")
    with pytest.raises(UnsupportedError, match="adv3d works in float32 only"):
        model.synthesize(torch.zeros(1, 6))


def test_codes_and_meshes_are_exact_under_autocast(model, meshes):
    plain = model.encode(meshes, units="mm")
    decoded = model.synthesize(plain.identity, plain.expression)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced = model.encode(meshes, units="mm")
        again = model.synthesize(plain.identity, plain.expression)
    torch.testing.assert_close(reduced.identity, plain.identity)
    torch.testing.assert_close(reduced.expression, plain.expression)
    torch.testing.assert_close(again[0].vertices, decoded[0].vertices)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.int8])
def test_weights_are_not_saved_in_a_precision_in_which_the_codes_are_noise(model, tmp_path, dtype):
    with pytest.raises(UnsupportedError, match="adv3d works in float32 only"):
        model.save_pretrained(tmp_path / "reduced", dtype=dtype)
    with pytest.raises(UnsupportedError, match="and the model in float32"):
        model.bfloat16().save_pretrained(tmp_path / "reduced")
    assert not (tmp_path / "reduced").exists()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda points: points[torch.randperm(COUNT)], "in another order"),
        (lambda points: points * torch.tensor([-1.0, 1, 1]), "the mesh is mirrored"),
        (lambda points: points * 1.3, r"it is 1\.3\d times as large as the template; check units"),
    ],
    ids=["order", "mirror", "scale"],
)
def test_alignment_by_vertices_rejects_meshes_that_do_not_correspond(model, meshes, change, cause):
    with pytest.raises(ValueError, match=f"mesh 0: after align='vertices' .*{cause}"):
        model.encode(change(meshes[0]), units="mm", align="vertices")


def test_an_error_names_the_file_of_the_mesh(model, meshes, tmp_path):
    paths = [write_mesh(tmp_path / f"{n}.obj", Mesh(meshes[n] + 300 * n, "mm")) for n in (0, 1)]
    with pytest.raises(ValueError, match=r"1\.obj: its center is .* align it"):
        model.encode(paths, units="mm")
    (tmp_path / "face.jpg").touch()
    with pytest.raises(
        ValueError, match=r"face\.jpg is not a mesh file; expected a 3D mesh .*\.obj"
    ):
        model.encode(tmp_path / "face.jpg", units="mm")


@pytest.mark.parametrize("pixels", [np.zeros((40, 30, 3), np.uint8), torch.zeros(40, 3).byte()])
def test_pixels_are_not_a_mesh(model, pixels):
    with pytest.raises(ValueError, match="its vertices are uint8, as the pixels of an image"):
        model.encode(pixels, units="mm")


def test_a_rotated_mesh_without_alignment_is_rejected(model):
    rotated = model.template_mm @ torch.tensor([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    rotated = rotated - rotated.mean(0) + model.template_mm.mean(0)
    with pytest.raises(ValueError, match="mm from the template on average; align it"):
        model.encode(rotated, units="mm")


def test_a_mesh_in_another_pose_gets_a_warning_that_names_it(model):
    angle = torch.tensor(12.0).deg2rad()
    cos, sin = angle.cos().item(), angle.sin().item()
    center = model.template_mm.mean(0)
    turn = torch.tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])
    rotated = (model.template_mm - center) @ turn.T + center
    with pytest.warns(UserWarning, match=r"mesh 0: it is rotated by 12 degrees .*'vertices'"):
        model.encode(rotated, units="mm")
    with pytest.warns(UserWarning, match="shifted by 12 mm"):
        model.encode(model.template_mm + torch.tensor([0, 12.0, 0]), units="mm")
    aligned = model.encode(rotated, units="mm", align="vertices")
    expected = model.encode(model.template_mm, units="mm")
    torch.testing.assert_close(aligned.expression, expected.expression, atol=1e-4, rtol=1e-3)


def test_a_mirrored_mesh_without_alignment_is_rejected(model):
    mirrored = model.template_mm * torch.tensor([-1.0, 1, 1])
    with pytest.raises(ValueError, match="mesh 0: the mesh is mirrored; negate one coordinate"):
        model.encode(mirrored, units="mm")


def test_vertices_in_another_order_have_no_residual(model):
    order = torch.randperm(COUNT)
    shuffled = model.encode(model.template_mm[order], units="mm")
    expected = model.encode(model.template_mm, units="mm")
    torch.testing.assert_close(shuffled.expression, expected.expression, atol=1e-4, rtol=1e-3)
    assert shuffled.residual_mm.isnan().all()
    assert expected.residual_mm.isfinite().all()


def test_missing_points_at_the_origin_are_rejected(model):
    cloud = torch.cat([model.template_mm, torch.zeros(10, 3)])
    with pytest.raises(ValueError, match=r"10 vertices are \(0, 0, 0\), as missing points"):
        model.encode(cloud, units="mm")


def test_coordinates_of_landmarks_are_exact_in_every_form():
    whole = Mesh(torch.tensor([[3, 4, 5]]), "mm")
    for points in ([[3, 4, 5]], np.array([[3, 4, 5]]), torch.tensor([[3, 4, 5]])):
        assert landmark_positions(whole, points).tolist() == [[3, 4, 5]]
    far = [[4e5 + 0.1, 0.5, -0.1]]  # float32 would move it by 6 micrometers
    for mesh in (whole, Mesh(whole.vertices.float(), "mm")):
        for points in (far, np.array(far), torch.tensor(far, dtype=torch.float64)):
            assert landmark_positions(mesh, points).tolist() == far


def test_landmarks_may_be_coordinates(model):
    points = model.template_mm[model.landmark_vertices.long()] + torch.tensor([400.0, -20, 90])
    moved = model.template_mm + torch.tensor([400.0, -20, 90])
    codes = model.encode_identity(moved, units="mm", align="landmarks", landmarks=points)
    expected = model.encode_identity(model.template_mm, units="mm")
    torch.testing.assert_close(codes, expected, atol=1e-4, rtol=1e-3)
