"""Inversion by the Feature-Style encoder: shapes, refinement, synthesis and editing."""

import pytest
import torch
import torch.nn.functional as F

from facezoo.models.latent_simclr.feature_style import FeatureStyleEncoder
from facezoo.models.latent_simclr.inverter import (
    Inversion,
    StyleGANInverter,
    encoder_for,
    squared_error,
)
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator

DIM = 6


def inverter_of(size=32, trunk_size=32, **more):
    torch.manual_seed(2)
    generator = StyleGANGenerator(size, DIM, 2, max_channels=8)
    encoder = encoder_for(generator, depths=(1, 1, 1, 1), width=8, trunk_size=trunk_size, **more)
    return StyleGANInverter(generator, encoder, **more).eval()


def images_of(inverter, count=2, seed=1):
    draw = torch.Generator().manual_seed(seed)
    size = inverter.generator.size
    codes = torch.randn(count, DIM, generator=draw)
    with torch.no_grad():
        return inverter.generator(inverter.generator.map(codes)).reshape(count, 3, size, size)


# --- the encoder -------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "codes"), [(16, 6), (32, 8), (64, 10)])
def test_an_encoder_has_the_styles_and_the_feature_of_its_generator(size, codes):
    inverter = inverter_of(size)
    w_plus, feature = inverter.encoder(torch.randn(2, 3, size, size))
    assert w_plus.shape == (2, codes, DIM)
    assert feature.shape == (2, 8, 16, 16)


def test_layer_5_of_the_papers_generator_has_side_16_and_18_styles_read_9_pixels_of_4_stages():
    with torch.device("meta"):
        generator = StyleGANGenerator(1024)
        encoder = encoder_for(generator)
    assert generator.feature_shape(5) == (512, 16, 16)
    assert encoder.trunk_size == 256
    assert encoder.maps.weight.shape == (18 * 512, (64 + 128 + 256 + 512) * 9)


@pytest.mark.parametrize("trunk_size", [32, 100, 128, 256])
def test_the_head_meets_the_feature_whatever_the_trunks_size(trunk_size):
    encoder = FeatureStyleEncoder(
        8, DIM, (5, 16, 16), depths=(1, 1, 1, 1), width=2, trunk_size=trunk_size
    )
    w_plus, feature = encoder(torch.randn(2, 3, 40, 40))
    assert feature.shape == (2, 5, 16, 16)
    assert w_plus.shape == (2, 8, DIM)


def test_one_linear_map_for_every_style_reads_the_pooled_stages():
    encoder = inverter_of().encoder
    encoder.mean_code.normal_()
    images = torch.randn(2, 3, 32, 32)
    stages = encoder.trunk.stages(images)
    rows = []
    for stage in stages:
        side = stage.shape[-1]
        for c in range(stage.shape[1]):
            for i in range(3):
                for j in range(3):
                    y, x = (
                        slice(i * side // 3, -(-(i + 1) * side // 3)),
                        slice(j * side // 3, -(-(j + 1) * side // 3)),
                    )
                    rows.append(stage[:, c, y, x].mean((1, 2)))
    pooled = torch.stack(rows, 1)
    w_plus, _ = encoder(images)
    for index in range(8):
        part = slice(index * DIM, (index + 1) * DIM)
        weight = encoder.maps.weight[part] / pooled.shape[1] ** 0.5  # an equalised learning rate
        wanted = pooled @ weight.T + encoder.maps.bias[part]
        torch.testing.assert_close(
            w_plus[:, index], wanted + encoder.mean_code, atol=1e-4, rtol=1e-4
        )


def test_the_feature_is_read_from_the_third_stage():
    encoder = inverter_of().encoder
    images = torch.randn(2, 3, 32, 32)
    _, feature = encoder(images)
    torch.testing.assert_close(encoder.head(encoder.trunk.stages(images)[2]), feature)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 32, 24)])
def test_other_shapes_than_square_batches_raise_an_error(shape):
    with pytest.raises(ValueError, match=r"must be square, \(B, 3, H, H\), got"):
        inverter_of().encode(torch.zeros(shape))


def test_an_encoder_of_another_generator_raises_an_error():
    generator = StyleGANGenerator(32, DIM, 1, max_channels=8)
    other = encoder_for(StyleGANGenerator(64, DIM, 1, max_channels=8), depths=(1, 1, 1, 1), width=2)
    with pytest.raises(ValueError, match=r"\(10, 6, 8, 16, 16\), but layer 5.*\(8, 6, 8, 16, 16\)"):
        StyleGANInverter(generator, other)


# --- inversion ---------------------------------------------------------------------------------


def test_encoding_keeps_gradients_and_inverting_does_not():
    inverter = inverter_of()
    images = images_of(inverter).requires_grad_()
    encoded = inverter.encode(images)
    (encoded.w_plus.sum() + encoded.feature.square().sum()).backward()
    assert images.grad.abs().sum() > 0
    inverted = inverter.invert(images)
    assert not inverted.w_plus.requires_grad
    torch.testing.assert_close(inverted.w_plus, encoded.w_plus)
    torch.testing.assert_close(inverted.feature, encoded.feature)


def test_inverting_uses_eval_mode_and_leaves_the_modes_as_they_were():
    inverter = inverter_of()
    images = images_of(inverter)
    wanted = inverter.invert(images)
    inverter.train()
    inverter.generator.eval()
    torch.testing.assert_close(inverter.invert(images).w_plus, wanted.w_plus)
    assert inverter.encoder.training
    assert not inverter.generator.training


def errors(inverter, images, inversion):
    return squared_error(inverter.synthesize(inversion.w_plus, inversion.feature), images)


def test_refinement_comes_closer_with_every_further_step_that_it_keeps():
    inverter = inverter_of()
    images = images_of(inverter)
    found = [errors(inverter, images, inverter.invert(images, n)) for n in (0, 5, 40)]
    assert (found[1] < found[0]).all()
    assert (found[2] < 0.7 * found[0]).all()


def test_refinement_is_never_worse_than_the_encoders_answer():
    inverter = inverter_of()
    images = images_of(inverter)
    start = errors(inverter, images, inverter.invert(images))
    wild = inverter.invert(images, 3, code_lr=1e4, feature_lr=1e4)
    assert (errors(inverter, images, wild) <= start).all()


def test_refinement_is_the_same_every_time_and_for_every_batch():
    inverter = inverter_of()
    images = images_of(inverter, 3)
    whole = inverter.invert(images, 6)
    torch.manual_seed(77)
    again = inverter.invert(images, 6)
    assert torch.equal(whole.w_plus, again.w_plus)
    assert torch.equal(whole.feature, again.feature)
    alone = inverter.invert(images[1:2], 6)
    torch.testing.assert_close(alone.w_plus, whole.w_plus[1:2], atol=1e-4, rtol=1e-3)


def test_refinement_leaves_no_gradients_and_changes_no_parameter():
    inverter = inverter_of()
    before = {name: value.clone() for name, value in inverter.state_dict().items()}
    inverter.invert(images_of(inverter), 3)
    assert all(parameter.grad is None for parameter in inverter.parameters())
    for name, value in inverter.state_dict().items():
        assert torch.equal(value, before[name])


def test_refinement_works_inside_inference_mode():
    inverter = inverter_of()
    images = images_of(inverter)
    wanted = inverter.invert(images, 3)
    with torch.inference_mode():
        inside = inverter.invert(images.clone(), 3)
    torch.testing.assert_close(inside.w_plus, wanted.w_plus)


def test_refinement_minimises_the_distance_that_it_is_given():
    inverter = inverter_of()
    images = images_of(inverter)

    def darkness(synthesized, targets):
        return synthesized.mean((1, 2, 3))

    dark = inverter.invert(images, 20, distance=darkness)
    plain = inverter.invert(images)
    means = [inverter.synthesize(i.w_plus, i.feature).mean((1, 2, 3)) for i in (dark, plain)]
    assert (means[0] < means[1]).all()


def test_refinement_of_nothing_and_of_other_sizes_raises_an_error():
    inverter = inverter_of()
    with pytest.raises(ValueError, match="refine_steps must be 0 or more, got -1"):
        inverter.invert(torch.zeros(1, 3, 32, 32), -1)
    with pytest.raises(
        ValueError, match=r"generator's size, \(B, 3, 32, 32\), got \(1, 3, 64, 64\)"
    ):
        inverter.invert(torch.zeros(1, 3, 64, 64), 5)
    assert inverter.invert(torch.zeros(1, 3, 64, 64)).w_plus.shape == (1, 8, DIM)


# --- synthesis and editing ---------------------------------------------------------------------


def test_synthesis_without_a_feature_is_the_generators_own():
    inverter = inverter_of()
    codes = torch.randn(2, 8, DIM)
    torch.testing.assert_close(inverter.synthesize(codes), inverter.generator(codes))
    own = inverter.generator.features(codes, 5)
    torch.testing.assert_close(inverter.synthesize(codes, own), inverter.generator(codes))
    other = inverter.synthesize(codes, own + 1)
    assert not torch.allclose(other, inverter.generator(codes))


def test_an_edit_moves_the_codes_and_the_feature_as_the_generator_would():
    inverter = inverter_of()
    start = inverter.encode(images_of(inverter))
    direction = torch.randn(8, DIM)
    moved = inverter.move(start, direction, torch.tensor([0.5, -2.0]))
    amounts = torch.tensor([0.5, -2.0]).view(2, 1, 1)
    torch.testing.assert_close(moved.w_plus, start.w_plus + amounts * direction)
    features = [inverter.generator.features(i.w_plus, 5) for i in (start, moved)]
    torch.testing.assert_close(moved.feature - start.feature, features[1] - features[0])


def test_an_edit_of_codes_with_their_own_feature_is_the_edit_of_the_codes():
    inverter = inverter_of()
    codes = torch.randn(2, 8, DIM)
    own = Inversion(codes, inverter.generator.features(codes, 5))
    moved = inverter.move(own, torch.randn(1, DIM), 1.5)
    torch.testing.assert_close(
        inverter.synthesize(moved.w_plus, moved.feature),
        inverter.generator(moved.w_plus),
        atol=1e-4,
        rtol=1e-4,
    )


def test_an_edit_by_nothing_gives_the_reconstruction():
    inverter = inverter_of()
    images, direction = images_of(inverter), torch.randn(1, DIM)
    inversion = inverter.invert(images)
    plain = inverter.synthesize(inversion.w_plus, inversion.feature)
    torch.testing.assert_close(inverter.edit(images, direction, 0.0), plain)
    edited = inverter.edit(images, direction, 2.0)
    assert edited.shape == (2, 3, 32, 32)
    assert F.mse_loss(edited, plain) > 1e-4


def test_an_edit_has_gradients_to_its_strength_and_direction():
    inverter = inverter_of()
    direction = torch.randn(1, DIM, requires_grad=True)
    strength = torch.ones(2, requires_grad=True)
    inverter.edit(images_of(inverter), direction, strength).square().sum().backward()
    assert direction.grad.abs().sum() > 0
    assert strength.grad.abs().min() > 0


def test_a_direction_that_does_not_fit_raises_an_error():
    inverter = inverter_of()
    with pytest.raises(ValueError, match=r"must be \(1, 6\) or \(8, 6\), got \(18, 6\)"):
        inverter.edit(images_of(inverter), torch.zeros(18, 6), 1.0)


def test_an_inverter_is_stored_and_loaded_as_a_whole():
    inverter, again = inverter_of(), inverter_of()
    for parameter in again.parameters():
        torch.nn.init.zeros_(parameter)
    again.load_state_dict(inverter.state_dict())
    images = images_of(inverter)
    torch.testing.assert_close(again.invert(images).w_plus, inverter.invert(images).w_plus)
