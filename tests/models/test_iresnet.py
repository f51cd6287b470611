"""The residual network of ArcFace: its layout, its stages and its head."""

import pytest
import torch
from golden_vectors import arrays, inputs, relative_error, variants
from published_weights import load_filled, statistics

from facezoo.errors import WeightsError
from facezoo.models.latent_simclr.convert import iresnet_from, trunk_tensors
from facezoo.models.latent_simclr.iresnet import (
    IRESNET18,
    IRESNET34,
    IRESNET50,
    IRESNET100,
    IResNet,
    IResNetTrunk,
)

DEPTHS = {
    "iresnet18": IRESNET18,
    "iresnet34": IRESNET34,
    "iresnet50": IRESNET50,
    "iresnet100": IRESNET100,
}


@pytest.mark.parametrize(("size", "sides"), [(112, [56, 28, 14, 7]), (50, [25, 13, 7, 4])])
def test_every_stage_halves_the_resolution_and_doubles_the_channels(size, sides):
    stages = IResNetTrunk(IRESNET18, width=4).eval().stages(torch.randn(2, 3, size, size))
    wanted = [(2, 4 * 2**k, side, side) for k, side in enumerate(sides)]
    assert [tuple(stage.shape) for stage in stages] == wanted


def test_a_block_normalises_first_and_does_not_activate_its_sum():
    trunk = IResNetTrunk((2, 1, 1, 1), width=3).eval()
    block = trunk.layer1[1]
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    block.bn1.running_mean.normal_()
    block.bn3.running_var.uniform_(0.5, 2)
    features = torch.randn(2, 3, 6, 6)

    def norm(value, layer):
        scale = layer.weight / (layer.running_var + 1e-5).sqrt()
        shift = layer.bias - layer.running_mean * scale
        return value * scale[:, None, None] + shift[:, None, None]

    def convolved(value, layer):
        return torch.conv2d(value, layer.weight, padding=1)

    inner = norm(convolved(norm(features, block.bn1), block.conv1), block.bn2)
    slope = block.prelu.weight[:, None, None]
    inner = torch.where(inner > 0, inner, slope * inner)
    wanted = features + norm(convolved(inner, block.conv2), block.bn3)
    torch.testing.assert_close(block(features), wanted, atol=1e-4, rtol=1e-4)
    assert block(features).min() < 0


def test_only_the_first_block_of_a_stage_has_a_shortcut_with_weights():
    trunk = IResNetTrunk((2, 3, 1, 1), width=2)
    assert [block.downsample is None for block in trunk.layer2] == [False, True, True]
    assert trunk.layer1[0].downsample is not None


@pytest.mark.parametrize("size", [112, 64])
def test_a_recognizer_gives_embeddings_of_its_own_size_of_images(size):
    model = IResNet(IRESNET18, width=2, num_features=12, size=size).eval()
    assert model(torch.randn(2, 3, size, size)).shape == (2, 12)
    with pytest.raises(ValueError, match=rf"\(B, 3, {size}, {size}\), got \(2, 3, 80, 80\)"):
        model(torch.zeros(2, 3, 80, 80))


def test_the_embedding_of_a_new_recognizer_is_standardized_in_training():
    model = IResNet((1, 1, 1, 1), width=2, num_features=6, size=16)
    embeddings = model(torch.randn(32, 3, 16, 16))
    torch.testing.assert_close(embeddings.mean(0), torch.zeros(6), atol=1e-4, rtol=0)
    assert not model.features.weight.requires_grad


@pytest.mark.parametrize("size", [112, 64])
def test_the_architecture_of_a_published_recognizer_is_inferred(size):
    model = IResNet((1, 2, 1, 3), width=4, num_features=10, size=size).eval()
    architecture, tensors = iresnet_from(model.state_dict())
    again = IResNet(**architecture).eval()
    again.load_state_dict(tensors)
    images = torch.randn(2, 3, size, size)
    torch.testing.assert_close(again(images), model(images))


def test_a_trunk_takes_a_recognizer_without_its_head():
    model = IResNet((1, 2, 1, 1), width=4, num_features=10).eval()
    architecture, tensors = iresnet_from(model.state_dict())
    trunk = IResNetTrunk(architecture["depths"], architecture["width"]).eval()
    trunk.load_state_dict(trunk_tensors(tensors))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(trunk.stages(images), model.stages(images))
    alone, _ = iresnet_from(trunk.state_dict())
    assert alone == {"depths": (1, 2, 1, 1), "width": 4}


def test_files_without_a_recognizer_raise_an_error_with_their_keys():
    with pytest.raises(WeightsError, match="not an iresnet: the keys are 'a', 'b'"):
        iresnet_from({"a": torch.zeros(1), "b": torch.zeros(1)})


@pytest.mark.parametrize("name", ["iresnet18", "iresnet50"])
@torch.no_grad()
def test_golden_embeddings_and_stages(name):
    reference = arrays("iresnet")
    model = load_filled(IResNet(DEPTHS[name]), "iresnet", name)
    images, seen = inputs("iresnet")["input"], {}
    for stage in reference[f"{name}_stage_names"]:
        hook = lambda m, i, o, n=stage: seen.update({n: o})  # noqa: E731
        model.get_submodule(stage).register_forward_hook(hook)
    embedding = model(images)
    assert relative_error(embedding, reference[f"{name}_embedding"]) < 1e-4
    stats = [statistics(seen[stage]) for stage in reference[f"{name}_stage_names"]]
    assert relative_error(stats, reference[f"{name}_stage_stats"]) < 1e-4
    for stage in ("prelu", "layer1", "layer2", "layer3", "layer4"):
        wanted = reference[f"{name}_{stage}_sub"]
        assert relative_error(seen[stage][0, ::8, ::7, ::7], wanted) < 1e-4
    for index, stage in enumerate(model.stages(images), 1):
        assert torch.equal(stage, seen[f"layer{index}"])


@pytest.mark.parametrize("name", DEPTHS)
def test_golden_names_and_shapes_of_every_depth(name):
    listed = variants("iresnet")[name]["tensors"]
    with torch.device("meta"):
        state = IResNet(DEPTHS[name]).state_dict()
    assert [[k, list(v.shape)] for k, v in state.items()] == [row[:2] for row in listed]
