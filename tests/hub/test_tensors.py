import pickle
from dataclasses import replace

import pytest
import torch
from hub_server import TinyFace, write_checkpoint
from torch import nn

from facezoo.errors import (
    PickleRefusedError,
    WeightsCorruptedError,
    WeightsError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from facezoo.hub import card as cards
from facezoo.hub import download as hub
from facezoo.hub import files
from facezoo.hub import tensors as weights


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """(card, path) of a checkpoint in the package, which is not on the Hub."""
    monkeypatch.setattr(cards, "CHECKPOINTS", tmp_path)
    card, _ = write_checkpoint(
        tmp_path, hub={"repo": None, "revision": None, "file": "a.safetensors"}
    )
    return card, tmp_path / card.weights.file


def test_weights_in_the_package_are_found_and_checked(checkpoint):
    card, path = checkpoint
    assert files.find(card) == path


def test_a_download_of_what_only_the_package_has_is_refused_with_the_reason(checkpoint):
    card, path = checkpoint
    forced = hub.HubOptions(force_download=True)
    with pytest.raises(WeightsNotFoundError, match=r"come with this .* leave it out"):
        files.find(card, options=forced)
    path.unlink()
    with pytest.raises(WeightsNotFoundError, match="not in this installation"):
        files.find(card, options=forced)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + b"x", lambda b: b + b"x"])
def test_a_bad_file_in_the_package_is_put_aside(checkpoint, damage):
    card, path = checkpoint
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.raises(WeightsCorruptedError, match=r"renamed to .*\.corrupt; reinstall facezoo"):
        files.find(card)
    assert not path.exists()
    with pytest.raises(WeightsNotFoundError, match="not on the Hub yet"):
        files.find(card)
    path.write_bytes(whole)
    assert files.find(card) == path


def test_an_explicit_path_comes_first_and_is_never_deleted(checkpoint, tmp_path):
    card, path = checkpoint
    own = tmp_path / "own.safetensors"
    own.write_bytes(path.read_bytes())
    assert files.find(card, own) == own
    own.write_bytes(b"{}")
    with pytest.raises(
        WeightsCorruptedError, match=r"own\.safetensors.*truncated.*save_pretrained"
    ):
        files.find(card, own)
    assert own.exists()
    with pytest.raises(WeightsNotFoundError, match="nothing"):
        files.find(card, tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".bin", ".pkl", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_refused_by_name_and_by_content(tmp_path, suffix, zipped):
    path = tmp_path / f"model{suffix}"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(PickleRefusedError, match="facezoo convert"):
        weights.read_tensors(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_bare_pickles_are_refused_whatever_their_protocol(tmp_path, protocol):
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


def test_a_file_that_is_no_safetensors_says_so(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"hello there, this is text")
    with pytest.raises(WeightsCorruptedError, match="not a whole safetensors file"):
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
    wanted = torch.tensor([[1.0, 2.0], [1.5, -2.0], [31.75, 0.0]])
    torch.testing.assert_close(layer.weight[..., 0, 0], wanted)
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


def test_shared_and_sliced_tensors_are_saved_whole(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    shared = {"a": base, "b": base, "c": base[1:], "d": base.t()}
    stored = weights.read_tensors(weights.save(shared, tmp_path / "a.safetensors"))
    for name, tensor in shared.items():
        assert torch.equal(stored[name], tensor)


def test_saving_leaves_the_old_file_or_the_new_one_and_nothing_else(tmp_path, monkeypatch):
    path = weights.save({"a": torch.ones(2)}, tmp_path / "a.safetensors")
    before = path.read_bytes()
    monkeypatch.setattr("safetensors.torch.save_file", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        weights.save({"a": torch.zeros(2)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saving_the_same_tensors_gives_the_same_bytes(tmp_path):
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, 2)}
    one = weights.save(tensors, tmp_path / "1.safetensors")
    two = weights.save(dict(reversed(tensors.items())), tmp_path / "2.safetensors")
    assert one.read_bytes() == two.read_bytes()


def test_an_unknown_precision_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'float16', got 'half-ish'"):
        weights.save({"a": torch.ones(2)}, tmp_path / "a.safetensors", "half-ish")


def test_discarding_stays_within_the_cache(tmp_path):
    root, outside = tmp_path / "cache", tmp_path / "outside"
    root.mkdir()
    outside.write_text("mine")
    (root / "link").symlink_to(outside)
    assert hub.discard(root / "link", root)
    assert outside.exists()
    assert not hub.discard(outside, root)
    assert outside.exists()


def test_a_card_without_a_hub_revision_says_what_to_do(checkpoint):
    card, path = checkpoint
    path.unlink()
    with pytest.raises(WeightsError, match="install a released facezoo"):
        files.find(replace(card, hub=replace(card.hub, repo="a/b")))
