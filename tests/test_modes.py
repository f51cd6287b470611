"""How exactly a GPU computes, as far as it can be seen without one; modes are in test_base.py."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from facezoo import inference as modes

CUDA = torch.device("cuda")


def settings():
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture(params=[(True, "highest"), (True, "medium"), (False, "high")])
def chosen(request):
    before = settings()
    modes._allow(*request.param)
    yield request.param
    modes._allow(*before)


def test_tf32_is_off_inside_and_as_before_outside(chosen):
    with modes.exact(CUDA):
        assert settings() == (False, "highest")
    assert settings() == chosen
    with pytest.raises(KeyError), modes.exact(CUDA):
        raise KeyError
    assert settings() == chosen


def test_the_last_of_several_users_allows_tf32_again(chosen):
    first, second = modes.exact(CUDA), modes.exact(CUDA)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as a thread does while another is at work
    assert settings() == (False, "highest")
    second.__exit__(None, None, None)
    assert settings() == chosen


def test_nothing_is_set_where_there_is_no_tf32(chosen):
    with modes.exact(torch.device("cpu")):
        assert settings() == chosen


def test_models_and_the_detector_run_exactly(monkeypatch):
    asked = []
    exact = modes.exact
    monkeypatch.setattr(modes, "exact", lambda device: asked.append(device) or exact(CUDA))
    with modes.evaluating(torch.nn.Linear(2, 2)):
        assert asked == []  # without CUDA nobody is asked
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with modes.evaluating(torch.nn.Linear(2, 2)):
        assert settings() == (False, "highest")
    assert asked == [torch.device("cpu")]


NEWER = """
import torch
from torch import nn
from facezoo.inference import exact
torch.backends.fp32_precision = "tf32"
operators = torch.backends.cudnn.conv, torch.backends.cuda.matmul
with exact(torch.device("cuda")):
    print(*(operator.fp32_precision for operator in operators))
print(*(operator.fp32_precision for operator in operators))
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="torch has the older alone")
def test_the_newer_settings_of_torch_are_respected():
    said = subprocess.run([sys.executable, "-c", NEWER], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["ieee", "ieee", "tf32", "tf32"]


@pytest.mark.gpu
def test_convolutions_on_a_gpu_are_those_of_the_processor():
    layer, images = torch.nn.Conv2d(64, 64, 3), torch.randn(2, 64, 32, 32)
    with torch.no_grad():
        wanted = layer(images)
        with modes.exact(CUDA):
            found = layer.cuda()(images.cuda()).cpu()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_networks_in_training_mode_are_put_back_and_a_layer_alone_is_left():
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2)).eval()
    network[0].train()
    with modes.evaluating(network):
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.modules()] == [False, True, True, True, False]
    network.eval()
    network[0][1].train()
    with modes.evaluating(network):
        assert network[0][1].training


def test_the_last_of_several_users_puts_a_network_back():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    first, second = modes.evaluating(network), modes.evaluating(network)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as a thread does while another is at work
    assert not any(part.training for part in network.modules())
    second.__exit__(None, None, None)
    assert all(part.training for part in network.modules())
    with modes.evaluating(network.eval()):
        pass
    assert not any(part.training for part in network.modules())


@pytest.mark.parametrize("turned", [False, True])
def test_a_part_is_put_back_by_the_last_user_of_it_or_of_the_whole(turned):
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2))
    used = [network, network[0]]
    first, second = (modes.evaluating(part) for part in (used[::-1] if turned else used))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(part.training for part in network[0].modules())
    second.__exit__(None, None, None)
    assert all(part.training for part in network.modules())


def test_the_first_parameter_is_that_of_torch():
    plain = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Linear(2, 3, bias=False)))
    plain.register_parameter("none", None)
    assert modes.first_parameter(plain) is next(plain.parameters())
    own = nn.Linear(2, 2)
    own.child = nn.Linear(1, 1)
    assert modes.first_parameter(own) is next(own.parameters())
    with pytest.raises(StopIteration, match="ReLU has no parameters"):
        modes.first_parameter(nn.ReLU())
