"""The model of IPD-FER: shapes, stages, gradients and its classifier."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import group_parameters
from torch import nn

import facezoo
from facezoo.errors import UnsupportedError
from facezoo.landmarks import FRONTAL_PITCH_DEG
from facezoo.models.ipd_fer import IPDFER
from facezoo.models.ipd_fer.networks import Decoder, Encoder
from facezoo.models.resnet import ResNet
from facezoo.results import EXPRESSIONS

BACKBONE = "test_resnet.r160_in1k"


@pytest.fixture
def model():
    return IPDFER(BACKBONE, 24, 8, BACKBONE, decoder_size=28, decoder_width=8).eval()


@pytest.fixture
def batch():
    return torch.rand(3, 3, 112, 112) * 2 - 1


def learned(part):
    return {name for name, p in part.named_parameters() if p.grad is not None and p.grad.any()}


@pytest.mark.parametrize("dim", [24, 512])
def test_an_encoder_gives_features_of_the_wanted_width(dim):
    encoder = Encoder(BACKBONE, dim)
    assert encoder(torch.rand(2, 3, 64, 64)).shape == (2, dim)


def test_an_encoder_projects_only_where_the_widths_differ():
    width = Encoder(BACKBONE, 24).backbone.num_features
    assert isinstance(Encoder(BACKBONE, width).projection, nn.Identity)
    assert isinstance(Encoder(BACKBONE, width + 1).projection, nn.Linear)


def test_a_training_encoder_centres_its_features():
    features = Encoder(BACKBONE, 24)(torch.rand(8, 3, 32, 32))
    torch.testing.assert_close(features.mean(0), torch.zeros(24), atol=1e-4, rtol=0)


def test_stages_give_features_and_logits(model, batch):
    assert model.embed_expression(batch).shape == (3, 24)
    assert model.embed_identity(batch).shape == (3, 24)
    assert model.classify_expression(batch).shape == (3, 8)
    assert model.num_features == 24


def test_the_classifier_reads_expression_features(model, batch):
    features = model.embed_expression(batch)
    torch.testing.assert_close(model.forward_features(batch), features)
    torch.testing.assert_close(model(batch), model.expression_classifier(features))


def test_identity_and_expression_have_encoders_of_their_own(model, batch):
    assert not torch.allclose(model.embed_expression(batch), model.embed_identity(batch))
    model.embed_expression(batch).sum().backward()
    assert learned(model.expression_encoder)
    assert not learned(model.identity_encoder)
    assert not learned(model.expression_classifier)


@pytest.mark.parametrize("stage", ["embed_expression", "embed_identity", "classify_expression"])
def test_stages_keep_gradients_to_the_pixels(model, batch, stage):
    batch.requires_grad_()
    getattr(model, stage)(batch).square().sum().backward()
    assert batch.grad.abs().sum() > 0


@pytest.mark.parametrize("stage", ["embed_expression", "embed_identity", "forward"])
@pytest.mark.parametrize(
    "shape", [(3, 112, 112), (2, 1, 112, 112), (2, 3, 112, 96), (2, 112, 112, 3)]
)
def test_other_shapes_raise_an_error_with_the_expected_shape(model, stage, shape):
    with pytest.raises(ValueError, match=r"must be \(B, 3, 112, 112\), got .*encode_expression"):
        getattr(model, stage)(torch.zeros(shape))


def test_the_architecture_builds_the_model_again(model, batch):
    model.reset_classifier(5)
    again = IPDFER(**model.architecture).eval()
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(batch), model(batch))


def test_eight_classes_have_the_words_of_ferplus_and_other_numbers_have_none(model):
    assert model.labels == EXPRESSIONS
    assert IPDFER(BACKBONE, 24, num_classes=3).labels == ("class_0", "class_1", "class_2")


def test_a_new_classifier_changes_the_logits_and_nothing_else(model, batch):
    features = model.embed_expression(batch)
    model.reset_classifier(3, ("calm", "cheerful", "cross"))
    assert model(batch).shape == (3, 3)
    assert model.labels == ("calm", "cheerful", "cross")
    assert model.architecture["num_classes"] == 3
    torch.testing.assert_close(model.embed_expression(batch), features)


def test_a_new_classifier_without_labels_numbers_its_classes(model):
    model.reset_classifier(8)
    assert model.labels == tuple(f"class_{i}" for i in range(8))


def test_a_new_classifier_is_of_the_models_precision(model):
    model.double().reset_classifier(4)
    assert model.expression_classifier.weight.dtype == torch.float64


def test_labels_that_do_not_fit_the_classes_raise_an_error(model):
    with pytest.raises(ValueError, match="labels must be 3 words, one per class, got 2"):
        model.reset_classifier(3, ("yes", "no"))
    assert model.labels == EXPRESSIONS


def test_a_classifier_without_names_for_its_outputs_is_an_error():
    model = IPDFER(BACKBONE, 16, 8, None, None).eval()
    model.expression_classifier = torch.nn.Linear(16, 3)
    with pytest.raises(ValueError, match="has 3 outputs, and the model has 8 labels"):
        model.predict_expression(torch.zeros(1, 3, 112, 112), aligned=True)


@pytest.mark.parametrize("count", [np.arange(3).max() + 1, torch.tensor(3)])
def test_classes_counted_by_numpy_or_torch_can_be_saved(model, tmp_path, count):
    model.reset_classifier(count)
    assert facezoo.load(model.save_pretrained(tmp_path)).labels == model.labels
    assert IPDFER(BACKBONE, 24, num_classes=count).architecture["num_classes"] == 3
    assert type(model.architecture["num_classes"]) is int


def test_labels_may_come_from_numpy_and_are_saved(model, tmp_path):
    model.reset_classifier(labels=np.unique(["calm", "cross", "calm"]))
    assert model.labels == ("calm", "cross")
    assert facezoo.load(model.save_pretrained(tmp_path)).labels == ("calm", "cross")


@pytest.mark.parametrize("labels", [[0, 1], ["calm", "calm"], "calm", [None, "calm"], [1.5, "b"]])
def test_labels_are_different_words(model, labels):
    with pytest.raises(ValueError, match="labels must be different words, one per class, got"):
        model.reset_classifier(labels=labels)
    assert model.labels == EXPRESSIONS


def test_a_step_on_the_logits_leaves_the_identity_encoder_alone(model, batch):
    for parameter in model.parameters():  # timm starts residual branches at zero
        nn.init.normal_(parameter, std=0.1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.train()
    nn.functional.cross_entropy(model(batch), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert {k.split(".")[0] for k in changed} == {"expression_encoder", "expression_classifier"}
    parameters = {n for n, _ in model.named_parameters() if n.startswith("expression_")}
    assert parameters <= changed


@pytest.mark.parametrize("name", ["resnet18", "resnet10t"])
def test_the_small_resnets_are_those_of_timm(name):
    torch.manual_seed(0)
    expected = timm.create_model(name, num_classes=0).eval()
    torch.manual_seed(0)
    network = ResNet(name).eval()
    assert list(network.state_dict()) == list(expected.state_dict())
    torch.testing.assert_close(network.state_dict(), expected.state_dict(), atol=0, rtol=0)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), expected(images))
        options = {"indices": [0, 2], "stop_early": True, "intermediates_only": True}
        maps = [n.forward_intermediates(images, **options) for n in (network, expected)]
    torch.testing.assert_close(*maps)
    layers = [group_parameters(n, n.group_matcher(), reverse=True) for n in (network, expected)]
    assert layers[0] == layers[1]


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "test_vit.r160_in1k"])
def test_backbones_with_a_wider_head_or_a_fixed_input_size_work(backbone):
    encoder = Encoder(backbone, 16).eval()
    assert encoder(torch.randn(2, 3, 112, 112)).shape == (2, 16)


def test_a_classifier_without_classes_raises_an_error():
    with pytest.raises(ValueError, match="num_classes=0"):
        IPDFER(BACKBONE, 16).reset_classifier(0)


def test_a_separate_pose_encoder_predicts_five_classes(model, batch):
    features = model.embed_pose(batch)
    assert features.shape == (3, 24)
    assert model.classify_pose(features).shape == (3, 5)
    assert not torch.allclose(features, model.embed_identity(batch))


def test_images_are_decoded_from_the_sums_that_section_3_1_names(model, batch):
    identity, pose = model.embed_identity(batch), model.embed_pose(batch)
    expression = model.embed_expression(batch)
    torch.testing.assert_close(model.frontalize_crops(batch), model.decode(identity))
    torch.testing.assert_close(model.neutralize_crops(batch), model.decode(identity + pose))
    whole = model.decode(identity + pose + expression)
    torch.testing.assert_close(model.reconstruct_crops(batch), whole)
    assert whole.shape == batch.shape
    assert whole.abs().max() <= 1


def test_expression_is_encoded_without_the_other_networks(model, batch, monkeypatch):
    for part in ("identity_encoder", "pose_encoder", "decoder"):
        monkeypatch.setattr(getattr(model, part), "forward", None)
    model.run(batch, ["encode_expression", "predict_expression"])


@pytest.mark.parametrize(("size", "stages"), [(14, 2), (56, 4), (112, 5)])
def test_a_decoder_has_one_stage_for_each_doubling(size, stages):
    decoder = Decoder(24, size, width=32)
    assert len(decoder.stages) == stages
    assert decoder.generate(torch.randn(2, 24)).shape == (2, 3, size, size)
    assert decoder(torch.randn(2, 24)).shape == (2, 3, 112, 112)


def test_a_decoder_of_a_size_that_doubling_does_not_reach_raises_an_error():
    with pytest.raises(ValueError, match=r"14, 28, 56, 112, \.\.\. pixels, got 60"):
        Decoder(24, 60)
    with pytest.raises(ValueError, match="width 4 cannot be halved 4 times"):
        Decoder(24, 112, width=4)


def test_features_of_lower_rank_keep_to_their_subspace(batch):
    model = IPDFER(BACKBONE, 24, 8, None, None, expression_rank=3).eval()
    features = model.embed_expression(torch.rand(20, 3, 112, 112))
    assert torch.linalg.matrix_rank(features - features.mean(0), tol=1e-4) <= 3
    model.expression_encoder.norm.bias.data.normal_()
    features = model.run(batch, "encode_expression")
    compact = model.compact_expression(features)
    assert compact.shape == (len(batch), 3)
    torch.testing.assert_close(torch.cdist(compact, compact), torch.cdist(features, features))
    crops = list((batch - batch.amin()) / (batch.amax() - batch.amin()))
    encoded = model.encode(crops, aligned=True, compact=True).expression
    assert torch.equal(encoded, model.encode_expression(crops, aligned=True, compact=True))


def test_features_of_full_rank_have_no_compact_form(batch):
    model = IPDFER(BACKBONE, 24, 8, None, None).eval()
    features = model.run(batch, "encode_expression")
    assert model.expression_basis() is None
    assert model.compact_expression(features) is features


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_features_of_lower_rank_are_the_same_in_other_precisions(batch, dtype):
    model = IPDFER(BACKBONE, 24, 8, None, None, expression_rank=3).eval()
    with torch.no_grad():
        expected = model.embed_expression(batch)
        found = model.to(dtype).embed_expression(batch.to(dtype))
    assert found.dtype == dtype
    assert torch.cosine_similarity(found.float(), expected).min() > 0.999


def test_without_a_pose_branch_a_neutral_face_is_identity_alone(batch):
    model = IPDFER(BACKBONE, 24, 8, None, 14, 8).eval()
    torch.testing.assert_close(model.neutralize_crops(batch), model.frontalize_crops(batch))
    both = model.embed_identity(batch) + model.embed_expression(batch)
    torch.testing.assert_close(model.reconstruct_crops(batch), model.decode(both))
    with pytest.raises(UnsupportedError, match="without a pose branch"):
        model.encode_pose(batch[0], aligned=True)
    with pytest.raises(UnsupportedError, match="without a pose branch"):
        model.embed_pose(batch)


def test_public_images_are_rgb_in_the_models_template(model):
    crops = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    images = list(crops)
    unit = (model.reconstruct_crops(crops / 127.5 - 1) + 1) / 2
    torch.testing.assert_close(model.reconstruct(images, aligned=True), unit, atol=1e-3, rtol=0)
    for method in (model.neutralize, model.frontalize):
        made = method(images, aligned=True)
        assert made.shape == (2, 3, 112, 112)
        assert made.min() >= 0
        assert made.max() <= 1


def test_an_expression_is_transferred_onto_every_target(model):
    source, *targets = torch.randint(0, 256, (3, 3, 112, 112), dtype=torch.uint8)
    batch = torch.stack([source, *targets]) / 127.5 - 1
    features = model.embed_identity(batch) + model.embed_pose(batch)
    wanted = model.decode(features[1:] + model.embed_expression(batch)[:1])
    made = model.transfer_expression(source, targets, strength=1, aligned=True, detail=False)
    torch.testing.assert_close(made, (wanted + 1) / 2, atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="got 2 source faces and 3 target faces"):
        model.transfer_expression(targets, [source, *targets], aligned=True)


@pytest.fixture
def ours():
    model = IPDFER(
        BACKBONE, 24, 8, BACKBONE, 28, 8, pose_bottleneck=True, removed_directions=2
    ).eval()
    for tensor in model.expression_removal.buffers():
        nn.init.normal_(tensor, std=0.1)
    return model


def test_a_pose_bottleneck_passes_four_numbers(ours):
    images = torch.rand(20, 3, 112, 112) * 2 - 1
    pose = ours.estimate_pose(images)
    assert pose.shape == (20, 4)
    features = ours.embed_pose(images)
    torch.testing.assert_close(features, ours.pose_encoder.expansion(pose))
    assert torch.linalg.matrix_rank(features - features.mean(0), tol=1e-4) <= 4


def test_without_a_pose_bottleneck_there_are_no_angles(model, batch):
    with pytest.raises(UnsupportedError, match="no pose bottleneck"):
        model.estimate_pose(batch)
    assert model.classify_pose(model.embed_pose(batch)).shape == (3, 5)


def test_identity_features_are_those_after_the_removal_of_expression(ours, batch):
    expected = ours.expression_removal(ours.identity_encoder(batch))
    torch.testing.assert_close(ours.embed_identity(batch), expected)
    posed = ours.decode(expected + ours.embed_pose(batch))
    torch.testing.assert_close(ours.neutralize_crops(batch), posed)


@pytest.mark.parametrize("stage", ["identity", "pose"])
def test_features_of_the_new_parts_are_the_same_as_a_timm_model(ours, batch, stage):
    expected = getattr(ours, f"embed_{stage}")(batch)
    torch.testing.assert_close(ours.as_timm(stage)(batch), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_the_new_parts_are_saved_and_loaded(ours, batch, tmp_path, dtype):
    loaded = facezoo.load(ours.save_pretrained(tmp_path), dtype=dtype)
    for stage in ("embed_identity", "embed_pose"):
        expected, found = (getattr(m, stage)(batch.to(m.dtype)) for m in (ours, loaded))
        torch.testing.assert_close(found.float(), expected, atol=3e-2, rtol=3e-2)


def test_a_model_saved_in_int8_keeps_the_removal_exact(ours, batch, tmp_path):
    loaded = facezoo.load(ours.save_pretrained(tmp_path, dtype="int8"))
    before, after = (m.expression_removal.state_dict() for m in (ours, loaded))
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=2e-3, rtol=2e-2)


def test_predicted_angles_are_those_of_the_crop_in_degrees(ours):
    crops = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    pose = ours.predict_pose(list(crops), aligned=True)
    expected = torch.rad2deg(ours.estimate_pose(crops / 127.5 - 1)[:, :3])
    expected[:, 1] -= FRONTAL_PITCH_DEG
    found = torch.stack([pose.yaw_deg, pose.pitch_deg, pose.roll_deg], 1)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-3)
    assert pose.faces is None
    assert len(pose) == 2


def test_roll_follows_the_rotation_of_the_image(ours):
    image = Image.open("examples/portraits/grace_hopper.jpg").convert("RGB")
    # The landmarks and the network's own share differ by a few degrees.
    pose = ours.predict_pose([image, image.rotate(-15, Image.Resampling.BICUBIC)])
    assert float(pose.roll_deg[1] - pose.roll_deg[0]) == pytest.approx(15, abs=5)
    blank = ours.predict_pose([image, Image.new("RGB", (90, 90))], on_missing="nan")
    assert blank.roll_deg.isnan().tolist() == [False, True]


def test_poses_need_a_bottleneck(model, ours):
    assert "predict_pose" in ours.capabilities()
    assert "predict_pose" not in model.capabilities()
    with pytest.raises(UnsupportedError, match="no pose bottleneck"):
        model.predict_pose(torch.zeros(3, 112, 112), aligned=True)


def test_a_reduced_model_keeps_only_the_networks_of_its_stages():
    model = facezoo.load("ipd-fer", device="cpu")
    crops = torch.rand(9, *model.input_shape, generator=torch.Generator().manual_seed(0))
    names = ["encode_expression", "predict_expression"]
    expected = model.run(crops, names)
    model.reduce_to(names)
    torch.testing.assert_close(model.run(crops, names), expected, rtol=0, atol=0)
    assert [name for name in model.networks if getattr(model, name) is not None] == [
        "expression_encoder"
    ]
    model.reduce_to([])
    assert not [name for name in model.networks if getattr(model, name) is not None]
