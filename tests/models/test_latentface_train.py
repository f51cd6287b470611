"""Training of LatentFace on tiny packs: both stages, exact resume, and what the parts do."""

import csv
import json
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from interrupting import interrupted
from packs import photo_of, use_square_detector, write_faces_wild, write_ferplus, write_lfw
from PIL import Image

import facezoo
from facezoo.data.unlabeled import (
    MARGIN,
    FaceCrops,
    augmented,
    center,
    read_face_crops,
)
from facezoo.errors import UnknownNameError
from facezoo.models import feature_maps as features
from facezoo.models.latentface import LatentFace
from facezoo.models.latentface.networks import AutoEncoder
from facezoo.models.latentface.train import command, run, stage1, stage2
from facezoo.models.latentface.train.neutral import fit_removal
from facezoo.models.latentface.train.recipes import RECIPES, Disentangling
from facezoo.models.latentface.train.stage1 import convex_depth, roughness
from facezoo.models.latentface.train.stage2 import (
    codes_of,
    equalize,
    group_by_identity,
    sample_pairs,
)
from facezoo.training import loop
from facezoo.training.loop import Schedule
from facezoo.training.run import recipe_named

CPU = torch.device("cpu")
SMALL = {"width": 4, "number_width": 4, "code_dim": 8, "unet_width": 8}


@pytest.fixture(autouse=True)
def _small_feature_network(monkeypatch):
    grey = (0.5, 0.5, 0.5)
    network = timm.create_model("test_resnet.r160_in1k")
    monkeypatch.setattr(features, "_backbone", lambda name, encoder: (network, grey, grey))


@pytest.fixture
def chosen(monkeypatch):
    """The compact recipe, tiny."""
    compact = RECIPES["compact"]
    short = replace(compact.autoencoding.schedule, epochs=3, batch_size=3)
    brief = replace(compact.disentangling.schedule, epochs=4, batch_size=2)
    tiny = replace(
        compact,
        autoencoding=replace(compact.autoencoding, schedule=short),
        disentangling=replace(compact.disentangling, schedule=brief),
        architecture=SMALL,
    )
    monkeypatch.setitem(RECIPES, "compact", tiny)
    return tiny


@pytest.fixture
def data(tmp_path):
    write_lfw(tmp_path, train=8, val=4)
    return tmp_path


def test_both_stages_end_in_a_checkpoint_that_loads(chosen, data, tmp_path):
    out = tmp_path / "runs"
    both = [run(data, out, stage=s, seed=1, device=CPU, name="compact") for s in ("1", "2")]
    assert both[0].name == "autoencoders.safetensors"
    card = json.loads(both[1].read_text())
    assert card["model"] == "latentface"
    assert card["tag"] == "lfw"
    assert card["training"]["command"].endswith("--recipe compact --stage 2 --seed 1")
    model = facezoo.load(both[1].with_suffix(".safetensors"), device="cpu")
    assert model.architecture["code_limit"] > 0
    crops = torch.rand(2, 3, 64, 64)
    assert model.encode_identity(list(crops), aligned=True).shape == (2, 16)
    for stage in ("stage1", "stage2"):
        with (both[1].parent / stage / "log.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows
        assert all(float(value) == float(value) for row in rows for value in row.values())


def test_the_second_stage_wants_the_first(chosen, data, tmp_path):
    with pytest.raises(FileNotFoundError, match="finish stage 1 first"):
        run(data, tmp_path / "runs", stage="2", seed=0, device=CPU, name="compact")
    with pytest.raises(ValueError, match="stage must be one of 1, 2, neutral, got 3"):
        run(data, tmp_path / "runs", stage="3", seed=0, device=CPU, name="compact")


def test_the_neutral_stage_adds_neutral_codes_to_a_checkpoint(chosen, data, tmp_path, monkeypatch):
    monkeypatch.setitem(RECIPES, "compact", replace(chosen, expression_directions=2))
    write_ferplus(data, train=8)
    train = partial(run, data, tmp_path / "runs", seed=1, device=CPU, name="compact")
    paths = [train(stage=stage) for stage in ("1", "2")]
    start = str(paths[-1].with_suffix(".safetensors"))
    with pytest.raises(ValueError, match="--stage neutral needs --start"):
        train(stage="neutral")
    path = train(stage="neutral", start=start)
    card = json.loads(path.read_text())
    assert card["tag"] == "lfw-neutral"
    assert card["training"]["base"] == "latentface.lfw"
    assert card["training"]["command"].endswith("--stage neutral --start latentface.lfw --seed 1")
    model, before = (
        facezoo.load(file, device="cpu") for file in (path.with_suffix(".safetensors"), start)
    )
    crops = list(torch.rand(2, 3, 64, 64))
    identity = [m.encode_identity(crops, aligned=True) for m in (model, before)]
    assert torch.equal(*identity)
    expression = model.encode_expression(crops, aligned=True)
    assert torch.linalg.matrix_rank(expression) <= 2
    assert not torch.equal(expression, before.encode_expression(crops, aligned=True))


def test_neutral_codes_are_the_neutral_mean_along_the_directions_and_the_rest_stays():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40)[:, None].expand(-1, 2) % 4
    smile = torch.eye(6)[0]
    codes = torch.randn(40, 2, 6, generator=generator) + 5 * labels[..., None] * smile
    removal = fit_removal(codes, labels, torch.zeros(40, 2, dtype=torch.long), 1)
    neutral = removal(codes.flatten(0, 1)).view(40, 2, 6)
    mean = codes[labels == 0].mean(0)
    assert neutral[..., 0].std() < 0.2 * codes[..., 0].std()
    assert (neutral[labels == 3].mean(0)[0] - mean[0]).abs() < 0.5
    torch.testing.assert_close(neutral[..., 1:], codes[..., 1:], atol=1.0, rtol=0)


@pytest.mark.parametrize("stage", [1, 2])
def test_an_interrupted_stage_ends_at_the_same_weights(chosen, data, tmp_path, monkeypatch, stage):
    for module in (stage1, stage2):
        monkeypatch.setattr(module, "fit", partial(loop.fit, save_every=0.0))
    train = partial(run, data, seed=2, device=CPU, name="compact")
    whole = [train(tmp_path / "whole", stage=str(s)) for s in range(1, stage + 1)][-1]
    broken = tmp_path / "broken"
    for before in range(1, stage):
        train(broken, stage=str(before))
    with interrupted(monkeypatch, "descend", stage1, stage2, after=3):
        train(broken, stage=str(stage))
    again = train(broken, stage=str(stage))
    name = {1: whole.name, 2: "latentface.lfw.safetensors"}[stage]
    first, second = (path.with_name(name).read_bytes() for path in (whole, again))
    assert first == second


def test_a_run_with_other_images_does_not_resume(chosen, data, tmp_path, monkeypatch):
    out, other = tmp_path / "runs", tmp_path / "other"
    other.mkdir()
    write_lfw(other, train=10, val=4)
    train = partial(run, out=out, seed=1, device=CPU, name="compact")

    with interrupted(monkeypatch, "descend", stage1):
        train(data, stage="1")
    with pytest.raises(ValueError, match=r"stage1 was begun with other data .*sha256 was"):
        train(other, stage="1")
    train(data, stage="1")
    with pytest.raises(ValueError, match=r"stage1 was begun with other data .*sha256 was"):
        train(other, stage="2")


def test_folders_of_images_are_distinguished(chosen, tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("some", "more")]
    for folder, count in zip(folders, (3, 4), strict=True):
        for number in range(count):
            (folder / "person").mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40)).save(folder / "person" / f"{number}.png")

    train = partial(run, out=tmp_path / "runs", stage="1", seed=1, device=CPU, name="compact")
    with interrupted(monkeypatch, "read_face_crops", command):
        train(folders[0])
    with pytest.raises(ValueError, match="files was 3 and is now 4"):
        train(folders[1])


def test_one_step_of_the_first_stage_moves_every_network(chosen):
    torch.manual_seed(0)
    model = LatentFace(**SMALL, diffusion=False)
    network = features.FeatureMaps("any", [1])
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    terms, depth, redrawn = stage1.reconstruction_terms(model, network, images)
    assert depth.shape == (2, 64, 64)
    assert redrawn.shape == images.shape
    sum(terms.values()).backward()
    moved = {name.split(".")[0] for name, p in model.named_parameters() if p.grad.abs().sum() > 0}
    assert moved == {name.split(".")[0] for name, _ in model.named_parameters()}
    assert all(p.grad is None for p in network.parameters())


def test_equalised_codes_have_unit_spread_and_the_maps_stay():
    torch.manual_seed(0)
    autoencoder = AutoEncoder(3, width=4, code_dim=8, tanh=True)
    images = torch.rand(20, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        codes, maps = autoencoder.encode(images), autoencoder(images)
        factors = equalize(autoencoder, codes)
        after = autoencoder.encode(images)
        torch.testing.assert_close(after, codes * factors, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(autoencoder(images), maps, atol=1e-4, rtol=1e-4)
    alive = codes.std(0) > 1e-6
    torch.testing.assert_close(after.std(0)[alive], torch.ones(int(alive.sum())))
    assert (factors[~alive] == 1).all()


@pytest.mark.parametrize("others", [False, True])
def test_the_identity_is_the_mean_code_of_the_identity(others):
    codes = torch.randn(4, 1, 2, 3).expand(4, 2, 2, 3)  # mirror images have the same
    config = Disentangling(RECIPES["compact"].disentangling.schedule, frames=3, others=others)
    faces, identities = sample_pairs([codes], config, torch.Generator().manual_seed(0))
    assert faces.shape == identities.shape == (3, 2, 3)
    for row in range(3):
        rest = faces[[r for r in range(3) if r != row]] if others else faces
        torch.testing.assert_close(identities[row], rest.mean(0))


def test_only_identities_with_two_images_have_an_identity():
    codes = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 2, 1)
    named = FaceCrops(torch.zeros(4, 3, 68, 68, dtype=torch.uint8), ["b", "a", "b", "c"], "", "")
    (both,) = group_by_identity(codes, named)
    assert both[:, 0, 0, 0].tolist() == [0, 2]
    with pytest.raises(ValueError, match="no identity has two or more images"):
        group_by_identity(codes[1:], replace(named, identities=["a", "b", "c"]))


def test_codes_of_crops_are_next_to_the_codes_of_their_mirror_images():
    model = LatentFace(**SMALL, diffusion=False)
    crops = torch.randint(0, 256, (3, 3, 68, 68), dtype=torch.uint8)
    codes, mirrored = codes_of(model, crops, CPU, 2), codes_of(model, crops.flip(-1), CPU, 2)
    assert codes.shape == (3, 2, 2, 8)
    torch.testing.assert_close(codes[:, 0], mirrored[:, 1])
    torch.testing.assert_close(codes[:, 1, 1], model.embed_latents(center(crops).flip(-1)).shape)


def test_augmented_crops_are_crops_moved_mirrored_or_made_grey():
    crops = torch.randint(0, 256, (40, 3, 8 + 2 * MARGIN, 8 + 2 * MARGIN), dtype=torch.uint8)
    images = augmented(crops, torch.Generator().manual_seed(0), gray=0.3)
    assert images.shape == (40, 3, 8, 8)
    places = range(2 * MARGIN + 1)
    grey, moved, mirrored = 0, set(), 0
    for crop, image in zip(crops.float() / 127.5 - 1, images, strict=True):
        windows = {(y, x): crop[:, y : y + 8, x : x + 8] for y in places for x in places}
        pale = torch.equal(image[0], image[1])
        grey += pale
        for place, window in windows.items():
            window = window.mean(0, keepdim=True).expand(3, 8, 8) if pale else window
            if torch.allclose(window, image) or torch.allclose(window.flip(-1), image):
                moved.add(place)
                mirrored += not torch.allclose(window, image)
    assert 5 < grey < 20
    assert len(moved) > 10
    assert 10 < mirrored < 30


def test_a_folder_of_folders_is_read_as_identities(tmp_path, monkeypatch):
    from facezoo.data import crops as found

    tmp_path, elsewhere = tmp_path / "people", tmp_path / "id2"
    names = ["id1/clip/1.png", "id1/clip/2.tif", "id1/.thumbs/1.png", "../id2/clip/1.png"]
    for name in (*names, "nobody1.png", "nobody2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 80), "white").save(tmp_path / name)
    (tmp_path / "id2").symlink_to(elsewhere)

    def cut(name, files, **options):
        assert options["size"] == 64
        rows = torch.arange(len(files))
        images = torch.zeros(len(rows), 3, 68, 68, dtype=torch.uint8)
        return found.Crops(images, torch.zeros(len(rows), 5, 2), rows, torch.zeros(len(rows)))

    monkeypatch.setattr("facezoo.data.unlabeled.cut_faces", cut)
    faces = read_face_crops(tmp_path, LatentFace(**SMALL).preprocessing, CPU)
    assert faces.identities == ["id1/clip", "id1/clip", "id2/clip", "", ""]
    assert faces.description.endswith("5 images in 2 folders")
    assert len(group_by_identity(torch.rand(5, 2, 2, 3), faces)) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither lfw\.parquet nor images"):
        read_face_crops(tmp_path / "empty", LatentFace(**SMALL).preprocessing, CPU)


def test_own_images_that_cannot_be_read_are_left_out(tmp_path, monkeypatch):
    use_square_detector(monkeypatch)
    for name in ("id1/1.png", "id1/2.png", "id2/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo_of((50, 50, 100)).numpy()).save(tmp_path / name)
    (tmp_path / "id1" / "2.png").write_bytes(b"junk")
    with pytest.warns(match=r"1 of 3 images of .* cannot be read .*2\.png"):
        faces = read_face_crops(tmp_path, LatentFace(**SMALL).preprocessing, CPU)
    assert faces.identities == ["id1", "id2"]


def test_the_convex_depth_is_nearest_in_the_middle_and_smoother_than_noise():
    depth = convex_depth(64)
    assert depth.argmin() // 64 in (31, 32)
    assert depth[:, 2:-2].max() - depth.min() > 0.05
    noise = depth + 0.01 * torch.randn(64, 64)
    assert roughness(depth[None]) < roughness(noise[None]) / 3
    plane = torch.linspace(0.9, 1.1, 64).expand(1, 64, 64)
    torch.testing.assert_close(roughness(plane), torch.zeros(()), atol=1e-5, rtol=0)


def test_another_feature_network_gets_the_colours_that_it_wants(monkeypatch):
    monkeypatch.undo()
    make = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: make(name))
    network = features.FeatureMaps("test_resnet.r160_in1k", [1])
    settings = network.backbone.pretrained_cfg
    black = (torch.zeros(3) - torch.tensor(settings["mean"])) / torch.tensor(settings["std"])
    seen = []
    network.backbone.forward_intermediates = lambda images, **_: seen.append(images) or [images]
    network(torch.full((1, 3, 8, 8), -1.0))
    torch.testing.assert_close(seen[0][0, :, 0, 0], black)


def test_recipes_are_found_by_name():
    assert recipe_named(RECIPES, "paper").architecture["size"] == 128
    with pytest.raises(UnknownNameError, match="did you mean compact"):
        recipe_named(RECIPES, "compct")


def test_the_feature_network_of_a_checkpoint_is_its_identity_encoder(monkeypatch):
    monkeypatch.undo()
    network = features.FeatureMaps("ipd-fer", [1])
    images = torch.rand(1, 3, 64, 64) * 2 - 1
    (maps,) = network(images)
    assert maps.shape == (1, 64, 16, 16)
    options = {"indices": [1], "intermediates_only": True}
    own = facezoo.load("ipd-fer", device="cpu").identity_encoder.backbone
    torch.testing.assert_close(maps, own.forward_intermediates(images, **options)[0])
    assert not any(p.requires_grad for p in network.parameters())


def test_the_recipe_wild_starts_from_a_checkpoint_and_adds_whole_heads(tmp_path, monkeypatch):
    wild = RECIPES["wild"]
    tiny = replace(
        wild,
        autoencoding=replace(wild.autoencoding, schedule=Schedule(1, batch_size=3)),
        disentangling=replace(wild.disentangling, schedule=Schedule(1, batch_size=2)),
    )
    monkeypatch.setitem(RECIPES, "wild", tiny)
    write_lfw(tmp_path)
    write_ferplus(tmp_path)
    lfw = pq.read_table(tmp_path / "lfw.parquet")
    inside = pa.array([0.9, 0.5] * (len(lfw) // 2) + [0.9] * (len(lfw) % 2))
    pq.write_table(lfw.append_column("inside", inside), tmp_path / "faces_wild.parquet")
    preprocessing = LatentFace(**tiny.architecture).preprocessing
    alone = read_face_crops(tmp_path, preprocessing, CPU)
    faces = read_face_crops(tmp_path, preprocessing, CPU, wild=True)
    added = len(faces.crops) - len(alone.crops)
    assert 0 < added < len(alone.crops)
    assert faces.identities[-added:] == [""] * added
    assert f"{added} whole heads" in faces.description

    for stage in ("1", "2"):
        result = run(tmp_path, tmp_path / "out", stage=stage, seed=1, device=CPU, name="wild")
    card = json.loads(result.read_text())
    assert card["training"]["base"] == "latentface.lfw"
    assert (card["tag"], card["default"]) == ("wild", True)
    model, start = map(facezoo.load, (result.with_suffix(".safetensors"), "latentface.lfw"))
    assert model.architecture["expression_directions"] == 5
    before, after = (m.texture_autoencoder.encoder[0].weight.flatten() for m in (start, model))
    assert 0.9 < torch.cosine_similarity(before, after, dim=0) < 1

    again = str(result.with_suffix(".safetensors"))
    train = partial(run, tmp_path, tmp_path / "further", seed=1, device=CPU, name="wild")
    train(stage="1", start=again)
    with pytest.raises(ValueError, match="give both stages the same --start"):
        train(stage="2")
    further = json.loads(train(stage="2", start=again).read_text())["training"]
    assert further["base"] == "latentface.wild"
    assert "--recipe wild --start latentface.wild --stage 2" in further["command"]
    with pytest.raises(ValueError, match="recipe compact starts from random weights"):
        run(tmp_path, tmp_path / "out", stage="1", seed=1, device=CPU, name="compact", start=again)


@pytest.mark.parametrize("missing", ["ferplus.parquet", "faces_wild.parquet"])
def test_a_pack_that_the_recipe_wild_lacks_is_named_before_the_training(missing, tmp_path):
    write_lfw(tmp_path)
    write_ferplus(tmp_path)
    write_faces_wild(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {missing}; --data must name"):
        run(tmp_path, tmp_path / "out", stage="1", seed=1, device=CPU, name="wild")


def test_the_distance_of_expressions_compares_the_inner_faces():
    network = features.FeatureMaps("any", [1, 2])
    images = torch.rand(2, 3, 60, 60) * 2 - 1
    other = images.clone()
    other[..., :5, :] = 0
    assert stage1.expression_distance(network, other, images) == 0
    other[..., 20:40, 20:40] = 0
    assert stage1.expression_distance(network, other, images) > 0.01
    inner = stage1.inner_faces(torch.arange(60.0).expand(1, 1, 60, 60))
    torch.testing.assert_close(
        inner[0, 0, 0, [0, -1]], torch.tensor([9.8333, 49.1667]), atol=1e-3, rtol=0
    )
