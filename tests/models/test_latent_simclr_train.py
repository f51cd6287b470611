"""The three trainings of latent-simclr: one after another, resumed, and what moves in them."""

import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from interrupting import interrupted
from packs import write_faces_wild, write_ferplus, write_lfw
from safetensors.torch import load_file

import facezoo
from facezoo.evaluate.benchmark.report import contamination_of
from facezoo.models import feature_maps
from facezoo.models.latent_simclr.simclr import CodeEncoder
from facezoo.models.latent_simclr.train import (
    PARTS,
    ada,
    adversarial,
    command,
    inversion,
    run,
    separation,
    simclr,
)
from facezoo.models.latent_simclr.train.recipes import (
    RECIPES,
    Adversarial,
    Contrasting,
    Inverting,
    Recipe,
)
from facezoo.models.latent_simclr.train.supervised import train_classifier
from facezoo.training.loop import Schedule, fit

CPU = torch.device("cpu")
SHORT = Schedule(2, batch_size=4, lr=1e-3)
TINY = Recipe(
    Adversarial(
        images=24,
        batch_size=4,
        penalty_every=2,
        path_weight=2.0,
        path_every=3,
        augmentation=20,
        architecture={"size": 64, "style_dim": 8, "mapping_layers": 1, "max_channels": 8},
    ),
    Inverting(SHORT, architecture={"depths": (1, 1, 1, 1), "width": 8, "trunk_size": 32}),
    Contrasting(SHORT, expression_axes=3, architecture={"code_width": 8, "num_features": 12}),
)
"""Small enough for milliseconds, with everything that the paper's recipe switches on."""


@pytest.fixture(autouse=True)
def _tiny(monkeypatch, tmp_path):
    import timm

    grey = (0.5, 0.5, 0.5)
    network = timm.create_model("test_resnet.r160_in1k")
    monkeypatch.setattr(feature_maps, "_backbone", lambda *_: (network, grey, grey))
    monkeypatch.setitem(RECIPES, "preview", TINY)
    write_lfw(tmp_path, train=16, val=4)


def train(tmp_path, part, folder="runs", seed=1):
    return run(part, tmp_path, tmp_path / folder, seed=seed, device=CPU, name="preview")


def test_the_parts_end_in_a_checkpoint_that_loads(tmp_path):
    written = [train(tmp_path, part) for part in PARTS]
    model = facezoo.load(written[-1].with_suffix(".safetensors"), device="cpu")
    assert model.card.name == "latent-simclr.lfw-preview"
    commands = model.card.training.command.split(" && ")
    assert [text.split()[2] for text in commands] == list(PARTS)
    assert all("--recipe preview --seed 1" in text for text in commands)
    assert model.architecture["directions"] == ["blur", "skin_tone", "smile", "yaw"]
    crops = list(torch.rand(2, 3, 64, 64))
    assert model.encode_expression(crops, aligned=True).shape == (2, 12)
    assert model.edit(crops, "smile", 2.0, aligned=True).shape == (2, 3, 64, 64)
    assert model.expression_axes.read.shape == (3, 10, 8)
    assert model.feature_directions.shape == (4, *model.inverter.generator.feature_shape(5))
    early = load_file(written[0].with_name("early.safetensors"))
    final = load_file(written[0])
    assert early.keys() == final.keys()
    assert not torch.equal(early["input.input"], final["input.input"])


@pytest.mark.parametrize("part", PARTS[1:])
def test_a_part_wants_those_before_it(tmp_path, part):
    with pytest.raises(FileNotFoundError, match="finish facezoo train stylegan2 first"):
        train(tmp_path, part)


def test_a_recipe_can_start_from_a_checkpoint_and_learn_from_more_packs(tmp_path, monkeypatch):
    first = [train(tmp_path, part) for part in PARTS][-1].with_suffix(".safetensors")
    contrast = replace(TINY.contrast, mixing=False, linear_head=True, neighbors=2)
    contrast = replace(contrast, identity_epochs=1, exchange=True, ferplus=True)
    contrast = replace(contrast, identity_directions=2)
    recipe = replace(TINY, contrast=contrast, start=str(first), wild=True)
    monkeypatch.setitem(RECIPES, "wild-preview", recipe)
    options = {"seed": 1, "device": CPU, "name": "wild-preview"}
    parts = partial(run, data=tmp_path, out=tmp_path / "runs", **options)
    with pytest.raises(ValueError, match="begin with facezoo train feature-style"):
        parts(PARTS[0])
    with pytest.raises(FileNotFoundError, match=r"faces_wild\.parquet"):
        parts(PARTS[1])
    write_faces_wild(tmp_path)
    write_ferplus(tmp_path)
    card = [parts(part) for part in PARTS[1:]][-1]
    before, after = load_file(first), load_file(card.with_suffix(".safetensors"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any(name.startswith("inverter.generator") for name in changed)
    for start in ("inverter.encoder", "expression_encoder", "identity_encoder", "directions"):
        assert any(name.startswith(start) for name in changed)
    training = json.loads(card.read_text())["training"]
    assert [text.split()[2] for text in training["command"].split(" && ")] == list(PARTS[1:])
    assert training["base"] == "latent-simclr.lfw-preview"
    images, labels = training["data"][-2:]
    assert "faces_wild train" in images
    assert "FER+ train: 6 images" in images
    assert labels == command.BY_LABELS
    assert card.name == "latent-simclr.wild-preview.json"


def test_an_interrupted_contrast_of_partners_ends_at_the_same_weights(tmp_path, monkeypatch):
    codes = torch.randn(2, 12, 10, 6, generator=torch.Generator().manual_seed(0))
    partners = simclr.nearest_expressions(codes[0, :, 0], 3)
    monkeypatch.setattr(simclr, "fit", partial(fit, save_every=0.0))

    def contrast(folder):
        torch.manual_seed(0)
        encoder = CodeEncoder(10, 6, 8, 12)
        rows, views = torch.arange(12), lambda codes, *_: codes
        settings = (codes, rows, views, TINY.contrast, tmp_path / folder, 0, CPU)
        return simclr.train_contrast(encoder, *settings, partners=partners)

    whole = contrast("whole")
    with interrupted(monkeypatch, "descend", simclr, after=3):
        contrast("broken")
    again = contrast("broken")
    assert whole.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


def test_partners_are_alike():
    chance = torch.Generator().manual_seed(0)
    expression = torch.tensor([[0.0], [1.0], [10.0], [11.0], [12.0]])
    choose = simclr.nearest_expressions(expression, 1)
    assert choose(torch.tensor([0, 1, 2, 4]), chance).tolist() == [1, 0, 3, 3]
    choose = simclr.nearest_expressions(expression, 100)
    others = torch.stack([choose(torch.arange(5), chance) for _ in range(100)])
    assert all(set(others[:, row].tolist()) == {*range(5)} - {row} for row in range(5))
    choose = simclr.same_identities(["a", "b", "a", "", "", "c"])
    others = torch.stack([choose(torch.arange(6), chance) for _ in range(100)])
    assert [set(column.tolist()) for column in others.T] == [{0, 2}, {1}, {0, 2}, {3}, {4}, {5}]


def test_edits_are_fitted_again_for_a_finished_checkpoint(tmp_path):
    card = [train(tmp_path, part) for part in PARTS][-1]
    weights = str(card.with_suffix(".safetensors"))
    again = run(
        PARTS[2], tmp_path, tmp_path / "again", seed=1, device=CPU, name="preview", start=weights
    )
    first, second = (load_file(path.with_suffix(".safetensors")) for path in (card, again))
    assert first.keys() == second.keys()
    fitted = {name for name, tensor in first.items() if not torch.equal(second[name], tensor)}
    assert fitted <= {name for name in first if name.startswith(("expression_axes", "feature_d"))}
    assert all(second[name].any() and second[name].isfinite().all() for name in fitted)
    training = json.loads(again.read_text())["training"]
    commands = training["command"].split(" && ")
    assert [text.split()[2] for text in commands] == [*PARTS, PARTS[2]]
    result = "runs/latent-simclr/preview-seed1/latent-simclr.lfw-preview.safetensors"
    assert commands[-1].endswith(f"--recipe preview --start {result} --seed 1")
    assert training["data"].count("perceptual and identity loss by ipd-fer") == 1
    assert training["recipe"]["edits"] == {"features": "ipd-fer", "expression_axes": 3}


def test_identity_is_removed_once_from_a_finished_checkpoint(tmp_path, monkeypatch):
    start = [train(tmp_path, part) for part in PARTS][-1]
    contrast = replace(TINY.contrast, identity_directions=2)
    monkeypatch.setitem(RECIPES, "preview", replace(TINY, contrast=contrast))
    cards, encoders = [start], []
    for folder in ("once", "twice"):
        again = partial(run, PARTS[2], tmp_path, tmp_path / folder, seed=1, device=CPU)
        cards.append(again(name="preview", start=str(cards[-1].with_suffix(".safetensors"))))
    for card in cards:
        tensors = load_file(card.with_suffix(".safetensors"))
        encoders.append({k: v for k, v in tensors.items() if k.startswith("expression_encoder")})
    changed = {k for k, v in encoders[0].items() if not torch.equal(v, encoders[1][k])}
    assert {name.split(".")[1] for name in changed} == {"mapping"}
    assert all(torch.equal(v, encoders[2][k]) for k, v in encoders[1].items())
    training = json.loads(cards[-1].read_text())["training"]
    assert training["recipe"]["edits"]["identity_directions"] == 2
    assert command.BY_LABELS in training["data"]
    assert set(contamination_of([command.BY_LABELS]).values()) == {"train split", "no"}


def test_the_last_layer_removes_directions_of_identity():
    generator = torch.Generator().manual_seed(0)
    identities = torch.arange(20).repeat_interleave(10)
    expressions = torch.arange(200) % 2
    codes = torch.randn(200, 2, 6, generator=generator)
    codes[:, 0, :2] += 4 * torch.randn(20, 2, generator=generator)[identities]
    codes[:, 1, 0] += 4 * expressions
    torch.manual_seed(0)
    encoder = CodeEncoder(2, 6, 8, 12)
    encoder.fit_scale(codes)
    for _ in range(100):
        encoder.train()(codes)  # running statistics
    before = encoder.eval()(codes).detach()
    names = [f"p{number}" for number in identities.tolist()]
    separation.separate_from_identity(encoder, codes, names, expressions, 3)
    removal = facezoo.remove_identity(before, names, keep=expressions, directions=3)
    torch.testing.assert_close(encoder(codes), removal(before), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(encoder.train()(codes), removal(before), rtol=0.02, atol=0.02)
    assert encoder.mapping[0].weight.requires_grad


def test_edits_want_the_last_part_and_a_checkpoint_of_the_recipe(tmp_path):
    options = {"seed": 1, "device": CPU, "start": "latent-simclr"}
    with pytest.raises(ValueError, match="facezoo train latent-simclr only, got it for stylegan2"):
        run(PARTS[0], tmp_path, tmp_path / "runs", name="preview", **options)
    with pytest.raises(ValueError, match="a checkpoint of the recipe paper, got latent-simclr"):
        run(PARTS[2], tmp_path, tmp_path / "runs", name="paper", **options)
    (tmp_path / "lfw.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no lfw\.parquet; --data"):
        run(PARTS[2], tmp_path, tmp_path / "other", name="preview", **options)


def test_too_few_images_for_a_batch_raise_an_error(tmp_path):
    few = torch.zeros(3, 3, 68, 68, dtype=torch.uint8)
    with pytest.raises(ValueError, match="3 rows to train on, too few for a batch of 4"):
        adversarial.train_generator(TINY.generator, few, tmp_path, 0, CPU)
    encoder = CodeEncoder(10, 6, 8, 12)
    with pytest.raises(ValueError, match="too few for a batch of 4"):
        train_classifier(encoder, torch.zeros(3, 10, 6), torch.arange(3), SHORT, tmp_path, 0)


def test_an_unknown_part_raises_an_error(tmp_path):
    with pytest.raises(ValueError, match="part must be one of stylegan2"):
        train(tmp_path, "gan")


def test_an_interrupted_generator_ends_at_the_same_weights(tmp_path, monkeypatch):
    keep_all = partial(adversarial.train_generator, save_every=0.0)
    monkeypatch.setattr(command, "train_generator", keep_all)
    whole = train(tmp_path, PARTS[0], "whole")
    with interrupted(monkeypatch, "descend", adversarial, after=10):
        train(tmp_path, PARTS[0], "broken")
    again = train(tmp_path, PARTS[0], "broken")
    assert again.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("part", PARTS[1:])
def test_an_interrupted_part_ends_at_the_same_weights(tmp_path, monkeypatch, part):
    keep_all = partial(fit, save_every=0.0)
    for module in (simclr, inversion):
        monkeypatch.setattr(module, "fit", keep_all)
    for folder in ("whole", "broken"):
        for before in PARTS[: PARTS.index(part)]:
            train(tmp_path, before, folder)
    whole = train(tmp_path, part, "whole")
    with interrupted(monkeypatch, "descend", simclr, inversion, after=3):
        train(tmp_path, part, "broken")
    again = train(tmp_path, part, "broken")
    first, second = (path.with_suffix(".safetensors").read_bytes() for path in (whole, again))
    assert first == second


def test_a_run_with_other_images_does_not_resume(tmp_path, monkeypatch):
    with interrupted(monkeypatch, "descend", adversarial):
        train(tmp_path, "stylegan2")
    begun = tmp_path.parent / f"{tmp_path.name}-begun"
    shutil.copytree(tmp_path, begun)
    write_lfw(tmp_path, train=12, val=4)
    with pytest.raises(ValueError, match=r"stylegan2 was begun with other data .*sha256 was"):
        train(tmp_path, "stylegan2")
    train(begun, "stylegan2")
    write_lfw(begun, train=12, val=4)
    with pytest.raises(ValueError, match=r"stylegan2 was begun with other data .*sha256 was"):
        train(begun, "feature-style")


def test_the_last_stage_accepts_labels_of_other_images_and_records_it_in_the_card(tmp_path):
    for part in PARTS[:2]:
        train(tmp_path, part)
    write_lfw(tmp_path, train=12, val=4)
    data = json.loads(train(tmp_path, PARTS[2]).read_text())["training"]["data"]
    assert data[0].startswith("LFW (deep-funneled) train: 12")
    said = [text.split(", digest: ")[0] for text in data[1:3]]
    assert said == [f"{part}: other images (files: 1" for part in PARTS[:2]]


def test_each_step_moves_its_own_network():
    gan = adversarial.Gan(TINY.generator, torch.zeros(0), seed=0, device=CPU)
    chance = torch.Generator().manual_seed(0)
    networks = gan.generator, gan.discriminator
    before = [{k: v.clone() for k, v in n.state_dict().items()} for n in networks]
    fakes, _ = gan.update_generator(4, chance)
    assert moved(gan.discriminator, before[1]) == []
    assert moved(gan.generator, before[0])
    before[0] = {k: v.clone() for k, v in gan.generator.state_dict().items()}
    gan.update_discriminator(torch.rand(4, 3, 64, 64), fakes, chance)
    assert moved(gan.generator, before[0]) == []
    assert moved(gan.discriminator, before[1])


def moved(module, before):
    return [name for name, value in module.state_dict().items() if not value.equal(before[name])]


def test_the_encoders_training_leaves_the_generator_alone(tmp_path):
    written = [train(tmp_path, part) for part in PARTS[:2]]
    trained = command.new_inverter(TINY, 1)
    trained.generator.load_state_dict(load_file(written[0]))
    crops = torch.randint(0, 256, (8, 3, 68, 68), dtype=torch.uint8)
    before = {k: v.clone() for k, v in trained.generator.state_dict().items()}
    tensors = inversion.train_encoder(trained, crops, TINY.inversion, tmp_path / "e", 0, CPU)
    assert moved(trained.generator, before) == []
    assert tensors.keys() == trained.encoder.state_dict().keys()


def test_strength_grows_while_the_real_images_are_known():
    strength = ada.Strength(images=100)
    strength.update(torch.ones(10, 1))
    assert strength.probability == pytest.approx(0.1)
    strength.update(-torch.ones(20, 1))
    assert strength.probability == 0.0
    for _ in range(20):
        strength.update(torch.ones(10, 1))
    assert strength.probability == 1.0


def test_changes_are_none_without_probability_and_repeat_with_their_generator():
    images = torch.rand(6, 3, 16, 16) * 2 - 1
    draw = torch.Generator().manual_seed(0)
    assert torch.equal(ada.change(images, 0.0, draw), images)
    first, again = (ada.change(images, 0.8, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)
    assert (first - images).abs().amax((1, 2, 3)).gt(0.05).all()


def test_changes_of_colour_keep_a_grey_image_grey_and_a_flip_is_exact():
    grey = torch.rand(4, 1, 16, 16).expand(-1, 3, -1, -1)
    chance = ada._Chance(4, 1.0, torch.Generator().manual_seed(0), CPU)
    coloured = ada._recolor(grey, chance)
    torch.testing.assert_close(coloured[:, 0], coloured[:, 1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(coloured[:, 0], coloured[:, 2], atol=1e-5, rtol=1e-5)
    mirror = torch.tensor([[[-1.0, 0, 0], [0, 1, 0]]]).expand(4, 2, 3)
    torch.testing.assert_close(ada._warp(grey, mirror), grey.flip(-1))


def test_changes_keep_gradients():
    images = torch.rand(3, 3, 16, 16, requires_grad=True)
    ada.change(images, 1.0, torch.Generator().manual_seed(0)).sum().backward()
    assert images.grad.abs().sum() > 0


def test_views_exchange_what_their_encoder_should_not_hold():
    assert set(simclr.replaced_styles("expression", 10)) == {4, 5, 6, 7, 8, 9}
    assert set(simclr.replaced_styles("identity", 10)) == {0, 1, 2, 3}


def test_the_labels_that_are_measured():
    values = torch.tensor([3.0, 1, 2, 4, float("nan"), 5, 6, 7, 8])
    labels = simclr.label_extremes(values)
    assert labels[[8, 7]].tolist() == [1, 1]
    assert labels[[1, 2]].tolist() == [0, 0]
    assert torch.isnan(labels[[0, 3, 4, 5, 6]]).all()
    sharp = torch.randint(0, 256, (4, 3, 32, 32)).to(torch.uint8)
    soft = (sharp // 8 + 112).to(torch.uint8)
    found = simclr.measured_labels(torch.cat([sharp, soft]))
    assert found["blur"].nan_to_num(0.5)[:4].mean() < 0.5 < found["blur"].nan_to_num(0.5)[4:].mean()
    dark = torch.stack([torch.full((3, 32, 32), v) for v in (10, 20, 200, 220)]).to(torch.uint8)
    assert simclr.measured_labels(dark)["skin_tone"][[0, 3]].tolist() == [1, 0]


@pytest.mark.parametrize("directions", [None, [torch.zeros(10, 6)]])
def test_the_rival_learns_what_codes_show(tmp_path, directions):
    draw = torch.Generator().manual_seed(0)
    codes = torch.randn(128, 10, 6, generator=draw)
    labels = (codes[:, 0, 0] > 0).long()  # a coarse style, which the augmentations keep
    encoder = CodeEncoder(10, 6, 8, 12)
    encoder.fit_scale(codes)
    schedule = Schedule(30, batch_size=16, lr=1e-2, schedule="cosine")
    network = train_classifier(
        encoder, codes, labels, schedule, tmp_path / "cnn", 0, directions=directions
    )
    with torch.no_grad():
        right = (network(codes).argmax(1) == labels).float().mean()
    assert right > 0.9
