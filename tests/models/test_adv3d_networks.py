import json
import zlib
from copy import deepcopy

import golden_vectors
import numpy as np
import pytest
import torch

from facezoo.errors import WeightsMismatchError
from facezoo.geometry.meshes import Mesh, edges_of
from facezoo.models.adv3d.convert import from_published
from facezoo.models.adv3d.losses import kl_loss, laplacian_loss
from facezoo.models.adv3d.networks import VAE, IdentityDiscriminator, sample

TOLERANCE = 1e-4
SIZES = {"facescape": (4547, 64, 64, 16), "small": (500, 16, 8, 1)}
"""Vertices, numbers of both codes, and the stride of the stored vertices."""


def drawn(key):
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))


def normal(key, shape, scale=1.0):
    return torch.from_numpy((scale * drawn(key).standard_normal(shape)).astype(np.float32))


def described():
    path = golden_vectors.folder() / "adv3d_state_dict.json"
    return json.loads(path.read_text())["variants"]


def filled(network, entry, fill):
    """The network with the pseudo-random weights of the reference vectors."""
    tensors = {}
    for key, shape, dtype, kind in entry["tensors"]:
        if kind == "weight":
            scale = 0.02 if fill == "plain" else np.sqrt(2 / shape[1])
            values = scale * drawn(key).standard_normal(shape)
        elif kind == "norm":
            values = drawn(key).uniform(0.5, 1.5, shape)
        elif kind == "bias":
            values = 0.02 * drawn(key).standard_normal(shape)
        else:
            values = np.zeros(shape)
        tensors[key] = torch.from_numpy(np.asarray(values)).to(getattr(torch, dtype))
    network.load_state_dict(tensors)
    return network.eval()


def close(value, wanted, tolerance=TOLERANCE):
    assert golden_vectors.relative_error(value.detach(), wanted) < tolerance


@pytest.mark.parametrize("name", ["vae_facescape", "vae_small", "discriminator"])
def test_tensors_have_the_names_shapes_and_order_of_the_published_layout(name):
    entry = described()[name]
    if name == "discriminator":
        network = IdentityDiscriminator()
    else:
        network = VAE(*SIZES[name.removeprefix("vae_")][:3])
    ours = [[key, list(t.shape)] for key, t in network.state_dict().items()]
    assert ours == [[key, shape] for key, shape, _, _ in entry["tensors"]]
    assert sum(p.numel() for p in network.parameters()) == entry["n_parameters"]


@pytest.mark.parametrize("fill", ["plain", "scaled"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gradients", [False, True])
def test_the_autoencoder_agrees_with_the_published_one(size, fill, gradients):
    stored = golden_vectors.arrays("adv3d_vae")
    count, id_dim, exp_dim, stride = SIZES[size]
    network = filled(VAE(count, id_dim, exp_dim), described()[f"vae_{size}"], fill)
    vertices = normal("input", (2, count, 3), 0.2)
    eps = normal("eps", (2, 2, 64))
    wanted = {name: stored[f"{size}_{fill}_{name}"] for name in ("features", "z_id", "z_exp")}
    with torch.set_grad_enabled(gradients):
        features = network.features(vertices)
        close(features, wanted["features"])
        codes = network.distributions(features)
    for name, value in codes.items():
        close(value, stored[f"{size}_{fill}_{name}"])
    z_id = sample(codes["id_mean"], codes["id_logvar"], eps[0][:, :id_dim])
    z_exp = sample(codes["exp_mean"], codes["exp_logvar"], eps[1][:, :exp_dim])
    close(z_id, wanted["z_id"])
    close(z_exp, wanted["z_exp"])
    for kind, codes_of in (("mean", (codes["id_mean"], codes["exp_mean"])), ("sampled", None)):
        one, other = codes_of or (z_id, z_exp)
        identity, expression = network.decode_identity(one), network.decode_expression(other)
        close(identity[:, ::stride], stored[f"{size}_{fill}_{kind}_id"])
        close(expression[:, ::stride], stored[f"{size}_{fill}_{kind}_exp"])
        close((identity + expression)[:, ::stride], stored[f"{size}_{fill}_{kind}_offset"])
    for part, z in (("id", z_id), ("exp", z_exp)):
        kl = kl_loss(z, codes[f"{part}_mean"], codes[f"{part}_logvar"])
        truth = stored[f"{size}_{fill}_kl_{part}"]
        # Under "plain" the two parts of the estimate nearly cancel.
        assert float(kl.detach()) == pytest.approx(float(truth), rel=TOLERANCE, abs=1e-4)


@pytest.mark.parametrize("norm", ["nobn", "bn"])
@pytest.mark.parametrize("fill", ["plain", "scaled"])
@pytest.mark.parametrize("size", SIZES)
def test_the_discriminator_agrees_with_the_published_one(size, fill, norm):
    stored = golden_vectors.arrays("adv3d_disc")
    network = IdentityDiscriminator(use_norm=norm == "bn")
    filled(network, described()["discriminator"], fill)
    pairs = normal("input", (4, SIZES[size][0], 6), 0.2)
    prefix = f"{size}_{norm}_{fill}"
    with torch.no_grad():
        close(network(pairs), stored[f"{prefix}_log_prob"])
        close(network.feature_network(pairs), stored[f"{prefix}_features"])
        close(network.feature_network.stn(pairs), stored[f"{prefix}_transform"])


def test_losses_agree_with_the_published_ones():
    stored = golden_vectors.arrays("adv3d_losses")
    vertices = normal("input", (2, 120, 3), 0.2)
    edges = edges_of(torch.from_numpy(stored["laplacian_triangles"]))
    close(laplacian_loss(vertices, edges), stored["laplacian_average_true"])
    for row, wanted in zip(vertices, stored["laplacian_average_false"], strict=True):
        close(laplacian_loss(row[None], edges), wanted)
    mean, logvar = normal("mu_id", (4, 6)), normal("logvar_id", (4, 6), 0.5)
    z = sample(mean, logvar, normal("eps", (2, 4, 6))[0])
    close(z, stored["kl_mc_z"])
    for row in range(4):
        one = slice(row, row + 1)
        close(kl_loss(z[one], mean[one], logvar[one]), stored["kl_mc"][row])


def test_a_published_checkpoint_becomes_a_model_that_decodes_the_same():
    stored = golden_vectors.arrays("adv3d_vae")
    tensors = filled(VAE(500, 16, 8), described()["vae_small"], "scaled").state_dict()
    mean = torch.zeros(500, 3)
    mean[:, 0] = torch.linspace(-80, 80, 500)
    template = Mesh(mean / 1000, "m", torch.tensor([[0, 1, 2]]))
    model = from_published(tensors, template, scale=573.0)
    face, identity, expression = model(573 * normal("input", (2, 500, 3), 0.2))
    close((face - mean) / 573, stored["small_scaled_mean_offset"])
    close((identity - mean) / 573, stored["small_scaled_mean_id"])
    close(expression / 573, stored["small_scaled_mean_exp"])


# --- without reference vectors -----------------------------------------------------------------


def test_gradients_through_the_winning_points_are_those_through_all():
    network = VAE(40, 3, 2).eval()
    for norm in (network.bn1, network.bn3, network.bn5):
        norm.running_mean.normal_()
        norm.weight.data.normal_()  # of either sign
    points = torch.randn(2, 40, 3, requires_grad=True)
    sparse = network.features(points)
    dense = network.bn5(network.conv5(network.point_features(points))).amax(2).relu()
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(dense)
    wanted = torch.autograd.grad((dense * weights).sum(), [points, network.conv1.weight])
    found = torch.autograd.grad((sparse * weights).sum(), [points, network.conv1.weight])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


class Adapter(torch.nn.Module):
    """A layer with a change of its output, which shows the weights of the layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, hidden):
        return self.layer(hidden) + 1


def test_an_adapter_on_the_last_shared_layer_acts_in_eval_mode():
    network, points = VAE(40, 3, 2).eval(), torch.randn(2, 40, 3)
    before = network.responses(points)
    network.conv5 = Adapter(network.conv5)
    norm = network.bn5
    change = norm.weight / (norm.running_var + norm.eps).sqrt()
    torch.testing.assert_close(network.responses(points), before + change)


def varied():
    """An encoder whose batch norms differ in every channel, in eval mode."""
    torch.manual_seed(0)
    network = VAE(40, 3, 2)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm1d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 1.5)
            part.weight.data.normal_()  # of either sign
            part.bias.data.normal_()
    network.conv2.weight.data.copy_(torch.eye(64)[..., None])  # as the ICT recipe leaves it
    network.conv2.bias.data.zero_()
    return network.eval()


def layers_one_by_one(network, points):
    hidden = network.point_features(points)
    return network.bn5(network.conv5(hidden)).amax(2).detach()


@pytest.mark.parametrize("count", [1, 40, 576, 1300])
def test_without_gradients_responses_are_those_of_the_layers_one_by_one(count):
    network, points = varied(), torch.randn(3, count, 3)
    before = deepcopy(network.state_dict())
    with torch.no_grad():
        responses = network.responses(points)
        for row, cloud in zip(responses, points, strict=True):
            assert torch.equal(network.responses(cloud[None])[0], row)  # in any batch
        assert network.responses(torch.full((1, count, 3), torch.nan)).isnan().all()
        assert network.responses(points[:0]).shape == (0, 1024)
    torch.testing.assert_close(responses, layers_one_by_one(network, points), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: net.conv1.weight.data.add_(1),
        lambda net: net.conv2.weight[::2].mul_(2),
        lambda net: net.conv2.bias.data.add_(1),
        lambda net: net.bn3.running_var.mul_(2),
        lambda net: net.bn5.bias.data.add_(1),
        lambda net: net.load_state_dict({k: 2 * v for k, v in net.state_dict().items()}),
        lambda net: setattr(net, "conv2", Adapter(net.conv2)),
        lambda net: setattr(net, "bn4", torch.nn.Identity()),
        lambda net: net.conv4.register_forward_hook(lambda _, __, hidden: hidden + 1),
    ],
)
def test_changed_layers_of_the_encoder_act_without_gradients(change):
    network, points = varied(), torch.randn(2, 40, 3)
    with torch.no_grad():
        before = network.responses(points)
        change(network)
        after = network.responses(points)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, layers_one_by_one(network, points), rtol=1e-5, atol=1e-4)


def test_training_mode_computes_batch_statistics_also_without_gradients():
    network, points = varied(), torch.randn(2, 40, 3)
    with torch.no_grad():
        network.responses(points)
        mean = network.train().bn1.running_mean.clone()
        responses = network.responses(points)
    assert not torch.equal(network.bn1.running_mean, mean)
    torch.testing.assert_close(responses, layers_one_by_one(network, points), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: None,
        lambda net: net.fc2_id.weight.data.add_(1),
        lambda net: setattr(net, "fc2_id", Adapter(net.fc2_id)),
        lambda net: net.fc2_id.register_forward_hook(lambda _, __, flat: flat + 1),
    ],
)
def test_one_code_is_decoded_as_in_a_batch(change):
    network, codes = varied(), torch.randn(2, 3)
    with torch.no_grad():
        network.decode_identity(codes[:1])
        change(network)
        batch = network.decode_identity(codes)
        for code, face in zip(codes, batch, strict=True):
            torch.testing.assert_close(network.decode_identity(code[None])[0], face)
    assert network.decode_identity(codes[:1]).requires_grad


def test_the_order_of_the_points_changes_nothing():
    network = VAE(40, 3, 2).eval()
    points = torch.randn(2, 40, 3)
    torch.testing.assert_close(
        network.features(points), network.features(points[:, torch.randperm(40)])
    )


def test_the_discriminator_drops_features_only_where_the_published_one_does():
    pairs = torch.randn(3, 20, 6)
    plain = IdentityDiscriminator().train()
    assert torch.equal(plain(pairs), plain(pairs))
    normed = IdentityDiscriminator(use_norm=True).train()
    assert not torch.equal(normed(pairs), normed(pairs))
    torch.testing.assert_close(plain(pairs).exp().sum(1), torch.ones(3))


def test_a_single_tensor_is_not_a_checkpoint():
    template = Mesh(torch.rand(4, 3), "mm", torch.tensor([[0, 1, 2]]))
    with pytest.raises(WeightsMismatchError, match="not an autoencoder of adv3d"):
        from_published(torch.zeros(3), template, scale=573.0)


@pytest.mark.parametrize("scale", [0.0, -573.0, float("nan")])
def test_a_scale_that_is_none_raises_an_error(scale):
    template = Mesh(torch.rand(4, 3), "mm", torch.tensor([[0, 1, 2]]))
    tensors = VAE(4, 2, 2).state_dict()
    with pytest.raises(ValueError, match="scale must be above 0"):
        from_published(tensors, template, scale=scale)
