import pytest
import torch

from facezoo.geometry.meshes import edges_of
from facezoo.models.adv3d.losses import (
    adversarial_loss,
    discriminator_loss,
    independence_loss,
    kl_loss,
    laplacian_loss,
    neutral_loss,
    reconstruction_loss,
    rest_loss,
)


def test_reconstruction_loss_is_the_mean_squared_error():
    first, second = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    wanted = sum(float(d) ** 2 for d in (first - second).flatten()) / 24
    assert float(reconstruction_loss(first, second)) == pytest.approx(wanted, rel=1e-5)


def test_kl_loss_is_the_log_density_ratio_of_equation_5():
    mean, logvar, z = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4)
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    prior = torch.distributions.Normal(0, 1)
    wanted = (posterior.log_prob(z) - prior.log_prob(z)).sum(1).mean()
    torch.testing.assert_close(kl_loss(z, mean, logvar), wanted)


def test_kl_loss_has_the_closed_form_as_its_expectation():
    draw = torch.Generator().manual_seed(0)
    mean = torch.randn(1, 4, generator=draw).expand(200_000, -1)
    logvar = torch.tensor([[-1.0, 0.5, 0.0, -2.0]]).expand(200_000, -1)
    z = mean + (logvar / 2).exp() * torch.randn(200_000, 4, generator=draw)
    closed = 0.5 * (mean.square() + logvar.exp() - logvar - 1)[0].sum()
    assert float(kl_loss(z, mean, logvar)) == pytest.approx(float(closed), rel=0.01)


def test_discriminator_loss_matches_equation_8():
    real, fake = torch.randn(3, 2).log_softmax(1), torch.randn(3, 2).log_softmax(1)
    wanted = -(real[:, 1].sum() + fake[:, 0].sum()) / 6
    torch.testing.assert_close(discriminator_loss(real, fake), wanted)


def test_the_generator_gains_where_the_discriminator_loses():
    logits = torch.zeros(1, 2, requires_grad=True)
    judged = logits.log_softmax(1)
    (up,) = torch.autograd.grad(adversarial_loss(judged), logits, retain_graph=True)
    (down,) = torch.autograd.grad(discriminator_loss(judged.detach(), judged), logits)
    assert up[0, 1] < 0 < down[0, 1]


def test_neutral_loss_is_a_mean_absolute_difference_with_gradients_on_both_sides():
    first = torch.randn(2, 3, requires_grad=True)
    again = torch.randn(2, 3, requires_grad=True)
    loss = neutral_loss(first, again)
    torch.testing.assert_close(loss, (first - again).abs().sum() / 6)
    loss.backward()
    torch.testing.assert_close(first.grad, -again.grad)


def test_laplacian_loss_is_zero_for_a_face_that_is_one_point_and_grows_with_a_spike():
    edges = edges_of(torch.tensor([[0, 1, 2], [2, 1, 3]]))
    flat = torch.ones(1, 4, 3)
    assert float(laplacian_loss(flat, edges)) == 0
    spike = flat.clone()
    spike[0, 0, 2] += 3
    # The spike itself differs by 3; it is one of 3 neighbours of vertices 1 and 2.
    assert float(laplacian_loss(spike, edges)) == pytest.approx((9 + 1 + 1) / 4)


def test_independence_loss_sums_the_squared_correlations_of_the_codes():
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(500, 5, generator=draw) @ torch.randn(5, 5, generator=draw)
    identity, expression = torch.randn(3, 5, generator=draw), torch.randn(2, 5, generator=draw)
    codes = torch.cat([scores @ identity.T, scores @ expression.T], 1)
    wanted = torch.corrcoef(codes.T)[:3, 3:].square().sum()
    found = independence_loss(identity, expression, torch.cov(scores.T))
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=0)
    silent = torch.cat([expression, torch.zeros(1, 5)])
    again = independence_loss(identity, silent, torch.cov(scores.T))
    torch.testing.assert_close(again, found)


def test_rest_loss_is_zero_only_where_no_expression_is_left():
    assert float(rest_loss(torch.zeros(2, 3))) == 0
    assert float(rest_loss(torch.tensor([[1.0, -3.0]]))) == 2
