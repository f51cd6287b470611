"""Models and results in a notebook: one line, a small table, and a warning said once."""

import warnings
from pathlib import Path

import pytest
import torch

import facezoo
from facezoo.errors import warn_once
from facezoo.extraction import ExtractionReport
from facezoo.geometry.meshes import Mesh
from facezoo.results import ROWS

PORTRAIT = Path(__file__).parent.parent / "examples" / "portraits" / "grace_hopper.jpg"


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


def test_a_model_in_a_notebook_says_what_it_can_do_and_its_licence(model):
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


def test_an_encoding_tells_shapes_and_no_numbers(model):
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
    assert repr(faces[:0]) == "Faces(0 faces in 0 images)"


def test_a_mesh_tells_its_size_and_units():
    mesh = Mesh(torch.zeros(7, 3), "mm")
    assert repr(mesh) == "Mesh(vertices (7, 3), units mm)"


def test_a_report_does_not_list_a_million_files():
    report = ExtractionReport(Path("f.csv"), 1, 9, 0, [("a.jpg", "broken")] * 9, (), 0, {}, 2.0)
    assert repr(report) == str(report)
    assert "9 unreadable" in repr(report)


def test_a_warning_is_said_once():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            warn_once("the same words")
        warn_once("the same words as before, and others")
    assert len(told) == 2
    assert told[0].filename == __file__
