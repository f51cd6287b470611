"""SimCLR's encoder, and the losses of SimCLR and of the adapter against their formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from facezoo.models.latent_simclr.losses import (
    feature_loss,
    identity_loss,
    image_loss,
    nt_xent_loss,
    perceptual_loss,
)
from facezoo.models.latent_simclr.simclr import CodeEncoder, ProjectionHead


def cosine(a, b):
    return float(a @ b / a.norm() / b.norm())


def layers_of(images):
    """A frozen network of two layers, which averages what it sees."""
    near = torch.cat([images, images.flip(3)], 1)
    return [near, F.avg_pool2d(near.square(), 2)]


def test_nt_xent_is_equation_1_over_all_ordered_pairs():
    first, second, tau = torch.randn(5, 7), torch.randn(5, 7), 0.3
    rows = [row for pair in zip(first, second, strict=True) for row in pair]
    losses = []
    for i, row in enumerate(rows):
        j = i + 1 if i % 2 == 0 else i - 1
        others = [math.exp(cosine(row, rows[k]) / tau) for k in range(10) if k != i]
        losses.append(-math.log(math.exp(cosine(row, rows[j]) / tau) / sum(others)))
    wanted = sum(losses) / 10
    assert nt_xent_loss(first, second, tau).item() == pytest.approx(wanted, rel=1e-5)


def test_nt_xent_is_symmetric_and_blind_to_length():
    first, second = torch.randn(4, 6), torch.randn(4, 6)
    loss = nt_xent_loss(first, second)
    torch.testing.assert_close(nt_xent_loss(second, first), loss)
    torch.testing.assert_close(nt_xent_loss(9 * first, 0.1 * second), loss)


def test_nt_xent_is_small_where_views_agree_and_samples_differ():
    views = 3 * torch.eye(6)
    assert nt_xent_loss(views, views, 0.05) < 1e-4
    assert nt_xent_loss(views, views.roll(1, 0), 0.05) > 10


def test_nt_xent_is_float32_and_reaches_its_input_under_autocast():
    views = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nt_xent_loss(views, views.detach().flip(0))
    loss.backward()
    assert loss.dtype == torch.float32
    assert views.grad.abs().sum() > 0


def test_the_image_loss_is_the_mean_squared_difference():
    images, targets = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    pairs = zip(images.flatten().tolist(), targets.flatten().tolist(), strict=True)
    wanted = sum((a - b) ** 2 for a, b in pairs) / 96
    assert image_loss(images, targets).item() == pytest.approx(wanted, rel=1e-5)


def test_the_perceptual_loss_adds_scales_layers_and_channels():
    images, targets = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    wanted = 0.0
    for scale in range(3):
        pools = [F.avg_pool2d(side, 2**scale) for side in (images, targets)]
        for a, b in zip(*map(layers_of, pools), strict=True):
            for sample in range(2):
                places = [(y, x) for y in range(a.shape[2]) for x in range(a.shape[3])]
                for y, x in places:
                    p, q = a[sample, :, y, x], b[sample, :, y, x]
                    gap = (p / p.norm() - q / q.norm()).square().sum()
                    wanted += float(gap) / len(places) / 2
    pyramid = [
        [m for scale in range(3) for m in layers_of(F.avg_pool2d(side, 2**scale))]
        for side in (images, targets)
    ]
    loss = perceptual_loss(*pyramid)
    assert loss.item() == pytest.approx(wanted, rel=1e-4)


def test_the_perceptual_loss_sees_a_change_at_the_scale_where_it_is():
    images = torch.rand(1, 3, 16, 16) + 0.5
    checks = ((torch.arange(16)[:, None] + torch.arange(16)) % 2).float() * 0.2 - 0.1
    fine = images + checks * torch.tensor([1.0, -1.0, 1.0]).view(1, 3, 1, 1)
    coarse = [
        perceptual_loss(layers_of(F.avg_pool2d(fine, 2)), layers_of(F.avg_pool2d(images, 2))),
        perceptual_loss(layers_of(fine), layers_of(images)),
    ]
    assert coarse[0] < 1e-6 < coarse[1]


def test_the_identity_loss_adds_one_minus_the_cosine_of_every_layer():
    images, targets = torch.randn(3, 3, 8, 8), torch.randn(3, 3, 8, 8)
    wanted = sum(
        1 - cosine(a[i].flatten(), b[i].flatten())
        for a, b in zip(layers_of(images), layers_of(targets), strict=True)
        for i in range(3)
    )
    loss = identity_loss(layers_of(images), layers_of(targets))
    assert loss.item() == pytest.approx(wanted / 3, rel=1e-5)
    assert identity_loss(layers_of(images), layers_of(images)).item() == pytest.approx(0, abs=1e-6)


def test_the_feature_loss_is_the_mean_squared_difference():
    feature = torch.randn(2, 4, 3, 3)
    assert feature_loss(feature, feature + 0.5).item() == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("loss", [perceptual_loss, identity_loss])
def test_gradients_go_to_the_images_and_not_to_their_targets(loss):
    images, targets = (torch.rand(2, 3, 8, 8, requires_grad=True) for _ in range(2))
    loss(layers_of(images), layers_of(targets)).backward()
    assert images.grad.abs().sum() > 0
    assert targets.grad is None


# --- the encoder -------------------------------------------------------------------------------


def encoder_of(**more):
    return CodeEncoder(10, 6, **{"width": 8, "num_features": 12, **more})


def test_the_encoder_gives_h_and_the_head_gives_z():
    encoder = encoder_of().eval()
    codes = torch.randn(5, 10, 6, requires_grad=True)
    h = encoder(codes)
    assert h.shape == (5, 12)
    assert ProjectionHead(12, 4)(h).shape == (5, 4)
    h.square().sum().backward()
    assert codes.grad.abs().sum((0, 2)).min() > 0  # every style is read


def test_codes_are_standardized_by_those_of_training():
    encoder = encoder_of()
    codes = 7 + 3 * torch.randn(500, 10, 6)
    encoder.fit_scale(codes)
    torch.testing.assert_close(encoder.mean, codes.mean(0))
    seen = []
    encoder.convolutions[0].register_forward_hook(lambda m, i, o: seen.append(i[0]))
    encoder(codes)
    torch.testing.assert_close(seen[0].mean(0), torch.zeros(6, 10), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[0].std(0), torch.ones(6, 10), atol=1e-3, rtol=0)


def test_a_code_that_never_varies_stays_finite():
    encoder = encoder_of()
    encoder.fit_scale(torch.ones(4, 10, 6))
    assert torch.isfinite(encoder.eval()(torch.ones(2, 10, 6))).all()


def test_other_codes_raise_an_error():
    with pytest.raises(ValueError, match=r"\(B, 10, 6\) of W\+, got \(2, 18, 6\)"):
        encoder_of()(torch.zeros(2, 18, 6))
    with pytest.raises(ValueError, match="at least 2 codes, got 1"):
        encoder_of().fit_scale(torch.zeros(1, 10, 6))


def test_a_step_on_the_contrast_pulls_views_together():
    encoder, head = encoder_of(), ProjectionHead(12, 8)
    parts = torch.nn.ModuleList([encoder, head])
    optimizer = torch.optim.Adam(parts.parameters(), lr=3e-3)
    codes, losses = torch.randn(16, 10, 6), []
    for _ in range(20):
        views = [head(encoder(codes + 0.1 * torch.randn_like(codes))) for _ in range(2)]
        loss = nt_xent_loss(*views)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
