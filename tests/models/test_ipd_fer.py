"""The model of IPD-FER: shapes, stages, gradients and its classifier."""

import pytest
import torch
from torch import nn

from facezoo.models.ipd_fer import IPDFER
from facezoo.models.ipd_fer.networks import Encoder
from facezoo.results import EXPRESSIONS

BACKBONE = "test_resnet.r160_in1k"


@pytest.fixture
def model():
    return IPDFER(BACKBONE, feature_dim=24).eval()


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
def test_other_shapes_are_refused_with_what_was_wanted(model, stage, shape):
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


def test_labels_that_do_not_fit_the_classes_are_refused(model):
    with pytest.raises(ValueError, match="num_classes=3 and 2 labels"):
        model.reset_classifier(3, ("yes", "no"))
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
    assert not {k for k in changed if k.startswith("identity_encoder.")}
    parameters = {n for n, _ in model.named_parameters() if not n.startswith("identity_encoder.")}
    assert parameters <= changed


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "test_vit.r160_in1k"])
def test_backbones_with_a_wider_head_or_a_fixed_input_size_work(backbone):
    encoder = Encoder(backbone, 16).eval()
    assert encoder(torch.randn(2, 3, 112, 112)).shape == (2, 16)


def test_a_classifier_without_classes_is_refused():
    with pytest.raises(ValueError, match="num_classes=0"):
        IPDFER(BACKBONE, 16).reset_classifier(0)
