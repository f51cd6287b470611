"""Folded convolutions compute what their layers compute, whatever happens to the layers."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from facezoo import folding
from facezoo.folding import convolve

IMAGES = torch.randn(2, 64, 9, 9, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def layers():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)).eval()
    for tensor in (layers[1].running_mean, layers[1].weight.data, layers[1].bias.data):
        tensor.uniform_(0.5, 1.5)
    return layers


def folded(layers, **options):
    """Compute without gradients, which folds, and compare with the layers one by one."""
    with torch.no_grad():
        result = convolve(IMAGES, *layers, relu=False, **options)
    with torch.enable_grad():
        expected = layers(IMAGES).detach()
    torch.testing.assert_close(result, expected + options.get("add", 0))
    return result


def test_an_addition_and_a_relu_are_part_of_the_step(layers):
    folded(layers, add=IMAGES)
    with torch.no_grad():
        result = convolve(IMAGES, *layers, add=IMAGES)
        torch.testing.assert_close(result, (layers(IMAGES) + IMAGES).relu())


def test_the_state_dict_and_copies_are_those_of_the_plain_layers(layers):
    before = deepcopy(layers.state_dict())
    folded(layers)
    torch.testing.assert_close(layers.state_dict(), before, atol=0, rtol=0)
    folded(deepcopy(layers))


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers[0].weight.data.mul_(2),
        lambda layers: layers[1].weight.data.add_(1),
        lambda layers: layers[1].running_mean.zero_(),
        lambda layers: layers.load_state_dict({k: v * 3 for k, v in layers.state_dict().items()}),
        lambda layers: setattr(layers[0], "weight", nn.Parameter(layers[0].weight * 2)),
    ],
)
def test_changed_weights_are_used(layers, change):
    before = folded(layers)
    change(layers)
    assert not torch.allclose(folded(layers), before)


def test_hooks_of_the_layers_run(layers):
    calls = []
    for layer in layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        convolve(IMAGES, *layers)
    assert len(calls) == 2


def test_gradients_and_training_reach_the_layers(layers):
    convolve(IMAGES, *layers).sum().backward()
    assert layers[0].weight.grad.abs().sum() > 0
    mean = layers.train()[1].running_mean.clone()
    with torch.no_grad():
        convolve(IMAGES, *layers)
    assert not torch.equal(layers[1].running_mean, mean)


@pytest.mark.skipif(not folding._supported(torch.float32), reason="oneDNN is missing")
def test_folding_happens_where_onednn_is_there(layers):
    folded(layers)
    assert layers[0] in folding._FOLDED
