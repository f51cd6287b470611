"""Random changes to crops: what they leave alone, and what switching them off gives."""

import pytest
import torch

from facezoo.data.augment import augment, center_crop, move_landmarks, random_similarity

STILL = {
    "rotation_deg": 0.0,
    "scaling": 0.0,
    "shift": 0.0,
    "color": 0.0,
    "gray": 0.0,
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
    plain = center_crop(canvases, 32, margin)
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


def test_grey_takes_the_color_of_about_its_share():
    images = augment(crops(200, side=8), 8, draw_from(), **{**STILL, "gray": 0.3})
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


def test_the_center_crop_cuts_the_margin_and_normalises():
    canvases = crops(2, side=20)
    wanted = canvases[..., 4:16, 4:16].float() / 255 * 2 - 1
    torch.testing.assert_close(center_crop(canvases, 12, 4), wanted)
    torch.testing.assert_close(center_crop(canvases, 20, 0), canvases.float() / 127.5 - 1)


def test_the_center_crop_resizes_and_makes_grey_three_channels():
    image = center_crop(torch.full((2, 1, 40, 40), 255, dtype=torch.uint8), 16, 4)
    assert image.shape == (2, 3, 16, 16)
    torch.testing.assert_close(image, torch.ones(2, 3, 16, 16))


def test_landmarks_move_with_the_crops():
    # A white spot at each landmark in turn shows where the augmentation moves it.
    points = torch.tensor([[18.0, 20.0], [30.0, 20.0], [24.0, 26.0], [19.0, 31.0], [29.0, 31.0]])
    theta = random_similarity(8, draw_from(2), zoom=32 / 48)
    moved = move_landmarks(points.expand(8, 5, 2), theta, 48, 32)
    still = {**STILL, "theta": theta}
    mirrored = torch.linalg.det(theta[:, :, :2]) < 0
    assert 0 < mirrored.sum() < 8
    partner = [1, 0, 2, 4, 3]
    for number, (x, y) in enumerate(points.long().tolist()):
        canvases = torch.zeros(8, 1, 48, 48, dtype=torch.uint8)
        canvases[:, :, y - 1 : y + 2, x - 1 : x + 2] = 255
        found = middle_of_light(augment(canvases, 32, draw_from(), **still))
        expected = torch.where(mirrored[:, None], moved[:, partner[number]], moved[:, number])
        torch.testing.assert_close(found, expected, atol=0.35, rtol=0)


def test_a_patch_comes_from_another_crop_of_the_batch():
    canvases = torch.zeros(2, 3, 48, 48, dtype=torch.uint8)
    canvases[1] = 255
    images = augment(canvases, 32, draw_from(), **STILL, patch=1.0)
    for image, own in zip(images, (-1.0, 1.0), strict=True):
        values = image.unique()
        assert values.tolist() == [-1.0, 1.0]
        assert (image == own).double().mean() > 0.5


def test_noise_and_jpeg_change_the_requested_share_of_the_crops_and_stay_in_range():
    canvases = crops(64)
    plain = augment(canvases, 32, draw_from(), **STILL)
    for name in ("noise", "jpeg"):
        images = augment(canvases, 32, draw_from(), **STILL, **{name: 0.5})
        changed = (images != plain).flatten(1).any(1)
        assert 0.3 < changed.double().mean() < 0.7
        assert images.abs().max() <= 1


def test_jpeg_leaves_flat_crops_nearly_flat_and_coarsens_fine_texture():
    flat = torch.full((4, 3, 48, 48), 140, dtype=torch.uint8)
    images = augment(flat, 32, draw_from(), **STILL, jpeg=1.0)
    assert (images - images.mean((2, 3), keepdim=True)).abs().max() < 1e-4
    noisy = crops(8)
    coarse = augment(noisy, 32, draw_from(), **STILL, jpeg=1.0)
    fine = augment(noisy, 32, draw_from(), **STILL)
    assert (coarse - fine).abs().mean() > 0.01
    assert torch.corrcoef(torch.stack([coarse.flatten(), fine.flatten()]))[0, 1] > 0.8
