"""Training scenes: what is drawn on a photograph must lie where the scene's targets say."""

import math

import pytest
import torch
import torch.nn.functional as F

from facezoo.models.face_detector import scenes as scenery
from facezoo.models.face_detector.scenes import CANVAS, Photos, scenes

SIDE = 250
SWAPPED = [1, 0, 2, 4, 3]
"""Landmarks of a mirrored face: right and left change places."""
# A lopsided face far from the photograph's middle, so that no mistake cancels out.
LANDMARKS = torch.tensor(
    [[165.0, 150.0], [205.0, 152.0], [190.0, 175.0], [170.0, 200.0], [203.0, 196.0]]
)
BOX = torch.tensor([140.0, 110.0, 230.0, 230.0])


def draw_from(seed):
    return torch.Generator().manual_seed(seed)


def ellipse(box):
    """A white ellipse that fills a box, on black, antialiased, uint8 (3, SIDE, SIDE)."""
    fine = 4
    place = (torch.arange(SIDE * fine) + 0.5) / fine - 0.5
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    x = ((place - middle[0]) / half[0])[None, :].square()
    y = ((place - middle[1]) / half[1])[:, None].square()
    inside = F.avg_pool2d((x + y <= 1).float()[None], fine)
    return (inside * 255).round().to(torch.uint8).expand(3, -1, -1)


def shrunk(images, side):
    small = F.interpolate(images.float(), size=(side, side), mode="bilinear", antialias=True)
    return small.round().to(torch.uint8)


def in_all_sizes(images):
    """Photographs at their own side, a half, a quarter and an eighth of it."""
    sides = [SIDE >> level for level in (1, 2, 3)]
    return [images, *(shrunk(images, s) for s in sides)]


def photos_showing(drawn, faces=True, unsure=False):
    """One photograph with the face that shows ``drawn``, and a black one without faces."""
    images = in_all_sizes(torch.stack([drawn, torch.zeros_like(drawn)]))
    box, none = BOX[None], torch.zeros(0, 4)
    return Photos(
        images,
        [box if faces else none, none],
        [LANDMARKS[None] if faces else torch.zeros(0, 5, 2), torch.zeros(0, 5, 2)],
        [box if unsure else none, none],
    )


def one_scene(photos, seed):
    """A scene whose first photograph is the one with the face; the rest is black."""
    return scenes(photos, torch.tensor([0]), torch.tensor([1]), draw_from(seed))


def light(scene):
    """How much light there is and where its middle is, pixels."""
    bright = (scene.mean(0) + 1) / 2
    x = (bright.sum(0) * torch.arange(CANVAS)).sum() / bright.sum()
    y = (bright.sum(1) * torch.arange(CANVAS)).sum() / bright.sum()
    return float(bright.sum()), torch.stack([x, y])


def scale_of(box):
    """Scene pixels per photograph pixel; a turned ellipse keeps the sum of its squared sides."""
    return float((box[2:] - box[:2]).norm() / (BOX[2:] - BOX[:2]).norm())


@pytest.fixture
def clean(monkeypatch):
    """Scenes without noise, colour casts and covers."""
    monkeypatch.setattr(scenery, "_degrade", lambda images, generator: images)
    monkeypatch.setattr(scenery, "_occlude", lambda images, targets, generator: images)


def test_landmarks_lie_on_the_dots_that_were_drawn_there_and_swap_in_a_mirror(clean):
    radius, checked, mirrored, turned = 6.0, 0, set(), set()
    dots = [ellipse(torch.cat([p - radius, p + radius])) for p in LANDMARKS]
    for seed in range(25):
        seen = [one_scene(photos_showing(dot), seed) for dot in dots]
        targets = seen[0][1]
        if not targets.is_face[0, 0]:
            continue
        scale = scale_of(targets.boxes[0, 0])
        lights = [light(images[0]) for images, _ in seen]
        whole = [abs(m / (math.pi * (radius * scale) ** 2) - 1) < 0.03 for m, _ in lights]
        if not all(whole):  # a dot beyond the edge of its tile
            continue
        found = torch.stack([place for _, place in lights])
        across, down = found[1] - found[0], found[3] - found[0]
        flipped = bool(across[0] * down[1] - across[1] * down[0] < 0)
        wanted = targets.landmarks[0, 0]
        wanted = wanted[SWAPPED] if flipped else wanted
        apart = (found - wanted).norm(dim=1).max()
        assert apart < 0.3, f"seed {seed}: {apart:.2f} px at scale {scale:.3f}"
        assert targets.landmarks[0, 0, 0, 0] < targets.landmarks[0, 0, 1, 0]
        checked += 1
        mirrored.add(flipped)
        turned.add(abs(float(across[1] / across[0])) > 0.2)
    assert checked >= 10
    assert mirrored == {True, False}
    assert turned == {True, False}


def test_boxes_enclose_the_ellipse_that_filled_them(clean):
    checked = 0
    for seed in range(30):
        images, targets = one_scene(photos_showing(ellipse(BOX)), seed)
        if not targets.is_face[0, 0]:
            continue
        box = targets.boxes[0, 0]
        mass, _ = light(images[0])
        extent = (BOX[2:] - BOX[:2]) * scale_of(box)
        if abs(mass / float(math.pi / 4 * extent.prod()) - 1) > 0.004:  # not all of it is seen
            continue
        rows, columns = (images[0].mean(0) > 0).nonzero().T
        edges = torch.stack([columns.min(), rows.min(), columns.max(), rows.max()]) + torch.tensor(
            [-0.5, -0.5, 0.5, 0.5]
        )
        assert (edges - box).abs().max() < 1.5, f"seed {seed}"
        checked += 1
    assert checked >= 10


def test_uncertain_regions_are_ignored_after_augmentation_and_do_not_count_as_faces(clean):
    checked = 0
    for seed in range(30):
        photos = photos_showing(ellipse(BOX), faces=False, unsure=True)
        images, targets = one_scene(photos, seed)
        assert not targets.is_face.any()
        x0, y0, x1, y1 = targets.ignored[0, 0].tolist()
        if x1 == 0:  # nearly nothing of it is to be seen
            continue
        rows, columns = (images[0].mean(0) > 0).nonzero().T
        assert x0 - 2 <= columns.min() <= columns.max() <= x1 + 2, f"seed {seed}"
        assert y0 - 2 <= rows.min() <= rows.max() <= y1 + 2, f"seed {seed}"
        checked += 1
    assert checked >= 15


def test_a_face_that_is_mostly_cut_off_is_ignored_and_not_wanted(clean):
    # Two faces far apart: a scene that is centred on one often cuts the other off.
    photos = photos_showing(ellipse(BOX))
    photos.boxes[0] = torch.stack([BOX, torch.tensor([10.0, 10.0, 60.0, 60.0])])
    photos.landmarks[0] = torch.stack([LANDMARKS, LANDMARKS * 0.5 - 60])
    wanted = ignored = 0
    for seed in range(40):
        _, targets = one_scene(photos, seed)
        boxes = targets.boxes[targets.is_face]
        regions = targets.ignored[targets.ignored.any(-1)]
        assert len(boxes) + len(regions) <= 2
        low, high = boxes[:, :2].clamp(min=0), boxes[:, 2:].clamp(max=CANVAS)
        share = (high - low).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1)
        assert (share > 0.69).all()
        assert ((regions >= 0) & (regions <= CANVAS)).all()
        wanted, ignored = wanted + len(boxes), ignored + len(regions)
    assert wanted > 40
    assert ignored > 3


def test_scenes_are_decided_by_the_generator_alone():
    photos = photos_showing(ellipse(BOX))
    chosen, extra = torch.tensor([0, 1, 0]), torch.tensor([0, 1])
    before = [images.clone() for images in photos.images]
    first, targets = scenes(photos, chosen, extra, draw_from(3))
    torch.manual_seed(12345)
    again, same = scenes(photos, chosen, extra, draw_from(3))
    assert torch.equal(first, again)
    for name in ("boxes", "landmarks", "is_face", "ignored"):
        assert torch.equal(getattr(targets, name), getattr(same, name))
    other, _ = scenes(photos, chosen, extra, draw_from(4))
    assert not torch.equal(first, other)
    assert all(map(torch.equal, photos.images, before))


def test_scenes_are_pixels_in_range_with_targets_padded_alike():
    photos = photos_showing(ellipse(BOX))
    chosen = torch.zeros(12, dtype=torch.long)
    images, targets = scenes(photos, chosen, torch.tensor([0, 1]), draw_from(0))
    assert images.shape == (12, 3, CANVAS, CANVAS)
    assert images.min() >= -1
    assert images.max() <= 1
    width = targets.boxes.shape[1]
    assert targets.landmarks.shape == (12, width, 5, 2)
    assert targets.is_face.shape == (12, width)
    assert not targets.boxes[~targets.is_face].any()
    assert (targets.is_face.sum(1) > 1).any(), "no scene of several photographs"


def test_faces_come_in_all_sizes():
    photos = photos_showing(ellipse(BOX))
    sides = []
    for seed in range(6):
        _, targets = scenes(photos, torch.zeros(8).long(), torch.tensor([0]), draw_from(seed))
        boxes = targets.boxes[targets.is_face]
        sides += (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt().tolist()
    assert min(sides) >= 10
    assert min(sides) < 40
    assert max(sides) > 150


def test_images_without_any_face_make_scenes_without_faces():
    none = torch.zeros(0, 4)
    photos = Photos(
        in_all_sizes(torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)),
        [none, none],
        [torch.zeros(0, 5, 2)] * 2,
        [none, none],
    )
    images, targets = scenes(photos, torch.tensor([0, 1]), torch.tensor([0, 1]), draw_from(0))
    assert images.std() > 0.1
    assert not targets.is_face.any()
    assert not targets.ignored.any()
