"""Accuracy by yaw against a count in loops."""

import math

import pytest
import torch

from facezoo.evaluate.pose import PoseBin, accuracy_by_yaw


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_by_yaw_is_what_loops_give(seed):
    draw = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(80, 4, generator=draw)
    truth = torch.randint(0, 4, (80,), generator=draw)
    yaw = 30 * torch.randn(80, generator=draw)
    yaw[::7] = torch.nan
    bins = accuracy_by_yaw(probabilities, truth, yaw)
    assert [part.beyond_deg for part in bins] == [None, 10, 20, 30, 40]
    for part in bins:
        inside = [
            row.index(max(row)) == t
            for row, t, y in zip(probabilities.tolist(), truth.tolist(), yaw.tolist(), strict=True)
            if part.beyond_deg is None or y > part.beyond_deg or y < -part.beyond_deg
        ]
        assert part.images == len(inside)
        assert part.accuracy == pytest.approx(sum(inside) / len(inside))


def test_a_face_of_unknown_yaw_counts_among_all_only_and_the_limit_itself_is_not_beyond():
    right = torch.eye(2)[[0, 0, 0]]
    bins = accuracy_by_yaw(right, torch.tensor([0, 0, 1]), torch.tensor([10.0, -10.5, torch.nan]))
    assert bins[0] == PoseBin(None, 3, pytest.approx(2 / 3))
    assert bins[1] == PoseBin(10, 1, 1.0)
    assert bins[2].images == 0
    assert math.isnan(bins[2].accuracy)


def test_a_face_that_was_not_found_counts_as_wrong():
    missed = torch.tensor([[torch.nan, torch.nan], [1.0, 0.0]])
    bins = accuracy_by_yaw(missed, torch.tensor([0, 0]), torch.tensor([50.0, 50.0]))
    assert [part.accuracy for part in bins] == [0.5] * 5
