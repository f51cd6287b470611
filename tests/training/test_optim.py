"""Parameter groups and optimizer steps."""

import pytest
import torch
from torch import nn

from facezoo.training import optim
from facezoo.training.optim import autocast, descend, fixed, layer_groups


def test_only_matrices_decay_and_frozen_parameters_are_left_out():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    network[1].bias.requires_grad_(False)
    optimizer = torch.optim.AdamW(layer_groups(network), weight_decay=0.1)
    decays = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert decays == {
        id(network[0].weight): 0.1,
        id(network[0].bias): 0.0,
        id(network[1].weight): 0.0,
    }


def test_a_gradient_is_clipped_to_a_norm():
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    descend(optimizer, 100 * weight.sum(), max_norm=2.0)
    assert float(weight.detach().norm()) == pytest.approx(2.0)
    descend(optimizer, weight.sum())
    assert float(weight.detach().norm()) == pytest.approx(4.0)


def test_gradients_pass_through_a_fixed_module():
    network, x = nn.Linear(2, 1), torch.ones(1, 2, requires_grad=True)
    with fixed(network):
        network(x).sum().backward()
    assert torch.equal(x.grad, network.weight)
    assert network.weight.grad is None
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    ("instructions", "is_intel", "fast"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, True, True),
        ({"avx512_bf16": True}, False, True),
        ({"avx512_bf16": True}, True, False),
        ({"avx2": True}, False, False),
    ],
)
def test_a_cpu_computes_in_bfloat16_where_that_is_faster(instructions, is_intel, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    monkeypatch.setattr(optim, "_is_intel", lambda: is_intel)
    monkeypatch.setattr(optim, "_is_fast_on_cpu", optim._is_fast_on_cpu.__wrapped__)
    with autocast(torch.device("cpu")):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype == torch.bfloat16) is fast
