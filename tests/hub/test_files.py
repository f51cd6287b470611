"""Weights files of checkpoints without a Hub: the package and the caller's own files."""

from dataclasses import replace

import pytest
from hub_server import write_checkpoint

from facezoo.errors import WeightsCorruptedError, WeightsNotFoundError
from facezoo.hub import card as cards
from facezoo.hub.download import HubOptions
from facezoo.hub.files import find


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """Card and path of a checkpoint in the package, which is not on the Hub."""
    monkeypatch.setattr(cards, "CHECKPOINTS", tmp_path)
    card, _ = write_checkpoint(
        tmp_path, hub={"repo": None, "revision": None, "file": "a.safetensors"}
    )
    return card, tmp_path / card.weights.file


def test_missing_weights_are_an_error_that_names_the_ways_out(checkpoint):
    card, path = checkpoint
    assert find(card) == path
    with pytest.raises(WeightsNotFoundError, match="leave out force_download to use"):
        find(card, options=HubOptions(force_download=True))
    path.unlink()
    for hub in (card.hub, replace(card.hub, repo="a/b")):
        with pytest.raises(WeightsNotFoundError, match=r"not on the Hub .* reinstall facezoo"):
            find(replace(card, hub=hub))


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + b"x", lambda b: b + b"x"])
def test_a_corrupted_file_in_the_package_is_an_error_and_stays(checkpoint, damage):
    card, path = checkpoint
    content = path.read_bytes()
    path.write_bytes(damage(content))
    with pytest.raises(WeightsCorruptedError, match=r"(truncated|altered).*reinstall facezoo"):
        find(card)
    path.write_bytes(content)
    assert find(card) == path


def test_the_callers_own_file_is_checked_and_stays(checkpoint, tmp_path):
    card, path = checkpoint
    own = tmp_path / "own.safetensors"
    own.write_bytes(path.read_bytes())
    assert find(card, own) == own
    own.write_bytes(b"{}")
    with pytest.raises(
        WeightsCorruptedError, match=r"own\.safetensors.*truncated.*save_pretrained"
    ):
        find(card, own)
    assert own.exists()
    with pytest.raises(WeightsNotFoundError, match="nothing"):
        find(card, tmp_path / "nothing.safetensors")
