"""Each loss of LatentFace against a transcription of its formula in loops."""

import math

import pytest
import torch
from torch import nn

from facezoo.models.latentface.losses import (
    confidence_loss,
    denoising_loss,
    feature_map_loss,
    reconstruction_loss,
    snr_weights,
)


def naive_confidence(predicted, target, sigma, mask):
    """Eq. (7) with the density written out, averaged over the pixels of the mask."""
    total, count = 0.0, 0.0
    batch, channels, height, width = predicted.shape
    for b in range(batch):
        for v in range(height):
            for u in range(width):
                for c in range(channels):
                    s, share = sigma[b, 0, v, u].item(), mask[b, 0, v, u].item()
                    difference = abs((predicted - target)[b, c, v, u].item())
                    density = math.exp(-math.sqrt(2) * difference / s) / (math.sqrt(2) * s)
                    total -= share * math.log(density)
                    count += share
    return torch.tensor(total / count)


def scene(channels=3, size=4):
    predicted, target = torch.randn(2, channels, size, size), torch.randn(2, channels, size, size)
    sigma, mask = torch.rand(2, 1, size, size) + 0.5, torch.rand(2, 1, size, size) > 0.4
    return predicted, target, sigma, mask


def test_confidence_loss_is_equation_7():
    given = scene()
    torch.testing.assert_close(confidence_loss(*given), naive_confidence(*given))


def test_confidence_loss_is_least_where_sigma_is_the_error_times_root_2():
    error = torch.full((1, 1, 2, 2), 0.3)
    mask = torch.ones(1, 1, 2, 2)
    losses = [
        confidence_loss(error, 0 * error, torch.full((1, 1, 2, 2), s), mask).item()
        for s in (0.3, 0.3 * math.sqrt(2), 0.6)
    ]
    assert min(losses) == losses[1]


def test_pixels_outside_the_mask_do_not_count():
    predicted, target, sigma, mask = scene()
    elsewhere = torch.where(mask, predicted, 100.0)
    torch.testing.assert_close(
        confidence_loss(elsewhere, target, sigma, mask),
        confidence_loss(predicted, target, sigma, mask),
    )


def test_an_empty_mask_and_a_sigma_of_0_give_finite_losses_and_gradients():
    predicted, target, sigma, mask = scene()
    predicted.requires_grad_()
    empty = confidence_loss(predicted, target, sigma, mask & False)
    assert empty.item() == 0
    (empty + confidence_loss(predicted, target, 0 * sigma, mask)).backward()
    assert torch.isfinite(predicted.grad).all()


def test_feature_loss_is_equation_6_over_the_features_of_both():
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    predicted, target, _, mask = scene(size=8)
    sigma = torch.rand(2, 1, 4, 4) + 0.5
    share = mask.float().unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
    loss = feature_map_loss(conv(predicted), conv(target), sigma, mask)
    wanted = naive_confidence(conv(predicted), conv(target), sigma, share)
    torch.testing.assert_close(loss, wanted)


def test_feature_loss_takes_a_sigma_of_another_size_and_teaches_the_prediction():
    predicted, target, _, mask = scene(size=8)
    predicted.requires_grad_()
    pooled = [nn.functional.avg_pool2d(x, 2) for x in (predicted, target)]
    loss = feature_map_loss(*pooled, torch.full((2, 1, 2, 2), 0.7), mask)
    share = nn.functional.avg_pool2d(mask.float(), 2)
    wanted = naive_confidence(*pooled, torch.full((2, 1, 4, 4), 0.7), share)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert predicted.grad.abs().sum() > 0


def test_reconstruction_loss_is_equations_8_and_9():
    parts = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert reconstruction_loss(*parts).item() == 1 + 1 * 2 + 0.5 * (3 + 1 * 4)
    weighted = reconstruction_loss(*parts, lambda_feature=0.3, lambda_flip=2.0)
    assert weighted.item() == pytest.approx(1 + 0.3 * 2 + 2 * (3 + 0.3 * 4))


def test_denoising_loss_is_equation_4():
    predicted, clean = torch.randn(3, 5), torch.randn(3, 5)
    distances = [
        sum((z - p) ** 2 for z, p in zip(zs, ps, strict=True))
        for zs, ps in zip(clean.tolist(), predicted.tolist(), strict=True)
    ]
    torch.testing.assert_close(denoising_loss(predicted, clean), torch.tensor(sum(distances) / 3))


def test_denoising_loss_with_weights_is_equation_10():
    predicted, clean, steps = torch.randn(3, 5), torch.randn(3, 5), torch.tensor([0, 400, 999])
    total = 0.0
    for row, step in enumerate(steps.tolist()):
        alpha = math.prod(1 - (1e-4 + (0.02 - 1e-4) * k / 999) for k in range(step + 1))
        distance = (clean[row] - predicted[row]).square().sum().item()
        total += alpha / (1 - alpha) * distance
    loss = denoising_loss(predicted, clean, snr_weights(steps))
    torch.testing.assert_close(loss, torch.tensor(total / 3), rtol=1e-3, atol=0)


def test_snr_weights_fall_with_the_step_and_can_be_limited():
    weights = snr_weights(torch.arange(1000))
    assert (weights.diff() < 0).all()
    limited = snr_weights(torch.arange(1000), limit=5.0)
    assert limited.max() == 5
    torch.testing.assert_close(limited[-300:], weights[-300:])


@pytest.mark.parametrize("loss", ["confidence", "denoising"])
def test_losses_are_float32_and_reach_their_input_in_half_precision(loss):
    values = torch.randn(2, 3, 4, 4, dtype=torch.bfloat16, requires_grad=True)
    if loss == "confidence":
        ones = torch.ones(2, 1, 4, 4, dtype=torch.bfloat16)
        value = confidence_loss(values, torch.zeros(2, 3, 4, 4), ones, ones > 0)
    else:
        value = denoising_loss(values.flatten(1), torch.zeros(2, 48))
    value.backward()
    assert value.dtype == torch.float32
    assert values.grad.abs().sum() > 0
