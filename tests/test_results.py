"""Results: selection, conversion, tables, and their display in a notebook."""

import dataclasses
import json
import pickle
import warnings
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from PIL import Image, ImageFilter

import facezoo
from facezoo.display import ROWS
from facezoo.errors import warn_once
from facezoo.extraction import ExtractionReport
from facezoo.geometry.meshes import Mesh
from facezoo.landmarks import LANDMARK_NAMES, head_pose
from facezoo.models.latentface.latents import Latents
from facezoo.results import (
    ExpressionPrediction,
    FaceEncoding,
    Faces,
    Result,
    concatenate,
    flatten_rows,
    map_tensors,
)

PORTRAIT = Path(__file__).parent.parent / "examples" / "portraits" / "grace_hopper.jpg"


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Nested(Result):
    """A result in a result."""

    latents: Latents


def faces_of(count):
    return Faces(
        torch.arange(count * 4).float().view(count, 4),
        torch.arange(count * 10).float().view(count, 5, 2),
        torch.linspace(1, 0.5, count),
        torch.arange(count) // 2,
    )


def with_gap():
    """Two faces, the second a photograph in which none was found."""
    faces = faces_of(2)
    for tensor in (faces.boxes, faces.landmarks, faces.scores):
        tensor[1] = float("nan")
    return faces


def same(first, second):
    pairs = [(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first)]
    return all(a is b if a is None else torch.equal(a, b) for a, b in pairs)


def test_faces_know_how_many_they_are():
    assert len(faces_of(3)) == 3
    assert len(faces_of(0)) == 0


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (slice(1, 3), [1, 2]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        (torch.tensor([3, 0]), [3, 0]),
        (2, [2]),
        (-1, [3]),
        (np.int64(2), [2]),
        (torch.tensor(3), [3]),
        (slice(0, 0), []),
        (slice(None, None, -1), [3, 2, 1, 0]),
        (slice(3, None, -2), [3, 1]),
        (pd.Series([True, False, True, False], index=[7, 8, 9, 10]), [0, 2]),
    ],
)
def test_faces_are_selected_by_slices_masks_indices_and_numbers(index, rows):
    faces = faces_of(4)
    chosen = faces[index]
    assert len(chosen) == len(rows)
    assert torch.equal(chosen.boxes, faces.boxes[rows])
    assert torch.equal(chosen.landmarks, faces.landmarks[rows])
    assert torch.equal(chosen.scores, faces.scores[rows])
    assert torch.equal(chosen.image_index, faces.image_index[rows])


@pytest.mark.parametrize("index", [4, -5])
def test_a_face_that_does_not_exist_is_an_index_error(index):
    with pytest.raises(IndexError):
        faces_of(4)[index]


@pytest.mark.parametrize("index", [None, True, np.bool_(True), "boxes"])
def test_an_index_that_selects_no_rows_is_a_type_error(index):
    with pytest.raises(TypeError, match="a number, a slice, a mask or a list"):
        faces_of(4)[index]


def test_results_are_equal_if_their_content_is():
    assert with_gap() == with_gap()  # NaN too
    assert faces_of(2) != faces_of(3)
    assert faces_of(2) != dataclasses.replace(faces_of(2), files=("a.jpg",))
    assert faces_of(2) in [faces_of(1), faces_of(2)]
    assert faces_of(2) != "two faces"
    encoding = FaceEncoding(torch.ones(2, 3), None, with_gap())
    assert encoding == FaceEncoding(torch.ones(2, 3), None, with_gap())
    assert encoding != FaceEncoding(torch.zeros(2, 3), None, with_gap())
    assert encoding != FaceEncoding(torch.ones(2, 3), torch.ones(2, 3), with_gap())
    assert len(encoding) == 2


def test_results_with_a_field_named_shape_are_compared_too():
    def latents(value):
        return Latents(*(torch.full((2, 3), value) for _ in dataclasses.fields(Latents)))

    assert latents(1.0) == latents(1.0)
    assert latents(1.0) != latents(2.0)
    assert Nested(latents(1.0)) == Nested(latents(1.0))
    assert Nested(latents(1.0)) != Nested(latents(2.0))


def test_a_loop_over_faces_ends_after_the_last_one():
    faces = list(islice(faces_of(3), 10))
    assert [len(face) for face in faces] == [1, 1, 1]
    assert same(faces[2], faces_of(3)[2])


def test_a_result_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        faces_of(1).scores = torch.zeros(1)


def test_moving_a_result_moves_every_tensor_and_what_is_nested():
    faces = faces_of(2)
    prediction = ExpressionPrediction(["calm", None], torch.rand(2, 2), ("calm", "cross"), faces)
    moved = prediction.to("meta")
    assert moved.probabilities.device.type == "meta"
    assert moved.faces.landmarks.device.type == "meta"
    assert moved.labels == ["calm", None]
    assert faces.boxes.device.type == "cpu"
    assert same(faces.to("cpu"), faces)


def test_moving_leaves_what_a_model_lacks():
    moved = FaceEncoding(torch.zeros(1, 2), None).to("meta")
    assert moved.expression.device.type == "meta"
    assert moved.identity is None
    assert moved.faces is None


def test_arrays_are_float32_or_whole_numbers_and_keep_nan():
    arrays = with_gap().numpy()
    assert arrays["boxes"].dtype == np.float32
    assert arrays["image_index"].dtype == np.int64
    assert arrays["boxes"].shape == (2, 4)
    assert np.isnan(arrays["scores"]).tolist() == [False, True]


def test_arrays_come_from_half_precision_and_from_tensors_with_gradients():
    features = torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)
    arrays = FaceEncoding(features * 2, torch.ones(1, 2).half(), faces_of(1)).numpy()
    assert arrays["expression"].dtype == arrays["identity"].dtype == np.float32
    assert arrays["expression"].tolist() == [[2, 2]]
    assert arrays["faces"]["boxes"].shape == (1, 4)


def test_a_table_of_faces_has_a_row_per_face_with_named_numbers():
    rows = faces_of(3).to_dict()
    assert len(rows) == 3
    assert rows[2]["image_index"] == 1
    assert (rows[1]["x0"], rows[1]["y0"], rows[1]["x1"], rows[1]["y1"]) == (4, 5, 6, 7)
    assert rows[1]["right_eye_x"] == 10
    assert rows[1]["left_mouth_corner_y"] == 19
    assert [row["face"] for row in rows] == [0, 1, 0]
    assert rows[0]["eye_distance_px"] == pytest.approx(8**0.5)
    assert list(rows[0])[:8] == ["file", "image_index", "face", "x0", "y0", "x1", "y1", "score"]
    assert {f"{name}_{axis}" for name in LANDMARK_NAMES for axis in "xy"} < set(rows[0])
    json.dumps(rows)


def test_a_table_of_predictions_has_label_probabilities_and_place():
    probabilities = torch.tensor([[0.75, 0.25], [float("nan")] * 2])
    prediction = ExpressionPrediction(["calm", None], probabilities, ("calm", "cross"), with_gap())
    rows = prediction.to_dict()
    assert len(prediction) == 2
    assert rows[0]["label"] == "calm"
    assert (rows[0]["p_calm"], rows[0]["p_cross"]) == (0.75, 0.25)
    assert rows[0]["x1"] == 2
    assert rows[1]["label"] is None
    assert (rows[1]["p_calm"], rows[1]["x0"], rows[1]["face"]) == (None, None, -1)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_a_frame_has_the_columns_of_the_table(library):
    faces = dataclasses.replace(with_gap(), sharpness=torch.rand(2), files=("a.jpg", None))
    frame = FaceEncoding(torch.rand(2, 3), torch.rand(2, 2), faces).to_frame(library)
    assert len(frame) == 2
    assert list(frame["file"]) == ["a.jpg", "a.jpg"]
    assert {"yaw_deg", "sharpness", "expression_2", "identity_1"} < set(frame.columns)
    assert "pose_0" not in frame.columns


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_without_a_face_have_the_same_types_of_columns(library):
    def predicted(count):
        faces = dataclasses.replace(faces_of(count), files=("a.jpg",))
        shares = torch.full((count, 2), 0.5)
        return ExpressionPrediction(["calm"] * count, shares, ("calm", "cross"), faces)

    full, empty = (predicted(count).to_frame(library) for count in (2, 0))
    assert len(empty) == 0
    assert list(full.dtypes) == list(empty.dtypes)
    joined = {"pandas": pd.concat, "polars": pl.concat}[library]([empty, full])
    assert list(joined.dtypes) == list(full.dtypes)


def test_an_unknown_library_of_frames_is_an_error():
    with pytest.raises(ValueError, match="'pandas' or 'polars'"):
        faces_of(1).to_frame("arrow")


def test_results_name_their_files_and_measure_pose_and_sharpness():
    image = Image.open(PORTRAIT).convert("RGB")
    blurred = image.filter(ImageFilter.GaussianBlur(3))
    faces = facezoo.detect([PORTRAIT, image.rotate(-20), blurred], faces="largest")
    assert faces.files == (str(PORTRAIT), None, None)
    yaw, pitch, roll = faces.pose_deg.T
    assert yaw.abs().max() < 6
    assert pitch.abs().max() < 10
    assert float(roll[1] - roll[0]) == pytest.approx(20, abs=6)
    assert faces.sharpness[0] > 20 * faces.sharpness[2]
    row = faces.to_dict()[0]
    assert (row["file"], row["roll_deg"]) == (str(PORTRAIT), pytest.approx(float(roll[0])))


def test_head_poses_are_estimated_when_they_are_read(monkeypatch):
    faces = facezoo.detect([PORTRAIT, Image.open(PORTRAIT).rotate(-20)])
    expected = head_pose(faces.landmarks)
    calls = []
    monkeypatch.setattr(
        "facezoo.results.head_pose", lambda rows: calls.append(1) or head_pose(rows)
    )
    shifted = dataclasses.replace(faces, image_index=faces.image_index + 2)
    parts = [faces, pickle.loads(pickle.dumps(faces)), concatenate([faces[:1], shifted[1:]])]
    parts += [faces.to(torch.float64), faces.to("cpu"), faces[torch.tensor([0, 1])]]
    assert not calls
    for part in parts:
        assert part.pose_deg.dtype == part.landmarks.dtype
        torch.testing.assert_close(part.pose_deg.float(), expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(faces[1].pose_deg, expected[1:], rtol=0, atol=1e-4)
    assert with_gap().pose_deg.isnan().tolist() == [[False] * 3, [True] * 3]
    assert np.array_equal(faces.numpy()["pose_deg"], expected.numpy())
    count = len(calls)
    assert faces.pose_deg is faces.pose_deg  # computed once
    assert len(calls) == count


def test_features_alone_need_neither_head_pose_nor_sharpness(monkeypatch):
    def fail(*_):
        pytest.fail("measured a face that nobody asked for")

    model = facezoo.load("ipd-fer", device="cpu")
    expected = model.encode(PORTRAIT)
    assert expected.faces.sharpness is not None
    monkeypatch.setattr("facezoo.results.head_pose", fail)
    monkeypatch.setattr("facezoo.preprocess.quality.sharpness", fail)
    assert torch.equal(model.encode_expression(PORTRAIT), expected.expression)


def test_a_table_of_aligned_crops_has_no_places():
    prediction = ExpressionPrediction(["cross"], torch.tensor([[0.0, 1.0]]), ("calm", "cross"))
    assert prediction.to_dict() == [{"label": "cross", "p_calm": 0.0, "p_cross": 1.0}]


def test_no_faces_make_an_empty_table():
    assert faces_of(0).to_dict() == []
    assert ExpressionPrediction([], torch.zeros(0, 2), ("a", "b"), faces_of(0)).to_dict() == []


def test_rows_of_nested_results_are_mapped_concatenated_and_flattened():
    def result(value):
        return {"a": torch.full((2, 3), value), "b": faces_of(2)}

    both = concatenate([result(1.0), result(2.0)])
    assert both["a"][:, 0].tolist() == [1, 1, 2, 2]
    assert both["b"].image_index.tolist() == [0, 0, 0, 0]
    assert flatten_rows(both).shape == (4, 3 + 4 + 10 + 1 + 1)
    halves = map_tensors(lambda tensor: tensor[::2], both)
    assert len(halves["b"]) == 2
    encoding = concatenate([FaceEncoding(torch.zeros(1, 2), None)] * 2)
    assert encoding.identity is None
    assert encoding.expression.shape == (2, 2)


def test_a_result_is_converted_to_a_dtype_without_its_integers():
    faces = faces_of(2).to(torch.float16)
    assert faces.boxes.dtype == torch.float16
    assert faces.image_index.dtype == torch.int64


# Display.


@pytest.fixture(scope="module", params=facezoo.list_models())
def model(request):
    return facezoo.load(request.param, device="cpu")


def encoded(model):
    if hasattr(model, "template_mm"):
        return model.encode(model.template_mm, units="mm")
    return model.encode(PORTRAIT)


def test_a_model_is_one_line_with_its_checkpoint(model):
    assert repr(model).startswith(f"{type(model).__name__}({model.card.name}, ")
    assert "\n" not in repr(model)
    assert len(repr(model)) < 100


def test_a_model_in_a_notebook_shows_capabilities_and_license(model):
    shown = model._repr_html_()
    assert ", ".join(model.capabilities()) in shown
    assert model.card.licenses.weights in shown
    assert len(shown) < 2000


def test_random_weights_are_called_so():
    model = facezoo.load("ipd-fer", pretrained=False, backbone="test_resnet.r160_in1k")
    assert "ipd-fer, random weights" in repr(model)
    assert "limits" not in model._repr_html_()


def test_the_layers_are_still_to_be_had(model):
    assert torch.nn.Module.__repr__(model).count("\n") > 10


def test_the_repr_of_an_encoding_has_shapes_and_no_numbers(model):
    encoding = encoded(model)
    assert f"expression {tuple(encoding.expression.shape)}" in repr(encoding)
    assert "tensor(" not in repr(encoding)
    assert len(repr(encoding)) < 300
    assert str(tuple(encoding.identity.shape)) in encoding._repr_html_()


def test_a_prediction_is_a_line_of_labels_and_a_table_of_bars():
    shares = torch.tensor([[0.25, 0.75], [float("nan")] * 2])
    prediction = facezoo.ExpressionPrediction(["<b>", None], shares, ("a", "<b>"))
    assert repr(prediction) == "ExpressionPrediction(2 faces: <b> 75%, no face)"
    shown = prediction._repr_html_()
    assert "&lt;b&gt;" in shown
    assert "<b>ExpressionPrediction</b>" in shown
    assert shown.count("<b>") == 1
    assert "width:3.00em" in shown
    assert "–" in shown


def test_many_faces_stay_a_line_and_a_small_table():
    shares = torch.full((1000, 2), 0.5)
    prediction = facezoo.ExpressionPrediction(["a"] * 1000, shares, ("a", "b"))
    assert repr(prediction).endswith(", 995 more)")
    assert f"… {1000 - ROWS} more" in prediction._repr_html_()
    assert prediction._repr_html_().count("<tr>") == 1 + ROWS


def test_faces_count_those_that_were_found():
    scores = torch.tensor([0.99, 0.98, float("nan")])
    faces = facezoo.Faces(torch.zeros(3, 4), torch.zeros(3, 5, 2), scores, torch.tensor([0, 0, 1]))
    assert repr(faces) == "Faces(2 faces in 1 image)"
    assert "0.98" in faces._repr_html_()
    assert repr(faces[:0]) == "Faces(0 faces)"


def test_the_repr_of_a_mesh_has_size_and_units():
    mesh = Mesh(torch.zeros(7, 3), "mm")
    assert repr(mesh) == "Mesh(vertices (7, 3), units mm)"


def test_a_report_does_not_list_a_million_files():
    report = ExtractionReport(Path("f.csv"), 1, 9, 0, [("a.jpg", "broken")] * 9, (), 0, {}, 2.0)
    assert repr(report) == str(report)
    assert "9 unreadable" in repr(report)


def test_a_warning_is_issued_once():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            warn_once("the same words")
        warn_once("the same words as before, and others")
    assert len(told) == 2
    assert told[0].filename == __file__


def test_dicts_of_images_without_a_face_are_strict_json():
    nan = float("nan")
    faces = Faces(
        torch.tensor([[0.0, 0, 1, 1], [nan] * 4]),
        torch.tensor([[[0.5, 0.5]] * 5, [[nan, nan]] * 5]),
        torch.tensor([0.9, nan]),
        torch.tensor([0, 1]),
    )
    probabilities = torch.tensor([[0.25, 0.75], [nan, nan]])
    prediction = ExpressionPrediction(["b", None], probabilities, ("a", "b"), faces)
    first, second = json.loads(json.dumps(prediction.to_dict(), allow_nan=False))
    assert (first["p_b"], first["x1"]) == (0.75, 1.0)
    assert second == dict.fromkeys(second, None) | {"image_index": 1, "face": -1}
