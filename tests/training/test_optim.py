"""Parameter groups and optimizer steps."""

import pytest
import torch
from torch import nn

from facezoo.training.optim import descend, fixed, layer_groups


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
