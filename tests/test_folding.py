"""Fused convolutions compute what the layers of a network compute, whatever happens to these."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from facezoo import folding
from facezoo.models.resnet import DEPTHS, ResNet

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=DEPTHS)
def network(request):
    torch.manual_seed(0)
    network = ResNet(request.param).eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor in (part.running_mean, part.running_var, part.weight.data, part.bias.data):
                tensor.uniform_(0.5, 1.5)
    return network


def features(network):
    """Compute without gradients, which fuses, and compare with the layers one by one."""
    with torch.no_grad():
        result = network(IMAGES)
    with torch.enable_grad():
        expected = network(IMAGES).detach()
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)
    return result


@pytest.mark.skipif(not folding._supported(torch.float32), reason="oneDNN is missing")
def test_a_network_is_fused_once_where_onednn_is_there(network, monkeypatch):
    features(network)
    monkeypatch.setattr(folding, "fuse", None)
    features(network)
    assert network in folding._FUSED


def test_the_state_dict_and_copies_are_those_of_the_plain_layers(network):
    before = deepcopy(network.state_dict())
    features(network)
    torch.testing.assert_close(network.state_dict(), before, atol=0, rtol=0)
    features(deepcopy(network))


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.bn1.weight.data.add_(1),
        lambda net: net.layer3[0].conv2.weight.data.mul_(2),
        lambda net: net.bn1.running_mean.zero_(),
        lambda net: net.layer1[0].conv1.weight.data[5].zero_(),
        lambda net: net.layer4[0].conv1.weight.data[:, 7].zero_(),
        lambda net: net.layer2[0].bn1.bias.data[3].add_(1),
        lambda net: net.layer3[0].conv1.weight.detach().numpy()[2].fill(0),
        lambda net: setattr(net.layer1[0].bn1, "eps", 1.0),
        lambda net: setattr(net.layer1[0], "forward", lambda x: x * 0),
        lambda net: net.load_state_dict({k: v * 1.1 for k, v in net.state_dict().items()}),
        lambda net: setattr(net.layer1[0].conv1, "weight", nn.Parameter(torch.ones(64, 64, 3, 3))),
        lambda net: setattr(net, "maxpool", nn.MaxPool2d(5, 2, 2)),
        lambda net: setattr(net.layer2[0], "conv2", nn.Conv2d(128, 128, 1)),
        lambda net: setattr(net.layer2[0], "bn2", nn.Identity()),
        lambda net: setattr(net.layer2[0], "conv2", nn.Sequential(nn.Conv2d(128, 128, 1))),
    ],
)
def test_changed_weights_and_layers_are_used(network, change):
    before = features(network)
    change(network)
    assert not torch.allclose(features(network), before)


def test_hooks_of_all_modules_run(network):
    features(network)
    seen = []
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    with hook, torch.no_grad():
        network(IMAGES)
    assert nn.Conv2d in seen


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")  # torch's own
def test_transforms_of_functions_reach_the_layers(network):
    tangent = torch.ones_like(IMAGES)
    expected = torch.func.jvp(network, (IMAGES,), (tangent,))[1].detach()
    with torch.no_grad():
        network(IMAGES)
        result = torch.func.jvp(network, (IMAGES,), (tangent,))[1]
        each = torch.vmap(lambda image: network(image[None])[0])(IMAGES)
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(each, features(network), rtol=1e-3, atol=1e-3)


def test_hooks_of_the_layers_run(network):
    calls = []
    for layer in (network.layer1, network.layer1[0], network.layer1[0].conv1, network.bn1):
        layer.register_forward_hook(lambda *_: calls.append(1))
    features(network)
    assert len(calls) == 8, "once with and once without gradients"


def test_gradients_and_training_reach_the_layers(network):
    network(IMAGES).sum().backward()
    assert network.layer1[0].conv1.weight.grad.abs().sum() > 0
    mean = network.train().bn1.running_mean.clone()
    with torch.no_grad():
        network(IMAGES)
    assert not torch.equal(network.bn1.running_mean, mean)


@pytest.mark.filterwarnings("ignore:.*jit.trace")
def test_a_network_is_traced_by_its_layers(network):
    with torch.no_grad():
        traced = torch.jit.trace(network, IMAGES)  # which compares two runs
        torch.testing.assert_close(traced(IMAGES), network(IMAGES), rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not folding._supported(torch.float32), reason="oneDNN is missing")
def test_freed_weights_are_in_memory_only_as_fused_ones_with_the_same_features(network):
    freed = deepcopy(network)
    freed.frees_weights = True
    with torch.no_grad():
        expected = network(IMAGES)
        for _ in range(2):
            assert torch.equal(freed(IMAGES), expected)
    wide = [m for m in freed.modules() if isinstance(m, nn.Conv2d) and m.out_channels % 64 == 0]
    assert wide
    assert all(layer.weight is None for layer in wide)


def test_parts_of_a_batch_have_the_maps_of_the_whole_batch(network):
    images = torch.randn(19, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        whole = network.forward_intermediates(images)  # the first maps are needed as a whole
        for index, expected in enumerate(whole):
            assert torch.equal(network.forward_intermediates(images, [index])[0], expected)
