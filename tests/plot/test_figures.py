"""Pictures of results: what is drawn, and that a notebook shows it."""

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

import facezoo
from facezoo import plot
from facezoo.errors import NoFaceError, UnsupportedError
from facezoo.models.adv3d import Adv3D
from facezoo.models.ipd_fer import IPDFER
from facezoo.models.mesh_base import MeshEncoding

PORTRAITS = sorted((Path(__file__).parents[2] / "examples" / "portraits").glob("*.jpg"))


@pytest.fixture(scope="module")
def model():
    small = "test_resnet.r160_in1k"
    return IPDFER(small, 8, 8, small, decoder_size=14, decoder_width=4).eval()


@pytest.fixture(scope="module")
def prediction(model):
    return model.predict_expression(PORTRAITS)


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def test_a_image_is_shown_by_a_notebook(prediction):
    assert plot.bars(prediction)._repr_png_().startswith(b"\x89PNG")


def test_a_prediction_is_drawn_as_a_bar_per_class(prediction):
    figure = facezoo.show(prediction)
    for axes, label, shares in zip(
        figure.axes, prediction.labels, prediction.probabilities, strict=True
    ):
        assert label in axes.get_title()
        drawn = [patch.get_width() for patch in axes.patches]
        assert drawn == pytest.approx(shares.tolist())


@pytest.mark.parametrize("count", [1, 4, 13])
def test_bars_leave_panels_without_a_face_empty(count):
    shares = torch.full((count, 3), 1 / 3)
    prediction = facezoo.ExpressionPrediction(["b"] * count, shares, ("a", "b", "c"))
    shown = [axes for axes in plot.bars(prediction).axes if axes.axison]
    assert len(shown) == min(count, plot.MOST)


def test_a_image_without_a_face_has_empty_bars(model):
    shares = torch.tensor([[float("nan")] * 2, [0.25, 0.75]])
    figure = plot.bars(facezoo.ExpressionPrediction([None, "b"], shares, ("a", "b")))
    assert titles(figure) == ["0: no face", "1: b"]
    assert [patch.get_width() for patch in figure.axes[0].patches] == [0, 0]


def test_with_images_faces_are_drawn_on_them(model, prediction):
    for what in (prediction, prediction.faces, model.encode(PORTRAITS)):
        figure = facezoo.show(what, PORTRAITS)
        pictures = [axes.images[0].get_array() for axes in figure.axes]
        assert len(pictures) == len(PORTRAITS)
        plain = facezoo.preprocess.images.read_image(PORTRAITS[0])
        assert pictures[0].shape == plain.shape
        assert (pictures[0] != plain).any()


def test_other_images_than_those_of_the_result_are_an_error(model, prediction):
    small = [np.zeros((40, 40, 3), np.uint8)] * 2
    for what in (prediction, prediction.faces, model.encode(PORTRAITS)):
        with pytest.raises(ValueError, match="512x512 pixels, and the image given for it has 40"):
            facezoo.show(what, small)
        with pytest.raises(ValueError, match="faces of 2 images or more, and images has 1"):
            facezoo.show(what, PORTRAITS[:1])


def test_faces_without_images_raise_an_error(prediction):
    with pytest.raises(ValueError, match="pass them: show"):
        facezoo.show(prediction.faces)


def test_an_encoding_of_some_faces_is_drawn_as_cosines():
    rows = torch.eye(3)
    figure = facezoo.show(facezoo.FaceEncoding(expression=rows, identity=-rows))
    assert titles(figure) == ["expression, cosine", "identity, cosine"]
    assert figure.axes[0].images[0].get_array().tolist() == rows.tolist()
    assert len(figure.axes[0].texts) == 9


def test_an_encoding_of_one_face_is_drawn_as_its_numbers():
    figure = facezoo.show(facezoo.FaceEncoding(torch.randn(1, 8), None))
    assert titles(figure) == ["expression (8)"]


def test_codes_of_many_meshes_are_drawn_in_a_plane():
    figure = facezoo.show(MeshEncoding(torch.randn(20, 4), torch.randn(20, 4)))
    assert len(figure.axes[1].collections[0].get_offsets()) == 20


def test_features_of_nan_are_left_out_of_the_plane():
    rows = torch.randn(20, 4)
    rows[3] = torch.nan
    assert len(facezoo.show(rows).axes[0].collections[0].get_offsets()) == 19
    names = ["a"] * 10 + ["b"] * 10
    drawn = plot.embedding(rows, names).axes[0].collections
    assert [len(points.get_offsets()) for points in drawn] == [9, 10]


def test_no_face_at_all_cannot_be_drawn():
    for nothing in (torch.zeros(0, 8), torch.zeros(0, 3, 4, 4)):
        with pytest.raises(ValueError, match="there is no face to draw"):
            facezoo.show(nothing)


def test_results_without_a_figure_raise_an_error():
    with pytest.raises(TypeError, match="got str"):
        facezoo.show("portrait.jpg")
    with pytest.raises(ValueError, match="no features"):
        facezoo.show(facezoo.FaceEncoding(None, None))


def test_decoded_images_are_drawn_next_to_the_crop(model):
    figure = plot.parts(model, PORTRAITS)
    assert titles(figure)[:4] == ["crop", "reconstruct", "neutralize", "frontalize"]
    assert len(figure.axes) == 8
    shown = torch.as_tensor(figure.axes[4].images[0].get_array())
    torch.testing.assert_close(shown, plot.crops(model, PORTRAITS)[1].permute(1, 2, 0))


def test_images_without_a_face_are_left_out_or_blank(model):
    images = [PORTRAITS[0], np.zeros((80, 80, 3), np.uint8)]
    for draw in (plot.parts, plot.crops):
        with pytest.raises(NoFaceError, match=r'pass on_missing="skip" .*"nan" .*aligned=True'):
            draw(model, images)
    assert len(plot.crops(model, images, on_missing="skip")) == 1
    gap = plot.crops(model, images, on_missing="nan")
    assert gap.isnan().flatten(1).all(1).tolist() == [False, True]
    figure = plot.parts(model, images, on_missing="nan")
    assert [len(axes.images) for axes in figure.axes] == [1] * 4 + [0] * 4
    figure.canvas.draw()


def test_aligned_crops_are_drawn_as_they_are(model):
    crops = facezoo.crops(PORTRAITS)
    torch.testing.assert_close(plot.crops(model, crops, aligned=True), crops / 255)
    assert len(plot.parts(model, crops, aligned=True).axes) == 8
    torch.testing.assert_close(plot.crops(model, PORTRAITS), crops / 255, atol=0.003, rtol=0)


def test_a_model_without_a_decoder_raises_an_error():
    model = IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None)
    with pytest.raises(UnsupportedError, match="reconstruct"):
        plot.parts(model, PORTRAITS)


def test_a_model_of_meshes_raises_an_error():
    for draw in (plot.parts, plot.crops):
        with pytest.raises(UnsupportedError, match="Adv3D takes meshes"):
            draw(Adv3D(4, 2, 0), PORTRAITS)


def test_no_images_cannot_be_drawn(prediction):
    with pytest.raises(ValueError, match="images is an empty list"):
        facezoo.show(prediction, [])


def test_a_grid_has_a_column_per_title_and_a_row_per_face():
    figure = facezoo.show({"red": torch.rand(3, 3, 4, 4), "blue": torch.rand(3, 3, 4, 4)})
    assert len(figure.axes) == 6
    assert len(facezoo.show(torch.rand(40, 3, 4, 4)).axes) == plot.MOST


def test_a_grid_draws_crops_of_uint8_like_those_in_0_to_1():
    crops = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    for panel, crop in zip(facezoo.show(crops).axes, crops, strict=True):
        drawn = torch.as_tensor(panel.images[0].get_array())
        torch.testing.assert_close(drawn, crop.permute(1, 2, 0) / 255)


def test_images_outside_of_0_to_1_raise_an_error_as_elsewhere():
    for picture in (torch.rand(2, 3, 8, 8) * 255, torch.rand(3, 3, 4, 4) - 0.5):
        with pytest.raises(ValueError, match=r"floating-point pixels must be in \[0, 1\], got"):
            facezoo.show(picture)
    facezoo.show(torch.full((1, 3, 4, 4), 1 + 5e-7))  # rounding


def test_a_grid_draws_depth_with_its_whole_range():
    depth = torch.linspace(0.9, 1.1, 2 * 4 * 4).view(2, 4, 4)
    for figure in (
        plot.grid(crop=torch.rand(2, 3, 4, 4), depth=depth),
        plot.grid({"crop": torch.rand(2, 3, 4, 4), "depth": depth[:, None]}),
    ):
        assert titles(figure)[:2] == ["crop", "depth"]
        for row in range(2):
            image = figure.axes[2 * row + 1].images[0]
            torch.testing.assert_close(torch.as_tensor(image.get_array()), depth[row])
            assert image.get_clim() == pytest.approx((0.9, 1.1))
    assert len(facezoo.show(depth).axes) == 2


@pytest.mark.parametrize(
    "pictures",
    [
        {},
        {"a": torch.rand(4, 4)},
        {"normals": torch.rand(2, 4, 4, 3)},
        {"a": torch.rand(1, 3, 4, 4), "b": torch.rand(2, 3, 4, 4)},
    ],
)
def test_a_grid_of_other_shapes_raises_an_error(pictures):
    with pytest.raises(ValueError, match="as many in each column"):
        plot.grid(pictures)


def test_names_must_be_one_per_face():
    with pytest.raises(ValueError, match="one per face: 4, got 3"):
        plot.embedding(torch.randn(4, 3), ["a", "b", "c"])


def test_the_legend_names_ten_kinds_at_most():
    rows = torch.randn(11, 3)
    names = [f"person {number}" for number in range(11)]
    assert plot.embedding(rows, names).axes[0].get_legend() is None
    assert plot.embedding(rows[1:], names[1:]).axes[0].get_legend() is not None


def test_names_may_be_numbers_of_a_tensor():
    rows, people = torch.randn(8, 3), torch.tensor([0, 1] * 4)
    for drawn in (plot.embedding(rows, people), plot.embedding(rows, people.numpy())):
        assert [len(points.get_offsets()) for points in drawn.axes[0].collections] == [4, 4]
        assert [text.get_text() for text in drawn.axes[0].get_legend().get_texts()] == ["0", "1"]


def test_the_plane_is_that_of_greatest_spread():
    rows = torch.randn(50, 6) * torch.tensor([1.0, 9.0, 0.1, 0.1, 5.0, 1.0])
    spread = plot.plane(rows).var(0).sqrt()
    assert spread[0] > spread[1] > rows.std(0)[[0, 2, 3, 5]].max()


def test_t_sne_keeps_groups_apart():
    pytest.importorskip("sklearn")
    rows = torch.cat([torch.randn(20, 8), torch.randn(20, 8) + 30])
    points = plot.plane(rows, "tsne")
    apart = (points[:20].mean(0) - points[20:].mean(0)).norm()
    assert apart > points[:20].std(0).norm()


def test_a_plane_wants_three_faces_and_a_method_that_it_knows():
    with pytest.raises(ValueError, match=r"three faces or more, .*got \(2, 3\)"):
        plot.plane(torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"D of 2 or more, got \(4, 1\)"):
        plot.plane(torch.randn(4, 1))
    with pytest.raises(ValueError, match="'pca' or 'tsne'"):
        plot.plane(torch.randn(4, 3), "umap")


def test_a_prediction_of_no_face_has_no_bars():
    prediction = facezoo.ExpressionPrediction([], torch.zeros(0, 2), ("a", "b"))
    with pytest.raises(ValueError, match="there is no face to draw"):
        facezoo.show(prediction)
