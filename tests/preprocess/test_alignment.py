"""Alignment against independent implementations: scikit-image, SciPy, Pillow and plain loops."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import map_coordinates
from skimage.transform import SimilarityTransform

from facezoo.landmarks import similarity_transform
from facezoo.preprocess.alignment import align
from facezoo.preprocess.templates import TEMPLATES, template_points

ONE = torch.tensor([0])


def similarity(scale=1.0, degrees=0.0, shift=(0.0, 0.0)):
    """Photograph pixels to crop pixels, (1, 2, 3)."""
    angle = math.radians(degrees)
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    return torch.tensor([[[c, -s, shift[0]], [s, c, shift[1]]]], dtype=torch.float64)


def noise(height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), generator=generator).to(torch.uint8)


def shrinking(factor):
    """The matrix that makes blocks of ``factor`` pixels into one, edges on edges."""
    return similarity(1 / factor, shift=(0.5 / factor - 0.5,) * 2)


def transformed(matrix, points):
    return points @ matrix[:, :2].T + matrix[:, 2]


def sampled_by_loops(image, matrix, size):
    """Bilinear look-up of one crop, written out pixel by pixel; black outside."""
    photo = image.numpy().astype(np.float64)
    inverse = np.linalg.inv(np.vstack([matrix.numpy(), [0, 0, 1]]))
    crop = np.zeros((3, size, size))
    for row in range(size):
        for column in range(size):
            x, y, _ = inverse @ [column, row, 1]
            for j in (math.floor(y), math.floor(y) + 1):
                for i in (math.floor(x), math.floor(x) + 1):
                    if 0 <= j < photo.shape[0] and 0 <= i < photo.shape[1]:
                        crop[:, row, column] += (1 - abs(x - i)) * (1 - abs(y - j)) * photo[j, i]
    return crop


def sampled_by_scipy(image, matrix, size):
    """The same with SciPy; the photograph is padded so that black fades in as align's does."""
    photo = np.pad(image.numpy().astype(np.float64), ((2, 2), (2, 2), (0, 0)))
    inverse = np.linalg.inv(np.vstack([matrix.numpy(), [0, 0, 1]]))
    rows, columns = np.mgrid[:size, :size].reshape(2, -1)
    x, y, _ = inverse @ np.stack([columns, rows, np.ones_like(rows)])
    planes = [map_coordinates(photo[..., c], [y + 2, x + 2], order=1) for c in range(3)]
    return np.stack(planes).reshape(3, size, size)


def pixels_within(matrix, size, side, margin):
    """Which pixels of a crop come from inside a square photograph, off its edge by a margin."""
    inverse = np.linalg.inv(np.vstack([matrix.numpy(), [0, 0, 1]]))
    rows, columns = np.mgrid[:size, :size]
    points = np.stack([columns, rows, np.ones_like(rows)], -1) @ inverse[:2].T
    return torch.tensor(((points > margin) & (points < side - 1 - margin)).all(-1))


def assert_close(crop, expected, of_255=1e-3):
    assert np.abs(np.asarray(crop) - np.asarray(expected)).max() <= of_255 * 255


# --- similarity_transform ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_transform_is_that_of_scikit_image(dtype):
    source = torch.rand(20, 5, 2, dtype=dtype) * 400
    target = torch.rand(5, 2, dtype=dtype) * 112
    matrices = similarity_transform(source, target)
    assert matrices.shape == (20, 2, 3)
    assert matrices.dtype == dtype
    for matrix, points in zip(matrices, source, strict=True):
        reference = SimilarityTransform.from_estimate(points.double(), target.double())
        moved = transformed(matrix, points)
        np.testing.assert_allclose(moved, reference(points.double().numpy()), atol=1e-3)


def test_each_face_may_have_a_target_of_its_own():
    source, target = torch.rand(3, 5, 2) * 300, torch.rand(3, 5, 2) * 100
    together = similarity_transform(source, target)
    for i in range(3):
        torch.testing.assert_close(
            together[i], similarity_transform(source[i : i + 1], target[i])[0]
        )


def test_a_known_similarity_is_recovered():
    points = torch.rand(1, 5, 2, dtype=torch.float64) * 200
    known = similarity(0.37, 33, (12, -7))
    matrices = similarity_transform(points, transformed(known[0], points[0]))
    torch.testing.assert_close(matrices, known)


def test_mirrored_points_give_no_reflection():
    target = template_points("arcface112", 112).float()
    mirrored = target.clone()
    mirrored[:, 0] = 111 - mirrored[:, 0]
    source = torch.stack([mirrored, mirrored * 2, torch.rand(5, 2) * 50])
    matrices = similarity_transform(source, target)
    assert (torch.linalg.det(matrices[..., :2]) > 0).all()
    for matrix, points in zip(matrices, source, strict=True):
        reference = SimilarityTransform.from_estimate(points.double(), target.double())
        np.testing.assert_allclose(transformed(matrix, points), reference(points), atol=1e-3)


def test_points_that_coincide_raise_an_error():
    source = torch.stack([torch.rand(5, 2), torch.full((5, 2), 7.0)])
    with pytest.raises(ValueError, match="coincide"):
        similarity_transform(source, torch.rand(5, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_points_that_are_not_finite_raise_an_error(value):
    source = torch.rand(2, 5, 2)
    source[1, 3, 0] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        similarity_transform(source, torch.rand(5, 2))


@pytest.mark.parametrize("shape", [(5, 2), (1, 5, 3), (1, 4, 2)])
def test_points_of_another_shape_raise_an_error(shape):
    with pytest.raises(ValueError, match=r"\(F, P, 2\)"):
        similarity_transform(torch.rand(shape), torch.rand(5, 2))


def test_no_faces_give_no_matrices():
    assert similarity_transform(torch.zeros(0, 5, 2), torch.rand(5, 2)).shape == (0, 2, 3)


# --- align -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "matrix",
    [
        similarity(),
        similarity(2.5, 0, (-30, -20)),
        similarity(1.3, 25, (4, -9)),
        similarity(1.0, 180, (40, 30)),
        similarity(4.0, -70, (-10.25, 55.5)),
    ],
)
def test_crops_that_do_not_shrink_are_bilinear_samples(matrix):
    image = noise(37, 50)
    (crop,) = align([image], ONE, matrix, 32)
    assert crop.shape == (3, 32, 32)
    assert crop.dtype == torch.float32
    assert_close(crop, sampled_by_loops(image, matrix[0], 32))
    assert_close(crop, sampled_by_scipy(image, matrix[0], 32))


def test_images_of_different_sizes_share_a_batch_in_any_order():
    images = [noise(20, 90, 1), noise(64, 33, 2), noise(300, 200, 3)]
    image_index = torch.tensor([2, 0, 0, 1, 2])
    matrices = torch.cat(
        [
            similarity(1.1, 10, (-100, -90)),
            similarity(2.0, -5, (-20, -3)),
            similarity(1.0, 90, (30, 0)),
            similarity(1.5, 0, (2.5, 2.5)),
            similarity(3.0, 45, (0, -200)),
        ]
    )
    crops = align(images, image_index, matrices, 24)
    for crop, index, matrix in zip(crops, image_index, matrices, strict=True):
        assert_close(crop, sampled_by_scipy(images[index], matrix, 24))


def test_shrinking_and_enlarging_crops_share_a_batch():
    images = [noise(400, 300, 1), noise(64, 48, 2)]
    index = torch.tensor([0, 1, 0, 1, 0])
    matrices = torch.cat(
        [shrinking(f) for f in (10, 2)] + [similarity(2.0), similarity(0.9, 5), shrinking(3.3)]
    )
    together = align(images, index, matrices, 20)
    for crop, i, matrix in zip(together, index, matrices, strict=True):
        alone = align([images[i]], ONE, matrix[None], 20)[0]
        torch.testing.assert_close(crop, alone, atol=0.002, rtol=0)


def test_outside_the_image_is_black():
    white = torch.full((10, 10, 3), 255, dtype=torch.uint8)
    (crop,) = align([white], ONE, similarity(shift=(5, 8)), 30)
    assert (crop[:, 8:18, 5:15] == 255).all()
    assert crop.sum() == 255 * 3 * 100
    (empty,) = align([white], ONE, similarity(shift=(1000, 1000)), 30)
    assert (empty == 0).all()


def test_neighboring_images_do_not_bleed_into_each_other():
    white, black = torch.full((8, 8, 3), 255, dtype=torch.uint8), torch.zeros(8, 8, 3).byte()
    matrices = similarity(shift=(4, 4)).repeat(2, 1, 1)
    crops = align([white, black], torch.tensor([1, 0]), matrices, 16)
    assert (crops[0] == 0).all()
    assert (crops[1, :, 4:12, 4:12] == 255).all()


def shrunk_noise(factor):
    """A crop of noise, Pillow's box mean of the same, and the spread of such a mean."""
    image = noise(30 * factor, 30 * factor)
    (crop,) = align([image], ONE, shrinking(factor), 30)
    boxed = Image.fromarray(image.numpy()).resize((30, 30), Image.Resampling.BOX)
    means = torch.tensor(np.array(boxed)).permute(2, 0, 1).float()
    inner = np.s_[:, 1:-1, 1:-1]  # the outermost pixels fade to the black outside
    return crop[inner], means[inner], image.float().std() / factor


@pytest.mark.parametrize("factor", [2, 3, 4, 8, 20])
def test_shrinking_in_whole_steps_is_the_mean_of_each_block(factor):
    crop, means, _ = shrunk_noise(factor)
    assert (crop - means).abs().max() < 1.1  # Pillow's means are rounded, and so are large blocks'


@pytest.mark.parametrize("factor", [5, 13])
def test_shrinking_in_broken_steps_is_near_the_mean_of_each_block(factor):
    # White noise is the hardest photograph: samples that reach past their block see other values.
    crop, means, spread = shrunk_noise(factor)
    assert (crop - means).abs().mean() < 0.5 * spread
    assert (crop.mean() - means.mean()).abs() < 0.5


@pytest.mark.parametrize("factor", [2, 9.7, 35.7])
def test_a_fine_checkerboard_shrinks_to_grey(factor):
    side = 4000
    board = ((torch.arange(side)[:, None] + torch.arange(side)) % 2 * 255).byte()
    board = board[..., None].expand(-1, -1, 3).contiguous()
    matrix = similarity(1 / factor, 7, (9.3, -5.1))
    (crop,) = align([board], ONE, matrix, 100)
    values = crop[:, pixels_within(matrix[0], 100, side, margin=2 * factor)]
    assert values.shape[1] > 1000
    assert abs(values.mean() - 127.5) < 1.5
    assert values.std() < 5


def test_a_zone_plate_shrinks_without_false_rings():
    side, factor = 4000, 20
    y, x = np.mgrid[:side, :side] - side / 2
    plate = (127.5 + 127.5 * np.cos((x**2 + y**2) * np.pi / side)).round().astype(np.uint8)
    image = torch.tensor(plate)[..., None].repeat(1, 1, 3)
    (crop,) = align([image], ONE, shrinking(factor), side // factor)
    blocks = plate.reshape(side // factor, factor, side // factor, factor).mean((1, 3))
    assert np.abs(crop[0].numpy() - blocks).mean() < 2
    # Beyond the rings that the crop can show there is only grey, as in the block means.
    far = np.hypot(*(np.mgrid[: side // factor, : side // factor] - side / factor / 2)) > 20
    assert crop[0].numpy()[far].std() < 1.5 * blocks[far].std() + 1


def test_aligning_puts_landmarks_on_the_template():
    for name in TEMPLATES:
        target = template_points(name, 112)
        placed = transformed(similarity(3.1, 20, (200, 150))[0], target)
        image = torch.zeros(600, 700, 3, dtype=torch.uint8)
        y, x = torch.meshgrid(torch.arange(600), torch.arange(700), indexing="ij")
        for px, py in placed:
            image[(x - px) ** 2 + (y - py) ** 2 < 36] = 255
        (crop,) = align([image], ONE, similarity_transform(placed[None], target), 112)
        for px, py in target:
            rows, columns = torch.meshgrid(torch.arange(112), torch.arange(112), indexing="ij")
            near = crop[0] * ((columns - px).abs() < 5) * ((rows - py).abs() < 5)
            assert (near * columns).sum() / near.sum() == pytest.approx(px.item(), abs=0.1)
            assert (near * rows).sum() / near.sum() == pytest.approx(py.item(), abs=0.1)


def test_there_and_back_gives_the_image_again():
    y, x = np.mgrid[:60, :60]
    smooth = 127 + 80 * np.sin(x / 9) * np.cos(y / 7)
    image = torch.tensor(smooth.round().astype(np.uint8))[..., None].repeat(1, 1, 3)
    there = similarity(1.5, 30, (20, -10))
    (crop,) = align([image], ONE, there, 120)
    inverse = torch.linalg.inv(torch.vstack([there[0], torch.tensor([[0, 0, 1]])]))[None, :2]
    stored = crop.permute(1, 2, 0).round().byte()
    # Going back shrinks by 1.5, so the samples are averaged; a smooth picture survives that.
    (back,) = align([stored], ONE, inverse, 60)
    assert (back[0, 20:40, 20:40] - image[20:40, 20:40, 0]).abs().max() < 4


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0, 11.0])
def test_a_mirrored_image_gives_a_mirrored_crop(factor):
    size = 20
    side = max(40, math.ceil(size * factor) * 2)
    image = noise(side, side)
    points = torch.rand(1, 5, 2, dtype=torch.float64) * size * factor + side / 4
    target = (points[0] - side / 4) / factor
    mirrored, mirrored_target = points.clone(), target.clone()
    mirrored[..., 0] = side - 1 - mirrored[..., 0]
    mirrored_target[..., 0] = size - 1 - mirrored_target[..., 0]
    crop = align([image], ONE, similarity_transform(points, target), size)
    matrix = similarity_transform(mirrored, mirrored_target)
    other = align([image.flip(1)], ONE, matrix, size)
    assert_close(other.flip(-1), crop, of_255=4e-3)


def test_no_faces_give_no_crops():
    crops = align([noise(5, 5)], torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, 3), 16)
    assert crops.shape == (0, 3, 16, 16)
    assert align([], torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, 3), 16).shape == (
        0,
        3,
        16,
        16,
    )


@pytest.mark.parametrize("image", [torch.zeros(8, 8, 3), torch.zeros(3, 8, 8).byte()])
def test_images_of_another_kind_raise_an_error(image):
    with pytest.raises(ValueError, match=r"uint8 images \(H, W, 3\)"):
        align([image], ONE, similarity(), 8)


def test_calls_with_the_same_input_give_the_same_bytes():
    image = noise(200, 200)
    matrices = torch.cat([shrinking(6), similarity(1.2, 12)])
    index = torch.tensor([0, 0])
    assert torch.equal(align([image], index, matrices, 32), align([image], index, matrices, 32))


@pytest.mark.gpu
def test_a_gpu_gives_the_same_crops():
    images = [noise(300, 200), noise(50, 60)]
    matrices = torch.cat([shrinking(7.3), similarity(1.2, 12)])
    index = torch.tensor([0, 1])
    moved = align([i.cuda() for i in images], index.cuda(), matrices.cuda(), 32)
    assert_close(moved.cpu(), align(images, index, matrices, 32))
