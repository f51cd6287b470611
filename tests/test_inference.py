"""Eval mode and exact float32 while encoding, as far as a CPU shows it."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from facezoo import inference
from facezoo.inference import evaluating, exact

CUDA = torch.device("cuda")


def settings():
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


def set_both(allow, precision):
    torch.backends.cudnn.allow_tf32 = allow
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(params=[(True, "highest"), (True, "medium"), (False, "high")])
def before(request):
    original = settings()
    set_both(*request.param)
    yield request.param
    set_both(*original)


def test_tf32_is_off_inside_and_restored_outside(before):
    with exact(CUDA):
        assert settings() == (False, "highest")
    assert settings() == before
    with pytest.raises(KeyError), exact(CUDA):
        raise KeyError
    assert settings() == before


def test_the_last_of_several_users_restores_tf32(before):
    first, second = exact(CUDA), exact(CUDA)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as a thread does while another one computes
    assert settings() == (False, "highest")
    second.__exit__(None, None, None)
    assert settings() == before


def test_nothing_is_set_on_a_device_without_tf32(before):
    with exact(torch.device("cpu")):
        assert settings() == before


def test_models_compute_exactly_once_cuda_is_in_use(monkeypatch):
    devices = []
    monkeypatch.setattr(inference, "exact", lambda device: devices.append(device) or exact(CUDA))
    with evaluating(nn.Linear(2, 2)):
        assert devices == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with evaluating(nn.Linear(2, 2)):
        assert settings() == (False, "highest")
    assert devices == [torch.device("cpu")]


NEWER = """
import torch
from facezoo.inference import exact
torch.backends.fp32_precision = "tf32"
operators = torch.backends.cudnn.conv, torch.backends.cuda.matmul
with exact(torch.device("cuda")):
    print(*(operator.fp32_precision for operator in operators))
print(*(operator.fp32_precision for operator in operators))
"""


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="this torch has no such API")
def test_the_newer_settings_of_torch_are_respected():
    output = subprocess.run(
        [sys.executable, "-c", NEWER], capture_output=True, text=True, check=True
    )
    assert output.stdout.split() == ["ieee", "ieee", "tf32", "tf32"]


@pytest.mark.gpu
def test_convolutions_on_a_gpu_equal_those_of_the_processor():
    layer, images = nn.Conv2d(64, 64, 3), torch.randn(2, 64, 32, 32)
    with torch.no_grad():
        expected = layer(images)
        with exact(CUDA):
            outputs = layer.cuda()(images.cuda()).cpu()
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)


def test_training_mode_is_restored_and_a_single_layer_is_left_alone():
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2)).eval()
    network[0].train()
    with evaluating(network):
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.modules()] == [False, True, True, True, False]
    network.eval()
    network[0][1].train()
    with evaluating(network):
        assert network[0][1].training


def test_the_last_of_several_users_restores_training_mode():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    first, second = evaluating(network), evaluating(network)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)  # as a thread does while another one computes
    assert not any(part.training for part in network.modules())
    second.__exit__(None, None, None)
    assert all(part.training for part in network.modules())
    with evaluating(network.eval()):
        pass
    assert not any(part.training for part in network.modules())


@pytest.mark.parametrize("reverse", [False, True])
def test_the_last_user_of_a_part_or_of_the_whole_restores_the_part(reverse):
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2))
    used = [network, network[0]]
    first, second = (evaluating(part) for part in (used[::-1] if reverse else used))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not any(part.training for part in network[0].modules())
    second.__exit__(None, None, None)
    assert all(part.training for part in network.modules())
