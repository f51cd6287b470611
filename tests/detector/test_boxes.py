"""Overlap and suppression against loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facezoo.preprocess.boxes import area, iou, nms, paired_iou

corner, extent = st.integers(0, 20), st.integers(0, 15)
box = st.tuples(corner, corner, extent, extent).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
scored = st.lists(st.tuples(box, st.integers(1, 9)), max_size=12)


def naive_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    shared = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else 0.0


def greedy(boxes, scores, threshold):
    """Take the best box, drop what overlaps it, repeat; the first of equal scores goes first."""
    left = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept = []
    while left:
        best, *left = left
        kept.append(best)
        left = [i for i in left if naive_iou(boxes[best], boxes[i]) <= threshold]
    return kept


@given(box, box)
@settings(deadline=None)
def test_iou_of_two_boxes_is_intersection_over_union(a, b):
    first, second = torch.tensor([a]).float(), torch.tensor([b]).float()
    wanted = torch.tensor([naive_iou(a, b)])
    torch.testing.assert_close(paired_iou(first, second), wanted)


@given(scored, st.sampled_from([0.0, 0.3, 0.45, 1.0]))
@settings(deadline=None)
def test_suppression_keeps_what_greedy_suppression_keeps(found, threshold):
    boxes = torch.tensor([b for b, _ in found]).float().reshape(-1, 4)
    scores = torch.tensor([s for _, s in found]).float()
    expected = greedy([b for b, _ in found], scores.tolist(), threshold)
    assert nms(boxes, scores, threshold).tolist() == expected


def test_iou_is_of_every_pair_and_keeps_leading_dimensions():
    first, second = torch.rand(2, 3, 4), torch.rand(2, 5, 4)
    first[..., 2:] += first[..., :2]
    second[..., 2:] += second[..., :2]
    overlaps = iou(first, second)
    assert overlaps.shape == (2, 3, 5)
    for batch in range(2):
        for i in range(3):
            for j in range(5):
                wanted = naive_iou(first[batch, i].tolist(), second[batch, j].tolist())
                torch.testing.assert_close(overlaps[batch, i, j], torch.tensor(wanted))


def test_a_box_turned_inside_out_has_no_area_and_overlaps_nothing():
    inside_out = torch.tensor([[5.0, 5.0, 1.0, 9.0]])
    assert area(inside_out).item() == 0
    assert paired_iou(inside_out, torch.tensor([[0.0, 0.0, 10.0, 10.0]])).item() == 0


def test_no_boxes_have_no_overlaps_and_nothing_survives():
    none = torch.zeros(0, 4)
    assert iou(none, torch.zeros(3, 4)).shape == (0, 3)
    assert nms(none, torch.zeros(0), 0.4).shape == (0,)
