"""StyleGAN2's networks against naive loops, and against the reference vectors where they are."""

import math

import pytest
import torch
import torch.nn.functional as F
from golden_vectors import arrays, inputs, relative_error, variants
from published_weights import load_filled, statistics, uniform_blocks

from facezoo.errors import WeightsError
from facezoo.hub.convert import convert
from facezoo.hub.tensors import load_into, read_tensors, save
from facezoo.models.latent_simclr.convert import stylegan2_from
from facezoo.models.latent_simclr.discriminator import (
    ResidualBlock,
    StyleGANDiscriminator,
    append_deviation,
)
from facezoo.models.latent_simclr.layers import (
    BiasActivation,
    EqualLinear,
    Filter,
    fir_kernel,
    resample,
    shift_and_activate,
)
from facezoo.models.latent_simclr.modulation import ModulatedConv2d, ModulatedRGB
from facezoo.models.latent_simclr.stylegan2 import StyleGANGenerator, mix_codes

TOLERANCE = 1e-4


def draw_from(seed=0):
    return torch.Generator().manual_seed(seed)


def slim(size=32, **more):
    """A generator of a few channels whose noise, unlike a new one's, shows."""
    torch.manual_seed(3)
    settings = {"style_dim": 12, "mapping_layers": 2, "max_channels": 10, **more}
    generator = StyleGANGenerator(size, **settings).eval()
    for name, parameter in generator.named_parameters():
        if name.endswith("noise.weight"):
            torch.nn.init.constant_(parameter, 0.3)
        elif name.endswith(("activate.bias", "rgb1.bias")):
            torch.nn.init.normal_(parameter)
    return generator


def codes_of(generator, count=2, seed=1):
    return torch.randn(count, generator.num_codes, generator.style_dim, generator=draw_from(seed))


# --- FIR resampling ----------------------------------------------------------------------------


def resampled_in_loops(image, kernel, up, down, pad):
    """One channel: stretch, pad, slide the flipped kernel over every place, keep some."""
    height, width = image.shape
    stretched = torch.zeros(height * up, width * up)
    stretched[::up, ::up] = image
    padded = F.pad(stretched, (*pad, *pad))
    k, m = kernel.shape
    rows, columns = padded.shape[0] - k + 1, padded.shape[1] - m + 1
    result = torch.zeros(rows, columns)
    for i in range(rows):
        for j in range(columns):
            for a in range(k):
                for b in range(m):
                    result[i, j] += padded[i + a, j + b] * kernel[k - 1 - a, m - 1 - b]
    return result[::down, ::down]


@pytest.mark.parametrize("up", [1, 2, 3])
@pytest.mark.parametrize("down", [1, 2])
@pytest.mark.parametrize("pad", [(0, 0), (2, 1), (1, 1), (-1, 2), (3, -2)])
def test_resampling_is_stretching_padding_convolving_and_skipping(up, down, pad):
    images, kernel = torch.randn(1, 2, 4, 3), torch.randn(2, 3)
    result = resample(images, kernel, up=up, down=down, pad=pad)
    for channel in range(2):
        wanted = resampled_in_loops(images[0, channel], kernel, up, down, pad)
        torch.testing.assert_close(result[0, channel], wanted, atol=1e-5, rtol=1e-5)


def test_the_kernel_is_the_outer_product_and_sums_to_its_gain():
    wanted = torch.tensor([[a * b for b in (1, 3, 3, 1)] for a in (1, 3, 3, 1)]) / 64
    torch.testing.assert_close(fir_kernel(), wanted)
    torch.testing.assert_close(fir_kernel(gain=4), 4 * wanted)


def test_upsampling_keeps_the_brightness():
    images = torch.full((1, 3, 8, 8), 0.7)
    enlarged = Filter((2, 1), gain=4, up=2)(images)
    assert enlarged.shape == (1, 3, 16, 16)
    torch.testing.assert_close(enlarged[..., 2:-2, 2:-2], torch.full((1, 3, 12, 12), 0.7))


# --- modulated convolution ---------------------------------------------------------------------


def modulated_in_loops(layer, features, style):
    """Eqs. (1) and (3), sample by sample, with weights of each sample's own."""
    stored = layer.state_dict()
    weight = stored["weight"][0] / math.sqrt(stored["weight"][0, 0].numel())
    results = []
    for feature, code in zip(features, style, strict=True):
        factors = layer.modulation(code[None])[0]
        own = weight * factors[None, :, None, None]
        if isinstance(layer, ModulatedConv2d):
            own = own / (own.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        row = feature[None]
        if getattr(layer, "resize", None) == "up":
            row = F.conv_transpose2d(row, own.transpose(0, 1), stride=2)
            row = resample(row, fir_kernel(gain=4), pad=(1, 1))
        elif getattr(layer, "resize", None) == "down":
            row = F.conv2d(resample(row, fir_kernel(), pad=(2, 2)), own, stride=2)
        else:
            row = F.conv2d(row, own, padding=own.shape[-1] // 2)
        results.append(row)
    return torch.cat(results)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: ModulatedConv2d(5, 7, 3, 6),
        lambda: ModulatedConv2d(5, 7, 1, 6),
        lambda: ModulatedConv2d(5, 7, 3, 6, "up"),
        lambda: ModulatedConv2d(5, 7, 3, 6, "down"),
        lambda: ModulatedRGB(5, 6),
    ],
    ids=["plain", "one pixel", "up", "down", "colours"],
)
def test_modulated_convolution_is_a_convolution_with_every_samples_own_weights(layer):
    layer = layer()
    features, style = torch.randn(3, 5, 8, 8), torch.randn(3, 6)
    result = layer(features, style)
    torch.testing.assert_close(
        result, modulated_in_loops(layer, features, style), atol=1e-5, rtol=1e-5
    )


def test_demodulation_makes_the_size_of_a_style_irrelevant():
    layer = ModulatedConv2d(5, 7, 3, 6)
    torch.nn.init.zeros_(layer.modulation.bias)
    features, style = torch.randn(2, 5, 8, 8), torch.randn(2, 6)
    torch.testing.assert_close(layer(features, style), layer(features, 50 * style))


def test_second_derivatives_of_a_styled_layer_are_right():
    layer = ModulatedConv2d(2, 2, 3, 3, "up").double()
    bias = torch.randn(2, dtype=torch.float64)

    def styled(features, style):
        convolved, factors = layer.convolve(features, style)
        return shift_and_activate(convolved, factors, bias, noise)

    noise = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    sides = [torch.randn(2, 2, 2, 2), torch.randn(2, 3)]
    doubles = [side.double().requires_grad_() for side in sides]
    assert torch.autograd.gradcheck(styled, doubles)
    assert torch.autograd.gradgradcheck(styled, doubles)


def test_noise_bias_activation_and_gain_come_in_this_order():
    features, scale, bias = torch.randn(2, 3, 4, 4), torch.rand(2, 3) + 0.5, torch.randn(3)
    noise = torch.randn(2, 1, 4, 4)
    plain = features * scale[:, :, None, None] + noise + bias[None, :, None, None]
    wanted = torch.where(plain > 0, plain, 0.2 * plain) * math.sqrt(2)
    torch.testing.assert_close(shift_and_activate(features, scale, bias, noise), wanted)


def test_an_equalised_layer_scales_weights_and_rate_when_it_is_used():
    layer = EqualLinear(6, 4, bias=0.5, rate=0.01)
    rows = torch.randn(3, 6)
    wanted = rows @ (layer.weight * 0.01 / math.sqrt(6)).T + 0.5 * 0.01
    torch.testing.assert_close(layer(rows), wanted)
    assert layer.weight.std() > 20  # drawn large, since it is scaled down when used


# --- the generator -----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "codes"), [(8, 4), (16, 6), (32, 8), (64, 10)])
def test_a_generator_has_two_styles_for_every_doubling(size, codes):
    generator = slim(size)
    assert generator.num_codes == codes
    images = generator(codes_of(generator))
    assert images.shape == (2, 3, size, size)


@pytest.mark.parametrize("size", [0, 4, 48, 65])
def test_sizes_that_stylegan2_cannot_have_raise_an_error(size):
    with pytest.raises(ValueError, match=f"power of 2 of at least 8.*got {size}"):
        StyleGANGenerator(size, 4, 1, max_channels=4)
    with pytest.raises(ValueError, match=f"power of 2 of at least 8.*got {size}"):
        StyleGANDiscriminator(size, max_channels=4)


def test_channels_follow_the_multiplier_and_the_most_that_is_allowed():
    with torch.device("meta"):
        assert StyleGANGenerator(1024).channels[::2] == [512, 512, 512, 512, 512, 256, 128, 64, 32]
        assert StyleGANGenerator(64, channel_multiplier=0.5, max_channels=192).channels == [
            *(192, 192, 192, 192, 192, 192, 192, 128, 128)
        ]


def synthesized_naively(generator, codes, noise):
    """Sec. 2.2 and 4.1, one sample at a time and with the modulated weights written out."""
    images = []
    for row in range(len(codes)):
        feature, colours = generator.input.input, None
        for k, layer in enumerate([generator.conv1, *generator.convs], 1):
            feature = modulated_in_loops(layer.conv, feature, codes[row, k - 1][None])
            feature = feature + layer.noise.weight * noise[k - 1]
            feature = feature + layer.activate.bias[None, :, None, None]
            feature = F.leaky_relu(feature, 0.2) * math.sqrt(2)
            if k % 2:
                rgb = generator.to_rgb1 if k == 1 else generator.to_rgbs[k // 2 - 1]
                seen = modulated_in_loops(rgb.conv, feature, codes[row, k][None]) + rgb.bias
                below = (
                    0
                    if colours is None
                    else resample(colours, fir_kernel(gain=4), up=2, pad=(2, 1))
                )
                colours = seen + below
        images.append(colours)
    return torch.cat(images)


def test_synthesis_is_that_of_a_naive_generator():
    generator = slim(32)
    codes, noise = codes_of(generator, 3), generator.stored_noise()
    with torch.no_grad():
        wanted = synthesized_naively(generator, codes, noise)
        torch.testing.assert_close(generator(codes, noise), wanted, atol=1e-4, rtol=1e-4)


def test_a_sample_does_not_depend_on_the_others_of_its_batch():
    generator = slim()
    codes = codes_of(generator, 3)
    alone = torch.cat([generator(row[None]) for row in codes])
    torch.testing.assert_close(generator(codes), alone, atol=1e-5, rtol=1e-5)


def test_a_code_of_w_is_repeated_over_the_layers():
    generator = slim()
    w = torch.randn(2, 12)
    repeated = w[:, None].repeat(1, generator.num_codes, 1)
    assert torch.equal(generator(w), generator(repeated))


def test_every_code_changes_the_image_and_the_last_only_colours():
    generator = slim()
    codes = codes_of(generator, 1)
    before = generator.synthesize(codes, read=[generator.num_layers])
    for index in range(generator.num_codes):
        changed = codes.clone()
        changed[:, index] += 1
        after = generator.synthesize(changed, read=[generator.num_layers])
        assert not torch.allclose(after.images, before.images)
        same = torch.equal(after.features[7], before.features[7])
        assert same == (index == generator.num_codes - 1)


def test_noise_is_given_drawn_stored_or_absent():
    generator = slim()
    codes = codes_of(generator)
    none = generator(codes)
    assert torch.equal(none, generator(codes))
    zero = [torch.zeros_like(map_) for map_ in generator.stored_noise()]
    torch.testing.assert_close(generator(codes, zero), none)
    stored = generator(codes, generator.stored_noise())
    drawn = generator(codes, generator.draw_noise(2, draw_from(4)))
    assert torch.equal(drawn, generator(codes, generator.draw_noise(2, draw_from(4))))
    assert not torch.allclose(stored, none)
    assert not torch.allclose(drawn, stored)
    assert not torch.equal(*generator.draw_noise(2, draw_from(4))[0])


def test_features_are_read_where_they_are_replaced():
    generator = slim()
    codes = codes_of(generator)
    whole = generator.synthesize(codes, read=[1, 5, 6])
    for layer, feature in whole.features.items():
        assert feature.shape[1:] == generator.feature_shape(layer)
        torch.testing.assert_close(generator.features(codes, layer), feature)
        torch.testing.assert_close(generator(codes, replace={layer: feature}), whole.images)


def test_a_replaced_feature_hides_the_codes_before_it_but_for_their_colours():
    generator = slim()
    codes, other = codes_of(generator, seed=1), codes_of(generator, seed=2)
    feature = torch.randn(2, *generator.feature_shape(5))
    mixed = mix_codes(other, codes, 5)
    # Codes 0 to 4 reach layers after 5 through the feature alone, and colours through 1 and 3.
    end = generator.synthesize(codes, replace={5: feature}, read=[7])
    also = generator.synthesize(mixed, replace={5: feature}, read=[7])
    assert torch.equal(end.features[7], also.features[7])
    assert not torch.allclose(end.images, also.images)
    assert not torch.allclose(end.images, generator(codes))


def test_gradients_reach_codes_noise_and_a_replaced_feature():
    generator = slim()
    codes = codes_of(generator).requires_grad_()
    feature = torch.randn(2, *generator.feature_shape(4), requires_grad=True)
    noise = [map_.requires_grad_() for map_ in generator.draw_noise(2)]
    generator(codes, noise, {4: feature}).square().sum().backward()
    for value in (codes, feature, noise[-1]):
        assert value.grad.flatten(1).abs().sum(1).min() > 0


def test_wrong_shapes_raise_an_error_with_the_expected_shape():
    generator = slim()
    codes = codes_of(generator)
    with pytest.raises(
        ValueError, match=r"\(B, 12\) of W or \(B, 8, 12\) of W\+, got \(2, 7, 12\)"
    ):
        generator(codes[:, 1:])
    with pytest.raises(ValueError, match=r"noise must have 7 maps.*got 3"):
        generator(codes, generator.draw_noise(1)[:3])
    with pytest.raises(ValueError, match=r"replaces layer 5 must be \(2, 10, 16, 16\), got"):
        generator(codes, replace={5: torch.zeros(2, 10, 8, 8)})
    for use in (
        lambda: generator.features(codes, 8),
        lambda: generator.synthesize(codes, read=[0]),
    ):
        with pytest.raises(ValueError, match="has layers 1 to 7"):
            use()


def test_mapping_normalises_noise_first():
    generator = slim()
    z = torch.randn(3, 12)
    torch.testing.assert_close(generator.map(z), generator.map(7 * z))


def test_truncation_draws_codes_towards_the_centre():
    generator = slim()
    z, centre = torch.randn(3, 12), torch.randn(12)
    w = generator.map(z)
    torch.testing.assert_close(generator.map(z, 0.7, centre), centre + 0.7 * (w - centre))
    torch.testing.assert_close(generator.map(z, 0.0, centre), centre.expand(3, -1))
    with pytest.raises(ValueError, match=r"psi=0.5.*mean_code"):
        generator.map(z, 0.5)


def test_the_mean_code_is_the_mean_of_the_codes_of_random_noise():
    generator = slim()
    mean = generator.mean_code(5000, draw_from(1))
    assert torch.equal(mean, generator.mean_code(5000, draw_from(1)))
    draw = draw_from(1)
    z = torch.cat([torch.randn(n, 12, generator=draw) for n in (4096, 904)])
    torch.testing.assert_close(mean, generator.map(z).mean(0), atol=1e-5, rtol=1e-4)


def test_mixing_takes_coarse_styles_of_one_and_fine_styles_of_the_other():
    first, second = torch.zeros(2, 8, 3), torch.ones(2, 8, 3)
    mixed = mix_codes(first, second, 3)
    assert mixed[:, :3].sum() == 0
    assert mixed[:, 3:].min() == 1


def test_a_state_dict_has_the_published_shapes_and_loads_again():
    generator, again = slim(), slim(style_dim=12)
    state = generator.state_dict()
    assert state["convs.0.conv.weight"].shape == (1, 10, 10, 3, 3)
    assert state["to_rgb1.conv.weight"].shape == (1, 3, 10, 1, 1)
    for parameter in again.parameters():
        torch.nn.init.zeros_(parameter)
    again.load_state_dict(state)
    codes = codes_of(generator)
    torch.testing.assert_close(again(codes), generator(codes))


def test_a_change_of_resolution_is_stored_with_outputs_first():
    layer = ModulatedConv2d(5, 7, 3, 6, "up")
    assert layer.state_dict()["weight"].shape == (1, 7, 5, 3, 3)
    again = ModulatedConv2d(5, 7, 3, 6, "up")
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.weight, layer.weight)


def test_weights_of_another_shape_raise_an_error():
    state = slim().state_dict()
    state["conv1.conv.weight"] = torch.zeros(2, 10, 10, 3, 3)
    with pytest.raises(RuntimeError, match=r"size mismatch for conv1.conv.weight"):
        slim().load_state_dict(state)


def test_the_projects_own_weight_files_hold_a_generator(tmp_path):
    generator, again = slim(), slim(max_channels=10)
    torch.nn.init.zeros_(again.input.input)
    load_into(again, read_tensors(save(generator, tmp_path / "g.safetensors")))
    codes = codes_of(generator)
    torch.testing.assert_close(again(codes), generator(codes))


def test_the_channels_last_order_changes_no_image():
    generator = slim(32)
    codes, noise = codes_of(generator), generator.stored_noise()
    wanted = generator(codes, noise)
    reordered = generator.to(memory_format=torch.channels_last)
    torch.testing.assert_close(reordered(codes, noise), wanted, atol=1e-5, rtol=1e-5)
    assert reordered.convs[0].conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_generator_runs_in_bfloat16():
    generator = slim()
    codes = codes_of(generator)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        quick = generator(codes, generator.stored_noise())
    exact = generator(codes, generator.stored_noise())
    assert (quick.float() - exact).abs().mean() < 0.03 * exact.abs().mean()


# --- the discriminator -------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "group"), [(1, 1), (2, 2), (4, 4), (6, 3), (7, 1), (8, 4)])
def test_the_last_channel_is_the_deviation_within_each_group(batch, group):
    features = torch.randn(batch, 3, 4, 4)
    result = append_deviation(features)
    assert torch.equal(result[:, :3], features)
    step = batch // group
    for i in range(batch):
        members = features[[j for j in range(batch) if j % step == i % step]]
        assert len(members) == group
        variance = (members - members.mean(0)).square().mean(0)
        wanted = (variance + 1e-8).sqrt().mean()
        torch.testing.assert_close(result[i, 3], wanted.expand(4, 4))


@pytest.mark.parametrize("size", [8, 32])
def test_a_discriminator_gives_one_logit_with_gradients_to_the_pixels(size):
    discriminator = StyleGANDiscriminator(size, max_channels=6)
    images = torch.randn(4, 3, size, size, requires_grad=True)
    logits = discriminator(images)
    assert logits.shape == (4, 1)
    logits.sum().backward()
    assert images.grad.flatten(1).abs().sum(1).min() > 0


def test_a_discriminator_rejects_images_of_another_size():
    with pytest.raises(ValueError, match=r"must be \(B, 3, 32, 32\), got \(2, 3, 16, 16\)"):
        StyleGANDiscriminator(32, max_channels=4)(torch.zeros(2, 3, 16, 16))


# --- published checkpoints ---------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"size": 64, "channel_multiplier": 0.03125}])
def test_the_architecture_of_a_published_checkpoint_is_inferred(tmp_path, settings):
    generator = slim(**settings)
    centre = torch.randn(12)
    torch.save({"g_ema": generator.state_dict(), "latent_avg": centre}, tmp_path / "ffhq.pt")
    published = stylegan2_from(torch.load(tmp_path / "ffhq.pt", weights_only=True))
    again = StyleGANGenerator(**published.architecture).eval()
    again.load_state_dict(published.tensors)
    codes = codes_of(generator)
    torch.testing.assert_close(again(codes), generator(codes))
    assert torch.equal(published.mean_code, centre)


def test_a_converted_checkpoint_is_read_too(tmp_path):
    generator = slim()
    torch.save({"g_ema": generator.state_dict(), "g": generator.state_dict()}, tmp_path / "g.pt")
    tensors = read_tensors(convert(tmp_path / "g.pt", key="g_ema"))
    published = stylegan2_from(tensors)
    assert published.mean_code is None
    StyleGANGenerator(**published.architecture).load_state_dict(published.tensors)


def test_a_checkpoint_without_a_generator_raises_an_error_with_its_keys():
    with pytest.raises(WeightsError, match=r"no StyleGAN2 generator under 'g_ema'.*'d', 'epoch'"):
        stylegan2_from({"d": {}, "epoch": 3})
    for content, held in (([1, 2], "list"), (torch.zeros(3), "Tensor")):
        with pytest.raises(WeightsError, match=f"no StyleGAN2 generator .* holds a {held}"):
            stylegan2_from(content)
    with pytest.raises(WeightsError, match=r"'input.input'; expected a"):
        stylegan2_from({"input.input": torch.zeros(1, 4, 4, 4)})


# --- reference vectors -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference():
    return arrays("stylegan2")


@pytest.fixture(scope="module")
def published():
    return load_filled(StyleGANGenerator(64), "stylegan2", "generator_64")


@pytest.fixture(scope="module")
def given():
    return inputs("stylegan2")


@torch.no_grad()
def test_golden_images_of_w_plus_and_every_layer_on_the_way(reference, published, given):
    seen = {}
    for name in reference["g64_wplus_layer_names"]:
        module = published.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, n=name: seen.update({n: statistics(o)}))
    images = published(given["w_plus"], published.stored_noise())
    assert relative_error(images, reference["g64_wplus_image"]) < TOLERANCE
    stats = [seen[name] for name in reference["g64_wplus_layer_names"]]
    assert relative_error(stats, reference["g64_wplus_layer_stats"]) < TOLERANCE
    zero = published(given["w_plus"][:1])
    assert relative_error(zero, reference["g64_wplus_zero_noise_image_row0"]) < TOLERANCE


@torch.no_grad()
def test_golden_mapping_truncation_and_mixing(reference, published, given):
    w, noise = published.map(given["input"]), published.stored_noise()
    assert relative_error(w, reference["g64_mapping_w"]) < TOLERANCE
    drawn = published.map(given["input"], 0.7, given["truncation_latent"])
    assert relative_error(drawn, reference["g64_trunc0.7_w"]) < TOLERANCE
    assert relative_error(published(drawn, noise), reference["g64_trunc0.7_image"]) < TOLERANCE
    first, second = w[:, None].expand(-1, 10, -1).split(1)
    mixed = mix_codes(first, second, 4)
    assert relative_error(statistics(mixed), reference["g64_mix4_latent_stats"]) < TOLERANCE
    assert relative_error(published(mixed, noise), reference["g64_mix4_image"]) < TOLERANCE


@torch.no_grad()
def test_golden_logits_of_several_batch_sizes(reference):
    discriminator = load_filled(StyleGANDiscriminator(64), "stylegan2", "discriminator_64")
    images, seen = uniform_blocks("input:discriminator", (8, 3, 64, 64), 16), {}
    for count in (1, 2, 8):
        wanted = reference[f"d64_logits_batch{count}"]
        assert relative_error(discriminator(images[:count]), wanted) < TOLERANCE
    for name in reference["d64_batch4_layer_names"]:
        module = discriminator.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, n=name: seen.update({n: statistics(o)}))
    assert relative_error(discriminator(images[:4]), reference["d64_logits_batch4"]) < TOLERANCE
    stats = [seen[name] for name in reference["d64_batch4_layer_names"]]
    assert relative_error(stats, reference["d64_batch4_layer_stats"]) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("unit_mod_plain", lambda: ModulatedConv2d(8, 6, 3, 16)),
        ("unit_mod_up", lambda: ModulatedConv2d(8, 6, 3, 16, "up")),
        ("unit_mod_down", lambda: ModulatedConv2d(8, 6, 3, 16, "down")),
        ("unit_mod_rgb", lambda: ModulatedRGB(8, 16)),
        ("unit_resblock", lambda: ResidualBlock(8, 6)),
    ],
)
@torch.no_grad()
def test_golden_building_blocks(reference, given, name, layer):
    layer = load_filled(layer(), "stylegan2", name)
    rows = [given["unit_feature"]] + [given["unit_style"]] * ("mod" in name)
    assert relative_error(layer(*rows), reference[name]) < TOLERANCE


@torch.no_grad()
def test_golden_filters_and_activation(reference, given):
    features, kernel = given["unit_feature"], given["unit_kernel"]
    activate = BiasActivation(8)
    activate.bias.copy_(torch.arange(8) / 8 - 0.5)
    results = {
        "unit_upsample2": Filter((2, 1), gain=4, up=2)(features),
        "unit_downsample2": resample(features, fir_kernel(), down=2, pad=(1, 1)),
        "unit_blur_pad_1_1": Filter((1, 1))(features),
        "unit_blur_pad_2_2": Filter((2, 2))(features),
        "unit_upfirdn_up3_down2_pad_2_1_asym": resample(features, kernel, up=3, down=2, pad=(2, 1)),
        "unit_upfirdn_negative_pad_asym": resample(features, kernel, up=2, pad=(-1, 3)),
        "unit_lrelu": activate(features),
    }
    for name, result in results.items():
        assert relative_error(result, reference[name]) < TOLERANCE, name


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_golden_names_and_shapes_at_every_size(size):
    for family, network in (
        ("generator", StyleGANGenerator),
        ("discriminator", StyleGANDiscriminator),
    ):
        listed = variants("stylegan2")[f"{family}_{size}"]["tensors"]
        with torch.device("meta"):
            state = network(size).state_dict()
        assert [[k, list(v.shape)] for k, v in state.items()] == [row[:2] for row in listed]
