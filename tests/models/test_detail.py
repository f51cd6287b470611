"""Edits add a decoded change to a crop and keep the crop's detail elsewhere."""

import numpy as np
import pytest
import torch

import facezoo
from facezoo.models.detail import keep_detail

SIDE = 64


@pytest.fixture
def crops():
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25


def spot(value, side=SIDE):
    """A smooth bump of the size of a mouth, (1, 1, side, side)."""
    at = torch.arange(side) - 0.7 * side
    across = torch.arange(side) - 0.5 * side
    return value * torch.exp(-(at[:, None] ** 2 + across**2) / (0.05 * side) ** 2 / 2)[None, None]


def test_a_crop_without_a_change_stays_as_it_is(crops):
    decoded = torch.rand_like(crops)
    assert torch.equal(keep_detail(crops, decoded, decoded), crops)


def test_a_local_change_is_added_and_the_rest_keeps_its_detail(crops):
    before = torch.full_like(crops, 0.5)
    edited = keep_detail(crops, before, before - spot(0.2))
    row, column = round(0.7 * SIDE), SIDE // 2
    place = edited[:, :, row - 1 : row + 2, column - 1 : column + 2].mean((1, 2, 3))
    surround = crops[:, :, row - 4 : row + 5, column - 4 : column + 5].mean((1, 2, 3))
    assert ((place - surround) < -0.1).all()
    assert (edited - crops)[:, :, :16].abs().max() < 0.01


def test_detail_is_smoothed_where_the_change_is_large(crops):
    before = torch.full_like(crops, 0.5)
    edited = keep_detail(crops, before, before + spot(0.3))
    row, column = round(0.7 * SIDE), SIDE // 2
    window = slice(row - 2, row + 3), slice(column - 2, column + 3)
    assert edited[(..., *window)].std() < 0.6 * crops[(..., *window)].std()
    assert edited[..., :16, :].std() == pytest.approx(float(crops[..., :16, :].std()), rel=0.02)


def test_what_a_decoder_drew_well_leaves_no_ghost(crops):
    """If the decoder draws the crop itself, the edit is what it draws after the change."""
    stripes = torch.where(torch.arange(SIDE) % 4 < 2, 0.2, -0.2) * (spot(1.0) > 0.3)
    before = torch.full_like(crops, 0.5) + stripes
    edited = keep_detail(before, before, torch.full_like(crops, 0.5))
    middle = edited[..., round(0.7 * SIDE), SIDE // 2 - 2 : SIDE // 2 + 2]
    assert middle.std() < 0.02 < before[..., round(0.7 * SIDE), :].std()


def test_a_change_of_the_whole_color_is_left_out(crops):
    before = torch.full_like(crops, 0.5)
    assert (keep_detail(crops, before, before + 0.3) - crops).abs().max() < 1e-5


def test_a_change_of_colors_is_added_everywhere():
    crops = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) / 2
    before = torch.full_like(crops, 0.4)
    edited = keep_detail(crops, before, before + 0.3, everywhere=True)
    torch.testing.assert_close(edited, crops + 0.3)


def test_results_stay_in_range():
    white = torch.ones(1, 3, SIDE, SIDE)
    edited = keep_detail(white, white * 0.5, white * 0.5 + spot(0.5))
    assert edited.min() >= 0
    assert edited.max() <= 1


@pytest.mark.parametrize("name", ["ipd-fer", "latentface", "latent-simclr"])
def test_methods_return_edited_crops_and_decoded_images(name):
    model = facezoo.load(name, device="cpu")
    size = model.preprocessing.size
    images = list(np.random.default_rng(0).integers(0, 255, (2, size, size, 3), dtype=np.uint8))
    crops = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]) / 255
    own = model.reconstruct(images, aligned=True)
    if name != "latent-simclr":
        decoded = model.neutralize(images, aligned=True, detail=False)
        neutral = model.neutralize(images, aligned=True, detail=True)
        torch.testing.assert_close(neutral, keep_detail(crops, own, decoded), rtol=0, atol=1e-4)
        by_default = model.neutralize(images, aligned=True)
        assert torch.equal(by_default, neutral if model.keeps_detail else decoded)
    same = model.transfer_expression(images[::-1], images, strength=0, aligned=True, detail=True)
    torch.testing.assert_close(same, crops, rtol=0, atol=1e-4)
    twice = model.transfer_expression(images, images, strength=2, aligned=True, detail=False)
    torch.testing.assert_close(twice, own, rtol=0, atol=1e-4)
    for strength in (float("nan"), "2", torch.tensor([1.0, 2.0])):
        with pytest.raises(ValueError, match="strength must be one finite number"):
            model.transfer_expression(images, images, strength=strength, aligned=True)
    swapped = model.transfer_expression(images[::-1], images, aligned=True, detail=False)
    edited = model.transfer_expression(images[::-1], images, aligned=True, detail=True)
    torch.testing.assert_close(edited, keep_detail(crops, own, swapped), rtol=0, atol=1e-4)
    by_default = model.transfer_expression(images[::-1], images, aligned=True)
    assert torch.equal(by_default, swapped if name == "latentface" else edited)
