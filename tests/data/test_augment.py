"""Random changes to crops: what they leave alone, and what switching them off gives."""

import pytest
import torch

from facezoo.data.augment import augment, centre_crop

STILL = {
    "rotation_deg": 0.0,
    "scaling": 0.0,
    "shift": 0.0,
    "colour": 0.0,
    "grey": 0.0,
    "blur": 0.0,
    "erase": 0.0,
}
"""Nothing random but the mirror."""


def draw_from(seed=0):
    return torch.Generator().manual_seed(seed)


def crops(count=4, channels=3, side=48, seed=1):
    shape = (count, channels, side, side)
    return torch.randint(0, 256, shape, generator=draw_from(seed)).to(torch.uint8)


def middle_of_light(images):
    """Column and row of the middle of what is brighter than -1, (B, 2)."""
    light = (images + 1).sum(1)
    place = torch.arange(images.shape[-1]).float()
    total = light.sum((1, 2))
    return torch.stack([(light.sum(1) @ place) / total, (light.sum(2) @ place) / total], 1)


def test_without_anything_random_the_template_or_its_mirror_remains():
    canvases, margin = crops(count=16, side=48), 8
    images = augment(canvases, 32, draw_from(), zoom=32 / 48, **STILL)
    plain = centre_crop(canvases, 32, margin)
    mirrored = [
        torch.allclose(image, straight.flip(-1), atol=1e-4)
        for image, straight in zip(images, plain, strict=True)
    ]
    straight = [torch.allclose(i, p, atol=1e-4) for i, p in zip(images, plain, strict=True)]
    assert [m != s for m, s in zip(mirrored, straight, strict=True)] == [True] * 16
    assert any(mirrored)
    assert any(straight)


def test_the_generator_alone_decides():
    canvases = crops()
    first = augment(canvases, 32, draw_from(3))
    torch.manual_seed(1234)
    assert torch.equal(first, augment(canvases, 32, draw_from(3)))
    assert not torch.equal(first, augment(canvases, 32, draw_from(4)))


def test_the_canvases_are_not_changed():
    canvases = crops()
    before = canvases.clone()
    augment(canvases, 32, draw_from())
    assert torch.equal(canvases, before)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [16, 48, 80])
def test_images_are_three_channels_of_the_size_in_range(channels, size):
    images = augment(crops(8, channels), size, draw_from(), erase=0.0)
    assert images.shape == (8, 3, size, size)
    assert images.min() >= -1
    assert images.max() <= 1


def test_grey_crops_stay_grey():
    images = augment(crops(8, channels=1), 32, draw_from())
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])


def test_grey_takes_the_colour_of_about_its_share():
    images = augment(crops(200, side=8), 8, draw_from(), **{**STILL, "grey": 0.3})
    pale = (images[:, 0] == images[:, 1]).flatten(1).all(1)
    assert 30 <= int(pale.sum()) <= 90


def test_the_subject_moves_no_further_than_shift_allows():
    # A dot in the middle of a black canvas, in a crop of half the canvas.
    canvases = torch.zeros(64, 1, 65, 65, dtype=torch.uint8)
    canvases[:, :, 31:34, 31:34] = 255
    moves = {**STILL, "shift": 0.1}
    images = augment(canvases, 64, draw_from(), zoom=0.5, **moves)
    offset = (middle_of_light(images) - 31.5).abs()
    assert offset.max() <= 6.4 + 0.1
    assert offset.max() > 4


def test_turning_and_scaling_keep_the_middle_in_place():
    canvases = torch.zeros(32, 1, 64, 64, dtype=torch.uint8)
    canvases[:, :, 30:34, 30:34] = 255
    moves = {**STILL, "rotation_deg": 30.0, "scaling": 0.2}
    images = augment(canvases, 64, draw_from(), **moves)
    assert (middle_of_light(images) - 31.5).abs().max() < 0.1


def test_erasing_covers_a_rectangle_of_its_share_of_the_crops():
    canvases = torch.full((100, 3, 32, 32), 128, dtype=torch.uint8)
    images = augment(canvases, 32, draw_from(), **{**STILL, "erase": 0.25})
    changed = (images - images.flatten().median()).abs().amax(1) > 1e-3
    hit = changed.flatten(1).any(1)
    assert 12 <= int(hit.sum()) <= 40
    for mask in changed[hit]:
        rows, columns = mask.nonzero().T
        height, width = rows.max() - rows.min() + 1, columns.max() - columns.min() + 1
        assert mask.sum() == height * width
        assert max(height, width) <= 14


def test_blurred_crops_lose_contrast_between_neighbours():
    canvases = crops(6, side=32)
    sharp = augment(canvases, 32, draw_from(), **STILL)
    blurred = augment(canvases, 32, draw_from(), **{**STILL, "blur": 1.1})
    assert (blurred.diff(dim=-1).abs().mean() < 0.6 * sharp.diff(dim=-1).abs().mean()).item()


def test_the_centre_crop_cuts_the_margin_and_normalises():
    canvases = crops(2, side=20)
    wanted = canvases[..., 4:16, 4:16].float() / 255 * 2 - 1
    torch.testing.assert_close(centre_crop(canvases, 12, 4), wanted)
    torch.testing.assert_close(centre_crop(canvases, 20, 0), canvases.float() / 127.5 - 1)


def test_the_centre_crop_resizes_and_makes_grey_three_channels():
    image = centre_crop(torch.full((2, 1, 40, 40), 255, dtype=torch.uint8), 16, 4)
    assert image.shape == (2, 3, 16, 16)
    torch.testing.assert_close(image, torch.ones(2, 3, 16, 16))
