"""The losses of StyleGAN2's training against their formulas."""

import math

import pytest
import torch

from facezoo.models.latent_simclr.discriminator import StyleGANDiscriminator
from facezoo.models.latent_simclr.gan_losses import (
    discriminator_loss,
    generator_loss,
    path_length_penalty,
    path_lengths,
    r1_penalty,
    update_path_length,
)
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_the_generators_loss_is_minus_the_log_of_being_taken_for_real():
    logits = torch.tensor([[0.3], [-2.0], [1.5]])
    wanted = -sum(math.log(sigmoid(v)) for v in (0.3, -2.0, 1.5)) / 3
    assert generator_loss(logits).item() == pytest.approx(wanted)


def test_the_discriminators_loss_is_the_cross_entropy_of_both_kinds():
    real, fake = torch.tensor([[2.0], [-0.5]]), torch.tensor([[1.0], [-3.0], [0.2]])
    wanted = -sum(math.log(sigmoid(v)) for v in (2.0, -0.5)) / 2
    wanted -= sum(math.log(1 - sigmoid(v)) for v in (1.0, -3.0, 0.2)) / 3
    assert discriminator_loss(real, fake).item() == pytest.approx(wanted, rel=1e-5)


def test_extreme_logits_cost_much_and_stay_finite():
    high, low = torch.full((2, 1), 1e4), torch.full((2, 1), -1e4)
    assert generator_loss(low).item() == pytest.approx(1e4)
    assert discriminator_loss(low, high).item() == pytest.approx(2e4)
    assert generator_loss(high).item() == 0


def test_r1_of_a_linear_discriminator_is_the_squared_length_of_its_weights():
    weights = torch.randn(3, 4, 4)
    images = torch.randn(5, 3, 4, 4, requires_grad=True)
    logits = (images * weights).sum((1, 2, 3))[:, None]
    torch.testing.assert_close(r1_penalty(images, logits), weights.square().sum())


def test_r1_is_the_mean_over_images():
    slopes = torch.tensor([1.0, 3.0])
    images = torch.randn(2, 3, 2, 2, requires_grad=True)
    logits = (images.sum((1, 2, 3)) * slopes)[:, None]
    assert r1_penalty(images, logits).item() == pytest.approx((12 * 1 + 12 * 9) / 2)


def test_r1_reaches_the_parameters_of_the_discriminator():
    discriminator = StyleGANDiscriminator(8, max_channels=4)
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    r1_penalty(images, discriminator(images)).backward()
    assert discriminator.convs[0][0].weight.grad.abs().sum() > 0
    assert discriminator.final_linear[1].weight.grad.abs().sum() > 0


def test_path_lengths_are_those_of_the_jacobian():
    jacobian = torch.randn(3 * 4 * 4, 2 * 5)
    codes = torch.randn(2, 2, 5, requires_grad=True)
    images = (codes.flatten(1) @ jacobian.T).view(2, 3, 4, 4)
    lengths = path_lengths(images, codes, torch.Generator().manual_seed(3))
    y = torch.randn(2, 48, generator=torch.Generator().manual_seed(3)) / 4
    products = (y @ jacobian).view(2, 2, 5)
    wanted = [math.sqrt(sum(float(v @ v) for v in row) / 2) for row in products]
    torch.testing.assert_close(lengths, torch.tensor(wanted))


def test_path_lengths_reach_the_parameters_of_the_generator():
    generator = StyleGANGenerator(8, 6, 1, max_channels=4)
    codes = generator.map(torch.randn(2, 6))[:, None].expand(-1, generator.num_codes, -1)
    lengths = path_lengths(generator(codes), codes, torch.Generator().manual_seed(0))
    path_length_penalty(lengths, torch.tensor(0.5)).backward()
    assert lengths.shape == (2,)
    for weight in (generator.conv1.conv.weight, generator.style[1].weight):
        assert weight.grad.abs().sum() > 0


def test_the_path_length_penalty_is_the_squared_distance_from_the_running_mean():
    lengths, target = torch.tensor([1.0, 4.0]), torch.tensor(2.0)
    assert path_length_penalty(lengths, target).item() == pytest.approx((1 + 4) / 2)


def test_the_running_mean_moves_by_a_hundredth():
    target = update_path_length(torch.tensor(2.0), torch.tensor([4.0, 8.0], requires_grad=True))
    assert target.item() == pytest.approx(2 + 0.01 * 4)
    assert not target.requires_grad
