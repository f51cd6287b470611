"""Weights files: reading, fitting into modules, precisions on disk, writing."""

import pickle
from pathlib import Path

import pytest
import torch
from hub_server import TinyFace
from torch import nn

from facezoo.errors import (
    PickleRefusedError,
    WeightsCorruptedError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from facezoo.hub import tensors as weights


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".pkl", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_rejected_by_name_and_by_content(tmp_path, suffix, zipped):
    path = tmp_path / f"model{suffix}"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(PickleRefusedError, match="facezoo convert"):
        weights.read_tensors(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_every_protocol_are_rejected(tmp_path, protocol):
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    with pytest.raises(PickleRefusedError, match="facezoo convert"):
        weights.read_tensors(path)


def test_a_safetensors_header_whose_length_looks_like_a_pickle_is_read(tmp_path):
    path = tmp_path / "a.safetensors"
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(0x280)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert path.read_bytes().startswith(b"\x80\x02")
    assert weights.read_tensors(path)["a"].item() == 0


def test_a_file_that_is_not_safetensors_is_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"hello there, this is text")
    with pytest.raises(WeightsCorruptedError, match="not a complete safetensors file"):
        weights.read_tensors(path)
    with pytest.raises(WeightsNotFoundError, match="no weights file"):
        weights.read_tensors(tmp_path / "b.safetensors")


def test_every_missing_unexpected_and_misshaped_tensor_is_named():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    tensors = dict(model.state_dict())
    del tensors["0.bias"], tensors["1.bias"]
    tensors.update({"2.weight": torch.ones(1), "1.weight": torch.ones(3, 4)})
    with pytest.raises(WeightsMismatchError) as error:
        weights.load_into(model, tensors)
    assert "missing: 0.bias, 1.bias" in str(error.value)
    assert "unexpected: 2.weight" in str(error.value)
    assert "mis-shaped: 1.weight (3, 4) for (3, 3)" in str(error.value)


def test_without_strict_the_rest_is_loaded_with_a_warning_but_shapes_must_fit():
    model = nn.Linear(2, 3)
    with pytest.warns(UserWarning, match="missing: bias"):
        weights.load_into(model, {"weight": torch.ones(3, 2)}, strict=False)
    assert model.weight.eq(1).all()
    with pytest.raises(WeightsMismatchError, match="mis-shaped"):
        weights.load_into(model, {"weight": torch.ones(2, 2)}, strict=False)


def test_half_precision_on_disk_becomes_the_precision_of_the_module(tmp_path):
    model = TinyFace()
    path = weights.save(model, tmp_path / "a.safetensors", "float16")
    stored = weights.read_tensors(path)
    assert stored["head.weight"].dtype == torch.float16
    assert stored["body.1.num_batches_tracked"].dtype == torch.int64
    other = TinyFace()
    weights.load_into(other, stored)
    assert other.head.weight.dtype == torch.float32
    torch.testing.assert_close(other.head.weight, model.head.weight, atol=1e-3, rtol=1e-3)


def test_int8_is_multiplied_by_the_scale_of_its_output_channel():
    layer = nn.Conv2d(2, 3, 1)
    stored = {
        "weight": torch.tensor([[1, 2], [3, -4], [127, 0]], dtype=torch.int8)[..., None, None],
        "weight.scale": torch.tensor([1.0, 0.5, 0.25]),
        "bias": torch.zeros(3, dtype=torch.float16),
    }
    weights.load_into(layer, stored)
    expected = torch.tensor([[1.0, 2.0], [1.5, -2.0], [31.75, 0.0]])
    torch.testing.assert_close(layer.weight[..., 0, 0], expected)
    stored["weight.scale"] = torch.ones(2)
    with pytest.raises(WeightsMismatchError, match=r"weight\.scale must hold 3 numbers"):
        weights.load_into(layer, stored)


def test_int8_of_no_channels_is_misshaped_and_named():
    stored = {"weight": torch.tensor(1, dtype=torch.int8), "weight.scale": torch.ones(1)}
    with pytest.raises(WeightsMismatchError, match=r"mis-shaped: weight \(\) for \(3, 2\)"):
        weights.load_into(nn.Linear(2, 3, bias=False), stored)


def test_int8_storage_is_near_and_stable(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 5))
    first = weights.save(model, tmp_path / "1.safetensors", "int8")
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 5))
    weights.load_into(other, weights.read_tensors(first))
    step = model[0].weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    assert ((model[0].weight - other[0].weight).abs() <= 0.51 * step).all()
    second = weights.save(other, tmp_path / "2.safetensors", "int8")
    assert second.read_bytes() == first.read_bytes()


def test_shared_and_sliced_tensors_are_saved_completely(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    shared = {"a": base, "b": base, "c": base[1:], "d": base.t()}
    stored = weights.read_tensors(weights.save(shared, tmp_path / "a.safetensors"))
    for name, tensor in shared.items():
        assert torch.equal(stored[name], tensor)


def test_saving_leaves_the_old_file_or_the_new_one_and_nothing_else(tmp_path, monkeypatch):
    path = weights.save({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        weights.save({"a": torch.zeros(2)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_the_same_tensors_gives_the_same_bytes(tmp_path):
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2)}
    one = weights.save(tensors, tmp_path / "1.safetensors")
    two = weights.save(dict(reversed(tensors.items())), tmp_path / "2.safetensors")
    assert one.read_bytes() == two.read_bytes()


def test_an_unknown_precision_is_rejected(tmp_path):
    with pytest.raises(ValueError, match="unknown dtype 'half-ish'"):
        weights.save({"a": torch.ones(2)}, tmp_path / "a.safetensors", "half-ish")


def test_tensors_do_not_change_when_their_file_is_overwritten(tmp_path):
    path = tmp_path / "a.safetensors"
    weights.save({"a": torch.ones(1000)}, path)
    tensors = weights.read_tensors(path)
    with path.open("r+b") as file:
        file.seek(-4000, 2)
        file.write(bytes(4000))
    assert tensors["a"].eq(1).all()
    tensors["a"] += 1
    assert weights.read_tensors(path)["a"].eq(0).all()
