"""The networks of LatentFace: shapes, widths, and equality with the reference vectors."""

import pytest
import torch
from golden_vectors import arrays, inputs, relative_error, variants, weights

from facezoo.models.latentface.convert import NETWORKS, convert_checkpoint
from facezoo.models.latentface.networks import AutoEncoder, ConfidenceNetwork, NumberEncoder
from facezoo.models.latentface.renderer import FaceRenderer, depth_from_output, view_from_output
from facezoo.models.latentface.unet import UNet, time_features

BUILD = {
    "netD": lambda: AutoEncoder(1),
    "netA": lambda: AutoEncoder(3, tanh=True),
    "netL": lambda: NumberEncoder(4),
    "netV": lambda: NumberEncoder(6),
    "netC": ConfidenceNetwork,
    "netEA": UNet,
    "netED": UNet,
}


def filled(family):
    """The networks of a family with the weights of the reference vectors, by their names there."""
    entries = variants(family)
    checkpoint = {name: weights(entry) for name, entry in entries.items()}
    tensors = convert_checkpoint(checkpoint)
    networks = {}
    for name in checkpoint:
        prefix = NETWORKS[name] + "."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        networks[name] = BUILD[name]().eval()
        networks[name].load_state_dict(own)
    return networks


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("width", [4, 12])
def test_an_autoencoder_makes_a_map_of_the_images_size(size, width):
    network = AutoEncoder(3, size, width, code_dim=10, tanh=True)
    images = torch.rand(2, 3, size, size) * 2 - 1
    codes = network.encode(images)
    assert codes.shape == (2, 10)
    assert (codes >= 0).all()
    maps = network(images)
    assert maps.shape == (2, 3, size, size)
    assert maps.abs().max() <= 1
    torch.testing.assert_close(network.decode(codes), maps)


@pytest.mark.parametrize("size", [64, 128])
def test_a_number_encoder_gives_numbers_between_minus_1_and_1(size):
    numbers = NumberEncoder(6, size, width=4)(torch.randn(3, 3, size, size) * 100)
    assert numbers.shape == (3, 6)
    assert numbers.abs().max() <= 1


@pytest.mark.parametrize("size", [64, 128])
def test_the_confidence_network_gives_two_pairs_of_positive_maps(size):
    pixels, features = ConfidenceNetwork(size, width=4, code_dim=6)(torch.rand(2, 3, size, size))
    assert pixels.shape == (2, 2, size, size)
    assert features.shape == (2, 2, size // 4, size // 4)
    assert pixels.min() > 0
    assert features.min() > 0


@pytest.mark.parametrize("side", [1, 3])
def test_the_unet_keeps_the_side_of_its_maps(side):
    network = UNet(12, 6, width=32)
    maps = torch.randn(2, 12, side, side)
    predicted = network(maps, torch.tensor([0, 999]))
    assert predicted.shape == (2, 6, side, side)
    assert not torch.allclose(predicted, network(maps, torch.tensor([999, 0])))


def test_time_features_are_cosines_then_sines():
    features = time_features(torch.tensor([0, 3]), 8)
    angles = [3 / 10000 ** (i / 4) for i in range(4)]
    wanted = [torch.tensor(angles).cos(), torch.tensor(angles).sin()]
    torch.testing.assert_close(features[1], torch.cat(wanted))
    assert features[0].tolist() == [1] * 4 + [0] * 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AutoEncoder(1, size=96), "64 or 128 pixels, got 96"),
        (lambda: NumberEncoder(4, width=6), "multiple of 4 channels, got 6"),
        (lambda: ConfidenceNetwork(width=0), "multiple of 4 channels, got 0"),
        (lambda: UNet(width=12), "multiple of 8 channels, got 12"),
    ],
)
def test_other_sizes_and_widths_raise_an_error(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_unsup3d_equals_the_reference_vectors():
    wanted, images = arrays("unsup3d"), inputs("unsup3d")["input"]
    networks = filled("unsup3d")
    with torch.inference_mode():
        raw, albedo = networks["netD"](images), networks["netA"](images)
        pixels, features = networks["netC"](images)
        numbers, view = networks["netL"](images), networks["netV"](images)
        depth = depth_from_output(raw)
        results = {
            "netD_raw": raw,
            "netA_albedo": albedo[..., ::2, ::2],
            "netL_out": numbers,
            "netV_out": view,
            "netC_l1": pixels[..., ::2, ::2],
            "netC_perc": features,
            "canon_depth": depth,
            "canon_normal_sub": FaceRenderer(64).normals(depth)[:, ::2, ::2],
            "view": view_from_output(view),
        }
    for name, value in results.items():
        assert relative_error(value, wanted[name]) < 1e-4, name


def test_latentface_autoencoders_and_unets_equal_the_reference_vectors():
    wanted, given = arrays("latentface"), inputs("latentface")
    networks = filled("latentface")
    with torch.inference_mode():
        for name in ("netD", "netA"):
            codes = networks[name].encode(given["image"])
            maps = networks[name].decode(codes)
            assert relative_error(codes[..., None, None], wanted[f"{name}_code"]) < 1e-4
            assert relative_error(maps[..., ::4, ::4], wanted[f"{name}_out_sub"]) < 1e-4
        for side, suffix in (("1x1", ""), ("3x3", "3")):
            maps = torch.cat([given["input" + suffix], given["condition" + suffix]], 1)
            for row, step in enumerate((0, 250, 999)):
                predicted = networks["netEA"](maps, torch.full((2,), step))
                reference = wanted[f"unet_{side}_t0_250_999"][row]
                assert relative_error(predicted, reference) < 1e-4
            predicted = networks["netED"](maps, torch.full((2,), 250))
            assert relative_error(predicted, wanted[f"unet_netED_{side}_t250"]) < 1e-4
