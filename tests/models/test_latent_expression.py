"""Expression axes and the feature's part of a direction, fitted to faces made by a known rule."""

import pytest
import torch

from facezoo.models.latent_simclr.expression import (
    ExpressionAxes,
    differences,
    feature_direction,
)

SHAPE = (3, 2, 2)


def faces(count=400, seed=0):
    """Faces with two expression numbers, an identity that correlates with the first, and noise."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    number = torch.arange(count) // 4
    identity = normal(count // 4, 5)[number]
    expression = normal(count, 2)
    expression[:, 0] += identity[:, 0]
    into_codes, into_feature = normal(2, 4 * 6), normal(2, 12)
    codes = expression @ into_codes + identity @ normal(5, 24) + 0.01 * normal(count, 24)
    feature = expression @ into_feature + identity @ normal(5, 12)
    names = [f"identity {n}" for n in number.tolist()]
    shown = expression @ normal(2, 7)
    return codes.view(-1, 4, 6), feature.view(-1, *SHAPE), shown, names, into_feature


def test_axes_move_the_expression_and_leave_the_identity():
    codes, feature, shown, names, into_feature = faces()
    axes = ExpressionAxes(2, 4, 6, SHAPE)
    axes.fit(codes, feature, shown, names)
    coordinates = axes.coordinates(codes)
    centered = coordinates - coordinates.mean(0)
    torch.testing.assert_close(centered.var(0), torch.ones(2), atol=0.1, rtol=0.1)
    # Faces of one identity differ by their expression alone, which the axes explain.
    change = axes.change(coordinates[1::4] - coordinates[::4])
    expected = feature[1::4] - feature[::4]
    assert (change.feature - expected).square().mean() < 0.02 * expected.square().mean()
    # The change lies in the span of what the expression does to the feature.
    rest = torch.linalg.lstsq(into_feature.T, axes.feature.flatten(1).T).residuals
    assert rest.sum() < 1e-3 * axes.feature.square().sum()


def test_axes_need_named_identities_and_enough_dimensions():
    codes, feature, shown, names, _ = faces(40)
    with pytest.raises(ValueError, match="no identity has two faces"):
        ExpressionAxes(2, 4, 6, SHAPE).fit(codes, feature, shown, [""] * 40)
    with pytest.raises(ValueError, match="fewer than 3 dimensions; fit fewer axes"):
        ExpressionAxes(3, 4, 6, SHAPE).fit(codes, feature, shown, names)


def test_differences_are_zero_for_single_and_unnamed_faces():
    values = torch.tensor([[1.0], [3.0], [5.0], [7.0], [9.0]])
    result = differences(["a", "a", "b", "", ""], values)
    assert result.flatten().tolist() == [-1, 1, 0, 0, 0]
    assert differences(["a", "b", ""], values[:3]) is None


def test_the_feature_moves_as_far_as_the_codes_do():
    direction = torch.zeros(4, 6)
    direction[1, 2] = 2.0
    amounts = torch.tensor([-1.0, 0.0, 3.0, 5.0])
    codes = amounts[:, None, None] * direction + torch.ones(4, 6) * (direction == 0)
    pattern = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    feature = (7 + amounts[:, None, None, None] * pattern).half()
    labels = torch.tensor([0.0, float("nan"), 1.0, 1.0])
    fitted = feature_direction(direction, codes, feature, labels)
    torch.testing.assert_close(fitted, pattern, atol=0.02, rtol=0.02)
