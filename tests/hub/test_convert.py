"""Pickled checkpoints become safetensors, without running code."""

import pytest
import torch
from torch import nn

from facezoo.errors import PickleRefusedError, WeightsError, WeightsNotFoundError
from facezoo.hub.convert import convert
from facezoo.hub.tensors import read_tensors

TENSORS = {"a.weight": torch.arange(4.0), "a.bias": torch.ones(2, dtype=torch.float16)}


def saved(folder, content, name="model.pth"):
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize(
    "content",
    [
        TENSORS,
        {"state_dict": TENSORS, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}},
        {"model": TENSORS, "args": ["x"]},
        {"g_ema": TENSORS, "steps": 7},
        {f"module.{name}": tensor for name, tensor in TENSORS.items()},
    ],
)
def test_a_state_dict_is_found_bare_or_wrapped(tmp_path, content):
    path = convert(saved(tmp_path, content))
    assert path == tmp_path / "model.safetensors"
    stored = read_tensors(path)
    assert stored.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(stored[name], tensor)
        assert stored[name].dtype == tensor.dtype


def test_tied_tensors_are_written_separately(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    stored = read_tensors(convert(saved(tmp_path, model.state_dict(), "tied.ckpt")))
    assert torch.equal(stored["0.weight"], stored["1.weight"])


def test_one_of_several_state_dicts_must_be_named(tmp_path):
    source = saved(tmp_path, {"g": TENSORS, "g_ema": TENSORS, "epoch": 1})
    with pytest.raises(WeightsError, match=r"'g' \(.*'g_ema' .*'epoch' \(int\).*name one of"):
        convert(source)
    assert not source.with_suffix(".safetensors").exists()
    assert read_tensors(convert(source, key="g_ema")).keys() == TENSORS.keys()
    with pytest.raises(WeightsError, match="no state dict under 'd'"):
        convert(source, key="d", overwrite=True)


def test_tensors_next_to_a_state_dict_are_not_dropped_silently(tmp_path):
    with pytest.raises(WeightsError, match="several sets of tensors"):
        convert(saved(tmp_path, {"model": TENSORS, "latent_avg": torch.ones(2)}))


@pytest.mark.parametrize("content", [{"epoch": 1}, torch.ones(2), {}])
def test_the_content_of_a_file_without_a_state_dict_is_listed(tmp_path, content):
    with pytest.raises(WeightsError, match=r"no state dict; (its keys are|it holds one Tensor)"):
        convert(saved(tmp_path, content))


def test_a_pickle_of_more_than_tensors_is_rejected(tmp_path):
    with pytest.raises(PickleRefusedError, match="could run code"):
        convert(saved(tmp_path, nn.Linear(2, 2)))


def test_a_torch_that_can_run_code_from_a_pickle_is_not_used(tmp_path, monkeypatch):
    source = saved(tmp_path, TENSORS)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.5.1+cu121"))
    with pytest.raises(PickleRefusedError, match=r"torch 2\.5\.1\+cu121.*CVE-2025-32434.*2\.6"):
        convert(source)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion("2.6.0"))
    assert convert(source).is_file()


def test_a_damaged_or_missing_file_is_named(tmp_path):
    source = saved(tmp_path, TENSORS)
    source.write_bytes(source.read_bytes()[:200])
    with pytest.raises(WeightsError, match=r"model\.pth"):
        convert(source)
    with pytest.raises(WeightsNotFoundError, match=r"other\.pth"):
        convert(tmp_path / "other.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_cut_off_anywhere_is_named(tmp_path, zipped):
    source = tmp_path / "model.pth"
    content = {**TENSORS, "large": torch.zeros(1000)}
    torch.save(content, source, _use_new_zipfile_serialization=zipped)
    whole = source.read_bytes()
    for length in range(0, len(whole), 29):
        source.write_bytes(whole[:length])
        with pytest.raises((WeightsError, PickleRefusedError), match=r"model\.pth"):
            convert(source)


def sparse():
    return torch.eye(3).to_sparse()


def quantized():
    return torch.quantize_per_tensor(torch.rand(3), 0.1, 0, torch.qint8)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch warns about both kinds
@pytest.mark.parametrize(("tensor", "kind"), [(sparse, "sparse_coo"), (quantized, "qint8")])
def test_a_tensor_that_safetensors_cannot_hold_is_named(tmp_path, tensor, kind):
    with pytest.raises(WeightsError, match=rf"model\.pth holds 'odd' as {kind}"):
        convert(saved(tmp_path, {**TENSORS, "odd": tensor()}))
    assert not (tmp_path / "model.safetensors").exists()


def test_an_existing_target_stays_unless_overwrite_is_set(tmp_path):
    source = saved(tmp_path, TENSORS)
    target = tmp_path / "sub" / "out.safetensors"
    assert convert(source, target) == target
    with pytest.raises(FileExistsError, match="exists already"):
        convert(source, target)
    convert(source, target, overwrite=True)
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        convert(source, tmp_path / "out.pth")
