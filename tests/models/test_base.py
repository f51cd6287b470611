"""What every model does with photographs: shapes, batches, missing faces, modes, gradients."""

from contextlib import contextmanager
from dataclasses import is_dataclass

import numpy as np
import pytest
import torch
from packs import photo_of, png, use_square_detector
from PIL import Image
from torch import nn

import facezoo
from facezoo.errors import ImageError, NoFaceError, UnsupportedError
from facezoo.hub.families import FAMILIES, model_class
from facezoo.models.base import FaceModel, check_shape
from facezoo.models.capabilities import CAPABILITIES, STAGES
from facezoo.models.ipd_fer import IPDFER
from facezoo.preprocess import pipeline
from facezoo.preprocess.alignment import prepare
from facezoo.results import flatten_rows

BACKBONE = "test_resnet.r160_in1k"
TINY = {
    "ipd-fer": {
        "backbone": BACKBONE,
        "feature_dim": 24,
        "pose_backbone": BACKBONE,
        "decoder_size": 14,
        "decoder_width": 4,
        "refined_decoder": False,
    },
    "latent-simclr": {
        "style_dim": 16,
        "mapping_layers": 1,
        "max_channels": 8,
        "depths": (1, 1, 1, 1),
        "width": 4,
        "trunk_size": 32,
        "code_width": 8,
        "num_features": 16,
        "expression_axes": 3,
    },
    "latentface": {
        "width": 4,
        "number_width": 4,
        "code_dim": 16,
        "unet_width": 8,
        "expression_directions": 0,
    },
}
"""Architectures that take milliseconds, by family; a family that is not here is built as it is."""


@pytest.fixture(autouse=True)
def _squares_are_faces(monkeypatch):
    use_square_detector(monkeypatch)


@pytest.fixture
def model():
    return IPDFER(**TINY["ipd-fer"]).eval()


def portrait(seed, side=80):
    """A photograph with a bright patchy square for a face, uint8 (200, 200, 3)."""
    photo = photo_of((40 + seed, 50, side))
    noise = torch.randint(150, 256, (side, side, 3), generator=torch.Generator().manual_seed(seed))
    photo[50 : 50 + side, 40 + seed : 40 + seed + side] = noise.to(torch.uint8)
    return photo.numpy()


PORTRAITS = [portrait(seed) for seed in range(5)]
CROWD = photo_of((10, 10, 50), (120, 100, 70)).numpy()
EMPTY = photo_of().numpy()


class OnlyIdentity(FaceModel):
    """A family that has identity features and nothing else."""

    model_name = "only-identity"
    provides = ("encode", "encode_identity")

    def __init__(self):
        super().__init__()
        self.architecture = {}
        self.weight = nn.Parameter(torch.ones(1))

    def embed_identity(self, images):
        return images.mean((2, 3)) * self.weight


@contextmanager
def called(*modules):
    """How often each module runs."""
    counts = [0] * len(modules)

    def counting(index):
        def count(*_):
            counts[index] += 1

        return count

    handles = [m.register_forward_hook(counting(i)) for i, m in enumerate(modules)]
    yield counts
    for handle in handles:
        handle.remove()


# One photograph or many, of any kind.


def test_one_image_gives_one_row_and_a_list_a_row_each(model):
    assert model.encode_expression(PORTRAITS[0]).shape == (1, 24)
    assert model.encode_identity(PORTRAITS).shape == (5, 24)


def test_a_list_may_mix_paths_bytes_pil_images_arrays_and_tensors(model, tmp_path):
    array = PORTRAITS[0]
    path = tmp_path / "portrait.png"
    path.write_bytes(png(array))
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    sources = [path, str(path), png(array), Image.fromarray(array), array, tensor, tensor / 255]
    features = model.encode_expression(sources)
    assert features.shape == (7, 24)
    for row in features[1:]:
        torch.testing.assert_close(row, features[0], atol=1e-4, rtol=1e-4)


def test_a_batch_array_is_its_images(model):
    together = model.encode_expression(np.stack(PORTRAITS))
    torch.testing.assert_close(together, model.encode_expression(PORTRAITS))


def test_a_batch_on_the_device_is_read_at_once_and_stays_there(model, monkeypatch):
    crops = torch.rand(4, 3, 60, 60)
    wanted = model.encode_expression(
        [crop.numpy().transpose(1, 2, 0) for crop in crops], aligned=True
    )
    looks = []
    aminmax = torch.aminmax
    monkeypatch.setattr(torch, "aminmax", lambda *given: looks.append(1) or aminmax(*given))
    for way in ("cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, way, lambda device: pytest.fail("left the device"))
    assert torch.equal(model.encode_expression(crops, aligned=True), wanted)
    assert looks == [1]


def test_features_are_those_of_the_aligned_crop(model):
    photo = torch.from_numpy(PORTRAITS[2])
    crop = prepare([photo], facezoo.detect([PORTRAITS[2]], "cpu"), model.preprocessing)
    with torch.no_grad():
        wanted = model.embed_identity(crop)
    torch.testing.assert_close(model.encode_identity(PORTRAITS[2]), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("batch_size", "together"), [(1, [3, 3, 2]), (2, [2, 2, 2, 2]), (5, [5, 3])]
)
def test_a_crowd_is_cut_out_in_slices_of_whole_batches(model, monkeypatch, batch_size, together):
    photo = torch.from_numpy(CROWD)
    crowd = facezoo.detect(CROWD, "cpu")[torch.tensor([0, 1] * 4)]
    wanted = model.encode_faces([photo], crowd, "encode_expression", batch_size)
    sizes = []
    cut = pipeline.prepare
    monkeypatch.setattr(pipeline, "FACES_AT_ONCE", 3)
    monkeypatch.setattr(pipeline, "prepare", lambda p, f, s: sizes.append(len(f)) or cut(p, f, s))
    features = model.encode_faces([photo], crowd, "encode_expression", batch_size)
    assert sizes == together
    # Fewer than 8 crops have another memory order, and sums are rounded in another order then.
    torch.testing.assert_close(features, wanted, atol=1e-6, rtol=1e-6)


def test_all_faces_of_an_image_get_a_row(model):
    assert model.encode_expression([CROWD, PORTRAITS[0]]).shape == (3, 24)
    assert model.encode_expression([CROWD, PORTRAITS[0]], faces="largest").shape == (2, 24)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_batch_size_does_not_change_the_result(model, batch_size):
    images = [*PORTRAITS, CROWD, EMPTY]
    options = {"faces": "all", "on_missing": "nan"}
    wanted = model.encode(images, **options)
    result = model.encode(images, **options, batch_size=batch_size)
    assert result.faces.image_index.tolist() == [0, 1, 2, 3, 4, 5, 5, 6]
    close = {"equal_nan": True, "atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(result.expression, wanted.expression, **close)
    torch.testing.assert_close(result.identity, wanted.identity, **close)
    torch.testing.assert_close(result.faces.boxes, wanted.faces.boxes, equal_nan=True)
    assert torch.equal(result.faces.image_index, wanted.faces.image_index)


def test_zero_images_and_batch_size_zero_raise_an_error(model):
    with pytest.raises(ValueError, match="images is empty"):
        model.encode_expression([])
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        model.encode_expression(PORTRAITS, batch_size=0)


def test_options_that_do_not_exist_raise_an_error_before_anything_is_read(model):
    with pytest.raises(ValueError, match="faces must be"):
        model.encode_expression("no such file.jpg", faces="first")


def test_an_unreadable_image_is_named(model, tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        model.encode_expression([PORTRAITS[0], tmp_path / "gone.jpg"], batch_size=1)


# Photographs without a face.


def test_a_image_without_a_face_is_an_error_that_names_it(model):
    with pytest.raises(NoFaceError, match="no face found in image 1 ") as caught:
        model.encode_expression([PORTRAITS[0], EMPTY])
    assert caught.value.missing == [1]


def test_the_error_counts_images_over_all_batches(model):
    with pytest.raises(NoFaceError, match="image 4") as caught:
        model.encode_expression([*PORTRAITS[:4], EMPTY], batch_size=2)
    assert caught.value.missing == [4]


def test_the_error_holds_every_image_without_a_face_and_encodes_no_more(model):
    photos = [PORTRAITS[0], EMPTY, PORTRAITS[1], *[EMPTY] * 6]
    with (
        called(model.expression_encoder) as encoded,
        pytest.raises(NoFaceError, match=r"image 1 .*image 6 .* and 2 more; pass") as caught,
    ):
        model.encode_expression(photos, batch_size=1)
    assert caught.value.missing == [1, 3, 4, 5, 6, 7, 8]
    assert encoded == [1]


def test_a_file_without_a_face_is_named_by_its_path(model, tmp_path):
    (tmp_path / "nobody.png").write_bytes(png(EMPTY))
    with pytest.raises(NoFaceError, match=r"nobody\.png"):
        model.encode_identity(tmp_path / "nobody.png")


def test_skipping_returns_rows_and_indices_of_the_rest(model):
    encoding = model.encode([EMPTY, PORTRAITS[0], EMPTY, PORTRAITS[1]], on_missing="skip")
    assert encoding.expression.shape == (2, 24)
    assert encoding.faces.image_index.tolist() == [1, 3]


def test_nan_rows_keep_the_place_of_images_without_a_face(model):
    features = model.encode_expression([EMPTY, PORTRAITS[0], EMPTY], on_missing="nan")
    assert torch.isnan(features).all(1).tolist() == [True, False, True]
    torch.testing.assert_close(features[1:2], model.encode_expression(PORTRAITS[0]))


@pytest.mark.parametrize(("on_missing", "rows"), [("skip", 0), ("nan", 3)])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_no_face_anywhere_still_gives_a_result(model, on_missing, rows, batch_size):
    options = {"on_missing": on_missing, "batch_size": batch_size}
    encoding = model.encode([EMPTY] * 3, **options)
    assert encoding.expression.shape == encoding.identity.shape == (rows, 24)
    assert len(encoding.faces) == rows
    assert model.predict_expression([EMPTY] * 3, **options).labels == [None] * rows


# Aligned crops.


def test_aligned_crops_are_not_searched_for_faces(model, monkeypatch):
    monkeypatch.setattr(pipeline, "load_detector", lambda device: pytest.fail("looked for faces"))
    crops = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)
    encoding = model.encode(crops, aligned=True, batch_size=2)
    assert encoding.faces is None
    with torch.no_grad():
        wanted = model.embed_expression(crops.float() / 127.5 - 1)
    torch.testing.assert_close(encoding.expression, wanted, atol=1e-4, rtol=1e-4)


def test_aligned_crops_of_another_size_are_resized(model):
    assert model.encode_identity(np.zeros((50, 50, 3), np.uint8), aligned=True).shape == (1, 24)


def test_a_crop_that_is_not_square_is_named_over_all_batches(model):
    crops = [np.zeros((50, 50, 3), np.uint8)] * 3 + [np.zeros((50, 60, 3), np.uint8)]
    with pytest.raises(ImageError, match=r"image 3 .* is 60 x 50"):
        model.encode_identity(crops, aligned=True, batch_size=2)


# Results.


def test_an_encoding_has_what_the_model_can_and_none_for_the_rest(model):
    encoding = model.encode(PORTRAITS[:2])
    torch.testing.assert_close(encoding.expression, model.encode_expression(PORTRAITS[:2]))
    torch.testing.assert_close(encoding.identity, model.encode_identity(PORTRAITS[:2]))
    assert len(encoding.faces) == 2
    only = OnlyIdentity().encode(PORTRAITS[:2])
    assert only.expression is None
    assert only.identity.shape == (2, 3)


def test_a_prediction_names_the_most_probable_class_and_none_without_a_face(model):
    prediction = model.predict_expression([PORTRAITS[0], EMPTY, PORTRAITS[1]], on_missing="nan")
    assert prediction.classes == model.labels
    assert prediction.probabilities.shape == (3, 8)
    known = prediction.probabilities[[0, 2]]
    torch.testing.assert_close(known.sum(1), torch.ones(2))
    words = [model.labels[i] for i in known.argmax(1)]
    assert prediction.labels == [words[0], None, words[1]]
    assert torch.isnan(prediction.probabilities[1]).all()
    assert prediction.faces.image_index.tolist() == [0, 1, 2]


def test_predictions_use_the_labels_of_a_new_classifier(model):
    model.reset_classifier(2, ("calm", "cross"))
    prediction = model.predict_expression(PORTRAITS)
    assert prediction.classes == ("calm", "cross")
    assert set(prediction.labels) <= {"calm", "cross"}


def test_features_can_be_learned_from(model):
    # A tensor made in inference mode could not be saved for the backward pass.
    features = model.encode_expression(PORTRAITS[:2])
    probe = nn.Linear(24, 2)
    probe(features).sum().backward()
    assert probe.weight.grad.abs().sum() > 0
    assert not features.requires_grad
    assert not model.encode(PORTRAITS[:2]).faces.boxes.is_inference()
    assert not model.predict_expression(PORTRAITS[:2]).probabilities.is_inference()


# What runs, and in which mode.


def test_encoding_expression_runs_the_expression_encoder_alone(model):
    parts = model.expression_encoder, model.identity_encoder, model.expression_classifier
    with called(*parts) as counts:
        model.encode_expression(PORTRAITS)
        assert counts == [1, 0, 0]
        model.encode_identity(PORTRAITS)
        assert counts == [1, 1, 0]
        model.predict_expression(PORTRAITS)
        assert counts == [2, 1, 1]


def test_expression_features_and_classes_share_one_pass(model):
    crops = torch.rand(2, 3, 112, 112)
    with called(model.expression_encoder, model.identity_encoder) as counts:
        rows = model.run(crops, ["predict_expression", "encode_expression"])
        assert counts == [1, 0]
    alone = model.run(crops, ["predict_expression"])
    assert list(alone) == ["predict_expression"]
    torch.testing.assert_close(rows["predict_expression"], alone["predict_expression"])


def test_images_are_encoded_in_eval_mode_and_training_mode_is_restored(model):
    wanted = model.encode_expression(PORTRAITS)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.testing.assert_close(model.encode_expression(PORTRAITS), wanted)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_part_that_was_frozen_in_eval_mode_stays_there(model):
    model.train()
    model.identity_encoder.eval()
    model.encode_expression(PORTRAITS[:1])
    assert model.expression_encoder.training
    assert not any(module.training for module in model.identity_encoder.modules())


def test_the_mode_is_restored_after_an_error(model, monkeypatch):
    model.train()
    monkeypatch.setattr(model, "embed_expression", lambda batch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.encode_expression(PORTRAITS[:1])
    assert model.training


def test_run_gives_float32_by_name_in_batches(model):
    crops = torch.rand(5, 3, 112, 112)
    with called(model.expression_encoder) as counts:
        rows = model.run(crops, ["encode_expression", "encode_identity"], batch_size=2)
        assert counts == [3]
    assert {name: value.shape for name, value in rows.items()} == {
        "encode_expression": (5, 24),
        "encode_identity": (5, 24),
    }
    assert model.run(crops[:0], "encode_expression").shape == (0, 24)


# Pairs.


@pytest.mark.parametrize("family", sorted(TINY))
def test_pairs_with_skipped_images_raise_an_error(family):
    model = model_class(family)(**TINY[family]).eval()
    first, second, third = PORTRAITS[:3]
    pairs = [model.transfer_expression, getattr(model, "mix_styles", model.transfer_expression)]
    for pair in pairs:
        for sides in (
            ([first, EMPTY], [second, third]),
            ([first, second], [third, EMPTY]),
            ([first, EMPTY, second], [EMPTY, third, first]),
        ):
            with pytest.raises(ValueError, match=r'1 of . images .* on_missing="nan"'):
                pair(*sides, on_missing="skip")
        kept = pair([first, EMPTY], [second, third], on_missing="nan")
        assert kept.isnan().flatten(1).any(1).tolist() == [False, True]
        torch.testing.assert_close(kept[:1], pair(first, second))
    alone = model.transfer_expression(first, [second, EMPTY, third], on_missing="skip")
    assert len(alone) == 2
    with pytest.raises(ValueError, match="1 of 3 images without a face were skipped"):
        model.transfer_expression(CROWD, [first, EMPTY, second], faces="all", on_missing="skip")


@pytest.mark.parametrize("family", sorted(TINY))
def test_faces_are_paired_within_the_images_at_the_same_place(family):
    model = model_class(family)(**TINY[family]).eval()
    one, other = PORTRAITS[:2]
    pairs = [model.transfer_expression, getattr(model, "mix_styles", model.transfer_expression)]
    for pair in pairs:
        for sides in (([CROWD, one], [one, CROWD]), ([one, CROWD, CROWD], [CROWD, one, CROWD])):
            with pytest.raises(ValueError, match=r"image 0 of each side has . and . faces"):
                pair(*sides, faces="all")
        assert len(pair([CROWD, one], [CROWD, other], faces="all")) == 3
        # a group, and one image for each of its faces
        assert len(pair(CROWD, [one, other], faces="all")) == 2
        assert len(pair([one, other], CROWD, faces="all")) == 2
    assert len(model.transfer_expression(one, [CROWD, other], faces="all")) == 3


# What a model cannot do.


def test_the_repr_of_a_model_lists_its_capabilities():
    assert OnlyIdentity().capabilities() == ["encode", "encode_identity"]
    able = ["encode", "encode_expression", "encode_identity", "encode_pose", "predict_expression"]
    crops = ["reconstruct", "neutralize", "frontalize", "transfer_expression"]
    assert IPDFER(**TINY["ipd-fer"]).capabilities() == able + crops
    able.remove("encode_pose")
    encoders = IPDFER(BACKBONE, 24, pose_backbone=None, decoder_size=None)
    assert encoders.capabilities() == able


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_lists_every_capability_that_it_has(name):
    family = model_class(name)
    assert set(family.provides) <= set(CAPABILITIES)
    assert len(set(family.provides)) == len(family.provides)
    own = {word for word in vars(family) if word in CAPABILITIES}
    assert own <= set(family.provides)
    assert all(callable(getattr(family, word)) for word in family.provides)


def test_a_method_of_other_models_names_these_models():
    model = facezoo.load("adv3d", device="cpu")
    assert not hasattr(model, "predict_expression")
    with pytest.raises(UnsupportedError, match=r"support predict_expression\(\); .* ipd-fer$"):
        model.predict_expression("face.obj")
    with pytest.raises(UnsupportedError, match=r"models that do: latentface$"):
        IPDFER(**TINY["ipd-fer"]).depth("face.jpg")
    with pytest.raises(AttributeError, match="no attribute 'depths'"):
        IPDFER(**TINY["ipd-fer"]).depths("face.jpg")


@pytest.mark.parametrize("method", ["encode_expression", "predict_expression"])
def test_unsupported_methods_raise_an_error_that_names_models_with_them(method):
    with pytest.raises(
        UnsupportedError, match=rf"only-identity does not support {method}\(\); .*ipd-fer"
    ):
        getattr(OnlyIdentity(), method)("never read.jpg")


@pytest.mark.parametrize("wanted", [["expression"], "expression"])
def test_run_names_what_it_can_be_asked_for(wanted):
    with pytest.raises(
        ValueError, match=r"unknown stage 'e.*; expected one of encode_expression, "
    ):
        OnlyIdentity().run(torch.rand(1, 3, 112, 112), wanted)
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        OnlyIdentity().run(torch.rand(1, 3, 112, 112), ["encode_identity"], batch_size=0)


def test_run_rejects_what_a_model_cannot_do():
    with pytest.raises(UnsupportedError, match="does not support encode_expression"):
        OnlyIdentity().run(torch.rand(1, 3, 112, 112), ["encode_identity", "encode_expression"])


def test_a_path_given_to_forward_is_an_error_that_names_the_method_for_images(model):
    with pytest.raises(ValueError, match=r"got str; for image files.* call encode_expression\(\)"):
        model("portrait.jpg")
    with pytest.raises(ValueError, match=r"got torch\.uint8; expected normalized floating point"):
        model(torch.zeros(1, *model.input_shape, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 8, 9), (1, 8, 8, 3), (0,)])
def test_a_batch_of_another_shape_raises_an_error(shape):
    with pytest.raises(ValueError, match=r"crops must be \(B, 3, 8, 8\), got "):
        check_shape(torch.zeros(shape), (3, 8, 8), name="crops")
    check_shape(torch.zeros(0, 3, 8, 8), (3, 8, 8))


# The contract of every family.


PHOTO_MODELS = [name for name in FAMILIES if issubclass(model_class(name), FaceModel)]


@pytest.fixture(params=PHOTO_MODELS)
def family(request):
    """A tiny model of a family with random weights, and a batch for it."""
    options = TINY.get(request.param, {})
    model = facezoo.load(request.param, pretrained=False, device="cpu", **options)
    return model, torch.rand(2, *model.input_shape) * 2 - 1


def stages_of(model):
    return [model.stage(name) for name in stage_names(model)]


def stage_names(model):
    return [name for name in model.capabilities() if name in STAGES]


def rows_of(result):
    return result if isinstance(result, torch.Tensor) else flatten_rows(result)


def test_a_family_is_a_face_model_in_eval_mode_that_can_do_something(family):
    model, _ = family
    assert isinstance(model, FaceModel)
    assert not model.training
    assert model.card is None
    assert model.model_name in facezoo.list_models()
    assert model.input_shape == (3, model.preprocessing.size, model.preprocessing.size)
    assert model.capabilities()
    assert ("predict_expression" in model.capabilities()) <= bool(model.labels)


def test_a_familys_stages_take_a_batch_and_keep_gradients(family):
    model, batch = family
    batch.requires_grad_()
    for stage in stages_of(model):
        features = rows_of(stage(batch))
        assert features.shape[0] == 2
        batch.grad = None
        features.square().sum().backward()
        assert batch.grad.abs().sum() > 0


def test_a_familys_stages_are_deterministic_and_rows_independent(family):
    model, batch = family
    with torch.no_grad():
        for stage in stages_of(model):
            features = rows_of(stage(batch))
            torch.testing.assert_close(rows_of(stage(batch)), features, atol=0, rtol=0)
            single = rows_of(stage(batch[1:]))
            torch.testing.assert_close(single, features[1:], atol=1e-4, rtol=1e-4)


def test_a_familys_stages_reject_other_shapes(family):
    model, batch = family
    for stage in stages_of(model):
        with pytest.raises(ValueError, match="got "):
            stage(batch[0])
        with pytest.raises(ValueError, match="got "):
            stage(batch[..., :-1])


def test_a_familys_state_makes_the_same_model_again(family):
    model, batch = family
    again = type(model)(**model.architecture).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        for first, second in zip(stages_of(model), stages_of(again), strict=True):
            torch.testing.assert_close(rows_of(first(batch)), rows_of(second(batch)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_family_encodes_in_other_precisions_and_gives_float32(family, dtype):
    model, batch = family
    wanted = model.run(batch, stage_names(model))
    result = model.to(dtype).run(batch, stage_names(model))
    assert model.dtype == dtype
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    for name, rows in result.items():
        rows, expected = rows_of(rows), rows_of(wanted[name])
        assert rows.dtype == torch.float32
        close = torch.isclose(rows, expected, atol=tolerance, rtol=tolerance)
        # A pixel on the outline of a drawn face may be covered in one precision and not in another.
        assert close.float().mean() > 0.999


def test_a_family_encodes_images(family):
    model, _ = family
    for name in stage_names(model):
        result = getattr(model, name)(PORTRAITS[:2])
        assert len(result) == 2


def test_all_that_a_family_gives_can_be_learned_from(family):
    model, batch = family
    given = list(model.run(batch, stage_names(model)).values())
    given += [getattr(model, name)(PORTRAITS[:2]) for name in stage_names(model)]
    given.append(model.encode(PORTRAITS[0]))
    for name in ("depth", "normals", "albedo", "invert"):
        given += [getattr(model, name)(PORTRAITS[0])] if hasattr(model, name) else []
    for name in ("transfer_expression", "mix_styles"):
        given += [getattr(model, name)(PORTRAITS[0], PORTRAITS[1])] if hasattr(model, name) else []
    assert not [one for one in given for tensor in tensors_in(one) if tensor.is_inference()]


def tensors_in(result):
    """The tensors of a result, which may be a dataclass of such."""
    if isinstance(result, torch.Tensor):
        return [result]
    parts = vars(result).values() if is_dataclass(result) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


def test_an_expression_goes_to_no_face_and_comes_from_none(family):
    model, _ = family
    one, none = [PORTRAITS[0]], [EMPTY]
    for source in (one, none):
        made = model.transfer_expression(source, none, on_missing="skip")
        assert made.shape == (0, *model.input_shape)
    with pytest.raises(ValueError, match="no face was found in the source; pass one source"):
        model.transfer_expression(none, one, on_missing="skip")
    made = model.transfer_expression(one, [*one, EMPTY], on_missing="nan")
    assert made.isnan().flatten(1).all(1).tolist() == [False, True]


def test_images_are_made_in_eval_mode(model):
    modes = []
    model.train().decoder.register_forward_hook(lambda part, *_: modes.append(part.training))
    model.transfer_expression(PORTRAITS[0], PORTRAITS[1])
    assert set(modes) == {False}
    assert model.decoder.training
