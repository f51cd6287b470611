from dataclasses import replace
from functools import partial

import pytest
import torch
from ict_pack import write_ict
from interrupting import interrupted

from facezoo.data import resampling
from facezoo.data.ict import IctFaces
from facezoo.evaluate.ict import CORRUPTIONS, as_metrics, benchmark
from facezoo.geometry.meshes import edges_of
from facezoo.hub.card import Card
from facezoo.hub.tensors import load_into, read_tensors
from facezoo.models.adv3d import Adv3D
from facezoo.models.adv3d.losses import laplacian_loss
from facezoo.models.adv3d.networks import VAE
from facezoo.models.adv3d.train import command, joint, registration_noise
from facezoo.models.adv3d.train import ict as train
from facezoo.models.adv3d.train import recipes as config
from facezoo.models.adv3d.train.autoencoder import Autoencoder, Regressor, principal_frame, ridge
from facezoo.models.adv3d.train.encoder_init import set_shared_layers
from facezoo.models.adv3d.train.mixtures import corrupt, sample_mixtures
from facezoo.models.adv3d.train.registration_noise import registration_errors, sample_error
from facezoo.training.state import generator

SMALL = replace(
    config.RECIPES["ict"],
    size="tiny",
    identity_dim=6,
    expression_dim=4,
    hidden_dim=8,
    mixtures=40,
    registered=6,
    registrations=3,
    corrupted=12,
    regressor_steps=5,
    pretraining_steps=2,
    steps=4,
    batch_size=4,
    population=32,
    pair_vertices=16,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_ict(tmp_path_factory.mktemp("ict"))


def trained(folder, out, recipe=SMALL):
    return train.train(
        recipe, IctFaces(folder), IctFaces(folder, full=True), out, seed=1, device=CPU
    ).state_dict()


def test_an_interrupted_run_ends_at_the_same_weights(folder, tmp_path, monkeypatch):
    whole = trained(folder, tmp_path / "whole")
    monkeypatch.setattr(train, "train_joint", partial(train.train_joint, save_every=0))
    with interrupted(monkeypatch, "descend", joint, after=6):
        trained(folder, tmp_path / "parts")
    resumed = trained(folder, tmp_path / "parts")
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name


OURS = [name for name, recipe in config.RECIPES.items() if isinstance(recipe, config.IctConfig)]


@pytest.mark.parametrize("recipe", OURS)
def test_a_recipe_leaves_weights_and_a_card_that_load(folder, tmp_path, recipe, monkeypatch):
    losses, kind = config.RECIPES[recipe].losses, config.RECIPES[recipe].neutrals
    chosen = replace(SMALL, losses=losses, neutrals=kind)
    monkeypatch.setitem(config.RECIPES, recipe, chosen)
    path = command.run(recipe, folder, tmp_path, seed=0, device=CPU)
    card = Card.load(path)
    assert card.name == f"adv3d.{recipe}"
    model = Adv3D(**card.architecture).eval()
    load_into(model, read_tensors(tmp_path / card.weights.file))
    meshes = torch.from_numpy(IctFaces(folder).split("tiny")[1].vertices[0])
    assert model.encode_identity(meshes, units="mm").shape == (4, 6)


def test_principal_axes_are_added_to_a_checkpoint_without_them(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(config.RECIPES, "ict", SMALL)
    first = command.run("ict", folder, tmp_path / "first", seed=0, device=CPU)
    whole = Adv3D.from_pretrained(first.with_suffix(".safetensors"))
    assert whole.architecture["shape_axes"] == len(whole.shape_axes) == 128
    bare = Adv3D(**{**whole.architecture, "shape_axes": 0})
    bare.load_state_dict({k: v for k, v in whole.state_dict().items() if k != "shape_axes"})
    bare.save_pretrained(tmp_path / "bare", card=whole.card)
    add = partial(command.run, data=folder, seed=0, device=CPU, start=str(tmp_path / "bare"))
    path = add("ict", out=tmp_path / "second")
    again = Adv3D.from_pretrained(path.with_suffix(".safetensors"))
    training = again.card.training
    trains, adds = training.command.split(" && ")
    assert trains == whole.card.training.command
    assert adds == trains.replace("ict --", "ict --start runs/adv3d/adv3d.ict.safetensors --")
    assert training.recipe["training_commit"] == whole.card.training.commit
    assert training.data == whole.card.training.data
    assert training.base is None  # it does not start from itself
    add("ict", out=tmp_path / "twice", start=str(path.with_suffix(".safetensors")))
    twice = Card.load(tmp_path / "twice" / path.name).training
    assert (twice.command, twice.recipe) == (training.command, training.recipe)
    for name, tensor in bare.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    meshes = torch.from_numpy(IctFaces(folder).split("tiny")[0].vertices).flatten(0, 1)
    flat, offsets = again.shape_axes.flatten(1), (meshes - meshes.mean(0)).flatten(1)
    flat = flat[flat.any(1)]  # the others are beyond the rank of the meshes
    inside = torch.linalg.lstsq(flat.T, offsets.T).solution
    assert (flat.T @ inside - offsets.T).abs().max() < 0.05
    assert inside.std(1, correction=0).allclose(torch.ones(len(flat)), atol=0.05)
    with pytest.raises(ValueError, match="needs a checkpoint of the recipe ict-neutral, got"):
        add("ict-neutral", out=tmp_path / "third")


def test_errors_of_registration_are_those_of_registered_training_meshes(folder, tmp_path):
    faces, full = IctFaces(folder), IctFaces(folder, full=True)
    _, _, frame = parts_of(folder)
    recipe = replace(SMALL, registrations=7)
    errors = registration_errors(recipe, faces, full, frame, tmp_path / "whole", 3)
    assert errors.shape == (7, 144, 3)
    sizes = errors.norm(dim=-1).mean(1)
    noisy = registration_noise.CHANGES.index(resampling.noisy)
    assert sizes[noisy] > sizes[0]
    assert sizes[0] < 1.5
    first = replace(recipe, registrations=4)
    registration_errors(first, faces, full, frame, tmp_path / "parts", 3)
    again = registration_errors(recipe, faces, full, frame, tmp_path / "parts", 3)
    assert torch.equal(errors, again)


def test_combined_errors_have_the_mean_and_the_spread_of_the_errors():
    errors = 5 + torch.randn(40, 6, 3, generator=generator(0, 0))
    samples = torch.stack([sample_error(errors, generator(1, n)) for n in range(4000)])
    assert samples.mean(0).allclose(errors.mean(0), atol=0.08)
    assert samples.std(0).mean() == pytest.approx(
        float(errors.std(0, correction=0).mean()), rel=0.05
    )
    assert torch.equal(samples[3], sample_error(errors, generator(1, 3)))


def test_registered_rows_have_errors_and_clean_rows_have_none():
    errors = torch.ones(2, 4, 3)
    inputs = train.Inputs(torch.zeros(3, 1), clean=1, whole=2, errors=errors)
    mesh = torch.zeros(4, 3)
    assert torch.equal(inputs.points(0, mesh, 1.0, 0), mesh)
    assert torch.equal(inputs.points(1, mesh, 1.0, 0), mesh + 1)
    assert len(inputs.points(2, mesh, 1.0, 0)) <= 4


def test_a_run_with_other_modes_does_not_resume(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "recipe", lambda _: SMALL)

    with interrupted(monkeypatch, "train", train):
        command.run("ict", folder, tmp_path / "out", seed=0, device=CPU)
    (tmp_path / "other").mkdir()
    other = write_ict(tmp_path / "other", side=10)
    with pytest.raises(ValueError, match=r"begun with other data .*sha256 was"):
        command.run("ict", other, tmp_path / "out", seed=0, device=CPU)
    with interrupted(monkeypatch, "train", train):
        command.run("ict", folder, tmp_path / "out", seed=0, device=CPU)


def test_with_neutrals_the_model_starts_close_to_the_truth(folder, tmp_path):
    recipe = replace(config.RECIPES["ict-neutral"], size="tiny", mixtures=400, corrupted=0)
    recipe = replace(recipe, identity_dim=6, expression_dim=4, hidden_dim=8, regressor_steps=5)
    recipe = replace(recipe, steps=1, pretraining_steps=0, batch_size=4, lr=1e-6)
    state = trained(folder, tmp_path, recipe)
    axes = len(state["shape_axes"])
    model = Adv3D(144, 242, 21, 6, 4, hidden_dim=8, code_statistics=True, shape_axes=axes)
    model.load_state_dict(state)
    result = benchmark(model.eval(), folder, "tiny")
    meshes = torch.from_numpy(IctFaces(folder).split("tiny")[1].vertices)
    copied = (meshes - meshes[:, :1]).norm(dim=-1).mean()
    assert result.meshes.avd_neu.mean < 0.5 * float(copied)
    assert result.codes.recognition == 1
    assert result.corrupted["shuffled"][0].avd_neu.mean == pytest.approx(
        result.meshes.avd_neu.mean, rel=1e-3
    )
    metrics = as_metrics(result, "facezoo evaluate adv3d")
    assert {metric.protocol for metric in metrics} >= set(CORRUPTIONS)


def parts_of(folder, recipe=SMALL):
    faces = IctFaces(folder)
    meshes = torch.from_numpy(faces.split("tiny")[0].vertices) / recipe.scale
    frame = principal_frame(meshes.flatten(0, 1), 50, generator(0, 0))
    return faces, meshes, frame


def test_principal_coordinates_hold_every_training_mesh(folder):
    _, meshes, frame = parts_of(folder)
    again = frame.offsets(frame.coordinates(meshes).flatten(0, 1)) + frame.mean
    assert (again - meshes.flatten(0, 1)).abs().max() < 1e-5
    wanted = (meshes.flatten(0, 1) - frame.mean).square().mean()
    coordinates = frame.coordinates(meshes).flatten(0, 1)
    torch.testing.assert_close(frame.mean_squared(coordinates), wanted, rtol=1e-3, atol=0)


def test_the_laplacian_in_coordinates_is_the_laplacian_of_the_meshes(folder):
    faces, meshes, frame = parts_of(folder)
    edges = edges_of(torch.from_numpy(faces.topology.triangles))
    coordinates = frame.coordinates(meshes).flatten(0, 1)
    extended = torch.cat([coordinates, torch.ones(len(coordinates), 1)], 1)
    form = ((extended @ frame.roughness(edges)) * extended).sum(1).mean()
    torch.testing.assert_close(form, laplacian_loss(meshes.flatten(0, 1), edges), rtol=1e-3, atol=0)


def test_what_trains_is_multiplied_out_exactly(folder):
    _, meshes, frame = parts_of(folder)
    vae = VAE(144, 6, 4, hidden_dim=8).eval().requires_grad_(False)
    features = torch.randn(30, 1024) + 6
    start = train.initial_branches(SMALL, frame.coordinates(meshes), frame)
    autoencoder = Autoencoder(*start.branches)
    reading = Regressor(torch.randn(len(start.sizes), 1024) / 32, torch.randn(len(start.sizes)), 8)
    for parameter in [*autoencoder.parameters(), *reading.parameters()]:
        parameter.data += 0.01 * torch.randn_like(parameter)
    autoencoder.write_into(vae, reading, frame)
    codes = vae.distributions(features)
    with torch.no_grad():
        mean = autoencoder.identity.mean(reading(features))
        torch.testing.assert_close(codes["id_mean"], mean, rtol=1e-3, atol=1e-3)
        decoded = frame.offsets(autoencoder.identity.decode(mean))
        found = vae.decode_identity(mean)
        assert (found - decoded).abs().max() < 1e-3 * decoded.abs().max()


def test_hidden_units_mend_what_the_linear_reading_leaves(tmp_path):
    draw = generator(0)
    features = torch.randn(2000, 256, generator=draw) + 6
    targets = (features[:, :2] - 6).square() + features[:, 2:4]
    recipe = replace(SMALL, hidden_dim=64, regressor_steps=300)
    reading = train.fit_regressor(recipe, features, targets, torch.ones(2), tmp_path, 0)
    left = (targets - reading(features)).square().mean()
    linear = (targets - reading.linear(features)).square().mean()
    assert left < 0.5 * linear
    again = train.fit_regressor(recipe, features, targets, torch.ones(2), tmp_path, 0)
    torch.testing.assert_close(again(features), reading(features))


def test_a_corrupted_cloud_has_fewer_points_near_the_whole_one():
    points = torch.rand(1000, 3) * 100
    sizes = []
    for seed in range(30):
        cloud = corrupt(points, 1.0, generator(seed))
        sizes.append(len(cloud))
        nearest = torch.cdist(cloud, points).amin(1)
        assert nearest.mean() < 2
    assert 170 <= min(sizes) < max(sizes) <= 1000
    assert torch.equal(corrupt(points, 1.0, generator(3)), corrupt(points, 1.0, generator(3)))


def test_mixtures_have_the_mean_and_covariance_of_the_meshes():
    rows = sample_mixtures(30, 4, 50_000, generator(0))
    torch.testing.assert_close(rows.weights.sum(1), torch.ones(len(rows)))
    torch.testing.assert_close(rows.weights.square().sum(1), torch.ones(len(rows)))
    assert all(len(set(several.tolist())) == 12 for several in rows.identities[120:320])
    person = torch.randn(30, 1, 2) @ torch.tensor([[1.0, 0.5], [0, 1]]) + 3
    values = person + torch.randn(30, 4, 2)
    torch.testing.assert_close(rows[: 30 * 4].of(values), values.flatten(0, 1))
    mixed = rows[slice(120, None)].of(values)
    torch.testing.assert_close(mixed.mean(0), values.mean((0, 1)), atol=0.05, rtol=0)
    torch.testing.assert_close(
        torch.cov(mixed.T), torch.cov(values.flatten(0, 1).T), atol=0.1, rtol=0
    )


def test_a_mixture_changes_its_expression_and_keeps_its_identity():
    rows = sample_mixtures(6, 4, 50, generator(1))
    person = torch.randn(6, 1, 3).expand(-1, 4, -1)
    expression = torch.randn(1, 4, 3).expand(6, -1, -1)
    other = rows.with_expressions(rows.identity, (rows.expression + 1) % 4)
    torch.testing.assert_close(other.of(person), rows.of(person))
    assert (other.of(expression) - rows.of(expression)).abs().amax(1).min() > 1e-3


def test_ridge_solves_the_normal_equations():
    inputs, weight = torch.randn(50, 4), torch.randn(3, 4)
    targets = inputs @ weight.T + 2
    found, bias = ridge(inputs, targets, 1e-6)
    torch.testing.assert_close(found, weight, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias, torch.full((3,), 2.0), atol=1e-4, rtol=1e-4)
    assert ridge(inputs, targets, 1e6)[0].abs().max() < 0.01


def test_features_start_as_distances_to_the_nearest_point(folder):
    _, meshes, _ = parts_of(folder)
    vae = VAE(144, 6, 4).eval()
    set_shared_layers(vae, meshes.flatten(0, 1), (0.03, 0.1), generator(3))
    points = meshes[0, 0]
    near = vae.responses(points[None])[0]
    # A point added anywhere can only bring an anchor's nearest point closer.
    more = vae.responses(torch.cat([points, points + 0.05])[None])[0]
    assert bool((more >= near - 1e-4).all())
    assert (more > near + 1e-3).double().mean() > 0.2
